"""Progression of diabetes after a year, as a number: one file, one class."""

import torch
from torch import nn
from torch.nn import functional as F

from bitfount_model import PyTorchBitfountModel, PyTorchRegressorMixIn


class DiseaseProgression(PyTorchRegressorMixIn, PyTorchBitfountModel):
    """One hidden layer; the network works near 0 +- 1, its predictions are in the target's own unit.

    The columns arrive normalised, the target does not: it runs from 25 to 346. A network that had to reach 150 from
    its starting point near 0 would spend most of its training on that.
    """

    def __init__(self, learning_rate=0.003, hidden=16, weight_decay=0.1, centre=150.0, spread=75.0, **kwargs):
        super().__init__(**kwargs)
        self.learning_rate = learning_rate
        self.hidden = hidden
        self.weight_decay = weight_decay
        self.centre = centre
        self.spread = spread

    def create_model(self):
        return nn.Sequential(
            nn.Linear(self.datastructure.input_size, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, 1),
        )

    def forward(self, x):
        x, sup = x
        # (rows, 1) -> (rows,), as the targets are.
        return self._model(x).squeeze(1) * self.spread + self.centre

    def loss(self, batch):
        x, y = batch
        return F.mse_loss(self(x) / self.spread, y / self.spread)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        return {"validation_loss": self.loss(batch)}

    def test_step(self, batch, batch_idx):
        x, y = batch
        return {"predictions": self(x), "targets": y}
