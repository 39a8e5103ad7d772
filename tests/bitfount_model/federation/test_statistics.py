"""Statistics of all pods' rows without the rows: what `fit_preparation` makes of the pooled table."""

from __future__ import annotations

import json
import math
import statistics as exact_statistics
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from bitfount_model.data import BitfountSchema, DataStructure, Preparation, fit_preparation
from bitfount_model.errors import ConfigurationError, DataError, SchemaMismatchError, SerializationError
from bitfount_model.federation import Moments, PodStatistics, merge_statistics, pod_statistics

STRUCTURE = DataStructure()


def schema_of(frame: pd.DataFrame, **forced: list[str]) -> BitfountSchema:
    schema = BitfountSchema("trial")
    schema.generate_full_schema(frame, force_stypes=forced)
    return schema


def merged_over(
    frames: list[pd.DataFrame], schema: BitfountSchema, structure: DataStructure = STRUCTURE
) -> Preparation:
    """As it happens in a job: every pod's statistics cross the wire as JSON."""
    sent = {
        f"pod-{number}": json.dumps(pod_statistics(frame, schema, structure, min_rows=1).to_json(), allow_nan=False)
        for number, frame in enumerate(frames)
    }
    received = {pod: PodStatistics.from_json(json.loads(text)) for pod, text in sent.items()}
    return merge_statistics(received, schema, structure)


def assert_close(found: tuple[float, float], want: tuple[float, float], tolerance: float = 1e-12) -> None:
    assert abs(found[0] - want[0]) <= tolerance * max(abs(want[0]), want[1])
    assert abs(found[1] - want[1]) <= tolerance * want[1]


FLOATS = st.floats(-1e6, 1e6) | st.integers(-1000, 1000).map(float) | st.just(math.nan)
PODS = st.lists(st.lists(FLOATS, min_size=1, max_size=12), min_size=1, max_size=5)


@settings(max_examples=200, deadline=None)
@given(PODS, st.sampled_from([0.0, 1.0, 1e6, -1e8]), st.sampled_from([1e-100, 1.0, 1e200]))
def test_merged_statistics_are_those_of_the_pooled_rows(pods: list[list[float]], shift: float, unit: float) -> None:
    frames = [pd.DataFrame({"x": (np.array(values) + shift) * unit}) for values in pods]
    pooled = pd.concat(frames)
    schema = schema_of(pooled)
    found, want = (
        merged_over(frames, schema).continuous["x"],
        fit_preparation(pooled, schema, STRUCTURE).continuous["x"],
    )
    present = pooled["x"].dropna()
    if present.nunique() <= 1:
        assert found == want
    elif want[1] > 1e-8 * float(present.abs().max()):
        assert_close(found, want)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.floats(-1, 1), min_size=2, max_size=8), min_size=1, max_size=4), st.integers(0, 15))
def test_the_stated_bound_holds_against_exact_fractions_however_far_values_are_from_zero(
    pods: list[list[float]], power: int
) -> None:
    frames = [pd.DataFrame({"x": np.array(values) + 10.0**power}) for values in pods]
    values = [Fraction(value) for frame in frames for value in frame["x"]]
    variance = exact_statistics.pvariance(values)
    if variance:
        mean, scale = merged_over(frames, schema_of(pd.concat(frames))).continuous["x"]
        true_scale = Fraction(math.isqrt(int(variance * 4**200)), 2**200)
        true_mean = sum(values) / len(values)
        if true_scale > 0:
            assert abs(Fraction(scale) - true_scale) <= Fraction(1, 10**13) * true_scale
        assert abs(Fraction(mean) - true_mean) <= Fraction(1, 10**13) * max(abs(true_mean), true_scale)


def test_scikit_learns_scaler_on_the_pooled_rows_agrees() -> None:
    rng = np.random.default_rng(3)
    pooled = rng.normal(loc=[0, 50, -1e5], scale=[1, 0.01, 300], size=(5000, 3))
    pooled[rng.random(pooled.shape) < 0.1] = np.nan
    table = pd.DataFrame(pooled, columns=["a", "b", "c"])
    found = merged_over([table[:17], table[17:1200], table[1200:]], schema_of(table))
    scaler = StandardScaler().fit(pooled)
    for position, name in enumerate("abc"):
        assert_close(found.continuous[name], (float(scaler.mean_[position]), float(scaler.scale_[position])))


def test_the_way_rows_are_spread_over_pods_and_the_order_of_pods_are_not_seen() -> None:
    rng = np.random.default_rng(4)
    table = pd.DataFrame({"x": np.exp(rng.normal(size=3000) * 4)})
    schema = schema_of(table)
    sent = {str(n): pod_statistics(table[n::7], schema, STRUCTURE) for n in range(7)}
    found = merge_statistics(sent, schema, STRUCTURE)
    assert merge_statistics(dict(reversed(sent.items())), schema, STRUCTURE) == found
    for cuts in ([], [300], [11, 40, 2000]):
        parts = [table[start:stop] for start, stop in zip([0, *cuts], [*cuts, 3000], strict=True)]
        assert_close(merged_over(parts, schema).continuous["x"], found.continuous["x"], 1e-14)


def test_numbers_times_spans_text_and_missing_values_are_seen_as_by_fit_preparation() -> None:
    times = pd.Series(pd.date_range("2020-01-01", periods=40, freq="37min"))
    table = pd.DataFrame(
        {
            "int": range(40),
            "nullable": pd.array([None, 2, 3, 7] * 10, dtype="Int64"),
            "flag": pd.Series([True, False, True, True] * 10).astype(float),
            "time": times.where(times.dt.minute > 10),
            "zoned": times.dt.tz_localize("Europe/Paris"),
            "span": times - times.iloc[5],
            "text": pd.Series(["1.5", "2", None, "1e3"] * 10, dtype=object),
            "colour": ["red", "blue"] * 20,
        }
    )
    schema = schema_of(table, continuous=["text", "flag"])
    found = merged_over([table[:13], table[13:]], schema)
    want = fit_preparation(table, schema, STRUCTURE)
    assert list(found.continuous) == list(want.continuous) and len(want.continuous) == 7
    for name, pair in want.continuous.items():
        assert_close(found.continuous[name], pair)
    assert (found.categorical, found.encoding, found.normalise) == (want.categorical, want.encoding, want.normalise)


def test_columns_without_values_and_constant_ones_are_as_in_fit_preparation() -> None:
    north = pd.DataFrame({"none": [np.nan] * 3, "here": [np.nan] * 3, "same": [0.1] * 3, "each": [1.0] * 3})
    south = pd.DataFrame({"none": [np.nan] * 2, "here": [3.0, 5.0], "same": [0.1, 0.1], "each": [2.0, 2.0]})
    found = merged_over([north, south], schema_of(pd.concat([north, south]))).continuous
    assert found["none"] == (0.0, 1.0)
    assert found["here"] == (4.0, 1.0)
    assert found["same"] == (0.1, 1.0)
    assert_close(found["each"], (1.4, math.sqrt(0.24)))


@pytest.mark.parametrize("value", [1.7e308, -1.7e308, 5e-324, 1e-310])
def test_values_of_any_size_neither_overflow_nor_vanish(value: float) -> None:
    frames = [pd.DataFrame({"x": [value, 0.0]}), pd.DataFrame({"x": [value, value, 0.0]})]
    pooled = pd.concat(frames)
    found = merged_over(frames, schema_of(pooled)).continuous["x"]
    want = fit_preparation(pooled, schema_of(pooled), STRUCTURE).continuous["x"]
    assert_close(found, want, 1e-12 if abs(value) > 1e-300 else 1e-6 if value > 1e-320 else 1.0)


def test_the_job_settings_are_carried_over() -> None:
    table = pd.DataFrame({"x": np.arange(20.0), "c": ["a", "b"] * 10, "y": [0, 1] * 10, "skip": np.arange(20.0)})
    structure = DataStructure(target="y", ignore_cols=["skip"], categorical_encoding="one_hot", normalise=False)
    schema = schema_of(table)
    found = merged_over([table[:10], table[10:]], schema, structure)
    assert list(found.continuous) == ["x"]
    assert (found.categorical, found.encoding, found.normalise) == ({"c": ("a", "b")}, "one_hot", False)
    assert Preparation.from_json(json.loads(json.dumps(found.to_json()))) == found


# --- what a pod does not send -----------------------------------------------------------------------------------------


def test_what_is_sent_has_six_numbers_a_column_and_no_row() -> None:
    values = np.random.default_rng(5).normal(size=50)
    table = pd.DataFrame({"x": values})
    sent = pod_statistics(table, schema_of(table), STRUCTURE).to_json()
    assert set(sent) == {"columns"}
    assert set(sent["columns"]["x"]) == {"count", "exponent", "pivot", "first", "second"}
    moments = PodStatistics.from_json(sent).columns["x"]
    said = {np.ldexp(number, moments.exponent) for number in (moments.pivot, moments.first, moments.second)}
    assert not said & set(values)


def test_a_pod_refuses_to_send_statistics_of_too_few_values_naming_every_such_column() -> None:
    table = pd.DataFrame(
        {"full": range(20), "few": [1.0] * 9 + [None] * 11, "one": [2.0] + [None] * 19, "none": np.nan}
    )
    schema = schema_of(table)
    with pytest.raises(
        DataError, match=r"fewer than 10 values .* 20 training rows; .* 'few' \(9\), 'one' \(1\)\. Leave"
    ):
        pod_statistics(table, schema, STRUCTURE)
    assert set(pod_statistics(table, schema, STRUCTURE, min_rows=1).columns) == {"full", "few", "one", "none"}
    kept = DataStructure(ignore_cols=["few", "one"])
    assert pod_statistics(table, schema, kept).columns["none"] == Moments(0, 0, 0.0, 0.0, 0.0)


def test_a_pod_of_too_few_rows_refuses_even_where_all_values_are_missing() -> None:
    table = pd.DataFrame({"x": [np.nan] * 9, "c": ["a"] * 9})
    with pytest.raises(DataError, match="found 9 training rows"):
        pod_statistics(table, schema_of(table), STRUCTURE)
    only_categories = table[["c"]]
    assert pod_statistics(only_categories, schema_of(only_categories), STRUCTURE) == PodStatistics({})


@pytest.mark.parametrize("min_rows", [0, -1, True, 2.5, None])
def test_the_fewest_rows_is_a_whole_number_of_at_least_one(min_rows: Any) -> None:
    table = pd.DataFrame({"x": range(20)})
    with pytest.raises(ConfigurationError, match="min_rows"):
        pod_statistics(table, schema_of(table), STRUCTURE, min_rows=min_rows)


def test_infinity_things_that_are_no_numbers_and_missing_columns_are_refused_as_in_fit_preparation() -> None:
    good = pd.DataFrame({"x": np.arange(20.0)})
    schema = schema_of(good)
    with pytest.raises(DataError, match="'x': infinite in 1 rows"):
        pod_statistics(good.replace(3.0, np.inf), schema, STRUCTURE)
    with pytest.raises(DataError, match="'x' is continuous but holds something that is no number"):
        pod_statistics(pd.DataFrame({"x": ["?"] * 20}), schema, STRUCTURE)
    with pytest.raises(SchemaMismatchError, match="'x'"):
        pod_statistics(pd.DataFrame({"y": [1.0] * 20}), schema, STRUCTURE)


# --- what a modeller does not accept ----------------------------------------------------------------------------------

GOOD = {"count": 12, "exponent": 3, "pivot": 0.25, "first": 0.0, "second": 2.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": -1}, "count"),
        ({"count": 2.5}, "count"),
        ({"count": 10**30}, "count"),
        ({"count": 0}, "all else must be 0"),
        ({"exponent": 10**9}, "exponent"),
        ({"pivot": math.nan}, "finite"),
        ({"pivot": 2.0}, "pivot"),
        ({"first": "0"}, "finite"),
        ({"first": 100.0}, "no values have such sums"),
        ({"second": -1.0}, "second"),
        ({"second": math.inf}, "finite"),
        ({"second": True}, "finite"),
        ({"rows": [1, 2]}, "rows"),
    ],
)
def test_statistics_that_no_rows_can_have_are_refused(change: dict[str, Any], message: str) -> None:
    assert PodStatistics.from_json({"columns": {"x": GOOD}}).columns["x"] == Moments(**GOOD)  # type: ignore[arg-type]
    with pytest.raises(SerializationError, match=message):
        PodStatistics.from_json({"columns": {"x": {**GOOD, **change}}})
    for data in (None, [], {}, {"columns": {"x": {}}}, {"columns": {}, "more": 1}):
        with pytest.raises(SerializationError, match="not statistics of a pod"):
            PodStatistics.from_json(data)


def test_statistics_of_other_columns_than_the_jobs_are_refused_by_pod() -> None:
    table = pd.DataFrame({"x": np.arange(20.0), "z": np.arange(20.0)})
    schema = schema_of(table)
    sent = pod_statistics(table, schema, STRUCTURE)
    fewer = PodStatistics({"x": sent.columns["x"]})
    with pytest.raises(
        DataError, match=r"pod 'b' sent columns \['x'\]; pod 'c' sent columns \[\]; wanted \['x', 'z'\]"
    ):
        merge_statistics({"c": PodStatistics({}), "a": sent, "b": fewer}, schema, STRUCTURE)
    with pytest.raises(ConfigurationError, match="found no pods"):
        merge_statistics({}, schema, STRUCTURE)


def test_statistics_beyond_float64_are_refused_by_column() -> None:
    schema = schema_of(pd.DataFrame({"x": np.arange(20.0)}))
    sent = PodStatistics.from_json({"columns": {"x": {**GOOD, "exponent": 1024, "pivot": 1.0}}})
    with pytest.raises(DataError, match="column 'x': a pod's statistics are of values beyond float64"):
        merge_statistics({"a": sent}, schema, STRUCTURE)


def test_nothing_that_is_given_is_changed() -> None:
    table = pd.DataFrame({"x": np.arange(20.0), "t": pd.date_range("2020-01-01", periods=20)})
    kept, schema = table.copy(deep=True), schema_of(table)
    one, two = (pod_statistics(table, schema, STRUCTURE) for _ in range(2))
    assert one == two
    pd.testing.assert_frame_equal(table, kept)
    first, second = (merge_statistics({"a": one, "b": two}, schema, STRUCTURE) for _ in range(2))
    assert first == second
    assert one == two
