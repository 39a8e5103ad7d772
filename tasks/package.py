"""From a trained job to a model that MLflow can serve: what its folder needs beside source, schema and weights.

The model is code and safetensors: `tasks/served_model.py` is copied, nothing is pickled. Its input example is made of the
columns' means and first categories, so that no row leaves with it.
"""

from __future__ import annotations

import io
import tempfile
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bitfount_model.data import Column, SemanticType, profile_of, row_digests, split_rows
from tasks import registered
from tasks.initialise import as_json
from tasks.job import splitter_of
from tasks.manifest import Manifest, read_file, read_manifest, write_manifest
from tasks.registered import DESCRIPTION, FILES, OpenModel, watched_columns
from tasks.session import open_session, require
from tasks.step import reference, step
from tasks.store import Store

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

CODE = Path(__file__).with_name("served_model.py")
REQUIREMENTS = (
    "bitfount-flows",
    "mlflow",
    "numpy",
    "pandas",
    "pytorch-lightning",
    "safetensors",
    "torch",
    "torchmetrics",
)
ARGUMENTS = ("epochs", "steps", "batch_size", "seed")
"""Of the model's constructor, that a job gives."""


@step("package")
def package(store_url: str) -> dict[str, Any]:
    """The packaging step, as a task: see `package_job`."""
    return reference(package_job(Store(store_url)))


def package_job(store: Store) -> Manifest:
    """Keeps the files that make a trained job's model one that MLflow serves, unless that has been done.

    Args:
        store: the job's own; its step `fit` has finished.

    Raises:
        StorageError: the job's files cannot be read or written.
        BitfountError: the model cannot be opened.
    """
    if done := read_manifest(store, "package"):
        return done
    with tempfile.TemporaryDirectory(prefix="bitfount-") as scratch:
        folder = Path(scratch)
        for name, content in model_files(store).items():
            (folder / name).write_bytes(content)
        made = servable_files(registered.open_model(folder), folder, require(store, "fit").values["weights_sha256"])
    began = require(store, "initialise").values
    if "rows_by_pod" not in began and not began.get("streamed"):
        made |= rows_files(store)
    files = {name: store.put(f"package/{name}", content) for name, content in made.items()}
    return write_manifest(store, Manifest("package", files, {}))


def model_files(store: Store) -> dict[str, bytes]:
    """The files that a model is opened from, by name."""
    made, fitted = require(store, "initialise"), require(store, "fit")
    return {
        registered.SOURCE: read_file(store, made, "model"),
        registered.SCHEMA: read_file(store, made, "schema"),
        registered.DATASTRUCTURE: read_file(store, made, "datastructure"),
        registered.WEIGHTS: read_file(store, fitted, "weights"),
        DESCRIPTION: as_json(description(store)),
    }


def description(store: Store) -> dict[str, Any]:
    """What `tasks.registered.open_model` needs beside the other files."""
    made = require(store, "initialise").values
    return {
        "class_name": made["model_class"],
        "hyperparameters": made["hyperparameters"],
        "arguments": {name: made[name] for name in ARGUMENTS if made[name] is not None},
        "classes": made["classes"],
        "problem": made["problem"],
        "targets": made["targets"],
        "job_id": made["job_id"],
        "data_digest": made["data_digest"],
        "rows": made["rows"],
        "seed": made["seed"],
        "code_version": made["code_version"],
    }


def rows_files(store: Store) -> dict[str, bytes]:
    """What later rows are compared with, of rows that are held in memory, by name: see `tasks.registered.PROFILE`.

    Digests are of features and targets. Those of the rows that the model has learned from, or was chosen by, are apart.
    """
    session = open_session(store)
    model, splitter = session.model, splitter_of(session.job)
    frame = model.read(session.source)
    columns = watched_columns(model)
    digests = row_digests(frame, model.schema, columns)
    split = split_rows(frame, splitter, model.datastructure, model.seed)
    arrays = io.BytesIO()
    np.savez(arrays, all=np.unique(digests), learned=np.unique(np.delete(digests, split.test)))
    profile = profile_of(frame, model.schema, columns)
    return {registered.PROFILE: as_json(profile.to_json()), registered.ROWS: arrays.getvalue()}


def servable_files(opened: OpenModel, folder: Path, weights_sha256: str) -> dict[str, bytes]:
    """What MLflow needs beside the model's own files, by name; the same bytes for the same model.

    Args:
        opened: the model.
        folder: of its own files.
        weights_sha256: identifies it.
    """
    from mlflow import pyfunc
    from mlflow.models import Model

    example = input_example(opened)
    target = folder / "servable"
    pyfunc.save_model(
        str(target),
        python_model=str(CODE),
        signature=None if example is None else signature(opened, example),
        input_example=example,
        pip_requirements=[f"{name}=={version(name)}" for name in REQUIREMENTS],
    )
    described = Model.load(str(target)).to_dict()
    described["model_uuid"] = uuid.uuid5(uuid.NAMESPACE_OID, weights_sha256).hex
    del described["utc_time_created"]
    served = described["flavors"]["python_function"]
    served["model_code_path"] = CODE.name
    served["artifacts"] = {name: {"path": name, "uri": name} for name in FILES}
    Model.from_dict(described).save(str(target / "MLmodel"))
    made = {path.name: path.read_bytes() for path in sorted(target.iterdir()) if path.is_file()}
    return {**made, DESCRIPTION: (folder / DESCRIPTION).read_bytes()}


def input_example(opened: OpenModel) -> pd.DataFrame | None:
    """One row of typical values, `(1, columns)`; None where the raw columns are not those that the model sees."""
    structure, preparation = opened.model.datastructure, opened.model.preparation
    columns = raw_columns(opened)
    if (
        structure.dataset_transforms
        or preparation is None
        or any(c.semantic_type is SemanticType.IMAGE for c in columns)
    ):
        return None
    values: dict[str, Any] = {}
    for column in columns:
        if column.name in preparation.categorical:
            values[column.name] = (preparation.categorical[column.name] or (None,))[0]
        else:
            values[column.name] = float(f"{preparation.continuous[column.name][0]:.6g}")
    return pd.DataFrame([values])


def raw_columns(opened: OpenModel) -> list[Column]:
    """The columns that a row to predict must have."""
    seen = opened.model.datastructure.feature_columns(opened.model.schema)
    return [opened.model.schema.column(name) for name in (*seen.continuous, *seen.categorical, *seen.images)]


def signature(opened: OpenModel, example: pd.DataFrame) -> ModelSignature:
    """The columns in, with the types that JSON can hold, and the columns out."""
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types import ColSpec, Schema

    columns = Schema([ColSpec(served_type(column), column.name) for column in raw_columns(opened)])
    predictions = opened.table(example).drop(columns="key")
    return ModelSignature(columns, infer_signature(predictions).inputs)


def served_type(column: Column) -> str:
    """MLflow's name of a column's type; numbers are `double`, so that one may be missing."""
    if column.semantic_type is SemanticType.CONTINUOUS:
        return "datetime" if column.dtype.startswith("datetime") else "double"
    kinds = {type(category) for category in column.categories}
    if kinds == {bool}:
        return "boolean"
    return "double" if kinds and kinds <= {int, float} else "string"
