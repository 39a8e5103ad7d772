"""The weight of a pod's answer: the rows behind it."""

from __future__ import annotations

import math
import numbers
from typing import TypeGuard

import numpy as np

from bitfount_model.errors import ParameterError
from bitfount_model.parameters import quoted


def checked_weight(pod: str, weight: object) -> float:
    """A pod's weight as a float.

    Raises:
        ParameterError: it is no finite number >= 0.
    """
    if not is_weight(weight):
        raise ParameterError(f"the weight of pod {quoted(pod)} is {quoted(weight)}, want a finite number >= 0")
    return float(weight)


def is_weight(weight: object) -> TypeGuard[float]:
    """A finite number >= 0 that a float can hold, as `apply_updates` wants it."""
    if isinstance(weight, bool | np.bool_) or not isinstance(weight, numbers.Real):
        return False
    try:
        return 0 <= float(weight) < math.inf
    except OverflowError:
        return False
