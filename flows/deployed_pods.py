"""Pods on other machines: started through Prefect once a job, then left alone; they look for what is asked themselves."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import State

from tasks.federated.exchange import JOIN, Exchange
from tasks.progress import tell

LOOK_SECONDS = 2.0
"""How often Prefect is asked for the state of a pod's flow run, while somebody waits for the pod."""
HERE_SECONDS = 5.0
"""How long pods of an earlier session have to say that they are still up."""
STARTS = 5
"""How often a pod is started in one session."""
UNREACHABLE = (httpx.HTTPError, PrefectHTTPStatusError, OSError)


@dataclass
class Started:
    """A pod's flow run in this session.

    Attributes:
        run: its id; None for a pod that was up already.
        starts: how often the pod was started.
        ended: why its last run will not answer; None while it may.
        away: whether it has missed a deadline.
    """

    run: UUID | None = None
    starts: int = 0
    ended: str | None = None
    away: bool = False
    looked: float = 0.0


class DeployedPods:
    """Reaches pods that are served elsewhere as `pod/<name>`: see `tasks.federated.collect.Reach`.

    Args:
        pods: their names.
        job_id: of the job.
        exchange: of the job.
        session: the modeller's.
    """

    def __init__(self, pods: Sequence[str], job_id: str, exchange: Exchange, session: int) -> None:
        self._exchange = exchange
        self._job_id = job_id
        self._session = session
        self._pods = {pod: Started() for pod in pods}

    def begin(self) -> None:
        """Starts every pod that is not up from an earlier session."""
        up = self._still_up()
        for pod in self._pods:
            if pod not in up:
                self._start(pod)

    def work(self) -> None:
        """They work by themselves; one whose run has ended is started again, and may come back."""
        for pod, started in self._pods.items():
            if started.ended is None or started.starts >= STARTS:
                continue
            if self._exchange.failure(JOIN, pod, self._session) is None:
                self._start(pod)

    def gone(self, pod: str) -> str | None:
        """Why a pod's run will not answer, as Prefect sees it; asked at most every few seconds."""
        started = self._pods[pod]
        if started.ended is None and started.run is not None and time.monotonic() - started.looked > LOOK_SECONDS:
            started.looked = time.monotonic()
            state = _state_of(started.run)
            if state is not None and state.is_final():
                started.ended = f"its flow run ended as {state.name}{f': {state.message}' if state.message else ''}"
        return started.ended

    def is_away(self, pod: str) -> bool:
        """Whether it missed a deadline and has not been heard of since."""
        started = self._pods[pod]
        if started.away and self._exchange.is_here(self._session, pod):
            started.away = False
        return started.away

    def missed(self, pod: str) -> None:
        """Nobody waits for it until it is heard of."""
        self._pods[pod].away = True

    def _still_up(self) -> set[str]:
        if self._session == 1:
            return set()
        waiting = set(self._pods)
        until = time.monotonic() + HERE_SECONDS
        while waiting and time.monotonic() < until:
            waiting -= {pod for pod in waiting if self._exchange.is_here(self._session, pod)}
            threading.Event().wait(self._exchange.longest_pause)
        return set(self._pods) - waiting

    def _start(self, pod: str) -> None:
        started = self._pods[pod]
        started.starts += 1
        name = f"pod/{pod}"
        try:
            run = run_deployment(
                name,
                parameters={"job_id": self._job_id},
                timeout=0,
                flow_run_name=f"{self._job_id} · {pod}",
                tags=[f"job:{self._job_id}"],
                idempotency_key=f"{self._job_id}/{pod}/{self._session}/{started.starts}",
            )
        except ObjectNotFound:
            started.ended = (
                f"Prefect knows no {name}: its owner starts it with `bitfount-flows pod serve` and the pod's file"
            )
            started.starts = STARTS
            return
        except UNREACHABLE as error:
            started.ended = f"Prefect could not start {name}: {error}"
            return
        started.run, started.ended, started.looked = run.id, None, time.monotonic()
        tell("pod_started", {"pod": pod, "run": str(run.id)})


def _state_of(run: UUID) -> State | None:
    """A flow run's state, or None where Prefect cannot be asked now."""
    try:
        with get_client(sync_client=True) as client:
            return client.read_flow_run(run).state
    except ObjectNotFound:
        return None
    except UNREACHABLE:
        return None
