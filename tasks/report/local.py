"""From a local job's manifests and history to the values of its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bitfount_model.types import Problem
from tasks.curves import agreement, classified, confusion
from tasks.manifest import Manifest
from tasks.plots import class_names, curve_groups
from tasks.report.shared import (
    Ended,
    counted,
    facts_of,
    filled,
    going_on,
    length_of,
    metric_rows,
    origin,
    seconds_text,
    state_of,
)
from tasks.report.values import Lines, Matrix, Points, Report, Section, Series, Table
from tasks.run_contents import figure, source_name

MOST_POINTS = 500
MOST_TARGETS = 6
Tested = tuple[np.ndarray, np.ndarray]
"""Predictions and targets of the test rows, `(rows, …)` each."""


def local_report(
    manifests: Mapping[str, Manifest],
    history: Sequence[Mapping[str, Any]],
    tested: Tested | None,
    wanted: Sequence[str],
    ended: Ended,
) -> Report:
    """What the report of a local job says.

    Args:
        manifests: step -> manifest of the finished steps, `initialise` among them.
        history: epoch records: `epoch`, `train_loss`, `val_stats`.
        tested: None where there were no test rows, or the job was not evaluated.
        wanted: the steps that make the job complete.
        ended: how it ended, if it is not finished.
    """
    made = manifests["initialise"].values
    unit, number = length_of(made)
    length = counted(number, unit)
    state = state_of(manifests, wanted, f"{counted(len(history), 'epoch')} done, {length} wanted", ended)
    nothing: dict[str, Any] = {"metrics": {}, "rows": 0}
    evaluated = manifests["evaluate"].values if "evaluate" in manifests else nothing
    return Report(
        name=made["name"],
        job_id=made["job_id"],
        kind="local",
        state=state,
        facts=(
            *facts_of(made),
            ("Data", source_name(made["source"])),
            ("Training", f"{length}, batches of {made['batch_size']}"),
        ),
        metrics=metric_rows(evaluated["metrics"]),
        metrics_of=f"{evaluated['rows']:,} test rows",
        sections=filled(
            [
                learning(history),
                decisions(made, tested),
                against_actual(made, tested),
                timing(manifests, history),
                origin(manifests),
                going_on(made["job_id"], state == "finished", "rows"),
            ]
        ),
    )


def learning(history: Sequence[Mapping[str, Any]]) -> Section | None:
    """Losses and validation metrics by epoch, as curves where there are several; None before the first."""
    if not history:
        return None
    steps = tuple(int(record["epoch"]) for record in history)
    charts = tuple(
        Lines(
            panel_title(title, list(group)),
            "epoch",
            steps,
            tuple(series(name, place, values) for place, (name, values) in enumerate(group.items())),
        )
        for title, group in (panels(history) if len(history) > 1 else {}).items()
    )
    return Section(
        "learning",
        "Learning curves",
        charts=charts,
        tables=(Table(("last epoch", "value"), tuple(last_values(history[-1]))),),
    )


def panel_title(title: str, names: Sequence[str]) -> str:
    """The title of a chart; one curve alone has no legend, so its name is there."""
    return f"Validation {names[0]}" if len(names) == 1 and names != ["training"] else title


def panels(history: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """Panel -> curve -> values, of those curves that have a value."""
    shown = {
        title: {name: values for name, values in curves.items() if np.isfinite(values).any()}
        for title, curves in curve_groups(history).items()
    }
    return {title: curves for title, curves in shown.items() if curves}


def series(name: str, place: int, values: np.ndarray) -> Series:
    """A curve of which nan is a gap."""
    return Series(name, place, tuple(float(value) if np.isfinite(value) else None for value in values))


def last_values(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of an epoch."""
    return [
        ("training loss", figure(record["train_loss"])),
        *((name, figure(value)) for name, value in record["val_stats"].items()),
    ]


def decisions(made: Mapping[str, Any], tested: Tested | None) -> Section | None:
    """The confusion matrix; None where there are no classes to tell apart, or no test rows."""
    problem = Problem(made["problem"])
    if tested is None or problem not in (Problem.BINARY, Problem.MULTICLASS) or len(tested[0]) == 0:
        return None
    found = classified(problem, *tested)
    names = class_names(problem, made["classes"], found)
    counts = confusion(found.actual, found.decided, len(names))
    total, right = int(counts.sum()), int(np.trace(counts))
    if not total:
        return None
    matrix = Matrix("Test rows by class", tuple(names), tuple(tuple(map(int, row)) for row in counts))
    return Section(
        "decisions",
        "Confusion matrix",
        words=(f"{right:,} of {total:,} test rows are right ({right / total:.1%}).",),
        charts=(matrix,),
        tables=(class_table(names, counts),),
    )


def class_table(names: Sequence[str], counts: np.ndarray) -> Table:
    """Rows, recall and precision of each class."""
    actual, decided, right = counts.sum(axis=1), counts.sum(axis=0), np.diag(counts)
    rows = (
        (name, f"{actual[at]:,}", share(right[at], actual[at]), share(right[at], decided[at]))
        for at, name in enumerate(names)
    )
    return Table(("class", "test rows", "recall", "precision"), tuple(rows))


def against_actual(made: Mapping[str, Any], tested: Tested | None) -> Section | None:
    """Predictions of numbers against the true ones; None where classes are predicted, or there are no test rows."""
    if tested is None or Problem(made["problem"]) is not Problem.REGRESSION:
        return None
    found, truth = (np.asarray(values, dtype=np.float64).reshape(len(values), -1) for values in tested)
    finite = (np.isfinite(found) & np.isfinite(truth)).all(axis=1)
    found, truth = found[finite], truth[finite]
    if not len(found):
        return None
    names = [str(name) for name in made["targets"]][: found.shape[1]]
    shown = np.linspace(0, len(found) - 1, min(MOST_POINTS, len(found))).astype(np.int64)
    agreed = ((name, *agreement(truth[:, at], found[:, at])) for at, name in enumerate(names))
    return Section(
        "agreement",
        "Predicted against actual",
        words=(f"{len(shown):,} of {len(found):,} test rows; on the dashed line predictions are right.",),
        charts=tuple(
            Points(name, tuple(truth[shown, at].tolist()), tuple(found[shown, at].tolist()))
            for at, name in enumerate(names[:MOST_TARGETS])
        ),
        tables=(
            Table(
                ("target", "R²", "mean error"),
                tuple((name, figure(finite_or_none(r2)), figure(error)) for name, r2, error in agreed),
            ),
        ),
    )


def finite_or_none(value: float) -> float | None:
    """The value, or None where it is not defined."""
    return value if np.isfinite(value) else None


def share(part: int, whole: int) -> str:
    """A part of a whole for people."""
    return figure(float(part / whole) if whole else None)


def timing(manifests: Mapping[str, Manifest], history: Sequence[Mapping[str, Any]]) -> Section | None:
    """How long training took; None before it has ended."""
    if "fit" not in manifests or not history:
        return None
    seconds, rows = manifests["fit"].values["seconds"], sum(record["rows"] for record in history)
    cells = [
        ("training", seconds_text(seconds)),
        *([("an epoch, on average", seconds_text(seconds / len(history)))] if len(history) > 1 else []),
        *([("training rows a second", f"{rows / seconds:,.0f}")] if seconds else []),
    ]
    return Section("timing", "Timing", tables=(Table(("what", "time"), tuple(cells)),))
