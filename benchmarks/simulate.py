"""What a round over simulated clients costs, against bare PyTorch, and whether cost and memory follow the clients that train.

scikit-learn's digits, a network 64-128-64-10, SGD (0.1, momentum 0.9), batches of 32, one epoch a round, plain averaging, one
thread. Few: 100 clients, 10 of them a round. Many: 1,000 clients, 100 a round. Ours is the whole job: a Prefect task a round, with
a real server, every round kept and in MLflow. The first round is left out. Memory is the peak of a process that runs a job with 10
clients a round, among 10, 100, 1,000 and 10,000.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from embedded_rounds import MODEL
from federation import Federation, digits, one_line
from ruamel.yaml import YAML
from torch import nn
from torch.nn import functional as F

WORKLOADS = {"few": (100, 10, 20), "many": (1000, 100, 6)}
"""Clients, sample, rounds."""
GROWTH = 12.0
"""The most that a round of many may cost, in rounds of few."""
MEMORY_CLIENTS = (10, 100, 1000, 10000)
MEMORY_SPREAD = 1.10
"""The most that the largest peak of memory may be, in smallest ones."""


def floor(clients: int, sample: int, rounds: int) -> list[float]:
    """Seconds of each round of plain PyTorch: each sampled client trains a copy of the weights, the copies are averaged by rows."""
    parts = [
        (
            torch.tensor(table.drop(columns="digit").to_numpy(), dtype=torch.float32),
            torch.tensor(table["digit"].to_numpy()),
        )
        for table in digits(clients)
    ]
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    weights = copy.deepcopy(net.state_dict())
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        asked = [parts[client] for client in torch.randperm(clients)[:sample]]
        total = sum(len(targets) for _, targets in asked)
        mean = {name: torch.zeros_like(value) for name, value in weights.items()}
        for features, targets in asked:
            net.load_state_dict(weights)
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
            order = torch.randperm(len(features))
            for start in range(0, len(features), 32):
                rows = order[start : start + 32]
                optimizer.zero_grad()
                F.cross_entropy(net(features[rows]), targets[rows]).backward()
                optimizer.step()
            for name, value in net.state_dict().items():
                mean[name] += value * (len(targets) / total)
        weights = mean
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


class Simulated:
    """Jobs on the digits below one folder.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.federation = Federation(folder, MODEL, [])
        self.folder = folder
        digits(1)[0].to_csv(folder / "digits.csv", index=False)

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
            "model": {"file": "model.py"},
            "data": {"csv": "digits.csv"},
            "datastructure": {"target": "digit"},
            "schema": {"types": {"categorical": ["digit"]}},
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


def measure(runs: int, folder: Path) -> dict[str, float]:
    """Median milliseconds of a round, ours and the floor's, few and many; and how one grows to the other."""
    simulated, found = Simulated(folder), dict[str, list[float]]()
    with simulated.federation.prefect():
        for run in range(runs):
            for name, workload in WORKLOADS.items():
                found.setdefault(f"{name}_floor_ms", []).append(1000 * statistics.median(floor(*workload)))
                ours = simulated.seconds(*workload, f"{name}-{run}")
                found.setdefault(f"{name}_ms", []).append(1000 * statistics.median(ours))
    growths = [many / few for many, few in zip(found["many_ms"], found["few_ms"], strict=True)]
    return {
        **{name: statistics.median(values) for name, values in found.items()},
        "growth": statistics.median(growths),
        "lowest": min(growths),
        "highest": max(growths),
        "promise": GROWTH,
    }


def peak_memory(clients: Sequence[int]) -> dict[int, float]:
    """Peak resident megabytes of a process of its own that runs a job of 3 rounds, by its clients."""
    peaks = {}
    for count in clients:
        command = [sys.executable, __file__, "--peak", str(count)]
        ended = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)  # noqa: S603
        peaks[count] = float(ended.stdout.splitlines()[-1])
    return peaks


def print_peak(clients: int) -> None:
    """Runs a job with 10 clients a round, and prints this process's peak of memory in megabytes."""
    with tempfile.TemporaryDirectory() as folder:
        simulated = Simulated(Path(folder))
        with simulated.federation.prefect():
            simulated.seconds(clients, 10, 3, "peak")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Prints the figures, and writes them as JSON where asked."""
    parser = argparse.ArgumentParser(description=one_line(__doc__))
    parser.add_argument("--runs", type=int, default=3, help="jobs of each kind (default: 3)")
    parser.add_argument("--json", type=Path, help="a file to write the figures to")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        print_peak(options.peak)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.runs, Path(folder))
    print("simulated round              floor ms   round ms   ratio")
    for name, (clients, sample, _) in WORKLOADS.items():
        bare, ours = found[f"{name}_floor_ms"], found[f"{name}_ms"]
        print(f"{f'{sample} of {clients:,} clients':<27}{bare:>10.1f}{ours:>11.1f}   {ours / bare:.2f}")
    met = "met" if found["growth"] <= GROWTH else "missed"
    print(
        f"many / few                  {found['growth']:.2f} ({found['lowest']:.2f}-{found['highest']:.2f})"
        f"   promise {GROWTH:.1f} {met}"
    )
    peaks = peak_memory(MEMORY_CLIENTS)
    spread = max(peaks.values()) / min(peaks.values())
    met = "met" if spread <= MEMORY_SPREAD else "missed"
    for count, peak in peaks.items():
        print(f"{count:>6,} clients{peak:>10.0f} MB")
    print(f"largest / smallest          {spread:.3f}   promise {MEMORY_SPREAD:.2f} {met}")
    if options.json:
        figures = {**found, "peak_mb": peaks, "spread": spread}
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
