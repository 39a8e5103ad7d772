"""Splits are disjoint, cover all rows, and are a function of (rows, shares, seed) alone."""

from __future__ import annotations

import random
from math import floor

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from bitfount_model.data import PercentageSplitter, SplitterDefinedInData
from bitfount_model.errors import BitfountError, ConfigurationError, DataError, SchemaMismatchError
from bitfount_model.types import DataSplit, SplitIndices


def table(rows: int) -> pd.DataFrame:
    return pd.DataFrame({"x": np.arange(rows, dtype=float)})


def sizes(split: SplitIndices) -> tuple[int, int, int]:
    return len(split.train), len(split.validation), len(split.test)


def everything(split: SplitIndices) -> list[int]:
    return sorted([*split.train.tolist(), *split.validation.tolist(), *split.test.tolist()])


def equal(one: SplitIndices, other: SplitIndices) -> bool:
    return all(np.array_equal(one.of(part), other.of(part)) for part in DataSplit)


@st.composite
def shares(draw: st.DrawFn) -> tuple[float, float]:
    validation = draw(st.floats(0, 100))
    return validation, draw(st.floats(0, 100 - validation))


@given(rows=st.integers(0, 400), share=shares(), seed=st.integers(0, 2**63), shuffle=st.booleans())
def test_every_row_is_in_exactly_one_part(rows: int, share: tuple[float, float], seed: int, shuffle: bool) -> None:
    split = PercentageSplitter(*share, shuffle=shuffle).split(table(rows), seed)
    assert everything(split) == list(range(rows))
    assert all(split.of(part).dtype == np.int64 for part in DataSplit)


@given(rows=st.integers(0, 400), share=shares())
def test_sizes_are_the_shares_to_within_one_row_and_training_is_never_starved(
    rows: int, share: tuple[float, float]
) -> None:
    found = sizes(PercentageSplitter(*share).split(table(rows), 1))
    exact = [rows * (100 - sum(share)) / 100, rows * share[0] / 100, rows * share[1] / 100]
    if rows and 100 - sum(share) > 0:
        assert found[0] >= 1
    if floor(exact[0] + 1e-6) >= 1:
        assert all(abs(size - wanted) < 1 + 1e-6 for size, wanted in zip(found, exact, strict=True))


def test_a_share_of_ten_percent_of_569_rows_is_57_rows() -> None:
    assert sizes(PercentageSplitter().split(table(569))) == (455, 57, 57)


@pytest.mark.parametrize(
    ("rows", "validation", "test", "expected"),
    [
        (0, 10, 10, (0, 0, 0)),
        (1, 10, 10, (1, 0, 0)),
        (1, 45, 45, (1, 0, 0)),
        (2, 50, 49, (1, 1, 0)),
        (3, 33.3, 33.3, (1, 1, 1)),
        (10, 0, 0, (10, 0, 0)),
        (10, 0, 100, (0, 0, 10)),
        (4, 25, 25, (2, 1, 1)),
    ],
)
def test_small_tables_have_the_stated_sizes(
    rows: int, validation: float, test: float, expected: tuple[int, int, int]
) -> None:
    assert sizes(PercentageSplitter(validation, test).split(table(rows))) == expected


def test_the_split_is_the_same_each_time_and_different_for_another_seed() -> None:
    splitter, frame = PercentageSplitter(), table(200)
    assert equal(splitter.split(frame, 7), splitter.split(frame, 7))
    assert not equal(splitter.split(frame, 7), splitter.split(frame, 8))
    assert equal(splitter.split(frame), PercentageSplitter().split(frame))


def test_the_split_does_not_depend_on_the_values_or_on_what_was_split_before() -> None:
    splitter = PercentageSplitter()
    first = splitter.split(table(100), 3)
    splitter.split(table(50), 9)
    assert equal(first, splitter.split(table(100) * -2, 3))


def test_the_splitter_s_own_seed_wins_over_the_caller_s() -> None:
    own = PercentageSplitter(seed=5)
    assert equal(own.split(table(100), 1), own.split(table(100), 2))
    assert equal(own.split(table(100)), PercentageSplitter().split(table(100), 5))


@given(st.integers(0, 2**32 - 1))
def test_no_global_random_state_is_read_or_written(seed: int) -> None:
    splitter, frame = PercentageSplitter(), table(60)
    expected = splitter.split(frame, 11)
    np.random.seed(seed)
    torch.manual_seed(seed)
    random.seed(seed)
    before = (np.random.get_state()[1].tolist(), torch.get_rng_state(), random.getstate())
    assert equal(splitter.split(frame, 11), expected)
    assert np.random.get_state()[1].tolist() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert random.getstate() == before[2]


def test_splitting_leaves_the_table_as_it_was() -> None:
    frame = pd.DataFrame({"x": [3, 1, 2], "part": ["TRAIN", "TEST", "VALIDATION"]})
    kept = frame.copy(deep=True)
    PercentageSplitter().split(frame)
    PercentageSplitter(time_series_sort_by="x").split(frame)
    SplitterDefinedInData("part").split(frame)
    pd.testing.assert_frame_equal(frame, kept)


def test_without_shuffling_the_first_rows_are_training_and_the_last_are_test() -> None:
    split = PercentageSplitter(20, 30, shuffle=False).split(table(10))
    assert split.train.tolist() == [0, 1, 2, 3, 4]
    assert split.validation.tolist() == [5, 6]
    assert split.test.tolist() == [7, 8, 9]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=60), shares(), st.booleans())
def test_a_time_series_never_trains_on_what_comes_after_validation_or_test(
    times: list[int], share: tuple[float, float], shuffle: bool
) -> None:
    frame = pd.DataFrame({"day": pd.to_datetime(times, unit="D")}, index=range(5, 5 + len(times)))
    split = PercentageSplitter(*share, shuffle=shuffle, time_series_sort_by="day").split(frame)
    assert everything(split) == list(range(len(times)))
    order = np.concatenate([split.train, split.validation, split.test])
    assert frame["day"].iloc[order].is_monotonic_increasing


def test_a_time_series_without_times_is_refused() -> None:
    frame = pd.DataFrame({"day": [1.0, None, 2.0]}, index=["a", "b", "c"])
    with pytest.raises(DataError, match=r"'day' is missing in 1 rows, first keys \['b'\]"):
        PercentageSplitter(time_series_sort_by="day").split(frame)
    with pytest.raises(SchemaMismatchError, match="'dya'"):
        PercentageSplitter(time_series_sort_by="dya").split(frame)


@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=6), share=shares(), seed=st.integers(0, 1000))
@example(counts=[2], share=(0.0, 99.99999999999999), seed=0)
def test_stratified_parts_hold_each_class_by_its_share(
    counts: list[int], share: tuple[float, float], seed: int
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    split = PercentageSplitter(*share, stratify=True).split(table(len(labels)), seed, labels)
    assert everything(split) == list(range(len(labels)))
    several = [count for count in counts if count > 1]
    plain = sizes(PercentageSplitter(*share).split(table(sum(several)), seed))
    assert sizes(split) == (plain[0] + len(counts) - len(several), *plain[1:])
    for label, count in enumerate(counts):
        found = [int((labels[split.of(part)] == label).sum()) for part in DataSplit]
        wanted = [count * part / 100 for part in (100 - sum(share), *share)]
        if count == 1:
            assert found == [1, 0, 0]
        else:
            assert all(abs(a - b) <= 2 + 1e-6 for a, b in zip(found, wanted, strict=True))


def test_stratification_keeps_the_shares_of_an_unbalanced_table_exactly() -> None:
    labels = np.array(["rare"] * 10 + ["common"] * 90)
    split = PercentageSplitter(20, 10, stratify=True).split(table(100), 0, labels)
    assert [(labels[split.of(part)] == "rare").sum() for part in DataSplit] == [7, 2, 1]
    assert sizes(split) == (70, 20, 10)


def test_a_missing_class_is_a_class_of_its_own() -> None:
    labels = np.array(["a", None] * 10, dtype=object)
    split = PercentageSplitter(20, 20, stratify=True).split(table(20), 0, labels)
    assert [pd.isna(labels[split.of(part)]).sum() for part in DataSplit] == [6, 2, 2]


def test_stratification_without_labels_is_refused() -> None:
    with pytest.raises(DataError, match="needs the rows' classes"):
        PercentageSplitter(stratify=True).split(table(5))
    with pytest.raises(DataError, match="4 labels for 5 rows"):
        PercentageSplitter(stratify=True).split(table(5), 0, np.zeros(4))


@pytest.mark.parametrize(
    "arguments",
    [
        {"validation_percentage": -1},
        {"test_percentage": 100.1},
        {"validation_percentage": float("nan")},
        {"validation_percentage": True},
        {"validation_percentage": "10"},
        {"validation_percentage": 60, "test_percentage": 50},
        {"seed": -1},
        {"seed": 1.5},
        {"stratify": True, "time_series_sort_by": "day"},
        {"stratify": True, "shuffle": False},
    ],
)
def test_impossible_shares_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="PercentageSplitter"):
        PercentageSplitter(**arguments)


def test_all_problems_of_the_shares_are_reported_together() -> None:
    with pytest.raises(ConfigurationError, match=r"validation_percentage is -1.*test_percentage is 101.*seed is -2"):
        PercentageSplitter(-1, 101, seed=-2)


def test_splitters_are_values() -> None:
    assert PercentageSplitter(10, 10) == PercentageSplitter()
    assert PercentageSplitter(10, 20) != PercentageSplitter()
    assert SplitterDefinedInData("part") == SplitterDefinedInData("part")
    assert "validation_percentage=10" in repr(PercentageSplitter())
    assert "column_name='part'" in repr(SplitterDefinedInData("part"))


def test_labels_in_the_data_decide() -> None:
    frame = pd.DataFrame({"part": ["TEST", "TRAIN", "VALIDATION", "TRAIN"]}, index=list("abcd"))
    split = SplitterDefinedInData("part").split(frame, seed=3)
    assert (split.train.tolist(), split.validation.tolist(), split.test.tolist()) == ([1, 3], [2], [0])


def test_labels_may_be_renamed_and_a_part_may_be_empty() -> None:
    frame = pd.DataFrame({"part": ["fit", "fit"]})
    split = SplitterDefinedInData("part", "fit", "check", "final").split(frame)
    assert sizes(split) == (2, 0, 0)
    assert sizes(SplitterDefinedInData("part").split(frame.iloc[:0])) == (0, 0, 0)


def test_labels_may_be_a_category_column() -> None:
    frame = pd.DataFrame({"part": pd.Categorical(["TEST", "TRAIN"])})
    assert sizes(SplitterDefinedInData("part").split(frame)) == (1, 0, 1)


def test_unknown_labels_are_refused_with_their_counts() -> None:
    frame = pd.DataFrame({"part": ["TRAIN", "train", "train", None]})
    with pytest.raises(DataError, match=r"3 of 4 rows .*'train': 2, nan: 1|3 of 4 rows .*'train': 2, None: 1"):
        SplitterDefinedInData("part").split(frame)
    with pytest.raises(SchemaMismatchError, match="'fold' is not in the table"):
        SplitterDefinedInData("fold").split(frame)


@pytest.mark.parametrize("arguments", [("",), ("part", "A", "A"), (None,)])
def test_labels_that_cannot_tell_parts_apart_are_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises(BitfountError, match="SplitterDefinedInData"):
        SplitterDefinedInData(*arguments)
