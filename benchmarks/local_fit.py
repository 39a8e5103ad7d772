"""What a local fit costs against a bare PyTorch loop on the same batches: the floor.

50,000 rows of 30 columns, 40,000 of them trained, one epoch, SGD with momentum, a network of 12,482 parameters, one thread. Floor
and fit run in turn in one process, and the ratio is taken pair by pair, so that a machine whose speed drifts does not matter.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from bitfount_model import (
    BitfountSchema,
    DataFrameSource,
    DataStructure,
    PercentageSplitter,
    PyTorchBitfountModel,
    PyTorchClassifierMixIn,
)

ROWS, COLUMNS = 50_000, 30
PROMISES = {256: 2.0, 32: 2.5}
"""Batch size -> the most that a fit may cost, in floors."""


def network() -> nn.Module:
    """30-96-96-2: 12,482 parameters."""
    return nn.Sequential(nn.Linear(COLUMNS, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 2))


def optimiser(net: nn.Module) -> torch.optim.Optimizer:
    """The same for floor and fit."""
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


class Classifier(PyTorchClassifierMixIn, PyTorchBitfountModel):
    """The network as a user would write it."""

    def create_model(self):
        return network()

    def forward(self, x):
        x, sup = x
        return self._model(x)

    def configure_optimizers(self):
        return optimiser(self)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        return {"validation_loss": self.training_step(batch, batch_idx)}

    def test_step(self, batch, batch_idx):
        x, y = batch
        return {"predictions": self(x), "targets": y}


def floor(features: torch.Tensor, targets: torch.Tensor, batch_size: int) -> None:
    """One epoch of plain PyTorch: a permutation, gathered batches, forward, backward, step."""
    net = network()
    optimizer = optimiser(net)
    order = torch.randperm(len(features))
    for start in range(0, len(features), batch_size):
        rows = order[start : start + batch_size]
        optimizer.zero_grad()
        F.cross_entropy(net(features[rows]), targets[rows]).backward()
        optimizer.step()


def measure(batch_size: int, runs: int) -> dict[str, float]:
    """Seconds of floor and fit, and their ratio: medians over the runs, the first of each left out, with the spread."""
    generator = np.random.default_rng(0)
    values = generator.normal(size=(ROWS, COLUMNS)).astype(np.float32)
    frame = pd.DataFrame(values, columns=[f"c{number}" for number in range(COLUMNS)])
    frame["target"] = (values[:, 0] + values[:, 1] > 0).astype(int)
    source = DataFrameSource(frame)
    schema = BitfountSchema()
    schema.generate_full_schema(source, force_stypes={"categorical": ["target"]})
    model = Classifier(
        datastructure=DataStructure(target="target"), schema=schema, epochs=1, seed=1, batch_size=batch_size
    )
    model.initialise_model(source, PercentageSplitter(validation_percentage=0, test_percentage=20))
    pairs = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        floor(model.train_dl.features, model.train_dl.targets, batch_size)
        between = time.perf_counter()
        model.fit_locally(None)
        pairs.append((between - began, time.perf_counter() - between))
    ratios = [fit / bare for bare, fit in pairs[1:]]
    return {
        "batch_size": batch_size,
        "floor_seconds": statistics.median(bare for bare, _ in pairs[1:]),
        "fit_seconds": statistics.median(fit for _, fit in pairs[1:]),
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "promise": PROMISES[batch_size],
    }


def main() -> None:
    """Prints a table, and writes it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7, help="counted runs of each batch size (default: 7)")
    parser.add_argument("--json", type=Path, help="a file to write the figures to")
    options = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results = [measure(batch_size, options.runs) for batch_size in PROMISES]
    print("local fit, 40,000 x 30 rows  floor s   fit s   ratio (spread)      promise")
    for result in results:
        met = "met" if result["ratio"] <= result["promise"] else "missed"
        print(
            f"batch size {result['batch_size']:<18}{result['floor_seconds']:>7.3f} {result['fit_seconds']:>7.3f}"
            f"   {result['ratio']:.2f} ({result['lowest']:.2f}-{result['highest']:.2f})   {result['promise']:.1f} {met}"
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
