"""`bitfount-flows evaluate | predict`: what a trained job is applied to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
  bitfount-flows predict --model tumours@champion --data '{parquet: rows, key: patient}' --out predictions
  bitfount-flows predict --model tumours/3 --data '{sql: {url: "sqlite:///rows.db", table: rows}, key: id}' \\
      --out '{sql: {url: "postgresql://writer:${PASSWORD}@host/name", table: predictions}}'
"""
)
@click.option("--job-id", help="Id of a job that has been trained.")
@click.option(
    "--model",
    metavar="NAME[@ALIAS|/VERSION]",
    help="A registered model instead: rows of any number are read in batches, and the same command goes on after a kill.",
)
@click.option("--data", required=True, help="Rows to predict: a .csv or .parquet file, or a source in YAML.")
@click.option(
    "--out",
    required=True,
    help="Parquet file to write; with --model a folder of Parquet files, or {sql: {url: ..., table: ...}}.",
)
@click.option(
    "--batch-rows",
    type=click.IntRange(1, 10_000_000),
    default=20_000,
    show_default=True,
    help="With --model: rows in memory at a time.",
)
@click.option(
    "--prediction-id",
    help="With --model: name of this prediction; the same name continues it. Default: made of --model, --data and --out.",
)
@click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    show_envvar=True,
    help="With --model: MLflow server or database that holds the registry. Default: in --home.",
)
@home_option
@json_option
@verbose_option
def predict(
    job_id: str | None,
    model: str | None,
    data: str,
    out: str,
    batch_rows: int,
    prediction_id: str | None,
    tracking_uri: str | None,
    home: Path,
    as_json: bool,
    verbose: bool,
) -> int:
    """Predictions of a trained job, or of a registered model, for new rows; the target column need not be there."""
    if (job_id is None) == (model is None):
        raise click.UsageError("give one and only one of --job-id and --model")
    if job_id is not None and prediction_id is not None:
        raise click.UsageError("--prediction-id goes with --model; with --job-id the file of --out is written anew")
    if not Path(out).name:
        raise click.UsageError(f"--out {out!r} is not the name of a file or folder")
    with command(home, as_json=as_json, verbose=verbose) as surroundings:
        from flows import run
        from flows.settings import read_destination, read_source

        source = read_source(data)
        if job_id is not None:
            if Path(out).is_dir():
                raise click.UsageError(f"--out {out!r} is a folder, wanted the name of a file")
            result = run.predict(job_id, source, Path(out), surroundings)
            surroundings.view.say(f"{result['rows']} predictions in {result['predictions']}")
        else:
            result = run.predict_registered(
                model or "",
                source,
                read_destination(out),
                surroundings,
                tracking_uri=tracking_uri,
                batch_rows=batch_rows,
                prediction_id=prediction_id,
            )
            surroundings.view.say(batch_summary(result))
    if as_json:
        click.echo(json.dumps(result))
    return 0


def batch_summary(result: dict[str, Any]) -> str:
    """What became of a batch prediction, in a line."""
    name = f"the prediction {result['prediction_id']} of {result['model']} version {result['version']}"
    if not result["written"] and result["rows"]:
        return f"nothing to do: {name} is finished: {result['rows']:,} rows in {result['out']}"
    before = result["rows"] - result["written"]
    told = f", {before:,} of them before" if before else ""
    return f"finished {name}: {result['rows']:,} rows{told}, in {result['out']}"
