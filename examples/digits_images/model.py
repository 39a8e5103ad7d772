"""A small convolutional network that reads handwritten digits: one file, one class."""

import torch
from torch import nn
from torch.nn import functional as F

from bitfount_model import PyTorchBitfountModel, PyTorchClassifierMixIn


class DigitReader(PyTorchClassifierMixIn, PyTorchBitfountModel):
    """Two convolutions over a grey image of any size, then an average over the picture's quarters."""

    def __init__(self, learning_rate=0.005, channels=16, **kwargs):
        super().__init__(**kwargs)
        self.learning_rate = learning_rate
        self.channels = channels

    def create_model(self):
        return nn.Sequential(
            nn.Conv2d(1, self.channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(self.channels),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(self.channels, 2 * self.channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(2 * self.channels),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * 2 * self.channels, self.n_classes),
        )

    def forward(self, x):
        # With image columns a batch's x is [table, image, support]; this table has no other columns, so it is empty.
        table, image, sup = x
        return self._model(image)

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
