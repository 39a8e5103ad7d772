"""Rows of the table of promises: medians over runs, a figure with its spread, whether the promise is met."""

from __future__ import annotations

from pathlib import Path

import pytest
from promises import Promise, amount, difference, line, ratio, read_rows, write_json

PAIRS = [(2.0, 3.0), (1.0, 2.5), (4.0, 4.0)]


def test_a_ratio_is_the_median_of_each_runs_own() -> None:
    row = ratio("fit", PAIRS, 2.0, unit="s")
    assert (row.floor, row.ours) == (2.0, 3.0)
    assert (row.figure, row.lowest, row.highest, row.figure_unit) == (1.5, 1.0, 2.5, "x")


def test_a_difference_is_in_the_unit_of_what_was_measured() -> None:
    row = difference("round", PAIRS, 0.1, unit="s")
    assert (row.figure, row.lowest, row.highest, row.figure_unit) == (1.0, 0.0, 1.5, "s")


def test_an_amount_is_ours_with_or_without_something_beside_it() -> None:
    assert amount("memory", [3.0, 1.0, 2.0], unit="MB").floor is None
    row = amount("help", [3.0, 1.0, 2.0], unit="s", floor=[0.5, 0.1, 0.2])
    assert (row.floor, row.ours, row.figure) == (0.2, 2.0, 2.0)


@pytest.mark.parametrize(("promise", "met"), [(1.5, True), (1.499, False), (None, None)])
def test_a_promise_is_met_by_a_figure_that_is_not_above_it(promise: float | None, met: bool | None) -> None:
    row = ratio("fit", PAIRS, promise, unit="s")
    assert row.met is met
    assert line(row).endswith({True: "met", False: "missed", None: "(1 to 2.5)"}[met])


def test_a_figure_that_is_no_number_meets_nothing() -> None:
    assert amount("memory", [float("nan")], 1.0, unit="MB").met is False


def test_rows_are_the_same_after_a_file(tmp_path: Path) -> None:
    rows: list[Promise] = [ratio("fit", PAIRS, 2.0, unit="s"), amount("memory", [3.25], unit="MB")]
    write_json(tmp_path / "rows.json", rows, machine="two cores")
    assert read_rows(tmp_path / "rows.json") == rows


def test_a_line_says_what_is_measured_what_is_promised_and_whether_it_is_met() -> None:
    text = line(ratio("fit of rows", [(0.1, 0.1234), (0.1, 0.2)], 1.2, unit="s"))
    assert " ".join(text.split()) == "fit of rows 0.1 s 0.162 s 1.62 x (1.23 to 2) 1.2 x missed"
