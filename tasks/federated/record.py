"""From a federated job's records to its runs in MLflow: replayed after any step, and live while rounds run.

The modeller's store is the truth and MLflow a view of it: what MLflow missed while it was away is added by the next replay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from bitfount_model.errors import ConfigurationError
from tasks.federated.contents import (
    PARENT,
    POD,
    job_contents,
    pod_contents,
    pod_points,
    pod_run_id,
    pod_run_name,
    pods_of,
    round_points,
)
from tasks.federated.round_record import read_records, record_from_json
from tasks.live_metrics import LiveMetrics
from tasks.manifest import Manifest, read_manifest, write_manifest
from tasks.mlflow_client import (
    ensure_experiment,
    ensure_run,
    log_params_and_tags,
    log_points_again,
    tracking_errors,
    without_password,
)
from tasks.record import finished_steps, recording, replay
from tasks.recording import Tracking
from tasks.run_contents import run_name
from tasks.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

STEPS = ("initialise", "fit", "evaluate", "predict", "compare", "plots", "report", "package")
"""Of a federated job, in their order; not every job has all of them."""

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


def record_federation(store: Store, tracking: Tracking, prefect_run: str | None, steps: Sequence[str]) -> Manifest:
    """Puts everything that a job has so far into its run and those of its pods.

    Args:
        store: the modeller's own; the step `initialise` has finished.
        tracking: where MLflow is.
        prefect_run: id of the Prefect run that works on the job.
        steps: what the job consists of. When all of them have finished the runs are `FINISHED`, before that `RUNNING`.

    Returns:
        `run_id`, `pod_runs`, `experiment_id`, `tracking_uri` and the recorded `steps`; kept when the job is complete.

    Raises:
        ConfigurationError: the job has not been initialised.
        TrackingError: MLflow cannot be reached, or refuses; the same call later goes on.
    """
    manifests = finished_steps(store, STEPS)
    kept = read_manifest(store, "record")
    place = without_password(tracking.uri)
    if kept is not None and kept.values["tracking_uri"] == place and set(manifests) <= set(kept.values["steps"]):
        return kept
    if "initialise" not in manifests:
        raise ConfigurationError(f"the job in {store.url} has not been initialised: there is nothing to record yet")
    complete = set(steps) <= set(manifests)
    run, pods = replay_all(store, tracking, manifests, "FINISHED" if complete else "RUNNING", prefect_run)
    values = {
        "run_id": run.info.run_id,
        "pod_runs": {pod: own.info.run_id for pod, own in pods.items()},
        "experiment_id": run.info.experiment_id,
        "tracking_uri": place,
        "steps": list(manifests),
    }
    manifest = Manifest("record", {}, values)
    return write_manifest(store, manifest) if complete and kept is None else manifest


def mark_ended(store: Store, tracking: Tracking, reason: str, *, interrupted: bool) -> None:
    """Ends the runs of a job that did not finish, with a reason; the next replay takes them up again.

    Raises:
        TrackingError: MLflow cannot be reached, or refuses.
    """
    manifests = finished_steps(store, STEPS)
    if "initialise" in manifests and read_manifest(store, "record") is None:
        replay_all(store, tracking, manifests, "KILLED" if interrupted else "FAILED", None, reason)


def replay_all(
    store: Store,
    tracking: Tracking,
    manifests: Mapping[str, Manifest],
    status: Status,
    prefect_run: str | None = None,
    reason: str | None = None,
) -> tuple[Run, dict[str, Run]]:
    """Brings the job's run and those of its pods to what the records say; gives them."""
    records = read_records(store)
    contents = job_contents(store, manifests, records, prefect_run, reason)
    run = replay(store, contents, tracking.uri, tracking.experiment, tracking.artifact_root, status)
    pods = {}
    for pod in pods_of(manifests["initialise"], records):
        own = pod_contents(pod, run.info.run_id, manifests, records)
        pods[pod] = replay(store, own, tracking.uri, tracking.experiment, tracking.artifact_root, status)
    return run, pods


class LiveRounds(LiveMetrics):
    """A thread that logs the records of rounds to the runs of the job and its pods; see `LiveMetrics`."""

    pause_seconds = 2.0  # a request for each pod, in threads beside those that train
    _runs: dict[str, Run] | None = None

    def log(self, client: MlflowClient, batch: list[Mapping[str, Any]]) -> None:
        """Sends some rounds' records to MLflow; those that were sent before change nothing."""
        records = [record_from_json(value) for value in batch]
        with tracking_errors(self.tracking_uri), recording(self.store):
            runs = self._runs = self._runs or {}
            job = self._run(client, runs, None)
            log_points_again(client, job, [point for record in records for point in round_points(record)])
            for pod in sorted({pod for record in records for pod in (*record.pods, *record.missing)}):
                own = self._run(client, runs, pod)
                log_points_again(client, own, [point for record in records for point in pod_points(pod, record)])

    def _run(self, client: MlflowClient, runs: dict[str, Run], pod: str | None) -> Run:
        """The run of the job, or of a pod in it, looked for once."""
        key = pod or ""
        if key not in runs:
            experiment_id = ensure_experiment(client, self.experiment, self.artifact_root)
            if pod is None:
                runs[key] = ensure_run(client, experiment_id, self.job_id, run_name(self.job_id))
            else:
                own = ensure_run(client, experiment_id, pod_run_id(self.job_id, pod), pod_run_name(self.job_id, pod))
                log_params_and_tags(client, own, {}, {PARENT: runs[""].info.run_id, POD: pod})
                runs[key] = own
        return runs[key]
