"""Plots are pictures of the right numbers, drawn without a warning whatever the numbers and names are."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn import datasets, linear_model, metrics
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bitfount_model.types import Problem
from tasks.class_plots import confusion_matrix
from tasks.curves import agreement, classified, confusion, precision_recall, roc, sigmoid, softmax
from tasks.plot_style import label
from tasks.plots import curve_groups, job_plots, learning_curves, predicted_against_actual

CLASSIFIER_PLOTS = ["learning_curves", "confusion_matrix", "roc", "precision_recall"]
HISTORY = [
    {"epoch": epoch, "train_loss": 1 / epoch, "val_stats": {"validation_loss": 1.2 / epoch, "AUC": 1 - 0.4 / epoch}}
    for epoch in range(1, 6)
]


def check(pictures: Mapping[str, bytes], names: list[str]) -> None:
    """The plots of these names are whole PNGs of a size that fits a page, and not blank."""
    assert list(pictures) == names
    for content in pictures.values():
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            assert picture.format == "PNG"
            assert 400 <= picture.width <= 2000 and 250 <= picture.height <= 2400
            assert len(picture.convert("RGB").getcolors(maxcolors=2**20) or range(99)) > 20
            assert "Software" not in picture.info


# What is drawn


@pytest.fixture(scope="module")
def cancer() -> tuple[np.ndarray, np.ndarray]:
    data = datasets.load_breast_cancer()
    model = make_pipeline(StandardScaler(), linear_model.LogisticRegression(C=0.01)).fit(
        data.data[:400], data.target[:400]
    )
    return model.predict_proba(data.data[400:])[:, 1], data.target[400:]


def test_a_binary_classifier_has_its_four_plots(cancer: tuple[np.ndarray, np.ndarray]) -> None:
    check(job_plots("binary", ["malignant", "benign"], HISTORY, *cancer), CLASSIFIER_PLOTS)


def test_a_regressor_has_curves_and_predicted_against_actual() -> None:
    data = datasets.load_diabetes()
    preds = linear_model.Ridge(0.1).fit(data.data, data.target).predict(data.data)
    pictures = job_plots(Problem.REGRESSION, ["disease progression"], HISTORY, preds[:, None], data.target)
    check(pictures, ["learning_curves", "predicted_against_actual"])


def test_a_job_without_test_rows_or_with_segments_has_learning_curves_only() -> None:
    for preds, problem in ((None, "binary"), (np.empty((0, 2)), "binary"), (np.zeros((2, 4, 4)), "segmentation")):
        check(job_plots(problem, ["a", "b"], HISTORY, preds, np.zeros(2)), ["learning_curves"])
    assert job_plots("binary", None, [], None, None) == {}


def test_the_same_numbers_give_the_same_bytes_and_arguments_are_left_alone(
    cancer: tuple[np.ndarray, np.ndarray],
) -> None:
    before = [values.copy() for values in cancer]
    first = job_plots("binary", ["malignant", "benign"], HISTORY, *cancer)
    assert job_plots("binary", ["malignant", "benign"], HISTORY, *cancer) == first
    assert all((now == then).all() for now, then in zip(cancer, before, strict=True))


def test_no_state_of_pyplot_is_touched(cancer: tuple[np.ndarray, np.ndarray]) -> None:
    job_plots("binary", ["malignant", "benign"], HISTORY, *cancer)
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


# The numbers, against scikit-learn


@pytest.mark.parametrize("decimals", [1, 2, 8])
def test_curves_and_their_areas_are_those_of_scikit_learn(cancer: tuple[np.ndarray, np.ndarray], decimals: int) -> None:
    scores, targets = np.round(cancer[0], decimals), cancer[1]
    curve, against = roc(targets == 1, scores), precision_recall(targets == 1, scores)
    assert curve is not None and against is not None
    x, y, _ = metrics.roc_curve(targets, scores, drop_intermediate=False)
    np.testing.assert_allclose([curve.x, curve.y], [x, y])
    assert curve.area == pytest.approx(metrics.roc_auc_score(targets, scores))
    precision, recall, _ = metrics.precision_recall_curve(targets, scores)
    np.testing.assert_allclose([against.x[1:], against.y[1:]], [recall[-2::-1], precision[-2::-1]])
    assert against.area == pytest.approx(metrics.average_precision_score(targets, scores))


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.25, 0.5, 1.0])), min_size=1, max_size=40))
def test_areas_agree_with_scikit_learn_on_any_rows(rows: list[tuple[bool, float]]) -> None:
    truth, scores = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    curve, against = roc(truth, scores), precision_recall(truth, scores)
    if 0 < truth.sum() < len(truth):
        assert curve is not None and curve.area == pytest.approx(metrics.roc_auc_score(truth, scores))
    else:
        assert curve is None
    if truth.any():
        assert against is not None and against.area == pytest.approx(metrics.average_precision_score(truth, scores))
    else:
        assert against is None


def test_a_curve_of_very_many_rows_keeps_its_area_and_few_points() -> None:
    rng = np.random.default_rng(0)
    targets = rng.random(50_000) < 0.3
    scores = rng.standard_normal(50_000) + targets
    curve = roc(targets, scores)
    assert curve is not None and len(curve.x) <= 1000
    assert curve.area == pytest.approx(metrics.roc_auc_score(targets, scores))


def test_confusions_are_counted_as_scikit_learn_does() -> None:
    rng = np.random.default_rng(0)
    actual, decided = rng.integers(0, 5, 200), rng.integers(0, 6, 200)
    expected = metrics.confusion_matrix(actual, decided, labels=range(7))
    np.testing.assert_array_equal(confusion(actual, decided, 7), expected)


def test_agreement_is_that_of_scikit_learn() -> None:
    truth, found = np.array([1.0, 2.0, 4.0]), np.array([1.5, 2.0, 3.0])
    expected = (metrics.r2_score(truth, found), metrics.mean_absolute_error(truth, found))
    assert agreement(truth, found) == pytest.approx(expected)
    assert math.isnan(agreement(np.ones(3), found)[0])


@pytest.mark.parametrize("problem", [Problem.BINARY, Problem.MULTICLASS, Problem.MULTILABEL])
def test_logits_and_probabilities_lead_to_the_same_decisions(problem: Problem) -> None:
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal((50, 4 if problem is not Problem.BINARY else 2))
    labels = problem is Problem.MULTILABEL
    targets = rng.integers(0, 2, logits.shape if labels else 50)
    of_logits = classified(problem, logits, targets)
    of_probabilities = classified(problem, sigmoid(logits) if labels else softmax(logits), targets)
    np.testing.assert_allclose(of_logits.scores, of_probabilities.scores)
    np.testing.assert_array_equal(of_logits.decided, of_probabilities.decided)
    if problem is Problem.BINARY:
        one = classified(problem, of_logits.scores[:, 0], targets[:, None])
        np.testing.assert_array_equal(one.decided, of_logits.decided)
        assert of_logits.scores.shape == one.truth.shape == (50, 1)


# Numbers and names that plots are not used to


@pytest.mark.parametrize("classes", [3, 10, 11, 100])
def test_any_number_of_classes_is_drawn(classes: int) -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, classes, 300)
    preds = rng.standard_normal((300, classes))
    preds[np.arange(300), targets] += 3
    names = [f"a rather long name of class {number}" for number in range(classes)]
    check(job_plots("multiclass", names if classes > 3 else None, HISTORY, preds, targets), CLASSIFIER_PLOTS)


@pytest.mark.parametrize("labels", [1, 4, 60])
def test_any_number_of_labels_is_drawn(labels: int) -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((100, labels)) < 0.3).astype(np.float32)
    targets[:, -1] = 0
    names = [f"label {number}" for number in range(labels)]
    check(job_plots("multilabel", names, HISTORY, rng.standard_normal((100, labels)), targets), CLASSIFIER_PLOTS)


@pytest.mark.parametrize(
    ("preds", "targs"), [([0.2], [0]), ([0.2, 0.9], [1, 1]), ([np.nan, np.inf], [0, 1]), ([3.0, -2.0], [0, 1])]
)
def test_few_rows_one_class_and_rows_that_are_not_finite_are_drawn(preds: list[float], targs: list[int]) -> None:
    check(job_plots("binary", ["no", "yes"], HISTORY, np.array(preds), np.array(targs)), CLASSIFIER_PLOTS)


@pytest.mark.parametrize("scale", [0.0, 1e-300, 1e-9, 1.0, 1e30, 1e308])
def test_values_of_any_size_are_drawn(scale: float) -> None:
    rng = np.random.default_rng(0)
    numbers = scale * rng.uniform(-1, 1, (30, 2))
    stats = [
        {"epoch": 1 + e, "train_loss": float(n[0]), "val_stats": {"MSE": float(n[1])}} for e, n in enumerate(numbers)
    ]
    check(
        job_plots("regression", ["a", "b"], stats, numbers, numbers[::-1]),
        ["learning_curves", "predicted_against_actual"],
    )


def test_many_targets_and_many_rows_are_drawn() -> None:
    rng = np.random.default_rng(0)
    targets = rng.standard_normal((6000, 15))
    targets[::7] = np.nan
    check({"plot": predicted_against_actual(targets + 0.1, targets, ["only one name"])}, ["plot"])


@pytest.mark.parametrize(
    "names",
    [
        ["größe [µm²]", "乳癌", "😀 smile", "_hidden", "$5 to $10$", r"\frac{1}{2}"],
        ["a\nb\tc", "", "x" * 300, "עברית", "\x00\x07", "café\u0301"],
    ],
)
def test_any_names_are_drawn(names: list[str]) -> None:
    rng = np.random.default_rng(0)
    stats = dict.fromkeys(names, 3.0) | {f"{name}2": 0.5 for name in names}
    history = [{"epoch": 1, "train_loss": 0.5, "val_stats": stats}]
    targets = rng.integers(0, len(names), 60)
    check(job_plots("multiclass", names, history, rng.standard_normal((60, len(names))), targets), CLASSIFIER_PLOTS)
    numbers = rng.standard_normal((5, len(names)))
    check({"plot": predicted_against_actual(numbers, numbers, names)}, ["plot"])


@settings(max_examples=25)
@given(st.text(min_size=1, max_size=60))
@example("\xad")
def test_labels_are_short_and_of_one_line(name: str) -> None:
    shown = label(name)
    assert len(shown) <= 24 and shown.isprintable() | (shown == "")


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, 1e308])
def test_metrics_that_are_not_numbers_leave_gaps(value: float | None) -> None:
    gap: list[dict[str, Any]] = [{"epoch": 2, "train_loss": value, "val_stats": {"AUC": value, "MSE": value}}]
    check({"some": learning_curves(HISTORY[:1] + gap), "all": learning_curves(gap)}, ["some", "all"])


def test_metrics_that_share_a_unit_share_a_panel() -> None:
    stats = {"validation_loss": 2.0, "AUC": 0.9, "F1": 0.8, "MAE": 5.0, "RMSE": 6.0, "MSE": 36.0, "own": 7.0}
    groups = curve_groups([{"epoch": 1, "train_loss": 1.0, "val_stats": stats}])
    assert {title: list(curves) for title, curves in groups.items()} == {
        "Loss": ["training", "validation"],
        "Validation scores": ["AUC", "F1"],
        "Error": ["MAE", "RMSE"],
        "Squared error": ["MSE"],
        "own": ["own"],
    }


def test_a_hundred_metrics_are_cut_to_a_page() -> None:
    stats = {f"metric {number}": 10.0 * number for number in range(100)}
    check({"plot": learning_curves([{"epoch": 1, "train_loss": 1.0, "val_stats": stats}])}, ["plot"])


def test_a_confusion_matrix_of_no_rows_is_drawn() -> None:
    none = np.empty(0, dtype=np.int64)
    check({"plot": confusion_matrix(none, none, ["a", "b"])}, ["plot"])
