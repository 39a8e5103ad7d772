"""`bitfount-flows ui`: MLflow's pages."""

from __future__ import annotations

from pathlib import Path

import click

from flows.commands.shared import home_option


@click.command(
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
