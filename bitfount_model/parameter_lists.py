"""Between parameters and JSON: named tensors as nested lists of plain numbers, and back.

Both functions are pure. `codec` has the binary form, which is far smaller and carries its own dtypes and shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitfount_model.parameters import misfits, name_differences, quoted, refusal, unusable
from bitfount_model.types import Parameters


def to_lists(params: Parameters) -> dict[str, Any]:
    """Parameters as plain nested lists of Python numbers; a scalar tensor becomes a number.

    Args:
        params: name -> tensor of any shape and supported dtype.

    Returns:
        Name -> nested lists. Values are exact; dtypes, and shapes with a 0 in them, are not in the lists: reading
        back needs the model's own parameters (`from_lists`), the binary form (`codec.encode`) keeps both by itself.

    Raises:
        ParameterError: a value is no dense tensor of a supported dtype.
    """
    problems = [problem for name, value in params.items() for problem in unusable(name, value)]
    if problems:
        raise refusal("the parameters cannot be turned into lists", problems)
    return {name: value.detach().tolist() for name, value in params.items()}


def from_lists(lists: Mapping[str, Any], like: Parameters) -> dict[str, Tensor]:
    """Reads nested lists back into the dtypes and shapes of a model: the inverse of `to_lists`.

    Args:
        lists: name -> nested lists of numbers.
        like: the model's parameters; only their names, shapes and dtypes count, and the places of their infinities.

    Returns:
        Name -> CPU tensor in the order of `like`; integers of 64 bits and float64 exact.

    Raises:
        ParameterError: names, shapes, kinds of numbers (a fraction or a bool for an integer buffer, text) or ranges
            do not fit, or values are not finite; lists every name concerned.
    """
    problems = name_differences(like, lists)
    read: dict[str, Tensor] = {}
    for name in (name for name in like if isinstance(lists, Mapping) and name in lists):
        value = _tensor(lists[name], like[name])
        if isinstance(value, str):
            problems.append(f"{quoted(name)} {value}")
        else:
            read[name] = value
            problems += misfits(name, value, like[name])
    if problems:
        raise refusal("the lists cannot be used", problems)
    return read


def _tensor(values: object, like: Tensor) -> Tensor | str:
    """Nested lists as a tensor of the dtype of `like`, or what is wrong with them."""
    if like.numel() == 0:
        return torch.empty(like.shape, dtype=like.dtype) if values == like.tolist() else f"is not {like.tolist()}"
    try:
        found = np.array(values)
    except ValueError:
        return f"has rows of different lengths, want shape {tuple(like.shape)}"
    kinds = "b" if like.dtype == torch.bool else "iuf" if like.is_floating_point() else "iu"
    if found.size == 0 or found.dtype.kind not in kinds:
        return f"holds {found.dtype} of shape {found.shape}, want numbers that fit {like.dtype}"
    if kinds == "iu":
        limits = torch.iinfo(like.dtype)
        if int(found.min()) < limits.min or int(found.max()) > limits.max:
            return f"has numbers beyond {like.dtype}, {limits.min} to {limits.max}"
    return torch.from_numpy(found).to(like.dtype)
