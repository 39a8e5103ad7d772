"""Clipping: BatchNorm values brought to the bound of a secure sum, exactly, and nothing else touched."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bitfount_model.errors import ConfigurationError
from bitfount_model.param_clipping import check_clipping, clip_batch_norm, clipping_bound

CLIPPING = {"prime_q": 2000, "precision": 100, "num_workers": 2}  # a bound of 5


def filled(module: nn.Module, value: float) -> nn.Module:
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.fill_(value)
    return module


def test_the_bound_is_the_prime_over_twice_the_precision_and_the_workers() -> None:
    assert clipping_bound({"prime_q": 13, "precision": 10**3, "num_workers": 2}) == Fraction(13, 4000)
    assert clipping_bound(CLIPPING) == 5


def test_values_at_the_bound_can_be_summed_below_the_prime() -> None:
    bound = clipping_bound(CLIPPING)
    assert 2 * bound * CLIPPING["precision"] * CLIPPING["num_workers"] == CLIPPING["prime_q"]


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm1d(3), nn.BatchNorm2d(3), nn.BatchNorm3d(3), nn.SyncBatchNorm(3)],
    ids=lambda x: type(x).__name__,
)
@pytest.mark.parametrize(("value", "clipped_to"), [(7.0, 5.0), (-7.0, -5.0), (math.inf, 5.0), (-math.inf, -5.0)])
def test_weights_biases_means_and_variances_are_clipped_and_counted(
    layer: nn.Module, value: float, clipped_to: float
) -> None:
    for name, tensor in layer.state_dict().items():
        tensor.fill_(1_000 if name == "num_batches_tracked" else value)
    assert clip_batch_norm(nn.Sequential(nn.Sequential(layer)), CLIPPING) == 12
    for name, tensor in layer.state_dict().items():
        assert set(tensor.reshape(-1).tolist()) == {1_000 if name == "num_batches_tracked" else clipped_to}
    assert clip_batch_norm(layer, CLIPPING) == 0


def test_values_within_the_bound_and_at_it_are_not_touched() -> None:
    layer = nn.BatchNorm1d(4)
    values = torch.tensor([5.0, -5.0, 4.999, -0.0])
    layer.running_mean = values.clone()
    assert clip_batch_norm(layer, CLIPPING) == 0
    assert torch.equal(layer.running_mean, values)


def test_layers_that_are_no_batch_norm_are_left_alone() -> None:
    others = filled(
        nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.GroupNorm(1, 2), nn.InstanceNorm1d(2, affine=True)), 100.0
    )
    before = {name: value.clone() for name, value in others.state_dict().items()}
    assert clip_batch_norm(others, CLIPPING) == 0
    assert all(torch.equal(value, before[name]) for name, value in others.state_dict().items())


def test_batch_norms_without_weights_or_without_statistics_are_clipped_too() -> None:
    assert clip_batch_norm(filled(nn.BatchNorm1d(3, affine=False), 9.0), CLIPPING) == 6
    assert clip_batch_norm(filled(nn.BatchNorm1d(3, track_running_stats=False), 9.0), CLIPPING) == 6
    assert clip_batch_norm(nn.BatchNorm1d(3, affine=False, track_running_stats=False), CLIPPING) == 0


def test_nan_is_left_for_the_checks_on_parameters() -> None:
    layer = nn.BatchNorm1d(2)
    layer.running_mean = torch.tensor([math.nan, 8.0])
    assert clip_batch_norm(layer, CLIPPING) == 1
    torch.testing.assert_close(layer.running_mean, torch.tensor([math.nan, 5.0]), equal_nan=True)


def test_a_layer_that_requires_gradients_still_trains_after_clipping() -> None:
    layer = filled(nn.BatchNorm1d(2), 9.0)
    assert clip_batch_norm(layer, CLIPPING) == 8
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in layer.parameters())
    layer(torch.randn(4, 2)).sum().backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 10**30), st.integers(1, 10**9), st.integers(1, 1000))
def test_the_clipped_value_is_the_largest_of_its_dtype_within_the_exact_bound(
    dtype: torch.dtype, prime: int, precision: int, workers: int
) -> None:
    layer = nn.BatchNorm1d(2, affine=False).to(dtype)
    layer.running_mean = torch.tensor([math.inf, -math.inf], dtype=dtype)
    layer.running_var = torch.zeros(2, dtype=dtype)
    clipping = {"prime_q": prime, "precision": precision, "num_workers": workers}
    clip_batch_norm(layer, clipping)
    bound = clipping_bound(clipping)
    high, low = layer.running_mean.tolist()
    assert low == -high
    assert Fraction(high) <= bound
    above = np.nextafter(np.float64(high), np.inf) if dtype == torch.float64 else high * (1 + torch.finfo(dtype).eps)
    above = max(above, high + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps)
    assert math.isinf(above) or above > torch.finfo(dtype).max or Fraction(float(above)) > bound


@pytest.mark.parametrize(
    ("clipping", "messages"),
    [
        ({"prime_q": 13, "precision": 10}, ["'num_workers' is missing"]),
        ({**CLIPPING, "workers": 2}, ["'workers' is unknown"]),
        ({**CLIPPING, "prime_q": 0, "precision": -1}, ["'prime_q' is 0", "'precision' is -1"]),
        ({**CLIPPING, "num_workers": 2.0}, ["'num_workers' is 2.0, want a whole number > 0"]),
        ({**CLIPPING, "num_workers": True}, ["'num_workers' is True"]),
        ({**CLIPPING, "precision": "100"}, ["'precision' is '100'"]),
        ({**CLIPPING, "precision": None}, ["'precision' is None"]),
        ({}, ["'prime_q' is missing", "'precision' is missing", "'num_workers' is missing"]),
        (None, ["param_clipping is None, want a mapping"]),
        ([13, 10, 2], ["want a mapping"]),
    ],
)
def test_every_fault_of_the_mapping_is_named_and_the_module_left_as_it_was(clipping: Any, messages: list[str]) -> None:
    layer = filled(nn.BatchNorm1d(2), 100.0)
    with pytest.raises(ConfigurationError) as caught:
        clip_batch_norm(layer, clipping)
    for message in messages:
        assert message in str(caught.value)
    with pytest.raises(ConfigurationError):
        check_clipping(clipping)
    assert all(bool((tensor == 100).all()) for tensor in layer.state_dict().values())


def test_whole_numbers_of_numpy_are_welcome_and_the_mapping_is_not_changed() -> None:
    clipping: Any = {"prime_q": np.int64(2000), "precision": 100, "num_workers": np.int32(2)}
    kept = dict(clipping)
    check_clipping(clipping)
    assert clipping_bound(clipping) == 5
    assert clipping == kept
