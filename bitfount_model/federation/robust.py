"""Between the pods' updates of a round and one update that a few bad ones among them cannot move at will.

| name | what it gives | settings | pods at least |
|---|---|---|---|
| median | each value's median over the pods; the mean of the middle two for an even number | | 3 |
| trimmed_mean | each value's mean without the `malicious` smallest and largest | malicious f | 2 f + 1 |
| krum | the one update that is closest to its n - f - 2 nearest | malicious f | 2 f + 3 |
| multi_krum | the mean of the `keep` updates of best Krum score | malicious f, keep (n - f) | 2 f + 3, and keep |
| norm_clipping | the mean of updates scaled to a norm of at most `maximum_norm` | maximum_norm | 1 |

Median and trimmed mean: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates" (2018).
Krum and Multi-Krum: Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent" (2017).
Norm clipping: Sun et al., "Can You Really Backdoor Federated Learning?" (2019).

The first four count each pod once, whatever its rows: a weight is a pod's own claim. Norm clipping counts by rows where the
job does. All of a model's floating-point values, BatchNorm's among them, make up norms and distances. Integers are
exact: medians and means of them are rounded half to even. A boolean changes where the middle of the pods (median), or any
of those that are left, change it.

Sums of floating point run in the order of the pods' names, so that a round ends in the same bits whoever answered first.
Memory: the updates as they came, 8 bytes a value for the result, and blocks of 65,536 values of each pod.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bitfount_model.data.names import suggestion
from bitfount_model.errors import ConfigurationError, ParameterError
from bitfount_model.federation.aggregation import RunningMean, apply_mean
from bitfount_model.federation.row_weights import checked_weight
from bitfount_model.parameters import check_compatible, euclidean_norm, quoted
from bitfount_model.types import Parameters
from bitfount_model.updates import rounded_mean

MEAN = "mean"
"""The aggregation that is not robust: plain averaging, one update in memory at a time."""
_BLOCK = 1 << 16  # values of each pod that are sorted or compared at a time


@dataclass(frozen=True)
class RobustSettings:
    """The settings of a rule; each reads those of its row in the module's table.

    Attributes:
        malicious: f, how many bad pods a round is to bear, >= 0.
        keep: how many updates Multi-Krum averages, >= 1; None is all but `malicious`.
        maximum_norm: Euclidean norm, > 0, in the unit of an update.

    Raises:
        ConfigurationError: lists every value out of its range.
    """

    malicious: int = 1
    keep: int | None = None
    maximum_norm: float = math.inf

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value!r}, want a whole number >= {least}"
            for name, value, least in (("malicious", self.malicious, 0), ("keep", self.keep, 1))
            if value is not None and (type(value) is not int or value < least)
        ]
        if type(self.maximum_norm) not in (int, float) or not self.maximum_norm > 0:
            problems.append(f"maximum_norm is {self.maximum_norm!r}, want a number > 0")
        if problems:
            raise ConfigurationError("the aggregation's settings: " + "; ".join(problems))


@dataclass(frozen=True)
class Aggregated:
    """What a rule makes of a round.

    Attributes:
        update: in the form of `RunningMean.mean`: float64 for floating point, the base's dtype for all else.
        chosen: positions of the updates that it is made of, where a rule chooses among whole updates; else all.
    """

    update: dict[str, Tensor]
    chosen: tuple[int, ...]


Rule = Callable[[Parameters, Sequence[Parameters], Sequence[float], RobustSettings], Aggregated]
"""`(base, updates, weights, settings) -> aggregated`, as `coordinate_median` describes it."""


def coordinate_median(
    base: Parameters, updates: Sequence[Parameters], weights: Sequence[float], settings: RobustSettings
) -> Aggregated:
    """Each value's median over the pods.

    Every rule has these arguments, and changes none of them.

    Args:
        base: the global parameters, for their names, shapes and dtypes.
        updates: of at least as many pods as the rule wants, each checked against the base.
        weights: one number > 0 an update; only norm clipping reads them.
        settings: the row of the module's table says which of them count.
    """
    middle = slice((len(updates) - 1) // 2, len(updates) // 2 + 1)
    return Aggregated(_mean_of_sorted(base, updates, middle), tuple(range(len(updates))))


def trimmed_mean(
    base: Parameters, updates: Sequence[Parameters], weights: Sequence[float], settings: RobustSettings
) -> Aggregated:
    """Each value's mean over the pods without the f smallest and the f largest. See `coordinate_median`."""
    left = slice(settings.malicious, len(updates) - settings.malicious)
    return Aggregated(_mean_of_sorted(base, updates, left), tuple(range(len(updates))))


def krum(
    base: Parameters, updates: Sequence[Parameters], weights: Sequence[float], settings: RobustSettings
) -> Aggregated:
    """The update of best Krum score; of equal scores, the first. See `coordinate_median`."""
    return _mean_of(base, updates, best_by_krum(updates, settings.malicious, 1))


def multi_krum(
    base: Parameters, updates: Sequence[Parameters], weights: Sequence[float], settings: RobustSettings
) -> Aggregated:
    """The mean of the updates of best Krum score. See `coordinate_median`."""
    keep = len(updates) - settings.malicious if settings.keep is None else settings.keep
    return _mean_of(base, updates, best_by_krum(updates, settings.malicious, keep))


def norm_clipping(
    base: Parameters, updates: Sequence[Parameters], weights: Sequence[float], settings: RobustSettings
) -> Aggregated:
    """The weighted mean of updates whose floating-point values are scaled to a norm of at most `maximum_norm`.

    The norm holds up to one rounding of each value to its dtype. See `coordinate_median`.
    """
    mean = RunningMean(base)
    for position, (update, weight) in enumerate(zip(updates, weights, strict=True)):
        norm = euclidean_norm(update)
        factor = 1.0 if norm <= settings.maximum_norm else settings.maximum_norm / norm
        mean.add(str(position), update if factor == 1.0 else scaled(update, factor), weight)
    return Aggregated(mean.take_mean(), tuple(range(len(updates))))


def best_by_krum(updates: Sequence[Parameters], malicious: int, keep: int) -> tuple[int, ...]:
    """The positions of the updates of best Krum score, in their own order.

    An update's score is the sum of its squared distances to its n - f - 2 nearest others.
    """
    squares = squared_distances(updates)
    squares.fill_diagonal_(-1)  # an update is no neighbour of itself: sorted first, and left out
    nearest = squares.sort(dim=1).values[:, 1 : len(updates) - malicious - 1]
    scores = nearest.sum(dim=1)
    return tuple(sorted(torch.argsort(scores, stable=True)[:keep].tolist()))


def squared_distances(updates: Sequence[Parameters]) -> Tensor:
    """Squared Euclidean distances between updates over all their floating-point values, `(n, n)` of float64.

    Infinities, which a checked update holds only where all others hold the same, count as equal.
    """
    squares = torch.zeros(len(updates), len(updates), dtype=torch.float64)
    for name, first in updates[0].items():
        if first.is_floating_point():
            for block in _blocks([update[name] for update in updates]):
                wide = block.to("cpu", torch.float64).nan_to_num_(0.0, 0.0, 0.0)
                # Differences, not products of the rows: those would cancel where updates are large and alike.
                squares += torch.cdist(wide, wide, compute_mode="donot_use_mm_for_euclid_dist").square_()
    return squares


def scaled(update: Parameters, factor: float) -> dict[str, Tensor]:
    """The update with its finite floating-point values times a factor, each rounded once to its dtype."""
    return {
        name: torch.where(value.isinf(), value, value * factor) if value.is_floating_point() else value
        for name, value in update.items()
    }


@dataclass(frozen=True)
class Aggregation:
    """One row of the module's table: the function, the settings that it reads, and the fewest pods."""

    rule: Rule
    settings: tuple[str, ...]
    fewest: Callable[[RobustSettings], int]
    required: tuple[str, ...] = ()
    by_rows: bool = False


AGGREGATIONS: Mapping[str, Aggregation | None] = {
    MEAN: None,
    "median": Aggregation(coordinate_median, (), lambda settings: 3),
    "trimmed_mean": Aggregation(trimmed_mean, ("malicious",), lambda settings: 2 * settings.malicious + 1),
    "krum": Aggregation(krum, ("malicious",), lambda settings: 2 * settings.malicious + 3),
    "multi_krum": Aggregation(
        multi_krum, ("malicious", "keep"), lambda settings: max(2 * settings.malicious + 3, settings.keep or 0)
    ),
    "norm_clipping": Aggregation(norm_clipping, ("maximum_norm",), lambda settings: 1, ("maximum_norm",), by_rows=True),
}
"""Name -> rule; None for plain averaging."""


def robust_settings(aggregation: str, given: Mapping[str, float] | None = None) -> RobustSettings:
    """The settings of an aggregation.

    Args:
        aggregation: a name in `AGGREGATIONS`.
        given: setting -> value; only what the rule reads. Whole numbers may come as floats.

    Raises:
        ConfigurationError: no such aggregation, a setting that it does not read, one that it needs and has not, or a
            value out of its range.
    """
    if aggregation not in AGGREGATIONS:
        raise ConfigurationError(
            f"unknown aggregation {aggregation!r}{suggestion(str(aggregation), list(AGGREGATIONS))}"
        )
    row = AGGREGATIONS[aggregation]
    known = row.settings if row else ()
    problems = [f"no setting {name!r}{suggestion(str(name), list(known))}" for name in given or {} if name not in known]
    problems += [f"{name} is missing" for name in (row.required if row else ()) if name not in (given or {})]
    if problems:
        raise ConfigurationError(f"{aggregation}: " + "; ".join(problems))
    whole = {"malicious", "keep"}
    return RobustSettings(
        **{
            name: int(value) if name in whole and float(value).is_integer() else value  # type: ignore[arg-type]
            for name, value in (given or {}).items()
        }
    )


def fewest_pods(aggregation: str, settings: RobustSettings) -> int:
    """How many updates an aggregation needs to bear what its settings say."""
    row = AGGREGATIONS[aggregation]
    return row.fewest(settings) if row else 1


class Aggregator(Protocol):
    """What a round folds its updates into; `RunningMean` is one."""

    @property
    def pods(self) -> tuple[str, ...]:
        """The pods whose updates are in."""

    @property
    def chosen(self) -> tuple[str, ...]:
        """Those of them whose updates the result is made of, once there is one."""

    @property
    def weight(self) -> float:
        """The sum of their weights."""

    def add(self, pod: str, update: Parameters, weight: float) -> None:
        """Checks an update and takes it in: see `RunningMean.add`."""

    def take_mean(self) -> dict[str, Tensor]:
        """The round's update: see `RunningMean.take_mean`."""

    def take_moved(self) -> dict[str, Tensor]:
        """The base plus the round's update: see `RunningMean.take_moved`."""


class Collected:
    """The updates of a round, kept until a robust rule has seen all of them.

    Args:
        base: the global parameters that every update started from; referred to, not copied.
        aggregation: a name in `AGGREGATIONS` that has a rule.
        settings: of it.
        weighted: whether norm clipping counts pods by their rows.
    """

    def __init__(self, base: Parameters, aggregation: str, settings: RobustSettings, *, weighted: bool = True) -> None:
        row = AGGREGATIONS[aggregation]
        if row is None:
            raise ConfigurationError(f"{aggregation} keeps no updates: use RunningMean")
        self._row = row
        self._aggregation = aggregation
        self._settings = settings
        self._base = base
        self._weighted = weighted and row.by_rows
        self._updates: dict[str, Parameters] = {}
        self._weights: dict[str, float] = {}
        self._chosen: tuple[str, ...] = ()

    @property
    def chosen(self) -> tuple[str, ...]:
        """The pods whose updates the result is made of, once there is one."""
        return self._chosen

    @property
    def pods(self) -> tuple[str, ...]:
        """The pods whose updates are in, in the order in which they came."""
        return tuple(self._updates)

    @property
    def weight(self) -> float:
        """The sum of the weights that are in; the number of pods where each counts once."""
        return math.fsum(self._weights.values())

    def add(self, pod: str, update: Parameters, weight: float) -> None:
        """Checks one pod's update and keeps it, if its weight is above 0; refers to it, and never changes it.

        Raises:
            ParameterError: as `RunningMean.add`.
        """
        share = checked_weight(pod, weight)
        if pod in self._weights:
            raise ParameterError(f"the update of pod {quoted(pod)} is in already: add each pod once a round")
        check_compatible(self._base, update, what=f"the update of pod {quoted(pod)}")
        if share > 0:
            self._updates[pod] = {name: value.detach() for name, value in update.items()}
            self._weights[pod] = share if self._weighted else 1.0

    def take_mean(self) -> dict[str, Tensor]:
        """The same as `mean`."""
        return self.mean()

    def take_moved(self) -> dict[str, Tensor]:
        """The base plus the rule's update."""
        return apply_mean(self._base, self.mean())

    def mean(self) -> dict[str, Tensor]:
        """The rule's update, in the form of `RunningMean.mean`.

        Raises:
            ParameterError: fewer updates than the rule needs.
        """
        wanted = fewest_pods(self._aggregation, self._settings)
        if len(self._updates) < wanted:
            raise ParameterError(
                f"{self._aggregation} needs updates of {wanted} pods to bear {self._settings.malicious} bad ones, and"
                f" {len(self._updates)} are in"
                if self._row.settings[:1] == ("malicious",)
                else f"{self._aggregation} needs updates of {wanted} pods, and {len(self._updates)} are in"
            )
        result = self._row.rule(self._base, list(self._updates.values()), list(self._weights.values()), self._settings)
        names = self.pods
        self._chosen = tuple(names[position] for position in result.chosen)
        return result.update


def aggregator(base: Parameters, aggregation: str, given: Mapping[str, float], *, weighted: bool) -> Aggregator:
    """What a round's updates are folded into.

    Args:
        base: the global parameters.
        aggregation: a name in `AGGREGATIONS`.
        given: its settings: see `robust_settings`.
        weighted: pods count by their training rows, where the aggregation lets them.
    """
    if AGGREGATIONS[aggregation] is None:
        return RunningMean(base, weighted=weighted)
    return Collected(base, aggregation, robust_settings(aggregation, given), weighted=weighted)


def _mean_of(base: Parameters, updates: Sequence[Parameters], chosen: tuple[int, ...]) -> Aggregated:
    mean = RunningMean(base, weighted=False)
    for position in chosen:
        mean.add(str(position), updates[position], 1)
    return Aggregated(mean.take_mean(), chosen)


def _mean_of_sorted(base: Parameters, updates: Sequence[Parameters], kept: slice) -> dict[str, Tensor]:
    """The mean over those pods that are within `kept` when each value's are sorted."""
    result = {}
    for name, value in base.items():
        wide = torch.empty(value.numel(), dtype=torch.float64 if value.is_floating_point() else value.dtype)
        stop = 0
        for block in _blocks([update[name] for update in updates]):
            start, stop = stop, stop + block.shape[1]
            rows = block.sort(dim=0).values[kept]
            if value.is_floating_point():
                wide[start:stop] = rows.to(torch.float64).mean(dim=0)
            elif value.dtype == torch.bool:
                wide[start:stop] = rows.any(dim=0)
            else:
                wide[start:stop] = rounded_mean(list(rows), [1.0] * len(rows)).to(value.dtype)
        result[name] = wide.reshape(value.shape).to(value.device)
    return result


def _blocks(values: Sequence[Tensor]) -> Iterator[Tensor]:
    """The same parameter of all pods, `(n, up to 65,536)` at a time."""
    flat = [value.reshape(-1) for value in values]
    for start in range(0, flat[0].numel(), _BLOCK):
        yield torch.stack([each[start : start + _BLOCK] for each in flat])
