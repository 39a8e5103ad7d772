"""Between the pods' published keys and their use: signatures are made and checked, and doubtful rosters refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from bitfount_model.errors import SecureSumError
from bitfount_model.federation.secure_sum.context import Context, canonical
from bitfount_model.federation.secure_sum.messages import PublicKeys


def signed_keys(
    context: Context, pod: str, identity: Ed25519PrivateKey, *, sharing: bytes, masking: bytes, commitment: bytes
) -> PublicKeys:
    """A pod's public keys, signed by its identity for this sum."""
    payload = _payload(context.digest, pod, sharing, masking, commitment)
    return PublicKeys(pod, context.digest, sharing, masking, commitment, identity.sign(payload))


def checked_roster(
    context: Context, keys: Iterable[PublicKeys], identities: Mapping[str, bytes]
) -> dict[str, PublicKeys]:
    """The published keys of a sum, once all of them are known to be their pods' own.

    Args:
        context: of the sum.
        keys: what pods published, in any order.
        identities: pod -> its pinned Ed25519 public key, 32 bytes.

    Returns:
        Pod -> keys, in the order of names.

    Raises:
        SecureSumError: fewer pods than the threshold, a pod that is not of this sum, is there twice or has no pinned
            identity, a signature that is not its pod's, keys for another sum, or two keys that are the same.
    """
    given = sorted(keys, key=lambda each: each.pod)
    context.check_pods((each.pod for each in given), what="the published keys")
    problems = [f"pod {each.pod!r} {fault}" for each in given if (fault := _fault(context, each, identities))]
    problems += _copies(given)
    if problems:
        raise SecureSumError(f"{context}: the published keys are refused: " + "; ".join(problems))
    return {each.pod: each for each in given}


def _fault(context: Context, keys: PublicKeys, identities: Mapping[str, bytes]) -> str | None:
    if keys.context != context.digest:
        return "published them for another sum: another job, round, base, layout, set of pods or threshold"
    if keys.pod not in identities:
        return "has no pinned identity: pin its public key first"
    try:
        pinned = Ed25519PublicKey.from_public_bytes(identities[keys.pod])
        pinned.verify(keys.signature, _payload(keys.context, keys.pod, keys.sharing, keys.masking, keys.commitment))
    except (InvalidSignature, ValueError):
        return "did not sign them: the signature is not that of its pinned identity"
    return None


def _copies(given: Iterable[PublicKeys]) -> list[str]:
    """Says where a value is published that was published before: a copied key makes masks that others know."""
    owners: dict[bytes, str] = {}
    problems = []
    for keys in given:
        for name, value in (("sharing", keys.sharing), ("masking", keys.masking), ("commitment", keys.commitment)):
            owner = owners.setdefault(value, mine := f"{name} of pod {keys.pod!r}")
            if owner != mine:
                problems.append(f"{mine} is a copy of {owner}")
    return problems


def _payload(context: str, pod: str, sharing: bytes, masking: bytes, commitment: bytes) -> bytes:
    return canonical("signature of keys", context, pod, sharing.hex(), masking.hex(), commitment.hex())
