"""Predictions as rows of a database's table; a batch and the note of how far they are go in one transaction."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import pandas as pd
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    MetaData,
    Table,
    Text,
    create_engine,
    inspect,
    select,
    update,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from bitfount_model.data.database_url import masked_url, parsed_url, resolved_url, without_secrets
from bitfount_model.errors import ConfigurationError, StorageError
from tasks.batch.plan import INTEGER, KEY, NUMBER, PREDICTION_ID, TEXT, Plan, Progress, plan_of, plan_to_json

if TYPE_CHECKING:
    from sqlalchemy import Connection

PROGRESS = "bitfount_predictions"
"""The table beside the predictions that says how far each prediction is."""
_TYPES: dict[str, Any] = {INTEGER: BigInteger, NUMBER: Double, TEXT: Text}


class PredictionTable:
    """A table of predictions, and beside it one that says how far they are.

    Args:
        url: of the database, as `SQLSource` takes it.
        table: name of the table, with its schema before a dot where it needs one; made if it is not there.

    Raises:
        ConfigurationError: the URL cannot be read.
    """

    def __init__(self, url: str, table: str) -> None:
        self._url = parsed_url(url)
        self.schema, _, self.table = table.rpartition(".")
        self._progress = Table(
            PROGRESS,
            MetaData(schema=self.schema or None),
            Column("predictions", Text, primary_key=True),
            Column(PREDICTION_ID, Text, primary_key=True),
            Column("plan", Text, nullable=False),
            Column("rows_done", BigInteger, nullable=False),
            Column("last_key", Text),
            Column("finished", Boolean, nullable=False),
        )

    def describe(self) -> str:
        """The table, and the database without its password."""
        name = f"{self.schema}.{self.table}" if self.schema else self.table
        return f"the table {name} of {masked_url(self._url)}"

    def progress(self, prediction_id: str) -> Progress | None:
        """Looks at the note."""
        with self._transaction() as connection:
            if not inspect(connection).has_table(PROGRESS, self.schema or None):
                return None
            row = connection.execute(select(self._progress).where(*self._own(prediction_id))).one_or_none()
        if row is None:
            return None
        return Progress(plan_of(row.plan, self.describe()), row.rows_done, row.last_key, row.finished)

    def begin(self, plan: Plan) -> None:
        """Makes the tables, and the note."""
        table = self._table_of(plan)
        with self._transaction() as connection:
            if plan.columns and inspect(connection).has_table(self.table, self.schema or None):
                self._require_columns(connection, plan)
            elif plan.columns:
                table.create(connection)
            self._progress.create(connection, checkfirst=True)
            connection.execute(
                self._progress.insert().values(
                    predictions=self.table,
                    prediction_id=plan.prediction_id,
                    plan=json.dumps(plan_to_json(plan)),
                    rows_done=0,
                    finished=False,
                )
            )

    def write(self, plan: Plan, start: int, table: pd.DataFrame) -> None:
        """Inserts rows, and moves the note from their first row to the row after the last one."""
        note = update(self._progress).where(*self._own(plan.prediction_id), self._progress.c.rows_done == start)
        moved = note.values(rows_done=start + len(table), last_key=str(table[KEY].iloc[-1]))
        with self._transaction() as connection:
            if connection.execute(moved).rowcount != 1:
                raise ConfigurationError(
                    f"the prediction {plan.prediction_id!r} is written by another process too; wait for it to end"
                )
            connection.execute(self._table_of(plan).insert(), cast(list[dict[str, Any]], table.to_dict("records")))

    def finish(self, plan: Plan) -> None:
        """Notes it."""
        with self._transaction() as connection:
            connection.execute(update(self._progress).where(*self._own(plan.prediction_id)).values(finished=True))

    def _own(self, prediction_id: str) -> tuple[Any, ...]:
        columns = self._progress.c
        return columns.predictions == self.table, columns.prediction_id == prediction_id

    def _table_of(self, plan: Plan) -> Table:
        keys = (PREDICTION_ID, KEY)
        columns = (Column(name, _TYPES[kind], primary_key=name in keys) for name, kind in plan.columns.items())
        return Table(self.table, MetaData(schema=self.schema or None), *columns)

    def _require_columns(self, connection: Connection, plan: Plan) -> None:
        """Refuse a table that was made for something else."""
        there = {column["name"] for column in inspect(connection).get_columns(self.table, self.schema or None)}
        lacking, more = plan.columns.keys() - there, there - plan.columns.keys()
        if lacking or more:
            raise ConfigurationError(
                f"{self.describe()} is there with other columns than these predictions have: it lacks {sorted(lacking)}, and has"
                f" {sorted(more)} beside them; name another table"
            )

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """A connection whose statements take effect together, or not at all.

        Raises:
            StorageError: the database refuses; the message holds no password.
        """
        url = resolved_url(self._url)
        try:
            engine = create_engine(url, poolclass=NullPool, hide_parameters=True)
            with engine.begin() as connection:
                yield connection
        except (SQLAlchemyError, ImportError) as error:
            reason = without_secrets(str(getattr(error, "orig", None) or error), url)
            raise StorageError(
                f"{self.describe()} cannot be written: {reason}; check the URL, and what its role may do"
            ) from error
