"""From a report's values to one HTML file: no script, nothing loaded from elsewhere, every text escaped."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tasks.colours import COLOURS
from tasks.report.charts import svg
from tasks.report.values import MISSING, NOT_ASKED, OVER_ALL, Report

FOLDER = Path(__file__).parent


def page(report: Report) -> str:
    """The report as HTML; the same text for the same values."""
    pages = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (FOLDER / "report.css").read_text(encoding="utf-8")
    return pages.get_template("report.html.jinja").render(report=report, style=style, draw=svg, class_of=class_of)


def class_of(colour: int) -> str:
    """The style's class for a colour."""
    named = {OVER_ALL: "over", MISSING: "missing", NOT_ASKED: "not-asked"}
    return named.get(colour) or f"c{colour % len(COLOURS)}"
