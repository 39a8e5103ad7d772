"""A pod's audit log as its owner reads it: held against itself, then shown as a table, or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from bitfount_model.errors import IntegrityError
from flows.job_list import as_text
from tasks.federated.audit import FIRST, AuditLog, Line

COLUMNS = ("line", "when", "job", "what", "round", "rows", "model", "modeller", "why")
RIGHT = ("line", "round", "rows")
SHORT = 12


def verified(log: AuditLog, head: str | None = None) -> list[Line]:
    """All lines, each of them in its place.

    Args:
        log: the pod's.
        head: digest of a line, as it was noted earlier; the log must still hold that line. 64 zeros are in every log.

    Raises:
        IntegrityError: names the first line that is not in its place; or no line has that digest.
    """
    lines = list(log.lines())
    if head is not None and head not in (FIRST, *(line.sha256 for line in lines)):
        raise IntegrityError(
            f"no line of the audit log has the digest {head}: lines that were there when it was noted were changed or cut off"
        )
    return lines


def head_of(lines: Sequence[Line]) -> str:
    """The digest of the last line: noted elsewhere, it shows later that nothing before it was changed."""
    return lines[-1].sha256 if lines else FIRST


def as_json(log: AuditLog, lines: Sequence[Line]) -> dict[str, Any]:
    """The log for scripts."""
    shown = [
        {"number": each.number, "when": each.when, "pod": each.pod, **asdict(each.decision), "sha256": each.sha256}
        for each in lines
    ]
    return {"head": head_of(lines), "torn_bytes": log.torn_bytes(), "lines": shown}


def show_audit(console: Console, log: AuditLog, lines: Sequence[Line]) -> None:
    """Prints a row for each line, and the head."""
    table = Table()
    for name in COLUMNS:
        table.add_column(name, justify="right" if name in RIGHT else "left", overflow="fold")
    for line in lines:
        table.add_row(*map(as_text, cells_of(line)))
    if lines:
        console.print(table)
    if torn := log.torn_bytes():
        console.print(
            f"! the last {torn} bytes are of a line whose writer was ended in the middle of it; the next line will say so"
        )
    count = "1 line" if len(lines) == 1 else f"{len(lines):,} lines"
    console.print(f"{count}, each follows from the one before; head {head_of(lines)}", soft_wrap=True)


def cells_of(line: Line) -> list[str]:
    """A line's cells; digests and keys by their beginnings or ends, which tell them apart."""
    said = line.decision
    return [
        str(line.number),
        line.when[:19],
        said.job or "",
        said.what,
        "" if said.round_number is None else str(said.round_number),
        "" if said.rows is None else f"{said.rows:,}",
        (said.model or "")[:SHORT],
        (said.modeller or "")[-SHORT:],
        " ".join((said.reason or "").split()),
    ]
