"""`validation_epoch_end` and its kin under Lightning 2: overridden, called by hand, with any Trainer."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from torch.nn import functional as F

from bitfount_model import DataFrameSource
from bitfount_model.epoch_end_hooks import EpochEndHooks, StepOutputs, rows_of
from bitfount_model.metrics import default_metrics
from tests.bitfount_model.models import Classifier, classifier, fitted, quiet_trainer, table

DATA = DataFrameSource(table())


def initialised(cls: type[Any] = Classifier, **kwargs: Any) -> Any:
    model = classifier(cls, **{"epochs": 2, **kwargs})
    model.initialise_model(DATA)
    return model


def hooks_of(model: Any) -> list[str]:
    """The legacy hooks that are hidden on this model."""
    return [name for name in ("training_epoch_end", "validation_epoch_end", "test_epoch_end") if name in vars(model)]


# -- overridden ------------------------------------------------------------------------------------------------------


class WithSuper(Classifier):
    """Adds to what the base class does."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seen: list[Any] = []

    def validation_epoch_end(self, outputs: Any) -> None:
        self.seen.append(outputs)
        super().validation_epoch_end(outputs)
        self.log("double", 2 * self.val_stats[-1]["validation_loss"])

    def test_epoch_end(self, outputs: Any) -> None:
        self.seen.append(outputs)
        super().test_epoch_end(outputs)


class WithoutSuper(Classifier):
    """Does all by itself."""

    def validation_epoch_end(self, outputs: Any) -> None:
        self.last = torch.stack([output["validation_loss"] for output in outputs]).mean()
        self.log("own", self.last)

    def test_epoch_end(self, outputs: Any) -> None:
        (output,) = outputs
        self._test_preds = output["predictions"].numpy().argmax(1)
        self._test_targets = output["targets"].numpy()


def test_an_override_that_calls_super_adds_to_it() -> None:
    model = fitted(WithSuper, epochs=2)
    assert len(model.val_stats) == len(model.seen) == 2
    assert model.trainer.callback_metrics["double"] == pytest.approx(2 * model.val_stats[-1]["validation_loss"])
    model.evaluate()
    assert [set(output) for output in model.seen[-1]] == [{"predictions", "targets"}]


def test_an_override_without_super_replaces_it() -> None:
    model = classifier(WithoutSuper, epochs=2)
    assert model.fit(DATA) == {}
    assert model.val_stats == []
    assert model.trainer.callback_metrics["own"] == model.last
    result = model.evaluate()
    assert result.preds.shape == result.targs.shape == (12,)


def test_metrics_given_to_fit_are_kept_even_beside_an_override_without_super() -> None:
    model = classifier(WithoutSuper, epochs=2)
    result = model.fit(DATA, metrics=default_metrics(model.problem))
    assert set(result) == {"AUC", "F1", "Recall", "Precision", "Accuracy", "Brier Loss"}
    assert len(model.val_stats) == 2


def test_an_override_that_leaves_no_predictions_is_told_what_to_do() -> None:
    class Forgets(Classifier):
        def test_epoch_end(self, outputs: Any) -> None:
            pass

    model = initialised(Forgets)
    with pytest.raises(Exception, match=r"set self\._test_preds in your own, or call super\(\)"):
        model.evaluate()


def test_predictions_of_an_earlier_run_are_never_taken_for_those_of_this_one() -> None:
    class ForgetsOnce(Classifier):
        def test_epoch_end(self, outputs: Any) -> None:
            if self.preds is None:
                super().test_epoch_end(outputs)

    model = initialised(ForgetsOnce)
    model.evaluate()
    with pytest.raises(Exception, match="left no predictions"):
        model.evaluate()


def test_a_training_epoch_end_of_the_users_gets_every_step_of_the_epoch() -> None:
    class OwnTrainingEnd(Classifier):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.means: list[float] = []

        def training_epoch_end(self, outputs: Any) -> None:
            assert len(outputs) == 6
            self.means.append(float(torch.stack([output["loss"] for output in outputs]).mean()))
            self.log("train_mean", self.means[-1])

    model = classifier(OwnTrainingEnd, epochs=2, batch_size=16)
    records = model.fit_locally(DATA)
    assert model.means == pytest.approx([record.train_loss for record in records])
    assert model.trainer.callback_metrics["train_mean"] == pytest.approx(model.means[-1])


def test_lightnings_own_hooks_of_the_user_still_run() -> None:
    class OwnHooks(Classifier):
        called: tuple[str, ...] = ()

        def on_validation_epoch_end(self) -> None:
            self.called += (f"validation after {len(self.val_stats)}",)

        def on_train_epoch_end(self) -> None:
            self.called += ("train",)

        def on_test_epoch_end(self) -> None:
            self.called += ("test",)

    model = fitted(OwnHooks, epochs=1)
    model.evaluate()
    assert model.called == ("validation after 1", "train", "test")


# -- called by hand --------------------------------------------------------------------------------------------------


def test_the_methods_can_be_called_by_hand() -> None:
    model = initialised()
    model.validation_epoch_end([{"validation_loss": 1.0}, {"validation_loss": torch.tensor(2)}])
    assert model.val_stats == [{"validation_loss": 1.5}]
    model.test_epoch_end([{"predictions": torch.ones(2, 2), "targets": torch.zeros(2)}] * 2)
    assert model._test_preds.shape == (4, 2)
    model.fit(DATA)
    model.validation_epoch_end([{"validation_loss": 1.0}])
    assert len(model.val_stats) == 4


# -- what is logged --------------------------------------------------------------------------------------------------


def test_early_stopping_sees_the_average() -> None:
    trainer = quiet_trainer(max_epochs=10, callbacks=[EarlyStopping("avg_validation_loss", min_delta=9, patience=1)])
    trainer.fit(initialised())
    assert trainer.current_epoch == 2


def test_callbacks_see_what_the_methods_log_at_the_same_epoch_end() -> None:
    class Reads(pl.Callback):
        values: tuple[Any, ...] = ()

        def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            self.values += (pl_module.val_stats[-1]["validation_loss"],)

    reads = Reads()
    model = initialised()
    quiet_trainer(max_epochs=2, num_sanity_val_steps=0, callbacks=[reads]).fit(model)
    assert list(reads.values) == [stats["validation_loss"] for stats in model.val_stats]


def test_log_is_lightnings_log() -> None:
    class Logs(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.log_("seen", 3.0, on_epoch=True)
            return super().validation_step(batch, batch_idx)

    assert fitted(Logs, epochs=1).trainer.callback_metrics["seen"] == 3


# -- the user's own Trainer ------------------------------------------------------------------------------------------


def test_a_users_own_trainer_fits_validates_and_tests() -> None:
    model = initialised(WithSuper)
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(model)
    assert len(model.val_stats) == 2  # none for the sanity check
    (validated,) = trainer.validate(model, verbose=False)
    assert validated["avg_validation_loss"] == pytest.approx(model.val_stats[-1]["validation_loss"])
    trainer.test(model, verbose=False)
    assert model._test_preds.shape == (12, 2)
    assert hooks_of(model) == []


def test_a_users_own_trainer_needs_an_initialised_model_and_says_so() -> None:
    with pytest.raises(ValueError, match="call initialise_model or fit first"):
        quiet_trainer(max_epochs=1).fit(classifier(epochs=1))


def test_a_class_that_overrides_configure_callbacks_without_super_keeps_the_hooks() -> None:
    class OwnCallbacks(Classifier):
        def configure_callbacks(self) -> Any:
            return [EarlyStopping("avg_validation_loss", min_delta=9, patience=1)]

    model = initialised(OwnCallbacks, epochs=5)
    model.fit(DATA)
    model.fit(DATA)
    assert len(model.val_stats) == 4
    quiet_trainer(max_epochs=5).fit(model)
    assert len(model.val_stats) == 6


def test_lightnings_defaults_with_logger_and_checkpoints_work(tmp_path: Path) -> None:
    model = initialised()
    trainer = pl.Trainer(
        max_epochs=1,
        default_root_dir=tmp_path,
        accelerator="cpu",
        enable_progress_bar=False,
        log_every_n_steps=1,
        logger=pl.loggers.CSVLogger(tmp_path),
    )
    trainer.fit(model)
    assert "avg_validation_loss" in next(tmp_path.rglob("metrics.csv")).read_text()
    checkpoint = torch.load(next(tmp_path.rglob("*.ckpt")), weights_only=True)
    assert len(checkpoint["state_dict"]) == 4


# -- memory and failures ---------------------------------------------------------------------------------------------


def test_outputs_hold_no_graph_and_are_freed_at_the_epochs_end() -> None:
    kept: list[weakref.ref[Any]] = []

    class Tracks(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            with torch.enable_grad():
                return {"validation_loss": F.cross_entropy(self(batch[0]), batch[1])}

        def validation_epoch_end(self, outputs: Any) -> None:
            for output in outputs:
                assert not output["validation_loss"].requires_grad
                assert output["validation_loss"].device.type == "cpu"
                kept.append(weakref.ref(output["validation_loss"]))
            super().validation_epoch_end(outputs)

    model = initialised(Tracks)
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(model)
    gc.collect()
    assert [reference() for reference in kept] == [None, None]
    (hooks,) = (callback for callback in trainer.callbacks if isinstance(callback, EpochEndHooks))
    assert hooks.validation_outputs == hooks.training_outputs == hooks.test_outputs == []


def test_training_outputs_are_not_kept_for_nobody() -> None:
    sizes = []

    class Looks(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            sizes.extend(len(c.training_outputs) for c in trainer.callbacks if isinstance(c, EpochEndHooks))

    quiet_trainer(max_epochs=1, callbacks=[Looks()]).fit(initialised())
    assert sizes == [0, 0, 0]


@pytest.mark.parametrize("step", ["training_step", "validation_step", "validation_epoch_end"])
def test_an_exception_in_the_users_code_leaves_the_model_usable(step: str) -> None:
    class Fails(Classifier):
        broken = True

    def fail(self: Any, *args: Any) -> Any:
        if self.broken:
            raise ZeroDivisionError("a bug of the user's")
        return getattr(Classifier, step)(self, *args)

    setattr(Fails, step, fail)
    model = initialised(Fails)
    trainer = quiet_trainer(max_epochs=2)
    for run in (lambda: trainer.fit(model), lambda: model.fit(DATA)):
        with pytest.raises(ZeroDivisionError):
            run()
        assert hooks_of(model) == []
        assert all(module.training for module in model.modules())
    model.broken, model.val_stats = False, []
    model.fit(DATA)
    assert len(model.val_stats) == 2


def test_a_run_that_lightning_refuses_leaves_the_methods_callable() -> None:
    model = initialised()
    with pytest.raises(Exception, match="You cannot pass `train_dataloader`"):
        quiet_trainer(max_epochs=1).fit(model, train_dataloaders=model.train_dl, datamodule=pl.LightningDataModule())
    assert hooks_of(model) == []
    model.validation_epoch_end([{"validation_loss": 1.0}])


# -- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "batch",
    [([torch.ones(7, 2), torch.ones(7, 2)], torch.ones(7)), [{"x": torch.ones(7, 3)}], torch.ones(7, 1)],
    ids=["x and y", "a dict", "a tensor"],
)
def test_the_rows_of_a_batch_are_counted(batch: Any) -> None:
    assert rows_of(batch) == 7


def test_outputs_that_the_user_changed_count_equally() -> None:
    class DropsTheLast(Classifier):
        def validation_epoch_end(self, outputs: Any) -> None:
            outputs.pop()
            super().validation_epoch_end(outputs)

    assert len(fitted(DropsTheLast, epochs=1, batch_size=7).val_stats) == 1


def test_step_outputs_know_the_rows_of_each_step() -> None:
    outputs = StepOutputs()
    outputs.add({"loss": torch.ones(1, requires_grad=True)}, 3)
    assert (len(outputs), outputs.rows, outputs[0]["loss"].requires_grad) == (1, [3], False)
