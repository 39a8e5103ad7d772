"""Small models and tables that the tests of the model class share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitfount_model import (
    BitfountSchema,
    DataFrameSource,
    DataStructure,
    PyTorchBitfountModel,
    PyTorchClassifierMixIn,
    PyTorchRegressorMixIn,
)
from bitfount_model.data import TabularDataLoader

FEATURES = 5


def table(rows: int = 120, classes: int = 2, seed: int = 0) -> pd.DataFrame:
    """Normal features `f0 ...`, a class that depends on them, and a number that does."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(rows, FEATURES))
    score = features[:, 0] - 2 * features[:, 1] + generator.normal(scale=0.3, size=rows)
    ranks = score.argsort().argsort()
    frame = pd.DataFrame(features, columns=[f"f{number}" for number in range(FEATURES)])
    return frame.assign(target=ranks * classes // rows, amount=3 * score + 10)


def schema_of(frame: pd.DataFrame, categorical: Sequence[str] = ("target",)) -> BitfountSchema:
    """The schema of a table, with these columns as categories."""
    schema = BitfountSchema("table")
    schema.generate_full_schema(DataFrameSource(frame), force_stypes={"categorical": list(categorical)})
    return schema


class Steps:
    """The steps of a network with one output a class, shared by the models below."""

    learning_rate: float
    hidden: int
    dropout: float
    datastructure: DataStructure
    _model: Any
    parameters: Any

    def loss(self, x: Any, y: Tensor) -> Tensor:
        return F.cross_entropy(self(x), y)

    def probabilities(self, x: Any) -> Tensor:
        return F.softmax(self(x), dim=1)

    def network(self, outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Linear(self.datastructure.input_size, self.hidden),
            nn.ReLU(),
            nn.Dropout(self.dropout),
            nn.Linear(self.hidden, outputs),
        )

    def forward(self, x: Any) -> Tensor:
        x, _sup = x
        return self._model(x)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return self.loss(x, y)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return {"validation_loss": self.loss(x, y)}

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return {"predictions": self.probabilities(x), "targets": y}


class Model(Steps, PyTorchBitfountModel):
    """A network of one hidden layer; classifiers and regressors add their mix-in."""

    def __init__(self, learning_rate: float = 0.01, hidden: int = 8, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.learning_rate = learning_rate
        self.hidden = hidden
        self.dropout = dropout


class Classifier(PyTorchClassifierMixIn, Model):
    """One class a row."""

    def create_model(self) -> nn.Module:
        return self.network(self.n_classes)


class MultiLabelClassifier(Classifier):
    """Several labels a row, each there or not."""

    def loss(self, x: Any, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(self(x), y)

    def probabilities(self, x: Any) -> Tensor:
        return torch.sigmoid(self(x))


class Regressor(PyTorchRegressorMixIn, Model):
    """One number a row, or several."""

    def create_model(self) -> nn.Module:
        return self.network(len(self.datastructure.targets))

    def loss(self, x: Any, y: Tensor) -> Tensor:
        return F.mse_loss(self.probabilities(x), y)

    def probabilities(self, x: Any) -> Tensor:
        return self(x).squeeze(1) if len(self.datastructure.targets) == 1 else self(x)


def classifier(cls: type[Any] = Classifier, frame: pd.DataFrame | None = None, **kwargs: Any) -> Any:
    """A classifier of `target`, not yet initialised; `amount` is no feature."""
    given = {"datastructure": DataStructure(target="target", ignore_cols=["amount"]), "seed": 1, **kwargs}
    return cls(schema=schema_of(table() if frame is None else frame), **given)


def fitted(cls: type[Any] = Classifier, frame: pd.DataFrame | None = None, **kwargs: Any) -> Any:
    """A classifier that was fitted on the table."""
    frame = table() if frame is None else frame
    model = classifier(cls, frame, **kwargs)
    model.fit(DataFrameSource(frame))
    return model


def quiet_trainer(**options: Any) -> pl.Trainer:
    """A Trainer as users make them, without files, bars and tables."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(**{**quiet, "enable_model_summary": False, "accelerator": "cpu", **options})


class SpyLoader(TabularDataLoader):
    """A training loader that writes down which batches were read."""

    def __init__(self, loader: TabularDataLoader) -> None:
        order = loader.order
        super().__init__(
            loader.features, loader.support, loader.targets, loader.keys, loader.batch_size, order.shuffle, order.seed
        )
        self.read: list[tuple[int, int]] = []

    def read_batches(self, epoch: int, start: int, stop: int) -> Iterator[Any]:
        """Batches of one epoch, each noted as (epoch, number)."""
        for number, batch in enumerate(super().read_batches(epoch, start, stop), start):
            self.read.append((epoch, number))
            yield batch


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    """Whether parameters are equal to the last bit."""
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
