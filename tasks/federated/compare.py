"""What federating is worth: the same model trained on each pod alone, and on all rows pooled, held against the federated one.

Only for pods whose rows this process may read. Each model trains as long as the federated one, from the same first
weights, and is tested on the test rows of every pod; metrics are averaged over rows, as the federated ones are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from bitfount_model import BitfountSchema, DataStructure, codec
from bitfount_model.data import DataFrameSource, DatasetSplitter
from bitfount_model.errors import DivergedError, StorageError, TooFewRowsError
from bitfount_model.federation import MetricSums, merge_statistics
from bitfount_model.federation.job import job_from_json
from bitfount_model.federation.pod import Pod
from bitfount_model.federation.pod_session import PodSession
from bitfount_model.federation.policy import PodPolicy
from bitfount_model.types import Parameters, SplitIndices
from tasks.federated.finish import as_numbers
from tasks.manifest import Manifest, read_file, read_manifest, write_manifest
from tasks.progress import tell
from tasks.session import require, threads
from tasks.store import Store

POOLED = "pooled"
ALL_ROWS = "all rows pooled"
"""No name of a pod: those have no blanks."""


@dataclass(frozen=True)
class GivenSplit(DatasetSplitter):
    """A split that has been made already.

    Args:
        parts: positions of the rows of each part.
    """

    parts: SplitIndices

    def split(self, frame: pd.DataFrame, seed: int | None = None, stratify: np.ndarray | None = None) -> SplitIndices:
        """The split that was given, whatever the seed."""
        return self.parts


def compare(store: Store, pods: Sequence[Pod]) -> Manifest:
    """Trains on each pod alone and on all rows pooled, unless that has been done.

    Args:
        store: the modeller's own; the job has been evaluated.
        pods: of the job.

    Returns:
        `values` are `{"federated", "pooled": metrics, "alone": pod -> metrics, "alone_mean": metrics, "missing": who ->
        reason}`.
    """
    if done := read_manifest(store, "compare"):
        return done
    made, evaluated = require(store, "initialise"), require(store, "evaluate").values
    pods = [pod for pod in pods if pod.name in evaluated["by_pod"]]
    comparison = Comparison(store, made, pods)
    found: dict[str, dict[str, float | None]] = {}
    missing: dict[str, str] = {}
    for who, pod in [*((pod.name, pod) for pod in pods), (ALL_ROWS, None)] if pods else []:
        try:
            with threads(comparison.job.threads):
                found[who] = as_numbers(comparison.metrics_of(pod).mean())
        except StorageError:
            raise  # no model is to blame, and the comparison can still be made
        except Exception as error:
            # Whatever went wrong in a model ends no job that has been trained; its text may hold values of rows.
            plain = isinstance(error, DivergedError | TooFewRowsError)
            missing[who] = f"{type(error).__name__}: {error}" if plain else type(error).__name__
        tell("compared", {"who": who if pod else POOLED})
    pooled = found.pop(ALL_ROWS, {})
    values = {
        "federated": evaluated["metrics"],
        "pooled": pooled,
        "alone": found,
        "alone_mean": mean_of(found),
        "missing": missing,
    }
    return write_manifest(store, Manifest("compare", {}, values))


class Comparison:
    """Trains one model at a time, locally.

    Args:
        store: the modeller's own.
        made: manifest of the step `initialise`.
        pods: whose test rows test every model.
    """

    def __init__(self, store: Store, made: Manifest, pods: Sequence[Pod]) -> None:
        asked = job_from_json(json.loads(read_file(store, made, "federation")))
        self._pods = pods
        self._source = read_file(store, made, "model")
        self._schema = BitfountSchema.loads(read_file(store, made, "schema").decode())
        first = made.files["weights"]
        self._first = codec.decode(store.mapped(first.name, first.sha256), in_place=True).params
        # Early stopping may have ended the rounds before the job's last epoch or step.
        rounds = require(store, "fit").values["rounds"]
        trained = min(rounds * asked.between_updates, asked.iterations)
        self.job = replace(
            asked,
            epochs=None if asked.epochs is None else trained,
            steps=None if asked.steps is None else trained,
            between_updates=trained,
            schema=self._schema.dumps(),
            preparation=None,
            sample=None,
            early_stopping=None,
            best=None,
            proximal_mu=0.0,
        )

    def metrics_of(self, pod: Pod | None) -> MetricSums:
        """Trains on one pod's rows, or on all of them for None, and tests on those of all pods."""
        job, trainer = self.job, pod or self.pooled()
        if pod is None:
            columns = {name: value for name, value in job.datastructure.items() if name not in ("table", "query")}
            job = replace(job, pods=(POOLED,), quorum=1, datastructure=columns)
        session = PodSession(trainer, job, self._source)
        structure = DataStructure(**job.datastructure)
        preparation = merge_statistics({trainer.name: session.statistics(self._schema)}, self._schema, structure)
        session.prepare(self._schema, preparation)
        session.fit(1, self._first)
        return self._tested(session.parameters, preparation)

    def pooled(self) -> Pod:
        """One pod with the rows of all, each row training, validating or testing as it does in its own pod."""
        frames, starts, splits = [], [0], []
        for pod in self._pods:
            frame, split = PodSession(pod, self.job, self._source).table()
            frames.append(frame)
            splits.append(split)
            starts.append(starts[-1] + len(frame))
        parts = (
            np.concatenate([getattr(split, part) + start for split, start in zip(splits, starts, strict=False)])
            for part in ("train", "validation", "test")
        )
        rows = pd.concat(frames, ignore_index=True)
        policy = PodPolicy("all", 1, 1, 2**63, 2**63, 1, models="all")
        return Pod(POOLED, DataFrameSource(rows), policy, GivenSplit(SplitIndices(*parts)))

    def _tested(self, parameters: Parameters, preparation: Any) -> MetricSums:
        together = MetricSums({})
        for pod in self._pods:
            session = PodSession(pod, self.job, self._source)
            session.prepare(self._schema, preparation)
            together = together.add(session.evaluate(parameters))
        return together


def mean_of(alone: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    """The mean over pods of each metric that all of them have."""
    names = list(dict.fromkeys(name for metrics in alone.values() for name in metrics))
    values = {name: [metrics.get(name) for metrics in alone.values()] for name in names}
    return {
        name: None if None in column else float(np.mean([v for v in column if v is not None]))
        for name, column in values.items()
    }


def comparison_rows(values: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float | None]]]:
    """(who trained, metrics) for a table of a comparison's `values`."""
    rows = [(f"{pod} alone", metrics) for pod, metrics in sorted(values["alone"].items())]
    if len(rows) > 1:
        rows.append(("mean of the pods alone", values["alone_mean"]))
    return [*rows, ("federated", values["federated"]), ("all rows pooled", values["pooled"])]
