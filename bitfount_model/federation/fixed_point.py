"""Between an update and a vector of a secure sum: words of Z_2^64 whose sum over pods decodes to the weighted mean.

A vector holds, in this order: every value of every parameter, in the order of the global parameters; the weight; two words
for each metric, its sum and its weight. Negative numbers are written in two's complement.

- Floating point: `round(value * weight * 2**fraction_bits)`, half to even.
- Integers: `value * weight`, exact.
- Booleans: 1 where the value changed and the weight is not 0, so that the sum counts the pods that changed it.
- The weight: itself. Metrics: `round(sum * 2**20)`, and the weight itself.

How exact it is. Let W be the bound of the pods' weights together, B that of the magnitude of a floating value, f the number
of fraction bits. It is the largest up to 62 for which `B * W * 2**f <= 2**62`, so that no sum leaves 63 bits and rounding has room.
A pod whose weight is at least 1 errs by half a unit, so all of them together move the mean by at most
`2**-(f + 1)`. Products and the decoded mean are rounded to float64, which moves it by at most `3 * B * 2**-53`. A layout
wants f >= 25 and B <= 2**25: the decoded weighted mean is within 2**-26 + 2**-26 = 2**-25 of the exact one, for any weights.

Metrics are within 2**-21 of their mean, but for float64's rounding. Values that do not fit are refused, and never changed
in silence.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from bitfount_model.errors import ParameterError, SecureSumError
from bitfount_model.federation.metric_sums import MetricSums
from bitfount_model.parameters import check_compatible, quoted, refusal, unusable
from bitfount_model.types import Parameters, Words

PRECISION = 2.0**-25
"""How far a decoded weighted mean of floating point may be from the exact one."""

_Signed = np.ndarray[tuple[int], np.dtype[np.int64]]
_SAFE = 2**62  # sums stay below this, half of what 64 bits with a sign can hold
_LEAST_BITS = 25
_MOST_BITS = 62  # more say nothing that float64 could hold, and could leave its range
_LARGEST_BOUND = 2**25
_METRIC_BITS = 20
_LARGEST_METRICS = 2**42  # of a metric's sums together, in magnitude
_BLOCK = 1 << 16  # values made at a time: no wide copy of a tensor is ever made


@dataclass(frozen=True)
class Encoded:
    """One pod's vector.

    Attributes:
        words: `(words,)` uint64.
        clipped: how many values were clipped; 0 unless that was asked for.
    """

    words: Words
    clipped: int


@dataclass(frozen=True)
class SecureMean:
    """What a sum of vectors says.

    Attributes:
        mean: the weighted mean of the updates, in the form of `RunningMean.mean`: float64 for floating point, the base's
            dtype for integers and booleans.
        weight: the weights together.
        metrics: the metrics' sums; a metric that no pod had has weight 0.
    """

    mean: dict[str, Tensor]
    weight: int
    metrics: MetricSums


class Layout:
    """Which word of a vector says what: the same for every pod of a sum, and public.

    Args:
        base: the global parameters that every update starts from, for their names, shapes and dtypes; not kept.
        pods: how many may take part, at least 1.
        total_weight: bound of the pods' weights together, usually the rows of training data that all pods announced.
        bound: of the magnitude of floating values, such as `param_clipping.clipping_bound` of the job. None takes the
            widest that keeps the precision: the largest power of two up to 2**25 for which f is at least 25. With 10**6
            rows in all that is 2**17, with 10**7 it is 2**13.
        metrics: names of the metrics, in the order of their words.

    Attributes:
        size: words of a vector.
        total_weight: as given.
        bound: of floating values, the largest float64 that is not above the one given.
        fraction_bits: f.
        metrics: as given.

    Raises:
        ParameterError: an entry of `base` is no dense tensor of a supported dtype.
        SecureSumError: `pods` or `total_weight` is no whole number from 1; the bound is not above 0 and at most 2**25, or
            leaves f below 25; a metric is named twice.
    """

    def __init__(
        self,
        base: Parameters,
        *,
        pods: int,
        total_weight: int,
        bound: float | Fraction | None = None,
        metrics: Iterable[str] = (),
    ) -> None:
        problems = [problem for name, value in base.items() for problem in unusable(name, value)]
        if problems:
            raise refusal("the global parameters cannot be summed", problems)
        self.metrics = tuple(metrics)
        _check_counts(pods=pods, total_weight=total_weight)
        if len(set(self.metrics)) < len(self.metrics):
            raise SecureSumError(f"metrics of a secure sum are named twice: {', '.join(map(quoted, self.metrics))}")
        # An expanded scalar knows shape and dtype, and holds one value.
        self._like = {name: torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in base.items()}
        self.total_weight = total_weight
        self.bound = _widest_bound(total_weight) if bound is None else _float_below(bound)
        self.fraction_bits = _fraction_bits(self.bound, total_weight)
        self._largest_metric = _LARGEST_METRICS // pods
        self._pods = pods
        self.size = sum(value.numel() for value in self._like.values()) + 1 + 2 * len(self.metrics)

    @property
    def digest(self) -> str:
        """sha256 of all that decides what a word says, 64 hexadecimal digits."""
        parameters = [[name, list(value.shape), str(value.dtype)] for name, value in self._like.items()]
        scales = [self.bound.hex(), self.fraction_bits, _METRIC_BITS, self.total_weight, self._pods]
        return hashlib.sha256(json.dumps([parameters, scales, self.metrics]).encode()).hexdigest()

    def encode(
        self, update: Parameters, weight: int, metrics: MetricSums | None = None, *, clip: bool = False
    ) -> Encoded:
        """One pod's vector.

        Args:
            update: what `diff_params` gave, with the names, shapes and dtypes of the base.
            weight: a whole number >= 0, usually the pod's rows of training data.
            metrics: the pod's figures; those that the layout does not name are left out, and those that the pod lacks
                count nothing.
            clip: clips floating values to the bound, and counts them, instead of refusing them. Integers are never clipped.

        Raises:
            ParameterError: the update does not fit the base, is not finite, or holds values out of range (names say which
                and how many); the weight is no whole number >= 0 or above the total; a metric is too large or its weight
                no whole number. Lists all of a kind.
        """
        if type(weight) is not int or not 0 <= weight <= self.total_weight:
            raise ParameterError(
                f"the weight of an update is {quoted(weight)}, want a whole number from 0 to {self.total_weight}, which is"
                " the weight that all pods announced together"
            )
        check_compatible(self._like, update, what="the update")
        values = {name: update[name].detach().reshape(-1) for name in self._like}
        beyond = {name: self._beyond(value) for name, value in values.items()}
        self._check_range(values, beyond, clip=clip)
        words = np.empty(self.size, dtype=np.uint64)
        signed, start = torch.from_numpy(words.view(np.int64)), 0
        for value in values.values():
            self._write(signed[start : start + value.numel()], value, weight)
            start += value.numel()
        words[start] = weight
        signed[start + 1 :] = torch.tensor(self._metric_words(metrics or MetricSums()), dtype=torch.int64)
        return Encoded(words, sum(beyond.values()))

    def decode(self, words: Words) -> SecureMean:
        """The weighted mean that a sum of vectors says.

        Args:
            words: `(words,)` uint64, the sum over pods in Z_2^64; left as it is.

        Raises:
            SecureSumError: the vector has another form; the weights together are 0, or more than was announced, which a
                sum is whose masks were not all taken off.
        """
        if words.dtype != np.uint64 or words.shape != (self.size,):
            raise SecureSumError(f"a sum is {words.dtype} {words.shape}, want uint64 ({self.size},)")
        signed = words.view(np.int64)
        values = self.size - 1 - 2 * len(self.metrics)
        weight = int(signed[values])
        if not 1 <= weight <= self.total_weight:
            found = (
                "0: no pod trained on any row"
                if weight == 0
                else f"{weight}: masks are left, or pods used other layouts"
            )
            raise SecureSumError(f"the weights of a sum are together {found}; want 1 to {self.total_weight}")
        mean, start = {}, 0
        for name, like in self._like.items():
            mean[name] = self._mean(signed[start : start + like.numel()], weight, like)
            start += like.numel()
        pairs = signed[values + 1 :].reshape(-1, 2).tolist()
        sums = {
            name: (math.ldexp(total, -_METRIC_BITS), float(rows))
            for name, (total, rows) in zip(self.metrics, pairs, strict=True)
        }
        if wrong := [name for name, (_, rows) in sums.items() if rows < 0]:
            raise SecureSumError(f"the weights of the metrics {', '.join(map(quoted, wrong))} are together below 0")
        return SecureMean(mean, weight, MetricSums(sums))

    def _beyond(self, value: Tensor) -> int:
        """How many values are out of range."""
        if value.dtype == torch.bool or not value.numel():
            return 0
        low, high = (bound.item() for bound in torch.aminmax(value))
        limit = self._limit(value)
        if -limit <= low and high <= limit:
            return 0
        wide = value.to(torch.float64) if value.is_floating_point() else value.to(torch.int64)
        return int(((wide < -limit) | (wide > limit)).sum())

    def _limit(self, value: Tensor) -> float | int:
        return self.bound if value.is_floating_point() else _SAFE // self.total_weight

    def _check_range(self, values: Mapping[str, Tensor], beyond: Mapping[str, int], *, clip: bool) -> None:
        problems = [
            f"{quoted(name)} has {beyond[name]} of {value.numel()} values beyond {self._limit(value)}"
            for name, value in values.items()
            if beyond[name] and not (clip and value.is_floating_point())
        ]
        if problems:
            raise refusal(
                "the update cannot be summed securely (a smaller learning rate, a wider bound or param_clipping may help)",
                problems,
            )

    def _write(self, words: Tensor, value: Tensor, weight: int) -> None:
        """Writes one parameter's words, by blocks."""
        scale = math.ldexp(weight, self.fraction_bits)
        wide = torch.empty(min(_BLOCK, value.numel()), dtype=torch.float64)
        for start in range(0, value.numel(), _BLOCK):
            block = value[start : start + _BLOCK]
            target = words[start : start + _BLOCK]
            if value.is_floating_point():
                target.copy_(wide[: len(block)].copy_(block).clamp_(-self.bound, self.bound).mul_(scale).round_())
            else:
                target.copy_(block).mul_(min(weight, 1) if value.dtype == torch.bool else weight)

    def _mean(self, words: _Signed, weight: int, like: Tensor) -> Tensor:
        if like.is_floating_point():
            mean = torch.from_numpy(words).to(torch.float64).div_(math.ldexp(weight, self.fraction_bits))
            return mean.reshape(like.shape)
        if like.dtype == torch.bool:
            return torch.from_numpy(words > 0).reshape(like.shape)
        return torch.from_numpy(_rounded(words, weight)).reshape(like.shape).to(like.dtype)

    def _metric_words(self, metrics: MetricSums) -> list[int]:
        found = {name: metrics.sums.get(name, (0.0, 0.0)) for name in self.metrics}
        problems = [
            f"{quoted(name)} has sum {total:g} and weight {rows:g}"
            for name, (total, rows) in found.items()
            if abs(total) > self._largest_metric or rows > self._largest_metric or rows != int(rows)
        ]
        if problems:
            raise ParameterError(
                f"metrics cannot be summed securely: {'; '.join(problems)}; want sums within ±{self._largest_metric} and"
                " whole weights up to that"
            )
        return [word for total, rows in found.values() for word in (round(math.ldexp(total, _METRIC_BITS)), int(rows))]


def _rounded(sums: _Signed, total: int) -> _Signed:
    """Exact quotients by a total > 0, rounded half to even; sums are at most 2**62 in magnitude."""
    quotient = sums // total
    twice = 2 * (sums - quotient * total)
    up = (twice > total) | ((twice == total) & (quotient % 2 == 1))
    rounded: _Signed = quotient + up
    return rounded


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if type(value) is not int or not 1 <= value <= 2**53:
            raise SecureSumError(f"{name} of a secure sum is {quoted(value)}, want a whole number from 1 to 2**53")


def _widest_bound(total_weight: int) -> float:
    """The largest power of two up to 2**25 that leaves 25 fraction bits; below 1 if weights are huge."""
    room = Fraction(_SAFE, total_weight << _LEAST_BITS)
    return min(math.ldexp(1.0, _floor_log2(room)), float(_LARGEST_BOUND))


def _float_below(bound: float | Fraction) -> float:
    """The largest float64 that is not above a bound."""
    if not 0 < bound <= _LARGEST_BOUND:
        raise SecureSumError(f"the bound of values in a secure sum is {bound!r}, want above 0 and at most 2**25")
    nearest = float(bound)
    return nearest if nearest <= bound else math.nextafter(nearest, 0.0)


def _fraction_bits(bound: float, total_weight: int) -> int:
    bits = _floor_log2(Fraction(_SAFE) / (Fraction(bound) * total_weight))
    if bits < _LEAST_BITS:
        raise SecureSumError(
            f"a secure sum of values up to {bound:g} with weights up to {total_weight} together has {bits} fraction bits,"
            f" want at least {_LEAST_BITS} for a mean within 2**-25: take a bound of at most {_widest_bound(total_weight):g}"
        )
    return min(bits, _MOST_BITS)


def _floor_log2(value: Fraction) -> int:
    """The largest whole number whose power of two is not above a value > 0."""
    estimate = value.numerator.bit_length() - value.denominator.bit_length()
    return estimate if Fraction(2) ** estimate <= value else estimate - 1
