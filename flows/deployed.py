"""Training as a deployment: what a worker runs for a job file of either kind, with parameters that Prefect's form checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.runtime import flow_run
from prefect.states import Failed
from pydantic import Field

from bitfount_model.errors import ConfigurationError
from flows.any_job import run_job
from flows.deployed_run import Ended, ended, given_or_set, job_id_of, surroundings_of
from flows.settings import read_job

JobFile = Annotated[
    str,
    Field(
        pattern=r"\.ya?ml$",
        title="Job file",
        description="The job in YAML, on the worker's machine; it is federated if it names pods.",
    ),
]
Overrides = Annotated[
    dict[str, Any],
    Field(
        title="Overrides",
        description='Keys of the job file to replace, as --set does: {"training.epochs": 30}.',
    ),
]
JobId = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$",
        title="Job id",
        description="Goes on with the job of that id. Without one the run has a job of its own, and a retry goes on with it.",
    ),
]
Home = Annotated[
    str,
    Field(
        min_length=1,
        title="Home",
        description="Folder of jobs on the worker's machine, as --home; all workers of the pool must see the same.",
    ),
]
TrackingUri = Annotated[
    str,
    Field(
        pattern=r"^[^@\s]+$",
        title="MLflow",
        description=(
            "MLflow server or database. Without one: MLFLOW_TRACKING_URI of the worker, else a database in the home. No"
            " password in it: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD belong into the worker's environment."
        ),
    ),
]
StoreUrl = Annotated[
    str,
    Field(
        pattern=r"^[^@\s]+$",
        title="Store",
        description=(
            "Where deployed pods are met, unless the job says it: a folder, or a URL such as s3://bucket/federation. Without"
            " one: BITFOUNT_STORE of the worker."
        ),
    ),
]


NOT_RECORDED = "NotRecorded"
"""The name of the state in which a run ends that MLflow has not got."""


def run_name() -> str:
    """The name of the flow run: that of its job."""
    given = flow_run.get_parameters()
    path = Path(given["job_file"])
    try:
        return given.get("job_id") or job_id_of(read_job(path, as_overrides(given.get("overrides") or {})).name)
    except ConfigurationError:  # the run itself says what is wrong
        return job_id_of(path.stem)


@flow(name="training", flow_run_name=run_name, persist_result=True, result_serializer="json")
def training(
    job_file: JobFile,
    overrides: Overrides = {},  # noqa: B006 - nobody changes it, and the form shows it
    job_id: JobId | None = None,
    home: Home = "bitfount_runs",
    tracking_uri: TrackingUri | None = None,
    store: StoreUrl | None = None,
) -> Ended:
    """Trains the model of a job file on rows of the worker's machine or over pods, evaluates it, and records it in MLflow.

    Args:
        job_file: of either kind, on the worker's machine.
        overrides: key of the job file, with dots -> value.
        job_id: goes on with a job; by default the job is the flow run's own.
        home: folder of jobs; a relative one is below the deployment's working directory.
        tracking_uri: of MLflow.
        store: where deployed pods are met.

    Returns:
        The summary, as `bitfount-flows train --json` prints it; or a failed state: `NotRecorded` where
        MLflow could not be reached, else see `flows.deployed_run.ended`.
    """

    def body() -> Ended:
        job = read_job(Path(job_file), as_overrides(overrides))
        summary = run_job(
            job,
            job_id or job_id_of(job.name),
            given_or_set(tracking_uri, "MLFLOW_TRACKING_URI"),
            given_or_set(store, "BITFOUNT_STORE"),
            surroundings_of(home),
        )
        if summary["mlflow_run_id"]:
            return summary
        return Failed(
            name=NOT_RECORDED,
            message="trained and saved, but MLflow could not be reached: retry this run to record it; nothing is trained again",
        )

    return ended(body)


def as_overrides(values: dict[str, Any]) -> list[str]:
    """Overrides as the command line has them; JSON is YAML."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]
