"""Signed jobs: whatever is changed, the signature is none any more; OpenSSL is asked for its opinion."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from bitfount_model.errors import ConfigurationError
from bitfount_model.federation.job import FederatedJob, job_from_json
from bitfount_model.federation.signing import (
    PURPOSE,
    JobSignature,
    admitted,
    new_key,
    public_key,
    sign,
    signed_bytes,
    signer,
)

# RFC 8032, section 7.1, test 1: the private key behind the fixed bytes of its PKCS#8 form (RFC 8410), and the public one.
RFC_8032 = bytes.fromhex("302e020100300506032b657004220420") + bytes.fromhex(
    "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
)
RFC_8032_PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea"

JOB = FederatedJob(
    job_id="größe-1",
    pods=("ann", "bob"),
    model_sha256="a" * 64,
    datastructure={"target": "y"},
    between_updates=1,
    seed=1,
    quorum=1,
    epochs=4,
)


def other_value(value: Any) -> Any:
    """Another value of the same kind, or any where there is none yet."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return f"{value}x"
    return {"other": [1]} if isinstance(value, dict) else (*value, "zoe") if isinstance(value, tuple) else "other"


def test_a_signed_job_says_who_signed_it_also_after_its_way_through_json() -> None:
    private, public = new_key()
    signature = sign(JOB, private)
    assert signature.public_key == public == public_key(f"{public} ann@hospital")
    assert signer(JOB, signature) == public
    travelled = job_from_json(json.loads(json.dumps({**JOB.to_json(), "job_id": "j"})))
    assert signer(travelled, sign(replace(JOB, job_id="j"), private)) == public
    assert signature.signature not in repr(signature)


def test_the_key_of_the_rfc_is_read_and_openssl_finds_its_signature_good(tmp_path: Path) -> None:
    private, message, signed = (tmp_path / name for name in ("key.der", "message", "signature"))
    private.write_bytes(RFC_8032)
    pem = subprocess.run(["openssl", "pkey", "-inform", "DER", "-in", private], capture_output=True, check=True).stdout
    signature = sign(JOB, pem)
    assert signature.public_key == RFC_8032_PUBLIC
    message.write_bytes(signed_bytes(JOB))
    signed.write_bytes(bytes.fromhex(signature.signature))
    verify = ["openssl", "pkeyutl", "-verify", "-rawin", "-keyform", "DER", "-inkey", private, "-in", message]
    assert subprocess.run([*verify, "-sigfile", signed], check=False).returncode == 0
    message.write_bytes(signed_bytes(replace(JOB, seed=2)))
    assert subprocess.run([*verify, "-sigfile", signed], check=False).returncode != 0


def test_what_is_signed_is_these_bytes() -> None:
    text = signed_bytes(JOB)
    purpose, digest, job = text.split(b"\n")
    assert purpose + b"\n" == PURPOSE and digest == b"a" * 64
    assert json.loads(job) == json.loads(json.dumps(JOB.to_json()))
    assert job.isascii() and job == json.dumps(json.loads(job), sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize("key", asdict(JOB))
def test_a_job_of_which_any_key_was_changed_is_not_the_signed_one(key: str) -> None:
    private, _ = new_key()
    changed = replace(JOB, **{key: other_value(getattr(JOB, key))})
    with pytest.raises(ConfigurationError, match="its signature is not one of this job"):
        signer(changed, sign(JOB, private))


def test_no_flipped_bit_of_a_signature_or_a_key_is_taken() -> None:
    private, public = new_key()
    good = sign(JOB, private)
    for bit in range(512):
        flipped = bytearray.fromhex(good.signature)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ConfigurationError):
            signer(JOB, replace(good, signature=flipped.hex()))
    for place in range(len("ssh-ed25519 "), len(public)):
        other = public[:place] + ("A" if public[place] != "A" else "B") + public[place + 1 :]
        with pytest.raises(ConfigurationError):
            signer(JOB, replace(good, public_key=other))


def test_who_may_ask() -> None:
    (private, public), (_, stranger) = new_key(), new_key()
    signature = sign(JOB, private)
    assert admitted("all", JOB, None) is None
    assert admitted("all", JOB, signature) == public
    assert admitted((stranger, f"{public} comment"), JOB, signature) == public
    with pytest.raises(ConfigurationError, match="it is not signed"):
        admitted((public,), JOB, None)
    with pytest.raises(ConfigurationError, match="which is not among the keys"):
        admitted((stranger,), JOB, signature)
    for modellers in ("all", (public,)):
        with pytest.raises(ConfigurationError, match="its signature is not one of this job"):
            admitted(modellers, replace(JOB, seed=9), signature)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="its signature is not one of this job"):
        admitted((public, stranger), JOB, JobSignature(stranger, signature.signature))


def test_what_is_no_such_key_is_refused() -> None:
    private, _ = new_key()
    rsa_key = rsa.generate_private_key(65537, 2048).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    ec_key = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for wrong in (b"", b"text", private[:-40], rsa_key, ec_key):
        with pytest.raises(ConfigurationError, match="bitfount-flows keys make") as caught:
            sign(JOB, wrong)
        assert "PRIVATE KEY" not in str(caught.value)
    for text in ("", "ssh-ed25519", "ssh-rsa AAAA", "größe", private.decode()):
        with pytest.raises(ConfigurationError, match="no public key"):
            public_key(text)
