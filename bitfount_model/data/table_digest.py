"""Table -> sha256: says whether two runs saw the same rows."""

from __future__ import annotations

import datetime
import decimal
import hashlib
import json
import uuid
from typing import Any

import numpy as np
import pandas as pd

from bitfount_model.errors import DataSourceError


def digest(frame: pd.DataFrame) -> str:
    """Identify a table by its content.

    Args:
        frame: the table.

    Returns:
        sha256, in hex, over column names, dtypes, index and values, in order; the same in every process. All missing
        values of a column are alike.

    Raises:
        DataSourceError: a cell holds an object that has no written form.
    """
    total = hashlib.sha256()
    index = pd.Series(frame.index)
    for name, column in [("index", index), *((str(name), column) for name, column in frame.items())]:
        for part in (name.encode("utf-8", "surrogatepass"), str(column.dtype).encode(), _column_bytes(name, column)):
            total.update(len(part).to_bytes(8, "little"))
            total.update(part)
    return total.hexdigest()


class RunningDigest:
    """A digest of a table that comes in chunks; where they are cut is not seen in it. It is not that of `digest`."""

    def __init__(self) -> None:
        self._columns: dict[str, Any] = {}
        self._types: dict[str, str] = {}

    def add(self, frame: pd.DataFrame) -> None:
        """Takes in one more chunk.

        Raises:
            DataSourceError: a cell holds an object that has no written form.
        """
        index = pd.Series(frame.index)
        for name, column in [("index", index), *((f"column {name}", column) for name, column in frame.items())]:
            total, dtype = self._columns.setdefault(name, hashlib.sha256()), str(column.dtype)
            if self._types.get(name) != dtype:  # pages of a database are typed one by one
                total.update(dtype.encode())
                self._types[name] = dtype
            content = _column_bytes(name, column)
            # A list of JSON without its brackets, so that lists can be joined.
            total.update(content if _is_of_numbers(column) else content[1:-1] + b", ")

    def hexdigest(self) -> str:
        """sha256, in hex, over column names, dtypes, index and values, in order."""
        total = hashlib.sha256()
        for name, column in self._columns.items():
            total.update(name.encode("utf-8", "surrogatepass") + b"\0" + column.digest())
        return total.hexdigest()


def _is_of_numbers(column: pd.Series[Any]) -> bool:
    """Whether a column is of numbers or times, whose bytes are taken as they are."""
    return isinstance(column.dtype, np.dtype) and column.dtype.kind in "biufmM"


def _column_bytes(name: str, column: pd.Series[Any]) -> bytes:
    """One column's values: little-endian for numbers and times, JSON for everything else."""
    if _is_of_numbers(column):
        values = column.to_numpy()
        if values.dtype.kind == "f":
            values = np.where(np.isnan(values), np.nan, values)  # there are many bit patterns of NaN
        return values.astype(values.dtype.newbyteorder("<")).tobytes()
    plain = [None if gone else value for value, gone in zip(column.tolist(), column.isna().tolist(), strict=True)]
    try:
        return json.dumps(plain, default=_written_form).encode()
    except (TypeError, ValueError) as error:
        raise DataSourceError(f"column {name!r}: {error}; turn its values into numbers or text") from error


def _written_form(value: object) -> list[str]:
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    if isinstance(value, np.generic | np.ndarray):
        return [f"numpy {value.dtype}", json.dumps(value.tolist(), default=_written_form)]
    if isinstance(value, decimal.Decimal | datetime.date | datetime.time | datetime.timedelta | uuid.UUID):
        return [type(value).__name__, str(value)]
    raise TypeError(f"a value of type {type(value).__name__} has no written form")
