"""Rounds of a secure sum that its tests share: pods with known identities, taken to each of the four steps."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bitfount_model.federation.secure_sum import (
    Context,
    EncryptedShare,
    PublicKeys,
    SecurePod,
    UnmaskAnswer,
    checked_roster,
    default_threshold,
    unmasked_sum,
)


@lru_cache
def identity(pod: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(pod.encode()).digest())


def pins(pods: Collection[str]) -> dict[str, bytes]:
    return {pod: identity(pod).public_key().public_bytes_raw() for pod in pods}


def names(number: int) -> tuple[str, ...]:
    return tuple(f"pod-{place:02}" for place in range(number))


def context(number: int = 5, threshold: int | None = None, **changes: Any) -> Context:
    made = Context("job", 1, "0" * 64, "1" * 64, names(number), threshold or default_threshold(number))
    return replace(made, **changes)


def seeded(seed: str) -> Callable[[int], bytes]:
    """The same bytes again for the same seed: SHAKE-256 of the seed and how often it was asked."""
    asked = iter(range(1000))
    return lambda size: hashlib.shake_256(f"{seed} {next(asked)}".encode()).digest(size)


@dataclass(frozen=True)
class Shared:
    """A round after step 2: nothing in it is changed by later steps, which work on copies of its pods."""

    context: Context
    roster: Mapping[str, PublicKeys]
    pods: Mapping[str, SecurePod]
    sent: tuple[EncryptedShare, ...]

    def pod(self, name: str) -> SecurePod:
        return copy.copy(self.pods[name])

    def shares_for(self, receiver: str, senders: Collection[str]) -> list[EncryptedShare]:
        return [share for share in self.sent if share.receiver == receiver and share.sender in senders]


@dataclass(frozen=True)
class Masked:
    """A round after step 3."""

    shared: Shared
    senders: Collection[str]
    pods: Mapping[str, SecurePod]
    vectors: Mapping[str, np.ndarray]

    def pod(self, name: str) -> SecurePod:
        return copy.copy(self.pods[name])

    def shares_for(self, receiver: str) -> list[EncryptedShare]:
        return self.shared.shares_for(receiver, set(self.senders) - {receiver})

    def answers(self, survivors: Collection[str]) -> dict[str, UnmaskAnswer]:
        return {name: self.pod(name).unmask(survivors, self.shares_for(name)) for name in survivors}

    def sum(self, survivors: Collection[str], answers: Collection[UnmaskAnswer]) -> np.ndarray:
        vectors = ((name, self.vectors[name]) for name in survivors)
        return unmasked_sum(self.shared.context, self.shared.roster, vectors, list(answers))


def shared(made: Context, pods: Collection[str] | None = None, seed: str | None = None) -> Shared:
    """Steps 1 and 2 of the given pods, U1; with the same secrets again for the same seed."""
    names = sorted(made.pods if pods is None else pods)
    secure = {
        name: SecurePod(made, name, identity(name), randomness=seeded(f"{seed} {name}") if seed else os.urandom)
        for name in names
    }
    keys = [pod.keys() for pod in secure.values()]
    sent = tuple(share for pod in secure.values() for share in pod.shares(keys, pins(names)))
    return Shared(made, checked_roster(made, keys, pins(names)), secure, sent)


def masked(round_: Shared, vectors: Mapping[str, np.ndarray], senders: Collection[str] | None = None) -> Masked:
    """Step 3 of the pods that have vectors; U2 are the senders, or all that shared."""
    among = sorted(round_.pods if senders is None else senders)
    pods = {name: round_.pod(name) for name in vectors}
    return Masked(round_, among, pods, {name: pods[name].masked(vector, among) for name, vector in vectors.items()})
