"""Rows from real databases: SQLite and PostgreSQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest
from sqlalchemy import URL, create_engine, text

from bitfount_model.data import SQLSource, digest, literal_secrets, source_from_config
from bitfount_model.errors import ConfigurationError, DataSourceError

SCRIPT = [
    "CREATE TABLE patients "
    '(id INTEGER PRIMARY KEY, age INTEGER, weight DOUBLE PRECISION, "größe" NUMERIC(5, 2), name TEXT)',
    "INSERT INTO patients VALUES (3, NULL, 61.5, 1.75, 'Zoë')",
    "INSERT INTO patients VALUES (1, 40, 0.1, 1.60, '100% sure: yes'), (2, 50, NULL, NULL, NULL)",
    "CREATE TABLE visits (visit INTEGER PRIMARY KEY)",
    "CREATE VIEW adults AS SELECT id, age FROM patients WHERE age >= 18",
]


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        path = tmp_path / "rows.db"
        with sqlite3.connect(path) as connection:
            for statement in SCRIPT:
                connection.execute(statement)
        connection.close()
        yield f"sqlite:///{path}"
        return
    server: URL = request.getfixturevalue("postgres_url")
    engine = create_engine(server)
    with engine.begin() as connection:
        for statement in SCRIPT:
            connection.execute(text(statement.replace(":", "\\:")))
    yield server.set(drivername="postgresql").render_as_string(hide_password=False)
    with engine.begin() as connection:
        connection.execute(text("DROP VIEW adults; DROP TABLE patients, visits"))
    engine.dispose()


def count_patients(url: str) -> int:
    return len(SQLSource(url, table="patients").read())


def test_a_table_is_read_in_the_order_of_its_primary_key(url: str) -> None:
    frame = SQLSource(url, table="patients").read()
    assert frame["id"].tolist() == [1, 2, 3]
    assert frame["weight"].iloc[0] == 0.1
    assert frame["größe"].tolist()[0] == 1.6 and pd.isna(frame["größe"].iloc[1])
    assert frame["größe"].dtype == "float64"
    assert frame["name"].tolist()[::2] == ["100% sure: yes", "Zoë"]


def test_a_key_becomes_the_index_and_sorts_the_rows(url: str) -> None:
    frame = SQLSource(url, query="SELECT id, age FROM patients ORDER BY age DESC", key="id").read()
    assert frame.index.tolist() == [1, 2, 3]
    assert list(frame.columns) == ["age"]


def test_a_query_may_hold_percent_signs_and_colons(url: str) -> None:
    frame = SQLSource(url, query="SELECT id FROM patients WHERE name LIKE '100%: y%'").read()
    assert frame["id"].tolist() == [1]


def test_reading_overrides_the_table_and_the_query_of_the_source(url: str) -> None:
    source = SQLSource(url, table="visits")
    assert source.read().empty
    assert list(source.read().columns) == ["visit"]
    assert len(source.read(table="patients")) == 3
    assert len(source.read(query="SELECT * FROM patients WHERE age > 45")) == 1
    with pytest.raises(DataSourceError, match="both asked for"):
        source.read(table="patients", query="SELECT 1")


def test_a_view_is_a_table(url: str) -> None:
    assert len(SQLSource(url, table="adults", key="id").read()) == 2


def test_two_reads_have_the_same_digest(url: str) -> None:
    source = SQLSource(url, table="patients", key="id")
    assert digest(source.read()) == digest(source.read())


def test_an_unknown_table_lists_close_names(url: str) -> None:
    with pytest.raises(DataSourceError, match=r"no table 'patient', did you mean 'patients'"):
        SQLSource(url, table="patient").read()
    with pytest.raises(DataSourceError, match=r"neither a table nor a query.*'adults'.*'patients'.*'visits'"):
        SQLSource(url).read()


def test_a_name_that_is_no_table_is_never_run_as_sql(url: str) -> None:
    with pytest.raises(DataSourceError, match="no table"):
        SQLSource(url, table='patients"; DROP TABLE patients; --').read()
    assert count_patients(url) == 3


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM patients",
        "DELETE FROM patients RETURNING id",
        "SELECT id FROM patients; DELETE FROM patients",
        "COMMIT; BEGIN; DELETE FROM patients; COMMIT",
        "WITH gone AS (DELETE FROM patients RETURNING id) SELECT id FROM gone",
        "SET TRANSACTION READ WRITE; DELETE FROM patients",
        "DROP TABLE visits",
        "SELEC id FROM patients",
        "SELECT nothing FROM patients",
    ],
)
def test_a_statement_that_is_not_one_select_is_refused_and_changes_nothing(url: str, statement: str) -> None:
    with pytest.raises(DataSourceError, match=r"the database says|no table"):
        SQLSource(url, query=statement).read()
    assert count_patients(url) == 3
    assert SQLSource(url, table="visits").read().empty


def test_a_key_that_repeats_or_is_missing_is_refused(url: str) -> None:
    with pytest.raises(DataSourceError, match="'age' is missing in 1 rows"):
        SQLSource(url, table="patients", key="age").read()
    with pytest.raises(DataSourceError, match="'one' repeats values"):
        SQLSource(url, query="SELECT 1 AS one, id FROM patients", key="one").read()
    with pytest.raises(DataSourceError, match="no key column 'idd', did you mean 'id'"):
        SQLSource(url, table="patients", key="idd").read()


def test_repeated_columns_of_a_query_are_refused(url: str) -> None:
    with pytest.raises(DataSourceError, match=r"columns \['id'\] appear more than once"):
        SQLSource(url, query="SELECT id, age, id FROM patients").read()


def test_a_table_of_another_schema_is_named_with_a_dot(postgres_url: URL) -> None:
    engine = create_engine(postgres_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA ward; CREATE TABLE ward.beds (bed INT PRIMARY KEY)"))
        connection.execute(text("INSERT INTO ward.beds VALUES (2), (1)"))
    plain = postgres_url.render_as_string(hide_password=False)
    assert SQLSource(plain, table="ward.beds").read()["bed"].tolist() == [1, 2]
    with pytest.raises(DataSourceError, match=r"no table 'ward.bed', did you mean 'ward.beds'"):
        SQLSource(plain, table="ward.bed").read()
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA ward CASCADE"))
    engine.dispose()


def test_no_connection_is_left_open(url: str) -> None:
    def open_files() -> int:
        return len(list(Path("/dev/fd").iterdir()))

    SQLSource(url, query="SELECT 1 AS one").read()
    before = open_files()
    for query in ("SELECT 1 AS one", "SELECT nothing", "SELECT 1 AS one, 2 AS one"):
        source = SQLSource(url, query=query)
        with nullcontext() if query == "SELECT 1 AS one" else pytest.raises(DataSourceError):
            source.read()
    assert open_files() == before


def test_a_wrong_password_is_refused_without_showing_it(postgres_url: URL) -> None:
    source = SQLSource(
        postgres_url.set(password="hunter2").render_as_string(hide_password=False), query="SELECT 1 AS one"
    )
    with pytest.raises(DataSourceError, match="password authentication failed") as caught:
        source.read()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "secret_url",
    [
        "postgresql://reader:hunter2@127.0.0.1:1/db",
        "postgresql://reader@127.0.0.1:1/db?password=hunter2",
        "postgresql+psycopg://reader@127.0.0.1:1/db?sslpassword=hunter2&sslmode=disable",
    ],
)
def test_secrets_appear_in_no_text_that_leaves_the_source(secret_url: str) -> None:
    source = SQLSource(secret_url, query="SELECT 1")
    with pytest.raises(DataSourceError) as caught:
        source.read()
    for shown in (repr(source), str(source.describe()), str(caught.value)):
        assert "hunter2" not in shown
        assert "127.0.0.1:1/db" in shown


def test_a_url_that_cannot_be_read_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigurationError, match="URL cannot be read") as caught:
        SQLSource("reader:hunter2@somewhere")
    assert "hunter2" not in str(caught.value) and caught.value.__suppress_context__


def test_a_missing_driver_says_what_to_install() -> None:
    with pytest.raises(DataSourceError, match="no driver"):
        SQLSource("nosuchdb://somewhere/db", query="SELECT 1").read()


def test_a_missing_sqlite_file_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "absent.db"
    with pytest.raises(DataSourceError, match=r"absent\.db does not exist"):
        SQLSource(f"sqlite:///{path}", table="rows").read()
    assert not path.exists()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.db"
    path.write_text("id,age\n1,2\n" * 500)
    with pytest.raises(DataSourceError, match="not a database"):
        SQLSource(f"sqlite:///{path}", table="rows").read()


def test_table_and_query_together_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="wanted one of them"):
        SQLSource("sqlite://", table="rows", query="SELECT 1")


def test_a_configuration_describes_a_database(url: str) -> None:
    source = source_from_config({"sql": {"url": url, "table": "patients"}, "key": "id"})
    assert source.read().index.tolist() == [1, 2, 3]
    with pytest.raises(ConfigurationError, match="wanted an object with url"):
        source_from_config({"sql": url})
    with pytest.raises(ConfigurationError, match="wanted an object with url"):
        source_from_config({"sql": {"url": url, "tabel": "patients"}})


def test_a_password_from_the_environment_opens_the_database_and_is_kept_nowhere(
    postgres_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROWS_PASSWORD", str(postgres_url.password))
    secret_free = postgres_url.set(password="${ROWS_PASSWORD}").render_as_string(hide_password=False)
    secret_free = secret_free.replace("%24%7BROWS_PASSWORD%7D", "${ROWS_PASSWORD}")
    source = SQLSource(secret_free, query="SELECT 1 AS one")
    assert source.read()["one"].tolist() == [1]
    kept = str(vars(source)) + repr(source) + str(source.describe())
    assert str(postgres_url.password) not in kept or not postgres_url.password


def test_variables_are_looked_up_when_the_source_is_read_and_may_hold_any_character(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite3.connect(tmp_path / "ro ws@1.db") as connection:
        connection.execute("CREATE TABLE numbers (n INTEGER)")
    connection.close()
    source = SQLSource("sqlite:///${ROWS_FOLDER}/${ROWS_FILE}.db", table="numbers")
    with pytest.raises(ConfigurationError, match="variable ROWS_FOLDER is not set"):
        source.read()
    monkeypatch.setenv("ROWS_FOLDER", str(tmp_path))
    monkeypatch.setenv("ROWS_FILE", "ro ws@1")
    assert list(source.read().columns) == ["n"]


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("postgresql://reader:hunter2@host/db", ["password"]),
        ("postgresql://reader@host/db?password=hunter2&sslmode=require", ["password"]),
        ("postgresql://reader@host/db?sslpassword=x${NAME}", ["sslpassword"]),
        ("postgresql://reader:${NAME}@host/db?sslpassword=${OTHER}", []),
        ("sqlite:////data/rows.db", []),
    ],
)
def test_secrets_that_stand_in_a_url_are_told_from_names_of_variables(url: str, found: list[str]) -> None:
    assert literal_secrets(url) == found
