"""From history and predictions to the pictures of a job's MLflow run, as PNG bytes; all functions are pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bitfount_model.types import Problem
from tasks.class_plots import confusion_matrix, label_table, precision_recall_plot, roc_plot
from tasks.colours import COLOURS
from tasks.curves import Classified, agreement, classified
from tasks.plot_style import (
    DASHES,
    DENSITY,
    FAINT,
    drawable,
    dress,
    dress_axes,
    few_numbers,
    label,
    legend,
    new_figure,
    png,
    say,
    whole_numbers,
)

CLASSIFICATION = (Problem.BINARY, Problem.MULTICLASS, Problem.MULTILABEL)
MAX_PANELS = 12
UNITS: Mapping[str, str] = {"MAE": "Error", "RMSE": "Error", "MSE": "Squared error", "Brier Loss": "Brier loss"}
"""Metric -> the panel it shares with those of the same unit; others are found by their range or stand alone."""


def job_plots(
    problem: Problem | str,
    names: Sequence[str] | None,
    history: Sequence[Mapping[str, Any]],
    preds: np.ndarray | None,
    targs: np.ndarray | None,
) -> dict[str, bytes]:
    """The plots that suit a job.

    Args:
        problem: what is predicted; segmentation has learning curves only.
        names: of the classes; of the labels or the target columns, where there are several. None numbers them.
        history: epoch records: `epoch`, `train_loss`, `val_stats`.
        preds: test predictions as the model gives them, `(rows, ...)`; None or no rows if there was no test.
        targs: test targets, `(rows,)` or `(rows, targets)`.

    Returns:
        Name -> PNG: `learning_curves`; `confusion_matrix`, `roc`, `precision_recall` of a classifier;
        `predicted_against_actual` of a regressor.
    """
    kind = Problem(problem)
    plots = {"learning_curves": learning_curves(history)} if history else {}
    if preds is None or targs is None or len(preds) == 0:
        return plots
    if kind is Problem.REGRESSION:
        return plots | {"predicted_against_actual": predicted_against_actual(preds, targs, names or ())}
    if kind not in CLASSIFICATION:
        return plots
    found = classified(kind, preds, targs)
    every = class_names(kind, names, found)
    return plots | {
        "confusion_matrix": label_table(found, every)
        if kind is Problem.MULTILABEL
        else confusion_matrix(found.actual, found.decided, every),
        "roc": roc_plot(found, every),
        "precision_recall": precision_recall_plot(found, every),
    }


def class_names(problem: Problem, names: Sequence[str] | None, found: Classified) -> list[str]:
    """One name a class or label; those that were not given are numbers."""
    known = [str(name) for name in names or ()]
    columns = 2 if problem is Problem.BINARY else found.scores.shape[1]
    numbers = int(found.actual.max(initial=0)) + 1 if problem is not Problem.MULTILABEL else 0
    return known + [str(number) for number in range(len(known), max(columns, numbers))]


def learning_curves(history: Sequence[Mapping[str, Any]]) -> bytes:
    """Losses and validation metrics by epoch, one panel for each group that shares an axis.

    Args:
        history: epoch records: `epoch`, `train_loss`, `val_stats`; missing and nan values are gaps.
    """
    epochs = np.array([record["epoch"] for record in history], dtype=np.float64)
    return curve_panels("Learning curves", "epoch", epochs, curve_groups(history))


def curve_panels(title: str, unit: str, steps: np.ndarray, groups: Mapping[str, Mapping[str, np.ndarray]]) -> bytes:
    """Curves over steps, one panel for each group.

    Args:
        title: of the figure.
        unit: what a step is, e.g. "epoch".
        steps: `(steps,)`.
        groups: panel -> name -> values `(steps,)`; nan is a gap.
    """
    panels = list(groups.items())
    shown = panels[:MAX_PANELS]
    left = len(panels) - len(shown)
    count = f"1 {unit}" if len(steps) == 1 else f"{len(steps)} {unit}s"
    note = "last values in brackets" + (f"; {left} more metrics are not shown" if left else "")
    figure, grid = _grid(len(shown), f"{title} over {count}", note)
    for axes, (name, curves) in zip(grid, shown, strict=True):
        _draw_curves(axes, name, unit, steps, curves)
    return png(figure)


def curve_groups(history: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """Panel -> name -> values `(epochs,)`: losses, then scores within [0, 1], then the others by unit."""
    names = list(dict.fromkeys(name for record in history for name in record["val_stats"]))
    groups: dict[str, dict[str, np.ndarray]] = {
        "Loss": {"training": drawable([_or_nan(r["train_loss"]) for r in history])}
    }
    for name in names:
        values = drawable([_or_nan(record["val_stats"].get(name)) for record in history])
        finite = values[np.isfinite(values)]
        if name.lower() in ("loss", "validation_loss", "val_loss"):
            groups["Loss"]["validation"] = values
        elif name in UNITS:
            groups.setdefault(UNITS[name], {})[name] = values
        elif finite.size == 0 or (finite.min() >= 0 and finite.max() <= 1):
            groups.setdefault("Validation scores", {})[name] = values
        else:
            groups.setdefault(name, {})[name] = values
    return groups


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _draw_curves(axes: Axes, title: str, unit: str, epochs: np.ndarray, curves: Mapping[str, np.ndarray]) -> None:
    dress_axes(axes, title, x=unit)
    finite = np.concatenate([values[np.isfinite(values)] for values in curves.values()])
    if finite.size == 0:
        say(axes, "no finite values")
        return
    handles = []
    for place, values in enumerate(curves.values()):
        colour, dash = COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]
        marker = "o" if len(epochs) <= 30 else ""
        handles += axes.plot(
            epochs,
            values,
            color=colour,
            linestyle=dash,
            linewidth=1.8,
            marker=marker,
            markersize=7 if len(epochs) == 1 else 3.5,
        )
    whole_numbers(axes)
    if finite.min() > 0 and finite.max() / finite.min() > 100:
        axes.set_yscale("log")
    elif title == "Validation scores" and finite.min() < 0.5:
        axes.set_ylim(-0.03, 1.03)
    if len(epochs) == 1:
        axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
    legend(
        axes,
        handles,
        [_last(name, values) for name, values in curves.items()],
        "outside" if len(curves) > 4 else "best",
    )


def _last(name: str, values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    return f"{label(name)} ({finite[-1]:.4g})" if finite.size else f"{label(name)} (not defined)"


def predicted_against_actual(preds: np.ndarray, targs: np.ndarray, names: Sequence[str]) -> bytes:
    """Predictions against targets, one panel a target; on the diagonal they are equal.

    Args:
        preds: `(rows,)` or `(rows, targets)`.
        targs: as preds.
        names: of the columns; those that are missing are numbered.
    """
    found, truth = (drawable(values).reshape(len(values), -1) for values in (preds, targs))
    columns = min(found.shape[1], truth.shape[1])
    every = [*names, *(f"target {place + 1}" for place in range(len(names), columns))]
    shown = min(columns, MAX_PANELS)
    left = f"; {columns - shown} more targets are not shown" if columns > shown else ""
    figure, grid = _grid(shown, "Predicted against actual", f"{len(found):,} test rows{left}", square=True)
    for place, axes in enumerate(grid):
        _draw_against(axes, truth[:, place], found[:, place], every[place])
    return png(figure)


def _draw_against(axes: Axes, truth: np.ndarray, found: np.ndarray, name: str) -> None:
    both = np.isfinite(truth) & np.isfinite(found)
    truth, found = truth[both], found[both]
    dress_axes(axes, name, x=f"actual {label(name, 40)}", y=f"predicted {label(name, 40)}")
    if truth.size == 0:
        say(axes, "no finite values")
        return
    low, high = min(truth.min(), found.min()), max(truth.max(), found.max())
    margin = 0.04 * (high - low) or max(1.0, 0.04 * abs(high))
    ends = (low - margin, high + margin)
    axes.plot(ends, ends, color=FAINT, linewidth=1.1, linestyle=(0, (4, 3)))
    if truth.size > 5000:
        axes.hexbin(
            truth, found, gridsize=60, bins="log", mincnt=1, cmap=DENSITY, linewidths=0.1, extent=(*ends, *ends)
        )
    else:
        axes.scatter(truth, found, s=18, color=COLOURS[0], alpha=max(0.25, min(0.75, 60 / truth.size)), linewidths=0)
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    axes.set_aspect("equal")
    few_numbers(axes)
    lost = f"\n{int((~both).sum()):,} rows are not finite" if not both.all() else ""
    r2, error = agreement(truth, found)
    figures = f"R² {r2:.3f}\nmean error {error:.4g}{lost}"
    box = axes.text(0.04, 0.96, figures, transform=axes.transAxes, ha="left", va="top", linespacing=1.5)
    box.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 3})
    dress(box, size=9.5)


def _grid(count: int, title: str, subtitle: str = "", *, square: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure with that many panels, one to three in a row."""
    across = 2 if count in (2, 4) else min(count, 3)
    down = math.ceil(count / across)
    width, height = (4.6, 4.4) if square else (4.9, 3.5)
    figure = new_figure(max(6.2, width * across), height * down + 0.9, title, subtitle)
    return figure, [figure.add_subplot(down, across, place + 1) for place in range(count)]
