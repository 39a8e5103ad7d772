"""A private job from the first question to what MLflow and the report say of it: what leaves, what is refused, what is spent."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitfount_model import codec
from bitfount_model.data import digest
from bitfount_model.errors import PrivacyBudgetError, QuorumError
from bitfount_model.federation.policy import PodPolicy
from bitfount_model.federation.privacy import PrivacyBudget, PrivacySettings, epsilon_spent
from bitfount_model.federation.privacy_ledger import PrivacyLedger
from tasks.federated.contents import pod_points, round_points
from tasks.federated.exchange import JOIN, Exchange
from tasks.federated.finish import ask_for_evaluation, collect_evaluation
from tasks.federated.round_record import read_records
from tasks.federated.rounds import Rounds
from tasks.report.federated import privacy
from tests.tasks.federated.team import SOURCE, Team, one_round, trained, with_policy

PRIVATE = {"clip": 0.5, "noise_multiplier": 20.0, "delta": 1e-6}
LAYER_NORM = SOURCE.replace(b"nn.BatchNorm1d(size)", b"nn.LayerNorm(size)")
BUDGET = PrivacyBudget(epsilon=2.0, delta=1e-5, required=True, statistics_may_leave=True)
NAMES = ("ann", "bob", "cat")


@pytest.fixture
def private(team: Team) -> Team:
    """Three pods that take part in private jobs only."""
    return with_budget(team, BUDGET)


def with_budget(team: Team, budget: PrivacyBudget | None) -> Team:
    policies: dict[str, PodPolicy] = {name: with_policy(privacy=budget) for name in NAMES}
    return replace(team, policies=policies, source=LAYER_NORM)


def refusal(team: Team, **changes: Any) -> str:
    """Why the pods do not join a job."""
    federation = team.began(**changes)
    federation.reach.work()
    return federation.exchange.failure(JOIN, "ann", federation.session) or ""


def note(exchange: Exchange, pod: str, number: int = 1) -> dict[str, Any]:
    """What lies in the exchange beside an update."""
    value: dict[str, Any] = json.loads(exchange.store.get(f"rounds/{number:05d}/updates/{pod}.json"))
    return value


def test_a_job_tells_what_each_pod_has_spent_after_each_round(private: Team) -> None:
    federation = private.initialised(privacy=PRIVATE)
    rounds = trained(federation)
    assert len(rounds.records) == 3 and all(record.pods == NAMES for record in rounds.records)
    for number, record in enumerate(read_records(federation.store), start=1):
        wanted = epsilon_spent([20.0] * number, 1e-6)
        assert {pod: (spent.epsilon, spent.delta) for pod, spent in record.spent.items()} == dict.fromkeys(
            NAMES, (wanted, 1e-6)
        )
        points = {point.key: point.value for point in pod_points("ann", record)}
        assert (points["privacy/epsilon"], points["privacy/delta"]) == (wanted, 1e-6)
        assert {point.key: point.value for point in round_points(record)}["privacy/largest_epsilon"] == wanted
    section = privacy(rounds.records, federation.job.to_json(), {})
    assert section.tables[0].rows == tuple((pod, f"{wanted:.4g}", "1e-06") for pod in NAMES)
    assert "Gaussian noise of standard deviation 10 " in section.words[0] and "metrics" not in section.words[1]


def test_no_metric_and_no_loss_leaves_beside_the_update(private: Team) -> None:
    federation = private.initialised(privacy=PRIVATE)
    rounds = trained(federation)
    for pod in NAMES:
        said = note(federation.exchange, pod)
        assert (said["metrics"], said["train_loss"]) == ({}, None)
    ask_for_evaluation(federation, rounds.weights)
    federation.reach.work()
    evaluated = collect_evaluation(federation).values
    assert (evaluated["metrics"], evaluated["by_pod"], evaluated["missing"]) == ({}, {}, {})


def test_metrics_leave_where_the_owner_lets_them(team: Team) -> None:
    team = with_budget(team, replace(BUDGET, metrics_may_leave=True))
    early = {"metric": "Accuracy", "patience": 5}
    federation = team.initialised(privacy=PRIVATE, best={"metric": "Accuracy"}, early_stopping=early)
    rounds = trained(federation)
    assert rounds.best is not None
    assert note(federation.exchange, "ann")["train_loss"] is not None
    assert set(rounds.records[0].by_pod["ann"]) >= {"Accuracy"}


def test_the_same_job_twice_has_the_same_training_and_other_noise(private: Team, tmp_path: Path) -> None:
    deltas = []
    for place in ("first", "second"):
        team = replace(private, folder=tmp_path / place)
        federation = team.initialised(privacy=PRIVATE, hyperparameters={})
        Rounds(federation).open()
        federation.reach.work()
        said = federation.exchange.update_note("rounds/00001", "ann")
        assert said is not None
        content = federation.exchange.store.get(f"rounds/00001/updates/ann.{said.delta_sha256[:16]}.safetensors")
        deltas.append(codec.decode(content).params)
    assert deltas[0].keys() == deltas[1].keys()
    assert all(not torch.equal(value, deltas[1][name]) for name, value in deltas[0].items())


def test_with_hardly_any_noise_and_a_wide_clip_the_weights_are_those_of_the_job_without(
    team: Team, tmp_path: Path
) -> None:
    wide = PrivacyBudget(epsilon=1e12, delta=1e-5, statistics_may_leave=True)
    results = []
    for place, asked in (("private", {"clip": 1e3, "noise_multiplier": 1e-3, "delta": 1e-5}), ("open", None)):
        built = replace(with_budget(team, wide), folder=tmp_path / place)
        federation = built.initialised(privacy=asked, hyperparameters={}, epochs=1)
        one_round(federation, rounds := Rounds(federation))
        results.append(rounds.state.parameters)
    for name, value in results[0].items():
        # Three pods' noise of standard deviation 1, averaged: 8 of its standard deviations.
        np.testing.assert_allclose(value.numpy(), results[1][name].numpy(), atol=8 / np.sqrt(3))
        assert not torch.equal(value, results[1][name])


def test_a_pod_that_wants_noise_refuses_jobs_without(private: Team) -> None:
    assert "its updates have no noise, and this pod takes part in private jobs only" in refusal(private)


@pytest.mark.parametrize(
    ("budget", "changes", "why"),
    [
        (None, {}, "it is a private job, and this pod's policy has no budget for it"),
        (replace(BUDGET, statistics_may_leave=False), {}, "it asks for categories and statistics of columns"),
        (BUDGET, {"best": {"metric": "Accuracy"}}, "it looks at validation metrics"),
        (BUDGET, {"early_stopping": {"metric": "Accuracy", "patience": 1}}, "it looks at validation metrics"),
        (replace(BUDGET, epsilon=0.5), {}, "its 3 updates of this pod would spend epsilon .* and the budget is 0.5"),
    ],
)
def test_what_a_policy_does_not_allow_in_a_private_job_is_refused_by_name(
    team: Team, budget: PrivacyBudget | None, changes: dict[str, Any], why: str
) -> None:
    found = refusal(with_budget(team, budget), privacy=PRIVATE, **changes)
    assert re.search(why, found)


def test_a_model_with_running_statistics_is_refused_with_what_to_use_instead(private: Team) -> None:
    with pytest.raises(QuorumError, match="running_mean.*use GroupNorm or LayerNorm"):
        federation = replace(private, source=SOURCE).initialised(privacy=PRIVATE)
        trained(federation)


def test_a_budget_that_is_spent_ends_the_pods_part_with_its_reason(private: Team) -> None:
    """Another job has spent most of it since this one was looked at."""
    federation = private.initialised(privacy=PRIVATE)
    rounds = Rounds(federation)
    one_round(federation, rounds)
    ledger = PrivacyLedger(private.folder / "state" / "bob")
    with pytest.raises(PrivacyBudgetError):
        while True:
            ledger.spend("other", 1, PrivacySettings(**PRIVATE), BUDGET)
    record = one_round(federation, rounds)
    assert record.pods == ("ann", "cat")
    assert "its privacy budget is epsilon 2 at delta 1e-05" in record.missing["bob"]


def test_rows_are_told_apart_by_a_digest_that_nobody_else_can_make(private: Team) -> None:
    for _ in range(2):  # sessions of the same job: who comes back is known by it
        federation = private.began(privacy=PRIVATE)
        federation.reach.work()
    joined = federation.exchange.joined("ann")
    ledger = PrivacyLedger(private.folder / "state" / "ann")
    assert joined is not None and joined.rows.digest == ledger.keyed_digest(f"ann/{digest(private.tables['ann'])}")
