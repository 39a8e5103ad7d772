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


def _column_bytes(name: str, column: pd.Series[Any]) -> bytes:
    """One column's values: little-endian for numbers and times, JSON for everything else."""
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biufmM":
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
