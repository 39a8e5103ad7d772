"""`bitfount-flows train`: a job of either kind."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import click

from flows.commands.shared import Unreadable, command, home_option, json_option, verbose_option
from flows.exit_codes import EXIT_CODES, NOT_RECORDED, exit_code


@click.command(
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
        from flows.any_job import run_job
        from flows.console import program
        from flows.settings import read_job
        from flows.workspace import new_job_id

        job = read_job(job_file, overrides)
        job_id = job_id or new_job_id(job.name)
        given = sys.argv[1:] if "--job-id" in sys.argv else [*sys.argv[1:], "--job-id", job_id]
        again = f"{program()} {shlex.join(given)}"
        try:
            summary = run_job(job, job_id, tracking_uri, store, surroundings)
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
