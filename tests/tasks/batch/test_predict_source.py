"""What of a model's answers cannot be kept batch by batch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest

from bitfount_model.errors import TrainingError
from bitfount_model.types import Problem
from tasks.batch.plan import Plan
from tasks.batch.predict_source import predictions_of
from tasks.registered import OpenModel

PLAN = Plan("one", "tumours", 3, "abc", {}, {}, 2, {})


def answering(table: dict[str, Any], problem: Problem) -> OpenModel:
    """A model that gives the same answer to every row."""
    opened = SimpleNamespace(model=SimpleNamespace(problem=problem), table=lambda frame: pd.DataFrame(table))
    return cast(OpenModel, opened)


@pytest.mark.parametrize(
    ("problem", "scores", "is_refused"),
    [
        (Problem.BINARY, {"score_yes": [0.2, 0.9]}, False),
        (Problem.BINARY, {"score_yes": [0.2, 1.1]}, True),
        (Problem.BINARY, {"score_no": [-3.0, 2.0], "score_yes": [3.0, -2.0]}, False),
        (Problem.MULTILABEL, {"score_a": [0.5, 0.5], "score_b": [-0.1, 0.5]}, True),
        (Problem.REGRESSION, {}, False),
    ],
)
def test_scores_whose_cut_would_depend_on_the_batch_are_refused(
    problem: Problem, scores: dict[str, list[float]], is_refused: bool
) -> None:
    opened = answering({"key": [1, 2], "prediction": [1.0, 0.0], **scores}, problem)
    if not is_refused:
        assert len(predictions_of(opened, pd.DataFrame(), PLAN)) == 2
        return
    with pytest.raises(TrainingError, match="return probabilities"):
        predictions_of(opened, pd.DataFrame(), PLAN)


@pytest.mark.parametrize(
    ("keys", "kept"),
    [([7, 8], [7, 8]), ([0.5, 1.0], ["0.5", "1.0"]), (["ü", "日本"], ["ü", "日本"]), ([7, "a"], ["7", "a"])],
)
def test_keys_are_whole_numbers_or_text(keys: list[Any], kept: list[Any]) -> None:
    found = predictions_of(answering({"key": keys, "prediction": [1, 2]}, Problem.REGRESSION), pd.DataFrame(), PLAN)
    assert found["key"].tolist() == kept
    assert found.iloc[0][["model_version", "run_id", "prediction_id"]].tolist() == [3, "abc", "one"]


def test_a_model_that_fails_is_named() -> None:
    def fail(frame: pd.DataFrame) -> pd.DataFrame:
        raise ZeroDivisionError("division by zero")

    opened = cast(OpenModel, SimpleNamespace(table=fail))
    with pytest.raises(TrainingError, match="the model tumours failed: ZeroDivisionError: division by zero"):
        predictions_of(opened, pd.DataFrame(), PLAN)
