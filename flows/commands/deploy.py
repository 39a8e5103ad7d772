"""`bitfount-flows deploy` and `automations`: a file's training on a work pool, and what starts killed runs again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from flows.commands.shared import Unreachable, Unreadable, home_option, json_option


@contextmanager
def prefect_reached(home: Path) -> Iterator[None]:
    """Commands that need the user's own Prefect server run in this."""
    from flows.environment import prepare, quiet

    prepare(home, verbose=False)  # before Prefect is imported
    from flows.deploy import require_prefect
    from flows.prefect_server import ServerError
    from tasks.prefect_errors import UNREACHABLE

    try:
        require_prefect()
        with quiet(False):
            yield
    except (ServerError, *UNREACHABLE) as error:
        raise Unreachable(str(error)) from error


@click.command(
    epilog="""\b
Examples:
  export PREFECT_API_URL=http://127.0.0.1:4200/api
  bitfount-flows deploy examples/breast_cancer/job.yaml
  bitfount-flows deploy retraining.yaml --name nightly --cron '0 2 * * *' --timezone Europe/London
"""
)
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.yaml")
@click.option("--name", help="Name of the deployment. Default: the `name` in FILE.yaml.")
@click.option("--cron", help="When it runs by itself, as '0 2 * * *'. Default: never, or as it was deployed before.")
@click.option("--timezone", default="UTC", show_default=True, help="Time zone of --cron, such as Europe/London.")
@click.option(
    "--pool", default="bitfount", show_default=True, help="Work pool, of the type process; made if it is missing."
)
@click.option(
    "--tracking-uri", help="MLflow, without a password. Default: MLFLOW_TRACKING_URI of the worker, else in --home."
)
@click.option("--store", metavar="URL", help="Where deployed pods are met. Default: BITFOUNT_STORE of the worker.")
@home_option
@json_option
def deploy(
    file: Path,
    name: str | None,
    cron: str | None,
    timezone: str,
    pool: str,
    tracking_uri: str | None,
    store: str | None,
    home: Path,
    as_json: bool,
) -> int:
    """Put the job or the retraining of FILE.yaml on a work pool of the Prefect server of PREFECT_API_URL.

    FILE.yaml is checked first, and read again by the worker when a run starts. The same command again updates the deployment.
    """
    if not file.is_file():
        raise Unreadable(f"cannot read the file {file}: No such file")
    with prefect_reached(home):
        from flows.deploy import deploy as make_deployment
        from flows.deploy import install_automations

        given = {"home": str(home.resolve()), "tracking_uri": tracking_uri, "store": store}
        full_name, deployment_id = make_deployment(file, given, name=name, cron=cron, timezone=timezone, pool=pool)
        install_automations()
    if as_json:
        click.echo(json.dumps({"deployment": full_name, "id": deployment_id, "pool": pool}))
        return 0
    click.echo(f"deployed {full_name} on the work pool {pool}{f', at {cron!r} in {timezone}' if cron else ''}")
    click.echo(f"run it:        prefect deployment run {shlex.quote(full_name)} --watch")
    click.echo(f"by a worker:   prefect worker start --pool {shlex.quote(pool)}")
    return 0


@click.command()
@click.argument("file", type=click.Path(path_type=Path), metavar="[FILE.yaml]", required=False)
@home_option
def automations(file: Path | None, home: Path) -> int:
    """Install the automations that start killed runs again, or those of FILE.yaml; again, to update them.

    They are told apart by their names, so that there is never a second one of the same name.
    """
    with prefect_reached(home):
        from flows.deploy import AUTOMATIONS, install_automations

        names = install_automations(file or AUTOMATIONS)
    for name in names:
        click.echo(f"installed: {name}")
    return 0
