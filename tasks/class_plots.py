"""From a classifier's test rows to its pictures: confusion matrix, decisions by label, ROC, precision-recall."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tasks.colours import COLOURS
from tasks.curves import Classified, Curve, confusion, mean_curve, precision_recall, roc
from tasks.plot_style import (
    DASHES,
    FAINT,
    INK,
    dress,
    dress_axes,
    dress_ticks,
    label,
    legend,
    new_figure,
    png,
    say,
)

NAMED_CURVES = 10  # with more classes, the worst few are named and the others are grey
WORST = 5


def confusion_matrix(actual: np.ndarray, decided: np.ndarray, names: Sequence[str]) -> bytes:
    """Rows by actual class (down) and class decided on (across), coloured by the share of the actual class.

    Args:
        actual: class numbers, `(rows,)` int64.
        decided: class numbers, `(rows,)` int64.
        names: one a class.
    """
    counts = confusion(actual, decided, len(names))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right = int(np.trace(counts))
    size = min(11.0, 4.6 + 0.34 * max(0, len(names) - 4))
    figure = new_figure(
        size + 1.4,
        size,
        "Confusion matrix",
        f"{right:,} of {counts.sum():,} test rows right ({_share(right, counts.sum())})",
    )
    axes = figure.add_subplot()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    dress_axes(axes, x="predicted", y="actual", grid=False)
    _name_ticks(axes, names)
    small = len(names) <= 6
    for row, column in np.ndindex(counts.shape) if len(names) <= 24 else ():
        if counts[row, column] or small:
            text = f"{counts[row, column]:,}" + (f"\n{shares[row, column]:.1%}" if small else "")
            shown = axes.text(column, row, text, ha="center", va="center")
            dress(shown, size=11 if small else 8, colour="white" if shares[row, column] > 0.55 else INK)
    bar = figure.colorbar(picture, ax=axes, shrink=0.75, aspect=30, format="{x:.0%}")
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8.5, colors=FAINT, length=0)
    dress(bar.ax.set_ylabel("share of the actual class"), size=9, colour=FAINT)
    return png(figure)


def _name_ticks(axes: Axes, names: Sequence[str]) -> None:
    """Names of classes along both axes; every n-th where they would not fit."""
    step = max(1, math.ceil(len(names) / 40))
    places = list(range(0, len(names), step))
    shown = [label(names[place], 16 if len(names) > 6 else 20) for place in places]
    axes.set_xticks(places, shown, rotation=0 if sum(map(len, shown)) < 45 else 60)
    axes.set_yticks(places, shown)
    if sum(map(len, shown)) >= 45:
        for text in axes.get_xticklabels():
            text.set_horizontalalignment("right")
            text.set_rotation_mode("anchor")
    dress_ticks(axes, size=9 if len(names) <= 24 else 7)


def label_table(found: Classified, names: Sequence[str]) -> bytes:
    """For each label, how many rows have it and were found or missed, have it not and were flagged or not."""
    truth, decided = found.truth, found.decided == 1
    counts = np.stack(
        [(truth & decided).sum(0), (truth & ~decided).sum(0), (~truth & decided).sum(0), (~truth & ~decided).sum(0)],
        axis=1,
    )
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right = int(counts[:, [0, 3]].sum())
    height = min(14.0, 2.2 + 0.36 * len(names))
    figure = new_figure(
        7.4, height, "Decisions by label", f"{_share(right, counts.sum())} of {len(truth):,} test rows' labels right"
    )
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    dress_axes(axes, grid=False)
    axes.set_xticks(range(4), ["present, found", "present, missed", "absent, flagged", "absent, not flagged"])
    axes.xaxis.tick_top()
    step = max(1, math.ceil(len(names) / 40))
    axes.set_yticks(range(0, len(names), step), [label(name) for name in names[::step]])
    dress_ticks(axes, size=9)
    for row, column in np.ndindex(counts.shape) if len(names) <= 40 else ():
        shown = axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center")
        dress(shown, size=9, colour="white" if shares[row, column] > 0.55 else INK)
    return png(figure)


def roc_plot(found: Classified, names: Sequence[str]) -> bytes:
    """ROC curves: of the positive class, or of each class or label against the rest."""
    curves = {place: roc(found.truth[:, place], found.scores[:, place]) for place in range(found.truth.shape[1])}
    figure, axes = _curve_figure("ROC curve", found, names, "; AUC is the area below")
    dress_axes(axes, x="false positive rate", y="true positive rate")
    if any(curves.values()):
        axes.plot([0, 1], [0, 1], color="#aeb8c1", linewidth=1, linestyle=(0, (4, 3)))
    _draw_areas(axes, curves, _column_names(found, names), "AUC", average=True)
    return png(figure)


def precision_recall_plot(found: Classified, names: Sequence[str]) -> bytes:
    """Precision-recall curves: of the positive class, or of each class or label against the rest."""
    columns = range(found.truth.shape[1])
    curves = {place: precision_recall(found.truth[:, place], found.scores[:, place]) for place in columns}
    figure, axes = _curve_figure("Precision and recall", found, names, "; AP is the average precision")
    dress_axes(axes, x="recall", y="precision")
    if len(curves) == 1 and any(curves.values()):
        axes.axhline(found.truth.mean(), color="#aeb8c1", linewidth=1, linestyle=(0, (4, 3)))
    _draw_areas(axes, curves, _column_names(found, names), "AP", average=False)
    return png(figure)


def _curve_figure(title: str, found: Classified, names: Sequence[str], note: str) -> tuple[Figure, Axes]:
    rows = f"{len(found.truth):,} test rows{note}"
    single = found.truth.shape[1] == 1
    who = " against ".join(label(name) for name in reversed(names)) if single else "each against the rest"
    figure = new_figure(5.0 if single else 7.4, 5.4, title, f"{who}, {rows}")
    axes = figure.add_subplot()
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")
    axes.set_anchor("W")
    return figure, axes


def _column_names(found: Classified, names: Sequence[str]) -> list[str]:
    return list(names[-1:]) if found.truth.shape[1] == 1 else list(names)


def _draw_areas(
    axes: Axes, curves: Mapping[int, Curve | None], names: Sequence[str], area: str, *, average: bool
) -> None:
    """Curves with the area under each in the legend, the smallest area first where there are too many to name."""
    defined = {place: curve for place, curve in curves.items() if curve is not None}
    if not defined:
        say(axes, "only one class occurs in the rows:\nthe curve is not defined")
        return
    named = (
        sorted(defined, key=lambda place: defined[place].area)[:WORST] if len(defined) > NAMED_CURVES else list(defined)
    )
    for place in defined.keys() - set(named):
        axes.plot(defined[place].x, defined[place].y, color="#c9d1d8", linewidth=0.8)
    handles: list[Any] = []
    for number, place in enumerate(named):
        handles += axes.plot(defined[place].x, defined[place].y, color=COLOURS[number], linewidth=1.9)
    shown = [f"{label(names[place])} ({area} {defined[place].area:.3f})" for place in named]
    if len(curves) == 1:
        (only,) = defined.values()
        if average:
            axes.fill_between(only.x, only.y, color=COLOURS[0], alpha=0.08, linewidth=0)
        shown = [f"{area} {only.area:.4f}"]
    else:
        mean = mean_curve(list(defined.values()))
        drawn = (
            axes.plot(mean.x, mean.y, color=INK, linewidth=2.2, linestyle=DASHES[1])
            if average
            else [Line2D([], [], alpha=0)]
        )
        handles, shown = [*drawn, *handles], [f"mean of {len(defined)} ({area} {mean.area:.3f})", *shown]
    if others := len(defined) - len(named):
        handles, shown = [*handles, Line2D([], [], color="#c9d1d8")], [*shown, f"{others} with a larger area"]
    if missing := len(curves) - len(defined):
        handles, shown = [*handles, Line2D([], [], alpha=0)], [*shown, f"{missing} not defined: all rows or none"]
    legend(axes, handles, shown, "outside" if len(curves) > 1 else "lower right" if average else "lower left")


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "no rows"
