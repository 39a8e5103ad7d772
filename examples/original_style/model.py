"""A model as the tutorials of Bitfount write it; only the import line is another."""

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from bitfount_model import PyTorchBitfountModel, PyTorchClassifierMixIn


class MyCustomModel(PyTorchClassifierMixIn, PyTorchBitfountModel):
    """A feed-forward classifier that uses the hooks of the original."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.learning_rate = 0.001

    def create_model(self):
        return nn.Sequential(
            nn.Linear(self.datastructure.input_size, 500),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(500, self.n_classes),
        )

    def forward(self, x):
        x, sup = x
        return self._model(x.float())

    def trainer_init(self):
        return pl.Trainer(
            max_epochs=self.epochs or -1,
            max_steps=self.steps or -1,
            gradient_clip_val=1.0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=50, gamma=0.9)
        return [optimizer], [scheduler]

    def training_step(self, batch, batch_idx):
        # Never true here, as batches that were trained on are not delivered again; harmless to keep.
        if self.skip_training_batch(batch_idx):
            return None
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        accuracy = (logits.argmax(dim=1) == y).float().mean()
        return {"val_loss": F.cross_entropy(logits, y), "val_acc": accuracy}

    def validation_epoch_end(self, outputs):
        super().validation_epoch_end(outputs)
        # val_stats[-1] now holds this epoch's averages.
        self.val_stats[-1]["val_error"] = 1 - self.val_stats[-1]["val_acc"]

    def test_step(self, batch, batch_idx):
        x, y = batch
        return {"predictions": F.softmax(self(x), dim=1), "targets": y}
