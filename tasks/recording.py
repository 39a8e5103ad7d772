"""From a job's artifacts to MLflow: as a step that replays them, and live while training runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from bitfount_model.errors import BitfountError
from tasks.live_metrics import LiveMetrics
from tasks.progress import Listener
from tasks.record import mark_failed, record_job
from tasks.step import reference, step
from tasks.store import Store

CLOSE_SECONDS = 10


@dataclass(frozen=True)
class Tracking:
    """Where MLflow is.

    Attributes:
        uri: of the tracking server or database.
        experiment: its name.
        artifact_root: where artifacts go when a database is used without a server.
    """

    uri: str
    experiment: str
    artifact_root: str | None = None


@step("record")
def record(store_url: str, tracking: dict[str, Any], flow_run_id: str | None, steps: list[str]) -> dict[str, Any]:
    """The recording step, as a task: see `record_job`.

    Args:
        store_url: the job's store.
        tracking: the fields of `Tracking`.
        flow_run_id: of the Prefect flow run that works on the job.
        steps: what the job consists of; when all of them are there, the MLflow run is finished.
    """
    where = Tracking(**tracking)
    manifest = record_job(
        Store(store_url),
        tracking_uri=where.uri,
        experiment=where.experiment,
        artifact_root=where.artifact_root,
        prefect_run=flow_run_id,
        steps=steps,
    )
    return reference(manifest)


def record_end(store_url: str, tracking: Tracking, reason: str, *, interrupted: bool) -> None:
    """Marks the job's MLflow run as failed or interrupted; where MLflow cannot be reached, the error itself matters more."""
    # An interrupt in the middle of an import leaves a package that is half there.
    with suppress(BitfountError, ImportError, AttributeError):
        mark_failed(
            Store(store_url),
            tracking_uri=tracking.uri,
            experiment=tracking.experiment,
            artifact_root=tracking.artifact_root,
            reason=reason,
            status="KILLED" if interrupted else "FAILED",
        )


@contextmanager
def live_metrics(
    store_url: str, tracking: Tracking, kind: type[LiveMetrics] = LiveMetrics, of: str = "epoch"
) -> Iterator[Listener]:
    """A listener that sends records to MLflow while training runs; what it cannot send is replayed by `record`.

    Args:
        store_url: the job's store.
        tracking: where MLflow is.
        kind: of records.
        of: the event that brings one.
    """
    live = kind(
        Store(store_url),
        tracking_uri=tracking.uri,
        experiment=tracking.experiment,
        artifact_root=tracking.artifact_root,
    )

    def listener(event: str, values: dict[str, Any]) -> None:
        if event == of:
            live.put(values)

    try:
        yield listener
    finally:
        live.close(CLOSE_SECONDS)
