"""A table or a query of a database -> pages of rows by its key, each a statement of its own that needs no row before it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitfount_model.data.base_source import refuse_bad_keys, refuse_repeated, require_key
from bitfount_model.data.names import suggestion
from bitfount_model.errors import DataSourceError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Executable, FromClause, Select, TextClause

_SHOWN = 5


@dataclass(frozen=True)
class Relation:
    """What rows are read from, as the FROM of a SELECT.

    Attributes:
        clause: a table, or a query in brackets.
        source: where it is, for messages.
    """

    clause: FromClause | TextClause
    source: str

    def count(self, connection: Connection) -> int:
        """How many rows there are."""
        from sqlalchemy import func, select

        ((rows,),) = _fetched(connection, select(func.count()).select_from(self.clause), self.source)[1]
        return int(rows)

    def columns(self, connection: Connection) -> list[str]:
        """The names of its columns."""
        from sqlalchemy import literal_column, select

        return _fetched(connection, select(literal_column("*")).select_from(self.clause).limit(0), self.source)[0]


@dataclass(frozen=True)
class Pages:
    """Rows in the order of a unique key.

    Attributes:
        relation: what is read.
        key: name of the column.
    """

    relation: Relation
    key: str

    def read(self, connection: Connection, rows: int, last: Any, start: int) -> tuple[list[str], list[tuple[Any, ...]]]:
        """One page.

        Args:
            connection: to read through.
            rows: of the page; the last one may have fewer.
            last: key of the row before; None for the first page.
            start: how many rows the first page leaves out.

        Returns:
            Names of the columns, and the rows.
        """
        from sqlalchemy import bindparam, literal_column, select
        from sqlalchemy.types import NullType

        key = _column(self.key)
        page: Select[Any] = select(literal_column("*")).select_from(self.relation.clause).order_by(key).limit(rows)
        # Without a type the database takes the value for what the column is.
        page = page.offset(start) if last is None else page.where(key > bindparam("last", last, type_=NullType()))
        return _fetched(connection, page, self.relation.source)

    def refuse_bad_keys(self, connection: Connection) -> None:
        """Lets the database look for keys that are missing or repeated.

        Raises:
            DataSourceError: there are any.
        """
        from sqlalchemy import func, select

        key, clause, source = _column(self.key), self.relation.clause, self.relation.source
        ((missing,),) = _fetched(connection, select(func.count()).select_from(clause).where(key.is_(None)), source)[1]
        several = select(key).select_from(clause).group_by(key).having(func.count() > 1).limit(_SHOWN)
        refuse_bad_keys(
            self.key,
            int(missing),
            [] if missing else [row[0] for row in _fetched(connection, several, source)[1]],
            source,
        )


def pages_of(connection: Connection, table: str | None, query: str | None, key: str | None, source: str) -> Pages:
    """Pages of a table or a query by its key.

    Args:
        connection: to look through.
        table: name of the table, or
        query: the SELECT.
        key: name of a column; None takes the table's primary key.
        source: where it is, for messages.

    Raises:
        DataSourceError: there is no key that could order the rows, or it is missing or repeated in some.
    """
    relation = relation_of(connection, table, query, source)
    if key is not None:
        require_key(key, relation.columns(connection), source)
        pages = Pages(relation, key)
        pages.refuse_bad_keys(connection)
        return pages
    found = [] if query is not None else primary_key(connection, *find_table(connection, table, source))
    if len(found) != 1:
        raise DataSourceError(
            f"{source}: rows can be read in chunks only by a unique column that orders them, found "
            f"{f'the primary key {found}' if found else 'no primary key'}; name such a column as the source's key"
        )
    return Pages(relation, found[0])


def relation_of(connection: Connection, table: str | None, query: str | None, source: str) -> Relation:
    """What rows are read from.

    Args:
        connection: to look through.
        table: name of the table, or
        query: the SELECT.
        source: where it is, for messages.

    Raises:
        DataSourceError: there is no such table, or the query cannot stand in brackets.
    """
    from sqlalchemy import table as table_clause
    from sqlalchemy import text
    from sqlalchemy.sql import quoted_name

    if query is None:
        schema, name = find_table(connection, table, source)
        return Relation(
            table_clause(quoted_name(name, quote=True), schema=schema and quoted_name(schema, quote=True)), source
        )
    # The line break ends a comment; a colon stands for itself.
    whole = query.strip().rstrip(";").replace(":", "\\:")
    return Relation(text(f"({whole}\n) AS bitfount_rows"), source)


def find_table(connection: Connection, table: str | None, source: str) -> tuple[str | None, str]:
    """The schema, where it is named, and the name of a table or view.

    Raises:
        DataSourceError: there is none of that name.
    """
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
    return schema, name


def primary_key(connection: Connection, schema: str | None, name: str) -> list[str]:
    """The columns of a table's primary key; none where it has none."""
    from sqlalchemy import inspect

    return list(inspect(connection).get_pk_constraint(name, schema)["constrained_columns"])


def _column(name: str) -> Any:
    from sqlalchemy import column
    from sqlalchemy.sql import quoted_name

    return column(quoted_name(name, quote=True))


def _fetched(connection: Connection, statement: Executable, source: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Names of the columns, and all rows, of a statement."""
    # With parameters, percent signs are doubled; without, they must be read so too.
    with closing(connection.execute(statement, execution_options={"no_parameters": False})) as result:
        names = list(result.keys())
        refuse_repeated(names, source)
        return names, [tuple(row) for row in result]
