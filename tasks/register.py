"""From a finished job to a version of a registered model, with its alias."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tasks.aliases import CHALLENGER, CHAMPION
from tasks.manifest import Manifest, read_manifest, write_manifest
from tasks.mlflow_client import connect, tracking_errors
from tasks.registered import MODEL_FOLDER, versions_of
from tasks.session import require
from tasks.step import reference, step
from tasks.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

SHOWN = ("bitfount.job_id", "bitfount.code_version")
"""Tags of a run that its version has too; its test metrics are others."""


@step("register")
def register(store_url: str, tracking_uri: str, name: str) -> dict[str, Any]:
    """The registering step, as a task: see `register_job`."""
    return reference(register_job(Store(store_url), tracking_uri=tracking_uri, name=name))


def register_job(store: Store, *, tracking_uri: str, name: str) -> Manifest:
    """Makes a recorded job a version of a registered model, once, however often it is called.

    The version is the challenger from then on; where there is no champion, it is that.

    Args:
        store: the job's store; its steps `package` and `record` have finished.
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
        version = version_of(client, name, run_id) or new_version(client, name, client.get_run(run_id))
        aliases = client.get_registered_model(name).aliases
        wanted = CHALLENGER if CHAMPION in aliases else CHAMPION
        if version.version not in aliases.values():
            client.set_registered_model_alias(name, wanted, version.version)
    values = {"name": name, "version": int(version.version), "run_id": run_id}
    return write_manifest(store, Manifest("register", {}, values))


def description_of(name: str) -> str:
    """What a registered model's page says: how its champion is used."""
    champion = f"{name}@{CHAMPION}"
    return (
        f"Trained by bitfount-flows; each version says on what, and how well it does. In a job, `model: {{reference:"
        f" {champion}}}` takes the version in use; `mlflow models serve --model-uri models:/{champion} --env-manager local`"
        " answers for it."
    )


def version_of(client: MlflowClient, name: str, run_id: str) -> ModelVersion | None:
    """The version that this run has been made, if it has."""
    return next((version for version in versions_of(client, name) if version.run_id == run_id), None)


def new_version(client: MlflowClient, name: str, run: Run) -> ModelVersion:
    """Makes a run's model a version; its note and test metrics are the run's."""
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description=description_of(name))
    metrics = {key: f"{value:.6g}" for key, value in run.data.metrics.items() if key.startswith("test/")}
    return client.create_model_version(
        name,
        source=f"{run.info.artifact_uri}/{MODEL_FOLDER}",
        run_id=run.info.run_id,
        tags=metrics | {tag: run.data.tags[tag] for tag in SHOWN if tag in run.data.tags},
        description=run.data.tags.get("mlflow.note.content"),
    )
