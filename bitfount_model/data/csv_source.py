"""A CSV file -> one pandas table, or chunks of it whose types are those of the whole file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bitfount_model.data.base_source import (
    BaseSource,
    refuse_bad_keys,
    refuse_repeated,
    require_key,
    with_plain_names,
)
from bitfount_model.data.keys import repeated_keys
from bitfount_model.data.source_files import SURVEY_ROWS, file_state, require_file
from bitfount_model.errors import DataSourceError

if TYPE_CHECKING:
    from pandas.io.parsers import TextFileReader

_LAYOUT_ARGUMENTS = (
    "comment", "compression", "delimiter", "dialect", "doublequote", "encoding", "encoding_errors", "escapechar",
    "quotechar", "quoting", "sep", "skip_blank_lines", "skipinitialspace", "skiprows",
)  # fmt: skip
"""Arguments of `pandas.read_csv` that decide where the header's cells are."""

_EXACT_PARSING: Mapping[str, Any] = {
    "low_memory": False,  # types are inferred from the whole column, not from chunks
    # from pandas 3.1 exact floats are the default, and asking for them is deprecated
    **({} if tuple(map(int, pd.__version__.split(".")[:2])) >= (3, 1) else {"float_precision": "round_trip"}),
}

_NOT_IN_CHUNKS = {"index_col", "nrows", "skipfooter"}
"""Arguments of `pandas.read_csv` with which the file is read as a whole."""


class CSVSource(BaseSource):
    """A CSV file.

    Floats are read exactly (the nearest double of the text) and column types come from the whole file. Cells that
    pandas takes for missing ("", "NA", "null", ...) are missing; `read_csv_kwargs={"keep_default_na": False}` keeps
    them as text.

    Args:
        path: the file.
        key: the column that becomes the index.
        read_csv_kwargs: arguments of `pandas.read_csv`.
    """

    def __init__(
        self, path: str | Path, key: str | None = None, read_csv_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(key)
        self.path = Path(path)
        self.read_csv_kwargs = dict(read_csv_kwargs or {})
        self._survey: tuple[dict[str, Any], dict[Any, str], int] | None = None

    def describe(self) -> dict[str, str]:
        """Kind and path."""
        return {"kind": "csv", "path": str(self.path)}

    def state(self) -> dict[str, Any]:
        """Size and time of the last change."""
        return file_state(self.path)

    def held_bytes(self, table: str | None = None, query: str | None = None) -> int:
        """The file's size."""
        return 0 if _NOT_IN_CHUNKS & self.read_csv_kwargs.keys() else int(self.state()["size"])

    def _load(self, table: str | None, query: str | None) -> pd.DataFrame:
        with self._readable():
            frame: pd.DataFrame = pd.read_csv(self.path, **self._options())
        if "index_col" not in self.read_csv_kwargs and not isinstance(frame.index, pd.RangeIndex):
            raise DataSourceError(f"{self.path}: rows have more cells than the header; correct the header line")
        return frame

    def _chunks(self, rows: int, start: int, table: str | None, query: str | None) -> Iterator[pd.DataFrame]:
        if _NOT_IN_CHUNKS & self.read_csv_kwargs.keys():
            yield from super()._chunks(rows, start, table, query)
            return
        if self._count(table, query) == 0:
            yield from super()._chunks(rows, start, table, query)
            return
        self._check_keys()
        with self._readable(), self._reader(rows, dtype=self._types()) as reader:
            # Where a row begins can only be found by reading those before it.
            for begin in range(0, start, rows):
                if next(_parts(reader, min(rows, start - begin)), None) is None:
                    return
            for frame in _parts(reader, rows):
                named = with_plain_names(plain_booleans(frame), repr(self))
                yield named if self.key is None else named.set_index(self.key)

    def _count(self, table: str | None, query: str | None) -> int:
        return super()._count(table, query) if _NOT_IN_CHUNKS & self.read_csv_kwargs.keys() else self._surveyed()[1]

    def _types(self) -> dict[Any, Any]:
        """Types of the columns: those that were given, else those of the whole file."""
        given = self.read_csv_kwargs.get("dtype", {})
        return {**self._surveyed()[0], **given} if isinstance(given, Mapping) else given

    def _surveyed(self) -> tuple[dict[Any, str], int]:
        """Types of the columns and number of rows, which take one pass over the file as long as it stays the same."""
        with self._readable():
            state = self.state()
            if self._survey is None or self._survey[0] != state:
                with self._reader(SURVEY_ROWS) as reader:
                    self._survey = (state, *common_types(_parts(reader, SURVEY_ROWS)))
        return self._survey[1], self._survey[2]

    def _check_keys(self) -> None:
        """Refuses keys that are missing or repeated anywhere in the file."""
        if self.key is None:
            return
        key, missing = self.key, 0
        with self._readable(), self._reader(1) as reader:
            require_key(key, [str(name) for frame in _parts(reader, 1, most=1) for name in frame.columns], repr(self))

        def keys() -> Iterator[pd.Series[Any]]:
            nonlocal missing
            alone = {"usecols": [key]} if not {"usecols", "names", "header"} & self.read_csv_kwargs.keys() else {}
            missing = 0
            with self._readable(), self._reader(SURVEY_ROWS, dtype=self._types(), **alone) as reader:
                for frame in _parts(reader, SURVEY_ROWS):
                    column = with_plain_names(frame, repr(self))[key]
                    missing += int(column.isna().sum())
                    yield column

        repeated = repeated_keys(keys)
        refuse_bad_keys(key, missing, repeated, repr(self))

    def _options(self) -> dict[str, Any]:
        exact = _EXACT_PARSING if self.read_csv_kwargs.get("engine", "c") == "c" else {}
        return {**exact, **self.read_csv_kwargs}

    def _reader(self, rows: int, **options: Any) -> TextFileReader:
        given = {name: value for name, value in options.items() if value}
        return pd.read_csv(self.path, **{**self._options(), **given}, chunksize=rows)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """The file is there and its header is right; what pandas says of the rest becomes one error."""
        require_file(self.path, "CSV")
        try:
            if not {"names", "header"} & self.read_csv_kwargs.keys():
                refuse_repeated(self._header(), repr(self))
            yield
        except pd.errors.EmptyDataError as error:
            raise DataSourceError(f"{self.path}: the file is empty, wanted at least a header line") from error
        except (pd.errors.ParserError, ValueError, TypeError, LookupError, OSError) as error:
            raise DataSourceError(
                f"{self.path}: cannot be read as CSV: {str(error).strip()}; correct the file, or say how it is written "
                "with read_csv_kwargs (sep, encoding, ...)"
            ) from error

    def _header(self) -> list[str]:
        layout = {name: self.read_csv_kwargs[name] for name in _LAYOUT_ARGUMENTS if name in self.read_csv_kwargs}
        first = pd.read_csv(self.path, header=None, nrows=1, dtype=str, keep_default_na=False, **layout)
        # unnamed cells are numbered by pandas, so only real names can collide
        return [name for name in first.iloc[0].tolist() if name != ""]


def _parts(reader: TextFileReader, rows: int, most: int | None = None) -> Iterator[pd.DataFrame]:
    """The rest of a CSV file, so many rows at a time; at most so many parts."""
    given = 0
    while most is None or given < most:
        try:
            frame = reader.get_chunk(rows)
        except StopIteration:
            return
        if not isinstance(frame.index, pd.RangeIndex):
            raise ValueError("rows have more cells than the header; correct the header line")
        given += 1
        yield frame


def common_types(frames: Iterable[pd.DataFrame]) -> tuple[dict[Any, str], int]:
    """The type that each column of a CSV file would have if the file were read as a whole.

    Args:
        frames: all of its rows, in parts whose types were inferred part by part.

    Returns:
        Column -> dtype, `boolean` for truth values of which some are missing; without columns whose type does not depend on the
        other rows, such as dates. And the number of rows.
    """
    kinds: dict[Any, set[str]] = {}
    rows = 0
    for frame in frames:
        rows += len(frame)
        for name, column in frame.items():
            kinds.setdefault(name, set()).update([_kind(column)] if len(column) else [])
    types = {name: _common(found) for name, found in kinds.items()}
    return {name: dtype for name, dtype in types.items() if dtype is not None}, rows


def _kind(column: pd.Series[Any]) -> str:
    if column.isna().all():
        return "missing"
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iufb":
        return {"i": "int64", "u": "uint64", "f": "float64", "b": "bool"}[column.dtype.kind]
    inferred = pd.api.types.infer_dtype(column, skipna=True)
    return {"boolean": "boolean", "string": "str"}.get(inferred, "other")


def _common(kinds: set[str]) -> str | None:
    present = kinds - {"missing"}
    if len(kinds) == 1 and present:
        return None if present == {"other"} else next(iter(present))
    if "other" in present:
        return None
    if present <= {"int64", "uint64", "float64"}:
        return "uint64" if kinds == {"int64", "uint64"} else "float64"
    return "boolean" if present <= {"bool", "boolean"} else "str"


def plain_booleans(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with nullable truth values as pandas reads them from a CSV file: objects, NaN where missing."""
    plain = frame.copy(deep=False)
    for name in [name for name, dtype in frame.dtypes.items() if dtype == "boolean"]:
        plain[name] = frame[name].astype(object).where(frame[name].notna(), np.nan)
    return plain
