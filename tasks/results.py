"""From arrays of predictions to a table that people can join with their own."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

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
        Columns `key`; the true targets under their own names; then, for classes, `prediction` and `score_<class>`; for
        labels, `prediction_<label>` and `score_<label>`; for numbers, `prediction` or `prediction_<target>`.
    """
    table: dict[str, Any] = {"key": list(keys) if keys is not None else np.arange(len(preds))}
    scores = np.asarray(preds).reshape(len(preds), -1)
    if targs is not None:
        truth = np.asarray(targs).reshape(len(preds), -1)
        single = problem in (Problem.BINARY, Problem.MULTICLASS)
        for place, name in enumerate(targets):
            table[name] = _named(truth[:, place], classes) if single else truth[:, place]
    if classes is None:
        names = [f"prediction_{name}" for name in targets] if len(targets) > 1 else ["prediction"]
        table.update({name: scores[:, place] for place, name in enumerate(names)})
    elif problem is Problem.MULTILABEL:
        table.update({f"prediction_{name}": _positive(scores[:, place]) for place, name in enumerate(classes)})
        table.update({f"score_{name}": scores[:, place] for place, name in enumerate(classes)})
    elif scores.shape[1] == 1:
        table["prediction"] = _named(_positive(scores[:, 0]), classes)
        table[f"score_{classes[-1]}"] = scores[:, 0]
    else:
        table["prediction"] = _named(scores.argmax(axis=1), classes)
        table.update({f"score_{name}": scores[:, place] for place, name in enumerate(classes)})
    return pd.DataFrame(table)


def to_parquet(table: pd.DataFrame) -> bytes:
    """The table as Parquet; the same bytes for the same table."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, engine="pyarrow", index=False)
    return buffer.getvalue()


def _positive(scores: np.ndarray) -> np.ndarray:
    """Probabilities are cut at one half; scores outside [0, 1] are logits, and cut at nought."""
    is_probability = bool(((scores >= 0) & (scores <= 1)).all())
    return (scores >= (0.5 if is_probability else 0.0)).astype(np.int64)


def _named(numbers: np.ndarray, classes: Sequence[str] | None) -> Any:
    return numbers if classes is None else np.asarray(classes, dtype=object)[numbers.astype(np.int64)]
