"""Streamed rows are those that are held in memory: the same parts, numbers, targets and keys; and they take little memory."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sqlalchemy import create_engine, text

from bitfount_model.data import (
    BaseSource,
    BitfountSchema,
    CSVSource,
    DataFrameSource,
    DatasetSplitter,
    DataStructure,
    Loaders,
    ParquetSource,
    PercentageSplitter,
    SplitterDefinedInData,
    SQLSource,
    StreamedDataLoader,
    StreamedTable,
    kept_rows,
    make_loaders,
    make_streamed_loaders,
    streaming,
)
from bitfount_model.data.encoded_rows import SplitWriter
from bitfount_model.errors import (
    ConfigurationError,
    DataError,
    DataSourceError,
    MissingSplitError,
    SchemaMismatchError,
    StorageError,
)
from bitfount_model.types import DataSplit, Problem, SplitIndices

ROWS = 230
GENERATOR = np.random.default_rng(0)
FRAME = pd.DataFrame(
    {
        "patient": np.arange(ROWS) * 3 + 1000,
        "x": GENERATOR.normal(5, 3, ROWS),
        "gaps": np.where(np.arange(ROWS) % 9 == 0, np.nan, GENERATOR.normal(size=ROWS)),
        "constant": 7,
        "c": GENERATOR.choice(["a", "b", "c"], ROWS),
        "w": GENERATOR.random(ROWS),
        "when": GENERATOR.permutation(ROWS),
        "part": GENERATOR.choice(["TRAIN", "VALIDATION", "TEST"], ROWS),
        "t": GENERATOR.integers(0, 3, ROWS),
    }
)
STRUCTURE = DataStructure(
    target="t",
    ignore_cols=["part", "when"],
    loss_weights_col="w",
    dataset_transforms=[{"multiplication": {"name": "product", "arg1": "x", "arg2": "gaps"}}],
)
Make = Callable[[], BaseSource]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 32 rows, so that tables of a few hundred have several."""
    monkeypatch.setattr(streaming, "CHUNK_ROWS", 32)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Make]:
    """The same rows in files, in a database, and in memory."""
    path = tmp_path_factory.mktemp("rows")
    FRAME.to_csv(path / "rows.csv", index=False)
    FRAME.to_parquet(path / "rows.parquet", row_group_size=50)
    engine = create_engine(f"sqlite:///{path / 'rows.db'}")
    FRAME.to_sql("rows", engine, index=False)
    engine.dispose()
    return {
        "csv": lambda: CSVSource(path / "rows.csv", key="patient"),
        "parquet": lambda: ParquetSource(path / "rows.parquet", key="patient"),
        "sql": lambda: SQLSource(f"sqlite:///{path / 'rows.db'}", table="rows", key="patient"),
        "frame": lambda: DataFrameSource(FRAME, key="patient"),
    }


def schema_of(frame: pd.DataFrame, structure: DataStructure = STRUCTURE) -> BitfountSchema:
    schema = BitfountSchema("test")
    schema.generate_full_schema(structure.transform(frame), {"categorical": structure.targets})
    return schema


SCHEMA = schema_of(FRAME.set_index("patient"))


def streamed(
    source: BaseSource,
    folder: Path,
    splitter: DatasetSplitter | None = None,
    structure: DataStructure = STRUCTURE,
    schema: BitfountSchema = SCHEMA,
    **options: Any,
) -> Loaders:
    given = {"problem": Problem.MULTICLASS, "batch_size": 16, "seed": 1, **options}
    return make_streamed_loaders(StreamedTable(source, structure), folder, schema=schema, splitter=splitter, **given)


def held(source: BaseSource, splitter: DatasetSplitter | None = None, **options: Any) -> Loaders:
    given = {"problem": Problem.MULTICLASS, "batch_size": 16, "seed": 1, **options}
    frame = STRUCTURE.transform(source.read())
    return make_loaders(frame, schema=SCHEMA, datastructure=STRUCTURE, splitter=splitter, **given)


def rows_of(loader: Any) -> dict[Any, list[float]]:
    """Key -> features, support and target of that row."""
    in_order = (
        StreamedDataLoader(loader._split, 16)
        if isinstance(loader, StreamedDataLoader)
        else [([loader.features, loader.support], loader.targets)]
    )
    joined = torch.cat([torch.cat([x, support, y[:, None].float()], dim=1) for (x, support), y in in_order])
    assert len(loader.keys) == len(joined) == loader.rows
    return dict(zip(loader.keys, joined.tolist(), strict=True))


SPLITTERS: dict[str, DatasetSplitter] = {
    "percentage": PercentageSplitter(15, 25),
    "in order": PercentageSplitter(15, 25, shuffle=False),
    "strata": PercentageSplitter(15, 25, stratify=True),
    "times": PercentageSplitter(15, 25, time_series_sort_by="when"),
    "defined": SplitterDefinedInData("part"),
}


@pytest.mark.parametrize("name", SPLITTERS)
@pytest.mark.parametrize("kind", ["csv", "parquet", "sql", "frame"])
def test_streamed_rows_are_those_that_are_held_in_memory(
    kind: str, name: str, sources: Mapping[str, Make], tmp_path: Path
) -> None:
    found, wanted = (
        streamed(sources[kind](), tmp_path / "rows", SPLITTERS[name]),
        held(sources[kind](), SPLITTERS[name]),
    )
    assert found.width == wanted.width
    for column, pair in wanted.preparation.continuous.items():
        assert found.preparation.continuous[column] == pytest.approx(pair, rel=1e-12)
    assert found.preparation.categorical == wanted.preparation.categorical
    for part in DataSplit:
        one, two = rows_of(found.of(part)), rows_of(wanted.of(part))
        assert list(one) == sorted(two) if name == "times" else list(one) == list(two)
        for key, values in two.items():
            assert one[key] == pytest.approx(values, rel=1e-6, abs=1e-6)
    assert found.train.targets.dtype == torch.int64


def test_sources_of_every_kind_give_the_same_bits(sources: Mapping[str, Make], tmp_path: Path) -> None:
    found = {kind: streamed(make(), tmp_path / kind) for kind, make in sources.items()}
    batches = {kind: list(loaders.train) for kind, loaders in found.items()}
    for kind in found:
        for ((x, support), y), ((other_x, other_support), other_y) in zip(batches[kind], batches["csv"], strict=True):
            assert torch.equal(x, other_x) and torch.equal(support, other_support) and torch.equal(y, other_y)


def test_an_epoch_trains_every_row_once_in_an_order_of_its_own(sources: Mapping[str, Make], tmp_path: Path) -> None:
    train = streamed(sources["parquet"](), tmp_path / "rows").train
    first, second = (torch.cat([x for (x, _), _ in train]) for _ in range(2))
    in_order = torch.tensor(list(rows_of(train).values()))[:, : first.shape[1]]

    def sorted_rows(values: torch.Tensor) -> list[list[float]]:
        return sorted(values.tolist())

    assert sorted_rows(first) == sorted_rows(second) == sorted_rows(in_order)
    assert not torch.equal(first, second) and not torch.equal(first, in_order)


def test_numbers_without_a_key_are_the_rows_of_the_table(tmp_path: Path) -> None:
    loaders = streamed(DataFrameSource(FRAME.drop(columns="patient")), tmp_path / "rows")
    keys = [key for part in DataSplit for key in loaders.of(part).keys or []]
    assert sorted(keys) == list(range(ROWS))


def test_regression_and_labels_have_float_targets(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": np.arange(50.0), "one": np.arange(50) % 2, "two": np.arange(50) % 3 > 0})
    labels = DataStructure(target=["one", "two"])
    found = streamed(
        DataFrameSource(frame), tmp_path / "labels", None, labels, schema_of(frame, labels), problem=Problem.MULTILABEL
    )
    assert found.train.targets.shape == (40, 2) and found.train.targets.dtype == torch.float32
    number = DataStructure(target="x")
    schema = BitfountSchema()
    schema.generate_full_schema(frame)
    found = streamed(DataFrameSource(frame), tmp_path / "number", None, number, schema, problem=Problem.REGRESSION)
    assert found.train.targets.dtype == torch.float32
    assert found.train.targets.tolist() == [float(key) for key in found.train.keys or []]


# -- rows that are kept ------------------------------------------------------------------------------------------------


class Counting(BaseSource):
    """A source that counts how often its rows were read, and says when they changed."""

    def __init__(self, frame: pd.DataFrame = FRAME, version: int | None = 1) -> None:
        super().__init__("patient")
        self.frame, self.version, self.reads = frame, version, 0

    def state(self) -> dict[str, Any]:
        return {} if self.version is None else {"version": self.version}

    def describe(self) -> dict[str, str]:
        return {"kind": "counting"}

    def _load(self, table: str | None, query: str | None) -> pd.DataFrame:
        return self.frame

    def _chunks(self, rows: int, start: int, table: str | None, query: str | None) -> Iterator[pd.DataFrame]:
        self.reads += 1
        return super()._chunks(rows, start, table, query)


@pytest.mark.parametrize("version", [1, None])
def test_rows_that_are_there_are_not_read_again(version: int | None, tmp_path: Path) -> None:
    source = Counting(version=version)
    first = streamed(source, tmp_path / "rows")
    assert source.reads == 2
    again = streamed(source, tmp_path / "rows")
    assert source.reads == 2
    assert again.preparation == first.preparation
    assert rows_of(again.train) == rows_of(first.train)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"splitter": PercentageSplitter(5, 5)},
        {"structure": dataclasses.replace(STRUCTURE, normalise=False)},
        {"problem": Problem.REGRESSION},
        {"source": Counting(version=2)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_rows_made_in_another_way_are_made_anew(change: dict[str, Any], tmp_path: Path) -> None:
    streamed(Counting(), tmp_path / "rows")
    made = kept_rows(tmp_path / "rows")
    given = {"source": Counting(), **change}
    streamed(given.pop("source"), tmp_path / "rows", **given)
    now = kept_rows(tmp_path / "rows")
    assert made is not None and now is not None
    assert now.made_from != made.made_from and now.digest == made.digest


def test_other_rows_have_another_digest(tmp_path: Path) -> None:
    digests = set()
    for version, frame in enumerate(
        [FRAME, FRAME.assign(x=FRAME["x"].where(FRAME.index != 100, 5.0)), FRAME.iloc[::-1]]
    ):
        streamed(Counting(frame, version), tmp_path / "rows")
        kept = kept_rows(tmp_path / "rows")
        digests.add(kept.digest if kept else None)
    assert len(digests) == 3 and None not in digests


@pytest.mark.parametrize("appended", [0, 5])
def test_writing_that_broke_off_leaves_nothing_that_is_taken_for_rows(
    appended: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wanted = rows_of(streamed(Counting(), tmp_path / "whole").train)
    calls = []

    def failing(*given: Any) -> None:
        calls.append(given)
        if len(calls) > appended:
            raise KeyboardInterrupt
        append(*given)

    append = SplitWriter.append
    monkeypatch.setattr(SplitWriter, "append", failing)
    with pytest.raises(KeyboardInterrupt):
        streamed(Counting(), tmp_path / "rows")
    assert kept_rows(tmp_path / "rows") is None
    monkeypatch.setattr(SplitWriter, "append", append)
    assert rows_of(streamed(Counting(), tmp_path / "rows").train) == wanted
    assert not (tmp_path / "rows.part").exists()


def test_a_preparation_that_is_given_is_used(tmp_path: Path) -> None:
    learned = streamed(Counting(), tmp_path / "one").preparation
    doubled = dataclasses.replace(learned, continuous={name: (m, 2 * s) for name, (m, s) in learned.continuous.items()})
    source = Counting()
    given = streamed(source, tmp_path / "two", preparation=doubled)
    assert given.preparation == doubled
    assert source.reads == 1, "nothing is learned, so the rows are read once"


def test_the_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    streamed(Counting(), tmp_path / "rows")
    assert (tmp_path / "rows").stat().st_mode & 0o077 == 0


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "error", "message"),
    [
        (
            FRAME.assign(x=FRAME["x"].where(FRAME.index != 200, np.inf)),
            DataError,
            "column 'x': infinite in 1 rows, .*1600",
        ),
        (
            FRAME.assign(t=FRAME["t"].where(FRAME.index != 200)),
            DataError,
            "target 't': missing in 1 rows, first keys .*1600",
        ),
        (FRAME.assign(t=FRAME["t"].where(FRAME.index != 200, 9)), DataError, "target 't' has classes .*: .9"),
        (FRAME.assign(w=-FRAME["w"]), DataError, "loss weights 'w': missing or negative"),
        (FRAME.drop(columns="c"), SchemaMismatchError, "column 'c' is missing"),
        (FRAME.assign(c=1.5), SchemaMismatchError, "column 'c' holds number values"),
        (FRAME.iloc[:0], MissingSplitError, "took none of 0"),
        (FRAME.assign(patient=5), DataSourceError, "key column 'patient' repeats values"),
    ],
    ids=["infinite", "no target", "other class", "weights", "lacking", "kind", "empty", "key"],
)
def test_rows_that_cannot_be_used_are_refused_as_in_memory(
    frame: pd.DataFrame, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        streamed(DataFrameSource(frame, key="patient"), tmp_path / "rows")
    with pytest.raises(error, match=message):
        held(DataFrameSource(frame, key="patient"))
    assert kept_rows(tmp_path / "rows") is None


def test_one_row_is_trained_on(tmp_path: Path) -> None:
    loaders = streamed(DataFrameSource(FRAME.iloc[:1], key="patient"), tmp_path / "rows")
    assert (loaders.train.rows, loaders.validation, loaders.test) == (1, None, None)
    (((x, _support), y),) = list(loaders.train)
    assert x[:, 0].tolist() == [0.0] and y.tolist() == [int(FRAME["t"].iloc[0])]


def test_labels_that_say_no_part_are_refused(tmp_path: Path) -> None:
    frame = FRAME.assign(part=FRAME["part"].where(FRAME.index != 200, "LATER"))
    with pytest.raises(DataError, match="splitter column 'part': 1 of 32 rows .*'LATER': 1"):
        streamed(DataFrameSource(frame), tmp_path / "rows", SplitterDefinedInData("part"))


def test_a_table_that_grows_while_it_is_read_is_refused(tmp_path: Path) -> None:
    class Growing(Counting):
        def _count(self, table: str | None, query: str | None) -> int:
            return ROWS - 10

    with pytest.raises(DataError, match=f"changed while it was read: found {ROWS} rows, wanted the {ROWS - 10}"):
        streamed(Growing(), tmp_path / "rows")


def test_a_splitter_that_needs_the_whole_table_is_refused(tmp_path: Path) -> None:
    class Own(DatasetSplitter):
        def split(
            self, frame: pd.DataFrame, seed: int | None = None, stratify: np.ndarray | None = None
        ) -> SplitIndices:
            raise AssertionError

    with pytest.raises(ConfigurationError, match="needs the whole table; hold the rows in memory"):
        streamed(Counting(), tmp_path / "rows", Own())


def test_images_are_refused(tmp_path: Path) -> None:
    frame = FRAME.assign(scan="a.png")
    schema = BitfountSchema()
    schema.generate_full_schema(STRUCTURE.transform(frame), {"categorical": ["t"], "image": ["scan"]})
    structure = dataclasses.replace(STRUCTURE, image_cols=["scan"])
    with pytest.raises(ConfigurationError, match=r"image columns \['scan'\] cannot be streamed"):
        streamed(DataFrameSource(frame), tmp_path / "rows", None, structure, schema)


def test_a_query_without_a_key_is_refused(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'rows.db'}")
    FRAME.to_sql("rows", engine, index=False)
    with engine.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM rows")).scalar_one() == ROWS
    engine.dispose()
    with pytest.raises(DataSourceError, match="in chunks only by a unique column"):
        streamed(SQLSource(f"sqlite:///{tmp_path / 'rows.db'}", query="SELECT * FROM rows"), tmp_path / "rows")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=f"cannot keep {ROWS} encoded rows in .*file.rows.*free some space"):
        streamed(Counting(), tmp_path / "file" / "rows")


# -- memory ------------------------------------------------------------------------------------------------------------

PROGRAM = """\
import sys
from pathlib import Path
import torch
from bitfount_model.data import *
from bitfount_model.types import Problem

def peak():
    # Not getrusage's: a process inherits that one from whoever started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


torch.set_num_threads(1)
kind, path, folder = sys.argv[1:]
source, structure, schema = ParquetSource(path), DataStructure(target="t"), BitfountSchema()
table = StreamedTable(source, structure)
given = {"splitter": None, "problem": Problem.BINARY, "batch_size": 512, "seed": 1}
list(torch.split(torch.zeros(10, 2), 3))
before = peak()
if kind == "streamed":
    schema.generate_from_chunks(table.chunks(), {"categorical": ["t"]})
    loaders = make_streamed_loaders(table, Path(folder), schema=schema, **given)
else:
    frame = structure.transform(source.read())
    schema.generate_full_schema(frame, {"categorical": ["t"]})
    loaders = make_loaders(frame, schema=schema, datastructure=structure, **given)
    del frame
rows = sum(len(y) for loader in (loaders.train, loaders.validation, loaders.test) for _, y in loader)
print(rows, peak() - before)
"""


def test_streaming_takes_a_fraction_of_the_memory_that_holding_takes(tmp_path: Path) -> None:
    rows, columns = 1_000_000, 30
    path = tmp_path / "rows.parquet"
    values = np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)
    frame = pd.DataFrame(values, columns=[f"c{number}" for number in range(columns)])
    frame.assign(t=(values[:, 0] > 0).astype(int)).to_parquet(path, row_group_size=100_000)

    def grown(kind: str) -> int:
        arguments = [sys.executable, "-c", PROGRAM, kind, str(path), str(tmp_path / "encoded")]
        ended = subprocess.run(arguments, capture_output=True, text=True, check=True)
        counted, kilobytes = map(int, ended.stdout.split())
        assert counted == rows
        return kilobytes

    assert 0 < grown("streamed") < 0.5 * grown("held")
    shutil.rmtree(tmp_path / "encoded")
