"""What a private update may tell: its length, its noise, and the epsilon that they come to."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from bitfount_model.errors import ParameterError
from bitfount_model.federation.privacy import (
    PrivacySettings,
    add_noise,
    clip_update,
    composed_epsilon,
    epsilon_spent,
    gaussian,
    private_update,
    running_statistics,
)
from bitfount_model.parameters import trainable_names

OPACUS_ORDERS = [1 + x / 10 for x in range(1, 100)] + list(range(12, 64))
DRAWS = 100_000
CHANCE = 1e-9
"""How often a test of random numbers may fail that are right."""
VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20)


def exact_epsilon(sensitivity_over_std: float, delta: float) -> float:
    """Of one Gaussian mechanism, exactly: Balle and Wang, "Improving the Gaussian Mechanism" (2018), Theorem 8."""
    mu = sensitivity_over_std

    def excess(epsilon: float) -> float:
        first = stats.norm.cdf(mu / 2 - epsilon / mu)
        second = math.exp(epsilon + stats.norm.logcdf(-mu / 2 - epsilon / mu))
        return float(first - second - delta)

    return float(optimize.brentq(excess, 0, mu * mu / 2 + 40 * mu))


def norm(update: dict[str, torch.Tensor]) -> float:
    return math.sqrt(math.fsum(float(value) ** 2 for part in update.values() for value in part.reshape(-1)))


# -- the accountant ---------------------------------------------------------------------------------------------------------


def test_the_accountant_gives_the_known_answer() -> None:
    found = composed_epsilon([(1.5, 0.04, 2250)], 1e-5, OPACUS_ORDERS)
    assert found == pytest.approx(7.32911117143, abs=1e-11)


@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0, 50.0])
@pytest.mark.parametrize("rounds", [1, 10, 1000])
@pytest.mark.parametrize("delta", [1e-9, 1e-5, 1e-2])
def test_epsilon_bounds_that_of_the_exact_mechanism_and_is_close_to_it(noise: float, rounds: int, delta: float) -> None:
    # Rounds of Gaussian noise are one Gaussian mechanism; two updates of length C are at most 2 C apart.
    exact = exact_epsilon(2 / noise * math.sqrt(rounds), delta)
    assert exact <= epsilon_spent([noise] * rounds, delta) <= 1.25 * exact + 0.02


def test_rounds_with_other_noise_add_up_in_any_order() -> None:
    together = epsilon_spent([4.0, 8.0, 4.0], 1e-5)
    assert together == epsilon_spent([8.0, 4.0, 4.0], 1e-5)
    # 1/4^2 + 1/4^2 + 1/8^2 is what one release of this noise has
    assert together == pytest.approx(epsilon_spent([(2 / 16 + 1 / 64) ** -0.5], 1e-5), rel=1e-9)


def test_nothing_told_costs_nothing() -> None:
    assert epsilon_spent([], 1e-5) == 0


def test_the_page_tells_the_epsilons_that_noise_and_rounds_come_to() -> None:
    page = (Path(__file__).parents[3] / "docs" / "federated.md").read_text(encoding="utf-8")
    section = page.partition("\n## Differential privacy\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| (\S+) \| (\S+) \| (\S+) \|$", section, flags=re.MULTILINE)
    assert len(rows) == 4
    for noise, *told in rows:
        assert told == [f"{epsilon_spent([float(noise)] * rounds, 1e-6):.3g}" for rounds in (1, 10, 100)]


# -- clipping ---------------------------------------------------------------------------------------------------------------


@given(first=VALUES, second=VALUES, clip=st.floats(1e-6, 1e6))
def test_a_clipped_update_is_no_longer_than_the_clip_and_keeps_its_direction(
    first: list[float], second: list[float], clip: float
) -> None:
    update = {
        "a": torch.tensor(first, dtype=torch.float32),
        "b": torch.tensor(second, dtype=torch.float64).reshape(1, -1),
    }
    before = {name: value.clone() for name, value in update.items()}
    clipped = clip_update(update, clip)
    assert norm(clipped) <= clip
    length = norm(update)
    factor = min(1.0, clip / length) if length else 1.0
    for name, value in update.items():
        assert torch.equal(value, before[name])
        assert clipped[name].shape == value.shape and clipped[name].dtype == torch.float64
        torch.testing.assert_close(clipped[name], value.double() * factor, rtol=1e-9, atol=1e-15)


def test_clipping_refuses_what_has_no_length() -> None:
    with pytest.raises(ParameterError, match="not a finite number"):
        clip_update({"a": torch.tensor([1.0, math.nan])}, 1.0)
    with pytest.raises(ParameterError, match="count: only floating-point"):
        clip_update({"count": torch.tensor([1])}, 1.0)


# -- noise ------------------------------------------------------------------------------------------------------------------


def test_noise_is_gaussian_with_the_standard_deviation_that_is_asked_for() -> None:
    clip, multiplier = 0.5, 3.0
    values = add_noise(torch.full((DRAWS,), 2.0, dtype=torch.float64), clip * multiplier).numpy() - 2.0
    scaled = values / (clip * multiplier)
    low, high = stats.chi2.ppf([CHANCE / 2, 1 - CHANCE / 2], DRAWS)
    assert low < float(np.square(scaled).sum()) < high
    assert abs(float(scaled.mean())) < stats.norm.isf(CHANCE / 2) / math.sqrt(DRAWS)
    assert stats.kstest(scaled, "norm").pvalue > CHANCE
    neighbours = float(np.corrcoef(scaled[:-1], scaled[1:])[0, 1])
    assert abs(neighbours) < stats.norm.isf(CHANCE / 2) / math.sqrt(DRAWS)


def test_numbers_are_the_inverse_of_the_distribution_at_the_random_bits() -> None:
    words = np.array([0, 1, 2**51, 2**52 - 1, 2**63 + 12345], dtype=np.uint64)
    found = gaussian(len(words), lambda count: words.tobytes()[:count]).numpy()
    uniform = ((words & np.uint64(2**52 - 1)).astype(np.float64) + 0.5) / 2**52
    np.testing.assert_allclose(found, stats.norm.ppf(uniform), rtol=1e-9)
    assert np.isfinite(found).all()


def test_every_value_has_bits_of_its_own_beyond_one_block() -> None:
    count, asked = 300_000, []

    def random_bytes(size: int) -> bytes:
        asked.append(size)
        return np.random.default_rng(len(asked)).bytes(size)

    values = gaussian(count, random_bytes)
    assert sum(asked) == 8 * count and len(asked) > 1
    assert len(torch.unique(values)) == count
    assert gaussian(0).shape == (0,)


@settings(max_examples=30)
@given(std=st.floats(1e-9, 1e9), value=st.floats(-1e3, 1e3))
def test_noisy_values_lie_on_a_grid_that_does_not_depend_on_them(std: float, value: float) -> None:
    found = add_noise(torch.full((50,), value, dtype=torch.float64), std)
    grid = 2.0 ** (math.floor(math.log2(std)) - 20)
    assert torch.equal(found / grid, torch.round(found / grid))


# -- the update -------------------------------------------------------------------------------------------------------------

ASKED = PrivacySettings(clip=1.0, noise_multiplier=0.5, delta=1e-5)


def test_only_trainable_parameters_leave_and_each_of_their_values_has_noise() -> None:
    update = {
        "weight": torch.full((200, 3), 7.0),
        "frozen": torch.ones(4),
        "count": torch.tensor(5),
        "half": torch.zeros(100, dtype=torch.float16),
    }
    found = private_update(update, {"weight", "half"}, ASKED)
    assert {name: (value.dtype, value.shape) for name, value in found.items()} == {
        name: (value.dtype, value.shape) for name, value in update.items()
    }
    assert list(found) == list(update)
    assert not found["frozen"].any() and found["count"] == 0
    clipped = clip_update({name: update[name] for name in ("weight", "half")}, ASKED.clip)
    assert (found["weight"].double() != clipped["weight"]).all() and found["half"].any()
    assert update["frozen"].all() and update["count"] == 5


def test_the_same_update_twice_has_other_noise_whatever_torch_is_seeded_with() -> None:
    update = {"weight": torch.zeros(1000)}
    torch.manual_seed(1)
    first = private_update(update, {"weight"}, ASKED)
    torch.manual_seed(1)
    second = private_update(update, {"weight"}, ASKED)
    assert (first["weight"] != second["weight"]).float().mean() > 0.99


def test_what_cannot_be_protected_is_refused() -> None:
    with pytest.raises(ParameterError, match="lacks bias"):
        private_update({"weight": torch.zeros(2)}, {"weight", "bias"}, ASKED)
    loud = PrivacySettings(clip=1e9, noise_multiplier=10.0, delta=1e-5)
    with pytest.raises(ParameterError, match="weight: noise of standard deviation 1e\\+10 does not fit the dtype"):
        private_update({"weight": torch.zeros(50, dtype=torch.float16)}, {"weight"}, loud)


def test_trainable_are_parameters_that_are_not_frozen_under_all_their_names() -> None:
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "norm": torch.nn.BatchNorm1d(2)})
    module["b"] = torch.nn.Linear(2, 2)
    module["b"].weight = module["a"].weight
    module["norm"].weight.requires_grad_(False)
    assert trainable_names(module) == {"a.weight", "a.bias", "b.weight", "b.bias", "norm.bias"}
    assert running_statistics(module.state_dict()) == ["norm.running_mean", "norm.running_var"]
