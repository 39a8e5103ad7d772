"""What is kept of a closed round of a simulated job: written once, last, so that the job goes on from the newest one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bitfount_model.errors import IntegrityError, SerializationError
from bitfount_model.federation.early_stopping import EarlyStoppingState
from bitfount_model.types import JSON
from tasks.store import Reference, Store


@dataclass(frozen=True)
class SimulatedRound:
    """One closed round. Nothing in it grows with the number of clients.

    Attributes:
        round_number: from 1.
        clients: how many trained, refused ones included.
        refusals: updates that were not used.
        refused: client -> why, of the first few of them.
        rows: training rows behind the round; updates, where clients are not weighted.
        train_loss: mean over the rows that trained, where there is one.
        metrics: of the validation rows; None where not defined.
        seconds: that the round took.
        weights: the global parameters after it.
        server: what the server optimiser keeps; None for one that keeps nothing.
        stopping: what early stopping keeps.
        best: which round is the best so far; None where the job does not choose.
    """

    round_number: int
    clients: int
    refusals: int
    refused: Mapping[str, str]
    rows: float
    train_loss: float | None
    metrics: Mapping[str, float | None]
    seconds: float
    weights: Reference
    server: Reference | None
    stopping: EarlyStoppingState
    best: EarlyStoppingState | None

    def to_json(self) -> JSON:
        """A JSON object; floats keep every bit."""
        return {
            **asdict(self),
            "stopping": self.stopping.to_json(),
            "best": None if self.best is None else self.best.to_json(),
        }

    def as_epoch(self, rounds: int) -> JSON:
        """The round as a record of an epoch, for whatever shows a course.

        Args:
            rounds: of the job.
        """
        return {
            "epoch": self.round_number,
            "epochs": rounds,
            "unit": "round",
            "rows": self.rows,
            "train_loss": self.train_loss,
            "val_stats": dict(self.metrics),
            "also": {
                "time/round_seconds": self.seconds,
                "update/clients": float(self.clients),
                "update/clients_refused": float(self.refusals),
            },
        }


def weights_name(round_number: int) -> str:
    """Where the parameters after a round lie."""
    return f"simulation/{round_number:05d}.weights.safetensors"


def server_name(round_number: int) -> str:
    """Where the server optimiser's state after a round lies."""
    return f"simulation/{round_number:05d}.server.safetensors"


def write_round(store: Store, record: SimulatedRound) -> None:
    """Keeps a record: from here on the round is closed."""
    store.put(_name(record.round_number), json.dumps(record.to_json(), allow_nan=False).encode())


def read_rounds(store: Store) -> list[SimulatedRound]:
    """The records of all closed rounds, in order.

    Raises:
        IntegrityError: a record is not what was written.
    """
    records: list[SimulatedRound] = []
    while (content := store.find(_name(len(records) + 1))) is not None:
        try:
            records.append(round_from_json(json.loads(content)))
        except (ValueError, SerializationError) as error:
            raise IntegrityError(
                f"{_name(len(records) + 1)} in {store.url} is not what a round wrote: {error}. Use another job id."
            ) from error
    return records


def round_from_json(value: Mapping[str, Any]) -> SimulatedRound:
    """What `SimulatedRound.to_json` gave.

    Raises:
        SerializationError: it is no record.
    """
    try:
        given = {
            **value,
            "weights": Reference(**value["weights"]),
            "server": None if value["server"] is None else Reference(**value["server"]),
            "stopping": EarlyStoppingState.from_json(value["stopping"]),
            "best": None if value["best"] is None else EarlyStoppingState.from_json(value["best"]),
        }
        return SimulatedRound(**given)
    except (KeyError, TypeError) as error:
        raise SerializationError(f"no record of a simulated round: {error}") from error


def _name(round_number: int) -> str:
    return f"simulation/{round_number:05d}.json"
