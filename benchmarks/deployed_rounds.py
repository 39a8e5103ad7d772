"""What a federated round costs beyond the slowest pod's training, with pods as processes of their own on this machine.

A real Prefect server, 2 and 4 pods, a shared folder as the store; networks of 1 MB and 40 MB of float32 parameters, one batch a
round, plain averaging. From a round's seconds those are taken that training took at its slowest pod, which is the floor; the first
round is left out.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from federation import Federation
from promises import Form, Promise, command_line, difference
from tables import dealt, digits

PROMISES = {1: 0.1, 40: 0.3}
"""MB of parameters -> the most seconds beyond the slowest pod's training."""


def width_of(megabytes: int) -> int:
    """The width at which 64-w-w-10 has so many MB of float32 parameters."""
    wanted, width = megabytes * 250_000, 1
    while width * width + 76 * width < wanted:
        width += 1
    return width


def measure(runs: int, form: Form) -> list[Promise]:
    """A row for each number of pods and of megabytes, over so many rounds; the quick form has two pods."""
    torch.set_num_threads(1)
    counts = (2,) if form is Form.QUICK else (2, 4)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        federation = Federation(Path(folder), dealt(digits(), max(counts)))
        with federation.prefect():
            for pods in counts:
                with federation.served(pods):
                    rows += [row(federation, pods, megabytes, runs) for megabytes in PROMISES]
    return rows


def row(federation: Federation, pods: int, megabytes: int, rounds: int) -> Promise:
    """What the rounds of one job cost."""
    width = width_of(megabytes)
    job = federation.job(
        {"hidden": [width, width], "momentum": 0}, deployed=True, pods=pods, steps=rounds + 1, batch_size=32
    )
    records = federation.train(job, f"{pods}-pods-{megabytes}-mb")[1:]
    pairs = [(max(record.fit_seconds.values()), record.seconds) for record in records]
    return difference(
        f"deployed round beyond its training, {pods} pods, {megabytes} MB", pairs, PROMISES[megabytes], unit="s"
    )


if __name__ == "__main__":
    command_line(measure, __doc__, {Form.QUICK: 5, Form.USUAL: 7, Form.FULL: 31})
