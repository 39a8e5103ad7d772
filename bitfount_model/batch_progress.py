"""How far a fit is within its epoch, for whoever watches: told at most a hundred times an epoch, with and without a Trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl


@dataclass(frozen=True)
class BatchCount:
    """Batches of a fit that are done.

    Attributes:
        epoch: counted from 1.
        epochs: of the fit.
        batch: batches of this epoch that are done.
        batches: of the epoch.
    """

    epoch: int
    epochs: int
    batch: int
    batches: int

    @property
    def is_told(self) -> bool:
        """Whether it is one of the hundred, or the epoch's last."""
        return (self.batch - 1) % max(1, -(-self.batches // 100)) == 0 or self.batch == self.batches


OnBatch = Callable[[BatchCount], None]


class BatchProgress(pl.Callback):
    """Tells the progress of a fit that Lightning runs.

    Args:
        on_batch: is told.
    """

    def __init__(self, on_batch: OnBatch) -> None:
        self._on_batch = on_batch

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Lightning's hook after each batch."""
        count = BatchCount(
            trainer.current_epoch + 1, int(trainer.max_epochs or 1), batch_idx + 1, int(trainer.num_training_batches)
        )
        if count.is_told:
            self._on_batch(count)
