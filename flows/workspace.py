"""The folder that holds everything of a user's jobs: their artifacts, the MLflow database, Prefect's own files."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from filelock import FileLock, Timeout

from bitfount_model.errors import ConfigurationError, IntegrityError, StorageError
from tasks.job import NAME
from tasks.layout import JOB, LOCK
from tasks.store import Store

Job = TypeVar("Job")
LOOKS_SECONDS = 0.3
"""For how long a lock may be held by a command that only looks whether the job runs."""


@dataclass(frozen=True)
class Workspace:
    """Paths below one folder.

    Attributes:
        home: the folder.
    """

    home: Path

    @property
    def tracking_uri(self) -> str:
        """The default MLflow store: a SQLite file."""
        return f"sqlite:///{(self.home / 'mlflow.db').resolve()}"

    @property
    def artifacts(self) -> Path:
        """Where MLflow keeps artifacts when it has no server."""
        return (self.home / "mlflow-artifacts").resolve()

    def folder(self, job_id: str) -> Path:
        """A job's own folder."""
        if not NAME.fullmatch(job_id):
            raise ConfigurationError(f"{job_id!r} is not a job id: letters, digits, '.', '_', '-', at most 80")
        return (self.home / "jobs" / job_id).resolve()

    def store(self, job_id: str) -> Store:
        """A job's store."""
        return Store(self.folder(job_id))

    def prepare(self) -> None:
        """Makes the folder.

        Raises:
            StorageError: it cannot be written.
        """
        try:
            (self.home / "jobs").mkdir(parents=True, exist_ok=True)
            probe = self.home / f".probe-{secrets.token_hex(4)}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise StorageError(
                f"cannot write in {self.home}: {error.strerror}. Choose another folder with --home."
            ) from error


def new_job_id(name: str) -> str:
    """An id that nobody has used, and that sorts by time."""
    return f"{name[:50]}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


class Seeded(Protocol[Job]):
    """How a kind of job gets its seed: its own, else the one given, else one from the operating system."""

    def __call__(self, job: Job, seed: int | None = None) -> Job:
        """The same job with a seed."""


def continued(job: Job, store: Store, seeded: Seeded[Job], as_json: Callable[[Job], Any]) -> Job:
    """The job with its seed; for a job id that has been used, with the seed that it began with.

    Args:
        job: a local or a federated one.
        store: the job's own.
        seeded: gives it a seed.
        as_json: how it is kept.

    Raises:
        ConfigurationError: the id belongs to another job.
        IntegrityError: the job that is kept was changed.
    """
    if not store.has(JOB):
        return seeded(job)
    try:
        began: dict[str, Any] = json.loads(store.get(JOB))
        now = seeded(job, seed=began["training"]["seed"])
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"job.json in {store.url} is not what a job wrote. Use another job id.") from error
    if different := sorted(_different(began, as_json(now))):
        raise ConfigurationError(
            f"the job id {Path(store.url).name!r} belongs to a job with other settings ({', '.join(different)} differ);"
            " use another --job-id, or none, for a new job"
        )
    return now


def _different(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """The paths at which two JSON values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            yield from _different(one.get(key), other.get(key), f"{path}.{key}" if path else key)
    elif one != other:
        yield path


@contextmanager
def only_once(folder: Path, what: str = "job") -> Iterator[None]:
    """Holds a job, or something else with a folder of its own, for this process.

    Args:
        folder: of the job.
        what: it is, for messages.

    Raises:
        ConfigurationError: another process is running it.
        StorageError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=LOOKS_SECONDS)
    except Timeout as error:
        raise ConfigurationError(
            f"the {what} {folder.name!r} is running in another process; wait for it to end"
        ) from error
    except OSError as error:
        raise StorageError(f"cannot write in {folder}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()
