"""One fit without a Trainer: what `fit_locally` computes for a plain model, in less time; between loader and parameters.

Lightning's start and end of a fit take some milliseconds, longer than a small client's training. A model that only says what
a batch's loss is does not need them. `reasons_for_trainer` tells which models do: those are trained by Lightning, with all hooks.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bitfount_model.data import BaseLoader, StepLoader
from bitfount_model.epoch_end_hooks import rows_of
from bitfount_model.errors import TrainingError
from bitfount_model.fit_course import OpenEpoch
from bitfount_model.mixins import PyTorchClassifierMixIn, PyTorchRegressorMixIn
from bitfount_model.model import PyTorchBitfountModel
from bitfount_model.param_clipping import clip_batch_norm
from bitfount_model.seeding import derive_seed, seed_generators

HONOURED = frozenset({"forward", "training_step", "configure_optimizers", "log", "log_dict"})
"""What of Lightning's module a model may override and still be trained without a Trainer: the first three are called; what is
logged while training is dropped."""

OTHER_STAGES = ("validation_", "test_", "predict_", "val_", "on_validation", "on_test", "on_predict")
"""How methods begin that do not take part in training."""

OF_THE_TRAINER = frozenset(
    {
        "trainer",
        "current_epoch",
        "global_step",
        "optimizers",
        "lr_schedulers",
        "manual_backward",
        "automatic_optimization",
    }
)
"""Attributes that mean something only while a Trainer runs the model."""


def reasons_for_trainer(cls: type[PyTorchBitfountModel]) -> list[str]:
    """Why a model cannot be trained by `fit_slim`: hooks and attributes that Lightning's Trainer gives a meaning.

    Args:
        cls: the model's class.

    Returns:
        One clause a reason; empty for a plain model.
    """
    known = {*PyTorchBitfountModel.__mro__, PyTorchClassifierMixIn, PyTorchRegressorMixIn}
    own = [base for base in cls.__mro__ if base not in known]
    given = {name for base in own for name in vars(base)}
    hooks = set(dir(pl.LightningModule)) - set(dir(nn.Module)) - HONOURED
    hooks |= {"trainer_init", "train_dataloader", "training_epoch_end"}
    overridden = sorted(name for name in given & hooks if not name.startswith((*OTHER_STAGES, "_")))
    used = sorted(
        {name for base in own for value in vars(base).values() for name in names_in(value)}
        & (OF_THE_TRAINER - set(overridden))
    )
    return [f"it overrides {name}" for name in overridden] + [f"it uses self.{name}" for name in used]


def names_in(value: Any) -> Iterator[str]:
    """The names of attributes and globals that a function uses, those of functions within it too; none of anything else."""
    function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    if isinstance(function, types.FunctionType):
        yield from _names_of_code(function.__code__)


def _names_of_code(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_of_code(constant)


def only_optimizer(configured: Any) -> Optimizer | None:
    """The optimiser that `configure_optimizers` returned, if it is one without a scheduler."""
    if isinstance(configured, list | tuple) and len(configured) == 1:
        return only_optimizer(configured[0])
    return configured if isinstance(configured, Optimizer) else None


def fit_slim(model: PyTorchBitfountModel, optimizer: Optimizer, *, mu: float = 0.0) -> float | None:
    """Trains a model on its `train_dl` from its `position` on, for its `epochs` or `steps`, with the bits of `fit_locally`.

    Nothing is validated. The global generators are left as the last pass left them: see `seeding.seeded`.

    Args:
        model: initialised, on the CPU, with a seed; trained in place.
        optimizer: a new one.
        mu: strength of FedProx's pull to the parameters at the start; 0 is none.

    Returns:
        The mean training loss of the last epoch's rows.

    Raises:
        TrainingError: a training step returned no loss.
    """
    model.train()
    start = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad] if mu else []
    epoch = OpenEpoch(stats_before=0)
    with unlogged(model):
        for batches in epochs_of(model):
            epoch = OpenEpoch(stats_before=0)
            for index, batch in enumerate(batches):
                if index == 0 or (isinstance(batches, StepLoader) and batches.starts_pass(index)):
                    seed_generators(derive_seed(_seed_of(model), "training", model.position))
                epoch.add(_step(model, optimizer, batch, index, start, mu), rows_of(batch))
                model.position += 1
            if model.param_clipping is not None:
                clip_batch_norm(model, model.param_clipping)
    return None if epoch.loss is None else float(epoch.loss) / epoch.loss_rows


def epochs_of(model: PyTorchBitfountModel) -> Iterator[Iterable[Any]]:
    """The batches of each epoch of a fit; a fit in steps is one epoch."""
    loader: BaseLoader = model.train_dataloader()
    if model.steps is not None:
        yield StepLoader(loader, model.position, model.steps)
        return
    for _ in range(model.epochs or 1):
        loader.set_epoch(model.position // len(loader))
        yield loader


def _step(
    model: PyTorchBitfountModel,
    optimizer: Optimizer,
    batch: Any,
    index: int,
    start: list[tuple[nn.Parameter, Tensor]],
    mu: float,
) -> Tensor:
    """One batch; as in Lightning, all of it is the optimiser's closure. Gives the loss, detached."""
    losses: list[Tensor] = []

    def closure() -> Tensor:
        output = model.training_step(batch, index)
        loss = output.get("loss") if isinstance(output, dict) else output
        if not isinstance(loss, Tensor):
            raise TrainingError(
                f"training_step returned {type(output).__name__} without a loss; wanted the loss, or a dict that holds it as"
                " `loss`"
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter, before in start:
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - before, alpha=mu)
        losses.append(loss.detach())
        return losses[-1]

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[arg-type]
    return losses[-1]


@contextmanager
def unlogged(model: PyTorchBitfountModel) -> Iterator[None]:
    """Drops what a model logs where no Trainer is there to take it."""
    for name in ("log", "log_dict"):
        model.__dict__[name] = _drop
    try:
        yield
    finally:
        for name in ("log", "log_dict"):
            del model.__dict__[name]


def _drop(*_: Any, **__: Any) -> None:
    """Takes what is logged."""


def _seed_of(model: PyTorchBitfountModel) -> int:
    if model.seed is None:
        raise TrainingError("a simulated client needs a seed: its order of rows and dropout are functions of it")
    return model.seed
