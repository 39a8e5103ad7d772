"""Who takes part in a round is a function of seed, round, names and size alone, and every set is as likely."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from bitfount_model.errors import ConfigurationError
from bitfount_model.federation import sample_pods

PODS = st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=8, unique=True)


@given(PODS, st.integers(0, 2**40), st.integers(0, 1000), st.data())
def test_a_sample_has_its_size_no_pod_twice_and_no_order_but_that_of_names(
    pods: list[str], seed: int, round_number: int, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, len(pods)))
    kept = list(pods)
    found = sample_pods(seed, round_number, pods, size)
    assert len(found) == len(set(found)) == size
    assert set(found) <= set(pods)
    assert list(found) == sorted(found)
    assert sample_pods(seed, round_number, data.draw(st.permutations(pods)), size) == found
    assert pods == kept


@given(PODS, st.integers(0, 2**40), st.data())
def test_larger_samples_contain_smaller_ones_and_a_new_pod_takes_at_most_one_place(
    pods: list[str], seed: int, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, len(pods)))
    found = set(sample_pods(seed, 3, pods, size))
    if size < len(pods):
        assert found < set(sample_pods(seed, 3, pods, size + 1))
    joined = set(sample_pods(seed, 3, [*pods, "a new pod"], size))
    assert len(found - joined) <= 1


def test_every_set_of_pods_is_as_likely_as_any_other() -> None:
    pods = ["amber", "blue", "cyan", "dun", "ecru"]
    drawn = Counter(sample_pods(7, round_number, pods, 2) for round_number in range(3000))
    counts = [drawn[pair] for pair in combinations(pods, 2)]
    assert sum(counts) == 3000
    assert chisquare(counts).pvalue > 0.001


def test_rounds_are_drawn_independently_of_each_other_and_seeds_too() -> None:
    pods = [f"pod-{number}" for number in range(4)]
    rounds = [sample_pods(11, round_number, pods, 1)[0] for round_number in range(2001)]
    pairs = Counter(pairwise(rounds))
    assert chisquare([pairs[one, other] for one in pods for other in pods]).pvalue > 0.001
    assert rounds != [sample_pods(12, round_number, pods, 1)[0] for round_number in range(2001)]


def test_the_draw_is_pinned_so_that_jobs_continue_under_later_versions() -> None:
    pods = [f"pod-{number}" for number in range(10)]
    assert sample_pods(42, 1, pods, 3) == ("pod-1", "pod-6", "pod-8")
    assert sample_pods(42, 2, pods, 3) == ("pod-6", "pod-8", "pod-9")
    assert sample_pods(42, 3, pods, 3) == ("pod-1", "pod-2", "pod-5")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, ["a", "b"], 0), "the sample size is 0, want a whole number from 1 to 2, the number of pods"),
        ((0, 1, ["a", "b"], 3), "the sample size is 3"),
        ((0, 1, [], 1), "the sample size is 1"),
        ((0, 1, ["a"], True), "the sample size is True"),
        ((0, -1, ["a"], 1), "the round is -1"),
        ((None, 1, ["a"], 1), "the seed is None"),
        ((-1, 1.0, ["a"], 1), "the seed is -1.*the round is 1.0"),
        ((0, 1, ["b", "a", "b"], 1), r"pods \['b'\] are listed more than once"),
        ((0, 1, "ab", 1), "pods are 'ab'"),
        ((0, 1, ["a", ""], 1), "want a list of names"),
    ],
)
def test_arguments_that_make_no_sample_are_refused_together(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        sample_pods(*arguments)
