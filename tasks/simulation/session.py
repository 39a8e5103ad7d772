"""A simulated job, open in one process: its rows as tensors, its clients, its settings. The same wherever it is opened."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bitfount_model import PyTorchBitfountModel, codec
from bitfount_model.data import split_rows
from bitfount_model.errors import ConfigurationError, MissingSplitError
from bitfount_model.federation.job import FederatedJob
from bitfount_model.simulation.clients import Clients
from bitfount_model.simulation.partition import Partition, by_column, dirichlet, iid
from bitfount_model.types import JSON, Parameters, Problem
from tasks.session import Session, open_session, require, user_code
from tasks.simulation.job_file import COLUMN, DIRICHLET, IID, SimulatedJob, rounds_of
from tasks.store import Reference, Store


@dataclass(frozen=True)
class Simulation:
    """What every process of a simulated job needs.

    Attributes:
        session: of the job's rows and model.
        job: its settings.
        rounds: how rounds are computed.
        partition: which client has which training rows.
        clients: they, on the session's model.
        expected: names, shapes and dtypes of the global parameters.
    """

    session: Session
    job: SimulatedJob
    rounds: FederatedJob
    partition: Partition
    clients: Clients
    expected: Parameters

    def parameters(self, weights: Reference) -> Parameters:
        """The global parameters that a round starts from.

        Raises:
            StorageError: they are not there, or are others than those that were written.
        """
        content = self.session.store.get(weights.name, weights.sha256)
        return codec.decode(content, expected=self.expected).params


def opened(store_url: str) -> Simulation:
    """Opens a simulated job that has been initialised; the last one stays open in this process until `close`.

    Raises:
        ConfigurationError: the job is not a simulated one, or cannot be simulated.
        DataError: its rows have changed, or cannot be divided.
    """
    made = require(Store(store_url), "initialise")
    # A worker of a cluster outlives jobs: in the same folder there may be another one by now.
    return _opened(store_url, (made.values["data_digest"], *(file.sha256 for file in made.files.values())))


def close() -> None:
    """Lets go of the job that is open."""
    _opened.cache_clear()


@lru_cache(maxsize=1)
def _opened(store_url: str, contents: tuple[str, ...]) -> Simulation:
    session = open_session(Store(store_url))
    job, model = session.job, session.model
    if not isinstance(job, SimulatedJob):
        raise ConfigurationError(f"the job in {store_url} is not a simulated one")
    rounds = rounds_of(job)
    expected = model.get_param_states()
    with user_code(session.store, job):
        partition = partition_of(session, job.simulate, rounds.seed)
        clients = Clients(model, partition, rounds)
    return Simulation(session, job, rounds, partition, clients, expected)


def partition_of(session: Session, simulate: JSON, seed: int) -> Partition:
    """The training rows, divided as the job says.

    Raises:
        ConfigurationError: the rows do not have what the partition needs.
        DataError: a row belongs to nobody.
    """
    model, kind, count = session.model, simulate["partition"], simulate["clients"]
    if kind == IID:
        return iid(model.train_dataloader().rows, count, seed)
    if DIRICHLET in kind:
        if model.problem not in (Problem.BINARY, Problem.MULTICLASS):
            raise ConfigurationError(
                f"simulate.partition: {DIRICHLET} divides classes, and the target of a {model.problem.value} problem has none:"
                f" use {IID}, or {{{COLUMN}: NAME}}"
            )
        return dirichlet(model.train_dataloader().targets.numpy(), count, kind[DIRICHLET], seed)
    return by_column(training_column(session, model, kind[COLUMN]), kind[COLUMN], count)


def training_column(session: Session, model: PyTorchBitfountModel, name: str) -> np.ndarray:
    """The values of a column in the training rows, in their order."""
    frame, splitter = model.read(session.source), model.datastructure.data_splitter
    if name not in frame.columns:
        raise ConfigurationError(
            f"simulate.partition: there is no column {name!r} in the table; columns: {list(frame.columns)}"
        )
    if splitter is None:
        raise MissingSplitError("the rows of a simulated job are not split")
    rows = split_rows(frame, splitter, model.datastructure, model.seed).train
    values: np.ndarray = frame[name].iloc[rows].to_numpy(dtype=object)
    return values
