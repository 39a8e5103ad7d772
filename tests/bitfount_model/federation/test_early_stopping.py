"""Early stopping: a fold over the rounds' metrics, that can be stored between any two of them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitfount_model.errors import ConfigurationError, SerializationError
from bitfount_model.federation import EarlyStopping, EarlyStoppingState


def after(rule: EarlyStopping, values: list[float | None]) -> list[EarlyStoppingState]:
    """The states after rounds 1, 2, ...; None is a round without the metric."""
    state, states = EarlyStoppingState(), []
    for round_number, value in enumerate(values, start=1):
        state = rule.update(state, round_number, {"other": 1.0} if value is None else {rule.metric: value})
        states.append(state)
    return states


def test_it_stops_after_so_many_rounds_without_improvement_and_knows_the_best() -> None:
    states = after(EarlyStopping("loss", patience=2), [3.0, 2.0, 2.5, 1.0, 1.0, 1.5])
    assert [state.stopped for state in states] == [False, False, False, False, False, True]
    assert [state.rounds_without_improvement for state in states] == [0, 0, 1, 0, 1, 2]
    assert (states[-1].best_round, states[-1].best_value, states[-1].last_round) == (4, 1.0, 6)


def test_higher_is_better_where_the_mode_says_so() -> None:
    states = after(EarlyStopping("AUC", patience=1, mode="max"), [0.5, 0.7, 0.6])
    assert [state.best_round for state in states] == [1, 2, 2]
    assert states[-1].stopped


def test_a_change_must_be_larger_than_the_minimum_to_count() -> None:
    states = after(EarlyStopping("loss", patience=9, minimum_change=0.25), [2.0, 1.75, 1.5, 1.5])
    assert [state.best_round for state in states] == [1, 1, 3, 3]


@given(
    st.lists(st.floats(-100, 100) | st.sampled_from([math.nan, math.inf, -math.inf]), min_size=1, max_size=12),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.5]),
    st.sampled_from(["min", "max"]),
)
def test_it_agrees_with_a_plain_loop(values: list[float], patience: int, change: float, mode: Any) -> None:
    best, waited, stopped, best_round = None, 0, False, None
    for round_number, value in enumerate(values, start=1):
        gain = math.inf if best is None else (best - value if mode == "min" else value - best)
        if math.isfinite(value) and gain > change:
            best, waited, best_round = value, 0, round_number
        else:
            waited += 1
        stopped = stopped or waited >= patience
    found = after(EarlyStopping("m", patience, change, mode), values)[-1]
    assert (found.best_value, found.rounds_without_improvement, found.stopped) == (best, waited, stopped)
    assert found.best_round == best_round


@pytest.mark.parametrize(
    ("value", "note"),
    [
        (math.nan, "'loss' is nan in round 2: counted as no improvement"),
        (-math.inf, "'loss' is -inf in round 2"),
        (None, "no pod reported 'loss' in round 2"),
    ],
)
def test_a_metric_that_is_nan_or_missing_counts_as_no_improvement_and_is_named(value: float | None, note: str) -> None:
    states = after(EarlyStopping("loss", patience=2), [1.0, value, 0.5])
    assert note in (states[1].note or "")
    assert states[1].rounds_without_improvement == 1
    assert states[2] == EarlyStoppingState(last_round=3, best_round=3, best_value=0.5)


def test_a_job_whose_metric_is_never_a_number_stops_too() -> None:
    states = after(EarlyStopping("loss", patience=3), [math.nan] * 3)
    assert states[-1].stopped
    assert (states[-1].best_round, states[-1].best_value) == (None, None)


def test_an_unknown_metric_is_refused_after_the_first_round_with_those_there_are() -> None:
    rule = EarlyStopping("los", patience=1, mode="min")
    with pytest.raises(ConfigurationError, match="round 1 has no metric 'los', did you mean 'loss'"):
        rule.update(EarlyStoppingState(), 1, {"loss": 1.0, "AUC": 0.5})
    with pytest.raises(ConfigurationError, match="has no metric 'los'; there are: 'AUC', 'F1'"):
        rule.update(EarlyStoppingState(), 1, {"AUC": 0.5, "F1": 0.5})
    with pytest.raises(ConfigurationError, match="there are none; a metric needs pods with validation rows"):
        rule.update(EarlyStoppingState(), 1, {})


def test_a_round_is_looked_at_once() -> None:
    rule = EarlyStopping("loss", patience=1)
    state = rule.update(EarlyStoppingState(), 4, {"loss": 1.0})
    for round_number in (4, 3):
        with pytest.raises(ConfigurationError, match=f"round {round_number} comes after round 4"):
            rule.update(state, round_number, {"loss": 1.0})


@pytest.mark.parametrize(
    ("metric", "lower"),
    [
        ("loss", True), ("avg_validation_loss", True), ("Brier Loss", True), ("MSE", True), ("MAE", True),
        ("RMSE", True), ("KS", True), ("val-error", True), ("dice_loss", True), ("AUC", False), ("F1", False),
        ("Recall", False), ("Precision", False), ("Accuracy", False), ("val_accuracy", False), ("R2", False),
        ("IoU", False), ("Dice", False),
    ],
)  # fmt: skip
def test_auto_knows_the_default_metrics_and_losses(metric: str, lower: bool) -> None:
    assert EarlyStopping(metric, patience=1).lower_is_better is lower
    assert EarlyStopping(metric, patience=1, mode="max").lower_is_better is False


def test_auto_does_not_guess() -> None:
    with pytest.raises(ConfigurationError, match="\"auto\" does not know whether 'closeness' is better low or high"):
        EarlyStopping("closeness", patience=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "", "patience": 0}, "metric is ''.*patience is 0"),
        ({"metric": "loss", "patience": True}, "patience is True"),
        ({"metric": "loss", "patience": 1, "minimum_change": -1}, "minimum_change is -1"),
        ({"metric": "loss", "patience": 1, "minimum_change": math.nan}, "minimum_change is nan"),
        ({"metric": "loss", "patience": 1, "mode": "best"}, "mode is 'best'"),
    ],
)
def test_bad_settings_are_refused_together(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        EarlyStopping(**arguments)


@given(st.lists(st.floats() | st.none(), min_size=1, max_size=6))
def test_a_state_is_stored_exactly_and_updating_it_leaves_it_as_it_was(values: list[float | None]) -> None:
    rule = EarlyStopping("loss", patience=2)
    state = after(rule, [1.0, *values])[-1]
    stored = json.dumps(state.to_json(), allow_nan=False)
    assert EarlyStoppingState.from_json(json.loads(stored)) == state
    one, two = (rule.update(state, 100, {"loss": 0.1}) for _ in range(2))
    assert one == two
    assert json.dumps(state.to_json()) == stored


@pytest.mark.parametrize(
    "change",
    [{"x": 1}, {"stopped": None}, {"best_value": 1.0}, {"rounds_without_improvement": -1}, {"last_round": 1.5}],
)
def test_a_state_that_is_none_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SerializationError, match=next(iter(change)).replace("best_value", "best_round")):
        EarlyStoppingState.from_json({**EarlyStoppingState().to_json(), **change})
