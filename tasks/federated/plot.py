"""From a federated job's history to the pictures that people look at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from tasks.federated.round_record import RoundRecord, read_records
from tasks.manifest import Manifest, read_manifest, write_manifest
from tasks.plot_style import drawable
from tasks.plots import curve_groups, curve_panels
from tasks.store import Store


def plot_federation(store: Store) -> Manifest:
    """Draws the job's plots and keeps them, unless that has been done."""
    if done := read_manifest(store, "plots"):
        return done
    records = read_records(store)
    pictures = federation_plots(records) if records else {}
    files = {name: store.put(f"plots/{name}.png", content) for name, content in pictures.items()}
    return write_manifest(store, Manifest("plots", files, {}))


def federation_plots(records: Sequence[RoundRecord]) -> dict[str, bytes]:
    """Name -> PNG: `learning_curves` over all pods; `pods`, each metric with a curve for each pod.

    Args:
        records: of the closed rounds, at least one.
    """
    rounds = np.array([record.round_number for record in records], dtype=np.float64)
    history = [
        {"epoch": r.round_number, "train_loss": _mean(r.train_loss.values()), "val_stats": r.metrics} for r in records
    ]
    pods = sorted({pod for record in records for pod in record.pods})
    metrics = list(dict.fromkeys(name for record in records for name in record.metrics))
    by_pod = {
        name: {
            **{pod: drawable([_or_nan(r.by_pod.get(pod, {}).get(name)) for r in records]) for pod in pods},
            "all pods": drawable([_or_nan(r.metrics.get(name)) for r in records]),
        }
        for name in metrics
    }
    plots = {"learning_curves": curve_panels("Learning curves", "round", rounds, curve_groups(history))}
    if by_pod and len(pods) > 1:
        plots["pods"] = curve_panels("Validation of each pod", "round", rounds, by_pod)
    return plots


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
