"""What a pod has told so far, over all jobs: one line a release, on the disk before the release leaves the pod.

A release is counted first and sent afterwards, so a pod that is killed in between has counted too much, and never too
little. Noise is fresh each time, so a round that is answered twice is two releases, and counts twice.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from bitfount_model.errors import IntegrityError, PrivacyBudgetError, StorageError
from bitfount_model.federation.privacy import PrivacyBudget, PrivacySettings, Spent, epsilon_spent
from bitfount_model.files import create_atomically

LOCK_SECONDS = 60.0
_KEY_BYTES = 32


@dataclass(frozen=True)
class Release:
    """One noisy update.

    Attributes:
        job: the job's id.
        round: from 1.
        clip: as in `PrivacySettings`; for people, since the noise is in units of it.
        noise_multiplier: as in `PrivacySettings`.
        at: when it was counted, ISO 8601 in UTC.
    """

    job: str
    round: int
    clip: float
    noise_multiplier: float
    at: str


class PrivacyLedger:
    """The releases of one pod, kept in a folder of its own; several processes may share it.

    Args:
        folder: the pod's private one; made where it is missing. Another folder is another budget: keep it, and back it up.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "privacy.jsonl"

    def releases(self) -> list[Release]:
        """All that was counted, in order.

        Raises:
            IntegrityError: a line is not what was written: nothing is told until the owner has looked at it.
            StorageError: the file cannot be read.
        """
        try:
            content = self._file.read_bytes() if self._file.exists() else b""
        except OSError as error:
            raise self._unusable(error) from error
        # A last line without its end was being written when the process died: nothing was sent for it.
        return [self._release(number, line) for number, line in enumerate(content.split(b"\n")[:-1], start=1)]

    def require(self, settings: PrivacySettings, budget: PrivacyBudget) -> None:
        """Refuses one more release that the budget does not allow; counts nothing.

        Raises:
            PrivacyBudgetError: the budget would be exceeded.
        """
        check_budget(self.releases(), settings, budget)

    def spend(self, job: str, round_number: int, settings: PrivacySettings, budget: PrivacyBudget) -> Spent:
        """Counts one more release; when this returns, it is on the disk.

        Args:
            job: the job's id.
            round_number: from 1.
            settings: the job's.
            budget: the pod's.

        Returns:
            What the job has been told so far, this release included, at the job's delta.

        Raises:
            PrivacyBudgetError: the budget would be exceeded; nothing is counted.
            IntegrityError, StorageError: the ledger cannot be read or written.
        """
        with self._locked():
            before = self.releases()
            check_budget(before, settings, budget)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            release = Release(job, round_number, settings.clip, settings.noise_multiplier, now)
            try:
                self._append(release)
            except OSError as error:
                raise self._unusable(error) from error
        told = [one.noise_multiplier for one in (*before, release) if one.job == job]
        return Spent(epsilon_spent(told, settings.delta), settings.delta)

    def keyed_digest(self, text: str) -> str:
        """A digest that only this pod can make: equal texts have equal ones, and nobody else can try texts out.

        Returns:
            HMAC-SHA256 in hex, under a key that is made once and never leaves the folder.
        """
        file = self._folder / "privacy.key"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            create_atomically(file, secrets.token_bytes(_KEY_BYTES))
            key = file.read_bytes()
        except OSError as error:
            raise self._unusable(error) from error
        if len(key) != _KEY_BYTES:
            raise IntegrityError(
                f"{file} has {len(key)} bytes, wanted {_KEY_BYTES}: restore it, or delete it for a new one"
            )
        return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()

    def _append(self, release: Release) -> None:
        is_new = not self._file.exists()
        with self._file.open("ab+") as stream:
            stream.seek(0)
            stream.truncate(stream.read().rfind(b"\n") + 1)
            stream.write(json.dumps(asdict(release), allow_nan=False).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        if is_new:
            folder = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = FileLock(self._folder / "privacy.lock", timeout=LOCK_SECONDS)
            lock.acquire()
        except Timeout as error:
            raise StorageError(f"{self._file} is held by another process for more than {LOCK_SECONDS:g} s") from error
        except OSError as error:
            raise self._unusable(error) from error
        try:
            yield
        finally:
            lock.release()

    def _release(self, number: int, line: bytes) -> Release:
        try:
            release = Release(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise self._damaged(number) from error
        noise = release.noise_multiplier
        if type(noise) not in (int, float) or not 0 < noise < math.inf:
            raise self._damaged(number)
        return release

    def _damaged(self, number: int) -> IntegrityError:
        return IntegrityError(
            f"line {number} of {self._file} is no release: what the pod has told is not known, so it tells nothing more."
            " Restore the file from a copy"
        )

    def _unusable(self, error: OSError) -> StorageError:
        return StorageError(f"cannot use {self._folder}, where what the pod has told is counted: {error.strerror}")


def check_budget(told: list[Release], settings: PrivacySettings, budget: PrivacyBudget) -> None:
    """Refuses one more release where it would go beyond the budget.

    Jobs may choose their noise by what earlier ones were told: for Gaussian noise without sampling all orders of Rényi
    divergence grow by the same number a release, so this is a limit on that one sum, which holds for such choices too
    (Feldman and Zrnic, "Individual Privacy Accounting via a Rényi Filter", 2021).

    Args:
        told: all releases so far, of all jobs.
        settings: of the release.
        budget: the pod's.

    Raises:
        PrivacyBudgetError: it would.
    """
    noise = [release.noise_multiplier for release in told]
    after = epsilon_spent([*noise, settings.noise_multiplier], budget.delta)
    if after > budget.epsilon:
        before = epsilon_spent(noise, budget.delta)
        raise PrivacyBudgetError(
            f"its privacy budget is epsilon {budget.epsilon:g} at delta {budget.delta:g}: {before:.4g} is spent, and one"
            f" more update with noise multiplier {settings.noise_multiplier:g} would make it {after:.4g}. Ask for more noise"
            " in a new job, or its owner for a larger budget"
        )
