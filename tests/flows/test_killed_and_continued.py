"""Killed at any moment and started again, a job ends with the same bits; nothing finished is done twice."""

from __future__ import annotations

import random
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.flows.conftest import Ended, command, run_command

LINES = 17  # what a run of 10 epochs prints: the job, five steps, ten epochs, the recording
MOMENTS = sorted(random.Random(20).sample(range(LINES), 10))

Write = Callable[..., Path]
Main = Callable[[list[Any]], Ended]


def arguments(job: Path, home: Path) -> list[Any]:
    return ["train", job, "--home", home, "--job-id", "killed"]


@pytest.fixture
def long_job(job_file: Write) -> Path:
    return job_file(training={"epochs": 10, "seed": 7})


def kill_after(line: int, job: Path, home: Path) -> list[str]:
    """Kills the command a random moment after it has printed so many lines; gives these."""
    printed = []
    with subprocess.Popen(
        command(*arguments(job, home)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as run:
        assert run.stdout is not None
        for text in run.stdout:
            printed.append(text)
            if len(printed) > line:
                time.sleep(random.Random(line).uniform(0, 0.3))
                break
        run.kill()
    return printed


def epochs_in(lines: list[str]) -> list[int]:
    return [int(found.group(1)) for text in lines if (found := re.search(r"epoch (\d+)/", text))]


@pytest.mark.parametrize("line", MOMENTS)
def test_killed_at_a_random_moment(
    line: int, prefect_url: str, main: Main, long_job: Path, tmp_path: Path, home: Path
) -> None:
    wanted = main(["train", long_job, "--home", tmp_path / "whole", "--json"]).summary["weights_sha256"]
    before = epochs_in(kill_after(line, long_job, home))
    finished = {path: path.stat().st_mtime_ns for path in home.glob("jobs/killed/steps/*.json")}

    ended = main([*arguments(long_job, home), "--json"])

    assert ended.code == 0, ended
    assert ended.summary["weights_sha256"] == wanted
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    again = epochs_in(ended.err.splitlines())
    assert again == list(range(again[0], 11)) if again else "fit" in {path.stem for path in finished}
    if before and again:
        assert again[0] >= before[-1]
    check_recorded_once(ended.summary)


def check_recorded_once(summary: dict[str, Any]) -> None:
    """One MLflow run, finished, with each epoch's metrics once."""
    client = MlflowClient(summary["tracking_uri"])
    runs = [run for run in client.search_runs(["1"]) if run.data.tags["bitfount.job_id"] == summary["job_id"]]
    assert [run.info.run_id for run in runs] == [summary["mlflow_run_id"]]
    assert runs[0].info.status == "FINISHED"
    for name in ("train/loss", "validation/loss", "validation/AUC"):
        steps = [point.step for point in client.get_metric_history(summary["mlflow_run_id"], name)]
        assert sorted(steps) == list(range(1, 11)), name


def test_a_command_that_was_killed_leaves_no_server_behind(
    long_job: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    import psutil

    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with subprocess.Popen(command(*arguments(long_job, home)), stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        while "training" not in run.stdout.readline():
            pass
        children = psutil.Process(run.pid).children(recursive=True)
        run.kill()
    assert children
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    assert run_command(*arguments(long_job, home), "--json").code == 0
