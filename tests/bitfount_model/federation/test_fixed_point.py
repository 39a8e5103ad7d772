"""Updates as vectors of Z_2^64: the sum decodes to the exact weighted mean within 2**-25, and what does not fit is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitfount_model.errors import ParameterError, SecureSumError
from bitfount_model.federation import MetricSums, RunningMean
from bitfount_model.federation.fixed_point import PRECISION, Layout, SecureMean
from bitfount_model.param_clipping import clipping_bound
from bitfount_model.parameters import snapshot
from tests.bitfount_model.federation.secure_rounds import context, masked, shared
from tests.bitfount_model.named_tensors import FLOATS, INTEGERS, assert_equal, copies, network

WEIGHTS = st.integers(1, 10**6)


def summed(
    layout: Layout, updates: Sequence[dict[str, Tensor]], weights: Sequence[int], metrics: Sequence[MetricSums] = ()
) -> SecureMean:
    """What the sum of all pods' vectors says."""
    stats = metrics or [MetricSums()] * len(updates)
    vectors = [layout.encode(*each).words for each in zip(updates, weights, stats, strict=True)]
    return layout.decode(np.add.reduce(vectors))


def running(base: dict[str, Tensor], updates: Sequence[dict[str, Tensor]], weights: Sequence[int]) -> RunningMean:
    mean = RunningMean(base)
    for place, (update, weight) in enumerate(zip(updates, weights, strict=True)):
        mean.add(f"pod-{place}", update, weight)
    return mean


def exact_mean(values: Sequence[float], weights: Sequence[int]) -> Fraction:
    """The oracle: fractions."""
    return sum(Fraction(value) * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def worst(found: Tensor, updates: Sequence[Tensor], weights: Sequence[int]) -> Fraction:
    columns = zip(*(update.double().reshape(-1).tolist() for update in updates), strict=True)
    pairs = zip(found.reshape(-1).tolist(), columns, strict=True)
    return max(abs(Fraction(value) - exact_mean(column, weights)) for value, column in pairs)


def batch_norm_updates(seed: int, pods: int, scale: float) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Changes of a network with a weight, a bias, running means and variances, and an int64 counter."""
    base, generator = snapshot(network()), torch.Generator().manual_seed(seed)

    def change(value: Tensor) -> Tensor:
        if value.is_floating_point():
            return torch.randn(value.shape, generator=generator) * scale
        return torch.randint(0, 10**5, value.shape, generator=generator)

    return base, [{name: change(value) for name, value in base.items()} for _ in range(pods)]


# --- the mean ---------------------------------------------------------------------------------------------------------


def test_the_promise_is_two_to_the_minus_25() -> None:
    assert PRECISION == 2**-25


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1000.0])
@pytest.mark.parametrize("pods", [3, 10, 16])
def test_the_mean_of_batch_norm_networks_with_any_weights_is_within_the_promise(
    pods: int, scale: float, record_property: Callable[[str, object], None]
) -> None:
    generator, largest = np.random.default_rng(pods), 0.0
    for seed in range(20):
        base, updates = batch_norm_updates(seed, pods, scale)
        weights = [int(10 ** generator.uniform(0, 6)) for _ in range(pods)]
        layout = Layout(base, pods=pods, total_weight=pods * 10**6)
        found, plain = summed(layout, updates, weights), running(base, updates, weights).mean()
        assert found.weight == sum(weights)
        assert list(found.mean) == list(base)
        for name, value in plain.items():
            assert (found.mean[name].dtype, found.mean[name].shape) == (value.dtype, value.shape)
            if value.is_floating_point():
                error = float(worst(found.mean[name], [update[name] for update in updates], weights))
                assert error <= PRECISION
                largest = max(largest, error)
            else:
                assert torch.equal(found.mean[name], value)
    record_property(
        "figure", f"{pods} pods, values of about {scale:g}: largest error {largest:.2g}, promised 2^-25 = 3e-08"
    )


@settings(max_examples=300, deadline=None)
@example(entries=[(33554432.0, 1)] * 3, dtype=torch.float64, total=3)
@given(
    entries=st.lists(st.tuples(st.floats(-1, 1), WEIGHTS), min_size=1, max_size=16),
    dtype=st.sampled_from(FLOATS),
    total=st.none(),
)
def test_the_mean_of_any_float_within_the_bound_is_within_the_promise(
    entries: list[tuple[float, int]], dtype: torch.dtype, total: int | None
) -> None:
    weights = [weight for _, weight in entries]
    base = {"w": torch.zeros(2, dtype=dtype)}
    layout = Layout(base, pods=16, total_weight=total or sum(weights))
    limit = min(layout.bound, torch.finfo(dtype).max)
    values = [value * limit if abs(value) <= 1 else value for value, _ in entries]
    updates = [
        {"w": torch.tensor([value, limit], dtype=torch.float64).clamp(-limit, limit).to(dtype)} for value in values
    ]
    assert worst(summed(layout, updates, weights).mean["w"], [u["w"] for u in updates], weights) <= PRECISION


@pytest.mark.parametrize("dtype", INTEGERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_integers_are_the_exact_mean_rounded_half_to_even(dtype: torch.dtype, data: st.DataObject) -> None:
    limits = torch.iinfo(dtype)
    weights = data.draw(st.lists(WEIGHTS | st.just(1), min_size=1, max_size=16))
    most = 2**62 // sum(weights)
    values = st.integers(max(limits.min, -most), min(limits.max, most)) | st.integers(0, 7)
    updates = [{"n": torch.tensor(data.draw(st.lists(values, min_size=3, max_size=3)), dtype=dtype)} for _ in weights]
    base = {"n": torch.zeros(3, dtype=dtype)}
    found = summed(Layout(base, pods=16, total_weight=sum(weights)), updates, weights).mean
    assert_equal(found, running(base, updates, weights).mean())
    for place in range(3):  # Python rounds fractions half to even
        assert found["n"][place] == round(exact_mean([int(update["n"][place]) for update in updates], weights))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(st.booleans(), min_size=3, max_size=3), st.integers(0, 3)), min_size=1, max_size=6))
def test_booleans_change_where_a_pod_of_some_weight_changed_them(entries: list[tuple[list[bool], int]]) -> None:
    weights = [weight for _, weight in entries]
    if any(weights):
        updates = [{"b": torch.tensor(values)} for values, _ in entries]
        base = {"b": torch.zeros(3, dtype=torch.bool)}
        found = summed(Layout(base, pods=6, total_weight=sum(weights)), updates, weights)
        assert_equal(found.mean, running(base, updates, weights).mean())


def test_pods_of_weight_0_count_nothing() -> None:
    base = {"w": torch.zeros(1), "n": torch.tensor(0)}
    updates = [{"w": torch.tensor([3.0]), "n": torch.tensor(4)}, {"w": torch.tensor([5.0]), "n": torch.tensor(9)}]
    found = summed(Layout(base, pods=3, total_weight=10), updates, [2, 0])
    assert (found.weight, found.mean["w"].tolist(), found.mean["n"].item()) == (2, [3.0], 4)


def test_a_masked_round_with_a_dropped_pod_gives_the_mean_of_the_survivors() -> None:
    base, updates = batch_norm_updates(0, 5, 1.0)
    layout = Layout(base, pods=5, total_weight=5 * 10**6, metrics=["loss"])
    made = context(5, 4, layout_digest=layout.digest)
    weights = [1, 10**6, 77, 3000]
    vectors = {
        pod: layout.encode(update, weight, MetricSums.of({"loss": 0.5}, weight)).words
        for pod, update, weight in zip(made.pods[1:], updates[1:], weights, strict=True)
    }
    round_ = masked(shared(made), vectors)
    found = layout.decode(round_.sum(list(vectors), round_.answers(list(vectors)).values()))
    assert found.weight == sum(weights)
    assert found.metrics.mean() == {"loss": 0.5}
    for name, value in running(base, updates[1:], weights).mean().items():
        if value.is_floating_point():
            assert worst(found.mean[name], [update[name] for update in updates[1:]], weights) <= PRECISION
        else:
            assert torch.equal(found.mean[name], value)


def test_shapes_with_no_values_scalars_and_other_strides_are_kept() -> None:
    base = {"none": torch.zeros(0, 3), "one": torch.tensor(0.0), "turned": torch.zeros(2, 3), "n": torch.zeros(0).int()}
    update = {
        "none": torch.zeros(0, 3),
        "one": torch.tensor(2.0),
        "turned": torch.arange(6.0).reshape(3, 2).T,
        "n": base["n"],
    }
    found = summed(Layout(base, pods=3, total_weight=3), [update], [3]).mean
    for name, value in update.items():
        assert torch.equal(found[name].to(value.dtype), value)
        assert found[name].shape == value.shape


@pytest.mark.parametrize("size", [65535, 65536, 65537, 200_000])
def test_parameters_larger_than_a_block_are_written_whole(size: int) -> None:
    base = {"w": torch.zeros(size), "n": torch.zeros(size, dtype=torch.int64)}
    update = {"w": torch.arange(size) / 8, "n": torch.arange(size)}
    before = copies(update)
    found = summed(Layout(base, pods=3, total_weight=3), [update, update], [1, 2]).mean
    assert_equal(update, before)
    assert torch.equal(found["w"].float(), update["w"])
    assert torch.equal(found["n"], update["n"])


def test_the_words_are_those_that_the_docstring_says() -> None:
    base = {"w": torch.zeros(2), "n": torch.tensor(0), "b": torch.tensor([False, False])}
    layout = Layout(base, pods=4, total_weight=100, bound=1.0, metrics=["auc", "loss"])
    update = {"b": torch.tensor([True, False]), "n": torch.tensor(-7), "w": torch.tensor([0.5, -1.0])}
    words = layout.encode(update, 10, MetricSums({"loss": (2.5, 5.0), "other": (1.0, 1.0)})).words
    assert layout.fraction_bits == 55  # 100 * 2**55 <= 2**62 < 100 * 2**56
    assert words.dtype == np.uint64
    assert words.view(np.int64).tolist() == [5 * 2**55, -10 * 2**55, -70, 1, 0, 10, 0, 0, 5 * 2**19, 5]
    assert layout.size == len(words)


# --- metrics ----------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.none() | st.floats(-1e3, 1e3), st.integers(1, 10**6)), min_size=1, max_size=16))
def test_metrics_are_averaged_over_the_rows_of_the_pods_that_have_them(entries: list[tuple[float | None, int]]) -> None:
    layout = Layout({"w": torch.zeros(1)}, pods=16, total_weight=16, metrics=["loss", "nobody's"])
    stats = [MetricSums() if value is None else MetricSums.of({"loss": value}, rows) for value, rows in entries]
    found = summed(layout, [{"w": torch.zeros(1)}] * len(entries), [1] * len(entries), stats).metrics
    known = [(value, rows) for value, rows in entries if value is not None]
    assert found.sums["loss"][1] == sum(rows for _, rows in known)
    assert math.isnan(found.mean()["nobody's"])
    if known:
        exact = exact_mean([value for value, _ in known], [rows for _, rows in known])
        assert abs(Fraction(found.mean()["loss"]) - exact) <= Fraction(2) ** -21 + 1000 * Fraction(2) ** -50


def test_a_metric_that_is_not_defined_at_a_pod_counts_nothing() -> None:
    layout = Layout({"w": torch.zeros(1)}, pods=3, total_weight=3, metrics=["auc"])
    stats = [MetricSums.of({"auc": math.nan}, 100), MetricSums.of({"auc": 0.75}, 4)]
    assert summed(layout, [{"w": torch.zeros(1)}] * 2, [1, 1], stats).metrics == MetricSums({"auc": (3.0, 4.0)})


@pytest.mark.parametrize("pair", [(2.0**41, 1.0), (-(2.0**41), 1.0), (0.0, 2.0**41), (1.0, 0.5)])
def test_metrics_that_do_not_fit_are_refused_by_name(pair: tuple[float, float]) -> None:
    layout = Layout({"w": torch.zeros(1)}, pods=3, total_weight=3, metrics=["loss"])
    with pytest.raises(ParameterError, match="'loss' has sum"):
        layout.encode({"w": torch.zeros(1)}, 1, MetricSums({"loss": pair}))


# --- the bound --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "bound", "bits"),
    [(1, 2**25, 37), (4096, 2**25, 25), (4097, 2**24, 25), (10**6, 2**17, 25), (10**7, 2**13, 25), (2**53, 2**-16, 25)],
)
def test_the_widest_bound_is_taken_that_keeps_the_precision(total: int, bound: float, bits: int) -> None:
    layout = Layout({"w": torch.zeros(1)}, pods=3, total_weight=total)
    assert (layout.bound, layout.fraction_bits) == (bound, bits)


@pytest.mark.parametrize("total", [3, 10**6, 16 * 10**6])
def test_sums_at_the_bound_of_all_weight_do_not_wrap(total: int) -> None:
    layout = Layout({"w": torch.zeros(2, dtype=torch.float64), "n": torch.zeros(2).long()}, pods=3, total_weight=total)
    most = 2**62 // total
    update = {"w": torch.tensor([layout.bound, -layout.bound]).double(), "n": torch.tensor([most, -most])}
    third = total // 3
    found = summed(layout, [update] * 3, [third, third, total - 2 * third]).mean
    assert found["w"].tolist() == [layout.bound, -layout.bound]
    assert found["n"].tolist() == [most, -most]


def test_the_bound_of_param_clipping_is_never_rounded_up() -> None:
    bound = clipping_bound({"prime_q": 13, "precision": 10**3, "num_workers": 2})
    layout = Layout({"w": torch.zeros(1)}, pods=3, total_weight=1000, bound=bound)
    assert Fraction(layout.bound) <= bound < Fraction(math.nextafter(layout.bound, 1))
    assert 1000 * bound * 2**layout.fraction_bits <= 2**62 < 1000 * bound * 2 ** (layout.fraction_bits + 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bound": 0.0}, "above 0 and at most 2**25"),
        ({"bound": -1.0}, "above 0 and at most 2**25"),
        ({"bound": math.nan}, "above 0 and at most 2**25"),
        ({"bound": math.inf}, "above 0 and at most 2**25"),
        ({"bound": 2.0**25 + 1}, "above 0 and at most 2**25"),
        ({"bound": 16384.0, "total_weight": 10**7}, "has 24 fraction bits, want at least 25"),
        ({"total_weight": 0}, "total_weight of a secure sum is 0"),
        ({"total_weight": 2**53 + 1}, "want a whole number from 1 to 2**53"),
        ({"total_weight": 3.0}, "total_weight of a secure sum is 3.0"),
        ({"pods": 0}, "pods of a secure sum is 0"),
        ({"pods": True}, "pods of a secure sum is True"),
        ({"metrics": ["loss", "loss"]}, "metrics of a secure sum are named twice"),
    ],
)
def test_a_layout_that_could_not_keep_its_promise_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SecureSumError, match=re.escape(said)):
        Layout({"w": torch.zeros(1)}, **{"pods": 3, "total_weight": 3, **changes})


def test_layouts_that_differ_in_anything_have_other_digests() -> None:
    def digest(shape: Any = 2, name: str = "w", dtype: torch.dtype = torch.float32, **changes: Any) -> str:
        base = {name: torch.zeros(shape, dtype=dtype)}
        return Layout(base, **{"pods": 3, "total_weight": 10, "metrics": ["a", "b"], **changes}).digest

    changed: list[dict[str, Any]] = [
        {"shape": 3}, {"shape": (2, 1)}, {"name": "v"}, {"dtype": torch.float64}, {"pods": 4}, {"total_weight": 11},
        {"bound": 1.0}, {"metrics": ["b", "a"]}, {"metrics": ["a"]}, {"metrics": []},
    ]  # fmt: skip
    assert digest() == digest()
    assert len({digest(), *(digest(**change) for change in changed)}) == 1 + len(changed)


# --- what does not fit ------------------------------------------------------------------------------------------------


MIXED = {"w": torch.zeros(4), "h": torch.zeros(2, dtype=torch.float16), "n": torch.zeros(2, dtype=torch.int64)}


def mixed(**changes: Tensor) -> dict[str, Tensor]:
    return {**copies(MIXED), **changes}


@pytest.mark.parametrize(
    ("update", "said"),
    [
        (mixed(w=torch.tensor([1.0, 9, -9, 8])), "'w' has 2 of 4 values beyond 8.0"),
        (
            mixed(h=torch.tensor([9.0, 0]).half(), w=torch.full((4,), 10.0)),
            "'w' has 4 of 4 values beyond 8.0; 'h' has 1",
        ),
        (mixed(n=torch.tensor([2**61, 0])), f"'n' has 1 of 2 values beyond {2**62 // 100}"),
        (mixed(n=torch.tensor([-(2**63), 0])), "'n' has 1 of 2 values beyond"),
        (mixed(w=torch.tensor([1.0, math.nan, math.inf, 0])), "'w' has 2 of 4 values that are NaN or infinite"),
        (mixed(w=torch.zeros(3)), "'w' has shape (3,), want (4,)"),
        (mixed(w=torch.zeros(4).double()), "'w' has dtype torch.float64, want torch.float32"),
        (mixed(v=torch.zeros(1)), "'v' is not a name of the model"),
        ({"w": torch.zeros(4)}, "'h' is missing; 'n' is missing"),
    ],
    ids=["floats", "several", "integers", "the least integer", "not finite", "shape", "dtype", "surplus", "missing"],
)
def test_values_that_do_not_fit_are_refused_by_name_and_number(update: dict[str, Tensor], said: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(said)):
        Layout(MIXED, pods=3, total_weight=100, bound=8.0).encode(update, 10)


def test_clipping_is_done_on_request_and_counted() -> None:
    layout = Layout(MIXED, pods=3, total_weight=100, bound=8.0)
    update = mixed(w=torch.tensor([1.0, 9, -9, 8]), h=torch.tensor([-10.0, 2]).half())
    before = copies(update)
    encoded = layout.encode(update, 10, clip=True)
    found = layout.decode(encoded.words).mean
    assert encoded.clipped == 3
    assert (found["w"].tolist(), found["h"].tolist()) == ([1, 8, -8, 8], [-8, 2])
    assert layout.encode(mixed(), 10, clip=True).clipped == 0
    assert_equal(update, before)


@pytest.mark.parametrize(
    "update",
    [mixed(w=torch.full((4,), math.nan)), mixed(w=torch.full((4,), math.inf)), mixed(n=torch.tensor([2**61, 0]))],
)
def test_what_is_not_finite_and_integers_are_refused_also_with_clipping(update: dict[str, Tensor]) -> None:
    with pytest.raises(ParameterError):
        Layout(MIXED, pods=3, total_weight=100, bound=8.0).encode(update, 10, clip=True)


@pytest.mark.parametrize("weight", [-1, 101, 1.0, True, None])
def test_a_weight_that_was_not_announced_is_refused(weight: Any) -> None:
    with pytest.raises(ParameterError, match="the weight of an update is .*, want a whole number from 0 to 100"):
        Layout(MIXED, pods=3, total_weight=100).encode(mixed(), weight)


def test_sums_that_cannot_be_are_not_decoded() -> None:
    layout = Layout(MIXED, pods=3, total_weight=100, metrics=["loss"])
    good = layout.encode(mixed(), 100).words
    for words, said in (
        (good + good, "together 200: masks are left, or pods used other layouts; want 1 to 100"),
        (layout.encode(mixed(), 0).words, "together 0: no pod trained on any row"),
        (-good, "together -100"),
        (good[:-1], f"want uint64 ({layout.size},)"),
        (good.astype(np.int64), "a sum is int64"),
        (good - np.eye(1, layout.size, layout.size - 1, dtype=np.uint64)[0], "the weights of the metrics"),
    ):
        with pytest.raises(SecureSumError, match=re.escape(said)):
            layout.decode(words)


def test_a_base_that_is_no_parameters_is_refused() -> None:
    with pytest.raises(ParameterError, match="the global parameters cannot be summed"):
        Layout({"w": torch.zeros(2, dtype=torch.complex64)}, pods=3, total_weight=3)
