"""Addresses of MLflow's pages, for notes and artifacts elsewhere."""

from __future__ import annotations

from tasks.mlflow_client import without_password

FOR_TRAINING = "workflowType=machine_learning"
"""Without it MLflow shows its pages as those of language models."""


def run_page(tracking_uri: str, experiment_id: str, run_id: str) -> str | None:
    """The page of a run; None where the runs are in a database without a server."""
    if not tracking_uri.startswith(("http://", "https://")):
        return None
    return f"{without_password(tracking_uri).rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}?{FOR_TRAINING}"


def version_page(tracking_uri: str, name: str, version: int) -> str | None:
    """The page of a registered version; None where the registry is in a database without a server."""
    if not tracking_uri.startswith(("http://", "https://")):
        return None
    return f"{without_password(tracking_uri).rstrip('/')}/#/models/{name}/versions/{version}?{FOR_TRAINING}"
