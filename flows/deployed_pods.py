"""Pods on other machines: started through Prefect once a job, then left alone; they look for what is asked themselves."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast
from uuid import UUID, uuid4

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from tasks.federated.exchange import JOIN, Exchange
from tasks.prefect_errors import UNREACHABLE
from tasks.progress import tell

LOOK_SECONDS = 2.0
"""How often Prefect is asked for the states of the pods' flow runs."""
HERE_SECONDS = 5.0
"""How long pods of an earlier session have to say that they are still up."""
STARTS = 5
"""How often a pod is started in one session."""
PATIENCE_SECONDS = 120.0
"""How long a Prefect server that does not answer is asked again to start a pod."""


@dataclass
class Started:
    """A pod's flow run in this session.

    Attributes:
        run: its id; None where it is not known.
        starts: how often the pod was started.
        ended: why its last run will not answer; None while it may.
        missed: the phase that it missed the deadline of, and has given no sign of life since.
    """

    run: UUID | None = None
    starts: int = 0
    ended: str | None = None
    missed: str | None = None


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
        self._token = uuid4()  # a start that is tried again, as no answer came, starts one run
        self._pods = {pod: Started() for pod in pods}
        self._over = threading.Event()

    def begin(self) -> None:
        """Starts every pod that is not up from an earlier session."""
        # In the background: a Prefect server that is away must not hold a round up.
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._watch,), name="pods-watch", daemon=True).start()
        up = self._still_up()
        for pod, started in self._pods.items():
            if pod in up:
                started.run = _newest_run(self._run_name(pod))
            else:
                self._start(pod)

    def work(self) -> None:
        """They work by themselves; one whose run has ended is started again, and may come back."""
        for pod, started in self._pods.items():
            if started.ended is None or started.starts >= STARTS:
                continue
            if self._exchange.failure(JOIN, pod, self._session) is None:
                self._start(pod)

    def end(self) -> None:
        """Watches their runs no longer; those that nobody took up are not wanted any more."""
        self._over.set()
        for started in self._pods.values():
            if started.run is not None and started.ended is None:
                _cancel_if_waiting(started.run)

    def gone(self, pod: str) -> str | None:
        """Why a pod's run will not answer, as Prefect saw it a moment ago."""
        return self._pods[pod].ended

    def is_away(self, pod: str) -> bool:
        """Whether it missed a deadline, and has not answered since, however late."""
        started = self._pods[pod]
        if started.missed is not None and (
            self._exchange.has_answer(started.missed, pod)
            or self._exchange.failure(started.missed, pod, self._session) is not None
        ):
            started.missed = None
        return started.missed is not None

    def missed(self, pod: str, phase: str) -> None:
        """Nobody waits for it until it is heard of."""
        started = self._pods[pod]
        started.missed = started.missed or phase

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            for started in list(self._pods.values()):
                state = None if started.run is None or started.ended is not None else _state_of(started.run)
                if state is not None and state.is_final():
                    message = f": {state.message}" if state.message else ""
                    started.ended = f"its flow run ended as {state.name}{message}"

    def _still_up(self) -> set[str]:
        if self._session == 1:
            return set()
        waiting = set(self._pods)
        until = time.monotonic() + HERE_SECONDS
        while waiting and time.monotonic() < until:
            waiting -= {pod for pod in waiting if self._exchange.is_here(self._session, pod)}
            threading.Event().wait(self._exchange.longest_pause)
        return set(self._pods) - waiting

    def _run_name(self, pod: str) -> str:
        return f"{self._job_id} · {pod}"

    def _start(self, pod: str) -> None:
        started = self._pods[pod]
        started.starts += 1
        name = f"pod/{pod}"
        patiently = Retrying(
            retry=retry_if_exception_type(UNREACHABLE),
            wait=wait_exponential(multiplier=0.5, max=5),
            stop=stop_after_delay(PATIENCE_SECONDS),
            reraise=True,
        )
        try:
            run = patiently(
                run_deployment,
                name,
                parameters={"job_id": self._job_id},
                timeout=0,
                flow_run_name=self._run_name(pod),
                tags=[f"job:{self._job_id}"],
                idempotency_key=f"{self._token}/{pod}/{started.starts}",
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
        run_id = cast(FlowRun, run).id
        self._pods[pod] = Started(run_id, started.starts)
        tell("pod_started", {"pod": pod, "run": str(run_id)})


def _state_of(run: UUID) -> State | None:
    """A flow run's state, or None where Prefect cannot be asked now."""
    try:
        with get_client(sync_client=True) as client:
            return client.read_flow_run(run).state
    except (ObjectNotFound, *UNREACHABLE):
        return None


def _cancel_if_waiting(run: UUID) -> None:
    """A pod that is served again later would take up a job that is over, to no end."""
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(run).state
            if state is not None and state.is_scheduled():
                client.set_flow_run_state(run, Cancelled(message="the modeller has ended"), force=True)
    except (ObjectNotFound, *UNREACHABLE):
        return


def _newest_run(name: str) -> UUID | None:
    """The newest flow run of a name, or None where Prefect cannot be asked now."""
    try:
        with get_client(sync_client=True) as client:
            wanted = FlowRunFilter(name=FlowRunFilterName(any_=[name]))
            runs = client.read_flow_runs(flow_run_filter=wanted, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=1)
            return runs[0].id if runs else None
    except UNREACHABLE:
        return None
