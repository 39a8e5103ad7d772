"""Holds measured rows beside recorded ones: what has grown grossly since."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from promises import Promise, number

GROSS = 2.0
"""The most that a figure may be, in recorded ones: machines differ, and others use them too."""


def regressions(rows: Sequence[Promise], recorded: Sequence[Promise]) -> dict[str, str]:
    """What has grown grossly: the figure, and, where that is no ratio, also what it is beside its floor.

    The same code takes twice the seconds where the machine is half as fast, but its floor does so too.

    Args:
        rows: as they were measured now.
        recorded: as they were measured before. A row whose name is not among them is not held against anything.

    Returns:
        Name of the row -> what was found and what was recorded.
    """
    before = {row.name: row for row in recorded}
    return {
        row.name: f"{number(row.figure)} {row.figure_unit}".rstrip() + f", recorded {number(before[row.name].figure)}"
        for row in rows
        if row.name in before
        and not any(found <= GROSS * old for found, old in sizes(row, before[row.name]))  # NaN too
    }


def sizes(row: Promise, before: Promise) -> Iterator[tuple[float, float]]:
    """A row's figure, and, where that is no ratio and has a floor, the ratio to it: (now, before) of each."""
    yield row.figure, before.figure
    if row.figure_unit == row.unit and row.floor and before.floor:
        yield row.figure / row.floor, before.figure / before.floor


def unrecorded(rows: Sequence[Promise], recorded: Sequence[Promise]) -> list[str]:
    """Names of rows that have not been recorded."""
    known = {row.name for row in recorded}
    return [row.name for row in rows if row.name not in known]


def better(first: Sequence[Promise], second: Sequence[Promise]) -> list[Promise]:
    """Of two measurements of the same rows the lower figure, row by row: what else the machine did only adds."""
    again = {row.name: row for row in second}
    return [min(row, again.get(row.name, row), key=lambda each: each.figure) for row in first]
