"""From a job to its first artifacts: the model's source, the schema, the rows' digest, the untrained weights."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

from bitfount_model import BitfountModelReference, BitfountSchema, DataStructure, PyTorchBitfountModel, codec
from bitfount_model.data import digest, source_from_config
from bitfount_model.errors import DataError, DataSourceError
from bitfount_model.mixins import PyTorchClassifierMixIn
from bitfount_model.serialization import dump
from bitfount_model.types import Problem
from tasks.job import LocalJob, splitter_of
from tasks.session import MODEL_FILE, reference_to, threads, training_arguments, user_code
from tasks.simulation.job_file import check_own_rows, own_rows_to_json
from tasks.step import reference, step
from tasks.store import Manifest, Store, local_path, read_manifest, write_manifest
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
    source = source_from_config(job.data)
    frame = datastructure.transform(source.read(datastructure.table_for(None), datastructure.query_for(None)))
    if frame.empty:
        raise DataSourceError(f"{source!r} has no rows: there is nothing to train on")
    schema = schema_for(job, datastructure, model_reference.model_class(), frame)
    schema.check(frame)
    with user_code(store, job):
        model = model_reference.build(datastructure=datastructure, schema=schema, **training_arguments(job))
        check_classes(model)
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
        "data_digest": digest(frame),
        "rows": {name: _rows(loader) for name, loader in _splits(model).items()},
        "columns": len(frame.columns),
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


def schema_for(
    job: LocalJob, datastructure: DataStructure, model_class: type[PyTorchBitfountModel], frame: Any
) -> BitfountSchema:
    """The job's schema file, or the schema of the rows with the job's types; a classifier's targets are categorical."""
    if "file" in job.schema:
        return BitfountSchema.load_from_file(job.schema["file"])
    kind_of = {column: kind for kind, columns in job.schema["types"].items() for column in columns}
    types: dict[str, list[str]] = {}
    for kind, columns in [*datastructure.force_stypes().items(), *job.schema["types"].items()]:
        types.setdefault(kind, []).extend(c for c in columns if kind_of.get(c, kind) == kind)
    if issubclass(model_class, PyTorchClassifierMixIn):
        stated = {column for columns in types.values() for column in columns}
        types.setdefault("categorical", []).extend(
            target for target in datastructure.targets if target in frame.columns and target not in stated
        )
    schema = BitfountSchema(job.name)
    schema.generate_full_schema(frame, force_stypes=types)
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
