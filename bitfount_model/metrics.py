"""Between predictions and reports: named figures of how well predictions meet their targets.

Predictions may be probabilities or logits: `MetricCollection.compute` turns them into one plain form for the problem,
and every metric is a pure function of that form (`metric_functions` has the defaults). A figure that the rows do not
define (an AUC where only one class occurs, an R2 of constant targets, anything of no rows or of NaN predictions) is
nan; it never raises or warns, because a pod with few rows must not end a round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from scipy.special import expit, softmax  # type: ignore[import-untyped]

from bitfount_model.errors import ConfigurationError, DataError
from bitfount_model.metric_functions import OF_PROBABILITIES, MetricFunction, default_functions
from bitfount_model.types import Problem

_SUM_TOLERANCE = 1e-2  # how far probabilities of one row may be from summing to 1: half precision, many classes


@dataclass(frozen=True)
class Metric:
    """A figure to compute from targets and predictions.

    Attributes:
        func: `func(targets, predictions) -> float`, given arrays in the form that `MetricCollection` describes.
        probabilities: True if `func` wants probabilities, False if it wants the classes decided on. Means nothing for
            regression, where predictions are numbers.
    """

    func: MetricFunction
    probabilities: bool = False


@dataclass(frozen=True)
class MetricCollection:
    """The metrics of one problem.

    What the functions are given, with `n` rows; probabilities and numbers float64, classes int64:

    | problem | targets | probabilities | decisions |
    |---|---|---|---|
    | binary | 0/1 `(n,)` | of class 1 `(n,)` | 0/1 `(n,)` |
    | multiclass | `(n,)` | `(n, classes)` | `(n,)` |
    | multilabel | 0/1 `(n, labels)` | `(n, labels)` | 0/1 `(n, labels)` |
    | regression | `(n,)` or `(n, targets)` | as targets | as targets |
    | segmentation | `(n, ...)` | `(n, ...)` for one class, else `(n, classes, ...)` | `(n, ...)` |

    Args:
        problem: what is predicted.
        metrics: name -> metric. None takes the defaults of the problem: `default_metrics(problem)`.
        num_classes: number of classes, for multiclass and segmentation. None reads it off the predictions.
        num_labels: number of labels, for multilabel. None reads it off the predictions.
        threshold: the probability above which a binary or multilabel decision is 1.

    Raises:
        ConfigurationError: an unknown problem, a value that is no Metric, a number of classes or labels below 1, a
            threshold outside [0, 1].
    """

    problem: Problem
    metrics: Mapping[str, Metric] | None = None
    num_classes: int | None = None
    num_labels: int | None = None
    threshold: float = 0.5

    def __post_init__(self) -> None:
        problems = [
            f"{name!r} is of type {type(metric).__name__}, want a Metric"
            for name, metric in (self.metrics or {}).items()
            if not isinstance(metric, Metric)
        ]
        if not isinstance(self.problem, Problem):
            problems.append(
                f"problem is {self.problem!r}, want one of {', '.join(problem.value for problem in Problem)}"
            )
        for name, number in (("num_classes", self.num_classes), ("num_labels", self.num_labels)):
            if number is not None and number < 1:
                problems.append(f"{name} is {number}, want at least 1")
        if not 0 <= self.threshold <= 1:
            problems.append(f"threshold is {self.threshold}, want a probability")
        if problems:
            raise ConfigurationError(f"the metrics cannot be set up: {'; '.join(problems)}")

    @classmethod
    def create_from_model(cls, model: Any, metrics: Mapping[str, Metric] | None = None) -> Self:
        """The metrics that suit a model.

        Args:
            model: has `problem`; classifiers also `n_classes`, and `datastructure.targets` if multi-label.
            metrics: name -> metric, in place of the defaults.

        Returns:
            A collection for the model's problem, number of classes and number of labels.
        """
        problem = model.problem
        classes = model.n_classes if problem in (Problem.MULTICLASS, Problem.SEGMENTATION) else None
        labels = len(model.datastructure.targets) if problem == Problem.MULTILABEL else None
        return cls(problem, metrics, num_classes=classes, num_labels=labels)

    def compute(
        self, test_target: np.ndarray, test_preds: np.ndarray, metric_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Computes the metrics.

        Args:
            test_target: targets, `(n,)`, `(n, 1)`, or as in the table above.
            test_preds: predictions as the model gives them. Values outside [0, 1] are logits, and so are rows of
                several classes that do not sum to 1; the whole array is one or the other. Binary: `(n,)`, `(n, 1)`
                or `(n, 2)`. Multiclass: `(n, classes)`, or the classes decided on, `(n,)`.
            metric_names: which metrics. None computes all.

        Returns:
            Name -> full float, nan where it is not defined, in the order of the names.

        Raises:
            ConfigurationError: a name is unknown, or the shapes do not fit the problem.
            DataError: a target is no class of the problem.
        """
        known = default_metrics(self.problem) if self.metrics is None else self.metrics
        names = list(known) if metric_names is None else list(metric_names)
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ConfigurationError(f"unknown metrics {unknown}; the known ones are {list(known)}")
        targets, preds = np.asarray(test_target), np.asarray(test_preds)
        if targets.ndim == 0 or preds.ndim == 0 or len(targets) != len(preds):
            raise _misshapen(self.problem, targets, preds, "as many predictions as targets")
        if targets.size == 0 or preds.size == 0 or np.isnan(preds.astype(np.float64)).any():
            return dict.fromkeys(names, float("nan"))
        with np.errstate(all="ignore"):  # huge and infinite predictions give inf or nan, which says enough
            targets, probabilities, decisions = self._plain(targets, preds.astype(np.float64))
            if np.isnan(probabilities).any():  # infinite logits
                return dict.fromkeys(names, float("nan"))
            if self.metrics is None:
                known = default_metrics(self.problem, one_channel=probabilities.ndim == targets.ndim)
            return {
                name: float(known[name].func(targets, probabilities if known[name].probabilities else decisions))
                for name in names
            }

    def _plain(self, targets: np.ndarray, preds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Targets, probabilities and decisions in the form of the table."""
        if self.problem == Problem.REGRESSION:
            numbers = _unsqueezed(targets).astype(np.float64), _unsqueezed(preds)
            if numbers[0].shape != numbers[1].shape:
                raise _misshapen(self.problem, targets, preds, "predictions of the targets' shape")
            return *numbers, numbers[1]
        if self.problem == Problem.BINARY:
            return self._plain_binary(targets, preds)
        if self.problem == Problem.MULTILABEL:
            return self._plain_multilabel(targets, preds)
        return self._plain_classes(targets, preds)

    def _plain_binary(self, targets: np.ndarray, preds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        classes = _class_numbers(_unsqueezed(targets), 2)
        probabilities = _distribution(preds)[:, 1] if preds.shape[1:] == (2,) else _sigmoid(_unsqueezed(preds))
        if classes.ndim != 1 or probabilities.ndim != 1:
            raise _misshapen(self.problem, targets, preds, "targets (n,) and predictions (n,), (n, 1) or (n, 2)")
        return classes, probabilities, (probabilities > self.threshold).astype(np.int64)

    def _plain_multilabel(self, targets: np.ndarray, preds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        columns = targets.reshape(len(targets), -1), preds.reshape(len(preds), -1)
        if columns[0].shape != columns[1].shape or self.num_labels not in (None, columns[1].shape[1]):
            raise _misshapen(self.problem, targets, preds, f"both (n, {self.num_labels or 'labels'})")
        probabilities = _sigmoid(columns[1])
        return _class_numbers(columns[0], 2), probabilities, (probabilities > self.threshold).astype(np.int64)

    def _plain_classes(self, targets: np.ndarray, preds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Multiclass and segmentation: the classes are axis 1 of the predictions, if they have that axis."""
        squeezed = targets[:, 0] if targets.shape[1:2] == (1,) else targets
        channels = preds[:, 0] if preds.shape[1:2] == (1,) and preds.ndim == squeezed.ndim + 1 else preds
        if (
            self.problem == Problem.SEGMENTATION
            and channels.shape == squeezed.shape
            and self.num_classes in (None, 1, 2)
        ):
            probabilities = _sigmoid(channels)
            return _class_numbers(squeezed, 2), probabilities, (probabilities > self.threshold).astype(np.int64)
        if self.problem == Problem.MULTICLASS and channels.shape == squeezed.shape:
            count = self.num_classes or int(max(channels.max(), squeezed.max())) + 1
            channels = np.eye(count)[_class_numbers(channels, count)]
        fits = channels.ndim == squeezed.ndim + 1 and channels.shape[:1] + channels.shape[2:] == squeezed.shape
        if not fits or self.num_classes not in (None, channels.shape[1]):
            wanted = f"targets (n, ...) and predictions (n, {self.num_classes or 'classes'}, ...)"
            raise _misshapen(self.problem, targets, preds, wanted)
        probabilities = _distribution(channels)
        return _class_numbers(squeezed, channels.shape[1]), probabilities, probabilities.argmax(axis=1)


def default_metrics(problem: Problem, *, one_channel: bool = False) -> dict[str, Metric]:
    """The metrics of a problem unless the user chooses others.

    Multi-class and multi-label have the macro forms of the binary ones, the plain mean over the classes that occur in
    targets or predictions, or over labels. But "Accuracy" is the share of all decisions that are right, each row
    counting alike (micro), for multi-class too: a rare class weighs little in it. `metric_functions` defines each.

    Args:
        problem: what is predicted.
        one_channel: for segmentation, that predictions have one channel: IoU and Dice are then those of class 1.

    Returns:
        A new dict, name -> metric; it can be pickled.
    """
    functions = default_functions(problem, one_channel=one_channel)
    return {name: Metric(func, probabilities=func in OF_PROBABILITIES) for name, func in functions.items()}


def _unsqueezed(values: np.ndarray) -> np.ndarray:
    return values[:, 0] if values.shape[1:] == (1,) else values


def _sigmoid(preds: np.ndarray) -> np.ndarray:
    """Probabilities, each for itself; values outside [0, 1] show that the predictions are logits."""
    return preds if preds.min() >= 0 and preds.max() <= 1 else np.asarray(expit(preds))


def _distribution(preds: np.ndarray) -> np.ndarray:
    """Probabilities that sum to 1 over axis 1; anything else shows that the predictions are logits."""
    sums_to_one = bool((np.abs(preds.sum(axis=1) - 1) <= _SUM_TOLERANCE).all())
    return preds if sums_to_one and preds.min() >= 0 and preds.max() <= 1 else np.asarray(softmax(preds, axis=1))


def _class_numbers(values: np.ndarray, count: int) -> np.ndarray:
    """Whole numbers from 0 to `count - 1` as int64, of whatever dtype they come."""
    numeric = values.dtype.kind in "biuf"
    wrong = (
        ~((values >= 0) & (values < count) & (np.floor(values) == values)) if numeric else np.full(values.shape, True)
    )
    if wrong.any():
        found = np.unique(values[wrong])[:5].tolist()
        raise DataError(f"found the classes {found}, want whole numbers from 0 to {count - 1}: check the target column")
    return values.astype(np.int64)


def _misshapen(problem: Problem, targets: np.ndarray, preds: np.ndarray, wanted: str) -> ConfigurationError:
    return ConfigurationError(
        f"{problem.value}: targets have shape {targets.shape} and predictions {preds.shape}, want {wanted}."
        " Check what test_step returns, and the model's number of classes."
    )
