"""After each round's averaged metrics: has the best one stopped improving? A fold over rounds, without a clock.

A job keeps the state beside its parameters: the same states come out when a stopped job goes on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from marshmallow import Schema, ValidationError, fields, post_load, validate

from bitfount_model.data.names import suggestion
from bitfount_model.errors import ConfigurationError, SerializationError
from bitfount_model.types import JSON

Mode = Literal["min", "max", "auto"]

_LOWER_IS_BETTER = frozenset({"loss", "error", "mae", "mse", "rmse", "ks", "brier"})
_HIGHER_IS_BETTER = frozenset(
    {"auc", "auroc", "acc", "accuracy", "f1", "precision", "recall", "sensitivity", "specificity", "r2", "iou", "dice"}
)


@dataclass(frozen=True)
class EarlyStoppingState:
    """What is known after some rounds.

    Attributes:
        last_round: the last round that was looked at; None before the first.
        best_round: the round of the best value; None while there is none.
        best_value: the best value so far.
        rounds_without_improvement: rounds looked at since the best one.
        stopped: that the patience is used up; it stays so.
        note: why the last round had no value to compare; None if it had.
    """

    last_round: int | None = None
    best_round: int | None = None
    best_value: float | None = None
    rounds_without_improvement: int = 0
    stopped: bool = False
    note: str | None = None

    def to_json(self) -> JSON:
        """A JSON object; floats keep every bit."""
        dumped: JSON = _STATE.dump(self)
        return dumped

    @classmethod
    def from_json(cls, data: Any) -> EarlyStoppingState:
        """The inverse of `to_json`.

        Raises:
            SerializationError: unknown or missing keys, or bad values; lists all of them.
        """
        try:
            state: EarlyStoppingState = _STATE.load(data)
        except ValidationError as error:
            raise SerializationError(f"not a state of early stopping: {error.messages}") from error
        return state


@dataclass(frozen=True)
class EarlyStopping:
    """When to stop: after `patience` rounds in a row in which the metric did not improve.

    Args:
        metric: name of an averaged metric, as in the pods' `val_stats`.
        patience: rounds without improvement after which the job stops, at least 1.
        minimum_change: a value must be better than the best one by more than this to count, >= 0, in the metric's unit.
        mode: "min" if lower is better, "max" if higher is. "auto" reads it off the words of the metric's name: loss,
            error, MAE, MSE, RMSE, KS and Brier are better low; AUC, F1, accuracy, precision, recall, R2, IoU, Dice and
            their like are better high; a name with words of both, such as `dice_loss`, is better low.

    Attributes:
        lower_is_better: the mode, once "auto" is resolved.

    Raises:
        ConfigurationError: lists every argument that is not what it must be, or says that "auto" does not know the
            metric.
    """

    metric: str
    patience: int
    minimum_change: float = 0.0
    mode: Mode = "auto"
    lower_is_better: bool = field(init=False, compare=False)

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value!r}, want {wanted}"
            for name, value, right, wanted in (
                ("metric", self.metric, isinstance(self.metric, str) and self.metric != "", "the name of a metric"),
                ("patience", self.patience, type(self.patience) is int and self.patience >= 1, "a whole number >= 1"),
                ("minimum_change", self.minimum_change, _is_change(self.minimum_change), "a finite number >= 0"),
                ("mode", self.mode, self.mode in ("min", "max", "auto"), '"min", "max" or "auto"'),
            )
            if not right
        ]
        if problems:
            raise ConfigurationError("early stopping: " + "; ".join(problems))
        object.__setattr__(self, "lower_is_better", lower_is_better(self.metric, self.mode))

    def update(self, state: EarlyStoppingState, round_number: int, metrics: Mapping[str, float]) -> EarlyStoppingState:
        """The state after one more round; `state` stays as it is.

        A metric that is nan, infinite or missing counts as no improvement, and `note` says so.

        Args:
            state: after the rounds before; `EarlyStoppingState()` for the first.
            round_number: later than every round before.
            metrics: metric -> average of the round, as `MetricSums.mean` gives it.

        Returns:
            The new state; whoever asks looks at its `stopped`.

        Raises:
            ConfigurationError: the first round does not have the metric (those it has are listed), or a round comes
                twice or out of order.
        """
        if state.last_round is not None and round_number <= state.last_round:
            raise ConfigurationError(
                f"early stopping: round {round_number} comes after round {state.last_round}; give each round once, in order"
            )
        if state.last_round is None and self.metric not in metrics:
            raise ConfigurationError(
                f"early stopping: round {round_number} has no metric {self.metric!r}"
                f"{suggestion(self.metric, list(metrics))}"
                f"{'' if metrics else '; a metric needs pods with validation rows'}"
            )
        value = metrics.get(self.metric)
        if value is not None and math.isfinite(value) and self._improves(value, state.best_value):
            return EarlyStoppingState(round_number, round_number, float(value), 0, state.stopped, None)
        waited = state.rounds_without_improvement + 1
        return replace(
            state,
            last_round=round_number,
            rounds_without_improvement=waited,
            stopped=state.stopped or waited >= self.patience,
            note=self._note(round_number, value),
        )

    def _improves(self, value: float, best: float | None) -> bool:
        if best is None:
            return True
        return best - value > self.minimum_change if self.lower_is_better else value - best > self.minimum_change

    def _note(self, round_number: int, value: float | None) -> str | None:
        if value is None:
            return f"no pod reported {self.metric!r} in round {round_number}: counted as no improvement"
        if not math.isfinite(value):
            return f"{self.metric!r} is {value} in round {round_number}: counted as no improvement"
        return None


class _StateSchema(Schema):
    """How a state crosses the border of a file."""

    last_round = fields.Integer(strict=True, required=True, allow_none=True)
    best_round = fields.Integer(strict=True, required=True, allow_none=True)
    best_value = fields.Float(required=True, allow_none=True)
    rounds_without_improvement = fields.Integer(strict=True, required=True, validate=validate.Range(min=0))
    stopped = fields.Boolean(required=True)
    note = fields.String(required=True, allow_none=True)

    @post_load
    def make_state(self, data: dict[str, Any], **kwargs: Any) -> EarlyStoppingState:
        """The state, after its parts were checked."""
        if (data["best_round"] is None) is not (data["best_value"] is None):
            raise ValidationError("best_round and best_value go together.", "best_round")
        return EarlyStoppingState(**data)


_STATE = _StateSchema()  # made once: that takes longer than to load a state


def lower_is_better(metric: str, mode: Mode) -> bool:
    """Whether a metric is better low, by its name where the mode is "auto"; see `EarlyStopping`.

    Raises:
        ConfigurationError: its name does not say.
    """
    if mode != "auto":
        return mode == "min"
    words = set(re.findall(r"[a-z0-9]+", metric.lower()))
    if not words & (_LOWER_IS_BETTER | _HIGHER_IS_BETTER):
        raise ConfigurationError(
            f'mode "auto" does not know whether {metric!r} is better low or high; give mode "min" or "max"'
        )
    return bool(words & _LOWER_IS_BETTER)


def _is_change(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf  # type: ignore[operator]  # a number, as was checked
