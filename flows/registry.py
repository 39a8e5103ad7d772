"""The model registry for people: what is registered, and which versions are in use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.environment import prepare
from flows.workspace import Workspace
from tasks.mlflow_client import connect, tracking_errors, with_password
from tasks.registered import versions_of


def registry_at(tracking_uri: str | None, home: Path) -> str:
    """The MLflow that holds the registry; its environment is prepared."""
    prepare(home, verbose=False)
    return tracking_uri or Workspace(home).tracking_uri


def listed(tracking_uri: str | None, home: Path) -> list[dict[str, Any]]:
    """All versions of all registered models: `name`, `version`, `aliases`, `metrics`, `run_id`, `why`; newest first.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    uri = with_password(registry_at(tracking_uri, home))
    with tracking_errors(uri):
        client = connect(uri)
        found = []
        for model in client.search_registered_models():
            aliases = {str(version): alias for alias, version in model.aliases.items()}
            for version in reversed(versions_of(client, model.name)):
                metrics = {key: float(value) for key, value in version.tags.items() if key.startswith("test/")}
                found.append(
                    {
                        "name": model.name,
                        "version": int(version.version),
                        "alias": aliases.get(str(version.version)),
                        "metrics": metrics,
                        "run_id": version.run_id,
                        "why": version.tags.get("bitfount.why"),
                    }
                )
    return found


def show_models(found: list[dict[str, Any]]) -> None:
    """Prints the versions as a table."""
    console = Console(highlight=False)
    if not found:
        console.print("no model is registered: give a job `register: NAME` and train it")
        return
    table = Table()
    for heading in ("model", "version", "alias", "test metrics", "why"):
        table.add_column(heading, justify="right" if heading == "version" else "left")
    for each in found:
        metrics = "  ".join(
            f"{name.removeprefix('test/')} {value:.4f}" for name, value in list(each["metrics"].items())[:3]
        )
        table.add_row(each["name"], str(each["version"]), each["alias"] or "", metrics, each["why"] or "")
    console.print(table)
