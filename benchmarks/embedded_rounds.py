"""What a federated round costs with all pods in one process, against bare PyTorch doing the same training: the floor.

scikit-learn's digits over 10 pods, a network 64-128-64-10, SGD (0.1, momentum 0.9), batches of 32, one epoch a round, plain
averaging, one thread. Ours is the whole job: Prefect tasks against a real server, every round in MLflow, each update in the
store. Floor and job run in turn; the first round of each is left out.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from federation import Federation, digits, one_line
from torch import nn
from torch.nn import functional as F

PODS, ROUNDS = 10, 20
PROMISE = 5.0
"""The most that a round may cost, in floors."""

MODEL = """\
import torch
from torch import nn
from torch.nn import functional as F

from bitfount_model import PyTorchBitfountModel, PyTorchClassifierMixIn


class Digits(PyTorchClassifierMixIn, PyTorchBitfountModel):
    def create_model(self):
        return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x):
        x, sup = x
        return self._model(x)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        return {"validation_loss": self.training_step(batch, batch_idx)}

    def test_step(self, batch, batch_idx):
        x, y = batch
        return {"predictions": F.softmax(self(x), dim=1), "targets": y}
"""


def floor(parts: list[tuple[torch.Tensor, torch.Tensor]]) -> list[float]:
    """Seconds of each round of plain PyTorch: each pod trains a copy of the weights, the copies are averaged by rows."""
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    weights = copy.deepcopy(net.state_dict())
    total = sum(len(targets) for _, targets in parts)
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        mean = {name: torch.zeros_like(value) for name, value in weights.items()}
        for features, targets in parts:
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


def measure(runs: int, folder: Path) -> dict[str, float]:
    """Median seconds of a round, ours and the floor's, and their ratio with its spread over the runs."""
    tables = digits(PODS)
    parts = [
        (
            torch.tensor(table.drop(columns="digit").to_numpy(), dtype=torch.float32),
            torch.tensor(table["digit"].to_numpy()),
        )
        for table in tables
    ]
    federation = Federation(folder, MODEL, tables)
    job = federation.job(target="digit", deployed=False, epochs=ROUNDS, batch_size=32)
    bare, ours = [], []
    with federation.prefect():
        for run in range(runs):
            bare.append(statistics.median(floor(parts)))
            records = federation.train(job, f"run-{run}")
            ours.append(statistics.median(record.seconds for record in records[1:]))
    ratios = [job_seconds / floor_seconds for job_seconds, floor_seconds in zip(ours, bare, strict=True)]
    return {
        "floor_ms": 1000 * statistics.median(bare),
        "round_ms": 1000 * statistics.median(ours),
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "promise": PROMISE,
    }


def main() -> None:
    """Prints the figures, and writes them as JSON where asked."""
    parser = argparse.ArgumentParser(description=one_line(__doc__))
    parser.add_argument("--runs", type=int, default=3, help="jobs of 20 rounds (default: 3)")
    parser.add_argument("--json", type=Path, help="a file to write the figures to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.runs, Path(folder))
    met = "met" if found["ratio"] <= PROMISE else "missed"
    print("embedded round, 10 pods    floor ms   round ms   ratio (spread)      promise")
    print(
        f"{'digits, 1 epoch':<26}{found['floor_ms']:>9.1f}{found['round_ms']:>11.1f}"
        f"   {found['ratio']:.2f} ({found['lowest']:.2f}-{found['highest']:.2f})   {PROMISE:.1f} {met}"
    )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
