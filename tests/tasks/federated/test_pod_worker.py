"""A pod in a job: does what is asked next, once, and says why where it cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from bitfount_model import DataFrameSource
from bitfount_model.errors import ConfigurationError
from bitfount_model.federation.pod import Pod
from tasks.federated.exchange import EVALUATION, JOIN, PREDICTION, Asked, Exchange, round_phase
from tasks.federated.federation import Federation
from tasks.federated.pod_worker import PodWorker
from tasks.federated.rounds import Rounds
from tasks.federated.start import initialise, join_pods
from tasks.progress import listening
from tests.tasks.federated.team import OPEN, Team, files_below, one_round, trained, with_policy

ROUND = round_phase(1)


class Unread(DataFrameSource):
    """Rows that nobody may look at."""

    def read(self, table: str | None = None, query: str | None = None) -> pd.DataFrame:
        raise AssertionError("a row was read")


def worker_of(team: Team, federation: Federation, pod: str = "ann") -> PodWorker:
    """A pod whose process has just started."""
    return PodWorker(team.pod(pod), team.exchange(), federation.session)


def exhausted(worker: PodWorker) -> int:
    """How many things a pod had to do."""
    steps = 0
    while worker.advance():
        steps += 1
        assert steps < 100, "a pod goes on for ever"
    return steps


def test_a_pod_does_one_thing_after_the_other_and_each_once(team: Team) -> None:
    federation = team.began()
    workers = [worker_of(team, federation, pod) for pod in team.names]
    assert [exhausted(worker) for worker in workers] == [1, 1, 1]  # joined
    assert all(worker.has_joined and worker.left is None for worker in workers)
    join_pods(federation)
    assert [exhausted(worker) for worker in workers] == [1, 1, 1]  # sent statistics
    initialise(federation, {})
    assert [exhausted(worker) for worker in workers] == [1, 1, 1]  # built the model
    rounds = Rounds(federation)
    for _ in range(3):
        rounds.open()
        assert [exhausted(worker) for worker in workers] == [1, 1, 1]  # trained
        assert exhausted(workers[0]) == 0
        rounds.aggregate()
    for phase in (EVALUATION, PREDICTION):
        federation.exchange.ask(phase, Asked(federation.job.pods, rounds.weights))
        assert [exhausted(worker) for worker in workers] == [1, 1, 1]
        assert all(federation.exchange.has_answer(phase, pod) for pod in team.names)
        federation.exchange.close(phase)
    assert [exhausted(worker) for worker in workers] == [0, 0, 0]


def test_without_a_job_a_pod_leaves_and_says_why(team: Team) -> None:
    exchange = team.exchange()
    worker = PodWorker(team.pod("ann"), exchange, 1)
    assert worker.advance() and not worker.advance()
    assert worker.left is not None and "there is no job" in worker.left
    assert exchange.failure(JOIN, "ann", 1) == worker.left


@pytest.mark.parametrize(
    ("policy", "asked", "said"),
    [
        ({"models": ("0" * 64,)}, {}, "not among the models that may run here"),
        ({"models": ()}, {}, "not among the models that may run here"),
        ({"models": "approved"}, {}, "is not approved: the pod's owner reads it"),
        ({"modellers": ("ssh-ed25519 AAAA",)}, {}, "it is not signed"),
        ({"minimum_pods": 4}, {}, "it has 3 pods, at least 4 are wanted"),
        ({"maximum_rounds": 2}, {}, "it has 3 rounds, at most 2 are allowed"),
        ({"maximum_epochs": 2}, {}, "it trains 3 epochs, at most 2 are allowed"),
        ({"predictions_may_leave": False}, {"predict": True}, "predictions_may_leave"),
        ({"columns": ("a", "y")}, {"datastructure": {"target": "y", "selected_cols": ["a", "b"]}}, "not allowed: b"),
        ({}, {"datastructure": {"target": "y", "query": "SELECT 1"}}, "a query of its own"),
        ({}, {"pods": ["bob", "cat"]}, "it does not name this pod"),
    ],
)
def test_a_policy_denies_before_a_row_is_read(
    team: Team, policy: dict[str, Any], asked: dict[str, Any], said: str
) -> None:
    federation = team.began(**asked)
    pod = Pod("ann", Unread(team.tables["ann"]), with_policy(**policy))
    worker = PodWorker(pod, federation.exchange, federation.session)
    assert exhausted(worker) == 1
    reason = federation.exchange.failure(JOIN, "ann", federation.session)
    assert reason is not None and reason == worker.left
    assert reason.startswith("pod 'ann' refuses the job 'job-1': ") and said in reason
    assert federation.exchange.joined("ann") is None
    assert not worker.has_joined


def test_too_few_rows_are_a_reason_too(team: Team) -> None:
    team.policies["ann"] = with_policy(minimum_rows=1000)
    federation = team.began()
    worker = worker_of(team, federation)
    worker.advance()
    assert worker.left is not None and "its policy wants at least 1000" in worker.left
    assert federation.exchange.joined("ann") is None


def test_rows_that_changed_since_the_job_began_are_refused(team: Team) -> None:
    federation = team.initialised()
    one_round(federation, Rounds(federation))
    team.tables["bob"].loc[3, "b"] += 1
    worker = worker_of(team, federation, "bob")
    assert exhausted(worker) == 1
    assert worker.left is not None and "the rows of pod 'bob' have changed since the job 'job-1' began" in worker.left
    assert [record.pods for record in trained(team.initialised()).records[1:]] == [("ann", "cat")] * 2


def test_a_pod_that_starts_again_gives_the_same_answers(team: Team) -> None:
    federation = team.initialised()
    one_round(federation, Rounds(federation))
    rounds = Rounds(federation)
    rounds.open()
    federation.reach.work()
    note = federation.exchange.update_note(round_phase(2), "bob")
    assert note is not None
    for file in (team.folder / "exchange" / round_phase(2) / "updates").glob("bob*"):
        file.unlink()

    assert exhausted(worker_of(team, federation, "bob")) == 3  # join, prepare, fit

    again = federation.exchange.update_note(round_phase(2), "bob")
    assert again is not None
    assert (again.delta_sha256, again.metrics, again.train_loss) == (note.delta_sha256, note.metrics, note.train_loss)


def test_a_pod_that_starts_late_leaves_closed_rounds_alone(team: Team) -> None:
    federation = team.initialised()
    one_round(federation, Rounds(federation))
    before = files_below(team.folder / "exchange")
    assert exhausted(worker_of(team, federation)) == 2  # join, prepare
    assert files_below(team.folder / "exchange") == before


def test_a_pod_that_starts_late_is_in_the_round_that_is_open(team: Team) -> None:
    federation = team.initialised()
    rounds = Rounds(federation)
    one_round(federation, rounds)
    one_round(federation, rounds)
    rounds.open()
    assert exhausted(worker_of(team, federation)) == 3  # join, prepare, fit
    assert federation.exchange.has_answer(round_phase(3), "ann")


def test_a_pod_that_is_not_asked_does_not_answer(team: Team) -> None:
    federation = team.initialised(sample=1, quorum=1, epochs=6)
    rounds = Rounds(federation)
    for number in range(1, 7):
        asked = rounds.open()["pods"]
        federation.reach.work()
        answered = [pod for pod in team.names if federation.exchange.has_answer(round_phase(number), pod)]
        assert answered == asked
        rounds.aggregate()
    assert len({record.pods for record in rounds.records}) > 1


def open_round_with(team: Team, order: str, **changes: Any) -> tuple[Federation, str | None]:
    """Round 1 in which ann does what she is told; and why she has no update."""
    federation = team.initialised(**changes)
    team.tell("ann", 1, order)
    Rounds(federation).open()
    federation.reach.work()
    return federation, federation.exchange.failure(ROUND, "ann", federation.session)


def test_a_failed_round_is_tried_again_only_in_another_session(team: Team) -> None:
    federation, reason = open_round_with(team, "raise")
    assert reason is not None and not federation.exchange.has_answer(ROUND, "ann")
    worker = worker_of(team, federation)
    assert exhausted(worker) == 2  # join, prepare; this session has its answer
    (team.gate / "ann.1.raise").unlink()
    worker.session = federation.exchange.begin_session({})
    assert exhausted(worker) == 1
    assert federation.exchange.has_answer(ROUND, "ann")


def test_a_pod_that_answered_a_round_does_not_look_for_its_answer(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = team.initialised()
    worker = worker_of(team, federation)
    exhausted(worker)
    Rounds(federation).open()
    assert worker.advance()
    monkeypatch.delattr(Exchange, "has_answer")
    monkeypatch.delattr(Exchange, "asked")
    assert not worker.advance()


def test_a_pod_that_failed_in_a_round_comes_back_in_the_next(team: Team) -> None:
    federation, _ = open_round_with(team, "raise")
    rounds = Rounds(federation)
    first = rounds.aggregate()
    second = one_round(federation, rounds)
    assert (first.pods, second.pods) == (("bob", "cat"), ("ann", "bob", "cat"))


def test_a_fit_that_takes_longer_than_the_deadline_is_stopped_and_says_so(team: Team) -> None:
    federation, reason = open_round_with(team, "hang", deadline_seconds=2.5)
    assert reason == "pod 'ann' failed to fit: it took longer than the deadline of 2.5 s"
    rounds = Rounds(federation)
    assert rounds.aggregate().missing == {"ann": reason}
    (team.gate / "ann.1.hang").unlink()
    assert one_round(federation, rounds).pods == ("ann", "bob", "cat"), "it goes on with a model that is whole"


def test_a_pod_whose_training_diverged_sends_nothing(team: Team) -> None:
    federation, reason = open_round_with(team, "diverge")
    record = Rounds(federation).aggregate()
    assert record.pods == ("bob", "cat")
    assert record.missing == {"ann": reason}
    assert reason is not None and "parameters are NaN or infinite" in reason and "smaller learning rate" in reason


def test_what_a_pod_sends_depends_on_nobody_who_watches(team: Team) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    with listening(lambda event, values: events.append((event, values))):
        watched = trained(team.initialised())
    alone = trained(Team(team.folder / "unwatched").initialised())
    assert [r.weights.sha256 for r in watched.records] == [r.weights.sha256 for r in alone.records]
    batches = [values for event, values in events if event == "pod_batch" and values["pod"] == "bob"]
    assert {values["round"] for values in batches} == {1, 2, 3}
    fitted = [(values["round"], values["pod"], values["rows"]) for event, values in events if event == "pod_fitted"]
    assert fitted == [(number, pod, 19) for number in (1, 2, 3) for pod in team.names]


@pytest.mark.parametrize("phase", [EVALUATION, PREDICTION])
def test_the_last_phases_are_answered_from_the_parameters_that_are_asked_about(team: Team, phase: str) -> None:
    federation = team.initialised()
    first = Rounds(federation).weights
    zeros = federation.exchange.put_weights(
        {name: torch.zeros_like(value) for name, value in federation.exchange.weights(first).items()}
    )
    rounds = trained(federation)
    assert rounds.weights.sha256 != zeros.sha256
    federation.exchange.ask(phase, Asked(("ann",), zeros))
    federation.reach.work()
    assert not federation.exchange.has_answer(phase, "bob")
    if phase == PREDICTION:
        found = federation.exchange.predictions("ann")
        assert found is not None and found.preds.shape == (24, 2)
        np.testing.assert_allclose(found.preds, 0.5)
    else:
        metrics = federation.exchange.evaluation("ann")
        assert metrics is not None and set(metrics.mean()) == {"Accuracy"}


def test_predictions_do_not_leave_where_they_may_not(team: Team) -> None:
    team.policies["ann"] = with_policy(predictions_may_leave=False)
    federation = team.initialised()
    rounds = trained(federation)
    federation.exchange.ask(PREDICTION, Asked(team.names, rounds.weights))
    federation.reach.work()
    assert federation.exchange.predictions("ann") is None
    reason = federation.exchange.failure(PREDICTION, "ann", federation.session)
    assert reason is not None and "does not let predictions leave" in reason
    assert federation.exchange.predictions("bob") is not None


@pytest.mark.parametrize(
    "call",
    [lambda worker: worker.job, lambda worker: worker._asked_weights()],
    ids=["its job", "its parameters"],
)
def test_a_worker_that_was_asked_nothing_knows_nothing(team: Team, call: Callable[[PodWorker], Any]) -> None:
    with pytest.raises(ConfigurationError, match="pod 'ann'"):
        call(PodWorker(Pod("ann", DataFrameSource(team.tables["ann"]), OPEN), team.exchange(), 1))
