"""A database -> one pandas table, in a fixed order of rows and without a way to write."""

from __future__ import annotations

import os
import re
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bitfount_model.data.base_source import BaseSource, refuse_repeated
from bitfount_model.data.names import suggestion
from bitfount_model.errors import ConfigurationError, DataSourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL, Connection

_DRIVERS = {"postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg"}
_SECRET_WORDS = ("pass", "pwd", "secret", "token", "key", "credential")
_VARIABLE = re.compile(r"\$\{(\w+)\}")


class SQLSource(BaseSource):
    """A table or a query of a database that SQLAlchemy can open: PostgreSQL through psycopg 3, SQLite, and others.

    Everything runs in one transaction that is rolled back, and that PostgreSQL and SQLite know to be read-only. Still,
    the boundary of what a query may see or do is the database role in the URL: give one that can only select.

    Rows come sorted by `key`; without one, a table's rows come in the order of its primary key. A query without a key
    comes in the order it asks for, so it needs ORDER BY where the same split is wanted every time.

    Args:
        url: as SQLAlchemy writes it, such as `postgresql://reader:${ROWS_PASSWORD}@host/name` or `sqlite:////data/rows.db`.
            `${NAME}` stands for an environment variable, which is looked up when the source is read and kept nowhere.
        query: the rows, as one SELECT.
        table: the rows, as the name of a table or view, with its schema before a dot where it needs one.
        key: the column that becomes the index.

    Raises:
        ConfigurationError: both query and table are given, or the URL cannot be read.
    """

    takes_query = True

    def __init__(self, url: str, query: str | None = None, table: str | None = None, key: str | None = None) -> None:
        super().__init__(key)
        if query is not None and table is not None:
            raise ConfigurationError("SQLSource: query and table are both given, wanted one of them")
        self._url = _parsed(url)
        self.query = query
        self.table = table

    def describe(self) -> dict[str, str]:
        """Kind, location with passwords masked, and what is read."""
        what = {"query": self.query, "table": self.table}
        return {"kind": "sql", "url": _masked(self._url)} | {
            name: text for name, text in what.items() if text is not None
        }

    def _load(self, table: str | None, query: str | None) -> pd.DataFrame:
        if table is not None and query is not None:
            raise DataSourceError(f"{self!r}: query and table are both asked for, wanted one of them")
        if table is None and query is None:
            table, query = self.table, self.query
        with _reading(_resolved(self._url)) as connection:
            statement = query if query is not None else _select(connection, table, repr(self))
            frame = _rows(connection, statement, repr(self))
        if self.key is None or self.key not in frame.columns or not frame[self.key].is_unique:
            return frame  # a bad key is reported by `read`
        try:
            return frame.sort_values(self.key, kind="stable", ignore_index=True)
        except TypeError as error:
            raise DataSourceError(
                f"{self!r}: key column {self.key!r} has values that cannot be sorted: {error}"
            ) from error


@contextmanager
def _reading(url: URL) -> Iterator[Connection]:
    """A connection that takes statements as they are, cannot write, and is closed for good afterwards.

    Raises:
        DataSourceError: the database refuses the connection or the statement.
    """
    from sqlalchemy import create_engine, event, pool
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    if url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:"):
        path = Path(str(url.database))
        if not str(path).startswith("file:") and not path.is_file():
            raise DataSourceError(
                f"{_masked(url)}: the file {path} does not exist; check the path (now in {Path.cwd()})"
            )
    try:
        engine = create_engine(url, poolclass=pool.NullPool, hide_parameters=True)
    except (SQLAlchemyError, ImportError) as error:
        raise DataSourceError(
            f"{_masked(url)}: no driver for this database: {error}; install it (for PostgreSQL: "
            "pip install 'bitfount-flows[postgres]')"
        ) from error
    options: dict[str, Any] = {"no_parameters": True}  # a % in a query is a %
    if engine.dialect.name == "postgresql":
        # a server-side cursor takes one SELECT and nothing else, and does not hold the rows twice
        options |= {"postgresql_readonly": True, "stream_results": True}
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA query_only = ON").close())
    try:
        with engine.connect() as connection:
            yield connection.execution_options(**options)
            connection.rollback()
    except DBAPIError as error:
        raise DataSourceError(
            f"{_masked(url)}: the database says: {_without_secrets(str(error.orig), url)}; check the URL, the query "
            "and what its role may read"
        ) from error
    except SQLAlchemyError as error:
        raise DataSourceError(
            f"{_masked(url)}: {_without_secrets(str(error), url)}; check the URL and the query"
        ) from error
    finally:
        engine.dispose()


def _rows(connection: Connection, statement: str, source: str) -> pd.DataFrame:
    """What a statement gives; decimal numbers become floats."""
    with closing(connection.exec_driver_sql(statement)) as result:
        if not result.returns_rows:
            raise DataSourceError(f"{source}: the query gives no table, wanted one SELECT")
        names = list(result.keys())
        refuse_repeated(names, source)
        return pd.DataFrame.from_records([tuple(row) for row in result], columns=names, coerce_float=True)


def _select(connection: Connection, table: str | None, source: str) -> str:
    """The statement that reads a table whole, in the order of its primary key."""
    from sqlalchemy import inspect

    inspector = inspect(connection)
    known = [*inspector.get_table_names(), *inspector.get_view_names()]
    if table is None:
        raise DataSourceError(f"{source}: neither a table nor a query is given; its tables are {sorted(known)}")
    schema, name = None, table
    if table not in known and "." in table:
        schema, name = table.split(".", 1)
        known = [
            f"{schema}.{other}" for other in (*inspector.get_table_names(schema), *inspector.get_view_names(schema))
        ]
    if table not in known:
        raise DataSourceError(f"{source}: no table {table!r}{suggestion(table, sorted(known))}")
    quote = connection.dialect.identifier_preparer.quote_identifier
    key = inspector.get_pk_constraint(name, schema)["constrained_columns"]
    order = f" ORDER BY {', '.join(map(quote, key))}" if key else ""
    whole = f"{quote(schema)}.{quote(name)}" if schema is not None else quote(name)
    return f"SELECT * FROM {whole}{order}"  # noqa: S608 - names are of this database and quoted


def _parsed(url: str) -> URL:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # the cause quotes the URL, which may hold a password
        raise ConfigurationError("the URL cannot be read, wanted driver://user:password@host:port/database") from None
    return parsed.set(drivername=_DRIVERS.get(parsed.drivername, parsed.drivername))


def literal_secrets(url: str) -> list[str]:
    """Which parts of a URL hold a secret as it is, rather than the name of an environment variable, `${NAME}`.

    Args:
        url: as `SQLSource` takes it.

    Returns:
        "password", and the names of query arguments.

    Raises:
        ConfigurationError: the URL cannot be read.
    """
    return [name for name, secret in _secrets(_parsed(url)).items() if not _VARIABLE.fullmatch(secret)]


def resolved_url(url: str) -> URL:
    """A database's URL with its driver, and with the values of the environment variables that it names as `${NAME}`.

    Raises:
        ConfigurationError: it cannot be read, or a variable is not set.
    """
    return _resolved(_parsed(url))


def _resolved(url: URL) -> URL:
    """The URL with the values of the environment variables that it names.

    Raises:
        ConfigurationError: one of them is not set.
    """

    def filled(text: str) -> str:
        return _VARIABLE.sub(lambda found: _variable(found[1], url), text)

    return url.set(
        username=filled(url.username or "") or None,
        password=filled(str(url.password or "")) or None,
        host=filled(url.host or "") or None,
        database=filled(url.database or "") or None,
        query={
            name: filled(value) if isinstance(value, str) else tuple(filled(text) for text in value)
            for name, value in url.query.items()
        },
    )


def _variable(name: str, url: URL) -> str:
    value = os.environ.get(name)
    if value is None:
        raise ConfigurationError(f"{_masked(url)}: the environment variable {name} is not set; set it and start again")
    return value


def _secrets(url: URL) -> dict[str, str]:
    """Name of a part -> its secret."""
    hidden = {name: _one(value) for name, value in url.query.items() if _is_secret(name)}
    return {name: text for name, text in {"password": str(url.password or ""), **hidden}.items() if text}


def _one(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else " ".join(value)


def _is_secret(name: str) -> bool:
    return any(word in name.lower() for word in _SECRET_WORDS)


def _masked(url: URL) -> str:
    names = [name for name in url.query if _is_secret(name)]
    return url.update_query_dict(dict.fromkeys(names, "***")).render_as_string(hide_password=True)


def _without_secrets(text: str, url: URL) -> str:
    for secret in _secrets(url).values():
        text = text.replace(secret, "***")
    return text.strip()
