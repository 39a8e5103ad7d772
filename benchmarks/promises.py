"""From a benchmark's measurements to rows of one table and one JSON file; and the command line that all benchmarks have."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any


class Form(StrEnum):
    """How much is measured."""

    QUICK = "quick"
    USUAL = "usual"
    FULL = "full"


@dataclass(frozen=True)
class Promise:
    """One row of the table: what was measured, and the most that it may be.

    Attributes:
        name: what was measured; the same in every form, so that figures can be compared.
        floor: what it is held beside, in `unit`: the median over the runs. None where there is nothing.
        ours: in `unit`, the median over the runs.
        unit: of floor and ours, such as `ms`.
        figure: what is held against the promise: a ratio, a difference or ours itself; the median over the runs.
        figure_unit: of figure, lowest, highest and promise; `x` for a ratio.
        lowest: figure of the best run.
        highest: figure of the worst run.
        promise: the most that the figure may be. None for a row that only stands beside others.
    """

    name: str
    floor: float | None
    ours: float
    unit: str
    figure: float
    figure_unit: str
    lowest: float
    highest: float
    promise: float | None

    @property
    def met(self) -> bool | None:
        """Whether the promise is kept; None where there is none."""
        return None if self.promise is None else self.figure <= self.promise


Measure = Callable[[int, Form], list[Promise]]
"""(runs, form) -> the rows of a benchmark."""


def ratio(name: str, pairs: Sequence[tuple[float, float]], promise: float | None = None, *, unit: str) -> Promise:
    """A row of ours over its floor, run by run.

    Args:
        name: of the row.
        pairs: (floor, ours) of each run.
        promise: the most that the ratio may be.
        unit: of floor and ours.
    """
    return _row(name, pairs, [ours / floor for floor, ours in pairs], promise, unit, "x")


def difference(name: str, pairs: Sequence[tuple[float, float]], promise: float | None = None, *, unit: str) -> Promise:
    """A row of what ours takes beyond its floor, run by run. See `ratio`."""
    return _row(name, pairs, [ours - floor for floor, ours in pairs], promise, unit, unit)


def amount(
    name: str,
    values: Sequence[float],
    promise: float | None = None,
    *,
    unit: str,
    floor: Sequence[float] | None = None,
) -> Promise:
    """A row of ours itself, with something to compare it with beside it, or nothing. See `ratio`."""
    row = _row(name, [(value, value) for value in values], values, promise, unit, unit)
    return Promise(**{**asdict(row), "floor": None if floor is None else statistics.median(floor)})


def _row(
    name: str,
    pairs: Sequence[tuple[float, float]],
    figures: Sequence[float],
    promise: float | None,
    unit: str,
    figure_unit: str,
) -> Promise:
    return Promise(
        name=name,
        floor=statistics.median(floor for floor, _ in pairs),
        ours=statistics.median(ours for _, ours in pairs),
        unit=unit,
        figure=statistics.median(figures),
        figure_unit=figure_unit,
        lowest=min(figures),
        highest=max(figures),
        promise=promise,
    )


HEADER = f"{'':<58}{'floor':>12}{'ours':>12}   {'figure (spread)':<30}{'promise':>11}"


def line(row: Promise) -> str:
    """A row for people."""
    floor = "" if row.floor is None else _text(row.floor, row.unit)
    spread = "" if row.lowest == row.highest else f" ({number(row.lowest)} to {number(row.highest)})"
    figure = _text(row.figure, row.figure_unit) + spread
    promise = "" if row.promise is None else _text(row.promise, row.figure_unit)
    verdict = {None: "", True: "met", False: "missed"}[row.met]
    return f"{row.name:<58}{floor:>12}{_text(row.ours, row.unit):>12}   {figure:<30}{promise:>11}  {verdict}".rstrip()


def _text(value: float, unit: str) -> str:
    return f"{number(value)} {unit}".rstrip()


def number(value: float) -> str:
    """Three digits that count; whole numbers as they are."""
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 100 else f"{value:.3g}"


def print_table(rows: Iterable[Promise]) -> None:
    """Prints all rows below one header."""
    print(HEADER)
    for row in rows:
        print(line(row), flush=True)


def to_json(row: Promise) -> dict[str, Any]:
    """A JSON object."""
    return {**asdict(row), "met": row.met}


def from_json(value: Mapping[str, Any]) -> Promise:
    """A row that `to_json` gave."""
    return Promise(**{name: each for name, each in value.items() if name != "met"})


def read_rows(path: Path) -> list[Promise]:
    """The rows of a file that a benchmark or the runner wrote."""
    return [from_json(each) for each in json.loads(path.read_text(encoding="utf-8"))["rows"]]


def write_json(path: Path, rows: Iterable[Promise], **beside: Any) -> None:
    """Writes rows, and what belongs to them, such as the machine."""
    value = {**beside, "rows": [to_json(row) for row in rows]}
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def add_form(parser: argparse.ArgumentParser) -> None:
    """The options that say how much is measured."""
    forms = parser.add_mutually_exclusive_group()
    add = forms.add_argument
    add("--quick", dest="form", action="store_const", const=Form.QUICK, help="the least that shows something")
    add("--full", dest="form", action="store_const", const=Form.FULL, help="more runs, and what takes long")
    parser.set_defaults(form=Form.USUAL)


def command_line(measure: Measure, about: str | None, runs: Mapping[Form, int]) -> None:
    """The command line of one benchmark: prints its rows, and writes them as JSON where asked.

    Args:
        measure: gives the rows.
        about: the benchmark's docstring.
        runs: how often each form measures, unless `--runs` says it.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    counts = ", ".join(f"{form} {count}" for form, count in runs.items())
    parser.add_argument("--runs", type=int, help=f"how often it is measured (default: {counts})")
    parser.add_argument("--json", type=Path, help="a file to write the rows to")
    add_form(parser)
    options = parser.parse_args()
    rows = measure(options.runs or runs[options.form], options.form)
    print_table(rows)
    if options.json:
        write_json(options.json, rows)
