"""`bitfount-flows keys`: the key that a modeller signs jobs with."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def keys() -> None:
    """The key that a modeller signs federated jobs with."""


@keys.command(
    epilog="""\b
Examples:
  bitfount-flows keys make modeller.pem
  cat modeller.pem.pub          # what pods' owners put under policy.modellers
"""
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE")
def make(file: Path) -> int:
    """Write a new private key to FILE, for its owner alone, and the public one to FILE.pub; print the public one.

    A file that is there is never replaced. A job signs with `sign_with: FILE`.
    """
    from flows.signing_keys import make_key

    click.echo(make_key(file))
    return 0
