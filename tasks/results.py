"""From arrays of predictions to a table that people can join with their own."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bitfount_model.errors import TrainingError
from bitfount_model.types import Problem


def prediction_table(
    preds: np.ndarray,
    keys: Sequence[Any] | None,
    *,
    problem: Problem,
    targets: Sequence[str],
    classes: Sequence[str] | None,
    targs: np.ndarray | None = None,
) -> pd.DataFrame:
    """One row a prediction.

    Args:
        preds: `(rows,)`, `(rows, 1)`, `(rows, classes)` or `(rows, targets)`.
        keys: one key a row; None numbers them from 0.
        problem: decides the columns.
        targets: names of the target columns.
        classes: names of the classes (or labels), None for regression.
        targs: the true targets, where they are known.

    Returns:
        Columns `key`; the true targets under their own names, or as `target_<name>` where another column has that name;
        then, for classes, `prediction` and `score_<class>`; for labels, `prediction_<label>` and `score_<label>`; for
        numbers, `prediction` or `prediction_<target>`.

    Raises:
        TrainingError: the model gives more or fewer numbers a row than there are classes, labels or targets.
    """
    scores = np.asarray(preds).reshape(len(preds), -1)
    made = _predictions(scores, problem, targets, classes)
    truth: dict[str, Any] = {}
    if targs is not None:
        columns = np.asarray(targs).reshape(len(preds), -1)
        single = problem in (Problem.BINARY, Problem.MULTICLASS)
        for place, name in enumerate(targets):
            free = f"target_{name}" if name in ("key", *made) else name
            truth[free] = _named(columns[:, place], classes) if single else columns[:, place]
    return pd.DataFrame({"key": np.arange(len(preds)) if keys is None else list(keys), **truth, **made})


def _predictions(
    scores: np.ndarray, problem: Problem, targets: Sequence[str], classes: Sequence[str] | None
) -> dict[str, Any]:
    """The columns that are made of a model's outputs, `(rows, outputs)`."""
    names = list(targets) if classes is None else list(classes)
    one_of_them = classes is not None and problem is not Problem.MULTILABEL
    if one_of_them and scores.shape[1] == 1:
        return _one_output(scores[:, 0], names)
    if scores.shape[1] != len(names):
        raise TrainingError(
            f"the model's predictions have {scores.shape[1]} numbers a row, wanted {len(names)}: one for each of"
            f" {', '.join(map(str, names[:20]))}; correct what `test_step` returns"
        )
    if classes is None:
        columns = [f"prediction_{name}" for name in names] if len(names) > 1 else ["prediction"]
        return {column: scores[:, place] for place, column in enumerate(columns)}
    of_each = {f"score_{name}": scores[:, place] for place, name in enumerate(names)}
    if one_of_them:
        return {"prediction": _named(scores.argmax(axis=1), names), **of_each}
    return {f"prediction_{name}": _positive(scores[:, place]) for place, name in enumerate(names)} | of_each


def _one_output(scores: np.ndarray, names: list[str]) -> dict[str, Any]:
    """One number a row, `(rows,)`: of two classes the second one's score, of more of them the class decided on."""
    if len(names) == 2:
        return {"prediction": _named(_positive(scores), names), f"score_{names[1]}": scores}
    decided = np.zeros(len(scores)) if len(names) == 1 else scores
    if not np.isin(decided, np.arange(len(names))).all():
        raise TrainingError(
            f"the model's predictions are one number a row, wanted {len(names)} scores, or the number of a class from 0"
            f" to {len(names) - 1}; correct what `test_step` returns"
        )
    return {"prediction": _named(decided, names)} | ({f"score_{names[0]}": scores} if len(names) == 1 else {})


def to_parquet(table: pd.DataFrame) -> bytes:
    """The table as Parquet; the same bytes for the same table. Keys of several kinds become text."""
    mixed = table["key"].map(type).nunique() > 1
    buffer = io.BytesIO()
    (table.astype({"key": str}) if mixed else table).to_parquet(buffer, engine="pyarrow", index=False)
    return buffer.getvalue()


def _positive(scores: np.ndarray) -> np.ndarray:
    """Probabilities are cut at one half; scores outside [0, 1] are logits, and cut at nought."""
    is_probability = bool(((scores >= 0) & (scores <= 1)).all())
    return (scores >= (0.5 if is_probability else 0.0)).astype(np.int64)


def _named(numbers: np.ndarray, classes: Sequence[str] | None) -> Any:
    return numbers if classes is None else np.asarray(classes, dtype=object)[numbers.astype(np.int64)]
