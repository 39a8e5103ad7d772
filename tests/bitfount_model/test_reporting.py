"""Outputs of an epoch's steps: means over rows, and all rows joined."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitfount_model.errors import TrainingError
from bitfount_model.reporting import as_number, average_outputs, flatten_outputs

VALUES = st.floats(-1e6, 1e6)


@given(st.lists(st.tuples(VALUES, st.integers(1, 50)), min_size=1, max_size=20))
def test_the_average_is_that_of_all_rows(steps: list[tuple[float, int]]) -> None:
    found = average_outputs([{"loss": value} for value, _ in steps], [rows for _, rows in steps])
    values, rows = zip(*steps, strict=True)
    assert found["loss"] == pytest.approx(np.average(values, weights=rows), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    "value",
    [3, 3.0, True + 2, np.float32(3), np.array([3]), torch.tensor(3), torch.tensor([3.0]), torch.tensor(3.0).half()],
    ids=lambda value: f"{type(value).__name__} {getattr(value, 'dtype', '')}",
)
def test_ints_floats_and_tensors_of_one_element_are_numbers(value: Any) -> None:
    found = average_outputs([{"loss": value}], [4])
    assert found == {"loss": 3.0}
    assert type(found["loss"]) is float


def test_a_name_that_only_some_steps_give_is_averaged_over_those() -> None:
    outputs = [{"a": 1.0}, {"a": 3.0, "b": 5.0}, {"predictions": torch.ones(2, 2), "targets": torch.ones(2)}]
    assert average_outputs(outputs, [1, 3, 9]) == {"a": 2.5, "b": 5.0}


def test_no_steps_give_no_averages() -> None:
    assert average_outputs([], []) == {}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(2), r"'loss' has shape \(2,\): wanted one number"),
        (np.ones((1, 2)), r"shape \(1, 2\)"),
        ("high", "'loss' is 'high': wanted a number"),
        (None, "'loss' is None"),
        ([1.0], "wanted a number"),
    ],
)
def test_a_value_that_is_no_number_is_refused_by_name(value: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        as_number("loss", value)


def test_a_step_that_returns_no_dict_is_refused() -> None:
    with pytest.raises(TrainingError, match="a dict of name -> number, it returned a Tensor"):
        average_outputs([torch.ones(1)], [1])  # type: ignore[list-item]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_rows_are_joined_in_order_and_keep_their_dtype(dtype: torch.dtype) -> None:
    rows = torch.arange(10).reshape(5, 2).to(dtype)
    outputs = [{"predictions": rows[:3], "targets": [1, 2, 3]}, {"predictions": rows[3:], "targets": [4, 5]}]
    predictions, targets = flatten_outputs(outputs)
    np.testing.assert_array_equal(predictions, rows.numpy())
    assert predictions.dtype == rows.numpy().dtype
    np.testing.assert_array_equal(targets, [1, 2, 3, 4, 5])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(dtype: torch.dtype) -> None:
    predictions, _ = flatten_outputs(
        [{"predictions": torch.ones(2, dtype=dtype, requires_grad=True), "targets": [0, 1]}]
    )
    assert predictions.dtype == np.float32


def test_lists_of_strings_arrays_and_single_values_are_joined() -> None:
    outputs = [
        {"predictions": ["a", "b"], "targets": np.array([1.0, 2.0])},
        {"predictions": ["c"], "targets": torch.tensor(3.0)},
    ]
    predictions, targets = flatten_outputs(outputs)
    assert predictions.tolist() == ["a", "b", "c"]
    assert targets.tolist() == [1.0, 2.0, 3.0]


def test_lists_of_tensors_are_joined() -> None:
    row = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]
    predictions, _ = flatten_outputs([{"predictions": row, "targets": [0, 1]}])
    assert predictions.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_no_steps_give_no_rows() -> None:
    assert [array.shape for array in flatten_outputs([])] == [(0,), (0,)]


@pytest.mark.parametrize("output", [{"targets": [1]}, {"predictions": [1]}, torch.ones(1)], ids=str)
def test_a_step_without_predictions_or_targets_is_refused(output: Any) -> None:
    with pytest.raises(TrainingError, match='must return {"predictions": ..., "targets": ...}'):
        flatten_outputs([output])


def test_shapes_that_do_not_go_together_are_refused() -> None:
    outputs = [{"predictions": torch.ones(3, 2), "targets": torch.ones(3)}]
    squeezed = [{"predictions": torch.ones(2), "targets": torch.ones(1)}]  # as `.squeeze()` makes of one row
    with pytest.raises(TrainingError, match="the predictions of the steps do not join"):
        flatten_outputs(outputs + squeezed)
