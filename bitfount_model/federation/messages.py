"""Between an update and the bytes that travel: parameters as safetensors, all else as JSON that is checked on arrival."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from marshmallow import RAISE, Schema, ValidationError, fields, post_load, validate

from bitfount_model.errors import SerializationError
from bitfount_model.federation.metric_sums import MetricSums
from bitfount_model.federation.pod import Rows, Update
from bitfount_model.federation.privacy import Spent
from bitfount_model.types import JSON, Parameters

_DIGEST = validate.Regexp(r"^[0-9a-f]{64}\Z")
_COUNT = validate.Range(min=0, max=2**53)


@dataclass(frozen=True)
class UpdateNote:
    """What travels beside the delta of an update.

    Attributes:
        pod: its name.
        round_number: from 1.
        base_digest: of the global parameters that it started from.
        weight: training rows behind it.
        metrics: validation metrics as sums.
        train_loss: mean over the round's rows, or None.
        seconds: that training took at the pod.
        delta_sha256: of the delta's bytes.
        delta_bytes: how many there are.
        spent: what the pod's updates in this job have told so far; None where the job is not private.
    """

    pod: str
    round_number: int
    base_digest: str
    weight: int
    metrics: MetricSums
    train_loss: float | None
    seconds: float
    delta_sha256: str
    delta_bytes: int
    spent: Spent | None = None

    def to_json(self) -> JSON:
        """A JSON object; floats keep every bit."""
        return {**asdict(self), "metrics": self.metrics.to_json()}

    def update(self, delta: Parameters) -> Update:
        """The update, once its delta has been read."""
        return Update(
            self.pod,
            self.round_number,
            self.base_digest,
            delta,
            self.weight,
            self.metrics,
            self.train_loss,
            self.seconds,
            self.spent,
        )


def note_of(update: Update, delta_sha256: str, delta_bytes: int) -> UpdateNote:
    """What is sent beside an update's delta."""
    return UpdateNote(
        update.pod,
        update.round_number,
        update.base_digest,
        update.weight,
        update.metrics,
        update.train_loss if update.train_loss is not None and math.isfinite(update.train_loss) else None,
        update.seconds,
        delta_sha256,
        delta_bytes,
        update.spent,
    )


def note_from_json(value: Any) -> UpdateNote:
    """The inverse of `UpdateNote.to_json`, for what a pod sent.

    Raises:
        SerializationError: unknown or missing keys, or bad values; lists all of them.
    """
    try:
        note: UpdateNote = _NOTE.load(value)
    except ValidationError as error:
        raise SerializationError(f"not an update: {error.messages}") from error
    return note


def rows_from_json(value: Any) -> Rows:
    """A pod's counts of rows, from what it sent.

    Raises:
        SerializationError: unknown or missing keys, or bad values; lists all of them.
    """
    try:
        rows: Rows = _RowsSchema().load(value)
    except ValidationError as error:
        raise SerializationError(f"not counts of rows: {error.messages}") from error
    return rows


class _Sums(fields.Field[MetricSums]):
    """`{metric: [sum, weight]}`."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> MetricSums:
        try:
            return MetricSums.from_json(value)
        except SerializationError as error:
            raise ValidationError(str(error)) from error


class SpentSchema(Schema):
    """What a pod's updates have told so far."""

    class Meta:
        unknown = RAISE

    epsilon = fields.Float(required=True, validate=validate.Range(min=0), allow_nan=False)
    delta = fields.Float(required=True, validate=validate.Range(min=0, max=1), allow_nan=False)

    @post_load
    def make_spent(self, data: JSON, **_: Any) -> Spent:
        """The dataclass."""
        return Spent(**data)


class _NoteSchema(Schema):
    class Meta:
        unknown = RAISE

    pod = fields.String(required=True)
    round_number = fields.Integer(strict=True, required=True, validate=validate.Range(min=1))
    base_digest = fields.String(required=True, validate=_DIGEST)
    weight = fields.Integer(strict=True, required=True, validate=_COUNT)
    metrics = _Sums(required=True)
    train_loss = fields.Float(required=True, allow_none=True, allow_nan=False)
    seconds = fields.Float(required=True, validate=validate.Range(min=0), allow_nan=False)
    delta_sha256 = fields.String(required=True, validate=_DIGEST)
    delta_bytes = fields.Integer(strict=True, required=True, validate=_COUNT)
    spent = fields.Nested(SpentSchema, load_default=None, allow_none=True)

    @post_load
    def make_note(self, data: JSON, **_: Any) -> UpdateNote:
        """The dataclass."""
        return UpdateNote(**data)


_NOTE = _NoteSchema()  # made once: that takes longer than to load a note


class _RowsSchema(Schema):
    class Meta:
        unknown = RAISE

    train = fields.Integer(strict=True, required=True, validate=_COUNT)
    validation = fields.Integer(strict=True, required=True, validate=_COUNT)
    test = fields.Integer(strict=True, required=True, validate=_COUNT)
    digest = fields.String(required=True, validate=_DIGEST)

    @post_load
    def make_rows(self, data: JSON, **_: Any) -> Rows:
        """The dataclass."""
        return Rows(**data)
