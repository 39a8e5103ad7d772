"""Between the recording steps and MLflow: one client with bounded waits, one run a job, nothing logged twice."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from requests.exceptions import ConnectionError as NoConnection
from requests.exceptions import RequestException, RetryError
from requests.exceptions import Timeout as NoAnswer
from sqlalchemy import create_engine, inspect
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from bitfount_model.errors import TrackingError
from tasks.run_contents import DataSet, Point

if TYPE_CHECKING:  # importing MLflow takes two seconds; a command that tracks nothing does not wait for it
    from mlflow import MlflowClient
    from mlflow.entities import Run

JOB_ID = "bitfount.job_id"
LOCK_SECONDS = 120.0
BATCH = 1000  # metrics in one request, MLflow's limit
# Its pages then show runs with their charts; without it they open on those for language models.
KIND = {"mlflow.experimentKind": "custom_model_development"}
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def quiet_mlflow_environment() -> dict[str, str]:
    """Environment variables that make MLflow silent, private and quick to give up.

    Whoever starts the process sets them before MLflow is imported, where the user has not set them already: no
    telemetry, no progress bars, no log lines (what matters is raised), and a server that does not answer is given
    up after about a second, or after two times 30 s if it takes connections and says nothing. An MLflow server that
    is started with them does without the eight processes for its own background jobs, and is up in half the time.
    """
    return {
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "CRITICAL",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0.5",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "GIT_PYTHON_REFRESH": "quiet",
    }


def connect(uri: str) -> MlflowClient:
    """A client for a tracking server or database.

    Args:
        uri: `http(s)://…`, or a database such as `sqlite:////home/me/mlflow.db`, which is made if it is not there.

    Raises:
        TrackingError: the database cannot be opened, or this is no tracking URI. A server is asked by the first call.
    """
    uri = with_password(uri)
    with tracking_errors(uri):
        from mlflow import MlflowClient

        if not uri.startswith(DATABASES):
            return MlflowClient(tracking_uri=uri, registry_uri=uri)
        url = _database(uri)
        # MLflow makes a new database's tables without a lock; and it would try for 100 s to open a bad one.
        if url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:"):
            with FileLock(f"{url.database}.lock", timeout=LOCK_SECONDS):
                _try(url)
                return MlflowClient(tracking_uri=uri, registry_uri=uri)
        _try(url)
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _database(uri: str) -> URL:
    try:
        return make_url(uri)
    except ArgumentError as error:
        raise TrackingError(f"{uri!r} is no tracking URI; wanted e.g. sqlite:////home/me/mlflow.db") from error


def _try(url: URL) -> None:
    engine = create_engine(url, poolclass=NullPool)
    try:
        inspect(engine).get_table_names()
    finally:
        engine.dispose()


@contextmanager
def tracking_errors(uri: str) -> Iterator[None]:
    """Turns what MLflow and the network raise into a `TrackingError` that says what to do."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except Timeout as error:
        raise TrackingError(
            f"another process has been recording the same job to MLflow for {LOCK_SECONDS:g} s: wait for it, or stop it"
        ) from error
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        # MLflow's own errors quote the URI, and tracebacks are logged.
        raise TrackingError(_message(uri, error)) from (None if _secret(with_password(uri)) else error)


def _message(uri: str, error: BaseException) -> str:
    place = without_password(uri)
    kept = "Nothing is lost: the job's folder keeps it all, and the same command records it later."
    causes = list(_causes(error))
    unreachable = any(isinstance(cause, NoConnection | NoAnswer | RetryError) for cause in causes)
    reason = " ".join(str(causes[-1] if unreachable else error).split())
    if unreachable:
        what = "cannot be reached. Start it, or give another tracking URI."
        return f"MLflow at {place} {what} {kept} ({_short(reason, uri)})"
    return f"MLflow at {place} refuses: {_short(reason, uri)}. {kept}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _short(reason: str, uri: str) -> str:
    secret = _secret(with_password(uri))
    return (reason.replace(secret, "***") if secret else reason)[:400].rstrip(". ")


def without_password(uri: str) -> str:
    """A tracking URI that may be shown."""
    secret = _secret(uri)
    return uri.replace(f"{secret}@", "***@", 1) if secret else uri


def with_password(uri: str) -> str:
    """A tracking URI that can be used: what may not be shown is taken from `MLFLOW_TRACKING_URI`, if that is the same place."""
    own = os.environ.get("MLFLOW_TRACKING_URI", "")
    return own if own and without_password(own) == uri else uri


def _secret(uri: str) -> str:
    """The password of a URI, or a token in place of a user and password."""
    user, _, password = uri.partition("://")[2].partition("/")[0].rpartition("@")[0].partition(":")
    return password or user


def ensure_experiment(client: MlflowClient, name: str, artifact_root: str | None) -> str:
    """The id of an experiment, which is made if it is not there.

    Args:
        client: of the tracking server.
        name: of the experiment.
        artifact_root: where a new experiment keeps its files, a folder or URL; None leaves it to the server.

    Raises:
        TrackingError: it was deleted.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_root, tags=KIND))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another process was quicker
    if found is None or found.lifecycle_stage != "active":
        raise TrackingError(
            f"the MLflow experiment {name!r} was deleted: restore it in MLflow, or name another one in the job"
        )
    return str(found.experiment_id)


def ensure_run(client: MlflowClient, experiment_id: str, job_id: str, name: str) -> Run:
    """The one run of a job, which is made if it is not there.

    Runs carry their job's id from the moment they exist, so that a crash right after leaves nothing to look for. Where
    two processes made one each, the older is kept: all calls agree on which that is, and what the other holds is
    replayed into it.
    """
    runs = job_runs(client, experiment_id, job_id)
    if not runs:
        client.create_run(experiment_id, run_name=name, tags={JOB_ID: job_id, "mlflow.user": _user()})
        runs = job_runs(client, experiment_id, job_id)
    for surplus in runs[1:]:
        client.delete_run(surplus.info.run_id)
    return runs[0]


def job_runs(client: MlflowClient, experiment_id: str, job_id: str) -> list[Run]:
    """A job's runs, oldest first; there is one, or for a moment several."""
    quote = '"' if "'" in job_id else "'"
    found = client.search_runs([experiment_id], filter_string=f"tags.`{JOB_ID}` = {quote}{job_id}{quote}")
    return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))


def log_points(client: MlflowClient, run: Run, points: Iterable[Point]) -> None:
    """Logs the values that the run does not have.

    MLflow keeps a value once if key, step, value and time are the same. Times are made from the run's start and the
    step, so that a request that was sent twice, or arrives late, changes nothing.
    """
    wanted = list(points)
    there = {key: _steps(client, run, key) for key in {point.key for point in wanted}}
    log_points_again(client, run, [point for point in wanted if point.step not in there[point.key]])


def log_points_again(client: MlflowClient, run: Run, points: Iterable[Point]) -> None:
    """Logs values without asking what the run has: for new ones, which may have been sent before a moment ago."""
    from mlflow.entities import Metric

    metrics = [Metric(point.key, point.value, run.info.start_time + point.step, point.step) for point in points]
    for first in range(0, len(metrics), BATCH):
        client.log_batch(run.info.run_id, metrics=metrics[first : first + BATCH])


def _steps(client: MlflowClient, run: Run, key: str) -> set[int]:
    if key not in run.data.metrics:
        return set()
    return {metric.step for metric in client.get_metric_history(run.info.run_id, key)}


def log_params_and_tags(client: MlflowClient, run: Run, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
    """Sets parameters that the run does not have, and tags that it has not or has otherwise."""
    from mlflow.entities import Param, RunTag

    client.log_batch(
        run.info.run_id,
        params=[Param(name, value) for name, value in params.items() if name not in run.data.params],
        tags=[RunTag(name, value) for name, value in tags.items() if run.data.tags.get(name) != value],
    )


def log_datasets(client: MlflowClient, run: Run, datasets: Iterable[DataSet]) -> None:
    """Adds the data sets that the run does not have."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = run.inputs.dataset_inputs if run.inputs else []
    there = {(known.dataset.name, known.dataset.digest) for known in inputs}
    missing = [
        DatasetInput(
            Dataset(data.name, data.digest, data.source_type, data.source, data.schema, data.profile),
            [InputTag("mlflow.data.context", data.context)],
        )
        for data in datasets
        if (data.name, data.digest) not in there
    ]
    if missing:
        client.log_inputs(run.info.run_id, missing)


def artifact_sizes(client: MlflowClient, run_id: str, folders: Iterable[str]) -> dict[str, Any]:
    """Path -> size in bytes of the files in these folders of a run, `""` being the top one."""
    infos = client.list_artifacts(run_id)
    for folder in sorted({info.path for info in infos if info.is_dir} & set(folders)):
        infos = [*infos, *client.list_artifacts(run_id, folder)]
    return {info.path: info.file_size for info in infos if not info.is_dir}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"
