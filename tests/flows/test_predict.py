"""`bitfount-flows predict --model`: a registered model over rows in batches, each row once, killed at any moment."""

from __future__ import annotations

import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest
from filelock import FileLock
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from flows.console import RunView
from flows.run import Surroundings, train
from flows.settings import read_job
from flows.workspace import Workspace
from tests.flows.conftest import JOB, MODEL, Ended

Main = Callable[[list[Any]], Ended]
ROWS = 230
BATCH = 20
SOURCES = ("csv", "parquet", "sqlite")

KILLED_WHILE_WRITING = """
import os, signal, sys
from tasks.batch import part_folder, prediction_table
from sqlalchemy import Engine, event

def end():
    os.kill(os.getpid(), signal.SIGKILL)

whole = part_folder.create_atomically
def half(path, content):
    if path.name == "part-000000000060.parquet":
        path.with_name(".left.part").write_bytes(content[: len(content) // 2])
        end()
    return whole(path, content)
part_folder.create_atomically = half

written = 0
move = prediction_table.PredictionTable.write
def counted(self, plan, start, table):
    if start == 60:
        event.listen(Engine, "commit", lambda connection: end())
    move(self, plan, start, table)
prediction_table.PredictionTable.write = counted

from flows.cli import main
main()
"""
"""The command, killed when the fourth batch is written but not there yet: half a file, a transaction without its end."""


def frame() -> pd.DataFrame:
    """Rows with text for keys, a category, gaps and a target."""
    generator = np.random.default_rng(3)
    values = generator.normal(size=(ROWS, 2))
    return pd.DataFrame(
        {
            "patient": [f"p{number:04d} é" for number in range(ROWS)],
            "size": np.where(np.arange(ROWS) % 17 == 0, np.nan, values[:, 0]),
            "age": values[:, 1],
            "ward": np.array(["north", "south"])[generator.integers(0, 2, ROWS)],
            "malignant": np.where(values[:, 1] > 0, "yes", "no"),
        }
    )


@pytest.fixture(scope="module")
def folder(prefect_url: str, mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a registered model, and rows in files and in a database."""
    path = tmp_path_factory.mktemp("predict")
    rows = frame()
    rows.to_csv(path / "rows.csv", index=False)
    rows.to_parquet(path / "rows.parquet", row_group_size=33)
    with sqlite3.connect(path / "rows.db") as database:
        rows.to_sql("rows", database, index=False)
    (path / "model.py").write_text(MODEL)
    job = {
        **JOB,
        "register": "tumours",
        "model": {"file": str(path / "model.py")},
        "data": {"csv": str(path / "rows.csv"), "key": "patient"},
        "datastructure": {"target": "malignant"},
        "predict": None,
    }
    (path / "job.yaml").write_text(json.dumps(job))
    (path / "home").mkdir()
    (path / "home" / "mlflow.db").write_bytes(mlflow_database.read_bytes())
    surroundings = Surroundings(Workspace(path / "home"), None, RunView(io.StringIO()), verbose=False)
    train(read_job(path / "job.yaml"), "one", None, surroundings)
    return path


def data(folder: Path, kind: str) -> str:
    """The rows of a kind, as --data."""
    if kind == "sqlite":
        return f"{{sql: {{url: 'sqlite:///{folder / 'rows.db'}', table: rows}}, key: patient}}"
    return f"{{{kind}: {folder / f'rows.{kind}'}, key: patient}}"


def out(place: Path, kind: str) -> str:
    """A place for predictions, as --out."""
    return str(place / "out") if kind == "parquet" else f"{{sql: {{url: 'sqlite:///{place}/out.db', table: answers}}}}"


def kept(place: Path, kind: str) -> pd.DataFrame:
    """What is in a place, in the order of keys."""
    if kind == "parquet":
        found = ds.dataset(place / "out").to_table().to_pandas()
    else:
        with sqlite3.connect(place / "out.db") as database:
            found = pd.read_sql("SELECT * FROM answers", database)
    return found.sort_values("key", ignore_index=True)


def arguments(folder: Path, source: str, place: str, *more: Any) -> list[Any]:
    """The command."""
    options = ["--model", "tumours@champion", "--data", source, "--out", place, "--batch-rows", BATCH]
    return ["predict", *options, "--home", folder / "home", "--json", *more]


@pytest.fixture(scope="module")
def known(folder: Path) -> pd.DataFrame:
    """What the model says of all rows at once, by the job's own way to predict."""
    from flows.run import predict

    surroundings = Surroundings(Workspace(folder / "home"), None, RunView(io.StringIO()), verbose=False)
    predict("one", {"csv": str(folder / "rows.csv"), "key": "patient"}, folder / "known.parquet", surroundings)
    return pd.read_parquet(folder / "known.parquet")


@pytest.mark.parametrize("kind", ["parquet", "sql"])
@pytest.mark.parametrize("source", SOURCES)
def test_each_row_is_predicted_once_with_its_key_and_what_it_came_from(
    source: str, kind: str, main: Main, folder: Path, known: pd.DataFrame, tmp_path: Path
) -> None:
    ended = main(arguments(folder, data(folder, source), out(tmp_path, kind)))
    assert ended.code == 0, ended.err
    summary = ended.summary
    found = kept(tmp_path, kind)
    assert found["key"].tolist() == frame()["patient"].tolist()
    assert found["prediction"].tolist() == known["prediction"].tolist()
    np.testing.assert_allclose(found["score_yes"], known["score_yes"], atol=1e-6)
    assert (summary["rows"], summary["written"], summary["version"]) == (ROWS, ROWS, 1)
    for name in ("model_version", "run_id", "prediction_id"):
        assert set(found[name]) == {summary[name.removeprefix("model_")]}

    again = main(arguments(folder, data(folder, source), out(tmp_path, kind)))
    assert (again.code, again.summary) == (0, {**summary, "written": 0})
    assert "nothing to do" in again.err
    pd.testing.assert_frame_equal(kept(tmp_path, kind), found)


@pytest.mark.parametrize("kind", ["parquet", "sql"])
def test_killed_in_the_middle_of_a_batch_and_continued_no_row_is_missing_or_there_twice(
    kind: str, main: Main, folder: Path, known: pd.DataFrame, tmp_path: Path
) -> None:
    given = arguments(folder, data(folder, "parquet"), out(tmp_path, kind))
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, *map(str, given)]
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == -signal.SIGKILL
    assert len(kept(tmp_path, kind)) == 60
    ended = main([*given, "--batch-rows", 50])
    assert ended.code == 0, ended.err
    assert (ended.summary["rows"], ended.summary["written"]) == (ROWS, ROWS - 60)
    found = kept(tmp_path, kind)
    assert found["key"].tolist() == known["key"].tolist()
    assert found["prediction"].tolist() == known["prediction"].tolist()
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("source", SOURCES)
def test_rows_that_have_changed_since_a_prediction_began_are_refused(
    source: str, main: Main, folder: Path, tmp_path: Path
) -> None:
    for name in ("rows.csv", "rows.parquet", "rows.db"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    given = arguments(folder, data(tmp_path, source), out(tmp_path, "parquet"))
    assert main(given).code == 0
    os.remove(tmp_path / f"out/{main(given).summary['prediction_id']}/_finished")
    fewer = frame().iloc[:-1]
    fewer.to_csv(tmp_path / "rows.csv", index=False)
    fewer.to_parquet(tmp_path / "rows.parquet")
    with sqlite3.connect(tmp_path / "rows.db") as database:
        database.execute("UPDATE rows SET patient = 'zz' WHERE patient = 'p0001 é'")
    ended = main(given)
    assert ended.code == 3
    assert "have changed" in ended.err
    assert "--prediction-id" in ended.err


def test_a_prediction_goes_on_with_its_own_version_and_refuses_to_be_another(
    main: Main, folder: Path, tmp_path: Path
) -> None:
    given = arguments(folder, data(folder, "csv"), out(tmp_path, "parquet"), "--prediction-id", "monday")
    assert main(given).code == 0
    for replaced, said in (
        (["--model", "other"], "is of tumours version 1, not of other"),
        (["--model", "tumours/2"], "is of tumours version 1, not of tumours/2"),
        (["--data", data(folder, "parquet")], "is of the rows of"),
    ):
        ended = main([*given, *replaced])
        assert ended.code == 2
        assert said in ended.err
    assert main([*given, "--model", "tumours/1"]).summary["written"] == 0


def test_a_prediction_that_another_process_writes_is_refused_by_name(main: Main, folder: Path, tmp_path: Path) -> None:
    given = arguments(folder, data(folder, "csv"), out(tmp_path, "parquet"), "--prediction-id", "monday-2")
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        path = folder / "home/predicting/monday-2"
        path.mkdir(parents=True)
        with FileLock(path / "running.lock"):
            held.set()
            let_go.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(60)
    try:
        ended = main(given)
    finally:
        let_go.set()
        other.join()
    assert ended.code == 2
    assert "the prediction 'monday-2' is running in another process" in ended.err


@pytest.mark.parametrize("kind", ["parquet", "sql"])
@pytest.mark.parametrize("rows", [0, 1])
def test_no_rows_and_one_row(rows: int, kind: str, main: Main, folder: Path, tmp_path: Path) -> None:
    frame().iloc[:rows].to_parquet(tmp_path / "few.parquet")
    given = arguments(folder, f"{{parquet: {tmp_path / 'few.parquet'}, key: patient}}", out(tmp_path, kind))
    for _ in range(2):
        ended = main(given)
        assert (ended.code, ended.summary["rows"]) == (0, rows), ended.err
    if rows:
        assert len(kept(tmp_path, kind)) == 1


def test_the_target_may_be_away_categories_may_be_new_and_a_missing_column_is_named(
    main: Main, folder: Path, tmp_path: Path
) -> None:
    rows = frame().drop(columns="malignant").assign(ward="a new one")
    rows.to_csv(tmp_path / "new.csv", index=False)
    rows.drop(columns="age").to_csv(tmp_path / "less.csv", index=False)
    ended = main(arguments(folder, str(tmp_path / "new.csv"), out(tmp_path, "parquet")))
    assert ended.code == 0, ended.err
    assert kept(tmp_path, "parquet")["key"].tolist() == list(range(ROWS))
    ended = main(arguments(folder, str(tmp_path / "less.csv"), out(tmp_path, "sql")))
    assert ended.code == 3
    assert "'age'" in ended.err


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (["--model", "nobody@champion"], 4, "nobody"),
        (["--model", "tumours@no one@else"], 2, "names no registered model"),
        (["--job-id", "one"], 2, "one and only one of --job-id and --model"),
        (["--data", "rows.txt"], 2, "--data"),
        (["--out", "{sqll: 1}"], 2, "did you mean 'sql'"),
        (["--prediction-id", "../up"], 2, "not a prediction id"),
        (["--batch-rows", "0"], 2, "--batch-rows"),
    ],
)
def test_what_is_wrong_is_refused(
    given: list[str], code: int, said: str, main: Main, folder: Path, tmp_path: Path
) -> None:
    ended = main([*arguments(folder, data(folder, "csv"), out(tmp_path, "parquet")), *given])
    assert ended.code == code, ended.err
    assert said in ended.err


def test_a_folder_that_cannot_be_written_ends_with_its_name(main: Main, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = main(arguments(folder, data(folder, "csv"), str(tmp_path / "file" / "out")))
    assert ended.code == 5
    assert str(tmp_path / "file") in ended.err


def test_prefect_shows_how_far_it_is(main: Main, folder: Path, tmp_path: Path) -> None:
    ended = main(arguments(folder, data(folder, "csv"), out(tmp_path, "parquet"), "--prediction-id", "shown"))
    assert ended.code == 0
    assert "200 of 230 rows" in ended.err
    with get_client(sync_client=True) as client:
        bars = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["prediction"])))
    assert [bar.data for bar in bars if bar.description == "Rows predicted of shown"] == [100]


def test_a_deployed_run_is_a_prediction_of_its_own_and_ends_by_a_state(
    prefect_url: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import predict

    monkeypatch.setattr(predict.deployment, "get_id", lambda: "that of a deployment")
    given = {"model": "tumours@champion", "out": str(tmp_path / "out"), "home": str(folder / "home")}
    rows = {"csv": str(folder / "rows.csv"), "key": "patient"}
    first, second = (predict.prediction(data=rows, **given) for _ in range(2))
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert first["prediction_id"] != second["prediction_id"]
    assert pd.read_parquet(tmp_path / "out").groupby("prediction_id").size().tolist() == [ROWS, ROWS]
    away = predict.prediction(data=str(tmp_path / "away.csv"), return_state=True, **given)
    assert (away.type.value, "does not exist" in away.message) == ("FAILED", True)
