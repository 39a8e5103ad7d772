"""What handing over 10,000,000 float32 parameters costs, against what their bytes cost alone: the floor.

Floor: the same file's bytes written, synced to the disk, read and hashed. Ours: what modeller and pod do in a round, through the
codec, the store and all of its checks. Down, the modeller keeps global weights (encoded, hashed, synced) and a pod reads them (held
against their digest, decoded). Up, a pod leaves its update (not synced, as it can be made again) and the modeller reads it (held
against its digest, and against the model's names, shapes and finite values). Both sides are this process, one after the other, in a
folder of one disk; floor, down and up run in turn.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from promises import Form, Promise, command_line, ratio

from bitfount_model import codec
from bitfount_model.federation.metric_sums import MetricSums
from bitfount_model.federation.pod import Update
from bitfount_model.types import Parameters
from tasks.federated.exchange import Exchange, round_phase

PARAMETERS = 10_000_000
PROMISE = 1.3
"""The most that one way may cost, in floors."""


def measure(runs: int, form: Form) -> list[Promise]:
    """A row for each way; every form measures the same. One run before those that count is left out."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    parameters = {"weight": torch.randn(PARAMETERS, generator=generator)}
    content = codec.encode(parameters)
    down, up = [], []
    with tempfile.TemporaryDirectory() as name:
        for _ in range(runs + 1):
            floor = seconds(lambda folder: bytes_alone(folder, content), Path(name))
            down.append((floor, seconds(lambda folder: hand_down(folder, parameters), Path(name))))
            up.append((floor, seconds(lambda folder: hand_up(folder, parameters), Path(name))))
    return [
        ratio("exchange of 10M parameters, global weights to a pod", down[1:], PROMISE, unit="s"),
        ratio("exchange of 10M parameters, an update to the modeller", up[1:], PROMISE, unit="s"),
    ]


def seconds(work: Callable[[Path], None], below: Path) -> float:
    """How long something takes in a folder of its own, which is removed afterwards."""
    folder = below / "one"
    folder.mkdir()
    began = time.perf_counter()
    work(folder)
    taken = time.perf_counter() - began
    shutil.rmtree(folder)
    return taken


def bytes_alone(folder: Path, content: bytes) -> None:
    """Writes, syncs, reads and hashes the bytes."""
    path = folder / "weights.safetensors"
    with path.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    hashlib.sha256(path.read_bytes()).hexdigest()


def hand_down(folder: Path, parameters: Parameters) -> None:
    """Global weights from the modeller to a pod."""
    reference = Exchange(str(folder)).put_weights(parameters)
    Exchange(str(folder)).weights(reference)


def hand_up(folder: Path, parameters: Parameters) -> None:
    """An update from a pod to the modeller."""
    pod, phase = "pod-0", round_phase(1)
    Exchange(str(folder)).put_update(Update(pod, 1, "0" * 64, parameters, 100, MetricSums(), None))
    modeller = Exchange(str(folder))
    note = modeller.update_note(phase, pod)
    if note is None:
        raise RuntimeError(f"{folder} has no update of {pod}")
    modeller.update(phase, note, expected=parameters)


if __name__ == "__main__":
    command_line(measure, __doc__, {Form.QUICK: 5, Form.USUAL: 9, Form.FULL: 25})
