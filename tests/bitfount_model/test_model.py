"""The model class as a data scientist meets it: its names, its data in and out, its files, its results."""

from __future__ import annotations

import copy
import inspect
import io
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from marshmallow import fields
from PIL import Image
from sklearn.metrics import accuracy_score, r2_score, roc_auc_score
from torch import nn
from torch.nn import functional as F

from bitfount_model import (
    BitfountSchema,
    DataFrameSource,
    DataStructure,
    PercentageSplitter,
    PyTorchBitfountModel,
    PyTorchClassifierMixIn,
    PyTorchRegressorMixIn,
    SklearnSource,
    SplitterDefinedInData,
    TaskContext,
    load_model_class,
    serialization,
)
from bitfount_model.data import BaseSource
from bitfount_model.errors import DataError, ModelError, ParameterError, SerializationError, TrainingError
from bitfount_model.metrics import default_metrics
from bitfount_model.types import Problem
from tests.bitfount_model.models import (
    Classifier,
    Model,
    MultiLabelClassifier,
    Regressor,
    classifier,
    fitted,
    same,
    schema_of,
    table,
)

FRAME = table()
DATA = DataFrameSource(FRAME)


def built(
    cls: type[Any], frame: pd.DataFrame, structure: DataStructure, categorical: tuple[str, ...] = (), **kwargs: Any
) -> Any:
    """A model of this table, not yet initialised."""
    kwargs = {"epochs": 2, "seed": 1, **kwargs}
    return cls(datastructure=structure, schema=schema_of(frame, categorical), **kwargs)


# -- names and defaults ----------------------------------------------------------------------------------------------

SIGNATURES = {
    "__init__": (
        "datastructure, schema, batch_size=32, epochs=None, steps=None, seed=None, param_clipping=None, **kwargs"
    ),
    "apply_weight_updates": "weight_updates",
    "configure_optimizers": "",
    "create_model": "",
    "deserialize": "content, weights_only=True, **kwargs",
    "deserialize_params": "serialized_weights",
    "diff_params": "old_params, new_params",
    "evaluate": "test_dl=None, pod_identifiers=None, **kwargs",
    "fit": "data=None, metrics=None, pod_identifiers=None, **kwargs",
    "forward": "x",
    "get_param_states": "",
    "initialise_model": "data=None, data_splitter=None, context=None",
    "log_": "name, value, **kwargs",
    "predict": "data=None, pod_identifiers=None, **kwargs",
    "reset_trainer": "",
    "serialize": "filename",
    "serialize_model_source_code": "filename, extra_imports=None",
    "serialize_params": "weights",
    "set_datastructure_identifier": "datastructure_identifier",
    "set_model_training_iterations": "iterations",
    "skip_training_batch": "batch_idx",
    "tensor_precision": "",
    "test_dataloader": "",
    "test_epoch_end": "outputs",
    "test_step": "batch, batch_idx",
    "train_dataloader": "",
    "trainer_init": "",
    "training_step": "batch, batch_idx",
    "update_params": "new_model_params",
    "val_dataloader": "",
    "validation_epoch_end": "outputs",
    "validation_step": "batch, batch_idx",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_methods_have_the_originals_names_arguments_and_defaults(name: str) -> None:
    parameters = inspect.signature(getattr(PyTorchBitfountModel, name)).parameters.values()
    shown = [str(p.replace(annotation=p.empty)) for p in parameters if p.name != "self"]
    assert ", ".join(shown) == SIGNATURES[name]


def test_the_attributes_have_the_originals_names() -> None:
    model = classifier(epochs=3, batch_size=5)
    assert (model.batch_size, model.epochs, model.steps, model.preds, model.target) == (5, 3, None, None, None)
    assert model.val_stats == []
    assert set(PyTorchBitfountModel.fields_dict) == {"batch_size", "epochs", "steps", "seed", "param_clipping"}
    assert set(PyTorchBitfountModel.nested_fields) == {"datastructure", "schema"}
    assert isinstance(model, torch.nn.Module)


def test_what_the_user_must_give_is_abstract() -> None:
    wanted = {"create_model", "forward", "configure_optimizers", "training_step", "validation_step", "test_step"}
    assert PyTorchBitfountModel.__abstractmethods__ == wanted

    class Nothing(PyTorchClassifierMixIn, PyTorchBitfountModel):
        pass

    with pytest.raises(TypeError, match="abstract"):
        classifier(Nothing, epochs=1)


# -- construction ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "found"), [({}, "neither"), ({"epochs": 1, "steps": 1}, "both")], ids=str)
def test_one_and_only_one_of_epochs_and_steps(length: dict[str, int], found: str) -> None:
    with pytest.raises(ValueError, match=f"one and only one of epochs and steps; got {found}"):
        classifier(**length)


@pytest.mark.parametrize("seed", [-1, 1.0, "1", True])
def test_a_seed_is_none_or_an_integer_of_at_least_0(seed: Any) -> None:
    with pytest.raises(ValueError, match="seed must be None or an integer of at least 0"):
        classifier(epochs=1, seed=seed)


def test_param_clipping_is_checked_at_construction() -> None:
    with pytest.raises(ValueError, match="num_workers"):
        classifier(epochs=1, param_clipping={"prime_q": 13, "precision": 1000})


def test_unknown_arguments_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="leaning_rate"):
        classifier(epochs=1, leaning_rate=0.1)


def test_the_callers_datastructure_is_not_written_to() -> None:
    structure = DataStructure(target="target", ignore_cols=["amount"])
    model = fitted(datastructure=structure, epochs=1)
    assert structure.input_size is None
    assert model.datastructure.input_size == 5


def test_a_class_without_a_mixin_is_told_to_inherit_one() -> None:
    class Bare(Model):
        def create_model(self) -> nn.Module:
            return self.network(2)

    with pytest.raises(ModelError, match="let it inherit PyTorchClassifierMixIn or PyTorchRegressorMixIn"):
        classifier(Bare, epochs=1).initialise_model(DATA)


def test_the_mixin_may_come_last() -> None:
    class Last(Model, PyTorchClassifierMixIn):
        def create_model(self) -> nn.Module:
            return self.network(self.n_classes)

    model = classifier(Last, epochs=1)
    model.fit(DATA)
    assert model.evaluate().preds.shape == (12, 2)


# -- problems, end to end --------------------------------------------------------------------------------------------


def test_a_classifier_of_several_classes() -> None:
    frame = table(classes=4)
    model = fitted(frame=frame, epochs=2)
    assert (model.n_classes, model.problem) == (4, Problem.MULTICLASS)
    (x, y) = next(iter(model.train_dl))
    assert [tensor.dtype for tensor in (*x, y)] == [torch.float32, torch.float32, torch.int64]
    assert [tensor.shape[1:] for tensor in (*x, y)] == [(5,), (2,), ()]
    result = model.evaluate()
    assert (result.preds.shape, result.targs.dtype) == ((12, 4), np.int64)
    assert set(model.metrics.compute(result.targs, result.preds)) == set(default_metrics(Problem.MULTICLASS))


def test_a_classifier_of_several_labels() -> None:
    frame = FRAME.assign(first=FRAME["f0"] > 0, second=(FRAME["f1"] > 0).map({True: "yes", False: "no"}))
    frame = frame.drop(columns=["target", "amount"])
    structure = DataStructure(target=["first", "second"])
    model = built(MultiLabelClassifier, frame, structure, ("first", "second"), multilabel=True, epochs=30)
    stats = model.fit(DataFrameSource(frame), metrics=default_metrics(Problem.MULTILABEL))
    assert (model.n_classes, model.problem) == (2, Problem.MULTILABEL)
    assert next(iter(model.train_dl))[1].shape == (32, 2)
    assert set(stats) == {"validation_loss", *default_metrics(Problem.MULTILABEL)}
    result = model.evaluate()
    assert result.preds.shape == result.targs.shape == (12, 2)
    assert model.metrics.compute(result.targs, result.preds)["AUC"] > 0.8


def test_several_targets_need_multilabel() -> None:
    structure = DataStructure(target=["target", "amount"])
    with pytest.raises(DataError, match="multilabel=True"):
        built(Classifier, FRAME, structure, ("target", "amount")).initialise_model(DATA)


@pytest.mark.parametrize("targets", [["amount"], ["amount", "f4"]], ids=str)
def test_a_regressor_of_one_number_or_several(targets: list[str]) -> None:
    model = built(Regressor, FRAME, DataStructure(target=targets, ignore_cols=["target"]))
    stats = model.fit(DATA, metrics=default_metrics(Problem.REGRESSION))
    assert set(stats) == {"validation_loss", "MAE", "MSE", "RMSE", "R2", "KS"}
    y = next(iter(model.train_dl))[1]
    assert (y.dtype, y.shape[1:]) == (torch.float32, () if len(targets) == 1 else (2,))
    result = model.evaluate()
    assert result.preds.shape == result.targs.shape == ((12,) if len(targets) == 1 else (12, 2))
    assert np.isfinite(list(model.metrics.compute(result.targs, result.preds).values())).all()


def test_images_come_between_the_table_and_the_support(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    paths = []
    for number in range(20):
        path = tmp_path / f"{number}.png"
        Image.fromarray(generator.integers(0, 255, (6, 4, 3), dtype=np.uint8)).save(path)
        paths.append(str(path))
    frame = FRAME.head(20).assign(photo=paths)

    class Images(Classifier):
        def create_model(self) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(72, self.n_classes))

        def forward(self, x: Any) -> Any:
            tabular, image, sup = x
            assert (tabular.shape[1:], image.shape[1:], sup.shape[1:]) == ((5,), (3, 6, 4), (2,))
            return self._model(image)

    schema = BitfountSchema("photos")
    schema.generate_full_schema(DataFrameSource(frame), force_stypes={"categorical": ["target"], "image": ["photo"]})
    structure = DataStructure(target="target", image_cols=["photo"], ignore_cols=["amount"])
    kwargs = {"datastructure": structure, "schema": schema, "seed": 1, "batch_size": 4}
    for length in ({"epochs": 2}, {"steps": 3}):
        model = Images(**kwargs, **length)
        model.fit(DataFrameSource(frame))
        assert model.evaluate().preds.shape == (2, 2)
        assert model.predict(DataFrameSource(frame)).preds.shape == (20, 2)


def test_loss_weights_and_ignored_classes_are_the_support() -> None:
    frame = FRAME.assign(weight=np.arange(120.0), ignored=1)
    structure = DataStructure(
        target="target", ignore_cols=["amount"], loss_weights_col="weight", ignore_classes_col="ignored"
    )
    model = classifier(epochs=1, frame=frame, datastructure=structure)
    model.initialise_model(DataFrameSource(frame))
    support = torch.cat([sup for (_, sup), _ in model.test_dl])
    assert model.datastructure.input_size == 5
    assert set(support[:, 0].tolist()) <= set(range(120))
    assert support[:, 1].tolist() == [1.0] * 12


# -- small tables ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("length", [{"epochs": 1}, {"steps": 3}], ids=str)
def test_a_table_of_very_few_rows_trains(rows: int, length: dict[str, int]) -> None:
    frame = table().head(rows)
    model = fitted(frame=frame, **length)
    assert model.predict(DataFrameSource(frame)).preds.shape == (rows, model.n_classes)


def test_one_class_trains_and_its_undefined_metrics_are_nan() -> None:
    frame = FRAME.assign(target="only")
    model = classifier(epochs=1, frame=frame)
    stats = model.fit(DataFrameSource(frame), metrics=default_metrics(Problem.BINARY))
    assert model.n_classes == 1
    assert stats["AUC"] == "nan"


def test_rows_that_are_all_validation_are_refused() -> None:
    frame = FRAME.assign(part="VALIDATION")
    structure = DataStructure(target="target", data_splitter=SplitterDefinedInData("part"))
    with pytest.raises(ValueError, match="train"):
        fitted(frame=frame, epochs=1, datastructure=structure)


def test_predicting_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="there are no rows to predict"):
        fitted(epochs=1).predict(DataFrameSource(FRAME.head(0)))


# -- before, neither, both -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.evaluate(), "evaluate needs an initialised model"),
        (lambda model: model.predict(DATA), "predict needs an initialised model"),
        (lambda model: model.deserialize(b""), "deserialize needs an initialised model"),
        (lambda model: model.get_param_states(), "get_param_states needs an initialised model"),
        (lambda model: model.update_params({}), "needs an initialised model"),
        (lambda model: model.serialize("w.pt"), "needs an initialised model"),
        (lambda model: model.train_dataloader(), "the train split needs an initialised model"),
        (lambda model: model.fit_locally(None), "needs an initialised model"),
        (lambda model: model.fit(), "fit needs data .* and got neither"),
        (lambda model: model.fit(DATA, pod_identifiers=["a"]), "fit needs data .* and got both"),
        (lambda model: model.predict(), "predict needs data .* and got neither"),
        (lambda model: model.predict(DATA, pod_identifiers=["a"]), "predict needs data .* and got both"),
        (lambda model: model.fit(DATA, model_out="w.pt"), "fit on local data takes no model_out"),
        (lambda model: model.evaluate(b=1, a=2), "evaluate on local data takes no a, b"),
        (lambda model: model.predict(DATA, extra=1), "predict on local data takes no extra"),
    ],
)
def test_a_call_that_cannot_be_answered_says_why(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(classifier(epochs=1))


def test_a_model_without_data_says_so_when_it_needs_them() -> None:
    model = classifier(epochs=1)
    model.initialise_model()
    with pytest.raises(ValueError, match="there are no test rows: the model has no data yet"):
        model.evaluate()
    with pytest.raises(ValueError, match="how the training rows were encoded"):
        model.predict(DATA)


# -- initialising ----------------------------------------------------------------------------------------------------


def test_a_second_initialisation_keeps_the_network_and_its_weights() -> None:
    model = fitted(epochs=1)
    network, weights = model._model, model.get_param_states()
    model.initialise_model(DataFrameSource(table(seed=5)))
    assert model._model is network
    assert same(model.get_param_states(), weights)


def test_a_modeller_has_a_network_and_no_rows() -> None:
    class Unreadable(BaseSource):
        def describe(self) -> dict[str, str]:
            return {}

        def _load(self, table: str | None, query: str | None) -> pd.DataFrame:
            raise AssertionError("a modeller's data are not read")

    model = classifier(epochs=1)
    model.initialise_model(Unreadable(), context=TaskContext.MODELLER)
    assert model.train_dl is None
    worker = classifier(epochs=1)
    worker.initialise_model(DATA, context=TaskContext.WORKER)
    assert same(model.get_param_states(), worker.get_param_states())


def test_the_splitter_is_the_one_given_then_the_datastructures_then_80_10_10() -> None:
    structure = DataStructure(
        target="target", ignore_cols=["amount"], data_splitter=PercentageSplitter(20, 20), table="rows"
    )

    def sizes(model: Any) -> tuple[int, int, int]:
        return model.train_dl.rows, model.validation_dl.rows, model.test_dl.rows

    given, structured, default = (classifier(epochs=1, **kwargs) for kwargs in ({}, {"datastructure": structure}, {}))
    given.initialise_model(DATA, data_splitter=PercentageSplitter(30, 30))
    structured.initialise_model(DATA)
    default.initialise_model(DATA)
    assert [sizes(model) for model in (given, structured, default)] == [(48, 36, 36), (72, 24, 24), (96, 12, 12)]
    given.fit(DataFrameSource(FRAME.copy()))  # the splitter that was given is kept
    assert sizes(given) == (48, 36, 36)


def test_a_datastructure_per_pod_is_read_by_identifier() -> None:
    read: list[str | None] = []

    class Tables(DataFrameSource):
        def read(self, table: str | None = None, query: str | None = None) -> pd.DataFrame:
            read.append(table)
            return super().read()

    structure = DataStructure(target="target", table={"north": "patients", "south": "people"}, ignore_cols=["amount"])
    model = classifier(epochs=1, datastructure=structure)
    with pytest.raises(ValueError, match="north"):
        model.initialise_model(Tables(FRAME))
    model.set_datastructure_identifier("south")
    model.initialise_model(Tables(FRAME))
    assert read == ["people"]


def test_dataset_transforms_make_features() -> None:
    transforms = [{"addition": {"name": "sum", "arg1": "f0", "arg2": "f1"}}]
    structure = DataStructure(target="target", ignore_cols=["amount"], dataset_transforms=transforms)
    model = classifier(epochs=1, frame=FRAME.assign(sum=FRAME["f0"] + FRAME["f1"]), datastructure=structure)
    model.fit(DATA)
    assert model.datastructure.input_size == 6
    assert model.predict(DATA).preds.shape == (120, 2)


# -- keys ------------------------------------------------------------------------------------------------------------


def test_rows_are_reported_under_their_keys() -> None:
    frame = FRAME.assign(patient=[f"p{number:03}" for number in range(120)])
    source = DataFrameSource(frame, key="patient")
    model = classifier(epochs=1, frame=frame.drop(columns="patient"))
    model.fit(source)
    predicted, evaluated = model.predict(source), model.evaluate()
    assert predicted.keys == frame["patient"].tolist()
    by_key = dict(zip(predicted.keys, predicted.preds, strict=True))
    np.testing.assert_allclose(evaluated.preds, [by_key[key] for key in evaluated.keys], rtol=1e-5)
    targets = dict(zip(frame["patient"], frame["target"], strict=True))
    assert evaluated.targs.tolist() == [targets[key] for key in evaluated.keys]


# -- evaluating ------------------------------------------------------------------------------------------------------


def test_evaluate_keeps_its_predictions_and_targets_in_the_model() -> None:
    model = fitted(epochs=1)
    result = model.evaluate()
    assert (model.preds is result.preds, model.target is result.targs) == (True, True)
    assert all(module.training for module in model.modules())


def test_evaluate_takes_batches_of_the_users() -> None:
    model = fitted(epochs=1)
    batches = [([torch.ones(3, 5), torch.ones(3, 2)], torch.tensor([0, 1, 0]))] * 2
    result = model.evaluate(iter_of(batches))
    assert result.preds.shape == (6, 2)
    assert result.targs.tolist() == [0, 1, 0, 0, 1, 0]
    assert result.keys is None


class iter_of:  # noqa: N801 - reads as a function
    """An iterable of batches that is no list, which Lightning would take for several loaders."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        return iter(self.batches)


def test_a_test_step_without_predictions_is_refused() -> None:
    class Bare(Classifier):
        def test_step(self, batch: Any, batch_idx: int) -> Any:
            return {"targets": batch[1]}

    with pytest.raises(TrainingError, match="'predictions' is missing"):
        fitted(Bare, epochs=1).evaluate()


# -- predicting ------------------------------------------------------------------------------------------------------


def test_rows_without_the_target_are_predicted() -> None:
    model = fitted(epochs=1)
    wanted = model.predict(DATA).preds
    for frame in (FRAME.drop(columns=["target"]), FRAME.drop(columns=["target", "amount"]), FRAME.assign(target=None)):
        np.testing.assert_array_equal(model.predict(DataFrameSource(frame)).preds, wanted)


@pytest.mark.parametrize("encoding", ["codes", "one_hot"])
def test_categories_that_were_never_seen_are_predicted(encoding: Any) -> None:
    frame = FRAME.assign(colour=["red", "green", "blue"] * 40)
    structure = DataStructure(target="target", ignore_cols=["amount"], categorical_encoding=encoding)
    model = classifier(epochs=1, frame=frame, datastructure=structure)
    model.fit(DataFrameSource(frame))
    unseen = frame.assign(colour=["mauve", None, "red"] * 40)
    found = model.predict(DataFrameSource(unseen)).preds
    assert np.isfinite(found).all()
    # To the last bit but one: which kernels multiply matrices, and in which order they add, depends on the batch and the CPU.
    alone = model.predict(DataFrameSource(unseen.iloc[[2]])).preds
    np.testing.assert_allclose(found[2::3][:1], alone, rtol=1e-6)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_fresh_model_predicts_with_the_training_rows_normalisation(name: str, tmp_path: Path) -> None:
    frame = FRAME.assign(f0=FRAME["f0"] * 1000 + 5)
    model = fitted(frame=frame, epochs=3)
    wanted = model.predict(DataFrameSource(frame)).preds
    model.serialize(tmp_path / name)

    fresh = classifier(epochs=3, frame=frame, seed=99)
    fresh.initialise_model()
    fresh.deserialize(tmp_path / name)
    assert fresh.preparation == model.preparation
    np.testing.assert_array_equal(fresh.predict(DataFrameSource(frame)).preds, wanted)
    np.testing.assert_allclose(fresh.predict(DataFrameSource(frame.tail(3))).preds, wanted[-3:], rtol=1e-5)

    other_rows = classifier(epochs=3, frame=frame, seed=99)
    other_rows.initialise_model(DataFrameSource(frame.head(30)))
    other_rows.deserialize(tmp_path / name)
    np.testing.assert_array_equal(other_rows.predict(DataFrameSource(frame)).preds, wanted)


def test_the_predictions_are_those_of_plain_pytorch_on_standardised_rows() -> None:
    model = fitted(epochs=1)
    training = pd.DataFrame(model.train_dl.features.numpy())
    np.testing.assert_allclose(training.mean(), 0, atol=1e-6)
    np.testing.assert_allclose(training.std(ddof=0), 1, rtol=1e-5)
    mean, scale = np.array([model.preparation.continuous[f"f{number}"] for number in range(5)]).T
    rows = torch.tensor((FRAME[[f"f{number}" for number in range(5)]].to_numpy() - mean) / scale, dtype=torch.float32)
    with torch.no_grad():
        wanted = F.softmax(model._model(rows), dim=1).numpy()
    np.testing.assert_allclose(model.predict(DATA).preds, wanted, rtol=1e-5)


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_weights_go_to_a_file_and_come_back(name: str, tmp_path: Path) -> None:
    model = fitted(epochs=1)
    path = tmp_path / name
    model.serialize(path)
    for content in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
        other = classifier(epochs=1, seed=2)
        other.initialise_model(DATA)
        other.deserialize(content)
        assert same(other.get_param_states(), model.get_param_states())


def test_the_file_is_the_networks_own_state_dict(tmp_path: Path) -> None:
    model = fitted(epochs=1)
    model.serialize(tmp_path / "w.pt")
    assert same(dict(torch.load(tmp_path / "w.pt", weights_only=True)), dict(model._model.state_dict()))
    torch.save(classifier_network := copy.deepcopy(model._model).state_dict(), tmp_path / "torch.pt")
    model.deserialize(tmp_path / "torch.pt", map_location="cpu")
    assert same(model.get_param_states(), dict(classifier_network))


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def test_a_pickle_bomb_is_refused_by_default_and_nothing_is_executed(tmp_path: Path) -> None:
    model = fitted(epochs=1)
    before = model.get_param_states()
    torch.save({**before, "3.bias": Bomb(tmp_path / "executed")}, tmp_path / "w.pt")
    with pytest.raises(ParameterError, match="not a state dict that can be read: Weights only load failed"):
        model.deserialize(tmp_path / "w.pt")
    assert not (tmp_path / "executed").exists()
    assert same(model.get_param_states(), before)


def test_a_file_whose_preparation_makes_no_sense_changes_nothing(tmp_path: Path) -> None:
    model = fitted(epochs=1)
    before, prepared = model.get_param_states(), model.preparation
    state = copy.deepcopy(model._model).state_dict()
    for value in state.values():
        value.zero_()
    state._metadata = {"bitfount_model.preparation": {"json": "{}"}}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ParameterError, match="how rows were encoded"):
        model.deserialize(tmp_path / "w.pt")
    assert same(model.get_param_states(), before)
    assert model.preparation is prepared


def test_a_whole_network_is_taken_where_pickled_objects_are_allowed(tmp_path: Path) -> None:
    model = fitted(epochs=1)
    wanted = model.predict(DATA).preds
    torch.save(model._model, tmp_path / "network.pt")
    other = classifier(epochs=1)
    other.initialise_model(DATA)
    other.deserialize(tmp_path / "network.pt", weights_only=False)
    np.testing.assert_array_equal(other.predict(DATA).preds, wanted)

    broken = copy.deepcopy(model._model)
    nn.init.constant_(broken[0].weight, float("nan"))
    torch.save(broken, tmp_path / "broken.pt")
    with pytest.raises(ParameterError, match=r"0\.weight"):
        other.deserialize(tmp_path / "broken.pt", weights_only=False)
    np.testing.assert_array_equal(other.predict(DATA).preds, wanted)


# -- parameters beside the network -----------------------------------------------------------------------------------


def test_parameters_outside_the_network_travel_with_it() -> None:
    class Temperature(Classifier):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.temperature = nn.Parameter(torch.ones(1))

        def forward(self, x: Any) -> Any:
            return super().forward(x) / self.temperature

    model = fitted(Temperature, epochs=1)
    params = model.get_param_states()
    assert list(params) == ["temperature", "0.weight", "0.bias", "3.weight", "3.bias"]
    other = classifier(Temperature, epochs=1, seed=2)
    other.initialise_model(DATA)
    other.update_params(params)
    assert same(other.get_param_states(), params)


# -- a file in the style of the original's tutorials -----------------------------------------------------------------

TUTORIAL = '''
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from bitfount_model import PyTorchBitfountModel, PyTorchClassifierMixIn


class MyCustomModel(PyTorchClassifierMixIn, PyTorchBitfountModel):
    """A custom model."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.learning_rate = 0.01

    def create_model(self):
        self.input_size = self.datastructure.input_size
        return nn.Sequential(
            nn.Linear(self.input_size, 50),
            nn.BatchNorm1d(50),
            nn.ReLU(),
            nn.Linear(50, self.n_classes),
        )

    def forward(self, x):
        x, sup = x
        x = self._model(x.float())
        return x

    def training_step(self, batch, batch_idx):
        if self.skip_training_batch(batch_idx):
            return None
        x, y = batch
        y_hat = self(x)
        loss = F.cross_entropy(y_hat, y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        y_hat = self(x)
        loss = F.cross_entropy(y_hat, y)
        preds = F.softmax(y_hat, dim=1)
        return {"validation_loss": loss, "predictions": preds, "targets": y}

    def validation_epoch_end(self, outputs):
        super().validation_epoch_end(outputs)
        self.log_("batches", float(len(outputs)))

    def test_step(self, batch, batch_idx):
        x, y = batch
        preds = F.softmax(self(x), dim=1)
        return {"predictions": preds, "targets": y}

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="min")
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "avg_validation_loss"}}

    def trainer_init(self):
        return pl.Trainer(
            max_epochs=self.epochs or -1,
            max_steps=self.steps or -1,
            deterministic=True,
            callbacks=[pl.callbacks.EarlyStopping("avg_validation_loss", patience=50)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
'''


@pytest.mark.parametrize("length", [{"epochs": 20}, {"steps": 60}], ids=str)
def test_a_model_file_of_the_originals_tutorials_trains(length: dict[str, int], tmp_path: Path) -> None:
    (tmp_path / "my_custom_model.py").write_text(TUTORIAL)
    cls = load_model_class(tmp_path / "my_custom_model.py")
    model = classifier(cls, **length)
    result = model.fit(DATA, metrics=default_metrics(Problem.BINARY))
    assert set(result) == {"validation_loss", *default_metrics(Problem.BINARY)}
    assert float(result["AUC"]) > 0.9
    evaluated = model.evaluate()
    assert roc_auc_score(evaluated.targs, evaluated.preds[:, 1]) > 0.9
    assert model.predict(DATA).preds.shape == (120, 2)
    assert len(model.val_stats) == length.get("epochs", 1)


# -- marshmallow -----------------------------------------------------------------------------------------------------


class Configured(Classifier):
    """Adds a field of its own."""

    fields_dict: ClassVar[dict[str, fields.Field[Any]]] = {
        "learning_rate": fields.Float(),
        "hidden": fields.Integer(strict=True),
    }


def test_a_dumped_model_loads_back_equal() -> None:
    structure = DataStructure(target="target", ignore_cols=["amount"], data_splitter=PercentageSplitter(20, 5))
    model = classifier(
        Configured,
        steps=7,
        batch_size=9,
        datastructure=structure,
        learning_rate=0.125,
        hidden=4,
        param_clipping={"prime_q": 13, "precision": 1000, "num_workers": 2},
    )
    data = serialization.dump(model)
    assert data["class_name"] == "Configured"
    loaded = serialization.load(data, {"Configured": Configured})
    assert serialization.dump(loaded) == data
    assert (loaded.steps, loaded.epochs, loaded.batch_size, loaded.learning_rate) == (7, None, 9, 0.125)
    assert (loaded.datastructure, loaded.schema) == (model.datastructure, model.schema)
    for each in (model, loaded):
        each.initialise_model(DATA)
    assert same(loaded.get_param_states(), model.get_param_states())


def test_a_dump_after_training_is_that_before() -> None:
    model = classifier(Configured, epochs=1)
    before = serialization.dump(model)
    model.fit(DATA)
    assert serialization.dump(model) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"leaning_rate": 1}, "leaning_rate: Unknown field"),
        ({"hidden": "four"}, "hidden"),
        ({"epochs": 3, "steps": 3}, "one and only one of epochs and steps"),
        ({"class_name": "Other"}, "Unknown class 'Other'"),
    ],
)
def test_a_dump_that_was_changed_wrongly_is_refused(change: dict[str, Any], message: str) -> None:
    data = serialization.dump(classifier(Configured, epochs=1))
    with pytest.raises(SerializationError, match=message):
        serialization.load({**data, **change}, {"Configured": Configured})


# -- how good the results are ----------------------------------------------------------------------------------------


def sklearn_model(cls: type[Any], name: str, categorical: bool, **kwargs: Any) -> tuple[Any, BaseSource]:
    source = SklearnSource(name)
    schema = BitfountSchema(name)
    schema.generate_full_schema(source, force_stypes={"categorical": ["target"]} if categorical else None)
    return cls(datastructure=DataStructure(target="target"), schema=schema, seed=1, **kwargs), source


def test_breast_cancer_reaches_an_auc_of_98_percent() -> None:
    model, source = sklearn_model(Classifier, "breast_cancer", True, epochs=15)
    model.fit(source)
    result = model.evaluate()
    assert roc_auc_score(result.targs, result.preds[:, 1]) >= 0.98


def test_digits_reach_an_accuracy_of_95_percent() -> None:
    model, source = sklearn_model(Classifier, "digits", True, epochs=20, hidden=64)
    model.fit(source)
    result = model.evaluate()
    assert accuracy_score(result.targs, result.preds.argmax(axis=1)) >= 0.95


def test_diabetes_is_as_good_as_plain_pytorch_on_the_same_rows() -> None:
    class Bounded(Regressor):
        def create_model(self) -> nn.Module:
            network = super().create_model()
            nn.init.constant_(network[3].bias, 150.0)  # the targets' size
            return network

    model, source = sklearn_model(Bounded, "diabetes", False, epochs=60, hidden=16, learning_rate=0.02)
    model.initialise_model(source)
    network = copy.deepcopy(model._model)
    train, test = model.train_dl, model.test_dl
    model.fit(source)
    result = model.evaluate()

    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        for rows in torch.randperm(train.rows, generator=generator).split(32):
            optimiser.zero_grad()
            F.mse_loss(network(train.features[rows]).squeeze(1), train.targets[rows]).backward()
            optimiser.step()
    with torch.no_grad():
        plain = network(test.features).squeeze(1).numpy()
    wanted = r2_score(test.targets.numpy(), plain)
    assert wanted > 0.3
    assert r2_score(result.targs, result.preds) == pytest.approx(wanted, abs=0.03)


def test_regressors_say_that_they_regress() -> None:
    assert PyTorchRegressorMixIn().problem == Problem.REGRESSION


class WithAnAttributeNamedAsALayer(Classifier):
    """A bare linear network beside a parameter of the model's own that is called `weight` too."""

    def create_model(self) -> nn.Module:
        self.weight = nn.Parameter(torch.ones(1))
        return nn.Linear(self.datastructure.input_size, self.n_classes)


def test_a_parameter_beside_the_network_under_one_of_its_names_is_refused_by_name() -> None:
    model = classifier(WithAnAttributeNamedAsALayer, epochs=1)
    model.initialise_model(DATA)
    with pytest.raises(ParameterError, match="'weight'.*Rename"):
        model.get_param_states()
