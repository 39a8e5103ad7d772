"""What an owner does about models: reads a source that is shown safely, approves it, sees what is approved, takes it back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bitfount_model import BitfountModelReference
from bitfount_model.federation.book import Approval
from flows.job_list import as_text
from tasks.federated.approvals import classes_in, lines_of
from tasks.store import Store

COLUMNS = ("sha256", "class", "file", "bytes", "approved", "by")


def source_at(place: str) -> tuple[bytes, str]:
    """The bytes of a model's source, and what its file is called; none of it is run.

    Args:
        place: a path, or a URL such as s3://bucket/federation/job/model.py.

    Raises:
        ModelFileError: there is no such file.
        StorageError: there is nothing there, or the store does not answer.
    """
    folder, _, name = place.rpartition("/")
    if "://" in place:
        return Store(folder).get(name), name
    path = Path(place).expanduser()
    return BitfountModelReference(path).source(), path.name


def shown(source: bytes, approval: Approval, place: str) -> list[str]:
    """What an owner reads before deciding: the source with its lines' numbers, its classes, its digest.

    Raises:
        ModelFileError: it is not Python text.
    """
    lines = list(lines_of(source))
    width = len(str(len(lines)))
    classes = ", ".join(f"{each.name} (line {each.line})" for each in classes_in(source))
    return [
        *(f"{number:>{width}}  {line}" for number, line in enumerate(lines, start=1)),
        "",
        f"file:     {place!r}, {approval.size:,} bytes, {len(lines):,} lines",
        f"classes:  {classes}",
        f"approved: {approval.class_name}",
        f"sha256:   {approval.sha256}",
    ]


def as_json(approvals: Sequence[Approval]) -> list[dict[str, Any]]:
    """Approvals for scripts."""
    return [asdict(each) for each in approvals]


def show_approvals(console: Console, approvals: Sequence[Approval]) -> None:
    """Prints a row for each approval."""
    table = Table()
    for name in COLUMNS:
        table.add_column(name, justify="right" if name == "bytes" else "left", overflow="fold")
    for each in approvals:
        cells = (each.sha256, each.class_name, each.file_name, f"{each.size:,}", each.when, each.who)
        table.add_row(*map(as_text, cells))
    console.print(table)
