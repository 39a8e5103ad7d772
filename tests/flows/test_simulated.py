"""`bitfount-flows train` with a simulated job: from its file to an MLflow run, on one process, two, or a Dask cluster."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from distributed import LocalCluster
from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from sklearn.metrics import roc_auc_score

from tests.flows.conftest import Ended
from tests.flows.federated.crashing import Crashed, Modeller

Write = Callable[..., Path]
Main = Callable[[list[Any]], Ended]
SECTIONS: dict[str, Any] = {
    "simulate": {"clients": 40, "sample": 12},
    "federation": {"optimiser": "FedAvgM", "best": {"metric": "AUC"}},
}


@pytest.fixture
def job(job_file: Write) -> Path:
    return job_file(**SECTIONS)


def train(main: Main, job: Path, home: Path, *more: str, job_id: str = "one") -> dict[str, Any]:
    ended = main(["train", job, "--home", home, "--job-id", job_id, "--json", *more])
    assert ended.code == 0, ended
    return ended.summary


def test_it_leaves_what_a_local_job_leaves(main: Main, job: Path, home: Path) -> None:
    ended = main(["train", job, "--home", home, "--json"])
    assert ended.code == 0, ended
    assert "round 3/3" in ended.err
    summary = ended.summary
    tested = pd.read_parquet(summary["test_predictions"])
    assert summary["metrics"]["AUC"] == pytest.approx(roc_auc_score(tested["target"].astype(int), tested["score_1"]))
    assert len(pd.read_parquet(summary["predictions"])) == 569
    client = MlflowClient(summary["tracking_uri"])
    run = client.get_run(summary["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["update/clients"] == 12
    for key in ("train/loss", "validation/AUC", "time/round_seconds"):
        assert [point.step for point in client.get_metric_history(run.info.run_id, key)] == [1, 2, 3], key
    kept = {item.path for item in client.list_artifacts(run.info.run_id, "model")}
    assert {"model/weights.safetensors", "model/best.safetensors"} <= kept


def test_its_tasks_are_one_for_each_worker_and_round(main: Main, job: Path, home: Path) -> None:
    train(main, job, home, "--set", "simulate.workers=2", job_id="tasks-of-two")
    with get_client(sync_client=True) as client:
        named = FlowRunFilter(name=FlowRunFilterName(any_=["tasks-of-two"]))
        names = sorted(run.name for run in client.read_task_runs(flow_run_filter=named, limit=200))
    shares = [name for name in names if name.startswith("round ")]
    assert shares == [
        f"round {number}: chunks from {first} to {stop}" for number in (1, 2, 3) for first, stop in ((0, 2), (2, 3))
    ]


def test_two_processes_and_a_cluster_of_two_give_the_bits_of_one(main: Main, job: Path, home: Path) -> None:
    one = train(main, job, home)
    two = train(main, job, home, "--set", "simulate.workers=2", job_id="two")
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster:
        on_cluster = ["--set", "simulate.workers=2", "--set", f"simulate.dask={cluster.scheduler_address}"]
        dask = train(main, job, home, *on_cluster, job_id="dask")
    assert one["weights_sha256"] == two["weights_sha256"] == dask["weights_sha256"]
    assert one["metrics"] == two["metrics"] == dask["metrics"]


def test_a_job_may_go_on_with_other_workers_but_not_as_another_job(main: Main, job: Path, home: Path) -> None:
    first = train(main, job, home)
    assert train(main, job, home, "--set", "simulate.workers=2")["weights_sha256"] == first["weights_sha256"]
    ended = main(["train", job, "--home", home, "--job-id", "one", "--set", "simulate.clients=41"])
    assert ended.code != 0 and "simulate.clients" in ended.err and "belongs to a job with other settings" in ended.err


def test_what_is_wrong_in_the_file_is_said_with_its_line(main: Main, job_file: Write, home: Path) -> None:
    job = job_file(simulate={"clients": 10, "sampel": 3}, federation={"quorum": 2})
    lines = {
        key: n for n, text in enumerate(job.read_text().splitlines(), 1) for key in ("sampel", "quorum") if key in text
    }
    ended = main(["train", job, "--home", home])
    assert ended.code == 2, ended
    assert f"job.yaml:{lines['sampel']}: simulate.sampel: unknown key; did you mean 'sample'?" in ended.err
    assert f"job.yaml:{lines['quorum']}: federation.quorum: unknown key" in ended.err


POINTS = 7


@pytest.fixture(scope="module")
def modeller(prefect_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Modeller]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect-home")))
        modeller = Modeller()
    yield modeller
    modeller.close()


@pytest.fixture(scope="module")
def whole(modeller: Modeller, tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> tuple[Path, Crashed]:
    """A job's file, and a run of it that nobody kills."""
    from ruamel.yaml import YAML

    from tests.flows.conftest import JOB, MODEL

    home = tmp_path_factory.mktemp("whole")
    (home / "model.py").write_text(MODEL, encoding="utf-8")
    with (home / "job.yaml").open("w", encoding="utf-8") as stream:
        YAML().dump({**JOB, **SECTIONS}, stream)
    shutil.copy(mlflow_database, home / "mlflow.db")
    run = modeller.run(home / "job.yaml", home, "job-1")
    assert run.summary is not None, run.error
    return home / "job.yaml", run


@pytest.mark.parametrize("point", range(POINTS))
def test_killed_at_one_of_its_writes(point: int, modeller: Modeller, whole: tuple[Path, Crashed], home: Path) -> None:
    job, unharmed = whole
    assert unharmed.summary is not None
    writes = [number for number, name in enumerate(unharmed.puts) if name.startswith(("simulation/", "fit/"))]
    die_at = writes[round(point * (len(writes) - 1) / (POINTS - 1))]

    killed = modeller.run(job, home, "job-1", die_at, after=point % 2 == 0)
    assert killed.killed and killed.puts == unharmed.puts[: die_at + 1]
    again = modeller.run(job, home, "job-1")

    assert again.summary is not None, again.error
    assert again.summary["weights_sha256"] == unharmed.summary["weights_sha256"]
    assert again.summary["metrics"] == unharmed.summary["metrics"]
    client = MlflowClient(again.summary["tracking_uri"])
    (run,) = client.search_runs(["1"])
    assert [point.step for point in client.get_metric_history(run.info.run_id, "validation/AUC")] == [1, 2, 3]
    assert not list(home.glob("jobs/job-1/simulation/*.sums.safetensors"))
