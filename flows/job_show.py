"""One job on the terminal: what was asked, who took part, what came out, with its curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.job_folders import JobFolder
from flows.job_list import STYLES, done_text, number_text, seconds_text, summary_of

CHART_HEIGHT = 12
CHART_WIDTH = 76


def details_of(job: JobFolder) -> dict[str, Any]:
    """A job for scripts: its summary, settings, metrics, pods and files."""
    return {
        **summary_of(job),
        "settings": settings_of(job),
        "metrics": dict(job.metrics),
        "pods": pods_of(job),
        "files": files_of(job),
    }


def show_job(console: Console, job: JobFolder) -> None:
    """Prints a job."""
    console.print(Text(job.name or job.job_id, "bold"))
    lines: dict[str, str | Text | None] = {
        "job": job.job_id,
        "kind": job.kind,
        "state": Text(job.state, STYLES.get(job.state, "")),
        "because": job.reason,
        "done": done_text(job) or None,
        "training": seconds_text(job.seconds) or None,
        "begun": f"{job.started.astimezone():%Y-%m-%d %H:%M}",
        "MLflow run": job.values("record").get("run_id"),
        "folder": str(job.path),
    }
    for name, value in lines.items():
        if value is not None:
            console.print(Text(f"{name + ':':13s}").append(value), soft_wrap=True)
    show_pairs(console, "settings", settings_of(job))
    show_pods(console, job)
    rows = "test" if job.values("evaluate").get("metrics") else "validation"
    show_pairs(console, f"metrics of the {rows} rows", {k: number_text(v) for k, v in job.metrics.items()})
    for chart in charts_of(job, min(CHART_WIDTH, console.width)):
        console.print()
        console.print(Text.from_ansi(chart), soft_wrap=True)
    show_pairs(console, "files", {name: f"{size:,} bytes" for name, size in files_of(job).items()})


def show_pairs(console: Console, title: str, pairs: Mapping[str, Any]) -> None:
    """Prints names and values as a table; nothing if there are none."""
    if not pairs:
        return
    console.print(Text(f"\n{title}"))
    table = Table(show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        table.add_row(Text(name), Text(value_text(value)))
    console.print(table)


def value_text(value: Any) -> str:
    """A setting for people."""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def settings_of(job: JobFolder) -> dict[str, Any]:
    """The job's settings that are set, `section.key` -> value; the name has a place of its own."""
    return {key: value for key, value in flattened(job.job) if value not in (None, {}, []) and key != "name"}


def flattened(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as (path with dots, value) pairs."""
    if not isinstance(value, Mapping) or not value:
        yield path, value
        return
    for key, below in value.items():
        yield from flattened(below, f"{path}.{key}" if path else str(key))


def pods_of(job: JobFolder) -> dict[str, dict[str, Any]]:
    """Pod -> `rounds` that it took part in, its `rows`, its test `metrics`, and where it was `missing` and why."""
    made, tested = job.values("initialise"), job.values("evaluate")
    asked = {pod for each in job.course for pod in (*each.pods, *(each.missing or {}))}
    names = asked | set(made.get("rows_by_pod", {})) | set(made.get("pods", []))
    absent = [("start", made.get("missing", {}))]
    absent += [(f"round {each.number}", each.missing or {}) for each in job.course]
    return {
        pod: {
            "rounds": sum(pod in each.pods for each in job.course),
            "rows": made.get("rows_by_pod", {}).get(pod, {}),
            "metrics": tested.get("by_pod", {}).get(pod, {}),
            "missing": {place: reasons[pod] for place, reasons in absent if pod in reasons},
        }
        for pod in sorted(names)
    }


def show_pods(console: Console, job: JobFolder) -> None:
    """Prints each pod's part; nothing for a local job."""
    pods = pods_of(job)
    if not pods:
        return
    names = list(job.values("evaluate").get("metrics", {}))
    table = Table()
    for name in ("pod", "rounds", "training rows", "test rows", *names):
        table.add_column(Text(name), justify="left" if name == "pod" else "right")
    for pod, part in pods.items():
        rows = [f"{part['rows'].get(split, 0):,}" for split in ("train", "test")]
        shown = [number_text(part["metrics"].get(name)) if part["metrics"] else "" for name in names]
        table.add_row(Text(pod), str(part["rounds"]), *rows, *shown)
    console.print(Text("\npods"))
    console.print(table)
    for pod, part in pods.items():
        for reason in dict.fromkeys(part["missing"].values()):
            places = [place for place, why in part["missing"].items() if why == reason]
            where = places[0] if len(places) == 1 else f"{places[0]} and {len(places) - 1} more"
            console.print(Text(f"! {pod} was missing in {where}: {' '.join(reason.split())}"), soft_wrap=True)


def charts_of(job: JobFolder, width: int) -> list[str]:
    """The loss and the main metric by epoch or round, drawn with ANSI colours."""
    unit, main = job.unit.removesuffix("s"), job.figure
    numbers = [each.number for each in job.course]
    curves = {"training loss": [each.loss for each in job.course]}
    if main is not None:
        curves[f"validation {main.name}"] = [each.metrics.get(main.name) for each in job.course]
    return [
        chart(title, unit, numbers, values, width)
        for title, values in curves.items()
        if sum(value is not None for value in values) > 1
    ]


def chart(title: str, unit: str, numbers: Sequence[int], values: Sequence[float | None], width: int) -> str:
    """A curve as text; values that are None are left out."""
    import plotext

    points = [(number, value) for number, value in zip(numbers, values, strict=True) if value is not None]
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plotsize(width, CHART_HEIGHT)
    plotext.title(title)
    plotext.xlabel(unit)
    step = max(1, len(points) // 8)
    plotext.xticks([number for number, _ in points][::step])
    plotext.plot(*zip(*points, strict=True), marker="braille")
    return str(plotext.build())


def files_of(job: JobFolder) -> dict[str, int]:
    """Name -> bytes of what the steps left in the job's folder."""
    files = (file for manifest in job.steps.values() for file in manifest["files"].values())
    return {file["name"]: file["size"] for file in files}
