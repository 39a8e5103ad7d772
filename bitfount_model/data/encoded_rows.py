"""Encoded rows of one split on disk: written chunk by chunk, read in runs of rows; between the preparation and a streamed loader.

A split is three `.npy` files (features, support, targets) and a Parquet file of keys. Runs are read by plain reads, not through
a memory map, so that no page of a file counts as memory of the process.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pandas as pd

from bitfount_model.errors import DataError, IntegrityError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

ARRAYS = ("features", "support", "targets")
KEY_COLUMN = "key"


@dataclass(frozen=True)
class Encoded:
    """Consecutive rows as numbers.

    Attributes:
        features: `(rows, width)` float32.
        support: `(rows, 2)` float32.
        targets: `(rows,)` or `(rows, targets)`, int64 or float32.
    """

    features: np.ndarray
    support: np.ndarray
    targets: np.ndarray

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """In the order of `ARRAYS`."""
        return self.features, self.support, self.targets

    def taken(self, rows: np.ndarray) -> Encoded:
        """Some of the rows, by a truth value for each."""
        return self if rows.all() else Encoded(*(values[rows] for values in self.arrays()))


class SplitWriter:
    """Appends the rows of one split to its files, whose length is known before; a context, which leaves them synced.

    Args:
        folder: where the files are made.
        split: their first name.
        rows: how many will be appended.

    Raises:
        OSError: a file cannot be written.
    """

    def __init__(self, folder: Path, split: str, rows: int) -> None:
        self._paths = _paths(folder, split)
        self._keys_path = _keys_path(folder, split)
        self._rows = rows
        self._files: list[BinaryIO] = []
        self._keys: pq.ParquetWriter | None = None

    def append(self, rows: Encoded, keys: pd.Index[Any]) -> None:
        """Appends rows with their keys.

        Raises:
            DataError: keys are of a kind, or change to one, that cannot be kept.
        """
        if not self._files:
            self._files = [self._begun(path, like) for path, like in zip(self._paths, rows.arrays(), strict=True)]
        for file, values in zip(self._files, rows.arrays(), strict=True):
            file.write(_as_bytes(np.ascontiguousarray(values)).data)
        self._append_keys(keys)

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
            file.close()
        if self._keys is not None:
            self._keys.close()

    def _begun(self, path: Path, like: np.ndarray) -> BinaryIO:
        file = path.open("wb")
        header = {
            "descr": np.lib.format.dtype_to_descr(like.dtype),
            "fortran_order": False,
            "shape": (self._rows, *like.shape[1:]),
        }
        np.lib.format.write_array_header_1_0(file, header)
        return file

    def _append_keys(self, keys: pd.Index[Any]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            values = _as_arrow(keys)
            if self._keys is None:
                self._keys = pq.ParquetWriter(self._keys_path, pa.schema([(KEY_COLUMN, values.type)]))
            self._keys.write_table(pa.table({KEY_COLUMN: values.cast(self._keys.schema.field(0).type)}))
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise DataError(
                f"the rows' keys cannot be kept on disk: {error}; name a column of whole numbers, text or times as the source's key"
            ) from error


class EncodedSplit:
    """The rows of one split, as `SplitWriter` wrote them.

    Args:
        folder: where they are.
        split: which one.

    Raises:
        IntegrityError: a file is missing, or not as it was written.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self._paths = _paths(folder, split)
        self._keys_path = _keys_path(folder, split)
        shaped = [_shape_of(path) for path in self._paths]
        self._offsets = [offset for offset, _, _ in shaped]
        self._shapes = [shape for _, shape, _ in shaped]
        self._dtypes = [dtype for _, _, dtype in shaped]
        self.rows = self._shapes[0][0]
        self.row_bytes = sum(self._bytes_of(place) for place in range(len(ARRAYS)))

    def empty(self, rows: int) -> Encoded:
        """Arrays for so many rows, not filled."""
        return Encoded(
            *(np.empty((rows, *shape[1:]), dtype) for shape, dtype in zip(self._shapes, self._dtypes, strict=True))
        )

    def read_runs(self, runs: list[tuple[int, int]]) -> Encoded:
        """Runs of consecutive rows, one after the other.

        Args:
            runs: number of the first row, and how many rows, of each.

        Raises:
            IntegrityError: a file is shorter than it was.
        """
        found = self.empty(sum(rows for _, rows in runs))
        for place, values in enumerate(found.arrays()):
            size = self._bytes_of(place)
            content, begin = _as_bytes(values), 0
            with self._paths[place].open("rb", buffering=0) as file:
                for first, rows in runs:
                    file.seek(self._offsets[place] + first * size)
                    _fill(file, content[begin : begin + rows * size], self._paths[place])
                    begin += rows * size
        return found

    def targets(self) -> np.ndarray:
        """All targets, `(rows, ...)`."""
        return np.load(self._paths[ARRAYS.index("targets")], allow_pickle=False)  # type: ignore[no-any-return]

    def keys(self) -> list[Any]:
        """All keys, one a row."""
        import pyarrow.parquet as pq

        column = pq.read_table(self._keys_path, pre_buffer=False).column(KEY_COLUMN)
        keys: list[Any] = column.to_pandas().tolist()
        return keys

    def _bytes_of(self, place: int) -> int:
        """Bytes of a row of one array."""
        numbers = 1
        for size in self._shapes[place][1:]:
            numbers *= size
        return numbers * int(self._dtypes[place].itemsize)


def _paths(folder: Path, split: str) -> list[Path]:
    return [folder / f"{split}.{name}.npy" for name in ARRAYS]


def _keys_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.keys.parquet"


def _shape_of(path: Path) -> tuple[int, tuple[int, ...], np.dtype[Any]]:
    """Where the numbers of a file begin, their shape and their type."""
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            offset = file.tell()
        wanted, found = offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize, path.stat().st_size
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if found != wanted:
        raise _damaged(path, f"it has {found} bytes, wanted {wanted}")
    return offset, shape, dtype


def _as_arrow(keys: pd.Index[Any]) -> pa.Array:
    import pyarrow as pa

    if not isinstance(keys, pd.DatetimeIndex) or keys.tz is None:
        return pa.array(keys, from_pandas=True)
    # Arrow's own way through `values` drops the zone, which pandas warns of.
    plain = pa.array(keys.tz_convert(None), from_pandas=True)
    return plain.cast(pa.timestamp(plain.type.unit, tz=str(keys.tz)))


def _as_bytes(values: np.ndarray) -> np.ndarray:
    """The bytes of a contiguous array, without a copy."""
    return values.reshape(-1).view(np.uint8)


def _fill(file: BinaryIO, content: np.ndarray, path: Path) -> None:
    """Reads until the array is full: a read may give less than it is asked for."""
    done = 0
    while done < len(content):
        count = file.readinto(content[done:].data)  # type: ignore[attr-defined]  # a raw file has it
        if not count:
            raise _damaged(path, "it ends too early")
        done += count


def _damaged(path: Path, reason: str) -> IntegrityError:
    return IntegrityError(
        f"{path}: encoded rows are not as they were written: {reason}; remove the folder {path.parent}, and they are made anew"
    )
