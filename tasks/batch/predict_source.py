"""From a source of any size to predictions of every row, batch by batch, each row once whenever it is killed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from bitfount_model.data import BaseSource
from bitfount_model.errors import BitfountError, ConfigurationError, DataError, TrainingError
from bitfount_model.types import Problem
from tasks.batch.plan import (
    INTEGER,
    KEY,
    Destination,
    Plan,
    Progress,
    kinds_of,
    require_kinds,
)
from tasks.progress import tell
from tasks.registered import OpenModel, fetch, open_model, parsed


@dataclass(frozen=True)
class Prediction:
    """A registered model applied to a source.

    Attributes:
        prediction_id: names it.
        model: `name`, `name@alias` or `name/version`.
        source: the rows.
        destination: where the predictions go.
        batch_rows: rows held at a time.
    """

    prediction_id: str
    model: str
    source: BaseSource
    destination: Destination
    batch_rows: int

    def run(self, tracking_uri: str, models: Path) -> dict[str, Any]:
        """Predicts the rows that are not predicted yet.

        A prediction keeps the version of the model with which it began.

        Args:
            tracking_uri: of the MLflow that holds the registry.
            models: folder that models are kept in on this machine.

        Returns:
            `prediction_id`, `model`, `version`, `run_id`, `rows`, `written` (by this call), `out`.

        Raises:
            ConfigurationError: the prediction of this name is another one.
            DataError: rows that the model cannot take, or that have changed since the prediction began.
            ModelError: there is no such model, or it fails.
            StorageError: predictions cannot be written, or MLflow cannot be reached.
        """
        rows = self.source.count()
        began = self.destination.progress(self.prediction_id)
        if began is not None:
            self.require_the_same(began, rows)
            if began.finished:
                return self.summary(began.plan, written=0)
        wanted = self.model if began is None else f"{began.plan.model}/{began.plan.version}"
        registered = fetch(wanted, tracking_uri, models)
        if began is None:
            found = registered.name, registered.version, registered.run_id
            plan = Plan(self.prediction_id, *found, described(self.source), self.source.state(), rows, {})
            done = 0
        else:
            plan, done = began.plan, began.rows
        plan = self.write_rest(open_model(registered.folder), plan, done, has_begun=began is not None)
        if self.source.state() != plan.state:
            raise DataError(f"{changed(self.source, plan)} while they were predicted")
        self.destination.finish(plan)
        return self.summary(plan, written=rows - done)

    def write_rest(self, opened: OpenModel, plan: Plan, done: int, *, has_begun: bool) -> Plan:
        """Predicts and keeps the rows from a place on.

        Returns:
            The plan, with its columns, which the first batch shows.
        """
        if not plan.rows and not has_begun:
            self.destination.begin(plan)
        for chunk in self.source.read_chunks(self.batch_rows, done) if done < plan.rows else ():
            table = predictions_of(opened, chunk.iloc[: plan.rows - done], plan)  # a table may grow meanwhile
            if not has_begun:
                plan, has_begun = replace(plan, columns=kinds_of(table)), True
                self.destination.begin(plan)
            require_kinds(plan, table, done)
            self.destination.write(plan, done, table)
            done += len(table)
            tell("rows", {"done": done, "rows": plan.rows})
            if done == plan.rows:
                break
        if done < plan.rows:
            raise DataError(f"{changed(self.source, plan)}: there were {plan.rows} of them, now there are {done}")
        return plan

    def require_the_same(self, began: Progress, rows: int) -> None:
        """Refuse to go on with other rows or another model.

        Raises:
            ConfigurationError: another model or source.
            DataError: the source's rows have changed.
        """
        plan = began.plan
        name, version = parsed(self.model)
        if name != plan.model or (isinstance(version, int) and version != plan.version):
            raise ConfigurationError(
                f"the prediction {plan.prediction_id!r} is of {plan.model} version {plan.version}, not of {self.model}; use another"
                " --prediction-id"
            )
        if described(self.source) != plan.source:
            raise ConfigurationError(
                f"the prediction {plan.prediction_id!r} is of the rows of {plan.source}, not of {described(self.source)}; use"
                " another --prediction-id"
            )
        if rows != plan.rows or self.source.state() != plan.state or not self.last_row_is(began):
            raise DataError(
                f"{changed(self.source, plan)} (there were {plan.rows}, now there are {rows}); use another --prediction-id to"
                " predict them as they are now"
            )

    def last_row_is(self, began: Progress) -> bool:
        """Whether the last row that was predicted has the same key still, where the source's state does not say so."""
        if began.plan.state or not began.rows:
            return True
        chunk = next(self.source.read_chunks(1, began.rows - 1), None)
        return chunk is not None and str(chunk.index[0]) == began.last_key

    def summary(self, plan: Plan, written: int) -> dict[str, Any]:
        """What became of it."""
        return {
            "prediction_id": plan.prediction_id,
            "model": plan.model,
            "version": plan.version,
            "run_id": plan.run_id,
            "rows": plan.rows,
            "written": written,
            "out": self.destination.describe(),
        }


def described(source: BaseSource) -> dict[str, Any]:
    """What a source is, with the column of its keys; plain JSON without secrets."""
    return {**source.describe(), "key": source.key}


def changed(source: BaseSource, plan: Plan) -> str:
    """The beginning of what is said of rows that are not the same any more."""
    return f"the prediction {plan.prediction_id!r} began with other rows: those of {source!r} have changed"


def predictions_of(opened: OpenModel, frame: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    """The predictions of a batch, with what they came from in every row.

    Args:
        opened: the model.
        frame: raw columns; the index holds the keys.
        plan: what they are of.

    Returns:
        As `tasks.results.prediction_table`, keys as whole numbers or as text; then the model's version, the MLflow run that
        trained it, and the prediction's id.

    Raises:
        DataError: rows that the model cannot take.
        TrainingError: the model fails, or its scores do not say where they are to be cut.
    """
    try:
        table = opened.table(frame)
    except (BitfountError, MemoryError):
        raise
    except Exception as error:
        raise TrainingError(f"the model {plan.model} failed: {type(error).__name__}: {error}") from error
    require_probabilities(opened, table)
    if kinds_of(table)[KEY] != INTEGER:
        table[KEY] = table[KEY].map(str)
    return table.assign(model_version=plan.version, run_id=plan.run_id, prediction_id=plan.prediction_id)


def require_probabilities(opened: OpenModel, table: pd.DataFrame) -> None:
    """Refuse scores of one class or label outside [0, 1]: where they are cut must not depend on the batch that they are in.

    Raises:
        TrainingError: there are some.
    """
    scores = table.filter(regex="^score_")
    is_cut = opened.model.problem is Problem.MULTILABEL or len(scores.columns) == 1
    if is_cut and not ((scores >= 0) & (scores <= 1)).to_numpy().all():
        raise TrainingError(
            "the model's scores are not all between 0 and 1, so where they are cut would depend on the rows of a batch; let"
            " `test_step` return probabilities"
        )
