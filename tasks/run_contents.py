"""From a job's folder to what its MLflow run says: parameters, tags, metrics, data, files; MLflow is not called."""

from __future__ import annotations

import json
import math
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitfount_model.data import BitfountSchema, Column, SemanticType
from tasks.manifest import Manifest, read_file
from tasks.store import Reference, Store

STEPS = ("initialise", "fit", "evaluate", "predict", "plots", "report")
"""Of a job that registers nothing, in their order."""
SHOWN_STEPS = (*STEPS, "package")
"""The steps whose manifests a run shows, in their order."""

FOLDERS: Mapping[tuple[str, str], str] = {
    ("initialise", "job"): "",
    ("initialise", "model"): "model",
    ("initialise", "schema"): "model",
    ("initialise", "datastructure"): "model",
    ("fit", "weights"): "model",
    ("fit", "best"): "model",
    ("fit", "history"): "",
    ("report", "report"): "",
    ("evaluate", "predictions"): "evaluate",
    ("predict", "predictions"): "predict",
}
"""(step, role) -> the run's folder for that file."""
WHOLE_STEPS = {"plots": "plots", "package": "model"}
"""Step -> the run's folder for all of its files; files of other steps are not shown."""

MAX_KEY, MAX_PARAM, MAX_TAG, MAX_SCHEMA = 250, 6000, 8000, 1_000_000  # characters that MLflow takes
DIGEST = (
    8  # characters of the rows' sha256 in a data set's digest: as many as in MLflow's own, so that its tables have room
)
REASON = "bitfount.reason"
HEADLINE_METRICS = 4
ROOM = "\u00a0"


@dataclass(frozen=True)
class Point:
    """One value of a metric."""

    key: str
    value: float
    step: int


@dataclass(frozen=True)
class DataSet:
    """Rows that a job used: where they come from and what they are, never the rows.

    Attributes:
        name: of the file, table or collection.
        digest: of the rows.
        source_type: kind of place.
        source: JSON, without secrets.
        schema: JSON, the columns as MLflow shows them; None if not known.
        profile: JSON, how many rows.
        context: what they are for, e.g. `training`.
    """

    name: str
    digest: str
    source_type: str
    source: str
    schema: str | None
    profile: str
    context: str


@dataclass(frozen=True)
class RunContents:
    """All that an MLflow run says about a job so far.

    Attributes:
        job_id: the job.
        name: of the run, for people.
        params: immutable in MLflow.
        tags: the note among them.
        points: metrics.
        datasets: inputs.
        files: (folder of the run, artifact of the store) pairs.
        steps: those that have finished.
    """

    job_id: str
    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    points: tuple[Point, ...]
    datasets: tuple[DataSet, ...]
    files: tuple[tuple[str, Reference], ...]
    steps: tuple[str, ...]


def run_contents(
    store: Store, manifests: Mapping[str, Manifest], prefect_run: str | None = None, reason: str | None = None
) -> RunContents:
    """What a run says.

    Args:
        store: the job's store; history and schema are read from it.
        manifests: step -> manifest of the finished steps, `initialise` among them.
        prefect_run: the id of the Prefect run that works on the job now.
        reason: why the job stopped, if it did.

    Raises:
        StorageError: a file of the job cannot be read, or is not the one that was written.
    """
    made = manifests["initialise"].values
    history = json.loads(read_file(store, manifests["fit"], "history")) if "fit" in manifests else []
    tested = manifests["evaluate"].values["metrics"] if "evaluate" in manifests else {}
    last_epoch = history[-1]["epoch"] if history else 0
    points = (
        *(point for record in history for point in epoch_points(record)),
        *points_of(metric_keys("test", tested), tested, last_epoch),
        *([Point("time/fit_seconds", manifests["fit"].values["seconds"], last_epoch)] if "fit" in manifests else []),
    )
    files = tuple(
        (folder, reference)
        for step, manifest in manifests.items()
        for role, reference in manifest.files.items()
        if (folder := WHOLE_STEPS.get(step, FOLDERS.get((step, role)))) is not None
    )
    return RunContents(
        job_id=made["job_id"],
        name=run_name(made["job_id"]),
        params=params(made),
        tags=tags(store, manifests, prefect_run, reason),
        points=points,
        datasets=datasets(store, manifests),
        files=files,
        steps=tuple(manifests),
    )


def run_name(job_id: str) -> str:
    """A run's name: the job's id, without the time that an id has which nobody chose, since MLflow shows it beside."""
    return re.sub(r"-\d{8}-\d{6}-([0-9a-f]{4})$", r" \1", job_id)


def epoch_points(record: Mapping[str, Any]) -> list[Point]:
    """The metrics of one epoch's record; values that are missing or not finite are left out.

    Args:
        record: `epoch`, `train_loss`, `val_stats`, and perhaps `also`: key in MLflow -> value.
    """
    stats = record["val_stats"]
    also = record.get("also", {})
    return [
        *points_of({"loss": "train/loss"}, {"loss": record["train_loss"]}, record["epoch"]),
        *points_of(metric_keys("validation", stats), stats, record["epoch"]),
        *points_of({key: key for key in also}, also, record["epoch"]),
    ]


def points_of(keys: Mapping[str, str], values: Mapping[str, float | None], step: int) -> list[Point]:
    """One point for each value that is there and finite, under its key."""
    return [
        Point(keys[name], float(value), step)
        for name, value in values.items()
        if value is not None and math.isfinite(value)
    ]


def metric_keys(group: str, names: Iterable[str]) -> dict[str, str]:
    """Metric names as MLflow takes them, `group/name`, one key a name.

    The group is not said twice (`validation_loss` is `validation/loss`), and characters that MLflow refuses become `_`.
    """
    said = {"validation": r"^(validation|val)[_ ]", "test": r"^test[_ ]"}[group]
    keys: dict[str, str] = {}
    for name in sorted(names):
        key = base = valid_key(f"{group}/{re.sub(said, '', name) or name}")
        number = 1
        while key in keys.values():
            number += 1
            key = f"{base[: MAX_KEY - 8]}_{number}"
        keys[name] = key
    return keys


def valid_key(name: str) -> str:
    """A name of a metric or parameter that MLflow takes: letters, digits, `_`, `-`, `.`, space, `/` between parts."""
    parts = [part for part in re.sub(r"[^/\w.\- ]", "_", name).split("/") if part not in ("", ".", "..")]
    return posixpath.join(*parts)[:MAX_KEY] if parts else "_"


def params(made: Mapping[str, Any]) -> dict[str, str]:
    """The run's parameters, from what `initialise` found out."""
    rows = {f"rows.{split}": count for split, count in made["rows"].items()}
    named = {
        "model": made["model_class"],
        "problem": made["problem"],
        "targets": ", ".join(made["targets"]),
        "columns": made["columns"],
        "parameters": made["parameters_count"],
        "batch_size": made["batch_size"],
        "epochs": made["epochs"],
        "steps": made["steps"],
        "seed": made["seed"],
        **rows,
        **flat("hyperparameters", made["hyperparameters"]),
    }
    return {valid_key(name): cut(as_text(value), MAX_PARAM) for name, value in named.items() if value is not None}


def tags(
    store: Store, manifests: Mapping[str, Manifest], prefect_run: str | None, reason: str | None
) -> dict[str, str]:
    """The run's tags; the note that MLflow shows on top of the page is one of them."""
    made = manifests["initialise"].values
    named = {
        "bitfount.job": made["name"],
        "bitfount.job_id": made["job_id"],
        "bitfount.code_version": made["code_version"],
        "bitfount.seed": made["seed"],
        "bitfount.problem": made["problem"],
        "bitfount.data_sha256": made["data_digest"],
        "bitfount.store": store.url,
        "bitfount.prefect_run": prefect_run,
        "bitfount.weights_sha256": manifests["fit"].values["weights_sha256"] if "fit" in manifests else None,
        REASON: reason,
        "mlflow.source.name": "bitfount-flows",
        "mlflow.source.type": "JOB",
        "mlflow.note.content": note(store, manifests, reason),
    }
    return {name: cut(str(value), MAX_TAG) for name, value in named.items() if value is not None}


def note(store: Store, manifests: Mapping[str, Manifest], reason: str | None = None) -> str:
    """The run in a few lines of Markdown: model, data, result."""
    made = manifests["initialise"].values
    rows = made["rows"]
    length = f"{made['epochs']} epochs" if made["epochs"] is not None else f"{made['steps']} steps"
    lines = [
        *([f"**Stopped:** {inline(reason)}", ""] if reason else []),
        *headline(manifests),
        f"**Model** `{made['model_class']}`, {made['problem']}, {made['parameters_count']:,} parameters; {length},"
        f" batches of {made['batch_size']}, seed {made['seed']}",
        "",
        f"**Data** `{inline(source_name(made['source']))}`: {made['columns']:,} columns, target"
        f" {inline(', '.join(made['targets']))}; {rows['train']:,} training, {rows['validation']:,} validation,"
        f" {rows['test']:,} test rows",
        "",
    ]
    if "fit" in manifests:
        fitted = manifests["fit"].values
        lines += [f"**Training** took {fitted['seconds']:,.1f} s; weights `{fitted['weights_sha256'][:16]}…`", ""]
    tested = manifests["evaluate"].values if "evaluate" in manifests else {"metrics": {}}
    if tested["metrics"]:
        rows_shown = [("metric", "value"), *((name, figure(value)) for name, value in tested["metrics"].items())]
        lines += [f"**Metrics** of {tested['rows']:,} test rows", "", *table(rows_shown), ""]
    if "report" in manifests:
        lines += ["**Report** `report.html`, among the artifacts", ""]
    lines.append(f"Job `{made['job_id']}`, kept in `{store.url}`")
    return "\n".join(lines)


def headline(manifests: Mapping[str, Manifest]) -> list[str]:
    """The result in a line, the first of a note; nothing without a result.

    MLflow folds all but the beginning, and shows a version's in tables as plain text.
    """
    tested: Mapping[str, Any] = manifests["evaluate"].values if "evaluate" in manifests else {"metrics": {}}
    shown = [f"{inline(name)} {figure(value)}" for name, value in tested["metrics"].items()]
    return [f"{', '.join(shown[:HEADLINE_METRICS])} on {tested['rows']:,} test rows", ""] if shown else []


def datasets(store: Store, manifests: Mapping[str, Manifest]) -> tuple[DataSet, ...]:
    """The rows that the job was made from."""
    made = manifests["initialise"]
    schema = BitfountSchema.loads(read_file(store, made, "schema").decode())
    source, rows = made.values["source"], made.values["rows"]
    total = sum(rows.values())
    profile = {
        "num_rows": total,
        "num_elements": total * made.values["columns"],
        "rows": rows,
        "sha256": made.values["data_digest"],
    }
    local = source["kind"] in ("csv", "parquet")
    return (
        DataSet(
            name=cut(source_name(source), 500),
            digest=made.values["data_digest"][:DIGEST],
            source_type="local" if local else source["kind"],
            source=json.dumps({"uri": source["path"]} if local else source, ensure_ascii=False),
            schema=column_spec(schema.columns),
            profile=json.dumps(profile),
            context="training",
        ),
    )


def column_spec(columns: Iterable[Column]) -> str | None:
    """The columns as MLflow's pages show them, or None where there are too many for it."""
    spec = [{"name": column.name, "type": _spec_type(column), "required": False} for column in columns]
    text = json.dumps({"mlflow_colspec": spec}, ensure_ascii=False)
    return text if len(text.encode()) < MAX_SCHEMA else None


def _spec_type(column: Column) -> str:
    for start, name in (("int", "long"), ("uint", "long"), ("bool", "boolean"), ("datetime", "datetime")):
        if column.dtype.lower().startswith(start):
            return name
    return "double" if column.semantic_type is SemanticType.CONTINUOUS else "string"


def source_name(source: Mapping[str, str]) -> str:
    """A short name for a source: its file's name, its table or its collection."""
    if "path" in source:
        return posixpath.basename(source["path"].replace("\\", "/").rstrip("/")) or source["path"]
    return source.get("name") or source.get("table") or source.get("query") or source["kind"]


def flat(name: str, value: Any) -> dict[str, Any]:
    """Nested mappings as one, with dots between the keys."""
    if not isinstance(value, Mapping) or not value:
        return {name: value} if value != {} else {}
    return {key: inner for part, below in value.items() for key, inner in flat(f"{name}.{part}", below).items()}


def as_text(value: Any) -> str:
    """A parameter as MLflow shows it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def figure(value: float | None) -> str:
    """A metric for people: four decimals, or four digits where those say nothing."""
    if value is None:
        return "not defined"
    return f"{value:.4f}" if value == 0 or 0.001 <= abs(value) < 1000 else f"{value:.4g}"


def inline(text: str) -> str:
    """Text that a note can hold without breaking its Markdown."""
    return cut(" ".join(text.replace("`", "'").split()), 1000)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown, the first row its head."""
    # MLflow's page sets the cells of a row side by side without room: the space that does not break makes some.
    head, *below = [f"| {' | '.join(f'{cell(each)}{ROOM}' for each in row)} |" for row in rows]
    return [head, f"|{'---|' * len(rows[0])}", *below]


def cell(text: str) -> str:
    """Text that a cell of a Markdown table can hold."""
    return inline(text).replace("|", "/")


def cut(text: str, length: int) -> str:
    """The text, shortened where it is too long."""
    return text if len(text) <= length else text[: length - 1] + "…"
