"""A pod's private folder, which only its owner reads: what was approved, and the log of what the pod did.

<state>/approvals/       see `tasks.federated.approvals`
<state>/audit.jsonl      see `tasks.federated.audit`
<state>/privacy.jsonl    see `bitfount_model.federation.privacy_ledger`
<state>/sums/            over which pods the pod helped to sum a round, `<job id>.<round>.json`
"""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bitfount_model.errors import ConfigurationError, StorageError
from bitfount_model.federation.book import APPROVED, REVOKED, Approval, Decision
from tasks.federated.approvals import Approvals
from tasks.federated.audit import AuditLog

STATES = ".bitfount-pods"
"""The folder of folders beside a pod's file, where the file names none."""
PRIVATE = 0o700


@dataclass(frozen=True)
class PodState:
    """One pod's folder; a `Book` of the pod.

    Attributes:
        folder: the folder.
        pod: name of the pod.
    """

    folder: Path
    pod: str

    @property
    def is_there(self) -> bool:
        """Whether the folder has been made."""
        return self.folder.is_dir()

    @property
    def approvals(self) -> Approvals:
        """What is approved."""
        return Approvals(self.folder / "approvals")

    @property
    def audit(self) -> AuditLog:
        """What was decided and done."""
        return AuditLog(self.folder / "audit.jsonl", self.pod)

    def prepare(self) -> PodState:
        """Makes the folder, for its owner alone; closes it to others if it is open to them.

        Raises:
            ConfigurationError: it cannot be made or closed.
        """
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(mode=PRIVATE, exist_ok=True)
            if stat.S_IMODE(self.folder.stat().st_mode) != PRIVATE:
                self.folder.chmod(PRIVATE)
        except OSError as error:
            raise ConfigurationError(
                f"the private folder of pod {self.pod!r}, {self.folder}, cannot be made or closed to others:"
                f" {error.strerror}. Name another one under `state` in the pod's file"
            ) from error
        return self

    def approval_of(self, sha256: str) -> Approval | None:
        """See `Book`."""
        return self.approvals.of(sha256)

    def note(self, decision: Decision) -> None:
        """See `Book`."""
        self.audit.append(decision)

    def first_survivors(self, job: str, round_number: int, survivors: tuple[str, ...]) -> tuple[str, ...]:
        """See `Book`."""
        path = self.folder / "sums" / f"{job}.{round_number}.json"
        try:
            path.parent.mkdir(mode=PRIVATE, exist_ok=True)
            with suppress(FileExistsError), path.open("x", encoding="utf-8") as stream:
                json.dump(survivors, stream)
                stream.flush()
                os.fsync(stream.fileno())
            return tuple(json.loads(path.read_bytes()))
        except (OSError, ValueError) as error:
            raise StorageError(f"pod {self.pod!r} cannot note in {path} over whom it sums: {error}") from error

    def approve(self, source: bytes, approval: Approval) -> None:
        """Notes an approval, then keeps it.

        Raises:
            StorageError: it cannot be written; then nothing is approved.
        """
        said = f"class {approval.class_name} of {approval.file_name}, by {approval.who}"
        self.prepare().note(Decision(APPROVED, model=approval.sha256, reason=said))
        self.approvals.put(source, approval)

    def revoke(self, sha256: str, who: str) -> None:
        """Takes an approval back, then notes it.

        Raises:
            StorageError: it cannot be removed.
        """
        self.approvals.remove(sha256)
        self.note(Decision(REVOKED, model=sha256, reason=f"by {who}"))
