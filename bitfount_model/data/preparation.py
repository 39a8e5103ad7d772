"""Rows of a table -> arrays of numbers; between the split and the loaders.

What was learned from the training rows (means, scales, categories) is a value of its own, stored with the model, so
that every later row becomes numbers in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bitfount_model.data.columns import Column, SemanticType
from bitfount_model.data.datastructure import DataStructure, Encoding, FeatureColumns
from bitfount_model.data.inference import category_codes
from bitfount_model.data.schema import BitfountSchema
from bitfount_model.errors import DataError, SchemaMismatchError, SerializationError
from bitfount_model.types import JSON, Problem

_SHOWN = 5


@dataclass(frozen=True)
class Preparation:
    """How features become numbers.

    Attributes:
        continuous: column -> (mean, scale) over the training rows: the mean and the population standard deviation of
            the values that are there; a column without spread has scale 1.0, one without values mean 0.0.
        categorical: column -> categories, in the order of their codes.
        encoding: "codes" or "one_hot".
        normalise: whether continuous values have the mean taken off and are divided by the scale.
    """

    continuous: Mapping[str, tuple[float, float]]
    categorical: Mapping[str, tuple[Any, ...]]
    encoding: Encoding = "codes"
    normalise: bool = True

    def to_json(self) -> JSON:
        """A JSON object; floats keep every bit."""
        return {
            "continuous": {name: list(pair) for name, pair in self.continuous.items()},
            "categorical": {name: list(categories) for name, categories in self.categorical.items()},
            "encoding": self.encoding,
            "normalise": self.normalise,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Preparation:
        """The inverse of `to_json`.

        Raises:
            SerializationError: lists everything that is missing, unknown or of a wrong kind.
        """
        problems = _json_problems(data)
        if problems:
            raise SerializationError("preparation: " + "; ".join(problems))
        return cls(
            continuous={name: (float(mean), float(scale)) for name, (mean, scale) in data["continuous"].items()},
            categorical={name: tuple(categories) for name, categories in data["categorical"].items()},
            encoding=data["encoding"],
            normalise=data["normalise"],
        )


def fit_preparation(frame: pd.DataFrame, schema: BitfountSchema, datastructure: DataStructure) -> Preparation:
    """Learn from the training rows how features become numbers.

    Args:
        frame: the training rows.
        schema: gives the categories.
        datastructure: says which columns are features.

    Raises:
        DataError: a continuous column holds infinity or something that is no number.
    """
    columns = datastructure.feature_columns(schema)
    return Preparation(
        continuous={name: _mean_and_scale(column_numbers(frame, name)) for name in columns.continuous},
        categorical={name: schema.column(name).categories for name in columns.categorical},
        encoding=datastructure.categorical_encoding,
        normalise=datastructure.normalise,
    )


def encode_features(frame: pd.DataFrame, columns: FeatureColumns, preparation: Preparation) -> np.ndarray:
    """Turn rows into the tabular features: continuous columns first, then categorical ones.

    A missing number becomes the training mean (0 when normalised). A category that is missing or was not in the
    schema becomes the code after the last category, or all zeros with "one_hot".

    Args:
        frame: the rows.
        columns: which columns, and in which order.
        preparation: what was learned from the training rows.

    Returns:
        `(rows, width)` float32, C-contiguous.

    Raises:
        DataError: infinity, a value beyond float32, or something that is no number; names column and key.
        SchemaMismatchError: a column is missing from the table, or unknown to the preparation.
    """
    unknown = [n for n in columns.continuous if n not in preparation.continuous]
    unknown += [n for n in columns.categorical if n not in preparation.categorical]
    if unknown:
        raise SchemaMismatchError(f"columns {unknown} are unknown to the preparation; fit it on these columns again")
    one_hot = preparation.encoding == "one_hot"
    widths = [len(preparation.categorical[name]) if one_hot else 1 for name in columns.categorical]
    features = np.zeros((len(frame), len(columns.continuous) + sum(widths)), dtype=np.float32)
    for position, name in enumerate(columns.continuous):
        mean, scale = preparation.continuous[name]
        features[:, position] = _prepared(frame, name, mean, scale, preparation.normalise)
    start = len(columns.continuous)
    for name, width in zip(columns.categorical, widths, strict=True):
        codes = category_codes(_series(frame, name), preparation.categorical[name])
        if one_hot:
            known = np.flatnonzero(codes >= 0)
            features[known, start + codes[known]] = 1.0
        else:
            features[:, start] = np.where(codes < 0, len(preparation.categorical[name]), codes)
        start += width
    return features


def encode_target(
    frame: pd.DataFrame,
    schema: BitfountSchema,
    datastructure: DataStructure,
    problem: Problem,
    required: bool = True,
) -> np.ndarray:
    """Turn the target columns into numbers.

    Args:
        frame: the rows.
        schema: gives the classes of a categorical target.
        datastructure: names the targets.
        problem: decides the dtype.
        required: False gives zeros for columns that are not there and for values that are missing or no known class,
            as for rows that are to be predicted.

    Returns:
        `(rows,)` for one target column, `(rows, targets)` for several, `(rows,)` zeros for none. float32 for regression
        and for several labels (multilabel), else int64 class numbers.

    Raises:
        DataError: a missing value, a class that the schema does not know, a label that is neither 0 nor 1, or a target of the
            wrong kind.
        SchemaMismatchError: a target column is not in the table.
    """
    as_float = problem in (Problem.REGRESSION, Problem.MULTILABEL)
    dtype = np.float32 if as_float else np.int64
    encoded = []
    for name in datastructure.targets:
        if not required and (name not in frame.columns or problem is Problem.MULTILABEL):
            encoded.append(np.zeros(len(frame), dtype=dtype))
            continue
        column = schema.column(name)
        if column.semantic_type is SemanticType.CATEGORICAL and problem is not Problem.REGRESSION:
            numbers = _class_numbers(frame, column, required)
            encoded.append((_present(column)[numbers] if problem is Problem.MULTILABEL else numbers).astype(dtype))
        elif as_float:
            encoded.append(_target_numbers(frame, name, required))
        else:
            raise DataError(
                f"target {name!r} is {column.semantic_type.value}, wanted a categorical one for {problem.value}; "
                f'generate the schema with force_stypes={{"categorical": ["{name}"]}}'
            )
    if not encoded:
        return np.zeros(len(frame), dtype=dtype)
    return encoded[0] if len(encoded) == 1 else np.stack(encoded, axis=1)


def encode_support(frame: pd.DataFrame, datastructure: DataStructure, required: bool = True) -> np.ndarray:
    """The two numbers that go with each row: its weight in the loss and its ignored class.

    Args:
        frame: the rows.
        datastructure: names the columns.
        required: False takes the defaults for columns that are not there, as for rows that are to be predicted.

    Returns:
        `(rows, 2)` float32: the weight (1.0 where the datastructure names no column), the class (-1.0 for none).

    Raises:
        DataError: a weight is missing, negative or infinite.
        SchemaMismatchError: a column is not in the table.
    """
    support = np.tile(np.array([1.0, -1.0], dtype=np.float32), (len(frame), 1))
    weights, classes = datastructure.loss_weights_col, datastructure.ignore_classes_col
    if weights is not None and (required or weights in frame.columns):
        numbers = column_numbers(frame, weights)
        _refuse_rows(frame, ~(numbers >= 0), f"loss weights {weights!r}", "missing or negative", "0 or more")
        support[:, 0] = numbers
    if classes is not None and (required or classes in frame.columns):
        numbers = column_numbers(frame, classes)
        support[:, 1] = np.where(np.isnan(numbers), -1.0, numbers)
    return support


def _series(frame: pd.DataFrame, name: str) -> pd.Series[Any]:
    if name not in frame.columns:
        raise SchemaMismatchError(f"column {name!r} is not in the table; columns: {list(frame.columns)}")
    return frame[name]


def column_numbers(frame: pd.DataFrame, name: str) -> np.ndarray:
    """One continuous column as numbers.

    Args:
        frame: the rows.
        name: the column's.

    Returns:
        float64 `(rows,)`: NaN where missing, times as seconds since the epoch.

    Raises:
        DataError: something in it is no number, or infinite.
        SchemaMismatchError: it is not in the table.
    """
    values = _series(frame, name)
    types = pd.api.types
    if types.is_datetime64_any_dtype(values.dtype) or types.is_timedelta64_dtype(values.dtype):
        return _seconds(values)
    try:
        numbers = pd.to_numeric(values).to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"column {name!r} is continuous but holds something that is no number: {error}; correct the column, or "
            "make it categorical in the schema"
        ) from error
    _refuse_rows(frame, np.isinf(numbers), f"column {name!r}", "infinite", "finite numbers")
    return numbers


def _seconds(values: pd.Series[Any]) -> np.ndarray:
    """Times as seconds since the epoch, spans as seconds."""
    plain = values.dt.tz_convert(None) if isinstance(values.dtype, pd.DatetimeTZDtype) else values
    nanoseconds = plain.to_numpy().astype("datetime64[ns]" if plain.dtype.kind == "M" else "timedelta64[ns]")
    return np.where(np.isnat(nanoseconds), np.nan, nanoseconds.astype(np.int64) / 1e9)


def _refuse_rows(frame: pd.DataFrame, bad: np.ndarray, what: str, found: str, wanted: str) -> None:
    rows = np.flatnonzero(bad)
    if len(rows):
        keys = frame.index[rows[:_SHOWN]].tolist()
        raise DataError(f"{what}: {found} in {len(rows)} rows, first keys {keys}; wanted {wanted}; clean the column")


def _mean_and_scale(numbers: np.ndarray) -> tuple[float, float]:
    """Mean and population standard deviation of the values that are there, for values of any size."""
    present = numbers[~np.isnan(numbers)]
    if not len(present):
        return 0.0, 1.0
    low, high = float(present.min()), float(present.max())
    if low == high:
        return low, 1.0
    # dividing by a power of two is exact, and keeps sums and squares of huge values from overflowing
    exponent = int(np.frexp(max(abs(low), abs(high)))[1])
    small = np.ldexp(present, -exponent)
    mean, scale = float(np.ldexp(small.mean(), exponent)), float(np.ldexp(small.std(), exponent))
    return mean, scale if scale > 0 else 1.0


def _prepared(frame: pd.DataFrame, name: str, mean: float, scale: float, normalise: bool) -> np.ndarray:
    numbers = column_numbers(frame, name)
    filled = np.where(np.isnan(numbers), mean, numbers)
    with np.errstate(over="ignore"):
        prepared = ((filled - mean) / scale if normalise else filled).astype(np.float32)
    _refuse_rows(frame, ~np.isfinite(prepared), f"column {name!r}", "too large for float32", "numbers below 3.4e38")
    return prepared


def _class_numbers(frame: pd.DataFrame, column: Column, required: bool) -> np.ndarray:
    values = _series(frame, column.name)
    codes = category_codes(values, column.categories)
    if not required:
        return np.where(codes < 0, 0, codes)
    _refuse_rows(frame, codes == -1, f"target {column.name!r}", "missing", "a class for every row")
    unseen = values[codes == -2].drop_duplicates().tolist()
    if unseen:
        raise DataError(
            f"target {column.name!r} has classes that are not in the schema: {unseen[:20]}; known are "
            f"{list(column.categories[:20])}; generate the schema from rows of every class"
        )
    return codes


def _present(column: Column) -> np.ndarray:
    """Whether a label is there, 0 or 1, by the number of its category.

    Of 0 and 1 (or False and True) a column may hold one alone: a label may be there in all rows, or in none. Of two other
    values the later one in the schema's order is the label.
    """
    if all(category in (0, 1) for category in column.categories):
        return np.array([int(category) for category in column.categories], dtype=np.int64)
    if len(column.categories) == 2:
        return np.array([0, 1], dtype=np.int64)
    raise DataError(
        f"label {column.name!r} has the values {list(column.categories[:20])}, wanted two, such as 0 and 1; make a column of 0 and"
        " 1 of each value that is a label"
    )


def _target_numbers(frame: pd.DataFrame, name: str, required: bool) -> np.ndarray:
    numbers = column_numbers(frame, name)
    if not required:
        numbers = np.nan_to_num(numbers)
    _refuse_rows(frame, np.isnan(numbers), f"target {name!r}", "missing", "a number for every row")
    with np.errstate(over="ignore"):
        encoded = numbers.astype(np.float32)
    _refuse_rows(frame, np.isinf(encoded), f"target {name!r}", "too large for float32", "numbers below 3.4e38")
    return encoded


def _json_problems(data: Mapping[str, Any]) -> list[str]:
    wanted = {"continuous": Mapping, "categorical": Mapping, "encoding": str, "normalise": bool}
    problems = [f"unknown key {key!r}" for key in data if key not in wanted]
    problems += [
        f"{key} is {data.get(key)!r}, wanted a {kind.__name__}"
        for key, kind in wanted.items()
        if not isinstance(data.get(key), kind)
    ]
    if problems:
        return problems
    problems += [
        f"continuous {n!r} is {pair!r}, wanted [mean, scale > 0]"
        for n, pair in data["continuous"].items()
        if not _is_pair(pair)
    ]
    problems += [
        f"categorical {name!r} is {categories!r}, wanted a list of numbers and texts"
        for name, categories in data["categorical"].items()
        if not isinstance(categories, Sequence)
        or isinstance(categories, str)
        or not all(isinstance(c, bool | int | float | str) for c in categories)
    ]
    if data["encoding"] not in ("codes", "one_hot"):
        problems.append(f'encoding is {data["encoding"]!r}, wanted "codes" or "one_hot"')
    return problems


def _is_pair(pair: Any) -> bool:
    numbers: bool = isinstance(pair, Sequence) and len(pair) == 2 and all(type(n) in (int, float) for n in pair)
    return numbers and all(math.isfinite(n) for n in pair) and pair[1] > 0
