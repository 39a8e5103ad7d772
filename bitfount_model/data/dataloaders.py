"""Prepared rows -> batches of tensors, in an order made of (seed, epoch) alone; the last station before the model.

A batch is `(x, y)`: for tables `x` is `[features, support]`, with images `[features, image, ..., support]`.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitfount_model.errors import ConfigurationError, MissingSplitError

Batch = tuple[list[Tensor], Tensor]
"""`(x, y)`; see the module."""

BLOCK_ROWS = 4096
"""Rows that are gathered together and then cut into batches: cheap for small batches, and small beside the table."""


class Order:
    """The order of the rows in every epoch: a function of (seed, epoch) alone.

    Args:
        seed: of the shuffle; None draws one from the operating system. No global random state is touched.
        shuffle: whether rows are shuffled at all.
    """

    def __init__(self, seed: int | None, shuffle: bool) -> None:
        self.seed = secrets.randbits(63) if seed is None else seed
        self.shuffle = shuffle

    def of_epoch(self, epoch: int, rows: int) -> np.ndarray | None:
        """Positions `(rows,)` int64 in the order of this epoch, or None for the table's own order."""
        if not self.shuffle:
            return None
        return permutation(rows, self.seed, epoch)


def permutation(rows: int, *seed: int) -> np.ndarray:
    """Positions `(rows,)` int64 in an order that is made of the seed's numbers alone."""
    words = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    return torch.randperm(rows, generator=torch.Generator().manual_seed(int(words[0]))).numpy()


class BaseLoader(ABC):
    """Batches of one split. Iterating gives one epoch, and each iteration the next one.

    Args:
        rows: number of rows.
        batch_size: rows of a batch; the last one of an epoch may have fewer.
        shuffle: whether each epoch has an order of its own.
        seed: of the orders; None draws one.

    Attributes:
        rows: number of rows.
        batch_size: rows of a batch.
        epoch: number of the epoch that the next iteration gives.

    Raises:
        ConfigurationError: the batch size is not a positive integer.
    """

    def __init__(self, rows: int, batch_size: int, shuffle: bool = False, seed: int | None = None) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigurationError(f"batch_size is {batch_size!r}, wanted an integer of at least 1")
        self.rows = rows
        self.batch_size = batch_size
        self.order = Order(seed, shuffle)
        self.epoch = 0

    @property
    @abstractmethod
    def targets(self) -> Tensor:
        """`(rows, ...)`, in the table's order."""

    @property
    @abstractmethod
    def keys(self) -> list[Any] | None:
        """One key a row in the table's order, or None where the data has none."""

    def __len__(self) -> int:
        """Batches of an epoch."""
        return (self.rows + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        # A generator: a Trainer may ask for an iterator and choose the epoch afterwards, before the first batch.
        epoch = self.epoch
        self.epoch += 1
        yield from self.read_batches(epoch, 0, len(self))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        self.epoch = epoch

    def blocks(self, start: int, stop: int) -> Iterator[tuple[slice, int]]:
        """The rows of batches `start` to `stop` (excluded), by their places in the epoch, so many as are gathered together.

        Returns:
            The rows of each block, and how many rows of memory to leave free before them: blocks lie at multiples of their size, so
            that a batch has the same place in memory wherever the reading starts.
        """
        together = max(1, BLOCK_ROWS // self.batch_size)
        for first in range(start - start % together, stop if start < stop else 0, together):
            begin, end = max(first, start), min(first + together, stop)
            rows = slice(begin * self.batch_size, min(end * self.batch_size, self.rows))
            yield rows, (begin - first) * self.batch_size

    @abstractmethod
    def read_batches(self, epoch: int, start: int, stop: int) -> Iterator[Batch]:
        """Batches `start` to `stop` (excluded) of one epoch; other batches are not read.

        Args:
            epoch: decides the order of rows.
            start: number of the first batch, from 0.
            stop: number of the batch after the last one, at most `len(self)`.
        """


class HeldLoader(BaseLoader):
    """A loader that holds targets and keys in memory."""

    def __init__(
        self, targets: Tensor, keys: list[Any] | None, batch_size: int, shuffle: bool = False, seed: int | None = None
    ) -> None:
        super().__init__(len(targets), batch_size, shuffle, seed)
        if keys is not None and len(keys) != len(targets):
            raise ConfigurationError(f"found {len(keys)} keys for {len(targets)} rows, wanted one a row")
        self._targets = targets
        self._keys = keys

    @property
    def targets(self) -> Tensor:
        """`(rows, ...)`, in the table's order."""
        return self._targets

    @property
    def keys(self) -> list[Any] | None:
        """One key a row in the table's order, or None where the data has none."""
        return self._keys


class TabularDataLoader(HeldLoader):
    """Batches of a table that is held as tensors. A batch is a copy, and may be changed by who receives it.

    Args:
        features: `(rows, width)` float32.
        support: `(rows, 2)` float32: weight in the loss, ignored class.
        targets: `(rows,)` or `(rows, targets)`, int64 or float32.
        keys: one key a row, or None.
        batch_size: rows of a batch.
        shuffle: whether each epoch has an order of its own.
        seed: of the orders; None draws one.

    Raises:
        ConfigurationError: the tensors differ in length, or the batch size is not a positive integer.
    """

    def __init__(
        self,
        features: Tensor,
        support: Tensor,
        targets: Tensor,
        keys: list[Any] | None,
        batch_size: int,
        shuffle: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__(targets, keys, batch_size, shuffle, seed)
        if not len(features) == len(support) == len(targets):
            raise ConfigurationError(
                f"features, support and targets have {len(features)}, {len(support)} and {len(targets)} rows, "
                "wanted as many of each"
            )
        self.features = features
        self.support = support

    def read_batches(self, epoch: int, start: int, stop: int) -> Iterator[Batch]:
        """Batches `start` to `stop` (excluded) of one epoch; see `BaseLoader`."""
        order = self.order.of_epoch(epoch, self.rows)
        for rows, skipped in self.blocks(start, stop):
            block = [gather(values, order, rows, skipped) for values in (self.features, self.support, self.targets)]
            for x, support, y in zip(*(torch.split(values, self.batch_size) for values in block), strict=True):
                yield [x, support], y


def gather(values: Tensor, order: np.ndarray | None, rows: slice, skipped: int) -> Tensor:
    """Rows of a tensor, in an order, as a new tensor.

    Matrix products on memory at another offset from a boundary of 64 bytes may differ in their last bits, so the offset must
    not depend on the process or on where the reading started. torch allocates on such boundaries; NumPy, which gathers rows
    three times faster than torch's `index_select`, does not.

    Args:
        values: `(rows of the table, ...)`.
        order: positions of the table's rows; None is the table's own order.
        rows: which of these positions.
        skipped: how many rows to leave free before them.
    """
    count = rows.stop - rows.start
    gathered = torch.empty((skipped + count, *values.shape[1:]), dtype=values.dtype)[skipped:]
    if order is None:
        return gathered.copy_(values[rows])
    np.take(values.numpy(), order[rows], axis=0, out=gathered.numpy(), mode="clip")
    return gathered


class StepLoader:
    """Exactly `batches` batches of a loader, from an absolute position, running on into the next epochs.

    Batch `i` of the loader's life is batch `i % len(loader)` of epoch `i // len(loader)`. Batches before the position
    are never read. An iteration can stop anywhere and be resumed: `state_dict` holds the position after the last
    batch that was handed out.

    Args:
        loader: what is iterated; its own epoch counter is neither read nor changed.
        start_batch: absolute number of the first batch.
        batches: how many.

    Raises:
        ConfigurationError: a negative start, or less than one batch.
        MissingSplitError: the loader has no rows.
    """

    def __init__(self, loader: BaseLoader, start_batch: int, batches: int) -> None:
        if start_batch < 0 or batches < 1:
            raise ConfigurationError(
                f"start_batch is {start_batch!r} and batches {batches!r}, wanted at least 0 and at least 1"
            )
        if not len(loader):
            raise MissingSplitError("the loader has no rows, so it has no batches to step through")
        self.loader = loader
        self.start_batch = start_batch
        self.batches = batches
        self._position = start_batch
        self._next_start = start_batch

    @property
    def batch_size(self) -> int:
        """Rows of a batch."""
        return self.loader.batch_size

    @property
    def position(self) -> int:
        """Absolute number of the batch that comes next."""
        return self._position

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        position, end, size = self._next_start, self.start_batch + self.batches, len(self.loader)
        self._position, self._next_start = position, self.start_batch
        while position < end:
            epoch, first = divmod(position, size)
            for batch in self.loader.read_batches(epoch, first, min(size, first + end - position)):
                position += 1
                self._position = position
                yield batch

    def starts_pass(self, index: int) -> bool:
        """Whether batch `index` (from 0) of this loader is the first one of an epoch."""
        return (self.start_batch + index) % len(self.loader) == 0

    def state_dict(self) -> dict[str, int]:
        """Where an interrupted iteration goes on."""
        return {"position": self._position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Let the next iteration start where another one stopped.

        Raises:
            ConfigurationError: the position is not within this loader's batches.
        """
        position, end = state["position"], self.start_batch + self.batches
        if not self.start_batch <= position <= end:
            raise ConfigurationError(f"position is {position}, wanted one from {self.start_batch} to {end}")
        self._position = self._next_start = position
