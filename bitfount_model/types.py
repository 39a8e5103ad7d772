"""Names for the values that pass between the rooms: parameters, results, contexts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

Parameters = Mapping[str, Tensor]
"""Name -> tensor, as in a state dict."""

Words = np.ndarray[tuple[int], np.dtype[np.uint64]]
"""A vector over Z_2^64, `(words,)` uint64; its arithmetic wraps round."""

JSON = dict[str, Any]
"""A JSON object."""


class EvaluateReturnType(NamedTuple):
    """What `evaluate` returns, row by row in the order of the test split.

    Attributes:
        preds: predictions, as the model's `test_step` gives them, `(rows, ...)`.
        targs: targets, `(rows,)` or `(rows, targets)`.
        keys: one key a row, its number in the table where the data has no key column; None where a user's own loader has none.
    """

    preds: np.ndarray
    targs: np.ndarray
    keys: list[Any] | None = None


class PredictReturnType(NamedTuple):
    """What `predict` returns, row by row in the order of the data.

    Attributes:
        preds: predictions, as the model's `test_step` gives them, `(rows, ...)`.
        keys: one key a row, its number in the table where the data has no key column; None where a user's own loader has none.
    """

    preds: np.ndarray
    keys: list[Any] | None = None


class TaskContext(Enum):
    """Where a model runs: beside the rows, or at the modeller, who has none."""

    MODELLER = "modeller"
    WORKER = "worker"


class DataSplit(StrEnum):
    """The three parts of a table."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class Problem(StrEnum):
    """What is predicted; decides the dtype of targets and the default metrics."""

    BINARY = "binary"
    MULTICLASS = "multiclass"
    MULTILABEL = "multilabel"
    REGRESSION = "regression"
    SEGMENTATION = "segmentation"


@dataclass(frozen=True)
class SplitIndices:
    """Positions of the rows of each split, each `(rows,)` int64, disjoint, together all rows that are used."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def of(self, split: DataSplit) -> np.ndarray:
        """The positions of one split."""
        return {DataSplit.TRAIN: self.train, DataSplit.VALIDATION: self.validation, DataSplit.TEST: self.test}[split]
