"""What a round over simulated clients costs, against bare PyTorch, and whether cost and memory follow the clients that train.

scikit-learn's digits, a network 64-128-64-10, SGD (0.1, momentum 0.9), batches of 32, one epoch a round, plain averaging, one
thread. Few: 100 clients, 10 of them a round. Many: 1,000 clients, 100 a round. Ours is the whole job: a Prefect task a round, with
a real server, every round kept and in MLflow. The first round is left out. Memory is the peak of a process that runs a job with 10
clients a round, among 10, 100, 1,000 and, in the full form, 10,000; the quick form leaves it out.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from classifier import network
from federation import MODEL, Federation
from floors import federated_rounds
from memory import peak_mb
from promises import Form, Promise, command_line, ratio
from ruamel.yaml import YAML
from tables import TARGET, dealt, digits, tensors

HIDDEN = [128, 64]
FEW, MANY = (100, 10, 20), (1000, 100, 6)
"""Clients, sample, rounds."""
GROWTH = 12.0
"""The most that a round of many may cost, in rounds of few."""
CLIENTS = {Form.USUAL: (10, 100, 1000), Form.FULL: (10, 100, 1000, 10000)}
"""Whose memory is compared; the quick form looks at none."""
MEMORY_SPREAD = 1.10
"""The most that the largest peak of memory may be, in smallest ones."""


class Simulated:
    """Jobs on the digits below one folder.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.federation = Federation(folder, [])
        self.folder = folder
        digits().to_csv(folder / "digits.csv", index=False)

    def seconds(self, clients: int, sample: int, rounds: int, name: str) -> list[float]:
        """Seconds of each round of a job but the first."""
        from flows.console import RunView
        from flows.run import Surroundings, train
        from flows.settings import read_job
        from flows.workspace import Workspace
        from tasks.job import LocalJob
        from tasks.simulation.round_record import read_rounds

        value: dict[str, Any] = {
            "name": "benchmark",
            "model": {"file": str(MODEL), "hyperparameters": {"hidden": HIDDEN}},
            "data": {"csv": "digits.csv"},
            "datastructure": {"target": TARGET},
            "schema": {"types": {"categorical": [TARGET]}},
            "splitter": {"percentage": {"validation_percentage": 0, "test_percentage": 0}},
            "training": {"epochs": rounds, "seed": 1, "batch_size": 32},
            "simulate": {"clients": clients, "sample": sample},
        }
        path = self.folder / f"{name}.yaml"
        with path.open("w", encoding="utf-8") as stream:
            YAML().dump(value, stream)
        workspace = Workspace(self.folder / "home")
        job = read_job(path)
        if not isinstance(job, LocalJob):
            raise TypeError(f"{path} is no simulated job")
        view = RunView((self.folder / "log.txt").open("a"))
        train(job, name, None, Surroundings(workspace, None, view, verbose=False))
        return [record.seconds for record in read_rounds(workspace.store(name))][1:]


def measure(runs: int, form: Form) -> list[Promise]:
    """Rows of few and many clients, of how one grows to the other, and of memory."""
    torch.set_num_threads(1)
    few, many = [], []
    with tempfile.TemporaryDirectory() as folder:
        simulated = Simulated(Path(folder))
        with simulated.federation.prefect():
            for run in range(runs):
                few.append(pair(simulated, *FEW, f"few-{run}"))
                many.append(pair(simulated, *MANY, f"many-{run}"))
    growth = [(ours_few, ours_many) for (_, ours_few), (_, ours_many) in zip(few, many, strict=True)]
    return [
        ratio("simulated round, 10 of 100 clients", few, unit="ms"),
        ratio("simulated round, 100 of 1,000 clients", many, unit="ms"),
        ratio("100 of 1,000 clients over 10 of 100", growth, GROWTH, unit="ms"),
        *([memory(CLIENTS[form])] if form in CLIENTS else []),
    ]


def pair(simulated: Simulated, clients: int, sample: int, rounds: int, name: str) -> tuple[float, float]:
    """Median milliseconds of a round, the floor's and ours."""
    parts = [tensors(table) for table in dealt(digits(), clients)]
    floor = federated_rounds(network(64, HIDDEN, 10), parts, rounds, 32, sample)
    ours = simulated.seconds(clients, sample, rounds, name)
    return 1000 * statistics.median(floor), 1000 * statistics.median(ours)


def memory(clients: tuple[int, ...]) -> Promise:
    """Largest over smallest peak of resident memory, each of a process of its own that runs a job of 3 rounds."""
    with ThreadPoolExecutor(len(clients)) as pool:  # a peak of memory, unlike a time, is the same beside others
        peaks = list(pool.map(peak_apart, clients))
    return ratio("memory, most clients over fewest", [(min(peaks), max(peaks))], MEMORY_SPREAD, unit="MB")


def peak_apart(clients: int) -> float:
    """Peak of resident memory, in MB, of a process that simulates so many clients."""
    code = f"import simulate; simulate.print_peak({clients})"
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)  # noqa: S603
    return float(ended.stdout.splitlines()[-1])


def print_peak(clients: int) -> None:
    """Runs a job with 10 clients a round, and prints this process's peak of memory in MB."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        simulated = Simulated(Path(folder))
        with simulated.federation.prefect():
            simulated.seconds(clients, 10, 3, "peak")
    print(peak_mb(os.getpid()))


if __name__ == "__main__":
    command_line(measure, __doc__, {Form.QUICK: 1, Form.USUAL: 3, Form.FULL: 7})
