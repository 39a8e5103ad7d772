"""What a report is made of, as plain values: contents make them, charts draw them, the page lays them out."""

from __future__ import annotations

from dataclasses import dataclass

OVER_ALL, MISSING, NOT_ASKED = -1, -2, -3
"""Colours of what is over all pods, of a pod that is missing, and of one that was not asked. Pods count from 0."""


@dataclass(frozen=True)
class Table:
    """A table; the first column names its rows.

    Attributes:
        head: of the columns.
        rows: one cell a column.
        emphasis: how many of the last rows are over all the others, e.g. a total.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    emphasis: int = 0


@dataclass(frozen=True)
class Series:
    """Values under one name.

    Attributes:
        name: what people see.
        colour: from 0, or one of the named ones above; a pod has the same one in all charts.
        values: one a step, or one alone; None is a gap.
    """

    name: str
    colour: int
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Lines:
    """Curves over steps.

    Attributes:
        title: of the chart.
        unit: what a step is, e.g. `epoch`.
        steps: their numbers.
        series: one curve each, as long as the steps.
    """

    title: str
    unit: str
    steps: tuple[int, ...]
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Stack:
    """Parts of a whole at each step, one above the other; fields as of `Lines`."""

    title: str
    unit: str
    steps: tuple[int, ...]
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Bars:
    """One bar each, against what holds for all of them.

    Attributes:
        title: of the chart.
        series: one value each.
        over_all: what holds for all.
    """

    title: str
    series: tuple[Series, ...]
    over_all: float | None


@dataclass(frozen=True)
class Matrix:
    """Counts of rows by actual class (down) and class decided on (across).

    Attributes:
        title: of the chart.
        names: of the classes.
        counts: `(classes, classes)`.
    """

    title: str
    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Points:
    """Predictions against what they should be.

    Attributes:
        title: of the chart.
        actual: one a row.
        predicted: as actual; all are finite.
    """

    title: str
    actual: tuple[float, ...]
    predicted: tuple[float, ...]


@dataclass(frozen=True)
class Presence:
    """Who took part at which step.

    Attributes:
        title: of the chart.
        unit: what a step is.
        steps: their numbers.
        names: who.
        states: for each name and step, a key of `STATES`.
    """

    title: str
    unit: str
    steps: tuple[int, ...]
    names: tuple[str, ...]
    states: tuple[tuple[str, ...], ...]


STATES = {"took part": OVER_ALL, "missing": MISSING, "not asked": NOT_ASKED}
"""What a pod may have done in a round -> its colour."""

Chart = Lines | Stack | Bars | Matrix | Points | Presence


@dataclass(frozen=True)
class Section:
    """A part of the report under a heading of its own.

    Attributes:
        key: of the heading, for links.
        title: the heading.
        words: sentences above all else.
        charts: side by side where there is room.
        legend: (name, colour) of what the charts show.
        tables: below the charts.
        code: lines for a shell.
    """

    key: str
    title: str
    words: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    legend: tuple[tuple[str, int], ...] = ()
    tables: tuple[Table, ...] = ()
    code: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """All of a report.

    Attributes:
        name: of the job, for people.
        job_id: the job.
        kind: `local` or `federated`.
        state: how far the job is.
        facts: (what, value) pairs.
        metrics: (metric, value) pairs of the main result.
        metrics_of: what rows they are of.
        sections: those that have something to show.
    """

    name: str
    job_id: str
    kind: str
    state: str
    facts: tuple[tuple[str, str], ...]
    metrics: tuple[tuple[str, str], ...]
    metrics_of: str
    sections: tuple[Section, ...]
