"""What a federated round costs with all pods in one process, against bare PyTorch doing the same training: the floor.

10 pods, SGD (0.1, momentum 0.9), one epoch a round, plain averaging, one thread. Small: scikit-learn's digits, a network
64-128-64-10, batches of 32, 20 rounds. Large: 50,000 x 30 numbers, a network of 999,713 parameters, batches of 256, 5 rounds. Ours
is the whole job: Prefect tasks against a real server, every round in MLflow, each update in the store. Floor and job run in turn;
the first round of each is left out.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from classifier import network
from federation import Federation
from floors import federated_rounds
from promises import Form, Promise, command_line, ratio
from tables import dealt, digits, numbers, tensors

PODS = 10
PROMISE = 5.0
"""The most that a round may cost, in floors."""


@dataclass(frozen=True)
class Workload:
    """What the pods train.

    Attributes:
        name: for people.
        table: all rows.
        hidden: widths of the network's layers between.
        classes: of the target.
        batch_size: in rows.
        rounds: of one epoch each.
    """

    name: str
    table: pd.DataFrame
    hidden: list[int]
    classes: int
    batch_size: int
    rounds: int


def measure(runs: int, form: Form) -> list[Promise]:
    """A row for each workload; the quick form has the small one alone."""
    torch.set_num_threads(1)
    small = Workload("digits", digits(), [128, 64], 10, 32, 20)
    large = Workload("50,000 x 30, 1M parameters", numbers(), [983, 983], 2, 256, 5)
    rows = [row(small, runs)]
    return rows if form is Form.QUICK else [*rows, row(large, max(1, runs // 3))]  # a large one takes a minute and more


def row(workload: Workload, runs: int) -> Promise:
    """What so many jobs cost."""
    return ratio(f"embedded round, {PODS} pods, {workload.name}", pairs(workload, runs), PROMISE, unit="ms")


def pairs(workload: Workload, runs: int) -> list[tuple[float, float]]:
    """Median milliseconds of a round, the floor's and ours, in each run."""
    tables = dealt(workload.table, PODS)
    parts = [tensors(table) for table in tables]
    inputs = parts[0][0].shape[1]
    found = []
    with tempfile.TemporaryDirectory() as name:
        federation = Federation(Path(name), tables)
        job = federation.job({"hidden": workload.hidden}, epochs=workload.rounds, batch_size=workload.batch_size)
        with federation.prefect():
            for run in range(runs):
                net = network(inputs, workload.hidden, workload.classes)
                floor = federated_rounds(net, parts, workload.rounds, workload.batch_size)
                records = federation.train(job, f"run-{run}")[1:]
                ours = [record.seconds for record in records]
                found.append((1000 * statistics.median(floor), 1000 * statistics.median(ours)))
    return found


if __name__ == "__main__":
    command_line(measure, __doc__, {Form.QUICK: 1, Form.USUAL: 3, Form.FULL: 7})
