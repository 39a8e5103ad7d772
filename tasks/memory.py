"""Memory between rounds and at the end: what will be needed again stays with the process, what ends with it is not tidied up."""

from __future__ import annotations

import atexit
import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

KEPT_BYTES = 2**30
"""What lies free at the end of the heap beyond this goes back to the kernel."""

# The names of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
# Once one of them is set, glibc adapts none of them any more: they stay where large blocks would have brought them.
_AFTERWARDS = {_TRIM_THRESHOLD: 2**26, _MMAP_THRESHOLD: 2**25, _MMAP_MAX: 65536}


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """In this block, what this process frees is kept for it, to 1 GiB; afterwards it goes back to the kernel.

    glibc maps large blocks from the kernel one by one and gives each back at once, and the pages of a block that is mapped
    anew cost several times what it takes to copy values into them. Other C libraries are left alone.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    library.mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
    library.mallopt(_MMAP_MAX, 0)
    try:
        yield
    finally:
        for name, value in _AFTERWARDS.items():
            library.mallopt(name, value)
        library.malloc_trim(0)


def garbage_left_at_exit() -> None:
    """Ends this process without a last collection of garbage: for processes of this project's own.

    Python collects several times over while it ends. With torch, Lightning and Prefect that takes seconds of CPU time, to free what
    goes back to the kernel a moment later.
    """
    atexit.register(gc.freeze)
