"""Encoded rows on disk -> batches of tensors, shuffled by blocks within a window; for tables larger than memory.

The order of an epoch is a function of (seed, epoch, rows, bytes of a row): blocks of consecutive rows are permuted over the whole
table, `WINDOW_BLOCKS` of them are read at a time, and the rows of that window are permuted. So a row can come at any place of an
epoch, together with rows from `WINDOW_BLOCKS` places of the table; a table that fits into one window is shuffled completely.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitfount_model.data.dataloaders import BaseLoader, Batch, permutation
from bitfount_model.data.encoded_rows import Encoded, EncodedSplit

BLOCK_BYTES = 1 << 18
"""Of consecutive rows that are read together: enough for a disk to read at its full speed."""
WINDOW_BLOCKS = 256
"""Blocks that are shuffled together: 64 MiB of rows in memory."""


@dataclass(frozen=True)
class Blocks:
    """A table cut into blocks of consecutive rows, of which the last one may be shorter.

    Attributes:
        rows: of the table.
        block_rows: of a block.
        window_blocks: of a window.
    """

    rows: int
    block_rows: int
    window_blocks: int

    @property
    def count(self) -> int:
        """Number of blocks."""
        return -(-self.rows // self.block_rows)

    def run(self, block: int) -> tuple[int, int]:
        """First row of a block, and how many rows it has."""
        first = block * self.block_rows
        return first, min(self.block_rows, self.rows - first)

    def windows(self, order: np.ndarray) -> list[list[tuple[int, int]]]:
        """The windows of an order of blocks, each as runs of rows."""
        runs = [self.run(int(block)) for block in order]
        return [runs[begin : begin + self.window_blocks] for begin in range(0, len(runs), self.window_blocks)]


class StreamedDataLoader(BaseLoader):
    """Batches of rows on disk, of which one window at a time is in memory. A batch is a copy, and may be changed.

    Args:
        split: the rows.
        batch_size: rows of a batch.
        shuffle: whether each epoch has an order of its own; otherwise rows keep the table's order.
        seed: of the orders; None draws one.
        block_rows: rows of a block; None takes as many as have `BLOCK_BYTES`.
        window_blocks: blocks of a window.

    Raises:
        ConfigurationError: the batch size is not a positive integer.
    """

    def __init__(
        self,
        split: EncodedSplit,
        batch_size: int,
        shuffle: bool = False,
        seed: int | None = None,
        *,
        block_rows: int | None = None,
        window_blocks: int = WINDOW_BLOCKS,
    ) -> None:
        super().__init__(split.rows, batch_size, shuffle, seed)
        self._split = split
        self._blocks = Blocks(split.rows, block_rows or max(1, BLOCK_BYTES // split.row_bytes), window_blocks)

    @property
    def targets(self) -> Tensor:
        """`(rows, ...)`, in the table's order; read from disk by each call."""
        return torch.from_numpy(self._split.targets())

    @property
    def keys(self) -> list[Any] | None:
        """One key a row in the table's order; read from disk by each call."""
        return self._split.keys()

    def read_batches(self, epoch: int, start: int, stop: int) -> Iterator[Batch]:
        """Batches `start` to `stop` (excluded) of one epoch; windows before them are not read."""
        window = Window(self._split, self._windows_of(epoch), self._seed_of(epoch))
        for rows, skipped in self.blocks(start, stop):
            block = window.gather(rows, skipped)
            for x, support, y in zip(*(torch.split(values, self.batch_size) for values in block), strict=True):
                yield [x, support], y

    def _windows_of(self, epoch: int) -> list[list[tuple[int, int]]]:
        order = self.order.of_epoch(epoch, self._blocks.count)
        return self._blocks.windows(np.arange(self._blocks.count) if order is None else order)

    def _seed_of(self, epoch: int) -> tuple[int, int] | None:
        return (self.order.seed, epoch) if self.order.shuffle else None


class Window:
    """The window that is in memory, moving on through an epoch.

    Args:
        split: the rows.
        windows: runs of rows of each window, in the order of the epoch.
        seed: (seed, epoch), which the order within a window is made of; None keeps the rows' order.
    """

    def __init__(self, split: EncodedSplit, windows: list[list[tuple[int, int]]], seed: tuple[int, int] | None) -> None:
        self._split = split
        self._windows = windows
        self._seed = seed
        self._ends = np.cumsum([sum(rows for _, rows in runs) for runs in windows])
        self._number = -1
        self._rows: Encoded | None = None
        self._order: np.ndarray | None = None

    def gather(self, rows: slice, skipped: int) -> list[Tensor]:
        """Rows by their places in the epoch, as new tensors.

        Args:
            rows: the places.
            skipped: how many rows to leave free before them: see `dataloaders.gather`.

        Returns:
            Features, support and targets.
        """
        count = rows.stop - rows.start
        made = [
            torch.empty((skipped + count, *like.shape[1:]), dtype=torch.from_numpy(like).dtype)[skipped:]
            for like in self._split.empty(0).arrays()
        ]
        place = rows.start
        while place < rows.stop:
            number = int(np.searchsorted(self._ends, place, side="right"))
            begin, end = int(self._ends[number - 1]) if number else 0, int(self._ends[number])
            upto = min(rows.stop, end)
            parts = [values[place - rows.start : upto - rows.start].numpy() for values in made]
            self._copy(number, slice(place - begin, upto - begin), parts)
            place = upto
        return made

    def _copy(self, number: int, places: slice, parts: list[np.ndarray]) -> None:
        """Rows of a window, by their places in its order, into arrays."""
        held, order = self._moved_to(number)
        for part, values in zip(parts, held.arrays(), strict=True):
            np.take(values, order[places], axis=0, out=part, mode="clip")

    def _moved_to(self, number: int) -> tuple[Encoded, np.ndarray]:
        """The rows of a window, and their order."""
        if self._rows is None or self._order is None or number != self._number:
            self._rows = self._order = None  # so that two windows are never held
            self._number = number
            self._rows = self._split.read_runs(self._windows[number])
            count = len(self._rows.features)
            self._order = np.arange(count) if self._seed is None else permutation(count, *self._seed, number)
        return self._rows, self._order
