"""What a prediction is of, fixed by its first start; and how far it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import pandas as pd

from bitfount_model.errors import DataError, IntegrityError

INTEGER, NUMBER, TEXT = "integer", "number", "text"
KEY, PREDICTION_ID = "key", "prediction_id"


@dataclass(frozen=True)
class Plan:
    """What a prediction is of.

    Attributes:
        prediction_id: names it.
        model: name of the registered model.
        version: its number.
        run_id: of the MLflow run that trained it.
        source: where the rows are: see `BaseSource.describe`, with the key's column.
        state: of the source: see `BaseSource.state`.
        rows: how many there are.
        columns: of the predictions, each with its kind: integer, number or text; none where there are no rows.
    """

    prediction_id: str
    model: str
    version: int
    run_id: str
    source: Mapping[str, Any]
    state: Mapping[str, Any]
    rows: int
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Progress:
    """How far a prediction is.

    Attributes:
        plan: what it is of.
        rows: how many rows of the source are predicted and kept, from the first one on.
        last_key: of the last of them; None where there are none.
        finished: whether all are, and the source was the same until the end.
    """

    plan: Plan
    rows: int
    last_key: str | None
    finished: bool


class Destination(Protocol):
    """Where predictions go. A batch is kept whole or not at all, and known by its first row."""

    def describe(self) -> str:
        """Where it is, for people."""

    def progress(self, prediction_id: str) -> Progress | None:
        """How far a prediction is; None where it has not begun."""

    def begin(self, plan: Plan) -> None:
        """Makes a place for a prediction.

        Raises:
            ConfigurationError: something else is in the place.
            StorageError: it cannot be written.
        """

    def write(self, plan: Plan, start: int, table: pd.DataFrame) -> None:
        """Keeps a batch.

        Args:
            plan: what it is of.
            start: place of its first row among the source's rows.
            table: one row a row, with the plan's columns.

        Raises:
            ConfigurationError: another process has kept rows from there on.
            StorageError: it cannot be written.
        """

    def finish(self, plan: Plan) -> None:
        """Marks a prediction as finished."""


def kinds_of(table: pd.DataFrame) -> dict[str, str]:
    """Column -> kind."""
    types = pd.api.types
    return {
        str(name): INTEGER if types.is_integer_dtype(dtype) else NUMBER if types.is_float_dtype(dtype) else TEXT
        for name, dtype in table.dtypes.items()
    }


def require_kinds(plan: Plan, table: pd.DataFrame, start: int) -> None:
    """Refuse a batch whose columns are others than those of the first one.

    Raises:
        DataError: with the columns that differ.
    """
    found = kinds_of(table)
    names = plan.columns.keys() | found.keys()
    wrong = [
        f"{name}: {found.get(name, 'none')}, before {plan.columns.get(name, 'none')}"
        for name in sorted(names)
        if found.get(name) != plan.columns.get(name)
    ]
    if wrong:
        raise DataError(
            f"the predictions from row {start} on have other columns than those before ({'; '.join(wrong)}); give the source"
            " a key whose values are all whole numbers or all text"
        )


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The plan as `plan_of` takes it."""
    return asdict(plan)


def plan_of(text: str | bytes, place: str) -> Plan:
    """A plan that was kept as JSON.

    Raises:
        IntegrityError: it is none.
    """
    try:
        return Plan(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise IntegrityError(f"{place} is not what a prediction wrote; use another --prediction-id") from error
