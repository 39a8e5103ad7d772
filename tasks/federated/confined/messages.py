"""What a model's process may answer, and what it says when it fails: each held against a schema before it is believed."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from marshmallow import Schema, ValidationError, fields, validate

from bitfount_model import errors
from bitfount_model.errors import ConfinedModelError, ConfinementError, SerializationError
from bitfount_model.federation.metric_sums import MetricSums
from bitfount_model.types import JSON
from tasks.federated.messages import MAX_REASON, StrictMessage

MAX_TRACE = 100_000
"""The longest traceback, in characters."""
MET: Mapping[str, str] = {
    "memory": "its limit on memory",
    "processes": "its limit on processes and threads",
    "file size": "its limit on the size of files",
    "open files": "its limit on open files",
    "network": "a network, which there is none of for models",
    "file system": "files, of which a model may write only those in its own empty folder",
}
"""What a model may have met when it failed, and how the pod says so."""
KNOWN_KINDS = frozenset(
    name
    for module in (builtins, errors)
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, BaseException)
)
"""Names of errors that may leave the pod: others are the model's own, and may say anything."""

_COUNT = validate.Range(min=0, max=2**53)


class ConfinedSchema(StrictMessage):
    """Whether the process is shut off, as the launcher says."""

    confined = fields.Boolean(required=True)
    reason = fields.String(required=True, validate=validate.Length(max=1000))


class OpenedSchema(StrictMessage):
    """The model's class is loaded."""

    classifier = fields.Boolean(required=True)


class PreparedSchema(StrictMessage):
    """The model is built from rows with this digest; its parameters follow."""

    rows = fields.String(required=True, validate=validate.Length(equal=64))
    trainable = fields.List(fields.String(), required=True)


class FittedSchema(StrictMessage):
    """A round is trained; the delta follows."""

    weight = fields.Integer(strict=True, required=True, validate=_COUNT)
    metrics = fields.Dict(required=True)
    train_loss = fields.Float(required=True, allow_none=True, allow_nan=False)
    seconds = fields.Float(required=True, validate=validate.Range(min=0), allow_nan=False)


class EvaluatedSchema(StrictMessage):
    """The test rows' metrics."""

    metrics = fields.Dict(required=True)


class PredictedSchema(StrictMessage):
    """The rows are predicted; the predictions follow."""


class BatchSchema(StrictMessage):
    """How far a fit is."""

    epoch = fields.Integer(strict=True, required=True, validate=_COUNT)
    epochs = fields.Integer(strict=True, required=True, allow_none=True, validate=_COUNT)
    batch = fields.Integer(strict=True, required=True, validate=_COUNT)
    batches = fields.Integer(strict=True, required=True, validate=_COUNT)


class ErrorSchema(StrictMessage):
    """The model's code raised."""

    kinds = fields.List(fields.String(), required=True, validate=validate.Length(max=100))
    text = fields.String(required=True, validate=validate.Length(max=MAX_REASON))
    trace = fields.String(required=True, validate=validate.Length(max=MAX_TRACE))
    met = fields.String(required=True, allow_none=True, validate=validate.OneOf(list(MET)))
    transient = fields.Boolean(required=True)


@dataclass(frozen=True)
class Fitted:
    """What comes with the delta of a round; see `bitfount_model.federation.pod.Update`."""

    weight: int
    metrics: MetricSums
    train_loss: float | None
    seconds: float


def checked(value: Any, schema: Schema) -> JSON:
    """A header that has the keys and values that it may have.

    Raises:
        ConfinementError: it has not. The message names the keys and no values.
    """
    try:
        loaded: JSON = schema.load(value)
    except ValidationError as error:
        wrong = ", ".join(sorted(set(schema.fields) & set(map(str, error.messages_dict)))) or "unknown keys"
        raise ConfinementError(f"the model's process answers what it may not: {wrong}") from error
    return loaded


def fitted_from_json(value: Any) -> Fitted:
    """What comes with a delta.

    Raises:
        ConfinementError: it is not what a fit gives.
    """
    loaded = checked(value, FittedSchema())
    return Fitted(**{**loaded, "metrics": sums_from_json(loaded["metrics"])})


def sums_from_json(value: Any) -> MetricSums:
    """Metrics as sums.

    Raises:
        ConfinementError: they are none.
    """
    try:
        return MetricSums.from_json(value)
    except SerializationError as error:
        raise ConfinementError("the model's process answers metrics that are none") from error


def error_from_json(value: Any) -> ConfinedModelError:
    """The error that the model's code raised.

    Raises:
        ConfinementError: it is not told as it must be.
    """
    told = checked(value, ErrorSchema())
    kind = next((name for name in told["kinds"] if name in KNOWN_KINDS), "Exception")
    return ConfinedModelError(
        f"{kind}: {told['text']}\n{told['trace']}".rstrip(),
        kind=kind,
        met=None if told["met"] is None else MET[told["met"]],
        transient=told["transient"],
    )
