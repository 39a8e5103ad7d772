"""Between a pod's training and its update: clipping and noise bound what an update can tell of the pod's rows.

What is promised, and to whom. Each pod adds noise to its own update before the update leaves it, so the promise needs no
trust in the modeller, the store or other pods: it is local differential privacy of the pod as a whole. Neighbours are any
two tables with the same numbers of training, validation and test rows. A whole table may be another one, so the promise
holds for a single row all the more. Rounds add up by Rényi differential privacy (Mironov, "Rényi Differential Privacy",
2017), and the sum is turned into (epsilon, delta) by an accountant of Opacus.

Who takes part in a round is drawn from the job's seed, which the modeller knows, so sampling hides nothing and the
accountant is told a sampling rate of 1. How updates are weighted and added is done to what is noisy already, and costs
nothing.

An update of length at most C against any other of length at most C: the two are at most 2 C apart. Noise of standard
deviation `noise_multiplier * C` is therefore half of `noise_multiplier` times the sensitivity, and is accounted as that.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitfount_model.errors import ParameterError
from bitfount_model.types import Parameters

SENSITIVITY = 2.0
"""How far apart two clipped updates can be, in units of the clip."""

ORDERS = tuple(1 + 10 ** (step / 20) for step in range(-120, 121))
"""Of the Rényi divergences that are looked at: 1 + 1e-6 to 1 + 1e6, so that neither end is ever the best one."""

RANDOM_BYTES = secrets.token_bytes
"""The operating system's generator: who sees some of the noise cannot tell the rest from it, as with a seeded one."""

_BLOCK = 1 << 18  # values whose noise is made at a time
_MARGIN = 1 - 2.0**-40  # more than the roundings of a norm can add
_BITS = 52  # of a uniform number: (k + 1/2) / 2**52 is exact in float64, and neither 0 nor 1
_GRID_BITS = 20  # the result is a multiple of about 2**-20 standard deviations
_RUNNING = frozenset({"running_mean", "running_var"})


@dataclass(frozen=True)
class PrivacySettings:
    """How a job's pods protect their updates.

    Attributes:
        clip: the Euclidean norm that an update is cut to, C; > 0.
        noise_multiplier: standard deviation of the noise of each value, in units of the clip; > 0.
        delta: at which the job's epsilon is told; between 0 and 1, well below 1 / rows.
    """

    clip: float
    noise_multiplier: float
    delta: float


@dataclass(frozen=True)
class PrivacyBudget:
    """What a pod's owner spends at most, over all jobs, and what else may leave in a private job.

    Attributes:
        epsilon: of all releases together, > 0.
        delta: at which it is counted; between 0 and 1.
        required: whether jobs without noise are refused.
        metrics_may_leave: whether a private job is sent validation metrics, training losses and test metrics. They have no
            noise, and are outside the promise.
        statistics_may_leave: whether a private job may ask for columns' categories, means and scales. They have no noise
            either; otherwise the job brings its own schema and its own preparation.
    """

    epsilon: float
    delta: float
    required: bool = False
    metrics_may_leave: bool = False
    statistics_may_leave: bool = False


@dataclass(frozen=True)
class Spent:
    """What has been told so far: (epsilon, delta)-differential privacy."""

    epsilon: float
    delta: float


def private_update(
    update: Parameters,
    trainable: Collection[str],
    settings: PrivacySettings,
    random_bytes: Callable[[int], bytes] = RANDOM_BYTES,
) -> dict[str, Tensor]:
    """The update as it may leave the pod: clipped as a whole, with Gaussian noise on every trainable value.

    What is not trainable (buffers, frozen parameters) is sent as no change, whatever training did to it: it would
    otherwise leave without noise.

    Args:
        update: what `diff_params` gave; left as it is.
        trainable: names of the parameters that training may change; floating point.
        settings: of the job.
        random_bytes: gives so many random bytes; not to be predicted by anybody.

    Returns:
        Names, shapes and dtypes of `update`, in its order.

    Raises:
        ParameterError: a trainable name is not in the update, is not floating point or is not finite, or a noisy value
            does not fit its dtype.
    """
    missing = sorted(set(trainable) - set(update))
    if missing:
        raise ParameterError(
            f"the update lacks {', '.join(missing)}: found {len(update)} names, want all trainable ones"
        )
    clipped = clip_update({name: value for name, value in update.items() if name in trainable}, settings.clip)
    std = settings.clip * settings.noise_multiplier
    noisy = {name: add_noise(value, std, random_bytes).to(update[name].dtype) for name, value in clipped.items()}
    if beyond := [name for name, value in noisy.items() if not bool(torch.isfinite(value).all())]:
        raise ParameterError(
            f"{', '.join(beyond)}: noise of standard deviation {std:g} does not fit the dtype; train in float32, or lower"
            " privacy.clip"
        )
    return {name: noisy[name] if name in noisy else torch.zeros_like(value) for name, value in update.items()}


def clip_update(update: Parameters, clip: float) -> dict[str, Tensor]:
    """The update, made shorter where its Euclidean norm over all values is more than `clip`; its direction stays.

    Args:
        update: name -> floating-point tensor; left as it is.
        clip: the longest norm, > 0.

    Returns:
        Name -> float64, with a norm of at most `clip`.

    Raises:
        ParameterError: a value is not floating point, or not finite.
    """
    whole = sorted(name for name, value in update.items() if not value.is_floating_point())
    if whole:
        raise ParameterError(f"{', '.join(whole)}: only floating-point values can be clipped, and take noise")
    norm = math.hypot(*(float(torch.linalg.vector_norm(value, dtype=torch.float64)) for value in update.values()))
    if not math.isfinite(norm):
        raise ParameterError("the update cannot be clipped: its norm is not a finite number")
    factor = 1.0 if norm <= clip * _MARGIN else clip / norm * _MARGIN
    return {name: value.detach().to(torch.float64) * factor for name, value in update.items()}


def add_noise(values: Tensor, std: float, random_bytes: Callable[[int], bytes] = RANDOM_BYTES) -> Tensor:
    """Independent Gaussian noise on each value, then all of it rounded to one grid.

    The last bits of a floating-point sum can tell its terms (Mironov, "On Significance of the Least Significant Bits for
    Differential Privacy", 2012). Here the sum is made in float64 and rounded to multiples of a power of two of about
    2**-20 of the standard deviation, which is done to a noisy value and leaves none of those bits.

    Args:
        values: float64, any shape; left as they are.
        std: standard deviation, > 0.
        random_bytes: as for `private_update`.

    Returns:
        Float64, of the same shape.
    """
    noise = gaussian(values.numel(), random_bytes).reshape(values.shape).to(values.device)
    grid = math.ldexp(1.0, math.frexp(std)[1] - 1 - _GRID_BITS)
    return torch.round((values + std * noise) / grid) * grid


def gaussian(count: int, random_bytes: Callable[[int], bytes] = RANDOM_BYTES) -> Tensor:
    """Standard normal numbers by the inverse of their distribution function, each from 52 random bits of its own.

    Args:
        count: how many, >= 0.
        random_bytes: as for `private_update`.

    Returns:
        `(count,)` float64, none larger than 8.21 in magnitude.
    """
    numbers = torch.empty(count, dtype=torch.float64)
    for start in range(0, count, _BLOCK):
        block = numbers[start : start + _BLOCK]
        words = torch.frombuffer(bytearray(random_bytes(8 * len(block))), dtype=torch.int64) & (2**_BITS - 1)
        block.copy_(torch.special.ndtri((words.to(torch.float64) + 0.5) * 2.0**-_BITS))
    return numbers


def running_statistics(states: Iterable[str]) -> list[str]:
    """Names of the buffers without which a model is wrong, and which a private job cannot send: BatchNorm's own."""
    return [name for name in states if name.rpartition(".")[2] in _RUNNING]


def epsilon_spent(noise_multipliers: Iterable[float], delta: float) -> float:
    """The epsilon of updates that were released one after the other, each with its own noise.

    Args:
        noise_multipliers: `PrivacySettings.noise_multiplier` of each release.
        delta: at which it is wanted.
    """
    counts: Mapping[float, int] = Counter(noise_multipliers)
    return composed_epsilon(
        [(noise / SENSITIVITY, 1.0, count) for noise, count in sorted(counts.items())], delta, ORDERS
    )


def composed_epsilon(history: Sequence[tuple[float, float, int]], delta: float, orders: Sequence[float]) -> float:
    """The epsilon of a history of Gaussian mechanisms, by Rényi differential privacy.

    The bound is that of Opacus' `RDPAccountant`: Mironov, Talwar and Zhang, "Rényi Differential Privacy of the Sampled
    Gaussian Mechanism" (2019), and Balle et al., "Hypothesis Testing Interpretations and Rényi Differential Privacy" (2020).

    Args:
        history: (standard deviation over sensitivity, sampling rate, number of releases).
        delta: at which it is wanted.
        orders: of the divergences, each > 1.

    Returns:
        Epsilon >= 0; 0 where nothing was released.
    """
    from opacus.accountants import RDPAccountant  # type: ignore[import-untyped]  # takes seconds to import, and only private jobs need it

    accountant = RDPAccountant()
    accountant.history = list(history)
    return max(0.0, float(accountant.get_epsilon(delta, alphas=list(orders))))
