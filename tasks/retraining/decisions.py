"""The two decisions of a retraining as pure functions: whether to train, and whether to promote; each with its reasons."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import bootstrap  # type: ignore[import-untyped]

MOST_COLUMNS = 3
"""That a reason names."""


@dataclass(frozen=True)
class Look:
    """What a look at the rows showed.

    Attributes:
        rows: there are now.
        new_rows: that the champion's table did not have; None where that is not known.
        changed: whether anything changed since the champion was trained.
        drift: column -> population stability index; empty where the rows stay with their pods.
        new_classes: of the targets, that the champion does not know.
    """

    rows: int
    new_rows: int | None
    changed: bool
    drift: Mapping[str, float]
    new_classes: Sequence[str] = ()


@dataclass(frozen=True)
class Decision:
    """Yes or no, and why."""

    yes: bool
    reasons: tuple[str, ...]

    @property
    def why(self) -> str:
        """The reasons in one line."""
        return "; ".join(self.reasons)


@dataclass(frozen=True)
class Gain:
    """How much better the challenger is, on the same rows.

    Attributes:
        metric: that was compared.
        champion: its value, None where it is not defined.
        challenger: its value.
        gain: > 0 where the challenger is better, in the metric's unit.
        at_least: the lower end of the gain's one-sided bootstrap interval; None where rows are not here to be resampled.
        rows: that were compared.
        note: what is to be known about these rows.
    """

    metric: str
    champion: float | None
    challenger: float | None
    gain: float | None
    at_least: float | None
    rows: int
    note: str


def whether_to_train(look: Look, wanted: Mapping[str, Any], *, champion: int | None, forced: bool) -> Decision:
    """Decides whether a new model is worth its training.

    Args:
        look: at the rows.
        wanted: `minimum_new_rows`, `maximum_drift` and `minimum_rows` of the retraining.
        champion: the version in use, None if there is none.
        forced: trains whatever the rows are, unless there are too few.
    """
    if look.rows < wanted["minimum_rows"]:
        return Decision(False, (f"there are {look.rows:,} rows, {wanted['minimum_rows']:,} are wanted",))
    if champion is None:
        return Decision(True, ("there is no champion yet",))
    if forced:
        return Decision(True, ("a training was asked for, whatever the rows are",))
    if not look.changed:
        return Decision(False, ("the rows are those that the champion was trained on",))
    least, most = wanted["minimum_new_rows"], wanted["maximum_drift"]
    far = sorted((name for name, index in look.drift.items() if index > most), key=lambda name: -look.drift[name])
    named = ", ".join(f"{name} {look.drift[name]:.2f}" for name in far[:MOST_COLUMNS])
    fresh = look.new_rows is not None and look.new_rows >= least
    if look.new_classes:
        return Decision(
            True, (f"there are classes that the champion does not know: {', '.join(look.new_classes[:10])}",)
        )
    rows = "the rows have changed" if look.new_rows is None else f"{look.new_rows:,} new rows, {least:,} are wanted"
    drifted = f"drift over {most:g} in {len(far)} columns ({named})" if far else f"no column drifted over {most:g}"
    said = (rows, drifted) if look.drift else (rows,)
    return Decision(look.new_rows is None or fresh or bool(far), said)


def whether_to_promote(gain: Gain, wanted: Mapping[str, Any]) -> Decision:
    """Decides whether the challenger takes the champion's place.

    Args:
        gain: of the challenger.
        wanted: `minimum_gain` and `confidence` of the retraining.
    """
    if gain.gain is None:
        return Decision(False, (f"{gain.metric} cannot be compared: {gain.note}",))
    least, confidence = wanted["minimum_gain"], wanted["confidence"]
    numbers = f"{gain.metric} {gain.challenger:.4f} against {gain.champion:.4f} on {gain.rows:,} rows"
    if gain.at_least is None:
        return Decision(
            gain.gain > least, (f"{numbers}: a gain of {gain.gain:+.4f}, over {least:g} is wanted", gain.note)
        )
    said = (
        f"{numbers}: a gain of {gain.gain:+.4f}, with {confidence:.0%} confidence above {gain.at_least:+.4f}; over"
        f" {least:g} is wanted"
    )
    return Decision(gain.at_least > least, (said, *([gain.note] if gain.note else [])))


def resampled_gain(
    metric: Callable[[np.ndarray, np.ndarray], float],
    targets: np.ndarray,
    champion: np.ndarray,
    challenger: np.ndarray,
    *,
    lower_is_better: bool,
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[float | None, float | None, float | None, float | None]:
    """Compares two models' predictions of the same rows, which are resampled together (paired percentile bootstrap; Efron, 1979).

    Args:
        metric: (targets, predictions) -> value; NaN where it is not defined.
        targets: `(rows, ...)`.
        champion: its predictions, `(rows, ...)`.
        challenger: its predictions, `(rows, ...)`.
        lower_is_better: turns the sign of the gain.
        confidence: of the one-sided interval.
        resamples: how many.
        seed: of the resampling.

    Returns:
        The champion's value, the challenger's, the gain, and the lower end of its interval; None for what is not defined.
    """
    sign = -1.0 if lower_is_better else 1.0

    def gain_of(rows: np.ndarray) -> float:
        return sign * (metric(targets[rows], challenger[rows]) - metric(targets[rows], champion[rows]))

    values = metric(targets, champion), metric(targets, challenger)
    gain = sign * (values[1] - values[0])
    lower = math.nan
    if math.isfinite(gain) and len(targets) > 1:
        drawn = bootstrap(
            (np.arange(len(targets)),),
            gain_of,
            vectorized=False,
            n_resamples=resamples,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
        # A resample of one class has no AUC: it says nothing.
        defined = drawn[np.isfinite(drawn)]
        lower = float(np.quantile(defined, 1 - confidence)) if len(defined) else math.nan
    return tuple(value if math.isfinite(value) else None for value in (*values, gain, lower))  # type: ignore[return-value]
