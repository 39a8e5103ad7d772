"""How the plots look: sizes, colours, text that any font can show, bytes that are the same for the same data."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

DPI = 120
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))
INK, FAINT, RULE = "#22303c", "#6b7884", "#e3e8ed"
FONT = "DejaVu Sans"  # comes with matplotlib
FALLBACKS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "Noto Sans")
DENSITY = LinearSegmentedColormap.from_list("density", ["#bcd9ef", "#0b6fb8", "#062f52"])
TOO_LARGE = 1e100  # larger values make matplotlib's axes overflow


def new_figure(width: float, height: float, title: str, subtitle: str = "") -> Figure:
    """An empty figure, sizes in inches, with a title at its left edge."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.04, hspace=0.06)
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")
    text = figure.suptitle(label(title, 90) + ("\n" if subtitle else ""), x=0.012, ha="left", linespacing=1.2)
    dress(text, size=13, weight="bold", colour=INK)
    if subtitle:
        below = figure.text(0.012, 1 - 0.43 / height, label(subtitle, 110), ha="left", va="center")
        below.set_in_layout(False)
        dress(below, size=9.5, colour=FAINT)
    return figure


def dress_axes(axes: Axes, title: str = "", x: str = "", y: str = "", *, grid: bool = True) -> None:
    """Titles, labels and frame of one panel."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#aeb8c1")
    axes.tick_params(colors=FAINT, labelsize=9, length=3, color="#aeb8c1")
    if grid:
        axes.grid(True, color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)
    dress(axes.set_title(label(title, 60), loc="left", pad=8), size=10.5, weight="bold", colour=INK)
    dress(axes.set_xlabel(label(x, 60)), size=9.5, colour=INK)
    dress(axes.set_ylabel(label(y, 60)), size=9.5, colour=INK)


def dress(text: Text, *, size: float, colour: str = INK, weight: str = "normal") -> None:
    """Font and colour of a text; names with dollar signs are names, not formulas."""
    text.set_fontfamily(list(families(text.get_text())))
    text.set_fontsize(size)
    text.set_fontweight(weight)
    text.set_color(colour)
    text.set_parse_math(False)


def dress_ticks(axes: Axes, size: float = 9) -> None:
    """Fonts of the tick labels that hold names."""
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        dress(text, size=size, colour=INK)


def legend(axes: Axes, handles: Sequence[object], names: Sequence[str], where: str = "outside") -> None:
    """A legend in which every name is shown, those that begin with an underscore too.

    Args:
        axes: of the panel.
        handles: what was drawn.
        names: one a handle.
        where: a corner of the panel, `best`, or `outside` at its right.
    """
    outside = where == "outside"
    place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.02)} if outside else {"loc": where}
    shown = [f" {name}" if name.startswith("_") else name for name in (label(name, 60) for name in names)]
    box = axes.legend(handles, shown, frameon=not outside, framealpha=0.9, edgecolor=RULE, handlelength=1.8, **place)  # type: ignore[arg-type]
    for text in box.get_texts():
        dress(text, size=8.5)


def whole_numbers(axes: Axes) -> None:
    """Ticks at whole numbers only along x."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def few_numbers(axes: Axes) -> None:
    """Few ticks with short numbers along both axes; a power of ten goes to the axis's end."""
    axes.locator_params(nbins=6)
    axes.ticklabel_format(scilimits=(-2, 5))
    for axis in (axes.xaxis, axes.yaxis):
        dress(axis.get_offset_text(), size=9, colour=FAINT)


def say(axes: Axes, text: str) -> None:
    """A panel with a sentence in place of data."""
    axes.set_xticks([])
    axes.set_yticks([])
    dress(
        axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, wrap=True), size=10, colour=FAINT
    )


def drawable(values: object) -> np.ndarray:
    """Values as float64, those that no axis can show as nan."""
    numbers = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(numbers) & (np.abs(numbers) < TOO_LARGE), numbers, np.nan)


def png(figure: Figure) -> bytes:
    """The figure's picture; the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def label(text: object, length: int = 24) -> str:
    """A name as one line of at most that many characters that can be seen and some font has; others become their numbers."""
    line = " ".join(str(text).split())
    known = frozenset().union(*(characters(family) for family in families(line)))
    seen = ((letter, letter.isprintable() and ord(letter) in known) for letter in line)
    shown = "".join(letter if visible else f"\\u{ord(letter):04x}" for letter, visible in seen)
    return shown if len(shown) <= length else shown[: length - 1] + "…"


def families(text: str) -> tuple[str, ...]:
    """The fonts to look for a text's characters in."""
    if all(ord(letter) in characters(FONT) or letter == "\n" for letter in text):
        return (FONT,)
    return (FONT, *(family for family in FALLBACKS if characters(family)))


@lru_cache(maxsize=16)
def characters(family: str) -> frozenset[int]:
    """The characters that a font has; none if it is not installed."""
    try:
        path = findfont(FontProperties(family=[family]), fallback_to_default=False)
    except ValueError:
        return frozenset()
    return frozenset(get_font(path).get_charmap())
