"""The jobs of a workspace as a table, or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.job_folders import JobFolder

STYLES = {"finished": "green", "training": "cyan", "stopped": "yellow", "not recorded": "yellow", "failed": "red"}
COLUMNS = ("job", "name", "kind", "state", "done", "result", "training", "begun")
REASON_LENGTH = 200


def summary_of(job: JobFolder) -> dict[str, Any]:
    """A job in a few values, for scripts."""
    figure = job.figure
    return {
        "job_id": job.job_id,
        "name": job.name,
        "kind": job.kind,
        "state": job.state,
        "reason": job.reason,
        "unit": job.unit,
        "done": len(job.course),
        "asked": job.asked,
        "metric": figure and figure.name,
        "value": figure and figure.value,
        "metric_rows": figure and figure.rows,
        "seconds": job.seconds,
        "begun": job.started.isoformat(timespec="seconds"),
    }


def show_jobs(console: Console, jobs: Sequence[JobFolder], problems: Sequence[str]) -> None:
    """Prints a row for each job, why those stopped that did, and which folders are none."""
    table = Table()
    for name in COLUMNS:
        table.add_column(name, justify="right" if name in ("done", "training") else "left", overflow="fold")
    for job in jobs:
        state = Text(job.state, STYLES.get(job.state, ""))
        cells = [job.job_id, job.name or "", job.kind or "", state, done_text(job), result_text(job)]
        table.add_row(*map(as_text, cells), seconds_text(job.seconds), f"{job.started.astimezone():%Y-%m-%d %H:%M}")
    if jobs:
        console.print(table)
    for job in jobs:
        if job.reason is not None:
            console.print(Text(f"! {job.job_id} {job.state}: {' '.join(job.reason.split())[:REASON_LENGTH]}"))
    for problem in problems:
        console.print(Text(f"! {problem}"))


def as_text(value: str | Text) -> Text:
    """Text that is shown as it is, whatever brackets it holds."""
    return value if isinstance(value, Text) else Text(value)


def done_text(job: JobFolder) -> str:
    """How far training is."""
    if job.kind is None:
        return ""
    if job.asked_steps is not None:
        return f"{'' if 'fit' in job.steps else 'of '}{job.asked_steps:,} steps"
    asked = f" of {job.asked}" if job.asked is not None else ""
    return f"{len(job.course)}{asked} {job.unit}"


def result_text(job: JobFolder) -> str:
    """The main metric."""
    figure = job.figure
    return "" if figure is None else f"{figure.name} {number_text(figure.value)} ({figure.rows})"


def number_text(value: float | None) -> str:
    """A metric for people."""
    return "not defined" if value is None else f"{value:.4f}"


def seconds_text(seconds: float | None) -> str:
    """Seconds for people."""
    return "" if seconds is None else f"{seconds:,.1f} s"
