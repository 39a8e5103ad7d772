"""Whether to train, and whether to promote: each answer with its reasons."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tasks.retraining.decisions import Gain, Look, resampled_gain, whether_to_promote, whether_to_train

WHEN = {"minimum_new_rows": 50, "maximum_drift": 0.25, "minimum_rows": 10}
LOOK = Look(rows=100, new_rows=49, changed=True, drift={"age": 0.1, "weight": 0.2})
ASKED = {"minimum_gain": 0.0, "confidence": 0.95}
GAIN = Gain("AUC", champion=0.9, challenger=0.95, gain=0.05, at_least=0.01, rows=80, note="")


@pytest.mark.parametrize(
    ("look", "champion", "forced", "trains", "reason"),
    [
        (LOOK, 1, False, False, "49 new rows, 50 are wanted"),
        (replace(LOOK, new_rows=50), 1, False, True, "50 new rows"),
        (replace(LOOK, drift={"age": 0.3}), 1, False, True, "age 0.30"),
        (replace(LOOK, changed=False, new_rows=0), 1, False, False, "those that the champion was trained on"),
        (replace(LOOK, changed=False, new_rows=0), 1, True, True, "asked for"),
        (LOOK, None, False, True, "no champion"),
        (replace(LOOK, rows=9), None, True, False, "10 are wanted"),
        (replace(LOOK, new_classes=("rare",)), 1, False, True, "rare"),
        (replace(LOOK, new_rows=None, drift={}), 1, False, True, "the rows have changed"),
    ],
)
def test_a_training_needs_a_reason(look: Look, champion: int | None, forced: bool, trains: bool, reason: str) -> None:
    decision = whether_to_train(look, WHEN, champion=champion, forced=forced)
    assert decision.yes is trains
    assert reason in decision.why


@pytest.mark.parametrize(
    ("gain", "promotes"),
    [
        (GAIN, True),
        (replace(GAIN, at_least=0.0), False),
        (replace(GAIN, at_least=-0.01), False),
        (replace(GAIN, at_least=None), True),
        (replace(GAIN, at_least=None, gain=0.0), False),
        (replace(GAIN, gain=None, at_least=None), False),
    ],
)
def test_a_challenger_is_promoted_when_its_gain_is_sure_enough(gain: Gain, promotes: bool) -> None:
    assert whether_to_promote(gain, ASKED).yes is promotes


def test_no_worse_is_enough_where_the_minimum_gain_is_negative() -> None:
    assert whether_to_promote(replace(GAIN, at_least=-0.01), {**ASKED, "minimum_gain": -0.02}).yes


def test_a_better_model_gains_and_a_model_against_itself_does_not() -> None:
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 2, 300)
    good, bad = targets + generator.normal(0, 0.5, 300), targets + generator.normal(0, 3, 300)

    def compared(champion: np.ndarray, challenger: np.ndarray) -> tuple[float | None, ...]:
        return resampled_gain(
            roc_auc_score,
            targets,
            champion,
            challenger,
            lower_is_better=False,
            confidence=0.95,
            resamples=200,
            seed=1,
        )

    before, after, gain, at_least = compared(bad, good)
    assert before == roc_auc_score(targets, bad)
    assert after == roc_auc_score(targets, good)
    assert gain is not None and at_least is not None
    assert 0 < at_least < gain == after - before
    assert compared(good, good)[2:] == (0.0, 0.0)
    assert compared(bad, good) == (before, after, gain, at_least)
