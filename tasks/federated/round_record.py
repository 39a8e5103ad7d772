"""What the modeller keeps of a closed round: written once, last, so that a job goes on from the newest one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bitfount_model import codec
from bitfount_model.errors import IntegrityError, SerializationError
from bitfount_model.federation.early_stopping import EarlyStoppingState
from bitfount_model.federation.privacy import Spent
from bitfount_model.federation.rounds import GlobalState, RoundSummary
from bitfount_model.types import JSON
from tasks.federated.exchange import Exchange
from tasks.fit import finite
from tasks.layout import record_name
from tasks.store import Reference, Store


@dataclass(frozen=True)
class RoundRecord:
    """One closed round.

    Attributes:
        round_number: from 1.
        pods: whose updates are in.
        missing: pod -> why it has none, of those that were asked.
        metrics: averaged over the validation rows of the pods; None where not defined.
        by_pod: pod -> its own.
        train_loss: pod -> mean training loss, where there is one.
        weight: training rows behind the round.
        norms: pod -> Euclidean norm of its update.
        fit_seconds: pod -> seconds that training took there.
        seconds: that the round took, from its opening on.
        wait_seconds: of them, those that the modeller waited for answers.
        aggregate_seconds: that the modeller took to add them.
        bytes_down: sent to pods.
        bytes_up: sent by pods.
        weights: the global parameters after the round, in the exchange.
        server: what the server optimiser keeps, beside the record; None for one that keeps nothing.
        stopping: what early stopping keeps.
        best: which round is the best so far; None where the job does not choose.
        chosen: those of `pods` whose updates the parameters are made of; None in records that do not say.
        spent: pod -> what its updates have told by then; empty where the job is not private.
    """

    round_number: int
    pods: tuple[str, ...]
    missing: Mapping[str, str]
    metrics: Mapping[str, float | None]
    by_pod: Mapping[str, Mapping[str, float | None]]
    train_loss: Mapping[str, float | None]
    weight: float
    norms: Mapping[str, float]
    fit_seconds: Mapping[str, float]
    seconds: float
    wait_seconds: float
    aggregate_seconds: float
    bytes_down: int
    bytes_up: int
    weights: Reference
    server: Reference | None
    stopping: EarlyStoppingState
    best: EarlyStoppingState | None
    chosen: tuple[str, ...] | None = None
    spent: Mapping[str, Spent] = field(default_factory=dict)

    def to_json(self) -> JSON:
        """A JSON object; floats keep every bit."""
        return {
            **asdict(self),
            "stopping": self.stopping.to_json(),
            "best": None if self.best is None else self.best.to_json(),
        }


@dataclass(frozen=True)
class Measured:
    """What was seen of a round beside its arithmetic: see `RoundRecord`."""

    missing: Mapping[str, str]
    norms: Mapping[str, float]
    fit_seconds: Mapping[str, float]
    seconds: float
    wait_seconds: float
    aggregate_seconds: float
    bytes_down: int
    bytes_up: int
    spent: Mapping[str, Spent] = field(default_factory=dict)


def record_of(
    summary: RoundSummary,
    state: GlobalState,
    measured: Measured,
    weights: Reference,
    server: Reference | None,
    best: EarlyStoppingState | None,
) -> RoundRecord:
    """The record of a round that has just been closed."""
    return RoundRecord(
        round_number=summary.round_number,
        pods=summary.pods,
        missing={**measured.missing, **summary.refused},
        metrics={name: finite(value) for name, value in summary.metrics.items()},
        by_pod={pod: {name: finite(v) for name, v in stats.items()} for pod, stats in summary.by_pod.items()},
        train_loss={pod: finite(value) for pod, value in summary.train_loss.items()},
        weight=summary.weight,
        norms=measured.norms,
        fit_seconds=measured.fit_seconds,
        seconds=round(measured.seconds, 6),
        wait_seconds=round(measured.wait_seconds, 6),
        aggregate_seconds=round(measured.aggregate_seconds, 6),
        bytes_down=measured.bytes_down,
        bytes_up=measured.bytes_up,
        weights=weights,
        server=server,
        stopping=state.stopping,
        best=best,
        chosen=summary.chosen,
        spent=measured.spent,
    )


def write_record(store: Store, record: RoundRecord) -> None:
    """Keeps a record: from here on the round is closed."""
    store.put(record_name(record.round_number), json.dumps(record.to_json(), allow_nan=False).encode())


def read_records(store: Store, after: int = 0) -> list[RoundRecord]:
    """The records of all closed rounds in order.

    Args:
        store: the modeller's own.
        after: leaves out the rounds up to this one.

    Raises:
        IntegrityError: a record is not what was written.
    """
    records: list[RoundRecord] = []
    while store.has(record_name(after + len(records) + 1)):
        records.append(read_record(store, after + len(records) + 1))
    return records


def read_record(store: Store, round_number: int) -> RoundRecord:
    """The record of one closed round.

    Raises:
        IntegrityError: it is not what was written.
    """
    name = record_name(round_number)
    try:
        return record_from_json(json.loads(store.get(name)))
    except (ValueError, SerializationError) as error:
        raise IntegrityError(
            f"{name} in {store.url} is not what a round wrote: {error}. Use another job id."
        ) from error


def record_from_json(value: Mapping[str, Any]) -> RoundRecord:
    """What `RoundRecord.to_json` gave.

    Raises:
        SerializationError: it is no record.
    """
    try:
        given = {
            **value,
            "pods": tuple(value["pods"]),
            "chosen": None if value.get("chosen") is None else tuple(value["chosen"]),
            "weights": Reference(**value["weights"]),
            "server": None if value["server"] is None else Reference(**value["server"]),
            "stopping": EarlyStoppingState.from_json(value["stopping"]),
            "best": None if value["best"] is None else EarlyStoppingState.from_json(value["best"]),
            "spent": {pod: Spent(**spent) for pod, spent in value.get("spent", {}).items()},
        }
        return RoundRecord(**given)
    except (AttributeError, KeyError, TypeError) as error:
        raise SerializationError(f"no record of a round: {error}") from error


def state_after(store: Store, exchange: Exchange, record: RoundRecord) -> GlobalState:
    """The state that the next round starts from.

    Raises:
        StorageError: parameters or optimiser state are not there, or are others than those that were written.
    """
    server = {}
    if record.server is not None:
        server = codec.decode(store.get(record.server.name, record.server.sha256)).params
    return GlobalState(record.round_number, exchange.weights(record.weights), server, record.stopping)
