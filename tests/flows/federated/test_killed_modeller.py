"""The modeller killed at any point and started again with the same job id ends with the same bits, nothing done twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.flows.federated.crashing import Crashed, Modeller
from tests.flows.federated.site import Site

POINTS = 20
ROUNDS = 3


@pytest.fixture(scope="module")
def modeller(prefect_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Modeller]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect-home")))
        modeller = Modeller()
    yield modeller
    modeller.close()


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job with momentum at the server, whose state must survive too."""
    site = Site(tmp_path_factory.mktemp("killed"))
    for pod in site.names:
        site.write_pod(pod, policy={"predictions_may_leave": True})
    federation = {"quorum": 3, "optimiser": "FedAvgM", "best": {"metric": "AUC"}}
    return site.write_job(deployed=False, rounds=ROUNDS, federation=federation, predict=True)


@pytest.fixture(scope="module")
def whole(modeller: Modeller, job: Path, tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Crashed:
    """A run that nobody kills."""
    home = tmp_path_factory.mktemp("whole")
    shutil.copy(mlflow_database, home / "mlflow.db")
    run = modeller.run(job, home, "job-1")
    assert run.summary is not None, run.error
    return run


@pytest.mark.parametrize("point", range(POINTS))
def test_killed_at_one_of_its_writes(point: int, modeller: Modeller, job: Path, whole: Crashed, home: Path) -> None:
    assert whole.summary is not None
    die_at = round(point * (len(whole.puts) - 1) / (POINTS - 1))

    killed = modeller.run(job, home, "job-1", die_at, after=point % 2 == 0)
    assert killed.killed and killed.puts == whole.puts[: die_at + 1]
    kept = {path: path.stat().st_mtime_ns for path in home.glob("jobs/job-1/rounds/*.json")}
    again = modeller.run(job, home, "job-1")

    assert again.summary is not None, again.error
    for key in ("weights_sha256", "metrics", "pods", "rounds", "best_round"):
        assert again.summary[key] == whole.summary[key], key
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    check_nothing_twice(again.summary)
    assert not list(home.glob("jobs/job-1/**/*.part*"))


def check_nothing_twice(summary: dict[str, object]) -> None:
    """One run for the job and one for each pod, each finished, with each round's metrics once."""
    client = MlflowClient(str(summary["tracking_uri"]))
    runs = client.search_runs(["1"])
    assert sorted(run.data.tags.get("bitfount.pod", "") for run in runs) == ["", "ann", "bob", "cat"]
    for run in runs:
        assert run.info.status == "FINISHED"
        for key in ("validation/AUC", "time/fit_seconds"):
            history = client.get_metric_history(run.info.run_id, key)
            assert [point.step for point in history] == list(range(1, ROUNDS + 1)), (run.info.run_name, key)


def test_a_killed_job_that_was_complete_is_only_recorded(
    modeller: Modeller, job: Path, whole: Crashed, home: Path
) -> None:
    first = modeller.run(job, home, "job-1")
    second = modeller.run(job, home, "job-1")

    assert first.summary is not None and second.summary is not None
    assert second.puts == []
    assert json.dumps({**first.summary, "seconds": 0}) == json.dumps({**second.summary, "seconds": 0})
