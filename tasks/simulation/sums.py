"""A worker's part of a round: some chunks of the sampled clients, trained here, left behind as sums."""

from __future__ import annotations

from bitfount_model.seeding import seeded
from bitfount_model.simulation.partition import sampled
from bitfount_model.simulation.round_sums import chunks_of, encode, merged, trained
from bitfount_model.types import JSON
from tasks.session import threads, user_code
from tasks.simulation.session import Simulation, opened
from tasks.store import Reference, Store


def share_trained(store_url: str, round_number: int, weights: JSON, first: int, stop: int) -> JSON:
    """Trains the clients of some chunks of a round. It runs wherever the store and the rows can be read.

    Args:
        store_url: the job's store.
        round_number: from 1.
        weights: the fields of the `Reference` to the global parameters.
        first: the first chunk, from 0.
        stop: the chunk after the last one.

    Returns:
        The fields of a `Reference` to what they sum up to.
    """
    return vars(sums_kept(opened(store_url), round_number, Reference(**weights), range(first, stop)))


def sums_kept(simulation: Simulation, round_number: int, weights: Reference, share: range) -> Reference:
    """Trains the clients of some chunks and keeps their sums; the same bytes whenever it is done."""
    store, rounds = simulation.session.store, simulation.rounds
    parameters = simulation.parameters(weights)
    chunks = chunks_of(sampled(simulation.partition, simulation.job.simulate["sample"], rounds.seed, round_number))
    with threads(simulation.job.training["threads"]), user_code(store, simulation.job), seeded(rounds.seed):
        nodes = merged(trained(simulation.clients, chunks, share, round_number, parameters, weighted=rounds.weighted))
    return store.put(sums_name(round_number, share), encode(nodes), durable=False)


def sums_name(round_number: int, share: range) -> str:
    """Where the sums of some chunks lie, until the round is closed."""
    return f"simulation/{round_number:05d}.{share.start}-{share.stop}.sums.safetensors"


def forget_sums(store: Store, round_number: int, shares: list[range]) -> None:
    """Removes what a closed round needs no more."""
    for share in shares:
        store.delete(sums_name(round_number, share))
