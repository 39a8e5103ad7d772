"""Metrics: each default against scikit-learn and SciPy; the forms of predictions; what is nan."""

from __future__ import annotations

import math
import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from sklearn import metrics as sklearn_metrics

from bitfount_model.errors import ConfigurationError, DataError
from bitfount_model.metric_functions import area_under_curve
from bitfount_model.metrics import Metric, MetricCollection, default_metrics
from bitfount_model.types import Problem

CLASSIFICATION = ["AUC", "F1", "Recall", "Precision", "Accuracy", "Brier Loss"]
REGRESSION = ["MAE", "MSE", "RMSE", "R2", "KS"]
SEGMENTATION = ["IoU", "Dice"]

COUNTS = 3e-7  # torchmetrics divides counts, and adds up areas, in float32
EXACT = 1e-12  # the other figures are float64 throughout
FLOAT64 = {*REGRESSION, "Brier Loss"}


def assert_close(found: dict[str, float], want: dict[str, float], tolerance: float = EXACT) -> None:
    assert list(found) == list(want)
    assert all(type(value) is float for value in found.values())
    for name, value in want.items():
        allowed = tolerance if name in FLOAT64 else max(tolerance, COUNTS)
        assert found[name] == pytest.approx(value, rel=allowed, abs=allowed, nan_ok=True), name


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- against outside oracles ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [2, 10, 1000])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [False, True])
def test_binary_metrics_are_those_of_scikit_learn(rows: int, seed: int, ties: bool) -> None:
    generator = random(seed)
    targets = np.append([0, 1], generator.integers(0, 2, rows - 2))
    preds = generator.random(rows).round(1 if ties else 16)
    decisions = preds > 0.5
    assert_close(
        MetricCollection(Problem.BINARY).compute(targets, preds),
        {
            "AUC": sklearn_metrics.roc_auc_score(targets, preds),
            "F1": sklearn_metrics.f1_score(targets, decisions, zero_division=0),
            "Recall": sklearn_metrics.recall_score(targets, decisions, zero_division=0),
            "Precision": sklearn_metrics.precision_score(targets, decisions, zero_division=0),
            "Accuracy": sklearn_metrics.accuracy_score(targets, decisions),
            "Brier Loss": sklearn_metrics.brier_score_loss(targets, preds),
        },
    )


@pytest.mark.parametrize("rows", [5, 30, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_multiclass_metrics_are_the_macro_ones_of_scikit_learn(rows: int, seed: int) -> None:
    generator = random(seed)
    targets = np.append([0, 1, 2, 3], generator.integers(0, 4, rows - 4))
    preds = generator.dirichlet(np.ones(4), rows)
    decisions = preds.argmax(axis=1)
    macro = {"average": "macro", "zero_division": 0}
    assert_close(
        MetricCollection(Problem.MULTICLASS, num_classes=4).compute(targets, preds),
        {
            "AUC": sklearn_metrics.roc_auc_score(targets, preds, multi_class="ovr", average="macro"),
            "F1": sklearn_metrics.f1_score(targets, decisions, **macro),
            "Recall": sklearn_metrics.recall_score(targets, decisions, **macro),
            "Precision": sklearn_metrics.precision_score(targets, decisions, **macro),
            "Accuracy": sklearn_metrics.accuracy_score(targets, decisions),
            "Brier Loss": sklearn_metrics.brier_score_loss(targets, preds, labels=range(4)),
        },
    )


@pytest.mark.parametrize("rows", [2, 30, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_multilabel_metrics_are_the_macro_ones_of_scikit_learn(rows: int, seed: int) -> None:
    generator = random(seed)
    targets = np.vstack([np.zeros(3, int), np.ones(3, int), generator.integers(0, 2, (rows - 2, 3))])
    preds = generator.random((rows, 3))
    decisions = (preds > 0.5).astype(int)
    macro = {"average": "macro", "zero_division": 0}
    assert_close(
        MetricCollection(Problem.MULTILABEL, num_labels=3).compute(targets, preds),
        {
            "AUC": sklearn_metrics.roc_auc_score(targets, preds, average="macro"),
            "F1": sklearn_metrics.f1_score(targets, decisions, **macro),
            "Recall": sklearn_metrics.recall_score(targets, decisions, **macro),
            "Precision": sklearn_metrics.precision_score(targets, decisions, **macro),
            "Accuracy": 1 - sklearn_metrics.hamming_loss(targets, decisions),
            "Brier Loss": np.mean([sklearn_metrics.brier_score_loss(targets[:, i], preds[:, i]) for i in range(3)]),
        },
    )


@pytest.mark.parametrize("rows", [2, 30, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_regression_metrics_are_those_of_scikit_learn_and_scipy(rows: int, seed: int) -> None:
    generator = random(seed)
    targets, preds = generator.normal(3, 2, rows), generator.normal(2.5, 2, rows)
    assert_close(
        MetricCollection(Problem.REGRESSION).compute(targets, preds),
        {
            "MAE": sklearn_metrics.mean_absolute_error(targets, preds),
            "MSE": sklearn_metrics.mean_squared_error(targets, preds),
            "RMSE": sklearn_metrics.root_mean_squared_error(targets, preds),
            "R2": sklearn_metrics.r2_score(targets, preds),
            "KS": stats.kstest(preds, targets).statistic,
        },
    )


def test_several_target_columns_are_averaged() -> None:
    generator = random(0)
    targets, preds = generator.normal(size=(50, 3)), generator.normal(size=(50, 3))
    assert_close(
        MetricCollection(Problem.REGRESSION).compute(targets, preds),
        {
            "MAE": sklearn_metrics.mean_absolute_error(targets, preds),
            "MSE": sklearn_metrics.mean_squared_error(targets, preds),
            "RMSE": math.sqrt(sklearn_metrics.mean_squared_error(targets, preds)),
            "R2": sklearn_metrics.r2_score(targets, preds),
            "KS": np.mean([stats.ks_2samp(targets[:, i], preds[:, i]).statistic for i in range(3)]),
        },
    )


@pytest.mark.parametrize("channel_axis", [False, True])
def test_segmentation_of_one_class_is_that_of_scikit_learn(channel_axis: bool) -> None:
    generator = random(0)
    targets, preds = generator.integers(0, 2, (4, 5, 6)), generator.random((4, 5, 6))
    want = {
        "IoU": sklearn_metrics.jaccard_score(targets.ravel(), preds.ravel() > 0.5),
        "Dice": sklearn_metrics.f1_score(targets.ravel(), preds.ravel() > 0.5),
    }
    shaped = (targets[:, None], preds[:, None]) if channel_axis else (targets, preds)
    assert_close(MetricCollection(Problem.SEGMENTATION).compute(*shaped), want)
    assert_close(MetricCollection(Problem.SEGMENTATION, num_classes=1).compute(targets, shaped[1]), want)


@pytest.mark.parametrize("classes", [2, 5])
def test_segmentation_of_several_classes_is_the_macro_mean_of_scikit_learn(classes: int) -> None:
    generator = random(0)
    targets, logits = generator.integers(0, classes, (4, 5, 6)), generator.normal(size=(4, classes, 5, 6))
    decided = logits.argmax(axis=1).ravel()
    assert_close(
        MetricCollection(Problem.SEGMENTATION, num_classes=classes).compute(targets, logits),
        {
            "IoU": sklearn_metrics.jaccard_score(targets.ravel(), decided, average="macro"),
            "Dice": sklearn_metrics.f1_score(targets.ravel(), decided, average="macro"),
        },
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_classes_that_never_occur_and_ratios_of_0_to_0_count_as_in_scikit_learn(rows: list[tuple[int, int]]) -> None:
    targets, decisions = np.array(rows).T
    macro = {"average": "macro", "zero_division": 0}
    want = {
        "F1": sklearn_metrics.f1_score(targets, decisions, **macro),
        "Recall": sklearn_metrics.recall_score(targets, decisions, **macro),
        "Precision": sklearn_metrics.precision_score(targets, decisions, **macro),
        "Accuracy": sklearn_metrics.accuracy_score(targets, decisions),
    }
    assert_close(MetricCollection(Problem.MULTICLASS, num_classes=6).compute(targets, decisions, list(want)), want)
    pixels = {"IoU": sklearn_metrics.jaccard_score(targets, decisions, **macro), "Dice": want["F1"]}
    assert_close(MetricCollection(Problem.SEGMENTATION).compute(targets, np.eye(6)[decisions]), pixels)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 1), min_size=4, max_size=4), min_size=1, max_size=8))
def test_labels_and_a_positive_class_without_rows_count_as_in_scikit_learn(rows: list[list[int]]) -> None:
    targets, decisions = np.array(rows)[:, :2], np.array(rows)[:, 2:]
    scores = {
        "F1": sklearn_metrics.f1_score,
        "Recall": sklearn_metrics.recall_score,
        "Precision": sklearn_metrics.precision_score,
    }
    labels = {name: score(targets, decisions, average="macro", zero_division=0) for name, score in scores.items()}
    assert_close(MetricCollection(Problem.MULTILABEL).compute(targets, decisions, list(labels)), labels)
    positive = {name: score(targets[:, 0], decisions[:, 0], zero_division=0) for name, score in scores.items()}
    assert_close(MetricCollection(Problem.BINARY).compute(targets[:, 0], decisions[:, 0], list(positive)), positive)


def test_the_accuracy_of_several_classes_counts_every_row_alike() -> None:
    targets = np.array([0] * 98 + [1, 2])
    found = MetricCollection(Problem.MULTICLASS, num_classes=3).compute(targets, np.zeros(100), ["Accuracy", "Recall"])
    assert_close(found, {"Accuracy": 0.98, "Recall": 1 / 3})


@pytest.mark.parametrize("labels", [1, 2, 3])
def test_a_perfect_order_has_an_auc_of_at_most_1(labels: int) -> None:
    generator = random(labels)
    for rows in range(2, 200):
        targets = np.vstack([np.zeros((1, labels)), np.ones((1, labels)), generator.integers(0, 2, (rows - 2, labels))])
        preds = targets / 2 + generator.random((rows, labels)) / 2
        area = MetricCollection(Problem.MULTILABEL).compute(targets, preds, ["AUC"])["AUC"]
        assert 1.0 - COUNTS <= area <= 1.0


@pytest.mark.parametrize(("centre", "spread"), [(0.0, 1e-6), (-3.0, 1e-6), (1.7e9, 1.0), (5.0, 1e12), (0.0, 1e-100)])
def test_the_r2_does_not_depend_on_the_unit_and_the_origin_of_the_targets(centre: float, spread: float) -> None:
    generator = random(0)
    targets = centre + spread * generator.normal(size=200)
    for noise in (0.1, 1e-5):
        preds = targets + noise * spread * generator.normal(size=200)
        found = MetricCollection(Problem.REGRESSION).compute(targets, preds, ["R2"])
        assert_close(found, {"R2": sklearn_metrics.r2_score(targets, preds)})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6)), min_size=1, max_size=30))
def test_the_auc_is_the_share_of_pairs_in_the_right_order(rows: list[tuple[int, int]]) -> None:
    targets, preds = np.array([row[0] for row in rows]), np.array([row[1] / 6 for row in rows])
    pairs = [(p > q) + (p == q) / 2 for p in preds[targets == 1] for q in preds[targets == 0]]
    want = np.mean(pairs) if pairs else math.nan
    assert MetricCollection(Problem.BINARY).compute(targets, preds, ["AUC"])["AUC"] == pytest.approx(want, nan_ok=True)


# --- the forms of predictions and targets -----------------------------------------------------------------------------


def binary_forms() -> list[Any]:
    generator = random(1)
    probability = generator.random(40)
    logit = special.logit(probability)
    two_logits = np.stack([generator.normal(size=40), np.zeros(40)], axis=1)
    two_logits[:, 1] = two_logits[:, 0] + logit
    return [
        pytest.param(probability, id="probabilities (n,)"),
        pytest.param(probability[:, None], id="probabilities (n, 1)"),
        pytest.param(np.stack([1 - probability, probability], axis=1), id="probabilities (n, 2)"),
        pytest.param(logit, id="logits (n,)"),
        pytest.param(logit[:, None], id="logits (n, 1)"),
        pytest.param(two_logits, id="logits (n, 2)"),
        pytest.param(np.log(np.stack([1 - probability, probability], axis=1)), id="log probabilities (n, 2)"),
    ]


@pytest.mark.parametrize("preds", binary_forms())
def test_every_form_of_binary_predictions_gives_the_same_figures(preds: np.ndarray) -> None:
    targets = random(2).integers(0, 2, 40)
    probability = random(1).random(40)
    want = MetricCollection(Problem.BINARY).compute(targets, probability)
    kept = preds.copy(), targets.copy()
    for each in (targets, targets[:, None], targets.astype(np.float32), targets.astype(bool)):
        assert_close(MetricCollection(Problem.BINARY).compute(each, preds), want, 1e-9)
    np.testing.assert_array_equal(preds, kept[0])
    np.testing.assert_array_equal(targets, kept[1])


def test_two_small_logits_between_0_and_1_are_known_by_their_sum() -> None:
    found = MetricCollection(Problem.BINARY).compute(np.array([1, 0]), np.array([[0.1, 0.2], [0.9, 0.8]]))
    assert found["Accuracy"] == 1.0
    assert found["Brier Loss"] == pytest.approx(float(np.square(special.expit(-0.1))))


def test_multiclass_logits_probabilities_and_decisions_are_told_apart() -> None:
    generator = random(3)
    targets, logits = generator.integers(0, 3, 50), generator.normal(size=(50, 3))
    collection = MetricCollection(Problem.MULTICLASS, num_classes=3)
    want = collection.compute(targets, special.softmax(logits, axis=1))
    assert_close(collection.compute(targets, logits), want, 1e-9)
    assert_close(collection.compute(targets[:, None], special.log_softmax(logits, axis=1)), want, 1e-9)
    assert_close(collection.compute(targets, special.softmax(logits, axis=1).astype(np.float16)), want, 5e-3)
    for decided in (logits.argmax(axis=1), logits.argmax(axis=1)[:, None].astype(np.float32)):
        found = collection.compute(targets, decided)
        assert {name: found[name] for name in ("F1", "Recall", "Precision", "Accuracy")} == {
            name: want[name] for name in ("F1", "Recall", "Precision", "Accuracy")
        }


def test_multilabel_logits_are_turned_into_probabilities_label_by_label() -> None:
    generator = random(4)
    targets, logits = generator.integers(0, 2, (50, 3)), generator.normal(size=(50, 3))
    collection = MetricCollection(Problem.MULTILABEL)
    assert_close(collection.compute(targets, logits), collection.compute(targets, special.expit(logits)), 1e-9)
    assert_close(collection.compute(targets[:, 0], logits[:, :1]), collection.compute(targets[:, :1], logits[:, 0]))


def test_regression_columns_of_one_are_flattened_never_broadcast() -> None:
    targets, preds = np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0])
    want = MetricCollection(Problem.REGRESSION).compute(targets, preds)
    assert want["MAE"] == pytest.approx(1 / 3)
    for t, p in ((targets[:, None], preds), (targets, preds[:, None]), (targets[:, None], preds[:, None])):
        assert_close(MetricCollection(Problem.REGRESSION).compute(t, p), want)


def test_float32_predictions_are_summed_in_float64() -> None:
    targets = np.full(10**6, 0.1, dtype=np.float32)
    found = MetricCollection(Problem.REGRESSION).compute(targets, np.zeros(10**6, dtype=np.float32), ["MAE"])
    assert found["MAE"] == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_the_threshold_decides_and_is_itself_no_yes() -> None:
    targets, preds = np.array([1, 1, 0]), np.array([0.5, 0.6, 0.2])
    assert MetricCollection(Problem.BINARY).compute(targets, preds)["Recall"] == 0.5
    assert MetricCollection(Problem.BINARY, threshold=0.4).compute(targets, preds)["Recall"] == 1.0
    assert MetricCollection(Problem.BINARY, threshold=0.7).compute(targets, preds)["Recall"] == 0.0


def test_huge_logits_neither_warn_nor_turn_into_nan() -> None:
    found = MetricCollection(Problem.BINARY).compute(np.array([0, 1]), np.array([-1e30, 1e30]))
    assert_close(found, dict(zip(CLASSIFICATION, [1, 1, 1, 1, 1, 0], strict=True)))
    found = MetricCollection(Problem.MULTICLASS).compute(np.array([0, 1]), np.array([[1e30, 0, 0], [0, 1e30, 0]]))
    assert_close(found, dict(zip(CLASSIFICATION, [1, 1, 1, 1, 1, 0], strict=True)))
    found = MetricCollection(Problem.REGRESSION).compute(np.array([0.0, 1.0]), np.array([1e300, -1e300]))
    assert found["MSE"] == math.inf
    assert found["R2"] == -math.inf


# --- what is not defined ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("only", [0, 1])
def test_an_auc_of_one_class_is_nan_and_the_rest_is_defined(only: int) -> None:
    found = MetricCollection(Problem.BINARY).compute(np.full(3, only), np.array([0.2, 0.7, 0.4]))
    assert math.isnan(found["AUC"])
    assert math.isnan(area_under_curve(np.full(3, only), np.array([0.2, 0.7, 0.4])))  # by itself, without a warning
    assert all(math.isfinite(value) for name, value in found.items() if name != "AUC")


def test_a_class_that_no_row_has_is_left_out_of_the_mean_auc() -> None:
    targets, preds = np.array([0, 1, 0, 1]), random(5).dirichlet(np.ones(3), 4)
    areas = [sklearn_metrics.roc_auc_score(targets == label, preds[:, label]) for label in (0, 1)]
    found = MetricCollection(Problem.MULTICLASS, num_classes=3).compute(targets, preds)
    assert found["AUC"] == pytest.approx(np.mean(areas))
    assert math.isnan(MetricCollection(Problem.MULTICLASS).compute(np.zeros(4), preds)["AUC"])
    labels = np.array([[0, 1], [1, 1]])
    assert MetricCollection(Problem.MULTILABEL).compute(labels, np.array([[0.1, 0.5], [0.9, 0.5]]))["AUC"] == 1.0


def test_an_r2_of_one_row_or_of_constant_targets_is_nan() -> None:
    collection = MetricCollection(Problem.REGRESSION)
    assert math.isnan(collection.compute(np.array([1.0]), np.array([2.0]))["R2"])
    assert math.isnan(collection.compute(np.full(3, 0.1), np.array([0.1, 0.2, 0.3]))["R2"])
    columns = np.array([[0.1, 1.0], [0.1, 2.0], [0.1, 3.0]])
    assert collection.compute(columns, np.zeros((3, 2)))["R2"] == sklearn_metrics.r2_score([1, 2, 3], [0, 0, 0])
    assert collection.compute(np.array([1.0]), np.array([2.0]))["KS"] == 1.0


@pytest.mark.parametrize(
    ("problem", "names", "shape"),
    [
        (Problem.BINARY, CLASSIFICATION, ()),
        (Problem.MULTICLASS, CLASSIFICATION, (3,)),
        (Problem.MULTILABEL, CLASSIFICATION, (3,)),
        (Problem.REGRESSION, REGRESSION, ()),
        (Problem.SEGMENTATION, SEGMENTATION, (3, 2, 2)),
    ],
)
def test_no_rows_and_nan_predictions_give_nan_for_every_default(
    problem: Problem, names: list[str], shape: tuple[int, ...]
) -> None:
    collection = MetricCollection(problem)
    assert_close(collection.compute(np.empty(0), np.empty((0, *shape))), dict.fromkeys(names, math.nan))
    preds = np.full((2, *shape), 0.5)
    preds.flat[0] = math.nan
    targets = np.zeros((2, *shape) if problem == Problem.MULTILABEL else (2, *shape[1:]))
    assert_close(collection.compute(targets, preds), dict.fromkeys(names, math.nan))


def test_infinite_logits_that_name_no_class_give_nan() -> None:
    preds = np.array([[math.inf, math.inf], [0.0, 1.0]])
    found = MetricCollection(Problem.BINARY).compute(np.array([0, 1]), preds)
    assert_close(found, dict.fromkeys(CLASSIFICATION, math.nan))


def test_nan_targets_of_a_regression_give_nan() -> None:
    found = MetricCollection(Problem.REGRESSION).compute(np.array([1.0, math.nan]), np.array([1.0, 2.0]))
    assert_close(found, dict.fromkeys(REGRESSION, math.nan))
    in_one_column = np.array([[1.0, 1.0], [2.0, math.nan], [3.0, 3.0]])
    found = MetricCollection(Problem.REGRESSION).compute(in_one_column, np.ones((3, 2)))
    assert_close(found, dict.fromkeys(REGRESSION, math.nan))


def test_arrays_that_are_read_only_or_run_backwards_are_taken_as_they_are() -> None:
    targets, preds = random(0).integers(0, 2, 20), random(1).random(20)
    want = MetricCollection(Problem.BINARY).compute(targets[::-1].copy(), preds[::-1].copy())
    targets.flags.writeable = preds.flags.writeable = False
    assert_close(MetricCollection(Problem.BINARY).compute(targets[::-1], preds[::-1]), want)


# --- collections ------------------------------------------------------------------------------------------------------


def test_the_names_of_the_defaults() -> None:
    for problem in (Problem.BINARY, Problem.MULTICLASS, Problem.MULTILABEL):
        assert list(default_metrics(problem)) == CLASSIFICATION
    assert list(default_metrics(Problem.REGRESSION)) == REGRESSION
    assert list(default_metrics(Problem.SEGMENTATION)) == SEGMENTATION


def test_changing_the_dict_of_defaults_changes_no_later_one() -> None:
    default_metrics(Problem.BINARY).clear()
    assert list(default_metrics(Problem.BINARY)) == CLASSIFICATION


def test_chosen_names_come_alone_and_in_their_order() -> None:
    found = MetricCollection(Problem.BINARY).compute(np.array([0, 1]), np.array([0.1, 0.9]), ["Accuracy", "AUC"])
    assert list(found.items()) == [("Accuracy", 1.0), ("AUC", 1.0)]
    assert MetricCollection(Problem.BINARY).compute(np.array([0, 1]), np.array([0.1, 0.9]), []) == {}


def test_a_metric_of_the_user_gets_probabilities_or_decisions_as_it_asks() -> None:
    seen: dict[str, np.ndarray] = {}

    def watch(name: str) -> Any:
        def func(targets: np.ndarray, preds: np.ndarray) -> float:
            seen[name] = preds
            return np.float32(0.5)  # type: ignore[return-value]

        return func

    chosen = {"p": Metric(watch("p"), probabilities=True), "d": Metric(watch("d"), probabilities=False)}
    found = MetricCollection(Problem.BINARY, chosen).compute(np.array([0, 1]), np.array([[-2.0], [2.0]]))
    assert found == {"p": 0.5, "d": 0.5}
    assert all(type(value) is float for value in found.values())
    np.testing.assert_allclose(seen["p"], special.expit([-2.0, 2.0]))
    assert seen["d"].tolist() == [0, 1]
    assert seen["d"].dtype == np.int64


def test_an_empty_mapping_of_metrics_computes_nothing() -> None:
    assert MetricCollection(Problem.BINARY, {}).compute(np.array([0, 1]), np.array([0.1, 0.9])) == {}


def test_default_metrics_can_be_pickled() -> None:
    targets, preds = np.array([0, 1, 1]), np.array([0.1, 0.9, 0.2])
    for problem in (Problem.BINARY, Problem.REGRESSION):
        read = pickle.loads(pickle.dumps(default_metrics(problem)))
        want = MetricCollection(problem).compute(targets, preds)
        assert_close(MetricCollection(problem, read).compute(targets, preds), want)


@pytest.mark.parametrize(
    ("problem", "classes", "labels"),
    [
        (Problem.BINARY, None, None),
        (Problem.MULTICLASS, 4, None),
        (Problem.MULTILABEL, None, 3),
        (Problem.REGRESSION, None, None),
        (Problem.SEGMENTATION, 4, None),
    ],
)
def test_a_collection_is_made_from_a_model(problem: Problem, classes: int | None, labels: int | None) -> None:
    model = SimpleNamespace(problem=problem, datastructure=SimpleNamespace(targets=["a", "b", "c"]))
    if problem != Problem.REGRESSION:
        model.n_classes = 4
    assert MetricCollection.create_from_model(model) == MetricCollection(problem, None, classes, labels)
    chosen = {"mine": Metric(lambda targets, preds: 1.0, True)}
    assert MetricCollection.create_from_model(model, chosen).metrics == chosen


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"problem": "tabular"}, "problem is 'tabular', want one of binary, multiclass"),
        ({"metrics": {"AUC": abs}}, "'AUC' is of type builtin_function_or_method, want a Metric"),
        ({"num_classes": 0}, "num_classes is 0, want at least 1"),
        ({"num_labels": -1}, "num_labels is -1, want at least 1"),
        ({"threshold": 1.5}, "threshold is 1.5, want a probability"),
        ({"threshold": math.nan}, "threshold is nan"),
    ],
)
def test_a_collection_that_cannot_work_is_refused_when_it_is_made(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        MetricCollection(**{"problem": Problem.BINARY, **arguments})


@pytest.mark.parametrize(
    ("problem", "targets", "preds"),
    [
        (Problem.BINARY, (4,), (5,)),
        (Problem.BINARY, (4,), (4, 3)),
        (Problem.BINARY, (4, 2), (4, 2)),
        (Problem.BINARY, (), ()),
        (Problem.MULTICLASS, (4,), (4, 2)),
        (Problem.MULTICLASS, (4, 2), (4, 3)),
        (Problem.MULTICLASS, (4,), (4, 3, 2)),
        (Problem.MULTILABEL, (4, 2), (4, 3)),
        (Problem.MULTILABEL, (4,), (4, 3)),
        (Problem.REGRESSION, (4,), (4, 2)),
        (Problem.REGRESSION, (4, 2), (4, 3)),
        (Problem.SEGMENTATION, (4, 5, 5), (4, 3, 5, 6)),
        (Problem.SEGMENTATION, (4, 5, 5), (4, 2, 5, 5)),
        (Problem.SEGMENTATION, (4, 5, 5), (4, 5, 5)),
    ],
)
def test_shapes_that_do_not_fit_are_named_and_never_broadcast(
    problem: Problem, targets: tuple[int, ...], preds: tuple[int, ...]
) -> None:
    collection = MetricCollection(problem, num_classes=3)
    with pytest.raises(ConfigurationError, match=rf"{problem.value}: targets have shape .* and predictions"):
        collection.compute(np.zeros(targets), np.full(preds, 0.5))


@pytest.mark.parametrize(
    ("problem", "targets", "message"),
    [
        (Problem.BINARY, [0, 2], r"found the classes \[2\], want whole numbers from 0 to 1"),
        (Problem.BINARY, [0, 0.5], r"found the classes \[0.5\]"),
        (Problem.BINARY, [0, -1], r"found the classes \[-1\]"),
        (Problem.BINARY, [0, math.nan], r"found the classes \[nan\]"),
        (Problem.BINARY, [0, math.inf], r"found the classes \[inf\]"),
        (Problem.BINARY, ["no", "yes"], r"found the classes \['no', 'yes'\]"),
    ],
)
def test_targets_that_are_no_class_are_named(problem: Problem, targets: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        MetricCollection(problem).compute(np.array(targets), np.array([0.1, 0.9]))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown metrics \['Auc'\]; the known ones are \['AUC', 'F1'"):
        MetricCollection(Problem.BINARY).compute(np.array([0, 1]), np.array([0.1, 0.9]), ["AUC", "Auc"])
