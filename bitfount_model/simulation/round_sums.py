"""The updates of a simulated round as sums: added chunk by chunk, merged along a tree that the number of workers does not change.

The clients of a round, in order, are cut into chunks: a function of how many there are. A chunk's updates are added one after the
other. Chunks are the leaves of a binary tree, and two neighbours are merged when both are whole. Floating-point sums depend on the
order of additions, and this order is the same whoever computes which chunks: so a round has the same bits on any number of workers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bitfount_model import codec
from bitfount_model.errors import DivergedError, ParameterError, SerializationError
from bitfount_model.federation.aggregation import RunningMean
from bitfount_model.simulation.clients import Clients
from bitfount_model.types import Parameters

MOST_CHUNKS = 64
"""More workers than this find nothing to do in a round."""
LEAST_CLIENTS = 4
"""Clients of a chunk, where a round has enough of them: a chunk of fewer costs more to merge than it gains."""
SHOWN_REASONS = 5


@dataclass
class RoundSums:
    """What some clients of a round sum up to. It owns its sums: merging changes it.

    Attributes:
        mean: of the updates.
        loss: sum over the clients of training loss times rows.
        loss_rows: rows of the clients that have a loss.
        refused: client -> why its update was not used; of the first few.
        refusals: how many were not used.
    """

    mean: RunningMean
    loss: float = 0.0
    loss_rows: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    refusals: int = 0

    @property
    def train_loss(self) -> float | None:
        """The mean over all rows that trained; None where no step returned a loss."""
        return self.loss / self.loss_rows if self.loss_rows else None

    def add(self, clients: Clients, client: int, round_number: int, parameters: Parameters) -> None:
        """Trains a client and adds its update; one that is not finite is refused."""
        try:
            update = clients.update(client, round_number, parameters)
            self.mean.add(update.client, update.delta, update.weight)
        except (ParameterError, DivergedError) as error:
            self.refuse({f"client-{client}": str(error)}, 1)
            return
        if update.train_loss is not None:
            self.loss += update.train_loss * update.weight
            self.loss_rows += update.weight

    def merge(self, other: RoundSums) -> None:
        """Adds the sums of other clients, which come after these."""
        self.mean.merge(other.mean)
        self.loss += other.loss
        self.loss_rows += other.loss_rows
        self.refuse(other.refused, other.refusals)

    def refuse(self, reasons: Mapping[str, str], count: int) -> None:
        """Counts updates that were not used, and keeps the first reasons."""
        self.refusals += count
        self.refused = dict(list({**self.refused, **reasons}.items())[:SHOWN_REASONS])


@dataclass(frozen=True)
class Node:
    """Some neighbouring chunks, merged.

    Attributes:
        first: the number of the first chunk, a multiple of `chunks`.
        chunks: how many, a power of two.
        sums: of their clients.
    """

    first: int
    chunks: int
    sums: RoundSums

    def is_followed_by(self, other: Node) -> bool:
        """Whether the two are the halves of a larger node."""
        follows = other.first == self.first + self.chunks
        return follows and self.chunks == other.chunks and self.first % (2 * self.chunks) == 0


def chunks_of(clients: np.ndarray) -> list[np.ndarray]:
    """The clients of a round, cut into chunks of nearly equal number.

    Args:
        clients: `(clients,)`, as `partition.sampled` gives them.

    Returns:
        At most `MOST_CHUNKS` arrays, in order; together they are all clients.
    """
    count = min(MOST_CHUNKS, -(-len(clients) // LEAST_CLIENTS))
    return np.array_split(clients, max(1, count))


def shares(chunks: int, workers: int) -> list[range]:
    """The chunks of each worker, neighbours together, nearly equally many; workers without any are left out."""
    return [range(part[0], part[-1] + 1) for part in np.array_split(np.arange(chunks), workers) if len(part)]


def trained(
    clients: Clients,
    chunks: Sequence[np.ndarray],
    share: range,
    round_number: int,
    parameters: Parameters,
    *,
    weighted: bool,
) -> Iterator[Node]:
    """Trains the clients of some chunks: a node for each chunk, one after the other.

    Args:
        clients: of the job; run it under `seeding.seeded`.
        chunks: all chunks of the round.
        share: which of them.
        round_number: from 1.
        parameters: the global ones.
        weighted: whether clients count by their rows.
    """
    for number in share:
        sums = RoundSums(RunningMean(parameters, weighted=weighted))
        for client in chunks[number]:
            sums.add(clients, int(client), round_number, parameters)
        yield Node(number, 1, sums)


def merged(nodes: Iterable[Node]) -> list[Node]:
    """As few nodes as neighbouring ones make, in order; the given ones are used up.

    Args:
        nodes: neighbours, in order; read one at a time.
    """
    found: list[Node] = []
    for node in nodes:
        found.append(node)
        while len(found) > 1 and found[-2].is_followed_by(found[-1]):
            right, left = found.pop(), found.pop()
            left.sums.merge(right.sums)
            found.append(Node(left.first, 2 * left.chunks, left.sums))
    return found


def whole(nodes: Iterable[Node]) -> RoundSums:
    """The sums of a round from all of its nodes: where the number of chunks is no power of two, the last are merged first."""
    found = merged(nodes)
    while len(found) > 1:
        right = found.pop()
        found[-1].sums.merge(right.sums)
    return found[0].sums


def encode(nodes: Sequence[Node]) -> bytes:
    """Nodes as safetensors bytes, for another process; `decode` gives them back to the last bit."""
    tensors, notes = {}, []
    for number, node in enumerate(nodes):
        parts, mean = node.sums.mean.to_parts()
        tensors.update({f"{number}.{name}": part for name, part in parts.items()})
        rest = {name: getattr(node.sums, name) for name in _PLAIN}
        notes.append({"first": node.first, "chunks": node.chunks, "mean": mean, "rest": rest})
    return codec.encode(tensors, {_NOTES: json.dumps(notes)})


def decode(content: bytes, base: Parameters, *, weighted: bool) -> list[Node]:
    """What `encode` wrote.

    Args:
        content: the bytes.
        base: the global parameters of the round.
        weighted: whether clients count by their rows.

    Raises:
        SerializationError: they hold no nodes.
    """
    read = codec.decode(content)
    nodes = []
    try:
        for number, note in enumerate(json.loads(read.metadata[_NOTES])):
            prefix = f"{number}."
            parts = {name.removeprefix(prefix): t for name, t in read.params.items() if name.startswith(prefix)}
            mean = RunningMean.from_parts(base, parts, note["mean"], weighted=weighted)
            nodes.append(Node(note["first"], note["chunks"], RoundSums(mean, **note["rest"])))
    except (KeyError, TypeError, ValueError) as error:
        raise SerializationError(f"no sums of a simulated round: {error!r}") from error
    return nodes


_NOTES = "nodes"
_PLAIN = ("loss", "loss_rows", "refused", "refusals")
