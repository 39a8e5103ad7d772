"""What commands share: options, and what a command runs in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from flows.run import Surroundings

home_option = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("bitfount_runs"),
    envvar="BITFOUNT_HOME",
    show_default=True,
    show_envvar=True,
    help="Folder of jobs, artifacts and the MLflow database.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object as the last line, words to stderr."
)
verbose_option = click.option(
    "--verbose", is_flag=True, help="Show tracebacks, and the logs of Prefect, Lightning and MLflow."
)


class Unreadable(click.ClickException):
    """A file that the command line names is not there."""

    exit_code = 2


class Unwritable(click.ClickException):
    """The folder for jobs cannot be written."""

    exit_code = 5


class Unreachable(click.ClickException):
    """Prefect does not answer."""

    exit_code = 5


def check_home(home: Path) -> None:
    """Refuses a folder whose path cannot be part of the URL of a SQLite database."""
    if "?" in str(home.resolve()):  # where the options begin
        raise click.UsageError(f"--home {home}: the path holds a '?'; choose another folder")


@contextmanager
def command(home: Path, *, as_json: bool, verbose: bool) -> Iterator[Surroundings]:
    """What a command runs in; its Prefect server starts while the packages are being imported, and ends with it."""
    from flows.prefect_server import prefect_server

    check_home(home)
    try:
        (home / "prefect").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unwritable(f"cannot write in {home}: {error.strerror}. Choose another folder with --home.") from error
    # What a model prints must not get into the JSON.
    printed = redirect_stdout(sys.stderr) if as_json else nullcontext()
    with printed, prefect_server(home / "prefect") as server:
        from flows.console import RunView, stream_for
        from flows.run import Surroundings
        from flows.workspace import Workspace

        yield Surroundings(Workspace(home), server, RunView(stream_for(as_json)), verbose)
