"""A deployed pod's part in one job, as one long flow run: opens its rows once, then does what is asked until the job is over."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from prefect import flow

from bitfount_model.errors import BitfountError, ConfigurationError, ModellerGoneError, PodError, StorageError
from bitfount_model.federation.job import NAME
from flows.environment import quiet
from flows.pod_log import pod_log
from flows.settings import read_pod
from tasks.federated.confined.session import open_confined
from tasks.federated.exchange import Exchange
from tasks.federated.pod_file import PodFile
from tasks.federated.pod_worker import PodWorker
from tasks.memory import freed_memory_kept, garbage_left_at_exit
from tasks.progress import listening

POD_FILE = "BITFOUNT_POD_FILE"
"""The environment variable that names the pod's file: whoever starts a run through Prefect cannot choose another."""
VERBOSE = "BITFOUNT_VERBOSE"
"""Set, the packages' logs are shown too."""
FOLLOW_SECONDS = 0.25
FOLLOW_REMOTE_SECONDS = 2.0
END_SECONDS = 10.0


@flow(name="pod", persist_result=False)
def pod(job_id: str) -> dict[str, Any]:
    """Takes part in one job until the modeller ends it.

    Args:
        job_id: the only thing that a modeller may say here; all else is read from the pod's own file and store.

    Raises:
        PodError: the pod may not, or cannot, take part.
        ModellerGoneError: the modeller gave no sign for too long.
        ConfigurationError: there is no such job, or this process serves no pod.
    """
    garbage_left_at_exit()
    if not NAME.fullmatch(job_id):
        raise ConfigurationError(f"{job_id!r} is not a job id: letters, digits, '.', '_', '-', at most 80")
    settings = read_pod(Path(os.environ[POD_FILE]))
    settings.private().prepare()
    exchange = Exchange(f"{store_of(settings)}/{job_id}")
    say = diary(settings.name, job_id)
    with (
        ending_with_parent(),
        freed_memory_kept(),
        quiet(VERBOSE in os.environ),
        pod_log(logging.StreamHandler()),
        Follower(exchange, settings.name) as follower,
    ):
        say("began")
        try:
            with listening(lambda event, values: say(told) if (told := told_of(event, values)) else None):
                ended = take_part(settings, exchange, follower)
        except BitfountError as error:
            say(f"ended: {error}")
            raise
        say(f"ended: {ended['state']}{f', {reason}' if (reason := ended['reason']) else ''}")
        return ended


def take_part(settings: PodFile, exchange: Exchange, follower: Follower) -> dict[str, Any]:
    """Does what is asked until the session is over."""
    with closing(PodWorker(settings.pod(), exchange, follower.session, open_confined)) as worker:
        return work_until_over(worker, settings, exchange, follower)


def work_until_over(worker: PodWorker, settings: PodFile, exchange: Exchange, follower: Follower) -> dict[str, Any]:
    """Gives the end of the session.

    Raises:
        PodError: the pod takes no part.
        ModellerGoneError: the modeller gave no sign for too long.
    """

    def look() -> dict[str, Any] | None:
        worker.session = follower.session
        if worker.advance():
            return {"state": "working"}
        if worker.left is not None:
            raise PodError(worker.left)
        return exchange.session_end(worker.session)

    patience = settings.patience_seconds
    while True:
        found = exchange.awaited(look, patience)
        if found is None:
            raise ModellerGoneError(
                f"pod {settings.name!r} has waited {patience:g} s for the modeller of the job and gives up; a job that goes on"
                " starts it again"
            )
        if found["state"] != "working":
            return {"pod": settings.name, **found}
        if worker.has_joined:
            patience = settings.patience_seconds + worker.job.deadline_seconds


def diary(pod: str, job_id: str) -> Callable[[str], None]:
    """Says on the pod's own output what it does in a job."""

    def say(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}  pod {pod}, job {job_id}: {text}", flush=True)

    return say


def told_of(event: str, values: Mapping[str, Any]) -> str | None:
    """A line for the owner on an event of the pod's work; None for those that say nothing new."""
    if event == "pod_fitted":
        return f"round {values['round']}: trained on {values['rows']:,} rows"
    return f"{values['phase']}: failed" if event == "pod_failed" else None


class Follower:
    """Keeps up with the modeller's sessions, also while the pod trains: says that the pod is up.

    Args:
        exchange: of the job.
        pod: its name.

    Attributes:
        session: the newest that has begun.
    """

    def __init__(self, exchange: Exchange, pod: str) -> None:
        self._exchange = exchange
        self._pod = pod
        self._over = threading.Event()
        self.session = exchange.session()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)

    def __enter__(self) -> Follower:
        self._exchange.say_here(self.session, self._pod)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _follow(self) -> None:
        pause = FOLLOW_SECONDS if self._exchange.longest_pause < FOLLOW_SECONDS else FOLLOW_REMOTE_SECONDS
        while not self._over.wait(pause):
            with suppress(StorageError):  # a store that is away is looked at again
                newest = self._exchange.session(self.session)
                if newest > self.session:
                    self._exchange.say_here(newest, self._pod)
                    self.session = newest


def store_of(settings: PodFile) -> str:
    """Where the pod meets modellers.

    Raises:
        ConfigurationError: its file does not say.
    """
    if settings.store is None:
        raise ConfigurationError(
            f"pod {settings.name!r} has no `store`: say in its file where it meets modellers, a folder or a URL such as"
            " s3://bucket/federation"
        )
    return settings.store.rstrip("/")


@contextmanager
def ending_with_parent() -> Iterator[None]:
    """Ends this process soon after `pod serve`, which started it, has gone: an owner who stops a pod stops all of it."""
    parent, over = os.getppid(), threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                if not over.wait(END_SECONDS):
                    os.kill(os.getpid(), signal.SIGKILL)
                return

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
    try:
        yield
    finally:
        over.set()
