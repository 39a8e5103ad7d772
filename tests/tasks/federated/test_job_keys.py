"""Every key of a federated job's file: taken as written, or refused with its path."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitfount_model import BitfountSchema
from bitfount_model.data import Preparation
from bitfount_model.errors import ConfigurationError
from bitfount_model.federation.job import FederatedJob, job_from_json
from bitfount_model.federation.privacy import PrivacySettings
from tasks.federated.job_file import check_federated_job, federated_job_to_json, job_for_pods, with_own_seed
from tasks.job import JobError
from tests.tasks.federated.team import table

JOB: dict[str, Any] = {
    "name": "tumours",
    "experiment": "cells",
    "model": {"file": "model.py", "class": "Net", "version": None, "hyperparameters": {"lr": 0.5}},
    "pods": ["ann", "bob", "cat", "dan", "eve"],
    "store": "s3://bucket/federation",
    "datastructure": {"target": "y", "ignore_cols": ["id"]},
    "schema": {"file": None, "types": {"categorical": ["site"]}},
    "training": {
        "steps": 12,
        "steps_between_parameter_updates": 5,
        "batch_size": 16,
        "seed": 3,
        "threads": 2,
        "pretrained_file": None,
        "param_clipping": {"value": 1.0, "algorithm": "norm"},
    },
    "federation": {
        "optimiser": "FedAdam",
        "optimiser_settings": {"learning_rate": 0.05},
        "aggregation": "trimmed_mean",
        "aggregation_settings": {"malicious": 1},
        "secure_aggregation": False,
        "weighted": False,
        "proximal_mu": 0.1,
        "sample": 4,
        "quorum": 3,
        "require_all_pods": True,
        "deadline_seconds": 30.0,
        "minimum_statistics_rows": 20,
        "early_stopping": {"metric": "AUC", "patience": 2},
        "best": {"metric": "AUC"},
    },
    "metrics": ["AUC"],
    "evaluate": False,
    "predict": True,
    "compare": False,
    "register": "tumours",
    "operation": "fit",
    "sign_with": "modeller.pem",
}


def changed(value: Mapping[str, Any], path: str, to: Any) -> dict[str, Any]:
    """The same value with another one at a path."""
    copied = copy.deepcopy(dict(value))
    *parents, last = path.split(".")
    place = copied
    for key in parents:
        place = place[key]
    place[last] = to
    return copied


def without(value: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The same value without the key at a path."""
    copied = changed(value, path, None)
    *parents, last = path.split(".")
    place = copied
    for key in parents:
        place = place[key]
    del place[last]
    return copied


def problems_of_job(value: Any) -> set[str]:
    with pytest.raises(JobError) as caught:
        check_federated_job(value)
    return {".".join(path) for path, _ in caught.value.problems}


def test_every_key_reaches_the_pods_or_the_modeller() -> None:
    asked = check_federated_job(JOB)
    assert job_for_pods(asked, "job-1", asked.pods, b"source") == FederatedJob(
        job_id="job-1",
        pods=("ann", "bob", "cat", "dan", "eve"),
        model_sha256="41cf6794ba4200b839c53531555f0f3998df4cbb01a4d5cb0b94e3ca5e23947d",
        datastructure={"target": "y", "ignore_cols": ["id"]},
        between_updates=5,
        seed=3,
        quorum=3,
        steps=12,
        model_class="Net",
        predict=True,
        hyperparameters={"lr": 0.5},
        types={"categorical": ["site"]},
        batch_size=16,
        threads=2,
        param_clipping={"value": 1.0, "algorithm": "norm"},
        optimiser="FedAdam",
        optimiser_settings={"learning_rate": 0.05},
        aggregation="trimmed_mean",
        aggregation_settings={"malicious": 1.0},
        weighted=False,
        proximal_mu=0.1,
        sample=4,
        deadline_seconds=30.0,
        early_stopping={"metric": "AUC", "patience": 2},
        best={"metric": "AUC"},
        metrics=["AUC"],
        minimum_statistics_rows=20,
    )
    assert (asked.name, asked.experiment, asked.store, asked.register) == (
        "tumours",
        "cells",
        "s3://bucket/federation",
        "tumours",
    )
    assert asked.sign_with == "modeller.pem"
    assert (asked.evaluate, asked.predict, asked.compare, asked.is_embedded) == (False, True, False, False)
    assert asked.federation["require_all_pods"] is True
    assert check_federated_job(federated_job_to_json(asked)) == asked


OPTIONAL = [
    *(f"{key}" for key in JOB if key not in ("name", "model", "pods", "datastructure", "training")),
    *(f"training.{key}" for key in JOB["training"] if key != "steps"),
    *(f"federation.{key}" for key in JOB["federation"]),
    *("model.class", "model.version", "model.hyperparameters", "schema.file", "schema.types", "datastructure.target"),
]


@pytest.mark.parametrize("path", OPTIONAL)
def test_each_key_that_has_a_default_may_be_left_out(path: str) -> None:
    asked = check_federated_job(without(JOB, path))
    assert check_federated_job(federated_job_to_json(asked)) == asked


@given(st.sets(st.sampled_from(OPTIONAL)))
def test_a_job_without_any_of_its_defaults_survives_json(left_out: set[str]) -> None:
    value = JOB
    for path in sorted(left_out, reverse=True):  # what is inside a section goes before the section
        value = without(value, path)
    asked = with_own_seed(check_federated_job(value))
    assert check_federated_job(federated_job_to_json(asked)) == asked
    assert with_own_seed(asked) == asked


@pytest.mark.parametrize("path", ["name", "model", "pods", "datastructure", "training"])
def test_what_has_no_default_is_missed(path: str) -> None:
    assert problems_of_job(without(JOB, path)) == {path}


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("name", ""),
        ("name", 3),
        ("experiment", ""),
        ("model", "model.py"),
        ("model.file", 3),
        ("model.hyperparameters", {"epochs": 3}),
        ("model.hyperparameters", [1]),
        ("model.version", "1"),
        ("pods", "ann"),
        ("pods", []),
        ("pods", ["ann", "bob.yaml"]),
        ("store", 3),
        ("datastructure", {"targets": "y"}),
        ("schema.types", {"continous": ["a"]}),
        ("schema.types", {"continuous": "a"}),
        ("training.steps", 0),
        ("training.steps", "12"),
        ("training.steps", 1.5),
        ("training.steps_between_parameter_updates", 0),
        ("training.batch_size", 0),
        ("training.seed", -1),
        ("training.seed", 2**63),
        ("training.threads", 0),
        ("training.pretrained_file", 3),
        ("training.param_clipping", 3),
        ("training.workers", 1),
        ("federation", []),
        ("federation.optimiser", "fedavg"),
        ("federation.optimiser_settings", {"learning_rate": "fast"}),
        ("federation.weighted", "maybe"),
        ("federation.proximal_mu", "x"),
        ("federation.sample", 1.5),
        ("federation.quorum", "most"),
        ("federation.require_all_pods", 7),
        ("federation.deadline_seconds", "soon"),
        ("federation.minimum_statistics_rows", 1.5),
        ("federation.early_stopping", "AUC"),
        ("federation.best", "AUC"),
        ("federation.deadline", 3),
        ("metrics", "AUC"),
        ("metrics", []),
        ("evaluate", "maybe"),
        ("predict", "maybe"),
        ("compare", "maybe"),
        ("register", ""),
        ("operation", "train"),
        ("sign_with", 3),
        ("rounds", 3),
    ],
)
def test_each_wrong_value_is_named_by_its_path(path: str, wrong: Any) -> None:
    found = problems_of_job(changed(JOB, path, wrong))
    assert found and all(place == path or place.startswith(f"{path}.") for place in found), found


@pytest.mark.parametrize("value", [None, [], "job", 3, {"name": "x", 3: 4}])
def test_what_is_no_job_at_all_is_refused(value: Any) -> None:
    assert problems_of_job(value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    value = changed(changed(changed(JOB, "training.batch_size", 0), "federation.qorum", 1), "metrics", [])
    assert problems_of_job(value) == {"training.batch_size", "federation.qorum", "metrics"}


@pytest.mark.parametrize(
    ("sections", "is_allowed"),
    [
        ({"pods": ["a.yaml", "b.yml"], "store": None, "compare": True, "evaluate": True}, True),
        ({"pods": ["a.yaml"], "store": "folder"}, False),
        ({"pods": ["ann"], "store": None}, True),  # a store may come from elsewhere
        ({"pods": ["ann"], "compare": True, "evaluate": True}, False),
        ({"pods": ["a.yaml"], "store": None, "compare": True, "evaluate": False}, False),
        ({"pods": ["a.yaml"], "store": None, "compare": True, "evaluate": True, "operation": "evaluate"}, False),
        ({"operation": "predict"}, False),
        ({"operation": "predict", "training": {"epochs": 1, "pretrained_file": "w.safetensors"}}, True),
        ({"operation": "evaluate"}, True),
    ],
)
def test_what_goes_together(sections: dict[str, Any], is_allowed: bool) -> None:
    value = {**JOB, **sections}
    if is_allowed:
        assert check_federated_job(value).is_embedded is value["pods"][0].endswith((".yaml", ".yml"))
    else:
        assert problems_of_job(value) <= {"store", "compare", "operation"}


@pytest.mark.parametrize("unit", ["epochs", "steps"])
@given(length=st.integers(1, 50), between=st.none() | st.integers(1, 60))
def test_rounds_train_the_whole_length_in_either_unit(unit: str, length: int, between: int | None) -> None:
    training = {unit: length, "seed": 1}
    if between is not None:
        training[f"{unit}_between_parameter_updates"] = between
    job = job_for_pods(check_federated_job({**JOB, "training": training}), "j", ["ann", "bob", "cat", "dan"], b"")
    assert job.between_updates == (between or 1)
    assert sum(job.iterations_of(number) for number in range(1, job.rounds + 1)) == length == job.iterations


@given(pods=st.integers(1, 9), sample=st.none() | st.integers(1, 9))
def test_without_a_quorum_more_than_half_of_those_asked_are_needed(pods: int, sample: int | None) -> None:
    plain = without(without(JOB, "federation.aggregation"), "federation.aggregation_settings")
    asked = check_federated_job(changed(without(plain, "federation.quorum"), "federation.sample", sample))
    names = [f"pod-{number}" for number in range(pods)]
    if sample is not None and sample > pods:
        with pytest.raises(ConfigurationError, match="sample"):
            job_for_pods(asked, "j", names, b"")
        return
    of = sample or pods
    assert of / 2 < job_for_pods(asked, "j", names, b"").quorum <= of / 2 + 1


@pytest.mark.parametrize(
    ("keys", "quorum"),
    [
        ({"aggregation": "krum"}, 5),
        ({"aggregation": "krum", "aggregation_settings": {"malicious": 0}}, 4),
        ({"secure_aggregation": True}, 4),
    ],
)
def test_without_a_quorum_what_the_aggregation_needs_is_needed(keys: dict[str, Any], quorum: int) -> None:
    asked = check_federated_job({**JOB, "federation": keys})
    assert job_for_pods(asked, "j", [f"pod-{number}" for number in range(6)], b"").quorum == quorum
    assert job_for_pods(asked, "j", [f"pod-{number}" for number in range(9)], b"").quorum == 5


def test_a_job_may_bring_its_columns_and_their_encoding() -> None:
    schema = BitfountSchema("own")
    schema.generate_full_schema(table("ann"), force_stypes={"categorical": ["y"]})
    preparation = Preparation({"a": (1.0, 2.0)}, {}, "codes", True)
    job = job_for_pods(check_federated_job(JOB), "j", JOB["pods"], b"", schema=schema, preparation=preparation)
    assert job.schema is not None and BitfountSchema.loads(job.schema) == schema
    assert job.preparation is not None and Preparation.from_json(job.preparation) == preparation


def test_all_settings_that_do_not_go_together_are_said() -> None:
    federation = {
        "optimiser_settings": {"beta1": 0.5},
        "early_stopping": {"metric": "AUC"},
        "best": {"metric": "height"},
    }
    asked = check_federated_job({**JOB, "federation": {**federation, "sample": 2, "quorum": 3}})
    with pytest.raises(ConfigurationError) as caught:
        job_for_pods(asked, "j", JOB["pods"], b"")
    for words in ("optimiser_settings: FedAvg has no setting 'beta1'", "early_stopping:", "best:", "quorum: is 3"):
        assert words in str(caught.value)


PRIVACY: dict[str, Any] = {"clip": 2, "noise_multiplier": 30, "delta": 1e-6}


def private(**changes: Any) -> dict[str, Any]:
    return changed(JOB, "federation.privacy", PRIVACY | changes)


def test_noise_reaches_the_pods_and_survives_json() -> None:
    asked = check_federated_job(private())
    job = job_for_pods(asked, "j", asked.pods, b"")
    assert job.privacy == PrivacySettings(clip=2.0, noise_multiplier=30.0, delta=1e-6)
    assert job_from_json(job.to_json()) == job
    assert check_federated_job(federated_job_to_json(asked)) == asked


@pytest.mark.parametrize("key", PRIVACY)
def test_noise_is_said_in_full(key: str) -> None:
    assert problems_of_job(without(private(), f"federation.privacy.{key}")) == {f"federation.privacy.{key}"}
    assert problems_of_job(private(**{key: "much"})) == {f"federation.privacy.{key}"}


@pytest.mark.parametrize(
    ("key", "wrong"),
    [("clip", 0), ("clip", 1e10), ("noise_multiplier", 0), ("noise_multiplier", 1e5), ("delta", 0), ("delta", 1)],
)
def test_noise_that_protects_nothing_or_cannot_be_counted_is_refused(key: str, wrong: float) -> None:
    assert problems_of_job(private(**{key: wrong})) == {f"federation.privacy.{key}"}
    asked = check_federated_job(private())
    sent = job_for_pods(asked, "j", asked.pods, b"").to_json()
    with pytest.raises(ConfigurationError, match="privacy: Must be"):
        job_from_json({**sent, "privacy": {**PRIVACY, key: wrong}})


def test_a_private_job_is_not_compared_with_rows_that_are_read_openly() -> None:
    embedded = {**private(), "pods": ["ann.yaml"], "store": None, "compare": True, "evaluate": True}
    assert problems_of_job(embedded) == {"compare"}
