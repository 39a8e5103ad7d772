"""A round's sums: the same bits whoever computes which chunks, and the mean that all updates have together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitfount_model import codec
from bitfount_model.errors import ParameterError, SerializationError
from bitfount_model.federation.aggregation import RunningMean
from bitfount_model.seeding import seeded
from bitfount_model.simulation.clients import Clients, ClientUpdate
from bitfount_model.simulation.round_sums import (
    LEAST_CLIENTS,
    MOST_CHUNKS,
    RoundSums,
    chunks_of,
    decode,
    encode,
    merged,
    shares,
    trained,
    whole,
)
from bitfount_model.types import Parameters
from tests.bitfount_model.simulation.lab import Lab, equal

BASE: Parameters = {
    "w": torch.zeros(3),
    "count": torch.zeros((), dtype=torch.int64),
    "mask": torch.zeros(2, dtype=torch.bool),
}


class Told(Clients):
    """Clients that give updates made of their number; the seventh diverges."""

    def __init__(self) -> None:
        pass

    def update(self, client: int, round_number: int, parameters: Parameters) -> ClientUpdate:
        if client == 7:
            raise ParameterError("its parameters are NaN")
        generator = torch.Generator().manual_seed(client)
        delta = {
            "w": torch.randn(3, generator=generator),
            "count": torch.tensor(client),
            "mask": torch.tensor([client % 2 == 0, False]),
        }
        return ClientUpdate(f"client-{client}", delta, client % 5 + 1, float(client))


def by_workers(clients: Sequence[int], workers: int, *, weighted: bool = True) -> RoundSums:
    """A round that so many workers compute, each of which writes its sums down."""
    chunks = chunks_of(np.array(clients))
    written = [
        encode(merged(trained(Told(), chunks, share, 1, BASE, weighted=weighted)))
        for share in shares(len(chunks), workers)
    ]
    return whole(node for content in written for node in decode(content, BASE, weighted=weighted))


@given(clients=st.integers(1, 400), workers=st.integers(1, 80), weighted=st.booleans())
def test_any_number_of_workers_gives_the_same_bits(clients: int, workers: int, weighted: bool) -> None:
    one, many = (by_workers(range(8, 8 + clients), number, weighted=weighted) for number in (1, workers))
    assert equal(one.mean.mean(), many.mean.mean())
    assert (one.loss, one.loss_rows, one.mean.weight) == (many.loss, many.loss_rows, many.mean.weight)
    assert one.mean.pods == many.mean.pods == tuple(f"client-{number}" for number in range(8, 8 + clients))


@given(clients=st.integers(1, 3000))
def test_chunks_are_all_clients_in_order(clients: int) -> None:
    chunks = chunks_of(np.arange(clients))
    assert np.concatenate(chunks).tolist() == list(range(clients))
    assert 1 <= len(chunks) <= MOST_CHUNKS
    assert max(map(len, chunks)) - min(map(len, chunks)) <= 1
    assert len(chunks) == 1 or min(map(len, chunks)) >= LEAST_CLIENTS - 1


@given(chunks=st.integers(1, 64), workers=st.integers(1, 100))
def test_shares_are_all_chunks_in_order(chunks: int, workers: int) -> None:
    parts = shares(chunks, workers)
    assert [number for part in parts for number in part] == list(range(chunks))
    assert len(parts) == min(chunks, workers)


@pytest.mark.parametrize("weighted", [True, False])
def test_the_mean_is_that_of_all_updates(weighted: bool) -> None:
    clients = [number for number in range(100) if number != 7]
    updates = [Told().update(number, 1, BASE) for number in clients]
    plain = RunningMean(BASE, weighted=weighted)
    for update in updates:
        plain.add(update.client, update.delta, update.weight)
    found = by_workers(clients, 3, weighted=weighted)
    weights = np.array([update.weight if weighted else 1 for update in updates], dtype=np.float64)
    stacked = np.stack([update.delta["w"].double().numpy() for update in updates])
    assert np.abs(found.mean.mean()["w"].numpy() - weights @ stacked / weights.sum()).max() < 1e-14
    for name in ("count", "mask"):
        assert torch.equal(found.mean.mean()[name], plain.mean()[name])
    rows = np.array([update.weight for update in updates])
    assert found.train_loss == pytest.approx(np.average(clients, weights=rows), abs=1e-12)


def test_a_client_that_diverges_is_counted_with_its_reason() -> None:
    found = by_workers(range(20), 2)
    assert (found.refusals, found.refused) == (1, {"client-7": "its parameters are NaN"})
    assert "client-7" not in found.mean.pods and len(found.mean.pods) == 19


def test_whole_sums_too_large_for_a_machine_word_travel_too() -> None:
    base: Parameters = {"count": torch.zeros(2, dtype=torch.int64)}
    mean = RunningMean(base)
    mean.add("a", {"count": torch.tensor([2**62, -(2**62)])}, 2.0**60)
    tensors, values = mean.to_parts()
    again = RunningMean.from_parts(base, tensors, values)
    for each in (mean, again):
        each.add("b", {"count": torch.tensor([0, 4])}, 2.0**60)
    assert mean.mean()["count"].tolist() == again.mean()["count"].tolist() == [2**61, -(2**61) + 2]


def test_real_clients_give_the_same_bits_in_chunks_on_their_own() -> None:
    def found(workers: int) -> RoundSums:
        parts = []
        for share in shares(len(chunks_of(np.arange(20))), workers):
            lab = Lab(clients=20)  # a process of its own has a model of its own
            with seeded(1):
                nodes = merged(trained(lab.clients, chunks_of(np.arange(20)), share, 1, lab.parameters, weighted=True))
            parts += nodes
        return whole(parts)

    assert equal(found(1).mean.mean(), found(3).mean.mean())


def test_what_holds_no_sums_is_refused() -> None:
    with pytest.raises(SerializationError, match="no sums of a simulated round"):
        decode(codec.encode(BASE), BASE, weighted=True)
