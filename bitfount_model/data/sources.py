"""Where rows come from: a file, a database or a DataFrame -> one pandas table, or chunks of it; the first station of the data flow.

The index of the table holds the rows' keys. No secret ever leaves a source: `describe` and `repr` mask passwords.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bitfount_model.data.base_source import BaseSource
from bitfount_model.data.csv_source import CSVSource
from bitfount_model.data.parquet_source import ParquetSource
from bitfount_model.data.sql_source import SQLSource
from bitfount_model.data.table_digest import digest
from bitfount_model.errors import ConfigurationError, DataSourceError

__all__ = [
    "BaseSource",
    "CSVSource",
    "DataFrameSource",
    "ParquetSource",
    "SQLSource",
    "SklearnSource",
    "digest",
    "source_from_config",
]


class DataFrameSource(BaseSource):
    """A pandas DataFrame in memory; later changes of the caller's frame are not seen.

    Args:
        data: the table. Its index is the rows' keys where it is unique; otherwise the rows are numbered.
        key: the column that becomes the index.
    """

    def __init__(self, data: pd.DataFrame, key: str | None = None) -> None:
        super().__init__(key)
        if not isinstance(data, pd.DataFrame):
            raise DataSourceError(f"DataFrameSource got a {type(data).__name__}, wanted a pandas DataFrame")
        self.data = data.copy()

    def describe(self) -> dict[str, str]:
        """Kind and size."""
        return {"kind": "dataframe", "rows": str(len(self.data)), "columns": str(len(self.data.columns))}

    def _load(self, table: str | None, query: str | None) -> pd.DataFrame:
        return self.data


class SklearnSource(BaseSource):
    """A data set that scikit-learn carries with it: no download.

    Args:
        name: "breast_cancer", "diabetes" or "digits" (columns `pixel_<row>_<column>`); the label is `target`.
        key: the column that becomes the index.

    Raises:
        DataSourceError: another name.
    """

    def __init__(self, name: str, key: str | None = None) -> None:
        super().__init__(key)
        if name not in _SKLEARN_LOADERS:
            raise DataSourceError(f"sklearn data set {name!r} is not known, wanted one of {sorted(_SKLEARN_LOADERS)}")
        self.name = name

    def describe(self) -> dict[str, str]:
        """Kind and name."""
        return {"kind": "sklearn", "name": self.name}

    def _load(self, table: str | None, query: str | None) -> pd.DataFrame:
        from sklearn import datasets  # type: ignore[import-untyped]  # takes a second to import and few need it

        frame: pd.DataFrame = getattr(datasets, _SKLEARN_LOADERS[self.name])(as_frame=True).frame
        return frame


_SKLEARN_LOADERS: Mapping[str, str] = {
    "breast_cancer": "load_breast_cancer",
    "diabetes": "load_diabetes",
    "digits": "load_digits",
}


def source_from_config(config: Mapping[str, Any]) -> BaseSource:
    """Make the source that a configuration describes.

    Args:
        config: one of `{"csv": path}`, `{"parquet": path}`, `{"sql": {"url": ..., "query" or "table": ...}}`,
            `{"sklearn": name}`, with `"key"` beside it where a column holds the rows' keys, and beside a CSV file
            `"read_csv_kwargs"` where it is written otherwise than usual.

    Raises:
        ConfigurationError: not exactly one kind, or unknown entries; the message lists all problems.
        DataSourceError: the source itself refuses its arguments.
    """
    kinds = [name for name in config if name in _KINDS]
    problems = [f"unknown entry {name!r}" for name in config if name not in (*_KINDS, "key", "read_csv_kwargs")]
    if len(kinds) != 1:
        problems.append(f"found {kinds or 'no kind of source'}, wanted exactly one of {sorted(_KINDS)}")
    key = config.get("key")
    if key is not None and not isinstance(key, str):
        problems.append(f"key is {key!r}, wanted a column's name")
    options = config.get("read_csv_kwargs")
    if options is not None and (kinds != ["csv"] or not isinstance(options, Mapping)):
        problems.append(f"read_csv_kwargs is {options!r}, wanted an object, beside csv alone")
    if problems:
        raise ConfigurationError("datasource: " + "; ".join(problems))
    if kinds == ["csv"]:
        return CSVSource(_path(config["csv"]), key, options)
    return _KINDS[kinds[0]](config[kinds[0]], key)


def _sql_source(value: Any, key: str | None) -> SQLSource:
    names = {"url", "query", "table"}
    if not isinstance(value, Mapping) or "url" not in value or set(value) - names:
        found = sorted(value) if isinstance(value, Mapping) else type(value).__name__
        raise ConfigurationError(f"datasource, sql: found {found}, wanted an object with url and one of query, table")
    wrong = [name for name in value if not isinstance(value[name], str)]
    if wrong:
        raise ConfigurationError(f"datasource, sql: {wrong} are not text")
    return SQLSource(value["url"], query=value.get("query"), table=value.get("table"), key=key)


def _path(value: Any) -> str | Path:
    if not isinstance(value, str | Path):
        raise ConfigurationError(f"datasource: found {value!r}, wanted the path of a file")
    return value


_KINDS: Mapping[str, Callable[[Any, str | None], BaseSource]] = {
    "csv": lambda value, key: CSVSource(_path(value), key=key),
    "parquet": lambda value, key: ParquetSource(_path(value), key=key),
    "sklearn": lambda value, key: SklearnSource(value, key=key),
    "sql": _sql_source,
}
