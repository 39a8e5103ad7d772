"""`bitfount-flows evaluate | predict`: what a trained job is applied to."""

from __future__ import annotations

import json
from pathlib import Path

import click

from flows.commands.shared import command, home_option, json_option, verbose_option

job_id_option = click.option("--job-id", required=True, help="Id of a job that has been trained.")


@click.command(
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


@click.command(
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
