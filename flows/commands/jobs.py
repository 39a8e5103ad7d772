"""`bitfount-flows runs | show | compare`: looking at jobs; neither Prefect nor MLflow is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.commands.shared import home_option, json_option

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 160
job_argument = click.argument("job", metavar="JOB")


class Unknown(click.ClickException):
    """No such job, or several."""

    exit_code = 2


class Broken(click.ClickException):
    """A job's folder cannot be read, or a report cannot be written."""

    exit_code = 5


@click.command(
    epilog="""\b
Examples:
  bitfount-flows runs
  bitfount-flows runs --home runs --json
"""
)
@home_option
@json_option
def runs(home: Path, as_json: bool) -> int:
    """List the jobs in --home, newest first: state, epochs or rounds done, main metric, time."""
    from flows.job_folders import read_jobs
    from flows.job_list import show_jobs, summary_of

    with readable():
        jobs, problems = read_jobs(home)
    if as_json:
        click.echo(json.dumps({"jobs": [summary_of(job) for job in jobs], "problems": problems}))
        return 0
    if not jobs:
        click.echo(f"there are no jobs in {home}: train one first, or name another --home")
    show_jobs(console(), jobs, problems)
    return 0


@click.command(
    epilog="""\b
Examples:
  bitfount-flows show nightly
  bitfount-flows show hospitals-2026            # the beginning of an id is enough where one job has it
  bitfount-flows show nightly --html nightly.html
"""
)
@job_argument
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PATH",
    help="Write the job's report there, also of a job that is not finished.",
)
@home_option
@json_option
def show(job: str, html: Path | None, home: Path, as_json: bool) -> int:
    """Print one job: settings, pods, metrics, files, and its curves."""
    from flows.job_folders import find_job
    from flows.job_show import details_of, show_job

    with readable():
        found = find_job(home, job)
    if html is not None:
        write_report(found.path, html)
        click.echo(f"report of {found.job_id}: {html}", err=as_json)
    if as_json:
        click.echo(json.dumps(details_of(found)))
    elif html is None:
        show_job(console(), found)
    return 0


@click.command(
    epilog="""\b
Examples:
  bitfount-flows compare monday tuesday
  bitfount-flows compare monday tuesday wednesday --json
"""
)
@job_argument
@click.argument("others", nargs=-1, required=True, metavar="JOB...")
@home_option
@json_option
def compare(job: str, others: tuple[str, ...], home: Path, as_json: bool) -> int:
    """Hold jobs against the first: their metrics, what differs in their settings, whether they are comparable."""
    from flows.job_compare import comparison_of, show_comparison
    from flows.job_folders import find_job

    with readable():
        jobs = [find_job(home, each) for each in (job, *others)]
    if as_json:
        click.echo(json.dumps(comparison_of(jobs)))
    else:
        show_comparison(console(), jobs)
    return 0


def console() -> Console:
    """Where tables go; one that no terminal shows is as wide as it needs to be."""
    from rich.console import Console

    shown = Console(highlight=False)
    return shown if shown.is_terminal else Console(highlight=False, width=WIDE)


def write_report(folder: Path, path: Path) -> None:
    """Writes a job's report into a file."""
    from tasks.report.step import report_html
    from tasks.store import Store

    content = report_html(Store(folder.resolve()))
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise Broken(f"cannot write {path}: {error.strerror}") from error


@contextmanager
def readable() -> Iterator[None]:
    """What cannot be read ends as one line."""
    from flows.job_folders import NoSuchJobError, UnreadableJobError

    try:
        yield
    except NoSuchJobError as error:
        raise Unknown(str(error)) from error
    except UnreadableJobError as error:
        raise Broken(str(error)) from error
