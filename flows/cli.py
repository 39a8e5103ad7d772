"""The command line: `bitfount-flows train | evaluate | predict | pod serve | ui`.

Nothing heavy is imported until a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from flows.run import Surroundings
    from tasks.federated.job_file import FederatedJobFile
    from tasks.job import LocalJob

EXIT_CODES = {
    "FederationError": 7,
    "ConfigurationError": 2,
    "DataError": 3,
    "ModelError": 4,
    "ParameterError": 4,
    "SerializationError": 2,
    "StorageError": 5,
}
NOT_RECORDED = 6
INTERRUPTED = 130
UNEXPECTED = 1

CODES_HELP = """\b
Exit codes:
  0    done
  1    an error that nobody foresaw
  2    the command line or the job file is wrong
  3    the rows are not what the job needs
  4    the model or its weights cannot be used, or training failed
  5    artifacts cannot be written or read
  6    trained and saved, but MLflow could not be reached: run again with the same --job-id to record it
  7    too few pods answered, or another start of the job took over; the same --job-id goes on
  130  stopped by Ctrl-C
"""

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
job_id_option = click.option("--job-id", required=True, help="Id of a job that has been trained.")


class Unreadable(click.ClickException):
    """The job file is not there."""

    exit_code = 2


class Unreachable(click.ClickException):
    """Prefect does not answer."""

    exit_code = 5


class Unwritable(click.ClickException):
    """The folder for jobs cannot be written."""

    exit_code = 5


@click.group(epilog=CODES_HELP)
@click.version_option(package_name="bitfount-flows")
def cli() -> None:
    """Train, evaluate and apply PyTorch models as a workflow that can be killed and continued."""


@cli.command(
    epilog="""\b
Examples:
  bitfount-flows train examples/breast_cancer/job.yaml
  bitfount-flows train job.yaml --set training.epochs=20 --set model.hyperparameters.lr=0.001
  bitfount-flows train job.yaml --job-id nightly --json
  bitfount-flows train job.yaml --job-id nightly      # continues it, if it was stopped
  bitfount-flows train examples/hospitals/job.yaml    # federated: the job file lists pods
"""
)
@click.argument("job_file", type=click.Path(path_type=Path), metavar="JOB.yaml")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Replace a key of the job file; repeatable."
)
@click.option("--job-id", help="Name of this job; the same name continues it. Default: a new one.")
@click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    show_envvar=True,
    help="MLflow server or database. Default: in --home.",
)
@click.option(
    "--store",
    envvar="BITFOUNT_STORE",
    show_envvar=True,
    metavar="URL",
    help="Where deployed pods are met, unless JOB.yaml says it: a folder, or a URL such as s3://bucket/federation.",
)
@home_option
@json_option
@verbose_option
def train(
    job_file: Path,
    overrides: tuple[str, ...],
    job_id: str | None,
    tracking_uri: str | None,
    store: str | None,
    home: Path,
    as_json: bool,
    verbose: bool,
) -> int:
    """Train the model of JOB.yaml, on rows of this machine or over pods; evaluate it, predict, record all of it in MLflow."""
    if not job_file.is_file():
        raise Unreadable(f"cannot read the job file {job_file}: No such file")
    with command(home, as_json=as_json, verbose=verbose) as surroundings:
        from flows.console import program
        from flows.settings import read_job
        from flows.workspace import new_job_id

        job = read_job(job_file, overrides)
        job_id = job_id or new_job_id(job.name)
        given = sys.argv[1:] if "--job-id" in sys.argv else [*sys.argv[1:], "--job-id", job_id]
        again = f"{program()} {shlex.join(given)}"
        try:
            summary = trained(job, job_id, tracking_uri, store, surroundings)
        except KeyboardInterrupt:
            surroundings.view.say(f"\nstopped; nothing that was finished is lost. Continue with:\n  {again}")
            raise
        except Exception as error:
            if exit_code(error) == EXIT_CODES["FederationError"]:
                surroundings.view.say(f"\nnothing that was finished is lost. Continue with:\n  {again}")
            raise
    if as_json:
        click.echo(json.dumps(summary))
    return 0 if summary["mlflow_run_id"] else NOT_RECORDED


def trained(
    job: LocalJob | FederatedJobFile,
    job_id: str,
    tracking_uri: str | None,
    store: str | None,
    surroundings: Surroundings,
) -> dict[str, Any]:
    """Runs a job of either kind and shows its summary."""
    from tasks.job import LocalJob

    if isinstance(job, LocalJob):
        from flows import run
        from flows.console import show_summary

        summary = run.train(job, job_id, tracking_uri, surroundings)
        show_summary(surroundings.view, summary)
        return summary
    from flows.environment import prepare

    prepare(surroundings.workspace.home, verbose=surroundings.verbose)  # before Prefect is imported
    from flows import federated_run
    from flows.federated_console import FederatedView, show_federated_summary

    view = FederatedView(surroundings.view.stream)
    summary = federated_run.train(job, job_id, tracking_uri, replace(surroundings, view=view), store)
    show_federated_summary(view, summary)
    return summary


@cli.command(
    epilog="""\b
Examples:
  bitfount-flows evaluate --job-id nightly
  bitfount-flows evaluate --job-id nightly --data later.csv
  bitfount-flows evaluate --job-id nightly --data '{sql: {url: "sqlite:///rows.db", table: rows}, key: id}'
"""
)
@job_id_option
@click.option(
    "--data",
    help="Rows with their targets: a .csv or .parquet file, or a source in YAML. Default: the job's test rows.",
)
@home_option
@json_option
@verbose_option
def evaluate(job_id: str, data: str | None, home: Path, as_json: bool, verbose: bool) -> int:
    """Metrics of a trained job."""
    with command(home, as_json=as_json, verbose=verbose) as surroundings:
        from flows import run
        from flows.console import show_metrics
        from flows.settings import read_source

        source = None if data is None else read_source(data)
        result = run.evaluate(job_id, source, surroundings)
        show_metrics(surroundings.view, job_id, result["metrics"], result["rows"])
    if as_json:
        click.echo(json.dumps(result))
    return 0


@cli.command(
    epilog="""\b
Examples:
  bitfount-flows predict --job-id nightly --data new.csv --out predictions.parquet
  bitfount-flows predict --job-id nightly --data '{sklearn: breast_cancer}' --out p.parquet --json
"""
)
@job_id_option
@click.option("--data", required=True, help="Rows to predict: a .csv or .parquet file, or a source in YAML.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Parquet file to write.")
@home_option
@json_option
@verbose_option
def predict(job_id: str, data: str, out: Path, home: Path, as_json: bool, verbose: bool) -> int:
    """Predictions of a trained job for new rows; the target column need not be there."""
    if not out.name:
        raise click.UsageError(f"--out {str(out)!r} is not the name of a file")
    with command(home, as_json=as_json, verbose=verbose) as surroundings:
        from flows import run
        from flows.settings import read_source

        result = run.predict(job_id, read_source(data), out, surroundings)
        surroundings.view.say(f"{result['rows']} predictions in {result['predictions']}")
    if as_json:
        click.echo(json.dumps(result))
    return 0


@cli.group()
def pod() -> None:
    """What a data owner does: serve a pod beside the private rows."""


@pod.command(
    epilog="""\b
Examples:
  export PREFECT_API_URL=http://prefect.example.org:4200/api
  bitfount-flows pod serve POD.yaml
"""
)
@click.argument("pod_file", type=click.Path(path_type=Path), metavar="POD.yaml")
@home_option
@verbose_option
def serve(pod_file: Path, home: Path, verbose: bool) -> int:
    """Register the pod of POD.yaml as pod/NAME with the Prefect server of PREFECT_API_URL, and take part in jobs.

    Only outbound connections are made: to the Prefect server and to the store that POD.yaml names. Ctrl-C ends it.
    """
    from flows.pod_server import serve_pod
    from flows.prefect_server import ServerError

    try:
        serve_pod(pod_file, home, verbose=verbose, say=click.echo)
    except ServerError as error:
        raise Unreachable(str(error)) from error
    return 0


@cli.command(
    epilog="""\b
Examples:
  bitfount-flows ui
  bitfount-flows ui --home runs --port 5001
"""
)
@home_option
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="Port on this machine.")
def ui(home: Path, port: int) -> int:
    """Open the MLflow UI on the runs in --home, on this machine alone; Ctrl-C ends it."""
    from flows.mlflow_ui import serve
    from flows.workspace import Workspace

    click.echo(f"MLflow on http://127.0.0.1:{port} for the runs in {home}; Ctrl-C ends it")
    return serve(Workspace(home), port)


@contextmanager
def command(home: Path, *, as_json: bool, verbose: bool) -> Iterator[Surroundings]:
    """What a command runs in; its Prefect server starts while the packages are being imported, and ends with it."""
    from flows.prefect_server import prefect_server

    if "?" in str(home.resolve()):  # where the options begin in the URL of a SQLite database
        raise click.UsageError(f"--home {home}: the path holds a '?'; choose another folder")
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


def main() -> None:
    """Runs the command line and exits with its code; see `--help`."""
    verbose = "--verbose" in sys.argv
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        if isinstance(error, click.UsageError):
            error.show()
        else:
            click.echo(f"error: {error.format_message()}", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(INTERRUPTED)
    except Exception as error:
        sys.exit(report(error, verbose))
    sys.exit(code if isinstance(code, int) else 0)


def report(error: Exception, verbose: bool) -> int:
    """Prints an error for people and gives its exit code."""
    code = exit_code(error)
    if verbose:
        traceback.print_exception(error)
    if code == UNEXPECTED:
        click.echo(f"error: {type(error).__name__}: {error}\n(run with --verbose for the traceback)", err=True)
    else:
        click.echo(f"error: {error}", err=True)
    return code


def exit_code(error: Exception) -> int:
    """The exit code of an error: that of the nearest class that has one."""
    names = [kind.__name__ for kind in type(error).__mro__]
    return next((EXIT_CODES[name] for name in names if name in EXIT_CODES), UNEXPECTED)


if __name__ == "__main__":
    main()
