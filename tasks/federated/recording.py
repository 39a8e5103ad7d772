"""From a federated job's records to MLflow, as steps of its flow."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from bitfount_model.errors import BitfountError, TrackingError
from tasks.federated.record import mark_ended, record_federation
from tasks.progress import tell
from tasks.recording import Tracking
from tasks.step import reference, step
from tasks.store import Store


@step("record")
def record(store_url: str, tracking: dict[str, Any], flow_run_id: str | None, steps: list[str]) -> dict[str, Any]:
    """The recording step, as a task: see `record_federation`."""
    return reference(record_federation(Store(store_url), Tracking(**tracking), flow_run_id, steps))


def recorded(
    store_url: str, tracking: dict[str, Any], flow_run_id: str | None, steps: list[str]
) -> dict[str, Any] | None:
    """What MLflow has of the job after this call; None, with a word to the user, where it cannot be reached."""
    try:
        manifest: dict[str, Any] = record(store_url, tracking, flow_run_id, steps)
    except TrackingError as error:
        tell("tracking", {"error": str(error)})
        return None
    return manifest


def record_end(store: Store, tracking: Tracking, reason: str, *, interrupted: bool) -> None:
    """Marks the job's runs as failed or interrupted; where MLflow cannot be reached, the error itself matters more."""
    # An interrupt in the middle of an import leaves a package that is half there.
    with suppress(BitfountError, ImportError, AttributeError):
        mark_ended(store, tracking, reason, interrupted=interrupted)
