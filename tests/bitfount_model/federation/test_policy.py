"""What a pod's owner allows: nothing that is not said, and every reason for a refusal at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitfount_model.errors import ConfigurationError
from bitfount_model.federation.book import Approval
from bitfount_model.federation.job import EVALUATE, FIT, PREDICT, FederatedJob
from bitfount_model.federation.policy import PodPolicy, policy_from_json, refusals
from bitfount_model.federation.privacy import PrivacyBudget, PrivacySettings, epsilon_spent
from bitfount_model.federation.sampling import sample_pods

SHA256 = "a" * 64
# RFC 8032, section 7.1, test 1, as OpenSSH writes it.
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea"
APPROVAL = Approval(SHA256, "Net", "model.py", "owner@host", "2026-11-29T20:00:00+00:00", 2000)
POLICY: dict[str, Any] = {
    "columns": "all",
    "models": "all",
    "minimum_rows": 10,
    "maximum_rounds": 5,
    "minimum_pods": 2,
}
OPEN = PodPolicy("all", 1, 10**6, 10**6, 10**6, 1, models="all", predictions_may_leave=True)
JOB = FederatedJob(
    job_id="j",
    pods=("ann", "bob"),
    model_sha256=SHA256,
    datastructure={"target": "y", "selected_cols": ["a", "b"]},
    between_updates=1,
    seed=1,
    quorum=1,
    epochs=4,
)


def refused(policy: PodPolicy, **changes: Any) -> list[str]:
    return refusals(policy, replace(JOB, **changes), "ann")


def test_what_is_not_said_is_denied() -> None:
    policy = policy_from_json({name: value for name, value in POLICY.items() if name != "models"})
    assert (policy.models, policy.modellers) == ("approved", "all")
    assert any("is not approved" in reason for reason in refused(policy))
    assert (policy.predictions_may_leave, policy.errors_may_leave, policy.tables) == (False, False, ())
    assert (policy.maximum_epochs, policy.maximum_steps) == (0, 0)
    assert "it trains 4 epochs, at most 0 are allowed" in refused(policy)
    assert "it trains 4 steps, at most 0 are allowed" in refused(policy, epochs=None, steps=4)


def test_every_key_is_taken_as_written() -> None:
    value = {
        **POLICY,
        "columns": ["a", "y"],
        "models": [SHA256],
        "maximum_epochs": 7,
        "maximum_steps": 8,
        "tables": ["visits"],
        "predictions_may_leave": True,
        "errors_may_leave": True,
        "modellers": [KEY],
    }
    assert policy_from_json(value) == PodPolicy(
        columns=("a", "y"),
        minimum_rows=10,
        maximum_rounds=5,
        maximum_epochs=7,
        maximum_steps=8,
        minimum_pods=2,
        models=(SHA256,),
        predictions_may_leave=True,
        errors_may_leave=True,
        tables=("visits",),
        modellers=(KEY,),
    )
    for word in ("all", "approved"):
        assert policy_from_json({**POLICY, "models": word}).models == word


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("columns", []),
        ("columns", "some"),
        ("columns", [1]),
        ("columns", None),
        ("models", []),
        ("models", SHA256),
        ("models", None),
        ("columns", "approved"),
        ("modellers", []),
        ("modellers", "approved"),
        ("modellers", "ssh-ed25519"),
        ("modellers", [KEY, "ssh-ed25519 AAAA"]),
        ("modellers", [SHA256]),
        ("minimum_rows", 0),
        ("maximum_rounds", 0),
        ("minimum_pods", 0),
        ("maximum_epochs", -1),
        ("maximum_steps", 1.5),
        ("tables", "visits"),
        ("predictions_may_leave", "perhaps"),
        ("errors_may_leave", "perhaps"),
        ("error_may_leave", True),
    ],
)
def test_a_wrong_value_is_named(key: str, wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=key):
        policy_from_json({**POLICY, key: wrong})


@pytest.mark.parametrize("key", [key for key in POLICY if key != "models"])
def test_no_limit_may_be_left_open(key: str) -> None:
    with pytest.raises(ConfigurationError, match=key):
        policy_from_json({name: value for name, value in POLICY.items() if name != key})


def test_only_sources_that_are_listed_run() -> None:
    assert refused(OPEN) == []
    assert refused(replace(OPEN, models=("b" * 64, SHA256))) == []
    for models in ((), ("b" * 64,), (SHA256[:16],)):
        assert refused(replace(OPEN, models=models)) == [
            f"the source of its model (sha256 {SHA256}) is not among the models that may run here"
        ]
    assert len(refusals(PodPolicy("all", 1, 9, 9, 9, 1), JOB, "ann")) == 1, "a policy that names no models runs none"


@pytest.mark.parametrize(
    ("approval", "asked", "said"),
    [
        (APPROVAL, None, None),
        (APPROVAL, "Net", None),
        (APPROVAL, "Other", "it asks for the class Other, and of that source the class Net is approved"),
        (APPROVAL, "net", "it asks for the class net, and of that source the class Net is approved"),
        (None, "Net", "is not approved"),
        (replace(APPROVAL, sha256="b" * 64), "Net", "is not approved"),
    ],
)
def test_only_the_class_that_was_approved_of_the_source_that_was_approved_runs(
    approval: Approval | None, asked: str | None, said: str | None
) -> None:
    policy, job = replace(OPEN, models="approved"), replace(JOB, model_class=asked)
    reasons = refusals(policy, job, "ann", approval, "s3://bucket/a job/model.py")
    if said is None:
        assert reasons == []
        return
    (reason,) = reasons
    assert said in reason
    if "not approved" in said:
        assert SHA256 in reason
        assert "bitfount-flows pod approve POD.yaml 's3://bucket/a job/model.py'" in reason
    assert refusals(replace(policy, models="all"), job, "ann", approval) == []
    assert len(refusals(replace(policy, models=("c" * 64,)), job, "ann", APPROVAL)) == 1, "a list is a list"


@pytest.mark.parametrize(
    ("operation", "predict", "leaves"), [(FIT, False, False), (FIT, True, True), (PREDICT, False, True)]
)
def test_predictions_leave_only_where_they_may(operation: str, predict: bool, leaves: bool) -> None:
    closed = replace(OPEN, predictions_may_leave=False)
    found = refused(closed, operation=operation, predict=predict)
    assert found == (["it asks for predictions of rows, which may not leave (predictions_may_leave)"] if leaves else [])
    assert refused(OPEN, operation=operation, predict=predict) == []


@pytest.mark.parametrize("operation", [EVALUATE, PREDICT])
@pytest.mark.parametrize("length", [{"epochs": 99}, {"epochs": None, "steps": 99}])
def test_limits_on_training_do_not_bind_a_job_that_trains_nothing(operation: str, length: dict[str, Any]) -> None:
    narrow = replace(OPEN, maximum_rounds=1, maximum_epochs=0, maximum_steps=0)
    assert refused(narrow, operation=operation, **length) == []
    assert len(refused(narrow, operation=FIT, **length)) == 2


@pytest.mark.parametrize(
    ("datastructure", "hidden"),
    [
        ({"target": "y", "selected_cols": ["a"]}, None),
        ({"target": "y", "selected_cols": ["a", "b"]}, "b"),
        ({"target": "z", "selected_cols": ["a"]}, "z"),
        ({"target": ["y", "z"], "selected_cols": ["a"]}, "z"),
        ({"target": "y", "selected_cols": ["a"], "image_cols": ["scan"]}, "scan"),
        ({"target": "y", "selected_cols": ["a"], "loss_weights_col": "w"}, "w"),
        ({"target": "y", "selected_cols": ["a"], "ignore_classes_col": "c"}, "c"),
    ],
)
def test_a_column_that_is_not_allowed_is_named_whatever_it_is_for(
    datastructure: dict[str, Any], hidden: str | None
) -> None:
    found = refused(replace(OPEN, columns=("a", "y")), datastructure=datastructure)
    assert found == ([] if hidden is None else [f"it uses columns that are not allowed: {hidden}"])


@pytest.mark.parametrize(
    "datastructure", [{"target": "y"}, {"target": "y", "selected_cols": []}, {"ignore_cols": ["c"]}]
)
def test_where_only_some_columns_are_allowed_a_job_must_name_its_own(datastructure: dict[str, Any]) -> None:
    (reason,) = refused(replace(OPEN, columns=("a", "y")), datastructure=datastructure)
    assert "name them under selected_cols" in reason


@given(
    pods=st.integers(1, 9),
    rounds=st.integers(1, 9),
    limits=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 9)),
)
def test_a_job_within_all_limits_is_taken_and_no_other(pods: int, rounds: int, limits: tuple[int, int, int]) -> None:
    minimum_pods, maximum_rounds, maximum_epochs = limits
    policy = replace(OPEN, minimum_pods=minimum_pods, maximum_rounds=maximum_rounds, maximum_epochs=maximum_epochs)
    names = ("ann", *(f"pod-{number}" for number in range(1, pods)))
    reasons = refused(policy, pods=names, epochs=rounds)
    assert len(reasons) == (pods < minimum_pods) + (rounds > maximum_rounds) + (rounds > maximum_epochs)


def test_every_reason_is_said() -> None:
    closed = PodPolicy(("a",), 1, 1, 1, 1, 3)
    datastructure = {"target": "y", "selected_cols": ["a", "b"], "query": "SELECT 1"}
    reasons = refusals(closed, replace(JOB, predict=True, datastructure=datastructure), "zoe")
    words = ("does not name this pod", "not approved", "predictions", "2 pods", "4 rounds", "4 epochs", "b, y", "query")
    assert len(reasons) == len(words)
    assert all(word in reason for word, reason in zip(words, reasons, strict=True))


BUDGET: dict[str, Any] = {"epsilon": 3, "delta": 1e-5}


def test_a_budget_lets_nothing_leave_that_it_does_not_name() -> None:
    assert policy_from_json(POLICY).privacy is None
    assert policy_from_json({**POLICY, "privacy": BUDGET}).privacy == PrivacyBudget(3.0, 1e-5, False, False, False)
    named = {"required": True, "metrics_may_leave": True, "statistics_may_leave": True}
    assert policy_from_json({**POLICY, "privacy": BUDGET | named}).privacy == PrivacyBudget(3.0, 1e-5, True, True, True)


@pytest.mark.parametrize(
    "wrong",
    [{"epsilon": 0}, {"epsilon": -1}, {"epsilon": "NaN"}, {"delta": 0}, {"delta": 1}, {"sigma": 1}, {"required": "x"}],
)
def test_what_is_no_budget_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"privacy.*{next(iter(wrong))}"):
        policy_from_json({**POLICY, "privacy": BUDGET | wrong})


def test_rounds_that_do_not_ask_the_pod_cost_it_nothing() -> None:
    asked = PrivacySettings(clip=1.0, noise_multiplier=10.0, delta=1e-5)
    pods = ("ann", "bob", "cat", "dan")
    sampled = replace(JOB, epochs=40, pods=pods, sample=1, privacy=asked)
    rounds = sum("ann" in sample_pods(JOB.seed, number, pods, 1) for number in range(1, 41))
    spent = epsilon_spent([10.0] * rounds, 1e-5)
    enough = replace(OPEN, privacy=PrivacyBudget(spent, 1e-5, statistics_may_leave=True))
    assert refusals(enough, sampled, "ann") == []
    (reason,) = refusals(replace(enough, privacy=replace(enough.privacy, epsilon=spent * 0.999)), sampled, "ann")
    assert f"its {rounds} updates of this pod would spend" in reason


def test_a_job_that_trains_nothing_spends_nothing() -> None:
    asked = PrivacySettings(clip=1.0, noise_multiplier=0.001, delta=1e-5)
    policy = replace(OPEN, privacy=PrivacyBudget(0.01, 1e-5, required=True, statistics_may_leave=True))
    assert refused(policy, operation=EVALUATE, privacy=asked) == []
