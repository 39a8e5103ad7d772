"""Every key of a simulated job's file: taken as written, or refused with its path."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tasks.federated.job_file import check_federated_job
from tasks.job import JobError, LocalJob, with_seed
from tasks.simulation.job_file import SimulatedJob, check_own_rows, check_simulated_job, own_rows_to_json, rounds_of

JOB: dict[str, Any] = {
    "name": "digits",
    "experiment": "research",
    "model": {"file": "model.py", "class": "Net", "hyperparameters": {"lr": 0.5}},
    "data": {"sklearn": "digits"},
    "datastructure": {"target": "target"},
    "schema": {"types": {"categorical": ["target"]}},
    "splitter": {"percentage": {"validation_percentage": 20}},
    "training": {"epochs": 12, "epochs_between_parameter_updates": 5, "batch_size": 16, "seed": 3, "threads": 2},
    "simulate": {
        "clients": 100,
        "sample": 10,
        "partition": {"dirichlet": 0.3},
        "workers": 4,
        "dask": "tcp://scheduler.example.org:8786",
    },
    "federation": {
        "optimiser": "FedAdam",
        "optimiser_settings": {"learning_rate": 0.05},
        "weighted": False,
        "proximal_mu": 0.1,
        "early_stopping": {"metric": "AUC", "patience": 2},
        "best": {"metric": "AUC"},
    },
    "metrics": ["AUC"],
    "register": "digits",
}


def changed(path: str, to: Any) -> dict[str, Any]:
    """The job with another value at a path."""
    copied = copy.deepcopy(JOB)
    *parents, last = path.split(".")
    place = copied
    for key in parents:
        place = place.setdefault(key, {})
    place[last] = to
    return copied


def without(path: str) -> dict[str, Any]:
    """The job without the key at a path."""
    copied = changed(path, None)
    *parents, last = path.split(".")
    place = copied
    for key in parents:
        place = place[key]
    del place[last]
    return copied


def problems_of(value: Any) -> dict[str, str]:
    with pytest.raises(JobError) as caught:
        check_own_rows(value)
    return {".".join(path): text for path, text in caught.value.problems}


def test_a_job_that_says_simulate_is_simulated_and_any_other_is_local() -> None:
    assert isinstance(check_own_rows(JOB), SimulatedJob)
    local = {key: value for key, value in JOB.items() if key not in ("simulate", "federation")}
    assert type(check_own_rows({**local, "training": {"epochs": 3}})) is LocalJob


def test_every_key_reaches_the_rounds() -> None:
    rounds = rounds_of(check_simulated_job(JOB))
    assert (rounds.rounds, rounds.iterations_of(1), rounds.iterations_of(3)) == (3, 5, 2)
    assert (rounds.seed, rounds.batch_size, rounds.proximal_mu, rounds.weighted) == (3, 16, 0.1, False)
    assert (rounds.optimiser, rounds.optimiser_settings) == ("FedAdam", {"learning_rate": 0.05})
    assert (rounds.early_stopping, rounds.best) == ({"metric": "AUC", "patience": 2}, {"metric": "AUC"})
    steps = {"steps": 7, "steps_between_parameter_updates": 3, "seed": 1}
    assert rounds_of(check_simulated_job({**JOB, "training": steps})).rounds == 3


def test_where_it_runs_is_no_part_of_the_job_that_is_kept() -> None:
    asked = check_simulated_job(JOB)
    kept = own_rows_to_json(asked)
    assert set(kept["simulate"]) == {"clients", "sample", "partition"}
    again = check_simulated_job(kept)
    assert own_rows_to_json(again) == kept
    assert (again.simulate["workers"], again.simulate["dask"]) == (1, None)


@pytest.mark.parametrize(
    "path",
    [
        *("experiment", "schema", "splitter", "federation", "metrics", "register", "model.class"),
        *(f"simulate.{key}" for key in JOB["simulate"] if key != "clients"),
        *(f"federation.{key}" for key in JOB["federation"]),
        *(f"training.{key}" for key in JOB["training"] if key != "epochs"),
    ],
)
def test_each_key_that_has_a_default_may_be_left_out(path: str) -> None:
    asked = with_seed(check_simulated_job(without(path)), 5)
    assert own_rows_to_json(check_simulated_job(own_rows_to_json(asked))) == own_rows_to_json(asked)
    assert rounds_of(asked).rounds > 0


def test_the_number_of_clients_may_follow_from_a_column_and_from_nothing_else() -> None:
    by_column = {"partition": {"column": "hospital"}}
    assert check_simulated_job({**JOB, "simulate": by_column}).simulate["clients"] is None
    assert problems_of({**JOB, "simulate": {}}) == {
        "simulate.clients": "say how many there are; only with partition: {column: NAME} the rows say it"
    }


@pytest.mark.parametrize(
    ("path", "wrong", "words"),
    [
        ("simulate", 3, ""),
        ("simulate.clients", 0, "10000000"),
        ("simulate.clients", 10_000_001, "10000000"),
        ("simulate.clients", "many", ""),
        ("simulate.sample", 0, ""),
        ("simulate.sample", 101, "is 101, and there are 100 clients"),
        ("simulate.partition", "non-iid", "wanted iid, {dirichlet: alpha} or {column: NAME}"),
        ("simulate.partition", {"dirichlet": 1, "column": "x"}, "wanted iid"),
        ("simulate.partition", {"dirichlet": 0}, "wanted a number > 0"),
        ("simulate.partition", {"dirichlet": True}, "wanted a number > 0"),
        ("simulate.partition", {"column": 3}, "wanted the name of a column"),
        ("simulate.workers", 0, ""),
        ("simulate.workers", 257, ""),
        ("simulate.dask", 3, ""),
        ("simulate.dask", "", ""),
        ("simulate.client", 3, "did you mean 'clients'?"),
        ("federation.quorum", 3, "unknown key"),
        ("federation.optimiser", "fedavg", ""),
        ("federation.optimiser_settings", {"beta3": 1}, "no setting 'beta3'"),
        ("federation.early_stopping", {"metric": "height", "patience": 1}, "height"),
        ("federation.best", {"metrics": "AUC"}, "metrics"),
        ("training.steps", 3, "give one and only one of epochs and steps"),
        ("training.steps_between_parameter_updates", 3, "give epochs_between_parameter_updates"),
        ("training.workers", 3, "unknown key"),
        ("pods", ["ann"], "leave out pods, or simulate"),
        ("store", "s3://bucket", "unknown key"),
    ],
)
def test_each_wrong_value_is_named_by_its_path_and_in_words(path: str, wrong: Any, words: str) -> None:
    found = problems_of(changed(path, wrong))
    assert all(place == path or place.startswith(f"{path}.") or place == "training.epochs" for place in found), found
    assert any(words in text for text in found.values()), found


def test_all_that_is_wrong_is_said_at_once() -> None:
    value = changed("simulate.clients", 0)
    value["federation"]["proximal"] = 1
    value["training"]["batch_size"] = 0
    assert set(problems_of(value)) == {"simulate.clients", "federation.proximal", "training.batch_size"}


def test_a_federated_job_knows_nothing_of_it() -> None:
    with pytest.raises(JobError, match="simulate: unknown key"):
        check_federated_job({**JOB, "pods": ["ann"]})
