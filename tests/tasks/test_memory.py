"""What is freed stays with the process while that is asked for, and no longer."""

from __future__ import annotations

import resource
import subprocess
import sys

import psutil
import pytest

from tasks.memory import freed_memory_kept, garbage_left_at_exit

MEGABYTES = 64
ENDING = """
import gc
from tasks.memory import garbage_left_at_exit

class Knot:
    def __init__(self):
        self.itself = self
    def __del__(self):
        print("untied")

gc.disable()
{call}
knot = Knot()
print("ended")
"""
"""What an object that only a collection can free says of a process's end."""
PAGES = MEGABYTES * 2**20 // resource.getpagesize()


def new_pages() -> int:
    """How many pages the kernel has to give for one large block that is written to and freed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(MEGABYTES * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' C libraries are left alone")
def test_a_block_that_was_freed_costs_no_new_pages() -> None:
    with freed_memory_kept():
        new_pages()
        assert new_pages() < PAGES / 10


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' C libraries are left alone")
def test_afterwards_it_goes_back_to_the_kernel() -> None:
    process = psutil.Process()
    with freed_memory_kept():
        before = process.memory_info().rss
        bytearray(MEGABYTES * 2**20)
        assert process.memory_info().rss - before > MEGABYTES * 2**19
    assert process.memory_info().rss - before < MEGABYTES * 2**18


@pytest.mark.parametrize(("call", "said"), [("", "ended\nuntied\n"), (f"{garbage_left_at_exit.__name__}()", "ended\n")])
def test_a_process_ends_without_a_last_collection_where_it_is_asked_to(call: str, said: str) -> None:
    ended = subprocess.run([sys.executable, "-c", ENDING.format(call=call)], capture_output=True, text=True, check=True)
    assert ended.stdout == said
