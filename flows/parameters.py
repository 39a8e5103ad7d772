"""Parameters of deployed runs, as Prefect's form shows and checks them; paths are those of the worker's machine."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$"

JobFile = Annotated[
    str,
    Field(
        pattern=r"\.ya?ml$",
        title="Job file",
        description="The job in YAML, on the worker's machine; it is federated if it names pods.",
    ),
]
RetrainingFile = Annotated[
    str,
    Field(
        pattern=r"\.ya?ml$",
        title="Retraining file",
        description="The retraining in YAML, on the worker's machine; it names the job that trains.",
    ),
]
RetrainingId = Annotated[
    str,
    Field(
        pattern=NAME,
        title="Retraining id",
        description="Goes on with the retraining of that id. Without one it is the run's own, and a retry goes on with it.",
    ),
]
Force = Annotated[bool, Field(title="Force", description="Trains whether or not the rows have changed.")]
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
        pattern=NAME,
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
ModelReference = Annotated[
    str,
    Field(
        pattern=r"^[^@/]+(@[^@/]+|/[0-9]+)?$",
        title="Model",
        description="A registered model: name@champion, name/3 for a version, or name for the newest one.",
    ),
]
Data = Annotated[
    str | dict[str, Any],
    Field(
        title="Data",
        description=(
            'The rows, on the worker\'s machine: a .csv or .parquet file, or a source as in a job: {"parquet": "rows",'
            ' "key": "patient"}. No password in it: ${NAME} stands for a variable of the worker\'s environment.'
        ),
    ),
]
Out = Annotated[
    str | dict[str, Any],
    Field(
        title="Out",
        description=(
            "Where predictions go: a folder of Parquet files, or a table: "
            '{"sql": {"url": "postgresql://writer:${PASSWORD}@host/name", "table": "predictions"}}.'
        ),
    ),
]
BatchRows = Annotated[
    int,
    Field(ge=1, le=10_000_000, title="Rows of a batch", description="How many rows are held in memory at a time."),
]
PredictionId = Annotated[
    str,
    Field(
        pattern=NAME,
        title="Prediction id",
        description="Goes on with the prediction of that id. Without one it is the run's own, and a retry goes on with it.",
    ),
]
