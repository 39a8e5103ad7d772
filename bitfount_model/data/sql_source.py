"""A database -> one pandas table, or pages of it, in a fixed order of rows and without a way to write."""

from __future__ import annotations

from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bitfount_model.data.base_source import CELL_BYTES, BaseSource, refuse_repeated, with_plain_names
from bitfount_model.data.database_url import masked_url, parsed_url, resolved_url, without_secrets
from bitfount_model.data.sql_pages import find_table, pages_of, primary_key, relation_of
from bitfount_model.errors import ConfigurationError, DataSourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL, Connection


class SQLSource(BaseSource):
    """A table or a query of a database that SQLAlchemy can open: PostgreSQL through psycopg 3, SQLite, and others.

    Everything runs in one transaction that is rolled back, and that PostgreSQL and SQLite know to be read-only. Still,
    the boundary of what a query may see or do is the database role in the URL: give one that can only select.

    Rows come sorted by `key`; without one, a table's rows come in the order of its primary key. A query without a key
    comes in the order it asks for, so it needs ORDER BY where the same split is wanted every time.

    In chunks, each page is a statement of its own: the rows whose key is above the last one's, in the database's order of the
    key, which for text may differ from that of `read`. So there must be a key, or a table with a primary key of one column.

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
        self._url = parsed_url(url)
        self.query = query
        self.table = table

    def describe(self) -> dict[str, str]:
        """Kind, location with passwords masked, and what is read."""
        what = {"query": self.query, "table": self.table}
        return {"kind": "sql", "url": masked_url(self._url)} | {
            name: text for name, text in what.items() if text is not None
        }

    def held_bytes(self, table: str | None = None, query: str | None = None) -> int:
        """8 bytes a cell; 0 where no key orders the rows."""
        table, query = self._asked(table, query)
        with _reading(resolved_url(self._url)) as connection:
            if self.key is None and (query is not None or not self._has_pages(connection, table)):
                return 0
            relation = relation_of(connection, table, query, repr(self))
            return CELL_BYTES * relation.count(connection) * len(relation.columns(connection))

    def _has_pages(self, connection: Connection, table: str | None) -> bool:
        return len(primary_key(connection, *find_table(connection, table, repr(self)))) == 1

    def _load(self, table: str | None, query: str | None) -> pd.DataFrame:
        table, query = self._asked(table, query)
        with _reading(resolved_url(self._url)) as connection:
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

    def _asked(self, table: str | None, query: str | None) -> tuple[str | None, str | None]:
        if table is not None and query is not None:
            raise DataSourceError(f"{self!r}: query and table are both asked for, wanted one of them")
        return (self.table, self.query) if table is None and query is None else (table, query)

    def _chunks(self, rows: int, start: int, table: str | None, query: str | None) -> Iterator[pd.DataFrame]:
        with _reading(resolved_url(self._url)) as connection:
            pages = pages_of(connection, *self._asked(table, query), self.key, repr(self))
        position, last = start, None
        while True:
            with _reading(resolved_url(self._url)) as connection:
                names, found = pages.read(connection, rows, last, start)
            if found or position == 0:
                table_of_page = pd.DataFrame.from_records(found, columns=names, coerce_float=True)
                frame = with_plain_names(table_of_page, repr(self))
                if self.key is not None:
                    frame = frame.set_index(self.key)
                else:
                    frame.index = pd.RangeIndex(position, position + len(frame))
                yield frame
            if len(found) < rows:
                return
            position, last = position + len(found), found[-1][names.index(pages.key)]

    def _count(self, table: str | None, query: str | None) -> int:
        with _reading(resolved_url(self._url)) as connection:
            return relation_of(connection, *self._asked(table, query), repr(self)).count(connection)


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
                f"{masked_url(url)}: the file {path} does not exist; check the path (now in {Path.cwd()})"
            )
    try:
        engine = create_engine(url, poolclass=pool.NullPool, hide_parameters=True)
    except (SQLAlchemyError, ImportError) as error:
        raise DataSourceError(
            f"{masked_url(url)}: no driver for this database: {error}; install it (for PostgreSQL: "
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
            f"{masked_url(url)}: the database says: {without_secrets(str(error.orig), url)}; check the URL, the query "
            "and what its role may read"
        ) from error
    except SQLAlchemyError as error:
        raise DataSourceError(
            f"{masked_url(url)}: {without_secrets(str(error), url)}; check the URL and the query"
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
    schema, name = find_table(connection, table, source)
    quote = connection.dialect.identifier_preparer.quote_identifier
    key = primary_key(connection, schema, name)
    order = f" ORDER BY {', '.join(map(quote, key))}" if key else ""
    whole = f"{quote(schema)}.{quote(name)}" if schema is not None else quote(name)
    return f"SELECT * FROM {whole}{order}"  # noqa: S608 - names are of this database and quoted
