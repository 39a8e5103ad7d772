"""Rows become numbers as scikit-learn would make them, and never in silence when they cannot."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from bitfount_model.data import (
    BitfountSchema,
    DataStructure,
    Preparation,
    encode_features,
    encode_support,
    encode_target,
    fit_preparation,
)
from bitfount_model.errors import DataError, SchemaMismatchError, SerializationError
from bitfount_model.types import Problem

FLOATS = st.floats(-1e6, 1e6)


def schema_of(frame: pd.DataFrame, **forced: list[str]) -> BitfountSchema:
    schema = BitfountSchema("test")
    schema.generate_full_schema(frame, force_stypes=forced)
    return schema


def encoded(
    frame: pd.DataFrame, train: pd.DataFrame | None = None, structure: DataStructure | None = None, **forced: list[str]
) -> np.ndarray:
    """Features of a frame, prepared on other rows or on its own."""
    structure = structure or DataStructure()
    schema = schema_of(frame if train is None else train, **forced)
    preparation = fit_preparation(frame if train is None else train, schema, structure)
    return encode_features(frame, structure.feature_columns(schema), preparation)


@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=2, max_size=30))
def test_continuous_columns_are_normalised_as_by_scikit_learn(rows: list[tuple[float, float]]) -> None:
    values = np.array(rows)
    spread = values.std(axis=0)
    expected = StandardScaler().fit_transform(values)
    found = encoded(pd.DataFrame(values, columns=["a", "b"]))
    assert found.dtype == np.float32 and found.flags.c_contiguous
    for column in range(2):
        # below this the result is made of rounding errors, here and there
        if spread[column] > 1e-9 * max(1.0, np.abs(values[:, column]).max()):
            np.testing.assert_allclose(found[:, column], expected[:, column], rtol=1e-4, atol=1e-5)


def test_missing_values_are_left_out_of_the_mean_and_become_it() -> None:
    frame = pd.DataFrame({"a": [1.0, np.nan, 3.0, 8.0], "b": pd.array([1, None, 1, 2], dtype="Int64")})
    scaler = StandardScaler().fit(frame.to_numpy(dtype=float, na_value=np.nan))
    found = encoded(frame)
    np.testing.assert_allclose(found, np.nan_to_num(scaler.transform(frame.to_numpy(dtype=float))), rtol=1e-6)
    assert found[1].tolist() == [0.0, 0.0]
    raw = encoded(frame, structure=DataStructure(normalise=False))
    assert raw[:, 0].tolist() == [1.0, 4.0, 3.0, 8.0]


def test_rows_are_prepared_with_what_was_learned_from_other_rows() -> None:
    train, later = pd.DataFrame({"a": [0.0, 10.0]}), pd.DataFrame({"a": [20.0, None]})
    assert encoded(later, train).tolist() == [[3.0], [0.0]]


@pytest.mark.parametrize("value", [0.1, 0.0, -3e300, 1e-320])
def test_a_constant_column_becomes_zeros(value: float) -> None:
    assert encoded(pd.DataFrame({"a": [value] * 3})).tolist() == [[0.0]] * 3


def test_a_column_without_values_becomes_zeros() -> None:
    assert encoded(pd.DataFrame({"a": [np.nan, np.nan], "b": [1.0, 3.0]})).tolist() == [[0.0, -1.0], [0.0, 1.0]]


def test_huge_values_neither_overflow_nor_warn() -> None:
    found = encoded(pd.DataFrame({"a": [1e300, -1e300, 1.7e308, -1.7e308]}))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:, 0] ** 2 @ np.ones(4) / 4, 1.0, rtol=1e-6)


def test_values_beyond_float32_are_refused_with_column_and_key() -> None:
    frame = pd.DataFrame({"a": [1.0, 1e39]}, index=["row one", "row two"])
    with pytest.raises(DataError, match=r"column 'a': too large for float32 in 1 rows, first keys \['row two'\]"):
        encoded(frame, structure=DataStructure(normalise=False))
    with pytest.raises(DataError, match="too large for float32"):
        encoded(pd.DataFrame({"a": [1e308]}), train=pd.DataFrame({"a": [0.0, 1e-9]}))


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinity_is_refused_with_column_and_key(value: float) -> None:
    frame = pd.DataFrame({"a": [1.0, value]}, index=["x", "y"])
    with pytest.raises(DataError, match=r"column 'a': infinite in 1 rows, first keys \['y'\]"):
        encoded(frame)


def test_text_in_a_continuous_column_is_refused() -> None:
    with pytest.raises(DataError, match="column 'a' is continuous but holds something that is no number"):
        encoded(pd.DataFrame({"a": ["1.5", "many"]}), continuous=["a"])
    assert encoded(pd.DataFrame({"a": ["1.5", "2.5"]}), continuous=["a"]).tolist() == [[-1.0], [1.0]]


def test_times_are_seconds_since_the_epoch_whatever_their_unit_and_zone() -> None:
    times = pd.to_datetime(["1970-01-01 00:00:01", "2024-02-29 12:00:00.5", None], format="ISO8601")
    expected = [1.0, pd.Timestamp("2024-02-29 12:00:00.5").timestamp()]
    for column in (times, times.as_unit("s"), times.as_unit("us"), times.tz_localize("UTC").tz_convert("Asia/Tokyo")):
        structure = DataStructure(normalise=False)
        found = encoded(pd.DataFrame({"t": column}), structure=structure)[:2, 0]
        wanted = np.floor(expected) if getattr(column, "unit", "ns") == "s" else expected
        np.testing.assert_allclose(found, np.array(wanted, dtype=np.float32), rtol=1e-7)
    spans = pd.to_timedelta([1, 90], unit="s")
    assert encoded(pd.DataFrame({"t": spans}), structure=DataStructure(normalise=False))[:, 0].tolist() == [1.0, 90.0]


def test_categories_become_codes_in_the_schema_s_order_and_unknown_ones_the_code_after_the_last() -> None:
    train = pd.DataFrame({"c": ["b", "a", "c", None]})
    later = pd.DataFrame({"c": ["a", "b", "c", None, "new"]})
    assert encoded(later, train)[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0, 3.0]


@given(
    st.lists(st.sampled_from(["a", "b", "ç", "", None]), min_size=1, max_size=30),
    st.lists(st.sampled_from(["a", "b", "ç", "", "unseen", None]), max_size=30),
)
def test_one_hot_blocks_are_those_of_scikit_learn(train: list[str | None], later: list[str | None]) -> None:
    structure = DataStructure(categorical_encoding="one_hot")
    known = sorted({value for value in train if value is not None})
    found = encoded(
        pd.DataFrame({"c": pd.Series(later, dtype=object)}),
        pd.DataFrame({"c": pd.Series(train, dtype=object)}),
        structure,
    )
    assert found.shape == (len(later), len(known))
    if known and later:
        oracle = OneHotEncoder(categories=[np.array(known, dtype=object)], handle_unknown="ignore", sparse_output=False)
        oracle.fit(np.array(known, dtype=object)[:, None])
        np.testing.assert_array_equal(found, oracle.transform(np.array(later, dtype=object)[:, None]))


def test_numbers_come_first_and_then_categories_each_in_the_table_s_order() -> None:
    frame = pd.DataFrame({"c1": ["x", "y"], "n1": [0.0, 2.0], "c2": [True, False], "n2": [5.0, 1.0]})
    assert encoded(frame).tolist() == [[-1.0, 1.0, 0.0, 1.0], [1.0, -1.0, 1.0, 0.0]]


def test_whole_numbers_are_the_same_categories_with_and_without_missing_values() -> None:
    train, later = pd.DataFrame({"c": [3, 1, 2]}), pd.DataFrame({"c": [1.0, None, 3.0]})
    assert encoded(later, train, categorical=["c"])[:, 0].tolist() == [0.0, 3.0, 2.0]


def test_category_columns_of_pandas_and_unicode_names_work() -> None:
    frame = pd.DataFrame({"größe 🙂": pd.Categorical(["klein", "groß", None], categories=["klein", "mittel", "groß"])})
    assert encoded(frame)[:, 0].tolist() == [1.0, 0.0, 2.0]


def test_a_table_without_rows_or_without_features_gives_an_empty_matrix() -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0], "c": ["x", "y"]})
    assert encoded(frame.iloc[:0], frame).shape == (0, 2)
    assert encoded(frame[["a"]], structure=DataStructure(target="a")).shape == (2, 0)


def test_a_missing_column_and_an_unknown_one_are_refused() -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [1.0, 2.0]})
    schema, structure = schema_of(frame), DataStructure()
    preparation = fit_preparation(frame, schema, structure)
    with pytest.raises(SchemaMismatchError, match="'b' is not in the table"):
        encode_features(frame[["a"]], structure.feature_columns(schema), preparation)
    with pytest.raises(SchemaMismatchError, match=r"\['b'\] are unknown to the preparation"):
        encode_features(frame, structure.feature_columns(schema), Preparation({"a": (0.0, 1.0)}, {}))


def test_nothing_that_is_given_is_changed() -> None:
    frame = pd.DataFrame({"a": [1.0, None], "c": ["x", None], "t": [0, 1]})
    kept = frame.copy(deep=True)
    structure = DataStructure(target="t")
    schema = schema_of(frame, categorical=["t"])
    first = encoded(frame, structure=structure, categorical=["t"])
    encode_target(frame, schema, structure, Problem.BINARY)
    np.testing.assert_array_equal(first, encoded(frame, structure=structure, categorical=["t"]))
    pd.testing.assert_frame_equal(frame, kept)


@given(
    st.dictionaries(st.text(), st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.floats(5e-324, 1e308))),
    st.dictionaries(st.text(), st.lists(st.one_of(st.text(), st.integers(), st.booleans())).map(tuple)),
    st.sampled_from(["codes", "one_hot"]),
    st.booleans(),
)
def test_a_preparation_survives_json_bit_by_bit(
    continuous: dict[str, tuple[float, float]],
    categorical: dict[str, tuple[object, ...]],
    encoding: str,
    normalise: bool,
) -> None:
    preparation = Preparation(continuous, categorical, encoding, normalise)  # type: ignore[arg-type]
    assert Preparation.from_json(json.loads(json.dumps(preparation.to_json()))) == preparation


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"encoding": "hex"}, "encoding is 'hex'"),
        ({"normalise": 1}, "normalise is 1"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"continuous": {"a": [0.0, 0.0]}}, "'a'"),
        ({"continuous": {"a": [math.nan, 1.0]}}, "'a'"),
        ({"continuous": {"a": [1.0]}}, "'a'"),
        ({"categorical": {"c": "xy"}}, "'c'"),
        ({"categorical": {"c": [[1]]}}, "'c'"),
        ({"categorical": []}, "categorical is"),
    ],
)
def test_a_damaged_preparation_is_refused(change: dict[str, object], named: str) -> None:
    with pytest.raises(SerializationError, match=named):
        Preparation.from_json(Preparation({"a": (0.0, 1.0)}, {"c": ("x",)}).to_json() | change)
    with pytest.raises(SerializationError, match="encoding is None"):
        Preparation.from_json({})


def test_a_categorical_target_becomes_class_numbers() -> None:
    frame = pd.DataFrame({"t": ["dog", "cat", "dog"]})
    found = encode_target(frame, schema_of(frame), DataStructure(target="t"), Problem.BINARY)
    assert found.dtype == np.int64 and found.tolist() == [1, 0, 1]


def test_a_target_of_one_class_and_of_one_row_is_fine() -> None:
    frame = pd.DataFrame({"t": ["only"]})
    assert encode_target(frame, schema_of(frame), DataStructure(target="t"), Problem.MULTICLASS).tolist() == [0]


def test_a_regression_target_is_float32_and_several_targets_are_columns() -> None:
    frame = pd.DataFrame({"u": [0.5, 1.5], "v": [1, 2]})
    one = encode_target(frame, schema_of(frame), DataStructure(target="u"), Problem.REGRESSION)
    assert one.dtype == np.float32 and one.tolist() == [0.5, 1.5]
    two = encode_target(frame, schema_of(frame), DataStructure(target=["v", "u"]), Problem.REGRESSION)
    assert two.dtype == np.float32 and two.tolist() == [[1.0, 0.5], [2.0, 1.5]]


def test_several_labels_are_float32_columns_of_zeros_and_ones() -> None:
    frame = pd.DataFrame({"u": [True, False], "v": [0, 1]})
    structure = DataStructure(target=["u", "v"])
    for forced in ({}, {"categorical": ["v"]}):
        found = encode_target(frame, schema_of(frame, **forced), structure, Problem.MULTILABEL)
        assert found.dtype == np.float32 and found.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_several_class_targets_are_int64_columns() -> None:
    frame = pd.DataFrame({"u": ["a", "b"], "v": ["x", "x"]})
    found = encode_target(frame, schema_of(frame), DataStructure(target=["u", "v"]), Problem.MULTICLASS)
    assert found.dtype == np.int64 and found.tolist() == [[0, 0], [1, 0]]


def test_missing_targets_are_refused_with_count_and_keys() -> None:
    frame = pd.DataFrame({"t": ["a", None, None], "r": [1.0, None, 2.0]}, index=["k1", "k2", "k3"])
    with pytest.raises(DataError, match=r"target 't': missing in 2 rows, first keys \['k2', 'k3'\]"):
        encode_target(frame, schema_of(frame), DataStructure(target="t"), Problem.BINARY)
    with pytest.raises(DataError, match=r"target 'r': missing in 1 rows, first keys \['k2'\]"):
        encode_target(frame, schema_of(frame), DataStructure(target="r"), Problem.REGRESSION)
    with pytest.raises(SchemaMismatchError, match="'t' is not in the table"):
        encode_target(frame[["r"]], schema_of(frame), DataStructure(target="t"), Problem.BINARY)


def test_classes_that_the_schema_does_not_know_are_listed() -> None:
    schema = schema_of(pd.DataFrame({"t": ["a", "b"]}))
    with pytest.raises(DataError, match=r"not in the schema: \['c', 'd'\]; known are \['a', 'b'\]"):
        encode_target(pd.DataFrame({"t": ["c", "a", "d", "c"]}), schema, DataStructure(target="t"), Problem.BINARY)


def test_a_number_as_target_of_a_classification_says_how_to_make_it_a_class() -> None:
    frame = pd.DataFrame({"t": [0, 1]})
    with pytest.raises(DataError, match=r'force_stypes=\{"categorical": \["t"\]\}'):
        encode_target(frame, schema_of(frame), DataStructure(target="t"), Problem.BINARY)


def test_targets_beyond_float32_are_refused() -> None:
    frame = pd.DataFrame({"t": [1.0, 1e39]})
    with pytest.raises(DataError, match="target 't': too large for float32"):
        encode_target(frame, schema_of(frame), DataStructure(target="t"), Problem.REGRESSION)


def test_rows_to_predict_need_no_target() -> None:
    train = pd.DataFrame({"t": ["a", "b"], "u": [1.0, 2.0], "x": [1, 2]})
    schema = schema_of(train)
    one, two = DataStructure(target="t"), DataStructure(target=["u", "t"])
    for frame in (train[["x"]], pd.DataFrame({"t": ["new", None], "u": [None, 3.0]})):
        found = encode_target(frame, schema, one, Problem.BINARY, required=False)
        assert found.dtype == np.int64 and found.tolist() == [0, 0]
        assert encode_target(frame, schema, two, Problem.MULTILABEL, required=False).shape == (2, 2)
    assert encode_target(train, schema, DataStructure(), Problem.REGRESSION).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([0, 1, 1], [0, 1, 1]),
        ([1, 1, 1], [1, 1, 1]),
        ([False, False, False], [0, 0, 0]),
        (["no", "yes", "no"], [0, 1, 0]),
    ],
)
def test_a_label_may_be_there_in_all_rows_or_in_none(values: list[Any], wanted: list[int]) -> None:
    frame = pd.DataFrame({"a": values, "b": [0, 1, 0]})
    schema = schema_of(frame, categorical=["a", "b"])
    found = encode_target(frame, schema, DataStructure(target=["a", "b"]), Problem.MULTILABEL)
    assert found.dtype == np.float32
    assert found[:, 0].tolist() == wanted


@pytest.mark.parametrize("values", [["x", "x", "x"], [0, 1, 2]])
def test_a_label_of_other_than_two_values_is_refused(values: list[Any]) -> None:
    frame = pd.DataFrame({"a": values, "b": [0, 1, 0]})
    with pytest.raises(DataError, match="label 'a'"):
        encode_target(
            frame, schema_of(frame, categorical=["a", "b"]), DataStructure(target=["a", "b"]), Problem.MULTILABEL
        )


def test_support_is_weight_and_ignored_class() -> None:
    frame = pd.DataFrame({"w": [0.5, 2.0], "i": [None, 3.0]})
    assert encode_support(frame, DataStructure()).tolist() == [[1.0, -1.0]] * 2
    both = encode_support(frame, DataStructure(loss_weights_col="w", ignore_classes_col="i"))
    assert both.dtype == np.float32 and both.tolist() == [[0.5, -1.0], [2.0, 3.0]]


@pytest.mark.parametrize("weight", [None, -1.0, math.inf])
def test_weights_that_are_missing_negative_or_infinite_are_refused(weight: float | None) -> None:
    frame = pd.DataFrame({"w": [1.0, weight]}, index=["x", "y"])
    with pytest.raises(DataError, match=r"'w'.*first keys \['y'\]"):
        encode_support(frame, DataStructure(loss_weights_col="w"))


def test_rows_to_predict_need_no_weights() -> None:
    frame, structure = pd.DataFrame({"x": [1]}), DataStructure(loss_weights_col="w", ignore_classes_col="i")
    assert encode_support(frame, structure, required=False).tolist() == [[1.0, -1.0]]
    with pytest.raises(SchemaMismatchError, match="'w'"):
        encode_support(frame, structure)
