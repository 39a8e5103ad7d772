"""A Parquet file, or a folder of them -> one pandas table, or chunks of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bitfount_model.data.base_source import CELL_BYTES, BaseSource, refuse_bad_keys, require_key, with_plain_names
from bitfount_model.data.keys import repeated_keys
from bitfount_model.data.source_files import SURVEY_ROWS, file_state, require_file
from bitfount_model.errors import DataSourceError

if TYPE_CHECKING:
    import pyarrow as pa


READ_BYTES = 1 << 16
"""Of a column, read at a time."""


class ParquetSource(BaseSource):
    """A Parquet file, or a folder of them.

    Args:
        path: the file.
        key: the column that becomes the index; without it an index that pandas stored in the file is kept.
    """

    def __init__(self, path: str | Path, key: str | None = None) -> None:
        super().__init__(key)
        self.path = Path(path)

    def describe(self) -> dict[str, str]:
        """Kind and path."""
        return {"kind": "parquet", "path": str(self.path)}

    def state(self) -> dict[str, Any]:
        """Sizes and times of the last change."""
        if not self.path.is_dir():
            return file_state(self.path)
        files = sorted(path for path in self.path.rglob("*") if path.is_file() and path.name[0] not in "._")
        return {str(path.relative_to(self.path)): file_state(path) for path in files}

    def held_bytes(self, table: str | None = None, query: str | None = None) -> int:
        """8 bytes a cell."""
        with self._readable():
            file = ParquetRows(self.path)
            cells: int = file.rows * len(file.schema.names)
            return CELL_BYTES * cells

    def _load(self, table: str | None, query: str | None) -> pd.DataFrame:
        with self._readable():
            return pd.read_parquet(self.path, engine="pyarrow")

    def _chunks(self, rows: int, start: int, table: str | None, query: str | None) -> Iterator[pd.DataFrame]:
        with self._readable():
            file = ParquetRows(self.path)
            if file.rows == 0:
                yield from super()._chunks(rows, start, table, query)
                return
            is_numbered = self._check_keys(file)
            numbers, wider = file.stored_index().numbers or range(file.rows), file.types_with_gaps()
            position = start
            for part in file.tables(rows, start):
                frame = with_plain_names(part.to_pandas(), repr(self))
                frame = frame.astype({name: dtype for name, dtype in wider.items() if name in frame.columns})
                if self.key is not None:
                    frame = frame.set_index(self.key)
                elif is_numbered:
                    frame.index = pd.RangeIndex.from_range(numbers[position : position + len(frame)])
                position += len(frame)
                yield frame

    def _count(self, table: str | None, query: str | None) -> int:
        with self._readable():
            rows: int = ParquetRows(self.path).rows
            return rows

    def _check_keys(self, file: ParquetRows) -> bool:
        """Refuses keys that are missing or repeated anywhere; whether rows are numbered, for they have no keys."""
        stored = file.stored_index().columns
        if self.key is not None:
            require_key(self.key, [name for name in file.schema.names if name not in stored], repr(self))
        elif len(stored) != 1:
            return not stored
        column, missing = self.key or stored[0], 0

        def keys() -> Iterator[pd.Series[Any]]:
            nonlocal missing
            missing = 0
            for part in file.tables(SURVEY_ROWS, columns=[column]):
                found = part.column(0).to_pandas()
                missing += int(found.isna().sum())
                yield found

        repeated = repeated_keys(keys)
        if self.key is not None:
            refuse_bad_keys(self.key, missing, repeated, repr(self))
        return self.key is None and bool(missing or repeated)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """The file or folder is there; what pyarrow says of the rest becomes one error."""
        if not self.path.is_dir():
            require_file(self.path, "Parquet")
        try:
            yield
        except (ValueError, OSError) as error:  # pyarrow's own errors are ValueErrors
            raise DataSourceError(
                f"{self.path}: cannot be read as Parquet: {error}; write the file again, with one column a name"
            ) from error


@dataclass(frozen=True)
class StoredIndex:
    """The index that pandas left in a Parquet file.

    Attributes:
        columns: that hold it; none for a range.
        numbers: the range.
    """

    columns: tuple[str, ...]
    numbers: range | None


class ParquetRows:
    """The rows of a Parquet file or of a folder of them, in the order in which pandas reads them.

    Args:
        path: a file or a folder.

    Raises:
        ValueError: it is not Parquet; as pyarrow says it.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow.dataset as ds

        partitioning = ds.HivePartitioning.discover(infer_dictionary=True) if path.is_dir() else None
        dataset = ds.dataset(str(path), format="parquet", partitioning=partitioning)
        self.schema: pa.Schema = dataset.schema
        self._fragments = list(dataset.get_fragments())
        self._of_paths = _values_of_paths(self._fragments, self.schema)
        self.rows = sum(fragment.metadata.num_rows for fragment in self._fragments)

    def tables(self, rows: int, start: int = 0, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Tables of so many rows, the last one of fewer; row groups before the start are not read.

        Args:
            rows: of a table.
            start: how many rows are left out at the beginning.
            columns: names of those to read; None reads all.
        """
        import pyarrow as pa

        schema = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        schema = schema.with_metadata(self.schema.metadata)
        waiting: list[pa.Table] = []
        held = 0
        for part in self._parts(rows, start, schema):
            waiting.append(part)
            held += len(part)
            while held >= rows:
                joined = pa.concat_tables(waiting)
                yield joined.slice(0, rows)
                waiting, held = [joined.slice(rows)], held - rows
        if held:
            yield pa.concat_tables(waiting)

    def _parts(self, rows: int, start: int, schema: pa.Schema) -> Iterator[pa.Table]:
        """The rows from the start on, in parts as the files have them."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        for fragment, of_path in zip(self._fragments, self._of_paths, strict=True):
            groups: list[int] = []
            for group in range(fragment.metadata.num_row_groups):
                size = fragment.metadata.row_group(group).num_rows
                if groups or start < size:
                    groups.append(group)
                else:
                    start -= size
            if not groups:
                continue
            # Read ahead, pyarrow would keep all row groups until the file is closed.
            with pq.ParquetFile(fragment.path, pre_buffer=False, buffer_size=READ_BYTES) as file:
                present = [name for name in schema.names if name in file.schema_arrow.names]
                for batch in file.iter_batches(rows, row_groups=groups, columns=present):
                    skipped = min(start, len(batch))
                    start -= skipped
                    if skipped < len(batch):
                        yield _fitted(pa.Table.from_batches([batch]).slice(skipped), schema, of_path)

    def stored_index(self) -> StoredIndex:
        """The index that pandas stored, if any."""
        described = json.loads((self.schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns", [])
        columns = tuple(each for each in described if isinstance(each, str))
        ranges = [range(each["start"], each["stop"], each["step"]) for each in described if isinstance(each, dict)]
        # The first file of a folder speaks for all, so its range may be another one's.
        fits = len(ranges) == 1 and len(ranges[0]) == self.rows
        return StoredIndex(columns, ranges[0] if fits else None)

    def types_with_gaps(self) -> dict[str, str]:
        """Column -> dtype in pandas, of integers and truth values of which some are missing anywhere in the files."""
        import pyarrow as pa

        wider = {
            field.name: "float64" if pa.types.is_integer(field.type) else "object"
            for field in self.schema
            if pa.types.is_integer(field.type) or pa.types.is_boolean(field.type)
        }
        return {name: dtype for name, dtype in wider.items() if name in self._columns_with_gaps()}

    def _columns_with_gaps(self) -> set[str]:
        found = set()
        for fragment in self._fragments:
            for group in range(fragment.metadata.num_row_groups):
                row_group = fragment.metadata.row_group(group)
                for place in range(row_group.num_columns):
                    column = row_group.column(place)
                    if column.statistics is not None and column.statistics.null_count:
                        found.add(column.path_in_schema)
        return found


def _values_of_paths(fragments: list[Any], schema: pa.Schema) -> list[dict[str, pa.Scalar]]:
    """For each file, what its path says of columns; a column has one dictionary, so that all chunks have one type."""
    import pyarrow as pa
    import pyarrow.dataset as ds

    of_paths: list[dict[str, Any]] = [ds.get_partition_keys(fragment.partition_expression) for fragment in fragments]
    scalars: list[dict[str, pa.Scalar]] = [{} for _ in of_paths]
    for name in dict.fromkeys(name for values in of_paths for name in values):
        kind = schema.field(name).type.value_type
        column = pa.array([values.get(name) for values in of_paths], type=kind).dictionary_encode()
        for place, values in enumerate(scalars):
            values[name] = column[place]
    return scalars


def _fitted(table: pa.Table, schema: pa.Schema, of_path: Mapping[str, pa.Scalar]) -> pa.Table:
    """A file's table with the columns and types of the whole folder: those that its path gives, and those that it lacks."""
    import pyarrow as pa

    if table.schema.equals(schema):
        return table
    for field in schema:
        if field.name not in table.column_names:
            value = of_path.get(field.name, pa.scalar(None, field.type))
            table = table.append_column(field, pa.repeat(value, len(table)))
    return table.select(schema.names).cast(schema)
