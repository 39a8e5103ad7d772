"""Every place for predictions: batches whole and in order, progress that says how far they are, other things refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import URL, create_engine, text

from bitfount_model.errors import ConfigurationError, DataError, IntegrityError, StorageError
from tasks.batch.destinations import check_destination, destination_of
from tasks.batch.part_folder import PartFolder
from tasks.batch.plan import Destination, Plan, kinds_of, require_kinds
from tasks.batch.prediction_table import PROGRESS, PredictionTable
from tasks.job import JobError

TABLE = pd.DataFrame(
    {
        "key": ["p1 ü", "p2", "日本"],
        "prediction": ["a", "b", "a"],
        "score_a": np.array([0.1, 0.7, 1.0], dtype=np.float32),
        "model_version": 3,
        "run_id": "abc",
        "prediction_id": "one",
    }
)
PLAN = Plan("one", "tumours", 3, "abc", {"kind": "csv"}, {"size": 5}, 6, kinds_of(TABLE))
KINDS = ("parquet", "sqlite", "postgres")
Read = Callable[[], pd.DataFrame]


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Destination, Read]]:
    """A destination, and how what it holds is read by others."""
    if request.param == "parquet":
        yield PartFolder(tmp_path / "out"), lambda: pd.read_parquet(tmp_path / "out")
        return
    url = f"sqlite:///{tmp_path / 'out.db'}"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url").render_as_string(hide_password=False)
    engine = create_engine(url)
    yield PredictionTable(url, "answers"), lambda: pd.read_sql("SELECT * FROM answers", engine)
    with engine.begin() as connection:
        for name in ("answers", PROGRESS):
            connection.execute(text(f"DROP TABLE IF EXISTS {name}"))
    engine.dispose()


def test_what_is_written_is_there_once_and_progress_says_so(place: tuple[Destination, Read]) -> None:
    destination, read = place
    assert destination.progress("one") is None
    destination.begin(PLAN)
    begun = destination.progress("one")
    assert begun is not None
    assert (begun.plan, begun.rows, begun.last_key, begun.finished) == (PLAN, 0, None, False)
    destination.write(PLAN, 0, TABLE)
    destination.write(PLAN, 3, TABLE.assign(key=["p4", "p5", "p6"]))
    destination.finish(PLAN)
    ended = destination.progress("one")
    assert ended is not None
    assert (ended.plan, ended.rows, ended.last_key, ended.finished) == (PLAN, 6, "p6", True)
    kept = read().sort_values("key", ignore_index=True)
    assert kept["key"].tolist() == sorted([*TABLE["key"], "p4", "p5", "p6"])
    assert kept.columns.tolist() == TABLE.columns.tolist()
    assert kept.set_index("key")["score_a"].astype("float32")["p2"] == np.float32(0.7)


def test_several_predictions_are_in_one_place(place: tuple[Destination, Read]) -> None:
    destination, read = place
    for name in ("one", "two"):
        plan = replace(PLAN, prediction_id=name, rows=3)
        destination.begin(plan)
        destination.write(plan, 0, TABLE.assign(prediction_id=name))
        destination.finish(plan)
    assert read().groupby("prediction_id").size().to_dict() == {"one": 3, "two": 3}
    assert destination.progress("three") is None


def test_a_batch_that_two_processes_write_is_there_once(place: tuple[Destination, Read]) -> None:
    destination, read = place
    destination.begin(PLAN)
    destination.write(PLAN, 0, TABLE)
    with pytest.raises(ConfigurationError, match="written by another process too"):
        destination.write(PLAN, 0, TABLE.iloc[:2])
    assert len(read()) == 3


def test_a_table_with_other_columns_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'out.db'}"
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text('CREATE TABLE answers ("key" TEXT, verdict TEXT)'))
    with pytest.raises(ConfigurationError, match=r"lacks \['model_version', .* and has \['verdict'\]"):
        PredictionTable(url, "answers").begin(PLAN)
    assert pd.read_sql("SELECT * FROM answers", engine).empty
    engine.dispose()


def test_a_table_that_somebody_made_beforehand_is_used(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'out.db'}"
    engine = create_engine(url)
    TABLE.iloc[:0].to_sql("answers", engine, index=False)
    destination = PredictionTable(url, "answers")
    destination.begin(PLAN)
    destination.write(PLAN, 0, TABLE)
    assert len(pd.read_sql("SELECT * FROM answers", engine)) == 3
    engine.dispose()


def test_a_file_that_was_taken_away_is_missed(tmp_path: Path) -> None:
    destination = PartFolder(tmp_path)
    destination.begin(PLAN)
    destination.write(PLAN, 0, TABLE)
    destination.write(PLAN, 3, TABLE)
    (tmp_path / "one" / "part-000000000000.parquet").unlink()
    with pytest.raises(IntegrityError, match="part-000000000000.parquet is missing"):
        destination.progress("one")


def test_what_cannot_be_written_or_read_is_said_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write .*file"):
        PartFolder(tmp_path / "file" / "out").begin(PLAN)
    with pytest.raises(StorageError, match="answers of sqlite:.*unable to open"):
        PredictionTable(f"sqlite:///{tmp_path}/none/out.db", "answers").begin(PLAN)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "_prediction.json").write_text("{}")
    with pytest.raises(IntegrityError, match="not what a prediction wrote"):
        PartFolder(tmp_path).progress("one")


def test_a_password_is_in_no_message(postgres_url: URL) -> None:
    wrong = postgres_url.set(password="hunter2").render_as_string(hide_password=False)
    destination = PredictionTable(wrong, "answers")
    with pytest.raises(StorageError) as caught:
        destination.begin(PLAN)
    assert "hunter2" not in str(caught.value) + destination.describe()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, "one and only one of parquet"),
        ({"parquet": "a", "sql": {"url": "sqlite:///a.db", "table": "b"}}, "one and only one of parquet"),
        ({"parqet": "a"}, "did you mean 'parquet'"),
        ({"sql": {"url": "sqlite:///a.db"}}, "sql.table: Missing"),
        ({"sql": {"url": "sqlite:///a.db", "table": "a", "query": "SELECT 1"}}, "sql.query: unknown key"),
        ({"sql": {"url": "postgresql://me:secret@host/db", "table": "a"}}, "holds a secret"),
        ({"sql": {"url": "sqlite:///a.db", "table": PROGRESS}}, "sql.table"),
    ],
)
def test_a_place_that_is_none_is_refused(value: dict[str, object], said: str) -> None:
    with pytest.raises(JobError, match=said):
        check_destination(value)


def test_a_checked_place_is_made(tmp_path: Path) -> None:
    folder = destination_of(check_destination({"parquet": str(tmp_path)}))
    table = destination_of(check_destination({"sql": {"url": "sqlite:///a.db", "table": "ward.answers"}}))
    assert folder.describe() == str(tmp_path)
    assert table.describe() == "the table ward.answers of sqlite:///a.db"


def test_a_batch_of_other_columns_is_refused() -> None:
    with pytest.raises(DataError, match="key: integer, before text"):
        require_kinds(PLAN, TABLE.assign(key=[1, 2, 3]), 3)
