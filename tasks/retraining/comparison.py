"""Challenger against champion, on the same held-out rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from bitfount_model import EvaluateReturnType, MetricCollection, PyTorchBitfountModel
from bitfount_model.data import DataFrameSource, row_digests, split_rows
from bitfount_model.errors import ConfigurationError
from bitfount_model.federation.early_stopping import lower_is_better
from bitfount_model.metrics import default_metrics
from bitfount_model.types import PredictReturnType
from tasks.evaluate import open_trained
from tasks.job import splitter_of
from tasks.manifest import Manifest, read_manifest, write_manifest
from tasks.registered import OpenModel, RegisteredModel, open_model, watched_columns
from tasks.retraining.decisions import Gain, resampled_gain
from tasks.retraining.look import known_rows
from tasks.session import Session, threads, user_code
from tasks.store import Store


def compare_here(store: Store, challenger: Store, champion: RegisteredModel, wanted: Mapping[str, Any]) -> Manifest:
    """Compares on the challenger's test rows that the champion has not learned from, once.

    Where fewer than `minimum_rows` of these are left, all of the challenger's test rows are taken: that favours the champion.

    Args:
        store: the retraining's own.
        challenger: the store of its job.
        champion: that it is to beat.
        wanted: the `compare` section of the retraining.

    Returns:
        The fields of `Gain`.
    """
    if done := read_manifest(store, "compare"):
        return done
    session, opened = open_trained(challenger), open_model(champion.folder)
    rows, note = held_out_rows(session, opened, champion, wanted["minimum_rows"])
    metric = chosen_metric(session.model, wanted["metric"])
    if len(rows) < 2:
        return keep(store, Gain(metric, None, None, None, None, len(rows), "there are no test rows"))
    with threads(session.job.training["threads"]), user_code(session.store, session.job):
        theirs = session.model.evaluate(session.model.prediction_loader(DataFrameSource(rows), targets=True))
        ours = opened.model.predict(DataFrameSource(rows.drop(columns=session.model.datastructure.targets)))
    if not isinstance(theirs, EvaluateReturnType) or not isinstance(ours, PredictReturnType):
        raise ConfigurationError("the models do not give predictions of local rows, so they cannot be compared")
    aligned = in_order(ours.preds, opened.classes, session.classes)
    if aligned is None:
        why = f"the champion knows the classes {opened.classes}, the challenger {session.classes}"
        return keep(store, Gain(metric, None, None, None, None, len(rows), why))
    metrics = session.model.metrics or MetricCollection.create_from_model(session.model)
    values = resampled_gain(
        lambda targets, preds: metrics.compute(targets, preds, [metric])[metric],
        theirs.targs,
        aligned,
        theirs.preds,
        lower_is_better=lower_is_better(metric, wanted["mode"]),
        confidence=wanted["confidence"],
        resamples=wanted["resamples"],
        seed=session.job.training["seed"] or 0,
    )
    if values[2] is None or values[3] is None:
        note = f"it is not defined on these {len(rows)} rows"
        values = (values[0], values[1], None, None)
    return keep(store, Gain(metric, *values, len(rows), note))


def compare_at_pods(
    store: Store, challenger: Mapping[str, Any], champion: Mapping[str, Any], wanted: Mapping[str, Any], metric: str
) -> Manifest:
    """Compares the test metrics that the same pods gave for both, once; rows that stay there are not resampled.

    Args:
        store: the retraining's own.
        challenger: `metrics` and `rows` of its job's evaluation.
        champion: the same of the champion's.
        wanted: the `compare` section of the retraining.
        metric: that is compared.

    Returns:
        The fields of `Gain`.
    """
    if done := read_manifest(store, "compare"):
        return done
    before, after = champion["metrics"].get(metric), challenger["metrics"].get(metric)
    if before is None or after is None:
        return keep(store, Gain(metric, before, after, None, None, challenger["rows"], "it is not defined for both"))
    sign = -1.0 if lower_is_better(metric, wanted["mode"]) else 1.0
    note = "the rows stay with their pods, so there is no confidence by resampling"
    return keep(store, Gain(metric, before, after, sign * (after - before), None, challenger["rows"], note))


def keep(store: Store, gain: Gain) -> Manifest:
    """Writes the step's manifest."""
    return write_manifest(store, Manifest("compare", {}, asdict(gain)))


def gain_of(manifest: Manifest) -> Gain:
    """The gain that a manifest keeps."""
    return Gain(**manifest.values)


def chosen_metric(model: PyTorchBitfountModel, name: str | None) -> str:
    """The metric to compare by: the one that is named, else the first of the problem's.

    Raises:
        ConfigurationError: the problem has no such metric.
    """
    known = list(default_metrics(model.problem))
    if name is not None and name not in known:
        raise ConfigurationError(f"compare.metric is {name!r}, the metrics of the problem are {', '.join(known)}")
    return name or known[0]


def held_out_rows(
    session: Session, champion: OpenModel, registered: RegisteredModel, minimum: int
) -> tuple[pd.DataFrame, str]:
    """The raw rows to compare on, and what is to be known about them."""
    model, raw = (
        session.model,
        session.source.read(session.job.datastructure.get("table"), session.job.datastructure.get("query")),
    )
    frame = model.datastructure.transform(raw)
    test = split_rows(frame, splitter_of(session.job), model.datastructure, model.seed).test
    _, learned = known_rows(registered)
    old = champion.model
    digests = row_digests(frame.iloc[test], old.schema, watched_columns(old))
    unseen = test[~np.isin(digests, learned)]
    if len(unseen) >= minimum:
        left = len(test) - len(unseen)
        return raw.iloc[unseen], f"{left:,} test rows that the champion learned from are left out" if left else ""
    if len(unseen) == len(test):
        return raw.iloc[test], ""
    return raw.iloc[test], (
        f"the champion learned from {len(test) - len(unseen):,} of these rows, which favours it: without them there are fewer"
        f" than {minimum:,}"
    )


def in_order(preds: np.ndarray, have: Sequence[str] | None, want: Sequence[str] | None) -> np.ndarray | None:
    """Scores `(rows, classes)` in the order of other classes; a class that the model does not know scores nought.

    Args:
        preds: `(rows, ...)`.
        have: the classes of the columns, None for regression.
        want: the classes in the order that is wanted.

    Returns:
        `(rows, classes)`; the predictions as they are where the classes are the same, None where they cannot be put in order.
    """
    if have == want:
        return preds
    if have is None or want is None or preds.ndim != 2 or preds.shape[1] != len(have):
        return None
    place = {name: column for column, name in enumerate(have)}
    known = np.stack([preds[:, place[name]] if name in place else np.zeros(len(preds)) for name in want], axis=1)
    total = known.sum(axis=1, keepdims=True)
    even = np.full_like(known, 1 / len(want))
    return np.asarray(np.divide(known, total, out=even, where=total > 0))
