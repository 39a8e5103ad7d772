"""How rows become clients: each row once, by seed, and clients may be empty."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from bitfount_model.errors import ConfigurationError, DataError
from bitfount_model.simulation.partition import Partition, by_column, dirichlet, iid, sampled


def rows_of_all(partition: Partition) -> list[int]:
    return [row for client in range(partition.clients) for row in partition.rows_of(client).tolist()]


@given(rows=st.integers(0, 200), clients=st.integers(1, 300), seed=st.integers(0, 2**31))
def test_iid_gives_each_row_to_one_client_and_sizes_differ_by_at_most_one(rows: int, clients: int, seed: int) -> None:
    partition = iid(rows, clients, seed)
    assert partition.clients == clients
    assert sorted(rows_of_all(partition)) == list(range(rows))
    assert partition.sizes.max() - partition.sizes.min() <= 1
    assert all((np.diff(partition.rows_of(client)) > 0).all() for client in range(clients))


@given(
    labels=st.lists(st.integers(0, 4), max_size=200),
    clients=st.integers(1, 100),
    alpha=st.sampled_from([1e-3, 0.1, 1.0, 100.0]),
    seed=st.integers(0, 2**31),
)
def test_dirichlet_gives_each_row_to_one_client(labels: list[int], clients: int, alpha: float, seed: int) -> None:
    partition = dirichlet(np.array(labels, dtype=np.int64), clients, alpha, seed)
    assert partition.clients == clients
    assert sorted(rows_of_all(partition)) == list(range(len(labels)))


def test_a_seed_is_a_partition() -> None:
    labels = np.arange(400) % 10
    for make in (lambda seed: iid(400, 20, seed), lambda seed: dirichlet(labels, 20, 0.3, seed)):
        one, same, other = make(1), make(1), make(2)
        assert np.array_equal(one.order, same.order) and np.array_equal(one.bounds, same.bounds)
        assert not np.array_equal(one.order, other.order)


def test_a_small_alpha_keeps_a_class_with_few_clients_and_a_large_one_spreads_it() -> None:
    labels = np.repeat(np.arange(5), 2000)

    def owners_of_a_class(alpha: float) -> float:
        """Clients that hold 90 % of a class, on average over the classes."""
        partition = dirichlet(labels, 50, alpha, seed=3)
        needed = []
        for label in range(5):
            counts = sorted((np.sum(labels[partition.rows_of(c)] == label) for c in range(50)), reverse=True)
            needed.append(int(np.searchsorted(np.cumsum(counts), 1800)) + 1)
        return float(np.mean(needed))

    few, many = owners_of_a_class(0.05), owners_of_a_class(100.0)
    assert few <= 12 and many >= 40
    assert (dirichlet(labels, 500, 0.01, seed=3).sizes == 0).any()


def test_a_column_makes_a_client_of_each_value_in_their_order() -> None:
    partition = by_column(["b", "a", "c", "a"], "site")
    assert [partition.rows_of(client).tolist() for client in range(3)] == [[1, 3], [0], [2]]
    assert by_column([3, 1, 3], "site", clients=2).sizes.tolist() == [1, 2]


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_rows_without_an_owner_are_refused(missing: object) -> None:
    with pytest.raises(DataError, match="'site' is missing in 1 of 3"):
        by_column(["a", missing, "b"], "site")


def test_another_number_of_clients_than_values_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"simulate\.clients is 5, and the training rows have 2 values"):
        by_column(["a", "b"], "site", clients=5)


@given(sample=st.integers(1, 60), round_number=st.integers(1, 50))
def test_a_sample_is_of_clients_with_rows_each_once_in_order(sample: int, round_number: int) -> None:
    partition = iid(30, 50, seed=1)
    drawn = sampled(partition, sample, 4, round_number)
    assert len(drawn) == min(sample, 30) == len(set(drawn.tolist()))
    assert (partition.sizes[drawn] > 0).all() and (np.diff(drawn) > 0).all()
    assert np.array_equal(drawn, sampled(partition, sample, 4, round_number))


def test_without_a_sample_all_clients_with_rows_take_part() -> None:
    assert np.array_equal(sampled(iid(30, 50, seed=1), None, 4, 1), np.flatnonzero(iid(30, 50, seed=1).sizes))


def test_every_client_is_drawn_as_often_as_any_other() -> None:
    partition = iid(100, 20, seed=1)
    counts = np.zeros(20)
    for round_number in range(1, 2001):
        counts[sampled(partition, 5, 9, round_number)] += 1
    assert chisquare(counts).pvalue > 1e-3
