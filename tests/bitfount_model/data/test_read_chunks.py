"""Every source in chunks: the rows of `read`, in its order, with its keys and types, from any row on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import URL, create_engine, text

from bitfount_model.data import (
    BaseSource,
    CSVSource,
    DataFrameSource,
    ParquetSource,
    SklearnSource,
    SQLSource,
    source_from_config,
)
from bitfount_model.data.keys import key_hashes, repeated_keys
from bitfount_model.errors import ConfigurationError, DataSourceError

ROWS = 60
FRAME = pd.DataFrame(
    {
        "patient": [f"p{number:03d} ü" for number in range(ROWS)],
        "number": np.arange(ROWS) * 0.1,
        "gaps": [None if number % 13 == 12 else number for number in range(ROWS)],
        "whole": np.arange(ROWS) + 2**60,
        "code": [f"{number:03d}" if number < 50 else "A,\n1" for number in range(ROWS)],
        "flag": [None if number == 40 else number % 3 == 0 for number in range(ROWS)],
        "late": [None] * 30 + ["x"] * 30,
    }
)
"""Columns whose first rows look like another type than the whole."""
SOURCES = ("csv", "parquet", "folder", "partitions", "frame", "sqlite", "postgres", "sklearn")
Make = Callable[[str, str | None], BaseSource]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows in files and in a database."""
    path = tmp_path_factory.mktemp("rows")
    FRAME.to_csv(path / "rows.csv", index=False)
    FRAME.to_parquet(path / "rows.parquet", row_group_size=7)
    (path / "folder").mkdir()
    for number, begin in enumerate(range(0, ROWS, 25)):
        FRAME.iloc[begin : begin + 25].to_parquet(path / "folder" / f"{number}.parquet", row_group_size=10)
    FRAME.assign(half=np.arange(ROWS) // 30).to_parquet(path / "partitions", partition_cols=["half"])
    engine = create_engine(f"sqlite:///{path / 'rows.db'}")
    written(engine)
    engine.dispose()
    return path


def written(engine: Any) -> None:
    """The rows as a table with a primary key, in another order than it has."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TABLE patients (patient VARCHAR(20) PRIMARY KEY, number DOUBLE PRECISION, gaps DOUBLE PRECISION,"
                " whole BIGINT, code TEXT, flag BOOLEAN, late TEXT)"
            )
        )
        FRAME.iloc[::-1].to_sql("patients", connection, if_exists="append", index=False)


@pytest.fixture(scope="module")
def postgres(postgres_url: URL) -> Any:
    """URL of a PostgreSQL that has the rows."""
    engine = create_engine(postgres_url)
    written(engine)
    yield postgres_url.render_as_string(hide_password=False)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE patients"))
    engine.dispose()


@pytest.fixture(scope="module")
def make(folder: Path, request: pytest.FixtureRequest) -> Make:
    """The source of a kind."""

    def source(kind: str, key: str | None) -> BaseSource:
        if kind == "postgres":
            return SQLSource(request.getfixturevalue("postgres"), table="patients", key=key)
        return {
            "csv": lambda: CSVSource(folder / "rows.csv", key),
            "parquet": lambda: ParquetSource(folder / "rows.parquet", key),
            "folder": lambda: ParquetSource(folder / "folder", key),
            "partitions": lambda: ParquetSource(folder / "partitions", key),
            "frame": lambda: DataFrameSource(FRAME, key),
            "sqlite": lambda: SQLSource(f"sqlite:///{folder / 'rows.db'}", table="patients", key=key),
            "sklearn": lambda: SklearnSource("diabetes", "age" if key == "never" else None),
        }[kind]()

    return source


@pytest.mark.parametrize("key", ["patient", None])
@pytest.mark.parametrize("kind", SOURCES)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 70), start=st.integers(0, 70))
def test_chunks_are_the_rows_of_the_whole(make: Make, kind: str, key: str | None, rows: int, start: int) -> None:
    source = make(kind, key)
    whole = source.read()
    start = min(start, len(whole))
    chunks = list(source.read_chunks(rows if kind != "sklearn" else 20 * rows, start))
    assert source.count() == len(whole)
    if start == len(whole):
        assert chunks == []
        return
    size = rows if kind != "sklearn" else 20 * rows
    assert [len(chunk) for chunk in chunks[:-1]] == [size] * (len(chunks) - 1)
    assert 1 <= len(chunks[-1]) <= size
    from_files = kind in ("csv", "parquet", "folder", "partitions")
    pd.testing.assert_frame_equal(pd.concat(chunks), whole.iloc[start:], check_dtype=from_files, check_exact=True)
    for chunk in chunks if from_files else []:
        assert chunk.dtypes.to_dict() == whole.dtypes.to_dict()


@pytest.mark.parametrize("kind", ["csv", "parquet", "folder", "sqlite", "postgres"])
def test_missing_repeated_and_unknown_keys_are_refused_before_the_first_chunk(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    frame = FRAME.assign(twice=[*range(ROWS - 1), 3], never=[*range(ROWS - 1), None])
    source: Callable[[str], BaseSource]
    if kind == "csv":
        frame.to_csv(tmp_path / "rows.csv", index=False)
        source = lambda key: CSVSource(tmp_path / "rows.csv", key)  # noqa: E731
    elif kind in ("parquet", "folder"):
        (tmp_path / "rows").mkdir()
        frame.iloc[:30].to_parquet(tmp_path / "rows" / "a.parquet")
        frame.iloc[30:].to_parquet(tmp_path / "rows" / "b.parquet")
        source = lambda key: ParquetSource(tmp_path / "rows", key)  # noqa: E731
    else:
        url = f"sqlite:///{tmp_path}/rows.db" if kind == "sqlite" else request.getfixturevalue("postgres_url")
        engine = create_engine(url)
        frame.to_sql("bad", engine, index=False, if_exists="replace")
        engine.dispose()
        plain = url if isinstance(url, str) else url.render_as_string(hide_password=False)
        source = lambda key: SQLSource(plain, table="bad", key=key)  # noqa: E731
    with pytest.raises(DataSourceError, match=r"repeats values, such as \[3(\.0)?\]"):
        next(source("twice").read_chunks(7))
    with pytest.raises(DataSourceError, match="missing in 1 rows"):
        next(source("never").read_chunks(7))
    with pytest.raises(DataSourceError, match="no key column 'patent', did you mean 'patient'"):
        next(source("patent").read_chunks(7))


@pytest.mark.parametrize("kind", ["csv", "parquet", "frame", "sqlite"])
def test_a_table_without_rows_is_one_chunk_without_rows(kind: str, tmp_path: Path) -> None:
    empty = FRAME.iloc[:0]
    empty.to_csv(tmp_path / "rows.csv", index=False)
    empty.to_parquet(tmp_path / "rows.parquet")
    engine = create_engine(f"sqlite:///{tmp_path}/rows.db")
    empty.to_sql("rows", engine, index=False)
    engine.dispose()
    source: BaseSource = {
        "csv": CSVSource(tmp_path / "rows.csv", "patient"),
        "parquet": ParquetSource(tmp_path / "rows.parquet", "patient"),
        "frame": DataFrameSource(empty, "patient"),
        "sqlite": SQLSource(f"sqlite:///{tmp_path}/rows.db", table="rows", key="patient"),
    }[kind]
    (chunk,) = source.read_chunks(10)
    assert len(chunk) == source.count() == 0
    assert list(chunk.columns) == list(source.read().columns)


def test_the_index_that_pandas_stored_stays_the_key(tmp_path: Path) -> None:
    for name, frame in {
        "part": FRAME.iloc[10:40:3],
        "names": FRAME.set_index("patient"),
        "repeated": FRAME.set_index(np.arange(ROWS) // 2),
    }.items():
        frame.to_parquet(tmp_path / f"{name}.parquet", row_group_size=8)
        source = ParquetSource(tmp_path / f"{name}.parquet")
        pd.testing.assert_frame_equal(pd.concat(source.read_chunks(7)), source.read())


def test_row_groups_before_the_start_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FRAME.to_parquet(tmp_path / "rows.parquet", row_group_size=10)
    asked: list[list[int]] = []
    original = pq.ParquetFile.iter_batches

    def spy(self: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(options["row_groups"])
        return original(self, *arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    (chunk,) = ParquetSource(tmp_path / "rows.parquet").read_chunks(100, 35)
    assert asked == [[3, 4, 5]]
    assert chunk.index[0] == 35


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cells=st.lists(
        st.sampled_from(["", "1", "-2", "0.5", "True", "False", "007", "x", "nan", "18446744073709551615", '"1"']),
        min_size=1,
        max_size=12,
    ),
    rows=st.integers(1, 5),
)
def test_a_csv_column_has_the_type_of_the_whole_file(tmp_path: Path, cells: list[str], rows: int) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("row,cell\n" + "".join(f"{row},{cell}\n" for row, cell in enumerate(cells)))
    whole = CSVSource(path).read()
    chunks = list(CSVSource(path).read_chunks(rows))
    if "18446744073709551615" in cells:  # pandas itself reads huge numbers beside others in several ways
        assert {str(chunk.dtypes["cell"]) for chunk in chunks} == {str(chunks[0].dtypes["cell"])}
        return
    pd.testing.assert_frame_equal(pd.concat(chunks), whole)


def test_a_csv_file_that_was_changed_is_looked_at_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a\n1\n")
    source = CSVSource(path)
    assert source.count() == 1
    before = source.state()
    path.write_text("a\nx\ny\n")
    assert source.count() == 2
    assert source.state() != before
    assert next(source.read_chunks(5))["a"].tolist() == ["x", "y"]


def test_a_csv_file_read_with_an_index_or_a_layout_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a;b\n1,5;x\n2,5;y\n3;z\n")
    for arguments in ({"sep": ";", "decimal": ","}, {"sep": ";", "index_col": "b"}, {"sep": ";", "dtype": str}):
        source = CSVSource(path, read_csv_kwargs=arguments)
        pd.testing.assert_frame_equal(pd.concat(source.read_chunks(2)), source.read())


@pytest.mark.parametrize(
    ("query", "key"),
    [
        ("SELECT patient, number FROM patients WHERE code LIKE '00%' ORDER BY number DESC;", "patient"),
        ("SELECT patient, ':not :a parameter' AS note FROM patients -- and a comment", "patient"),
        ('SELECT number AS "Größe %", patient FROM patients', "Größe %"),
    ],
)
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_query_is_read_page_by_page(make: Make, kind: str, query: str, key: str) -> None:
    whole = make(kind, key).read(query=query)
    chunks = list(make(kind, key).read_chunks(7, 3, query=query))
    pd.testing.assert_frame_equal(pd.concat(chunks), whole.iloc[3:])


def test_a_database_without_a_key_to_go_by_is_refused(folder: Path) -> None:
    url = f"sqlite:///{folder / 'rows.db'}"
    with pytest.raises(DataSourceError, match="name such a column as the source's key"):
        next(SQLSource(url, query="SELECT * FROM patients").read_chunks(5))


def test_a_page_needs_no_row_before_it(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.db"
    path.write_bytes((folder / "rows.db").read_bytes())
    chunks = SQLSource(f"sqlite:///{path}", table="patients", key="patient").read_chunks(20)
    first = next(chunks)
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM patients WHERE number < 1"))
    engine.dispose()
    assert [*first.index, *pd.concat(chunks).index] == FRAME["patient"].tolist()


def test_wrong_sizes_and_queries_of_files_are_refused(folder: Path) -> None:
    source = CSVSource(folder / "rows.csv")
    with pytest.raises(ConfigurationError, match="at least 1"):
        source.read_chunks(0)
    with pytest.raises(ConfigurationError, match="at least 0"):
        source.read_chunks(1, -1)
    with pytest.raises(DataSourceError, match="takes no query"):
        source.read_chunks(1, query="SELECT 1")


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    for config in ({"csv": tmp_path / "no.csv"}, {"parquet": tmp_path / "no.parquet"}):
        with pytest.raises(DataSourceError, match="does not exist"):
            list(source_from_config(config).read_chunks(5))
    (tmp_path / "long.csv").write_text("a,b\n1,2,3\n")
    with pytest.raises(DataSourceError, match="more cells than the header"):
        list(CSVSource(tmp_path / "long.csv").read_chunks(5))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataSourceError, match="cannot be read as Parquet"):
        list(ParquetSource(tmp_path / "bad.parquet").read_chunks(5))


@given(st.lists(st.integers(0, 30) | st.text(max_size=2), max_size=40), st.integers(1, 9))
def test_repeated_keys_are_those_of_pandas(keys: list[Any], size: int) -> None:
    column = pd.Series([str(key) for key in keys], dtype=object)
    found = repeated_keys(lambda: (column.iloc[begin : begin + size] for begin in range(0, len(column), size)))
    assert found == column[column.duplicated()].unique()[:5].tolist()


def test_different_keys_with_one_hash_are_not_taken_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitfount_model.data.keys.key_hashes", lambda keys: key_hashes(keys) % np.uint64(7))
    column = pd.Series(range(100))
    assert repeated_keys(lambda: [column]) == []
    assert repeated_keys(lambda: [column, pd.Series([42])]) == [42]
