"""The champion that a retraining begins with: which version it is, and its files on this machine."""

from __future__ import annotations

from pathlib import Path

from bitfount_model.errors import ModelFileError
from tasks.aliases import CHAMPION
from tasks.manifest import Manifest, read_manifest, write_manifest
from tasks.mlflow_client import connect, tracking_errors, with_password
from tasks.registered import RegisteredModel, fetch
from tasks.store import Store


def find_champion(store: Store, name: str, tracking_uri: str) -> Manifest:
    """Notes which version is the champion, once: a retraining that goes on compares with the same one.

    Args:
        store: the retraining's own.
        name: of the registered model.
        tracking_uri: of the MLflow that holds the registry.

    Returns:
        `version` and `run_id`, both None where there is no champion.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    if done := read_manifest(store, "champion"):
        return done
    uri = with_password(tracking_uri)
    with tracking_errors(uri):
        client = connect(uri)
        models = client.search_registered_models(f"name = '{name}'")
        version = models[0].aliases.get(CHAMPION) if models else None
        run_id = None if version is None else client.get_model_version(name, str(version)).run_id
    values = {"version": None if version is None else int(version), "run_id": run_id}
    return write_manifest(store, Manifest("champion", {}, values))


def champion_files(champion: Manifest, name: str, tracking_uri: str, models: Path) -> RegisteredModel | None:
    """The champion's files on this machine; None where there is no champion.

    Args:
        champion: as `find_champion` noted it.
        name: of the registered model.
        tracking_uri: of the MLflow that holds the registry.
        models: folder of models on this machine.

    Raises:
        ModelFileError: the version is no longer there, or was not registered by a job.
        TrackingError: MLflow cannot be reached.
    """
    if champion.values["version"] is None:
        return None
    try:
        return fetch(f"{name}/{champion.values['version']}", tracking_uri, models)
    except ModelFileError as error:
        raise ModelFileError(
            f"the champion cannot be compared with: {error}. Make another version the champion with `bitfount-flows models"
            f" promote {name} VERSION`, or take the alias away."
        ) from error
