"""From a job's folder to its run in MLflow: replayed after any step, as often as one likes, with the same result.

The folder is the truth and MLflow a view of it. Each call puts into the run whatever it lacks, so an MLflow that was
away delays what people see and loses none of it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from filelock import FileLock

from bitfount_model.errors import ConfigurationError, TrackingError
from tasks.manifest import Manifest, read_manifest, write_manifest
from tasks.mlflow_client import (
    LOCK_SECONDS,
    artifact_sizes,
    connect,
    ensure_experiment,
    ensure_run,
    log_datasets,
    log_params_and_tags,
    log_points,
    tracking_errors,
    without_password,
)
from tasks.run_contents import REASON, SHOWN_STEPS, STEPS, RunContents, run_contents
from tasks.store import Reference, Store, local_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ATTEMPTS = 3


def record_job(
    store: Store,
    *,
    tracking_uri: str,
    experiment: str,
    artifact_root: str | None = None,
    prefect_run: str | None = None,
    steps: Sequence[str] = STEPS,
) -> Manifest:
    """Puts everything that a job has so far into its MLflow run.

    Args:
        store: the job's store; the step `initialise` has finished.
        tracking_uri: a server, or a database such as `sqlite:////home/me/mlflow.db`.
        experiment: its name; it is made if it is not there.
        artifact_root: where a new experiment keeps its files; None leaves it to the server.
        prefect_run: id of the Prefect run that works on the job.
        steps: what the job consists of. When all of them have finished the run is `FINISHED`, before that `RUNNING`.

    Returns:
        `run_id`, `experiment_id`, `tracking_uri` and the recorded `steps`; kept in the store when the job is complete.

    Raises:
        ConfigurationError: the job has not been initialised.
        TrackingError: MLflow cannot be reached, or refuses; the same call later goes on.
        StorageError: the job's files cannot be read.
    """
    manifests = finished_steps(store)
    kept = read_manifest(store, "record")
    place = without_password(tracking_uri)
    if kept is not None and kept.values["tracking_uri"] == place and set(manifests) <= set(kept.values["steps"]):
        return kept
    if "initialise" not in manifests:
        raise ConfigurationError(f"the job in {store.url} has not been initialised: there is nothing to record yet")
    contents = run_contents(store, manifests, prefect_run)
    complete = set(steps) <= set(manifests)
    run = replay(store, contents, tracking_uri, experiment, artifact_root, "FINISHED" if complete else "RUNNING")
    values = {
        "run_id": run.info.run_id,
        "experiment_id": run.info.experiment_id,
        "tracking_uri": place,
        "steps": list(manifests),
    }
    manifest = Manifest("record", {}, values)
    return write_manifest(store, manifest) if complete and kept is None else manifest


def mark_failed(
    store: Store,
    *,
    tracking_uri: str,
    experiment: str,
    reason: str,
    status: Literal["FAILED", "KILLED"] = "FAILED",
    artifact_root: str | None = None,
    prefect_run: str | None = None,
) -> str | None:
    """Ends a job's MLflow run with a reason; the next `record_job` takes it up again.

    Args:
        store: the job's store.
        tracking_uri: as for `record_job`.
        experiment: as for `record_job`.
        reason: for people; becomes the tag `bitfount.reason` and the first line of the run's note.
        status: `FAILED`, or `KILLED` for an interrupt.
        artifact_root: as for `record_job`.
        prefect_run: as for `record_job`.

    Returns:
        The run's id; None where the job was never initialised, so that there is no run, or is complete.

    Raises:
        TrackingError: MLflow cannot be reached, or refuses.
        StorageError: the job's files cannot be read.
    """
    manifests = finished_steps(store)
    if "initialise" not in manifests or read_manifest(store, "record") is not None:
        return None
    contents = run_contents(store, manifests, prefect_run, reason)
    return str(replay(store, contents, tracking_uri, experiment, artifact_root, status).info.run_id)


def finished_steps(store: Store, steps: Sequence[str] = SHOWN_STEPS) -> dict[str, Manifest]:
    """Step -> manifest, of those steps that have finished, in their order."""
    return {step: manifest for step in steps if (manifest := read_manifest(store, step)) is not None}


def replay(
    store: Store, contents: RunContents, tracking_uri: str, experiment: str, artifact_root: str | None, status: str
) -> Run:
    """Brings a job's run to what the contents say, the status last."""
    client = connect(tracking_uri)
    with tracking_errors(tracking_uri), recording(store):
        experiment_id = ensure_experiment(client, experiment, artifact_root)
        for _ in range(ATTEMPTS):
            run = ensure_run(client, experiment_id, contents.job_id, contents.name)
            fill(client, run, store, contents)
            set_status(client, run, status)
            # A process that shares no lock with this one may have made an older run in the meantime.
            if ensure_run(client, experiment_id, contents.job_id, contents.name).info.run_id == run.info.run_id:
                return run
        raise TrackingError(f"other processes keep making MLflow runs for the job {contents.job_id}: stop all but one")


def recording(store: Store) -> AbstractContextManager[object]:
    """Keeps processes of one machine from recording the same job at once."""
    try:
        path = local_path(store, "record.lock")
    except ConfigurationError:  # a remote store: `ensure_run` settles it, and all that is logged may be logged twice
        return nullcontext()
    return FileLock(path, timeout=LOCK_SECONDS)


def fill(client: MlflowClient, run: Run, store: Store, contents: RunContents) -> None:
    """Adds what the run lacks."""
    log_params_and_tags(client, run, contents.params, contents.tags)
    if REASON in run.data.tags and REASON not in contents.tags:
        client.delete_tag(run.info.run_id, REASON)
    log_datasets(client, run, contents.datasets)
    log_points(client, run, contents.points)
    sizes = artifact_sizes(client, run.info.run_id, {folder for folder, _ in contents.files})
    for folder, reference in contents.files:
        if sizes.get(f"{folder}/{base_name(reference)}".lstrip("/")) != reference.size:
            with as_file(store, reference) as path:
                client.log_artifact(run.info.run_id, str(path), folder or None)


def set_status(client: MlflowClient, run: Run, status: str) -> None:
    """Sets the run's status, if it is another one."""
    if run.info.status == status:
        return
    if status == "RUNNING":
        client.update_run(run.info.run_id, status=status)
    else:
        client.set_terminated(run.info.run_id, status)


@contextmanager
def as_file(store: Store, reference: Reference) -> Iterator[Path]:
    """An artifact as a file of this machine, its digest checked."""
    content = store.get(reference.name, reference.sha256)
    try:
        yield local_path(store, reference.name)
    except ConfigurationError:
        folder = Path(tempfile.mkdtemp(prefix="bitfount-"))
        try:
            path = folder / base_name(reference)
            path.write_bytes(content)
            yield path
        finally:
            shutil.rmtree(folder)


def base_name(reference: Reference) -> str:
    """An artifact's name without its folders."""
    return PurePosixPath(reference.name).name
