"""The course of one fit: what each epoch left behind, and the checkpoint from which a fit that broke off goes on.

Order and randomness are functions of (seed, position), so a fit that was killed and goes on ends with the same bits as one that
was not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch

from bitfount_model.data import BaseLoader, StepLoader
from bitfount_model.epoch_end_hooks import StepOutputs, rows_of
from bitfount_model.errors import StorageError
from bitfount_model.metrics import MetricCollection
from bitfount_model.param_clipping import clip_batch_norm
from bitfount_model.reporting import as_number, flatten_outputs
from bitfount_model.seeding import derive_seed, seed_generators
from bitfount_model.several_processes import ShareOfBatches

if TYPE_CHECKING:
    from bitfount_model.model import PyTorchBitfountModel


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

    def of_all(self, trainer: pl.Trainer) -> OpenEpoch:
        """The epoch of all processes that train together, each of which has counted its own batches."""
        loss = torch.zeros(()) if self.loss is None else self.loss
        mine = torch.stack([loss.double().cpu(), torch.tensor(self.rows), torch.tensor(self.loss_rows)])
        total, rows, loss_rows = trainer.strategy.reduce(
            mine.to(trainer.strategy.root_device), reduce_op="sum"
        ).tolist()
        together = torch.tensor(total) if loss_rows else None
        return OpenEpoch(self.stats_before, int(rows), together, int(loss_rows))


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
        hand_over: Path | None = None,
    ) -> None:
        self.records: list[EpochRecord] = []
        self._model = model
        self._loader = loader
        self._epochs = epochs
        self._metrics = metrics
        self._report = report
        self._checkpoint = checkpoint
        self._hand_over = hand_over
        self._threads = torch.get_num_threads()
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

    def take_over(self, path: Path) -> None:
        """Takes up what a process that has ended left in its file."""
        self.load_state_dict(json.loads(path.read_text(encoding="utf-8")))

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
        torch.set_num_threads(self._threads)  # Lightning divides the cores where it has started processes
        self._seed_pass(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._close_epoch(trainer):
            self._save(trainer)
        if isinstance(self._loader, BaseLoader | ShareOfBatches):
            self._loader.set_epoch(self._model.position // int(trainer.num_training_batches))
        self._open = OpenEpoch(stats_before=len(self._stats()))
        self._seed_pass(trainer)

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
            self._seed_pass(trainer)

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
        self._close_epoch(trainer)
        if self._hand_over is not None and trainer.is_global_zero:
            self._hand_over.write_text(json.dumps(self.state_dict()), encoding="utf-8")

    def _stats(self) -> list[dict[str, float]]:
        """The validation metrics of this fit."""
        return self._model.val_stats[self._stats_before :]

    def _close_epoch(self, trainer: pl.Trainer) -> bool:
        """An epoch is over when validation, schedulers and the user's hooks are: when the next begins, or the fit ends."""
        done, self._open = self._open, None
        if done is None:
            return False
        if self._model.param_clipping is not None:
            clip_batch_norm(self._model, self._model.param_clipping)
        if trainer.world_size > 1:
            done = done.of_all(trainer)
        stats = self._stats()[done.stats_before :]
        record = EpochRecord(
            epoch=len(self.records) + 1,
            epochs=self._epochs,
            rows=done.rows,
            train_loss=None if done.loss is None else float(done.loss) / done.loss_rows,
            val_stats=_numbers(stats[-1]) if stats else {},
        )
        self.records.append(record)
        if self._report is not None and trainer.is_global_zero:
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

    def _seed_pass(self, trainer: pl.Trainer) -> None:
        if self._model.seed is not None:
            among = ("process", trainer.global_rank) if trainer.global_rank else ()
            seed_generators(derive_seed(self._model.seed, "training", self._model.position, *among))

    def _save(self, trainer: pl.Trainer) -> None:
        if self._checkpoint is None:
            return
        part = self._checkpoint.with_name(self._checkpoint.name + ".part")
        self._saving = True
        try:
            trainer.save_checkpoint(part, weights_only=False)
            if not trainer.is_global_zero:  # another process has written it
                return
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
