"""From a report's values to one HTML file: no script, nothing loaded from elsewhere, every text escaped."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tasks.report.charts import svg
from tasks.report.values import Report

FOLDER = Path(__file__).parent


def page(report: Report) -> str:
    """The report as HTML; the same text for the same values."""
    pages = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style = (FOLDER / "report.css").read_text(encoding="utf-8")
    return pages.get_template("report.html.jinja").render(report=report, style=style, draw=svg)
