"""Robust rules: as published, by known answers and by loops over plain numbers; and one contract for all of them."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitfount_model.errors import ConfigurationError, ParameterError
from bitfount_model.federation.aggregation import RunningMean, apply_mean
from bitfount_model.federation.robust import (
    AGGREGATIONS,
    MEAN,
    Collected,
    RobustSettings,
    aggregator,
    best_by_krum,
    fewest_pods,
    robust_settings,
    squared_distances,
)
from bitfount_model.parameters import euclidean_norm

GIVEN: dict[str, dict[str, float]] = {
    "mean": {},
    "median": {},
    "trimmed_mean": {"malicious": 1},
    "krum": {"malicious": 1},
    "multi_krum": {"malicious": 1},
    "norm_clipping": {"maximum_norm": 1.0},
}
RULES = [name for name in AGGREGATIONS if name != MEAN]


def vectors(rows: Sequence[Sequence[float]], dtype: torch.dtype = torch.float64) -> list[dict[str, Tensor]]:
    return [{"w": torch.tensor(row, dtype=dtype)} for row in rows]


def result(
    name: str, updates: Sequence[dict[str, Tensor]], weights: Sequence[float] | None = None, **given: float
) -> dict[str, Tensor]:
    base = {key: torch.zeros_like(value) for key, value in updates[0].items()}
    folded = aggregator(base, name, given or GIVEN[name], weighted=weights is not None)
    for position, update in enumerate(updates):
        folded.add(f"pod-{position:03d}", update, weights[position] if weights else 1)
    return folded.mean()


def test_each_rule_is_in_this_files_contract() -> None:
    assert set(GIVEN) == set(AGGREGATIONS)


# -- known answers ----------------------------------------------------------------------------------------------------


def test_the_median_of_an_odd_and_of_an_even_number_of_pods() -> None:
    assert result("median", vectors([[1, 50], [2, -7], [1000, 3]]))["w"].tolist() == [2, 3]
    assert result("median", vectors([[1, 0], [2, 0], [4, 1], [1e30, 1]]))["w"].tolist() == [3, 0.5]


def test_the_trimmed_mean_leaves_out_each_values_extremes() -> None:
    updates = vectors([[1, 9], [2, 8], [3, -1e30], [1e30, 7], [6, 1e30]])
    assert result("trimmed_mean", updates, malicious=1)["w"].tolist() == [11 / 3, 8]
    assert result("trimmed_mean", updates, malicious=0)["w"].tolist() == pytest.approx([2e29, 24 / 5])


def test_krum_takes_one_update_of_the_crowd() -> None:
    crowd = [[1.0, 1.0], [1.1, 1.0], [0.9, 1.0], [1.0, 1.2], [-40.0, 80.0]]
    assert result("krum", vectors(crowd))["w"].tolist() == [1.0, 1.0]
    assert best_by_krum(vectors(crowd), malicious=1, keep=4) == (0, 1, 2, 3)
    assert result("multi_krum", vectors(crowd))["w"].tolist() == pytest.approx([1.0, 1.05])
    assert result("multi_krum", vectors(crowd), malicious=1, keep=1)["w"].tolist() == [1.0, 1.0]


def test_norm_clipping_scales_long_updates_alone() -> None:
    updates = vectors([[3, 4], [0.3, 0.4]])
    assert result("norm_clipping", updates)["w"].tolist() == pytest.approx([0.45, 0.6])
    assert result("norm_clipping", updates, weights=[1, 3])["w"].tolist() == pytest.approx([0.375, 0.5])
    assert result("norm_clipping", updates, maximum_norm=100.0)["w"].tolist() == pytest.approx([1.65, 2.2])


# -- brute force ------------------------------------------------------------------------------------------------------


def by_loops(name: str, rows: list[list[float]], given: dict[str, float]) -> list[float]:
    """The rule in plain Python, from its paper's words, on exact fractions where it sorts or compares."""
    bad, count = int(given.get("malicious", 0)), len(rows)
    if name == "mean":
        return [float(sum(map(Fraction, column)) / count) for column in zip(*rows, strict=True)]
    if name == "median":
        return [float(statistics.median(map(Fraction, column))) for column in zip(*rows, strict=True)]
    if name == "trimmed_mean":
        kept = [sorted(map(Fraction, column))[bad : count - bad] for column in zip(*rows, strict=True)]
        return [float(sum(column) / len(column)) for column in kept]
    if name == "norm_clipping":
        shorter = []
        for row in rows:
            norm = float(np.linalg.norm(np.array(row)))
            shorter.append([value * min(1.0, given["maximum_norm"] / norm) if norm else value for value in row])
        return [float(sum(map(Fraction, column)) / count) for column in zip(*shorter, strict=True)]
    scores = []
    for mine in range(count):
        distances = sorted(
            sum((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(rows[mine], rows[other], strict=True))
            for other in range(count)
            if other != mine
        )
        scores.append(sum(distances[: count - bad - 2]))
    keep = 1 if name == "krum" else int(given.get("keep", count - bad))
    best = sorted(range(count), key=lambda each: (scores[each], each))[:keep]
    return [float(sum(Fraction(rows[each][at]) for each in best) / keep) for at in range(len(rows[0]))]


@pytest.mark.parametrize("name", list(AGGREGATIONS))
def test_five_hundred_inputs_agree_with_plain_loops(name: str) -> None:
    numbers = np.random.default_rng(8)
    for _ in range(500):
        bad = int(numbers.integers(0, 3))
        given_ = {key: {"malicious": bad, "keep": 2, "maximum_norm": 5.0}[key] for key in read_by(name)}
        count = fewest_pods(name, robust_settings(name, given_)) + int(numbers.integers(0, 5))
        # Multiples of 1/8 with few digits: squared distances are exact in float64, so ties are ties on both sides.
        rows = (numbers.integers(-20, 20, size=(count, int(numbers.integers(1, 6)))) / 8).tolist()
        found = result(name, vectors(rows), **given_)["w"].tolist()
        assert found == pytest.approx(by_loops(name, rows, given_), rel=1e-12, abs=1e-12)


def read_by(name: str) -> tuple[str, ...]:
    row = AGGREGATIONS[name]
    return row.settings if row else ()


# -- the contract -----------------------------------------------------------------------------------------------------


def network(seed: int) -> dict[str, Tensor]:
    """An update with every kind of dtype that a model has."""
    torch.manual_seed(seed)
    return {
        "weight": torch.randn(7, 11),
        "half": torch.randn(5).to(torch.float16),
        "brain": torch.randn(3).to(torch.bfloat16),
        "double": torch.randn(2, 2, dtype=torch.float64),
        "scalar": torch.randn(()),
        "empty": torch.empty(0, 4),
        "tracked": torch.tensor(3 + seed),
        "small": torch.tensor([seed, 255 - seed], dtype=torch.uint8),
        "mask": torch.tensor([seed % 2 == 0, True, False]),
    }


@pytest.mark.parametrize("name", list(AGGREGATIONS))
def test_a_result_has_the_form_of_the_mean_and_nothing_given_changes(name: str) -> None:
    updates = [network(seed) for seed in range(7)]
    before = [{key: value.clone() for key, value in update.items()} for update in updates]
    found = result(name, updates)
    assert list(found) == list(updates[0])
    for key, value in found.items():
        base = updates[0][key]
        assert value.shape == base.shape
        assert value.dtype == (torch.float64 if base.is_floating_point() else base.dtype)
    apply_mean({key: torch.zeros_like(value) for key, value in updates[0].items()}, found)
    assert all(torch.equal(a[key], b[key]) for a, b in zip(before, updates, strict=True) for key in a)
    found["weight"].fill_(7.0)
    assert not any(bool((update["weight"] == 7.0).all()) for update in updates)


@pytest.mark.parametrize("name", list(AGGREGATIONS))
def test_pods_that_agree_are_what_they_agree_on(name: str) -> None:
    update = network(3)
    found = result(name, [update] * 7, maximum_norm=1e6) if name == "norm_clipping" else result(name, [update] * 7)
    for key, value in found.items():
        assert torch.allclose(value.to(update[key].dtype), update[key], rtol=1e-15), key


@pytest.mark.parametrize("name", [name for name in RULES if name != "norm_clipping"])
@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(7)))
def test_the_order_of_the_pods_decides_no_bit(name: str, order: list[int]) -> None:
    updates = [network(seed) for seed in range(7)]
    one, other = result(name, updates), result(name, [updates[position] for position in order])
    if name == "multi_krum":  # a mean, whose sums run in the order of the pods
        assert all(torch.allclose(one[key].double(), other[key].double(), rtol=1e-12) for key in one)
    else:
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("worst", [1e30, -3e38])
def test_one_bad_pod_of_seven_does_not_move_the_rest_far(name: str, worst: float) -> None:
    good = vectors(np.random.default_rng(4).normal(1, 0.1, size=(6, 20)).tolist(), torch.float32)
    bad = {"w": torch.full((20,), worst)}
    honest = torch.stack([update["w"] for update in good])
    for position in range(7):
        found = result(name, [*good[:position], bad, *good[position:]])["w"]
        if name == "norm_clipping":
            assert float(torch.linalg.vector_norm(found)) <= 1 + 1e-6
        else:
            assert bool((found >= honest.min(0).values).all())
            assert bool((found <= honest.max(0).values).all())


@pytest.mark.parametrize("name", RULES)
def test_too_few_pods_for_the_rule_are_refused(name: str) -> None:
    fewest = fewest_pods(name, robust_settings(name, GIVEN[name]))
    result(name, vectors([[1.0]] * fewest))
    if fewest > 1:
        with pytest.raises(ParameterError, match=rf"{name} needs updates of {fewest} pods.*{fewest - 1} are in"):
            result(name, vectors([[1.0]] * (fewest - 1)))


@pytest.mark.parametrize("name", RULES)
def test_a_pod_without_rows_has_no_voice(name: str) -> None:
    good = [*vectors([[1.0], [2.0], [3.0], [4.0], [5.0]])]
    with_it = result(name, [*good, *vectors([[-1e9]])], weights=[1, 1, 1, 1, 1, 0])
    assert torch.equal(with_it["w"], result(name, good, weights=[1] * 5)["w"])


def test_whole_numbers_are_exact_beyond_what_a_float_holds() -> None:
    large = 2**53
    updates = [{"n": torch.tensor([large + odd, -odd])} for odd in (1, 2, 5, 7, 9)]
    assert result("median", updates)["n"].tolist() == [large + 5, -5]
    assert result("trimmed_mean", updates)["n"].tolist() == [large + 5, -5]  # 14 / 3 is rounded to 5
    assert result("median", updates[:4])["n"].tolist() == [large + 4, -4]  # 3.5 is rounded half to even


def test_infinities_that_a_model_holds_on_purpose_stay() -> None:
    base = {"mask": torch.tensor([0.0, -torch.inf]), "w": torch.zeros(2)}
    for name in RULES:
        folded = aggregator(base, name, GIVEN[name], weighted=False)
        for seed in range(7):
            torch.manual_seed(seed)
            folded.add(str(seed), {"mask": torch.tensor([0.0, -torch.inf]), "w": torch.randn(2)}, 1)
        moved = apply_mean(base, folded.mean())
        assert moved["mask"].tolist() == [0.0, -torch.inf], name
        assert bool(torch.isfinite(moved["w"]).all())


def test_norms_of_very_large_and_very_small_values() -> None:
    assert euclidean_norm({"w": torch.tensor([3e200, 4e200], dtype=torch.float64)}) == pytest.approx(5e200)
    assert euclidean_norm({"w": torch.tensor([3e-200, 4e-200], dtype=torch.float64)}) == pytest.approx(5e-200)
    assert euclidean_norm({"a": torch.tensor([3.0]), "b": torch.tensor([4.0]), "n": torch.tensor([9])}) == 5
    assert euclidean_norm({"n": torch.tensor([9]), "e": torch.empty(0)}) == 0


def test_updates_that_are_large_and_alike_are_still_told_apart() -> None:
    rows = [[1e8 + shift, 1e8] for shift in (0.0, 0.001, 0.002, 0.5, 0.0015)]
    assert best_by_krum(vectors(rows), malicious=1, keep=4) == (0, 1, 2, 4)


def test_the_ends_of_blocks_decide_nothing() -> None:
    updates = [{"w": torch.randn(300_000)} for _ in range(9)]
    stacked = torch.stack([update["w"] for update in updates])
    assert torch.equal(result("median", updates)["w"].float(), stacked.median(dim=0).values)
    distances = torch.cdist(stacked.double(), stacked.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.allclose(squared_distances(updates), distances.square(), rtol=1e-12)


def test_which_pods_were_chosen_is_known_afterwards() -> None:
    base = {"w": torch.zeros(1)}
    folded = Collected(base, "krum", RobustSettings())
    for name, value in zip("abcde", (1.0, 1.1, 50.0, 1.15, 1.4), strict=True):
        folded.add(name, {"w": torch.tensor([value])}, 10)
    folded.mean()
    assert folded.chosen == ("b",)
    assert folded.pods == tuple("abcde")
    assert folded.weight == 5


@pytest.mark.parametrize(
    ("name", "given_", "said"),
    [
        ("median", {"malicious": 1}, "no setting 'malicious'"),
        ("mean", {"keep": 1}, "no setting 'keep'"),
        ("krum", {"malicious": -1}, "malicious is -1.*whole number >= 0"),
        ("krum", {"malicious": 1.5}, "malicious is 1.5"),
        ("multi_krum", {"keep": 0}, "keep is 0"),
        ("norm_clipping", {}, "maximum_norm is missing"),
        ("norm_clipping", {"maximum_norm": 0.0}, "maximum_norm is 0.0, want a number > 0"),
        ("norm_clipping", {"maximum_norm": float("nan")}, "maximum_norm is nan"),
        ("krumm", {}, "unknown aggregation 'krumm'.*krum"),
        ("trimmed_mean", {"malicous": 1}, "no setting 'malicous'.*malicious"),
    ],
)
def test_bad_settings_are_refused_by_name(name: str, given_: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        robust_settings(name, given_)


@pytest.mark.parametrize("name", RULES)
def test_what_does_not_fit_is_refused_as_by_the_mean(name: str) -> None:
    base = {"w": torch.zeros(2)}
    bad: list[tuple[Any, Any]] = [
        ({"w": torch.zeros(3)}, 1),
        ({"w": torch.tensor([0.0, torch.nan])}, 1),
        ({}, 1),
        ({"w": torch.zeros(2)}, -1),
        ({"w": torch.zeros(2)}, float("nan")),
        ({"w": torch.zeros(2, dtype=torch.float64)}, 1),
    ]
    for (update, weight), folded in itertools.product(
        bad, (RunningMean(base), aggregator(base, name, GIVEN[name], weighted=True))
    ):
        with pytest.raises(ParameterError, match="'eve'"):
            folded.add("eve", update, weight)
        assert folded.pods == ()
