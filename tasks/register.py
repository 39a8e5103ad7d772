"""Between a job and MLflow's model registry: a finished job becomes a version; a version gives its source text back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitfount_model.errors import ModelFileError
from tasks.mlflow_client import connect, tracking_errors, without_password
from tasks.session import require
from tasks.step import reference, step
from tasks.store import Manifest, Store, read_manifest, write_manifest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

MODEL_FOLDER = "model"
"""The folder of a run's artifacts that holds source, schema, data structure and weights."""


@step("register")
def register(store_url: str, tracking_uri: str, name: str) -> dict[str, Any]:
    """The registering step, as a task: see `register_job`."""
    return reference(register_job(Store(store_url), tracking_uri=tracking_uri, name=name))


def register_job(store: Store, *, tracking_uri: str, name: str) -> Manifest:
    """Makes a recorded job a version of a registered model, once, however often it is called.

    Args:
        store: the job's store; its step `record` has finished.
        tracking_uri: of the MLflow that holds the run.
        name: of the registered model; made if it is not there.

    Raises:
        TrackingError: MLflow cannot be reached, or refuses.
    """
    if done := read_manifest(store, "register"):
        return done
    run_id = require(store, "record").values["run_id"]
    client = connect(tracking_uri)
    with tracking_errors(tracking_uri):
        version = _version_of(client, name, run_id) or _new_version(client, name, run_id)
    values = {"name": name, "version": int(version.version), "run_id": run_id}
    return write_manifest(store, Manifest("register", {}, values))


def source_of(name: str, version: int | str | None) -> bytes:
    """The source of a registered model, by version number, by alias, or of the newest version.

    The registry is that of `MLFLOW_TRACKING_URI`. This is the entry point through which a `BitfountModelReference` finds
    registered models.

    Raises:
        ModelFileError: there is no such model, version or alias, or it holds no source.
        TrackingError: MLflow cannot be reached.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        raise ModelFileError(
            f"the registered model {name!r} is wanted, and MLFLOW_TRACKING_URI does not say where the registry is"
        )
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
        text = download_artifacts(artifact_uri=f"{found.source}/model.py", tracking_uri=uri)
        return Path(text).read_bytes()


def _found(client: MlflowClient, name: str, version: int | str | None) -> ModelVersion | None:
    if isinstance(version, str):
        return client.get_model_version_by_alias(name, version)
    if version is not None:
        return client.get_model_version(name, str(version))
    return max(client.search_model_versions(f"name = '{_quoted(name)}'"), key=lambda v: int(v.version), default=None)


def _version_of(client: MlflowClient, name: str, run_id: str) -> ModelVersion | None:
    """The version that this run has been made, if it has."""
    versions = client.search_model_versions(f"name = '{_quoted(name)}'")
    return next((version for version in versions if version.run_id == run_id), None)


def _new_version(client: MlflowClient, name: str, run_id: str) -> ModelVersion:
    if not client.search_registered_models(f"name = '{_quoted(name)}'"):
        client.create_registered_model(name)
    folder = f"{client.get_run(run_id).info.artifact_uri}/{MODEL_FOLDER}"
    return client.create_model_version(name, source=folder, run_id=run_id)


def _quoted(name: str) -> str:
    """A name within the quotes of a filter; names with quotes of their own are refused by the job's schema."""
    return name.replace("'", "")


def _text(name: str, version: int | str | None) -> str:
    return f"{name!r}" if version is None else f"{name!r} with version or alias {version!r}"
