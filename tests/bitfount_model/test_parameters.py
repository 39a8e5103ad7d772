"""Parameters: snapshots, checks, writing into a module."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from bitfount_model.errors import ParameterError
from bitfount_model.parameters import (
    check_compatible,
    check_finite,
    euclidean_norm,
    let_go,
    snapshot,
    take_back,
    update_module,
)
from tests.bitfount_model.named_tensors import FLOATS, assert_equal, copies, network

# --- snapshot ---------------------------------------------------------------------------------------------------------


def test_a_snapshot_is_a_plain_dict_that_later_training_does_not_change() -> None:
    module = network()
    taken = snapshot(module)
    before = copies(taken)
    module(torch.randn(4, 1, 4)).sum().backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    assert type(taken) is dict
    assert_equal(taken, before)
    assert list(taken) == list(module.state_dict())
    assert not any(value.requires_grad for value in taken.values())


def test_a_snapshot_leaves_the_module_as_it_was() -> None:
    module = network()
    before = copies(dict(module.state_dict()))
    for value in snapshot(module).values():
        value.zero_()
    assert_equal(dict(module.state_dict()), before)


def test_a_snapshot_of_channels_last_weights_is_contiguous_and_equal() -> None:
    module = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)
    taken = snapshot(module)
    assert taken["weight"].is_contiguous()
    assert torch.equal(taken["weight"], module.weight)


def test_a_snapshot_names_what_is_no_tensor_not_initialised_not_dense_or_of_another_dtype() -> None:
    class WithState(nn.Module):
        def get_extra_state(self) -> dict[str, int]:
            return {"anything": 1}

    with pytest.raises(ParameterError, match="'_extra_state' is of type dict"):
        snapshot(WithState())
    with pytest.raises(ParameterError, match="'weight' is a lazy parameter"):
        snapshot(nn.LazyLinear(3))
    module = nn.Module()
    module.register_buffer("phase", torch.zeros(2, dtype=torch.complex64))
    module.register_buffer("sparse", torch.eye(2).to_sparse())
    with pytest.raises(ParameterError, match=r"'phase' has dtype torch\.complex64.*'sparse' has layout"):
        snapshot(module)


# --- check ------------------------------------------------------------------------------------------------------------


def test_every_difference_is_listed_in_one_error() -> None:
    expected = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1), "d": torch.zeros(2), "e": torch.ones(1)}
    wrong: dict[str, Any] = {
        "a": torch.zeros(2, 1),
        "b": torch.zeros(3, dtype=torch.float64),
        "d": torch.tensor([math.nan, math.inf]),
        "e": [1.0],
        "f": torch.zeros(1),
    }
    with pytest.raises(ParameterError) as caught:
        check_compatible(expected, wrong, what="the update of pod 'north'")
    message = str(caught.value)
    assert message.startswith("the update of pod 'north' cannot be used: ")
    for part in (
        "'a' has shape (2, 1), want (2,)",
        "'b' has dtype torch.float64, want torch.float32",
        "'c' is missing",
        "'d' has 2 of 2 values that are NaN or infinite",
        "'e' is of type list, want a torch.Tensor",
        "'f' is not a name of the model",
    ):
        assert part in message


def test_a_thousand_hostile_names_give_a_short_message() -> None:
    hostile = {"x" * 10_000 + str(number): torch.zeros(1) for number in range(1000)}
    with pytest.raises(ParameterError, match="and 950 more") as caught:
        check_compatible({}, hostile, what="the update")
    assert len(str(caught.value)) < 10_000


@pytest.mark.parametrize("given_value", [None, [torch.zeros(1)], "weights", torch.zeros(1)])
def test_something_that_is_no_mapping_is_refused(given_value: Any) -> None:
    with pytest.raises(ParameterError, match="want a mapping"):
        check_compatible({"a": torch.zeros(1)}, given_value, what="the update")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_by_name(dtype: torch.dtype, bad: float) -> None:
    good = {"w": torch.zeros(70_001, dtype=dtype), "empty": torch.zeros(0, 3, dtype=dtype)}
    check_finite(good, what="the update")
    worse = copies(good)
    worse["w"][70_000] = bad
    with pytest.raises(ParameterError, match="'w' has 1 of 70001 values"):
        check_finite(worse, what="the update")
    with pytest.raises(ParameterError, match="'w' has 1 of 70001 values"):
        check_compatible(good, worse, what="the update")


# --- writing into a module --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [
        lambda params: params.pop("3.bias"),
        lambda params: params.update(extra=torch.zeros(1)),
        lambda params: params.update({"3.bias": torch.zeros(1)}),
        lambda params: params.update({"3.bias": torch.zeros(2, dtype=torch.float64)}),
        lambda params: params.update({"3.bias": torch.tensor([0.0, math.nan])}),
        lambda params: params.update({"3.bias": [0.0, 0.0]}),
        lambda params: params.clear(),
    ],
)
def test_parameters_that_do_not_fit_change_nothing(spoil: Callable[[dict[str, Any]], object]) -> None:
    module = network()
    before = snapshot(module)
    params: dict[str, Any] = {name: value + 1 for name, value in before.items()}
    spoil(params)
    with pytest.raises(ParameterError, match="the given parameters cannot be used: "):
        update_module(module, params)
    assert_equal(snapshot(module), before)


def test_written_parameters_are_copies() -> None:
    module = network()
    params = {name: value + 1 for name, value in snapshot(module).items()}
    kept = copies(params)
    update_module(module, params)
    assert_equal(snapshot(module), kept)
    for value in params.values():
        value.zero_()
    assert_equal(snapshot(module), kept)


def test_the_optimiser_still_trains_the_module_that_was_written_into() -> None:
    module = nn.Linear(2, 1)
    optimiser = torch.optim.SGD(module.parameters(), lr=1.0)
    update_module(module, {"weight": torch.zeros(1, 2), "bias": torch.zeros(1)})
    module(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    assert torch.equal(module.weight, torch.full((1, 2), -1.0))


def test_tied_weights_must_agree() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    params = {name: value + 1 for name, value in snapshot(module).items()}
    update_module(module, params)
    assert torch.equal(module[1].weight, params["0.weight"])
    with pytest.raises(ParameterError, match=r"'0\.weight' and '1\.weight' are tied"):
        update_module(module, {**params, "1.weight": params["1.weight"] + 1})
    assert_equal(snapshot(module), params)


def test_modules_that_rename_their_weights_on_loading_still_work() -> None:
    module = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    params = {name: value + 1 for name, value in snapshot(module).items()}
    update_module(module, params)
    assert_equal(snapshot(module), params)


# --- memory -----------------------------------------------------------------------------------------------------------


def test_a_module_that_let_its_memory_go_and_took_it_back_is_the_same_once_it_is_written_into() -> None:
    module = network()
    module(torch.randn(4, 1, 4)).sum().backward()
    kept = snapshot(module)
    let_go(module)
    assert all(value.untyped_storage().nbytes() == 0 for value in module.state_dict().values())
    assert all(parameter.grad is None for parameter in module.parameters())
    take_back(module)
    update_module(module, kept)
    assert_equal(snapshot(module), kept)


def test_tied_weights_stay_tied_and_memory_of_others_stays_where_it_is() -> None:
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    module[1].weight = module[0].weight
    shared = torch.arange(6.0)
    module.register_buffer("part", shared[:4])
    kept = snapshot(module)
    let_go(module)
    assert shared.tolist() == [0, 1, 2, 3, 4, 5]
    take_back(module)
    update_module(module, kept)
    assert module[1].weight is module[0].weight
    assert_equal(snapshot(module), kept)


def test_the_norm_of_a_tensor_that_is_taken_in_pieces_is_its_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    params = {"w": torch.randn(7, 11), "n": torch.arange(3)}
    whole = euclidean_norm(params)
    monkeypatch.setattr("bitfount_model.parameters._NORM_BLOCK", 10)
    assert euclidean_norm(params) == pytest.approx(whole, rel=1e-15)
