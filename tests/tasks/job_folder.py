"""Job folders as the steps leave them, without the time that the steps take."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bitfount_model.data import BitfountSchema
from tasks.manifest import Manifest, write_manifest
from tasks.store import Store

STEPS = ("initialise", "fit", "evaluate", "predict", "plots", "report")


def history(epochs: int) -> list[dict[str, Any]]:
    """Epoch records in which each value says which epoch it is of."""
    return [
        {
            "epoch": epoch,
            "epochs": epochs,
            "rows": 398,
            "train_loss": 1 / epoch,
            "val_stats": {"validation_loss": 1.5 / epoch, "AUC": 1 - 0.3 / epoch, "Brier Loss": 0.2 / epoch},
        }
        for epoch in range(1, epochs + 1)
    ]


def job_folder(
    url: str | Path,
    *,
    steps: Sequence[str] = STEPS,
    job_id: str = "demo-1",
    records: Sequence[Mapping[str, Any]] | None = None,
    metrics: Mapping[str, float | None] | None = None,
) -> Store:
    """A store in which these steps have finished; called again with more steps it goes on."""
    store = Store(url)
    records = history(4) if records is None else records
    metrics = {"AUC": 0.9931, "Brier Loss": 0.021} if metrics is None else metrics
    made = {
        "initialise": lambda: initialised(store, job_id),
        "fit": lambda: fitted(store, records),
        "evaluate": lambda: evaluated(store, metrics),
        "predict": lambda: predicted(store),
        "plots": lambda: plotted(store),
        "report": lambda: Manifest("report", {"report": store.put("report.html", b"<html>")}, {}),
    }
    for step in steps:
        write_manifest(store, made[step]())
    return store


def initialised(store: Store, job_id: str) -> Manifest:
    frame = pd.DataFrame({"mean radius": [1.5, 2.5], "größe": [1, 2], "smoker": [True, False], "target": ["a", "b"]})
    schema = BitfountSchema("demo")
    schema.generate_full_schema(frame)
    files = {
        "job": store.put("job.json", b'{"name": "demo"}'),
        "model": store.put("model.py", b"class Net:\n    pass\n"),
        "schema": store.put("schema.yaml", schema.dumps().encode()),
        "datastructure": store.put("datastructure.json", b"{}"),
        "weights": store.put("initialise/weights.safetensors", b"untrained"),
    }
    values = {
        "job_id": job_id,
        "name": "demo",
        "model_class": "Net",
        "problem": "binary",
        "hyperparameters": {"hidden": [64, 32], "optimiser": {"name": "adam", "lr": 0.01}, "note": "x" * 7000},
        "source": {"kind": "csv", "path": "/data/patients.csv"},
        "data_digest": "ab" * 32,
        "rows": {"train": 398, "validation": 57, "test": 114},
        "columns": 4,
        "targets": ["target"],
        "classes": ["a", "b"],
        "seed": 7,
        "parameters_count": 4290,
        "code_version": "0.1.0",
        "experiment": "demo",
        "batch_size": 32,
        "epochs": 4,
        "steps": None,
    }
    return Manifest("initialise", files, values)


def fitted(store: Store, records: Sequence[Mapping[str, Any]]) -> Manifest:
    weights = store.put("fit/weights.safetensors", b"trained" * 1000)
    files = {"weights": weights, "history": store.put("fit/history.json", json.dumps(list(records)).encode())}
    values = {"seconds": 12.5, "epochs_trained": len(records), "val_stats": {}, "weights_sha256": weights.sha256}
    return Manifest("fit", files, values)


def evaluated(store: Store, metrics: Mapping[str, float | None]) -> Manifest:
    files = {
        "predictions": store.put("evaluate/predictions.parquet", parquet([0.1, 0.9])),
        "arrays": store.put("evaluate/arrays.npz", b"arrays"),
    }
    return Manifest("evaluate", files, {"metrics": dict(metrics), "rows": 114})


def predicted(store: Store) -> Manifest:
    files = {"predictions": store.put("predict/predictions.parquet", parquet([0.4, 0.6, 0.2]))}
    return Manifest("predict", files, {"rows": 3, "source": {"kind": "csv", "path": "/data/new.csv"}})


def plotted(store: Store) -> Manifest:
    names = ("learning_curves", "roc")
    return Manifest("plots", {name: store.put(f"plots/{name}.png", name.encode()) for name in names}, {})


def parquet(predictions: Sequence[float]) -> bytes:
    buffer = io.BytesIO()
    pd.DataFrame({"key": range(len(predictions)), "prediction": predictions}).to_parquet(buffer)
    return buffer.getvalue()
