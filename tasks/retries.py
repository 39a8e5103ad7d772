"""What is worth another try: a service that did not answer. Bad data, bad settings and bugs are not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bitfount_model.errors import BitfountError, ConfinedModelError, PodError, StorageError, TrackingError

TRANSIENT = (TrackingError, ConnectionError, TimeoutError)
RETRIES = 3
FIRST_DELAY_SECONDS = 1


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed in a moment."""
    if isinstance(
        error, PodError | ConfinedModelError
    ):  # their causes stay where they were, and they say what those were
        return error.transient
    for cause in causes(error):
        if isinstance(cause, TRANSIENT):
            return True
        if isinstance(cause, OSError) and not isinstance(error, BitfountError):
            return True
        # SQLAlchemy says so of connections that broke; a wrong query is not among them.
        if getattr(cause, "connection_invalidated", False):
            return True
    return False


def retry_if_transient(task: Any, task_run: Any, state: Any) -> bool:
    """Prefect's question after a task failed."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and is_transient(error)


def is_storage(error: BaseException) -> bool:
    """Whether the place for artifacts failed, rather than the job."""
    return isinstance(error, StorageError)
