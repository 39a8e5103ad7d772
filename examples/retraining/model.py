"""A small classifier of tumours: one file, one class."""

import torch
from torch import nn
from torch.nn import functional as F

from bitfount_model import PyTorchBitfountModel, PyTorchClassifierMixIn


class TumourClassifier(PyTorchClassifierMixIn, PyTorchBitfountModel):
    """Two hidden layers over the table's columns."""

    def __init__(self, learning_rate: float = 0.01, hidden: int = 32, **kwargs):
        super().__init__(**kwargs)
        self.learning_rate = learning_rate
        self.hidden = hidden

    def create_model(self):
        return nn.Sequential(
            nn.Linear(self.datastructure.input_size, self.hidden),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(self.hidden, self.n_classes),
        )

    def forward(self, x):
        x, sup = x
        return self._model(x)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        return {"validation_loss": F.cross_entropy(self(x), y)}

    def test_step(self, batch, batch_idx):
        x, y = batch
        return {"predictions": F.softmax(self(x), dim=1), "targets": y}
