"""Parameter lists: nested lists of plain numbers, there and back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitfount_model.errors import ParameterError
from bitfount_model.parameter_lists import from_lists, to_lists
from bitfount_model.parameters import SUPPORTED_DTYPES
from tests.bitfount_model.named_tensors import assert_equal, copies


def examples(dtype: torch.dtype) -> Iterable[Tensor]:
    if dtype == torch.bool:
        flat = torch.tensor([True, False, True, True, False, True])
    elif dtype.is_floating_point:
        limits = torch.finfo(dtype)
        flat = torch.tensor([limits.max, limits.min, limits.tiny, -0.0, 1 / 3, -math.pi], dtype=dtype)
    else:
        whole = torch.iinfo(dtype)
        flat = torch.tensor([whole.max, whole.min, 0, 1, whole.max - 1, 2], dtype=dtype)
    yield from (flat, flat.reshape(2, 3), flat.reshape(2, 1, 3), flat[0], flat[:0], torch.empty(0, 3, dtype=dtype))
    yield from (torch.empty(3, 0, dtype=dtype), torch.empty(2, 0, 3, dtype=dtype), flat.reshape(2, 3).T)


@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES)
def test_lists_survive_json_and_read_back_into_the_models_dtypes_and_shapes(dtype: torch.dtype) -> None:
    params = {f"name {place}": value for place, value in enumerate(examples(dtype))}
    kept = copies(params)
    text = json.dumps(to_lists(params))
    found = from_lists(json.loads(text), params)
    assert_equal(found, kept)
    assert_equal(params, kept)
    assert all(torch.equal(torch.signbit(found[name]), torch.signbit(value)) for name, value in params.items())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
def test_float64_lists_are_exact(values: list[float]) -> None:
    like = {"w": torch.zeros(len(values), dtype=torch.float64)}
    assert from_lists({"w": values}, like)["w"].tolist() == values


def test_lists_are_plain_python_in_the_order_of_the_names() -> None:
    lists = to_lists({"b": torch.tensor([[1.5]]), "a": torch.tensor(3), "c": torch.tensor([True])})
    assert lists == {"b": [[1.5]], "a": 3, "c": [True]}
    assert list(lists) == ["b", "a", "c"]
    assert type(lists["a"]) is int
    like = {"c": torch.tensor([False]), "a": torch.tensor(0), "b": torch.zeros(1, 1)}
    assert list(from_lists(lists, like)) == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("dtype", "values", "message"),
    [
        (torch.float32, [1.0], r"has shape \(1,\), want \(2,\)"),
        (torch.float32, [[1.0, 2.0]], r"has shape \(1, 2\), want \(2,\)"),
        (torch.float32, 1.0, r"has shape \(\), want \(2,\)"),
        (torch.float32, [], "holds"),
        (torch.float32, [[1.0], [1.0, 2.0]], "rows of different lengths"),
        (torch.float32, ["1", "2"], "want numbers that fit"),
        (torch.float32, [None, 1.0], "want numbers that fit"),
        (torch.float32, [True, False], "want numbers that fit"),
        (torch.float32, [1.0, math.nan], "has 1 of 2 values that are NaN"),
        (torch.float32, [1e300, 1.0], "has 1 of 2 values that are NaN or infinite"),
        (torch.float64, [10**400, 1.0], ""),
        (torch.float64, [10**400, 1], ""),
        (torch.int64, [1.5, 2.0], "want numbers that fit torch.int64"),
        (torch.int64, [2**63, 2**63], "has numbers beyond torch.int64"),
        (torch.int64, [2**63, 0], "want numbers that fit torch.int64"),
        (torch.int64, [2**64, 0], "want numbers that fit"),
        (torch.int8, [128, 0], "has numbers beyond torch.int8, -128 to 127"),
        (torch.uint8, [-1, 0], "has numbers beyond torch.uint8"),
        (torch.bool, [0, 1], "want numbers that fit torch.bool"),
        (torch.float32, {"a": 1.0}, "want numbers that fit"),
        (torch.float32, b"12", "want numbers that fit"),
    ],
)
def test_lists_that_do_not_fit_are_refused_by_name(dtype: torch.dtype, values: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=rf"'w' .*{message}"):
        from_lists({"w": values}, {"w": torch.zeros(2, dtype=dtype)})


def test_lists_for_empty_tensors_must_be_the_empty_lists_of_their_shape() -> None:
    like = {"w": torch.zeros(3, 0)}
    assert from_lists({"w": [[], [], []]}, like)["w"].shape == (3, 0)
    for wrong in ([], [[]], [[1.0], [], []], 0.0):
        with pytest.raises(ParameterError, match="'w' is not"):
            from_lists({"w": wrong}, like)


def test_every_fault_of_the_lists_is_reported_together() -> None:
    like = {"a": torch.zeros(1), "b": torch.zeros(1, dtype=torch.int64), "c": torch.zeros(2)}
    with pytest.raises(ParameterError) as caught:
        from_lists({"b": [0.5], "c": [1.0], "d": [1.0]}, like)
    for part in ("'a' is missing", "'d' is not a name", "'b' holds float64", "'c' has shape (1,), want (2,)"):
        assert part in str(caught.value)
    with pytest.raises(ParameterError, match="want a mapping"):
        from_lists([[1.0]], like)  # type: ignore[arg-type]


def test_lists_cannot_be_made_of_what_is_no_tensor() -> None:
    with pytest.raises(ParameterError, match="'w' is of type list"):
        to_lists({"w": [1.0]})  # type: ignore[dict-item]
