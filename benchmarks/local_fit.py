"""What a local fit costs against a bare PyTorch loop on the same batches: the floor.

50,000 rows of 30 columns, 40,000 of them trained, one epoch, SGD with momentum, a network of 12,482 parameters, one thread. Floor
and fit run in turn in one process, and the ratio is taken pair by pair, so that a machine whose speed drifts does not matter.
"""

from __future__ import annotations

import logging
import time
import warnings

import torch
from classifier import Classifier, network
from floors import train_epoch
from promises import Form, Promise, command_line, ratio
from tables import TARGET, numbers

from bitfount_model import BitfountSchema, DataFrameSource, DataStructure, PercentageSplitter

HIDDEN = [96, 96]
PROMISES = {256: 2.0, 32: 2.5}
"""Batch size -> the most that a fit may cost, in floors."""


def measure(runs: int, form: Form) -> list[Promise]:
    """A row for each batch size; the quick form has the larger one alone."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sizes = [256] if form is Form.QUICK else list(PROMISES)
    source = DataFrameSource(numbers())
    return [
        ratio(f"local fit, 40,000 x 30 rows, batch size {size}", pairs(source, size, runs), PROMISES[size], unit="s")
        for size in sizes
    ]


def pairs(source: DataFrameSource, batch_size: int, runs: int) -> list[tuple[float, float]]:
    """Seconds of floor and fit in each run; one before them is left out."""
    schema = BitfountSchema()
    schema.generate_full_schema(source, force_stypes={"categorical": [TARGET]})
    model = Classifier(
        HIDDEN, datastructure=DataStructure(target=TARGET), schema=schema, epochs=1, seed=1, batch_size=batch_size
    )
    model.initialise_model(source, PercentageSplitter(validation_percentage=0, test_percentage=20))
    found = []
    for _ in range(runs + 1):
        net = network(30, HIDDEN, 2)
        began = time.perf_counter()
        train_epoch(net, model.train_dl.features, model.train_dl.targets, batch_size)
        between = time.perf_counter()
        model.fit_locally(None)
        found.append((between - began, time.perf_counter() - between))
    return found[1:]


if __name__ == "__main__":
    command_line(measure, __doc__, {Form.QUICK: 3, Form.USUAL: 5, Form.FULL: 15})
