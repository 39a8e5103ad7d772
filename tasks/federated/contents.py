"""From a federated job's records to what its MLflow runs say, one for the job and one a pod; MLflow is not called."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bitfount_model.data import BitfountSchema
from tasks.colours import COLOURS
from tasks.federated.compare import comparison_rows
from tasks.federated.round_record import RoundRecord
from tasks.manifest import Manifest, read_file
from tasks.run_contents import (
    DIGEST,
    MAX_PARAM,
    MAX_TAG,
    REASON,
    WHOLE_STEPS,
    DataSet,
    Point,
    RunContents,
    as_text,
    column_spec,
    cut,
    figure,
    flat,
    headline,
    inline,
    metric_keys,
    points_of,
    run_name,
    table,
    valid_key,
)
from tasks.store import Reference, Store

POD = "bitfount.pod"
PARENT = "mlflow.parentRunId"

FOLDERS: Mapping[tuple[str, str], str] = {
    ("initialise", "job"): "",
    ("initialise", "federation"): "",
    ("initialise", "model"): "model",
    ("initialise", "schema"): "model",
    ("initialise", "datastructure"): "model",
    ("fit", "weights"): "model",
    ("fit", "best"): "model",
    ("fit", "history"): "",
    ("report", "report"): "",
}
"""(step, role) -> the run's folder for that file; predictions and plots have folders of their own."""


def job_contents(
    store: Store,
    manifests: Mapping[str, Manifest],
    records: Sequence[RoundRecord],
    prefect_run: str | None = None,
    reason: str | None = None,
) -> RunContents:
    """What the job's run says.

    Args:
        store: the modeller's own.
        manifests: step -> manifest of the finished steps, `initialise` among them.
        records: of the closed rounds.
        prefect_run: the id of the Prefect run that works on the job now.
        reason: why the job stopped, if it did.
    """
    made = manifests["initialise"].values
    points = [point for record in records for point in round_points(record)]
    if "evaluate" in manifests:
        tested = manifests["evaluate"].values["metrics"]
        points += points_of(metric_keys("test", tested), tested, len(records))
    return RunContents(
        job_id=made["job_id"],
        name=run_name(made["job_id"]),
        params=job_params(store, manifests),
        tags=job_tags(store, manifests, records, prefect_run, reason),
        points=tuple(points),
        datasets=(dataset(store, manifests["initialise"]),),
        files=tuple(job_files(manifests)),
        steps=tuple(manifests),
    )


def pod_contents(
    pod: str, parent: str, manifests: Mapping[str, Manifest], records: Sequence[RoundRecord]
) -> RunContents:
    """What the run of one pod says, nested in the job's.

    Args:
        pod: its name.
        parent: id of the job's run.
        manifests: as for `job_contents`.
        records: as for `job_contents`.
    """
    made = manifests["initialise"].values
    points = [point for record in records for point in pod_points(pod, record)]
    evaluated = manifests["evaluate"].values if "evaluate" in manifests else {"by_pod": {}}
    if pod in evaluated["by_pod"]:
        tested = evaluated["by_pod"][pod]
        points += points_of(metric_keys("test", tested), tested, len(records))
    rows = made["rows_by_pod"].get(pod, {})
    colour = COLOURS[pods_of(manifests["initialise"], records).index(pod) % len(COLOURS)]
    return RunContents(
        job_id=pod_run_id(made["job_id"], pod),
        name=pod_run_name(made["job_id"], pod),
        params={f"rows.{part}": str(count) for part, count in rows.items()},
        tags={
            PARENT: parent,
            POD: pod,
            "mlflow.runColor": colour,
            "mlflow.note.content": pod_note(pod, made, evaluated, records),
        },
        points=tuple(points),
        datasets=(),
        files=(),
        steps=tuple(manifests),
    )


def pods_of(initialised: Manifest, records: Sequence[RoundRecord]) -> list[str]:
    """Every pod that joined, or was asked in a round; sorted."""
    asked = {pod for record in records for pod in (*record.pods, *record.missing)}
    return sorted(asked | set(initialised.values["rows_by_pod"]))


def pod_run_id(job_id: str, pod: str) -> str:
    """What marks the run of a pod in a job, as the job's id marks the job's run."""
    return f"{job_id}/{pod}"


def pod_run_name(job_id: str, pod: str) -> str:
    """The name of a pod's run: the pod first, since lists and legends cut the end off."""
    return f"{pod} · {run_name(job_id)}"


def round_points(record: RoundRecord) -> list[Point]:
    """The metrics of one round over all pods, at that round as the step."""
    losses = [value for value in record.train_loss.values() if value is not None]
    values: dict[str, float | None] = {
        "train/loss": math.fsum(losses) / len(losses) if losses else None,
        "time/fit_seconds": max(record.fit_seconds.values(), default=0.0),
        "time/round_seconds": record.seconds,
        "time/wait_seconds": record.wait_seconds,
        "time/aggregate_seconds": record.aggregate_seconds,
        "update/bytes_down": float(record.bytes_down),
        "update/bytes_up": float(record.bytes_up),
        "update/pods": float(len(record.pods)),
        "update/pods_missing": float(len(record.missing)),
        "update/largest_norm": max(record.norms.values(), default=0.0),
        "privacy/largest_epsilon": max((spent.epsilon for spent in record.spent.values()), default=None),
    }
    step = record.round_number
    learned = points_of(metric_keys("validation", record.metrics), record.metrics, step)
    return learned + points_of({key: key for key in values}, values, step)


def pod_points(pod: str, record: RoundRecord) -> list[Point]:
    """The metrics of one pod in one round; of a pod that was missing, only that."""
    step = record.round_number
    if pod not in record.pods:
        return [Point("update/took_part", 0.0, step)] if pod in record.missing else []
    stats = record.by_pod.get(pod, {})
    values: dict[str, float | None] = {
        "update/took_part": 1.0,
        "train/loss": record.train_loss.get(pod),
        "time/fit_seconds": record.fit_seconds.get(pod),
        "update/norm": record.norms.get(pod),
        "privacy/epsilon": record.spent[pod].epsilon if pod in record.spent else None,
        "privacy/delta": record.spent[pod].delta if pod in record.spent else None,
    }
    learned = points_of(metric_keys("validation", stats), stats, step)
    return learned + points_of({key: key for key in values}, values, step)


def job_params(store: Store, manifests: Mapping[str, Manifest]) -> dict[str, str]:
    """The parameters of the job's run."""
    made = manifests["initialise"].values
    federation = json.loads(read_file(store, manifests["initialise"], "federation"))
    named = {
        "model": made["model_class"],
        "problem": made["problem"],
        "targets": ", ".join(made["targets"]),
        "columns": made["columns"],
        "parameters": made["parameters_count"],
        "batch_size": made["batch_size"],
        "epochs": made["epochs"],
        "steps": made["steps"],
        "rounds": made["rounds"],
        "seed": made["seed"],
        "pods": ", ".join(federation["pods"]),
        "optimiser": federation["optimiser"],
        "quorum": federation["quorum"],
        "sample": federation["sample"],
        "weighted": federation["weighted"],
        "proximal_mu": federation["proximal_mu"],
        "between_updates": federation["between_updates"],
        "deadline_seconds": federation["deadline_seconds"],
        **{f"rows.{part}": count for part, count in made["rows"].items()},
        **flat("hyperparameters", made["hyperparameters"]),
        **flat("optimiser_settings", federation["optimiser_settings"]),
        **flat("early_stopping", federation["early_stopping"] or {}),
        **flat("best", federation["best"] or {}),
        **flat("privacy", federation.get("privacy") or {}),
    }
    return {valid_key(name): cut(as_text(value), MAX_PARAM) for name, value in named.items() if value is not None}


def job_tags(
    store: Store,
    manifests: Mapping[str, Manifest],
    records: Sequence[RoundRecord],
    prefect_run: str | None,
    reason: str | None,
) -> dict[str, str]:
    """The tags of the job's run; the note that MLflow shows on top of the page is one of them."""
    made = manifests["initialise"].values
    fitted = manifests["fit"].values if "fit" in manifests else {}
    named = {
        "bitfount.job": made["name"],
        "bitfount.job_id": made["job_id"],
        "bitfount.code_version": made["code_version"],
        "bitfount.seed": made["seed"],
        "bitfount.problem": made["problem"],
        "bitfount.data_sha256": made["data_digest"],
        "bitfount.store": store.url,
        "bitfount.prefect_run": prefect_run,
        "bitfount.weights_sha256": fitted.get("weights_sha256"),
        "bitfount.best_round": fitted.get("best_round"),
        REASON: reason,
        "mlflow.source.name": "bitfount-flows",
        "mlflow.source.type": "JOB",
        "mlflow.note.content": job_note(store, manifests, records, reason),
    }
    return {name: cut(str(value), MAX_TAG) for name, value in named.items() if value is not None}


def job_note(
    store: Store, manifests: Mapping[str, Manifest], records: Sequence[RoundRecord], reason: str | None = None
) -> str:
    """The job in a few lines of Markdown: model, pods, rounds, result."""
    made = manifests["initialise"].values
    rows, by_pod = made["rows"], made["rows_by_pod"]
    lines = [
        *([f"**Stopped:** {inline(reason)}", ""] if reason else []),
        *headline(manifests),
        f"**Model** `{made['model_class']}`, {made['problem']}, {made['parameters_count']:,} parameters; batches of"
        f" {made['batch_size']}, seed {made['seed']}",
        "",
        f"**Pods** {inline(', '.join(sorted(by_pod)))}: {made['columns']:,} columns, target {inline(', '.join(made['targets']))};"
        f" {rows['train']:,} training, {rows['validation']:,} validation, {rows['test']:,} test rows in all",
        "",
        f"**Rounds** {len(records)} of {made['rounds']}{absences(records)}",
        "",
    ]
    if "fit" in manifests:
        lines += [f"**Weights** `{manifests['fit'].values['weights_sha256'][:16]}…`{best_text(manifests['fit'])}", ""]
    if "evaluate" in manifests:
        lines += result_table(manifests["evaluate"].values)
    if "compare" in manifests:
        lines += comparison_table(manifests["compare"].values)
    if "report" in manifests:
        lines += ["**Report** `report.html`, among the artifacts", ""]
    lines.append(f"Job `{made['job_id']}`, kept in `{store.url}`")
    return "\n".join(lines)


def best_text(fitted: Manifest) -> str:
    """Which round was best, if the job chose."""
    best = fitted.values["best_round"]
    return "" if best is None else f"; best round {best}, its weights are kept beside the last"


def absences(records: Iterable[RoundRecord]) -> str:
    """Who was missing how often."""
    counts: dict[str, int] = {}
    for record in records:
        for pod in record.missing:
            counts[pod] = counts.get(pod, 0) + 1
    listed = ", ".join(f"{pod} in {count}" for pod, count in sorted(counts.items()))
    return f"; missing: {listed}" if listed else ""


def result_table(evaluated: Mapping[str, Any]) -> list[str]:
    """Test metrics, together and pod by pod, as a Markdown table."""
    pods = sorted(evaluated["by_pod"])
    if not evaluated["metrics"]:
        return ["No pod sent test metrics.", ""]
    head = ["metric", f"all ({evaluated['rows']:,} rows)"]
    head += [f"{pod} ({evaluated['rows_by_pod'][pod]:,})" for pod in pods]
    rows = [
        [name, figure(value), *(figure(evaluated["by_pod"][pod].get(name)) for pod in pods)]
        for name, value in evaluated["metrics"].items()
    ]
    return ["**Metrics** of the pods' test rows, averaged over rows", "", *table([head, *rows]), ""]


def comparison_table(values: Mapping[str, Any]) -> list[str]:
    """What federating was worth, as a Markdown table."""
    names = list(values["federated"])
    rows = [[who, *(figure(metrics.get(name)) for name in names)] for who, metrics in comparison_rows(values)]
    return ["**Comparison** on the test rows of all pods", "", *table([["trained on", *names], *rows]), ""]


def pod_note(pod: str, made: Mapping[str, Any], evaluated: Mapping[str, Any], records: Sequence[RoundRecord]) -> str:
    """A pod's part in a few lines of Markdown."""
    rows = made["rows_by_pod"].get(pod)
    took_part = sum(pod in record.pods for record in records)
    missed = {record.missing[pod] for record in records if pod in record.missing}
    lines = [
        f"**Pod** `{inline(pod)}` in the job `{made['job_id']}`: took part in {took_part} of {len(records)} rounds",
        "",
    ]
    if rows:
        lines += [f"{rows['train']:,} training, {rows['validation']:,} validation, {rows['test']:,} test rows", ""]
    lines += [f"- missing: {inline(reason)}" for reason in sorted(missed)[:5]]
    for name, value in evaluated["by_pod"].get(pod, {}).items():
        lines.append(f"- {inline(name)} on its test rows: {figure(value)}")
    return "\n".join(lines)


def dataset(store: Store, initialised: Manifest) -> DataSet:
    """The pods' rows: how many, and the digest of their digests; never where they are."""
    made = initialised.values
    schema = BitfountSchema.loads(read_file(store, initialised, "schema").decode())
    total = sum(made["rows"].values())
    profile = {
        "num_rows": total,
        "rows": made["rows"],
        "rows_by_pod": made["rows_by_pod"],
        "sha256": made["data_digest"],
    }
    return DataSet(
        name=cut(made["source"]["name"], 500),
        digest=made["data_digest"][:DIGEST],
        source_type="pods",
        source=json.dumps(made["source"], ensure_ascii=False),
        schema=column_spec(schema.columns),
        profile=json.dumps(profile),
        context="training",
    )


def job_files(manifests: Mapping[str, Manifest]) -> Iterable[tuple[str, Reference]]:
    """(folder of the run, artifact) pairs."""
    for step, manifest in manifests.items():
        for role, artifact in manifest.files.items():
            folder = {**WHOLE_STEPS, "predict": "predict"}.get(step, FOLDERS.get((step, role)))
            if folder is not None:
                yield folder, artifact
