"""Batch prediction as a Prefect task, with a progress bar on the flow run's page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from bitfount_model.data import source_from_config
from tasks.batch.destinations import destination_of
from tasks.batch.predict_source import Prediction
from tasks.prefect_errors import UNREACHABLE
from tasks.progress import listening
from tasks.step import step


@step("predict_batches", "predict with {model}")
def predict_batches(
    model: str,
    data: dict[str, Any],
    out: dict[str, Any],
    prediction_id: str,
    batch_rows: int,
    tracking_uri: str,
    models: str,
) -> dict[str, Any]:
    """Predicts the rows of a source that are not predicted yet: see `tasks.batch.predict_source.Prediction`.

    It is one task for all batches. There may be thousands of them, each a fraction of a second, and Prefect's account of a task
    costs about as much; what a retry must know, which rows are done, the destination knows to the row.

    Args:
        model: `name`, `name@alias` or `name/version`.
        data: a source, as a job's `data`.
        out: see `tasks.batch.destinations.check_destination`.
        prediction_id: names the prediction.
        batch_rows: rows held at a time.
        tracking_uri: of the MLflow that holds the registry.
        models: folder that models are kept in on this machine.
    """
    prediction = Prediction(prediction_id, model, source_from_config(data), destination_of(out), batch_rows)
    with shown_in_prefect(f"Rows predicted of {prediction_id}"):
        return prediction.run(tracking_uri, Path(models))


@contextmanager
def shown_in_prefect(description: str) -> Iterator[None]:
    """Shows the rows done as a progress bar, moved at each whole percent; a server that is away hides it and no more."""
    artifact, shown = None, 0

    def show(event: str, values: dict[str, Any]) -> None:
        nonlocal artifact, shown
        percent = 100 * values["done"] // values["rows"] if event == "rows" else 0
        if percent <= shown:
            return
        with suppress(*UNREACHABLE):
            if artifact is None:
                artifact = create_progress_artifact(percent, key="prediction", description=description)
            else:
                update_progress_artifact(artifact, progress=percent)
        shown = percent

    with listening(show):
        yield
