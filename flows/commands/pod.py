"""`bitfount-flows pod`: what a data owner does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from flows.commands.jobs import console
from flows.commands.shared import Unreachable, home_option, json_option, verbose_option

pod_file_argument = click.argument("pod_file", type=click.Path(path_type=Path), metavar="POD.yaml")


@click.group()
def pod() -> None:
    """What a data owner does: serve a pod beside the private rows, approve models, read what the pod did."""


@pod.command(
    epilog="""\b
Examples:
  export PREFECT_API_URL=http://prefect.example.org:4200/api
  bitfount-flows pod serve POD.yaml
"""
)
@pod_file_argument
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


@pod.command(
    epilog="""\b
Examples:
  bitfount-flows pod approve POD.yaml model.py
  bitfount-flows pod approve POD.yaml s3://federation/tumours/tumours-1/model.py --class TumourClassifier
"""
)
@pod_file_argument
@click.argument("model_file", metavar="MODEL.py")
@click.option("--class", "class_name", metavar="NAME", help="The class that may run. Default: the only model class.")
@click.option("--yes", is_flag=True, help="Do not ask; needed where no terminal is.")
def approve(pod_file: Path, model_file: str, class_name: str | None, yes: bool) -> int:
    """Show the source MODEL.py, a path or a URL, and approve exactly these bytes for the pod of POD.yaml.

    Nothing of the source is run. A pod that is served heeds it from the next job on.
    """
    from flows.pod_approvals import shown, source_at
    from flows.settings import read_pod
    from tasks.federated.approvals import approval_for

    state = read_pod(pod_file).private()
    source, file_name = source_at(model_file)
    approval = approval_for(source, file_name, class_name)
    click.echo("\n".join(shown(source, approval, model_file)))
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(
                "no terminal to ask on: read the source above, then give the same command with --yes"
            )
        click.confirm(f"May {approval.class_name} run beside the rows of pod {state.pod}?", abort=True)
    state.approve(source, approval)
    click.echo(f"approved for pod {state.pod}: {approval.class_name}, sha256 {approval.sha256}")
    return 0


@pod.command()
@pod_file_argument
@json_option
def approvals(pod_file: Path, as_json: bool) -> int:
    """List the models that are approved for the pod of POD.yaml, newest first."""
    from flows.pod_approvals import as_json as for_scripts
    from flows.pod_approvals import show_approvals
    from flows.settings import read_pod

    state = read_pod(pod_file).private()
    found = state.approvals.all()
    if as_json:
        click.echo(json.dumps({"pod": state.pod, "approvals": for_scripts(found)}))
    elif found:
        show_approvals(console(), found)
    else:
        click.echo(f"no model is approved for pod {state.pod}: `bitfount-flows pod approve {pod_file} MODEL.py`")
    return 0


@pod.command()
@pod_file_argument
@click.argument("sha256", metavar="SHA256")
def revoke(pod_file: Path, sha256: str) -> int:
    """Take back the approval whose SHA256 begins so: later jobs with that model are refused; those under way go on."""
    from flows.settings import read_pod
    from tasks.federated.approvals import this_user

    state = read_pod(pod_file).private()
    named = state.approvals.named(sha256)
    state.revoke(named, this_user())
    click.echo(f"revoked for pod {state.pod}: sha256 {named}")
    return 0


@pod.command(
    epilog="""\b
Examples:
  bitfount-flows pod audit POD.yaml
  bitfount-flows pod audit POD.yaml --head 5d2ab1e2…     # the head that was printed, and noted, last month
"""
)
@pod_file_argument
@click.option("--head", metavar="SHA256", help="The head as it was noted earlier: the log must still hold that line.")
@json_option
def audit(pod_file: Path, head: str | None, as_json: bool) -> int:
    """Check the log of what the pod of POD.yaml decided and did, and show it; the head at the end is worth noting elsewhere."""
    from flows.pod_audit import as_json as for_scripts
    from flows.pod_audit import show_audit, verified
    from flows.settings import read_pod

    log = read_pod(pod_file).private().audit
    lines = verified(log, head)
    if as_json:
        click.echo(json.dumps(for_scripts(log, lines)))
    else:
        show_audit(console(), log, lines)
    return 0
