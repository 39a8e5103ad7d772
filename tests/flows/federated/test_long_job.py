"""A job of 200 rounds costs what one of 10 costs, round by round: memory and time stay flat, at the modeller and at the pods."""

from __future__ import annotations

import io
import os
import statistics
from pathlib import Path
from typing import Any

import psutil

from flows.console import RunView
from flows.federated_run import train
from flows.run import Surroundings
from flows.settings import read_job
from flows.workspace import Workspace
from tasks.federated.job_file import FederatedJobFile
from tests.flows.federated.site import Site

ROUNDS = 200
MEGABYTE = 2**20
GROWTH = 20
"""Megabytes that a process may grow by over 180 rounds; one set of the job's parameters kept each round would be 160.

A pod grows by 7. The modeller, which is the process of the tests, grows by 6 to 8, and by 12 after hundreds of other tests.
"""


class Watching(RunView):
    """Looks at processes whenever a round closes."""

    def __init__(self, served: Site, job_id: str) -> None:
        super().__init__(io.StringIO())
        self._served, self._job_id = served, job_id
        self._processes: dict[str, psutil.Process] = {}
        self.seconds: list[float] = []
        self.memory: dict[str, list[float]] = {}

    def on_event(self, event: str, values: dict[str, Any]) -> None:
        if event == "round_closed":
            if not self._processes:
                self._processes = {pod: self._served.worker(pod, self._job_id) for pod in self._served.names}
                self._processes["modeller"] = psutil.Process(os.getpid())
            self.seconds.append(values["seconds"])
            for name, process in self._processes.items():
                self.memory.setdefault(name, []).append(process.memory_info().rss / MEGABYTE)


def test_memory_and_time_stay_flat(served: Site, home: Path) -> None:
    job = served.write_job(
        deployed=True,
        training={"steps": ROUNDS, "seed": 5, "batch_size": 16},
        model={"file": "model.py", "hyperparameters": {"width": 25_000}},
        federation={"quorum": 3, "optimiser": "FedAvgM", "best": {"metric": "AUC"}},
    )
    asked = read_job(job)
    assert isinstance(asked, FederatedJobFile)
    view = Watching(served, "long")

    summary = train(asked, "long", None, Surroundings(Workspace(home), None, view, verbose=False))

    assert summary["rounds"] == ROUNDS
    for name, sizes in view.memory.items():
        grown = statistics.median(sizes[-20:]) - statistics.median(sizes[10:30])
        assert grown < GROWTH, f"{name} grew by {grown:.1f} MB: {[round(size) for size in sizes[::20]]}"
    early, late = statistics.median(view.seconds[10:60]), statistics.median(view.seconds[-50:])
    assert late < 1.5 * early, (early, late)
    kept = [*served.store.glob("long/weights/*"), *served.store.glob("long/rounds/*/updates/*.safetensors")]
    assert len(kept) <= 4, kept
