"""A federated job's folder as its steps leave it, with numbers that are easy to add up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from bitfount_model.data import BitfountSchema
from tasks.federated.round_record import RoundRecord, write_record
from tasks.manifest import Manifest, write_manifest
from tasks.store import Store
from tests.tasks.federated.test_round_record import record

PODS = ("ann", "bob", "cat")
JOB = {
    "name": "cells",
    "pods": list(PODS),
    "evaluate": True,
    "compare": True,
    "operation": "fit",
    "training": {"epochs": 3, "seed": 5},
}


def rounds(count: int = 3, pods: Sequence[str] = PODS) -> list[RoundRecord]:
    """Rounds that all pods take part in, but for the last pod, which is missing in the second."""
    return [
        one_round(number, [*pods[:-1], *([] if number == 2 else pods[-1:])], pods) for number in range(1, count + 1)
    ]


def one_round(number: int, present: Sequence[str], pods: Sequence[str]) -> RoundRecord:
    """A round that took 4 s: 1 s of waiting, half a second of adding."""
    places = {pod: place for place, pod in enumerate(pods)}
    return replace(
        record(),
        round_number=number,
        pods=tuple(present),
        missing={pod: "its disk is full" for pod in pods if pod not in present},
        metrics={"AUC": 0.5 + number / 10, "F1": None, "validation_loss": 1 / number},
        by_pod={pod: {"AUC": 0.5 + places[pod] / 10, "F1": None} for pod in present},
        train_loss={pod: (1.0 + places[pod]) / number for pod in present},
        norms=dict.fromkeys(present, 1.0),
        fit_seconds={pod: 1.0 + places[pod] for pod in present},
        seconds=4.0,
        wait_seconds=1.0,
        aggregate_seconds=0.5,
        bytes_up=100 * len(present),
    )


def federated_folder(
    url: str | Path,
    *,
    pods: Sequence[str] = PODS,
    steps: Sequence[str] = ("initialise", "fit", "evaluate", "compare", "plots"),
    records: Sequence[RoundRecord] | None = None,
    metric: str = "AUC",
    name: str = "cells",
) -> Store:
    """A store in which these steps have finished.

    Args:
        url: of the store.
        pods: of the job.
        steps: that have finished.
        records: of the closed rounds; three by default.
        metric: the name of the first test metric; the second, `F1`, is not defined for the last pod.
        name: of the job.
    """
    store = Store(url)
    for closed in rounds(3, pods) if records is None else records:
        write_record(store, closed)
    made = {
        "initialise": lambda: initialised(store, pods, name),
        "fit": lambda: fitted(store),
        "evaluate": lambda: Manifest("evaluate", {}, tested(pods, metric)),
        "compare": lambda: Manifest("compare", {}, compared(pods, metric)),
        "plots": lambda: Manifest("plots", {}, {}),
    }
    for step in steps:
        write_manifest(store, made[step]())
    return store


def initialised(store: Store, pods: Sequence[str], name: str) -> Manifest:
    schema = BitfountSchema("cells")
    schema.generate_full_schema(pd.DataFrame({"größe": [1.0, 2.0], "target": ["a", "b"]}))
    federation = {
        "pods": list(pods),
        "optimiser": "FedAvg",
        "weighted": True,
        "quorum": 2,
        "between_updates": 1,
        "minimum_statistics_rows": 10,
    }
    files = {
        "job": store.put("job.json", json.dumps({**JOB, "name": name, "pods": list(pods)}).encode()),
        "federation": store.put("federation.json", json.dumps(federation).encode()),
        "model": store.put("model.py", b"class Net:\n    pass\n"),
        "schema": store.put("schema.yaml", schema.dumps().encode()),
    }
    rows = {pod: {"train": 100 * (place + 1), "validation": 10, "test": 20} for place, pod in enumerate(pods)}
    values = {
        "job_id": "cells-1",
        "name": name,
        "model_class": "Net",
        "problem": "binary",
        "hyperparameters": {},
        "source": {"kind": "pods", "name": ", ".join(pods)},
        "data_digest": "cd" * 32,
        "rows": {part: sum(of[part] for of in rows.values()) for part in ("train", "validation", "test")},
        "rows_by_pod": rows,
        "pods": list(pods),
        "missing": {},
        "columns": 2,
        "targets": ["target"],
        "classes": ["a", "b"],
        "seed": 5,
        "batch_size": 16,
        "epochs": 3,
        "steps": None,
        "rounds": 3,
        "parameters_count": 1234,
        "code_version": "0.1.0",
        "packages": {"python": "3.11.2", "torch": "2.13.0"},
    }
    return Manifest("initialise", files, values)


def fitted(store: Store) -> Manifest:
    weights = store.put("fit/weights.safetensors", b"trained")
    values = {
        "rounds": 3,
        "seconds": 12.0,
        "stopped_early": False,
        "val_stats": {},
        "best_round": 2,
        "best_metrics": {},
        "weights_sha256": weights.sha256,
    }
    return Manifest("fit", {"weights": weights}, values)


def tested(pods: Sequence[str], metric: str) -> dict[str, Any]:
    by_pod: dict[str, Mapping[str, float | None]] = {
        pod: {metric: 0.9 - 0.1 * place, "F1": None if pod == pods[-1] else 0.5} for place, pod in enumerate(pods)
    }
    return {
        "metrics": {metric: 0.85, "F1": 0.5},
        "by_pod": by_pod,
        "rows_by_pod": dict.fromkeys(pods, 20),
        "rows": 20 * len(pods),
        "missing": {},
    }


def compared(pods: Sequence[str], metric: str) -> dict[str, Any]:
    return {
        "federated": {metric: 0.85, "F1": 0.5},
        "pooled": {metric: 0.86, "F1": 0.5},
        "alone": {pod: {metric: 0.6, "F1": None} for pod in pods[:-1]},
        "alone_mean": {metric: 0.6, "F1": None},
        "missing": {pods[-1]: "it has too few rows"},
    }
