"""Training: the same bits as plain PyTorch, the right batches, and the same bits again after a kill."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from bitfount_model import DataFrameSource
from bitfount_model.data import StepLoader
from bitfount_model.errors import StorageError, TrainingError
from bitfount_model.fit_course import EpochRecord
from bitfount_model.seeding import derive_seed, seed_generators, seeded
from tests.bitfount_model.models import Classifier, SpyLoader, classifier, fitted, quiet_trainer, same, table

DATA = DataFrameSource(table())
BATCHES = 6  # of 16 rows, of the 96 training rows


class Sgd(Classifier):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


def plain_loop(model: Any, passes: int) -> nn.Module:
    """The same network trained by PyTorch alone, for this many epochs or batches."""
    network = copy.deepcopy(model._model)
    optimiser = model.configure_optimizers().__class__
    options = {key: value for key, value in model.configure_optimizers().defaults.items() if value is not None}
    optimiser = optimiser(network.parameters(), **options)
    loader = model.train_dl
    if model.steps is not None:
        epochs = [StepLoader(loader, 0, passes)]
    else:
        epochs = [list(loader.read_batches(epoch, 0, len(loader))) for epoch in range(passes)]
    position = 0
    with seeded(0):
        network.train()
        for epoch in epochs:
            for (x, _support), y in epoch:
                if position % len(loader) == 0:
                    seed_generators(derive_seed(model.seed, "training", position))
                optimiser.zero_grad()
                F.cross_entropy(network(x), y).backward()
                optimiser.step()
                position += 1
    return network


# -- the same as plain PyTorch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Classifier, Sgd])
@pytest.mark.parametrize("length", [{"epochs": 3}, {"steps": 16}], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_fit_equals_a_plain_loop_bit_for_bit(cls: type[Any], length: dict[str, int], dropout: float) -> None:
    model = classifier(cls, batch_size=16, dropout=dropout, **length)
    model.initialise_model(DATA)
    wanted = plain_loop(model, next(iter(length.values())))

    model.fit(DATA)

    assert same(model.get_param_states(), dict(wanted.state_dict()))
    assert model.position == length.get("steps", 3 * BATCHES)


def test_fits_in_steps_equal_one_fit_with_a_stateless_optimiser() -> None:
    class PlainSgd(Classifier):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    whole = fitted(PlainSgd, batch_size=16, steps=17)
    parts = classifier(PlainSgd, batch_size=16, steps=5)
    for steps in (5, 7, 5):
        parts.set_model_training_iterations(steps)
        parts.fit(DATA)
    assert same(parts.get_param_states(), whole.get_param_states())


def test_a_second_fit_in_epochs_goes_on_to_new_orders() -> None:
    model = classifier(epochs=2, batch_size=16)
    model.initialise_model(DATA)
    spy = model.train_dl = SpyLoader(model.train_dl)
    model.fit(DATA)
    model.fit(DATA)
    assert spy.read == [(epoch, batch) for epoch in range(4) for batch in range(BATCHES)]


# -- exactly the batches that are asked for --------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 4, 6, 7, 20])
@pytest.mark.parametrize("reset", [False, True])
def test_rounds_in_steps_read_exactly_their_batches_in_order(steps: int, reset: bool) -> None:
    model = classifier(steps=steps, batch_size=16)
    model.initialise_model(DATA)
    spy = model.train_dl = SpyLoader(model.train_dl)
    for number in range(1, 4):
        model.fit(DATA)
        assert spy.read == [divmod(batch, BATCHES) for batch in range(number * steps)]
        if reset:
            model.reset_trainer()


def test_the_number_of_iterations_changes_between_fits() -> None:
    model = classifier(steps=4, batch_size=16)
    model.initialise_model(DATA)
    spy = model.train_dl = SpyLoader(model.train_dl)
    for steps in (4, 1, 9):
        model.set_model_training_iterations(steps)
        model.reset_trainer()
        model.fit(DATA)
    assert [number for _, number in spy.read] == [batch % BATCHES for batch in range(14)]


def test_steps_continue_over_a_users_own_loader() -> None:
    features, seen = torch.arange(50.0).reshape(10, 5), []

    class OwnLoader(Classifier):
        def train_dataloader(self) -> Any:
            return self.own

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            seen.extend((x[:, 0] / 5).int().tolist())
            return F.cross_entropy(self._model(x), y)

    model = classifier(OwnLoader, steps=3)
    model.own = [(features[i : i + 2], torch.zeros(2, dtype=torch.int64)) for i in range(0, 10, 2)]
    model.initialise_model(DATA)
    for _ in range(3):
        model.fit_locally(None)
    assert seen == [row % 10 for row in range(18)]


def test_a_users_own_loader_need_not_know_its_length() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield from ([torch.ones(2, 5) * number, torch.zeros(2, dtype=torch.int64)] for number in range(5))

    class Streams(Classifier):
        def train_dataloader(self) -> Any:
            return DataLoader(Stream(), batch_size=None)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return F.cross_entropy(self._model(batch[0]), batch[1])

    for length, batches in (({"epochs": 2}, 10), ({"steps": 7}, 7)):
        assert fitted(Streams, **length).position == batches


def test_a_users_own_empty_loader_is_refused() -> None:
    class Empty(Classifier):
        def train_dataloader(self) -> Any:
            return []

    with pytest.raises(ValueError, match="has no batches"):
        fitted(Empty, steps=2)


# -- what a fit reports ----------------------------------------------------------------------------------------------


def test_each_epoch_is_reported_when_it_is_over() -> None:
    reported: list[EpochRecord] = []
    model = classifier(epochs=3, batch_size=16)
    records = model.fit_locally(DATA, report=reported.append)
    assert records == reported
    assert [(record.epoch, record.epochs, record.rows) for record in records] == [(1, 3, 96), (2, 3, 96), (3, 3, 96)]
    assert [record.val_stats for record in records] == model.val_stats


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_the_training_loss_is_the_mean_over_rows(accumulate: int) -> None:
    seen: list[tuple[float, int]] = []

    class Spy(Classifier):
        def trainer_init(self) -> pl.Trainer:
            return quiet_trainer(accumulate_grad_batches=accumulate)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            seen.append((loss.item(), len(batch[1])))
            return {"loss": loss} if batch_idx % 2 else loss

    (record,) = classifier(Spy, epochs=1, batch_size=25).fit_locally(DATA)
    assert [rows for _, rows in seen] == [25, 25, 25, 21]
    assert record.train_loss == pytest.approx(sum(loss * rows for loss, rows in seen) / 96, rel=1e-5)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`:UserWarning")
def test_batches_without_a_loss_do_not_count_towards_it() -> None:
    class Skips(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx < 2 else 0 * super().training_step(batch, batch_idx) + 3

    class SkipsAll(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None

    assert classifier(Skips, epochs=1).fit_locally(DATA)[0].train_loss == 3
    assert classifier(SkipsAll, epochs=1).fit_locally(DATA)[0].train_loss is None


def test_records_hold_the_validation_of_their_own_epoch() -> None:
    class EverySecond(Classifier):
        def trainer_init(self) -> pl.Trainer:
            return quiet_trainer(check_val_every_n_epoch=2)

    class TwiceAnEpoch(Classifier):
        def trainer_init(self) -> pl.Trainer:
            return quiet_trainer(val_check_interval=0.5)

    seldom = classifier(EverySecond, epochs=4)
    assert [bool(record.val_stats) for record in seldom.fit_locally(DATA)] == [False, True, False, True]
    often = classifier(TwiceAnEpoch, epochs=2, batch_size=16)
    records = often.fit_locally(DATA)
    assert len(often.val_stats) == 4
    assert [record.val_stats for record in records] == often.val_stats[1::2]


def test_parameters_that_are_not_finite_after_training_are_named() -> None:
    class Explodes(Classifier):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1e30)

    with pytest.raises(TrainingError, match=r"NaN or infinite: 0\.weight"):
        fitted(Explodes, epochs=2)


def test_batch_norm_is_clipped_after_each_epoch() -> None:
    class Normed(Classifier):
        def create_model(self) -> nn.Module:
            return nn.Sequential(nn.BatchNorm1d(5), super().create_model())

    clipping = {"prime_q": 13, "precision": 10, "num_workers": 2}
    params = fitted(Normed, epochs=1, param_clipping=clipping).get_param_states()
    assert params["0.running_var"].max() <= 13 / 40
    assert params["0.num_batches_tracked"] == 3
    assert params["1.0.weight"].abs().max() > 13 / 40


# -- Trainers --------------------------------------------------------------------------------------------------------


def test_two_fits_train_twice_with_one_trainer() -> None:
    calls = []

    class Counts(Classifier):
        def trainer_init(self) -> pl.Trainer:
            calls.append(1)
            return super().trainer_init()

    model = classifier(Counts, epochs=2)
    model.fit(DATA)
    model.fit(DATA)
    model.evaluate()
    assert (len(model.val_stats), model.position, len(calls)) == (4, 2 * 2 * 3, 1)


def test_a_reused_trainer_gives_the_same_bits_as_new_ones() -> None:
    reused, renewed = classifier(epochs=2, dropout=0.3), classifier(epochs=2, dropout=0.3)
    for _ in range(3):
        reused.fit(DATA)
        renewed.fit(DATA)
        renewed.reset_trainer()
    assert same(reused.get_param_states(), renewed.get_param_states())
    assert reused.val_stats == renewed.val_stats


def test_a_scheduler_that_spans_a_fit_starts_anew_in_the_next() -> None:
    rates: list[float] = []

    class OneCycle(Classifier):
        def configure_optimizers(self) -> Any:
            optimiser = torch.optim.SGD(self.parameters(), lr=0.1)
            total = int(self.trainer.estimated_stepping_batches)
            cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.1, total_steps=total)
            return {"optimizer": optimiser, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            rates.append(self.optimizers().param_groups[0]["lr"])

    model = classifier(OneCycle, epochs=2, batch_size=16)
    model.fit(DATA)
    model.fit(DATA)
    assert rates[: 2 * BATCHES] == rates[2 * BATCHES :]
    assert max(rates) == pytest.approx(0.1, abs=0.001)


def test_early_stopping_stops_and_does_not_leak_into_the_next_fit() -> None:
    class Stops(Classifier):
        def trainer_init(self) -> pl.Trainer:
            stop = EarlyStopping(monitor="avg_validation_loss", patience=1, min_delta=10.0)
            return quiet_trainer(max_epochs=self.epochs, callbacks=[stop])

    model = classifier(Stops, epochs=10)
    assert len(model.fit_locally(DATA)) == 2
    assert len(model.fit_locally(None)) == 2
    assert len(model.val_stats) == 4


def test_early_stopping_for_one_fit_can_come_from_the_caller() -> None:
    stop = EarlyStopping(monitor="avg_validation_loss", patience=1, min_delta=10.0)
    model = classifier(epochs=5)
    assert len(model.fit_locally(DATA, callbacks=[stop])) == 2
    assert len(model.fit_locally(None)) == 5


def test_a_users_trainer_arguments_are_respected() -> None:
    class Careful(Classifier):
        def trainer_init(self) -> pl.Trainer:
            return quiet_trainer(
                max_epochs=self.epochs or -1,
                max_steps=self.steps or -1,
                gradient_clip_val=0.01,
                accumulate_grad_batches=2,
                precision="bf16-mixed",
            )

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1.0)

        def forward(self, x: Any) -> Any:
            outputs.append(super().forward(x))
            return outputs[-1]

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            norms.append(torch.stack([p.grad.norm() for p in self.parameters()]).norm().item())

    outputs: list[torch.Tensor] = []
    norms: list[float] = []
    model = classifier(Careful, epochs=2, batch_size=16)
    model.initialise_model(DATA)
    before = model.get_param_states()
    model.fit(DATA)

    assert len(norms) == BATCHES  # 2 epochs, one step for two batches
    assert outputs[0].dtype == torch.bfloat16
    moved = sum((after - before[name]).square().sum() for name, after in model.get_param_states().items()) ** 0.5
    assert 0 < moved <= 0.01 * BATCHES * 1.001
    assert model.predict(DATA).preds.dtype == "float32"


def test_accumulated_and_clipped_gradients_equal_a_plain_loop() -> None:
    class Accumulates(Classifier):
        def trainer_init(self) -> pl.Trainer:
            return quiet_trainer(accumulate_grad_batches=2, gradient_clip_val=0.5)

    model = classifier(Accumulates, epochs=1, batch_size=20)  # 5 batches: the last steps alone
    model.initialise_model(DATA)
    network = copy.deepcopy(model._model)
    optimiser = torch.optim.Adam(network.parameters(), lr=model.learning_rate)
    batches = list(model.train_dl.read_batches(0, 0, 5))
    for number, ((x, _support), y) in enumerate(batches, 1):
        (F.cross_entropy(network(x), y) / 2).backward()
        if number % 2 == 0 or number == len(batches):
            nn.utils.clip_grad_norm_(network.parameters(), 0.5)
            optimiser.step()
            optimiser.zero_grad()

    model.fit(DATA)
    assert same(model.get_param_states(), dict(network.state_dict()))


def test_limited_epochs_still_see_new_orders() -> None:
    class Limited(Classifier):
        def trainer_init(self) -> pl.Trainer:
            return quiet_trainer(limit_train_batches=2)

    model = classifier(Limited, epochs=3, batch_size=16)
    model.initialise_model(DATA)
    spy = model.train_dl = SpyLoader(model.train_dl)
    model.fit(DATA)
    assert [epoch for epoch, _ in spy.read] == [0, 0, 1, 1, 2, 2]
    assert model.position == 6


def test_ctrl_c_is_a_keyboard_interrupt_and_the_next_fit_works() -> None:
    class Interrupts(pl.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise KeyboardInterrupt

    model = classifier(epochs=1)
    with pytest.raises(KeyboardInterrupt):
        model.fit_locally(DATA, callbacks=[Interrupts()])
    assert model.fit(DATA)


def test_an_exit_in_the_users_code_stays_an_exit() -> None:
    class Exits(pl.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise SystemExit(3)

    with pytest.raises(SystemExit) as stop:
        classifier(epochs=1).fit_locally(DATA, callbacks=[Exits()])
    assert stop.value.code == 3


# -- killed and started again ----------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for the end of the process."""


class Kill(pl.Callback):
    """Ends a fit after a number of batches."""

    def __init__(self, after: int) -> None:
        self.left = after

    def on_train_batch_end(self, *args: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


class Step(Classifier):
    def configure_optimizers(self) -> Any:
        optimiser = super().configure_optimizers()
        return [optimiser], [torch.optim.lr_scheduler.StepLR(optimiser, 1, 0.5)]


class Plateau(Classifier):
    def configure_optimizers(self) -> Any:
        optimiser = super().configure_optimizers()
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, patience=0, threshold=0.1)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": plateau, "monitor": "avg_validation_loss"}}


class OneCycle(Classifier):
    def configure_optimizers(self) -> Any:
        optimiser = super().configure_optimizers()
        total = int(self.trainer.estimated_stepping_batches)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.1, total_steps=total)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


class Everything(Plateau):
    """Early stopping, accumulation, clipping, and hyperparameters that are no plain values."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters(kwargs)

    def trainer_init(self) -> pl.Trainer:
        stop = EarlyStopping(monitor="avg_validation_loss", patience=2)
        return quiet_trainer(callbacks=[stop], accumulate_grad_batches=2, gradient_clip_val=0.5)


class OddBatches(Step):
    """Accumulates over the end of a pass when it trains in steps: 6 is no multiple of 4."""

    def trainer_init(self) -> pl.Trainer:
        return quiet_trainer(accumulate_grad_batches=4)


class OwnTorchLoader(Step):
    """Shuffles by torch's own loader, which draws from the global generator."""

    def train_dataloader(self) -> Any:
        loader = self.train_dl
        rows = TensorDataset(loader.features, loader.support, loader.targets)
        return DataLoader(rows, batch_size=16, shuffle=True, collate_fn=self.collate)

    @staticmethod
    def collate(rows: Any) -> Any:
        features, support, targets = (torch.stack(column) for column in zip(*rows, strict=True))
        return [features, support], targets


class OwnStats(Step):
    """Keeps what it likes of an epoch, as NumPy numbers and tensors."""

    def validation_epoch_end(self, outputs: Any) -> None:
        losses = torch.stack([output["validation_loss"] for output in outputs])
        self.val_stats.append({"mean": losses.mean(), "numpy": losses.mean().double().numpy()[()]})


def run(build: Callable[[], Any], checkpoint: Path | None = None, kill: int | None = None) -> Any:
    model = build()
    model.initialise_model(DATA)
    callbacks = [] if kill is None else [Kill(kill)]
    try:
        model.records = model.fit_locally(None, checkpoint=checkpoint, callbacks=callbacks)
    except Killed:
        model.records = None
    return model


@pytest.mark.parametrize("length", [{"epochs": 3}, {"steps": 18}], ids=str)
@pytest.mark.parametrize("cls", [Step, Plateau, OneCycle, Everything, OddBatches, OwnTorchLoader, OwnStats])
def test_a_fit_that_was_killed_at_any_batch_ends_with_the_same_bits(
    cls: type[Any], length: dict[str, int], tmp_path: Path
) -> None:
    def build() -> Any:
        return classifier(cls, batch_size=16, dropout=0.3, **length)

    wanted = run(build)
    for kill in (1, 5, 6, 7, 11, 12, 13, 17, 18):
        checkpoint = tmp_path / f"{kill}.ckpt"
        assert run(build, checkpoint, kill).records is None
        went_on = run(build, checkpoint)
        assert same(went_on.get_param_states(), wanted.get_param_states()), kill
        assert went_on.val_stats == wanted.val_stats, kill
        assert went_on.records == wanted.records, kill
        assert went_on.position == wanted.position, kill


def test_a_fit_that_goes_on_does_not_train_again_what_was_done(tmp_path: Path) -> None:
    read = []
    for kill in (14, None):
        model = classifier(epochs=3, batch_size=16)
        model.initialise_model(DATA)
        spy = model.train_dl = SpyLoader(model.train_dl)
        if kill:
            with pytest.raises(Killed):
                model.fit_locally(None, checkpoint=tmp_path / "fit.ckpt", callbacks=[Kill(kill)])
        else:
            model.fit_locally(None, checkpoint=tmp_path / "fit.ckpt")
        read.append([epoch for epoch, _ in spy.read])
    assert read == [[0] * 6 + [1] * 6 + [2] * 2, [2] * 6]


def test_limited_epochs_go_on_with_the_same_bits(tmp_path: Path) -> None:
    class Limited(Step):
        def trainer_init(self) -> pl.Trainer:
            return quiet_trainer(limit_train_batches=4)  # a pass ends in the middle of the second epoch

    def build() -> Any:
        return classifier(Limited, batch_size=16, dropout=0.3, epochs=3)

    wanted = run(build)
    for kill in (6, 7, 10):
        checkpoint = tmp_path / f"{kill}.ckpt"
        run(build, checkpoint, kill)
        went_on = run(build, checkpoint)
        assert same(went_on.get_param_states(), wanted.get_param_states()), kill
        assert went_on.records == wanted.records, kill


def test_a_checkpoint_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match=r"cannot write the checkpoint .*fit\.ckpt"):
        classifier(epochs=2).fit_locally(DATA, checkpoint=tmp_path / "file" / "fit.ckpt")


def test_killed_twice_it_still_ends_with_the_same_bits(tmp_path: Path) -> None:
    def build() -> Any:
        return classifier(Plateau, batch_size=16, dropout=0.3, epochs=4)

    wanted = run(build)
    for kill in (8, 9, 3):
        run(build, tmp_path / "fit.ckpt", kill)
    went_on = run(build, tmp_path / "fit.ckpt")
    assert same(went_on.get_param_states(), wanted.get_param_states())
    assert went_on.records == wanted.records


@pytest.mark.parametrize("length", [{"epochs": 3}, {"steps": 16}], ids=str)
def test_the_second_fit_of_a_model_goes_on_too(length: dict[str, int], tmp_path: Path) -> None:
    """As in a later round of a job: the new process has the weights and the position of the round's beginning."""

    def build() -> Any:
        return classifier(Step, batch_size=16, dropout=0.3, **length)

    model = run(build)
    weights, position, stats = model.get_param_states(), model.position, list(model.val_stats)
    records = model.fit_locally(None)

    killed = run(build)
    with pytest.raises(Killed):
        killed.fit_locally(None, checkpoint=tmp_path / "fit.ckpt", callbacks=[Kill(8)])
    went_on = build()
    went_on.initialise_model(DATA)
    went_on.update_params(weights)
    went_on.position, went_on.val_stats = position, stats
    assert went_on.fit_locally(None, checkpoint=tmp_path / "fit.ckpt") == records
    assert same(went_on.get_param_states(), model.get_param_states())
    assert (went_on.position, went_on.val_stats) == (model.position, model.val_stats)


def test_after_going_on_the_next_fit_is_that_of_a_model_that_was_never_killed(tmp_path: Path) -> None:
    def build() -> Any:
        return classifier(Step, batch_size=16, dropout=0.3, epochs=3)

    wanted = run(build)
    run(build, tmp_path / "fit.ckpt", 8)
    went_on = run(build, tmp_path / "fit.ckpt")
    assert went_on.fit_locally(None) == wanted.fit_locally(None)
    assert same(went_on.get_param_states(), wanted.get_param_states())
