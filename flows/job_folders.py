"""Jobs as their folders in the workspace say; only read, with nothing heavy imported, so that looking is quick.

What a step checks before it works with a file, digests above all, is not checked here: nothing is computed from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tasks.epochs import parsed_epochs
from tasks.layout import ENDED, EPOCHS, JOB, LOCK, manifest_name, record_name

STEPS = ("initialise", "fit", "evaluate", "predict", "compare", "plots", "report", "package", "record", "register")
LOSSES = ("loss", "validation_loss", "val_loss")
DERIVED = ("name", "kind", "state", "reason", "asked", "asked_steps", "started", "seconds", "metrics", "figure")
KILLED = "its process ended without a word"


class UnreadableJobError(Exception):
    """A folder that is no job's, or whose files are not what a job wrote; the message is one line."""


class NoSuchJobError(Exception):
    """No job has that id, or several begin with it."""


@dataclass(frozen=True)
class Course:
    """One epoch of a local job or one round of a federated one.

    Attributes:
        number: from 1.
        loss: the training loss; of a round, the mean over pods.
        metrics: of the validation rows.
        seconds: that it took, where that is known.
        pods: those that took part.
        missing: pod -> why it did not.
    """

    number: int
    loss: float | None
    metrics: Mapping[str, float | None]
    seconds: float | None = None
    pods: tuple[str, ...] = ()
    missing: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Figure:
    """The main number of a job.

    Attributes:
        name: of the metric.
        value: None where it is not defined.
        rows: that it is of, `test` or `validation`.
    """

    name: str
    value: float | None
    rows: str


@dataclass(frozen=True)
class JobFolder:
    """A job as its folder says.

    Attributes:
        path: of the folder.
        job: the settings, resolved; empty where the job ended before they were kept.
        steps: step -> its manifest, of the finished steps.
        course: the epochs or rounds so far.
        ended: `state` and `reason` of a job that said how it ended; else empty.
        is_running: whether a process holds the job.
    """

    path: Path
    job: Mapping[str, Any]
    steps: Mapping[str, Mapping[str, Any]]
    course: Sequence[Course]
    ended: Mapping[str, str]
    is_running: bool

    @property
    def job_id(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def name(self) -> str | None:
        """The name for people, if it is known."""
        return self.job.get("name")

    @property
    def kind(self) -> str | None:
        """`local`, `simulated` or `federated`, if it is known."""
        if not self.job:
            return None
        return "federated" if "pods" in self.job else "simulated" if "simulate" in self.job else "local"

    @property
    def state(self) -> str:
        """`finished`, `not recorded` (in MLflow), `training`, `stopped` or `failed`."""
        if self.is_running:
            return "training"
        if "record" in self.steps and ("register" in self.steps or not self.job.get("register")):
            return "finished"
        if "report" in self.steps and not self.ended:
            return "not recorded"
        return self.ended.get("state", "stopped")

    @property
    def reason(self) -> str | None:
        """Why a job is neither finished nor running."""
        return self.ended.get("reason", KILLED) if self.state in ("stopped", "failed") else None

    @property
    def unit(self) -> str:
        """What training is counted in."""
        return "rounds" if self.kind in ("federated", "simulated") else "epochs"

    @property
    def asked(self) -> int | None:
        """Epochs or rounds that were asked for; None where that is not known, or the job counts steps."""
        if self.kind == "federated":
            return self.values("initialise").get("rounds")
        training: Mapping[str, Any] = self.job.get("training", {})
        if self.kind == "simulated":
            unit = "epochs" if "epochs" in training else "steps"
            return -(-int(training[unit]) // int(training.get(f"{unit}_between_parameter_updates", 1)))
        return training.get("epochs")

    @property
    def asked_steps(self) -> int | None:
        """Steps that a local job was asked for, which has no number of epochs then."""
        training: Mapping[str, Any] = self.job.get("training", {})
        return training.get("steps") if self.kind == "local" else None

    @cached_property
    def started(self) -> datetime:
        """When the job was first kept."""
        job = self.path / JOB
        return datetime.fromtimestamp((job if job.is_file() else self.path).stat().st_mtime, UTC)

    @property
    def seconds(self) -> float | None:
        """Seconds of training, as far as they are known."""
        if "fit" in self.steps:
            return float(self.values("fit")["seconds"])
        known = [each.seconds for each in self.course if each.seconds is not None]
        return sum(known) if known else None

    @property
    def metrics(self) -> Mapping[str, float | None]:
        """Of the test rows; before they were evaluated, of the validation rows after the last epoch or round."""
        tested: Mapping[str, float | None] = self.values("evaluate").get("metrics", {})
        return tested or (self.course[-1].metrics if self.course else {})

    @property
    def figure(self) -> Figure | None:
        """The first metric that is no loss."""
        rows = "test" if self.values("evaluate").get("metrics") else "validation"
        names = sorted(self.metrics, key=lambda name: name in LOSSES)
        return Figure(names[0], self.metrics[names[0]], rows) if names else None

    def values(self, step: str) -> Mapping[str, Any]:
        """The small results of a step; empty if it has not finished."""
        found: Mapping[str, Any] = self.steps.get(step, {}).get("values", {})
        return found


def read_jobs(home: Path) -> tuple[list[JobFolder], list[str]]:
    """Every job of a workspace, newest first, and a line for each folder that is none.

    Args:
        home: the workspace's folder.
    """
    jobs, problems = [], []
    for path in job_paths(home):
        try:
            jobs.append(read_job_folder(path))
        except UnreadableJobError as error:
            problems.append(str(error))
    return sorted(jobs, key=lambda job: (job.started, job.job_id), reverse=True), problems


def job_paths(home: Path) -> list[Path]:
    """The folders among a workspace's jobs."""
    folder = home / "jobs"
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    except OSError as error:
        raise UnreadableJobError(f"cannot read {folder}: {error.strerror}") from error


def find_job(home: Path, wanted: str) -> JobFolder:
    """The job with that id, or the one whose id begins with it.

    Raises:
        NoSuchJobError: there is none, or there are several.
        UnreadableJobError: its folder is broken.
    """
    paths = {path.name: path for path in job_paths(home)}
    found = [wanted] if wanted in paths else [name for name in paths if wanted and name.startswith(wanted)]
    if len(found) == 1:
        return read_job_folder(paths[found[0]])
    if found:
        raise NoSuchJobError(f"{wanted!r} is the beginning of several jobs: {', '.join(found)}; write more of one")
    there = ", ".join(list(paths)[-10:]) or "none"
    raise NoSuchJobError(f"there is no job {wanted!r} in {home}; there are: {there}")


def read_job_folder(path: Path) -> JobFolder:
    """One job.

    Raises:
        UnreadableJobError: the folder is no job's, or is broken.
    """
    try:
        job = read_json(path / JOB)
        steps = {step: found for step in STEPS if (found := read_json(path / manifest_name(step)))}
        ended = read_json(path / ENDED)
        if not (job or steps or ended or (path / LOCK).exists()):
            raise UnreadableJobError(f"{path.name}: is not the folder of a job")
        course = federated_course(path) if "pods" in job else local_course(path, steps)
        made = JobFolder(path, job, steps, course, ended, is_held(path / LOCK))
        check(made)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
        raise UnreadableJobError(f"{path.name}: is not what a job wrote: {' '.join(said.split())[:200]}") from error
    return made


def check(job: JobFolder) -> None:
    """Reads all that is derived, so that what is broken is found here and not where it is shown."""
    for derived in DERIVED:
        getattr(job, derived)
    if not isinstance(job.name, str | None):
        raise ValueError(f"{JOB}: its name is no text")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file.

    Raises:
        ValueError: it is something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds no object")
    return value


def local_course(path: Path, steps: Mapping[str, Any]) -> list[Course]:
    """The epochs of a local job, also of one that is training."""
    if "fit" in steps:
        records = json.loads((path / steps["fit"]["files"]["history"]["name"]).read_text(encoding="utf-8"))
    else:
        scratch = path / EPOCHS
        records = parsed_epochs(scratch.read_text(encoding="utf-8", errors="replace")) if scratch.is_file() else []
    return [Course(record["epoch"], record["train_loss"], record["val_stats"]) for record in records]


def federated_course(path: Path) -> list[Course]:
    """The closed rounds of a federated job."""
    course: list[Course] = []
    while record := read_json(path / record_name(len(course) + 1)):
        losses = [value for value in record["train_loss"].values() if value is not None]
        loss = sum(losses) / len(losses) if losses else None
        course.append(
            Course(
                record["round_number"],
                loss,
                record["metrics"],
                record["seconds"],
                tuple(record["pods"]),
                record["missing"],
            )
        )
    return course


def is_held(lock: Path) -> bool:
    """Whether a process runs the job; it waits a moment for one that only looks."""
    if not lock.is_file():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a folder that may only be read: nobody runs a job in it
        return False
