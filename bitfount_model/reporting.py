"""From the outputs of an epoch's steps to one value for the epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitfount_model.errors import TrainingError

NOT_AVERAGED = ("predictions", "targets")


def average_outputs(outputs: Sequence[Mapping[str, Any]], rows: Sequence[int]) -> dict[str, float]:
    """The mean of each named number over all rows.

    Args:
        outputs: one mapping a step: floats, ints or one-element tensors; `predictions` and `targets` are passed over.
        rows: how many rows each step saw, as many as there are outputs.

    Raises:
        TrainingError: an output is no mapping, or a value is not a number.
    """
    sums: dict[str, float] = {}
    weights: dict[str, int] = {}
    for output, count in zip(outputs, rows, strict=True):
        if not isinstance(output, Mapping):
            raise TrainingError(
                f"validation_step must return a dict of name -> number, it returned a {type(output).__name__}"
            )
        for name, value in output.items():
            if name in NOT_AVERAGED:
                continue
            sums[name] = sums.get(name, 0.0) + as_number(name, value) * count
            weights[name] = weights.get(name, 0) + count
    return {name: total / weights[name] for name, total in sums.items()}


def as_number(name: str, value: Any) -> float:
    """A value of a step's or an epoch's dict as a float.

    Args:
        name: the value's name, for the message.
        value: a float, an int, or a tensor or array of one element.

    Raises:
        TrainingError: it is something else.
    """
    if isinstance(value, Tensor | np.ndarray):
        if len(value.reshape(-1)) != 1:
            raise TrainingError(
                f"the validation value {name!r} has shape {tuple(value.shape)}: wanted one number, e.g. its mean"
            )
        value = value.item()
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TrainingError(f"the validation value {name!r} is {value!r}: wanted a number") from error


def flatten_outputs(outputs: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """All predictions and all targets of a test run, in order.

    Args:
        outputs: one mapping a step, with `predictions` and `targets`: tensors or arrays `(rows, ...)`, or lists of `rows`.

    Returns:
        Predictions and targets, `(rows, ...)` each; half precision becomes float32, lists of strings stay strings.

    Raises:
        TrainingError: an output lacks one of the two, or the steps' shapes do not go together.
    """
    return _joined(outputs, "predictions"), _joined(outputs, "targets")


def _joined(outputs: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    if any(not isinstance(output, Mapping) or name not in output for output in outputs):
        raise TrainingError(f'test_step must return {{"predictions": ..., "targets": ...}}; {name!r} is missing')
    try:
        parts = [_as_array(output[name]) for output in outputs]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)
    except ValueError as error:
        raise TrainingError(f"the {name} of the steps do not join to one array (rows, ...): {error}") from error


def _as_array(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        half = value.dtype in (torch.bfloat16, torch.float16)
        value = value.detach().cpu().to(torch.float32 if half else value.dtype).numpy()
    return np.atleast_1d(np.asarray(value))
