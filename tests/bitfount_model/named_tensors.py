"""Models, tensors and comparisons that the tests of parameters share."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]


def network() -> nn.Sequential:
    """A network with a weight, a bias, running statistics and an int64 counter."""
    return nn.Sequential(nn.Conv1d(1, 3, 2), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(9, 2))


def copies(params: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in params.items()}


def assert_equal(found: dict[str, Any], want: dict[str, Any]) -> None:
    assert list(found) == list(want)
    for name, value in want.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].shape == value.shape, name
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, equal_nan=True)


def tensors(dtype: torch.dtype, size: int, low: int = -100, high: int = 100) -> st.SearchStrategy[Tensor]:
    if dtype == torch.bool:
        values: st.SearchStrategy[Any] = st.booleans()
    elif dtype.is_floating_point:
        values = st.floats(low, high, width=16)
    else:
        values = st.integers(max(low, torch.iinfo(dtype).min), min(high, torch.iinfo(dtype).max))
    return st.lists(values, min_size=size, max_size=size).map(lambda each: torch.tensor(each, dtype=dtype))
