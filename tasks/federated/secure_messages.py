"""What lies in the exchange for the secure sum of one round, in one session of the modeller.

    rounds/<r>/secure/<n>/trained/<pod>.json     the pod has trained: rows, names of its metrics, seconds; no value of its update
    rounds/<r>/secure/<n>/context.json           who is summed, how many rows they have together, names of all metrics
    rounds/<r>/secure/<n>/keys/<pod>.json        a pod's public keys, signed
    rounds/<r>/secure/<n>/roster.json            all that came in time
    rounds/<r>/secure/<n>/shares/<pod>.json      a pod's shares, each encrypted for its receiver
    rounds/<r>/secure/<n>/senders.json           whose shares came in time
    rounds/<r>/secure/<n>/masked/<pod>.json      a pod's masked vector, which lies beside it
    rounds/<r>/secure/<n>/survivors.json         whose vectors are summed
    rounds/<r>/secure/<n>/unmask/<pod>.json      a pod's shares of the survivors' self masks and the dropped pods' keys

Every object is written once. A second session of a round has masks of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from marshmallow import RAISE, Schema, ValidationError, fields, validate

from bitfount_model import codec
from bitfount_model.errors import SerializationError
from bitfount_model.federation.messages import SpentSchema
from bitfount_model.federation.privacy import Spent
from bitfount_model.federation.secure_sum import EncryptedShare, PublicKeys, UnmaskAnswer
from bitfount_model.types import JSON, Words
from tasks.federated.exchange import Exchange
from tasks.store import Reference

MOST_METRICS = 1000
MOST_ROWS = 2**53


@dataclass(frozen=True)
class Trained:
    """A pod has trained in a round.

    Attributes:
        rows: training rows behind its update.
        metrics: names of its validation metrics; their values are in its masked vector.
        seconds: that training took.
        spent: what the pod's updates in this job have told so far; None where the job is not private.
    """

    rows: int
    metrics: tuple[str, ...]
    seconds: float
    spent: Spent | None = None


@dataclass(frozen=True)
class Summed:
    """Who is summed in a round, and what all of their vectors look like.

    Attributes:
        pods: those that trained in time, sorted.
        rows: training rows of all of them.
        metrics: names of all metrics, sorted.
    """

    pods: tuple[str, ...]
    rows: int
    metrics: tuple[str, ...]


class SecureMessages:
    """The objects of one secure sum.

    Args:
        exchange: of the job.
        phase: of the round.
        session: the modeller's.
    """

    def __init__(self, exchange: Exchange, phase: str, session: int) -> None:
        self._exchange = exchange
        self._folder = f"{phase}/secure/{session:04d}"

    def put_trained(self, pod: str, trained: Trained) -> None:
        """A pod has trained."""
        self._put(f"trained/{pod}", {**asdict(trained), "metrics": list(trained.metrics)})

    def trained(self, pod: str) -> Trained | None:
        """What a pod says of its training, or None while it has said nothing."""
        value = self._checked(f"trained/{pod}", _TrainedSchema())
        return None if value is None else Trained(**{**value, "metrics": tuple(value["metrics"])})

    def put_summed(self, summed: Summed) -> None:
        """Says who is summed."""
        self._put("context", {"pods": list(summed.pods), "rows": summed.rows, "metrics": list(summed.metrics)})

    def summed(self) -> Summed | None:
        """Who is summed, or None while it is not known."""
        value = self._checked("context", _SummedSchema())
        return None if value is None else Summed(tuple(value["pods"]), value["rows"], tuple(value["metrics"]))

    def put_keys(self, keys: PublicKeys) -> None:
        """A pod's public keys."""
        self._put(f"keys/{keys.pod}", keys.to_json())

    def keys(self, pod: str) -> PublicKeys | None:
        """A pod's public keys, or None while there are none."""
        value = self._get(f"keys/{pod}")
        return None if value is None else PublicKeys.from_json(value)

    def put_roster(self, keys: Sequence[PublicKeys]) -> None:
        """All public keys that came in time."""
        self._put("roster", {"keys": [each.to_json() for each in keys]})

    def roster(self) -> list[PublicKeys] | None:
        """All public keys that came in time, or None while they are not known."""
        value = self._get("roster")
        return None if value is None else [PublicKeys.from_json(each) for each in _listed(value, "keys")]

    def put_shares(self, pod: str, shares: Iterable[EncryptedShare]) -> None:
        """A pod's shares for all others."""
        self._put(f"shares/{pod}", {"shares": [share.to_json() for share in shares]})

    def shares(self, pod: str) -> list[EncryptedShare] | None:
        """A pod's shares for all others, or None while there are none."""
        value = self._get(f"shares/{pod}")
        return None if value is None else [EncryptedShare.from_json(each) for each in _listed(value, "shares")]

    def put_senders(self, pods: Sequence[str]) -> None:
        """Says whose shares came in time."""
        self._put("senders", {"pods": list(pods)})

    def senders(self) -> tuple[str, ...] | None:
        """Whose shares came in time, or None while it is not known."""
        return self._pods("senders")

    def put_masked(self, pod: str, words: Words) -> None:
        """A pod's masked vector, `(words,)` uint64."""
        content = codec.encode({"words": torch.from_numpy(words.view(np.int64))})
        reference = self._exchange.store.put(f"{self._folder}/masked/{pod}.safetensors", content, durable=False)
        self._put(f"masked/{pod}", asdict(reference))

    def masked(self, pod: str) -> Reference | None:
        """Where a pod's masked vector lies, or None while there is none."""
        value = self._checked(f"masked/{pod}", _ReferenceSchema())
        return None if value is None else Reference(**value)

    def words(self, reference: Reference, size: int) -> Words:
        """A masked vector.

        Raises:
            ParameterError: it has another form than so many words.
            StorageError: it is not there, or is another one.
        """
        expected = {"words": torch.zeros((), dtype=torch.int64).expand(size)}
        content = self._exchange.store.get(reference.name, reference.sha256)
        found = codec.decode(content, expected=expected, max_bytes=self._exchange.store.max_bytes).params["words"]
        words: Words = found.numpy().view(np.uint64)
        return words

    def forget_masked(self, pods: Iterable[str]) -> None:
        """Removes vectors that have been summed."""
        for reference in filter(None, map(self.masked, pods)):
            self._exchange.store.delete(reference.name)

    def put_survivors(self, pods: Sequence[str]) -> None:
        """Says whose vectors are summed: pods hand out shares for these and no others."""
        self._put("survivors", {"pods": list(pods)})

    def survivors(self) -> tuple[str, ...] | None:
        """Whose vectors are summed, or None while it is not known."""
        return self._pods("survivors")

    def put_unmask(self, answer: UnmaskAnswer) -> None:
        """A pod's answer for the masks."""
        self._put(f"unmask/{answer.pod}", answer.to_json())

    def unmask(self, pod: str) -> UnmaskAnswer | None:
        """A pod's answer for the masks, or None while there is none."""
        value = self._get(f"unmask/{pod}")
        return None if value is None else UnmaskAnswer.from_json(value)

    def _pods(self, name: str) -> tuple[str, ...] | None:
        value = self._checked(name, _PodsSchema())
        return None if value is None else tuple(value["pods"])

    def _put(self, name: str, value: JSON) -> None:
        self._exchange.put_message(f"{self._folder}/{name}.json", value)

    def _get(self, name: str) -> Any:
        return self._exchange.message(f"{self._folder}/{name}.json")

    def _checked(self, name: str, schema: Schema) -> Any:
        value = self._get(name)
        try:
            return None if value is None else schema.load(value)
        except ValidationError as error:
            raise SerializationError(f"{self._folder}/{name}.json is not what is written there: {error}") from error


def _listed(value: Any, key: str) -> list[Any]:
    if not isinstance(value, dict) or set(value) != {key} or not isinstance(value[key], list):
        raise SerializationError(f"not a list of {key}")
    items: list[Any] = value[key]
    return items


def _names(most: int) -> fields.List[str]:
    return fields.List(
        fields.String(validate=validate.Length(min=1, max=200)), required=True, validate=validate.Length(max=most)
    )


class _Strict(Schema):
    class Meta:
        unknown = RAISE


class _TrainedSchema(_Strict):
    rows = fields.Integer(strict=True, required=True, validate=validate.Range(min=0, max=MOST_ROWS))
    metrics = _names(MOST_METRICS)
    seconds = fields.Float(required=True, validate=validate.Range(min=0), allow_nan=False)
    spent = fields.Nested(SpentSchema, load_default=None, allow_none=True)


class _SummedSchema(_Strict):
    pods = _names(100_000)
    rows = fields.Integer(strict=True, required=True, validate=validate.Range(min=1, max=MOST_ROWS))
    metrics = _names(MOST_METRICS * 100)


class _PodsSchema(_Strict):
    pods = _names(100_000)


class _ReferenceSchema(_Strict):
    name = fields.String(required=True)
    sha256 = fields.String(required=True, validate=validate.Regexp(r"^[0-9a-f]{64}\Z"))
    size = fields.Integer(strict=True, required=True, validate=validate.Range(min=0))
