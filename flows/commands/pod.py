"""`bitfount-flows pod`: what a data owner does."""

from __future__ import annotations

from pathlib import Path

import click

from flows.commands.shared import Unreachable, home_option, verbose_option


@click.group()
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
