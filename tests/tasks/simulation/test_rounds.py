"""A simulated job's rounds: what each leaves, where they stop, where they go on, and what cannot be simulated."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load
from sklearn.metrics import accuracy_score

from bitfount_model.errors import BitfountError, ConfigurationError, DataError, IntegrityError, QuorumError
from tasks.evaluate import evaluate_job
from tasks.initialise import initialise
from tasks.manifest import read_file
from tasks.simulation.round_record import read_rounds
from tasks.simulation.rounds import SimulatedRounds, train_rounds
from tasks.simulation.session import Simulation, close, opened
from tests.bitfount_model.simulation.lab import table
from tests.tasks.simulation.rows import PLAIN, REGRESSOR, simulation, work_here

BY_SITE = {"partition": {"column": "site"}}


def run(asked: Simulation, workers: int = 1) -> dict[str, Any]:
    manifest = train_rounds(asked, workers, work_here(asked))
    history = json.loads(read_file(asked.session.store, manifest, "history"))
    return {**manifest.values, "history": history, "files": manifest.files}


def test_a_job_leaves_weights_that_fit_the_model_and_a_history_of_its_rounds(tmp_path: Path) -> None:
    asked = simulation(tmp_path)
    found = run(asked)
    assert load(read_file(asked.session.store, train_rounds(asked, 1, work_here(asked)), "weights")).keys() == set(
        asked.expected
    )
    assert [epoch["epoch"] for epoch in found["history"]] == [1, 2, 3, 4]
    assert all(epoch["also"]["update/clients"] == 6 for epoch in found["history"])
    sizes = asked.partition.sizes
    assert all(sizes.min() * 6 <= epoch["rows"] <= sizes.max() * 6 for epoch in found["history"])
    assert found["rounds"] == 4 and not found["stopped_early"]
    assert evaluate_job(asked.session.store).values["rows"] == len(table()) // 10


def test_the_metrics_of_a_round_are_those_of_the_held_out_rows(tmp_path: Path) -> None:
    asked = simulation(tmp_path)
    last = run(asked)["history"][-1]["val_stats"]
    model, validation = asked.session.model, asked.session.model.validation_dl
    model.deserialize(read_file(asked.session.store, train_rounds(asked, 1, work_here(asked)), "weights"))
    result = model.evaluate(validation)
    assert last["Accuracy"] == pytest.approx(accuracy_score(result.targs, np.argmax(result.preds, axis=1)), abs=1e-6)
    assert {"validation_loss", "AUC", "F1"} <= last.keys()


@pytest.mark.parametrize("workers", [2, 5])
@pytest.mark.parametrize(
    "simulate",
    [{"clients": 40, "sample": 33}, {"clients": 9, "partition": {"dirichlet": 0.2}}, BY_SITE],
    ids=["iid", "dirichlet", "column"],
)
def test_the_number_of_workers_does_not_change_a_bit(simulate: dict[str, Any], workers: int, tmp_path: Path) -> None:
    one = run(simulation(tmp_path / "one", simulate=simulate))
    many = run(simulation(tmp_path / "many", simulate=simulate), workers)
    assert one["weights_sha256"] == many["weights_sha256"]
    assert [epoch["train_loss"] for epoch in one["history"]] == [epoch["train_loss"] for epoch in many["history"]]


def test_a_partition_by_column_has_the_rows_of_each_value(tmp_path: Path) -> None:
    asked = simulation(tmp_path, simulate=BY_SITE)
    frame = table()
    training = frame.iloc[asked.session.model.train_dl.keys]  # type: ignore[union-attr]
    for client, site in enumerate(sorted(set(frame["site"]))):
        rows = training.iloc[asked.partition.rows_of(client)]
        assert set(rows["site"]) == {site} and len(rows) == (training["site"] == site).sum()


@pytest.mark.parametrize("stopped_after", [1, 3])
def test_rounds_go_on_where_they_were_with_the_same_bits(stopped_after: int, tmp_path: Path) -> None:
    federation = {"optimiser": "FedAdam", "best": {"metric": "AUC"}}
    whole = run(simulation(tmp_path / "whole", federation=federation))
    asked = simulation(tmp_path / "parts", federation=federation)
    rounds = SimulatedRounds(asked, 1)
    for _ in range(stopped_after):
        rounds.run(work_here(asked))
    close()
    parts = run(opened(asked.session.store.url), workers=3)
    for key in ("weights_sha256", "best_round", "best_metrics", "val_stats"):
        assert parts[key] == whole[key]


def test_only_the_newest_and_the_best_parameters_stay(tmp_path: Path) -> None:
    asked = simulation(tmp_path, federation={"optimiser": "FedAvgM", "best": {"metric": "AUC"}})
    best = run(asked)["best_round"]
    kept = {path.name for path in (tmp_path / "job" / "simulation").iterdir()}
    weights = {f"{number:05d}.weights.safetensors" for number in {4, best}}
    assert kept == {f"{number:05d}.json" for number in range(1, 5)} | weights | {"00004.server.safetensors"}


def test_a_record_does_not_grow_with_the_clients(tmp_path: Path) -> None:
    sizes = []
    for clients in (10, 60):
        asked = simulation(tmp_path / str(clients), simulate={"clients": clients})
        run(asked)
        sizes.append(len(json.dumps(read_rounds(asked.session.store)[0].to_json())))
    assert abs(sizes[0] - sizes[1]) < 40


def test_early_stopping_ends_the_rounds(tmp_path: Path) -> None:
    stopping = {"metric": "AUC", "patience": 1, "minimum_change": 1.0}
    found = run(simulation(tmp_path, training={"epochs": 50, "seed": 3}, federation={"early_stopping": stopping}))
    assert found["stopped_early"] and found["rounds"] < 5


def test_a_client_that_diverges_costs_its_update_and_all_of_them_the_round(tmp_path: Path) -> None:
    poisoned = PLAIN.replace('return {"loss": loss}', 'return {"loss": loss / (len(y) != 6)}')
    asked = simulation(tmp_path / "some", poisoned, simulate={"clients": 11}, training={"epochs": 1, "seed": 3})
    sizes = asked.partition.sizes
    record = SimulatedRounds(asked, 1).run(work_here(asked))
    assert 0 < record.refusals == (sizes % 8 == 6).sum() < record.clients == 11
    assert all("NaN or infinite" in reason for reason in record.refused.values())

    asked = simulation(tmp_path / "all", PLAIN.replace("lr=0.05", "lr=float('1e30')"))
    with pytest.raises(QuorumError, match="round 2: none of 6 clients has a usable update"):
        run(asked)
    assert len(read_rounds(asked.session.store)) == 1


def test_clients_without_rows_are_not_asked(tmp_path: Path) -> None:
    asked = simulation(tmp_path, simulate={"clients": 500}, training={"epochs": 1, "seed": 3})
    assert (asked.partition.sizes == 0).sum() == 500 - len(asked.partition.order)
    assert run(asked)["history"][0]["also"]["update/clients"] == len(asked.partition.order)


@pytest.mark.parametrize(
    ("source", "simulate", "kind", "words"),
    [
        (PLAIN, {"partition": {"column": "ward"}}, ConfigurationError, "there is no column 'ward'"),
        (PLAIN, {"clients": 3, **BY_SITE}, ConfigurationError, "have 7 values of 'site'"),
        (REGRESSOR, {"clients": 3, "partition": {"dirichlet": 1}}, ConfigurationError, "dirichlet divides classes"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    source: str, simulate: dict[str, Any], kind: type[BitfountError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=words):
        simulation(tmp_path, source, simulate=simulate)


def test_rows_that_changed_since_the_job_began_are_refused(tmp_path: Path) -> None:
    asked = simulation(tmp_path)
    table().assign(a=0.0).to_csv(tmp_path / "rows.csv", index=False)
    close()
    with pytest.raises(DataError, match="have changed since the job job-1 began"):
        opened(asked.session.store.url)


def test_a_record_that_was_changed_is_refused(tmp_path: Path) -> None:
    asked = simulation(tmp_path)
    run(asked)
    (tmp_path / "job" / "simulation" / "00002.json").write_text('{"round_number": 2}')
    with pytest.raises(IntegrityError, match=r"simulation/00002\.json .* is not what a round wrote"):
        read_rounds(asked.session.store)


def test_another_job_in_the_same_folder_is_another_job(tmp_path: Path) -> None:
    first = simulation(tmp_path)
    shutil.rmtree(tmp_path / "job")
    initialise(first.session.store, replace(first.job, training={**first.job.training, "seed": 4}), "job-1")
    second = opened(first.session.store.url)
    assert second.rounds.seed == 4 and not np.array_equal(second.partition.order, first.partition.order)
