"""Between plain arrays and reports: the figures themselves, and which of them each problem gets by default.

Every figure is a pure function `(targets, predictions) -> float` of arrays as `MetricCollection` describes them.
torchmetrics computes them, SciPy the Kolmogorov-Smirnov statistic. What torchmetrics answers with a warning, an
exception or a made-up value (an AUC of one class, an R2 of constant targets) is answered here with nan before it is
asked. Regression and the Brier loss are float64 throughout; torchmetrics divides counts in float32, so the other
figures are right to about 7 digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from scipy.stats import ks_2samp  # type: ignore[import-untyped]
from torch import Tensor
from torchmetrics import functional
from torchmetrics.functional.classification import binary_auroc

from bitfount_model.types import Problem

MetricFunction = Callable[[np.ndarray, np.ndarray], float]
"""A figure: `func(targets, predictions) -> float`."""


def f1(targets: np.ndarray, decisions: np.ndarray, *, problem: Problem = Problem.BINARY) -> float:
    """Harmonic mean of recall and precision, 0 where both are 0; on pixels it is the Dice coefficient.

    Args:
        targets: int64 classes, as `MetricCollection` describes for the problem; `decisions` too, of the same shape.
        decisions: the classes decided on.
        problem: BINARY counts class 1 alone, over all axes. MULTICLASS takes the plain mean (macro) over the classes
            that occur in targets or decisions, over all axes. MULTILABEL takes the plain mean over the labels, which
            are axis 1.

    Returns:
        A figure in [0, 1], a ratio 0 / 0 counted as 0.
    """
    return _of_counts(functional.f1_score, targets, decisions, problem)


def recall(targets: np.ndarray, decisions: np.ndarray, *, problem: Problem = Problem.BINARY) -> float:
    """Share of what is in a class that is found; arguments and mean over classes as in `f1`."""
    return _of_counts(functional.recall, targets, decisions, problem)


def precision(targets: np.ndarray, decisions: np.ndarray, *, problem: Problem = Problem.BINARY) -> float:
    """Share of what is found that is in the class; arguments and mean over classes as in `f1`."""
    return _of_counts(functional.precision, targets, decisions, problem)


def iou(targets: np.ndarray, decisions: np.ndarray, *, problem: Problem = Problem.BINARY) -> float:
    """Intersection over union, the Jaccard index; arguments and mean over classes as in `f1`."""
    return _of_counts(functional.jaccard_index, targets, decisions, problem)


def accuracy(targets: np.ndarray, decisions: np.ndarray, *, problem: Problem = Problem.BINARY) -> float:
    """Share of decisions that are right: of rows, for MULTILABEL of (row, label) pairs.

    Every row counts alike (micro), also with several classes: not the mean over classes, which is the macro recall.
    """
    return _of_counts(functional.accuracy, targets, decisions, problem, average="micro")


def area_under_curve(targets: np.ndarray, probabilities: np.ndarray) -> float:
    """Area under the ROC curve; ties count half.

    Args:
        targets: classes `(n,)`, or 0/1 `(n, labels)`.
        probabilities: of class 1 `(n,)`, of each class `(n, classes)` or of each label `(n, labels)`.

    Returns:
        The area in [0, 1]. For several classes or labels the plain mean, each against the rest, of those that some rows
        have and some have not; nan if there are none.
    """
    if probabilities.ndim == 1:
        targets, probabilities = targets[:, None], probabilities[:, None]
    truth = targets == 1 if targets.ndim == 2 else _one_hot(targets, probabilities)
    mixed = np.flatnonzero(truth.any(axis=0) & ~truth.all(axis=0))  # torchmetrics warns of the others and calls them 0
    areas = [float(binary_auroc(*_tensors(probabilities[:, i], truth[:, i]))) for i in mixed]
    return _mean([min(area, 1.0) for area in areas])  # sums in float32 may end a rounding above


def brier_loss(targets: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean squared distance of probabilities from the truth; for several classes, summed over the classes of a row.

    Cf. Brier, "Verification of forecasts expressed in terms of probability" (1950).

    Args:
        targets: classes `(n,)`, or 0/1 `(n, labels)`.
        probabilities: as for `area_under_curve`.

    Returns:
        A loss in [0, 1] for binary and (mean of labels) multi-label, in [0, 2] for multi-class.
    """
    if probabilities.ndim == targets.ndim:
        return mean_squared_error(targets, probabilities)
    truth = _one_hot(targets, probabilities)
    return mean_squared_error(truth, probabilities) * len(truth.T)


def mean_absolute_error(targets: np.ndarray, preds: np.ndarray) -> float:
    """Mean of `|prediction - target|`, over all columns; both of one shape."""
    return float(functional.mean_absolute_error(*_numbers(preds, targets)))


def mean_squared_error(targets: np.ndarray, preds: np.ndarray) -> float:
    """Mean of `(prediction - target) ** 2`, over all columns; both of one shape."""
    return float(functional.mean_squared_error(*_numbers(preds, targets)))


def root_mean_squared_error(targets: np.ndarray, preds: np.ndarray) -> float:
    """Square root of `mean_squared_error`, in the unit of the target."""
    return float(functional.mean_squared_error(*_numbers(preds, targets), squared=False))


def r2(targets: np.ndarray, preds: np.ndarray) -> float:
    """Share of the targets' variance that is explained; the mean of columns `(n,)` or `(n, targets)`.

    Returns:
        At most 1. Columns with constant targets are left out; nan if no others are left, or if the range of a column is
        not finite.
    """
    found, truth = (numbers.reshape(len(targets), -1) for numbers in _numbers(preds, targets))
    spread = truth.amax(dim=0) - truth.amin(dim=0)
    varies = spread != 0  # True for nan, too
    if not (varies.any() and spread.isfinite().all()):
        return float("nan")
    # The figure has no unit. In units of their range and around their mean the targets lose no digits when torchmetrics
    # squares them (seconds since 1970 would lose them all). Its `r2_score` would take sums below 1e-4 for 0.
    centre, unit = truth[:, varies].mean(dim=0), spread[varies]
    unexplained = functional.relative_squared_error(
        (found[:, varies] - centre) / unit, (truth[:, varies] - centre) / unit
    )
    return 1 - float(unexplained)


def kolmogorov_smirnov(targets: np.ndarray, preds: np.ndarray) -> float:
    """Largest distance between the distributions of targets and predictions, in [0, 1]; the mean of columns."""
    columns = zip(targets.reshape(len(targets), -1).T, preds.reshape(len(preds), -1).T, strict=True)
    # The statistic does not depend on the method; "asymp" leaves out an exact p-value that takes long and may warn.
    return _mean([float(ks_2samp(truth, found, method="asymp").statistic) for truth, found in columns])


OF_PROBABILITIES: frozenset[MetricFunction] = frozenset({area_under_curve, brier_loss})
"""The figures that want probabilities; the other ones want decisions, or the numbers of a regression."""


def default_functions(problem: Problem, *, one_channel: bool = False) -> dict[str, MetricFunction]:
    """The table of defaults.

    Args:
        problem: what is predicted.
        one_channel: for segmentation, that predictions have one channel: IoU and Dice are then those of class 1.

    Returns:
        A new dict, name -> figure; they can be pickled.
    """
    if problem == Problem.REGRESSION:
        return {
            "MAE": mean_absolute_error,
            "MSE": mean_squared_error,
            "RMSE": root_mean_squared_error,
            "R2": r2,
            "KS": kolmogorov_smirnov,
        }
    if problem == Problem.SEGMENTATION:
        pixels = Problem.BINARY if one_channel else Problem.MULTICLASS
        return {"IoU": partial(iou, problem=pixels), "Dice": partial(f1, problem=pixels)}
    return {
        "AUC": area_under_curve,
        "F1": partial(f1, problem=problem),
        "Recall": partial(recall, problem=problem),
        "Precision": partial(precision, problem=problem),
        "Accuracy": partial(accuracy, problem=problem),
        "Brier Loss": brier_loss,
    }


def _of_counts(
    score: Callable[..., Tensor], targets: np.ndarray, decisions: np.ndarray, problem: Problem, average: str = "macro"
) -> float:
    """A score of torchmetrics that counts hits and misses of decisions."""
    sizes: dict[str, int] = {}
    if problem == Problem.MULTICLASS:
        sizes["num_classes"] = max(2, int(max(targets.max(), decisions.max())) + 1)  # torchmetrics wants two or more
    elif problem == Problem.MULTILABEL and targets.shape[1] > 1:
        sizes["num_labels"] = targets.shape[1]
    else:
        problem = Problem.BINARY  # which is what one label is
    return float(score(*_tensors(decisions, targets), task=problem.value, average=average, **sizes))


def _one_hot(classes: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Classes `(n,)` as bool `(n, classes)`."""
    return np.asarray(classes[:, None] == np.arange(probabilities.shape[1]))


def _numbers(preds: np.ndarray, targets: np.ndarray) -> tuple[Tensor, Tensor]:
    return _tensors(preds.astype(np.float64), targets.astype(np.float64))


def _tensors(preds: np.ndarray, targets: np.ndarray) -> tuple[Tensor, Tensor]:
    """Copies, in the order of torchmetrics: torch warns of arrays that are read-only, and refuses reversed ones."""
    return torch.from_numpy(np.array(preds, order="C")), torch.from_numpy(np.array(targets, order="C"))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
