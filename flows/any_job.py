"""Runs a job of either kind: on the rows of this machine, or over pods."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flows.environment import prepare
from flows.run import Surroundings
from tasks.federated.job_file import FederatedJobFile
from tasks.job import LocalJob


def run_job(
    job: LocalJob | FederatedJobFile,
    job_id: str,
    tracking_uri: str | None,
    store: str | None,
    surroundings: Surroundings,
) -> dict[str, Any]:
    """Runs a job and shows its summary.

    Args:
        job: checked, of either kind.
        job_id: names it; the same id goes on with it.
        tracking_uri: of MLflow; None for the database of the workspace.
        store: where deployed pods are met, unless the job says it.
        surroundings: where it runs.

    Returns:
        The summary: see `flows.run.summarise`, and `flows.federated_run` for a job over pods.
    """
    if isinstance(job, LocalJob):
        from flows import run
        from flows.console import show_summary

        summary = run.train(job, job_id, tracking_uri, surroundings)
        show_summary(surroundings.view, summary)
        return summary
    prepare(surroundings.workspace.home, verbose=surroundings.verbose)  # before Prefect is imported
    from flows import federated_run
    from flows.federated_console import FederatedView, show_federated_summary

    view = FederatedView(surroundings.view.stream)
    summary = federated_run.train(job, job_id, tracking_uri, replace(surroundings, view=view), store)
    show_federated_summary(view, summary)
    return summary
