"""A wrong input ends with one clear message and a code for scripts; no traceback, no half-written artifact."""

from __future__ import annotations

import resource
import shlex
import subprocess
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer

from tests.flows.conftest import MODEL, Ended, command, run_command

CONFIGURATION, DATA, MODEL_CODE, STORAGE = 2, 3, 4, 5

Write = Callable[..., Path]
Main = Callable[[list[Any]], Ended]


@pytest.fixture
def rows() -> pd.DataFrame:
    return load_breast_cancer(as_frame=True).frame.iloc[:120]


def check(ended: Ended, code: int, *said: str) -> None:
    """One message on standard error with all that should be said, no traceback, that code."""
    assert ended.code == code, ended
    assert "Traceback" not in ended.out + ended.err
    assert ended.err.count("error: ") == 1
    for text in said:
        assert text in ended.err, ended.err


def steps_of(home: Path) -> list[str]:
    return sorted(path.stem for path in home.glob("jobs/*/steps/*.json"))


def test_a_missing_job_file(main: Main, tmp_path: Path) -> None:
    check(main(["train", tmp_path / "none.yaml"]), CONFIGURATION, "none.yaml", "No such file")


def test_a_job_file_that_is_not_yaml_names_the_line(main: Main, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("name: a\nmodel: [unclosed\n", encoding="utf-8")
    check(main(["train", path]), CONFIGURATION, "job.yaml:", "not YAML")


def test_typos_in_a_job_file_are_reported_together_with_their_lines_and_what_was_meant(
    main: Main, tmp_path: Path
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        "name: a\nmodel:\n  file: model.py\ndata:\n  cvs: rows.csv\ndatastructure:\n  target: y\ntraining:\n  epochs: three\n"
        "  bach_size: 3\n",
        encoding="utf-8",
    )
    ended = main(["train", path])
    check(
        ended,
        CONFIGURATION,
        "job.yaml:5: data.cvs",
        "'csv'",
        "job.yaml:9: training.epochs",
        "job.yaml:10",
        "'batch_size'",
    )


def test_an_override_that_is_wrong_is_named(main: Main, job_file: Write) -> None:
    check(main(["train", job_file(), "--set", "training.epochs=0"]), CONFIGURATION, "training.epochs")
    check(main(["train", job_file(), "--set", "training.epochs"]), CONFIGURATION, "key=value")


def test_a_missing_table(main: Main, job_file: Write, home: Path) -> None:
    path = job_file(data={"csv": "nowhere.csv"})
    check(main(["train", path, "--home", home]), DATA, "nowhere.csv")
    assert steps_of(home) == []


def test_an_empty_table(main: Main, job_file: Write, tmp_path: Path, rows: pd.DataFrame, home: Path) -> None:
    (tmp_path / "empty.csv").write_text("", encoding="utf-8")
    check(main(["train", job_file(data={"csv": "empty.csv"}), "--home", home]), DATA, "empty.csv")
    rows.iloc[:0].to_csv(tmp_path / "header.csv", index=False)
    check(main(["train", job_file(data={"csv": "header.csv"}), "--home", home]), DATA, "no rows")


def test_a_wrong_column_is_named_with_the_nearest_one(main: Main, job_file: Write, home: Path) -> None:
    path = job_file(datastructure={"target": "targt"})
    check(main(["train", path, "--home", home]), DATA, "targt", "target")


def test_a_target_with_missing_values(
    main: Main, job_file: Write, tmp_path: Path, rows: pd.DataFrame, home: Path
) -> None:
    rows.assign(target=rows["target"].astype(float).where(rows.index != 5)).to_csv(tmp_path / "rows.csv", index=False)
    check(main(["train", job_file(data={"csv": "rows.csv"}), "--home", home]), DATA, "target")


def test_a_model_file_with_a_syntax_error_names_the_line(main: Main, job_file: Write, home: Path) -> None:
    ended = main(["train", job_file("import torch\nclass Net(:\n"), "--home", home])
    check(ended, MODEL_CODE, "model.py", "line 2")


def test_a_model_class_that_is_not_there_lists_those_that_are(main: Main, job_file: Write, home: Path) -> None:
    path = job_file()
    ended = main(["train", path, "--set", "model.class=Other", "--home", home])
    check(ended, MODEL_CODE, "Other", "Net")


def test_a_hyperparameter_that_the_model_does_not_take(main: Main, job_file: Write, home: Path) -> None:
    ended = main(["train", job_file(), "--set", "model.hyperparameters.lrr=1", "--home", home])
    check(ended, CONFIGURATION, "lrr", "lr")


def test_a_step_that_raises_names_the_line_of_the_users_file(main: Main, job_file: Write, home: Path) -> None:
    broken = MODEL.replace("return F.cross_entropy(self(x), y)", "return F.cross_entropy(self(x), y) + y.nothing", 1)
    ended = main(["train", job_file(broken), "--home", home])
    check(ended, MODEL_CODE, "training_step", "model.py", "y.nothing", "AttributeError")
    assert steps_of(home) == ["initialise"]


def test_training_that_diverges_says_so_and_keeps_no_weights(main: Main, job_file: Write, home: Path) -> None:
    broken = MODEL.replace("return F.cross_entropy(self(x), y)", "return F.cross_entropy(self(x), y) * float('nan')", 1)
    ended = main(["train", job_file(broken), "--home", home])
    check(ended, MODEL_CODE, "NaN")
    assert steps_of(home) == ["initialise"]


def test_a_home_that_cannot_be_written(main: Main, job_file: Write, tmp_path: Path, home: Path) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    check(main(["train", job_file(), "--home", tmp_path / "file" / "home"]), STORAGE, "--home")


@contextmanager
def file_size_limit(limit: int) -> Any:
    """The kernel refuses to write files beyond this size, as a full disk refuses any."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_leaves_no_half_written_artifact(tmp_path: Path) -> None:
    from bitfount_model.errors import StorageError
    from tasks.store import Store

    store = Store(tmp_path / "store")
    with file_size_limit(10_000), pytest.raises(StorageError, match="weights"):
        store.put("fit/weights.safetensors", bytes(20_000))
    assert not store.has("fit/weights.safetensors")
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_a_full_disk_ends_the_command_with_what_is_full_and_the_job_continues_when_there_is_room(
    prefect_url: str, job_file: Write, home: Path
) -> None:
    (home / "jobs").mkdir()
    path = job_file(datastructure={"target": "target"}, training={"epochs": 2, "seed": 1})
    small = f"mount -t tmpfs -o size=48k tmpfs {home / 'jobs'} && exec "
    call = shlex.join(command("train", path, "--home", home, "--job-id", "one", "--json"))
    # A mount in a namespace of its own: nothing of it is left afterwards, and no rights are needed.
    full = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", small + call], capture_output=True, text=True, check=False
    )
    check(Ended(full.returncode, full.stdout, full.stderr), STORAGE, "No space left on device", str(home / "jobs"))
    assert run_command("train", path, "--home", home, "--job-id", "one", "--json").code == 0


def test_predictions_that_cannot_be_written(main: Main, job_file: Write, home: Path) -> None:
    trained = ["--home", home, "--job-id", "one"]
    assert main(["train", job_file(), *trained]).code == 0
    (home / "file").write_text("no folder", encoding="utf-8")
    ended = main(["predict", *trained, "--data", "{sklearn: breast_cancer}", "--out", home / "file" / "p.parquet"])
    check(ended, STORAGE, "p.parquet")


def test_the_same_job_id_with_other_settings_is_refused(main: Main, job_file: Write, home: Path) -> None:
    home = ["--home", home, "--job-id", "one"]
    assert main(["train", job_file(), *home, "--json"]).code == 0
    ended = main(["train", job_file(), *home, "--set", "training.batch_size=16"])
    check(ended, CONFIGURATION, "one", "training.batch_size")


def test_an_unknown_job_id_lists_those_that_are_there(main: Main, tmp_path: Path, home: Path) -> None:
    check(
        main(["predict", "--job-id", "x", "--data", "a.csv", "--out", "p.parquet", "--home", tmp_path]),
        CONFIGURATION,
        "'x'",
    )


def test_rows_to_predict_that_are_not_there_are_missed_before_training(main: Main, job_file: Write, home: Path) -> None:
    ended = main(["train", job_file(predict={"data": {"csv": "later.csv"}}), "--home", home])
    check(ended, DATA, "later.csv", "does not exist")
    assert steps_of(home) == []


def test_a_prefect_server_of_the_users_that_is_away(
    main: Main, job_file: Write, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    ended = main(["train", job_file(), "--home", home])
    check(ended, STORAGE, "Prefect at http://127.0.0.1:9/api", "PREFECT_API_URL")
    assert steps_of(home) == []


def test_a_home_whose_path_no_sqlite_url_can_hold(main: Main, job_file: Write, tmp_path: Path) -> None:
    ended = main(["train", job_file(), "--home", tmp_path / "what?"])
    assert ended.code == CONFIGURATION
    assert "the path holds a '?'" in ended.err


def test_predictions_without_a_file_name(main: Main, home: Path) -> None:
    ended = main(["predict", "--job-id", "one", "--data", "x.csv", "--out", "", "--home", home])
    assert ended.code == CONFIGURATION
    assert "not the name of a file" in ended.err


def test_a_kept_job_that_was_changed_by_hand(main: Main, job_file: Write, home: Path) -> None:
    (home / "jobs" / "one").mkdir(parents=True)
    (home / "jobs" / "one" / "job.json").write_text("{")
    ended = main(["train", job_file(), "--home", home, "--job-id", "one"])
    check(ended, STORAGE, "job.json", "not what a job wrote")
