"""The model of all benchmarks, as a user would write it: jobs take this file, and the floors train the same network."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from bitfount_model import PyTorchBitfountModel, PyTorchClassifierMixIn


def network(inputs: int, hidden: Sequence[int], classes: int) -> nn.Sequential:
    """Fully connected layers with ReLU between them."""
    widths = [inputs, *hidden, classes]
    layers = [layer for pair in itertools.pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def optimiser(parameters: Iterable[nn.Parameter], momentum: float = 0.9) -> torch.optim.Optimizer:
    """The same for floors and jobs."""
    return torch.optim.SGD(parameters, lr=0.1, momentum=momentum)


class Classifier(PyTorchClassifierMixIn, PyTorchBitfountModel):
    """A classifier of rows.

    Args:
        hidden: widths of the layers between.
        momentum: of the optimiser.
    """

    def __init__(self, hidden, momentum=0.9, **kwargs):
        super().__init__(**kwargs)
        self.hidden = hidden
        self.momentum = momentum

    def create_model(self):
        return network(self.datastructure.input_size, self.hidden, self.n_classes)

    def forward(self, x):
        x, sup = x
        return self._model(x)

    def configure_optimizers(self):
        return optimiser(self.parameters(), momentum=self.momentum)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        return {"validation_loss": self.training_step(batch, batch_idx)}

    def test_step(self, batch, batch_idx):
        x, y = batch
        return {"predictions": F.softmax(self(x), dim=1), "targets": y}
