"""Waiting for pods: in the order of names, no longer than the deadline, and never in vain for one that is gone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitfount_model.errors import (
    BitfountError,
    IntegrityError,
    ParameterError,
    SerializationError,
    StorageError,
    StoreAwayError,
)
from tasks.federated import collect
from tasks.federated.collect import Collector
from tasks.federated.exchange import JOIN, Exchange, round_phase
from tests.tasks.federated.by_hand import PODS, Told

PHASE = round_phase(1)
SESSION = 3


@pytest.fixture
def exchange() -> Exchange:
    return Exchange(f"memory://{uuid4().hex}")


@pytest.fixture
def reach() -> Told:
    return Told()


def collector(exchange: Exchange, reach: Told, seconds: float = 0.0) -> Collector[str]:
    return Collector(exchange, PHASE, SESSION, reach, seconds)


def test_answers_come_in_the_order_that_is_asked_for(exchange: Exchange, reach: Told) -> None:
    waiting = collector(exchange, reach)
    answers = list(waiting.answers(PODS, lambda pod: pod.upper()))
    assert answers == [(pod, pod.upper()) for pod in PODS]
    assert waiting.missing == {} and reach.late == []


@given(st.sets(st.sampled_from(PODS)))
def test_whoever_gives_no_answer_is_missing_and_no_answer_is_lost(silent: set[str]) -> None:
    reach = Told()
    waiting = collector(Exchange(f"memory://{uuid4().hex}"), reach)
    answers = dict(waiting.answers(PODS, lambda pod: None if pod in silent else pod))
    assert answers.keys() | waiting.missing.keys() == set(PODS)
    assert waiting.missing.keys() == silent
    assert set(reach.late) == {(pod, PHASE) for pod in silent}
    assert set(waiting.missing.values()) <= {"no answer within 0 s"}


def test_an_answer_is_taken_when_it_comes(exchange: Exchange, reach: Told) -> None:
    looks = itertools.count()
    waiting = collector(exchange, reach, 60)
    assert dict(waiting.answers(["ann"], lambda pod: "here" if next(looks) == 3 else None)) == {"ann": "here"}
    assert next(looks) == 4, "nobody looks again once there is an answer"
    assert waiting.waited > 0


def test_the_next_answer_is_not_looked_for_before_the_last_was_taken(exchange: Exchange, reach: Told) -> None:
    looked: list[str] = []
    answers = collector(exchange, reach).answers(PODS, lambda pod: looked.append(pod) or pod)
    assert looked == []
    next(answers)
    assert looked == ["ann"], "one update is in memory at a time"


def test_all_pods_share_one_deadline(exchange: Exchange, reach: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(collect, "time", SimpleNamespace(monotonic=lambda: now[0]))
    given_seconds: list[float] = []

    def awaited(look: Callable[[], object], seconds: float) -> object:
        given_seconds.append(seconds)
        now[0] += 4
        return look()

    monkeypatch.setattr(exchange, "awaited", awaited)
    waiting = collector(exchange, reach, 10)
    assert dict(waiting.answers(PODS, lambda pod: pod if pod == "eve" else None)) == {"eve": "eve"}
    assert given_seconds == [10, 6, 2, 0, 0], "an answer that is there is taken also when the time is up"
    assert waiting.waited == 20
    assert waiting.missing == dict.fromkeys(PODS[:4], "no answer within 10 s")


def test_a_pod_that_is_away_is_not_waited_for_and_its_answer_is_welcome(
    exchange: Exchange, reach: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach.away = {"ann", "bob"}
    waited_for: list[float] = []
    awaited = exchange.awaited
    monkeypatch.setattr(
        exchange, "awaited", lambda look, seconds: waited_for.append(seconds) or awaited(look, min(seconds, 0))
    )
    waiting = collector(exchange, reach, 3600)
    answers = dict(waiting.answers(("ann", "bob", "cat"), lambda pod: pod if pod != "ann" else None))
    assert answers == {"bob": "bob", "cat": "cat"}
    assert waiting.missing == {"ann": "away: no sign of life"}
    assert waited_for[:2] == [0.0, 0.0] and waited_for[2] > 3000


def test_a_reason_in_this_session_ends_the_wait(exchange: Exchange, reach: Told) -> None:
    exchange.put_failure(PHASE, "ann", SESSION, "its disk is full")
    exchange.put_failure(JOIN, "bob", SESSION, "its policy refuses")
    reach.reasons["cat"] = "its process was killed"
    exchange.put_failure(PHASE, "dan", SESSION - 1, "an old one")
    exchange.put_failure(round_phase(2), "eve", SESSION, "of another round")
    waiting = collector(exchange, reach, 3600)
    assert list(waiting.answers(PODS[:3], lambda pod: None)) == []
    assert waiting.missing == {
        "ann": "its disk is full",
        "bob": "its policy refuses",
        "cat": "its process was killed",
    }
    assert reach.late == []
    later = collector(exchange, reach)
    assert list(later.answers(PODS[3:], lambda pod: None)) == []
    assert set(later.missing.values()) == {"no answer within 0 s"}


def test_an_answer_counts_more_than_a_reason(exchange: Exchange, reach: Told) -> None:
    exchange.put_failure(PHASE, "ann", SESSION, "it thought that it had failed")
    reach.reasons["ann"] = "gone since"
    waiting = collector(exchange, reach)
    assert dict(waiting.answers(["ann"], lambda pod: "here")) == {"ann": "here"}
    assert waiting.missing == {}


@pytest.mark.parametrize(
    "error",
    [
        SerializationError("not an update"),
        ParameterError("of another model"),
        IntegrityError("other bytes"),
        StorageError("it names a file that is not there, or one that is too large"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_answer_that_cannot_be_used_is_the_pods_fault_alone(
    exchange: Exchange, reach: Told, error: BitfountError
) -> None:
    def look(pod: str) -> str:
        if pod == "bob":
            raise error
        return pod

    waiting = collector(exchange, reach, 3600)
    assert dict(waiting.answers(("ann", "bob", "cat"), look)) == {"ann": "ann", "cat": "cat"}
    assert waiting.missing == {"bob": f"{type(error).__name__}: {error}"}


def test_a_store_that_is_away_is_nobodys_fault(exchange: Exchange, reach: Told) -> None:
    def look(pod: str) -> str:
        raise StoreAwayError("the bucket does not answer")

    waiting = collector(exchange, reach)
    with pytest.raises(StoreAwayError, match="the bucket does not answer"):
        list(waiting.answers(PODS, look))
    assert waiting.missing == {} and reach.late == []


def test_a_bug_is_not_taken_for_a_pods_fault(exchange: Exchange, reach: Told) -> None:
    with pytest.raises(ZeroDivisionError):
        list(collector(exchange, reach).answers(PODS, lambda pod: str(1 // 0)))
