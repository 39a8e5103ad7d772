"""Who a pod is to other pods: an Ed25519 key of its own, and the public keys of the others that its owner has pinned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bitfount_model.errors import ConfigurationError
from bitfount_model.federation.signing import private_key, raw_public_key


@dataclass(frozen=True)
class Identity:
    """A pod's key, and whom it knows.

    Attributes:
        key: signs what the pod publishes in secure sums.
        peers: pod -> its pinned public key, 32 bytes.
    """

    key: Ed25519PrivateKey = field(repr=False)
    peers: Mapping[str, bytes]

    def pinned(self, pod: str) -> dict[str, bytes]:
        """The public keys of all pods that it knows, itself among them.

        Args:
            pod: its own name.
        """
        return {**self.peers, pod: self.key.public_key().public_bytes_raw()}


def identity_of(pem: bytes, peers: Mapping[str, str]) -> Identity:
    """A pod's identity from what its owner wrote.

    Args:
        pem: the private key.
        peers: pod -> the line that `bitfount-flows keys make` printed for that pod's owner.

    Raises:
        ConfigurationError: one of them is no key; all of them.
    """
    found, problems = {}, []
    for pod, text in peers.items():
        try:
            found[pod] = raw_public_key(text)
        except ConfigurationError as error:
            problems.append(f"{pod}: {error}")
    if problems:
        raise ConfigurationError(f"peers: {'; '.join(problems)}")
    return Identity(private_key(pem), found)


def identities_of_one_process(pods: Iterable[str]) -> dict[str, Identity]:
    """New identities for pods that share a process, each known to all others."""
    keys = {pod: Ed25519PrivateKey.generate() for pod in pods}
    public = {pod: key.public_key().public_bytes_raw() for pod, key in keys.items()}
    return {
        pod: Identity(key, {other: each for other, each in public.items() if other != pod}) for pod, key in keys.items()
    }
