"""What every datasource is: something that gives one pandas table, whole or in chunks, whose index holds the rows' keys."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import pandas as pd

from bitfount_model.data.names import repeated, suggestion
from bitfount_model.errors import ConfigurationError, DataSourceError

CELL_BYTES = 8
"""Of a number in a pandas table."""


class BaseSource(ABC):
    """One place that rows can be read from.

    A source of your own gives `_load` and `describe`.

    Args:
        key: the column that becomes the index; its values must be unique and none may be missing.
    """

    takes_query: ClassVar[bool] = False

    def __init__(self, key: str | None = None) -> None:
        self.key = key

    def read(self, table: str | None = None, query: str | None = None) -> pd.DataFrame:
        """Read the rows.

        Args:
            table: name of a table, for sources that hold several; the others have one and do not look at it.
            query: a query, for sources that take one; the others refuse it.

        Returns:
            The table, with string column names. Its index is the rows' keys; a `RangeIndex` where there are none.

        Raises:
            DataSourceError: the source cannot be read, or has repeated columns or keys; the message says where.
        """
        self._refuse_query(query)
        return with_key(with_plain_names(self._load(table, query), repr(self)), self.key, repr(self))

    def read_chunks(
        self, rows: int, start: int = 0, *, table: str | None = None, query: str | None = None
    ) -> Iterator[pd.DataFrame]:
        """Read the rows of `read`, in its order, so many at a time.

        Files and databases are never held as a whole, and a column has one type in all chunks of a file. Rows without keys are
        numbered over the whole table. A database comes in its own order of the key; see `SQLSource`.

        Args:
            rows: of a chunk; the last one may have fewer.
            start: how many rows are left out at the beginning.
            table: as for `read`.
            query: as for `read`.

        Returns:
            The chunks; for a table without rows one chunk without rows.

        Raises:
            ConfigurationError: less than one row, or a negative start.
            DataSourceError: as `read`; repeated and missing keys are found before the first chunk.
        """
        if rows < 1 or start < 0:
            raise ConfigurationError(f"chunks of {rows} rows from row {start}: wanted at least 1, and at least 0")
        self._refuse_query(query)
        return self._chunks(rows, start, table, query)

    def count(self, table: str | None = None, query: str | None = None) -> int:
        """How many rows `read` gives.

        Raises:
            DataSourceError: the source cannot be read.
        """
        self._refuse_query(query)
        return self._count(table, query)

    def held_bytes(self, table: str | None = None, query: str | None = None) -> int:
        """About how many bytes the rows of `read` take, as far as can be told without reading them: 8 a cell, or a CSV file's own.

        Returns:
            0 where they are in memory anyway, and where they cannot be read in chunks.

        Raises:
            DataSourceError: the source cannot be read.
        """
        return 0

    def state(self) -> dict[str, Any]:
        """What changes when the rows do, as far as it can be told without reading them; plain JSON, the same while they stay."""
        return {}

    def _refuse_query(self, query: str | None) -> None:
        if query is not None and not self.takes_query:
            raise DataSourceError(f"{self!r} takes no query, found one; leave it out, or read from a SQLSource")

    def _chunks(self, rows: int, start: int, table: str | None, query: str | None) -> Iterator[pd.DataFrame]:
        """Slices of the whole table, for sources that cannot do better."""
        frame = self.read(table, query)
        if frame.empty and start == 0:
            yield frame
        for begin in range(start, len(frame), rows):
            yield frame.iloc[begin : begin + rows]

    def _count(self, table: str | None, query: str | None) -> int:
        return len(self.read(table, query))

    @abstractmethod
    def _load(self, table: str | None, query: str | None) -> pd.DataFrame:
        """The rows as they are; may return a frame that the source keeps."""

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """Kind and location of the source, without secrets."""

    def __repr__(self) -> str:
        described = ", ".join(f"{name}={value!r}" for name, value in self.describe().items() if name != "kind")
        return f"{type(self).__name__}({described})"


def with_plain_names(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    """A frame with string names of its columns.

    Args:
        frame: the table; it is not changed.
        source: where it comes from, for the message.

    Raises:
        DataSourceError: a name repeats, or names or keys have several levels.
    """
    if isinstance(frame.columns, pd.MultiIndex) or isinstance(frame.index, pd.MultiIndex):
        raise DataSourceError(f"{source}: names or keys have several levels, wanted one; use reset_index() first")
    names = [str(name) for name in frame.columns]
    refuse_repeated(names, source)
    return frame.set_axis(pd.Index(names, dtype=object), axis="columns")


def refuse_repeated(names: list[str], source: str) -> None:
    """Refuse names that appear more than once.

    Raises:
        DataSourceError: lists them.
    """
    if repeated(names):
        raise DataSourceError(
            f"{source}: columns {repeated(names)} appear more than once; give every column a name of its own"
        )


def with_key(frame: pd.DataFrame, key: str | None, source: str) -> pd.DataFrame:
    """The frame with the rows' keys as its index; an index that cannot serve as keys gives way to numbers.

    Args:
        frame: the table; it is not changed.
        key: the column that becomes the index.
        source: where it comes from, for the message.

    Raises:
        DataSourceError: there is no such column, or its values are missing or repeated.
    """
    if key is None:
        return frame if frame.index.is_unique and not frame.index.hasnans else frame.reset_index(drop=True)
    require_key(key, list(frame.columns), source)
    column = frame[key]
    refuse_bad_keys(key, int(column.isna().sum()), column[column.duplicated()].unique()[:5].tolist(), source)
    return frame.set_index(key)


def require_key(key: str, columns: list[str], source: str) -> None:
    """Refuse a key that is no column.

    Raises:
        DataSourceError: with the names that are close.
    """
    if key not in columns:
        raise DataSourceError(f"{source}: no key column {key!r}{suggestion(key, columns)}")


def refuse_bad_keys(key: str, missing: int, repeated_values: list[Any], source: str) -> None:
    """Refuse keys that do not name rows.

    Args:
        key: name of the column.
        missing: how many of its values are missing.
        repeated_values: some of those that appear more than once.
        source: where they come from, for the message.

    Raises:
        DataSourceError: there are any.
    """
    if missing:
        raise DataSourceError(f"{source}: key column {key!r} is missing in {missing} rows, wanted none")
    if repeated_values:
        raise DataSourceError(
            f"{source}: key column {key!r} repeats values, such as {repeated_values}; wanted one row a key"
        )
