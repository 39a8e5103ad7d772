"""Simulated jobs in a store of their own, without Prefect: their steps, called as functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.initialise import initialise
from tasks.simulation.job_file import check_simulated_job
from tasks.simulation.rounds import Work
from tasks.simulation.session import Simulation, close, opened
from tasks.simulation.sums import sums_kept
from tasks.store import Reference, Store
from tests.bitfount_model.simulation.lab import MODEL, table

PLAIN = MODEL.replace("nn.BatchNorm1d(6), ", "")
"""Without BatchNorm, which takes no batch of one row: small clients have such batches."""
REGRESSOR = (
    PLAIN.replace("PyTorchClassifierMixIn", "PyTorchRegressorMixIn")
    .replace("nn.Linear(6, 3)", "nn.Linear(6, 1)")
    .replace("F.cross_entropy(self(x), y)", "F.mse_loss(self(x)[:, 0], y)")
    .replace("F.softmax(self(x), dim=1)", "self(x)[:, 0]")
)


def simulation(folder: Path, source: str = PLAIN, **sections: Any) -> Simulation:
    """A job on the table of the lab, initialised and open; keyword arguments replace sections."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(source, encoding="utf-8")
    table().to_csv(folder / "rows.csv", index=False)
    value = {
        "name": "lab",
        "model": {"file": str(folder / "model.py")},
        "data": {"csv": str(folder / "rows.csv")},
        "datastructure": {"target": "y", "ignore_cols": ["site"]},
        "training": {"epochs": 4, "seed": 3, "batch_size": 8},
        "simulate": {"clients": 12, "sample": 6},
        **sections,
    }
    url = str(folder / "job")
    initialise(Store(url), check_simulated_job(value), "job-1")
    close()
    return opened(url)


def work_here(simulation: Simulation) -> Work:
    """Trains clients in this process."""

    def work(number: int, weights: Reference, parts: list[range]) -> list[Reference]:
        return [sums_kept(simulation, number, weights, part) for part in parts]

    return work
