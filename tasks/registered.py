"""A registered model: fetched from MLflow's registry, and opened from its folder as a live model."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pandas as pd

from bitfount_model import BaseSource, BitfountModelReference, BitfountSchema, DataStructure, PyTorchBitfountModel
from bitfount_model.data import DataFrameSource
from bitfount_model.errors import ConfigurationError, ModelFileError, TrainingError
from bitfount_model.files import write_atomically
from bitfount_model.serialization import load
from bitfount_model.types import PredictReturnType
from tasks.mlflow_client import connect, tracking_errors, with_password, without_password
from tasks.results import prediction_table

if TYPE_CHECKING:  # importing MLflow takes two seconds
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

MODEL_FOLDER = "model"
"""The folder of a run's artifacts that holds a model."""
DESCRIPTION = "model.json"
"""What the other files of a model's folder do not say: class, hyperparameters, training settings, classes."""
SOURCE, SCHEMA, DATASTRUCTURE, WEIGHTS = "model.py", "schema.yaml", "datastructure.json", "weights.safetensors"
FILES = (SOURCE, SCHEMA, DATASTRUCTURE, WEIGHTS, DESCRIPTION)
"""All that a model is opened from."""
PROFILE, ROWS = "profile.json", "rows.npz"
"""How the training table was distributed, and which rows it had: of models that were trained on rows of one machine."""
REFERENCE = re.compile(r"(?P<name>[^@/]+)(@(?P<alias>[^@/]+)|/(?P<version>[0-9]+))?")


@dataclass(frozen=True)
class RegisteredModel:
    """One version of a registered model, with its files here.

    Attributes:
        name: of the registered model.
        version: its number.
        run_id: of the MLflow run that trained it.
        folder: where its files are.
    """

    name: str
    version: int
    run_id: str
    folder: Path


@dataclass(frozen=True)
class OpenModel:
    """A model with its weights, ready to predict.

    Attributes:
        model: initialised, its weights loaded.
        classes: names of the classes or labels, None for regression.
        description: see `DESCRIPTION`.
    """

    model: PyTorchBitfountModel
    classes: list[str] | None
    description: Mapping[str, Any]

    def table(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Predicts every row of a table of raw columns, in order.

        Args:
            frame: the columns that the model was trained on, by name; the target need not be there.

        Returns:
            One row a row; columns as `tasks.results.prediction_table`.

        Raises:
            DataError: columns are missing or cannot be encoded.
        """
        return self.predictions(DataFrameSource(frame))

    def predictions(self, source: BaseSource) -> pd.DataFrame:
        """As `table`, for the rows of a source."""
        result = self.model.predict(source)
        if not isinstance(result, PredictReturnType):
            raise TrainingError(f"predict on local rows returned a {type(result).__name__}, wanted predictions")
        return prediction_table(
            result.preds,
            result.keys,
            problem=self.model.problem,
            targets=self.model.datastructure.targets,
            classes=self.classes,
        )


def open_model(folder: Path) -> OpenModel:
    """Opens a model from its folder; its source is run.

    Args:
        folder: holds `FILES`.

    Raises:
        ModelFileError: a file is missing or is not what the project wrote.
        BitfountError: the source, the schema or the weights cannot be used.
    """
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise ModelFileError(
            f"{folder} is no folder of a registered model: {', '.join(missing)} is missing; register a job to make one"
        )
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        reference = BitfountModelReference(
            folder / SOURCE, hyperparameters=description["hyperparameters"], class_name=description["class_name"]
        )
        arguments, classes = dict(description["arguments"]), description["classes"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{folder / DESCRIPTION} is not what registering a job writes: {error!r}") from error
    structure = load(json.loads((folder / DATASTRUCTURE).read_text(encoding="utf-8")), {"DataStructure": DataStructure})
    schema = BitfountSchema.load_from_file(folder / SCHEMA)
    model = reference.build(datastructure=structure, schema=schema, **arguments)
    model.initialise_model()
    model.deserialize(folder / WEIGHTS)
    if model.preparation is None:
        raise ConfigurationError(f"the weights in {folder} do not say how rows were encoded")
    return OpenModel(model, classes, description)


def watched_columns(model: PyTorchBitfountModel) -> list[str]:
    """The columns whose drift matters: numbers and categories that the model sees, and its targets."""
    seen = model.datastructure.feature_columns(model.schema)
    return [*seen.continuous, *seen.categorical, *model.datastructure.targets]


def fetch(reference: str, tracking_uri: str, into: Path) -> RegisteredModel:
    """Brings a version of a registered model to this machine.

    Args:
        reference: `name` (the newest version), `name@alias` or `name/version`.
        tracking_uri: of the MLflow that holds the registry.
        into: where its files go, `<into>/<name>/<version>`; a file that is there already is not fetched again.

    Raises:
        ConfigurationError: this is no such reference.
        ModelFileError: there is no such model, version or alias, or it lacks files.
        TrackingError: MLflow cannot be reached.
    """
    from mlflow.artifacts import download_artifacts

    name, version = parsed(reference)
    uri = with_password(tracking_uri)
    found = find_version(uri, name, version)
    folder = into / name / str(found.version)
    with tracking_errors(uri), tempfile.TemporaryDirectory(prefix="bitfount-") as scratch:
        client = connect(uri)
        run_id = str(found.run_id or "")
        there = (
            {PurePosixPath(info.path).name for info in client.list_artifacts(run_id, MODEL_FOLDER)} if run_id else set()
        )
        if missing := [file for file in FILES if file not in there]:
            raise ModelFileError(
                f"{name} version {found.version} was not registered by a job of this project: {', '.join(missing)} is missing"
            )
        for file in [*FILES, *({PROFILE, ROWS} & there)]:
            if not (folder / file).is_file():
                here = download_artifacts(artifact_uri=f"{found.source}/{file}", tracking_uri=uri, dst_path=scratch)
                write_atomically(folder / file, Path(here).read_bytes())
    return RegisteredModel(name, int(found.version), run_id, folder)


def source_of(name: str, version: int | str | None) -> bytes:
    """The source of a registered model, by version number, by alias, or of the newest version.

    The registry is that of `MLFLOW_TRACKING_URI`. This is the entry point through which a `BitfountModelReference` finds
    registered models.

    Raises:
        ModelFileError: there is no such model, version or alias, or it holds no source.
        TrackingError: MLflow cannot be reached.
    """
    from mlflow.artifacts import download_artifacts

    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        raise ModelFileError(
            f"the registered model {name!r} is wanted, and MLFLOW_TRACKING_URI does not say where the registry is"
        )
    found = find_version(uri, name, version)
    with tracking_errors(uri):
        return Path(download_artifacts(artifact_uri=f"{found.source}/{SOURCE}", tracking_uri=uri)).read_bytes()


def parsed(reference: str) -> tuple[str, int | str | None]:
    """A reference's name, and its version number, its alias, or None for the newest version.

    Raises:
        ConfigurationError: it is none.
    """
    match = REFERENCE.fullmatch(reference)
    if match is None:
        raise ConfigurationError(
            f"{reference!r} names no registered model: wanted name, name@alias or name/version, such as tumours@champion"
        )
    return match["name"], int(match["version"]) if match["version"] else match["alias"]


def find_version(uri: str, name: str, version: int | str | None) -> ModelVersion:
    """A version of a registered model, by number, by alias, or the newest one.

    Raises:
        ModelFileError: there is no such model, version or alias.
        TrackingError: MLflow cannot be reached.
    """
    from mlflow.exceptions import MlflowException

    client = connect(uri)
    with tracking_errors(uri):
        try:
            found = _found(client, name, version)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise ModelFileError(
                f"the registry at {without_password(uri)} has no {_text(name, version)}: {error.message}"
            ) from error
    if found is None:
        raise ModelFileError(
            f"the registry at {without_password(uri)} has no {_text(name, version)}; register it by a job first"
        )
    return found


def versions_of(client: MlflowClient, name: str) -> list[ModelVersion]:
    """All versions of a registered model, oldest first."""
    found = client.search_model_versions(f"name = '{name.replace(chr(39), '')}'")
    return sorted(found, key=lambda version: int(version.version))


def _found(client: MlflowClient, name: str, version: int | str | None) -> ModelVersion | None:
    if isinstance(version, str):
        return client.get_model_version_by_alias(name, version)
    if version is not None:
        return client.get_model_version(name, str(version))
    return max(versions_of(client, name), key=lambda found: int(found.version), default=None)


def _text(name: str, version: int | str | None) -> str:
    return f"{name!r}" if version is None else f"{name!r} with version or alias {version!r}"
