"""Updates: differences, weighted means, and what each kind of dtype does in them."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bitfount_model.errors import ParameterError
from bitfount_model.parameters import check_finite, snapshot, update_module
from bitfount_model.updates import apply_updates, diff_params
from tests.bitfount_model.named_tensors import FLOATS, INTEGERS, assert_equal, copies, network, tensors

# --- difference and mean ----------------------------------------------------------------------------------------------


def test_diff_params_overwrites_neither_argument_nor_the_live_model() -> None:
    module = network()
    old, new = dict(module.state_dict()), {n: v + 1 for n, v in module.state_dict().items()}
    kept_old, kept_new = copies(old), copies(new)
    first = diff_params(old, new)
    second = diff_params(old, new)
    assert_equal(first, second)
    for value in first.values():
        value.fill_(7)
    assert_equal(old, kept_old)
    assert_equal(new, kept_new)
    assert_equal(dict(module.state_dict()), kept_old)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor(1.0), r"has shape \(\), want \(2, 3\)"),
        (torch.zeros(3), r"has shape \(3,\), want \(2, 3\)"),
        (torch.zeros(1, 3), r"has shape \(1, 3\), want \(2, 3\)"),
        (torch.zeros(2, 3, dtype=torch.float64), "has dtype torch.float64, want torch.float32"),
        (np.zeros((2, 3)), "is of type ndarray"),
        (1.0, "is of type float"),
    ],
)
def test_nothing_is_broadcast_cast_or_ignored(value: Any, message: str) -> None:
    base = {"w": torch.zeros(2, 3)}
    with pytest.raises(ParameterError, match=f"'w' {message}"):
        diff_params(base, {"w": value})
    with pytest.raises(ParameterError, match=f"update 2 of 2 cannot be used: 'w' {message}"):
        apply_updates(base, [base, {"w": value}])


def test_names_missing_on_either_side_are_named() -> None:
    one, two = {"a": torch.zeros(1)}, {"a": torch.zeros(1), "b": torch.zeros(1)}
    with pytest.raises(ParameterError, match="'b' is not a name of the model"):
        diff_params(one, two)
    with pytest.raises(ParameterError, match="'b' is missing"):
        diff_params(two, one)


def test_the_names_of_every_update_are_checked_not_only_of_the_first() -> None:
    base = {"a": torch.zeros(1), "b": torch.zeros(1)}
    with pytest.raises(ParameterError, match="update 3 of 3 cannot be used: 'b' is missing; 'c' is not a name"):
        apply_updates(base, [base, base, {"a": torch.zeros(1), "c": torch.zeros(1)}])


def test_plain_tensors_and_parameters_count_alike_and_no_gradient_is_kept() -> None:
    base = {"w": nn.Parameter(torch.ones(2))}
    update = diff_params(base, {"w": torch.full((2,), 4.0)})
    assert torch.equal(update["w"], torch.full((2,), 3.0))
    moved = apply_updates(base, [{"w": nn.Parameter(update["w"])}])["w"]
    assert torch.equal(moved, torch.full((2,), 4.0))
    assert not moved.requires_grad
    assert type(moved) is Tensor


def test_no_updates_is_a_named_error() -> None:
    with pytest.raises(ParameterError, match="no updates"):
        apply_updates({"w": torch.zeros(1)}, [])
    with pytest.raises(ParameterError, match="no updates"):
        apply_updates({"w": torch.zeros(1)}, [], [])


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, torch.bool])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_applying_one_difference_gives_the_new_parameters(dtype: torch.dtype, data: st.DataObject) -> None:
    low = 0 if dtype == torch.uint8 else -60
    old, change = (data.draw(tensors(dtype, 5, low, 60)) for _ in range(2))
    new = old ^ change if dtype == torch.bool else (old + change.to(dtype))
    base, trained = {"w": old, "s": old[0].clone()}, {"w": new, "s": new[0].clone()}
    found = apply_updates(base, [diff_params(base, trained)], [data.draw(st.integers(1, 10**6))])
    assert list(found) == ["w", "s"]
    for name, value in trained.items():
        assert (found[name].dtype, found[name].shape) == (dtype, value.shape)
        if dtype.is_floating_point:
            allowed = torch.finfo(dtype).eps * torch.maximum(base[name].abs(), value.abs()).double()
            assert bool(((found[name].double() - value.double()).abs() <= allowed).all())
        else:
            assert torch.equal(found[name], value)


@pytest.mark.parametrize("dtype", FLOATS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_the_mean_of_floats_is_the_exact_one_rounded(dtype: torch.dtype, data: st.DataObject) -> None:
    number = data.draw(st.integers(1, 5))
    base = {"w": data.draw(tensors(dtype, 3))}
    updates = [{"w": data.draw(tensors(dtype, 3))} for _ in range(number)]
    weights = data.draw(st.lists(st.floats(1e-3, 1e6), min_size=number, max_size=number))
    kept = copies(base), [copies(update) for update in updates], list(weights)
    found = apply_updates(base, updates, weights)
    assert_equal(apply_updates(base, updates, weights), found)  # the arguments are as they were
    assert_equal(base, kept[0])
    assert [list(map(float, update["w"])) for update in updates] == [list(map(float, u["w"])) for u in kept[1]]
    assert weights == kept[2]
    for place in range(3):
        parts = [Fraction(w) * Fraction(u["w"][place].item()) for w, u in zip(weights, updates, strict=True)]
        exact = Fraction(base["w"][place].item()) + sum(parts) / sum(map(Fraction, weights))
        error = abs(Fraction(found["w"][place].item()) - exact)
        assert error <= Fraction(torch.finfo(dtype).eps) * abs(exact) + Fraction(1, 10**12) + tiny(dtype)


def tiny(dtype: torch.dtype) -> Fraction:
    return Fraction(torch.finfo(dtype).smallest_normal) * Fraction(torch.finfo(dtype).eps)


def test_large_tensors_agree_with_numpy_over_the_edges_of_blocks() -> None:
    generator = torch.Generator().manual_seed(1)
    sizes = [1, 65_535, 65_536, 65_537, 200_001]
    base = {str(size): torch.randn(size, generator=generator) for size in sizes}
    updates = [{name: torch.randn(len(value), generator=generator) for name, value in base.items()} for _ in range(3)]
    found = apply_updates(base, updates, [1, 2.5, 40])
    for name, value in base.items():
        stacked = np.stack([update[name].numpy().astype(np.float64) for update in updates])
        want = value.numpy() + np.average(stacked, axis=0, weights=[1, 2.5, 40])
        np.testing.assert_allclose(found[name].numpy(), want, rtol=2e-7, atol=1e-12)


def test_transposed_and_empty_and_scalar_tensors_keep_their_shapes() -> None:
    base = {"t": torch.arange(6.0).reshape(2, 3).T, "empty": torch.zeros(0, 3), "scalar": torch.tensor(2.0)}
    update = {"t": torch.ones(3, 2), "empty": torch.zeros(0, 3), "scalar": torch.tensor(0.5)}
    found = apply_updates(base, [update, update], [3, 5])
    assert torch.equal(found["t"], torch.arange(6.0).reshape(2, 3).T + 1)
    assert found["empty"].shape == (0, 3)
    assert torch.equal(found["scalar"], torch.tensor(2.5))


def test_weights_count() -> None:
    base = {"w": torch.zeros(1)}
    updates = [{"w": torch.tensor([1.0])}, {"w": torch.tensor([4.0])}]
    assert apply_updates(base, updates)["w"].item() == 2.5
    assert apply_updates(base, updates, [2, 1])["w"].item() == 2.0
    assert apply_updates(base, updates, [0, 7])["w"].item() == 4.0
    assert apply_updates(base, updates, [np.int64(1), np.float32(3)])["w"].item() == 3.25


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=4), st.integers(1, 1000))
def test_one_pod_of_three_hundred_rows_is_three_pods_of_a_hundred(values: list[float], rows: int) -> None:
    base, update = {"w": torch.ones(len(values))}, {"w": torch.tensor(values)}
    other = {"w": torch.linspace(-1, 1, len(values))}
    one = apply_updates(base, [update, other], [3 * rows, 17])
    three = apply_updates(base, [update, update, update, other], [rows, rows, rows, 17])
    torch.testing.assert_close(one["w"], three["w"], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "found 1 weights for 2 updates"),
        ([], "found 0 weights for 2 updates"),
        ([1, 2, 3], "found 3 weights for 2 updates"),
        ([1, -1], "weight 2 of 2 is -1"),
        ([math.nan, 1], "weight 1 of 2 is nan"),
        ([1, math.inf], "weight 2 of 2 is inf"),
        ([1, 10**400], "weight 2 of 2 is 1000"),
        ([1, "2"], "weight 2 of 2 is '2'"),
        ([True, 1], "weight 1 of 2 is True"),
        ([None, 1], "weight 1 of 2 is None"),
        ([0, 0.0], "all weights are 0"),
    ],
)
def test_weights_of_the_wrong_number_or_value_are_refused(weights: Any, message: str) -> None:
    update = {"w": torch.ones(1)}
    with pytest.raises(ParameterError, match=message):
        apply_updates(update, [update, update], weights)


@pytest.mark.parametrize("weights", [[1e308, 1e308], [5e-324, 5e-324], [1e-300, 1e-300]])
def test_very_large_and_very_small_weights_neither_overflow_nor_vanish(weights: list[float]) -> None:
    updates = [{"w": torch.tensor([1e30]), "n": torch.tensor([2])}, {"w": torch.tensor([3e30]), "n": torch.tensor([4])}]
    found = apply_updates({"w": torch.zeros(1), "n": torch.tensor([1])}, updates, weights)
    torch.testing.assert_close(found["w"], torch.tensor([2e30]))
    assert found["n"].item() == 4


def test_a_result_too_large_for_its_dtype_is_refused_by_name() -> None:
    big = {"w": torch.tensor([3e38])}
    with pytest.raises(ParameterError, match="'w' has 1 of 1 values"):
        apply_updates(big, [big])
    with pytest.raises(ParameterError, match="'h' has 1 of 1 values"):
        diff_params({"h": torch.tensor([-6e4], dtype=torch.float16)}, {"h": torch.tensor([6e4], dtype=torch.float16)})


def test_parameters_that_were_not_finite_before_training_are_refused_too() -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(ParameterError, match="'w' has 1 of 1 values that are NaN or infinite after the arithmetic"):
            diff_params({"w": torch.tensor([bad])}, {"w": torch.tensor([1.0])})
    with pytest.raises(ParameterError, match="'w' has 1 of 1 values that are NaN or infinite after the arithmetic"):
        apply_updates({"w": torch.tensor([math.nan])}, [{"w": torch.tensor([1.0])}])


def test_an_attention_mask_of_infinities_passes_where_both_sides_agree_and_nowhere_else() -> None:
    mask = torch.full((3, 3), -math.inf).triu(1)
    base = {"mask": mask, "w": torch.ones(2)}
    trained = {"mask": mask.clone(), "w": torch.full((2,), 3.0)}
    update = diff_params(base, trained)
    assert_equal(update, {"mask": torch.zeros(3, 3), "w": torch.full((2,), 2.0)})
    assert_equal(apply_updates(base, [update, update]), trained)
    with pytest.raises(ParameterError, match="'mask' has 3 of 9 values"):
        diff_params(base, {**trained, "mask": -mask})
    with pytest.raises(ParameterError, match="'mask' has"):
        check_finite(base, what="the update")


# --- integers, booleans, variances ------------------------------------------------------------------------------------


def test_counters_keep_int64_and_the_mean_of_1_and_2_on_5_is_rounded_half_to_even() -> None:
    base = {"num_batches_tracked": torch.tensor(5)}
    found = apply_updates(base, [{"num_batches_tracked": torch.tensor(1)}, {"num_batches_tracked": torch.tensor(2)}])
    assert found["num_batches_tracked"].dtype == torch.int64
    assert found["num_batches_tracked"].item() == 5 + round(Fraction(3, 2)) == 7


def test_ten_workers_of_seven_batches_each_count_exactly_seven() -> None:
    base = {"n": torch.tensor(100)}
    for weights in (None, [0.1] * 10, [1 / 3] * 10, list(range(1, 11))):
        assert apply_updates(base, [{"n": torch.tensor(7)}] * 10, weights)["n"].item() == 107


@pytest.mark.parametrize("dtype", INTEGERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_mean_of_integers_is_that_of_exact_fractions(dtype: torch.dtype, data: st.DataObject) -> None:
    number = data.draw(st.integers(1, 5))
    limits = torch.iinfo(dtype)
    base = {"n": data.draw(tensors(dtype, 3, 0, 10))}
    updates = [{"n": data.draw(tensors(dtype, 3, limits.min // 4, limits.max // 4))} for _ in range(number)]
    kind = data.draw(st.sampled_from(["rows", "shares", "none"]))
    numbers = st.integers(1, 10**6) if kind == "rows" else st.floats(1e-9, 1e9)
    weights = None if kind == "none" else data.draw(st.lists(numbers, min_size=number, max_size=number))
    kept = [update["n"].tolist() for update in updates]
    try:
        found = apply_updates(base, updates, weights)["n"]
    except ParameterError:
        found = None
    exact = [Fraction(weight) for weight in weights or [1] * number]
    means = [sum(w * int(u["n"][i]) for w, u in zip(exact, updates, strict=True)) / sum(exact) for i in range(3)]
    want = [int(start) + round(mean) for start, mean in zip(base["n"], means, strict=True)]  # round: half to even
    if all(limits.min <= value <= limits.max for value in want):
        assert found is not None
        assert found.dtype == dtype
        assert found.tolist() == want
    else:
        assert found is None
    assert [update["n"].tolist() for update in updates] == kept


def test_integers_that_would_leave_their_range_are_refused_not_wrapped_round() -> None:
    extremes = torch.iinfo(torch.int64)
    low, high = {"n": torch.tensor([extremes.min])}, {"n": torch.tensor([extremes.max])}
    with pytest.raises(ParameterError, match=r"'n': a result leaves the range of torch\.int64"):
        diff_params(low, high)
    with pytest.raises(ParameterError, match="leaves the range"):
        apply_updates(high, [high])
    with pytest.raises(ParameterError, match=r"leaves the range of torch\.uint8, 0 to 255"):
        diff_params({"n": torch.tensor([2], dtype=torch.uint8)}, {"n": torch.tensor([1], dtype=torch.uint8)})
    assert apply_updates({"n": torch.tensor([-1])}, [high])["n"].item() == extremes.max - 1
    assert apply_updates({"n": torch.tensor([0])}, [high, low], [1, 1])["n"].item() == 0  # the exact mean is -1/2


def test_a_boolean_changes_when_any_update_of_positive_weight_changes_it() -> None:
    base = {"ready": torch.tensor([False, False, True, True])}
    same = diff_params(base, base)
    assert same["ready"].tolist() == [False] * 4
    assert_equal(apply_updates(base, [same, same]), base)
    turned = diff_params(base, {"ready": torch.tensor([True, False, True, False])})
    assert apply_updates(base, [same, turned])["ready"].tolist() == [True, False, True, False]
    assert apply_updates(base, [same, turned], [1, 0])["ready"].tolist() == base["ready"].tolist()


@pytest.mark.parametrize("name", ["running_var", "body.1.running_var"])
def test_variances_are_never_driven_below_zero_and_only_they_are_kept_so(name: str) -> None:
    base = {name: torch.tensor([0.1, 1.0]), "running_mean": torch.tensor([0.1, 1.0]), "my_running_var": torch.zeros(2)}
    update = {key: torch.tensor([-0.5, -0.5]) for key in base}
    found = apply_updates(base, [update])
    torch.testing.assert_close(found[name], torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(found["running_mean"], torch.tensor([-0.4, 0.5]))
    torch.testing.assert_close(found["my_running_var"], torch.tensor([-0.5, -0.5]))


def test_a_round_of_real_batch_norm_equals_plain_torch() -> None:
    torch.manual_seed(3)
    module = network()
    base = snapshot(module)
    trained = []
    for batches in (2, 4):
        update_module(module, base)
        for _ in range(batches):
            module(torch.randn(8, 1, 4))
        trained.append(snapshot(module))
    found = apply_updates(base, [diff_params(base, each) for each in trained], [1, 3])
    assert found["1.num_batches_tracked"].item() == round(Fraction(2 + 3 * 4, 4))
    for name in ("1.running_mean", "1.running_var"):
        torch.testing.assert_close(found[name], (trained[0][name] + 3 * trained[1][name]) / 4)
    update_module(module, found)
    assert_equal(snapshot(module), found)
