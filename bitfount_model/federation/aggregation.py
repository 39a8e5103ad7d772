"""Between the pods' updates of a round and the next global parameters: sums with their weights, divided once at the end.

Updates are folded into a running sum one at a time, so memory does not grow with the number of pods. What each kind of
dtype is treated like is told in `updates`; the result is that of `updates.apply_updates` to the last bit when updates
come in the same order. Pods are added in the order of their names, so that a round ends in the same bits wherever and
however often it is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitfount_model.errors import ParameterError
from bitfount_model.federation.row_weights import checked_weight
from bitfount_model.parameters import check_compatible, name_differences, quoted, refusal, stray_values, unusable
from bitfount_model.types import JSON, Parameters
from bitfount_model.updates import apply_updates

_BLOCK = 1 << 16  # the blocks of `apply_updates`: where a block ends can decide the last bit of a sum
_SAFE = 2**61  # whole sums below this leave int64 room for the rounding of their mean


class RunningMean:
    """The weighted mean of updates that arrive one by one; it owns its sums, and never changes what it is given.

    Memory: 8 bytes a value, whatever the number of pods. Floating point is summed in float64; integers and booleans are
    exact, in any order. Merged partial sums of floating point differ from one sum in name order by at most
    `n * 2**-52` of the sum of `weight * |update|`, with `n` pods; the same merges in the same order give the same bits.

    Args:
        base: the global parameters that every update started from, for their names, shapes and dtypes; referred to, not
            copied, and so not to be changed while the mean is being made.
        weighted: True for federated averaging as published (McMahan et al., "Communication-Efficient Learning of Deep
            Networks from Decentralized Data", 2017), where a pod counts by its weight, its rows of training data. False
            counts every pod once.

    Raises:
        ParameterError: an entry of `base` is no dense tensor of a supported dtype.
    """

    def __init__(self, base: Parameters, *, weighted: bool = True) -> None:
        problems = [problem for name, value in base.items() for problem in unusable(name, value)]
        if problems:
            raise refusal("the global parameters cannot be averaged", problems)
        self._base = {name: value.detach() for name, value in base.items()}
        self._weighted = weighted
        self._pods: tuple[str, ...] = ()
        self._total = Fraction(0)
        self._exponent: int | None = None  # floating point is summed with weights divided by 2**exponent: exact
        floats = {name: value for name, value in self._base.items() if value.is_floating_point()}
        booleans = {name: value for name, value in self._base.items() if value.dtype == torch.bool}
        self._sums = {
            name: torch.zeros(value.numel(), dtype=torch.float64, device=value.device) for name, value in floats.items()
        }
        self._changed = {name: torch.zeros_like(value) for name, value in booleans.items()}
        self._whole = {
            name: _WholeSum.zeros(value.numel())
            for name, value in self._base.items()
            if name not in floats and name not in booleans
        }

    @property
    def pods(self) -> tuple[str, ...]:
        """The pods whose updates are in, in the order in which they came."""
        return self._pods

    @property
    def chosen(self) -> tuple[str, ...]:
        """The pods whose updates the mean is made of: all."""
        return self._pods

    @property
    def weight(self) -> float:
        """The sum of the weights that are in; the number of pods if they are not weighted."""
        return float(self._total)

    def add(self, pod: str, update: Parameters, weight: float) -> None:
        """Adds one pod's update; all of it, or on an error nothing.

        Args:
            pod: its name, for messages and to count nobody twice.
            update: what `diff_params` gave there: names, shapes and dtypes of the base, in any order of names.
            weight: a finite number >= 0, usually the pod's rows of training data. It is checked also where pods are not
                weighted.

        Raises:
            ParameterError: names the pod: it is in already, its update does not fit the base (every difference is
                listed), or its weight is no finite number >= 0.
        """
        share = checked_weight(pod, weight)
        if pod in self._pods:
            raise ParameterError(f"the update of pod {quoted(pod)} is in the mean already: add each pod once a round")
        check_compatible(self._base, update, what=f"the update of pod {quoted(pod)}")
        if not self._weighted:
            share = 1.0
        fraction, exponent = math.frexp(share)
        scaled = math.ldexp(fraction, self._scaled_by(exponent if share else None))
        for name, total in self._sums.items():
            _add_scaled(total, update[name].detach(), scaled)
        for name, whole in self._whole.items():
            self._whole[name] = whole.plus(update[name].detach(), Fraction(share))
        for name, changed in self._changed.items():
            if share > 0:
                changed.logical_or_(update[name].detach().to(changed.device))
        self._total += Fraction(share)
        self._pods = (*self._pods, pod)

    def merge(self, other: RunningMean) -> None:
        """Adds the sums of another mean of the same base, as if its pods had been added here; leaves it as it is.

        Args:
            other: the mean of other pods.

        Raises:
            ParameterError: a pod is in both, the names, shapes or dtypes differ, or one is weighted and the other not.
        """
        twice = sorted(set(self._pods) & set(other._pods))
        if twice or self._weighted is not other._weighted:
            reason = f"pods {twice} are in both" if twice else "one is weighted, the other is not"
            raise ParameterError(f"two partial means cannot be merged: {reason}; count every pod once and alike")
        _check_shapes(self._base, other._base, "the partial mean cannot be merged", wide=False)
        factor = math.ldexp(1.0, self._scaled_by(other._exponent))
        for name, total in self._sums.items():
            total.add_(other._sums[name].to(total.device), alpha=factor)
        for name, changed in self._changed.items():
            changed.logical_or_(other._changed[name].to(changed.device))
        self._whole = {name: whole.merged(other._whole[name]) for name, whole in self._whole.items()}
        self._total += other._total
        self._pods += other._pods

    def to_parts(self) -> tuple[dict[str, Tensor], JSON]:
        """The sums for another process: `from_parts` takes them there, to the last bit.

        Returns:
            Name -> sum `(values,)`: float64, int64 or bool; and a JSON value with what else there is.
        """
        whole = {name: (sums.values, sums.denominator, sums.bound) for name, sums in self._whole.items()}
        small = {name: values for name, (values, _, _) in whole.items() if values.dtype == np.int64}
        tensors = {name: torch.from_numpy(values) for name, values in small.items()}
        return {**self._sums, **self._changed, **tensors}, {
            "pods": list(self._pods),
            "total": [self._total.numerator, self._total.denominator],
            "exponent": self._exponent,
            "whole": {
                name: {"denominator": denominator, "bound": bound, "values": None if name in small else values.tolist()}
                for name, (values, denominator, bound) in whole.items()
            },
        }

    @classmethod
    def from_parts(cls, base: Parameters, tensors: Parameters, values: JSON, *, weighted: bool = True) -> RunningMean:
        """The mean that `to_parts` gave, for the same base.

        Args:
            base: as for the class.
            tensors: name -> sum.
            values: the JSON value.
            weighted: as for the class.
        """
        made = cls(base, weighted=weighted)
        made._sums = {name: tensors[name] for name in made._sums}
        made._changed = {name: tensors[name] for name in made._changed}
        made._whole = {
            name: _WholeSum(
                tensors[name].numpy() if found["values"] is None else np.array(found["values"], dtype=np.object_),
                found["denominator"],
                found["bound"],
            )
            for name, found in values["whole"].items()
        }
        made._pods = tuple(values["pods"])
        made._total = Fraction(*values["total"])
        made._exponent = values["exponent"]
        return made

    def mean(self) -> dict[str, Tensor]:
        """The weighted mean of the updates that are in; more may be added afterwards.

        Returns:
            Name -> mean, with the names and shapes of the base and memory of its own. Floating point is float64, not
            yet rounded to the base's dtype: `apply_mean` rounds once. Integers (the exact mean, rounded half to even)
            and booleans (True where any update of positive weight is) have the base's dtype.

        Raises:
            ParameterError: no updates are in, or all weights are 0.
        """
        return self._means(lambda name, divisor: (self._sums[name] / divisor).reshape(self._base[name].shape))

    def take_mean(self) -> dict[str, Tensor]:
        """What `mean` gives, in the memory of the sums themselves: the last thing that can be asked of them."""
        return self._means(self._take)

    def take_moved(self) -> dict[str, Tensor]:
        """What `apply_mean(base, mean())` gives; each sum is let go of once its parameter has moved. The last thing to ask.

        Raises:
            ParameterError: as `mean` and `apply_mean`.
        """
        divisor = self._divisor()
        floats = {
            name: _moved(name, value, self._take(name, divisor))
            for name, value in self._base.items()
            if name in self._sums
        }
        exact = {name: value for name, value in self._base.items() if name not in floats}
        moved = floats | apply_mean(exact, {name: self._exact_mean(name, value) for name, value in exact.items()})
        return {name: moved[name] for name in self._base}

    def _means(self, of_sum: Callable[[str, float], Tensor]) -> dict[str, Tensor]:
        """The mean of each tensor; of floating point by `of_sum(name, divisor)`."""
        divisor = self._divisor()
        return {
            name: of_sum(name, divisor) if name in self._sums else self._exact_mean(name, value)
            for name, value in self._base.items()
        }

    def _divisor(self) -> float:
        """What sums of floating point are divided by."""
        if not self._total:
            found = f"all {len(self._pods)} weights are 0" if self._pods else "no updates are in"
            raise ParameterError(f"the mean is not defined: {found}; want at least one update of weight > 0")
        return float(self._total / Fraction(2) ** (self._exponent or 0))

    def _take(self, name: str, divisor: float) -> Tensor:
        return self._sums.pop(name).div_(divisor).reshape(self._base[name].shape)

    def _exact_mean(self, name: str, base: Tensor) -> Tensor:
        if name in self._changed:
            return self._changed[name].clone()
        return self._whole[name].mean(self._total).reshape(base.shape).to(base.device, base.dtype)

    def _scaled_by(self, exponent: int | None) -> int:
        """Makes room for a weight of that exponent (None: of 0), and says by which power of two it enters the sums.

        Weights enter as fractions of the largest power of two so far, so that none is too large or too small.
        """
        if exponent is None:
            return 0
        if self._exponent is None:
            self._exponent = exponent
        if exponent > self._exponent:
            for total in self._sums.values():
                total.mul_(math.ldexp(1.0, self._exponent - exponent))
            self._exponent = exponent
        return exponent - self._exponent


@dataclass(frozen=True)
class _WholeSum:
    """An exact weighted sum of integers, in units of `1 / denominator`: int64 while it fits, then Python's own."""

    values: Any  # numpy array `(values,)`, of int64 or of Python integers
    denominator: int
    bound: int  # no value is larger in magnitude

    @classmethod
    def zeros(cls, size: int) -> _WholeSum:
        return cls(np.zeros(size, dtype=np.int64), 1, 0)

    def plus(self, update: Tensor, weight: Fraction) -> _WholeSum:
        bounds = torch.aminmax(update) if update.numel() else ()
        largest = max((abs(int(bound)) for bound in bounds), default=0)
        values = update.cpu().reshape(-1).numpy()
        times, denominator = weight.numerator, weight.denominator
        kind = np.int64 if largest * times < _SAFE and times < _SAFE else np.object_
        return self.merged(_WholeSum(values.astype(kind) * times, denominator, largest * times))

    def merged(self, other: _WholeSum) -> _WholeSum:
        # A float is a fraction whose denominator is a power of two, so the larger of two is a multiple of the smaller.
        denominator = max(self.denominator, other.denominator)
        mine, theirs = denominator // self.denominator, denominator // other.denominator
        bound = self.bound * mine + other.bound * theirs
        kind = np.int64 if max(bound, mine, theirs) < _SAFE else np.object_
        return _WholeSum(self.values.astype(kind) * mine + other.values.astype(kind) * theirs, denominator, bound)

    def mean(self, weight: Fraction) -> Tensor:
        """The sum divided by a weight > 0, rounded half to even, as int64 `(values,)`."""
        total = int(weight * self.denominator)  # whole, as every weight is in these units
        values = self.values.astype(np.int64 if max(self.bound, total) < _SAFE else np.object_)
        quotient = values // total
        twice = 2 * (values - quotient * total)
        up = (twice > total) | ((twice == total) & (quotient % 2 == 1))
        return torch.from_numpy((quotient + up).astype(np.int64))


def apply_mean(base: Parameters, mean: Parameters) -> dict[str, Tensor]:
    """The base plus a mean update: `apply_mean(base, running.mean())` is `apply_updates(base, updates, weights)`.

    Args:
        base: the global parameters that the updates started from.
        mean: what `RunningMean.mean` gave, or steps of a server optimiser in the same form: float64 for floating point,
            the base's dtype for integers and booleans.

    Returns:
        Name -> new value with the names, shapes and dtypes of `base`, rounded once to the dtype; `running_var` is kept
        at or above zero, integers stay exact.

    Raises:
        ParameterError: the mean does not fit the base, or a result does not fit its dtype.
    """
    check_mean(base, mean)
    exact = [name for name, value in base.items() if not value.is_floating_point()]
    moved = apply_updates({name: base[name] for name in exact}, [{name: mean[name] for name in exact}])
    return {
        name: moved[name] if name in moved else _moved(name, value.detach(), mean[name]) for name, value in base.items()
    }


def check_mean(base: Parameters, mean: Parameters) -> None:
    """Refuses a mean update whose names, shapes or dtypes are not those that `apply_mean` wants; lists all differences.

    Raises:
        ParameterError: it does not fit.
    """
    _check_shapes(base, mean, "the mean update cannot be applied", wide=True)


def _add_scaled(total: Tensor, update: Tensor, weight: float) -> None:
    """Adds `weight * update` to a flat float64 sum, by blocks: no wide copy of the update is ever made."""
    flat = update.reshape(-1)
    wide = torch.empty(min(_BLOCK, flat.numel()), dtype=torch.float64, device=total.device)
    for start in range(0, flat.numel(), _BLOCK):
        stop = min(start + _BLOCK, flat.numel())
        total[start:stop].add_(wide[: stop - start].copy_(flat[start:stop]), alpha=weight)


def _moved(name: str, base: Tensor, mean: Tensor) -> Tensor:
    """One floating-point parameter after its mean update is added in float64, by blocks: no wide copy of it is ever made."""
    moved = torch.empty(base.shape, dtype=base.dtype, device=base.device)
    before, steps, after = base.reshape(-1), mean.to(base.device).reshape(-1), moved.reshape(-1)
    wide = torch.empty(min(_BLOCK, base.numel()), dtype=torch.float64, device=base.device)
    for start in range(0, base.numel(), _BLOCK):
        stop = min(start + _BLOCK, base.numel())
        block = wide[: stop - start].copy_(before[start:stop]).add_(steps[start:stop])
        if name.rpartition(".")[2] == "running_var":
            block.clamp_(min=0)
        after[start:stop] = block
    if stray_values(name, moved, base):
        raise ParameterError(
            f"{stray_values(name, moved, base)[0]} after the mean update is added: it was not finite before, or is too "
            f"large for {base.dtype}. A smaller learning rate, at the pods or of the server, may help."
        )
    return moved


def _check_shapes(base: Parameters, given: Parameters, headline: str, *, wide: bool) -> None:
    """Refuses other names, shapes and dtypes; `wide` wants float64 for floating point. Values are not looked at."""
    problems = name_differences(base, given)
    for name in (name for name in base if name in given):
        problems += unusable(name, given[name])
        found, want = given[name], base[name]
        dtype = torch.float64 if wide and want.is_floating_point() else want.dtype
        if isinstance(found, Tensor) and (found.shape, found.dtype) != (want.shape, dtype):
            problems.append(
                f"{quoted(name)} is {tuple(found.shape)} of {found.dtype}, want {tuple(want.shape)} of {dtype}"
            )
    if problems:
        raise refusal(headline, problems)
