"""Pods that are written by hand: a test says what each of them sends, and no model is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any
from uuid import uuid4

import numpy as np
import torch

from bitfount_model import BitfountSchema, codec
from bitfount_model.federation import MetricSums
from bitfount_model.federation.pod import Rows, Update
from bitfount_model.types import Parameters
from bitfount_model.weights_files import to_safetensors
from tasks.federated.exchange import Exchange
from tasks.federated.federation import Federation
from tasks.federated.messages import Joined
from tasks.manifest import Manifest, write_manifest
from tasks.store import Store
from tests.tasks.federated.team import SOURCE, Team, table

PODS = ("ann", "bob", "cat", "dan", "eve")
ROWS = dict(zip(PODS, (311, 47, 998, 5, 620), strict=True))
"""Pod -> its training rows."""


@dataclass
class Told:
    """A reach whose pods do nothing by themselves.

    Attributes:
        reasons: pod -> why it is gone.
        away: pods that nobody waits for.
        late: (pod, phase) of those that missed a deadline.
    """

    reasons: dict[str, str] = field(default_factory=dict)
    away: set[str] = field(default_factory=set)
    late: list[tuple[str, str]] = field(default_factory=list)

    def work(self) -> None:
        """Nothing."""

    def gone(self, pod: str) -> str | None:
        return self.reasons.get(pod)

    def is_away(self, pod: str) -> bool:
        return pod in self.away

    def missed(self, pod: str, phase: str) -> None:
        self.late.append((pod, phase))


def federation_by_hand(team: Team, reach: Told, rows: Mapping[str, int] | None = None, **changes: Any) -> Federation:
    """A job that is ready for its first round, in memory; its pods are `PODS`, and have joined with `rows`."""
    schema = BitfountSchema("job-1")
    schema.generate_full_schema(table("ann"), force_stypes={"categorical": ["y"]})
    url = f"memory://{uuid4().hex}"
    job = team.job(**{"pods": list(PODS), "quorum": 3, **changes})
    store, exchange = Store(f"{url}/store"), Exchange(f"{url}/exchange")
    exchange.publish(job, SOURCE)
    for pod, count in (ROWS if rows is None else rows).items():
        exchange.put_joined(pod, Joined(schema, Rows(count, 0, 0, hashlib.sha256(pod.encode()).hexdigest())))
    exchange.put_common(schema)
    session = exchange.begin_session({})
    federation = Federation(job, "cells", "tests", SOURCE, store, exchange, session, reach)
    first = to_safetensors(federation.model(schema).get_param_states(), None)
    write_manifest(
        store, Manifest("initialise", {"weights": store.put("initialise/weights.safetensors", first)}, {"rows": {}})
    )
    return federation


def update_of(
    pod: str, parameters: Parameters, seed: int, round_number: int = 1, weight: int | None = None, **changes: Any
) -> Update:
    """What a pod might send: some change of each parameter, and as its weight the rows that it joined with."""
    numbers = np.random.default_rng([seed, *pod.encode()])
    delta = {
        name: torch.from_numpy(numbers.normal(size=value.shape).astype(np.float32))
        if value.is_floating_point()
        else torch.from_numpy(numbers.integers(0, 9, size=value.shape)).reshape(value.shape)
        for name, value in parameters.items()
    }
    given = {
        "pod": pod,
        "round_number": round_number,
        "base_digest": codec.digest(parameters),
        "delta": delta,
        "weight": ROWS[pod] if weight is None else weight,
        "metrics": MetricSums.of({"Accuracy": float(numbers.random())}, 10),
        "train_loss": float(numbers.random()),
        "seconds": 0.5,
    }
    return Update(**(given | changes))


def averaged(parameters: Parameters, updates: list[Update]) -> dict[str, np.ndarray]:
    """Federated averaging in NumPy: float64 sums in the order of pods, divided and rounded once; integers exact.

    Weights below 2**20 times float32 values are exact in float64, so this is the sum to the bit.
    """
    total = sum(update.weight for update in updates)
    wanted = {}
    for name, tensor in parameters.items():
        base = tensor.numpy()
        if base.dtype == np.float32:
            summed = np.zeros(base.shape)
            for update in updates:
                summed = summed + update.delta[name].numpy().astype(np.float64) * update.weight
            moved = base.astype(np.float64) + summed / total
            wanted[name] = (np.maximum(moved, 0) if name.endswith("running_var") else moved).astype(np.float32)
        else:
            whole = sum(Fraction(int(update.delta[name])) * update.weight for update in updates) / total
            wanted[name] = np.array(int(base) + round(whole), dtype=base.dtype)
    return wanted


def same_bits(found: Parameters, wanted: Mapping[str, np.ndarray]) -> bool:
    """Whether names, dtypes and every bit of every value are equal."""
    return found.keys() == wanted.keys() and all(
        found[name].numpy().dtype == value.dtype and found[name].numpy().tobytes() == value.tobytes()
        for name, value in wanted.items()
    )
