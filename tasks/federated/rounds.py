"""From the parameters of one round to those of the next: open, collect, add, keep."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from bitfount_model import codec
from bitfount_model.errors import (
    BitfountError,
    ParameterError,
    QuorumError,
    StorageError,
    StoreAwayError,
    SupersededError,
)
from bitfount_model.federation.early_stopping import EarlyStoppingState
from bitfount_model.federation.job import selection
from bitfount_model.federation.messages import UpdateNote
from bitfount_model.federation.pod import Update
from bitfount_model.federation.privacy import Spent
from bitfount_model.federation.rounds import GlobalState, RoundSummary, asked_pods, close_round, close_secure_round
from bitfount_model.files import BESIDE_BYTES
from bitfount_model.parameters import euclidean_norm
from bitfount_model.types import Parameters
from tasks.federated.exchange import round_phase
from tasks.federated.federation import Federation
from tasks.federated.messages import Asked
from tasks.federated.round_record import (
    Measured,
    RoundRecord,
    read_records,
    record_of,
    state_after,
    write_record,
)
from tasks.federated.secure_messages import SecureMessages
from tasks.federated.secure_round import SecureRound
from tasks.progress import tell
from tasks.session import require, threads
from tasks.store import Reference

READ_AHEAD = 2
"""So many large updates are in memory: one that is added, and the next one, which a thread reads meanwhile."""


class Rounds:
    """The rounds of one job; goes on from the newest one that was closed.

    Args:
        federation: the job, initialised.

    Attributes:
        records: of the rounds that have been closed, in order.
        state: after them.
    """

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        exchange, store = federation.exchange, federation.store
        self._buffers = buffers_of(federation)
        self._opened = 0.0
        self._secure: SecureRound | None = None  # the open round's sum
        self._added: dict[str, UpdateNote] | None = None  # pod -> what can be removed once the next round is open
        self.records = read_records(store)
        if self.records:
            self._weights = self.records[-1].weights
            self.state = state_after(store, exchange, self.records[-1])
            self._tidy()
        else:
            first = require(store, "initialise").files["weights"]
            kept = codec.decode(store.mapped(first.name, first.sha256), in_place=True).params
            self._weights = exchange.put_weights(kept)
            self.state = GlobalState(0, exchange.weights(self._weights))

    @property
    def are_over(self) -> bool:
        """Whether no round is left, or early stopping has stopped them."""
        return self.state.stopped or self.state.round_number >= self._federation.job.rounds

    @property
    def weights(self) -> Reference:
        """The global parameters after the last round, in the exchange."""
        return self._weights

    @property
    def best(self) -> RoundRecord | None:
        """The best round by the job's metric; None where the job does not choose, or no round has the metric."""
        best = self.records[-1].best if self.records else None
        if best is None or best.best_round is None:
            return None
        return self.records[best.best_round - 1]

    def open(self) -> dict[str, Any]:
        """Publishes the next round.

        Raises:
            SupersededError: another session of the job has begun since.
        """
        federation, number = self._federation, self.state.round_number + 1
        newest = federation.exchange.session(federation.session)
        if newest != federation.session:
            raise SupersededError(
                f"session {newest} of the job {federation.job.job_id!r} has begun; session {federation.session} ends here"
            )
        pods = asked_pods(federation.job, number)
        self._opened = time.perf_counter()
        if federation.job.secure_aggregation:
            self._secure = SecureRound(federation, number, self.state.parameters, self._weights.sha256, pods)
        federation.exchange.ask(round_phase(number), Asked(pods, self._weights))
        self._tidy_added()  # while pods train
        return {"round": number, "pods": list(pods)}

    @property
    def steps_of_sum(self) -> Mapping[str, Callable[[], object]]:
        """The steps of the open round's secure sum before it is aggregated; none where updates are seen one by one."""
        return {} if self._secure is None else self._secure.steps

    def aggregate(self) -> RoundRecord:
        """Collects the updates of the open round, adds them, and keeps the record: then the round is closed.

        Raises:
            QuorumError: too few usable updates; the state before the round stands, and so do the updates that came.
        """
        federation = self._federation
        phase = round_phase(self.state.round_number + 1)
        began = time.perf_counter()
        with threads(federation.job.threads):
            closed = self._closed(phase) if self._secure is None else self._summed(self._secure)
            weights = federation.exchange.put_weights(closed.state.parameters)
            server = self._kept_server(closed.state)
            # The same parameters as they lie in the exchange, where pods of this process find them too.
            state = replace(closed.state, parameters=federation.exchange.weights(weights))
        measured = Measured(
            closed.missing,
            closed.norms,
            closed.seconds,
            time.perf_counter() - self._opened,
            closed.waited,
            time.perf_counter() - began - closed.waited,
            self._weights.size * len(asked_pods(federation.job, closed.state.round_number)),
            closed.bytes_up,
            closed.spent,
        )
        summary = closed.summary
        record = record_of(
            summary, state, measured, weights, server, self._best_after(summary.round_number, summary.metrics)
        )
        write_record(federation.store, record)
        federation.exchange.close(phase)
        self.records.append(record)
        self.state, self._weights = state, weights
        if self._secure is not None:
            self._secure.forget()
            self._secure = None
        self._added = closed.notes
        if self.are_over:
            self._tidy_added()
        return record

    def _closed(self, phase: str) -> Closed:
        """The round over updates that are seen one by one."""
        federation, job, number = self._federation, self._federation.job, self.state.round_number + 1
        gathered = Gathered(federation, phase, self.state.parameters)
        try:
            updates = gathered.updates(asked_pods(job, number))
            state, summary = close_round(job, self.state, updates, self._buffers, self._weights.sha256)
        except QuorumError as error:
            missing = {**gathered.missing, **error.refused}
            federation.require_quorum(f"round {number}", len(gathered.norms) - len(error.refused), missing)
            raise
        seconds = {pod: note.seconds for pod, note in gathered.notes.items()}
        bytes_up = sum(note.delta_bytes for note in gathered.notes.values())
        spent = {pod: note.spent for pod, note in gathered.notes.items() if note.spent is not None}
        return Closed(
            state, summary, gathered.missing, gathered.norms, seconds, gathered.waited, bytes_up, spent, gathered.notes
        )

    def _summed(self, secure: SecureRound) -> Closed:
        """The round over updates that are seen only in their sum."""
        result = secure.result()
        state, summary = close_secure_round(self._federation.job, self.state, result.summed, result.pods, self._buffers)
        return Closed(
            state, summary, secure.missing, {}, result.seconds, secure.waited, result.bytes_up, result.spent, {}
        )

    def _kept_server(self, state: GlobalState) -> Reference | None:
        if not state.server:
            return None
        return self._federation.store.put_named_by_digest(
            lambda sha256: f"rounds/{state.round_number:05d}.{sha256[:16]}.safetensors", codec.pieces(state.server)
        )

    def _best_after(self, round_number: int, metrics: Mapping[str, float]) -> EarlyStoppingState | None:
        if self._federation.job.best is None:
            return None
        before = self.records[-1].best if self.records else None
        chooser = selection(self._federation.job.best)
        return chooser.update(before or EarlyStoppingState(), round_number, metrics)

    def _tidy_added(self) -> None:
        if self._added is not None:
            self._tidy(self._added)
            self._added = None

    def _tidy(self, notes: dict[str, UpdateNote] | None = None) -> None:
        """Removes what no later round needs: deltas that were added, parameters that are neither the newest nor the best."""
        exchange, record = self._federation.exchange, self.records[-1]
        phase = round_phase(record.round_number)
        exchange.close(phase)
        if notes is None:
            for session in range(1, self._federation.session + 1):
                SecureMessages(exchange, phase, session).forget_masked(record.pods)
            found = (exchange.update_note(phase, pod) for pod in record.pods)
            notes = {note.pod: note for note in found if note is not None}
        for note in notes.values():
            exchange.forget_update(phase, note)
        kept = {self._weights.name, *([self.best.weights.name] if self.best else [])}
        for older in self.records[-3:-1]:
            if older.weights.name not in kept:
                exchange.store.delete(older.weights.name)
            if older.server is not None:
                self._federation.store.delete(older.server.name)


@dataclass(frozen=True)
class Closed:
    """A round that has been computed and is to be kept: the state, what is to be said of it, and what was seen on the way.

    Attributes:
        state: after the round.
        summary: of it.
        missing: pod -> why it has no usable update.
        norms: pod -> Euclidean norm of its update, where it was seen.
        seconds: pod -> seconds that training took there.
        waited: seconds spent waiting for pods.
        bytes_up: sent by pods.
        spent: pod -> what its updates have told by then, in a private job.
        notes: of the updates, which can be removed.
    """

    state: GlobalState
    summary: RoundSummary
    missing: Mapping[str, str]
    norms: Mapping[str, float]
    seconds: Mapping[str, float]
    waited: float
    bytes_up: int
    spent: Mapping[str, Spent]
    notes: dict[str, UpdateNote]


class Gathered:
    """The updates of one round as they come in, and what is seen of them on the way.

    Args:
        federation: the job, initialised.
        phase: of the round.
        expected: the global parameters.

    Attributes:
        notes: pod -> what it says of its update, of those that could be read.
        norms: pod -> Euclidean norm of its update.
    """

    def __init__(self, federation: Federation, phase: str, expected: Parameters) -> None:
        self._federation = federation
        self._phase = phase
        self._expected = expected
        self._collector = federation.collector(phase)
        self.notes: dict[str, UpdateNote] = {}
        self.norms: dict[str, float] = {}
        self._unusable: dict[str, str] = {}

    @property
    def missing(self) -> dict[str, str]:
        """Pod -> why it has no usable update."""
        return {**self._collector.missing, **self._unusable}

    @property
    def waited(self) -> float:
        """Seconds spent waiting for pods."""
        return self._collector.waited

    def updates(self, pods: tuple[str, ...]) -> Iterator[Update]:
        """The updates in the order of `pods`: a small one as soon as it is there, of large ones `READ_AHEAD` in memory."""
        exchange = self._federation.exchange
        being_read: deque[tuple[str, UpdateNote, Callable[[], tuple[Update, float]]]] = deque()
        with ThreadPoolExecutor(READ_AHEAD) as readers:
            for pod, note in self._collector.answers(pods, lambda pod: exchange.update_note(self._phase, pod)):
                large = note.delta_bytes >= BESIDE_BYTES
                read = readers.submit(self._read, pod, note).result if large else partial(self._read, pod, note)
                being_read.append((pod, note, read))
                while len(being_read) >= (READ_AHEAD if large else 1):
                    yield from self._usable(*being_read.popleft())
            while being_read:
                yield from self._usable(*being_read.popleft())

    def _read(self, pod: str, note: UpdateNote) -> tuple[Update, float]:
        """A pod's update and its norm; what it takes is done by the operating system, hashlib and torch, beside other threads."""
        if note.pod != pod:
            raise ParameterError(f"its update says that it is of pod {note.pod!r}")
        exchange = self._federation.exchange
        exchange.check_rows(pod, note.weight)
        update = exchange.update(self._phase, note, self._expected)
        return update, euclidean_norm(update.delta)

    def _usable(self, pod: str, note: UpdateNote, read: Callable[[], tuple[Update, float]]) -> Iterator[Update]:
        """The update, unless it cannot be used."""
        try:
            update, norm = read()
        except StoreAwayError:
            raise  # no pod is to blame
        except (ParameterError, StorageError) as error:
            self._unusable[pod] = f"{type(error).__name__}: {error}"
            return
        self.notes[pod], self.norms[pod] = note, norm
        tell("pod_answered", {"pod": pod, "round": note.round_number, **answer_values(note)})
        yield update


def answer_values(note: UpdateNote) -> dict[str, Any]:
    """What people see of an update while the round runs."""
    rate = note.weight / note.seconds if note.seconds else 0.0
    return {"rows_per_second": rate, "metrics": note.metrics.mean(), "train_loss": note.train_loss}


def buffers_of(federation: Federation) -> tuple[str, ...]:
    """The names of the network's buffers, which server optimisers leave to the plain mean."""
    schema = federation.exchange.common()
    if schema is None:
        raise BitfountError("the common schema is not known: pods have not joined")
    with threads(federation.job.threads):
        model = federation.model(schema)
    parameters = {name for name, _ in model.named_parameters()}
    return tuple(name.removeprefix("_model.") for name in model.state_dict() if name not in parameters)
