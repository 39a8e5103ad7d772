"""Jobs side by side: their metrics, what differs in their settings, and whether the numbers may be compared at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.job_folders import JobFolder
from flows.job_list import done_text, number_text, seconds_text
from flows.job_show import settings_of, value_text


def comparison_of(jobs: Sequence[JobFolder]) -> dict[str, Any]:
    """What `compare` shows, for scripts.

    Args:
        jobs: at least two; the first is the one that others are held against.

    Returns:
        `jobs`, `warnings`, `metrics` (name -> a value a job), `differences` (name -> a difference to the first a job; None
        where one of the two is not defined) and `settings` (those that differ: name -> a value a job).
    """
    names = list(dict.fromkeys(name for job in jobs for name in job.metrics))
    metrics = {name: [job.metrics.get(name) for job in jobs] for name in names}
    return {
        "jobs": [job.job_id for job in jobs],
        "warnings": warnings(jobs),
        "metrics": metrics,
        "differences": {name: [difference(values[0], value) for value in values] for name, values in metrics.items()},
        "settings": differing(jobs),
    }


def difference(first: float | None, other: float | None) -> float | None:
    """The other minus the first, where both are defined."""
    return None if first is None or other is None else other - first


def differing(jobs: Sequence[JobFolder]) -> dict[str, list[Any]]:
    """Setting -> its value in each job, of those settings that are not the same in all; None where it is not set."""
    settings = [settings_of(job) for job in jobs]
    names = sorted({name for each in settings for name in each})
    values = {name: [each.get(name) for each in settings] for name in names}
    return {name: found for name, found in values.items() if any(value != found[0] for value in found)}


def warnings(jobs: Sequence[JobFolder]) -> list[str]:
    """Why the numbers of some jobs are not comparable with those of the first."""
    first = jobs[0]
    return [f"{job.job_id}: {why}" for job in jobs[1:] for why in reasons(first, job)]


def reasons(first: JobFolder, other: JobFolder) -> list[str]:
    """Why two jobs' metrics are not of the same rows, as far as their folders tell."""
    one, two = first.values("initialise"), other.values("initialise")
    if not one or not two:
        return ["one of the two has not read its rows yet, so nothing says that they are the same"]
    found = []
    if one["data_digest"] != two["data_digest"]:
        found.append(f"its rows are others than those of {first.job_id}, so the metrics are not comparable")
    elif one["rows"]["test"] != two["rows"]["test"]:
        found.append(
            f"it has {two['rows']['test']:,} test rows and {first.job_id} {one['rows']['test']:,}, so the metrics are not"
            " comparable"
        )
    elif one["seed"] != two["seed"] or first.job.get("splitter") != other.job.get("splitter"):
        found.append(f"its seed or splitter is another one than that of {first.job_id}, so other rows may be test rows")
    if one["targets"] != two["targets"]:
        found.append(f"it predicts {', '.join(two['targets'])}, and {first.job_id} {', '.join(one['targets'])}")
    if bool(first.values("evaluate").get("metrics")) != bool(other.values("evaluate").get("metrics")):
        found.append("of the two, one shows metrics of test rows and the other of validation rows")
    return found


def show_comparison(console: Console, jobs: Sequence[JobFolder]) -> None:
    """Prints jobs side by side."""
    compared = comparison_of(jobs)
    for warning in compared["warnings"]:
        console.print(Text(f"! {warning}"), soft_wrap=True)
    console.print(Text(f"metrics, with the difference to {jobs[0].job_id}"))
    table = Table()
    table.add_column("metric", overflow="fold")
    for job in jobs:
        table.add_column(Text(job.job_id), justify="right", overflow="fold")
    for name, values in compared["metrics"].items():
        changes = compared["differences"][name]
        cells = [
            cell(value, None if not place else changes[place], name in job.metrics)
            for place, (job, value) in enumerate(zip(jobs, values, strict=True))
        ]
        table.add_row(Text(name), *cells)
    for name, shown in {"state": [j.state for j in jobs], "done": [done_text(j) for j in jobs]}.items():
        table.add_row(name, *map(Text, shown))
    table.add_row("training", *(seconds_text(job.seconds) for job in jobs))
    console.print(table)
    show_settings(console, jobs, compared["settings"])


def cell(value: float | None, change: float | None, is_known: bool) -> Text:
    """A metric of one job, with its difference to the first."""
    if not is_known:
        return Text("")
    return Text(number_text(value) + ("" if change is None else f" ({change:+.4f})"))


def show_settings(console: Console, jobs: Sequence[JobFolder], settings: dict[str, list[Any]]) -> None:
    """Prints the settings that differ."""
    if not settings:
        console.print("the settings are the same")
        return
    console.print(Text("\nsettings that differ"))
    table = Table()
    table.add_column("setting", overflow="fold")
    for job in jobs:
        table.add_column(Text(job.job_id), overflow="fold")
    for name, values in settings.items():
        table.add_row(Text(name), *(Text("" if value is None else value_text(value)) for value in values))
    console.print(table)
