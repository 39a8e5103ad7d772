"""Values of a column -> its meaning and its categories; below the schema, which collects them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bitfount_model.data.columns import Column, SemanticType
from bitfount_model.errors import DataError

TEXT_MIN_DISTINCT = 100
"""A column of strings is text when more than this many values, and more than half of them, are distinct."""


def category_codes(column: pd.Series[Any], categories: Sequence[Any]) -> np.ndarray:
    """Where each value stands among the categories.

    Args:
        column: `(rows,)` values.
        categories: known values, in the order of their codes.

    Returns:
        `(rows,)` int64: the code, -1 for a missing value, -2 for a value that is none of the categories.
    """
    codes, distinct = distinct_values(column)
    place = {category: code for code, category in enumerate(categories)}
    table = np.array([*(place.get(value, -2) for value in distinct), -1], dtype=np.int64)
    return np.take(table, codes)  # -1 is the last entry


def distinct_values(column: pd.Series[Any]) -> tuple[np.ndarray, list[Any]]:
    """The distinct values of a column as plain bool, int, float or str.

    Whole floats become ints, so that a column of integers has the same categories whether or not values are missing;
    anything that is neither a number nor text becomes its text.

    Args:
        column: `(rows,)` values.

    Returns:
        Position of each row's value among the distinct ones `(rows,)` int64 (-1 where missing), and these values in
        order of first appearance. Different values may share one plain form.

    Raises:
        DataError: a value is a list or another thing that cannot be compared.
    """
    values = column.astype(object) if isinstance(column.dtype, pd.CategoricalDtype) else column
    try:
        codes, distinct = pd.factorize(values)
    except TypeError as error:
        raise DataError(f"column {column.name!r}: {error}; its values cannot be categories") from error
    found = np.asarray(distinct).tolist() if not isinstance(distinct, pd.DatetimeIndex) else list(distinct)
    # of all values, as in a mixed column one of True and 1 stands for both
    only_booleans = pd.api.types.infer_dtype(values, skipna=True) == "boolean"
    plain = found if only_booleans else [plain_value(value) for value in found]
    return codes.astype(np.int64), plain


def value_family(column: pd.Series[Any]) -> str:
    """What a column holds, roughly: "number", "string", "time", "other", or "nothing" where all values are missing."""
    if not column.notna().any():
        return "nothing"
    if isinstance(column.dtype, pd.CategoricalDtype):
        return value_family(pd.Series(column.dtype.categories))
    kind = pd.api.types.infer_dtype(column, skipna=True)
    return _FAMILIES.get(kind, "other")


_FAMILIES: Mapping[str, str] = {
    "string": "string", "empty": "nothing",
    "boolean": "number", "integer": "number", "floating": "number", "mixed-integer-float": "number",
    "integer-na": "number", "decimal": "number",
    "datetime": "time", "datetime64": "time", "timedelta": "time", "timedelta64": "time",
}  # fmt: skip


def plain_value(value: Any) -> Any:
    """A value as an int, float or str: what stands for it among categories."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | float | str) else str(value)


def _category_order(value: Any) -> tuple[int, Any]:
    return (1, value) if isinstance(value, str) else (0, value)


def describe_column(name: str, values: pd.Series[Any], forced: SemanticType | None) -> Column:
    """What a schema says of a column.

    Args:
        name: the column's.
        values: all of them.
        forced: the type that it has whatever it looks like; None infers it.
    """
    kind = forced or infer_semantic_type(values)
    categories = _categories(name, values) if kind is SemanticType.CATEGORICAL else ()
    return Column(name=name, semantic_type=kind, dtype=str(values.dtype), categories=categories)


def infer_semantic_type(values: pd.Series[Any]) -> SemanticType:
    """The semantic type that a column's dtype, and of text the number of distinct values, speak for."""
    kind = semantic_type_of_dtype(values.dtype)
    if kind is not None:
        return kind
    if value_family(values) == "string":
        distinct = values.nunique()
        if distinct > TEXT_MIN_DISTINCT and distinct > len(values) / 2:
            return SemanticType.TEXT
    return SemanticType.CATEGORICAL


def semantic_type_of_dtype(dtype: Any) -> SemanticType | None:
    """The semantic type that a dtype alone speaks for; None where it depends on the values."""
    types = pd.api.types
    if types.is_bool_dtype(dtype):
        return SemanticType.CATEGORICAL
    numeric = types.is_numeric_dtype(dtype) and not types.is_complex_dtype(dtype)
    if numeric or types.is_datetime64_any_dtype(dtype) or types.is_timedelta64_dtype(dtype):
        return SemanticType.CONTINUOUS
    return None


def _categories(name: str, values: pd.Series[Any]) -> tuple[Any, ...]:
    return checked_categories(name, set(distinct_values(values)[1]))


def checked_categories(name: str, distinct: Collection[Any]) -> tuple[Any, ...]:
    """The plain values of a column as categories, in the order of their codes.

    Args:
        name: the column's.
        distinct: plain values, all different.

    Raises:
        DataError: infinity is among them.
    """
    if any(isinstance(value, float) and math.isinf(value) for value in distinct):
        raise DataError(f"column {name!r} holds infinity, which cannot be a category; clean the column")
    return tuple(sorted(distinct, key=_category_order))
