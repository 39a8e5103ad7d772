"""Predictions become a table with keys, class names and scores."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest

from bitfount_model.errors import TrainingError
from bitfount_model.types import Problem
from tasks.results import prediction_table, to_parquet


def test_two_classes_from_two_scores() -> None:
    preds = np.array([[0.9, 0.1], [0.2, 0.8]])
    table = prediction_table(
        preds, ["x", "y"], problem=Problem.BINARY, targets=["ill"], classes=["no", "yes"], targs=np.array([1, 1])
    )
    assert table.to_dict("list") == {
        "key": ["x", "y"],
        "ill": ["yes", "yes"],
        "prediction": ["no", "yes"],
        "score_no": [0.9, 0.2],
        "score_yes": [0.1, 0.8],
    }


@pytest.mark.parametrize(("preds", "wanted"), [([0.4, 0.5], ["no", "yes"]), ([[-3.0], [2.0]], ["no", "yes"])])
def test_two_classes_from_one_score_that_is_a_probability_or_a_logit(preds: list[float], wanted: list[str]) -> None:
    table = prediction_table(np.array(preds), None, problem=Problem.BINARY, targets=["ill"], classes=["no", "yes"])
    assert table["prediction"].tolist() == wanted
    assert table["key"].tolist() == [0, 1]


def test_several_labels_each_have_their_own_columns() -> None:
    preds = np.array([[0.9, 0.1]])
    table = prediction_table(
        preds, None, problem=Problem.MULTILABEL, targets=["a", "b"], classes=["a", "b"], targs=preds.round()
    )
    assert table.drop(columns="key").to_dict("list") == {
        "a": [1.0],
        "b": [0.0],
        "prediction_a": [1],
        "prediction_b": [0],
        "score_a": [0.9],
        "score_b": [0.1],
    }


def test_one_and_several_numbers() -> None:
    one = prediction_table(np.array([1.5, 2.5]), None, problem=Problem.REGRESSION, targets=["y"], classes=None)
    assert one["prediction"].tolist() == [1.5, 2.5]
    two = prediction_table(np.array([[1.5, 2.5]]), None, problem=Problem.REGRESSION, targets=["y", "z"], classes=None)
    assert two.columns.tolist() == ["key", "prediction_y", "prediction_z"]


def test_parquet_gives_the_table_back() -> None:
    table = pd.DataFrame({"key": ["ä", "b"], "prediction": [1.0, 2.0]})
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(to_parquet(table))), table, check_dtype=False)
    assert to_parquet(table) == to_parquet(table)


@pytest.mark.parametrize("name", ["key", "prediction", "score_yes"])
def test_a_target_that_is_named_like_another_column_hides_nothing(name: str) -> None:
    table = prediction_table(
        np.array([[0.9, 0.1], [0.2, 0.8]]),
        ["x", "y"],
        problem=Problem.BINARY,
        targets=[name],
        classes=["no", "yes"],
        targs=np.array([1, 0]),
    )
    assert table["key"].tolist() == ["x", "y"]
    assert table[f"target_{name}"].tolist() == ["yes", "no"]
    assert table["prediction"].tolist() == ["no", "yes"]
    assert table["score_yes"].tolist() == [0.1, 0.8]


def test_where_there_is_one_class_all_rows_are_of_it() -> None:
    table = prediction_table(np.array([[1.0], [0.2]]), None, problem=Problem.BINARY, targets=["t"], classes=["only"])
    assert table["prediction"].tolist() == ["only", "only"]


def test_classes_that_the_model_decided_on_are_named() -> None:
    table = prediction_table(
        np.array([2, 0, 1]), None, problem=Problem.MULTICLASS, targets=["t"], classes=["a", "b", "c"]
    )
    assert table["prediction"].tolist() == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("preds", "problem", "classes"),
    [
        (np.zeros((2, 5)), Problem.BINARY, ["no", "yes"]),
        (np.array([0.3, 7.0]), Problem.MULTICLASS, ["a", "b", "c"]),
        (np.zeros((2, 1)), Problem.MULTILABEL, ["a", "b"]),
        (np.zeros((2, 3)), Problem.REGRESSION, None),
    ],
)
def test_another_number_of_outputs_than_classes_or_targets_is_refused(
    preds: np.ndarray, problem: Problem, classes: list[str] | None
) -> None:
    with pytest.raises(TrainingError, match="numbers? a row, wanted"):
        prediction_table(preds, None, problem=problem, targets=["t"], classes=classes)


def test_keys_of_several_kinds_become_text() -> None:
    table = prediction_table(np.array([1.0, 2.0]), [1, "a"], problem=Problem.REGRESSION, targets=["y"], classes=None)
    assert pd.read_parquet(io.BytesIO(to_parquet(table)))["key"].tolist() == ["1", "a"]
