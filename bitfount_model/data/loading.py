"""Table -> split -> prepared numbers -> loaders: puts the parts of this package together."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from bitfount_model.data.dataloaders import BaseLoader, TabularDataLoader
from bitfount_model.data.datastructure import DataStructure
from bitfount_model.data.image_loader import ImageDataLoader
from bitfount_model.data.images import compile_transformations
from bitfount_model.data.preparation import (
    Preparation,
    encode_features,
    encode_support,
    encode_target,
    fit_preparation,
)
from bitfount_model.data.schema import BitfountSchema
from bitfount_model.data.splitters import DatasetSplitter, PercentageSplitter
from bitfount_model.errors import DataError, MissingSplitError
from bitfount_model.types import DataSplit, Problem, SplitIndices


@dataclass(frozen=True)
class Loaders:
    """The loaders of the three splits; None for a split without rows.

    Attributes:
        preparation: how rows became numbers.
        width: columns of the tabular tensor.
    """

    train: BaseLoader
    validation: BaseLoader | None
    test: BaseLoader | None
    preparation: Preparation
    width: int

    def of(self, split: DataSplit) -> BaseLoader:
        """The loader of one split.

        Raises:
            MissingSplitError: it has no rows.
        """
        found = {DataSplit.TRAIN: self.train, DataSplit.VALIDATION: self.validation, DataSplit.TEST: self.test}[split]
        if found is None:
            raise MissingSplitError(
                f"the {split.value} split has no rows; give its share in the data_splitter, or more rows"
            )
        return found


def make_loaders(
    frame: pd.DataFrame,
    *,
    schema: BitfountSchema,
    datastructure: DataStructure,
    splitter: DatasetSplitter | None,
    problem: Problem,
    batch_size: int,
    seed: int | None,
    preparation: Preparation | None = None,
    num_workers: int = 0,
) -> Loaders:
    """Split a table and make a loader of each part.

    Args:
        frame: the table, after the datastructure's `transform`.
        schema: of that table.
        datastructure: which columns are features, target and weights.
        splitter: None takes the datastructure's, or else `PercentageSplitter()`.
        problem: decides the dtype of targets.
        batch_size: rows of a batch.
        seed: of the split and of the order of training rows; None gives the reproducible default split, and an order
            drawn by the operating system.
        preparation: how rows become numbers; None learns it from the training rows.
        num_workers: processes that read images; 0 reads them in this one.

    Returns:
        The loaders; training rows are shuffled anew each epoch, the others keep their order.

    Raises:
        MissingSplitError: no row is left for training.
        DataError: rows that the schema, splitter or target do not allow.
    """
    splitter = splitter or datastructure.data_splitter or PercentageSplitter()
    structure = dataclasses.replace(datastructure, data_splitter=splitter)
    columns = structure.feature_columns(schema)
    schema.check(frame, [name for group in columns for name in group] + structure.targets)
    split = split_rows(frame, splitter, structure, seed)
    if not len(split.train):
        raise MissingSplitError(
            f"the train split has no rows: {splitter!r} took none of {len(frame)}; give more rows or a larger share"
        )
    learned = preparation or fit_preparation(frame.iloc[split.train], schema, structure)

    def loader(part: DataSplit) -> BaseLoader:
        return _loader(
            frame.iloc[split.of(part)],
            schema=schema,
            datastructure=structure,
            problem=problem,
            batch_size=batch_size,
            preparation=learned,
            part=part,
            seed=seed,
            required=True,
            num_workers=num_workers,
        )

    return Loaders(
        train=loader(DataSplit.TRAIN),
        validation=loader(DataSplit.VALIDATION) if len(split.validation) else None,
        test=loader(DataSplit.TEST) if len(split.test) else None,
        preparation=learned,
        width=structure.tabular_width(schema),
    )


def split_rows(
    frame: pd.DataFrame, splitter: DatasetSplitter, datastructure: DataStructure, seed: int | None
) -> SplitIndices:
    """The positions of the rows of each split, as `make_loaders` takes them.

    Args:
        frame: the table, after the datastructure's `transform`.
        splitter: decides.
        datastructure: names the target, for a splitter that stratifies by it.
        seed: of the split.
    """
    return splitter.split(frame, seed, _stratification(frame, splitter, datastructure))


def make_prediction_loader(
    frame: pd.DataFrame,
    *,
    schema: BitfountSchema,
    datastructure: DataStructure,
    problem: Problem,
    batch_size: int,
    preparation: Preparation,
    rows: np.ndarray | None = None,
    require_target: bool = False,
    num_workers: int = 0,
) -> BaseLoader:
    """A loader of rows that are to be predicted, in the order of the table.

    Args:
        frame: the table, after the datastructure's `transform`.
        schema: of the table that the model was trained on.
        datastructure: which columns are features, target and weights.
        problem: decides the dtype of targets.
        batch_size: rows of a batch.
        preparation: how rows become numbers.
        rows: positions of the rows to take; None takes all.
        require_target: refuse rows without a known target, as for an evaluation; otherwise theirs is 0.
        num_workers: processes that read images.

    Raises:
        MissingSplitError: there are no rows.
        DataError: rows that the schema or the preparation do not allow.
    """
    columns = datastructure.feature_columns(schema)
    schema.check(frame, [name for group in columns for name in group])
    chosen = frame if rows is None else frame.iloc[rows]
    if not len(chosen):
        raise MissingSplitError("there are no rows to predict; give a table with rows")
    return _loader(
        chosen,
        schema=schema,
        datastructure=datastructure,
        problem=problem,
        batch_size=batch_size,
        preparation=preparation,
        part=DataSplit.TEST,
        seed=None,
        required=require_target,
        num_workers=num_workers,
    )


def _loader(
    frame: pd.DataFrame,
    *,
    schema: BitfountSchema,
    datastructure: DataStructure,
    problem: Problem,
    batch_size: int,
    preparation: Preparation,
    part: DataSplit,
    seed: int | None,
    required: bool,
    num_workers: int,
) -> BaseLoader:
    """A loader of all rows of a table."""
    columns = datastructure.feature_columns(schema)
    features = torch.from_numpy(encode_features(frame, columns, preparation))
    support = torch.from_numpy(encode_support(frame, datastructure, required))
    targets = torch.from_numpy(encode_target(frame, schema, datastructure, problem, required))
    keys = frame.index.tolist()
    shuffle = part is DataSplit.TRAIN
    if not columns.images:
        return TabularDataLoader(features, support, targets, keys, batch_size, shuffle, seed)
    return ImageDataLoader(
        features,
        {name: _paths(frame, name) for name in columns.images},
        {name: compile_transformations(datastructure.batch_transforms or (), name, part) for name in columns.images},
        support,
        targets,
        keys,
        batch_size,
        shuffle,
        seed,
        num_workers,
    )


def _paths(frame: pd.DataFrame, name: str) -> list[Any]:
    """The images of a column: paths, or the bytes of files."""
    column = frame[name]
    missing = frame.index[column.isna()]
    if len(missing):
        raise DataError(
            f"image column {name!r} is missing in {len(missing)} rows, first keys {missing[:5].tolist()}; leave those "
            "rows out"
        )
    return column.tolist()


def _stratification(frame: pd.DataFrame, splitter: DatasetSplitter, datastructure: DataStructure) -> np.ndarray | None:
    """The rows' classes, for a splitter that needs them."""
    if not splitter.needs_labels or len(datastructure.targets) != 1:
        return None
    return frame[datastructure.targets[0]].to_numpy()
