"""Job files: lines in messages, overrides, paths relative to the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bitfount_model.errors import ConfigurationError
from flows.settings import read_job, read_source
from tasks.job import check_job, to_json, with_seed

TEXT = """\
name: tumours
model:
  file: model.py
data:
  csv: rows.csv
  key: id
datastructure:
  target: y
training:
  epochs: 3
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def to_file(text: str) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return to_file


def test_paths_are_relative_to_the_job_file(write: Callable[[str], Path], tmp_path: Path) -> None:
    job = read_job(write(TEXT))
    assert job.model["file"] == str(tmp_path / "model.py")
    assert job.data["csv"] == str(tmp_path / "rows.csv")


def test_overrides_replace_and_add_keys(write: Callable[[str], Path]) -> None:
    job = read_job(
        write(TEXT),
        ["training.epochs=9", "model.hyperparameters.lr=1e-3", "metrics=[AUC]", "datastructure.ignore_cols=[a, b]"],
    )
    assert job.training["epochs"] == 9
    assert job.model["hyperparameters"] == {"lr": 0.001}
    assert job.metrics == ["AUC"]
    assert job.datastructure["ignore_cols"] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TEXT.replace("  epochs: 3", "  epochs: 3\n  steps: 4"), "job.yaml:10: training.epochs: give one and only one"),
        (TEXT.replace("  epochs: 3", "  epochs: true"), "job.yaml:10: training.epochs"),
        (
            TEXT.replace("  csv: rows.csv", "  csv: rows.csv\n  parquet: r.parquet"),
            "job.yaml:4: data: give one and only one",
        ),
        (TEXT.replace("name: tumours", "name: ../up"), "job.yaml:1: name: must be letters"),
        (
            TEXT.replace("datastructure:", "data_structure:"),
            "job.yaml:7: data_structure: unknown key; did you mean 'datastructure'?",
        ),
        (TEXT.replace("  file: model.py\n", "  file: 3\n"), "job.yaml:3: model.file: Not a valid string"),
        ("[]", "holds no mapping"),
        ("", "holds no mapping"),
        ("a: b: c", "not YAML"),
        ("name: a\nname: b\n", "not YAML"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(write: Callable[[str], Path], text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_job(write(text))
    assert said in str(caught.value)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="cannot read the job file"):
        read_job(tmp_path / "job.yaml")


def test_a_job_survives_json(write: Callable[[str], Path]) -> None:
    job = with_seed(read_job(write(TEXT)))
    assert check_job(to_json(job)) == job


def test_a_job_without_a_seed_gets_one_and_keeps_its_own(write: Callable[[str], Path]) -> None:
    job = read_job(write(TEXT))
    assert job.training["seed"] is None
    assert with_seed(job, 5).training["seed"] == 5
    assert with_seed(with_seed(job, 5), 6).training["seed"] == 5
    assert with_seed(job).training["seed"] is not None
    assert job.training["seed"] is None


def test_a_source_on_the_command_line_is_a_file_or_yaml(tmp_path: Path) -> None:
    assert read_source(str(tmp_path / "a.CSV")) == {"csv": str(tmp_path / "a.CSV"), "key": None}
    assert read_source("{sklearn: digits, key: id}") == {"sklearn": "digits", "key": "id"}
    for wrong in ("a.xlsx", "[1]", "{cvs: a}", "{: "):
        with pytest.raises(ConfigurationError, match="--data"):
            read_source(wrong)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TEXT.replace("file: model.py", "file: model.py\n  hyperparameters: {since: 2020-01-01}"), "quotes"),
        (TEXT.replace("name: tumours", "name: 2020-13-45"), "month must be in"),
        (TEXT.replace("file: model.py", "file: model.py\n  hyperparameters: {epochs: 5}"), "epochs: belongs to"),
        (TEXT.replace("epochs: 3", "epochs: 3\n  threads: 100000"), "job.yaml:11: training.threads"),
        (TEXT + "metrics: []\n", "job.yaml:11: metrics"),
        (TEXT + "schema:\n  types: {categorical: [a], text: [a]}\n", "columns ['a'] are named more than once"),
        (TEXT + "schema:\n  file: s.yaml\n  types: {text: [a]}\n", "one of file and types"),
        (TEXT.replace("csv: rows.csv", "sql: {url: 'sqlite:///r.db', tabel: t}"), "did you mean 'table'?"),
        (TEXT.replace("csv: rows.csv", "sql: {url: nonsense}"), "the URL cannot be read"),
        (TEXT.replace("csv: rows.csv", "csv: rows.csv\n  read_csv_kwargs: {engine: c}"), "Must be one of: comment"),
        (TEXT.replace("csv: rows.csv", "parquet: r\n  read_csv_kwargs: {sep: ;}"), "only a csv source"),
    ],
)
def test_what_could_never_run_is_refused_at_once(write: Callable[[str], Path], text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_job(write(text))
    assert said in str(caught.value)


def test_problems_come_in_the_order_of_their_lines(write: Callable[[str], Path]) -> None:
    text = "name: []\n" + TEXT.removeprefix("name: tumours\n") + "metrics: 1\nexperiment: []\nfoo: 1\n"
    with pytest.raises(ConfigurationError) as caught:
        read_job(write(text))
    lines = [int(line.split(":")[1]) for line in str(caught.value).splitlines()[1:]]
    assert lines == [1, 11, 12, 13]


@pytest.mark.parametrize(
    ("url", "folder"), [("sqlite:///rows.db", True), ("sqlite:////rows.db", False), ("sqlite:///:memory:", False)]
)
def test_a_sqlite_file_is_relative_to_the_job_file_too(
    write: Callable[[str], Path], tmp_path: Path, url: str, folder: bool
) -> None:
    job = read_job(write(TEXT.replace("csv: rows.csv", f"sql: {{url: '{url}', table: t}}")))
    assert job.data["sql"]["url"] == (f"sqlite:///{tmp_path}/rows.db" if folder else url)


def test_a_source_that_is_refused_is_not_repeated_as_it_may_hold_a_password() -> None:
    for text in ("{sql: {url: 'postgresql://me:hunter2@host/db', table: t}}", "postgresql://me:hunter2@host/db"):
        with pytest.raises(ConfigurationError, match="--data") as caught:
            read_source(text)
        assert "hunter2" not in str(caught.value)
