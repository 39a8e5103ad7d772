"""What modeller and pods leave for each other in the exchange, and the schemas that it is held against when it is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from typing import Any

from marshmallow import RAISE, Schema, fields, validate

from bitfount_model import BitfountSchema
from bitfount_model.data import Preparation
from bitfount_model.federation.pod import Rows
from tasks.store import Reference

MAX_REASON = 20_000
"""The longest reason for a failure, in characters."""


@dataclass(frozen=True)
class Joined:
    """A pod that has joined: the schema of its rows, and how many there are."""

    schema: BitfountSchema
    rows: Rows


@dataclass(frozen=True)
class Start:
    """What rounds begin with.

    Attributes:
        schema: the common one.
        preparation: how all pods encode rows.
        pods: those that had joined by then.
    """

    schema: BitfountSchema
    preparation: Preparation
    pods: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """What the modeller asks of pods in a phase.

    Attributes:
        pods: whom.
        weights: the global parameters' bytes, in the exchange.
    """

    pods: tuple[str, ...]
    weights: Reference


class StrictMessage(Schema):
    """Unknown keys are errors: what is read was written by another machine."""

    class Meta:
        unknown = RAISE


class EndSchema(StrictMessage):
    """How a session of the modeller ended."""

    state = fields.String(required=True)
    reason = fields.String(required=True)


class SignatureSchema(StrictMessage):
    """A `JobSignature`."""

    public_key = fields.String(required=True, validate=validate.Length(max=1000))
    signature = fields.String(required=True, validate=validate.Regexp(r"^[0-9a-f]{128}\Z"))


class JoinedSchema(StrictMessage):
    """`Joined` as it lies in the exchange."""

    schema = fields.String(required=True)
    rows = fields.Dict(required=True)


class CommonSchema(StrictMessage):
    """The common schema of all pods."""

    schema = fields.String(required=True)


class StartSchema(StrictMessage):
    """`Start` as it lies in the exchange."""

    schema = fields.String(required=True)
    preparation = fields.Dict(required=True)
    pods = fields.List(fields.String(), required=True)


class ReferenceSchema(StrictMessage):
    """A `Reference`."""

    name = fields.String(required=True)
    sha256 = fields.String(required=True, validate=validate.Regexp(r"^[0-9a-f]{64}\Z"))
    size = fields.Integer(strict=True, required=True, validate=validate.Range(min=0))


class AskedSchema(StrictMessage):
    """`Asked` as it lies in the exchange."""

    pods = fields.List(fields.String(), required=True)
    weights = fields.Nested(ReferenceSchema, required=True)


class PredictionsSchema(StrictMessage):
    """Where a pod's predictions lie, and the keys of their rows."""

    array = fields.Nested(ReferenceSchema, required=True)
    keys = fields.List(fields.Raw(), required=True, allow_none=True)


class FailureSchema(StrictMessage):
    """Why a pod has no answer."""

    reason = fields.String(required=True, validate=validate.Length(max=MAX_REASON))


def plain_keys(keys: Iterable[Any] | None) -> list[Any] | None:
    """Keys of rows as JSON has them: numbers and texts stay, all else becomes text."""
    if keys is None:
        return None
    plain = (key.item() if hasattr(key, "item") else key for key in keys)
    return [
        key if isinstance(key, str | int) or (isinstance(key, float) and isfinite(key)) else str(key) for key in plain
    ]
