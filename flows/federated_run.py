"""Runs a federated job in this process: with pods that run here too, or with pods that are served elsewhere."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bitfount_model.errors import ConfigurationError
from flows.pod_log import pod_log
from flows.run import Surroundings, tracked_at, tracking_of, ui_command, version_text
from flows.workspace import Workspace, continued, only_once
from tasks.federated.job_file import FederatedJobFile, federated_job_to_json, with_own_seed
from tasks.federated.round_record import RoundRecord, read_records
from tasks.layout import LOCK
from tasks.mlflow_client import without_password
from tasks.progress import listening
from tasks.store import Store, local_path

POD_LOG = "pods.log"
"""In the job's folder: what went wrong in pods that run in this process."""


def train(
    job: FederatedJobFile, job_id: str, tracking_uri: str | None, surroundings: Surroundings, place: str | None = None
) -> dict[str, Any]:
    """Runs or continues a federated job.

    Args:
        job: the job.
        job_id: names it.
        tracking_uri: of MLflow; None for the workspace's own.
        surroundings: what the command runs in.
        place: the store where deployed pods are met, unless the job says it.

    Returns:
        The summary: see `summarise`.

    Raises:
        QuorumError: too few pods answered.
    """
    started = time.monotonic()
    workspace = surroundings.workspace
    workspace.prepare()
    store = workspace.store(job_id)
    job = met_at(job, place)
    place = exchange_url(job, job_id, store)
    with only_once(Path(store.url)), only_one_modeller(job, place):
        job = continued(job, store, with_own_seed, federated_job_to_json)
        surroundings.view.say(f"job {job_id}: starting …")
        uri = tracking_uri or workspace.tracking_uri
        log = logging.FileHandler(workspace.folder(job_id) / POD_LOG, delay=True)
        with tracked_at(uri), surroundings.ready(), pod_log(log), listening(surroundings.view.on_event):
            from prefect import tags

            from flows.federated import federated_training
            from flows.stale_runs import end_stale_runs

            end_stale_runs("its process was stopped", flow=federated_training.name, name=job_id)
            with tags("federated", job.name):
                done: dict[str, Any] = federated_training(
                    federated_job_to_json(job),
                    job_id,
                    store.url,
                    place,
                    tracking_of(workspace, job.experiment, tracking_uri),
                )
    return summarise(job, job_id, workspace, tracking_uri, done, time.monotonic() - started)


def met_at(job: FederatedJobFile, place: str | None) -> FederatedJobFile:
    """The job with the store where deployed pods are met.

    Raises:
        ConfigurationError: nothing says where that is, or through which Prefect server pods are started.
    """
    if job.is_embedded:
        return job
    if not os.environ.get("PREFECT_API_URL"):
        raise ConfigurationError(
            f"the pods {', '.join(job.pods)} are started through a Prefect server: set PREFECT_API_URL to the one that they"
            " are served through, e.g. http://prefect.example.org:4200/api; or list the pods' .yaml files to run them here"
        )
    if not (job.store or place):
        raise ConfigurationError(
            "the job has no `store`: say where the modeller meets the pods, with the key `store`, --store or BITFOUNT_STORE:"
            " a folder that all of them see, or a URL such as s3://bucket/federation; the pods' files name the same"
        )
    return job if job.store else replace(job, store=place)


def exchange_url(job: FederatedJobFile, job_id: str, store: Store) -> str:
    """Where modeller and pods meet for one job: in the shared store, or in the job's own."""
    return f"{job.store.rstrip('/')}/{job_id}" if job.store else f"{store.url}/exchange"


@contextmanager
def only_one_modeller(job: FederatedJobFile, place: str) -> Iterator[None]:
    """Holds a deployed job's place in a shared folder, also against modellers with another --home.

    In a remote store nothing can be held: there the older session ends when it sees the newer one.
    """
    try:
        folder = local_path(Store(place), LOCK).parent if job.store else None
    except ConfigurationError:
        folder = None
    if folder is None:
        yield
        return
    with only_once(folder):
        yield


def summarise(
    job: FederatedJobFile,
    job_id: str,
    workspace: Workspace,
    tracking_uri: str | None,
    done: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """What a run gave, with paths.

    Returns:
        job_id, name, mlflow_run_id, metrics, test_rows, rounds, stopped_early, pods (name -> metrics, test_rows, rounds,
        missing), weights, weights_sha256, best_round, best_weights, predictions (pod -> path), comparison, report,
        registered, seconds, tracking_uri, ui_command.
    """
    store = workspace.store(job_id)
    records = read_records(store)
    fitted, evaluated = done["fit"], (done.get("evaluate") or {"values": {}})["values"]
    recorded = done.get("record")

    def path_of(artifact: dict[str, Any] | None) -> str | None:
        return None if artifact is None else store.location(artifact["name"])

    predicted = (done.get("predict") or {"files": {}})["files"]
    return {
        "job_id": job_id,
        "name": job.name,
        "mlflow_run_id": recorded["values"]["run_id"] if recorded else None,
        "metrics": evaluated.get("metrics", {}),
        "test_rows": evaluated.get("rows", 0),
        "rounds": len(records),
        "stopped_early": fitted["values"]["stopped_early"],
        "pods": {
            pod: pod_summary(pod, records, done)
            for pod in sorted({*done["initialise"]["values"]["pods"], *asked(records)})
        },
        "weights": path_of(fitted["files"]["weights"]),
        "weights_sha256": fitted["values"]["weights_sha256"],
        "best_round": fitted["values"]["best_round"],
        "best_weights": path_of(fitted["files"].get("best")),
        "predictions": {pod: path_of(artifact) for pod, artifact in predicted.items()},
        "comparison": (done.get("compare") or {"values": None})["values"],
        "report": path_of(done["report"]["files"]["report"]),
        "registered": version_text(done.get("register")),
        "seconds": round(seconds, 2),
        "tracking_uri": without_password(tracking_uri or workspace.tracking_uri),
        "ui_command": ui_command(workspace, tracking_uri),
    }


def pod_summary(pod: str, records: list[RoundRecord], done: dict[str, Any]) -> dict[str, Any]:
    """A pod's part in a job: its test metrics, how many rounds it took part in, and why it was missing where it was."""
    steps = {step: values_of(done, step).get("missing", {}) for step in ("initialise", "evaluate", "predict")}
    missing = {step: reasons[pod] for step, reasons in steps.items() if pod in reasons}
    missing |= {f"round {record.round_number}": record.missing[pod] for record in records if pod in record.missing}
    evaluated = values_of(done, "evaluate")
    return {
        "metrics": evaluated.get("by_pod", {}).get(pod, {}),
        "test_rows": evaluated.get("rows_by_pod", {}).get(pod, 0),
        "rounds": sum(pod in record.pods for record in records),
        "missing": missing,
    }


def values_of(done: dict[str, Any], step: str) -> dict[str, Any]:
    """What a step's manifest says; nothing, if the job has no such step."""
    values: dict[str, Any] = (done.get(step) or {"values": {}})["values"]
    return values


def asked(records: list[RoundRecord]) -> set[str]:
    """Every pod that was asked in a round."""
    return {pod for record in records for pod in (*record.pods, *record.missing)}
