"""A job with streamed rows: when rows are streamed, what the steps leave, and the same bits after a kill."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import create_engine

from bitfount_model.errors import DataError, DataSourceError
from tasks import streamed
from tasks.evaluate import evaluate_job
from tasks.fit import train
from tasks.initialise import initialise
from tasks.job import JobError, LocalJob, check_job, to_json
from tasks.manifest import Manifest, read_file
from tasks.package import package_job
from tasks.registered import PROFILE, ROWS
from tasks.session import open_session
from tasks.store import Store
from tasks.streamed import is_streamed
from tests.flows.conftest import MODEL

COUNT = 600


def frame(rows: int = COUNT) -> pd.DataFrame:
    values = np.random.default_rng(0).normal(size=(rows, 4))
    columns = pd.DataFrame(values, columns=list("abcd"))
    return columns.assign(word=np.where(values[:, 1] > 0, "up", "down"), target=(values[:, 0] > 0).astype(int))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL, encoding="utf-8")
    frame().to_parquet(tmp_path / "rows.parquet", row_group_size=100)
    return tmp_path


def job(folder: Path, **sections: Any) -> LocalJob:
    value = {
        "name": "streamed",
        "model": {"file": str(folder / "model.py")},
        "data": {"parquet": str(folder / "rows.parquet"), "stream": True},
        "datastructure": {"target": "target"},
        "training": {"epochs": 3, "batch_size": 32, "seed": 1},
    }
    return check_job({**value, **sections})


def ran(folder: Path, name: str, asked: LocalJob) -> tuple[Store, dict[str, Manifest]]:
    store = Store(folder / name)
    made = initialise(store, asked, name)
    return store, {"initialise": made, "fit": train(store), "evaluate": evaluate_job(store)}


def test_a_streamed_job_leaves_what_a_held_one_leaves(folder: Path) -> None:
    held = {"parquet": str(folder / "rows.parquet"), "stream": False}
    stores, steps = {}, {}
    for name, asked in (("streamed", job(folder)), ("held", job(folder, data=held))):
        stores[name], steps[name] = ran(folder, name, asked)
    one, two = (steps[name]["initialise"].values for name in ("streamed", "held"))
    differing = {key for key in one if one[key] != two[key]}
    assert differing == {"job_id", "streamed", "data_digest"}
    assert one["rows"] == {"train": 480, "validation": 60, "test": 60}
    schemas = [read_file(stores[name], steps[name]["initialise"], "schema") for name in stores]
    assert schemas[0] == schemas[1]
    tables = [pd.read_parquet(stores[name].location("evaluate/predictions.parquet")) for name in stores]
    for column in ("key", "target"):
        assert tables[0][column].tolist() == tables[1][column].tolist()
    history = json.loads(read_file(stores["streamed"], steps["streamed"]["fit"], "history"))
    assert [epoch["rows"] for epoch in history] == [480] * 3
    assert history[-1]["val_stats"]["AUC"] > 0.9


def test_the_same_job_gives_the_same_weights_and_leaves_no_rows_behind(folder: Path) -> None:
    (first, one), (_, two) = ran(folder, "one", job(folder)), ran(folder, "two", job(folder))
    assert one["fit"].values["weights_sha256"] == two["fit"].values["weights_sha256"]
    assert one["initialise"].values["data_digest"] == two["initialise"].values["data_digest"]
    assert not list(Path(first.url).glob("scratch/*"))


PROGRAM = """\
import json, sys
import torch
from tasks.evaluate import evaluate_job
from tasks.fit import train
from tasks.initialise import initialise
from tasks.job import check_job
from tasks.progress import listening
from tasks.store import Store

def say(kind, values):
    if kind == "epoch":
        print("epoch", values["epoch"], flush=True)

store = Store(sys.argv[1])
with listening(say):
    initialise(store, check_job(json.loads(sys.argv[2])), "killed")
    print("epoch 0", flush=True)
    train(store)
    print("trained", evaluate_job(store).values["rows"], flush=True)
"""


def process(store: Path, asked: LocalJob) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", PROGRAM, str(store), json.dumps(to_json(asked))]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@pytest.mark.parametrize("length", [{"epochs": 4}, {"steps": 60}], ids=str)
def test_killed_in_the_middle_it_goes_on_to_the_same_bits(folder: Path, length: dict[str, int]) -> None:
    asked = job(folder, training={**length, "batch_size": 32, "seed": 1})
    whole = ran(folder, "whole", asked)[1]["fit"].values
    for moment in ("epoch 0", "epoch 2") if "epochs" in length else ("epoch 0",):
        store = folder / f"killed {moment}"
        with process(store, asked) as run:
            assert run.stdout is not None
            while run.stdout.readline().strip() != moment:
                assert run.poll() is None
            run.kill()
        assert run.returncode == -signal.SIGKILL
        assert (store / "scratch" / "rows" / "rows.json").exists()
        changed = {path: path.stat().st_mtime_ns for path in store.glob("scratch/rows/*")}
        again = train(Store(store)).values
        assert {path: path.stat().st_mtime_ns for path in changed} == changed, "rows are not encoded again"
        assert again["weights_sha256"] == whole["weights_sha256"]
        assert again["val_stats"] == whole["val_stats"]


def test_rows_that_changed_are_refused_and_rows_that_were_only_touched_are_not(folder: Path) -> None:
    store = Store(folder / "job")
    initialise(store, job(folder), "job")
    frame().to_parquet(folder / "rows.parquet", row_group_size=50)
    assert open_session(store).model.train_dl is not None
    frame().assign(a=0.5).to_parquet(folder / "rows.parquet", row_group_size=100)
    with pytest.raises(DataError, match="have changed since the job job began.*Start a new job"):
        train(store)


def test_encoded_rows_that_were_lost_are_made_again(folder: Path) -> None:
    wanted = ran(folder, "whole", job(folder))[1]["fit"].values["weights_sha256"]
    store = Store(folder / "job")
    initialise(store, job(folder), "job")
    streamed.forget_rows(store)
    assert train(store).values["weights_sha256"] == wanted


def test_a_schema_file_is_checked_against_every_chunk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitfount_model.data.streaming.CHUNK_ROWS", 100)
    store, _ = ran(folder, "first", job(folder))
    schema = {"file": str(Path(store.url) / "schema.yaml")}
    ran(folder, "second", job(folder, schema=schema))
    changed = frame().astype({"word": object})
    changed.loc[550:, "word"] = 3
    changed.astype({"word": str}).assign(a="x").to_parquet(folder / "rows.parquet")
    with pytest.raises(DataError, match="column 'a' holds string values"):
        initialise(Store(folder / "third"), job(folder, schema=schema), "third")


def test_a_table_without_rows_is_refused(folder: Path) -> None:
    frame().iloc[:0].to_parquet(folder / "rows.parquet")
    with pytest.raises(DataSourceError, match="has no rows: there is nothing to train on"):
        initialise(Store(folder / "job"), job(folder), "job")


# mlflow 3.17 with pandas 3.1, when it saves an example
@pytest.mark.filterwarnings("ignore:Operation with range is deprecated")
def test_a_streamed_model_is_registered_without_a_profile_of_its_rows(folder: Path) -> None:
    store, _ = ran(folder, "job", job(folder, register="streamed"))
    assert not {PROFILE, ROWS} & package_job(store).files.keys()


# -- when rows are streamed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["yes", None, 3, "AUTO"])
def test_stream_is_true_false_or_auto(folder: Path, value: Any) -> None:
    with pytest.raises(JobError, match=r"data\.stream"):
        job(folder, data={"parquet": "rows.parquet", "stream": value})


@pytest.mark.parametrize("value", [True, False])
def test_a_job_may_say_it(folder: Path, value: bool) -> None:
    assert is_streamed(job(folder, data={"parquet": str(folder / "rows.parquet"), "stream": value})) is value


def test_left_open_it_depends_on_the_rows_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame().to_csv(folder / "rows.csv", index=False)
    engine = create_engine(f"sqlite:///{folder / 'rows.db'}")
    frame().rename_axis("id").to_sql("rows", engine)
    engine.dispose()
    url = f"sqlite:///{folder / 'rows.db'}"
    parquet, csv = {"parquet": str(folder / "rows.parquet")}, {"csv": str(folder / "rows.csv")}
    sql = {"sql": {"url": url, "table": "rows"}}
    cells = {"parquet": 6 * COUNT * 8, "sql": 7 * COUNT * 8, "csv": (folder / "rows.csv").stat().st_size}
    sources: list[tuple[dict[str, Any], int]] = [
        (parquet, cells["parquet"]),
        ({**parquet, "stream": "auto"}, cells["parquet"]),
        (csv, cells["csv"]),
        ({**sql, "key": "id"}, cells["sql"]),
        ({"sql": {"url": url, "query": "SELECT * FROM rows"}, "key": "id"}, cells["sql"]),
        ({"sql": {"url": url, "query": "SELECT * FROM rows ORDER BY id"}}, 0),
        (sql, 0),
        ({"sklearn": "digits"}, 0),
        ({"csv": str(folder / "none.csv")}, 0),
    ]
    for data, size in sources:
        for limit in (size - 1, size) if size else (0,):
            monkeypatch.setattr(streamed, "STREAMED_BYTES", limit)
            assert is_streamed(job(folder, data=data)) is (limit < size), data


def test_left_open_images_and_registered_models_hold_their_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "STREAMED_BYTES", 0)
    data = {"parquet": str(folder / "rows.parquet")}
    assert is_streamed(job(folder, data=data))
    assert not is_streamed(job(folder, data=data, register="model"))
    assert not is_streamed(job(folder, data=data, datastructure={"target": "target", "image_cols": ["word"]}))


def test_small_jobs_are_what_they_were(folder: Path) -> None:
    data = {"parquet": str(folder / "rows.parquet")}
    assert not is_streamed(job(folder, data=data))
    store, steps = ran(folder, "job", job(folder, data=data))
    assert not list(Path(store.url).glob("scratch/rows*"))
    held = ran(folder, "held", job(folder, data={**data, "stream": False}))[1]
    assert held["fit"].values["weights_sha256"] == steps["fit"].values["weights_sha256"]
    weights = read_file(store, steps["fit"], "weights")
    assert hashlib.sha256(weights).hexdigest() == steps["fit"].values["weights_sha256"]
