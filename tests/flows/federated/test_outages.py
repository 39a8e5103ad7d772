"""Prefect and MLflow killed for a minute while rounds run, and a store that fails: delays, and nothing is lost."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import register_implementation
from mlflow import MlflowClient

from flows.environment import SERVER
from flows.settings import read_job
from tasks.federated.job_file import federated_job_to_json
from tests.flows.conftest import command
from tests.flows.federated.conftest import Train
from tests.flows.federated.site import Site, wait_for
from tests.object_store import object_store
from tests.tracking_server import TrackingServer, free_port, wait_until_it_answers

AWAY_SECONDS = 60
ROUNDS = 6


class PrefectProcess:
    """A Prefect server that can be killed and started again on the same port and data."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        database = f"sqlite+aiosqlite:///{self._folder / 'prefect.db'}"
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flows.prefect_server", str(self.port), "--parent", str(os.getpid())],
                env={
                    **os.environ,
                    **SERVER,
                    "PREFECT_HOME": str(self._folder),
                    "PREFECT_API_DATABASE_CONNECTION_URL": database,
                    "PREFECT_UI_ENABLED": "0",
                },
                stdout=log,
                stderr=log,
            )
        assert wait_until_it_answers(f"{self.url}/health", self._process)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture
def prefect(tmp_path: Path, prefect_url: str) -> Iterator[PrefectProcess]:
    """A server of the test's own; what runs in this process, and its children, talk to it."""
    from flows.run import drain, settings_for

    folder = tmp_path / "prefect-server"
    folder.mkdir()
    server = PrefectProcess(folder)
    server.start()
    with pytest.MonkeyPatch.context() as patch, settings_for(server.url):
        patch.setenv("PREFECT_API_URL", server.url)
        yield server
        drain()
    server.kill()


@pytest.fixture
def tracking(tmp_path: Path, mlflow_database: Path) -> Iterator[TrackingServer]:
    folder = tmp_path / "mlflow-server"
    folder.mkdir()
    shutil.copy(mlflow_database, folder / "mlflow.db")
    server = TrackingServer(folder)
    server.start()
    yield server
    server.stop()


def test_prefect_and_mlflow_away_for_a_minute(
    site: Site, train: Train, tmp_path: Path, prefect: PrefectProcess, tracking: TrackingServer
) -> None:
    federation = {"quorum": 2, "deadline_seconds": 4 * AWAY_SECONDS}
    job = site.write_job(deployed=False, name="embedded", rounds=ROUNDS, federation=federation)
    wanted = train(job, job_id="embedded", home=tmp_path / "embedded").summary["weights_sha256"]
    site.serve(*site.names)
    first, last = site.hold("ann", 2), site.hold("cat", 5)
    modeller = subprocess.Popen(
        command(
            *("train", site.write_job(deployed=True, rounds=ROUNDS, federation=federation), "--home", tmp_path / "own"),
            *("--job-id", "away", "--json", "--tracking-uri", tracking.uri),
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(first.exists, "ann to train in round 2")

    prefect.kill()
    tracking.stop()
    until = time.monotonic() + AWAY_SECONDS
    site.let_go("ann", 2)
    wait_for(last.exists, "cat to train in round 5 while both servers are away")
    wait_for(lambda: time.monotonic() > until, "the minute to be over")
    prefect.start()
    tracking.start()
    site.let_go("cat", 5)

    out, err = modeller.communicate(timeout=240)
    assert modeller.returncode == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert {pod: part["missing"] for pod, part in summary["pods"].items()} == {pod: {} for pod in site.names}
    assert summary["weights_sha256"] == wanted
    check_recorded(tracking.uri)
    for pod in site.names:
        wait_for(lambda pod=pod: "job away: ended: finished" in site.log(pod).read_text(), f"{pod} to be sent home")
        assert site.processes[pod].poll() is None, "a pod outlives its Prefect server"
    site.stop(*site.names)


def check_recorded(uri: str) -> None:
    """All runs are finished, and have each round's metrics once."""
    client = MlflowClient(uri)
    runs = client.search_runs(["1"], "tags.`bitfount.job_id` LIKE 'away%'")
    assert len(runs) == 4
    for run in runs:
        assert run.info.status == "FINISHED"
        points = client.get_metric_history(run.info.run_id, "validation/AUC")
        assert [point.step for point in points] == list(range(1, ROUNDS + 1))


def test_pods_and_modeller_meet_in_a_bucket(site: Site, train: Train, tmp_path: Path, home: Path) -> None:
    from flows.federated import federated_training

    job = site.write_job(deployed=False)
    wanted = train(job, job_id="embedded", home=tmp_path / "embedded").summary["weights_sha256"]
    tracking = {"uri": f"sqlite:///{home / 'mlflow.db'}", "experiment": "bucket", "artifact_root": str(home / "files")}
    with object_store() as server:
        done = federated_training(
            federated_job_to_json(read_job(job)), "bucket", str(home / "jobs" / "bucket"), server.url, tracking
        )
        assert server.requests > 50

    assert done["fit"]["values"]["weights_sha256"] == wanted
    assert done["evaluate"]["values"]["missing"] == {}


class FlakyFileSystem(LocalFileSystem):
    """A folder of this machine that is reached through something that fails one call in five."""

    protocol = "flaky"
    luck = random.Random(3)
    failures = 0

    def _may_fail(self) -> None:
        if self.luck.random() < 0.2:
            type(self).failures += 1
            raise ConnectionError("the network is not what it was")

    def _open(self, *arguments: Any, **named: Any) -> Any:
        self._may_fail()
        return super()._open(*arguments, **named)

    def exists(self, *arguments: Any, **named: Any) -> Any:
        self._may_fail()
        return super().exists(*arguments, **named)

    def info(self, *arguments: Any, **named: Any) -> Any:
        self._may_fail()
        return super().info(*arguments, **named)

    def mv(self, *arguments: Any, **named: Any) -> Any:
        self._may_fail()
        return super().mv(*arguments, **named)

    def rm_file(self, *arguments: Any, **named: Any) -> Any:
        self._may_fail()
        return super().rm_file(*arguments, **named)


register_implementation("flaky", FlakyFileSystem, clobber=True)


def test_a_store_that_fails_one_call_in_five(site: Site, train: Train, tmp_path: Path, home: Path) -> None:
    from flows.federated import federated_training

    job = site.write_job(deployed=False)
    wanted = train(job, job_id="embedded", home=tmp_path / "embedded").summary["weights_sha256"]
    tracking = {"uri": f"sqlite:///{home / 'mlflow.db'}", "experiment": "flaky", "artifact_root": str(home / "files")}
    FlakyFileSystem.failures = 0

    done = federated_training(
        federated_job_to_json(read_job(job)),
        "flaky",
        str(home / "jobs" / "flaky"),
        f"flaky://{tmp_path}/exchange",
        tracking,
    )

    assert FlakyFileSystem.failures > 30
    assert done["fit"]["values"]["weights_sha256"] == wanted
    assert done["fit"]["values"]["rounds"] == 3
    assert done["evaluate"]["values"]["missing"] == {}
