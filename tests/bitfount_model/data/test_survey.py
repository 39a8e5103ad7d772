"""A table in chunks has the schema that it has as a whole; and one digest, wherever it is cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitfount_model.data import BitfountSchema, survey
from bitfount_model.data.table_digest import RunningDigest
from bitfount_model.errors import ConfigurationError, DataError, SchemaMismatchError

ROWS = 240
FRAME = pd.DataFrame(
    {
        "number": np.arange(ROWS) * 0.5,
        "small": np.arange(ROWS, dtype=np.float32),
        "gaps": [None if row < 100 else float(row) for row in range(ROWS)],
        "whole": np.arange(ROWS) % 7,
        "flag": np.arange(ROWS) % 2 == 0,
        "unsure": [None if row % 5 == 0 else row % 2 == 0 for row in range(ROWS)],
        "mixed": [True if row < 120 else row % 3 for row in range(ROWS)],
        "word": ["ab"[row % 2] for row in range(ROWS)],
        "late": [None] * 120 + ["x"] * 120,
        "nothing": [None] * ROWS,
        "name": [f"name {row}" for row in range(ROWS)],
        "half": [f"name {row % 120}" for row in range(ROWS)],
        "more": [f"name {row % 121}" for row in range(ROWS)],
        "day": pd.date_range("2020-01-01", periods=ROWS),
        "kind": pd.Categorical(["u", "v", "w"] * (ROWS // 3)),
    }
)


def chunks(frame: pd.DataFrame, rows: int) -> list[pd.DataFrame]:
    return [frame.iloc[begin : begin + rows] for begin in range(0, len(frame), rows)]


def schema_of(frame: Any, forced: dict[str, list[str]] | None = None, rows: int | None = None) -> BitfountSchema:
    schema = BitfountSchema("test")
    if rows is None:
        schema.generate_full_schema(frame, forced)
    else:
        schema.generate_from_chunks(chunks(frame, rows), forced)
    return schema


@pytest.mark.parametrize("rows", [1, 7, 100, ROWS, 1000])
@pytest.mark.parametrize(
    "forced",
    [None, {"categorical": ["whole", "number", "gaps"]}, {"text": ["word"], "image": ["name"], "continuous": ["more"]}],
    ids=["inferred", "categorical", "others"],
)
def test_a_table_in_chunks_has_the_schema_of_the_whole(rows: int, forced: dict[str, list[str]] | None) -> None:
    assert schema_of(FRAME, forced, rows) == schema_of(FRAME, forced)


@given(
    values=st.lists(
        st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from(["a", "b", "1"])), min_size=1
    ),
    rows=st.integers(1, 8),
)
def test_columns_of_any_mixture_have_the_same_categories(values: list[Any], rows: int) -> None:
    frame = pd.DataFrame({"column": pd.Series(values, dtype=object)})
    found, wanted = (schema_of(frame, None, rows).column("column"), schema_of(frame).column("column"))
    assert found == wanted
    assert [type(value) for value in found.categories] == [type(value) for value in wanted.categories]


def test_pages_of_a_database_have_the_type_that_holds_all_of_them() -> None:
    pages = [
        pd.DataFrame({"n": [None, None], "m": [1, 2]}, dtype=object).astype({"m": "int64"}),
        pd.DataFrame({"n": [1, 2], "m": [1.5, np.nan]}),
        pd.DataFrame({"n": [0.5, np.nan], "m": [1, 3]}),
    ]
    schema = BitfountSchema()
    schema.generate_from_chunks(pages)
    assert [(column.name, column.semantic_type.value, column.dtype) for column in schema.columns] == [
        ("n", "continuous", "float64"),
        ("m", "continuous", "float64"),
    ]


def test_a_column_of_too_many_categories_is_refused_and_one_of_text_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "MOST_CATEGORIES", 50)
    assert schema_of(FRAME[["name", "word"]], rows=40) == schema_of(FRAME[["name", "word"]])
    with pytest.raises(
        DataError, match="column 'half' is categorical with more than 50 different values.*make it text"
    ):
        schema_of(FRAME[["half"]], rows=40)
    with pytest.raises(DataError, match="column 'number' is categorical with more than 50"):
        schema_of(FRAME[["number"]], {"categorical": ["number"]}, rows=40)


def test_wrong_types_and_infinite_categories_are_refused() -> None:
    with pytest.raises(SchemaMismatchError, match="'wrd'.*word"):
        schema_of(FRAME, {"categorical": ["wrd"]}, 50)
    with pytest.raises(ConfigurationError, match="semantic type"):
        schema_of(FRAME, {"numeric": ["whole"]}, 50)
    with pytest.raises(DataError, match="column 'n' holds infinity"):
        schema_of(pd.DataFrame({"n": [1.0, 2.0, np.inf]}), {"categorical": ["n"]}, 2)


def digest_of(frame: pd.DataFrame, rows: int) -> str:
    running = RunningDigest()
    for chunk in chunks(frame, rows):
        running.add(chunk)
    return running.hexdigest()


def test_a_digest_does_not_see_where_the_table_is_cut() -> None:
    assert len({digest_of(FRAME, rows) for rows in (1, 7, 100, ROWS)}) == 1


@pytest.mark.parametrize("column", list(FRAME.columns.drop("nothing")))
def test_a_digest_sees_every_cell_and_the_order(column: str) -> None:
    whole = digest_of(FRAME, 50)
    changed = FRAME.copy()
    changed.loc[239, column], changed.loc[238, column] = FRAME.loc[237, column], FRAME.loc[236, column]
    swapped = FRAME.iloc[[*range(ROWS - 2), ROWS - 1, ROWS - 2]].set_axis(FRAME.index)
    assert digest_of(swapped, 50) != whole
    assert (digest_of(changed, 50) != whole) == (not changed.equals(FRAME))


def test_a_digest_sees_names_keys_and_missing_values() -> None:
    frame = FRAME[["word", "number"]]
    others = [
        frame.rename(columns={"word": "words"}),
        frame.set_axis(frame.index + 1),
        frame.assign(word=frame["word"].where(frame.index != 5)),
        frame.assign(number=frame["number"].where(frame.index != 5)),
        frame[["number", "word"]],
        frame.iloc[:-1],
    ]
    assert len({digest_of(each, 50) for each in (frame, *others)}) == 1 + len(others)
