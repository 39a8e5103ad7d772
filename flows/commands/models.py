"""`bitfount-flows models`: the versions of registered models, and which one is in use."""

from __future__ import annotations

import json
from pathlib import Path

import click

from flows.commands.shared import home_option, json_option

tracking_option = click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    show_envvar=True,
    help="MLflow server or database that holds the registry. Default: in --home.",
)
name_argument = click.argument("name")


@click.group()
def models() -> None:
    """Which version of a registered model is the champion; promote one, or go back."""


@models.command("list")
@tracking_option
@home_option
@json_option
def list_models(tracking_uri: str | None, home: Path, as_json: bool) -> int:
    """List registered models with their versions, newest first."""
    from flows.registry import listed, show_models

    found = listed(tracking_uri, home)
    if as_json:
        click.echo(json.dumps(found))
    else:
        show_models(found)
    return 0


@models.command()
@name_argument
@click.argument("version", type=click.IntRange(min=1))
@tracking_option
@home_option
@json_option
def promote(name: str, version: int, tracking_uri: str | None, home: Path, as_json: bool) -> int:
    """Make VERSION of the model NAME its champion."""
    from flows.registry import registry_at
    from tasks.aliases import promote as make_champion

    before = make_champion(registry_at(tracking_uri, home), name, version)
    if as_json:
        click.echo(json.dumps({"name": name, "champion": version, "before": before}))
    else:
        click.echo(f"{name}: version {version} is the champion{f', it was version {before}' if before else ''}")
    return 0


@models.command()
@name_argument
@tracking_option
@home_option
@json_option
def rollback(name: str, tracking_uri: str | None, home: Path, as_json: bool) -> int:
    """Make the champion before this one the champion of the model NAME again."""
    from flows.registry import registry_at
    from tasks.aliases import roll_back

    before, now = roll_back(registry_at(tracking_uri, home), name)
    if as_json:
        click.echo(json.dumps({"name": name, "champion": now, "before": before}))
    else:
        click.echo(f"{name}: version {now} is the champion again, it was version {before}")
    return 0
