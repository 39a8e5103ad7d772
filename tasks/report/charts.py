"""From a chart's values to inline SVG: text stays text, colours are those of the page, the same bytes for the same values."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from tasks.colours import COLOURS
from tasks.plot_style import (
    DASHES,
    FAINT,
    INK,
    RULE,
    drawable,
    dress,
    dress_axes,
    dress_ticks,
    label,
    whole_numbers,
)
from tasks.report.values import (
    MISSING,
    NOT_ASKED,
    OVER_ALL,
    STATES,
    Bars,
    Chart,
    Lines,
    Matrix,
    Points,
    Presence,
    Series,
    Stack,
)
from tasks.run_contents import figure as number

WIDTH = 4.4  # inches: what a phone shows in full and a desk shows twice side by side
FRAME = "#aeb8c1"
# Of no curve, so that the page can give each of them a variable of its own.
DENSE, ABSENT, UNASKED = "#0b6fb9", "#d1495c", "#e3e8ee"
VARIABLES: Mapping[str, str] = {
    INK: "--ink",
    FAINT: "--faint",
    RULE: "--rule",
    FRAME: "--frame",
    DENSE: "--dense",
    ABSENT: "--missing",
    UNASKED: "--not-asked",
    **{colour: f"--c{place}" for place, colour in enumerate(COLOURS)},
}
"""Colour of a drawing -> variable of the page's style, which has others for dark screens."""
MOST_BARS = 60
NAMED_CELLS = 16


def svg(chart: Chart, key: str) -> str:
    """The chart as an `<svg>` element.

    Args:
        chart: what to draw.
        key: of this chart alone on its page.
    """
    draw: Mapping[type, Callable[[Any], Figure]] = {
        Lines: draw_lines,
        Stack: draw_stack,
        Bars: draw_bars,
        Matrix: draw_matrix,
        Presence: draw_presence,
        Points: draw_points,
    }
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        buffer = io.StringIO()
        draw[type(chart)](chart).savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return as_element(buffer.getvalue(), key, chart.title)


def as_element(document: str, key: str, title: str) -> str:
    """What an HTML page can hold of an SVG document: no prolog, ids of its own, colours by name, the page's font."""
    element = document[document.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', element))
    element = re.sub(r' id="([^"]+)"', lambda found: f' id="{key}-{found[1]}"' if found[1] in used else "", element)
    element = re.sub(r'(url\(#|href="#)', rf"\1{key}-", element)
    element = re.sub(r"font: ((?:\d+ )?[\d.]+px) [^;\"]*", r"font: \1 var(--font)", element)
    for colour, variable in VARIABLES.items():
        element = element.replace(colour, f"var({variable})")
    element = re.sub(r'<svg([^>]*?) width="[^"]*"', r"<svg\1", element, count=1)
    element = re.sub(r'<svg([^>]*?) height="[^"]*"', r"<svg\1", element, count=1)
    named = label(title, 80).translate({ord("&"): "&amp;", ord("<"): "&lt;", ord('"'): "&quot;"})
    return element.replace("<svg", f'<svg role="img" aria-label="{named}"', 1)


def panel(height: float = 2.7, x: str = "") -> tuple[Figure, Axes]:
    """An empty chart of that height in inches."""
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04)
    figure = Figure(figsize=(WIDTH, height), dpi=72, layout=layout)
    axes = figure.add_subplot()
    dress_axes(axes, x=x)
    axes.patch.set_visible(False)
    return figure, axes


def colour_of(place: int) -> str:
    """The colour of a series or a state."""
    named = {OVER_ALL: INK, MISSING: ABSENT, NOT_ASKED: UNASKED}
    return named.get(place) or COLOURS[place % len(COLOURS)]


def draw_lines(chart: Lines) -> Figure:
    """Curves; what is over all is drawn last and thicker."""
    figure, axes = panel(x=chart.unit)
    for one in sorted(chart.series, key=lambda one: one.colour == OVER_ALL):
        over_all = one.colour == OVER_ALL
        dash = "-" if over_all else DASHES[one.colour // len(COLOURS) % len(DASHES)]
        width = 2.2 if over_all and len(chart.series) > 1 else 1.5
        axes.plot(
            chart.steps,
            drawable(gaps(one.values)),
            color=colour_of(one.colour),
            linestyle=dash,
            linewidth=width,
            marker="o",
            markersize=5,
            markevery=alone(one),
        )
    short_numbers(axes)
    shown = [value for one in chart.series for value in one.values if value is not None and math.isfinite(value)]
    if shown and min(shown) > 0 and max(shown) / min(shown) > 100:
        axes.set_yscale("log")
    if len(chart.steps) == 1:
        axes.set_xlim(chart.steps[0] - 1, chart.steps[0] + 1)
    return figure


def alone(one: Series) -> list[int]:
    """Where values stand between gaps, which a line does not show."""
    there = [False, *(value is not None for value in one.values), False]
    around = zip(there, there[1:], there[2:], strict=False)
    return [place for place, (before, here, after) in enumerate(around) if here and not before and not after]


def gaps(values: Sequence[float | None]) -> list[float]:
    """Values with nan where there is none."""
    return [math.nan if value is None else value for value in values]


def short_numbers(axes: Axes) -> None:
    """Whole numbers along x, few along y, and no power of ten aside where zeros do."""
    axes.locator_params(axis="y", nbins=6)
    axes.ticklabel_format(axis="y", scilimits=(-4, 5), useOffset=False)
    whole_numbers(axes)


def draw_stack(chart: Stack) -> Figure:
    """Bars of parts; areas where there are too many steps for bars."""
    figure, axes = panel(x=chart.unit)
    base = np.zeros(len(chart.steps))
    steps = np.asarray(chart.steps, dtype=np.float64)
    for one in chart.series:
        top = base + np.asarray(gaps(one.values))
        if len(steps) > MOST_BARS:
            axes.fill_between(steps, base, top, color=colour_of(one.colour), linewidth=0)
        else:
            axes.bar(steps, top - base, 0.8, bottom=base, color=colour_of(one.colour))
        base = top
    short_numbers(axes)
    axes.set_ylim(bottom=0)
    axes.set_xlim(steps[0] - (0.6 if len(steps) > 1 else 2), steps[-1] + (0.6 if len(steps) > 1 else 2))
    return figure


def draw_bars(chart: Bars) -> Figure:
    """A bar across for each name with its value, and a line for what holds for all."""
    figure, axes = panel(0.55 + 0.3 * len(chart.series))
    places = range(len(chart.series))
    values = [float(one.values[0] or 0.0) for one in chart.series]
    axes.barh(places, values, 0.62, color=[colour_of(one.colour) for one in chart.series])
    everything = [*values, *([chart.over_all] if chart.over_all is not None else [])]
    low, high = min(0.0, *everything), max(0.0, *everything)
    unit = low >= 0 and high <= 1
    right = 1.0 if unit else high or 1.0
    axes.set_xlim(low, right + 0.22 * (right - low))
    if chart.over_all is not None:
        axes.axvline(chart.over_all, color=INK, linewidth=1.3, linestyle=(0, (4, 2.5)))
    for place, one in zip(places, chart.series, strict=True):
        at = max(0.0, values[place], chart.over_all or 0.0)
        shown = axes.text(at + 0.015 * (right - low), place, number(one.values[0]), va="center")
        dress(shown, size=9)
    axes.set_yticks(places, [label(one.name, 20) for one in chart.series])
    axes.set_ylim(len(chart.series) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    dress_ticks(axes)
    axes.locator_params(axis="x", nbins=6)
    return figure


def draw_matrix(chart: Matrix) -> Figure:
    """Counts in cells, the darker the larger the share of the actual class."""
    size = len(chart.names)
    counts = np.asarray(chart.counts, dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = panel(min(4.4, 1.7 + 0.5 * size), x="predicted")
    dress(axes.set_ylabel("actual"), size=9.5)
    axes.grid(False)
    for row, column in np.ndindex(counts.shape):
        share = float(shares[row, column])
        axes.barh(row, 1, 1, left=column - 0.5, color=DENSE, alpha=0.06 + 0.5 * share, linewidth=0)
        if size <= NAMED_CELLS and (counts[row, column] or size <= 6):
            text = axes.text(column, row, f"{int(counts[row, column]):,}", ha="center", va="center")
            dress(text, size=11 if size <= 6 else 8)
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)
    step = max(1, math.ceil(size / 20))
    places = list(range(0, size, step))
    names = [label(chart.names[place], 16) for place in places]
    axes.set_xticks(places, names, rotation=0 if sum(map(len, names)) < 40 else 90)
    axes.set_yticks(places, names)
    axes.tick_params(length=0)
    dress_ticks(axes, size=9 if size <= NAMED_CELLS else 7)
    return figure


def draw_points(chart: Points) -> Figure:
    """Points around the diagonal, on which predictions are right."""
    figure, axes = panel(3.6, x="actual")
    dress(axes.set_ylabel("predicted"), size=9.5)
    actual, predicted = drawable(chart.actual), drawable(chart.predicted)
    both = np.concatenate([actual, predicted])
    low, high = float(np.nanmin(both)), float(np.nanmax(both))
    margin = 0.04 * (high - low) or 1.0
    ends = (low - margin, high + margin)
    axes.plot(ends, ends, color=FAINT, linewidth=1.1, linestyle=(0, (4, 3)))
    axes.plot(actual, predicted, "o", color=COLOURS[0], alpha=0.5, markersize=3.5, markeredgewidth=0)
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    axes.locator_params(nbins=6)
    axes.ticklabel_format(scilimits=(-4, 5), useOffset=False)
    return figure


def draw_presence(chart: Presence) -> Figure:
    """A row for each name, a mark for each step; steps of one state next to each other are one mark."""
    figure, axes = panel(0.6 + 0.28 * len(chart.names), x=chart.unit)
    split = len(chart.steps) <= MOST_BARS
    for place, row in enumerate(chart.states):
        at = 0
        for state, run in groupby(row):
            length = len(list(run))
            first = chart.steps[at]
            spans = [(first + n - 0.44, 0.88) for n in range(length)] if split else [(first - 0.5, length)]
            height = 0.36 if STATES[state] == MISSING else 0.7
            axes.broken_barh(spans, (place - height / 2, height), color=colour_of(STATES[state]), linewidth=0)
            at += length
    axes.set_xlim(chart.steps[0] - 0.6, chart.steps[-1] + 0.6)
    axes.set_ylim(len(chart.names) - 0.4, -0.6)
    axes.set_yticks(range(len(chart.names)), [label(name, 20) for name in chart.names])
    axes.grid(False)
    axes.tick_params(axis="y", length=0)
    dress_ticks(axes)
    whole_numbers(axes)
    return figure
