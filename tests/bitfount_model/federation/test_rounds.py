"""Pods in memory: a federation trains what the pooled rows would, and a round is exact over those who answer."""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.nn import functional as F

from bitfount_model import DataFrameSource, PercentageSplitter, codec
from bitfount_model.errors import ConfigurationError, DataError, NotInitialisedError, QuorumError
from bitfount_model.federation import merge_schemas, merge_statistics
from bitfount_model.federation.job import FederatedJob, job_from_json
from bitfount_model.federation.job_model import build_model
from bitfount_model.federation.pod import Pod, Update
from bitfount_model.federation.pod_session import PodSession
from bitfount_model.federation.policy import PodPolicy, policy_from_json
from bitfount_model.federation.rounds import GlobalState, RoundSummary, asked_pods, close_round
from bitfount_model.reference import load_model_class
from bitfount_model.types import TaskContext

SOURCE = b"""
import torch
from torch import nn
from torch.nn import functional as F

from bitfount_model import PyTorchBitfountModel, PyTorchClassifierMixIn


class Net(PyTorchClassifierMixIn, PyTorchBitfountModel):
    def __init__(self, lr=0.1, norm=False, **kwargs):
        super().__init__(**kwargs)
        self.lr = lr
        self.norm = norm

    def create_model(self):
        layers = [nn.Linear(self.datastructure.input_size, 8), nn.ReLU(), nn.Linear(8, self.n_classes)]
        return nn.Sequential(*([nn.BatchNorm1d(self.datastructure.input_size)] if self.norm else []), *layers)

    def forward(self, x):
        x, sup = x
        return self._model(x)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        return {"validation_loss": F.cross_entropy(self(x), y)}

    def test_step(self, batch, batch_idx):
        x, y = batch
        return {"predictions": F.softmax(self(x), dim=1), "targets": y}
"""
OPEN = PodPolicy("all", 1, 1000, 1000, 1000, 1, "all", True)
ROWS = load_breast_cancer(as_frame=True).frame.iloc[:300]
ALL_TRAIN = PercentageSplitter(validation_percentage=0, test_percentage=0, shuffle=False)


def job(pods: Sequence[str], **changes: Any) -> FederatedJob:
    value = {
        "job_id": "j",
        "pods": list(pods),
        "model_sha256": hashlib.sha256(SOURCE).hexdigest(),
        "datastructure": {"target": "target"},
        "between_updates": 1,
        "epochs": 1,
        "seed": 3,
        "quorum": 1,
        "batch_size": 1000,
        **changes,
    }
    return job_from_json({key: item for key, item in value.items() if item is not None})


def parts(count: int, rows: pd.DataFrame = ROWS) -> dict[str, pd.DataFrame]:
    size = len(rows) // count
    return {f"pod-{n}": rows.iloc[n * size : (n + 1) * size].reset_index(drop=True) for n in range(count)}


def opened(
    asked: FederatedJob, tables: Mapping[str, pd.DataFrame], splitter: PercentageSplitter = ALL_TRAIN
) -> tuple[dict[str, PodSession], GlobalState]:
    """Sessions that share schema and encoding, and the initial state, as the modeller makes them."""
    sessions = {
        name: PodSession(Pod(name, DataFrameSource(table), OPEN, splitter), asked, SOURCE)
        for name, table in tables.items()
    }
    schema = merge_schemas({name: session.schema() for name, session in sessions.items()})
    modeller = build_model(
        load_model_class(SOURCE), asked, schema, next(iter(sessions.values()))._datastructure, seed=asked.seed
    )
    modeller.initialise_model(context=TaskContext.MODELLER)
    statistics = {name: session.statistics(schema) for name, session in sessions.items()}
    preparation = merge_statistics(statistics, schema, modeller.datastructure)
    for session in sessions.values():
        session.prepare(schema, preparation)
    return sessions, GlobalState(0, modeller.get_param_states())


def federate(
    asked: FederatedJob, sessions: Mapping[str, PodSession], state: GlobalState
) -> tuple[GlobalState, list[RoundSummary]]:
    """All rounds, in memory."""
    summaries = []
    while state.round_number < asked.rounds and not state.stopped:
        number = state.round_number + 1
        answers = (sessions[name].fit(number, state.parameters) for name in asked_pods(asked, number))
        state, summary = close_round(asked, state, answers)
        summaries.append(summary)
    return state, summaries


def pooled_step(rows: pd.DataFrame, start: Mapping[str, torch.Tensor], lr: float = 0.1) -> dict[str, torch.Tensor]:
    """One full-batch step of plain PyTorch on all rows."""
    features = rows.drop(columns="target").to_numpy()
    x = torch.from_numpy((features - features.mean(0)) / features.std(0)).float()
    y = torch.from_numpy(rows["target"].to_numpy().copy())
    net = nn.Sequential(nn.Linear(x.shape[1], 8), nn.ReLU(), nn.Linear(8, 2))
    net.load_state_dict(dict(start))
    F.cross_entropy(net(x), y).backward()
    with torch.no_grad():
        return {name: p - lr * p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("sizes", [(300,), (100, 100, 100), (20, 230, 50)])
def test_one_full_batch_step_a_pod_is_one_step_on_the_pooled_rows(sizes: tuple[int, ...]) -> None:
    stops = np.cumsum(sizes)
    tables = {
        f"pod-{n}": ROWS.iloc[stop - size : stop] for n, (size, stop) in enumerate(zip(sizes, stops, strict=True))
    }
    asked = job(list(tables))
    sessions, state = opened(asked, tables)
    ended, _ = federate(asked, sessions, state)
    wanted = pooled_step(ROWS, state.parameters)
    for name, value in wanted.items():
        torch.testing.assert_close(ended.parameters[name], value, rtol=0, atol=1e-6)
        assert not torch.equal(ended.parameters[name], state.parameters[name])


def test_one_pod_of_all_rows_equals_three_of_a_third() -> None:
    one, three = parts(1), parts(3)
    ended = []
    for tables in (one, three):
        asked = job(list(tables), epochs=5)
        ended.append(federate(asked, *opened(asked, tables))[0].parameters)
    for name in ended[0]:
        torch.testing.assert_close(ended[0][name], ended[1][name], rtol=0, atol=5e-6)


@pytest.mark.parametrize("length", [{"epochs": 5, "between_updates": 2}, {"steps": 11, "between_updates": 4}])
def test_the_last_round_trains_the_remainder(length: dict[str, int]) -> None:
    asked = job(["pod-0"], **{"epochs": None, **length})
    assert asked.rounds == 3
    assert [asked.iterations_of(number) for number in (1, 2, 3)] == [
        *[length["between_updates"]] * 2,
        asked.iterations % length["between_updates"],
    ]


@pytest.mark.parametrize("length", [{"epochs": 3, "between_updates": 1}, {"steps": 12, "between_updates": 4}])
def test_a_session_that_is_opened_again_in_the_middle_gives_the_same_bits(length: dict[str, int]) -> None:
    tables = parts(3)
    asked = job(list(tables), batch_size=16, **{"epochs": None, **length})
    sessions, state = opened(asked, tables)
    wanted, _ = federate(asked, sessions, state)
    middle, _ = close_round(asked, state, [sessions[name].fit(1, state.parameters) for name in asked.pods])
    again, _ = opened(asked, tables)
    found, _ = federate(asked, again, middle)
    assert codec.digest(found.parameters) == codec.digest(wanted.parameters)


def test_every_subset_of_five_pods_gives_exactly_its_weighted_mean_or_a_named_end() -> None:
    tables = parts(5)
    asked = job(list(tables), quorum=3, hyperparameters={"norm": True})
    sessions, state = opened(asked, tables)
    answers = {name: sessions[name].fit(1, state.parameters) for name in asked.pods}
    for size in range(6):
        for present in itertools.combinations(asked.pods, size):
            given = [answers[name] for name in present]
            if size < 3:
                with pytest.raises(QuorumError, match=f"{size} usable updates of 5 pods, its quorum is 3"):
                    close_round(asked, state, given)
                continue
            ended, summary = close_round(asked, state, given)
            assert summary.pods == present
            for name, base in state.parameters.items():
                total = sum(update.weight for update in given)
                mean = sum(update.delta[name].double() * update.weight for update in given) / total
                wanted = (base.double() + mean).to(base.dtype)
                torch.testing.assert_close(ended.parameters[name], wanted, rtol=0, atol=1e-7)


def nonsense(update: Update, **changes: Any) -> Update:
    return replace(update, **changes)


def test_updates_that_do_not_belong_are_left_out_with_their_reason() -> None:
    tables = parts(4)
    asked = job(list(tables), quorum=1)
    sessions, state = opened(asked, tables)
    good = {name: sessions[name].fit(1, state.parameters) for name in asked.pods}
    first = next(iter(state.parameters))
    given = [
        good["pod-0"],
        nonsense(good["pod-1"], round_number=2),
        nonsense(good["pod-2"], base_digest="0" * 64),
        nonsense(
            good["pod-3"], delta={**good["pod-3"].delta, first: torch.full_like(state.parameters[first], torch.nan)}
        ),
        nonsense(good["pod-0"], pod="stranger"),
        good["pod-0"],
    ]
    before = copy.deepcopy(dict(state.parameters))
    ended, summary = close_round(asked, state, given)
    assert summary.pods == ("pod-0",)
    assert {pod: reason.split(":")[0][:60] for pod, reason in summary.refused.items()}.keys() == {
        "pod-0", "pod-1", "pod-2", "pod-3", "stranger",
    }  # fmt: skip
    assert "is of round 2" in summary.refused["pod-1"]
    assert "other parameters" in summary.refused["pod-2"]
    assert first in summary.refused["pod-3"]
    assert "not asked" in summary.refused["stranger"]
    alone, _ = close_round(asked, state, [good["pod-0"]])
    assert codec.digest(ended.parameters) == codec.digest(alone.parameters)
    assert all(torch.equal(state.parameters[name], before[name]) for name in before)


def test_updates_without_a_row_behind_them_make_no_round() -> None:
    tables = parts(2)
    asked = job(list(tables))
    sessions, state = opened(asked, tables, ALL_TRAIN)
    updates = [replace(sessions[pod].fit(1, state.parameters), weight=0) for pod in asked.pods]
    with pytest.raises(QuorumError, match="no pod has training rows"):
        close_round(asked, state, updates)


def test_metrics_are_averaged_over_the_validation_rows_of_all_pods() -> None:
    tables = {"pod-0": ROWS.iloc[:60], "pod-1": ROWS.iloc[60:]}
    asked = job(list(tables), metrics=["Accuracy"])
    sessions, state = opened(asked, tables, PercentageSplitter(validation_percentage=20, test_percentage=20))
    _, (summary,) = federate(asked, sessions, state)
    assert set(summary.metrics) == {"validation_loss", "Accuracy"}
    weighted = (12 * summary.by_pod["pod-0"]["Accuracy"] + 48 * summary.by_pod["pod-1"]["Accuracy"]) / 60
    assert summary.metrics["Accuracy"] == pytest.approx(weighted, abs=1e-6)


def test_early_stopping_stops() -> None:
    tables = parts(2)
    stopping = {"metric": "validation_loss", "patience": 2, "minimum_change": 10.0}
    asked = job(list(tables), epochs=9, early_stopping=stopping)
    state, summaries = federate(asked, *opened(asked, tables, PercentageSplitter()))
    assert state.stopped
    assert len(summaries) == 3


def test_the_proximal_term_keeps_pods_nearer_to_the_global_parameters() -> None:
    tables = parts(1)
    moved = []
    for mu in (0.0, 5.0):
        asked = job(list(tables), epochs=20, between_updates=20, proximal_mu=mu)
        sessions, state = opened(asked, tables)
        delta = sessions["pod-0"].fit(1, state.parameters).delta
        moved.append(float(sum(value.square().sum() for value in delta.values())))
    assert moved[1] < 0.5 * moved[0]


def test_one_proximal_step_is_a_plain_step_as_the_term_is_nought_at_the_start() -> None:
    tables = parts(1)
    deltas = []
    for mu in (0.0, 5.0):
        asked = job(list(tables), proximal_mu=mu)
        sessions, state = opened(asked, tables)
        deltas.append(codec.digest(sessions["pod-0"].fit(1, state.parameters).delta))
    assert deltas[0] == deltas[1]


def test_evaluation_and_predictions_are_those_of_the_given_parameters() -> None:
    tables = parts(2)
    asked = job(list(tables), epochs=30, hyperparameters={"lr": 1.0})
    sessions, state = opened(asked, tables, PercentageSplitter(validation_percentage=0, test_percentage=30))
    ended, _ = federate(asked, sessions, state)
    better, worse = (sessions["pod-0"].evaluate(s.parameters).mean()["AUC"] for s in (ended, state))
    assert better > max(worse, 0.95)
    assert len(sessions["pod-0"].predict(ended.parameters).preds) == 150


@pytest.mark.parametrize(
    ("policy", "asked", "said"),
    [
        ({"maximum_rounds": 1}, {"epochs": 2}, "2 rounds, at most 1"),
        ({"maximum_epochs": 1}, {"epochs": 2, "between_updates": 2}, "2 epochs, at most 1"),
        ({"maximum_steps": 1}, {"epochs": None, "steps": 2, "between_updates": 2}, "2 steps, at most 1"),
        ({"minimum_pods": 3}, {}, "2 pods, at least 3"),
        ({"columns": ("target", "mean area")}, {}, "does not select its columns"),
        (
            {"columns": ("target", "mean area")},
            {"datastructure": {"target": "target", "selected_cols": ["mean area", "mean texture"]}},
            "not allowed: mean texture",
        ),
        ({}, {"datastructure": {"target": "target", "query": "SELECT 1"}}, "query of its own"),
        ({}, {"pods": ["x", "y"]}, "does not name this pod"),
        ({}, {"model_sha256": "0" * 64}, "sha256"),
    ],
)
def test_a_job_that_asks_for_more_than_the_policy_is_refused_before_a_row_is_read(
    policy: dict[str, Any], asked: dict[str, Any], said: str
) -> None:
    class Unread(DataFrameSource):
        def read(self, table: str | None = None, query: str | None = None) -> pd.DataFrame:
            raise AssertionError("a row was read")

    pod = Pod("pod-0", Unread(ROWS), replace(OPEN, **policy))
    with pytest.raises(ConfigurationError, match=said):
        PodSession(pod, job(**{"pods": ["pod-0", "pod-1"], **asked}), SOURCE)


def test_too_few_rows_and_predictions_that_stay_are_refused() -> None:
    tables = parts(1)
    asked = job(list(tables))
    few = PodSession(Pod("pod-0", DataFrameSource(ROWS), replace(OPEN, minimum_rows=301), ALL_TRAIN), asked, SOURCE)
    with pytest.raises(DataError, match="300 training rows"):
        few.statistics(few.schema())
    with pytest.raises(NotInitialisedError, match="prepare"):
        few.fit(1, {})
    kept = PodSession(Pod("pod-0", DataFrameSource(ROWS), replace(OPEN, predictions_may_leave=False)), asked, SOURCE)
    with pytest.raises(ConfigurationError, match="does not let predictions leave"):
        kept.predict({})


def test_a_missing_policy_denies_and_a_wrong_one_names_all_that_is_wrong() -> None:
    with pytest.raises(ConfigurationError, match="takes part in nothing"):
        policy_from_json(None)
    with pytest.raises(ConfigurationError) as caught:
        policy_from_json({"columns": [], "minimum_rows": 0, "extra": 1})
    assert all(
        word in str(caught.value) for word in ("columns", "minimum_rows", "extra", "maximum_rounds", "minimum_pods")
    )


def test_a_job_survives_json_and_what_is_wrong_with_one_is_said_at_once() -> None:
    asked = job(["b", "a"], early_stopping={"metric": "AUC", "patience": 2}, optimiser="FedAdam")
    assert asked.pods == ("a", "b")
    assert job_from_json(asked.to_json()) == asked
    with pytest.raises(ConfigurationError) as caught:
        job(["a", "a", "../b"], epochs=0, seed=-1, optimiser="SGD", between_updates=0)
    assert all(word in str(caught.value) for word in ("pods", "epochs", "seed", "optimiser", "between_updates"))
    with pytest.raises(ConfigurationError, match="quorum: is 3, and a round asks 2 pods"):
        job(["a", "b", "c"], sample=2, quorum=3)
    with pytest.raises(ConfigurationError, match="early_stopping"):
        job(["a"], early_stopping={"metric": "AUC", "patiense": 2})


def test_a_robust_job_is_led_by_the_honest_pods() -> None:
    """Four pods of five train; the fifth sends its update turned round and a thousand times as long."""
    asked = job([f"pod-{n}" for n in range(5)], aggregation="median", quorum=3)
    sessions, start = opened(asked, parts(5))
    honest = [sessions[pod].fit(1, start.parameters) for pod in asked.pods]
    lie = {name: value * -1000 if value.is_floating_point() else value for name, value in honest[2].delta.items()}
    attacked = [*honest[:2], replace(honest[2], delta=lie), *honest[3:]]
    robust, summary = close_round(asked, start, attacked)
    plain, _ = close_round(replace(asked, aggregation="mean"), start, attacked)
    wanted, _ = close_round(replace(asked, aggregation="mean"), start, honest)
    for name, value in wanted.parameters.items():
        moved = (value - start.parameters[name]).abs().max()
        assert (robust.parameters[name] - value).abs().max() <= 2 * moved
        assert (plain.parameters[name] - value).abs().max() > 50 * moved
    assert summary.pods == summary.chosen == asked.pods


def test_krum_says_whose_update_it_took() -> None:
    asked = job([f"pod-{n}" for n in range(5)], aggregation="krum", quorum=5)
    sessions, start = opened(asked, parts(5))
    updates = [sessions[pod].fit(1, start.parameters) for pod in asked.pods]
    state, summary = close_round(asked, start, updates)
    (chosen,) = summary.chosen
    taken = next(update for update in updates if update.pod == chosen)
    for name, value in state.parameters.items():
        assert torch.equal(value, (start.parameters[name].double() + taken.delta[name].double()).to(value.dtype))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"aggregation": "krum", "quorum": 3}, "krum needs updates of 5 pods, and a round asks 3"),
        ({"aggregation": "median", "quorum": 2}, "median needs updates of 3 pods, and the quorum is 2: raise it"),
        ({"aggregation": "trimmed_mean", "aggregation_settings": {"malicious": 2}}, "needs updates of 5 pods"),
        ({"aggregation": "norm_clipping"}, "maximum_norm is missing"),
        ({"aggregation": "average"}, "Must be one of: mean, median"),
    ],
)
def test_a_rule_that_has_too_few_pods_or_wrong_settings_is_refused_before_the_job(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        job(["ann", "bob", "cat"], **changes)
