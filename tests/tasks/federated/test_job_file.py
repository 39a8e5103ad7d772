"""What a modeller and a data owner may write, and how what is wrong with it is said."""

from __future__ import annotations

from typing import Any

import pytest

from bitfount_model.errors import ConfigurationError
from tasks.federated.job_file import check_federated_job, federated_job_to_json, job_for_pods, with_own_seed
from tasks.federated.pod_file import check_pod
from tasks.job import JobError

JOB: dict[str, Any] = {
    "name": "tumours",
    "model": {"file": "model.py"},
    "pods": ["a.yaml", "b.yaml", "c.yaml"],
    "datastructure": {"target": "y"},
    "training": {"epochs": 4, "seed": 3},
}
POD: dict[str, Any] = {"name": "ann", "data": {"csv": "rows.csv"}}


@pytest.mark.parametrize(
    ("sections", "path", "said"),
    [
        ({"pods": []}, "pods", "Shorter than minimum"),
        ({"pods": ["a.yaml", "b"]}, "pods", "not both"),
        ({"store": "s3://bucket"}, "store", "a store is for deployed pods"),
        ({"pods": ["a", "b"], "compare": True}, "compare", "do not lend their rows"),
        ({"compare": True, "evaluate": False}, "compare", "trains and evaluates"),
        ({"operation": "predict"}, "operation", "pretrained_file"),
        ({"operation": "dance"}, "operation", "Must be one of"),
        ({"training": {"epochs": 1, "steps": 2}}, "training.epochs", "one and only one"),
        (
            {"training": {"epochs": 1, "steps_between_parameter_updates": 2}},
            "training.steps_between_parameter_updates",
            "counts in epochs",
        ),
        ({"federation": {"optimiser": "FedSomething"}}, "federation.optimiser", "Must be one of"),
        ({"federation": {"qorum": 2}}, "federation.qorum", "did you mean 'quorum'"),
        ({"schema": {"file": "s.yaml", "types": {"text": ["a"]}}}, "schema", "or types"),
        ({"metrics": []}, "metrics", "Shorter than minimum"),
        ({"splitter": {}}, "splitter", "unknown key"),
    ],
)
def test_what_is_wrong_with_a_job_is_said_by_its_key(sections: dict[str, Any], path: str, said: str) -> None:
    with pytest.raises(JobError) as caught:
        check_federated_job({**JOB, **sections})
    assert any(".".join(keys) == path and said in text for keys, text in caught.value.problems), caught.value.problems


def test_all_problems_are_said_together() -> None:
    with pytest.raises(JobError) as caught:
        check_federated_job({"pods": ["a", "b.yaml"], "training": {"batch_size": 0}, "extra": 1})
    assert {keys[0] for keys, _ in caught.value.problems} >= {"name", "model", "datastructure", "extra", "training"}


def test_a_job_survives_json_and_keeps_its_seed() -> None:
    job = check_federated_job(JOB)
    assert check_federated_job(federated_job_to_json(job)) == job
    assert with_own_seed(job, 99).training["seed"] == 3
    bare = check_federated_job({**JOB, "training": {"epochs": 4}})
    assert with_own_seed(bare, 99).training["seed"] == 99
    assert with_own_seed(bare).training["seed"] is not None


@pytest.mark.parametrize(
    ("federation", "pods", "quorum"),
    [({}, 1, 1), ({}, 2, 2), ({}, 5, 3), ({"sample": 2}, 5, 2), ({"quorum": 1}, 5, 1)],
)
def test_the_quorum_is_a_majority_of_those_asked_unless_the_job_says_it(
    federation: dict[str, Any], pods: int, quorum: int
) -> None:
    names = [f"p{number}" for number in range(pods)]
    asked = check_federated_job({**JOB, "federation": federation})
    assert job_for_pods(asked, "id", names, b"source").quorum == quorum


def test_pods_are_sent_what_the_job_says() -> None:
    asked = check_federated_job({**JOB, "training": {"steps": 7, "seed": 3, "steps_between_parameter_updates": 2}})
    job = job_for_pods(asked, "id", ["b", "a"], b"source")
    assert (job.pods, job.steps, job.epochs, job.between_updates, job.rounds) == (("a", "b"), 7, None, 2, 4)
    assert job.model_sha256 == "41cf6794ba4200b839c53531555f0f3998df4cbb01a4d5cb0b94e3ca5e23947d"


def test_settings_that_do_not_go_together_are_refused_before_anybody_is_asked() -> None:
    asked = check_federated_job({**JOB, "federation": {"quorum": 4, "early_stopping": {"metric": "AUC"}}})
    with pytest.raises(ConfigurationError) as caught:
        job_for_pods(asked, "id", ["a", "b"], b"source")
    assert "quorum" in str(caught.value) and "early_stopping" in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "path", "said"),
    [
        ({"name": "ä/ö"}, "name", "letters"),
        ({"data": {"csv": "a", "parquet": "b"}}, "data", ""),
        ({"patience_seconds": 0}, "patience_seconds", "Must be greater"),
        ({"jobs_at_once": 0}, "jobs_at_once", "Must be greater"),
        ({"polcy": {}}, "polcy", "did you mean 'policy'"),
    ],
)
def test_what_is_wrong_with_a_pod_is_said_by_its_key(keys: dict[str, Any], path: str, said: str) -> None:
    with pytest.raises(JobError) as caught:
        check_pod({**POD, **keys})
    assert any(found[0] == path and said in text for found, text in caught.value.problems), caught.value.problems


def test_a_pod_without_a_policy_denies() -> None:
    with pytest.raises(ConfigurationError, match="policy"):
        check_pod(POD).pod()
