"""A schema says what columns mean, survives a file, and refuses a table that differs, with all differences."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bitfount_model import serialization
from bitfount_model.data import BitfountSchema, Column, DataFrameSource, SemanticType
from bitfount_model.data import schema as schema_module
from bitfount_model.errors import ConfigurationError, DataError, SchemaMismatchError, SerializationError

TABLE = pd.DataFrame(
    {
        "flag": [True, False, True],
        "word": ["b", None, "a"],
        "kind": pd.Categorical(["x", "y", "x"], categories=["y", "x", "never"]),
        "whole": [3, 1, 2],
        "real": [0.5, np.nan, 1.5],
        "when": pd.to_datetime(["2024-01-01", None, "2024-01-03"]),
        "größe 🙂": ["klein", "groß", "klein"],
    }
)


def schema_of(frame: pd.DataFrame, **forced: list[str]) -> BitfountSchema:
    schema = BitfountSchema("test")
    schema.generate_full_schema(frame, force_stypes=forced)
    return schema


def test_meanings_are_inferred_from_values() -> None:
    schema = schema_of(TABLE)
    assert schema.get_feature_names("categorical") == ["flag", "word", "kind", "größe 🙂"]
    assert schema.get_feature_names(SemanticType.CONTINUOUS) == ["whole", "real", "when"]
    assert schema.get_feature_names() == list(TABLE.columns)
    assert schema.column("word").categories == ("a", "b")
    assert schema.column("flag").categories == (False, True)
    assert schema.get_categorical_feature_size("kind") == 2
    assert schema.features["continuous"]["real"] == schema.column("real")
    assert set(schema.features) == {"categorical", "continuous"}


def test_a_source_gives_the_same_schema_as_its_frame() -> None:
    schema = BitfountSchema("test")
    schema.generate_full_schema(DataFrameSource(TABLE))
    assert schema == schema_of(TABLE)


def test_very_many_different_strings_are_text() -> None:
    many = [f"sentence {number}" for number in range(101)]
    kinds = {
        name: schema_of(pd.DataFrame({"s": values})).column("s").semantic_type
        for name, values in {"101": many, "100": many[:100], "half": many * 2, "more": many + many[:100]}.items()
    }
    assert kinds == {"101": "text", "100": "categorical", "half": "categorical", "more": "text"}


def test_a_meaning_can_be_forced() -> None:
    schema = schema_of(TABLE, categorical=["whole"], image=["word"], text=["flag"])
    assert schema.column("whole").categories == (1, 2, 3)
    assert schema.column("word") == Column("word", SemanticType.IMAGE, str(TABLE["word"].dtype))
    assert schema.column("flag").semantic_type is SemanticType.TEXT
    enumerated = BitfountSchema("test")
    enumerated.generate_full_schema(TABLE, {SemanticType.CATEGORICAL: ["whole"], "image": ["word"], "text": ["flag"]})
    assert enumerated == schema


def test_columns_can_be_left_out() -> None:
    schema = BitfountSchema()
    schema.generate_full_schema(TABLE, ignore_cols=["word", "kind"])
    assert "word" not in schema.get_feature_names() and schema.ignored == ("word", "kind")
    with pytest.raises(SchemaMismatchError, match="'wrod', did you mean 'word'"):
        schema.generate_full_schema(TABLE, ignore_cols=["wrod"])


def test_impossible_forces_are_refused_together() -> None:
    with pytest.raises(ConfigurationError, match=r"'numeric'.*'whole' is forced to be categorical and text"):
        schema_of(TABLE, numeric=["whole"], categorical=["whole"], text=["whole"])
    with pytest.raises(ConfigurationError, match="wanted a list"):
        BitfountSchema().generate_full_schema(TABLE, {"categorical": "whole"})  # type: ignore[dict-item]
    with pytest.raises(SchemaMismatchError, match="'size'"):
        schema_of(TABLE, categorical=["size"])


def test_generating_again_replaces_the_columns_and_leaves_the_table_alone() -> None:
    kept = TABLE.copy(deep=True)
    schema = schema_of(TABLE)
    schema.generate_full_schema(TABLE[["whole"]])
    assert schema.get_feature_names() == ["whole"]
    pd.testing.assert_frame_equal(TABLE, kept)


@given(
    st.lists(st.one_of(st.none(), st.integers(-5, 5), st.text(max_size=2), st.booleans(), st.sampled_from([0.5, 2.0])))
)
@example([0, False])
@example([1, 1.0, True, "x"])
def test_categories_do_not_depend_on_the_order_of_rows(values: list[object]) -> None:
    one = schema_of(pd.DataFrame({"c": pd.Series(values, dtype=object)}), categorical=["c"]).column("c").categories
    other = schema_of(pd.DataFrame({"c": pd.Series(values[::-1], dtype=object)}), categorical=["c"]).column("c")
    assert one == other.categories
    assert [type(category) for category in one] == [type(category) for category in other.categories]
    texts = [category for category in one if isinstance(category, str)]
    assert list(one) == sorted(set(one) - set(texts)) + sorted(texts)


def test_whole_numbers_are_the_same_categories_whether_or_not_values_are_missing() -> None:
    for values in ([1, 2], [1.0, 2.0, None], pd.array([1, 2, None], dtype="Int64")):
        categories = schema_of(pd.DataFrame({"c": values}), categorical=["c"]).column("c").categories
        assert categories == (1, 2) and {type(category) for category in categories} == {int}


def test_other_objects_become_their_text() -> None:
    frame = pd.DataFrame({"c": pd.Series([date(2024, 1, 2), None, date(2024, 1, 1)], dtype=object)})
    assert schema_of(frame).column("c").categories == ("2024-01-01", "2024-01-02")
    when = pd.DataFrame({"c": pd.to_datetime(["2024-01-02"])})
    assert schema_of(when, categorical=["c"]).column("c").categories == ("2024-01-02 00:00:00",)


@pytest.mark.parametrize("values", [[[1], [2]], [{"a": 1}]])
def test_values_that_cannot_be_compared_are_no_categories(values: list[object]) -> None:
    with pytest.raises(DataError, match="column 'c'"):
        schema_of(pd.DataFrame({"c": values}))


def test_infinity_is_no_category() -> None:
    with pytest.raises(DataError, match="'c' holds infinity"):
        schema_of(pd.DataFrame({"c": [1.0, np.inf]}), categorical=["c"])


def test_a_table_without_rows_has_a_schema() -> None:
    schema = schema_of(TABLE.iloc[:0])
    assert schema.get_feature_names("categorical") == ["flag", "word", "kind", "größe 🙂"]
    assert schema.get_categorical_feature_size("word") == 0
    schema.check(TABLE.iloc[:0])


def test_unknown_columns_are_refused_with_close_names() -> None:
    schema = schema_of(TABLE)
    with pytest.raises(SchemaMismatchError, match="'wrod', did you mean 'word'"):
        schema.column("wrod")
    with pytest.raises(SchemaMismatchError, match="'real' is continuous, wanted a categorical one"):
        schema.get_categorical_feature_size("real")


def test_a_column_has_one_name() -> None:
    column = Column("a", SemanticType.TEXT, "object")
    with pytest.raises(ConfigurationError, match=r"\['a'\] appear more than once"):
        BitfountSchema("s", [column, column])


def test_all_differences_of_a_table_are_listed() -> None:
    frame = TABLE.drop(columns=["whole"]).assign(real=["a", "b", "c"], word=[1, 2, 3], wholes=1)
    with pytest.raises(SchemaMismatchError) as caught:
        schema_of(TABLE).check(frame)
    assert len(caught.value.differences) == 3
    assert "column 'whole' is missing, did you mean 'wholes'" in caught.value.differences[1]
    assert "column 'word' holds number values" in caught.value.differences[0]
    assert "column 'real' holds string values" in caught.value.differences[2]
    schema_of(TABLE).check(frame, ["flag", "when"])


def test_new_categories_more_columns_and_missing_values_are_no_differences() -> None:
    schema = schema_of(TABLE)
    schema.check(TABLE.assign(word=["z", "z", "z"], more=1))
    schema.check(TABLE.assign(word=[None] * 3, real=[None] * 3))
    schema.check(TABLE.assign(flag=pd.Series([True, None, False], dtype=object), real=[1, 2, 3]))
    schema.check(TABLE.assign(when=TABLE["when"].dt.tz_localize("UTC")))


@pytest.mark.parametrize("forced", [{}, {"categorical": ["when", "real"]}, {"text": ["real"]}, {"image": ["word"]}])
def test_a_table_never_differs_from_its_own_schema(forced: dict[str, list[str]]) -> None:
    odd = TABLE.assign(mixed=pd.Series([1, "1", None], dtype=object), numbers=["1", "2", "3"])
    schema_of(odd, **forced).check(odd)
    schema_of(odd, continuous=["numbers"]).check(odd)


categories = st.one_of(
    st.text(), st.integers(-(2**63), 2**63), st.floats(allow_nan=False, allow_infinity=False), st.booleans()
)
columns = st.builds(
    Column,
    name=st.text(),
    semantic_type=st.just(SemanticType.CATEGORICAL),
    dtype=st.sampled_from(["object", "int64"]),
    categories=st.lists(categories, unique=True).map(tuple),
    description=st.one_of(st.none(), st.text()),
)
schemas = st.builds(
    BitfountSchema,
    name=st.one_of(st.none(), st.text()),
    columns=st.lists(columns, unique_by=lambda column: column.name, max_size=4),
    ignored=st.lists(st.text(), max_size=2),
)


def kinds_of(schema: BitfountSchema) -> list[list[type]]:
    return [[type(category) for category in column.categories] for column in schema.columns]


@given(schemas)
def test_any_schema_survives_yaml_and_json(schema: BitfountSchema) -> None:
    for back in (
        BitfountSchema.loads(schema.dumps()),
        BitfountSchema.from_json(json.loads(json.dumps(schema.to_json()))),
        serialization.load(json.loads(json.dumps(serialization.dump(schema))), schema_module.registry),
    ):
        assert back == schema and kinds_of(back) == kinds_of(schema)


def test_a_schema_survives_a_file(tmp_path: Path) -> None:
    schema = schema_of(TABLE, categorical=["whole"])
    schema.dump(tmp_path / "deep" / "schema.yaml")
    assert BitfountSchema.load_from_file(tmp_path / "deep" / "schema.yaml") == schema
    assert "größe 🙂" in (tmp_path / "deep" / "schema.yaml").read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["schema.yaml"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "name: x",
        "{",
        "columns: []\nextra: 1",
        "columns: []\ncolumns: []",
        "columns: [{name: a, semantic_type: number, dtype: object}]",
        "columns: [{name: a, semantic_type: text, dtype: object, size: 3}]",
        "columns: [{name: a, semantic_type: text, dtype: object, categories: [1]}]",
        "columns: [{name: a, semantic_type: categorical, dtype: object, categories: [1, 1]}]",
        "columns: [{name: a, semantic_type: categorical, dtype: object, categories: [[1]]}]",
        "columns: [{name: a, semantic_type: categorical, dtype: object, categories: [.nan]}]",
        "columns: [{name: a, semantic_type: categorical, dtype: object, categories: [2024-01-01]}]",
        "columns: [{name: a, semantic_type: text, dtype: o}, {name: a, semantic_type: text, dtype: o}]",
        "columns: !!python/object/apply:os.system ['true']",
        "name: \x00",
    ],
)
def test_text_that_is_no_schema_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SerializationError):
        BitfountSchema.loads(text)
    (tmp_path / "schema.yaml").write_text(text)
    with pytest.raises(SerializationError, match=r"schema\.yaml"):
        BitfountSchema.load_from_file(tmp_path / "schema.yaml")


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xff")
    for name in ("absent.yaml", "bytes.yaml"):
        with pytest.raises(SerializationError, match=name):
            BitfountSchema.load_from_file(tmp_path / name)


def test_schemas_are_compared_by_content() -> None:
    assert schema_of(TABLE) == schema_of(TABLE.copy())
    assert schema_of(TABLE) != schema_of(TABLE[["word"]])
    assert schema_of(TABLE) != "schema"
    assert repr(schema_of(TABLE)) == "BitfountSchema(name='test', categorical=4, continuous=3)"
