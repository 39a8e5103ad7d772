"""Between fit and a secure sum: BatchNorm values brought into the range that the sum can carry.

A secure sum works on whole numbers below `prime_q`. With `num_workers` values, each multiplied by `precision` and of
either sign, the sum stays in range if no value is larger than `prime_q / (2 * precision * num_workers)`. Running means
and variances of BatchNorm follow the data and so are the values most likely to leave it.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor, nn

from bitfount_model.errors import ConfigurationError

_KEYS = ("prime_q", "precision", "num_workers")
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def clipping_bound(clipping: Mapping[str, int]) -> Fraction:
    """The largest magnitude that a secure sum can carry: `prime_q / (2 * precision * num_workers)`.

    Args:
        clipping: `{"prime_q": ..., "precision": ..., "num_workers": ...}`, whole numbers > 0.

    Returns:
        The exact bound, > 0.

    Raises:
        ConfigurationError: keys are missing or unknown, or a value is no whole number > 0; lists all of them.
    """
    if not isinstance(clipping, Mapping):
        raise ConfigurationError(f"param_clipping is {clipping!r}, want a mapping with the keys {', '.join(_KEYS)}")
    problems = [f"{key!r} is missing" for key in _KEYS if key not in clipping]
    problems += [f"{key!r} is unknown" for key in clipping if key not in _KEYS]
    problems += [
        f"{key!r} is {value!r}, want a whole number > 0"
        for key, value in clipping.items()
        if key in _KEYS and (not isinstance(value, numbers.Integral) or isinstance(value, bool) or value <= 0)
    ]
    if problems:
        raise ConfigurationError(f"param_clipping: {'; '.join(problems)}. Give exactly {', '.join(_KEYS)}.")
    return Fraction(int(clipping["prime_q"]), 2 * int(clipping["precision"]) * int(clipping["num_workers"]))


def check_clipping(clipping: Mapping[str, int]) -> None:
    """Refuses a `param_clipping` that `clip_batch_norm` could not use.

    Raises:
        ConfigurationError: as `clipping_bound`.
    """
    clipping_bound(clipping)


def clip_batch_norm(module: nn.Module, clipping: Mapping[str, int]) -> int:
    """Clips the BatchNorm layers of a module, in place, to what a secure sum can carry.

    Weights, biases, running means and running variances of every `BatchNorm1d`, `2d`, `3d` and `SyncBatchNorm` inside
    are clipped to at most the bound in magnitude, exactly: never rounded up past it. The integer counter
    `num_batches_tracked` is exempt. NaN stays NaN, for the checks on parameters to refuse.

    Args:
        module: the module to change; its other layers stay as they are.
        clipping: as for `clipping_bound`.

    Returns:
        How many values were clipped, so that it can be said to the user.

    Raises:
        ConfigurationError: as `clipping_bound`; the module is then as it was.
    """
    bound = clipping_bound(clipping)
    layers = [layer for layer in module.modules() if isinstance(layer, _BATCH_NORMS)]
    tensors = [value for layer in layers for value in (*layer.parameters(), *layer.buffers())]
    return sum(_clip(value, bound) for value in tensors if value.is_floating_point())


def _clip(value: Tensor, bound: Fraction) -> int:
    """Clips one tensor in place and counts the values that were beyond the bound."""
    limit = _largest_within(bound, value.dtype)
    with torch.no_grad():
        beyond = int((value.abs() > limit).sum())
        if beyond:
            value.clamp_(min=-limit, max=limit)
    return beyond


def _largest_within(bound: Fraction, dtype: torch.dtype) -> float:
    """The largest number of a dtype that is not above the bound."""
    largest = torch.finfo(dtype).max
    if bound >= largest:
        return largest
    nearest = torch.tensor(float(bound), dtype=torch.float64).to(dtype)
    if Fraction(nearest.item()) <= bound:
        return nearest.item()
    below = nearest.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]) - 1
    return below.view(dtype).item()
