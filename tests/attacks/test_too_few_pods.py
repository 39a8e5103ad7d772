"""Fewer pods than the job's minimum: a named end at every stage, and nothing published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bitfount_model.errors import QuorumError
from tasks.federated import pod_worker
from tasks.federated.exchange import EVALUATION, round_phase
from tasks.federated.finish import ask_for_evaluation, collect_evaluation
from tasks.federated.rounds import Rounds
from tasks.federated.start import initialise, join_pods
from tests.tasks.federated.team import Team, files_below, one_round, plain_step, trained, with_policy
from tests.tasks.federated.test_secure_rounds import PODS, SECURE, STEPS, closed_while, dropping


@pytest.fixture(autouse=True)
def without_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_worker, "step", plain_step)


def published(team: Team) -> list[str]:
    """What others could take for a result."""
    return [name for name in files_below(team.folder / "store") if name.startswith(("rounds/", "fit/"))]


def test_too_few_that_join(tmp_path: Path) -> None:
    team = Team(tmp_path, policies={"ann": with_policy(models=("0" * 64,)), "bob": with_policy(models=("0" * 64,))})
    federation = team.began()
    federation.reach.work()
    with pytest.raises(QuorumError, match="1 of 3 pods answered, the quorum is 2"):
        join_pods(federation)
    assert federation.exchange.common() is None and federation.exchange.start() is None
    assert published(team) == []


@pytest.mark.parametrize("pod", ["ann", "bob", "cat"])
def test_fewer_pods_in_the_job_than_a_pod_wants(tmp_path: Path, pod: str) -> None:
    team = Team(tmp_path, policies={pod: with_policy(minimum_pods=4)})
    federation = team.began(quorum=3)
    federation.reach.work()
    with pytest.raises(QuorumError, match="it has 3 pods, at least 4 are wanted"):
        join_pods(federation)
    assert federation.exchange.joined(pod) is None


def test_too_few_that_send_statistics(tmp_path: Path) -> None:
    team = Team(tmp_path)
    federation = team.began(minimum_statistics_rows=10**6)
    federation.reach.work()
    joined = join_pods(federation)
    federation.reach.work()
    with pytest.raises(QuorumError, match="the quorum is 2"):
        initialise(federation, joined["missing"])
    assert federation.exchange.start() is None
    assert published(team) == []


def test_too_few_that_train(tmp_path: Path) -> None:
    team = Team(tmp_path)
    federation = team.initialised()
    for pod in ("ann", "bob"):
        team.tell(pod, 1, "raise")
    rounds = Rounds(federation)
    before = rounds.weights
    with pytest.raises(QuorumError, match="round 1: 1 of 3 pods answered, the quorum is 2"):
        one_round(federation, rounds)
    assert rounds.weights == before and published(team) == []
    assert not federation.exchange.is_closed(round_phase(1))


@pytest.mark.parametrize("step", STEPS)
def test_too_few_at_each_step_of_a_secure_sum(tmp_path: Path, step: str) -> None:
    team = Team(tmp_path, PODS)
    with pytest.raises(QuorumError, match="took every step of the secure sum so far, it needs"):
        closed_while(team, dict.fromkeys(("ann", "bob", "cat"), step))
    assert published(team) == []


def test_too_few_that_evaluate(tmp_path: Path) -> None:
    team = Team(tmp_path)
    federation, reach = dropping(team, secure_aggregation=False)
    rounds = trained(replace(federation, reach=reach))
    reach.dropped = frozenset(("ann", "bob", "cat")[:2])
    ask_for_evaluation(federation, rounds.weights)
    reach.work()
    with pytest.raises(QuorumError, match="1 of 3 pods answered, the quorum is 3"):
        collect_evaluation(federation)
    assert not federation.exchange.is_closed(EVALUATION)
    assert not [name for name in files_below(team.folder / "store") if name.startswith("steps/evaluate")]


def test_secure_jobs_have_three_pods_at_least() -> None:
    assert SECURE["quorum"] == 3
