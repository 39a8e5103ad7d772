"""What torch loads with the first optimiser of a process is there before the first round's optimiser is made, in every process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.flows.conftest import MODEL, run_command
from tests.flows.federated.conftest import Train
from tests.flows.federated.site import Site

LOOK = """\
    warm = None

    def look(self):
        if self.warm is None:
            self.warm = float("torch._dynamo" in sys.modules)

    def set_model_training_iterations(self, iterations):
        self.look()
        super().set_model_training_iterations(iterations)

    def configure_optimizers(self):
        self.look()
"""
LOADED = f"import sys\n{MODEL}".replace("    def configure_optimizers(self):\n", LOOK, 1).replace(
    "        return F.cross_entropy(self(x), y)", "        return 0 * self(x).sum() + self.warm", 1
)
"""A model whose training loss is 1 if the modules are there before the first thing that a round asks of it, and else 0."""


def losses(home: Path, history: str) -> list[Any]:
    """The training losses of the job's rounds."""
    rounds = json.loads((home / "jobs" / "warm" / "fit" / history).read_text(encoding="utf-8"))
    return [each["train_loss"] for each in rounds]


def test_embedded_pods(prefect_url: str, site: Site, home: Path) -> None:
    (site.folder / "model.py").write_text(LOADED, encoding="utf-8")
    job = site.write_job(deployed=False, rounds=1, model={"file": "model.py"})

    ended = run_command("train", job, "--home", home, "--job-id", "warm", "--json")

    assert ended.code == 0, ended
    assert losses(home, "rounds.json") == [dict.fromkeys(site.names, 1.0)]


def test_the_confined_processes_of_served_pods(served: Site, train: Train, home: Path) -> None:
    (served.folder / "warm.py").write_text(LOADED, encoding="utf-8")
    job = served.write_job(deployed=True, name="warm", rounds=1, model={"file": "warm.py"})

    ended = train(job, job_id="warm", home=home)

    assert ended.code == 0, ended
    assert losses(home, "rounds.json") == [dict.fromkeys(served.names, 1.0)]


@pytest.mark.parametrize("workers", [1, 2])
def test_simulated_clients(prefect_url: str, job_file: Callable[..., Path], home: Path, workers: int) -> None:
    training = {"epochs": 1, "seed": 7, "batch_size": 32}
    simulate = {"clients": 8, "sample": 8, "workers": workers}
    job = job_file(LOADED, simulate=simulate, training=training)

    ended = run_command("train", job, "--home", home, "--job-id", "warm", "--json")

    assert ended.code == 0, ended
    assert losses(home, "history.json") == [1.0]
