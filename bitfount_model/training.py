"""From loaders to trained weights: the Trainer, how long one fit runs, and how a fit that broke off goes on.

A fit is a number of passes over the training rows (epochs) or an exact number of batches (steps). In steps, the batches continue
where the last fit stopped, in order, wrapping round at the end of the data. `position` counts the batches that the model has
trained on since it was initialised; order and randomness are functions of (seed, position), so a fit that was killed and goes on
from a checkpoint ends with the same bits as one that was not.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from bitfount_model.data import BaseLoader, StepLoader
from bitfount_model.epoch_end_hooks import EpochEndHooks, StepOutputs, rows_of
from bitfount_model.errors import MissingSplitError, StorageError, TrainingError
from bitfount_model.metrics import MetricCollection
from bitfount_model.param_clipping import clip_batch_norm
from bitfount_model.reporting import as_number, flatten_outputs
from bitfount_model.seeding import derive_seed, seed_generators, seeded

if TYPE_CHECKING:
    from bitfount_model.model import PyTorchBitfountModel


def slim_trainer(**options: Any) -> pl.Trainer:
    """A Trainer that only trains: no logger, checkpoints, summary or bar; on a GPU where there is one.

    Args:
        options: arguments of `pl.Trainer` that replace or join these.
    """
    defaults: dict[str, Any] = {
        "accelerator": "auto",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(**{**defaults, **options})


def is_reusable(trainer: pl.Trainer) -> bool:
    """Whether a Trainer can run another fit: it holds no logger and no callback that remembers the last one."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return not trainer.loggers and all(isinstance(callback, EpochEndHooks) for callback in callbacks)


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch of a fit left behind.

    Attributes:
        epoch: counted from 1 within the fit; a fit in steps is one epoch.
        epochs: how many the fit has.
        rows: training rows of this epoch.
        train_loss: mean of its batches' losses, each counted by its rows; None where the steps return none.
        val_stats: its last validation metrics; empty where it had no validation.
    """

    epoch: int
    epochs: int
    rows: int
    train_loss: float | None
    val_stats: dict[str, float]


@dataclass
class OpenEpoch:
    """The epoch that a fit is in.

    Attributes:
        stats_before: entries of the fit's `val_stats` when it began.
        rows: training rows so far.
        loss: sum over the batches of loss times rows, on the model's device; None before the first.
        loss_rows: rows of the batches that gave a loss.
    """

    stats_before: int
    rows: int = 0
    loss: torch.Tensor | None = None
    loss_rows: int = 0

    def add(self, loss: torch.Tensor | None, rows: int) -> None:
        """Counts one batch."""
        self.rows += rows
        if loss is not None:
            weighted = loss.detach().to(torch.promote_types(loss.dtype, torch.float32)) * rows
            self.loss = weighted if self.loss is None else self.loss + weighted
            self.loss_rows += rows


class ForeignSteps:
    """Exactly `batches` batches per iteration from a user's own loader, each continuing where the last one stopped."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader
        self.batches = 0
        self._rest: Iterator[Any] = iter(())

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.batches):
            try:
                batch = next(self._rest)
            except StopIteration:
                self._rest = iter(self.loader)
                batch = next(self._rest, None)
                if batch is None:
                    raise MissingSplitError("the model's own train_dataloader has no batches") from None
            yield batch


class LazyLoader:
    """A torch loader whose iteration begins with its first batch, so that what it draws then follows the pass's seed."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        yield from self.loader


class FitCourse(pl.Callback):
    """Keeps one fit's course: its position, its epochs' records, its checkpoints; part of Lightning's checkpoint itself."""

    def __init__(
        self,
        model: PyTorchBitfountModel,
        *,
        loader: Iterable[Any],
        epochs: int,
        metrics: MetricCollection | None,
        report: Callable[[EpochRecord], None] | None,
        checkpoint: Path | None,
    ) -> None:
        self.records: list[EpochRecord] = []
        self._model = model
        self._loader = loader
        self._epochs = epochs
        self._metrics = metrics
        self._report = report
        self._checkpoint = checkpoint
        self._open: OpenEpoch | None = None
        self._predictions = StepOutputs()
        self._stats_before = len(model.val_stats)
        self._stats_before_validation = 0
        self._saving = False

    @property
    def state_key(self) -> str:
        """The name under which Lightning keeps this callback's state."""
        return "bitfount_model.fit_course"

    def state_dict(self) -> dict[str, Any]:
        """What a continued fit needs beside Lightning's own state."""
        return {
            "position": self._model.position,
            "val_stats": [_numbers(stats) for stats in self._stats()],
            "records": [asdict(record) for record in self.records],
            "open_epoch": None if self._open is None else asdict(self._open),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up where the checkpoint was written."""
        self._model.position = state_dict["position"]
        if isinstance(self._loader, StepLoader):
            # Lightning restores loaders too, but not those that were already set up to estimate the number of steps.
            self._loader.load_state_dict({"position": state_dict["position"]})
        self._model.val_stats = [*self._model.val_stats[: self._stats_before], *state_dict["val_stats"]]
        self.records = [EpochRecord(**record) for record in state_dict["records"]]
        self._open = OpenEpoch(**state_dict["open_epoch"]) if state_dict["open_epoch"] else None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Makes Lightning's checkpoint one that a fit can go on from."""
        if self._saving:
            # What a model gave to `save_hyperparameters` may be any object, and is not needed: the model exists.
            checkpoint.pop(pl_module.CHECKPOINT_HYPER_PARAMS_KEY, None)
        if self._open is None:
            # Between two epochs Lightning has already announced the next one: the checkpoint says that it has not begun.
            progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]
            for count in (progress["total"], progress["current"]):
                count["ready"] = count["completed"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._seed_pass()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._close_epoch():
            self._save(trainer)
        if isinstance(self._loader, BaseLoader):
            self._loader.set_epoch(self._model.position // int(trainer.num_training_batches))
        self._open = OpenEpoch(stats_before=len(self._stats()))
        self._seed_pass()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if self._open is not None:
            # Lightning has divided the loss by the number of batches whose gradients it accumulates.
            whole = loss * trainer.accumulate_grad_batches if isinstance(loss, torch.Tensor) else None
            self._open.add(whole, rows_of(batch))
        self._model.position += 1
        if self._starts_pass_within_epoch(trainer, batch_idx):
            self._save(trainer)
            self._seed_pass()

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._predictions = StepOutputs()
        self._stats_before_validation = len(self._model.val_stats)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._metrics is None or trainer.sanity_checking:
            return
        if not (isinstance(outputs, Mapping) and "predictions" in outputs):
            outputs = pl_module.test_step(batch, batch_idx)
        if isinstance(outputs, Mapping):
            outputs = {name: outputs[name] for name in ("predictions", "targets") if name in outputs}
        self._predictions.add(outputs, rows_of(batch))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        outputs, self._predictions = self._predictions, StepOutputs()
        if self._metrics is None or not outputs:
            return
        predictions, targets = flatten_outputs(outputs)
        computed = self._metrics.compute(targets, predictions)
        if len(self._model.val_stats) == self._stats_before_validation:
            # The user's own validation_epoch_end keeps none.
            self._model.val_stats.append({})
        self._model.val_stats[-1].update(computed)
        pl_module.log_dict(computed)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close_epoch()

    def _stats(self) -> list[dict[str, float]]:
        """The validation metrics of this fit."""
        return self._model.val_stats[self._stats_before :]

    def _close_epoch(self) -> bool:
        """An epoch is over when validation, schedulers and the user's hooks are: when the next begins, or the fit ends."""
        done, self._open = self._open, None
        if done is None:
            return False
        if self._model.param_clipping is not None:
            clip_batch_norm(self._model, self._model.param_clipping)
        stats = self._stats()[done.stats_before :]
        record = EpochRecord(
            epoch=len(self.records) + 1,
            epochs=self._epochs,
            rows=done.rows,
            train_loss=None if done.loss is None else float(done.loss) / done.loss_rows,
            val_stats=_numbers(stats[-1]) if stats else {},
        )
        self.records.append(record)
        if self._report is not None:
            self._report(record)
        return True

    def _starts_pass_within_epoch(self, trainer: pl.Trainer, batch_idx: int) -> bool:
        """Whether the next batch begins a pass over the data, more batches follow, and no gradient is held back."""
        return (
            isinstance(self._loader, StepLoader)
            and self._loader.starts_pass(batch_idx + 1)
            and batch_idx + 1 < trainer.num_training_batches
            and (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        )

    def _seed_pass(self) -> None:
        if self._model.seed is not None:
            seed_generators(derive_seed(self._model.seed, "training", self._model.position))

    def _save(self, trainer: pl.Trainer) -> None:
        if self._checkpoint is None:
            return
        part = self._checkpoint.with_name(self._checkpoint.name + ".part")
        self._saving = True
        try:
            trainer.save_checkpoint(part, weights_only=False)
            with part.open("rb") as written:
                os.fsync(written.fileno())
            part.replace(self._checkpoint)
        except OSError as error:
            raise StorageError(
                f"cannot write the checkpoint {self._checkpoint}: {error.strerror or error}."
                " Free some space, or choose another folder."
            ) from error
        finally:
            self._saving = False


def _numbers(stats: Mapping[str, Any]) -> dict[str, float]:
    return {name: as_number(name, value) for name, value in stats.items()}


def train(
    model: PyTorchBitfountModel,
    *,
    metrics: MetricCollection | None = None,
    report: Callable[[EpochRecord], None] | None = None,
    checkpoint: Path | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> list[EpochRecord]:
    """Trains an initialised model once, for its `epochs` or its `steps`.

    Args:
        model: holds weights, loaders and position; trained in place.
        metrics: computed on the validation rows at the end of each epoch, beside what `validation_step` returns.
        report: called with each epoch's record as soon as the epoch is over.
        checkpoint: a file that is renewed after each pass over the rows; if it exists, the fit goes on from there.
        callbacks: Lightning callbacks for this fit, beside those of the model's own Trainer.

    Returns:
        One record for each epoch of the fit, those before a restart included.

    Raises:
        TrainingError: the parameters are not finite after training.
        MissingSplitError: there are no training rows.
        StorageError: the checkpoint cannot be written.
    """
    loader = training_batches(model)
    epochs = model.epochs or 1
    trainer = model.trainer_for_fit()
    course = FitCourse(
        model,
        loader=loader,
        epochs=epochs,
        metrics=metrics,
        report=report,
        checkpoint=checkpoint,
    )
    resume = checkpoint is not None and checkpoint.exists()
    validation = model.val_dataloader()
    validate = validation != []
    with (
        set_for_one_fit(trainer, course, callbacks, epochs=epochs, validate=validate),
        seeded(model.seed_for("training")),
        interruptible(),
    ):
        trainer.fit(
            model,
            train_dataloaders=loader,
            val_dataloaders=validation if validate else None,
            ckpt_path=checkpoint if resume else None,
            weights_only=True,
        )
    check_finite_parameters(model)
    return course.records


@contextmanager
def set_for_one_fit(
    trainer: pl.Trainer, course: FitCourse, callbacks: Sequence[pl.Callback], *, epochs: int, validate: bool
) -> Iterator[None]:
    """Gives a Trainer a fit's length and callbacks; afterwards it has its own callbacks and limits again."""
    own: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    limit = trainer.limit_val_batches
    hooks = [callback for callback in own if isinstance(callback, EpochEndHooks)] or [EpochEndHooks()]
    others = [callback for callback in own if callback not in hooks]
    # The course comes early, so that a checkpoint between two epochs is written before others begin the next one.
    trainer.callbacks = [*hooks, course, *others, *callbacks]  # type: ignore[attr-defined]
    trainer.should_stop = False
    # A Trainer that has run before counts from 0 again, as the one does that goes on from a checkpoint.
    trainer.fit_loop.epoch_progress.reset()
    trainer.fit_loop.max_epochs = epochs
    trainer.fit_loop.epoch_loop.max_steps = -1
    if not validate:
        trainer.limit_val_batches = 0
    try:
        yield
    finally:
        trainer.callbacks = own  # type: ignore[attr-defined]
        trainer.limit_val_batches = limit


def training_batches(model: PyTorchBitfountModel) -> Iterable[Any]:
    """The batches of one epoch of the next fit."""
    loader: Iterable[Any] = model.train_dataloader()
    if model.steps is None:
        return LazyLoader(loader) if isinstance(loader, DataLoader) else loader
    if isinstance(loader, BaseLoader):
        return StepLoader(loader, model.position, model.steps)
    steps = model.foreign_steps(loader)
    steps.batches = model.steps
    return steps


def run_test(model: PyTorchBitfountModel, loader: Iterable[Any]) -> None:
    """Runs the model's `test_step` and `test_epoch_end` over a loader; the results are the model's."""
    trainer = model.trainer_for_test()
    with seeded(model.seed_for("test")), interruptible():
        trainer.test(model, dataloaders=loader, verbose=False)


def check_finite_parameters(model: PyTorchBitfountModel) -> None:
    """Raises TrainingError naming the parameters that are not finite."""
    bad = [name for name, p in model.get_param_states().items() if p.is_floating_point() and not p.isfinite().all()]
    if bad:
        raise TrainingError(
            f"after training, {len(bad)} of the model's parameters are NaN or infinite: {', '.join(bad[:5])}"
            f"{' …' if len(bad) > 5 else ''}. Try a smaller learning rate, gradient clipping, or normalised inputs."
        )


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C during a run is a KeyboardInterrupt again: Lightning ignores further signals and exits the process."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler or signal.default_int_handler)
        raise KeyboardInterrupt from stop
