"""From a phase that is open to its pods' answers: one at a time, in the order of names, until all are in or time is up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol, TypeVar

from bitfount_model.errors import BitfountError, StoreAwayError
from tasks.federated.exchange import JOIN, Exchange

Value = TypeVar("Value")


class Reach(Protocol):
    """How pods are reached: the one seam between a federation in one process and one of many machines."""

    def work(self) -> None:
        """Lets pods of this process do what is asked; others do it by themselves."""

    def gone(self, pod: str) -> str | None:
        """Why a pod will not answer in this session, or None if it may."""

    def is_away(self, pod: str) -> bool:
        """Whether a pod has given no sign of life since it missed a deadline: nobody waits for it, its answer is welcome."""

    def missed(self, pod: str, phase: str) -> None:
        """A pod did not answer a phase before the deadline."""


class Collector:
    """Waits for the answers of one phase.

    Args:
        exchange: of the job.
        phase: that is open.
        session: the modeller's.
        reach: how pods are reached.
        seconds: after which nobody is waited for any more.

    Attributes:
        missing: pod -> why it has no answer, of those that were asked for so far.
        waited: seconds spent waiting so far.
    """

    def __init__(self, exchange: Exchange, phase: str, session: int, reach: Reach, seconds: float) -> None:
        self._exchange = exchange
        self._phase = phase
        self._session = session
        self._reach = reach
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        self.missing: dict[str, str] = {}
        self.waited = 0.0

    def answers(self, pods: Sequence[str], look: Callable[[str], Value | None]) -> Iterator[tuple[str, Value]]:
        """The answers, as they can be had in the order of `pods`.

        Args:
            pods: whom to wait for.
            look: gives a pod's answer, or None while there is none. An error of this project's that it raises is the pod's.
        """
        for pod in pods:
            began = time.monotonic()
            away = self._reach.is_away(pod)
            seconds = 0.0 if away else max(0.0, self._until - began)
            try:
                found = self._exchange.awaited(partial(self._seen, pod, look), seconds)
            except BitfountError as error:
                if isinstance(error, StoreAwayError):
                    raise  # nobody can be reached through a store that is away: no pod is to blame
                found = (None, f"{type(error).__name__}: {error}")
            self.waited += time.monotonic() - began
            if found is None:
                self._reach.missed(pod, self._phase)
                self.missing[pod] = "away: no sign of life" if away else f"no answer within {self._seconds:g} s"
            elif found[1] is not None:
                self.missing[pod] = found[1]
            elif found[0] is not None:
                yield pod, found[0]

    def _seen(self, pod: str, look: Callable[[str], Value | None]) -> tuple[Value | None, str | None] | None:
        """A pod's answer, or the reason why there is none; None while neither is known."""
        value = look(pod)
        if value is not None:
            return value, None
        reason = (
            self._exchange.failure(self._phase, pod, self._session)
            or self._exchange.failure(JOIN, pod, self._session)
            or self._reach.gone(pod)
        )
        return None if reason is None else (None, reason)
