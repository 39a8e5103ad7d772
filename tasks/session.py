"""From a job's artifacts back to a live model with its rows: what each step opens first."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bitfount_model import BaseSource, BitfountModelReference, BitfountSchema, DataStructure, PyTorchBitfountModel
from bitfount_model.data import digest, source_from_config
from bitfount_model.errors import BitfountError, ConfigurationError, DataError, StorageError, TrainingError
from tasks.job import LocalJob, check_job, source_of, splitter_of
from tasks.manifest import Manifest, read_file, read_manifest
from tasks.simulation.job_file import check_own_rows
from tasks.store import Store, local_path
from tasks.streamed import rows_folder, streamed_digest

MODEL_FILE = "model.py"
"""The model's source among a job's artifacts."""


@dataclass(frozen=True)
class Session:
    """A job that is open: its settings, its rows, and its model with untrained weights."""

    job: LocalJob
    store: Store
    manifest: Manifest
    source: BaseSource
    model: PyTorchBitfountModel

    @property
    def classes(self) -> list[Any] | None:
        """The names of the target's classes, or None for regression."""
        classes: list[Any] | None = self.manifest.values["classes"]
        return classes


def require(store: Store, step: str) -> Manifest:
    """A finished step's manifest.

    Raises:
        StorageError: the step has not finished.
    """
    manifest = read_manifest(store, step)
    if manifest is None:
        raise StorageError(
            f"the step {step!r} of the job in {store.url} has not finished; run the job again to continue it"
        )
    return manifest


def open_session(store: Store, data: Mapping[str, Any] | None = None) -> Session:
    """Opens a job that has been initialised.

    Args:
        store: the job's store.
        data: another source of rows than the job's own: then the rows are not split, and need not be the same as before.

    Raises:
        DataError: the job's rows have changed since it was initialised.
    """
    manifest = require(store, "initialise")
    job = kept_job(json.loads(read_file(store, manifest, "job")), data)
    source = source_of(job) if data is None else source_from_config(data)
    streamed = data is None and bool(manifest.values.get("streamed"))
    with user_code(store, job):
        model = build_model(job, store, manifest)
        if data is None:
            model.rows_folder = rows_folder(store) if streamed else None
            model.initialise_model(source, splitter_of(job))
        else:
            model.initialise_model(data_splitter=splitter_of(job))
    if data is None:
        found = streamed_digest(store) if streamed else digest(model.read(source))
        if found != manifest.values["data_digest"]:
            raise DataError(
                f"the rows of {source!r} have changed since the job {manifest.values['job_id']} began: their digest is"
                f" {found[:12]}…, it was {manifest.values['data_digest'][:12]}…. Start a new job for the new rows."
            )
    return Session(job, store, manifest, source, model)


def kept_job(value: dict[str, Any], data: Mapping[str, Any] | None) -> LocalJob:
    """The job that a store keeps; of one that was trained over pods, what applying its model to rows here needs.

    Raises:
        ConfigurationError: the job's rows are at its pods, and no others are given.
    """
    if "pods" not in value:
        return check_own_rows(value)
    if data is None:
        raise ConfigurationError(f"the rows of the job {value['name']!r} are at its pods: give rows of this machine")
    length = {
        key: number for key, number in value["training"].items() if not key.endswith("_between_parameter_updates")
    }
    columns = {key: setting for key, setting in value["datastructure"].items() if key not in ("table", "query")}
    shared = {key: value[key] for key in ("name", "experiment", "model", "metrics") if key in value}
    return check_job({**shared, "data": dict(data), "datastructure": columns, "training": length})


def build_model(job: LocalJob, store: Store, manifest: Manifest) -> PyTorchBitfountModel:
    """The job's model, built from the source that the job keeps."""
    read_file(store, manifest, "model")
    model = reference_to(local_path(store, MODEL_FILE), job).build(
        datastructure=DataStructure(**job.datastructure),
        schema=BitfountSchema.loads(read_file(store, manifest, "schema").decode()),
        **training_arguments(job),
    )
    model.num_workers = job.training.get("workers", 0)
    return model


def reference_to(path: Path, job: LocalJob) -> BitfountModelReference:
    """A reference to a model file with the job's hyperparameters."""
    return BitfountModelReference(
        path, hyperparameters=job.model["hyperparameters"], class_name=job.model.get("class_name")
    )


def training_arguments(job: LocalJob) -> dict[str, Any]:
    """The model's constructor arguments that the job's training section holds."""
    names = ("epochs", "steps", "batch_size", "seed", "param_clipping")
    return {name: job.training[name] for name in names if job.training.get(name) is not None}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Fixes torch's threads for a step: the last bits of sums depend on them."""
    before = torch.get_num_threads()
    if before == count:  # setting them costs, even to what they are
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def user_code(store: Store, job: LocalJob) -> Iterator[None]:
    """What the user's own code raises ends as one error that names the line in the model file.

    Raises:
        TrainingError: from anything that is not ours; a step is retried where the cause is worth it.
    """
    try:
        yield
    except (BitfountError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise TrainingError(f"the model failed{_place(store, job, error)}: {type(error).__name__}: {error}") from error


def _place(store: Store, job: LocalJob, error: BaseException) -> str:
    """The innermost line of the model file in the traceback."""
    path = str(local_path(store, MODEL_FILE))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    if not frames:
        return ""
    original = job.model.get("file") or job.model["reference"]
    return f" in {frames[-1].name} ({original}, line {frames[-1].lineno}: {frames[-1].line})"
