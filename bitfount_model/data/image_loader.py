"""Rows with image columns -> batches of tabular features and images, read while the model trains."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bitfount_model.data.dataloaders import Batch, HeldLoader
from bitfount_model.data.images import Transformation, read_image
from bitfount_model.errors import ConfigurationError, DataError


class ImageDataLoader(HeldLoader):
    """Batches of a table with image columns; images are read from their files batch by batch.

    Random transformations depend on (seed, epoch, row) alone, so neither the number of workers nor where an iteration
    starts changes a batch. No global random state is touched.

    Args:
        features: `(rows, width)` float32.
        images: column -> path or bytes of each row's image.
        transformations: column -> what is done with each image.
        support: `(rows, 2)` float32.
        targets: `(rows,)` or `(rows, targets)`.
        keys: one key a row, or None.
        batch_size: rows of a batch.
        shuffle: whether each epoch has an order of its own.
        seed: of the orders and random transformations; None draws one.
        num_workers: processes that read images; 0 reads them in this one.

    Raises:
        ConfigurationError: lengths differ, or a size is not a positive integer.
    """

    def __init__(
        self,
        features: Tensor,
        images: Mapping[str, Sequence[Any]],
        transformations: Mapping[str, Sequence[Transformation]],
        support: Tensor,
        targets: Tensor,
        keys: list[Any] | None,
        batch_size: int,
        shuffle: bool = False,
        seed: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(targets, keys, batch_size, shuffle, seed)
        lengths = {len(features), len(support), len(targets), *(len(column) for column in images.values())}
        if len(lengths) > 1:
            raise ConfigurationError(
                f"features, images, support and targets have {sorted(lengths)} rows, wanted as many"
            )
        if isinstance(num_workers, bool) or not isinstance(num_workers, int) or num_workers < 0:
            raise ConfigurationError(f"num_workers is {num_workers!r}, wanted an integer of at least 0")
        self.features = features
        self.support = support
        self.images = {column: list(values) for column, values in images.items()}
        self.transformations = {column: tuple(transformations.get(column, ())) for column in images}
        self.num_workers = num_workers

    def read_batches(self, epoch: int, start: int, stop: int) -> Iterator[Batch]:
        """Batches `start` to `stop` (excluded) of one epoch; see `BaseLoader`.

        Raises:
            DataError: an image cannot be read, or the images of a batch differ in shape; names file and row.
        """
        order = self.order.of_epoch(epoch, self.rows)
        positions = np.arange(self.rows) if order is None else order
        size = self.batch_size
        batches = [positions[number * size : (number + 1) * size].tolist() for number in range(start, stop)]
        loaded = DataLoader(
            _Images(self, epoch),
            sampler=batches,
            batch_size=None,
            num_workers=self.num_workers,
            multiprocessing_context=worker_context() if self.num_workers else None,
            generator=torch.Generator().manual_seed(0),  # else torch would draw from the global one
        )
        for rows, images in zip(batches, loaded, strict=True):
            if isinstance(images, str):
                raise DataError(images)
            chosen = torch.tensor(rows)
            yield [self.features[chosen], *images, self.support[chosen]], self.targets[chosen]

    def image_batch(self, column: str, rows: Sequence[int], epoch: int) -> Tensor:
        """Images of some rows, `(rows, channels, height, width)` float32.

        Raises:
            DataError: see `read_batches`.
        """
        arrays = [self._image(column, row, epoch) for row in rows]
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            raise DataError(
                f"image column {column!r}: images of one batch have the shapes (height, width, channels) "
                f"{sorted(shapes)}, wanted one; add Resize, and Grayscale or ToRGB, to batch_transforms"
            )
        return torch.from_numpy(np.ascontiguousarray(np.stack(arrays).transpose(0, 3, 1, 2), dtype=np.float32))

    def _image(self, column: str, row: int, epoch: int) -> np.ndarray:
        generator = np.random.default_rng([self.order.seed, epoch, row])
        try:
            image = read_image(self.images[column][row])
            for transformation in self.transformations[column]:
                image = transformation(image, generator)
        except DataError as error:
            key = row if self.keys is None else self.keys[row]
            raise DataError(f"image column {column!r}, row {key!r}: {error}") from error
        return image


def worker_context() -> Any:
    """How worker processes start: from a process of their own that has imported this module and runs no threads.

    A worker that is forked from a process with threads inherits their locks and exit handlers and may hang or fail; Python itself
    forks no longer by default from 3.14 on. The price is some seconds at the first epoch.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


class _Images(Dataset[Any]):
    """The images of a list of rows, one tensor a column; an error comes back as its text, as a worker would bury it."""

    def __init__(self, loader: ImageDataLoader, epoch: int) -> None:
        self.loader = loader
        self.epoch = epoch

    def __getitem__(self, rows: Any) -> list[Tensor] | str:
        try:
            return [self.loader.image_batch(column, rows, self.epoch) for column in self.loader.images]
        except DataError as error:
            return str(error)
