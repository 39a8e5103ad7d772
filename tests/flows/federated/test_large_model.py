"""A model of 100 million parameters, trained over three pods in one process: how many times over the process holds them."""

from __future__ import annotations

import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.flows.conftest import command
from tests.flows.federated.site import Site

MODEL = """\
import torch
from torch import nn
from torch.nn import functional as F

from bitfount_model import PyTorchBitfountModel, PyTorchClassifierMixIn

WIDTH = 1000


class Words(PyTorchClassifierMixIn, PyTorchBitfountModel):
    def __init__(self, words=1, **kwargs):
        super().__init__(**kwargs)
        self.words = words

    def create_model(self):
        return nn.ModuleList(nn.Embedding(self.words, WIDTH) for _ in range(4))

    def forward(self, x):
        x, sup = x
        places = (x[:, :4] * 1000).long() % self.words
        return sum(table(place) for table, place in zip(self._model, places.T))[:, : self.n_classes]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        return {"validation_loss": F.cross_entropy(self(x), y)}

    def test_step(self, batch, batch_idx):
        x, y = batch
        return {"predictions": F.softmax(self(x), dim=1), "targets": y}
"""
PARAMETERS = 100_000_000
TABLES = 4
WIDTH = 1000
BYTES = 4 * PARAMETERS
INTERVAL_SECONDS = 0.01


@dataclass
class Memory:
    """The most that a process held, in bytes.

    Attributes:
        own: pages that no file holds.
        files: pages of files that are mapped, which the kernel may take back at any moment.
    """

    own: int = 0
    files: int = 0

    def watch(self, process: subprocess.Popen[bytes]) -> None:
        """Looks until the process ends."""
        pause = threading.Event()
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
            sizes = {key: value for key, _, value in (line.partition(":") for line in status.splitlines())}
            if "RssAnon" in sizes:  # one that has just ended has none
                self.own = max(self.own, 1024 * int(sizes["RssAnon"].split()[0]))
                self.files = max(self.files, 1024 * int(sizes["RssFile"].split()[0]))
            pause.wait(INTERVAL_SECONDS)


def trained(site: Site, home: Path, name: str, words: int) -> Memory:
    """What the process of a job with two rounds of one batch held, whose tables have so many rows each."""
    job = site.write_job(
        deployed=False,
        name=name,
        rounds=2,
        model={"file": "model.py", "hyperparameters": {"words": words}},
        training={"epochs": 2, "seed": 5, "batch_size": 64},
    )
    memory = Memory()
    with (site.folder / f"{name}.log").open("wb") as log:
        arguments = command("train", job, "--home", home, "--job-id", name, "--json")
        process = subprocess.Popen(arguments, stdout=log, stderr=log)
        memory.watch(process)
    assert process.returncode == 0, (site.folder / f"{name}.log").read_text(encoding="utf-8")
    return memory


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel says elsewhere what a process holds")
def test_a_hundred_million_parameters_are_held_at_most_three_times(prefect_url: str, site: Site, home: Path) -> None:
    (site.folder / "model.py").write_text(MODEL, encoding="utf-8")
    without = trained(site, home, "small", words=1)

    with_them = trained(site, home, "large", words=PARAMETERS // (TABLES * WIDTH))

    with safe_open(home / "jobs" / "large" / "fit" / "weights.safetensors", "pt") as weights:
        assert sum(weights.get_slice(name).get_shape()[0] for name in weights.keys()) * WIDTH == PARAMETERS  # noqa: SIM118
    own, files = (with_them.own - without.own) / BYTES, (with_them.files - without.files) / BYTES
    # A pod that trains: its model and gradients, 2. The modeller that adds updates: sums in float64, 2, and the next parameters.
    assert own <= 3, f"{own:.2f} times the parameters in memory of its own, {files:.2f} times in mapped files"
    # The parameters that a round begins from, and two updates: one that is added while the next one is read.
    assert files <= 3.2, f"{files:.2f} times the parameters in mapped files"
