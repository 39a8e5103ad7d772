"""A round's mean, made one update at a time: the same bits as all at once, and sums of metrics with their weights."""

from __future__ import annotations

import json
import math
import tracemalloc
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitfount_model.errors import ParameterError, SerializationError
from bitfount_model.federation import MetricSums, RunningMean, apply_mean
from bitfount_model.parameters import snapshot
from bitfount_model.updates import apply_updates
from tests.bitfount_model.named_tensors import FLOATS, INTEGERS, assert_equal, copies, network, tensors

WEIGHTS = st.one_of(st.integers(1, 10**6), st.floats(1e-9, 1e9), st.just(0))


def streamed(
    base: dict[str, Tensor], updates: list[dict[str, Tensor]], weights: list[Any] | None = None
) -> dict[str, Tensor]:
    running = running_mean(base, updates, weights)
    mean = running.mean()
    moved = apply_mean(base, mean)
    assert_equal(running_mean(base, updates, weights).take_mean(), mean)
    assert_equal(running.take_moved(), moved)  # in the memory of the sums: asked last
    return moved


def running_mean(
    base: dict[str, Tensor], updates: list[dict[str, Tensor]], weights: list[Any] | None = None, first: int = 0
) -> RunningMean:
    running = RunningMean(base, weighted=weights is not None)
    for position, (update, weight) in enumerate(zip(updates, weights or [1] * len(updates), strict=True)):
        running.add(f"pod-{first + position}", update, weight)
    return running


def outcome(call: Any, *arguments: Any) -> dict[str, Tensor] | None:
    try:
        return call(*arguments)
    except ParameterError:
        return None


# --- the same as all at once ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, torch.bool])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_one_update_at_a_time_gives_the_bits_of_all_at_once(dtype: torch.dtype, data: st.DataObject) -> None:
    number = data.draw(st.integers(1, 5))
    base = {"w": data.draw(tensors(dtype, 3, 0, 20)), "1.running_var": data.draw(tensors(dtype, 2, 0, 1))}
    updates = [{name: data.draw(tensors(dtype, len(value))) for name, value in base.items()} for _ in range(number)]
    weights = data.draw(st.none() | st.lists(WEIGHTS, min_size=number, max_size=number).filter(any))
    kept = copies(base), [copies(update) for update in updates]
    want = outcome(apply_updates, base, updates, weights)
    found = outcome(streamed, base, updates, weights)
    if want is None:
        assert found is None  # an integer that leaves its range
    else:
        assert found is not None
        assert_equal(found, want)
        assert_equal(found, streamed(base, updates, weights))
    assert_equal(base, kept[0])
    for update, before in zip(updates, kept[1], strict=True):
        assert_equal(update, before)


def test_a_real_network_over_the_edges_of_blocks_gives_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(5)
    base = snapshot(network()) | {
        str(n): torch.randn(n, generator=generator) for n in (65_535, 65_536, 65_537, 150_001)
    }
    base |= {"transposed": torch.randn(300, 400, generator=generator).T, "empty": torch.zeros(0, 3)}
    updates = [
        {n: torch.randn(v.shape, generator=generator) if v.is_floating_point() else v + 3 for n, v in base.items()}
        for _ in range(4)
    ]
    for weights in (None, [301, 7, 1000, 55], [0.1, 1 / 3, 1e-7, 12.5]):
        assert_equal(streamed(base, updates, weights), apply_updates(base, updates, weights))


@pytest.mark.parametrize("weights", [[1e308, 1e308], [5e-324, 5e-324], [1e-300, 3e-300], [1, 1e15], [2**60, 2**60 + 1]])
def test_very_large_and_very_small_weights_neither_overflow_nor_vanish(weights: list[float]) -> None:
    base = {"w": torch.zeros(1), "n": torch.tensor([1])}
    updates = [{"w": torch.tensor([1e30]), "n": torch.tensor([2])}, {"w": torch.tensor([3e30]), "n": torch.tensor([4])}]
    assert_equal(streamed(base, updates, weights), apply_updates(base, updates, weights))
    assert_equal(streamed(base, updates, weights[::-1]), apply_updates(base, updates, weights[::-1]))


def test_plain_averaging_counts_every_pod_once_whatever_its_rows() -> None:
    base, updates = {"w": torch.zeros(1)}, [{"w": torch.tensor([1.0])}, {"w": torch.tensor([4.0])}]
    plain, weighted = RunningMean(base, weighted=False), RunningMean(base)
    for pod, update, rows in (("a", updates[0], 300), ("b", updates[1], 100)):
        plain.add(pod, update, rows)
        weighted.add(pod, update, rows)
    assert plain.mean()["w"].item() == 2.5
    assert plain.weight == 2
    assert weighted.mean()["w"].item() == 1.75
    assert weighted.weight == 400


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=4), st.integers(1, 1000))
def test_one_pod_of_three_hundred_rows_is_three_pods_of_a_hundred(values: list[float], rows: int) -> None:
    base, update = {"w": torch.ones(len(values))}, {"w": torch.tensor(values)}
    other = {"w": torch.linspace(-1, 1, len(values))}
    one = streamed(base, [update, other], [3 * rows, 17])
    three = streamed(base, [update, update, update, other], [rows, rows, rows, 17])
    torch.testing.assert_close(one["w"], three["w"], rtol=1e-7, atol=1e-12)


def test_the_mean_is_float64_before_it_is_applied_and_exact_dtypes_stay() -> None:
    base = {"w": torch.zeros(1), "n": torch.tensor(5), "ready": torch.tensor([False])}
    updates = [
        {"w": torch.tensor([0.1]), "n": torch.tensor(1), "ready": torch.tensor([True])},
        {"w": torch.tensor([0.2]), "n": torch.tensor(2), "ready": torch.tensor([False])},
    ]
    mean = running_mean(base, updates).mean()
    assert {name: value.dtype for name, value in mean.items()} == {
        "w": torch.float64,
        "n": torch.int64,
        "ready": torch.bool,
    }
    assert mean["w"].item() == (float(np.float32(0.1)) + float(np.float32(0.2))) / 2
    assert mean["n"].item() == round(Fraction(3, 2)) == 2
    assert mean["ready"].item() is True


def test_an_attention_mask_of_infinities_stays_where_it_is() -> None:
    base = {"mask": torch.full((3, 3), -math.inf).triu(1), "w": torch.ones(2)}
    update = {"mask": torch.zeros(3, 3), "w": torch.ones(2)}
    assert_equal(streamed(base, [update, update]), {"mask": base["mask"], "w": torch.full((2,), 2.0)})


# --- the running sum --------------------------------------------------------------------------------------------------


def test_more_may_be_added_after_a_mean_was_taken_and_means_share_no_memory() -> None:
    base = {"w": torch.zeros(2), "n": torch.tensor([1]), "b": torch.tensor([False])}
    update = {"w": torch.ones(2), "n": torch.tensor([3]), "b": torch.tensor([False])}
    running = running_mean(base, [update])
    for value in running.mean().values():
        value.fill_(1)
    running.add("late", {"w": torch.full((2,), 4.0), "n": torch.tensor([5]), "b": torch.tensor([False])}, 2)
    mean = running.mean()
    assert mean["w"].tolist() == [2.5, 2.5]
    assert mean["n"].tolist() == [4]
    assert mean["b"].tolist() == [False]
    assert running.pods == ("pod-0", "late")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_partial_sums_merge_exactly_for_integers_and_within_the_stated_bound_for_floats(data: st.DataObject) -> None:
    number = data.draw(st.integers(2, 6))
    cut = data.draw(st.integers(0, number))
    base = {
        "w": torch.zeros(3, dtype=torch.float64),
        "n": torch.zeros(2, dtype=torch.int64),
        "b": torch.tensor([False]),
    }
    updates = [
        {
            "w": data.draw(tensors(torch.float64, 3)),
            "n": data.draw(tensors(torch.int64, 2)),
            "b": torch.tensor([i == 0]),
        }
        for i in range(number)
    ]
    weights = data.draw(st.lists(WEIGHTS, min_size=number, max_size=number).filter(any))
    left = running_mean(base, updates[:cut], weights[:cut])
    right = running_mean(base, updates[cut:], weights[cut:], first=cut)
    left.merge(right)
    left_again = running_mean(base, updates[:cut], weights[:cut])
    left_again.merge(right)  # what is merged is left as it was
    assert_equal(left.mean(), left_again.mean())
    whole = running_mean(base, updates, weights)
    assert left.pods == whole.pods
    assert left.weight == whole.weight
    found, want = left.mean(), whole.mean()
    assert torch.equal(found["n"], want["n"])
    assert torch.equal(found["b"], want["b"])
    for place in range(3):
        size = sum(Fraction(w) * abs(Fraction(u["w"][place].item())) for w, u in zip(weights, updates, strict=True))
        bound = (number + 2) * Fraction(1, 2**52) * size / sum(map(Fraction, weights)) + Fraction(5e-324)
        assert abs(Fraction(found["w"][place].item()) - Fraction(want["w"][place].item())) <= bound


def test_partial_means_of_other_models_kinds_or_the_same_pods_are_not_merged() -> None:
    base = {"w": torch.zeros(2)}
    mine = running_mean(base, [base], [1])
    for other, message in (
        (running_mean(base, [base], [1]), r"\['pod-0'\] are in both"),
        (running_mean(base, [base], None, first=1), "one is weighted, the other is not"),
        (running_mean({"w": torch.zeros(3)}, [{"w": torch.zeros(3)}], [1], first=1), r"'w' is \(3,\)"),
        (running_mean({"v": torch.zeros(2)}, [{"v": torch.zeros(2)}], [1], first=1), "'w' is missing"),
    ):
        with pytest.raises(ParameterError, match=message):
            mine.merge(other)
    assert mine.pods == ("pod-0",)


def test_memory_does_not_grow_with_the_number_of_pods() -> None:
    base = {"w": torch.zeros(10), "n": torch.zeros(200_000, dtype=torch.int32)}
    running = RunningMean(base)
    update = {"w": torch.ones(10), "n": torch.ones(200_000, dtype=torch.int32)}
    running.add("first", update, 3)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for pod in range(50):
        running.add(f"pod-{pod}", update, 3)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 200_000 * 8 + 100_000  # at most one sum was replaced by another of its size


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({}, "'w' is missing"),
        ({"w": torch.zeros(2), "extra": torch.zeros(1), "n": torch.tensor(1)}, "'extra' is not a name of the model"),
        ({"w": torch.zeros(()), "n": torch.tensor(1)}, r"'w' has shape \(\), want \(2,\)"),
        ({"w": torch.zeros(2, dtype=torch.float64), "n": torch.tensor(1)}, "'w' has dtype torch.float64"),
        ({"w": torch.tensor([1.0, math.nan]), "n": torch.tensor(1)}, "'w' has 1 of 2 values that are NaN or infinite"),
        ({"w": [0.0, 0.0], "n": torch.tensor(1)}, "'w' is of type list"),
        ([1, 2], "of type list, want a mapping"),
    ],
)
def test_an_update_that_does_not_fit_is_refused_by_the_pods_name_and_changes_nothing(update: Any, message: str) -> None:
    base = {"w": torch.zeros(2), "n": torch.tensor(1)}
    good = {"w": torch.ones(2), "n": torch.tensor(2)}
    running = running_mean(base, [good])
    with pytest.raises(ParameterError, match=f"the update of pod 'north' cannot be used: .*{message}"):
        running.add("north", update, 5)
    assert running.pods == ("pod-0",)
    assert_equal(apply_mean(base, running.mean()), apply_updates(base, [good]))


@pytest.mark.parametrize("weight", [-1, math.nan, math.inf, 10**400, "2", True, None, np.True_, 1j])
@pytest.mark.parametrize("weighted", [True, False])
def test_a_weight_that_is_no_finite_number_is_refused_by_the_pods_name(weight: Any, weighted: bool) -> None:
    running = RunningMean({"w": torch.zeros(1)}, weighted=weighted)
    with pytest.raises(ParameterError, match="the weight of pod 'north' is .*, want a finite number >= 0"):
        running.add("north", {"w": torch.zeros(1)}, weight)
    assert running.pods == ()


def test_a_pod_is_counted_once() -> None:
    base = {"w": torch.zeros(1)}
    running = running_mean(base, [base])
    with pytest.raises(ParameterError, match="the update of pod 'pod-0' is in the mean already"):
        running.add("pod-0", base, 1)


def test_a_mean_of_nothing_is_a_named_error() -> None:
    base = {"w": torch.zeros(1)}
    with pytest.raises(ParameterError, match="no updates are in"):
        RunningMean(base).mean()
    with pytest.raises(ParameterError, match="all 2 weights are 0"):
        running_mean(base, [base, base], [0, 0.0]).mean()


def test_a_base_that_cannot_be_averaged_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"'c' has dtype torch\.complex64"):
        RunningMean({"c": torch.zeros(1, dtype=torch.complex64)})


def test_a_mean_that_does_not_fit_the_base_or_leaves_its_dtype_is_refused_by_name() -> None:
    base = {"w": torch.full((2,), 3e38), "n": torch.tensor(1)}
    with pytest.raises(ParameterError, match=r"'n' is missing; 'w' is \(2,\) of torch.float32, want .* torch.float64"):
        apply_mean(base, {"w": torch.zeros(2)})
    huge = {"w": torch.full((2,), 3e38, dtype=torch.float64), "n": torch.tensor(0)}
    with pytest.raises(ParameterError, match="'w' has 2 of 2 values that are NaN or infinite after the mean update"):
        apply_mean(base, huge)
    with pytest.raises(ParameterError, match="'n': a result leaves the range"):
        apply_mean({"n": torch.tensor(2**63 - 1)}, {"n": torch.tensor(1)})


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_metrics_are_averaged_by_rows_over_the_pods_that_have_them() -> None:
    north, south = MetricSums.of({"loss": 1.0, "AUC": 0.5}, 300), MetricSums.of({"loss": 3.0}, 100)
    assert north.add(south).mean() == {"loss": 1.5, "AUC": 0.5}
    assert north.mean() == {"loss": 1.0, "AUC": 0.5}  # neither was changed
    assert south.mean() == {"loss": 3.0}
    assert MetricSums().add(north) == north


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(1, 10**6)), min_size=1, max_size=6))
def test_the_mean_of_metrics_is_that_of_numpy(figures: list[tuple[float, int]]) -> None:
    sums = MetricSums()
    for value, rows in figures:
        sums = sums.add(MetricSums.of({"loss": value}, rows))
    values, weights = zip(*figures, strict=True)
    np.testing.assert_allclose(sums.mean()["loss"], np.average(values, weights=weights), rtol=1e-12, atol=1e-8)
    sent = json.loads(json.dumps(sums.to_json()))
    assert MetricSums.from_json(sent) == sums


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_not_defined_at_one_pod_is_that_of_the_others_and_nan_if_there_are_none(value: float) -> None:
    alone = MetricSums.of({"AUC": value, "loss": 1.0}, 10)
    assert math.isnan(alone.mean()["AUC"])
    assert json.loads(json.dumps(alone.to_json(), allow_nan=False)) == {"AUC": [0.0, 0.0], "loss": [10.0, 10.0]}
    assert alone.add(MetricSums.of({"AUC": 0.75}, 4)).mean() == {"AUC": 0.75, "loss": 1.0}


def test_a_pod_without_validation_rows_does_not_count() -> None:
    assert MetricSums.of({"loss": 5.0}, 0).add(MetricSums.of({"loss": 1.0}, 2)).mean() == {"loss": 1.0}


@pytest.mark.parametrize(
    "data", [None, [1, 2], {"a": 1.0}, {"a": [1.0]}, {"a": [math.nan, 1]}, {"a": [1, -1]}, {"a": ["1", 1]}, {1: [1, 1]}]
)
def test_metric_sums_that_are_none_are_refused(data: Any) -> None:
    with pytest.raises(SerializationError, match="metric sums"):
        MetricSums.from_json(data)


def test_the_weight_of_metrics_is_checked() -> None:
    with pytest.raises(ParameterError, match="the weight of metrics is -1"):
        MetricSums.of({"loss": 1.0}, -1)
