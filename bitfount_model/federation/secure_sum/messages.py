"""What travels in a secure sum beside the masked vectors: small values that are checked when they arrive as JSON.

Bytes are written as hexadecimal digits. Every message says which sum it is for, by the digest of its context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from marshmallow import RAISE, Schema, ValidationError, fields, validate

from bitfount_model.errors import SerializationError
from bitfount_model.types import JSON

KEY_BYTES = 32
"""Of an X25519 or Ed25519 public key."""

SEED_BYTES = 16
"""Of a secret seed and of a share of one: 128 bits, the strength of X25519."""

CIPHERTEXT_BYTES = 12 + 2 * SEED_BYTES + 16
"""A nonce, two shares and a tag."""


class _Message:
    """A message whose fields are the keys of its JSON; `_SCHEMAS` says what each may be."""

    def to_json(self) -> JSON:
        """A JSON object."""
        return {name: _plain(value) for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """The inverse of `to_json`, for what another machine sent.

        Raises:
            SerializationError: unknown or missing keys, or bad values; lists all of them.
        """
        try:
            return cls(**_SCHEMAS[cls]().load(value))
        except ValidationError as error:
            # marshmallow's messages name keys and say what is wanted; they hold no values.
            raise SerializationError(f"not a message of a secure sum ({cls.__name__}): {error.messages}") from error


@dataclass(frozen=True)
class PublicKeys(_Message):
    """Step 1: what a pod publishes.

    Attributes:
        pod: its name.
        context: digest of the context.
        sharing: X25519 public key that shares for this pod are encrypted to.
        masking: X25519 public key that pairwise masks come from.
        commitment: to the seed of the self mask; it tells nothing about the seed, and shows whether the right one came back.
        signature: Ed25519, by the pod's identity, of all of the above.
    """

    pod: str
    context: str
    sharing: bytes
    masking: bytes
    commitment: bytes
    signature: bytes


@dataclass(frozen=True)
class EncryptedShare(_Message):
    """Step 2: one pod's shares for another one, which alone can read them.

    Attributes:
        sender: the pod whose seeds were shared.
        receiver: the pod that keeps the shares.
        context: digest of the context.
        ciphertext: nonce and ChaCha20-Poly1305 of the share of the masking key's seed, then that of the self mask's seed.
    """

    sender: str
    receiver: str
    context: str
    ciphertext: bytes


@dataclass(frozen=True)
class UnmaskAnswer(_Message):
    """Step 4: the shares that a pod hands out, one kind for each pod that shared.

    Attributes:
        pod: the pod that answers.
        context: digest of the context.
        self_masks: survivor -> this pod's share of the seed of its self mask.
        masking_keys: dropped pod -> this pod's share of the seed of its masking key.
    """

    pod: str
    context: str
    self_masks: Mapping[str, bytes] = field(repr=False)
    masking_keys: Mapping[str, bytes] = field(repr=False)


class _Bytes(fields.Field[bytes]):
    """So many bytes as lower-case hexadecimal digits."""

    def __init__(self, length: int, **options: Any) -> None:
        super().__init__(**options)
        self._digits = validate.Regexp(rf"^[0-9a-f]{{{2 * length}}}\Z", error=f"Want {2 * length} hexadecimal digits.")

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> bytes:
        if not isinstance(value, str):
            raise ValidationError("Not a text.")
        return bytes.fromhex(self._digits(value))


def _name() -> fields.String:
    return fields.String(required=True, validate=validate.Length(min=1))


def _digest() -> fields.String:
    return fields.String(required=True, validate=validate.Regexp(r"^[0-9a-f]{64}\Z"))


class _MessageSchema(Schema):
    class Meta:
        unknown = RAISE


class _PublicKeysSchema(_MessageSchema):
    pod = _name()
    context = _digest()
    sharing = _Bytes(KEY_BYTES, required=True)
    masking = _Bytes(KEY_BYTES, required=True)
    commitment = _Bytes(32, required=True)
    signature = _Bytes(64, required=True)


class _EncryptedShareSchema(_MessageSchema):
    sender = _name()
    receiver = _name()
    context = _digest()
    ciphertext = _Bytes(CIPHERTEXT_BYTES, required=True)


class _UnmaskAnswerSchema(_MessageSchema):
    pod = _name()
    context = _digest()
    self_masks = fields.Dict(keys=_name(), values=_Bytes(SEED_BYTES), required=True)
    masking_keys = fields.Dict(keys=_name(), values=_Bytes(SEED_BYTES), required=True)


_SCHEMAS: Mapping[type[_Message], type[Schema]] = {
    PublicKeys: _PublicKeysSchema,
    EncryptedShare: _EncryptedShareSchema,
    UnmaskAnswer: _UnmaskAnswerSchema,
}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return value
