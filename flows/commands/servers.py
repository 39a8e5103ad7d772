"""`bitfount-flows up | down`: Prefect and MLflow for a workspace, running until they are ended."""

from __future__ import annotations

import json
from pathlib import Path

import click

from flows.commands.shared import check_home, home_option, json_option

PORT = click.IntRange(0, 65535)


@click.command(
    epilog="""\b
Examples:
  bitfount-flows up
  bitfount-flows up --worker --home runs --prefect-port 0 --mlflow-port 0
  bitfount-flows up --prefect-db 'postgresql://flows:${DB_PASSWORD}@db.example.org/prefect' \\
      --mlflow-db 'postgresql://flows:${DB_PASSWORD}@db.example.org/mlflow' --artifacts s3://mlflow
  bitfount-flows up --host 0.0.0.0 --allowed-hosts prefect.example.org,mlflow.example.org
"""
)
@home_option
@click.option("--prefect-port", type=PORT, default=4200, show_default=True, help="Port of Prefect; 0: a free one.")
@click.option("--mlflow-port", type=PORT, default=5000, show_default=True, help="Port of MLflow; 0: a free one.")
@click.option("--worker", is_flag=True, help="Start a process worker on the work pool `bitfount` too.")
@click.option(
    "--prefect-db", metavar="URL", help="PostgreSQL behind Prefect; ${NAME} in it is an environment variable."
)
@click.option("--mlflow-db", metavar="URL", help="PostgreSQL behind MLflow; ${NAME} in it is an environment variable.")
@click.option("--artifacts", metavar="URL", help="Where MLflow keeps files, such as s3://bucket. Default: in --home.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--allowed-hosts",
    metavar="NAME,...",
    default="",
    help="Names by which clients elsewhere reach the servers, directly or through a reverse proxy.",
)
@json_option
def up(
    home: Path,
    prefect_port: int,
    mlflow_port: int,
    worker: bool,
    prefect_db: str | None,
    mlflow_db: str | None,
    artifacts: str | None,
    host: str,
    allowed_hosts: str,
    as_json: bool,
) -> int:
    """Start a Prefect and an MLflow server that stay until `down`, with their files in --home.

    MLflow shows the runs of --home. Servers that run already are left as they are. Reached from elsewhere, by --host or
    --allowed-hosts, they need authentication: PREFECT_SERVER_API_AUTH_STRING (user:password), MLFLOW_AUTH_ADMIN_PASSWORD
    (12 characters or more) and MLFLOW_FLASK_SERVER_SECRET_KEY in the environment.
    """
    check_home(home)
    from flows.servers import exports
    from flows.servers import up as start
    from flows.services import Wanted
    from flows.workspace import Workspace

    running = start(
        Wanted(
            workspace=Workspace(home),
            prefect_port=prefect_port,
            mlflow_port=mlflow_port,
            host="127.0.0.1" if host == "localhost" else host,
            allowed_hosts=tuple(name.strip() for name in allowed_hosts.split(",") if name.strip()),
            prefect_db=prefect_db,
            mlflow_db=mlflow_db,
            artifacts=artifacts,
            worker=worker,
        ),
        lambda line: click.echo(line, err=as_json),
    )
    lines = exports(running)
    click.echo("\n".join(["", "For the commands of this shell:", "", *lines]), err=as_json)
    if as_json:
        click.echo(
            json.dumps({name: {"url": each.url, "pid": each.pid, "log": each.log} for name, each in running.items()})
        )
    return 0


@click.command(
    epilog="""\b
Examples:
  bitfount-flows down
  bitfount-flows down --home runs
"""
)
@home_option
def down(home: Path) -> int:
    """End the servers and the worker that `up` started in --home; jobs, runs and logs stay."""
    from flows.servers import down as end

    end(home, click.echo)
    return 0
