"""Between the steps of an epoch and the model's `validation_epoch_end` and `test_epoch_end`.

Lightning 2 refuses a module on which one of its former epoch-end hooks is callable. The API has two of them as public
methods, which users override and call. So, whenever a Trainer takes a model up (whoever made that Trainer), two things
happen: the hooks are shadowed on the instance until Lightning has looked, and a callback joins the Trainer that keeps the
steps' outputs and hands them to the methods when the epoch ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning.utilities.data import extract_batch_size

LEGACY_HOOKS = ("training_epoch_end", "validation_epoch_end", "test_epoch_end")


class StepOutputs(list[Any]):
    """The outputs of an epoch's steps, in order, that also know how many rows each step saw.

    Attributes:
        rows: rows of each step's batch, as many as there are outputs.
    """

    def __init__(self, outputs: Sequence[Any] = (), rows: Sequence[int] = ()) -> None:
        super().__init__(outputs)
        self.rows = list(rows)

    def add(self, output: Any, rows: int) -> None:
        """Keeps one step's output, detached and on the CPU, so that no graph and no device memory is held."""
        self.append(apply_to_collection(output, torch.Tensor, lambda t: t.detach().cpu()))
        self.rows.append(rows)


def rows_of(batch: Any) -> int:
    """The number of rows of a batch: that of its targets for `(x, y)`, else of the first tensor found."""
    if isinstance(batch, list | tuple) and len(batch) > 1 and isinstance(batch[1], torch.Tensor) and batch[1].ndim:
        return len(batch[1])
    return extract_batch_size(batch)


def rows_of_each(outputs: Sequence[Any]) -> list[int]:
    """The rows that each step saw; 1 for every step where the outputs do not say, as a plain list or a changed one."""
    if isinstance(outputs, StepOutputs) and len(outputs.rows) == len(outputs):
        return outputs.rows
    return [1] * len(outputs)


def shadow_hooks(module: pl.LightningModule) -> None:
    """Hides the legacy hooks on this instance; the class and `super()` calls are not touched."""
    for name in LEGACY_HOOKS:
        if callable(getattr(type(module), name, None)):
            module.__dict__[name] = None


def unshadow_hooks(module: pl.LightningModule) -> None:
    """Shows the legacy hooks again."""
    for name in LEGACY_HOOKS:
        if module.__dict__.get(name, False) is None:
            del module.__dict__[name]


def call_hook(module: pl.LightningModule, name: str, outputs: StepOutputs) -> None:
    """Calls a legacy hook, if the module has it."""
    hook = getattr(module, name, None)
    if callable(hook):
        hook(outputs)


class EpochEndHooks(pl.Callback):
    """Collects what the steps return and calls the model's epoch-end methods with it."""

    def __init__(self) -> None:
        self.validation_outputs = StepOutputs()
        self.test_outputs = StepOutputs()
        self.training_outputs = StepOutputs()
        self._modes: dict[torch.nn.Module, bool] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Lightning has looked: the methods may be seen again."""
        unshadow_hooks(pl_module)
        self._modes = {module: module.training for module in pl_module.modules()}

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._modes = {}

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """A run that broke off holds neither shadows nor outputs, and its dropout is not off because it was validating."""
        unshadow_hooks(pl_module)
        self.validation_outputs, self.test_outputs = StepOutputs(), StepOutputs()
        self.training_outputs = StepOutputs()
        for module, training in self._modes.items():
            module.training = training
        self._modes = {}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.training_outputs = StepOutputs()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if callable(getattr(pl_module, "training_epoch_end", None)):
            self.training_outputs.add(outputs, rows_of(batch))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        outputs, self.training_outputs = self.training_outputs, StepOutputs()
        call_hook(pl_module, "training_epoch_end", outputs)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validation_outputs = StepOutputs()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if outputs is not None and not trainer.sanity_checking:
            self.validation_outputs.add(outputs, rows_of(batch))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        outputs, self.validation_outputs = self.validation_outputs, StepOutputs()
        if outputs:
            call_hook(pl_module, "validation_epoch_end", outputs)

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.test_outputs = StepOutputs()

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if outputs is not None:
            self.test_outputs.add(outputs, rows_of(batch))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        outputs, self.test_outputs = self.test_outputs, StepOutputs()
        call_hook(pl_module, "test_epoch_end", outputs)


class LegacyEpochEndMixIn(pl.LightningModule):
    """A LightningModule whose legacy epoch-end methods work under Lightning 2, with any Trainer."""

    @property
    def trainer(self) -> pl.Trainer:
        """The Trainer that runs this module."""
        return super().trainer

    @trainer.setter
    def trainer(self, trainer: pl.Trainer | None) -> None:
        pl.LightningModule.trainer.fset(self, trainer)  # type: ignore[attr-defined]
        if trainer is None:
            return
        shadow_hooks(self)
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, EpochEndHooks) for callback in callbacks):
            # First, so that what the methods log is there for every other callback.
            callbacks.insert(0, EpochEndHooks())
