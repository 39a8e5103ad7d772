"""From a retraining's manifests to what people read of it: its run in MLflow and its page in Prefect; neither is called."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tasks.manifest import Manifest
from tasks.mlflow_links import run_page, version_page
from tasks.retraining.retraining_file import RetrainingFile
from tasks.run_contents import MAX_TAG, Point, RunContents, as_text, cut, figure, flat, inline, table, valid_key

PROMOTED, KEPT, SKIPPED, FAILED = "promoted", "kept", "skipped", "failed"
MOST_COLUMNS = 20
"""Of the drift table, the farthest first."""


def outcome_of(manifests: Mapping[str, Manifest]) -> tuple[str, str]:
    """How a retraining ended, one of the words above, and why."""
    if not manifests["decide"].values["train"]:
        return SKIPPED, str(manifests["decide"].values["why"])
    promoted = manifests["promote"].values
    return (PROMOTED if promoted["promoted"] else KEPT), str(promoted["why"])


def retraining_contents(
    retraining_id: str, asked: RetrainingFile, model: str, manifests: Mapping[str, Manifest], prefect_run: str | None
) -> RunContents:
    """What the retraining's run in MLflow says.

    Args:
        retraining_id: names it.
        asked: the retraining.
        model: the registered model's name.
        manifests: step -> manifest, of all steps that ran.
        prefect_run: id of the Prefect run.
    """
    outcome, why = outcome_of(manifests)
    params = {
        "model": model,
        "champion": manifests["champion"].values["version"],
        "start": asked.start,
        **flat("train_when", asked.train_when),
        **flat("compare", asked.compare),
    }
    tags = {
        "bitfount.kind": "retraining",
        "bitfount.outcome": outcome,
        "bitfount.why": why,
        "bitfount.model": model,
        "bitfount.prefect_run": prefect_run,
        "mlflow.source.name": "bitfount-flows",
        "mlflow.source.type": "JOB",
        "mlflow.note.content": note(asked, model, manifests, None),
    }
    return RunContents(
        job_id=f"{retraining_id}/retraining",
        name=f"retrain {model} · {outcome}",
        params={valid_key(name): as_text(value) for name, value in params.items() if value is not None},
        tags={name: cut(str(value), MAX_TAG) for name, value in tags.items() if value is not None},
        points=tuple(points(manifests)),
        datasets=(),
        files=(),
        steps=tuple(manifests),
    )


def points(manifests: Mapping[str, Manifest]) -> list[Point]:
    """The numbers of a retraining as metrics; those that are not defined are left out."""
    look = manifests["look"].values if "look" in manifests else {"rows": None, "new_rows": None, "drift": {}}
    gain = manifests["compare"].values if "compare" in manifests else {}
    values = {
        "rows/all": look["rows"],
        "rows/new": look["new_rows"],
        "compare/champion": gain.get("champion"),
        "compare/challenger": gain.get("challenger"),
        "compare/gain": gain.get("gain"),
        "compare/gain_at_least": gain.get("at_least"),
        **{f"drift/{name}": index for name, index in look["drift"].items()},
    }
    return [
        Point(valid_key(name), float(value), 0)
        for name, value in values.items()
        if value is not None and math.isfinite(value)
    ]


def note(asked: RetrainingFile, model: str, manifests: Mapping[str, Manifest], places: Mapping[str, Any] | None) -> str:
    """The retraining in a few lines of Markdown.

    Args:
        asked: the retraining.
        model: the registered model's name.
        manifests: step -> manifest, of all steps that ran.
        places: `tracking_uri`, `experiment_id` and `run_id` of the retraining's own run, for links; None for none.
    """
    outcome, why = outcome_of(manifests)
    champion = manifests["champion"].values["version"]
    lines = [
        f"**{outcome.capitalize()}** {inline(why)}",
        "",
        f"**Model** `{inline(model)}`, champion before: {'none' if champion is None else f'version {champion}'}",
        "",
        f"**Decision to train** {inline(manifests['decide'].values['why'])}",
        "",
    ]
    if "train" in manifests:
        trained = manifests["train"].values
        lines += [
            f"**Challenger** version {trained['version']}, trained {trained['start']}, job `{trained['job_id']}`",
            "",
        ]
    if places is not None:
        lines += links(model, manifests, places)
    return "\n".join(lines + drift_table(manifests)).rstrip()


def links(model: str, manifests: Mapping[str, Manifest], places: Mapping[str, Any]) -> list[str]:
    """Links to MLflow's pages, where a server shows them."""
    uri, experiment = places["tracking_uri"], places["experiment_id"]
    found = {"this retraining in MLflow": run_page(uri, experiment, places["run_id"])}
    if "train" in manifests:
        trained = manifests["train"].values
        found["the challenger's run"] = run_page(uri, trained["experiment_id"], trained["run_id"])
        found[f"version {trained['version']}"] = version_page(uri, model, trained["version"])
    shown = [f"[{name}]({page})" for name, page in found.items() if page]
    return [" · ".join(shown), ""] if shown else []


def drift_table(manifests: Mapping[str, Manifest]) -> list[str]:
    """The columns' drift as a Markdown table."""
    drift = manifests["look"].values["drift"] if "look" in manifests else {}
    if not drift:
        return []
    rows = sorted(drift.items(), key=lambda item: -item[1])[:MOST_COLUMNS]
    return table([("column", "drift (population stability index)"), *((name, figure(index)) for name, index in rows)])
