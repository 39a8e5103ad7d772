"""Importing the library: the garbage collector does not go through what is being imported, and is afterwards as it was."""

from __future__ import annotations

import gc
import json
import subprocess
import sys

import pytest

from bitfount_model.collector import collector_paused

COUNTED = """\
import gc, json

collections = []
gc.callbacks.append(lambda phase, info: collections.append(phase))
before = len(collections)
{switch}
import bitfount_model
print(json.dumps({{"during": len(collections) - before, "enabled": gc.isenabled()}}))
"""


@pytest.mark.parametrize(("switch", "enabled"), [("gc.enable()", True), ("gc.disable()", False)])
def test_nothing_is_collected_while_the_library_is_imported(switch: str, enabled: bool) -> None:
    code = COUNTED.format(switch=switch)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(ended.stdout)
    assert found["enabled"] is enabled
    assert found["during"] < 10  # those of a few modules of the standard library, before the pause begins


def test_the_collector_comes_back_when_an_import_fails() -> None:
    with pytest.raises(ModuleNotFoundError), collector_paused():
        assert not gc.isenabled()
        import no_such_module  # noqa: F401
    assert gc.isenabled()
