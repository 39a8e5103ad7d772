"""A pod's side of one secure sum: its secrets, and the four things that it says, each of them once."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from bitfount_model.errors import SecureSumError
from bitfount_model.federation.secure_sum import secrets
from bitfount_model.federation.secure_sum.context import Context
from bitfount_model.federation.secure_sum.masks import Mask, apply_masks
from bitfount_model.federation.secure_sum.messages import (
    KEY_BYTES,
    SEED_BYTES,
    EncryptedShare,
    PublicKeys,
    UnmaskAnswer,
)
from bitfount_model.federation.secure_sum.roster import checked_roster, signed_keys
from bitfount_model.types import Words


class SecurePod:
    """One pod in one sum. Made anew for every round, and used by one thread.

    Its secrets live in this object alone: a pod that is started again in mid-round has lost them, and is a dropped pod of
    that round. They are in no message of an error and in no `repr`.

    Args:
        context: of the sum.
        pod: its name, one of the context's.
        identity: its Ed25519 private key, whose public key the other pods have pinned.
        randomness: where secrets come from. Anything but the default is for tests: with the same bytes again, keys and
            masked vectors are the same again. The random coefficients of shares are always the operating system's.

    Raises:
        SecureSumError: the pod is not one of the context's.
    """

    def __init__(
        self,
        context: Context,
        pod: str,
        identity: Ed25519PrivateKey,
        *,
        randomness: secrets.Randomness = os.urandom,
    ) -> None:
        if pod not in context.pods:
            raise SecureSumError(f"{context}: pod {pod!r} is not one of {', '.join(map(repr, context.pods))}")
        self._context = context
        self._randomness = randomness
        self._secrets = _Secrets.drawn(context, pod, randomness)
        self._keys = signed_keys(
            context,
            pod,
            identity,
            sharing=self._secrets.sharing.public_key().public_bytes_raw(),
            masking=self._secrets.masking.public_key().public_bytes_raw(),
            commitment=secrets.commitment(context, pod, self._secrets.self_mask_seed),
        )
        self._shared: _Shared | None = None
        self._masked_with: frozenset[str] | None = None
        self._answered: tuple[frozenset[str], UnmaskAnswer] | None = None

    def __repr__(self) -> str:
        return f"SecurePod({self._context}, pod {self._keys.pod!r})"

    def keys(self) -> PublicKeys:
        """Step 1: its public keys, to be published."""
        return self._keys

    def shares(self, keys: Iterable[PublicKeys], identities: Mapping[str, bytes]) -> tuple[EncryptedShare, ...]:
        """Step 2: shares of its seeds, to be given to their receivers.

        Args:
            keys: what the pods published, U1, its own among them; every pod must be given the same ones.
            identities: pod -> pinned Ed25519 public key, 32 bytes.

        Returns:
            One for each other pod of U1, in the order of names; the same again if asked again.

        Raises:
            SecureSumError: as `checked_roster`; its own keys are not among them, or not as it published them; it shared
                with other keys before.
        """
        roster = checked_roster(self._context, keys, identities)
        mine = self._keys.pod
        if roster.get(mine) != self._keys:
            raise self._refusal("the published keys are refused: its own are not among them as it published them")
        if self._shared is None:
            self._shared = self._split_among(roster)
        if self._shared.roster != roster:
            raise self._refusal(
                "it has shared its seeds in this round, with pods that published other keys: once a round"
            )
        return self._shared.sent

    def masked(self, vector: Words, senders: Collection[str]) -> Words:
        """Step 3: its vector under masks that only the sum of the survivors can lose.

        Args:
            vector: `(words,)` uint64, as `Layout.encode` gives it; left as it is.
            senders: U2, the pods whose shares were given to their receivers, this pod among them; every pod must be given
                the same ones.

        Returns:
            A new vector of the same form: to whoever lacks the masks, uniformly random words.

        Raises:
            SecureSumError: it has not shared its seeds, or has masked a vector in this round: two vectors under one mask
                would tell their difference. Senders that published no keys, are there twice, lack this pod, or are fewer
                than the threshold. A vector of another form.
        """
        if self._shared is None:
            raise self._refusal("it has not shared its seeds yet, so that its masks could never be taken off")
        if self._masked_with is not None:
            raise self._refusal(
                "it has masked a vector in this round: two under one mask would tell their difference. Send the first again."
            )
        _check_vector(vector)
        self._check_among(senders, self._shared.roster, what="the pods that shared", of="published keys")
        self._masked_with = frozenset(senders)
        words = np.array(vector, copy=True)
        apply_masks(words, self._masks(self._shared, self._masked_with))
        return words

    def unmask(self, survivors: Collection[str], shares: Iterable[EncryptedShare]) -> UnmaskAnswer:
        """Step 4: its shares of the survivors' self masks and of the dropped pods' masking keys, never both of one pod.

        Args:
            survivors: U3, the pods whose masked vectors are summed, this pod among them.
            shares: what every other pod of U2 encrypted for this one, in any order.

        Returns:
            One share for each pod of U2; the same again for the same survivors.

        Raises:
            SecureSumError: it has masked no vector; it answered for other survivors before; survivors that are not of U2,
                are there twice, lack this pod, or are fewer than the threshold; shares that are missing, too many,
                damaged, or made for another sum or pod. Nothing is handed out then.
        """
        if self._shared is None or self._masked_with is None:
            raise self._refusal("it has masked no vector, so there is nothing to take masks off")
        self._check_among(survivors, self._masked_with, what="the survivors", of="shared")
        if self._answered is None:
            answer = self._answer(frozenset(survivors), self._opened(self._shared, self._masked_with, shares))
            self._answered = (frozenset(survivors), answer)
        if self._answered[0] != frozenset(survivors):
            raise self._refusal(
                f"it has answered for the survivors {sorted(self._answered[0])}: another answer, for"
                f" {sorted(survivors)}, could unmask a single pod"
            )
        return self._answered[1]

    def _split_among(self, roster: Mapping[str, PublicKeys]) -> _Shared:
        masking = secrets.split(self._context, self._secrets.masking_seed)
        self_mask = secrets.split(self._context, self._secrets.self_mask_seed)
        mine = self._keys.pod
        sent = tuple(
            secrets.encrypted(
                self._context, self._secrets.sharing, self._keys, keys, (masking[pod], self_mask[pod]), self._randomness
            )
            for pod, keys in roster.items()
            if pod != mine
        )
        return _Shared(dict(roster), sent, (masking[mine], self_mask[mine]))

    def _masks(self, shared: _Shared, senders: frozenset[str]) -> list[Mask]:
        mine = self._keys.pod
        own = Mask(secrets.self_mask_key(self._context, mine, self._secrets.self_mask_seed), added=True)
        return [own] + [
            Mask(
                secrets.pairwise_mask_key(self._context, self._secrets.masking, self._keys, shared.roster[pod]),
                added=mine < pod,
            )
            for pod in sorted(senders - {mine})
        ]

    def _opened(
        self, shared: _Shared, senders: frozenset[str], shares: Iterable[EncryptedShare]
    ) -> dict[str, tuple[bytes, bytes]]:
        """Pod of U2 -> its two shares for this pod, its own among them."""
        given, mine = list(shares), self._keys.pod
        found = sorted(share.sender for share in given)
        wanted = sorted(senders - {mine})
        if found != wanted:
            raise self._refusal(f"it was given the shares of {found}, want one from each of {wanted}")
        strangers = [each.sender for each in given if (each.receiver, each.context) != (mine, self._context.digest)]
        if strangers:
            raise self._refusal(f"the shares of {sorted(strangers)} are for another pod or another sum")
        opened = {
            share.sender: secrets.decrypted(
                self._context, self._secrets.sharing, shared.roster[share.sender], self._keys, share
            )
            for share in given
        }
        return {**opened, mine: shared.kept}

    def _answer(self, survivors: frozenset[str], opened: Mapping[str, tuple[bytes, bytes]]) -> UnmaskAnswer:
        return UnmaskAnswer(
            self._keys.pod,
            self._context.digest,
            self_masks={pod: self_mask for pod, (_, self_mask) in sorted(opened.items()) if pod in survivors},
            masking_keys={pod: masking for pod, (masking, _) in sorted(opened.items()) if pod not in survivors},
        )

    def _check_among(self, names: Collection[str], before: Collection[str], *, what: str, of: str) -> None:
        """Refuses names that are no pods of the step before, and lists that lack this pod or the threshold."""
        self._context.check_pods(names, what=what)
        if strangers := sorted(set(names) - set(before)):
            raise self._refusal(f"{what} are refused: {strangers} have not {of}")
        if self._keys.pod not in names:
            raise self._refusal(f"{what} are refused: it is not among them")

    def _refusal(self, reason: str) -> SecureSumError:
        return SecureSumError(f"{self._context}, pod {self._keys.pod!r}: {reason}")


@dataclass(frozen=True, repr=False)
class _Secrets:
    """What a pod never tells."""

    sharing: X25519PrivateKey
    masking_seed: bytes
    masking: X25519PrivateKey
    self_mask_seed: bytes

    @classmethod
    def drawn(cls, context: Context, pod: str, randomness: secrets.Randomness) -> _Secrets:
        sharing = X25519PrivateKey.from_private_bytes(randomness(KEY_BYTES))
        masking_seed, self_mask_seed = randomness(SEED_BYTES), randomness(SEED_BYTES)
        return cls(sharing, masking_seed, secrets.masking_key(context, pod, masking_seed), self_mask_seed)


@dataclass(frozen=True)
class _Shared:
    """What a pod holds after it has shared."""

    roster: Mapping[str, PublicKeys]
    sent: tuple[EncryptedShare, ...]
    kept: tuple[bytes, bytes] = field(repr=False)  # its own shares, of the masking key's seed and of the self mask's


def _check_vector(vector: object) -> None:
    if not isinstance(vector, np.ndarray) or vector.dtype != np.uint64 or vector.ndim != 1 or not vector.size:
        found = f"{vector.dtype} {vector.shape}" if isinstance(vector, np.ndarray) else type(vector).__name__
        raise SecureSumError(f"a vector to mask is {found}, want uint64 (words,) with at least one word")
