"""A pod's session: what it tells of its rows, what it keeps to itself, and that nothing it went through shows in its answers."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from bitfount_model import BitfountSchema, DataFrameSource, DataStructure, PercentageSplitter, SQLSource, codec
from bitfount_model.data import Preparation, SplitterDefinedInData, digest
from bitfount_model.errors import ConfigurationError, DataError, TooFewRowsError
from bitfount_model.federation import merge_statistics
from bitfount_model.federation.job import EVALUATE, PREDICT, FederatedJob
from bitfount_model.federation.pod import Pod, Rows
from bitfount_model.federation.pod_session import PodSession
from bitfount_model.types import Parameters
from tests.bitfount_model.federation.test_rounds import OPEN, SOURCE, job

FRAGILE = b"import os\n" + SOURCE.replace(b"norm=False, **kwargs", b"norm=False, gate='', **kwargs").replace(
    b"        self.norm = norm\n", b"        self.norm, self.gate = norm, gate\n"
).replace(
    b"        x, y = batch\n",
    b"        x, y = batch\n"
    b"        if batch_idx == 1 and os.path.exists(self.gate):\n"
    b"            raise ValueError('half a step')\n",
    1,
)
"""The same model, which raises in its second step while the file `gate` is there."""


def rows(count: int = 40) -> pd.DataFrame:
    numbers = np.random.default_rng(5)
    return pd.DataFrame(
        {
            "a": numbers.normal(size=count),
            "b": numbers.normal(size=count),
            "ward": [f"ward-{n % 3}" for n in range(count)],
            "name": [f"patient-{n}" for n in range(count)],
            "weight": numbers.random(count),
            "target": np.arange(count) % 2,
        }
    )


TABLE = rows()
ASKED = {
    "datastructure": {"target": "target", "selected_cols": ["a", "b"]},
    "minimum_statistics_rows": 2,
    "batch_size": 8,
}


def session(
    name: str = "pod-0",
    table: pd.DataFrame = TABLE,
    source: bytes = SOURCE,
    pod: dict[str, Any] | None = None,
    **asked: Any,
) -> PodSession:
    """A session that has been opened; keyword arguments change the job."""
    sha256 = hashlib.sha256(source).hexdigest()
    made = job(**{"pods": ["pod-0", "pod-1"], "model_sha256": sha256, **ASKED, **asked})
    return PodSession(Pod(name, DataFrameSource(table), OPEN, **(pod or {})), made, source)


def ready(opened: PodSession) -> tuple[PodSession, Parameters]:
    """The same, prepared, and some parameters."""
    schema = opened.schema()
    structure = DataStructure(**opened.job.datastructure)
    opened.prepare(schema, merge_statistics({opened.pod.name: opened.statistics(schema)}, schema, structure))
    return opened, opened.parameters


# -- what rows there are -----------------------------------------------------------------------------------------------------


def test_rows_are_counted_by_what_they_are_for() -> None:
    found = session().rows()
    assert (found.train, found.validation, found.test) == (32, 4, 4)
    assert len(found.digest) == 64


def test_the_digest_is_the_same_for_the_same_rows_of_the_same_pod() -> None:
    wanted = session().rows()
    assert session(table=TABLE.copy()).rows() == wanted
    assert session(seed=99).rows() == wanted, "how rows are split is another matter"
    assert session(job_id="k").rows() == wanted, "a retraining sees that nothing has changed"


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"name": "pod-1"}, "two pods with the same rows cannot be told by their digests"),
        ({"table": TABLE.assign(a=TABLE["a"].where(TABLE.index != 7, 0.0))}, "a value"),
        ({"table": TABLE.iloc[::-1].reset_index(drop=True)}, "the order"),
        ({"table": TABLE.iloc[:-1]}, "a row"),
        ({"table": TABLE.assign(name="x")}, "a column that the model does not see"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_digest_changes_with(other: dict[str, Any], what: str) -> None:
    assert session(**other).rows().digest != session().rows().digest, what


def test_the_digest_is_no_digest_of_the_rows_alone() -> None:
    assert session().rows().digest != digest(TABLE)


def test_too_few_rows_are_refused_before_they_are_counted_for_others() -> None:
    narrow = PodSession(Pod("pod-0", DataFrameSource(TABLE), replace(OPEN, minimum_rows=33)), session().job, SOURCE)
    for ask in (narrow.rows, lambda: narrow.statistics(session().schema())):
        with pytest.raises(TooFewRowsError, match="pod 'pod-0' has 32 training rows, its policy wants at least 33"):
            ask()


# -- what columns there are --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("datastructure", "seen"),
    [
        ({"selected_cols": ["a", "b"]}, {"a", "b", "target"}),
        ({"selected_cols": ["ward"]}, {"ward", "target"}),
        ({"ignore_cols": ["name", "ward"]}, {"a", "b", "weight", "target"}),
        ({"selected_cols": ["a"], "loss_weights_col": "weight"}, {"a", "weight", "target"}),
    ],
)
def test_the_modeller_is_told_only_of_columns_that_the_model_sees(
    datastructure: dict[str, Any], seen: set[str]
) -> None:
    schema = session(datastructure={"target": "target", **datastructure}).schema()
    assert {column.name for column in schema.columns} == seen
    text = schema.dumps()
    assert "patient-" not in text
    assert ("ward-1" in text) is ("ward" in seen)


def test_a_classifiers_target_is_categorical_unless_the_job_says_otherwise() -> None:
    assert session().schema().column("target").categories == (0, 1)
    typed = session(types={"categorical": ["a"]}).schema()
    assert len(typed.column("a").categories) == 40 and typed.column("target").categories == (0, 1)


def test_a_job_with_its_own_schema_is_told_nothing() -> None:
    own = BitfountSchema("own")
    own.generate_full_schema(TABLE[["a", "target"]], force_stypes={"categorical": ["target"]})

    class Unread(DataFrameSource):
        def read(self, table: str | None = None, query: str | None = None) -> pd.DataFrame:
            raise AssertionError("a row was read")

    asked = session(schema=own.dumps()).job
    assert PodSession(Pod("pod-0", Unread(TABLE), OPEN), asked, SOURCE).schema() == own


def test_who_may_see_the_rows_sees_them_with_their_split() -> None:
    splitter = PercentageSplitter(validation_percentage=25, test_percentage=25)
    frame, split = session(pod={"splitter": splitter}).table()
    pd.testing.assert_frame_equal(frame, TABLE, check_dtype=False, check_column_type=False)
    parts = [split.train, split.validation, split.test]
    assert [len(part) for part in parts] == [20, 10, 10]
    assert sorted(np.concatenate(parts)) == list(range(40))


# -- training ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [{"epochs": 3}, {"epochs": None, "steps": 9, "between_updates": 3}])
def test_after_a_fit_that_failed_the_next_one_gives_the_bits_of_one_that_never_did(
    tmp_path: Path, length: dict[str, Any]
) -> None:
    gate = tmp_path / "gate"
    asked = {"source": FRAGILE, "hyperparameters": {"gate": str(gate), "norm": True}, **length}
    smooth, parameters = ready(session(**asked))
    wanted = [smooth.fit(number, parameters) for number in (1, 2)]
    rough, _ = ready(session(**asked))

    half_trained = rough._ready()
    gate.touch()
    with pytest.raises(ValueError, match="half a step"):
        rough.fit(1, parameters)
    gate.unlink()
    assert rough._ready() is not half_trained

    for update in wanted:
        found = rough.fit(update.round_number, parameters)
        assert codec.digest(found.delta) == codec.digest(update.delta)
        assert (found.metrics, found.train_loss, found.weight) == (update.metrics, update.train_loss, update.weight)


def test_rounds_may_come_in_any_order_and_twice() -> None:
    opened, parameters = ready(session(epochs=3))
    digests = {number: codec.digest(opened.fit(number, parameters).delta) for number in (3, 1, 2)}
    assert {number: codec.digest(opened.fit(number, parameters).delta) for number in (1, 1, 2, 3)} == digests
    assert len(set(digests.values())) == 3, "each round has an order of its own"


def test_parameters_are_left_as_they_are_and_named_by_their_digest() -> None:
    opened, parameters = ready(session())
    before = {name: value.clone() for name, value in parameters.items()}
    update = opened.fit(1, parameters)
    assert update.base_digest == codec.digest(before)
    assert all(torch.equal(parameters[name], before[name]) for name in before)
    assert opened.fit(1, parameters, base_digest="known").base_digest == "known"
    assert update.seconds > 0 and update.weight == 32


def test_a_long_job_keeps_no_list_of_its_rounds() -> None:
    opened, parameters = ready(session(epochs=5))
    kept = [opened.fit(number, parameters) and len(opened._ready().val_stats) for number in range(1, 6)]
    assert kept == [1] * 5


def test_evaluation_without_test_rows_is_empty() -> None:
    splitter = PercentageSplitter(validation_percentage=0, test_percentage=0)
    opened, parameters = ready(session(pod={"splitter": splitter}))
    assert opened.evaluate(parameters).sums == {}


def test_metrics_that_there_are_not_are_refused_by_name() -> None:
    opened, parameters = ready(session(metrics=["AUC", "Height"]))
    with pytest.raises(ConfigurationError, match="no Height for this problem; there are .*AUC"):
        opened.fit(1, parameters)


# -- applying ----------------------------------------------------------------------------------------------------------------


def applied(operation: str, table: pd.DataFrame, **pod: Any) -> tuple[PodSession, FederatedJob]:
    """A session that only applies given weights to rows, with columns and encoding of the job's own."""
    own = BitfountSchema("own")
    own.generate_full_schema(TABLE[["a", "b", "target"]], force_stypes={"categorical": ["target"]})
    preparation = Preparation({"a": (0.0, 1.0), "b": (0.0, 1.0)}, {}, "codes", True)
    opened = session(table=table, pod=pod, operation=operation, schema=own.dumps(), preparation=preparation.to_json())
    opened.prepare(opened.schema(), preparation)
    return opened, opened.job


def test_rows_that_are_only_predicted_need_no_target_and_no_split() -> None:
    unlabelled = TABLE.drop(columns="target")
    splitter = SplitterDefinedInData("no such column")
    opened, _ = applied(PREDICT, unlabelled, splitter=splitter)
    counts = opened.rows()
    assert (counts.train, counts.validation, counts.test) == (0, 0, 0)
    parameters = opened.parameters
    predicted = opened.predict(parameters).preds
    assert predicted.shape == (40, 2)
    labelled, _ = applied(PREDICT, TABLE)
    np.testing.assert_array_equal(labelled.predict(parameters).preds, predicted)


def test_rows_that_are_evaluated_need_their_target() -> None:
    with pytest.raises(DataError):
        applied(EVALUATE, TABLE.drop(columns="target"))
    opened, asked = applied(EVALUATE, TABLE)
    assert asked.rounds == 0
    assert set(opened.evaluate(opened.parameters).mean()) >= {"AUC"}


def test_a_policy_counts_all_rows_where_none_train() -> None:
    opened, asked = applied(PREDICT, TABLE)
    for minimum, refused in ((40, False), (41, True)):
        pod = Pod("pod-0", opened.pod.source, replace(OPEN, minimum_rows=minimum))
        if refused:
            with pytest.raises(TooFewRowsError, match="has 40 rows, its policy wants at least 41"):
                PodSession(pod, asked, SOURCE).rows()
        else:
            assert isinstance(PodSession(pod, asked, SOURCE).rows(), Rows)


# -- databases ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path: Path) -> str:
    with closing(sqlite3.connect(tmp_path / "pod.db")) as connection:
        for name in ("visits", "births", "salaries"):
            TABLE.to_sql(name, connection, index=False)
    return f"sqlite:///{tmp_path / 'pod.db'}"


@pytest.mark.parametrize(
    ("asked", "is_read"),
    [(None, True), ("visits", True), ("births", True), ("salaries", False), ({"pod-0": "salaries"}, False)],
    ids=str,
)
def test_of_a_database_only_the_tables_that_are_named_are_read(database: str, asked: Any, is_read: bool) -> None:
    source = SQLSource(database, table="visits")
    pod = Pod("pod-0", source, replace(OPEN, tables=("births",)))
    structure = {**ASKED["datastructure"], **({} if asked is None else {"table": asked})}
    wanted = session(datastructure=structure).job
    if is_read:
        assert PodSession(pod, wanted, SOURCE).rows().train == 32
    else:
        with pytest.raises(
            ConfigurationError, match="it asks for the table 'salaries', and this pod reads only its own"
        ):
            PodSession(pod, wanted, SOURCE)
