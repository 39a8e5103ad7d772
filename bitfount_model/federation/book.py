"""What a pod keeps for its owner: which models were approved, and what the pod decided and did; where it lies is not known here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

JOINED, REFUSED, SUMMARISED, TRAINED = "joined", "refused", "summarised", "trained"
EVALUATED, PREDICTED, FAILED, UNMASKED = "evaluated", "predicted", "failed", "unmasked"
APPROVED, REVOKED, HEALED = "approved", "revoked", "healed"
DECISIONS = (JOINED, REFUSED, SUMMARISED, TRAINED, EVALUATED, PREDICTED, FAILED, UNMASKED, APPROVED, REVOKED, HEALED)
"""What a pod, or its owner, does; `unmasked` is its help to sum a round, `healed` the note on a line that a crash cut off."""


@dataclass(frozen=True)
class Approval:
    """An owner's word that one class of one source may run.

    Attributes:
        sha256: of the source's bytes, hex.
        class_name: the class in it; no other one of the same source is approved.
        file_name: what the file was called.
        who: user@host.
        when: UTC, ISO 8601.
        size: of the source, in bytes.
    """

    sha256: str
    class_name: str
    file_name: str
    who: str
    when: str
    size: int


@dataclass(frozen=True)
class Decision:
    """One thing that was decided or done at a pod. It holds no values of rows.

    Attributes:
        what: one of `DECISIONS`.
        job: id of the job; None where there is none.
        model: sha256 of the model's source, hex.
        modeller: the public key that signed the job, as `ssh-ed25519 ...`.
        round_number: from 1.
        rows: how many rows were used.
        reason: why, for a refusal or a failure.
    """

    what: str
    job: str | None = None
    model: str | None = None
    modeller: str | None = None
    round_number: int | None = None
    rows: int | None = None
    reason: str | None = None


class Book(Protocol):
    """A pod's own book-keeping."""

    def approval_of(self, sha256: str) -> Approval | None:
        """What was approved of a source, as of now; None if nothing was."""

    def note(self, decision: Decision) -> None:
        """Writes a decision down before anything comes of it.

        Raises:
            StorageError: it cannot be written.
        """

    def first_survivors(self, job: str, round_number: int, survivors: tuple[str, ...]) -> tuple[str, ...]:
        """The pods over which the pod first helped to sum a round of a job: those given, where it has not done so before.

        Raises:
            StorageError: it cannot be written; then the pod does not help.
        """
