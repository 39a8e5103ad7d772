"""From a training that runs to charts that grow: epochs go to MLflow in the background, and never hold the training up.

What does not arrive is no loss: `record_job` replays the job's history, and a value is logged once whoever comes first.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from bitfount_model.errors import BitfountError, ConfigurationError
from tasks.manifest import read_manifest
from tasks.mlflow_client import connect, ensure_experiment, ensure_run, log_points, tracking_errors
from tasks.record import recording
from tasks.run_contents import epoch_points, run_name
from tasks.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 30.0
REST_PER_WORK = 20
"""A pause is so many times as long as the processor worked for the last requests, which held up training in this process."""
LONGEST_PAUSE_SECONDS = 10.0


class LiveMetrics:
    """A thread that logs the records of epochs to the job's MLflow run.

    Args:
        store: the job's store; the step `initialise` has finished.
        tracking_uri: as for `record_job`.
        experiment: as for `record_job`.
        artifact_root: as for `record_job`.

    Raises:
        ConfigurationError: the job has not been initialised.
    """

    pause_seconds = 0.5
    """Records that come within it share requests."""

    def __init__(self, store: Store, *, tracking_uri: str, experiment: str, artifact_root: str | None = None) -> None:
        manifest = read_manifest(store, "initialise")
        if manifest is None:
            raise ConfigurationError(f"the job in {store.url} has not been initialised: it has no run for metrics")
        self.store = store
        self.job_id: str = manifest.values["job_id"]
        self.tracking_uri = tracking_uri
        self.experiment = experiment
        self.artifact_root = artifact_root
        self._pending: list[Mapping[str, Any]] = []
        self._changed = threading.Condition()
        self._closing = False
        # A daemon: a server that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._work, name="live-metrics", daemon=True)
        self._thread.start()

    def put(self, record: Mapping[str, Any]) -> None:
        """Takes an epoch's record (`epoch`, `train_loss`, `val_stats`) and returns at once."""
        with self._changed:
            self._pending.append(dict(record))
            self._changed.notify_all()

    def close(self, timeout: float = 5.0) -> bool:
        """Tries once more to log what is left, and ends the thread.

        Args:
            timeout: how long to wait for it, in seconds.

        Returns:
            Whether MLflow has everything that was put.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive() and not self._pending

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _work(self) -> None:
        client: MlflowClient | None = None
        wait, told = FIRST_WAIT_SECONDS, False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closing)
                batch, last = list(self._pending), self._closing
            if not batch:
                return
            began = time.thread_time()
            try:
                client = client or connect(self.tracking_uri)
                self.log(client, batch)
            except BitfountError as error:
                if not told:
                    logger.warning("metrics will appear in MLflow later: %s", error)
                if last:
                    return
                self._pause(wait)
                wait, told = min(2 * wait, LONGEST_WAIT_SECONDS), True
                continue
            with self._changed:
                del self._pending[: len(batch)]
            rest = min(REST_PER_WORK * (time.thread_time() - began), LONGEST_PAUSE_SECONDS)
            self._pause(max(self.pause_seconds, rest))
            wait, told = FIRST_WAIT_SECONDS, False

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing, timeout=seconds)

    def log(self, client: MlflowClient, batch: list[Mapping[str, Any]]) -> None:
        """Sends some records to MLflow; those that were sent before change nothing.

        Raises:
            TrackingError: MLflow cannot be reached, or refuses.
        """
        with tracking_errors(self.tracking_uri), recording(self.store):
            experiment_id = ensure_experiment(client, self.experiment, self.artifact_root)
            run = ensure_run(client, experiment_id, self.job_id, run_name(self.job_id))
            log_points(client, run, [point for record in batch for point in epoch_points(record)])
