"""From a clone to runs by a worker: what `prefect deploy --all` makes, runs, schedules, and runs whose process was killed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments import run_deployment
from prefect.exceptions import PrefectHTTPStatusError

from tests.flows.conftest import run_command

ROOT = Path(__file__).parent.parent.parent
PARTS = ("bitfount_model", "tasks", "flows", "deployments", "examples")
NOTICED_SECONDS = 35
"""In place of 65, so that the test is quick: a little more than the 30 s between two beats."""
LONG = 40
"""Epochs: with the models of `slow_until`, long enough to be killed in the middle, and soon over afterwards."""


def prefect(clone: Path, *arguments: str) -> str:
    """Prefect's own command line, in the root of a clone."""
    environment = {**os.environ, "PYTHONPATH": str(clone), "COLUMNS": "200"}
    ended = subprocess.run(
        [sys.executable, "-m", "prefect", *arguments],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def client(prefect_url: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture(scope="module")
def clone(client: SyncPrefectClient, mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree, deployed as docs/deployments.md says."""
    clone = tmp_path_factory.mktemp("clone")
    for part in PARTS:
        shutil.copytree(
            ROOT / part,
            clone / part,
            ignore=shutil.ignore_patterns("__pycache__", "data") if part == "examples" else None,
        )
    subprocess.run(
        [sys.executable, "examples/retraining/make_rows.py", "300"], cwd=clone, check=True, capture_output=True
    )
    for example in ("breast_cancer", "retraining"):
        slow_until(clone / "go", clone / "examples" / example / "model.py")
    job = clone / "examples/retraining/job.yaml"
    job.write_text(job.read_text().replace("epochs: 10", f"epochs: {LONG}"))
    (clone / "bitfount_runs").mkdir()
    shutil.copy(mlflow_database, clone / "bitfount_runs" / "mlflow.db")
    automations = clone / "deployments/automations.yaml"
    automations.write_text(automations.read_text().replace("within: 65", f"within: {NOTICED_SECONDS}"))
    for pool in ("bitfount", "bitfount-pods"):
        prefect(clone, "work-pool", "create", pool, "--type", "process", "--overwrite")
    prefect(clone, "--no-prompt", "deploy", "--all", "--prefect-file", "deployments/prefect.yaml")
    return clone


def slow_until(go: Path, model: Path) -> None:
    """Makes each step of a model take long until a file is there."""
    step = "def training_step(self, batch, batch_idx):\n"
    wait = f"        __import__('time').sleep(0 if __import__('os').path.exists({str(go)!r}) else 0.25)\n"
    source = model.read_text()
    assert step in source
    model.write_text(source.replace(step, step + wait))


@contextmanager
def worker(clone: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process worker; it and the runs that it started end with the block."""
    environment = {**os.environ, "PYTHONPATH": str(clone), "PREFECT_WORKER_QUERY_SECONDS": "1", "OMP_NUM_THREADS": "1"}
    with (clone / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", "bitfount", "--type", "process"],
            **{"cwd": clone, "env": environment, "stdout": log, "stderr": log, "start_new_session": True},
        )
        try:
            yield process
        finally:
            kill(process)


def kill(worker: subprocess.Popen[bytes]) -> None:
    """As the machine's loss would: the worker and the processes of its runs, at once."""
    if worker.poll() is None:
        for process in [*psutil.Process(worker.pid).children(recursive=True), psutil.Process(worker.pid)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    worker.wait()


def until(found: Callable[[], Any], seconds: float, what: str) -> Any:
    """What a look gives as soon as it gives something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.2)
    pytest.fail(f"waited {seconds} s for {what}")


def ended(client: SyncPrefectClient, run: UUID, seconds: float = 90) -> FlowRun:
    """A flow run, once it has ended for good."""

    def look() -> FlowRun | None:
        seen = client.read_flow_run(run)
        return seen if seen.state is not None and seen.state.is_final() and not seen.state.is_crashed() else None

    return until(look, seconds, f"the end of the flow run {run}")


def deployments(client: SyncPrefectClient) -> dict[str, DeploymentResponse]:
    """Those of the clone by `flow/name`."""
    return {f"{client.read_flow(each.flow_id).name}/{each.name}": each for each in client.read_deployments()}


def test_every_deployment_is_there_with_its_schedule_off(clone: Path, client: SyncPrefectClient) -> None:
    made = deployments(client)
    assert {"training/local", "training/federated", "retraining/nightly", "pod/north", "pod/south", "pod/west"} <= set(
        made
    )
    for name in ("training/local", "training/federated", "retraining/nightly"):
        (schedule,) = made[name].schedules
        assert not schedule.active
        assert isinstance(schedule.schedule, CronSchedule)
        assert schedule.schedule.timezone == "Europe/London"
        assert made[name].work_pool_name == "bitfount"
        assert made[name].global_concurrency_limit is not None
    assert made["pod/north"].work_pool_name == "bitfount-pods"
    shown = made["training/local"].parameter_openapi_schema["properties"]
    assert all(field["title"] and field["description"] for field in shown.values())


@pytest.mark.parametrize(
    "wrong",
    [{"job_file": 3}, {"job_file": "job.txt"}, {"job_id": "../up"}, {"tracking_uri": "http://me:secret@host"}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_wrong_parameter_is_refused_before_a_run_starts(
    wrong: dict[str, Any], clone: Path, client: SyncPrefectClient
) -> None:
    with pytest.raises(PrefectHTTPStatusError) as refused:
        client.create_flow_run_from_deployment(deployments(client)["training/local"].id, parameters=wrong)
    assert 400 <= refused.value.response.status_code < 500


def test_a_worker_runs_training_and_says_what_is_wrong(clone: Path, client: SyncPrefectClient) -> None:
    with worker(clone):
        right = run_deployment("training/local", parameters={"overrides": {"training.epochs": 2}}, timeout=0)
        wrong = run_deployment("training/local", parameters={"job_file": "nowhere.yaml"}, timeout=0)
        trained, failed = ended(client, right.id), ended(client, wrong.id)
    assert trained.state is not None and trained.state.is_completed(), trained.state
    summary = trained.state.result()
    assert summary["job_id"] == trained.name == f"breast-cancer-{str(trained.id)[-8:]}"
    assert {"training", "local"} <= set(trained.tags)
    recorded = MlflowClient(f"sqlite:///{clone}/bitfount_runs/mlflow.db").get_run(summary["mlflow_run_id"])
    assert recorded.info.status == "FINISHED"
    assert summary["metrics"]["AUC"] in recorded.data.metrics.values()
    assert failed.state is not None and failed.state.is_failed()
    assert failed.state.message == "cannot read the job file nowhere.yaml: No such file or directory"


@pytest.mark.timeout(600)  # a minute for the schedule, 40 s to notice, and three starts of a worker's runs
def test_runs_of_a_killed_worker_are_started_again_and_go_on(clone: Path, client: SyncPrefectClient) -> None:
    home, file = clone / "bitfount_runs", clone / "examples/retraining/retraining.yaml"
    cron = ("--name", "often", "--cron", "* * * * *", "--timezone", "Europe/London")
    for arguments in (("deploy", file, *cron), ("automations", clone / "deployments/automations.yaml")):
        said = run_command(*arguments, "--home", home)
        assert said.code == 0, said.err
    often = deployments(client)["retraining/often"]
    jobs = home / "jobs"
    try:
        with worker(clone) as first:
            scheduled = until(lambda: started(client, often.id), 65, "the schedule to fire")
            client.delete_deployment_schedule(often.id, often.schedules[0].id)
            training = run_deployment(
                "training/local", parameters={"job_id": "killed", "overrides": {"training.epochs": LONG}}, timeout=0
            ).id
            retrained = f"tumours-retraining-{str(scheduled)[-8:]}"
            checkpoints = [jobs / each / "scratch" / "fit.ckpt" for each in ("killed", retrained)]
            until(lambda: all(path.exists() for path in checkpoints), 60, "both to be in mid-training")
            kill(first)
        initialised = [jobs / each / "steps" / "initialise.json" for each in ("killed", retrained)]
        finished = [path.stat().st_mtime_ns for path in initialised]
        (clone / "go").touch()
        with worker(clone):
            for run in (training, scheduled):
                again = ended(client, run, 120)
                assert again.state is not None and again.state.is_completed(), again.state
                assert again.run_count == 2
                states = [state.name for state in client.read_flow_run_states(run)]
                assert "Crashed" in states and "AwaitingRetry" in states
        assert [path.stat().st_mtime_ns for path in initialised] == finished
    finally:
        client.delete_deployment(often.id)
    versions = MlflowClient(f"sqlite:///{home}/mlflow.db").search_model_versions("name = 'tumours'")
    assert [int(each.version) for each in versions] == [1]


def started(client: SyncPrefectClient, deployment: UUID) -> UUID | None:
    """The run of a deployment that is going on."""
    runs = client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])))
    return next((run.id for run in runs if run.state is not None and run.state.is_running()), None)
