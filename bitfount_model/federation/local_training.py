"""One round's training at a pod or a client: without a Trainer where the model is plain, else by Lightning, with the same bits."""

from __future__ import annotations

from collections.abc import Mapping

import pytorch_lightning as pl
import torch
from torch import Tensor

from bitfount_model.batch_progress import BatchProgress, OnBatch
from bitfount_model.fit_course import EpochRecord
from bitfount_model.metrics import Metric, MetricCollection
from bitfount_model.model import PyTorchBitfountModel
from bitfount_model.seeding import seeded
from bitfount_model.slim_fit import fit_slim, slim_optimizer
from bitfount_model.training import check_finite_parameters


def train_locally(
    model: PyTorchBitfountModel,
    *,
    metrics: Mapping[str, Metric] | None = None,
    mu: float = 0.0,
    on_batch: OnBatch | None = None,
) -> list[EpochRecord]:
    """Trains a model from its parameters and its position on, for its `epochs` or `steps`, with a new optimiser.

    Args:
        model: initialised; trained in place.
        metrics: computed on the validation rows at the end of each epoch, beside what `validation_step` returns.
        mu: strength of FedProx's proximal term; 0 is none.
        on_batch: is told of the progress.

    Returns:
        One record for each epoch.

    Raises:
        DivergedError: the parameters are not finite after training.
        TrainingError: a training step returned something without a loss.
    """
    with seeded(model.seed_for("training")):
        optimizer = slim_optimizer(model)
        if optimizer is not None:
            collection = None if metrics is None else MetricCollection.create_from_model(model, metrics)
            model.metrics = collection or model.metrics
            records = fit_slim(model, optimizer, mu=mu, metrics=collection, on_batch=on_batch)
            check_finite_parameters(model)
            return records
    callbacks = [*([ProximalTerm(mu)] if mu else []), *([BatchProgress(on_batch)] if on_batch else [])]
    return model.fit_locally(None, metrics=metrics, callbacks=callbacks)


class ProximalTerm(pl.Callback):
    """FedProx: the gradient of `mu / 2 * |w - w_global|^2` joins the loss's before each optimiser step.

    Args:
        mu: strength, > 0.
    """

    def __init__(self, mu: float) -> None:
        self.mu = mu
        self._start: dict[str, Tensor] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remembers the global parameters, on the device that trains."""
        self._start = {name: p.detach().clone() for name, p in pl_module.named_parameters() if p.requires_grad}

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Adds the term; gradient clipping comes after it."""
        for name, parameter in pl_module.named_parameters():
            if parameter.grad is not None and name in self._start:
                parameter.grad.add_(parameter.detach() - self._start[name], alpha=self.mu)
