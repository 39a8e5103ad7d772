"""Source -> chunks -> split -> encoded rows on disk -> streamed loaders: what `loading` does, for tables larger than memory.

The source is read in chunks of `CHUNK_ROWS` rows, twice: to learn means and scales from the training rows, and to encode. A
split by a column that must be known as a whole (strata, times) takes one more pass. Held in memory are a chunk, 1 byte a row for
its part, and while the parts are drawn 16 bytes a row; a source with a key looks for repeated ones with 16 bytes a row.

Rows, splits and targets are those of `loading.make_loaders`. Means and scales agree with its to 1e-12, as they are added up chunk
by chunk, and training rows come in another order: see `streamed_loader`. Every part keeps the table's order.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bitfount_model.data.base_source import BaseSource
from bitfount_model.data.datastructure import DataStructure
from bitfount_model.data.encoded_rows import Encoded, EncodedSplit, SplitWriter
from bitfount_model.data.loading import Loaders
from bitfount_model.data.moments import Moments, mean_and_scale
from bitfount_model.data.preparation import (
    Preparation,
    column_numbers,
    encode_features,
    encode_support,
    encode_target,
)
from bitfount_model.data.schema import BitfountSchema
from bitfount_model.data.splitters import DatasetSplitter, PercentageSplitter
from bitfount_model.data.streamed_loader import StreamedDataLoader
from bitfount_model.data.table_digest import RunningDigest
from bitfount_model.errors import ConfigurationError, DataError, MissingSplitError, StorageError
from bitfount_model.files import write_atomically
from bitfount_model.types import DataSplit, Problem, SplitIndices

CHUNK_ROWS = 1 << 16
"""Rows of the table that are held at a time."""
FORMAT = 1
"""Of the files; rows that were kept in another one are encoded anew."""
PARTS = (DataSplit.TRAIN, DataSplit.VALIDATION, DataSplit.TEST)
"""In the order of their numbers."""

_KEPT = "rows.json"


@dataclass(frozen=True)
class StreamedTable:
    """A source's rows as a data structure sees them, in chunks.

    Attributes:
        source: where they are.
        datastructure: its transforms are applied to each chunk.
        identifier: the pod whose table or query is meant, for a data structure that has several.
    """

    source: BaseSource
    datastructure: DataStructure
    identifier: str | None = None

    def chunks(self) -> Iterator[pd.DataFrame]:
        """The rows in order, `CHUNK_ROWS` at a time; for a table without rows one chunk without rows.

        Raises:
            DataSourceError: the source cannot be read, or not in chunks.
            DataError: a transform meets what it cannot use.
        """
        for chunk in self.source.read_chunks(CHUNK_ROWS, table=self._table(), query=self._query()):
            yield self.datastructure.transform(chunk)

    def count(self) -> int:
        """How many rows there are."""
        return self.source.count(self._table(), self._query())

    def described(self) -> dict[str, Any]:
        """What the rows are, as far as it can be told without reading them; plain JSON without secrets."""
        return {
            **self.source.describe(),
            "key": self.source.key,
            "state": self.source.state(),
            "asked": [self._table(), self._query()],
        }

    def _table(self) -> str | None:
        return self.datastructure.table_for(self.identifier)

    def _query(self) -> str | None:
        return self.datastructure.query_for(self.identifier)


@dataclass(frozen=True)
class KeptRows:
    """What a folder of encoded rows holds.

    Attributes:
        made_from: sha256, in hex, over what the rows were made from, and how.
        digest: of the table, as `RunningDigest` gives it.
        rows: part -> number of rows.
        preparation: how rows became numbers.
    """

    made_from: str
    digest: str
    rows: Mapping[str, int]
    preparation: Preparation


@dataclass(frozen=True)
class Encoder:
    """All that says how a chunk becomes numbers, but for the preparation.

    Attributes:
        schema: of the table.
        structure: which columns are features, target and weights, with the splitter.
        problem: decides the dtype of targets.
    """

    schema: BitfountSchema
    structure: DataStructure
    problem: Problem

    def check(self, chunk: pd.DataFrame) -> pd.DataFrame:
        """The chunk, if its columns are those of the schema.

        Raises:
            SchemaMismatchError: lists every difference.
        """
        columns = self.structure.feature_columns(self.schema)
        self.schema.check(chunk, [name for group in columns for name in group] + self.structure.targets)
        return chunk

    def moments(self, training: pd.DataFrame) -> dict[str, Moments]:
        """The moments of every continuous feature in some training rows."""
        names = self.structure.feature_columns(self.schema).continuous
        return {name: Moments.of(column_numbers(training, name)) for name in names}

    def preparation(self, moments: list[dict[str, Moments]]) -> Preparation:
        """What is learned from the training rows: see `fit_preparation`.

        Args:
            moments: of all chunks.

        Raises:
            DataError: values are so large that their mean or scale is beyond float64.
        """
        columns = self.structure.feature_columns(self.schema)
        try:
            continuous = {name: mean_and_scale(part[name] for part in moments) for name in columns.continuous}
        except OverflowError as error:
            raise DataError(f"a continuous column has values beyond float64: {error}; clean the column") from error
        return Preparation(
            continuous=continuous,
            categorical={name: self.schema.column(name).categories for name in columns.categorical},
            encoding=self.structure.categorical_encoding,
            normalise=self.structure.normalise,
        )

    def encode(self, chunk: pd.DataFrame, preparation: Preparation) -> Encoded:
        """The chunk as numbers.

        Raises:
            DataError: rows that the schema, the target or the preparation do not allow.
        """
        columns = self.structure.feature_columns(self.schema)
        return Encoded(
            encode_features(chunk, columns, preparation),
            encode_support(chunk, self.structure),
            encode_target(chunk, self.schema, self.structure, self.problem),
        )


def make_streamed_loaders(
    table: StreamedTable,
    folder: Path,
    *,
    schema: BitfountSchema,
    splitter: DatasetSplitter | None,
    problem: Problem,
    batch_size: int,
    seed: int | None,
    preparation: Preparation | None = None,
) -> Loaders:
    """`loading.make_loaders` for a table that is never held as a whole.

    Rows that the folder holds already are used as they are, if they were made from the same source in the same way: files count as
    the same while their size and time of change are; a database that cannot say whether it changed counts as the same.

    Args:
        table: the rows.
        folder: for the encoded rows, about `4 * width + 24` bytes each; replaced as a whole if it holds others.
        schema: of the table.
        splitter: None takes the datastructure's, or else `PercentageSplitter()`.
        problem: decides the dtype of targets.
        batch_size: rows of a batch.
        seed: of the split and of the order of training rows.
        preparation: how rows become numbers; None learns it from the training rows.

    Returns:
        The loaders, as `make_loaders` gives them.

    Raises:
        MissingSplitError: no row is left for training.
        ConfigurationError: images, or a splitter that needs the whole table.
        DataError: rows that the schema, splitter or target do not allow, or that change while they are read.
        StorageError: the folder cannot be written.
    """
    splitter = splitter or table.datastructure.data_splitter or PercentageSplitter()
    structure = dataclasses.replace(table.datastructure, data_splitter=splitter)
    if images := structure.feature_columns(schema).images:
        raise ConfigurationError(
            f"image columns {list(images)} cannot be streamed, as images are read batch by batch already; hold the rows in memory"
        )
    encoder = Encoder(schema, structure, problem)
    made_from = _made_from(table, encoder, seed, preparation)
    kept = kept_rows(folder)
    if kept is None or kept.made_from != made_from:
        kept = _encode(table, folder, encoder, splitter, seed, preparation, made_from)

    def loader(part: DataSplit) -> StreamedDataLoader | None:
        if not kept.rows[part.value]:
            return None
        return StreamedDataLoader(EncodedSplit(folder, part.value), batch_size, part is DataSplit.TRAIN, seed)

    train = loader(DataSplit.TRAIN)
    if train is None:
        raise MissingSplitError(f"the train split in {folder} has no rows; remove the folder, and they are made anew")
    return Loaders(
        train=train,
        validation=loader(DataSplit.VALIDATION),
        test=loader(DataSplit.TEST),
        preparation=kept.preparation,
        width=structure.tabular_width(schema),
    )


def kept_rows(folder: Path) -> KeptRows | None:
    """What a folder of encoded rows holds; None if it is not there or was not finished."""
    try:
        found = json.loads((folder / _KEPT).read_text(encoding="utf-8"))
        return KeptRows(found["made_from"], found["digest"], found["rows"], Preparation.from_json(found["preparation"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _made_from(table: StreamedTable, encoder: Encoder, seed: int | None, preparation: Preparation | None) -> str:
    named = {
        "format": FORMAT,
        "table": table.described(),
        "schema": encoder.schema.to_json(),
        "datastructure": repr(encoder.structure),
        "problem": encoder.problem.value,
        "seed": seed,
        "preparation": None if preparation is None else preparation.to_json(),
    }
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def _encode(
    table: StreamedTable,
    folder: Path,
    encoder: Encoder,
    splitter: DatasetSplitter,
    seed: int | None,
    preparation: Preparation | None,
    made_from: str,
) -> KeptRows:
    """Reads the table and leaves its encoded rows in the folder, whole or not at all."""
    parts, learned = _learned(table, encoder, splitter, seed, preparation)
    sizes = np.bincount(parts, minlength=len(PARTS)).tolist()
    if not sizes[0]:
        raise MissingSplitError(
            f"the train split has no rows: {splitter!r} took none of {len(parts)}; give more rows or a larger share"
        )
    unfinished = folder.with_name(f"{folder.name}.part")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700, parents=True)
        digest = _write(table, unfinished, encoder, parts, sizes, learned)
        rows = {part.value: size for part, size in zip(PARTS, sizes, strict=True)}
        kept = KeptRows(made_from, digest, rows, learned)
        described = {**dataclasses.asdict(kept), "preparation": learned.to_json()}
        write_atomically(unfinished / _KEPT, json.dumps(described).encode())
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise StorageError(
            f"cannot keep {len(parts):,} encoded rows in {folder}: {error.strerror or error}; free some space, or choose another"
            " folder"
        ) from error
    return kept


def _learned(
    table: StreamedTable,
    encoder: Encoder,
    splitter: DatasetSplitter,
    seed: int | None,
    preparation: Preparation | None,
) -> tuple[np.ndarray, Preparation]:
    """The number of each row's part, `(rows,)` uint8, and what is learned from the training rows."""
    rows = table.count()
    known = None if splitter.splits_row_by_row else _parts(table, encoder, rows, splitter, seed)
    if known is not None and preparation is not None:
        return known, preparation
    parts = np.empty(rows, dtype=np.uint8) if known is None else known
    moments = []
    for place, chunk in _placed(table, encoder, rows):
        if known is None:
            parts[place] = _numbers_of(splitter.split(chunk, seed), len(chunk))
        if preparation is None:
            moments.append(encoder.moments(chunk[parts[place] == 0]))
    return parts, preparation or encoder.preparation(moments)


def _parts(
    table: StreamedTable, encoder: Encoder, rows: int, splitter: DatasetSplitter, seed: int | None
) -> np.ndarray:
    """The number of each row's part, of a splitter that looks at all rows together."""
    names, targets = splitter.columns_read, encoder.structure.targets
    if names is None:
        raise ConfigurationError(
            f"{splitter!r} needs the whole table; hold the rows in memory, or let the splitter say which `columns_read` it needs"
        )
    target = targets[0] if splitter.needs_labels and len(targets) == 1 else None
    if not names and target is None:
        return _numbers_of(splitter.split(pd.DataFrame(index=pd.RangeIndex(rows)), seed), rows)
    held: list[pd.DataFrame] = []
    labels = np.empty(rows, dtype=np.int32)
    known: dict[Any, int] = {}
    for place, chunk in _placed(table, encoder, rows):
        held.append(chunk[[name for name in names if name in chunk.columns]])
        if target is not None:
            labels[place] = _labels(chunk[target], known)
    return _numbers_of(splitter.split(pd.concat(held), seed, None if target is None else labels), rows)


def _labels(values: pd.Series[Any], known: dict[Any, int]) -> np.ndarray:
    """A number for each value, in order of first appearance over all chunks; `known` takes in new ones."""
    codes, distinct = pd.factorize(values, use_na_sentinel=False)
    numbers = [known.setdefault(None if pd.isna(value) else value, len(known)) for value in distinct]
    return np.array(numbers, dtype=np.int32)[codes]


def _numbers_of(split: SplitIndices, rows: int) -> np.ndarray:
    parts = np.zeros(rows, dtype=np.uint8)
    parts[split.validation] = PARTS.index(DataSplit.VALIDATION)
    parts[split.test] = PARTS.index(DataSplit.TEST)
    return parts


def _write(
    table: StreamedTable,
    folder: Path,
    encoder: Encoder,
    parts: np.ndarray,
    sizes: list[int],
    preparation: Preparation,
) -> str:
    """Writes the encoded rows of each part; gives the table's digest."""
    digest = RunningDigest()
    with ExitStack() as stack:
        writers = [
            stack.enter_context(SplitWriter(folder, part.value, size)) for part, size in zip(PARTS, sizes, strict=True)
        ]
        for place, chunk in _placed(table, encoder, len(parts)):
            digest.add(chunk)
            encoded = encoder.encode(chunk, preparation)
            for number, writer in enumerate(writers):
                chosen = parts[place] == number
                if chosen.any():
                    writer.append(encoded.taken(chosen), chunk.index[chosen])
    return digest.hexdigest()


def _placed(table: StreamedTable, encoder: Encoder, rows: int) -> Iterator[tuple[slice, pd.DataFrame]]:
    """The chunks, checked against the schema, with the places of their rows.

    Raises:
        DataError: there are more or fewer rows than were counted.
    """
    position = 0
    for chunk in table.chunks():
        end = position + len(chunk)
        if end <= rows:
            yield slice(position, end), encoder.check(chunk)
        position = end
    if position != rows:
        raise DataError(
            f"{table.source!r} changed while it was read: found {position} rows, wanted the {rows} that were counted; read it when"
            " it stays the same"
        )
