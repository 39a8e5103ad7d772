"""Seeds: derived, used inside blocks, and never left behind in the user's generators."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitfount_model import DataFrameSource
from bitfount_model.seeding import derive_seed, seed_generators, seeded
from tests.bitfount_model.models import Classifier, classifier, fitted, same, table

DATA = DataFrameSource(table())


def states() -> tuple[Any, ...]:
    """The state of every global generator, in a form that can be compared."""
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), (kind, keys.tolist(), *rest), torch.get_rng_state().tolist()


def draws() -> tuple[float, float, float]:
    return random.random(), np.random.random(), torch.rand(1).item()


class Draws(Classifier):
    """Draws from every global generator in every step."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.drawn = draws()
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        draws()
        return super().validation_step(batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        self.drawn = draws()
        return super().test_step(batch, batch_idx)


# -- derive_seed -----------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**70), st.lists(st.text() | st.integers()))
def test_a_derived_seed_is_one_that_torch_takes(seed: int, purpose: list[Any]) -> None:
    assert 0 <= derive_seed(seed, *purpose) < 2**63


def test_derived_seeds_are_pinned() -> None:
    """Weights and orders of all released models hang on these numbers."""
    assert derive_seed(1, "weights") == 4602185360624954095
    assert derive_seed(1, "training", 0) == 5604607168169933354


def test_purposes_and_seeds_give_different_seeds() -> None:
    found = {derive_seed(seed, purpose, number) for seed in range(5) for purpose in "ab" for number in range(10)}
    assert len(found) == 100
    assert len({derive_seed(1, "a", "b"), derive_seed(1, "a/b"), derive_seed(1, "1"), derive_seed(1, 1)}) == 4


# -- seeded ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2**62])
def test_a_seeded_block_leaves_the_global_generators_as_they_were(seed: int) -> None:
    before = states()
    with seeded(seed):
        first = draws()
    with pytest.raises(KeyError), seeded(seed):
        assert draws() == first
        raise KeyError
    assert states() == before


def test_a_block_without_seed_draws_as_any_code_would() -> None:
    with seeded(5):
        wanted = draws(), draws()
    with seeded(5):
        with seeded(None):
            first = draws()
        assert (first, draws()) == wanted


def test_seed_generators_seeds_all_three() -> None:
    with seeded(0):
        seed_generators(9)
        first = draws()
        draws()
        seed_generators(9)
        assert draws() == first


# -- through the model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [{"epochs": 2}, {"steps": 5}], ids=str)
def test_a_seeded_model_leaves_the_global_generators_as_they_were(length: dict[str, int]) -> None:
    torch.rand(3), np.random.random(3), random.random()
    before = states()
    model = classifier(Draws, dropout=0.5, **length)
    model.initialise_model(DATA)
    model.fit(DATA)
    model.evaluate()
    model.predict(DATA)
    assert states() == before


def test_a_fit_that_fails_leaves_them_too() -> None:
    class Fails(Draws):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            raise ZeroDivisionError

    before = states()
    with pytest.raises(ZeroDivisionError):
        fitted(Fails, epochs=1)
    assert states() == before


MOMENTS = ("before construction", "before initialising", "before the fit", "before the next fit")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_seed_fixes_weights_and_order_whatever_is_drawn_in_between(moment: str) -> None:
    wanted = fitted(epochs=2, dropout=0.5)
    wanted.fit_locally(None)

    def reach(reached: str) -> None:
        if reached == moment:
            seed_generators(7)
            draws()

    with seeded(0):
        reach(MOMENTS[0])
        model = classifier(epochs=2, dropout=0.5)
        reach(MOMENTS[1])
        model.initialise_model(DATA)
        reach(MOMENTS[2])
        model.fit_locally(None)
        reach(MOMENTS[3])
        model.fit_locally(None)
    assert same(model.get_param_states(), wanted.get_param_states())
    assert model.val_stats == wanted.val_stats


def test_steps_that_draw_get_the_same_numbers_under_the_same_seed() -> None:
    first, second = fitted(Draws, epochs=1), fitted(Draws, epochs=1)
    assert first.drawn == second.drawn
    first.evaluate()
    second.evaluate()
    assert first.drawn == second.drawn


def test_seeds_differ() -> None:
    first, second = fitted(epochs=1, seed=1), fitted(epochs=1, seed=2)
    assert not same(first.get_param_states(), second.get_param_states())


def test_any_integer_of_at_least_0_is_a_seed() -> None:
    for seed in (0, 2**32, 2**64, 10**30):
        fitted(epochs=1, seed=seed).evaluate()


def test_no_seed_is_unseeded() -> None:
    with seeded(42):
        first, second = fitted(epochs=1, seed=None), fitted(epochs=1, seed=None)
    assert not same(first.get_param_states(), second.get_param_states())
    orders = [classifier(epochs=1, seed=None, batch_size=96) for _ in range(2)]
    for model in orders:
        model.initialise_model(DATA)
    (x, _), _ = next(iter(orders[0].train_dl))
    (other, _), _ = next(iter(orders[1].train_dl))
    assert not torch.equal(x, other)
