"""Metrics of several pods as sums that are added: the average over their rows, and nothing else, comes out at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from bitfount_model.errors import ParameterError, SerializationError
from bitfount_model.federation.row_weights import is_weight
from bitfount_model.parameters import quoted


@dataclass(frozen=True)
class MetricSums:
    """Figures of several pods as `[sum, weight]` each, to be averaged by rows: a value that is added, never changed.

    A pod that lacks a metric does not count for it. Neither does one whose figure is not finite (an AUC where only one
    class occurs): its weight is 0, but the metric's name stays known.

    Attributes:
        sums: metric -> (sum of weight * value, sum of weights), all finite, weights >= 0.
    """

    sums: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, stats: Mapping[str, float], weight: float) -> MetricSums:
        """One pod's figures.

        Args:
            stats: metric -> value, as an entry of `val_stats`; nan and infinities count as not defined.
            weight: the rows behind them, a finite number >= 0.

        Raises:
            ParameterError: the weight is no finite number >= 0.
        """
        if not is_weight(weight):
            raise ParameterError(f"the weight of metrics is {quoted(weight)}, want a finite number >= 0")
        sums = {name: (float(value) * float(weight), float(weight)) for name, value in stats.items()}
        return cls({name: pair if math.isfinite(pair[0]) else (0.0, 0.0) for name, pair in sums.items()})

    def add(self, other: MetricSums) -> MetricSums:
        """The sums of both; a metric that only one has stays as it is there."""
        names = [*self.sums, *(name for name in other.sums if name not in self.sums)]
        pairs = ((self.sums.get(name, (0.0, 0.0)), other.sums.get(name, (0.0, 0.0))) for name in names)
        return MetricSums(
            {
                name: (mine[0] + theirs[0], mine[1] + theirs[1])
                for name, (mine, theirs) in zip(names, pairs, strict=True)
            }
        )

    def mean(self) -> dict[str, float]:
        """Metric -> average over the rows of the pods that have it; nan where no pod does."""
        return {name: total / weight if weight > 0 else math.nan for name, (total, weight) in self.sums.items()}

    def to_json(self) -> dict[str, list[float]]:
        """`{metric: [sum, weight]}`; floats keep every bit."""
        return {name: list(pair) for name, pair in self.sums.items()}

    @classmethod
    def from_json(cls, data: object) -> MetricSums:
        """The inverse of `to_json`, for what another machine sent.

        Raises:
            SerializationError: lists every entry that is not a text -> [finite sum, finite weight >= 0].
        """
        if not isinstance(data, Mapping):
            raise SerializationError(f"metric sums are of type {type(data).__name__}, want metric -> [sum, weight]")
        problems = [
            f"{quoted(name)} is {quoted(pair)}, want [finite sum, finite weight >= 0]"
            for name, pair in data.items()
            if not (isinstance(name, str) and _is_pair(pair))
        ]
        if problems:
            raise SerializationError("metric sums: " + "; ".join(problems[:20]))
        return cls({name: (float(total), float(weight)) for name, (total, weight) in data.items()})


def _is_pair(pair: object) -> bool:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return False
    total, weight = pair
    return type(total) in (int, float) and is_weight(abs(total)) and is_weight(weight)
