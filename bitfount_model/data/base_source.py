"""What every datasource is: something that gives one pandas table, whose index holds the rows' keys."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import pandas as pd

from bitfount_model.data.names import repeated, suggestion
from bitfount_model.errors import DataSourceError


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
        if query is not None and not self.takes_query:
            raise DataSourceError(f"{self!r} takes no query, found one; leave it out, or read from a SQLSource")
        return _with_key(with_plain_names(self._load(table, query), repr(self)), self.key, repr(self))

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


def _with_key(frame: pd.DataFrame, key: str | None, source: str) -> pd.DataFrame:
    """The frame with the rows' keys as its index; an index that cannot serve as keys gives way to numbers."""
    if key is None:
        return frame if frame.index.is_unique and not frame.index.hasnans else frame.reset_index(drop=True)
    if key not in frame.columns:
        raise DataSourceError(f"{source}: no key column {key!r}{suggestion(key, list(frame.columns))}")
    column = frame[key]
    if column.isna().any():
        raise DataSourceError(
            f"{source}: key column {key!r} is missing in {int(column.isna().sum())} rows, wanted none"
        )
    if column.duplicated().any():
        double = column[column.duplicated()].unique()[:5].tolist()
        raise DataSourceError(f"{source}: key column {key!r} repeats values, such as {double}; wanted one row a key")
    return frame.set_index(key)
