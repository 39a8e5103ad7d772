"""Holds measured rows beside recorded ones: what has grown grossly since."""

from __future__ import annotations

from collections.abc import Sequence

from promises import Promise, number

GROSS = 2.0
"""The most that a figure may be, in recorded ones: machines differ, and others use them too."""


def regressions(rows: Sequence[Promise], recorded: Sequence[Promise]) -> dict[str, str]:
    """What has grown grossly.

    Args:
        rows: as they were measured now.
        recorded: as they were measured before. A row whose name is not among them is not held against anything.

    Returns:
        Name of the row -> what was found and what was recorded.
    """
    before = {row.name: row.figure for row in recorded}
    return {
        row.name: f"{number(row.figure)} {row.figure_unit}".rstrip() + f", recorded {number(before[row.name])}"
        for row in rows
        if row.name in before and not row.figure <= GROSS * before[row.name]  # also where it is NaN
    }


def unrecorded(rows: Sequence[Promise], recorded: Sequence[Promise]) -> list[str]:
    """Names of rows that have not been recorded."""
    known = {row.name for row in recorded}
    return [row.name for row in rows if row.name not in known]


def better(first: Sequence[Promise], second: Sequence[Promise]) -> list[Promise]:
    """Of two measurements of the same rows the lower figure, row by row: what else the machine did only adds."""
    again = {row.name: row for row in second}
    return [min(row, again.get(row.name, row), key=lambda each: each.figure) for row in first]
