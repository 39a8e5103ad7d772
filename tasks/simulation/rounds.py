"""From the parameters of one simulated round to those of the next, and from the last ones to what the job leaves."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bitfount_model import MetricCollection, codec
from bitfount_model.errors import QuorumError
from bitfount_model.federation.early_stopping import EarlyStopping, EarlyStoppingState
from bitfount_model.federation.job import selection
from bitfount_model.federation.rounds import GlobalState
from bitfount_model.federation.server_optimisers import SERVER_OPTIMISERS, server_settings
from bitfount_model.parameters import public_names
from bitfount_model.seeding import derive_seed, seeded
from bitfount_model.simulation.partition import sampled
from bitfount_model.simulation.round_sums import RoundSums, chunks_of, decode, shares, whole
from bitfount_model.simulation.validation import validated
from bitfount_model.types import Parameters
from bitfount_model.weights_files import to_safetensors
from tasks.epochs import append_epoch
from tasks.fit import finite, validation_metrics
from tasks.layout import EPOCHS
from tasks.manifest import Manifest, read_manifest, write_manifest
from tasks.progress import tell
from tasks.session import threads, user_code
from tasks.simulation.round_record import (
    SimulatedRound,
    read_rounds,
    server_name,
    weights_name,
    write_round,
)
from tasks.simulation.session import Simulation
from tasks.simulation.sums import forget_sums
from tasks.store import Reference, local_path

Work = Callable[[int, Reference, list[range]], Sequence[Reference]]
"""(round, global parameters, shares) -> the sums of each share: how workers are reached."""


class SimulatedRounds:
    """The rounds of one simulated job; goes on from the newest one that was closed.

    Args:
        simulation: the job, opened.
        workers: how many shares a round has; the result does not depend on it.

    Attributes:
        records: of the rounds that have been closed, in order.
        state: after them.
    """

    def __init__(self, simulation: Simulation, workers: int) -> None:
        self._simulation = simulation
        self._workers = workers
        model = simulation.session.model
        learned = {name for name, _ in model.named_parameters()}
        public = public_names(model.state_dict())
        self._buffers = tuple(shown for name, shown in public.items() if name not in learned)
        self._metrics = MetricCollection.create_from_model(model, validation_metrics(simulation.session))
        self.records = read_rounds(simulation.session.store)
        if self.records:
            last = self.records[-1]
            self._weights = last.weights
            server = {} if last.server is None else self._read(last.server)
            self.state = GlobalState(last.round_number, simulation.parameters(last.weights), server, last.stopping)
            self._tidy()
        else:
            self._weights = simulation.session.manifest.files["weights"]
            self.state = GlobalState(0, simulation.parameters(self._weights))
        self._forget_all_sums()

    @property
    def are_over(self) -> bool:
        """Whether no round is left, or early stopping has stopped them."""
        return self.state.stopped or self.state.round_number >= self._simulation.rounds.rounds

    @property
    def best(self) -> SimulatedRound | None:
        """The best round by the job's metric; None where the job does not choose, or no round has the metric."""
        best = self.records[-1].best if self.records else None
        return None if best is None or best.best_round is None else self.records[best.best_round - 1]

    def run(self, work: Work) -> SimulatedRound:
        """Computes the next round and keeps its record: then it is closed.

        Args:
            work: trains the clients.

        Raises:
            QuorumError: no client has a usable update; the state before the round stands.
        """
        began = time.perf_counter()
        simulation, number = self._simulation, self.state.round_number + 1
        store = simulation.session.store
        asked = self._asked(number)
        parts = shares(len(chunks_of(asked)), self._workers)
        with threads(simulation.job.training["threads"]):
            sums = whole(
                node
                for reference in work(number, self._weights, parts)
                for node in decode(
                    store.get(reference.name, reference.sha256),
                    self.state.parameters,
                    weighted=simulation.rounds.weighted,
                )
            )
            state, metrics = self._closed(number, sums)
        record = self._kept(state, metrics, sums, len(asked), began)
        forget_sums(store, number, parts)
        return record

    def _closed(self, number: int, sums: RoundSums) -> tuple[GlobalState, dict[str, float]]:
        """The state after a round, and its validation metrics."""
        job = self._simulation.rounds
        if not sums.mean.weight:
            why = "; ".join(f"{client}: {reason}" for client, reason in sums.refused.items())
            raise QuorumError(
                f"round {number}: none of {sums.refusals} clients has a usable update ({why})", sums.refused
            )
        settings = server_settings(job.optimiser, job.optimiser_settings, self._buffers)
        optimise = SERVER_OPTIMISERS[job.optimiser]
        server, parameters = optimise(self.state.server, self.state.parameters, sums.mean.mean(), settings)
        metrics = self._validated(number, parameters)
        stopping = self.state.stopping
        if job.early_stopping is not None:
            stopping = EarlyStopping(**job.early_stopping).update(stopping, number, metrics)
        return GlobalState(number, parameters, server, stopping), metrics

    def _validated(self, number: int, parameters: Parameters) -> dict[str, float]:
        session = self._simulation.session
        with (
            user_code(session.store, session.job),
            seeded(derive_seed(self._simulation.rounds.seed, "validation", number)),
        ):
            session.model.update_params(parameters)
            return validated(session.model, self._metrics)

    def _kept(
        self, state: GlobalState, metrics: Mapping[str, float], sums: RoundSums, asked: int, began: float
    ) -> SimulatedRound:
        store, job, number = self._simulation.session.store, self._simulation.rounds, state.round_number
        before = self.records[-1].best if self.records else None
        best = None
        if job.best is not None:
            best = selection(job.best).update(before or EarlyStoppingState(), number, metrics)
        record = SimulatedRound(
            round_number=number,
            clients=asked,
            refusals=sums.refusals,
            refused=sums.refused,
            rows=sums.mean.weight,
            train_loss=finite(sums.train_loss),
            metrics={name: finite(value) for name, value in metrics.items()},
            seconds=round(time.perf_counter() - began, 6),
            weights=store.put(weights_name(number), codec.encode(state.parameters)),
            server=store.put(server_name(number), codec.encode(state.server)) if state.server else None,
            stopping=state.stopping,
            best=best,
        )
        write_round(store, record)
        self.records.append(record)
        self.state, self._weights = state, record.weights
        self._tidy()
        return record

    def _tidy(self) -> None:
        """Removes parameters that are neither the newest nor the best, and what the optimiser kept before."""
        kept = {self._weights.name, *([self.best.weights.name] if self.best else [])}
        for older in self.records[-3:-1]:
            if older.weights.name not in kept:
                self._simulation.session.store.delete(older.weights.name)
            if older.server is not None:
                self._simulation.session.store.delete(older.server.name)

    def _forget_all_sums(self) -> None:
        """Removes what a job that was killed may have left, with whatever number of workers it ran."""
        number = self.state.round_number
        for each in range(max(1, number), min(number + 1, self._simulation.rounds.rounds) + 1):
            chunks = len(chunks_of(self._asked(each)))
            for workers in range(1, chunks + 1):
                forget_sums(self._simulation.session.store, each, shares(chunks, workers))

    def _asked(self, number: int) -> np.ndarray:
        """The clients of a round."""
        simulation = self._simulation
        return sampled(simulation.partition, simulation.job.simulate["sample"], simulation.rounds.seed, number)

    def _read(self, reference: Reference) -> Parameters:
        return codec.decode(self._simulation.session.store.get(reference.name, reference.sha256)).params


def train_rounds(simulation: Simulation, workers: int, work: Work) -> Manifest:
    """Computes the rounds that are left and keeps weights and history, unless that has been done.

    Args:
        simulation: the job, opened.
        workers: how many shares a round has.
        work: trains the clients of a round.

    Raises:
        QuorumError: a round has no usable update.
    """
    store = simulation.session.store
    if done := read_manifest(store, "fit"):
        return done
    rounds = SimulatedRounds(simulation, workers)
    course = local_path(store, EPOCHS)
    course.parent.mkdir(parents=True, exist_ok=True)
    while not rounds.are_over:
        epoch = rounds.run(work).as_epoch(simulation.rounds.rounds)
        append_epoch(course, epoch)
        tell("epoch", epoch)
    manifest = keep(simulation, rounds)
    course.unlink(missing_ok=True)
    return manifest


def keep(simulation: Simulation, rounds: SimulatedRounds) -> Manifest:
    """Writes what the rounds gave: the last parameters, the best ones beside them, and the history."""
    store, preparation = simulation.session.store, simulation.session.model.preparation
    files = {"weights": store.put("fit/weights.safetensors", to_safetensors(rounds.state.parameters, preparation))}
    best = rounds.best
    if best is not None:
        content = to_safetensors(simulation.parameters(best.weights), preparation)
        files["best"] = store.put("fit/best.safetensors", content)
    epochs = [record.as_epoch(simulation.rounds.rounds) for record in rounds.records]
    files["history"] = store.put("fit/history.json", json.dumps(epochs, indent=1, allow_nan=False).encode())
    values: dict[str, Any] = {
        "seconds": round(math.fsum(record.seconds for record in rounds.records), 3),
        "epochs_trained": len(rounds.records),
        "rounds": len(rounds.records),
        "stopped_early": rounds.state.stopped,
        "val_stats": dict(rounds.records[-1].metrics) if rounds.records else {},
        "best_round": None if best is None else best.round_number,
        "best_metrics": {} if best is None else dict(best.metrics),
        "weights_sha256": files["weights"].sha256,
        "parameters_sha256": codec.digest(rounds.state.parameters),
    }
    return write_manifest(store, Manifest("fit", files, values))
