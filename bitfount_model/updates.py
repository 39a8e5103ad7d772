"""Between fit and aggregate: what training changed in the parameters, and the weighted mean of such changes.

Both functions are pure. Nothing returned shares memory with an argument, the order of names is that of the first
argument, and dtypes never change.

How each kind of dtype is treated:

- floating point: the update is `new - old` in its own dtype; updates are averaged and added in float64, then rounded
  once to the dtype. A buffer called `running_var` is kept at or above zero, as a variance must be.
- integers, such as BatchNorm's `num_batches_tracked`: differences are exact; the weighted mean of the updates is exact
  too, rounded half to even once, and added. What leaves the dtype's range is refused, never wrapped round.
- booleans: the update is True where the value changed; a value changes when any update of positive weight changes it.

Infinities that a model holds on purpose (an attention mask registered as a buffer) count as no change where both sides
of a difference hold them; every other value that is not finite is refused by name.
"""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitfount_model.errors import ParameterError
from bitfount_model.parameters import check_compatible, quoted, stray_values
from bitfount_model.types import Parameters

_BLOCK = 1 << 16  # values averaged at a time: two float64 blocks of this size stay in a core's cache


def diff_params(old: Parameters, new: Parameters) -> dict[str, Tensor]:
    """The update that leads from the old parameters to the new ones: `new - old`.

    `apply_updates(old, [diff_params(old, new)])` is `new`, to the last bit for integers and booleans, and within one
    rounding of the larger of the two for floating point.

    Args:
        old: the parameters before training.
        new: the parameters after it; same names, shapes and dtypes.

    Returns:
        Name -> difference, with the names, shapes and dtypes of `old`; for booleans, True where the value changed.

    Raises:
        ParameterError: the two do not fit each other, hold values that are not finite, or a difference does not fit
            its dtype (a uint8 buffer that shrinks, float16 values too far apart).
    """
    check_compatible(old, new, what="the new parameters")
    return {name: _difference(name, value.detach(), new[name].detach().to(value.device)) for name, value in old.items()}


def apply_updates(
    base: Parameters, updates: Sequence[Parameters], weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """Federated averaging: the base plus the weighted mean of the updates.

    Cf. McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (2017). A weight
    counts: one update of weight 300 is the same as three such updates of weight 100. Additions run in the order of
    `updates`, so the same order gives the same bits.

    Args:
        base: the global parameters that every update started from.
        updates: what `diff_params` gave, one a pod, with the names, shapes and dtypes of `base`.
        weights: one number >= 0 an update, usually its rows of training data; not all 0. None weighs all alike.

    Returns:
        Name -> new value with the names, shapes and dtypes of `base`. See the module's docstring for how integers,
        booleans and variances are treated.

    Raises:
        ParameterError: no updates, weights of the wrong number or value, an update that does not fit the base (its
            position is named), or a result that does not fit its dtype.
    """
    shares = _checked_weights(len(updates), weights)
    for position, update in enumerate(updates, start=1):
        check_compatible(base, update, what=f"update {position} of {len(updates)}")
    return {
        name: _moved(name, value.detach(), [update[name].detach() for update in updates], shares)
        for name, value in base.items()
    }


def _difference(name: str, old: Tensor, new: Tensor) -> Tensor:
    if old.dtype == torch.bool:
        return old ^ new
    if not old.is_floating_point():
        before, after = old.to(torch.int64), new.to(torch.int64)
        wide = after - before
        return _narrowed(name, wide, ((after ^ before) & (after ^ wide)) < 0, old.dtype)
    change = new - old
    if stray_values(name, change):
        change = torch.where(new == old, torch.zeros_like(change), change)  # an infinity less itself
        _check_fits(name, change)
    return change


def _moved(name: str, base: Tensor, updates: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """One parameter after the weighted mean of its updates is added."""
    if base.dtype == torch.bool:
        changed = torch.stack([update for update, weight in zip(updates, weights, strict=True) if weight > 0])
        return base ^ changed.any(dim=0)
    if not base.is_floating_point():
        before, step = base.to(torch.int64), rounded_mean(updates, weights).to(base.device)
        wide = before + step
        return _narrowed(name, wide, ((before ^ wide) & (step ^ wide)) < 0, base.dtype)
    moved = _plus_mean(base, updates, weights)
    if name.rpartition(".")[2] == "running_var":
        moved.clamp_(min=0)
    _check_fits(name, moved, base)
    return moved


def _plus_mean(base: Tensor, updates: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """`base + sum(weights * updates) / sum(weights)` in float64, by blocks: no wide copy of a tensor is ever made."""
    largest = math.frexp(max(weights))[1]
    scaled = [math.ldexp(weight, -largest) for weight in weights]  # a power of two: exact, and sums cannot overflow
    total = math.fsum(scaled)
    flat_base, flat_updates = base.reshape(-1), [update.reshape(-1) for update in updates]
    moved = torch.empty(base.numel(), dtype=base.dtype, device=base.device)
    size = min(_BLOCK, base.numel())
    sums, values = torch.empty((2, size), dtype=torch.float64, device=base.device)
    for start in range(0, base.numel(), _BLOCK):
        stop = min(start + _BLOCK, base.numel())
        block, value = sums[: stop - start].zero_(), values[: stop - start]
        for update, weight in zip(flat_updates, scaled, strict=True):
            block.add_(value.copy_(update[start:stop]), alpha=weight)
        block.div_(total).add_(value.copy_(flat_base[start:stop]))
        moved[start:stop] = block
    return moved.reshape(base.shape)


def rounded_mean(updates: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The exact weighted mean of integer tensors of one shape, rounded half to even, as int64 on the CPU.

    Args:
        updates: at least one.
        weights: one finite number >= 0 each, not all 0.
    """
    if all(torch.equal(updates[0], update) for update in updates[1:]):
        return updates[0].to("cpu", torch.int64)
    whole = _whole_weights(weights)
    total = sum(whole)
    largest = max(
        (abs(int(bound)) for update in updates if update.numel() for bound in torch.aminmax(update)), default=0
    )
    # int64 where no sum can leave it; Python's own integers, slower by far, for weights that are no whole numbers.
    kind = np.int64 if 4 * total * max(largest, 1) < 2**63 else np.object_
    columns: list[Any] = [update.cpu().reshape(-1).numpy().astype(kind) for update in updates]
    summed: Any = np.add.reduce([weight * column for weight, column in zip(whole, columns, strict=True)])
    quotient = summed // total
    twice = 2 * (summed - quotient * total)
    up = (twice > total) | ((twice == total) & (quotient % 2 == 1))
    return torch.from_numpy((quotient + up).astype(np.int64)).reshape(updates[0].shape)


def _whole_weights(weights: Sequence[float]) -> list[int]:
    """The smallest whole numbers in the same proportions; a float is the fraction that its bits say."""
    exact = [Fraction(weight) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    divisor = math.gcd(*whole)
    return [weight // divisor for weight in whole]


def _checked_weights(updates: int, weights: Sequence[float] | None) -> list[float]:
    if updates == 0:
        raise ParameterError("there are no updates to apply: found an empty list, want at least one update")
    if weights is None:
        return [1.0] * updates
    if len(weights) != updates:
        raise ParameterError(f"found {len(weights)} weights for {updates} updates: give one weight an update")
    for position, weight in enumerate(weights, start=1):
        if not _is_weight(weight):
            raise ParameterError(f"weight {position} of {updates} is {quoted(weight)}, want a finite number >= 0")
    if not any(weights):
        raise ParameterError("all weights are 0, so the mean is not defined: give at least one update a weight > 0")
    return [float(weight) for weight in weights]


def _is_weight(weight: object) -> bool:
    if isinstance(weight, numbers.Integral) and not isinstance(weight, bool):
        return 0 <= int(weight) <= int(sys.float_info.max)
    return isinstance(weight, numbers.Real) and not isinstance(weight, bool) and 0 <= float(weight) < math.inf


def _narrowed(name: str, wide: Tensor, overflowed: Tensor, dtype: torch.dtype) -> Tensor:
    limits = torch.iinfo(dtype)
    if bool((overflowed | (wide < limits.min) | (wide > limits.max)).any()):
        raise ParameterError(
            f"{quoted(name)}: a result leaves the range of {dtype}, {limits.min} to {limits.max}. "
            "Integers are kept exact, never wrapped round: give this buffer a wider or a signed dtype."
        )
    return wide.to(dtype)


def _check_fits(name: str, value: Tensor, base: Tensor | None = None) -> None:
    problems = stray_values(name, value, base)
    if problems:
        raise ParameterError(
            f"{problems[0]} after the arithmetic: it was not finite before, or is too large for {value.dtype}"
        )
