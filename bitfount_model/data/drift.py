"""Two tables -> how far apart their columns are: the population stability index of each, and which rows are new.

The reference is kept as counts of bins and categories, so that a later table is compared without the first one's rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bitfount_model.data.columns import SemanticType
from bitfount_model.data.inference import category_codes
from bitfount_model.data.preparation import column_numbers
from bitfount_model.data.schema import BitfountSchema
from bitfount_model.errors import SerializationError
from bitfount_model.types import JSON

BINS = 10
"""Of a continuous column: its reference values are divided into this many bins of like size."""
SMALLEST_SHARE = 1e-4
"""An empty bin counts as this share, as the index of nothing is not finite."""


@dataclass(frozen=True)
class ColumnProfile:
    """How often each part of a column's range occurs.

    Attributes:
        continuous: whether its values are numbers in bins; else they are categories.
        edges: of a continuous column, between its bins, ascending; a bin holds the values up to its edge.
        categories: of a categorical column.
        counts: rows in each bin or category; then those of other categories (0 if continuous), then those without a value.
    """

    continuous: bool
    edges: tuple[float, ...]
    categories: tuple[Any, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class TableProfile:
    """How the columns of a table are distributed.

    Attributes:
        rows: of the table.
        columns: name -> its profile.
    """

    rows: int
    columns: Mapping[str, ColumnProfile]

    def to_json(self) -> JSON:
        """A JSON object; floats keep every bit."""
        columns = {
            name: {key: list(value) if isinstance(value, tuple) else value for key, value in vars(column).items()}
            for name, column in self.columns.items()
        }
        return {"rows": self.rows, "columns": columns}

    @classmethod
    def from_json(cls, data: Any) -> TableProfile:
        """The inverse of `to_json`.

        Raises:
            SerializationError: it is something else.
        """
        try:
            columns = {
                name: ColumnProfile(
                    bool(column["continuous"]),
                    tuple(map(float, column["edges"])),
                    tuple(column["categories"]),
                    tuple(map(int, column["counts"])),
                )
                for name, column in data["columns"].items()
            }
            return cls(int(data["rows"]), columns)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SerializationError(f"this is not the profile of a table: {error!r}") from error


def profile_of(frame: pd.DataFrame, schema: BitfountSchema, columns: Sequence[str]) -> TableProfile:
    """Counts a table's bins and categories.

    Args:
        frame: `(rows, columns)`.
        schema: says which columns are continuous and which are categorical; others are left out.
        columns: those to look at.
    """
    profiles = {}
    for name in columns:
        kind = schema.column(name).semantic_type
        if kind is SemanticType.CONTINUOUS:
            profiles[name] = _binned(column_numbers(frame, name), _edges(column_numbers(frame, name)))
        elif kind is SemanticType.CATEGORICAL:
            profiles[name] = _sorted_out(frame[name], schema.column(name).categories)
    return TableProfile(len(frame), profiles)


def drift(reference: TableProfile, frame: pd.DataFrame) -> dict[str, float]:
    """The population stability index of each column of the reference: under 0.1 is little, over 0.25 much by custom.

    Of two tables of the same distribution with n and m rows it is about (bins - 1)(1/n + 1/m), so small tables differ by
    chance.

    Args:
        reference: what the table is compared with.
        frame: `(rows, columns)`; a column that it lacks is infinitely far away.

    Returns:
        Column -> index, >= 0.
    """
    return {
        name: stability_index(column.counts, _counted_alike(frame, name, column).counts)
        if name in frame.columns
        else float("inf")
        for name, column in reference.columns.items()
    }


def stability_index(reference: Sequence[int], now: Sequence[int]) -> float:
    """The population stability index: the sum of (q - p) ln(q / p) over the shares p then and q now.

    This is the symmetrised Kullback-Leibler divergence (Jeffreys, 1946), as credit scoring uses it.

    Args:
        reference: rows in each bin then.
        now: rows in each bin now.
    """
    before, after = _shares(reference), _shares(now)
    return float(((after - before) * np.log(after / before)).sum())


def row_digests(frame: pd.DataFrame, schema: BitfountSchema, columns: Sequence[str]) -> np.ndarray:
    """A number for each row that says whether two rows hold the same values, whatever the dtypes of their tables.

    Args:
        frame: `(rows, columns)`.
        schema: says which columns are numbers.
        columns: those that count.

    Returns:
        `(rows,)` uint64.
    """
    values = {
        name: column_numbers(frame, name)
        if schema.column(name).semantic_type is SemanticType.CONTINUOUS
        else _texts(frame[name])
        for name in columns
    }
    return np.asarray(pd.util.hash_pandas_object(pd.DataFrame(values, index=frame.index), index=False), dtype=np.uint64)


def _texts(column: pd.Series[Any]) -> np.ndarray:
    """Values as text: a whole float is written as the integer that it was before another row's value went missing."""
    if pd.api.types.is_float_dtype(column.dtype):
        numbers = column.to_numpy(np.float64)
        return np.array([str(int(v)) if v.is_integer() else str(v) for v in numbers.tolist()], dtype=object)
    return column.astype(str).to_numpy(object)


def _edges(numbers: np.ndarray) -> tuple[float, ...]:
    """The inner quantiles; fewer where values repeat, so that no bin of the reference is empty by construction."""
    present = numbers[np.isfinite(numbers)]
    if not len(present):
        return ()
    edges = np.unique(np.quantile(present, np.linspace(0, 1, BINS + 1)[1:-1], method="higher"))
    return tuple(edges[edges < present.max()].tolist())


def _counted_alike(frame: pd.DataFrame, name: str, column: ColumnProfile) -> ColumnProfile:
    if column.continuous:
        return _binned(column_numbers(frame, name), column.edges)
    return _sorted_out(frame[name], column.categories)


def _binned(numbers: np.ndarray, edges: tuple[float, ...]) -> ColumnProfile:
    there = numbers[~np.isnan(numbers)]
    counts = np.bincount(np.searchsorted(np.asarray(edges), there), minlength=len(edges) + 1)
    return ColumnProfile(True, edges, (), (*map(int, counts), 0, len(numbers) - len(there)))


def _sorted_out(values: pd.Series[Any], categories: tuple[Any, ...]) -> ColumnProfile:
    codes = category_codes(values, categories)
    counts = np.bincount(codes[codes >= 0], minlength=len(categories))
    return ColumnProfile(False, (), categories, (*map(int, counts), int((codes == -2).sum()), int((codes == -1).sum())))


def _shares(counts: Sequence[int]) -> np.ndarray:
    numbers = np.asarray(counts, dtype=np.float64)
    shares: np.ndarray = np.maximum(numbers / max(numbers.sum(), 1.0), SMALLEST_SHARE)
    return shares
