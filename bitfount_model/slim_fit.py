"""One fit without a Trainer: what `training.train` computes for a plain model, in less time; between loaders and parameters.

Lightning's start and end of a fit take some milliseconds, longer than a round of a few batches. A model that only says what a
batch's loss is does not need them. `reasons_for_trainer` tells which models do: those are trained by Lightning, with all hooks.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bitfount_model.batch_progress import BatchCount, OnBatch
from bitfount_model.data import BaseLoader, StepLoader
from bitfount_model.epoch_end_hooks import StepOutputs, rows_of
from bitfount_model.errors import TrainingError
from bitfount_model.fit_course import EpochRecord, OpenEpoch
from bitfount_model.metrics import MetricCollection
from bitfount_model.mixins import PyTorchClassifierMixIn, PyTorchRegressorMixIn
from bitfount_model.model import PyTorchBitfountModel
from bitfount_model.param_clipping import clip_batch_norm
from bitfount_model.reporting import as_number, flatten_outputs
from bitfount_model.seeding import derive_seed, has_accelerator, seed_generators

HONOURED = frozenset(
    {
        "forward",
        "training_step",
        "configure_optimizers",
        "validation_step",
        "validation_epoch_end",
        "test_step",
        "log",
        "log_dict",
    }
)
"""What of Lightning's module a model may override and still be trained without a Trainer: the steps are called; what is logged is
dropped."""

OTHER_STAGES = ("test_", "predict_", "on_test", "on_predict")
"""How methods begin that do not take part in a fit."""

OF_THE_TRAINER = frozenset(
    {
        "trainer",
        "current_epoch",
        "global_step",
        "optimizers",
        "lr_schedulers",
        "manual_backward",
        "automatic_optimization",
        "all_gather",
    }
)
"""Attributes that mean something only while a Trainer runs the model."""


@lru_cache(maxsize=64)
def reasons_for_trainer(cls: type[PyTorchBitfountModel]) -> tuple[str, ...]:
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
    hooks |= {"trainer_init", "train_dataloader", "val_dataloader", "training_epoch_end"}
    overridden = sorted(name for name in given & hooks if not name.startswith((*OTHER_STAGES, "_")))
    used = sorted(
        {name for base in own for value in vars(base).values() for name in names_in(value)}
        & (OF_THE_TRAINER - set(overridden))
    )
    return (*(f"it overrides {name}" for name in overridden), *(f"it uses self.{name}" for name in used))


def names_in(value: Any) -> Iterator[str]:
    """The names of attributes and globals that a function uses, and those of functions within it or below its decorators.

    Of anything else none, nor of functions elsewhere that it calls.
    """
    function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    if not isinstance(function, types.FunctionType):
        return
    yield from _names_of_code(function.__code__)
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a cell that holds nothing yet
            if cell.cell_contents is not function:
                yield from names_in(cell.cell_contents)


def _names_of_code(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_of_code(constant)


def slim_optimizer(model: PyTorchBitfountModel) -> Optimizer | None:
    """A new optimiser for `fit_slim`.

    Args:
        model: initialised.

    Returns:
        None where Lightning has to train: the class asks for it, there is a GPU, the rows are no table of tensors, or
        `configure_optimizers` gives a scheduler or several optimisers.
    """
    if has_accelerator() or not isinstance(model.train_dataloader(), BaseLoader) or reasons_for_trainer(type(model)):
        return None
    return only_optimizer(model.configure_optimizers())


def only_optimizer(configured: Any) -> Optimizer | None:
    """The optimiser that `configure_optimizers` returned, if it is one without a scheduler."""
    if isinstance(configured, list | tuple) and len(configured) == 1:
        return only_optimizer(configured[0])
    return configured if isinstance(configured, Optimizer) else None


def fit_slim(
    model: PyTorchBitfountModel,
    optimizer: Optimizer,
    *,
    mu: float = 0.0,
    metrics: MetricCollection | None = None,
    on_batch: OnBatch | None = None,
) -> list[EpochRecord]:
    """Trains a model on its training rows from its `position` on, for its `epochs` or `steps`, with the bits of `training.train`.

    The caller runs it under `seeding.seeded`: the global generators are left as the last pass left them. Whether the parameters
    are finite is for the caller to check.

    Args:
        model: initialised, on the CPU; trained in place.
        optimizer: a new one, as `slim_optimizer` gives it.
        mu: strength of FedProx's pull to the parameters at the start; 0 is none.
        metrics: computed on the validation rows at the end of each epoch, beside what `validation_step` returns.
        on_batch: is told of the progress.

    Returns:
        One record for each epoch.

    Raises:
        TrainingError: a training step returned something without a loss.
    """
    start = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad] if mu else []
    records: list[EpochRecord] = []
    epochs = 1 if model.steps is not None else model.epochs or 1
    with unlogged(model):
        for batches in epochs_of(model):
            epoch = OpenEpoch(stats_before=len(model.val_stats))
            for index, batch in enumerate(batches):
                if index == 0 or (isinstance(batches, StepLoader) and batches.starts_pass(index)):
                    _seed_pass(model)
                epoch.add(_step(model, optimizer, batch, index, start, mu), rows_of(batch))
                model.position += 1
                count = BatchCount(len(records) + 1, epochs, index + 1, len(batches))
                if on_batch is not None and count.is_told:
                    on_batch(count)
            validate(model, metrics)
            if model.param_clipping is not None:
                clip_batch_norm(model, model.param_clipping)
            records.append(_record(model, epoch, len(records) + 1, epochs))
    return records


def epochs_of(model: PyTorchBitfountModel) -> Iterator[BaseLoader | StepLoader]:
    """The batches of each epoch of a fit; a fit in steps is one epoch."""
    loader: BaseLoader = model.train_dataloader()
    if model.steps is not None:
        yield StepLoader(loader, model.position, model.steps)
        return
    for _ in range(model.epochs or 1):
        loader.set_epoch(model.position // len(loader))
        yield loader


def validate(model: PyTorchBitfountModel, metrics: MetricCollection | None) -> None:
    """Validates as a fit does after an epoch; the values join `val_stats`.

    Args:
        model: with the parameters to validate; they, and what is in training mode, are left as they are.
        metrics: beside what `validation_step` returns.
    """
    batches = model.val_dataloader()
    if not len(batches):
        return
    outputs, predictions, stats_before = StepOutputs(), StepOutputs(), len(model.val_stats)
    with evaluating(model), torch.inference_mode():
        for index, batch in enumerate(batches):
            output = model.validation_step(batch, index)
            if output is not None:
                outputs.add(output, rows_of(batch))
            if metrics is not None:
                predictions.add(_predictions(model, batch, index, output), rows_of(batch))
        if outputs:
            model.validation_epoch_end(outputs)
    if metrics is None or not predictions:
        return
    preds, targets = flatten_outputs(predictions)
    computed = metrics.compute(targets, preds)
    if len(model.val_stats) == stats_before:
        model.val_stats.append({})  # the model's own validation_epoch_end keeps none
    model.val_stats[-1].update(computed)


def _predictions(model: PyTorchBitfountModel, batch: Any, index: int, output: Any) -> Any:
    """What metrics need of one batch."""
    if not (isinstance(output, Mapping) and "predictions" in output):
        output = model.test_step(batch, index)
    if isinstance(output, Mapping):
        return {name: output[name] for name in ("predictions", "targets") if name in output}
    return output


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switches dropout and the like off; each part of the model is as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def unlogged(model: PyTorchBitfountModel) -> Iterator[None]:
    """Drops what a model logs where no Trainer is there to take it; what it prints is printed."""
    instead = {"log": _drop, "log_dict": _drop, "print": print}
    model.__dict__.update(instead)
    try:
        yield
    finally:
        for name in instead:
            del model.__dict__[name]


def _drop(*_: Any, **__: Any) -> None:
    """Takes what is logged."""


def _step(
    model: PyTorchBitfountModel,
    optimizer: Optimizer,
    batch: Any,
    index: int,
    start: Iterable[tuple[nn.Parameter, Tensor]],
    mu: float,
) -> Tensor | None:
    """One batch; as in Lightning, all of it is the optimiser's closure. Gives the loss, detached; None for a batch left out."""
    losses: list[Tensor | None] = []

    def closure() -> Tensor | None:
        loss = _loss_of(model.training_step(batch, index))
        optimizer.zero_grad()
        losses.append(None if loss is None else loss.detach())
        if loss is None:
            return None
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter, before in start:
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - before, alpha=mu)
        return losses[-1]

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[arg-type]
    return losses[-1]


def _loss_of(output: Any) -> Tensor | None:
    """The loss in what a training step returned; None where the step leaves its batch out."""
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if output is not None and not isinstance(loss, Tensor):
        raise TrainingError(
            f"training_step returned {type(output).__name__} without a loss; wanted the loss, or a dict that holds it as `loss`"
        )
    return loss


def _seed_pass(model: PyTorchBitfountModel) -> None:
    if model.seed is not None:
        seed_generators(derive_seed(model.seed, "training", model.position))


def _record(model: PyTorchBitfountModel, epoch: OpenEpoch, number: int, epochs: int) -> EpochRecord:
    """What the epoch left behind."""
    stats = model.val_stats[epoch.stats_before :]
    return EpochRecord(
        epoch=number,
        epochs=epochs,
        rows=epoch.rows,
        train_loss=None if epoch.loss is None else float(epoch.loss) / epoch.loss_rows,
        val_stats={name: as_number(name, value) for name, value in stats[-1].items()} if stats else {},
    )
