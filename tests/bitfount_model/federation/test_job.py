"""A federated job: what it asks in each operation, what it brings of its own, and that JSON keeps all of it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitfount_model import BitfountSchema
from bitfount_model.data import Preparation
from bitfount_model.errors import ConfigurationError
from bitfount_model.federation.early_stopping import EarlyStoppingState
from bitfount_model.federation.job import EVALUATE, FIT, PREDICT, FederatedJob, job_from_json, selection

JOB: dict[str, Any] = {
    "job_id": "j",
    "pods": ["bob", "ann"],
    "model_sha256": "a" * 64,
    "datastructure": {"target": "y"},
    "between_updates": 2,
    "epochs": 5,
    "seed": 1,
    "quorum": 1,
}


def schema() -> BitfountSchema:
    made = BitfountSchema("own")
    made.generate_full_schema(pd.DataFrame({"a": [1.5, 2.5], "y": [0, 1]}), force_stypes={"categorical": ["y"]})
    return made


def refused(**changes: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        job_from_json({**JOB, **changes})
    return str(caught.value)


@pytest.mark.parametrize(
    ("operation", "predict", "rounds", "evaluates", "predicts"),
    [
        (FIT, False, 3, True, False),
        (FIT, True, 3, True, True),
        (EVALUATE, False, 0, True, False),
        (PREDICT, False, 0, False, True),
    ],
)
def test_an_operation_says_what_pods_do(
    operation: str, predict: bool, rounds: int, evaluates: bool, predicts: bool
) -> None:
    job = job_from_json({**JOB, "operation": operation, "predict": predict})
    assert (job.rounds, job.wants_evaluation, job.wants_predictions) == (rounds, evaluates, predicts)


def test_there_is_no_round_in_a_job_that_trains_nothing() -> None:
    job = job_from_json({**JOB, "operation": EVALUATE})
    with pytest.raises(ConfigurationError, match="there is no round 1"):
        job.iterations_of(1)
    for number in (0, 4):
        with pytest.raises(ConfigurationError, match=f"there is no round {number}: the job has rounds 1 to 3"):
            job_from_json(JOB).iterations_before(number)


def test_a_job_without_an_operation_trains() -> None:
    job = job_from_json(JOB)
    assert (job.operation, job.predict, job.best, job.schema, job.preparation) == (FIT, False, None, None, None)


@pytest.mark.parametrize(
    ("key", "wrong", "said"),
    [
        ("operation", "train", "operation"),
        ("predict", "perhaps", "predict"),
        ("best", {"metric": "height"}, "best: mode"),
        ("best", {"metric": "AUC", "mode": "up"}, "best"),
        ("best", {"metrics": "AUC"}, "best"),
        ("best", {"metric": "AUC", "patience": 3}, "best"),
        ("best", {"mode": "max"}, "best"),
        ("schema", "[1, 2]", "schema"),
        ("schema", "!!python/name:os.system", "schema"),
        ("preparation", {"numbers": 1}, "preparation"),
        ("model_sha256", "A" * 64, "model_sha256"),
        ("job_id", "../up", "job_id"),
        ("extra", 1, "extra"),
    ],
)
def test_what_cannot_be_asked_is_said_by_its_key(key: str, wrong: Any, said: str) -> None:
    assert said in refused(**{key: wrong})


def test_all_of_it_is_said_at_once() -> None:
    said = refused(best={"metric": "height"}, schema="[", preparation={"x": 1}, early_stopping={"metric": "AUC"})
    assert all(f"{key}: " in said for key in ("best", "schema", "preparation", "early_stopping"))


@pytest.mark.parametrize("value", [None, [], "job", 3])
def test_what_is_no_object_is_no_job(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="not a federated job"):
        job_from_json(value)


def test_a_job_may_bring_its_columns_and_encoding() -> None:
    preparation = Preparation({"a": (2.0, 0.5)}, {}, "codes", True)
    job = job_from_json({**JOB, "schema": schema().dumps(), "preparation": preparation.to_json()})
    again = job_from_json(json.loads(json.dumps(job.to_json(), allow_nan=False)))
    assert again == job
    assert again.schema is not None and BitfountSchema.loads(again.schema) == schema()
    assert again.preparation is not None and Preparation.from_json(again.preparation) == preparation


jobs = st.fixed_dictionaries(
    {
        **{key: st.just(value) for key, value in JOB.items() if key not in ("epochs", "quorum")},
        "quorum": st.integers(1, 2),
    },
    optional={
        "operation": st.sampled_from([FIT, EVALUATE, PREDICT]),
        "predict": st.booleans(),
        "model_class": st.none() | st.text(max_size=5),
        "hyperparameters": st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=2),
        "types": st.dictionaries(st.sampled_from(["text", "image"]), st.lists(st.text(max_size=3)), max_size=2),
        "batch_size": st.integers(1, 10**6),
        "threads": st.integers(1, 64),
        "weighted": st.booleans(),
        "proximal_mu": st.floats(0, 1e6),
        "deadline_seconds": st.floats(1e-3, 1e9),
        "best": st.none() | st.just({"metric": "AUC"}),
        "early_stopping": st.none() | st.just({"metric": "loss", "patience": 2}),
        "metrics": st.none() | st.lists(st.text(max_size=3)),
        "minimum_statistics_rows": st.integers(1, 100),
    },
)


@given(jobs, st.booleans(), st.integers(1, 99))
def test_every_job_survives_json(value: dict[str, Any], counts_epochs: bool, length: int) -> None:
    job = job_from_json({**value, "epochs" if counts_epochs else "steps": length})
    assert job_from_json(json.loads(json.dumps(job.to_json(), allow_nan=False))) == job
    assert job.pods == ("ann", "bob"), "updates are added in the order of names"
    for key in value.keys() - {"pods"}:
        assert getattr(job, key) == value[key]


@given(st.integers(1, 200), st.integers(1, 250))
def test_rounds_follow_each_other_without_a_gap(length: int, between: int) -> None:
    job = replace(job_from_json(JOB), epochs=length, between_updates=between)
    position = 0
    for number in range(1, job.rounds + 1):
        assert job.iterations_before(number) == position
        position += job.iterations_of(number)
    assert position == length


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20), st.sampled_from(["AUC", "validation_loss"]))
def test_the_best_round_is_the_first_of_the_best_and_never_stops_the_job(values: list[float], metric: str) -> None:
    chooser, state = selection({"metric": metric}), EarlyStoppingState()
    for number, value in enumerate(values, start=1):
        state = chooser.update(state, number, {metric: value})
    wanted = max(values) if metric == "AUC" else min(values)
    assert state.best_round == values.index(wanted) + 1
    assert not state.stopped


def test_the_direction_of_a_metric_may_be_said() -> None:
    assert selection({"metric": "height", "mode": "min"}).lower_is_better
    assert not FederatedJob(**{**JOB, "pods": ("ann",)}).wants_predictions
    with pytest.raises(TypeError):
        selection({"metric": "AUC", "pations": 3})
