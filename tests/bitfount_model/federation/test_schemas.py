"""The pods' schemas before round 1: one schema for all, or every difference told at once."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitfount_model.data import BitfountSchema, Column, DataStructure, SemanticType, encode_features, fit_preparation
from bitfount_model.errors import ConfigurationError, SchemaMismatchError
from bitfount_model.federation import merge_schemas


def schema_of(frame: pd.DataFrame, name: str | None = "trial", **forced: list[str]) -> BitfountSchema:
    schema = BitfountSchema(name)
    schema.generate_full_schema(frame, force_stypes=forced)
    return schema


def schema_with(*categories: Any, name: str = "c") -> BitfountSchema:
    return BitfountSchema("trial", [Column(name, SemanticType.CATEGORICAL, "object", categories)])


def test_schemas_that_are_equal_are_the_common_one() -> None:
    frame = pd.DataFrame({"age": [1.5, 2.0], "sex": ["f", "m"], "seen": pd.to_datetime(["2020-01-01", "2021-01-01"])})
    schema = schema_of(frame)
    assert merge_schemas({"a": schema, "b": schema_of(frame)}) == schema
    assert merge_schemas({"only": schema}) == schema


def test_categories_of_all_pods_are_merged_in_the_order_of_a_schema_of_all_rows() -> None:
    north = pd.DataFrame({"c": ["pear", "apple"], "n": [3, 1]})
    south = pd.DataFrame({"c": ["fig", "apple", None], "n": [2, 1, 1]})
    merged = merge_schemas({"north": schema_of(north, categorical=["n"]), "south": schema_of(south, categorical=["n"])})
    pooled = schema_of(pd.concat([north, south]), categorical=["n"])
    assert merged.column("c").categories == pooled.column("c").categories == ("apple", "fig", "pear")
    assert merged.column("n").categories == pooled.column("n").categories == (1, 2, 3)


CATEGORY = st.integers(-5, 5) | st.floats(-2, 2) | st.booleans() | st.text(max_size=2)


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from("abcde"), st.lists(CATEGORY, max_size=5), min_size=1), st.randoms())
def test_the_order_of_pods_does_not_matter(held: dict[str, list[Any]], order: random.Random) -> None:
    schemas = {pod: schema_with(*dict.fromkeys(values)) for pod, values in held.items()}
    shuffled = list(schemas.items())
    order.shuffle(shuffled)
    results = []
    for pods in (schemas, dict(shuffled)):
        try:
            results.append(repr(merge_schemas(pods).columns))
        except SchemaMismatchError as error:
            results.append(str(error))
    assert results[0] == results[1]
    if "Column" in results[0]:
        found = merge_schemas(schemas).column("c").categories
        assert set(found) == {value for values in held.values() for value in values}
        assert list(found) == sorted(found, key=lambda value: (isinstance(value, str), value))


def test_true_and_one_share_a_code_whoever_holds_which() -> None:
    booleans, numbers = schema_with(False, True), schema_with(0, 1, 2)
    for pods in ({"a": booleans, "b": numbers}, {"a": numbers, "b": booleans}):
        assert repr(merge_schemas(pods).column("c").categories) == "(0, 1, 2)"
    assert repr(merge_schemas({"a": booleans, "b": booleans}).column("c").categories) == "(False, True)"


def test_rows_of_every_pod_are_encoded_by_the_common_schema_as_if_pooled() -> None:
    north = pd.DataFrame({"x": [1, 2], "c": ["b", "a"]})
    south = pd.DataFrame({"c": ["z", "a", "b"], "x": [0.5, None, 4.0]})
    merged = merge_schemas({"north": schema_of(north), "south": schema_of(south)})
    pooled_rows = pd.concat([north, south], ignore_index=True)
    structure = DataStructure(categorical_encoding="one_hot")
    columns = structure.feature_columns(merged)
    pooled = schema_of(pooled_rows)
    assert columns == structure.feature_columns(pooled)
    preparation = fit_preparation(pooled_rows, merged, structure)
    parts = [encode_features(frame, columns, preparation) for frame in (north, south)]
    whole = encode_features(pooled_rows, columns, fit_preparation(pooled_rows, pooled, structure))
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    merged.check(north)
    merged.check(south)


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        (pd.Series([1, 2]), pd.Series([1.5, 2.0]), "float64"),
        (pd.Series([1, 2]), pd.Series([1, 2], dtype="int32"), "float64"),
        (pd.Series([1, None], dtype="Int64"), pd.Series([0.5, 1.0], dtype="float32"), "float64"),
        (pd.Series([1, 2]), pd.Series([1, 2]), "int64"),
        (
            pd.Series(pd.to_datetime(["2020-01-01"])).astype("datetime64[ns]"),
            pd.Series(pd.to_datetime(["2020-01-01"])).dt.tz_localize("UTC"),
            "datetime64[ns]",
        ),
        (
            pd.Series(pd.to_timedelta([1], unit="s")).astype("timedelta64[ns]"),
            pd.Series(pd.to_timedelta([1], unit="s")).astype("timedelta64[s]"),
            "timedelta64[ns]",
        ),
    ],
)
def test_dtypes_of_one_family_are_no_difference(one: Any, other: Any, common: str) -> None:
    frames = {"a": pd.DataFrame({"x": one}), "b": pd.DataFrame({"x": other})}
    merged = merge_schemas({pod: schema_of(frame) for pod, frame in frames.items()})
    assert merged.column("x").dtype == common
    for frame in frames.values():
        merged.check(frame)


def test_all_differences_are_told_together_pod_by_pod() -> None:
    usual = schema_of(pd.DataFrame({"age": [1.0], "sex": ["f"], "y": [0]}))
    odd = schema_of(pd.DataFrame({"age": ["old"], "sex": [1], "extra": [1]}), categorical=["sex"])
    late = schema_of(pd.DataFrame({"age": pd.to_datetime(["2020-01-01"]), "sex": ["m"], "y": [1]}))
    with pytest.raises(SchemaMismatchError) as caught:
        merge_schemas({"c-late": late, "a": usual, "odd": odd, "b": usual})
    assert caught.value.differences == (
        "pod 'c-late': column 'age' is continuous (times) with dtype datetime64[us], elsewhere it is continuous (numbers)",
        "pod 'odd': column 'age' is categorical (text) with dtype str, elsewhere it is continuous (numbers)",
        "pod 'odd': column 'sex' is categorical (numbers) with dtype int64, elsewhere it is categorical (text)",
        "pod 'odd': column 'y' is missing, elsewhere it is continuous (numbers)",
        "pod 'odd': has column 'extra', which most other pods lack",
    )
    for text in caught.value.differences:
        assert text in str(caught.value)
    assert "schema_types_override" in str(caught.value)


def test_an_error_names_no_values_of_rows() -> None:
    with pytest.raises(SchemaMismatchError) as caught:
        merge_schemas({"a": schema_with("sentinel-one"), "b": schema_with(12345), "c": schema_with("sentinel-two")})
    assert "sentinel" not in str(caught.value)
    assert "12345" not in str(caught.value)


def test_a_column_that_one_pod_left_out_is_named_as_such() -> None:
    frame = pd.DataFrame({"x": [1.0], "id": ["k"]})
    without = BitfountSchema("trial")
    without.generate_full_schema(frame, ignore_cols=["id"])
    with pytest.raises(SchemaMismatchError, match="pod 'b': column 'id' is left out"):
        merge_schemas({"a": schema_of(frame), "b": without})
    assert merge_schemas({"a": without, "b": without}).ignored == ("id",)
    assert merge_schemas({"a": without, "b": schema_of(frame[["x"]])}).ignored == ("id",)


def test_a_pod_without_values_in_a_categorical_column_takes_the_others_categories() -> None:
    empty, mixed = schema_with(), schema_with(1, "one")
    assert merge_schemas({"a": empty, "b": schema_with("x")}).column("c").categories == ("x",)
    assert merge_schemas({"a": mixed, "b": schema_with(2)}).column("c").categories == (1, 2, "one")
    with pytest.raises(SchemaMismatchError, match="pod 'c': column 'c' is categorical"):
        merge_schemas({"a": empty, "b": schema_with("x"), "c": schema_with(1)})


def test_the_first_pod_by_name_gives_the_order_of_columns_and_a_name_is_kept_if_all_share_it() -> None:
    one, other = schema_of(pd.DataFrame({"x": [1.0], "y": [1.0]})), schema_of(pd.DataFrame({"y": [1.0], "x": [1.0]}))
    for pods in ({"a": one, "b": other}, {"b": other, "a": one}):
        assert merge_schemas(pods).get_feature_names() == ["x", "y"]
        assert merge_schemas(pods).name == "trial"
    assert merge_schemas({"a": one, "b": schema_of(pd.DataFrame({"x": [1.0], "y": [1.0]}), "other")}).name is None


def test_the_schemas_are_left_as_they_are() -> None:
    schemas = {"a": schema_with("x"), "b": schema_with("y")}
    kept = {pod: schema.to_json() for pod, schema in schemas.items()}
    assert merge_schemas(schemas) == merge_schemas(schemas)
    assert {pod: schema.to_json() for pod, schema in schemas.items()} == kept


def test_no_pods_is_a_named_error() -> None:
    with pytest.raises(ConfigurationError, match="found no pods"):
        merge_schemas({})
