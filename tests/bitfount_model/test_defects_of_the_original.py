"""What was seen to go wrong in the original system, in the order of the specification's table, and does not here."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F

from bitfount_model import CSVSource, DataFrameSource, DataStructure, PercentageSplitter, load_model_class
from bitfount_model.errors import MissingSplitError, ParameterError
from bitfount_model.metrics import default_metrics
from tests.bitfount_model.models import (
    Classifier,
    SpyLoader,
    classifier,
    fitted,
    quiet_trainer,
    same,
    schema_of,
    table,
)

FRAME = table()
DATA = DataFrameSource(FRAME)
BATCHES = 6  # of 16 rows, of the 96 training rows


def initialised(cls: type[Any] = Classifier, **kwargs: Any) -> Any:
    model = classifier(cls, **{"epochs": 1, **kwargs})
    model.initialise_model(DATA)
    return model


class Normed(Classifier):
    """With an int64 counter and a running variance."""

    def create_model(self) -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(5), super().create_model())


def rows_of(loader: Any, epoch: int = 0) -> list[tuple[float, ...]]:
    """The feature rows of one epoch, sorted."""
    return sorted(tuple(row) for (x, _), _ in loader.read_batches(epoch, 0, len(loader)) for row in x.tolist())


# -- splits that overlap and change ----------------------------------------------------------------------------------


def test_the_splits_are_disjoint_and_cover_all_rows() -> None:
    model = initialised()
    splits = [set(rows_of(loader)) for loader in (model.train_dl, model.validation_dl, model.test_dl)]
    assert [len(rows) for rows in splits] == [96, 12, 12]
    assert len(set.union(*splits)) == 120


def test_the_training_rows_are_the_same_in_every_epoch() -> None:
    model = initialised()
    assert rows_of(model.train_dl, 0) == rows_of(model.train_dl, 1) == rows_of(model.train_dl, 7)


def test_the_splits_are_a_function_of_rows_shares_and_seed() -> None:
    first, again, other = initialised(), initialised(batch_size=7, learning_rate=1.0), initialised(seed=2)
    assert rows_of(first.test_dl) == rows_of(again.test_dl)
    assert rows_of(first.test_dl) != rows_of(other.test_dl)


# -- validation statistics of the sanity check -----------------------------------------------------------------------


class DefaultTrainer(Classifier):
    """Lightning's own defaults, with its sanity check."""

    def trainer_init(self) -> pl.Trainer:
        return quiet_trainer(max_epochs=self.epochs, num_sanity_val_steps=2)


@pytest.mark.parametrize("cls", [Classifier, DefaultTrainer])
def test_there_is_one_entry_of_val_stats_for_each_trained_epoch(cls: type[Any]) -> None:
    assert len(fitted(cls, epochs=2).val_stats) == 2


# -- averages of an epoch --------------------------------------------------------------------------------------------


def test_the_average_of_an_epoch_is_that_of_its_rows() -> None:
    model = fitted(epochs=1, batch_size=7)  # validation batches of 7 and 5 rows
    loader = model.validation_dl
    with torch.no_grad():
        wanted = F.cross_entropy(model([loader.features, loader.support]), loader.targets)
    assert model.val_stats[-1]["validation_loss"] == pytest.approx(wanted.item(), rel=1e-6)


def test_floats_ints_and_integer_tensors_are_averaged_too() -> None:
    class Mixed(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            rows = len(batch[1])
            return {"float": float(rows), "int": rows, "int64": torch.tensor(rows), "array": np.float32(rows)}

    stats = fitted(Mixed, epochs=1, batch_size=7).val_stats[-1]
    assert stats == dict.fromkeys(("float", "int", "int64", "array"), (7 * 7 + 5 * 5) / 12)
    assert {type(value) for value in stats.values()} == {float}


# -- a second fit ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Classifier, DefaultTrainer])
def test_a_second_fit_trains_again_from_the_present_weights(cls: type[Any]) -> None:
    model = initialised(cls, epochs=2)
    model.fit(DATA)
    once = model.get_param_states()
    first_loss = model.val_stats[-1]["validation_loss"]
    result = model.fit(DATA)
    assert len(model.val_stats) == 4
    assert not same(model.get_param_states(), once)
    assert result == {"validation_loss": f"{model.val_stats[-1]['validation_loss']:.4f}"}

    continued = initialised(cls, epochs=2)
    continued.update_params(once)
    continued.position = model.position // 2
    continued.fit(DATA)
    assert same(continued.get_param_states(), model.get_param_states())
    assert model.val_stats[2]["validation_loss"] < first_loss


# -- data that is given is data that is used -------------------------------------------------------------------------


def test_fitting_other_data_uses_them() -> None:
    other = table(rows=60, seed=9)
    model = initialised()
    model.fit(DataFrameSource(other))
    assert model.train_dl.rows == 48
    keys = set(np.round(other["f0"], 9))
    mean, scale = model.preparation.continuous["f0"]
    assert {round(row[0] * scale + mean, 9) for row in rows_of(model.train_dl)} != keys  # 48 of 60
    np.testing.assert_allclose(
        sorted(
            row[0] * scale + mean
            for row in rows_of(model.train_dl) + rows_of(model.validation_dl) + rows_of(model.test_dl)
        ),
        sorted(other["f0"]),
        rtol=1e-5,
    )


def test_predicting_other_data_predicts_all_their_rows_in_order() -> None:
    model = fitted(epochs=3)
    other = table(rows=33, seed=9)
    before = other.copy(deep=True)
    found = model.predict(DataFrameSource(other))
    assert found.preds.shape == (33, 2)
    one_by_one = [model.predict(DataFrameSource(other.iloc[[row]])).preds[0] for row in (0, 7, 32)]
    np.testing.assert_allclose(found.preds[[0, 7, 32]], one_by_one, rtol=1e-5)
    pd.testing.assert_frame_equal(other, before)


def test_predicting_changes_nothing() -> None:
    model = fitted(epochs=3)
    model.evaluate()
    kept = model.preds.copy(), model.target.copy(), model.get_param_states()
    loaders = (model.train_dl, model.validation_dl, model.test_dl)
    model.predict(DataFrameSource(table(rows=33, seed=9)))
    assert (model.epochs, model.steps, model.position) == (3, None, 9)
    assert (model.train_dl, model.validation_dl, model.test_dl) == loaders
    np.testing.assert_array_equal(model.preds, kept[0])
    np.testing.assert_array_equal(model.target, kept[1])
    assert same(model.get_param_states(), kept[2])


# -- rounds in steps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "batch_size"), [(7, 7), (20, 7), (4, 16)])
def test_a_round_trains_exactly_its_batches_and_reads_no_other(steps: int, batch_size: int) -> None:
    model = initialised(epochs=None, steps=steps, batch_size=batch_size)
    model.initialise_model(DATA)
    spy = model.train_dl = SpyLoader(model.train_dl)
    rounds = []
    for _ in range(6):
        before = len(spy.read)
        model.fit(DATA)
        model.reset_trainer()
        rounds.append(len(spy.read) - before)
    assert rounds == [steps] * 6
    assert spy.read == [divmod(batch, len(spy)) for batch in range(6 * steps)]


# -- metrics of a round in steps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Classifier, DefaultTrainer])
def test_a_round_in_steps_is_validated_after_its_last_step(cls: type[Any]) -> None:
    model = initialised(cls, epochs=None, steps=4)
    model.fit(DATA)
    loader = model.validation_dl
    with torch.no_grad():
        wanted = F.cross_entropy(model([loader.features, loader.support]), loader.targets)
    assert len(model.val_stats) == 1
    assert model.val_stats[0]["validation_loss"] == pytest.approx(wanted.item(), rel=1e-6)


# -- rounds that do not divide the whole -----------------------------------------------------------------------------


def test_five_epochs_in_rounds_of_two_are_five_epochs() -> None:
    model = initialised(epochs=2)
    for epochs in (2, 2, 1):
        model.set_model_training_iterations(epochs)
        model.fit(DATA)
    assert (model.position, len(model.val_stats)) == (5 * 3, 5)


@pytest.mark.parametrize("iterations", [0, -1, 1.0, "2", True, None])
def test_rounds_without_iterations_are_refused(iterations: Any) -> None:
    model = initialised()
    with pytest.raises(ValueError, match="iterations must be an integer of at least 1"):
        model.set_model_training_iterations(iterations)


# -- splits without rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [{"epochs": 2}, {"steps": 4}], ids=str)
def test_a_model_trains_without_validation_rows(length: dict[str, int]) -> None:
    structure = DataStructure(
        target="target", data_splitter=PercentageSplitter(validation_percentage=0, test_percentage=10)
    )
    model = classifier(datastructure=structure, **length)
    assert model.fit(DATA, metrics=default_metrics(model.problem)) == {}
    assert model.val_stats == []
    assert len(model.evaluate().preds) == 12


def test_evaluating_without_test_rows_names_the_missing_split() -> None:
    structure = DataStructure(
        target="target", data_splitter=PercentageSplitter(validation_percentage=10, test_percentage=0)
    )
    model = fitted(datastructure=structure, epochs=1)
    with pytest.raises(
        MissingSplitError, match="there are no test rows: the splitter keeps no rows for the test split"
    ):
        model.evaluate()


# -- arguments that make no sense ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["epochs", "steps"])
@pytest.mark.parametrize("value", [0, -1, "3", True, 1.5])
def test_a_length_that_is_no_positive_integer_is_refused_at_construction(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got {value!r}"):
        classifier(**{name: value})


@pytest.mark.parametrize("value", [0, -1, "32", True, None, 8.0])
def test_a_batch_size_that_is_no_positive_integer_is_refused_at_construction(value: Any) -> None:
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1"):
        classifier(epochs=1, batch_size=value)


# -- seeds -----------------------------------------------------------------------------------------------------------


def test_no_seed_is_not_seed_42() -> None:
    unseeded = [initialised(seed=None).get_param_states() for _ in range(2)]
    assert not same(unseeded[0], unseeded[1])


def test_draws_between_construction_and_initialising_change_nothing() -> None:
    wanted = initialised().get_param_states()
    model = classifier(epochs=1)
    torch.rand(10), random.random(), np.random.random()
    model.initialise_model(DATA)
    assert same(model.get_param_states(), wanted)


def test_the_users_global_generators_are_not_reseeded() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    fitted(epochs=1).evaluate()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    np.testing.assert_array_equal(np.random.get_state()[1], before[2])


# -- differences of parameters ---------------------------------------------------------------------------------------


def test_a_difference_changes_neither_argument_nor_the_live_model() -> None:
    model = initialised(Normed)
    old, new = model.get_param_states(), {name: value + 1 for name, value in model.get_param_states().items()}
    kept = [{name: value.clone() for name, value in params.items()} for params in (old, new)]
    difference = model.diff_params(old, new)
    assert same(old, kept[0])
    assert same(new, kept[1])
    assert same(model.get_param_states(), kept[0])
    for value in difference.values():
        torch.testing.assert_close(value, torch.ones_like(value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda params: params.update({"1.3.bias": torch.tensor(1.0)}), r"1\.3\.bias"),
        (lambda params: params.update({"1.3.bias": torch.ones(1)}), r"1\.3\.bias"),
        (lambda params: params.update({"1.3.bias": torch.ones(2, dtype=torch.float64)}), r"1\.3\.bias"),
        (lambda params: params.pop("1.3.bias"), r"1\.3\.bias"),
        (lambda params: params.update(extra=torch.ones(1)), "extra"),
    ],
    ids=["scalar", "shape", "dtype", "missing", "extra"],
)
def test_a_difference_of_parameters_that_do_not_match_names_them(change: Any, message: str) -> None:
    model = initialised(Normed)
    old, new = model.get_param_states(), model.get_param_states()
    change(new)
    for pair in ((old, new), (new, old)):
        with pytest.raises(ParameterError, match=message):
            model.diff_params(*pair)


def test_plain_tensors_count_in_a_difference() -> None:
    model = initialised()
    new = {name: nn.Parameter(value + 2) for name, value in model.get_param_states().items()}
    for value in model.diff_params(model.get_param_states(), new).values():
        torch.testing.assert_close(value, torch.full_like(value, 2))


# -- means of updates ------------------------------------------------------------------------------------------------


def updates_of(model: Any, *changes: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Updates that are zero but for the changes."""
    zeros = {name: torch.zeros_like(value) for name, value in model.get_param_states().items()}
    return [{**zeros, **change} for change in changes]


def test_integer_counters_stay_integers_and_exact() -> None:
    model = initialised(Normed)
    name = "0.num_batches_tracked"
    model.update_params({**model.get_param_states(), name: torch.tensor(5)})
    seven = [{name: torch.tensor(7)}] * 10
    assert model.apply_weight_updates(updates_of(model, *seven))[name] == 12
    assert model.apply_weight_updates(updates_of(model, {name: torch.tensor(2)}, {name: torch.tensor(4)}))[name] == 15
    large = 2**53 + 1
    model.update_params({**model.get_param_states(), name: torch.tensor(0)})
    found = model.apply_weight_updates(updates_of(model, {name: torch.tensor(large)}, {name: torch.tensor(large)}))
    assert found[name].dtype == torch.int64
    assert found[name] == large


def test_a_running_variance_is_never_driven_below_zero() -> None:
    model = initialised(Normed)
    found = model.apply_weight_updates(updates_of(model, {"0.running_var": torch.full((5,), -9.0)}))
    assert found["0.running_var"].tolist() == [0.0] * 5
    assert model.get_param_states()["0.running_var"].tolist() == [0.0] * 5


def test_no_updates_are_refused() -> None:
    model = initialised()
    with pytest.raises(ParameterError):
        model.apply_weight_updates([])


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_names_of_every_update_are_checked(place: int) -> None:
    model = initialised()
    before = model.get_param_states()
    updates = updates_of(model, {}, {}, {})
    del updates[place]["3.bias"]
    with pytest.raises(ParameterError, match=r"3\.bias"):
        model.apply_weight_updates(updates)
    assert same(model.get_param_states(), before)


def test_the_model_takes_the_mean_of_the_updates() -> None:
    model = initialised()
    before = model.get_param_states()
    ones, threes = ({name: torch.full_like(value, size) for name, value in before.items()} for size in (1.0, 3.0))
    returned = model.apply_weight_updates([ones, threes])
    assert same(dict(returned), model.get_param_states())
    for name, value in before.items():
        torch.testing.assert_close(returned[name], value + 2)


# -- writing and reading parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda params: params.pop("3.bias"),
        lambda params: params.update(extra=torch.ones(1)),
        lambda params: params.update({"3.bias": torch.ones(3)}),
        lambda params: params.update({"3.bias": torch.tensor([1.0, float("nan")])}),
        lambda params: params.update({"3.bias": [1.0, 2.0]}),
    ],
    ids=["missing", "extra", "shape", "NaN", "no tensor"],
)
def test_parameters_are_updated_all_or_not_at_all(change: Any) -> None:
    model = initialised()
    before = model.get_param_states()
    new = {name: torch.zeros_like(value) for name, value in before.items()}
    change(new)
    with pytest.raises(ParameterError, match=r"3\.bias|extra"):
        model.update_params(new)
    assert same(model.get_param_states(), before)


def test_plain_tensors_are_taken_as_parameters() -> None:
    model = initialised()
    model.update_params({name: torch.ones_like(value) for name, value in model.get_param_states().items()})
    assert all(value.eq(1).all() for value in model.get_param_states().values())


def test_the_states_are_a_snapshot_that_shares_nothing_with_the_model() -> None:
    model = initialised()
    states = model.get_param_states()
    kept = {name: value.clone() for name, value in states.items()}
    model.fit(DATA)
    assert same(states, kept)
    for value in states.values():
        value.zero_()
    assert not same(model.get_param_states(), states)
    assert type(states) is dict


# -- federated training ----------------------------------------------------------------------------------------------


def test_the_callers_model_itself_is_handed_to_federated_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the final weights are in it; `test_federated_seam` installs a package that puts some there."""
    handed: list[Any] = []

    def run(operation: str, model: Any, pod_identifiers: list[str], **options: Any) -> dict[str, str]:
        handed.append(model)
        return {}

    monkeypatch.setattr("bitfount_model.model.run_federated", run)
    model = initialised()
    model.fit(pod_identifiers=["a"])
    assert handed == [model]


# -- parameters as lists ---------------------------------------------------------------------------------------------


def test_lists_read_back_into_the_models_dtypes_and_shapes() -> None:
    class AllDtypes(Classifier):
        def create_model(self) -> nn.Module:
            network = super().create_model()
            network.register_buffer("a_double", torch.tensor([1 / 3, 1e-300], dtype=torch.float64))
            network.register_buffer("a_half", torch.tensor([1.5, 6e-8], dtype=torch.float16))
            network.register_buffer("brain", torch.tensor([1.5, 3e38], dtype=torch.bfloat16))
            network.register_buffer("a_int32", torch.tensor([2**31 - 1], dtype=torch.int32))
            network.register_buffer("int64", torch.tensor(2**62 + 1))
            network.register_buffer("nothing", torch.empty(0, 3))
            return network

    model = initialised(AllDtypes)
    params = model.get_param_states()
    lists = json.loads(json.dumps(model.serialize_params(params)))
    found = model.deserialize_params(lists)
    assert same(dict(found), params)
    assert [value.dtype for value in found.values()] == [value.dtype for value in params.values()]


# -- weights files that do not fit -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_file_of_other_shapes_changes_nothing(name: str, tmp_path: Path) -> None:
    initialised(hidden=9).serialize(tmp_path / name)
    model = initialised()
    before, prepared = model.get_param_states(), model.preparation
    with pytest.raises(ParameterError, match=r"0\.weight.*9.*8|0\.weight.*8.*9"):
        model.deserialize(tmp_path / name)
    assert same(model.get_param_states(), before)
    assert model.preparation is prepared


def test_a_file_with_nan_is_refused_by_name(tmp_path: Path) -> None:
    model = initialised()
    before = model.get_param_states()
    torch.save({**before, "3.bias": torch.tensor([float("nan"), 1.0])}, tmp_path / "w.pt")
    with pytest.raises(ParameterError, match=r"3\.bias"):
        model.deserialize(tmp_path / "w.pt")
    assert same(model.get_param_states(), before)


def test_the_real_cause_comes_first(tmp_path: Path) -> None:
    model = initialised()
    with pytest.raises(ParameterError, match=r"^cannot read the weights file .*none\.pt: No such file or directory"):
        model.deserialize(tmp_path / "none.pt")
    (tmp_path / "w.pt").write_bytes(b"")
    with pytest.raises(ParameterError, match=r"w\.pt is empty$"):
        model.deserialize(tmp_path / "w.pt")


# -- the source of a model -------------------------------------------------------------------------------------------

SOURCE = '''
"""A model with everything around it."""
from __future__ import annotations

import torch
from torch import nn

from bitfount_model import PyTorchBitfountModel, PyTorchClassifierMixIn

RATE = 0.25

def layers(inputs: int, outputs: Undefined) -> nn.Module:
    return nn.Linear(inputs, outputs)

class Own(PyTorchClassifierMixIn, PyTorchBitfountModel):
    def create_model(self): return layers(self.datastructure.input_size, self.n_classes)
    def forward(self, x): return self._model(x[0])
    def configure_optimizers(self): return torch.optim.SGD(self.parameters(), lr=RATE)
    def training_step(self, batch, batch_idx): return nn.functional.cross_entropy(self(batch[0]), batch[1])
    def validation_step(self, batch, batch_idx): return {"loss": self.training_step(batch, batch_idx)}
    def test_step(self, batch, batch_idx): return {"predictions": self(batch[0]), "targets": batch[1]}
'''


def test_the_written_source_runs_on_its_own_and_no_shell_sees_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(SOURCE)
    name = "a; touch pwned; $(touch pwned) model.py"
    load_model_class("own.py").serialize_model_source_code(name)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [name, "own.py"]
    assert Path(name).read_text().index("from __future__ import annotations") < 100
    written = load_model_class(name)
    model = fitted(written, epochs=1)
    assert model.configure_optimizers().defaults["lr"] == 0.25


# -- numbers that lose digits ----------------------------------------------------------------------------------------


def test_statistics_and_predictions_keep_all_their_digits() -> None:
    model = classifier(epochs=1)
    shown = model.fit(DATA, metrics=default_metrics(model.problem))
    stats = model.val_stats[-1]
    assert shown == {name: f"{value:.4f}" for name, value in stats.items()}
    assert all(type(value) is float for value in stats.values())
    assert stats["Brier Loss"] != float(shown["Brier Loss"])

    result = model.evaluate()
    with torch.no_grad():
        wanted = model.probabilities([model.test_dl.features, model.test_dl.support]).numpy()
    np.testing.assert_array_equal(result.preds, wanted)
    found = model.metrics.compute(result.targs, result.preds)["AUC"]
    assert found == pytest.approx(roc_auc_score(result.targs, wanted[:, 1]), abs=1e-6)


def test_a_table_read_twice_gives_the_same_bits(tmp_path: Path) -> None:
    FRAME.to_csv(tmp_path / "table.csv", index=False)
    first, again = (
        classifier(epochs=1, datastructure=DataStructure(target="target", ignore_cols=["amount"])) for _ in range(2)
    )
    first.fit(CSVSource(tmp_path / "table.csv"))
    again.fit(CSVSource(tmp_path / "table.csv"))
    assert same(first.get_param_states(), again.get_param_states())
    assert first.schema == again.schema == schema_of(FRAME)
