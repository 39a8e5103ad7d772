"""From a finished job to its page in Prefect's UI: what its run in MLflow says, with the way there."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from prefect.artifacts import create_markdown_artifact

from tasks.mlflow_links import run_page
from tasks.prefect_errors import UNREACHABLE

logger = logging.getLogger(__name__)


def show_summary(name: str, note: str, recorded: Mapping[str, Any] | None) -> None:
    """Makes the artifact `summary` of the flow run; where Prefect does not answer, the job matters more.

    Args:
        name: of the job.
        note: the job in Markdown.
        recorded: manifest of the step `record`; None where MLflow could not be reached.
    """
    try:
        create_markdown_artifact(summary(name, note, recorded), key="summary", description=f"Summary of {name}")
    except UNREACHABLE as error:
        logger.warning("the flow run has no summary in Prefect: %s", error)


def summary(name: str, note: str, recorded: Mapping[str, Any] | None) -> str:
    """The page, in Markdown; see `show_summary`."""
    return f"# {name}\n\n{note}\n\n{place_of(recorded)}"


def place_of(recorded: Mapping[str, Any] | None) -> str:
    """Where a job's run in MLflow is, as a link where it has an address."""
    if recorded is None:
        return "Not recorded in MLflow yet: it could not be reached."
    values = recorded["values"]
    page = run_page(values["tracking_uri"], values["experiment_id"], values["run_id"])
    if page is not None:
        return f"[The run in MLflow]({page}), with plots, weights and `report.html`"
    return f"MLflow run `{values['run_id']}` in `{values['tracking_uri']}`: `bitfount-flows ui` shows it"
