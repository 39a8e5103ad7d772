"""From a federated job that runs to its page in Prefect's UI: how far it is, and a table of its rounds and pods.

Both are brought up to date in the background, every few seconds: Prefect's API is never on the way of a round.
"""

from __future__ import annotations

import contextvars
import json
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactUpdate

from bitfount_model.federation.job import FederatedJob
from tasks.prefect_errors import UNREACHABLE
from tasks.progress import Listener

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 2.0
"""Rounds that close within it share a request."""
CLOSE_SECONDS = 5.0
MOST_ROWS = 200
"""The newest rounds; a page of thousands helps nobody."""


@contextmanager
def pages(job: FederatedJob) -> Iterator[Listener]:
    """A listener to `round_closed` that keeps the flow run's artifacts `progress` and `rounds` up to date."""
    page = RoundsPage(job)
    # Artifacts belong to the flow run of the context that they are made in.
    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(page.work,), name="prefect-pages", daemon=True)
    thread.start()
    try:
        yield page.on_event
    finally:
        page.close()
        thread.join(CLOSE_SECONDS)


class RoundsPage:
    """The artifacts of one flow run.

    Args:
        job: whose rounds are shown.
    """

    def __init__(self, job: FederatedJob) -> None:
        self._job = job
        self._rows: list[dict[str, str]] = []
        self._round = 0
        self._artifacts: tuple[UUID, UUID] | None = None
        self._changed = threading.Condition()
        self._is_new = False
        self._closing = False

    def on_event(self, event: str, values: Mapping[str, Any]) -> None:
        """Takes a closed round's record and returns at once."""
        if event == "round_closed":
            with self._changed:
                self._round = int(values["round_number"])
                self._rows = [*self._rows[1 - MOST_ROWS :], round_row(self._job.pods, values)]
                self._is_new = True
                self._changed.notify_all()

    def close(self) -> None:
        """Sends what is left, and no more."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def work(self) -> None:
        """Brings the artifacts up to date until the page is closed."""
        with get_client(sync_client=True) as client:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._is_new or self._closing)
                    if not self._is_new:
                        return
                    rows, progress, self._is_new = list(self._rows), 100 * self._round / self._job.rounds, False
                try:
                    self._show(client, rows, progress)
                except UNREACHABLE as error:
                    logger.warning("the flow run's page in Prefect is behind: %s", error)
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, timeout=PAUSE_SECONDS)

    def _show(self, client: SyncPrefectClient, rows: list[dict[str, str]], progress: float) -> None:
        if self._artifacts is None:
            job_id = self._job.job_id
            bar = create_progress_artifact(progress, key="progress", description=f"Progress of {job_id}")
            table = create_table_artifact(rows, key="rounds", description=f"Rounds of {job_id}")
            self._artifacts = (cast(UUID, bar), cast(UUID, table))  # coroutines only where a loop runs
            return
        bar, table = self._artifacts
        client.update_artifact(bar, ArtifactUpdate(data=progress))
        client.update_artifact(table, ArtifactUpdate(data=json.dumps(rows)))


def round_row(pods: tuple[str, ...], record: Mapping[str, Any]) -> dict[str, str]:
    """One round as a row of a table.

    Args:
        pods: of the job.
        record: as `RoundRecord.to_json` gives it.
    """
    states = {pod: pod_state(pod, record) for pod in pods}
    metrics = {name: "undefined" if value is None else f"{value:.4f}" for name, value in record["metrics"].items()}
    return {"round": str(record["round_number"]), **states, **metrics, "seconds": f"{record['seconds']:.2f}"}


def pod_state(pod: str, record: Mapping[str, Any]) -> str:
    """What a pod did in a round, in a few words."""
    if pod in record["pods"]:
        return f"trained in {record['fit_seconds'][pod]:.2f} s"
    if pod in record["missing"]:
        return f"missing: {record['missing'][pod].splitlines()[0][:200]}"
    return "not asked"
