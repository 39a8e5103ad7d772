"""What torch loads at the latest with a process's first optimiser is there once the process has started: no round waits for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

FIRST = """
import importlib, sys
importlib.import_module(sys.argv[1])
before = set(sys.modules)
import torch
torch.optim.SGD([torch.zeros(1)], lr=1.0)
print("torch._dynamo" in before, sorted(set(sys.modules) - before))
"""


@pytest.mark.parametrize(
    "module",
    [
        pytest.param("flows.federated", id="the modeller, with embedded pods"),
        pytest.param("flows.pod", id="a deployed pod"),
        pytest.param("tasks.federated.confined.child", id="a confined model"),
        pytest.param("tasks.simulation.workers", id="a worker of a simulated job"),
        pytest.param("bitfount_model", id="a script"),
    ],
)
def test_the_first_optimiser_loads_no_module(module: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FIRST, module], capture_output=True, text=True, timeout=240, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "True []"
