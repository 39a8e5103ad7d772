"""Many clients on one warm model: a client's number and the global parameters -> its update.

A client is a list of row positions in one encoded table. What it answers is a function of (job, round, client, global parameters,
its rows), and it has the bits that a `PodSession` named `client-<number>` gives that trains on these rows and on no others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bitfount_model import updates
from bitfount_model.data import TabularDataLoader
from bitfount_model.errors import ConfigurationError
from bitfount_model.federation.job import FederatedJob
from bitfount_model.federation.local_training import train_locally
from bitfount_model.model import PyTorchBitfountModel
from bitfount_model.parameters import public_names
from bitfount_model.seeding import derive_seed
from bitfount_model.simulation.partition import Partition
from bitfount_model.slim_fit import only_optimizer, reasons_for_trainer
from bitfount_model.types import Parameters


@dataclass(frozen=True)
class ClientUpdate:
    """A client's answer to a round.

    Attributes:
        client: its name.
        delta: new minus global parameters.
        weight: its rows.
        train_loss: mean over its rows in the last epoch; None where the model's steps return none.
    """

    client: str
    delta: Parameters
    weight: int
    train_loss: float | None


class Clients:
    """All clients of a job, in one process.

    Args:
        model: initialised with all rows; its training rows are divided among the clients. It is trained in place.
        partition: of the training rows.
        job: gives seed, length of a round and the proximal term.

    Attributes:
        uses_trainer: why clients are trained by Lightning's Trainer, at some milliseconds a client; empty where they are not.

    Raises:
        ConfigurationError: the rows are no table of tensors, as with images.
    """

    def __init__(self, model: PyTorchBitfountModel, partition: Partition, job: FederatedJob) -> None:
        table = model.train_dl
        if not isinstance(table, TabularDataLoader):
            raise ConfigurationError(
                "a simulated job holds its rows as one table of numbers, and this one has images: train over pods instead"
            )
        if len(partition.order) != table.rows:
            raise ConfigurationError(f"the partition is of {len(partition.order)} rows, the table has {table.rows}")
        self._model = model
        self._table = table
        self._partition = partition
        self._job = job
        self.uses_trainer = list(reasons_for_trainer(type(model)))
        if not self.uses_trainer and only_optimizer(model.configure_optimizers()) is None:
            self.uses_trainer = ["configure_optimizers returns more than one optimiser"]

    def update(self, client: int, round_number: int, parameters: Parameters) -> ClientUpdate:
        """Trains one client for one round from the global parameters.

        The caller runs it under `seeding.seeded`, so that the global generators are put back.

        Args:
            client: its number, from 0; it has rows.
            round_number: from 1.
            parameters: the global ones, which fit the model; left as they are.

        Raises:
            DivergedError: its new parameters are not finite.
        """
        model, job = self._model, self._job
        name = f"client-{client}"
        model.seed = derive_seed(job.seed, "pod", name)
        model.train_dl = loader = self._loader(client, model.seed)
        model.set_model_training_iterations(job.iterations_of(round_number))
        before = job.iterations_before(round_number)
        model.position = before * len(loader) if job.epochs is not None else before
        self._set(parameters)
        loss = self._fitted()
        return ClientUpdate(name, updates.diff_params(parameters, self._state()), loader.rows, loss)

    def _fitted(self) -> float | None:
        model = self._model
        validation, model.validation_dl = model.validation_dl, None  # the server validates
        try:
            return train_locally(model, mu=self._job.proximal_mu)[-1].train_loss
        finally:
            model.validation_dl = validation

    def _loader(self, client: int, seed: int) -> TabularDataLoader:
        table, rows = self._table, torch.from_numpy(self._partition.rows_of(client))
        return TabularDataLoader(
            table.features[rows],
            table.support[rows],
            table.targets[rows],
            None,
            table.batch_size,
            shuffle=True,
            seed=seed,
        )

    def _set(self, parameters: Parameters) -> None:
        with torch.no_grad():
            for name, value in self._state().items():
                value.copy_(parameters[name])

    def _state(self) -> dict[str, torch.Tensor]:
        """The model's own tensors by their public names: not copies."""
        state = self._model.state_dict()
        public = public_names(state)
        return {public[name]: value for name, value in state.items()}
