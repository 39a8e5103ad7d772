"""Which columns a model sees; contradictions are refused when the datastructure is made, all at once."""

from __future__ import annotations

import copy
import dataclasses
import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitfount_model import serialization
from bitfount_model.data import (
    BitfountSchema,
    DataStructure,
    FeatureColumns,
    PercentageSplitter,
    SplitterDefinedInData,
)
from bitfount_model.data import datastructure as datastructure_module
from bitfount_model.errors import ConfigurationError, DataError, SchemaMismatchError

TABLE = pd.DataFrame(
    {
        "age": [1.0, 2.0],
        "ward": ["a", "b"],
        "height": [3, 4],
        "note": ["some", "words"],
        "scan": ["1.png", "2.png"],
        "weight": [1.0, 1.0],
        "part": ["TRAIN", "TEST"],
        "ill": [True, False],
    }
)
SCHEMA = BitfountSchema("test")
SCHEMA.generate_full_schema(TABLE, {"text": ["note"], "image": ["scan"]})


def test_features_are_all_columns_but_target_support_labels_and_text() -> None:
    structure = DataStructure(
        target="ill", loss_weights_col="weight", data_splitter=SplitterDefinedInData("part"), ignore_cols=["height"]
    )
    assert structure.feature_columns(SCHEMA) == FeatureColumns(("age",), ("ward",), ("scan",))
    assert structure.tabular_width(SCHEMA) == 2
    assert structure.targets == ["ill"]


def test_selected_columns_are_the_only_features_in_the_schema_s_order() -> None:
    structure = DataStructure(target="ill", selected_cols=["height", "ward", "ill", "age"])
    assert structure.feature_columns(SCHEMA) == FeatureColumns(("age", "height"), ("ward",), ())


def test_one_hot_blocks_are_as_wide_as_their_categories() -> None:
    structure = DataStructure(selected_cols=["age", "ward", "ill"], categorical_encoding="one_hot")
    assert structure.tabular_width(SCHEMA) == 5


def test_an_image_column_is_an_image_whatever_the_schema_says() -> None:
    structure = DataStructure(image_cols=["ward", "scan"], schema_types_override={"text": ["note"]})
    assert structure.feature_columns(SCHEMA).images == ("ward", "scan")
    assert structure.force_stypes() == {"text": ["note"], "image": ["ward", "scan"]}
    assert DataStructure().force_stypes() == {}


def test_each_pod_can_have_types_of_its_own() -> None:
    structure = DataStructure(image_cols=["scan"], schema_types_override={"a": {"text": ["note"]}, "b": {}})
    assert structure.force_stypes("a") == {"text": ["note"], "image": ["scan"]}
    assert structure.force_stypes("b") == {"image": ["scan"]}
    with pytest.raises(ConfigurationError, match=r"each of \['a', 'b'\], found identifier 'c'"):
        structure.force_stypes("c")
    with pytest.raises(ConfigurationError, match="schema_types_override"):
        DataStructure(schema_types_override={"a": {"number": ["x"]}})


@pytest.mark.parametrize(
    "arguments",
    [
        {"target": "il"},
        {"selected_cols": ["il"]},
        {"ignore_cols": ["il"]},
        {"loss_weights_col": "il"},
        {"image_cols": ["il"]},
    ],
)
def test_a_column_that_does_not_exist_is_refused_with_a_close_name(arguments: dict[str, object]) -> None:
    with pytest.raises(SchemaMismatchError, match="no column 'il', did you mean 'ill'"):
        DataStructure(**arguments).feature_columns(SCHEMA)


def test_a_column_that_the_schema_left_out_may_be_ignored_again() -> None:
    schema = BitfountSchema()
    schema.generate_full_schema(TABLE[["age", "ward"]], ignore_cols=["ward"])
    assert DataStructure(ignore_cols=["ward"]).feature_columns(schema).continuous == ("age",)


def test_a_selected_text_column_is_refused() -> None:
    with pytest.raises(DataError, match=r"\['note'\] are text"):
        DataStructure(selected_cols=["age", "note"]).feature_columns(SCHEMA)


def test_contradictions_are_refused_together() -> None:
    with pytest.raises(ConfigurationError) as caught:
        DataStructure(
            table="rows",
            query="SELECT 1",
            target=["a", "a"],
            ignore_cols=["a", "b"],
            selected_cols=["b", "c"],
            image_cols=["a"],
            categorical_encoding="hex",  # type: ignore[arg-type]
            data_splitter="percentage",  # type: ignore[arg-type]
            dataset_transforms=[{"power": {}}],
            batch_transforms=[{"image": {"arg": "a", "transformations": ["Blur"]}}],
        )
    for part in (
        "table and query",
        "['b'] are both selected and ignored",
        "['a'] are both target and ignored",
        "['a'] are both target and image columns",
        "names a column twice",
        "not among the selected columns",
        "categorical_encoding is 'hex'",
        "data_splitter is 'percentage'",
        "no operation 'power'",
        "no transformation 'Blur'",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"selected_cols": "age"},
        {"ignore_cols": [1]},
        {"target": 3},
        {"target": ["a", None]},
        {"image_cols": "scan"},
        {"loss_weights_col": ["w"]},
        {"table": 3},
        {"query": {"pod": 1}},
        {"normalise": "yes"},
        {"schema_types_override": {"number": ["a"]}},
        {"schema_types_override": {"text": "a"}},
        {"dataset_transforms": {"addition": {}}},
        {"batch_transforms": "Resize"},
    ],
)
def test_arguments_of_a_wrong_kind_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        DataStructure(**arguments)


def test_each_pod_may_have_a_table_of_its_own() -> None:
    structure = DataStructure(table={"north": "rows_n", "south": "rows_s"})
    assert structure.table_for("south") == "rows_s"
    assert DataStructure(table="rows").table_for("south") == "rows"
    assert DataStructure().table_for() is None and structure.query_for("north") is None
    for identifier in ("east", None):
        with pytest.raises(ConfigurationError, match=r"for each of \['north', 'south'\]"):
            structure.table_for(identifier)
    with pytest.raises(ConfigurationError, match="query for each of"):
        DataStructure(query={"north": "SELECT 1"}).query_for("south")


def test_sequences_become_lists_of_their_own() -> None:
    ignored = ["age"]
    structure = DataStructure(target=("a", "b"), ignore_cols=ignored, selected_cols=("c",))
    ignored.append("more")
    assert (structure.target, structure.ignore_cols, structure.selected_cols) == (["a", "b"], ["age"], ["c"])
    assert dataclasses.replace(structure) == structure


def test_the_input_size_is_neither_compared_nor_serialised() -> None:
    one, other = DataStructure(target="ill"), DataStructure(target="ill")
    one.input_size = 5
    assert one == other
    assert "input_size" not in serialization.dump(one)


names = st.text(min_size=1, max_size=5)
splitters = st.one_of(
    st.none(),
    st.builds(PercentageSplitter, st.integers(0, 50), st.floats(0, 50), st.booleans(), st.one_of(st.none(), names)),
    st.builds(SplitterDefinedInData, names),
)


@given(
    st.builds(
        DataStructure,
        table=st.one_of(st.none(), names, st.dictionaries(names, names)),
        target=st.one_of(st.none(), names, st.lists(names, min_size=1, unique=True)),
        data_splitter=splitters,
        schema_types_override=st.one_of(st.none(), st.just({"categorical": ["x"]})),
        dataset_transforms=st.one_of(st.none(), st.just([{"average": {"name": "n", "arg1": "a", "arg2": 0.1}}])),
        batch_transforms=st.one_of(st.none(), st.just([{"image": {"arg": "i", "transformations": ["ToRGB"]}}])),
        categorical_encoding=st.sampled_from(["codes", "one_hot"]),
        normalise=st.booleans(),
    )
)
def test_any_datastructure_survives_serialisation(structure: DataStructure) -> None:
    text = json.dumps(serialization.dump(structure))
    assert serialization.load(json.loads(text), datastructure_module.registry) == structure


def transformed(operation: str, arg1: object, arg2: object, frame: pd.DataFrame | None = None) -> pd.DataFrame:
    structure = DataStructure(dataset_transforms=[{operation: {"name": "new", "arg1": arg1, "arg2": arg2}}])
    return structure.transform(pd.DataFrame({"a": [1, 4], "b": [2.0, None]}) if frame is None else frame)


@pytest.mark.parametrize(
    ("operation", "with_two", "with_column"),
    [
        ("addition", 3.0, 3.0),
        ("subtraction", -1.0, -1.0),
        ("multiplication", 2.0, 2.0),
        ("division", 0.5, 0.5),
        ("average", 1.5, 1.5),
    ],
)
def test_new_columns_are_made_of_columns_and_numbers(operation: str, with_two: float, with_column: float) -> None:
    number, column = transformed(operation, "a", 2), transformed(operation, "a", "b")
    assert list(number.columns) == ["a", "b", "new"] and number["new"].dtype == "float64"
    assert number["new"].iloc[0] == with_two and number["new"].notna().all()
    assert column["new"].iloc[0] == with_column and pd.isna(column["new"].iloc[1])


def test_later_transforms_may_use_earlier_ones_and_nothing_is_changed() -> None:
    structure = DataStructure(
        dataset_transforms=[
            {"addition": {"name": "c", "arg1": "a", "arg2": "a"}},
            {"multiplication": {"name": "d", "arg1": "c", "arg2": 10}},
        ]
    )
    frame = pd.DataFrame({"a": [1, 2]}, index=["x", "y"])
    kept, argument = frame.copy(deep=True), copy.deepcopy(structure.dataset_transforms)
    assert structure.transform(frame)["d"].to_dict() == {"x": 20.0, "y": 40.0}
    pd.testing.assert_frame_equal(frame, kept)
    assert structure.dataset_transforms == argument
    assert DataStructure().transform(frame).equals(frame)


def test_transforms_of_what_is_not_there_or_is_no_number_are_refused() -> None:
    with pytest.raises(SchemaMismatchError, match="no column 'aa', did you mean 'a'"):
        transformed("addition", "aa", 1)
    with pytest.raises(DataError, match="column 'a' holds"):
        transformed("addition", "a", 1, pd.DataFrame({"a": ["x"]}))
    with pytest.raises(SchemaMismatchError, match="of that name already"):
        transformed("addition", "a", 1, pd.DataFrame({"a": [1], "new": [2]}))


@pytest.mark.parametrize(
    "transform",
    [
        {},
        "addition",
        {"addition": {}, "division": {}},
        {"addition": {"name": "c", "arg1": "a"}},
        {"addition": {"name": "c", "arg1": "a", "arg2": "b", "arg3": "d"}},
        {"addition": {"name": "", "arg1": "a", "arg2": "b"}},
        {"addition": {"name": "c", "arg1": 1, "arg2": "b"}},
        {"addition": {"name": "c", "arg1": "a", "arg2": float("nan")}},
        {"addition": {"name": "c", "arg1": "a", "arg2": True}},
    ],
)
def test_transforms_of_a_wrong_form_are_refused(transform: object) -> None:
    with pytest.raises(ConfigurationError, match=r"dataset_transforms\[0\]"):
        DataStructure(dataset_transforms=[transform])  # type: ignore[list-item]
