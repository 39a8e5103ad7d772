"""`bitfount-flows retrain`: a registered model, trained again where that is worth it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import click

from flows.commands.shared import Unreadable, command, home_option, json_option, verbose_option


@click.command(
    epilog="""\b
Examples:
  bitfount-flows retrain examples/breast_cancer/retraining.yaml
  bitfount-flows retrain retraining.yaml --force --json
  bitfount-flows retrain retraining.yaml --retraining-id monday     # the same id goes on with it
"""
)
@click.argument("retraining_file", type=click.Path(path_type=Path), metavar="RETRAINING.yaml")
@click.option("--force", is_flag=True, help="Train whether or not the rows have changed.")
@click.option("--retraining-id", help="Name of this retraining; the same name continues it. Default: a new one.")
@click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    show_envvar=True,
    help="MLflow server or database, with the registry. Default: in --home.",
)
@click.option("--store", envvar="BITFOUNT_STORE", show_envvar=True, metavar="URL", help="Where deployed pods are met.")
@home_option
@json_option
@verbose_option
def retrain(
    retraining_file: Path,
    force: bool,
    retraining_id: str | None,
    tracking_uri: str | None,
    store: str | None,
    home: Path,
    as_json: bool,
    verbose: bool,
) -> int:
    """Look at the rows of a registered model; train, compare and promote a new version if it is worth it, and say why."""
    if not retraining_file.is_file():
        raise Unreadable(f"cannot read the retraining's file {retraining_file}: No such file")
    with command(home, as_json=as_json, verbose=verbose) as surroundings:
        from flows.settings import read_retraining
        from flows.workspace import new_job_id

        retraining_id = retraining_id or new_job_id(read_retraining(retraining_file).name)
        surroundings.workspace.prepare()
        with surroundings.ready():
            from flows.retrain import retraining

            path = str(retraining_file.resolve())
            summary = cast(dict[str, Any], retraining(path, str(home), tracking_uri, store, force, retraining_id))
        surroundings.view.say(f"{summary['model']}: {summary['outcome']}: {summary['why']}")
    if as_json:
        click.echo(json.dumps(summary))
    return 0
