"""A fit without a Trainer: the bits and the numbers of Lightning's, for models that need none; others are seen in their class."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from bitfount_model import BitfountSchema, DataFrameSource, DataStructure, PyTorchBitfountModel
from bitfount_model.batch_progress import BatchCount, BatchProgress
from bitfount_model.data import PercentageSplitter
from bitfount_model.errors import TrainingError
from bitfount_model.federation.local_training import ProximalTerm, train_locally
from bitfount_model.metrics import MetricCollection, default_metrics
from bitfount_model.reference import load_model_class
from bitfount_model.seeding import seeded
from bitfount_model.slim_fit import evaluating, fit_slim, reasons_for_trainer, slim_optimizer
from bitfount_model.training import train
from tests.bitfount_model.simulation.lab import MODEL, equal, quiet_trainer, table

CLIPPING = {"prime_q": 7, "precision": 5, "num_workers": 2}
VALIDATED = MODEL.replace(
    'return {"validation_loss": F.cross_entropy(self(x), y)}',
    'out = self(x)\n        self.log("v", 1.0)\n'
    '        return {"validation_loss": F.cross_entropy(out, y), "predictions": F.softmax(out, dim=1), "targets": y}',
)
OWN_END = (
    MODEL
    + "\n    def validation_epoch_end(self, outputs):\n        self.ends = getattr(self, 'ends', 0) + len(outputs)\n"
)
SKIPPING = MODEL.replace(
    "x, y = batch\n        loss", "x, y = batch\n        if batch_idx == 1:\n            return None\n        loss"
)
FROZEN = MODEL + (
    "\n    def initialise_model(self, *args, **kwargs):\n"
    "        super().initialise_model(*args, **kwargs)\n        self._model[1].eval()\n"
)
FITS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": (MODEL, {}),
    "prints": (MODEL.replace('self.log("loss", loss)', "self.print(batch_idx)"), {}),
    "no validation": (MODEL, {"validation": 0}),
    "steps": (MODEL, {"steps": 19}),
    "few steps": (MODEL, {"steps": 5, "validation": 0}),
    "clipping": (MODEL, {"param_clipping": CLIPPING}),
    "one batch": (MODEL, {"batch_size": 1000}),
    "proximal": (MODEL, {"mu": 0.3}),
    "closure": (MODEL.replace("Adam(self.parameters(), lr=0.05)", "LBFGS(self.parameters())"), {}),
    "predictions": (VALIDATED, {}),
    "own end": (OWN_END, {}),
    "skips": (SKIPPING, {}),
    "frozen": (FROZEN, {}),
}


def model_of(source: str, *, validation: int = 30, **settings: Any) -> PyTorchBitfountModel:
    """A model of the table's rows, initialised."""
    schema, splitter = BitfountSchema("slim"), PercentageSplitter(validation, 0)
    schema.generate_full_schema(table(), force_stypes={"categorical": ["y"]}, ignore_cols=["site"])
    cls = load_model_class(source.encode(), None)
    length = {} if "steps" in settings else {"epochs": 3}
    structure = DataStructure(target="y", ignore_cols=["site"])
    model = cls(datastructure=structure, schema=schema, **{"batch_size": 8, "seed": 11, **length, **settings})
    model.trainer_init = quiet_trainer  # type: ignore[method-assign]
    model.initialise_model(DataFrameSource(table()), splitter)
    return model


def slim(model: PyTorchBitfountModel, mu: float = 0.0, **watched: Any) -> Any:
    """A fit without a Trainer, of a model that needs none."""
    with seeded(model.seed_for("training")):
        optimizer = slim_optimizer(model)
        assert optimizer is not None
        return fit_slim(model, optimizer, mu=mu, metrics=collection(model), **watched)


def by_lightning(model: PyTorchBitfountModel, mu: float = 0.0, **watched: Any) -> Any:
    """The same fit, by a Trainer."""
    callbacks = [ProximalTerm(mu)] if mu else []
    return train(model, metrics=collection(model), callbacks=[*callbacks, *watched.get("callbacks", [])])


def collection(model: PyTorchBitfountModel) -> MetricCollection:
    return MetricCollection.create_from_model(model, default_metrics(model.problem))


@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training", "ignore:`training_step` returned `None`")
@pytest.mark.parametrize(("source", "settings"), FITS.values(), ids=FITS)
def test_it_has_the_bits_and_the_records_of_a_trainers(source: str, settings: dict[str, Any]) -> None:
    settings, mu = {name: value for name, value in settings.items() if name != "mu"}, settings.get("mu", 0.0)
    ours, theirs = model_of(source, **settings), model_of(source, **settings)
    for _ in range(2):  # the second fit goes on where the first one ended
        records, expected = slim(ours, mu), by_lightning(theirs, mu)
        assert records == expected
        assert equal(ours.get_param_states(), theirs.get_param_states())
        assert ours.val_stats == theirs.val_stats
        assert ours.position == theirs.position
    assert [part.training for part in ours.modules()] == [part.training for part in theirs.modules()]
    assert getattr(ours, "ends", None) == getattr(theirs, "ends", None)


def test_how_far_it_is_is_told_as_by_a_trainer() -> None:
    told: list[BatchCount] = []
    expected: list[BatchCount] = []
    slim(model_of(MODEL, batch_size=2, epochs=2, validation=0), on_batch=told.append)
    by_lightning(model_of(MODEL, batch_size=2, epochs=2, validation=0), callbacks=[BatchProgress(expected.append)])
    assert told == expected
    assert told[-1] == BatchCount(epoch=2, epochs=2, batch=45, batches=45)


def test_of_a_long_epoch_a_hundredth_is_told() -> None:
    counts = [BatchCount(1, 1, batch, 1234) for batch in range(1, 1235)]
    told = [count.batch for count in counts if count.is_told]
    assert told[:3] == [1, 14, 27]
    assert told[-1] == 1234
    assert len(told) <= 101


DECORATED = MODEL.replace("    def training_step(self", "    @annealed\n    def training_step(self").replace(
    "class Net",
    """def annealed(step):
    def by_epoch(self, batch, batch_idx):
        return step(self, batch, self.current_epoch)

    return by_epoch


class Net""",
)


def with_method(text: str) -> str:
    return MODEL + "\n    " + text.replace("\n", "\n    ") + "\n"


@pytest.mark.parametrize(
    ("source", "reasons"),
    [
        (MODEL, ()),
        (OWN_END, ()),
        (with_method("def on_test_epoch_end(self):\n    pass"), ()),
        (with_method("def helper(self):\n    return 1"), ()),
        (with_method("def on_validation_epoch_end(self):\n    pass"), ("it overrides on_validation_epoch_end",)),
        (with_method("def val_dataloader(self):\n    return []"), ("it overrides val_dataloader",)),
        (with_method("def on_train_batch_end(self, *args):\n    pass"), ("it overrides on_train_batch_end",)),
        (with_method("def trainer_init(self):\n    return super().trainer_init()"), ("it overrides trainer_init",)),
        (with_method("def optimizer_step(self, *args):\n    pass"), ("it overrides optimizer_step",)),
        (with_method("def training_epoch_end(self, outputs):\n    pass"), ("it overrides training_epoch_end",)),
        (with_method("def helper(self):\n    return self.current_epoch"), ("it uses self.current_epoch",)),
        (with_method("def helper(self):\n    return self.all_gather(1)"), ("it uses self.all_gather",)),
        (DECORATED, ("it uses self.current_epoch",)),
        (with_method("def helper(self):\n    return [self.trainer for _ in (1,)]"), ("it uses self.trainer",)),
    ],
)
def test_what_needs_a_trainer_is_seen_in_the_class(source: str, reasons: tuple[str, ...]) -> None:
    assert reasons_for_trainer(load_model_class(source.encode(), None)) == reasons


SCHEDULED = (
    "(lambda o: ([o], [torch.optim.lr_scheduler.ExponentialLR(o, 0.5)]))(torch.optim.Adam(self.parameters(), lr=0.05))"
)
HOOK = "    def on_before_optimizer_step(self, optimizer):\n        for p in self.parameters():\n            p.grad.mul_(0.5)\n"


@pytest.mark.parametrize(
    "source",
    [MODEL.replace("torch.optim.Adam(self.parameters(), lr=0.05)", SCHEDULED), MODEL + HOOK],
    ids=["scheduler", "hook"],
)
def test_what_needs_a_trainer_is_trained_by_one(source: str) -> None:
    ours, theirs = model_of(source), model_of(source)
    assert slim_optimizer(ours) is None
    metrics = default_metrics(ours.problem)
    assert train_locally(ours, metrics=metrics, mu=0.3) == by_lightning(theirs, 0.3)
    assert equal(ours.get_param_states(), theirs.get_param_states())


def test_a_step_that_breaks_leaves_dropout_on_and_no_trace_of_the_fit() -> None:
    model = model_of(
        MODEL.replace('return {"validation_loss"', 'raise ValueError("broken")\n        return {"validation_loss"')
    )
    with pytest.raises(ValueError, match="broken"):
        slim(model)
    assert all(part.training for part in model.modules())
    assert "log" not in vars(model)


def test_a_step_without_a_loss_is_named() -> None:
    model = model_of(MODEL.replace('return {"loss": loss}', "return {}"))
    with pytest.raises(TrainingError, match="training_step returned dict without a loss"):
        slim(model)


def test_evaluating_gives_each_part_its_own_mode_back() -> None:
    network = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2))
    network[1].eval()
    with evaluating(network):
        assert not any(part.training for part in network.modules())
    assert [part.training for part in network.modules()] == [True, True, False]
