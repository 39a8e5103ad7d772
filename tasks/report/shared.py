"""The parts of a report that local and federated jobs have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tasks.manifest import Manifest
from tasks.report.values import Section, Table
from tasks.run_contents import figure

Ended = Mapping[str, Any]
"""How a job ended that is not finished: `state`, `reason`; empty if it did not say."""


def facts_of(made: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What every job says of its model and its rows.

    Args:
        made: values of the step `initialise`.
    """
    rows = made["rows"]
    return [
        ("Model", f"{made['model_class']}, {made['parameters_count']:,} parameters"),
        ("Problem", f"{made['problem']}; target {', '.join(map(str, made['targets']))}"),
        ("Rows", f"{rows['train']:,} training, {rows['validation']:,} validation, {rows['test']:,} test"),
        ("Columns", f"{made['columns']:,}"),
        ("Seed", str(made["seed"])),
    ]


def length_of(made: Mapping[str, Any]) -> tuple[str, int]:
    """How long training was to be: (unit, how many)."""
    return ("epoch", made["epochs"]) if made["epochs"] is not None else ("step", made["steps"])


def state_of(manifests: Mapping[str, Manifest], wanted: Iterable[str], progress: str, ended: Ended) -> str:
    """How far a job is, in words.

    Args:
        manifests: of the finished steps.
        wanted: the steps that make it complete.
        progress: how far training is.
        ended: how it ended, if it is not finished.
    """
    left = [step for step in wanted if step not in manifests]
    if not left:
        return "finished"
    reason = f"{ended['state']}: {ended['reason']}" if ended else "not finished"
    return f"{reason} ({progress}; still to do: {', '.join(left)})"


def counted(number: int, unit: str) -> str:
    """A number with its unit."""
    return f"{number:,} {unit}" if number == 1 else f"{number:,} {unit}s"


def seconds_text(seconds: float) -> str:
    """Seconds for people, with three digits that say something."""
    return f"{seconds:,.0f} s" if seconds >= 100 else f"{seconds:.3g} s"


def metric_rows(metrics: Mapping[str, float | None]) -> tuple[tuple[str, str], ...]:
    """(metric, value) for people."""
    return tuple((name, figure(value)) for name, value in metrics.items())


def origin(manifests: Mapping[str, Manifest]) -> Section:
    """Versions that a job was made with, and digests that tell whether something else is the same."""
    made = manifests["initialise"]
    files = {"model source": made.files["model"].sha256, "schema": made.files["schema"].sha256}
    weights = {"weights": manifests["fit"].values["weights_sha256"]} if "fit" in manifests else {}
    digests = {**weights, "rows": made.values["data_digest"], **files, "job": made.files["job"].sha256}
    packages = {"bitfount-flows": made.values["code_version"], **made.values.get("packages", {})}
    return Section(
        "origin",
        "Versions and digests",
        tables=(
            Table(("sha256 of", "digest"), tuple(digests.items())),
            Table(("package", "version"), tuple(packages.items())),
        ),
    )


def going_on(job_id: str, finished: bool, made_from: str) -> Section:
    """How to go on with a job, or to make it again.

    Args:
        job_id: the job.
        finished: whether there is nothing left to do.
        made_from: where the job's rows are, in words.
    """
    if not finished:
        words = "The command that began the job goes on with it, with its job id:"
        return Section("again", "Go on", words=(words,), code=(f"bitfount-flows train JOB.yaml --job-id {job_id}",))
    words = (
        f"The same job, seed and {made_from} give the same weights, bit for bit, under a job id of its own; HOME is the"
        " folder of --home:"
    )
    code = (f"bitfount-flows train HOME/jobs/{job_id}/job.json", f"bitfount-flows show {job_id}")
    return Section("again", "Make it again", words=(words,), code=code)


def filled(sections: Sequence[Section | None]) -> tuple[Section, ...]:
    """Those sections that have something to show."""
    return tuple(section for section in sections if section is not None)
