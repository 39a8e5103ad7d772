"""Runs a flow in this process, with a Prefect API beside it and a view of what happens."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from bitfount_model.errors import ConfigurationError, StorageError
from flows.console import RunView, program
from flows.environment import prepare, quiet
from flows.prefect_server import PrefectServer, ServerError, require_answer
from flows.workspace import Workspace, continued, only_once
from tasks.job import LocalJob, with_seed
from tasks.manifest import read_manifest
from tasks.mlflow_client import without_password
from tasks.progress import listening
from tasks.simulation.job_file import SimulatedJob, own_rows_to_json

DRAIN_SECONDS = 60


@dataclass(frozen=True)
class Surroundings:
    """What a command runs in.

    Attributes:
        workspace: where jobs are.
        server: the Prefect server started for the command; None where the user has one.
        view: what the user sees.
        verbose: leaves the packages' logs and warnings as they are.
    """

    workspace: Workspace
    server: PrefectServer | None
    view: RunView
    verbose: bool

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Prefect answers, the view is up, and the packages are quiet unless they should not be."""
        with prefect_api(self.server, self.workspace.home, verbose=self.verbose), quiet(self.verbose), self.view:
            yield


def train(job: LocalJob, job_id: str, tracking_uri: str | None, surroundings: Surroundings) -> dict[str, Any]:
    """Runs or continues a local job, or a simulated one.

    Returns:
        The summary: see `summarise`.
    """
    started = time.monotonic()
    workspace = surroundings.workspace
    workspace.prepare()
    store = workspace.store(job_id)
    uri = tracking_uri or workspace.tracking_uri
    tracking = tracking_of(workspace, job.experiment, tracking_uri)
    with only_once(Path(store.url)):
        job = continued(job, store, with_seed, own_rows_to_json)
        surroundings.view.say(f"job {job_id}: starting …")
        with tracked_at(uri), surroundings.ready(), listening(surroundings.view.on_event):
            from prefect import tags

            with tags("simulated" if isinstance(job, SimulatedJob) else "local", job.name):
                done = training_of(job)(own_rows_to_json(job), job_id, store.url, tracking)
    return summarise(job, job_id, workspace, tracking_uri, done, time.monotonic() - started)


def training_of(job: LocalJob) -> Callable[[dict[str, Any], str, str, dict[str, Any]], dict[str, Any]]:
    """The flow of a job that has rows of its own."""
    if not isinstance(job, SimulatedJob):
        from flows.local import local_training

        return local_training
    from flows.simulated import simulate

    return partial(simulate, workers=job.simulate["workers"], dask=job.simulate["dask"])


def tracking_of(workspace: Workspace, experiment: str, tracking_uri: str | None) -> dict[str, str | None]:
    """The fields of `tasks.recording.Tracking`; no password, as Prefect keeps a flow's parameters."""
    return {
        "uri": without_password(tracking_uri or workspace.tracking_uri),
        "experiment": experiment,
        "artifact_root": None if tracking_uri else str(workspace.artifacts),
    }


def evaluate(job_id: str, data: dict[str, Any] | None, surroundings: Surroundings) -> dict[str, Any]:
    """Metrics of a trained job, on its test rows or on another source's.

    Returns:
        job_id, metrics, rows.
    """
    folder = trained(surroundings.workspace, job_id)
    with only_once(folder), surroundings.ready():
        from flows.local import local_evaluation

        values: dict[str, Any] = local_evaluation(job_id, str(folder), data)
    return {"job_id": job_id, **values}


def predict(job_id: str, data: dict[str, Any], out: Path, surroundings: Surroundings) -> dict[str, Any]:
    """Predictions of a trained job for every row of a source, as a Parquet file.

    Returns:
        job_id, rows, predictions.
    """
    folder = trained(surroundings.workspace, job_id)
    with surroundings.ready():
        from flows.local import local_prediction

        values: dict[str, Any] = local_prediction(job_id, str(folder), data, str(out))
    return {"job_id": job_id, **values}


def predict_registered(
    model: str,
    data: dict[str, Any],
    out: dict[str, Any],
    surroundings: Surroundings,
    *,
    tracking_uri: str | None,
    batch_rows: int,
    prediction_id: str | None,
) -> dict[str, Any]:
    """Predictions of a registered model for every row of a source of any size; one that was stopped goes on.

    Returns:
        The summary: see `flows.predict.prediction`.
    """
    workspace = surroundings.workspace
    workspace.prepare()
    uri = without_password(tracking_uri) if tracking_uri else None
    tracked = tracked_at(tracking_uri or workspace.tracking_uri)
    with tracked, surroundings.ready(), listening(surroundings.view.on_event):
        from flows.predict import prediction, prediction_folder, prediction_id_of

        made = prediction_id_of(model, data, out)
        name = prediction_id or made
        prediction_folder(workspace, name)  # refuses a name that is none, in words for people
        surroundings.view.say(f"prediction {name}: starting …")
        return cast(dict[str, Any], prediction(model, data, out, str(workspace.home), uri, batch_rows, name))


def trained(workspace: Workspace, job_id: str) -> Path:
    """The folder of a job that has been trained.

    Raises:
        ConfigurationError: there is none.
    """
    folder = workspace.folder(job_id)
    if not folder.exists() or read_manifest(workspace.store(job_id), "fit") is None:
        jobs = sorted(path.parts[-3] for path in (workspace.home / "jobs").glob("*/steps/fit.json"))
        raise ConfigurationError(
            f"there is no trained job {job_id!r} in {workspace.home}; there are: {', '.join(jobs[-10:]) or 'none'}"
        )
    return folder


def summarise(
    job: LocalJob, job_id: str, workspace: Workspace, tracking_uri: str | None, done: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """What a run gave, with paths.

    Returns:
        job_id, name, mlflow_run_id, metrics, test_rows, weights, weights_sha256, predictions, test_predictions, report,
        registered, seconds, tracking_uri, ui_command.
    """
    store = workspace.store(job_id)

    def path_of(step: str, role: str) -> str | None:
        files = (done.get(step) or {}).get("files", {})
        return store.location(files[role]["name"]) if role in files else None

    recorded, registered = done.get("record"), done.get("register")
    return {
        "job_id": job_id,
        "name": job.name,
        "mlflow_run_id": recorded["values"]["run_id"] if recorded else None,
        "metrics": done["evaluate"]["values"]["metrics"],
        "test_rows": done["evaluate"]["values"]["rows"],
        "weights": path_of("fit", "weights"),
        "weights_sha256": done["fit"]["values"]["weights_sha256"],
        "predictions": path_of("predict", "predictions"),
        "test_predictions": path_of("evaluate", "predictions"),
        "report": path_of("report", "report"),
        "registered": version_text(registered),
        "seconds": round(seconds, 2),
        "tracking_uri": without_password(tracking_uri or workspace.tracking_uri),
        "ui_command": ui_command(workspace, tracking_uri),
    }


def version_text(registered: dict[str, Any] | None) -> str | None:
    """A registered model for people, from the manifest of the step `register`."""
    return f"{registered['values']['name']} version {registered['values']['version']}" if registered else None


def ui_command(workspace: Workspace, tracking_uri: str | None) -> str:
    """How a user looks at the runs."""
    if tracking_uri is None:
        return f"{program()} ui --home {shlex.quote(str(workspace.home))}"
    return f"open {without_password(tracking_uri)}"


@contextmanager
def tracked_at(uri: str) -> Iterator[None]:
    """Registered models are looked for where runs are recorded."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        yield
    finally:
        if before is None:
            del os.environ["MLFLOW_TRACKING_URI"]
        else:
            os.environ["MLFLOW_TRACKING_URI"] = before


@contextmanager
def prefect_api(server: PrefectServer | None, home: Path, *, verbose: bool) -> Iterator[None]:
    """Prefect talks to this server; None leaves it to what the user has set."""
    prepare(home, verbose=verbose)
    own = os.environ.get("PREFECT_API_URL")
    try:
        if server is None and own:
            require_answer(own)
        url = None if server is None else server.wait()
    except ServerError as error:
        raise StorageError(str(error)) from error
    if url is None:
        yield
        return
    with settings_for(url):
        try:
            yield
        finally:
            drain()


@contextmanager
def settings_for(url: str) -> Iterator[None]:
    """Prefect, already imported, talks to this URL, without the heartbeat that takes a foreground run a second to end."""
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with temporary_settings({PREFECT_API_URL: url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def drain() -> None:
    """Waits until Prefect's logs and events have been sent: its threads would look for the server when it is gone."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    EventsWorker.drain_all(timeout=DRAIN_SECONDS)
    APILogWorker.drain_all(timeout=DRAIN_SECONDS)
