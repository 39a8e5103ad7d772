"""From loaders to trained weights: the Trainer, and how long one fit runs.

A fit is a number of passes over the training rows (epochs) or an exact number of batches (steps). In steps, the batches continue
where the last fit stopped, in order, wrapping round at the end of the data. `position` counts the batches that the model has
trained on since it was initialised.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from bitfount_model.data import BaseLoader, StepLoader
from bitfount_model.epoch_end_hooks import EpochEndHooks
from bitfount_model.errors import ConfigurationError, DivergedError, MissingSplitError
from bitfount_model.fit_course import EpochRecord, FitCourse
from bitfount_model.metrics import MetricCollection
from bitfount_model.parameters import holds_finite, public_states
from bitfount_model.seeding import seeded
from bitfount_model.several_processes import ShareOfBatches, handed_over

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


def in_one_process(trainer: pl.Trainer) -> pl.Trainer:
    """A slim Trainer of one process, with the precision and on the kind of device of one that has several."""
    return slim_trainer(accelerator=trainer.accelerator, precision=trainer.precision)


def is_reusable(trainer: pl.Trainer) -> bool:
    """Whether a Trainer can run another fit: it holds no logger and no callback that remembers the last one."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return not trainer.loggers and all(isinstance(callback, EpochEndHooks) for callback in callbacks)


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
        ConfigurationError: the Trainer has several processes, and the fit is one in steps.

    Where the Trainer starts processes for the fit, epochs are reported when it is over, and `callbacks` see nothing of it.
    """
    trainer = model.trainer_for_fit()
    loader = training_batches(model, trainer)
    epochs = model.epochs or 1
    resume = checkpoint is not None and checkpoint.exists()
    with handed_over(trainer) as elsewhere:
        course = FitCourse(
            model,
            loader=loader,
            epochs=epochs,
            metrics=metrics,
            # What is told in a process that ends with the fit reaches nobody.
            report=report if elsewhere is None else None,
            checkpoint=checkpoint,
            hand_over=elsewhere,
        )
        watching = callbacks if elsewhere is None else ()
        run_fit(model, trainer, course, loader, watching, checkpoint if resume else None)
        if elsewhere is not None:
            course.take_over(elsewhere)
            model.reset_trainer()  # Lightning starts processes once for each Trainer
            if report is not None:
                for record in course.records:
                    report(record)
    check_finite_parameters(model)
    return course.records


def run_fit(
    model: PyTorchBitfountModel,
    trainer: pl.Trainer,
    course: FitCourse,
    loader: Iterable[Any],
    callbacks: Sequence[pl.Callback],
    checkpoint: Path | None,
) -> None:
    """Runs Lightning's fit for the length of the model's.

    Args:
        model: trained in place.
        trainer: runs it.
        course: keeps it.
        loader: the training batches.
        callbacks: for this fit.
        checkpoint: to go on from, if there is one.
    """
    validation = model.val_dataloader()
    validate = validation != []
    with (
        set_for_one_fit(trainer, course, callbacks, epochs=model.epochs or 1, validate=validate),
        seeded(model.seed_for("training")),
        interruptible(),
    ):
        trainer.fit(
            model,
            train_dataloaders=loader,
            val_dataloaders=validation if validate else None,
            ckpt_path=checkpoint,
            weights_only=True,
        )


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


def training_batches(model: PyTorchBitfountModel, trainer: pl.Trainer) -> Iterable[Any]:
    """The batches of one epoch of the next fit; of several processes, those of each.

    Raises:
        ConfigurationError: the Trainer has several processes, and the fit is one in steps.
    """
    loader: Iterable[Any] = model.train_dataloader()
    if trainer.world_size > 1:
        if model.steps is not None:
            raise ConfigurationError(
                f"a fit in steps runs in one process, and the model's trainer_init asks for {trainer.world_size}:"
                " give the model epochs, or the Trainer devices=1"
            )
        # Lightning deals out the rows of torch's own loaders.
        return ShareOfBatches(loader, trainer) if isinstance(loader, BaseLoader) else loader
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
    bad = [name for name, value in public_states(model).items() if not holds_finite(value)]
    if bad:
        raise DivergedError(
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
