"""Tables that are handed to another process arrive as they were: names, dtypes, keys and every value."""

from __future__ import annotations

import datetime
import decimal
import uuid
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer

from bitfount_model.data.table_bytes import table_from_bytes, table_to_bytes
from bitfount_model.data.table_digest import digest
from bitfount_model.errors import DataError

PARIS = "Europe/Paris"
COLUMNS: dict[str, Any] = {
    "float64": [1.5, float("nan"), -0.0],
    "float32": np.array([1.5, np.inf, 1e-40], dtype=np.float32),
    "uint8": np.array([0, 1, 255], dtype=np.uint8),
    "int64": [-(2**63), 0, 2**63 - 1],
    "bool": [True, False, True],
    "nullable": pd.array([1, None, 3], dtype="Int64"),
    "text": pd.Series(["a", None, "é"], dtype="str"),
    "categories": pd.Categorical(["b", "a", None], categories=["b", "a", "never"], ordered=True),
    "time": pd.to_datetime(["2020-01-01", None, "1999-12-31 23:59:59.123456789"], format="ISO8601"),
    "time zone": pd.to_datetime(["2020-01-01", None, "2021-06-01"]).tz_localize(PARIS),
    "span": pd.to_timedelta([1, None, 3], unit="ns"),
    "objects of text": pd.Series(["a", None, "b"], dtype=object),
    "objects of bytes": pd.Series([b"", b"\xff" * 9, b"a"], dtype=object),
    "numbers and text": pd.Series([1, "1", 1.0], dtype=object),
    "whole numbers and none": pd.Series([1, None, 3], dtype=object),
    "missing of all kinds": pd.Series([None, float("nan"), pd.NA], dtype=object),
    "truth and none": pd.Series([True, None, False], dtype=object),
    "decimals": pd.Series([decimal.Decimal("1.0"), decimal.Decimal("1.00"), decimal.Decimal("NaN")], dtype=object),
    "large": pd.Series([2**70, -1, 0], dtype=object),
    "dates": pd.Series(
        [datetime.date(2020, 1, 1), datetime.time(1, 2, 3, 4), datetime.timedelta(-1, 2, 3)], dtype=object
    ),
    "moments": pd.Series(
        [pd.Timestamp("2020-01-01", tz=PARIS), datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC), pd.NaT], dtype=object
    ),
    "names": pd.Series([uuid.UUID(int=5), uuid.UUID(int=6), None], dtype=object),
    "arrays": pd.Series([np.arange(3), np.array(["a", None], dtype=object), np.float32(1.5)], dtype=object),
    "nested": pd.Series([[1, "a"], {"a": [None, 2.5]}, (1,)], dtype=object),
    "half a letter": pd.Series(["\ud800", "a", "b"], dtype=object),
}


def there_and_back(frame: pd.DataFrame) -> pd.DataFrame:
    before = digest(frame)
    arrived = table_from_bytes(bytes(table_to_bytes(frame)))
    assert digest(frame) == before
    return arrived


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_arrives_as_it_was(name: str) -> None:
    frame = pd.DataFrame({name: COLUMNS[name]})
    arrived = there_and_back(frame)
    assert digest(arrived) == digest(frame)
    assert arrived.dtypes.tolist() == frame.dtypes.tolist()
    if frame[name].dtype == object:
        assert [type(value) for value in arrived[name]] == [type(value) for value in frame[name]]
        assert list(map(repr, arrived[name])) == list(map(repr, frame[name]))
    else:
        pd.testing.assert_frame_equal(arrived, frame, check_column_type=False)


@pytest.mark.parametrize(
    "index",
    [
        pd.RangeIndex(3),
        pd.RangeIndex(6, 0, -2, name="number"),
        pd.Index(["p-1", "p-2", "p-3"], name="patient"),
        pd.Index([3, 1, 2], name="patient"),
        pd.Index([uuid.UUID(int=n) for n in range(3)], name="patient"),
        pd.Index([1, "1", 2.5], dtype=object),
        pd.date_range("2020", periods=3, tz=PARIS, name="day"),
    ],
    ids=lambda index: f"{type(index).__name__} {index.dtype}",
)
def test_keys_arrive_as_they_were(index: pd.Index[Any]) -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0], "patient": ["x", "y", "z"]}, index=index)
    arrived = there_and_back(frame)
    assert digest(arrived) == digest(frame)
    assert type(arrived.index) is type(index) and arrived.index.name == index.name
    assert list(arrived.index) == list(index)


def test_all_columns_together_keep_their_order() -> None:
    frame = pd.DataFrame(COLUMNS)
    assert list(there_and_back(frame).columns) == list(COLUMNS)
    real = load_breast_cancer(as_frame=True).frame
    pd.testing.assert_frame_equal(there_and_back(real).set_axis(real.columns, axis="columns"), real)


def test_tables_without_rows_or_columns_arrive_too() -> None:
    for frame in (pd.DataFrame({"a": [], "b": pd.Series([], dtype=object)}), pd.DataFrame(index=pd.RangeIndex(3))):
        arrived = there_and_back(frame)
        assert digest(arrived) == digest(frame) and arrived.shape == frame.shape


@pytest.mark.parametrize("value", [object(), 1 + 2j, {1, 2}], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("dtype", [object, None])
def test_a_value_without_a_written_form_is_refused_with_its_column(value: object, dtype: Any) -> None:
    frame = pd.DataFrame({"a": [1], "odd": pd.Series([value], dtype=dtype)})
    with pytest.raises(DataError, match="column 'odd' cannot be handed to the model's process"):
        table_to_bytes(frame)
