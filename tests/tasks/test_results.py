"""Predictions become a table with keys, class names and scores."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest

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
