"""Training rows of one table -> rows of each simulated client; every row is in exactly one of them.

A partition is a function of (rows, labels or column, seed). It is held as one list of positions and the places at which it is cut,
so that a client costs 8 bytes, however many there are; a client may be empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitfount_model.errors import ConfigurationError, DataError
from bitfount_model.seeding import derive_seed


@dataclass(frozen=True)
class Partition:
    """Which rows belong to which client.

    Attributes:
        order: `(rows,)` int64, the positions of all rows: those of client 0, of client 1, and so on; ascending in each.
        bounds: `(clients + 1,)` int64, where in `order` each client begins; the last entry is the number of rows.
    """

    order: np.ndarray
    bounds: np.ndarray

    @classmethod
    def of(cls, owners: np.ndarray, clients: int) -> Partition:
        """The partition in which row `i` belongs to client `owners[i]`.

        Args:
            owners: `(rows,)`, each from 0 to `clients - 1`.
            clients: how many there are.
        """
        counts = np.bincount(owners, minlength=clients)
        return cls(np.argsort(owners, kind="stable").astype(np.int64), np.concatenate([[0], np.cumsum(counts)]))

    @property
    def clients(self) -> int:
        """How many clients there are, empty ones included."""
        return len(self.bounds) - 1

    @property
    def sizes(self) -> np.ndarray:
        """Rows of each client, `(clients,)` int64."""
        return np.diff(self.bounds)

    def rows_of(self, client: int) -> np.ndarray:
        """Positions of a client's rows, int64, ascending.

        Args:
            client: from 0.
        """
        return self.order[self.bounds[client] : self.bounds[client + 1]]


def iid(rows: int, clients: int, seed: int) -> Partition:
    """Rows dealt out at random: sizes differ by at most one.

    Args:
        rows: of the table.
        clients: at least 1; those beyond the number of rows are empty.
        seed: of the job.
    """
    owners = np.empty(rows, dtype=np.int64)
    owners[_generator(seed).permutation(rows)] = np.arange(rows) % clients
    return Partition.of(owners, clients)


def dirichlet(labels: np.ndarray, clients: int, alpha: float, seed: int) -> Partition:
    """Each class divided among the clients by shares drawn from a symmetric Dirichlet distribution.

    As in Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks" (2019), section 4: the smaller `alpha`,
    the more a class stays with few clients. Clients may get few rows, or none.

    Args:
        labels: `(rows,)`, the class of each row.
        clients: at least 1.
        alpha: concentration, > 0.
        seed: of the job.
    """
    generator = _generator(seed)
    owners = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum(generator.dirichlet(np.full(clients, alpha)))
        # The middle of each row's share decides, and the last client takes what rounding leaves over.
        places = np.searchsorted(ends, (np.arange(len(rows)) + 0.5) / len(rows))
        owners[rows] = np.minimum(places, clients - 1)
    return Partition.of(owners, clients)


def by_column(values: Sequence[Any] | np.ndarray, name: str, clients: int | None = None) -> Partition:
    """One client for each value of a column, in the order of the values.

    Args:
        values: `(rows,)`, of the training rows.
        name: of the column, for messages.
        clients: how many there should be; None takes as many as there are values.

    Raises:
        DataError: values are missing.
        ConfigurationError: there are other than `clients` values.
    """
    column = np.asarray(values, dtype=object)
    missing = sum(value is None or value != value for value in column)
    if missing:
        raise DataError(
            f"simulate.partition: column {name!r} is missing in {missing} of {len(column)} training rows, so nobody owns them:"
            " fill it in, or leave those rows out"
        )
    distinct = sorted(set(column), key=lambda value: (isinstance(value, str), value))
    if clients is not None and clients != len(distinct):
        raise ConfigurationError(
            f"simulate.clients is {clients}, and the training rows have {len(distinct)} values of {name!r}, a client each:"
            f" leave clients out, or write {len(distinct)}"
        )
    numbers = {value: number for number, value in enumerate(distinct)}
    return Partition.of(np.array([numbers[value] for value in column], dtype=np.int64), len(distinct))


def sampled(partition: Partition, sample: int | None, seed: int, round_number: int) -> np.ndarray:
    """The clients of a round, drawn uniformly without replacement among those that have rows.

    Args:
        partition: whose clients.
        sample: how many; None, or as many as have rows or more, takes all of those.
        seed: of the job.
        round_number: from 1; rounds are drawn independently.

    Returns:
        Their numbers, int64, ascending: the order in which they are added.
    """
    able = np.flatnonzero(partition.sizes)
    if sample is None or sample >= len(able):
        return able
    generator = np.random.default_rng(derive_seed(seed, "sample", round_number))
    return np.sort(able[generator.choice(len(able), sample, replace=False, shuffle=False)])


def _generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(derive_seed(seed, "partition"))
