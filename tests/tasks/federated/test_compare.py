"""What federating is worth: each pod alone and all rows pooled, held against plain PyTorch on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from bitfount_model import codec
from bitfount_model.federation.pod import Pod
from bitfount_model.federation.pod_session import PodSession
from tasks.federated import compare as compare_module
from tasks.federated import pod_worker
from tasks.federated.compare import POOLED, Comparison, compare, comparison_rows, mean_of
from tasks.federated.federation import Federation
from tasks.federated.finish import ask_for_evaluation, collect_evaluation, keep_weights
from tasks.manifest import Manifest, read_file, read_manifest, write_manifest
from tasks.progress import listening
from tasks.session import require
from tasks.store import Store
from tests.tasks.federated.team import SOURCE, Team, plain_step, table, trained

EPOCHS, RATE = 3, 0.1
ASKED: dict[str, Any] = {"epochs": EPOCHS, "batch_size": 1000, "metrics": ["Brier Loss"]}
"""Full batches, so that the order of rows does not matter."""
ROWS = {"ann": 60, "bob": 40, "cat": 90}


@dataclass
class Evaluated:
    """A job that has been trained and evaluated, and its pods."""

    team: Team
    federation: Federation

    @classmethod
    def by(cls, folder: Path, names: Sequence[str] = tuple(ROWS), **changes: Any) -> Evaluated:
        team = Team(folder, tuple(names), tables={name: table(name, ROWS[name]) for name in names})
        federation = team.initialised(**{**ASKED, **changes})
        rounds = trained(federation)
        keep_weights(federation, rounds)
        ask_for_evaluation(federation, rounds.weights)
        federation.reach.work()
        collect_evaluation(federation)
        return cls(team, federation)

    @property
    def store(self) -> Store:
        return self.federation.store

    @property
    def pods(self) -> list[Pod]:
        return [self.team.pod(name) for name in self.team.names]

    def parts(self, name: str) -> dict[str, pd.DataFrame]:
        """A pod's rows by what they are for."""
        frame, split = PodSession(self.team.pod(name), self.federation.job, SOURCE).table()
        return {part: frame.iloc[getattr(split, part)] for part in ("train", "validation", "test")}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pod_worker, "step", plain_step)
        return Evaluated.by(tmp_path_factory.mktemp("compared"))


@pytest.fixture(scope="module")
def compared(shared: Evaluated) -> Manifest:
    return compare(shared.store, shared.pods)


def plain_pytorch(rows: pd.DataFrame, tested: pd.DataFrame, first: dict[str, torch.Tensor]) -> float:
    """The Brier loss on some rows after training on others, without anything of this project."""
    values = rows[["a", "b"]].to_numpy()
    mean, scale = values.mean(0), values.std(0)

    def encoded(frame: pd.DataFrame) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.from_numpy((frame[["a", "b"]].to_numpy() - mean) / scale).float()
        return x, torch.from_numpy(frame["y"].to_numpy().copy())

    net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    net.load_state_dict(first)
    optimiser = torch.optim.SGD(net.parameters(), lr=RATE)
    x, y = encoded(rows)
    for _ in range(EPOCHS):
        optimiser.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimiser.step()
    net.eval()
    x, y = encoded(tested)
    with torch.no_grad():
        return float((F.softmax(net(x), dim=1)[:, 1] - y).square().mean())


@pytest.mark.parametrize("who", [*ROWS, POOLED])
def test_each_model_is_the_one_that_plain_pytorch_trains_on_those_rows(
    shared: Evaluated, compared: Manifest, who: str
) -> None:
    parts = [shared.parts(name) for name in ROWS]
    tested = pd.concat([part["test"] for part in parts])
    rows = pd.concat([part["train"] for part in parts]) if who == POOLED else shared.parts(who)["train"]
    first = codec.decode(read_file(shared.store, require(shared.store, "initialise"), "weights")).params
    found = compared.values["pooled"] if who == POOLED else compared.values["alone"][who]
    assert found == {"Brier Loss": pytest.approx(plain_pytorch(rows, tested, dict(first)), abs=1e-5)}


def test_models_differ_and_the_federated_one_is_the_one_that_was_evaluated(
    shared: Evaluated, compared: Manifest
) -> None:
    values = compared.values
    assert values["federated"] == require(shared.store, "evaluate").values["metrics"]
    losses = [values[who]["Brier Loss"] for who in ("federated", "pooled")]
    losses += [metrics["Brier Loss"] for metrics in values["alone"].values()]
    assert len(set(losses)) == 5
    assert values["alone_mean"]["Brier Loss"] == pytest.approx(np.mean(losses[2:]), rel=1e-12)
    assert values["missing"] == {}


def test_pooled_rows_train_validate_and_test_as_in_their_own_pods(shared: Evaluated) -> None:
    pod = Comparison(shared.store, require(shared.store, "initialise"), shared.pods).pooled()
    frame = pod.source.read()
    split = pod.splitter.split(frame, seed=1)
    assert len(frame) == sum(ROWS.values())
    for part in ("train", "validation", "test"):
        wanted = pd.concat([shared.parts(name)[part] for name in ROWS])
        assert sorted(frame.iloc[getattr(split, part)]["b"]) == sorted(wanted["b"])


def test_of_one_pod_all_three_are_the_same_model(plain_steps: None, tmp_path: Path) -> None:
    done = Evaluated.by(tmp_path, ["cat"], quorum=1)
    values = compare(done.store, done.pods).values
    wanted = pytest.approx(values["federated"]["Brier Loss"], abs=1e-6)
    assert values["alone"] == {"cat": {"Brier Loss": wanted}} and values["pooled"] == {"Brier Loss": wanted}


def test_what_shapes_rounds_shapes_no_model_alone(plain_steps: None, tmp_path: Path, compared: Manifest) -> None:
    rounds = {"sample": 2, "between_updates": 2, "optimiser": "FedAdam", "proximal_mu": 5.0}
    done = Evaluated.by(tmp_path, **rounds)
    values = compare(done.store, done.pods).values
    assert values["federated"] != compared.values["federated"]
    assert (values["alone"], values["pooled"]) == (compared.values["alone"], compared.values["pooled"])


def test_models_alone_train_no_longer_than_the_federated_one_did(plain_steps: None, tmp_path: Path) -> None:
    stopping = {"metric": "validation_loss", "patience": 1, "minimum_change": 10.0}
    done = Evaluated.by(tmp_path, ["cat"], quorum=1, epochs=10, early_stopping=stopping)
    assert require(done.store, "fit").values["rounds"] == 2
    values = compare(done.store, done.pods).values
    wanted = pytest.approx(values["federated"]["Brier Loss"], abs=1e-6)
    assert values["alone"] == {"cat": {"Brier Loss": wanted}} and values["pooled"] == {"Brier Loss": wanted}


def test_a_model_that_raises_alone_ends_no_job_and_its_text_stays(plain_steps: None, tmp_path: Path) -> None:
    done = Evaluated.by(tmp_path)
    done.team.tell("ann", 1, "raise")
    values = compare(done.store, done.pods).values
    assert values["missing"] == {"ann": "ValueError"}
    assert set(values["alone"]) == {"bob", "cat"} and values["pooled"]


def test_a_pod_may_be_called_pooled(plain_steps: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROWS, "pooled", 50)
    done = Evaluated.by(tmp_path, ["ann", "pooled"])
    values = compare(done.store, done.pods).values
    assert set(values["alone"]) == {"ann", "pooled"} and values["pooled"] != values["alone"]["pooled"]


def test_what_has_been_compared_is_not_trained_again(
    shared: Evaluated, compared: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_module, "Comparison", None)
    assert compare(shared.store, shared.pods) == compared == read_manifest(shared.store, "compare")


def copied(shared: Evaluated, folder: Path, **evaluated: Any) -> Store:
    """The same job, evaluated and not yet compared."""
    store = Store(folder)
    for step in ("initialise", "fit", "evaluate"):
        manifest = require(shared.store, step)
        for reference in manifest.files.values():
            store.put(reference.name, shared.store.get(reference.name))
        values = {**manifest.values, **(evaluated if step == "evaluate" else {})}
        write_manifest(store, replace(manifest, values=values))
    return store


def test_a_pod_that_cannot_train_alone_is_missing_and_its_rows_still_test(
    shared: Evaluated, compared: Manifest, tmp_path: Path
) -> None:
    order = shared.team.tell("ann", 1, "diverge")
    events: list[tuple[str, dict[str, Any]]] = []
    with listening(lambda event, values: events.append((event, values))):
        values = compare(copied(shared, tmp_path), shared.pods).values
    order.unlink()
    assert list(values["missing"]) == ["ann"] and "NaN or infinite" in values["missing"]["ann"]
    assert values["alone"] == {name: compared.values["alone"][name] for name in ("bob", "cat")}
    assert values["pooled"] == compared.values["pooled"]
    assert events == [("compared", {"who": who}) for who in ("ann", "bob", "cat", POOLED)]


def test_only_pods_that_were_evaluated_are_compared(shared: Evaluated, tmp_path: Path) -> None:
    by_pod = require(shared.store, "evaluate").values["by_pod"]
    few = compare(copied(shared, tmp_path / "few", by_pod={"bob": by_pod["bob"]}), shared.pods).values
    assert list(few["alone"]) == ["bob"]
    none = compare(copied(shared, tmp_path / "none", by_pod={}), shared.pods).values
    assert (none["alone"], none["pooled"], none["alone_mean"], none["missing"]) == ({}, {}, {}, {})


names = st.sampled_from(["AUC", "F1", "Brier Loss"])
metrics = st.dictionaries(names, st.none() | st.floats(-1e6, 1e6))


@given(st.dictionaries(st.sampled_from(["ann", "bob", "cat"]), metrics))
def test_a_mean_is_of_all_pods_or_not_defined(alone: dict[str, dict[str, float | None]]) -> None:
    found = mean_of(alone)
    assert found.keys() == {name for stats in alone.values() for name in stats}
    for name, mean in found.items():
        values = [stats.get(name) for stats in alone.values()]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            assert mean is None
        else:
            assert mean == pytest.approx(sum(known) / len(known), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize(
    ("alone", "rows"),
    [
        ({}, ["federated", "all rows pooled"]),
        ({"ann": {}}, ["ann alone", "federated", "all rows pooled"]),
        (
            {"bob": {}, "ann": {}},
            ["ann alone", "bob alone", "mean of the pods alone", "federated", "all rows pooled"],
        ),
    ],
)
def test_a_table_has_a_mean_where_there_are_several_pods(alone: dict[str, Any], rows: list[str]) -> None:
    values = {"alone": alone, "alone_mean": {"AUC": 0.5}, "federated": {"AUC": 0.9}, "pooled": {"AUC": 0.95}}
    assert [who for who, _ in comparison_rows(values)] == rows
