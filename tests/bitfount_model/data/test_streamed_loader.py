"""Rows on disk: every one once an epoch, shuffled by blocks within windows, in an order of (seed, epoch), from any batch on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitfount_model.data import StepLoader, StreamedDataLoader
from bitfount_model.data.dataloaders import Batch
from bitfount_model.data.encoded_rows import Encoded, EncodedSplit, SplitWriter
from bitfount_model.errors import ConfigurationError, DataError, IntegrityError


def written(folder: Path, rows: int, appended: int = 7, name: str = "train") -> EncodedSplit:
    """A split whose every array holds the row's number, written so many rows at a time."""
    folder.mkdir(exist_ok=True)
    with SplitWriter(folder, name, rows) as writer:
        for begin in range(0, rows, appended):
            numbers = np.arange(begin, min(begin + appended, rows))
            features = np.repeat(numbers[:, None], 3, axis=1).astype(np.float32)
            writer.append(Encoded(features, features[:, :2], numbers), pd.Index(numbers * 10))
    return EncodedSplit(folder, name)


def row_numbers(batches: object) -> list[list[int]]:
    found = []
    for (x, support), y in batches:  # type: ignore[attr-defined]
        assert torch.equal(x[:, 2], y.float()) and torch.equal(support[:, 1], y.float())
        found.append(y.tolist())
    return found


def flat(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    rows=st.integers(1, 150),
    batch_size=st.integers(1, 40),
    block_rows=st.integers(1, 20),
    window_blocks=st.integers(1, 9),
    shuffle=st.booleans(),
    start=st.integers(0, 20),
)
def test_an_epoch_holds_every_row_once_and_can_be_read_from_any_batch_on(
    rows: int, batch_size: int, block_rows: int, window_blocks: int, shuffle: bool, start: int, tmp_path: Path
) -> None:
    split = written(tmp_path / str(rows), rows)
    loader = StreamedDataLoader(split, batch_size, shuffle, 1, block_rows=block_rows, window_blocks=window_blocks)
    for epoch in range(2):
        batches = row_numbers(loader)
        assert len(batches) == len(loader)
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(loader) - 1)
        assert sorted(flat(batches)) == list(range(rows))
        assert shuffle or flat(batches) == list(range(rows))
        assert row_numbers(loader.read_batches(epoch, min(start, len(loader)), len(loader))) == batches[start:]


def test_the_order_is_a_function_of_seed_and_epoch(tmp_path: Path) -> None:
    split = written(tmp_path, 500)

    def epochs(seed: int) -> list[list[int]]:
        loader = StreamedDataLoader(split, 32, True, seed, block_rows=10, window_blocks=5)
        return [flat(row_numbers(loader)) for _ in range(3)]

    assert epochs(1) == epochs(1)
    assert len({tuple(order) for order in (*epochs(1), *epochs(2))}) == 6


def test_a_window_holds_whole_blocks_from_all_over_the_table_in_a_mixed_order(tmp_path: Path) -> None:
    loader = StreamedDataLoader(written(tmp_path, 4000), 100, True, 1, block_rows=10, window_blocks=40)
    order = np.array(flat(row_numbers(loader)))
    for window in order.reshape(10, 400):
        blocks, counts = np.unique(window // 10, return_counts=True)
        assert set(counts) == {10}
        assert blocks.min() < 100 and blocks.max() >= 300, "drawn from the whole table"
        neighbours = np.abs(np.diff(window)) == 1
        assert neighbours.mean() < 0.05, "rows of a block do not stay together"


def test_the_order_of_rows_is_as_even_as_a_whole_permutation_where_the_table_is_one_window(tmp_path: Path) -> None:
    # Where each row lands, over many epochs: chi-square over tenths of the table and tenths of the epoch, 81 degrees of freedom.
    rows, epochs = 100, 200
    loader = StreamedDataLoader(written(tmp_path, rows), rows, True, 1, block_rows=5)
    counts = np.zeros((10, 10))
    for _ in range(epochs):
        order = np.array(flat(row_numbers(loader)))
        np.add.at(counts, (np.arange(rows) // 10, order // 10), 1)
    expected = rows * epochs / 100
    assert ((counts - expected) ** 2 / expected).sum() < 135  # 1 in 10,000


def test_batches_lie_at_the_same_place_in_memory_wherever_the_reading_starts(tmp_path: Path) -> None:
    loader = StreamedDataLoader(written(tmp_path, 300), 7, True, 1, block_rows=10, window_blocks=3)

    def offsets(batches: list[Batch]) -> list[int]:
        return [tensor.data_ptr() % 64 for (x, support), y in batches for tensor in (x, support, y)]

    whole = offsets(list(loader.read_batches(0, 0, len(loader))))
    assert offsets(list(loader.read_batches(0, 13, len(loader)))) == whole[3 * 13 :]


def test_windows_before_the_start_are_not_read(tmp_path: Path) -> None:
    split = written(tmp_path, 300)
    read: list[int] = []

    class Noting(EncodedSplit):
        def read_runs(self, runs: list[tuple[int, int]]) -> Encoded:
            read.append(sum(rows for _, rows in runs))
            return split.read_runs(runs)

    loader = StreamedDataLoader(Noting(tmp_path, "train"), 10, True, 1, block_rows=10, window_blocks=5)
    list(loader.read_batches(0, 0, 30))
    assert read == [50] * 6
    read.clear()
    list(loader.read_batches(0, 25, 30))
    assert read == [50]


def test_steps_go_on_over_epochs_and_after_a_stop(tmp_path: Path) -> None:
    loader = StreamedDataLoader(written(tmp_path, 95), 10, True, 1, block_rows=4, window_blocks=4)
    wanted = row_numbers([*loader.read_batches(0, 0, 10), *loader.read_batches(1, 0, 10)])
    steps = StepLoader(loader, 0, 20)
    running = iter(steps)
    first = [next(running) for _ in range(13)]
    went_on = StepLoader(loader, 0, 20)
    went_on.load_state_dict(steps.state_dict())
    assert row_numbers([*first, *went_on]) == wanted


def test_targets_and_keys_are_in_the_tables_order(tmp_path: Path) -> None:
    loader = StreamedDataLoader(written(tmp_path, 40), 7, True, 1)
    assert loader.targets.tolist() == list(range(40))
    assert loader.keys == [10 * row for row in range(40)]


def test_a_batch_size_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="batch_size is 0"):
        StreamedDataLoader(written(tmp_path, 10), 0)


@pytest.mark.parametrize("harm", ["shorter", "longer", "gone", "no header"])
def test_files_that_are_not_as_they_were_written_are_refused(harm: str, tmp_path: Path) -> None:
    written(tmp_path, 50)
    path = tmp_path / "train.features.npy"
    content = path.read_bytes()
    path.write_bytes({"shorter": content[:-1], "longer": content + b"x"}.get(harm, b"abc"))
    if harm == "gone":
        path.unlink()
    with pytest.raises(IntegrityError, match=r"train\.features\.npy: encoded rows are not as .* remove the folder"):
        EncodedSplit(tmp_path, "train")


def test_a_file_that_is_cut_while_it_is_read_is_refused(tmp_path: Path) -> None:
    split = written(tmp_path, 50)
    path = tmp_path / "train.targets.npy"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="it ends too early"):
        list(StreamedDataLoader(split, 10))


def test_the_files_are_what_numpy_reads(tmp_path: Path) -> None:
    written(tmp_path, 20)
    assert np.load(tmp_path / "train.features.npy").tolist() == [[row] * 3 for row in range(20)]
    assert np.load(tmp_path / "train.targets.npy").dtype == np.int64


@pytest.mark.parametrize(
    "keys",
    [["a", "ü", "c"], [1.5, 2.5, 3.5], list(pd.date_range("2020-01-01", periods=3, tz="UTC")), [2**62, -5, 0]],
    ids=["text", "floats", "times", "whole"],
)
def test_keys_come_back_as_they_were(keys: list[object], tmp_path: Path) -> None:
    numbers = np.zeros((1, 1), np.float32)
    with SplitWriter(tmp_path, "test", 3) as writer:
        for place in range(3):
            writer.append(Encoded(numbers, numbers, numbers[0]), pd.Index(keys)[place : place + 1])
    assert EncodedSplit(tmp_path, "test").keys() == keys


def test_keys_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    numbers = np.zeros((2, 1), np.float32)
    with (
        pytest.raises(DataError, match="keys cannot be kept on disk.*name a column"),
        SplitWriter(tmp_path, "a", 2) as writer,
    ):
        writer.append(Encoded(numbers, numbers, numbers[:, 0]), pd.Index([1, "one"], dtype=object))
