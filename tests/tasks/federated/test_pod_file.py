"""Every key of a pod's file: taken as written, or refused with its path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitfount_model import PercentageSplitter
from bitfount_model.data import CSVSource, SplitterDefinedInData
from bitfount_model.errors import ConfigurationError
from tasks.federated.pod_file import check_pod
from tasks.job import JobError
from tests.tasks.federated.team import table
from tests.tasks.federated.test_job_keys import changed, without

POD: dict[str, Any] = {
    "name": "ann",
    "data": {"csv": "rows.csv", "key": "id"},
    "splitter": {"percentage": {"validation_percentage": 20, "test_percentage": 0}},
    "policy": {"columns": "all", "models": "all", "minimum_rows": 10, "maximum_rounds": 5, "minimum_pods": 2},
    "store": "s3://bucket/federation",
    "patience_seconds": 5.0,
    "jobs_at_once": 1,
}


def problems_of_pod(value: Any) -> set[str]:
    with pytest.raises(JobError) as caught:
        check_pod(value)
    return {".".join(path) for path, _ in caught.value.problems}


def test_every_key_of_a_pod_reaches_it(tmp_path: Path) -> None:
    table("ann").to_csv(tmp_path / "rows.csv", index_label="id")
    checked = check_pod(changed(POD, "data.csv", str(tmp_path / "rows.csv")))
    pod = checked.pod()
    assert pod.name == "ann"
    assert isinstance(pod.source, CSVSource) and len(pod.source.read()) == 24
    assert pod.splitter == PercentageSplitter(20, 0)
    assert (pod.policy.minimum_rows, pod.policy.maximum_rounds, pod.policy.minimum_pods) == (10, 5, 2)
    assert (checked.store, checked.patience_seconds, checked.jobs_at_once) == ("s3://bucket/federation", 5.0, 1)


def test_a_pod_has_defaults_and_another_splitter_if_it_wants() -> None:
    checked = check_pod({"name": "ann", "data": {"sklearn": "digits"}})
    assert (checked.policy, checked.store, checked.jobs_at_once) == (None, None, 4)
    own = check_pod({**POD, "data": {"sklearn": "digits"}, "splitter": {"defined_in_data": {"column_name": "part"}}})
    assert own.pod().splitter == SplitterDefinedInData("part")


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("name", ""),
        ("name", "a/b"),
        ("data", "rows.csv"),
        ("data", {}),
        ("data.csv", 3),
        ("data.key", 3),
        ("splitter", {"percentage": {}, "defined_in_data": {"column_name": "x"}}),
        ("splitter", {"percentage": {"validation_percent": 10}}),
        ("policy", "all"),
        ("store", 3),
        ("patience_seconds", 0.5),
        ("patience_seconds", "long"),
        ("jobs_at_once", 0),
        ("jobs_at_once", 1.5),
        ("pods", []),
    ],
)
def test_each_wrong_value_of_a_pod_is_named_by_its_path(path: str, wrong: Any) -> None:
    found = problems_of_pod(changed(POD, path, wrong))
    assert found and all(place == path or place.startswith(f"{path}.") for place in found), found


@pytest.mark.parametrize("path", ["name", "data"])
def test_what_a_pod_must_say_is_missed(path: str) -> None:
    assert problems_of_pod(without(POD, path)) == {path}


def test_a_wrong_policy_is_said_when_the_pod_is_made() -> None:
    checked = check_pod({**POD, "data": {"sklearn": "digits"}, "policy": {"columns": "all", "minimum_row": 3}})
    with pytest.raises(ConfigurationError) as caught:
        checked.pod()
    assert "minimum_row" in str(caught.value) and "maximum_rounds" in str(caught.value)
