"""A look at the rows before a training: how many are new, and how far the columns have drifted."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bitfount_model import PyTorchBitfountModel
from bitfount_model.data import SemanticType, TableProfile, drift, row_digests
from bitfount_model.data.inference import category_codes
from bitfount_model.errors import ModelFileError
from tasks.job import LocalJob, source_of
from tasks.manifest import Manifest, read_manifest, write_manifest
from tasks.registered import PROFILE, ROWS, RegisteredModel, open_model, watched_columns
from tasks.retraining.decisions import Look
from tasks.store import Store


def look_at_rows(store: Store, job: LocalJob, champion: RegisteredModel | None) -> Manifest:
    """Compares the job's rows with those that the champion was trained on, once.

    Args:
        store: the retraining's own.
        job: names the rows.
        champion: None where there is none: then the rows are counted.

    Returns:
        The fields of `Look`.

    Raises:
        DataError: the rows cannot be read, or lack columns that the champion needs.
    """
    if done := read_manifest(store, "look"):
        return done
    source = source_of(job)
    if champion is None:
        values: dict[str, Any] = {
            "rows": len(source.read(*place_of(job.datastructure))),
            "new_rows": None,
            "changed": True,
            "drift": {},
        }
        return write_manifest(store, Manifest("look", {}, values))
    model = open_model(champion.folder).model
    frame = model.datastructure.transform(source.read(*place_of(job.datastructure)))
    digests = row_digests(frame, model.schema, watched_columns(model))
    before, _ = known_rows(champion)
    new = int((~np.isin(digests, before)).sum())
    values = {
        "rows": len(frame),
        "new_rows": new,
        "changed": bool(new) or len(np.unique(digests)) != len(before),
        "drift": {name: float(index) for name, index in drift(known_profile(champion), frame).items()},
        "new_classes": new_classes(model, frame),
    }
    return write_manifest(store, Manifest("look", {}, values))


def look_at_pods(store: Store, evaluated: Mapping[str, Any], champion: RegisteredModel) -> Manifest:
    """What can be known of rows that stay with their pods: how many there are, and whether any changed.

    Args:
        store: the retraining's own.
        evaluated: what a job over the same pods said when it evaluated the champion: `rows` and `data_digest`.
        champion: that was evaluated.

    Returns:
        The fields of `Look`.
    """
    if done := read_manifest(store, "look"):
        return done
    description = json.loads((champion.folder / "model.json").read_text(encoding="utf-8"))
    now, before = sum(evaluated["rows"].values()), sum(description["rows"].values())
    changed = evaluated["data_digest"] != description["data_digest"]
    more = now - before
    values = {"rows": now, "new_rows": more if more > 0 else None, "changed": changed, "drift": {}, "new_classes": []}
    return write_manifest(store, Manifest("look", {}, values))


def new_classes(model: PyTorchBitfountModel, frame: pd.DataFrame) -> list[str]:
    """Classes of the targets that a model's schema does not have."""
    found: set[str] = set()
    for target in model.datastructure.targets:
        column = model.schema.column(target)
        if column.semantic_type is SemanticType.CATEGORICAL and target in frame.columns:
            found |= set(frame[target][category_codes(frame[target], column.categories) == -2].astype(str))
    return sorted(found)


def look_of(manifest: Manifest) -> Look:
    """The look that a manifest keeps."""
    return Look(**manifest.values)


def known_rows(champion: RegisteredModel) -> tuple[np.ndarray, np.ndarray]:
    """Digests of all rows that the champion's job had, and of those that it learned from; each sorted, uint64."""
    with np.load(io.BytesIO(_read(champion.folder / ROWS)), allow_pickle=False) as arrays:
        return arrays["all"], arrays["learned"]


def known_profile(champion: RegisteredModel) -> TableProfile:
    """How the champion's table was distributed."""
    return TableProfile.from_json(json.loads(_read(champion.folder / PROFILE)))


def place_of(datastructure: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The table and the query of a job on one machine."""
    return datastructure.get("table"), datastructure.get("query")


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise ModelFileError(
            f"the champion has no {path.name}: it was trained over pods, on streamed rows, or by an older version of this project."
            " Train once with --force, and the next retraining can look at the rows."
        )
    return path.read_bytes()
