"""Tables from files and from memory: exact values, keys as the index, and errors that name the file."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_digits

from bitfount_model.data import (
    BaseSource,
    CSVSource,
    DataFrameSource,
    ParquetSource,
    SklearnSource,
    digest,
    source_from_config,
)
from bitfount_model.errors import ConfigurationError, DataSourceError

FRAME = pd.DataFrame(
    {"id": ["p3", "p1", "p2"], "größe 🙂": [0.1 + 0.2, 1e-320, -1.7976931348623157e308], "n": [2**62 + 1, -3, 0]}
)


def written(tmp_path: Path, kind: str, frame: pd.DataFrame = FRAME) -> BaseSource:
    path = tmp_path / f"rows.{kind}"
    if kind == "csv":
        frame.to_csv(path, index=False)
        return CSVSource(path)
    if kind == "parquet":
        frame.to_parquet(path)
        return ParquetSource(path)
    return DataFrameSource(frame)


@pytest.mark.parametrize("kind", ["csv", "parquet", "frame"])
def test_values_are_read_exactly_and_the_same_each_time(tmp_path: Path, kind: str) -> None:
    source = written(tmp_path, kind)
    found = source.read()
    pd.testing.assert_frame_equal(found, FRAME, check_exact=True, check_column_type=False)
    assert isinstance(found.index, pd.RangeIndex)
    assert digest(found) == digest(source.read()) == digest(source.read(table="any name"))


@pytest.mark.parametrize("kind", ["csv", "parquet", "frame"])
def test_a_key_column_becomes_the_index(tmp_path: Path, kind: str) -> None:
    source = written(tmp_path, kind)
    source.key = "id"
    assert source.read().index.tolist() == ["p3", "p1", "p2"]
    assert "id" not in source.read().columns


@pytest.mark.parametrize("kind", ["csv", "parquet", "frame"])
def test_a_bad_key_is_refused(tmp_path: Path, kind: str) -> None:
    source = written(tmp_path, kind, FRAME.assign(twice=["a", "b", "a"], gap=["a", None, "b"]))
    for key, message in (
        ("twice", "repeats values, such as"),
        ("gap", "missing in 1 rows"),
        ("idd", "did you mean 'id'"),
    ):
        source.key = key
        with pytest.raises(DataSourceError, match=message):
            source.read()


@pytest.mark.parametrize("kind", ["csv", "parquet", "frame"])
def test_a_table_without_rows_keeps_its_columns(tmp_path: Path, kind: str) -> None:
    found = written(tmp_path, kind, FRAME.iloc[:0]).read()
    assert found.shape == (0, 3) and list(found.columns) == list(FRAME.columns)


@pytest.mark.parametrize("kind", ["csv", "parquet", "frame"])
def test_a_query_is_refused_where_there_is_nothing_to_query(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataSourceError, match="takes no query"):
        written(tmp_path, kind).read(query="SELECT 1")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_a_csv_file_gives_back_every_bit_of_a_float(tmp_path: Path, values: list[float]) -> None:
    path = tmp_path / "floats.csv"
    path.write_text("x\n" + "\n".join(map(repr, values)))
    assert CSVSource(path).read()["x"].tolist() == values


def test_types_of_a_csv_column_come_from_all_of_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("x\n" + "1\n" * 300_000 + "word\n")
    found = CSVSource(path).read()["x"]
    assert {type(value) for value in found} == {str}


def test_how_a_csv_file_is_written_can_be_said(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("# by hand\nö;land\n1,5;NA\n".encode("latin-1"))
    options = {"sep": ";", "decimal": ",", "encoding": "latin-1", "comment": "#", "keep_default_na": False}
    found = CSVSource(path, read_csv_kwargs=options).read()
    assert found.to_dict("list") == {"ö": [1.5], "land": ["NA"]}
    assert CSVSource(path, read_csv_kwargs={**options, "engine": "python"}).read().equals(found)
    no_header = CSVSource(path, read_csv_kwargs={**options, "header": None, "skiprows": 2})
    assert list(no_header.read().columns) == ["0", "1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n\n", "the file is empty"),
        (b"a,b,a\n1,2,3\n", r"columns \['a'\] appear more than once"),
        (b"a,b\n1,2\n1,2,3\n", "cannot be read as CSV"),
        (b"a,b\n1,2,3\n", "more cells than the header"),
        (b"a\n\xff\xfe\x00\n", "cannot be read as CSV"),
    ],
)
def test_a_damaged_csv_file_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.csv"
    path.write_bytes(content)
    with pytest.raises(DataSourceError, match=message) as caught:
        CSVSource(path).read()
    assert "broken.csv" in str(caught.value)


@pytest.mark.parametrize("source_class", [CSVSource, ParquetSource])
def test_a_missing_file_is_refused_by_name(tmp_path: Path, source_class: type[CSVSource] | type[ParquetSource]) -> None:
    with pytest.raises(DataSourceError, match=r"absent\.rows: does not exist"):
        source_class(tmp_path / "absent.rows").read()


def test_a_folder_is_no_csv_file(tmp_path: Path) -> None:
    with pytest.raises(DataSourceError, match="is a folder"):
        CSVSource(tmp_path).read()


def test_a_damaged_parquet_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "broken.parquet"
    for content in (b"", b"PAR1 no more", FRAME.to_parquet()[:-20]):
        path.write_bytes(content)
        with pytest.raises(DataSourceError, match=r"broken\.parquet: cannot be read as Parquet"):
            ParquetSource(path).read()


def test_an_index_that_pandas_stored_in_parquet_is_kept(tmp_path: Path) -> None:
    found = written(tmp_path, "parquet", FRAME.set_index("id")).read()
    assert found.index.tolist() == ["p3", "p1", "p2"]


def test_a_frame_s_unique_index_is_its_keys_and_another_one_is_numbered() -> None:
    assert DataFrameSource(FRAME.iloc[[2, 0]]).read().index.tolist() == [2, 0]
    assert isinstance(DataFrameSource(pd.concat([FRAME, FRAME])).read().index, pd.RangeIndex)


def test_a_frame_is_neither_changed_nor_seen_when_it_changes() -> None:
    frame = FRAME.copy(deep=True)
    source = DataFrameSource(frame)
    given = source.read()
    given.loc[:, "n"] = 0
    frame.loc[0, "n"] = 99
    pd.testing.assert_frame_equal(source.read(), FRAME, check_column_type=False)


def test_column_names_become_text_and_may_not_repeat() -> None:
    assert list(DataFrameSource(pd.DataFrame([[1, 2]])).read().columns) == ["0", "1"]
    with pytest.raises(DataSourceError, match=r"\['1'\] appear more than once"):
        DataFrameSource(pd.DataFrame([[1, 2]], columns=[1, "1"])).read()


def test_names_and_keys_of_several_levels_are_refused() -> None:
    levels = pd.MultiIndex.from_tuples([("a", 1), ("a", 2)])
    for frame in (pd.DataFrame([[1, 2]], columns=levels), pd.DataFrame({"x": [1, 2]}, index=levels)):
        with pytest.raises(DataSourceError, match="several levels"):
            DataFrameSource(frame).read()


def test_only_a_frame_is_a_frame() -> None:
    with pytest.raises(DataSourceError, match="got a dict"):
        DataFrameSource({"a": [1]})  # type: ignore[arg-type]


def test_scikit_learn_s_tables_are_the_originals() -> None:
    cancer, digits = SklearnSource("breast_cancer").read(), SklearnSource("digits").read()
    np.testing.assert_array_equal(cancer.drop(columns="target").to_numpy(), load_breast_cancer().data)
    np.testing.assert_array_equal(digits["target"], load_digits().target)
    assert list(digits.columns[:2]) == ["pixel_0_0", "pixel_0_1"]
    assert SklearnSource("diabetes").read().shape == (442, 11)
    with pytest.raises(DataSourceError, match=r"'iris' is not known, wanted one of \['breast_cancer'"):
        SklearnSource("iris")


def test_sources_say_what_and_where_they_are(tmp_path: Path) -> None:
    assert CSVSource("rows.csv").describe() == {"kind": "csv", "path": "rows.csv"}
    assert repr(ParquetSource("rows.parquet")) == "ParquetSource(path='rows.parquet')"
    assert repr(DataFrameSource(FRAME)) == "DataFrameSource(rows='3', columns='3')"
    assert repr(SklearnSource("digits")) == "SklearnSource(name='digits')"


def test_a_configuration_makes_the_source_it_describes(tmp_path: Path) -> None:
    written(tmp_path, "csv")
    written(tmp_path, "parquet")
    for kind in ("csv", "parquet"):
        source = source_from_config({kind: str(tmp_path / f"rows.{kind}"), "key": "id"})
        assert source.read().index.tolist() == ["p3", "p1", "p2"]
    assert isinstance(source_from_config({"sklearn": "digits"}), SklearnSource)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"key": "id"},
        {"csv": "a", "parquet": "b"},
        {"xml": "a"},
        {"csv": "a", "keys": "id"},
        {"csv": "a", "key": 3},
        {"csv": 3},
        {"parquet": None},
    ],
)
def test_a_configuration_that_is_no_source_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="datasource"):
        source_from_config(config)


def test_all_problems_of_a_configuration_are_reported_together() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown entry 'xml'.*found no kind.*key is 3"):
        source_from_config({"xml": "a", "key": 3})


def test_the_digest_is_the_same_in_every_process() -> None:
    words = pd.Series(["x", None], dtype=object, index=[7, 8])
    frame = pd.DataFrame({"a": [1.5, np.nan], "c": [True, False]}, index=[7, 8]).assign(b=words)
    assert digest(frame) == "1e62590e80c09d3cf384a40c865ddf7a93dc41a6c146931297e5069855a84c04"


def test_the_digest_changes_with_every_part_of_a_table() -> None:
    base = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    others = [
        base,
        base.rename(columns={"a": "A"}),
        base[["b", "a"]],
        base.iloc[::-1],
        base.set_index(pd.Index([1, 0])),
        base.astype({"a": "int32"}),
        base.assign(a=[1, 3]),
        base.assign(b=["x", "z"]),
        base.assign(b=["xy", ""]),
        base.assign(b=["x", None]),
        base.iloc[:1],
        base.assign(b=pd.Series([1, "1"], dtype=object)),
        base.assign(b=pd.Series([Decimal("1"), date(2024, 1, 1)], dtype=object)),
        base.assign(b=pd.Series([b"x", np.float32(1)], dtype=object)),
    ]
    assert len({digest(frame) for frame in others}) == len(others)


def test_the_digest_does_not_tell_one_missing_value_from_another() -> None:
    odd = np.array([0x7FF8000000000001, 0xFFF8000000000000], dtype=np.uint64).view(np.float64)
    assert digest(pd.DataFrame({"a": odd})) == digest(pd.DataFrame({"a": [np.nan, np.nan]}))
    one, other = (pd.DataFrame({"a": pd.Series(["x", gap], dtype=object)}) for gap in (None, np.nan))
    assert digest(one) == digest(other)


def test_the_digest_refuses_what_has_no_written_form() -> None:
    with pytest.raises(DataSourceError, match="column 'a': a value of type object has no written form"):
        digest(pd.DataFrame({"a": [object()]}))
