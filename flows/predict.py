"""Batch prediction: a registered model x a source of any size -> Parquet files or a table, each row once."""

from __future__ import annotations

import hashlib
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.runtime import deployment

from bitfount_model.errors import ConfigurationError
from flows import parameters
from flows.console import RunView
from flows.deployed_run import Ended, ended, given_or_set, job_id_of, surroundings_of
from flows.run import Surroundings
from flows.settings import checked_destination, checked_source
from flows.workspace import Workspace, only_once
from tasks.batch.predict_batches import predict_batches
from tasks.job import NAME
from tasks.progress import listening
from tasks.registered import parsed


@flow(name="prediction", flow_run_name="predict with {model}", persist_result=True, result_serializer="json")
def prediction(
    model: parameters.ModelReference,
    data: parameters.Data,
    out: parameters.Out,
    home: parameters.Home = "bitfount_runs",
    tracking_uri: parameters.TrackingUri | None = None,
    batch_rows: parameters.BatchRows = 20_000,
    prediction_id: parameters.PredictionId | None = None,
) -> Ended:
    """Predicts every row of a source with a registered model, and keeps each prediction once.

    The same prediction id goes on with what was stopped, with the version of the model with which it began.

    Args:
        model: `name` (the newest version), `name@alias` or `name/version`.
        data: a .csv or .parquet file, or a source as a job's `data`.
        out: a folder of Parquet files, or `{"sql": {"url": ..., "table": ...}}`.
        home: folder of jobs and models.
        tracking_uri: of the MLflow that holds the registry; default: the database in `home`.
        batch_rows: rows held at a time.
        prediction_id: names this prediction; by default one of the Prefect run, so that a run which Prefect starts again goes
            on.

    Returns:
        The summary: `prediction_id`, `model`, `version`, `run_id`, `rows`, `written` (by this run), `out`. For a deployed run that
        fails a failed state, see `flows.deployed_run.ended`; elsewhere the error is raised.
    """
    deployed = deployment.get_id() is not None

    def body() -> dict[str, Any]:
        source, destination = checked_source(data), checked_destination(out)
        surroundings = (
            surroundings_of(home)
            if deployed
            else Surroundings(Workspace(Path(home)), None, RunView(sys.stdout), verbose=False)
        )
        workspace = surroundings.workspace
        workspace.prepare()
        name = prediction_id or job_id_of(parsed(model)[0])
        uri = given_or_set(tracking_uri, "MLFLOW_TRACKING_URI") or workspace.tracking_uri
        models = str(workspace.home.resolve() / "models")
        shown = listening(surroundings.view.on_event) if deployed else nullcontext()
        with only_once(prediction_folder(workspace, name), "prediction"), shown:
            summary: dict[str, Any] = predict_batches(model, source, destination, name, batch_rows, uri, models)
        return summary

    return ended(body) if deployed else body()


def prediction_folder(workspace: Workspace, prediction_id: str) -> Path:
    """Where the process that writes a prediction holds it.

    Raises:
        ConfigurationError: this is no prediction id.
    """
    if not NAME.fullmatch(prediction_id):
        raise ConfigurationError(
            f"{prediction_id!r} is not a prediction id: letters, digits, '.', '_', '-', at most 80"
        )
    return workspace.home.resolve() / "predicting" / prediction_id


def prediction_id_of(model: str, data: dict[str, Any], out: dict[str, Any]) -> str:
    """The id of a prediction that has been given none: the same for the same model, source and destination.

    Args:
        model: as `prediction` takes it.
        data: a checked source.
        out: a checked destination.
    """
    asked = json.dumps([model, data, out], sort_keys=True)
    return f"{parsed(model)[0][:50]}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"
