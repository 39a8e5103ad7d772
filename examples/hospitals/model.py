"""A small classifier of tumours that three hospitals train together: one file, one class."""

import torch
from torch import nn
from torch.nn import functional as F

from bitfount_model import PyTorchBitfountModel, PyTorchClassifierMixIn


class TumourClassifier(PyTorchClassifierMixIn, PyTorchBitfountModel):
    """One hidden layer over the table's columns.

    No BatchNorm: its running averages would be each hospital's own, and hospitals here are unlike.
    """

    def __init__(self, learning_rate: float = 0.01, hidden: int = 16, weight_decay: float = 0.3, **kwargs):
        super().__init__(**kwargs)
        self.learning_rate = learning_rate
        self.hidden = hidden
        self.weight_decay = weight_decay

    def create_model(self):
        return nn.Sequential(
            nn.Linear(self.datastructure.input_size, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, self.n_classes),
        )

    def forward(self, x):
        x, sup = x
        return self._model(x)

    def configure_optimizers(self):
        # A pod makes it anew in each round, from the global weights.
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        return {"validation_loss": F.cross_entropy(self(x), y)}

    def test_step(self, batch, batch_idx):
        x, y = batch
        return {"predictions": F.softmax(self(x), dim=1), "targets": y}
