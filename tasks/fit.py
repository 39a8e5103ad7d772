"""From untrained to trained weights; killed and started again, it goes on after the last pass over the rows."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitfount_model import Metric, codec
from bitfount_model.batch_progress import BatchCount, BatchProgress
from bitfount_model.errors import ConfigurationError
from bitfount_model.fit_course import EpochRecord
from bitfount_model.metrics import default_metrics
from bitfount_model.several_processes import require_forks
from bitfount_model.weights_files import to_safetensors
from tasks.epochs import append_epoch
from tasks.layout import EPOCHS
from tasks.manifest import Manifest, read_file, read_manifest, write_manifest
from tasks.progress import tell
from tasks.session import Session, open_session, threads, user_code
from tasks.step import reference, step
from tasks.store import Store, local_path


@step("fit")
def fit(store_url: str) -> dict[str, Any]:
    """The training step, as a task: see `train`."""
    return reference(train(Store(store_url)))


def train(store: Store) -> Manifest:
    """Trains the job's model and keeps weights and history, unless that has been done.

    A checkpoint beside the artifacts is renewed after each pass over the rows, and removed when the weights are kept.
    """
    if done := read_manifest(store, "fit"):
        return done
    session = open_session(store)
    checkpoint = local_path(store, "scratch/fit.ckpt")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    model = session.model
    model.update_params(codec.decode(read_file(store, session.manifest, "weights")).params)
    epochs = local_path(store, EPOCHS)
    if not checkpoint.exists():
        epochs.unlink(missing_ok=True)

    def report(record: EpochRecord) -> None:
        append_epoch(epochs, plain(record))
        tell("epoch", plain(record))

    def on_batch(count: BatchCount) -> None:
        tell("batch", asdict(count))

    started = time.perf_counter()
    with threads(session.job.training["threads"]), user_code(session.store, session.job):
        require_forks(model.trainer_for_fit())
        records = model.fit_locally(
            None,
            metrics=validation_metrics(session),
            report=report,
            checkpoint=checkpoint,
            callbacks=[BatchProgress(on_batch)],
        )
    return keep(session, records, time.perf_counter() - started, checkpoint)


def keep(session: Session, records: list[EpochRecord], seconds: float, checkpoint: Path) -> Manifest:
    """Writes what training gave, then removes its checkpoint."""
    store, model = session.store, session.model
    weights = store.put("fit/weights.safetensors", to_safetensors(model.get_param_states(), model.preparation))
    epochs = [plain(record) for record in records]
    history = store.put("fit/history.json", json.dumps(epochs, indent=1, allow_nan=False).encode())
    values = {
        "seconds": round(seconds, 3),
        "epochs_trained": len(records),
        "val_stats": epochs[-1]["val_stats"] if epochs else {},
        "weights_sha256": weights.sha256,
    }
    manifest = write_manifest(store, Manifest("fit", {"weights": weights, "history": history}, values))
    for scratch in (checkpoint, local_path(store, EPOCHS)):
        scratch.unlink(missing_ok=True)
    return manifest


def plain(record: EpochRecord) -> dict[str, Any]:
    """An epoch's record as JSON, which knows no NaN: a metric that is not defined is None."""
    return {
        **asdict(record),
        "train_loss": finite(record.train_loss),
        "val_stats": {name: finite(value) for name, value in record.val_stats.items()},
    }


def finite(value: float | None) -> float | None:
    """The value, or None where it is not finite."""
    return value if value is not None and math.isfinite(value) else None


def validation_metrics(session: Session) -> dict[str, Metric]:
    """The metrics to compute after each epoch: the problem's own, or those of them that the job names.

    Raises:
        ConfigurationError: the job names one that there is not.
    """
    own = session.model.metrics.metrics if session.model.metrics else None
    known = own or default_metrics(session.model.problem)
    wanted = session.job.metrics
    if wanted is None:
        return dict(known)
    if missing := [name for name in wanted if name not in known]:
        raise ConfigurationError(f"metrics: no {', '.join(missing)} for this problem; there are {', '.join(known)}")
    return {name: known[name] for name in wanted}
