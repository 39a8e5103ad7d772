"""What a federated round costs beyond the slowest pod's training, with pods as processes of their own on this machine.

A real Prefect server, 2 and 4 pods, a shared folder as the store; networks of 1 MB and 40 MB of float32 parameters, one batch a
round, plain averaging. From a round's seconds those are taken that training took at its slowest pod; the first round is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch
from federation import Federation, digits, one_line

ROUNDS = 12
PROMISES = {1: 0.1, 40: 0.3}
"""MB of parameters -> the most seconds beyond the slowest pod's training."""

MODEL = """\
import torch
from torch import nn
from torch.nn import functional as F

from bitfount_model import PyTorchBitfountModel, PyTorchClassifierMixIn


class Wide(PyTorchClassifierMixIn, PyTorchBitfountModel):
    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    def create_model(self):
        return nn.Sequential(nn.Linear(64, self.width), nn.ReLU(), nn.Linear(self.width, self.width), nn.Linear(self.width, 10))

    def forward(self, x):
        x, sup = x
        return self._model(x)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        return {"validation_loss": self.training_step(batch, batch_idx)}

    def test_step(self, batch, batch_idx):
        x, y = batch
        return {"predictions": F.softmax(self(x), dim=1), "targets": y}
"""


def width_of(megabytes: int) -> int:
    """The width at which 64-w-w-10 has so many MB of float32 parameters."""
    wanted, width = megabytes * 250_000, 1
    while width * width + 76 * width < wanted:
        width += 1
    return width


def measure(federation: Federation, pods: int, megabytes: int) -> dict[str, float]:
    """Median seconds of a round, of its slowest training, and of the difference, over all rounds but the first."""
    job = federation.job(target="digit", deployed=True, pods=pods, steps=ROUNDS, batch_size=32)
    text = job.read_text(encoding="utf-8")
    job.write_text(
        text.replace("file: model.py", f"file: model.py\n  hyperparameters: {{width: {width_of(megabytes)}}}"),
        encoding="utf-8",
    )
    records = federation.train(job, f"{pods}-pods-{megabytes}-mb")[1:]
    beyond = [record.seconds - max(record.fit_seconds.values()) for record in records]
    return {
        "pods": pods,
        "megabytes": megabytes,
        "round_seconds": statistics.median(record.seconds for record in records),
        "fit_seconds": statistics.median(max(record.fit_seconds.values()) for record in records),
        "beyond_seconds": statistics.median(beyond),
        "lowest": min(beyond),
        "highest": max(beyond),
        "promise": PROMISES[megabytes],
    }


def main() -> None:
    """Prints a table, and writes it as JSON where asked."""
    parser = argparse.ArgumentParser(description=one_line(__doc__))
    parser.add_argument("--pods", type=int, nargs="+", default=[2, 4], help="numbers of pods (default: 2 4)")
    parser.add_argument("--json", type=Path, help="a file to write the figures to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        federation = Federation(Path(folder), MODEL, digits(max(options.pods)))
        with federation.prefect():
            for pods in options.pods:
                with federation.served(pods):
                    found += [measure(federation, pods, megabytes) for megabytes in PROMISES]
    print("deployed round     round s   slowest fit s   beyond s (spread)       promise")
    for row in found:
        met = "met" if row["beyond_seconds"] <= row["promise"] else "missed"
        print(
            f"{row['pods']} pods, {row['megabytes']:>2} MB{row['round_seconds']:>14.3f}{row['fit_seconds']:>16.3f}"
            f"   {row['beyond_seconds']:.3f} ({row['lowest']:.3f}-{row['highest']:.3f})   {row['promise']:.1f} {met}"
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
