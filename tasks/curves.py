"""From predictions and targets to the numbers behind the plots: probabilities, decisions, ROC and precision-recall."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bitfount_model.types import Problem

CURVE_POINTS = 1000  # more than a plot has pixels


@dataclass(frozen=True)
class Classified:
    """What a classifier made of its rows; columns are the classes, or the labels, or the positive class alone.

    Attributes:
        truth: `(rows, columns)` bool.
        scores: `(rows, columns)` float64 probabilities.
        actual: class numbers, `(rows,)` int64, or `(rows, labels)` of 0 and 1.
        decided: as actual.
    """

    truth: np.ndarray
    scores: np.ndarray
    actual: np.ndarray
    decided: np.ndarray


@dataclass(frozen=True)
class Curve:
    """A curve and the area under it.

    Attributes:
        x: `(points,)`, rising for ROC, falling for precision-recall.
        y: `(points,)`.
        area: area under the ROC curve, or average precision.
    """

    x: np.ndarray
    y: np.ndarray
    area: float


def classified(problem: Problem, preds: np.ndarray, targs: np.ndarray) -> Classified:
    """Probabilities and decisions from predictions of any form; rows with a prediction that is not finite are left out.

    Args:
        problem: binary, multiclass or multilabel.
        preds: probabilities or logits, `(rows,)`, `(rows, 1)`, `(rows, classes)` or `(rows, labels)`. Values outside
            [0, 1] are logits, and so are rows of several classes that do not sum to 1.
        targs: class numbers `(rows,)` or `(rows, 1)`, or 0 and 1 `(rows, labels)`.
    """
    scores = np.asarray(preds, dtype=np.float64).reshape(len(preds), -1)
    actual = np.asarray(targs).reshape(len(scores), -1)
    finite = np.isfinite(scores).all(axis=1)
    scores, actual = scores[finite], actual[finite].astype(np.int64)
    if problem is Problem.MULTILABEL:
        scores = sigmoid(scores)
        return Classified(actual == 1, scores, actual, (scores > 0.5).astype(np.int64))
    if problem is Problem.BINARY:
        positive = softmax(scores)[:, 1] if scores.shape[1] == 2 else sigmoid(scores[:, 0])
        decided = (positive > 0.5).astype(np.int64)
        return Classified(actual[:, :1] == 1, positive[:, None], actual[:, 0], decided)
    scores = softmax(scores)
    truth = actual[:, :1] == np.arange(scores.shape[1])
    return Classified(truth, scores, actual[:, 0], scores.argmax(axis=1))


def sigmoid(scores: np.ndarray) -> np.ndarray:
    """Logits as probabilities; probabilities as they are."""
    if scores.size == 0 or (scores.min() >= 0 and scores.max() <= 1):
        return scores
    return np.asarray(1 / (1 + np.exp(-np.clip(scores, -700, 700))))


def softmax(scores: np.ndarray) -> np.ndarray:
    """Logits `(rows, classes)` as probabilities; probabilities as they are."""
    if scores.size == 0 or (scores.min() >= 0 and np.allclose(scores.sum(axis=1), 1, atol=1e-2)):
        return scores
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    normalised: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return normalised


def roc(truth: np.ndarray, scores: np.ndarray) -> Curve | None:
    """True against false positive rate at every threshold; None where only one class occurs."""
    positives = int(truth.sum())
    if positives in (0, len(truth)):
        return None
    hits, alarms = _counts(truth, scores)
    x, y = np.r_[0, alarms / (len(truth) - positives)], np.r_[0, hits / positives]
    return Curve(*_thinned(x, y), float(np.trapezoid(y, x)))


def precision_recall(truth: np.ndarray, scores: np.ndarray) -> Curve | None:
    """Precision against recall at every threshold, the area being the average precision; None without positives."""
    positives = int(truth.sum())
    if positives == 0:
        return None
    hits, alarms = _counts(truth, scores)
    recall, precision = hits / positives, hits / (hits + alarms)
    area = float((np.diff(np.r_[0, recall]) * precision).sum())
    return Curve(*_thinned(np.r_[0, recall], np.r_[precision[0], precision]), area)


def _counts(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positives and negatives at or above each distinct score, from the highest score down."""
    order = np.argsort(-scores, kind="stable")
    last = np.r_[np.flatnonzero(np.diff(scores[order])), len(order) - 1]
    hits = np.cumsum(truth[order])[last]
    return hits, last + 1 - hits


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(x) <= CURVE_POINTS:
        return x, y
    kept = np.unique(np.linspace(0, len(x) - 1, CURVE_POINTS).astype(np.int64))
    return x[kept], y[kept]


def mean_curve(curves: list[Curve]) -> Curve:
    """The mean of ROC curves at equal false positive rates, and of their areas."""
    grid = np.linspace(0, 1, 201)
    heights = np.mean([np.interp(grid, curve.x, curve.y) for curve in curves], axis=0)
    return Curve(np.r_[0, grid], np.r_[0, heights], float(np.mean([curve.area for curve in curves])))


def confusion(actual: np.ndarray, decided: np.ndarray, size: int) -> np.ndarray:
    """Rows by actual class and class decided on, `(size, size)` int64."""
    return np.bincount(actual * size + decided, minlength=size * size).reshape(size, size)


def agreement(truth: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """R² (nan where the truth is constant) and mean absolute error of predictions, both `(rows,)`."""
    errors, spread = found - truth, truth - truth.mean()
    total = float((spread**2).sum())
    return 1 - float((errors**2).sum()) / total if total > 0 else float("nan"), float(np.abs(errors).mean())
