"""From trained weights to test metrics."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bitfount_model import EvaluateReturnType, MetricCollection
from bitfount_model.errors import ConfigurationError, TrainingError
from tasks.manifest import Manifest, read_file, read_manifest, write_manifest
from tasks.results import prediction_table, to_parquet
from tasks.session import Session, open_session, require, threads, user_code
from tasks.step import reference, step
from tasks.store import Store
from tasks.streamed import forget_rows


@step("evaluate")
def evaluate(store_url: str) -> dict[str, Any]:
    """The evaluation step, as a task: see `evaluate_job`."""
    return reference(evaluate_job(Store(store_url)))


@step("evaluate_rows")
def evaluate_rows(store_url: str, data: dict[str, Any]) -> dict[str, Any]:
    """Applies the trained model to all rows of a source that holds the target; nothing is kept.

    Returns:
        `{"metrics": name -> number, "rows": int}`.
    """
    session = open_trained(Store(store_url), data)
    with threads(session.job.training["threads"]), user_code(session.store, session.job):
        result = session.model.evaluate(session.model.prediction_loader(session.source, targets=True))
    if not isinstance(result, EvaluateReturnType):
        raise TrainingError(
            f"evaluate on local rows returned a {type(result).__name__}, wanted predictions and targets"
        )
    return {"metrics": test_metrics(session, result), "rows": len(result.preds)}


def evaluate_job(store: Store) -> Manifest:
    """Applies the trained model to the test rows and keeps metrics and predictions, unless that has been done.

    Without test rows the metrics are empty.
    """
    done = read_manifest(store, "evaluate") or evaluated(open_trained(store))
    forget_rows(store)  # no later step needs those of a job that streams them
    return done


def evaluated(session: Session) -> Manifest:
    """Applies an open session's trained model to its test rows and keeps what comes out."""
    if session.model.test_dl is None:
        return write_manifest(session.store, Manifest("evaluate", {}, {"metrics": {}, "rows": 0}))
    with threads(session.job.training["threads"]), user_code(session.store, session.job):
        result = session.model.evaluate()
    return write_manifest(session.store, Manifest("evaluate", *kept(session, result)))


def kept(session: Session, result: EvaluateReturnType | dict[str, float]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The files and values of an evaluation."""
    if not isinstance(result, EvaluateReturnType):
        raise TrainingError(
            f"evaluate on local rows returned a {type(result).__name__}, wanted predictions and targets"
        )
    table = prediction_table(
        result.preds,
        result.keys,
        problem=session.model.problem,
        targets=session.model.datastructure.targets,
        classes=session.classes,
        targs=result.targs,
    )
    arrays = io.BytesIO()
    np.savez(arrays, preds=result.preds, targs=result.targs)
    files = {
        "predictions": session.store.put("evaluate/predictions.parquet", to_parquet(table)),
        "arrays": session.store.put("evaluate/arrays.npz", arrays.getvalue()),
    }
    return files, {"metrics": test_metrics(session, result), "rows": len(result.preds)}


def test_metrics(session: Session, result: EvaluateReturnType) -> dict[str, float | None]:
    """The metrics of predictions against targets; None where one is not a finite number, as the AUC of one class."""
    metrics = session.model.metrics or MetricCollection.create_from_model(session.model)
    computed = metrics.compute(result.targs, result.preds, session.job.metrics)
    return {name: float(value) if math.isfinite(value) else None for name, value in computed.items()}


def open_trained(store: Store, data: Mapping[str, Any] | None = None) -> Session:
    """A job's session with its trained weights.

    Raises:
        StorageError: the job has not been trained.
        ConfigurationError: the weights file says nothing of how rows were encoded.
    """
    fitted = require(store, "fit")
    session = open_session(store, data)
    session.model.deserialize(read_file(store, fitted, "weights"))
    if session.model.preparation is None:
        raise ConfigurationError(f"the weights of the job in {store.url} do not say how rows were encoded")
    return session
