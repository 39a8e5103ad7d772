"""What MLflow's runs say of a federated job, one for the job and one a pod: from its records alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.colours import COLOURS
from tasks.federated import pod_worker
from tasks.federated.contents import (
    PARENT,
    POD,
    comparison_table,
    job_contents,
    pod_contents,
    pod_points,
    pod_run_id,
    pod_run_name,
    pods_of,
    result_table,
    round_points,
)
from tasks.federated.finish import ask_for_evaluation, collect_evaluation, keep_weights
from tasks.federated.round_record import RoundRecord
from tasks.manifest import Manifest
from tasks.run_contents import MAX_TAG, REASON, ROOM, Point
from tasks.session import require
from tasks.store import Store
from tests.tasks.federated.team import SECRET, Team, plain_step, trained
from tests.tasks.federated.test_round_record import record as round_record

RECORD = replace(
    round_record(),
    round_number=7,
    missing={"cat": "its disk is full"},
    metrics={"AUC": 0.75, "F1": None, "validation_loss": 0.5},
    by_pod={"ann": {"AUC": 0.5, "F1": None}, "bob": {"AUC": 1.0}},
    train_loss={"ann": 0.25, "bob": None},
)


class Done:
    """A job of three rounds, in the second of which bob was missing."""

    def __init__(self, folder: Path) -> None:
        team = Team(folder)
        team.tell("bob", 2, "raise")
        federation = team.initialised(best={"metric": "validation_loss"}, optimiser="FedAvgM")
        rounds = trained(federation)
        self.store: Store = federation.store
        self.records: list[RoundRecord] = rounds.records
        self.manifests: dict[str, Manifest] = {
            "initialise": require(self.store, "initialise"),
            "fit": keep_weights(federation, rounds),
        }
        ask_for_evaluation(federation, rounds.weights)
        federation.reach.work()
        self.manifests["evaluate"] = collect_evaluation(federation)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pod_worker, "step", plain_step)
        return Done(tmp_path_factory.mktemp("done"))


def by_key(points: list[Point]) -> dict[str, float]:
    assert len({(point.key, point.step) for point in points}) == len(points), "a key has one value a step"
    return {point.key: point.value for point in points}


def test_a_round_is_a_step_of_every_metric() -> None:
    points = round_points(RECORD)
    assert {point.step for point in points} == {7}
    assert by_key(points) == {
        "train/loss": 0.25,
        "time/fit_seconds": 0.5,
        "time/round_seconds": RECORD.seconds,
        "time/wait_seconds": RECORD.wait_seconds,
        "time/aggregate_seconds": RECORD.aggregate_seconds,
        "update/bytes_down": 100.0,
        "update/bytes_up": 200.0,
        "update/pods": 2.0,
        "update/pods_missing": 1.0,
        "update/largest_norm": 2.0,
        "validation/AUC": 0.75,
        "validation/loss": 0.5,
    }


def test_a_pod_has_its_own_metrics_and_one_that_was_missing_only_that() -> None:
    assert by_key(pod_points("ann", RECORD)) == {
        "update/took_part": 1.0,
        "train/loss": 0.25,
        "time/fit_seconds": 0.25,
        "update/norm": 1.0,
        "validation/AUC": 0.5,
    }
    assert pod_points("cat", RECORD) == [Point("update/took_part", 0.0, 7)]
    assert pod_points("not asked", RECORD) == []


def test_a_round_of_pods_without_losses_has_none() -> None:
    points = by_key(round_points(replace(RECORD, train_loss={}, metrics={})))
    assert "train/loss" not in points and not any(key.startswith("validation") for key in points)


def test_the_jobs_run_has_all_rounds_and_the_test_metrics_at_the_last(done: Done) -> None:
    contents = job_contents(done.store, done.manifests, done.records)
    rounds = {point.step for point in contents.points if point.key == "validation/loss"}
    tested = [point for point in contents.points if point.key == "test/Accuracy"]
    assert rounds == {1, 2, 3}
    assert tested == [Point("test/Accuracy", done.manifests["evaluate"].values["metrics"]["Accuracy"], 3)]
    assert [point.value for point in contents.points if point.key == "update/pods_missing"] == [0.0, 1.0, 0.0]
    assert contents.steps == ("initialise", "fit", "evaluate")
    assert contents.job_id == contents.name == "job-1" and contents.tags["bitfount.job"] == "cells"


def test_parameters_say_what_was_asked(done: Done) -> None:
    params = job_contents(done.store, done.manifests, done.records).params
    wanted = {
        "model": "Net",
        "targets": "y",
        "pods": "ann, bob, cat",
        "rounds": "3",
        "epochs": "3",
        "seed": "3",
        "quorum": "2",
        "optimiser": "FedAvgM",
        "weighted": "true",
        "best.metric": "validation_loss",
        "batch_size": "8",
        "rows.train": "57",
    }
    assert {key: params.get(key) for key in wanted} == wanted
    assert "steps" not in params and "sample" not in params, "what was not asked is not there"
    assert all(isinstance(value, str) for value in params.values())


def test_tags_lead_back_to_code_rows_weights_and_the_best_round(done: Done) -> None:
    tags = job_contents(done.store, done.manifests, done.records, prefect_run="run-1").tags
    fitted = done.manifests["fit"].values
    assert tags["bitfount.job_id"] == "job-1"
    assert tags["bitfount.prefect_run"] == "run-1"
    assert tags["bitfount.weights_sha256"] == fitted["weights_sha256"]
    assert tags["bitfount.best_round"] == str(fitted["best_round"])
    assert tags["bitfount.data_sha256"] == done.manifests["initialise"].values["data_digest"]
    assert REASON not in tags


def test_a_reason_is_in_the_tags_and_on_top_of_the_note(done: Done) -> None:
    reason = "QuorumError: round 3: 1 of 3 pods answered\n  bob: `x` " + "y" * 2 * MAX_TAG
    tags = job_contents(done.store, {"initialise": done.manifests["initialise"]}, done.records[:2], None, reason).tags
    assert len(tags[REASON]) == MAX_TAG
    note = tags["mlflow.note.content"]
    assert note.startswith("**Stopped:** QuorumError: round 3: 1 of 3 pods answered bob: 'x'") and len(note) <= MAX_TAG
    assert "**Rounds** 2 of 3; missing: bob in 1" in note


def test_the_note_tells_pods_rounds_and_results(done: Done) -> None:
    note = job_contents(done.store, done.manifests, done.records).tags["mlflow.note.content"]
    best = done.manifests["fit"].values["best_round"]
    for words in (
        "**Pods** ann, bob, cat: 3 columns, target y; 57 training, 9 validation, 6 test rows in all",
        "**Rounds** 3 of 3; missing: bob in 1",
        f"best round {best}, its weights are kept beside the last",
        "| metric | all (6 rows) | ann (2) | bob (2) | cat (2) |",
        f"Job `job-1`, kept in `{done.store.url}`",
    ):
        assert words in note.replace(ROOM, "")


def test_files_lie_in_the_runs_folders_and_notes_between_steps_do_not(done: Done) -> None:
    plots = Manifest("plots", {"pods": done.manifests["fit"].files["history"]})
    predicted = Manifest("predict", {"ann": done.manifests["fit"].files["best"]})
    files = job_contents(done.store, {**done.manifests, "plots": plots, "predict": predicted}, done.records).files
    assert {(folder, reference.name) for folder, reference in files} == {
        ("", "job.json"),
        ("", "federation.json"),
        ("model", "model.py"),
        ("model", "schema.yaml"),
        ("model", "datastructure.json"),
        ("model", "fit/weights.safetensors"),
        ("model", "fit/best.safetensors"),
        ("", "fit/rounds.json"),
        ("plots", "fit/rounds.json"),
        ("predict", "fit/best.safetensors"),
    }


def test_the_data_set_counts_rows_and_shows_none(done: Done) -> None:
    contents = job_contents(done.store, done.manifests, done.records)
    (dataset,) = contents.datasets
    assert (dataset.name, dataset.source_type) == ("ann, bob, cat", "pods")
    profile: dict[str, Any] = json.loads(dataset.profile)
    assert profile["num_rows"] == 72 and profile["rows_by_pod"]["ann"] == {"train": 19, "validation": 3, "test": 2}
    assert str(SECRET) not in repr(contents)


def test_the_run_of_a_pod_is_nested_in_the_jobs(done: Done) -> None:
    contents = pod_contents("bob", "parent-run", done.manifests, done.records)
    assert contents.job_id == pod_run_id("job-1", "bob") == "job-1/bob"
    assert contents.name == pod_run_name("job-1", "bob") == "bob · job-1"
    assert contents.tags[PARENT] == "parent-run" and contents.tags[POD] == "bob"
    assert contents.tags["mlflow.runColor"] == COLOURS[1], "the colour that bob has in the report"
    assert contents.params == {"rows.train": "19", "rows.validation": "3", "rows.test": "2"}
    assert [point.value for point in contents.points if point.key == "update/took_part"] == [1.0, 0.0, 1.0]
    assert [point.step for point in contents.points if point.key == "test/Accuracy"] == [3]
    note = contents.tags["mlflow.note.content"]
    assert "took part in 2 of 3 rounds" in note and "- missing: pod 'bob' failed to fit: ValueError" in note
    assert contents.files == () and contents.datasets == ()


def test_a_pod_that_never_joined_has_a_run_too(done: Done) -> None:
    records = [replace(record, missing={**record.missing, "zoe": "it sleeps"}) for record in done.records]
    assert pods_of(done.manifests["initialise"], records) == ["ann", "bob", "cat", "zoe"]
    contents = pod_contents("zoe", "parent-run", done.manifests, records)
    assert contents.params == {}
    assert {(point.key, point.value) for point in contents.points} == {("update/took_part", 0.0)}
    assert "took part in 0 of 3 rounds" in contents.tags["mlflow.note.content"]


def test_names_of_others_do_not_break_a_table() -> None:
    values = {"metrics": {"A|B": 0.5}, "by_pod": {"p`1": {"A|B": None}}, "rows": 4, "rows_by_pod": {"p`1": 4}}
    head, line, row = result_table(values)[2:5]
    assert head.count("|") == line.count("|") == row.count("|") == 4
    assert "A/B" in row and "not defined" in row and "0.5000" in row
    assert result_table({"metrics": {}, "by_pod": {}})[0] == "No pod sent test metrics."


def test_a_comparison_shows_each_pod_alone_their_mean_and_all_rows_pooled() -> None:
    values = {
        "federated": {"AUC": 0.9},
        "pooled": {"AUC": 0.95},
        "alone": {"bob": {"AUC": 0.7}, "ann": {"AUC": 0.5}},
        "alone_mean": {"AUC": 0.6},
    }
    rows = [line for line in comparison_table(values) if line.startswith("|")]
    assert [row.replace(ROOM, "") for row in rows] == [
        "| trained on | AUC |",
        "|---|---|",
        "| ann alone | 0.5000 |",
        "| bob alone | 0.7000 |",
        "| mean of the pods alone | 0.6000 |",
        "| federated | 0.9000 |",
        "| all rows pooled | 0.9500 |",
    ]
