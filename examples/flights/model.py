"""Whether a flight will arrive late, from what is known before it leaves: one file, one class."""

import torch
from torch import nn
from torch.nn import functional as F

from bitfount_model import PyTorchBitfountModel, PyTorchClassifierMixIn


class LateArrival(PyTorchClassifierMixIn, PyTorchBitfountModel):
    """Each categorical column has a table of learned vectors; they and the numbers go through two hidden layers.

    No BatchNorm: its running averages would be each airport's own.
    """

    def __init__(self, learning_rate: float = 0.002, width: int = 4, hidden: int = 32, dropout: float = 0.2, **kwargs):
        super().__init__(**kwargs)
        self.learning_rate = learning_rate
        self.width = width
        self.hidden = hidden
        self.dropout = dropout

    def create_model(self):
        columns = self.datastructure.feature_columns(self.schema)
        # The code after the last category stands for a missing value, and for one that no pod knew.
        sizes = [self.schema.get_categorical_feature_size(name) + 1 for name in columns.categorical]
        return nn.ModuleDict(
            {
                "vectors": nn.ModuleList(nn.Embedding(size, self.width) for size in sizes),
                "layers": nn.Sequential(
                    nn.Linear(len(columns.continuous) + len(sizes) * self.width, self.hidden),
                    nn.ReLU(),
                    nn.Dropout(self.dropout),
                    nn.Linear(self.hidden, self.hidden),
                    nn.ReLU(),
                    nn.Dropout(self.dropout),
                    nn.Linear(self.hidden, self.n_classes),
                ),
            }
        )

    def forward(self, x):
        x, sup = x
        # Numbers come first, then one code a categorical column.
        first = x.shape[1] - len(self._model["vectors"])
        codes = x[:, first:].long().unbind(dim=1)
        vectors = [table(code) for table, code in zip(self._model["vectors"], codes, strict=True)]
        return self._model["layers"](torch.cat([x[:, :first], *vectors], dim=1))

    def configure_optimizers(self):
        # A pod makes it anew in each round, from the global weights.
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
