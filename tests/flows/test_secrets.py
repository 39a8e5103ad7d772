"""Passwords of databases and of MLflow are used, and kept nowhere: not in the job's folder, MLflow, Prefect, or what is said."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from sklearn.datasets import load_breast_cancer
from sqlalchemy import create_engine

from bitfount_model.errors import TrackingError
from tasks.mlflow_client import connect, tracking_errors
from tests.flows.conftest import Ended

Write = Callable[..., Path]
Main = Callable[[list[Any]], Ended]

SENTINEL = "hunter2-sentinel"


def holding(folder: Path, secret: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def parameters_of_flow_runs() -> str:
    with get_client(sync_client=True) as client:
        return str([run.parameters for run in client.read_flow_runs()])


def test_a_part_of_a_url_from_the_environment_is_used_and_kept_nowhere(
    main: Main, job_file: Write, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / SENTINEL
    folder.mkdir()
    engine = create_engine(f"sqlite:///{folder}/rows.db")
    load_breast_cancer(as_frame=True).frame.iloc[:120].to_sql("tumours", engine, index_label="id")
    engine.dispose()
    monkeypatch.setenv("ROWS_FOLDER", str(folder))
    source = {"sql": {"url": "sqlite:///${ROWS_FOLDER}/rows.db", "table": "tumours"}, "key": "id"}
    ended = main(["train", job_file(data=source, predict={"data": source}), "--home", home, "--json"])
    assert ended.code == 0, ended
    assert holding(home, SENTINEL) == []
    assert SENTINEL not in parameters_of_flow_runs() + ended.out + ended.err


@pytest.mark.parametrize("key", ["data", "predict.data"])
def test_a_password_in_a_job_is_refused_before_anything_is_kept(
    main: Main, job_file: Write, home: Path, key: str
) -> None:
    source = {"sql": {"url": f"postgresql://reader:{SENTINEL}@127.0.0.1:1/db", "table": "t"}}
    sections = {"data": source} if key == "data" else {"predict": {"data": source}}
    ended = main(["train", job_file(**sections), "--home", home])
    assert ended.code == 2
    assert f"{key}.sql.url: the URL holds a secret (password)" in ended.err and "${NAME}" in ended.err
    assert SENTINEL not in ended.out + ended.err
    assert not (home / "jobs").exists() or holding(home / "jobs", SENTINEL) == []


def test_the_password_of_mlflow_is_in_no_parameter_and_no_message(
    main: Main, job_file: Write, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SENTINEL}@127.0.0.1:9")
    ended = main(["train", job_file(predict=None), "--home", home, "--json"])
    assert ended.code == 6, ended
    assert ended.summary["tracking_uri"] == "http://me:***@127.0.0.1:9"
    assert holding(home, SENTINEL) == []
    assert SENTINEL not in parameters_of_flow_runs() + ended.out + ended.err


def test_a_traceback_of_an_mlflow_that_is_away_does_not_show_its_password() -> None:
    uri = f"http://me:{SENTINEL}@127.0.0.1:9"
    with pytest.raises(TrackingError, match="cannot be reached") as caught, tracking_errors(uri):
        connect(uri).get_experiment_by_name("any")
    assert SENTINEL not in "".join(traceback.format_exception(caught.value))
