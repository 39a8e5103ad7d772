"""Every row once an epoch, in an order of (seed, epoch), and exactly the batches that a step budget asks for."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bitfount_model.data import Order, StepLoader, TabularDataLoader
from bitfount_model.data.dataloaders import BLOCK_ROWS, Batch
from bitfount_model.errors import ConfigurationError, MissingSplitError


def numbered(rows: int, batch_size: int, shuffle: bool = True, seed: int | None = 1) -> TabularDataLoader:
    """A loader whose every tensor holds the row's number."""
    numbers = torch.arange(rows, dtype=torch.float32)
    return TabularDataLoader(
        numbers[:, None].repeat(1, 3), numbers[:, None].repeat(1, 2), numbers.long(), None, batch_size, shuffle, seed
    )


def row_numbers(batches: object) -> list[list[int]]:
    found = []
    for (x, support), y in batches:  # type: ignore[attr-defined]
        assert torch.equal(x[:, 0], y.float()) and torch.equal(support[:, 1], y.float())
        found.append(y.tolist())
    return found


def flat(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


class Watched(TabularDataLoader):
    """Notes which batches are read."""

    def __init__(self, rows: int, batch_size: int) -> None:
        numbers = torch.arange(rows, dtype=torch.float32)
        super().__init__(numbers[:, None], numbers[:, None].repeat(1, 2), numbers.long(), None, batch_size, True, 1)
        self.read: list[tuple[int, int, int]] = []

    def read_batches(self, epoch: int, start: int, stop: int) -> Iterator[Batch]:
        self.read.append((epoch, start, stop))
        return super().read_batches(epoch, start, stop)


@given(rows=st.integers(1, 200), batch_size=st.integers(1, 50), shuffle=st.booleans(), epochs=st.integers(1, 3))
def test_an_epoch_holds_every_row_once(rows: int, batch_size: int, shuffle: bool, epochs: int) -> None:
    loader = numbered(rows, batch_size, shuffle)
    for _ in range(epochs):
        batches = row_numbers(loader)
        assert len(batches) == len(loader)
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(loader) - 1)
        assert sorted(flat(batches)) == list(range(rows))


def test_blocks_are_cut_into_the_right_batches() -> None:
    rows = 2 * BLOCK_ROWS + 17
    for batch_size in (1000, BLOCK_ROWS, BLOCK_ROWS + 1, 3 * BLOCK_ROWS):
        shuffled = flat(row_numbers(numbered(rows, batch_size)))
        assert sorted(shuffled) == list(range(rows)) and shuffled != sorted(shuffled)
        assert flat(row_numbers(numbered(rows, batch_size, shuffle=False))) == list(range(rows))


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    loader, same = numbered(50, 8), numbered(50, 8)
    first, second = row_numbers(loader), row_numbers(loader)
    assert first != second
    same.set_epoch(1)
    assert row_numbers(same) == second
    same.set_epoch(0)
    assert row_numbers(same) == first
    assert row_numbers(numbered(50, 8, seed=2)) != first
    assert row_numbers(numbered(50, 10))[0][:8] == first[0]


def test_without_a_seed_every_loader_has_an_order_of_its_own() -> None:
    torch.manual_seed(0)
    one = row_numbers(numbered(100, 10, seed=None))
    torch.manual_seed(0)
    assert row_numbers(numbered(100, 10, seed=None)) != one


def test_no_global_random_state_is_read_or_written() -> None:
    states = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())
    expected = row_numbers(numbered(40, 7))
    row_numbers(numbered(40, 7, seed=None))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1] and random.getstate() == states[2]
    torch.manual_seed(99)
    assert row_numbers(numbered(40, 7)) == expected


def test_an_unshuffled_order_is_the_table_s() -> None:
    assert Order(3, shuffle=False).of_epoch(4, 10) is None
    assert row_numbers(numbered(5, 2, shuffle=False)) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("shuffle", [True, False])
def test_changing_a_batch_in_place_does_not_change_the_data(shuffle: bool) -> None:
    loader = numbered(20, 6, shuffle)
    for (x, support), y in loader:
        x.zero_(), support.zero_(), y.zero_()
    assert sorted(flat(row_numbers(loader))) == list(range(20))


@given(rows=st.integers(1, 60), batch_size=st.integers(1, 20), start=st.integers(0, 100), batches=st.integers(1, 40))
def test_stepping_gives_the_same_batches_as_iterating_the_epochs(
    rows: int, batch_size: int, start: int, batches: int
) -> None:
    loader = numbered(rows, batch_size)
    epochs = (start + batches) // len(loader) + 1
    endless = [batch for _ in range(epochs) for batch in row_numbers(loader)]
    steps = StepLoader(loader, start, batches)
    assert row_numbers(steps) == endless[start : start + batches]
    assert len(steps) == batches and steps.position == start + batches


def test_rounds_of_seven_or_twenty_batches_train_seven_or_twenty_each_in_order() -> None:
    loader = numbered(15 * 4, 4)
    assert len(loader) == 15
    endless = [batch for _ in range(10) for batch in row_numbers(loader)]
    for k in (7, 20):
        position, seen = 0, []
        for _ in range(5):
            steps = StepLoader(loader, position, k)
            batches = row_numbers(steps)
            assert len(batches) == k
            seen += batches
            position = steps.position
        assert seen == endless[: 5 * k]


def test_batches_that_are_skipped_are_never_read() -> None:
    loader = Watched(40, 4)
    list(StepLoader(loader, 27, 6))
    assert loader.read == [(2, 7, 10), (3, 0, 3)]


def test_the_loader_s_own_epoch_is_left_alone() -> None:
    loader = numbered(12, 4)
    list(StepLoader(loader, 5, 9))
    assert loader.epoch == 0


@given(stop=st.integers(0, 11), start=st.integers(0, 7))
def test_an_interrupted_iteration_goes_on_where_it_stopped(stop: int, start: int) -> None:
    loader = numbered(22, 5)
    whole = row_numbers(StepLoader(loader, start, 12))
    interrupted = StepLoader(loader, start, 12)
    iterator = iter(interrupted)
    before = row_numbers([next(iterator) for _ in range(stop)])
    state = interrupted.state_dict()
    assert state == {"position": start + stop}
    resumed = StepLoader(numbered(22, 5), start, 12)
    resumed.load_state_dict(state)
    assert before + row_numbers(resumed) == whole
    assert row_numbers(resumed) == whole, "the state is used once"


def test_a_position_outside_the_budget_is_refused() -> None:
    steps = StepLoader(numbered(10, 5), 3, 4)
    for position in (2, 8):
        with pytest.raises(ConfigurationError, match="wanted one from 3 to 7"):
            steps.load_state_dict({"position": position})


def test_the_start_of_a_pass_is_known() -> None:
    steps = StepLoader(numbered(12, 4), 4, 6)
    assert [steps.starts_pass(index) for index in range(6)] == [False, False, True, False, False, True]


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, "8", True, None])
def test_a_batch_size_that_is_no_positive_integer_is_refused(batch_size: object) -> None:
    with pytest.raises(ConfigurationError, match="batch_size"):
        numbered(4, batch_size)  # type: ignore[arg-type]


@pytest.mark.parametrize(("start", "batches"), [(-1, 1), (0, 0), (0, -3)])
def test_an_impossible_budget_is_refused(start: int, batches: int) -> None:
    with pytest.raises(ConfigurationError, match="start_batch"):
        StepLoader(numbered(4, 2), start, batches)


def test_stepping_through_no_rows_is_refused_instead_of_running_for_ever() -> None:
    empty = numbered(0, 2)
    assert len(empty) == 0 and list(empty) == []
    with pytest.raises(MissingSplitError, match="no rows"):
        StepLoader(empty, 0, 1)


def test_tensors_of_different_lengths_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="3, 2 and 3 rows"):
        TabularDataLoader(torch.zeros(3, 1), torch.zeros(2, 2), torch.zeros(3), None, 2)
    with pytest.raises(ConfigurationError, match="1 keys for 3 rows"):
        TabularDataLoader(torch.zeros(3, 1), torch.zeros(3, 2), torch.zeros(3), ["a"], 2)


class Mean(pl.LightningModule):
    """Notes the rows that it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []

    def training_step(self, batch: tuple[list[Tensor], Tensor], batch_idx: int) -> Tensor:
        (x, _), y = batch
        self.seen.append(y.tolist())
        return ((x.mean() - self.weight) ** 2).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning 2.6 on torch 2.13
def test_lightning_trains_on_exactly_the_batches_of_the_budget() -> None:
    loader = numbered(30, 7)
    endless = [batch for _ in range(4) for batch in row_numbers(loader)]
    model = Mean()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, train_dataloaders=StepLoader(loader, 3, 8))
    assert model.seen == endless[3:11]
