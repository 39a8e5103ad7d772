"""Jobs signed by their modeller: an Ed25519 signature (RFC 8032) over the job and the digest of the model's source.

Keys are texts: the private one PKCS#8 in PEM without a password, the public one as OpenSSH writes it, `ssh-ed25519 AAAA...`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_public_key,
)

from bitfount_model.errors import ConfigurationError
from bitfount_model.federation.job import FederatedJob

PURPOSE = b"bitfount-flows federated job 1\n"
"""What every signed message begins with: a signature of the same key for something else is none of a job."""


@dataclass(frozen=True)
class JobSignature:
    """A signature that came with a job; nothing is known of it until `signer` has looked at it.

    Attributes:
        public_key: as `ssh-ed25519 ...`.
        signature: 64 bytes in hex.
    """

    public_key: str
    signature: str = field(repr=False)


def new_key() -> tuple[bytes, str]:
    """A new pair: the private key in PEM, and the public one as text."""
    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), _text_of(key.public_key())


def sign(job: FederatedJob, pem: bytes) -> JobSignature:
    """Signs a job, which names its model's source by the sha256.

    Args:
        job: as it is published.
        pem: the private key.

    Raises:
        ConfigurationError: it is no Ed25519 key, or has a password.
    """
    key = private_key(pem)
    return JobSignature(_text_of(key.public_key()), key.sign(signed_bytes(job)).hex())


def private_key(pem: bytes) -> Ed25519PrivateKey:
    """A private key.

    Raises:
        ConfigurationError: it is no Ed25519 key, or has a password.
    """
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(
            "the key to sign with is no private key in PEM without a password; make one with `bitfount-flows keys make FILE`"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(
            f"the key to sign with is a {type(key).__name__}, wanted Ed25519: make one with `bitfount-flows keys make FILE`"
        )
    return key


def signer(job: FederatedJob, signature: JobSignature) -> str:
    """Whose signature of a job it is: the public key, without its comment.

    Raises:
        ConfigurationError: it is no signature of this job and this source by that key.
    """
    try:
        key = _public_key(signature.public_key)
        key.verify(bytes.fromhex(signature.signature), signed_bytes(job))
    except (InvalidSignature, ValueError) as error:
        raise ConfigurationError("its signature is not one of this job and this model's source") from error
    return _text_of(key)


def admitted(
    modellers: Sequence[str] | Literal["all"], job: FederatedJob, signature: JobSignature | None
) -> str | None:
    """The modeller who signed a job, where the pod's owner lets that one ask.

    Args:
        modellers: public keys, or "all", which lets unsigned jobs in too.
        job: what is asked.
        signature: that came with it, or None.

    Returns:
        The public key; None for an unsigned job.

    Raises:
        ConfigurationError: the signature is wrong, is missing, or is somebody else's.
    """
    found = None if signature is None else signer(job, signature)
    if modellers == "all":
        return found
    if found is None:
        raise ConfigurationError(
            "it is not signed, and only jobs of the modellers whose keys the pod lists may run; sign it with `sign_with`"
        )
    if found not in {public_key(text) for text in modellers}:
        raise ConfigurationError(
            f"it is signed by {found}, which is not among the keys of modellers that the pod lists"
        )
    return found


def public_key(text: str) -> str:
    """A public key in its one spelling, without a comment.

    Raises:
        ConfigurationError: it is none.
    """
    return _text_of(_checked(text))


def raw_public_key(text: str) -> bytes:
    """The 32 bytes of a public key.

    Raises:
        ConfigurationError: it is none.
    """
    return _checked(text).public_bytes_raw()


def _checked(text: str) -> Ed25519PublicKey:
    try:
        return _public_key(text)
    except ValueError as error:
        raise ConfigurationError(
            f"{text[:100]!r} is no public key: wanted the line that `bitfount-flows keys make FILE` prints,"
            " beginning with `ssh-ed25519`"
        ) from error


def signed_bytes(job: FederatedJob) -> bytes:
    """What is signed: the job as JSON with sorted keys, no blanks and ASCII alone, behind the digest of its source."""
    text = json.dumps(job.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return PURPOSE + f"{job.model_sha256}\n{text}".encode("ascii")


def _public_key(text: str) -> Ed25519PublicKey:
    try:
        key = load_ssh_public_key(text.strip().encode("ascii"))
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from error
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError(f"a {type(key).__name__}")
    return key


def _text_of(key: Ed25519PublicKey) -> str:
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")
