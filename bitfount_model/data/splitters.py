"""Table -> positions of the training, validation and test rows; sits between the datasource and the loaders.

A split is a function of (rows, shares, seed) alone: no global random state is read or written, the three parts are
disjoint and together they hold every row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from marshmallow import fields

from bitfount_model.errors import ConfigurationError, DataError, SchemaMismatchError
from bitfount_model.types import SplitIndices

DEFAULT_SPLIT_SEED = 0
"""Seed of a split when neither the splitter nor the caller gives one: a split is always reproducible."""


class DatasetSplitter(ABC):
    """Decides which rows are trained on, validated on and tested on.

    Attributes:
        fields_dict: name -> marshmallow field of what is serialised.
        nested_fields: name -> registry of the classes that may stand there.
    """

    fields_dict: ClassVar[dict[str, fields.Field[Any]]] = {}
    nested_fields: ClassVar[dict[str, Mapping[str, type]]] = {}

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Columns that only say to which part a row belongs, and so are no features."""
        return ()

    @property
    def needs_labels(self) -> bool:
        """Whether `split` wants the rows' classes as `stratify`."""
        return False

    @property
    def columns_read(self) -> tuple[str, ...] | None:
        """Columns that `split` looks at, beside `stratify`; None where it may look at all, so that it needs the whole table."""
        return None

    @property
    def splits_row_by_row(self) -> bool:
        """Whether the part of a row depends on that row alone, so that chunks of a table can be split one by one."""
        return False

    @abstractmethod
    def split(self, frame: pd.DataFrame, seed: int | None = None, stratify: np.ndarray | None = None) -> SplitIndices:
        """Split the rows of a table.

        Args:
            frame: the table, one row an example.
            seed: of the shuffle; None is a fixed constant, so that splits are reproducible.
            stratify: `(rows,)`, the class of each row; read only by splitters that need labels.

        Returns:
            Positions (not keys) of the rows of each part, int64.

        Raises:
            DataError: the rows do not hold what the splitter needs.
        """


@dataclass(frozen=True)
class PercentageSplitter(DatasetSplitter):
    """Splits by shares of the rows.

    Sizes are the exact shares rounded by largest remainder (ties: training, then validation, then test), so they
    always sum to the number of rows; training keeps at least one row while its share is above zero. Stratified, each
    class is divided in the same way and the parts keep those sizes; a class of one row goes to training.

    Args:
        validation_percentage: share of validation rows, 0 to 100.
        test_percentage: share of test rows, 0 to 100; training gets what is left.
        shuffle: draw the parts at random; otherwise the first rows are training, then validation, the last test.
        time_series_sort_by: a column; the earliest rows are training, then validation, the latest test, and
            `shuffle` is not used.
        stratify: keep the classes' shares alike in all parts.
        seed: fixes this split whatever seed the caller passes; None takes the caller's.

    Raises:
        ConfigurationError: shares out of range, or arguments that exclude each other.
    """

    validation_percentage: float = 10
    test_percentage: float = 10
    shuffle: bool = True
    time_series_sort_by: str | None = None
    stratify: bool = False
    seed: int | None = None

    fields_dict: ClassVar[dict[str, fields.Field[Any]]] = {
        "validation_percentage": fields.Raw(),
        "test_percentage": fields.Raw(),
        "shuffle": fields.Boolean(),
        "time_series_sort_by": fields.String(allow_none=True),
        "stratify": fields.Boolean(),
        "seed": fields.Integer(strict=True, allow_none=True),
    }

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value!r}, wanted a number from 0 to 100"
            for name, value in (
                ("validation_percentage", self.validation_percentage),
                ("test_percentage", self.test_percentage),
            )
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100
        ]
        if not problems and self.validation_percentage + self.test_percentage > 100:
            problems.append(
                f"validation_percentage {self.validation_percentage} and test_percentage {self.test_percentage} sum to "
                f"{self.validation_percentage + self.test_percentage}, wanted at most 100"
            )
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0):
            problems.append(f"seed is {self.seed!r}, wanted None or an integer of at least 0")
        if self.stratify and self.time_series_sort_by is not None:
            problems.append("stratify and time_series_sort_by exclude each other, leave one out")
        if self.stratify and not self.shuffle:
            problems.append("stratify needs shuffle=True")
        if problems:
            raise ConfigurationError("PercentageSplitter: " + "; ".join(problems))

    @property
    def needs_labels(self) -> bool:
        """Whether `split` wants the rows' classes as `stratify`."""
        return self.stratify

    @property
    def columns_read(self) -> tuple[str, ...] | None:
        """The column of times, if any."""
        return () if self.time_series_sort_by is None else (self.time_series_sort_by,)

    def split(self, frame: pd.DataFrame, seed: int | None = None, stratify: np.ndarray | None = None) -> SplitIndices:
        """Split the rows by the shares; see the class for sizes and order.

        Args:
            frame: the table.
            seed: used where the splitter has no seed of its own; None is `DEFAULT_SPLIT_SEED`.
            stratify: `(rows,)` classes, needed when the splitter stratifies, else not read.

        Returns:
            Positions of each part: ascending, or by time for a time series.

        Raises:
            DataError: stratification without labels, or a missing value in the time column.
            SchemaMismatchError: the time column is not in the table.
        """
        rows = len(frame)
        shares = (
            100 - self.validation_percentage - self.test_percentage,
            self.validation_percentage,
            self.test_percentage,
        )
        if self.time_series_sort_by is not None:
            return _cut(_positions_by_time(frame, self.time_series_sort_by), _part_sizes(rows, shares))
        if not self.shuffle:
            return _cut(np.arange(rows, dtype=np.int64), _part_sizes(rows, shares))
        own = self.seed if self.seed is not None else seed
        generator = np.random.default_rng(DEFAULT_SPLIT_SEED if own is None else own)
        if self.stratify:
            return _stratified(_labels(stratify, rows), shares, generator)
        return _sorted(_cut(generator.permutation(rows), _part_sizes(rows, shares)))


@dataclass(frozen=True)
class SplitterDefinedInData(DatasetSplitter):
    """Splits by a column of the table that says to which part each row belongs.

    Args:
        column_name: the column; it is not used as a feature.
        training_set_label: value of training rows.
        validation_set_label: value of validation rows.
        test_set_label: value of test rows.

    Raises:
        ConfigurationError: two labels are the same, or the column has no name.
    """

    column_name: str
    training_set_label: str = "TRAIN"
    validation_set_label: str = "VALIDATION"
    test_set_label: str = "TEST"

    fields_dict: ClassVar[dict[str, fields.Field[Any]]] = {
        "column_name": fields.String(),
        "training_set_label": fields.Raw(),
        "validation_set_label": fields.Raw(),
        "test_set_label": fields.Raw(),
    }

    def __post_init__(self) -> None:
        labels = (self.training_set_label, self.validation_set_label, self.test_set_label)
        if not isinstance(self.column_name, str) or not self.column_name:
            raise ConfigurationError(
                f"SplitterDefinedInData: column_name is {self.column_name!r}, wanted a column's name"
            )
        if len(set(labels)) < len(labels):
            raise ConfigurationError(f"SplitterDefinedInData: labels {labels} are not three different values")

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The column that holds the parts' labels."""
        return (self.column_name,)

    @property
    def columns_read(self) -> tuple[str, ...] | None:
        """The column that holds the parts' labels."""
        return (self.column_name,)

    @property
    def splits_row_by_row(self) -> bool:
        """The label of a row says it."""
        return True

    def split(self, frame: pd.DataFrame, seed: int | None = None, stratify: np.ndarray | None = None) -> SplitIndices:
        """Split the rows by their label; `seed` and `stratify` are not used.

        Raises:
            DataError: a row has another label or none; the message counts them.
            SchemaMismatchError: the column is not in the table.
        """
        if self.column_name not in frame.columns:
            raise SchemaMismatchError(
                f"splitter column {self.column_name!r} is not in the table; columns: {list(frame.columns)}"
            )
        column = frame[self.column_name]
        labels = (self.training_set_label, self.validation_set_label, self.test_set_label)
        unknown = column[~column.isin(labels)]
        if len(unknown):
            counts = ", ".join(f"{value!r}: {count}" for value, count in unknown.value_counts(dropna=False).items())
            raise DataError(
                f"splitter column {self.column_name!r}: {len(unknown)} of {len(column)} rows have a label that is "
                f"none of {list(labels)} ({counts}); correct the column or pass the labels to SplitterDefinedInData"
            )
        parts = [np.flatnonzero((column == label).to_numpy(dtype=bool)).astype(np.int64) for label in labels]
        return SplitIndices(train=parts[0], validation=parts[1], test=parts[2])


def _part_sizes(rows: int, shares: tuple[float, float, float]) -> np.ndarray:
    """Sizes `(3,)` of training, validation and test by largest remainder; they sum to `rows`."""
    exact = rows * np.asarray(shares, dtype=np.float64) / 100
    # shares such as 33.3 leave a sum a hair from `rows`; rounding first keeps 4.999999999 from being 4
    sizes = np.floor(np.round(exact, 9)).astype(np.int64)
    by_remainder = np.argsort(-np.round(exact - sizes, 9), kind="stable")
    sizes[by_remainder[: rows - int(sizes.sum())]] += 1
    if rows and sizes[0] == 0 and shares[0] > 0:
        sizes[np.argmax(np.where(sizes > 0, sizes - exact, -1.0))] -= 1  # from what was rounded up most
        sizes[0] = 1
    return sizes


def _cut(order: np.ndarray, sizes: np.ndarray) -> SplitIndices:
    """Cut one order of all rows into the three parts."""
    train, validation = int(sizes[0]), int(sizes[0] + sizes[1])
    return SplitIndices(train=order[:train], validation=order[train:validation], test=order[validation:])


def _sorted(split: SplitIndices) -> SplitIndices:
    return SplitIndices(train=np.sort(split.train), validation=np.sort(split.validation), test=np.sort(split.test))


def _positions_by_time(frame: pd.DataFrame, column: str) -> np.ndarray:
    """All positions, earliest first; equal times keep the table's order."""
    if column not in frame.columns:
        raise SchemaMismatchError(f"time_series_sort_by {column!r} is not in the table; columns: {list(frame.columns)}")
    missing = frame.index[frame[column].isna()]
    if len(missing):
        raise DataError(
            f"time_series_sort_by {column!r} is missing in {len(missing)} rows, first keys {missing[:5].tolist()}; "
            "fill the column or leave those rows out"
        )
    times = pd.Series(frame[column].to_numpy())
    return times.sort_values(kind="stable").index.to_numpy(dtype=np.int64)


def _labels(stratify: np.ndarray | None, rows: int) -> np.ndarray:
    """The class of each row as a code `(rows,)`; a missing class is a class of its own."""
    if stratify is None:
        raise DataError("PercentageSplitter(stratify=True) needs the rows' classes, wanted one categorical target")
    if len(stratify) != rows:
        raise DataError(f"stratify has {len(stratify)} labels for {rows} rows, wanted one a row")
    codes, _ = pd.factorize(pd.Series(stratify), use_na_sentinel=False)
    return codes


def _stratified(labels: np.ndarray, shares: tuple[float, float, float], generator: np.random.Generator) -> SplitIndices:
    """Divide every class by the shares, so that the parts have the sizes that an unstratified split has."""
    members = [np.flatnonzero(labels == label) for label in range(int(labels.max()) + 1 if len(labels) else 0)]
    single = [rows for rows in members if len(rows) == 1]
    several = [generator.permutation(rows) for rows in members if len(rows) > 1]
    table = _class_sizes(np.array([len(rows) for rows in several], dtype=np.int64), shares)
    parts = [_cut(rows, sizes) for rows, sizes in zip(several, table, strict=True)]
    none = np.empty(0, dtype=np.int64)
    return SplitIndices(
        train=np.sort(np.concatenate([none, *single, *(part.train for part in parts)])),
        validation=np.sort(np.concatenate([none, *(part.validation for part in parts)])),
        test=np.sort(np.concatenate([none, *(part.test for part in parts)])),
    )


def _class_sizes(counts: np.ndarray, shares: tuple[float, float, float]) -> np.ndarray:
    """Rows `(classes, 3)` that each class gives to each part.

    Every class starts from its exact share rounded down; what is left of each class goes where its remainder is
    largest and the part is not yet full, so row sums are `counts` and column sums are the sizes of the whole.
    """
    exact = counts[:, None] * np.asarray(shares, dtype=np.float64)[None, :] / 100
    table = np.floor(np.round(exact, 9)).astype(np.int64)
    left = counts - table.sum(axis=1)
    free = _part_sizes(int(counts.sum()), shares) - table.sum(axis=0)
    order = np.argsort(-np.round(exact - table, 9), axis=None, kind="stable")
    while left.any():
        for label, part in zip(*np.unravel_index(order, table.shape), strict=True):
            if left[label] and free[part] > 0:
                table[label, part] += 1
                left[label] -= 1
                free[part] -= 1
    while free.any():  # the row that training always keeps may have to come from a part that is full
        full, lacking = int(np.argmin(free)), int(np.argmax(free))
        largest = int(np.argmax(table[:, full]))
        table[largest, [full, lacking]] += [-1, 1]
        free[[full, lacking]] += [1, -1]
    return table


registry: Mapping[str, type] = {
    "PercentageSplitter": PercentageSplitter,
    "SplitterDefinedInData": SplitterDefinedInData,
}
"""Splitters that a dumped datastructure may name."""
