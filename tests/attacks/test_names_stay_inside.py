"""Names from outside stay inside the folder: 40 hostile ones, wherever a name becomes a place."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitfount_model.errors import BitfountError
from bitfount_model.federation.job import job_from_json
from tasks.federated.exchange import Exchange
from tasks.federated.job_file import check_federated_job
from tasks.federated.pod_file import check_pod
from tasks.job import check_job
from tasks.store import Store
from tests.contracts import HOSTILE_NAMES
from tests.tasks.federated.team import Team
from tests.tasks.federated.test_job_keys import JOB

POD: dict[str, Any] = {"name": "ann", "data": {"csv": {"path": "rows.csv"}}}


def everything_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def a_federated_job(name: str, folder: Path) -> object:
    return check_federated_job({**JOB, "name": name})


def a_job_of_pods(name: str, folder: Path) -> object:
    return job_from_json({**Team(folder / "team").job().to_json(), "job_id": name})


def a_pod_of_a_job(name: str, folder: Path) -> object:
    return job_from_json({**Team(folder / "team").job().to_json(), "pods": ["ann", name]})


def a_pod_file(name: str, folder: Path) -> object:
    return check_pod({**POD, "name": name})


def a_peer(name: str, folder: Path) -> object:
    return check_pod({**POD, "peers": {name: "ssh-ed25519 AAAA"}})


def a_local_job(name: str, folder: Path) -> object:
    return check_job(
        {"name": name, "model": {"file": "model.py"}, "data": {"csv": "rows.csv"}, "training": {"epochs": 1}}
    )


def a_file_of_a_store(name: str, folder: Path) -> object:
    return Store(folder / "inside").put(name, b"content")


def a_folder_of_a_store(name: str, folder: Path) -> object:
    return Store(folder / "inside").put(f"{name}/weights", b"content")


def a_message_of_an_exchange(name: str, folder: Path) -> object:
    exchange = Exchange(str(folder / "inside"))
    exchange.put_message(f"rounds/{name}.json", {})
    return exchange


PLACES: list[Callable[[str, Path], object]] = [
    a_federated_job,
    a_job_of_pods,
    a_pod_of_a_job,
    a_pod_file,
    a_peer,
    a_local_job,
    a_file_of_a_store,
    a_folder_of_a_store,
    a_message_of_an_exchange,
]


def test_there_are_forty() -> None:
    assert len(set(HOSTILE_NAMES)) >= 40


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_a_hostile_name_is_refused_or_stays_inside(tmp_path: Path, place: Callable[[str, Path], object]) -> None:
    here = os.getcwd()
    (tmp_path / "inside").mkdir()
    refused = 0
    for name in HOSTILE_NAMES:
        try:
            place(name, tmp_path)
        except BitfountError:
            refused += 1
    assert {each for each in everything_in(tmp_path) if not each.startswith(("inside", "team"))} == set()
    assert os.getcwd() == here
    assert refused >= len(HOSTILE_NAMES) - 3  # what is neither refused nor outside is an odd name of a file inside
