"""From history and predictions to the pictures that people look at."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np

from bitfount_model.types import Problem
from tasks.manifest import Manifest, read_file, read_manifest, write_manifest
from tasks.plots import job_plots
from tasks.session import require
from tasks.step import reference, step
from tasks.store import Store


@step("plot")
def plot(store_url: str) -> dict[str, Any]:
    """The plotting step, as a task: see `plot_job`."""
    return reference(plot_job(Store(store_url)))


def plot_job(store: Store) -> Manifest:
    """Draws the job's plots and keeps them, unless that has been done."""
    if done := read_manifest(store, "plots"):
        return done
    initialised, evaluated = require(store, "initialise"), require(store, "evaluate")
    history = json.loads(read_file(store, require(store, "fit"), "history"))
    preds = targs = None
    if "arrays" in evaluated.files:
        with np.load(io.BytesIO(read_file(store, evaluated, "arrays")), allow_pickle=False) as arrays:
            preds, targs = arrays["preds"], arrays["targs"]
    values = initialised.values
    names = values["classes"] if values["classes"] is not None else values["targets"]
    pictures = job_plots(Problem(values["problem"]), names, history, preds, targs)
    files = {name: store.put(f"plots/{name}.png", content) for name, content in pictures.items()}
    return write_manifest(store, Manifest("plots", files, {}))
