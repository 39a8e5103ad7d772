"""How far a fit is within its epoch; knows no Prefect, so that a model's own process can tell it too."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from tasks.progress import tell


class BatchProgress(pl.Callback):
    """Tells how many batches of the fit are done, at most a hundred times an epoch."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Lightning's hook after each batch."""
        batches = int(trainer.num_training_batches)
        if batch_idx % max(1, batches // 100) == 0 or batch_idx + 1 == batches:
            tell(
                "batch",
                {
                    "epoch": trainer.current_epoch + 1,
                    "epochs": trainer.max_epochs,
                    "batch": batch_idx + 1,
                    "batches": batches,
                },
            )
