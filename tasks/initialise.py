"""From a job to its first artifacts: the model's source, the schema, the rows' digest, the untrained weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from bitfount_model import BitfountModelReference, BitfountSchema, DataStructure, PyTorchBitfountModel, codec
from bitfount_model.data import BaseSource, SemanticType, digest, source_from_config
from bitfount_model.errors import DataError, DataSourceError
from bitfount_model.mixins import PyTorchClassifierMixIn
from bitfount_model.serialization import dump
from bitfount_model.types import Problem
from tasks.job import LocalJob, source_of, splitter_of
from tasks.manifest import Manifest, read_manifest, write_manifest
from tasks.session import MODEL_FILE, reference_to, threads, training_arguments, user_code
from tasks.simulation.job_file import check_own_rows, own_rows_to_json
from tasks.step import reference, step
from tasks.store import Store, local_path
from tasks.streamed import is_streamed, rows_folder, streamed_digest, streamed_table
from tasks.versions import installed_versions


@step("initialise_model")
def initialise_model(store_url: str, job: dict[str, Any], job_id: str) -> dict[str, Any]:
    """The first step, as a task: see `initialise`."""
    return reference(initialise(Store(store_url), check_own_rows(job), job_id))


def initialise(store: Store, job: LocalJob, job_id: str) -> Manifest:
    """Checks model and rows against each other and keeps all that later steps need, unless that has been done.

    Raises:
        BitfountError: the model, the rows or the schema cannot be used.
    """
    if done := read_manifest(store, "initialise"):
        return done
    with threads(job.training["threads"]):
        return _initialise(store, job, job_id)


def _initialise(store: Store, job: LocalJob, job_id: str) -> Manifest:
    files = {
        "job": store.put("job.json", as_json(own_rows_to_json(job))),
        "model": store.put(MODEL_FILE, _model_source(job)),
    }
    model_reference = reference_to(local_path(store, MODEL_FILE), job)
    datastructure = DataStructure(**job.datastructure)
    source, streamed = source_of(job), is_streamed(job)
    rows = StreamedRows(job, store) if streamed else HeldRows(source, datastructure)
    if rows.is_empty():
        raise DataSourceError(f"{source!r} has no rows: there is nothing to train on")
    schema = schema_for(job, datastructure, model_reference.model_class(), rows)
    with user_code(store, job):
        model = model_reference.build(datastructure=datastructure, schema=schema, **training_arguments(job))
        check_classes(model)
        model.rows_folder = rows_folder(store) if streamed else None
        model.initialise_model(source, splitter_of(job))
    if job.predict:  # what cannot be predicted is better known before training than after it
        model.prediction_loader(source_from_config(job.predict["data"]))
    if job.training["pretrained_file"]:
        model.deserialize(job.training["pretrained_file"])
    states = model.get_param_states()
    files["schema"] = store.put("schema.yaml", schema.dumps().encode())
    files["datastructure"] = store.put("datastructure.json", as_json(dump(datastructure)))
    files["weights"] = store.put("initialise/weights.safetensors", codec.encode(states))
    values = {
        "job_id": job_id,
        "name": job.name,
        "experiment": job.experiment,
        "model_class": type(model).__name__,
        "hyperparameters": job.model["hyperparameters"],
        "problem": model.problem.value,
        "source": source.describe(),
        "data_digest": rows.digest(),
        "streamed": streamed,
        "rows": {name: _rows(loader) for name, loader in _splits(model).items()},
        "columns": len(rows.columns()),
        "features": model.datastructure.input_size,
        "targets": datastructure.targets,
        "classes": class_names(model),
        "seed": job.training["seed"],
        "batch_size": model.batch_size,
        "epochs": model.epochs,
        "steps": model.steps,
        "parameters_count": sum(tensor.numel() for tensor in states.values()),
        "code_version": version("bitfount-flows"),
        "packages": installed_versions(),
    }
    return write_manifest(store, Manifest("initialise", files, values))


class HeldRows:
    """A job's rows as one table in memory."""

    def __init__(self, source: BaseSource, datastructure: DataStructure) -> None:
        self._frame = datastructure.transform(source.read(datastructure.table_for(None), datastructure.query_for(None)))

    def is_empty(self) -> bool:
        """Whether there are none."""
        return bool(self._frame.empty)

    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self._frame.columns)

    def schema_of_file(self, path: str) -> BitfountSchema:
        """The schema of a file, against which the rows are checked."""
        schema = BitfountSchema.load_from_file(path)
        schema.check(self._frame)
        return schema

    def describe_to(self, schema: BitfountSchema, types: Mapping[str | SemanticType, Sequence[str]]) -> None:
        """Fills a schema with the rows' columns."""
        schema.generate_full_schema(self._frame, force_stypes=types)

    def digest(self) -> str:
        """Identifies the rows."""
        return digest(self._frame)


class StreamedRows:
    """A job's rows as chunks of a table that is never held; what is asked of all rows takes a pass over them."""

    def __init__(self, job: LocalJob, store: Store) -> None:
        self._table = streamed_table(job)
        self._store = store
        self._first = next(self._table.chunks())

    def is_empty(self) -> bool:
        """Whether there are none."""
        return bool(self._first.empty)

    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self._first.columns)

    def schema_of_file(self, path: str) -> BitfountSchema:
        """The schema of a file, against which the rows are checked."""
        schema = BitfountSchema.load_from_file(path)
        for chunk in self._table.chunks():
            schema.check(chunk)
        return schema

    def describe_to(self, schema: BitfountSchema, types: Mapping[str | SemanticType, Sequence[str]]) -> None:
        """Fills a schema with the rows' columns."""
        schema.generate_from_chunks(self._table.chunks(), force_stypes=types)

    def digest(self) -> str:
        """Identifies the rows, once they are encoded."""
        return streamed_digest(self._store)


def schema_for(
    job: LocalJob,
    datastructure: DataStructure,
    model_class: type[PyTorchBitfountModel],
    rows: HeldRows | StreamedRows,
) -> BitfountSchema:
    """The job's schema file, or the schema of the rows with the job's types; a classifier's targets are categorical."""
    if "file" in job.schema:
        return rows.schema_of_file(job.schema["file"])
    kind_of = {column: kind for kind, columns in job.schema["types"].items() for column in columns}
    types: dict[str | SemanticType, list[str]] = {}
    for kind, columns in [*datastructure.force_stypes().items(), *job.schema["types"].items()]:
        types.setdefault(kind, []).extend(c for c in columns if kind_of.get(c, kind) == kind)
    if issubclass(model_class, PyTorchClassifierMixIn):
        stated = {column for columns in types.values() for column in columns}
        types.setdefault("categorical", []).extend(
            target for target in datastructure.targets if target in rows.columns() and target not in stated
        )
    schema = BitfountSchema(job.name)
    rows.describe_to(schema, types)
    return schema


def check_classes(model: PyTorchBitfountModel) -> None:
    """Refuses to train a classifier where there is nothing to tell apart.

    Raises:
        DataError: the target has one class.
    """
    names = class_names(model)
    if model.problem is Problem.BINARY and names is not None and len(names) < 2:
        raise DataError(
            f"the target {model.datastructure.targets[0]!r} has one class, {names}: a classifier needs two. Use rows of several"
            " classes, or give a schema file that knows the others."
        )


def class_names(model: PyTorchBitfountModel) -> list[Any] | None:
    """The classes' names in the order of their numbers; the labels' for several; None for regression."""
    if model.problem is Problem.REGRESSION:
        return None
    if model.problem is Problem.MULTILABEL:
        return list(model.datastructure.targets)
    return [str(category) for category in model.schema.column(model.datastructure.targets[0]).categories]


def _model_source(job: LocalJob) -> bytes:
    where = job.model.get("file") or job.model["reference"]
    return BitfountModelReference(where, model_version=job.model["version"]).source()


def _splits(model: PyTorchBitfountModel) -> dict[str, Any]:
    return {"train": model.train_dl, "validation": model.validation_dl, "test": model.test_dl}


def _rows(loader: Any) -> int:
    return 0 if loader is None else int(loader.rows)


def as_json(value: Any) -> bytes:
    """A JSON file as people read it; the same bytes for the same value."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode()
