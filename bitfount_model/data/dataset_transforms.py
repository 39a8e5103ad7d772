"""Columns -> new columns, by sums and products; before the schema is made of the table."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from bitfount_model.data.names import require_columns, suggestion
from bitfount_model.errors import DataError, SchemaMismatchError

Operation = Callable[[Any, Any], Any]

OPERATIONS: Mapping[str, Operation] = {
    "addition": operator.add,
    "subtraction": operator.sub,
    "multiplication": operator.mul,
    "division": operator.truediv,
    "average": lambda one, other: (one + other) / 2,
}
"""Name -> what is done with the two arguments, row by row, in float64."""

_ENTRIES = {"name", "arg1", "arg2"}


def transform_problems(transforms: Sequence[Any]) -> list[str]:
    """What is wrong with a list of transforms, one sentence each.

    A transform is `{operation: {"name": new column, "arg1": column, "arg2": column or finite number}}`.
    """
    return [
        f"dataset_transforms[{place}]: {problem}"
        for place, transform in enumerate(transforms)
        for problem in _problems(transform)
    ]


def apply_transforms(frame: pd.DataFrame, transforms: Sequence[Mapping[str, Mapping[str, Any]]]) -> pd.DataFrame:
    """The table with the new columns at its end.

    Args:
        frame: the table; it is not changed.
        transforms: in order; a later one may use the column of an earlier one.

    Returns:
        A new table; new columns are float64, missing where an argument is missing.

    Raises:
        SchemaMismatchError: an argument is no column, or the new name is taken.
        DataError: an argument is a column that does not hold numbers.
    """
    for transform in transforms:
        ((operation, entries),) = transform.items()
        name, names = entries["name"], [str(column) for column in frame.columns]
        where = f"dataset_transforms, {operation} {name!r}"
        arguments = [entries["arg1"], entries["arg2"]]
        require_columns([argument for argument in arguments if isinstance(argument, str)], names, where)
        if name in names:
            raise SchemaMismatchError(f"{where}: the table has a column of that name already; choose another name")
        one, other = (_numbers(frame, argument, where) for argument in arguments)
        frame = frame.assign(**{name: OPERATIONS[operation](one, other)})
    return frame


def _numbers(frame: pd.DataFrame, argument: str | float, where: str) -> pd.Series[float] | float:
    if not isinstance(argument, str):
        return float(argument)
    column = frame[argument]
    if not pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_complex_dtype(column.dtype):
        raise DataError(f"{where}: column {argument!r} holds {column.dtype} values, wanted numbers")
    return column.astype("float64")


def _problems(transform: Any) -> list[str]:
    if not isinstance(transform, Mapping) or len(transform) != 1:
        return [f"found {transform!r}, wanted one operation: {{operation: {{name, arg1, arg2}}}}"]
    ((operation, entries),) = transform.items()
    if operation not in OPERATIONS:
        return [f"no operation {operation!r}{suggestion(str(operation), list(OPERATIONS))}"]
    if not isinstance(entries, Mapping) or set(entries) != _ENTRIES:
        found = sorted(map(str, entries)) if isinstance(entries, Mapping) else repr(entries)
        return [f"{operation} has {found}, wanted exactly {sorted(_ENTRIES)}"]
    problems = [
        f"{key} of {operation} is {entries[key]!r}, wanted a column's name"
        for key in ("name", "arg1")
        if not isinstance(entries[key], str) or not entries[key]
    ]
    if not _is_column_or_number(entries["arg2"]):
        problems.append(f"arg2 of {operation} is {entries['arg2']!r}, wanted a column's name or a finite number")
    return problems


def _is_column_or_number(value: Any) -> bool:
    return isinstance(value, str) or (type(value) in (int, float) and math.isfinite(value))
