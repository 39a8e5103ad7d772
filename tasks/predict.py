"""From trained weights to predictions for rows whose target nobody needs to know."""

from __future__ import annotations

from typing import Any

from bitfount_model import PredictReturnType
from bitfount_model.errors import TrainingError
from bitfount_model.files import write_atomically
from tasks.evaluate import open_trained
from tasks.manifest import Manifest, read_manifest, write_manifest
from tasks.results import prediction_table, to_parquet
from tasks.session import Session, threads, user_code
from tasks.step import reference, step
from tasks.store import Store


@step("predict")
def predict(store_url: str, data: dict[str, Any]) -> dict[str, Any]:
    """The prediction step, as a task: see `predict_job`."""
    return reference(predict_job(Store(store_url), data))


@step("predict_rows")
def predict_rows(store_url: str, data: dict[str, Any], out: str) -> dict[str, Any]:
    """Predicts every row of a source into a Parquet file, whole or not at all.

    Returns:
        `{"rows": int, "predictions": path}`.
    """
    content, rows = predicted(open_trained(Store(store_url), data))
    return {"rows": rows, "predictions": str(write_atomically(out, content))}


def predict_job(store: Store, data: dict[str, Any]) -> Manifest:
    """Predicts every row of a source and keeps the table, unless that has been done."""
    if done := read_manifest(store, "predict"):
        return done
    session = open_trained(store, data)
    content, rows = predicted(session)
    files = {"predictions": store.put("predict/predictions.parquet", content)}
    return write_manifest(store, Manifest("predict", files, {"rows": rows, "source": session.source.describe()}))


def predicted(session: Session) -> tuple[bytes, int]:
    """The predictions of an open session's source as Parquet, and how many."""
    with threads(session.job.training["threads"]), user_code(session.store, session.job):
        result = session.model.predict(session.source)
    if not isinstance(result, PredictReturnType):
        raise TrainingError(f"predict on local rows returned a {type(result).__name__}, wanted predictions")
    table = prediction_table(
        result.preds,
        result.keys,
        problem=session.model.problem,
        targets=session.model.datastructure.targets,
        classes=session.classes,
    )
    return to_parquet(table), len(table)
