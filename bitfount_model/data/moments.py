"""Values of a column, in parts -> sums that can be added -> mean and standard deviation of all; below the preparation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np


@dataclass(frozen=True)
class Moments:
    """What is kept of the values that are there in one part of a continuous column, such as a pod's.

    Sums are those of values divided by `2**exponent`, which brings the largest into [0.5, 1): exact, and squares of
    huge values cannot overflow.

    Attributes:
        count: number of values; 0 where all are missing, and then all else is 0.
        exponent: of the power of two that values were divided by.
        pivot: the number that distances are measured from: the part's mean, divided likewise.
        first: sum of the distances; about 0, namely what the rounding of the mean left over.
        second: sum of their squares.
    """

    count: int
    exponent: int
    pivot: float
    first: float
    second: float

    @classmethod
    def of(cls, values: np.ndarray) -> Moments:
        """The moments of values `(rows,)` float64, finite or NaN where missing."""
        present = values[~np.isnan(values)]
        if not len(present):
            return cls(0, 0, 0.0, 0.0, 0.0)
        low, high = float(present.min()), float(present.max())
        exponent = math.frexp(max(abs(low), abs(high)))[1]
        small = np.ldexp(present, -exponent)
        pivot = math.ldexp(low, -exponent) if low == high else float(small.mean())
        away = small - pivot
        return cls(len(present), exponent, pivot, float(away.sum()), float(np.square(away).sum()))


def mean_and_scale(parts: Iterable[Moments]) -> tuple[float, float]:
    """Mean and population standard deviation of all values, from exact sums and one rounding each.

    Args:
        parts: in any order, which is not seen in the result.

    Returns:
        Scale 1.0 where all values are the same, mean 0.0 where there are none.

    Raises:
        OverflowError: the mean or the scale is beyond float64.
    """
    count, total, squares = 0, Fraction(0), Fraction(0)
    for part in parts:
        unit = Fraction(2) ** part.exponent
        pivot, first = Fraction(part.pivot), Fraction(part.first)
        count += part.count
        total += unit * (part.count * pivot + first)
        squares += unit**2 * (Fraction(part.second) + 2 * pivot * first + part.count * pivot**2)
    if not count:
        return 0.0, 1.0
    mean = total / count
    return float(mean), _root(squares / count - mean**2) or 1.0


def _root(value: Fraction) -> float:
    """The square root of any fraction >= 0, as a float: through whole numbers, which neither over- nor underflow."""
    shift = 60 - (value.numerator.bit_length() - value.denominator.bit_length()) // 2
    return float(math.isqrt(int(value * Fraction(4) ** shift)) / Fraction(2) ** shift)
