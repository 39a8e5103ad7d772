"""A pod's part in one job: looks at the exchange, does what is asked next, and leaves the answer there.

The same worker runs in both worlds: embedded, the modeller's process calls `advance` in turn; deployed, the pod's own flow
calls it until the job is over. Each thing that it does is a Prefect task.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial, wraps
from typing import Any, TypeVar

import torch
from prefect.utilities.timeout import timeout

from bitfount_model.batch_progress import BatchCount
from bitfount_model.errors import ConfigurationError, IntegrityError, PodError, StorageError
from bitfount_model.federation.book import (
    EVALUATED,
    FAILED,
    JOINED,
    PREDICTED,
    REFUSED,
    SUMMARISED,
    TRAINED,
    Decision,
)
from bitfount_model.federation.job import FederatedJob
from bitfount_model.federation.pod import Pod, Rows, Update
from bitfount_model.federation.pod_session import PodSession
from bitfount_model.federation.signing import admitted
from tasks.federated.exchange import EVALUATION, JOIN, PREDICTION, Exchange, round_phase
from tasks.federated.messages import Joined, Start
from tasks.federated.pod_reasons import TooLateError, plain_reason, reason
from tasks.federated.secure_messages import SecureMessages
from tasks.federated.secure_part import KEYS, MASK, SHARES, UNMASK, SecurePart
from tasks.progress import tell
from tasks.retries import is_transient
from tasks.session import threads
from tasks.step import step
from tasks.store import Reference

POD_LOGGER = "bitfount.pod"
"""Where errors go with their texts and tracebacks: to the pod's owner, and to nobody else."""

logger = logging.getLogger(POD_LOGGER)

Value = TypeVar("Value")

OpenSession = Callable[[Pod, FederatedJob, bytes, str], PodSession]
"""(pod, job, the model's source, where its owner finds that) -> a session that has checked them."""


class PodWorker:
    """One pod in one job.

    Args:
        pod: the pod.
        exchange: of the job.
        session: the modeller's, whose failures are this worker's to report.
        open_session: where the model runs: in this process, or in one of its own.

    Attributes:
        session: the modeller's newest that is known; whoever drives the worker keeps it up to date.
        left: why the pod takes no part in the job; None while it does.
    """

    def __init__(self, pod: Pod, exchange: Exchange, session: int, open_session: OpenSession = PodSession) -> None:
        self.pod = pod
        self._open_session = open_session
        self.exchange = exchange
        self.session = session
        self.left: str | None = None
        self._pod_session: PodSession | None = None
        self._asked: FederatedJob | None = None  # as it lies in the exchange, joined or not
        self._modeller: str | None = None  # the key that signed it
        self._rows: Rows | None = None
        self._start: Start | None = None
        self._round = 1
        self._weights: Reference | None = None  # those that are asked about now
        self._done: tuple[str, int] | None = None  # the round that nothing is left to do in, in the session
        self._join_task = self._task("join", "join · {pod}", self._open)
        self._statistics_task = self._task("statistics", "statistics · {pod}", self._summarise)
        self._prepare_task = self._task("prepare", "prepare · {pod}", self._build)
        self._fit_task = self._task("fit", "fit round {round_number} · {pod}", self._train)
        self._kept: Update | None = None  # of the newest round that is summed securely
        self._part: SecurePart | None = None
        self._part_of: tuple[str, int] | None = None  # the phase and the session of that part
        self._train_task = self._task("fit", "fit round {round_number} · {pod}", self._train_for_sum)
        self._sum_tasks = {
            name: self._task(name, f"{name} of round {{round_number}} · {{pod}}", partial(self._take, name))
            for name in (KEYS, SHARES, MASK, UNMASK)
        }
        self._evaluate_task = self._task("evaluate", "evaluate · {pod}", self._evaluate)
        self._predict_task = self._task("predict", "predict · {pod}", self._predict)

    @property
    def has_joined(self) -> bool:
        """Whether the pod has opened the job and its rows."""
        return self._pod_session is not None

    @property
    def job(self) -> FederatedJob:
        """The job that the pod has joined."""
        return self._opened().job

    def advance(self) -> bool:
        """Does the next thing that is asked of this pod, if there is one.

        What fails is reported in the exchange, and the worker goes on with what is asked next; a pod that cannot join, or
        may not, leaves the job.

        Returns:
            Whether there was something to do.
        """
        if self.left is not None:
            return False
        if self._pod_session is None:
            return self._or_failed(JOIN, lambda: self._join_task(self.pod.name))
        if self._start is None:
            return self._get_ready()
        if self._answer_round():
            return True
        if self._done == (round_phase(self._round), self.session):
            return False  # the modeller closes a round before it asks for anything else
        return self._apply(EVALUATION, self._evaluate_task) or self._apply(PREDICTION, self._predict_task)

    def rest(self) -> None:
        """Gives back the memory of a large model's parameters until there is something to do again."""
        if self._pod_session is not None:
            self._pod_session.rest()

    def close(self) -> None:
        """Lets go of the model, and of the process that it runs in."""
        if self._pod_session is not None:
            self._pod_session.close()

    def _get_ready(self) -> bool:
        start, pod = self.exchange.start(), self.pod.name
        if start is not None:
            self._start = start
            return self._or_failed(JOIN, lambda: self._prepare_task(pod))
        if (
            self.job.preparation is None
            and self.exchange.common() is not None
            and self.exchange.statistics(pod) is None
        ):
            return self._or_failed(JOIN, lambda: self._statistics_task(pod))
        return False

    def _answer_round(self) -> bool:
        while self.exchange.is_closed(round_phase(self._round)):
            self._round += 1
        number, pod = self._round, self.pod.name
        phase = round_phase(number)
        if self._done == (phase, self.session):
            return False
        asked = self.exchange.asked(phase)
        if asked is None:
            return False
        if pod not in asked.pods or self._has_answered(phase):
            self._done = (phase, self.session)
            return False
        self._weights = asked.weights
        if self.job.secure_aggregation:
            return self._sum_securely(phase, number)
        self._or_failed(phase, lambda: self._fit_task(pod, number))
        self._done = (phase, self.session)
        return True

    def _sum_securely(self, phase: str, number: int) -> bool:
        """Does the next step of the round's secure sum; masks are of one session alone."""
        pod = self.pod.name
        if self._part is None or self._part_of != (phase, self.session):
            return self._or_failed(phase, lambda: self._train_task(pod, number))
        name = self._part.next_step()
        if name is not None:
            self._or_failed(phase, lambda: self._sum_tasks[name](pod, number))
        if self._part.is_over:
            self._done = (phase, self.session)
            self._part = None
        return name is not None

    def _has_answered(self, phase: str) -> bool:
        pod = self.pod.name
        return self.exchange.has_answer(phase, pod) or self.exchange.failure(phase, pod, self.session) is not None

    def _apply(self, phase: str, task: Callable[[str], None]) -> bool:
        """Answers one of the phases after the last round."""
        pod, asked = self.pod.name, self.exchange.asked(phase)
        if asked is None or pod not in asked.pods or self.exchange.is_closed(phase) or self._has_answered(phase):
            return False
        self._weights = asked.weights
        return self._or_failed(phase, lambda: task(pod))

    def _or_failed(self, phase: str, work: Callable[[], Any]) -> bool:
        try:
            work()
        except PodError as error:
            self.exchange.put_failure(phase, self.pod.name, self.session, str(error))
            tell("pod_failed", {"pod": self.pod.name, "phase": phase, "reason": str(error)})
            with self._logged():  # nothing comes of a failure, so a log that cannot be written is no reason to stop
                number = self._round if phase == round_phase(self._round) else None
                self._note(FAILED if self.has_joined else REFUSED, round_number=number, reason=error.plain)
            if phase == JOIN:
                self.left = str(error)
        return True

    def _note(self, what: str, **values: Any) -> None:
        """Writes down what the pod is about to do, before it does it, where it keeps a book."""
        if self.pod.book is not None:
            job = self._asked
            job_id, model = (job.job_id, job.model_sha256) if job else (None, None)
            self.pod.book.note(Decision(what, job=job_id, model=model, modeller=self._modeller, **values))

    @contextmanager
    def _logged(self) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            logger.error("pod %s: %s", self.pod.name, error)

    # -- the tasks' bodies ----------------------------------------------------------------------------------------------------

    def _open(self, pod: str) -> None:
        """Checks the job against the policy, then reads the rows."""
        asked = self.exchange.job()
        if asked is None:
            raise ConfigurationError(f"there is no job in {self.exchange.url}")
        self._asked = asked[0]
        self._modeller = self._admitted(asked[0])
        session = self._open_session(self.pod, *asked, f"{self.exchange.url}/model.py")
        try:
            with threads(session.job.threads):
                joined = Joined(session.schema(), session.rows())
            self._rows = joined.rows
            self._note(JOINED, rows=joined.rows.train + joined.rows.validation + joined.rows.test)
            self._join(session, joined)
        except BaseException:
            session.close()
            raise
        self._pod_session = session

    def _join(self, session: PodSession, joined: Joined) -> None:
        pod = self.pod.name
        try:
            self.exchange.put_joined(pod, joined)
        except IntegrityError as error:
            raise ConfigurationError(
                f"the rows of pod {pod!r} have changed since the job {session.job.job_id!r} began; start a new job for them"
            ) from error

    def _admitted(self, job: FederatedJob) -> str | None:
        """The modeller's key, where the job is signed; a job of somebody whom the policy does not list goes no further."""
        try:
            return admitted(self.pod.policy.modellers, job, self.exchange.signature())
        except ConfigurationError as error:
            raise ConfigurationError(f"pod {self.pod.name!r} refuses the job {job.job_id!r}: {error}") from error

    def _summarise(self, pod: str) -> None:
        schema = self.exchange.common()
        if schema is not None:
            statistics = self._opened().statistics(schema)
            self._note(SUMMARISED, rows=self._rows and self._rows.train)
            self.exchange.put_statistics(pod, statistics)

    def _build(self, pod: str) -> None:
        if self._start is not None:
            self._opened().prepare(self._start.schema, self._start.preparation)

    def _train(self, pod: str, round_number: int) -> dict[str, Any]:
        update = self._fitted(pod, round_number)
        self._note(TRAINED, round_number=round_number, rows=update.weight)
        self.exchange.put_update(update)
        return self._told_of(update)

    def _train_for_sum(self, pod: str, round_number: int) -> dict[str, Any]:
        weights, phase, session = self._asked_weights(), round_phase(round_number), self.session
        kept = self._kept
        if kept is None or (kept.round_number, kept.base_digest) != (round_number, weights.sha256):
            kept = self._kept = self._fitted(pod, round_number)
            self._note(TRAINED, round_number=round_number, rows=kept.weight)
        messages = SecureMessages(self.exchange, phase, session)
        part = SecurePart(self.pod, self.job, messages, self.exchange.weights(weights), kept)
        part.announce()
        self._part, self._part_of = part, (phase, session)
        return self._told_of(kept)

    def _take(self, name: str, pod: str, round_number: int) -> None:
        if self._part is None:
            raise ConfigurationError(f"pod {pod!r} has no part in the secure sum of round {round_number}")
        self._part.take(name)

    def _fitted(self, pod: str, round_number: int) -> Update:
        session = self._opened()
        weights = self._asked_weights()
        parameters = self.exchange.weights(weights)

        def on_batch(count: BatchCount) -> None:
            tell("pod_batch", {"pod": pod, "round": round_number, **asdict(count)})

        with timeout(session.job.deadline_seconds, timeout_exc_type=TooLateError):
            update = session.fit(round_number, parameters, base_digest=weights.sha256, on_batch=on_batch)
        if self.exchange.is_closed(round_phase(round_number)):  # nobody would add it, or remove it
            raise ConfigurationError(f"pod {pod!r} is too late: round {round_number} is closed")
        return update

    def _told_of(self, update: Update) -> dict[str, Any]:
        tell("pod_fitted", {"pod": update.pod, "round": update.round_number, "rows": update.weight})
        return {"pod": update.pod, "round": update.round_number, "seconds": round(update.seconds, 4)}

    def _evaluate(self, pod: str) -> None:
        session = self._opened()
        parameters = self.exchange.weights(self._asked_weights())
        metrics = session.evaluate(parameters)
        self._note(EVALUATED, rows=self._rows and self._rows.test)
        self.exchange.put_evaluation(pod, metrics)

    def _predict(self, pod: str) -> None:
        session = self._opened()
        parameters = self.exchange.weights(self._asked_weights())
        result = session.predict(parameters)
        self._note(PREDICTED, rows=len(result.preds))
        self.exchange.put_predictions(pod, torch.as_tensor(result.preds), result.keys)

    # -- around them ----------------------------------------------------------------------------------------------------------

    def _task(self, name: str, run_name: str, body: Callable[..., Value]) -> Callable[..., Value]:
        """A Prefect task that lets out of the pod only what its owner allows.

        Prefect sends the text of an exception to its API, and logs tracebacks there: so neither may hold rows.
        """

        @wraps(body)
        def guarded(*arguments: Any, **named: Any) -> Value:
            try:
                if self._pod_session is None:
                    return body(*arguments, **named)
                with threads(self.job.threads):
                    return body(*arguments, **named)
            except Exception as error:
                logger.error("pod %s, %s: %s", self.pod.name, name, "".join(traceback.format_exception(error)))
                passes = is_transient(error) and not isinstance(error, TooLateError)
                deadline = None if self._pod_session is None else self.job.deadline_seconds
                plain = plain_reason(self.pod.name, name, error, deadline)
                raise PodError(reason(self.pod, name, error, deadline), transient=passes, plain=plain) from None

        task: Callable[..., Value] = step(name, run_name)(guarded)
        return task

    def _opened(self) -> PodSession:
        if self._pod_session is None:
            raise ConfigurationError(f"pod {self.pod.name!r} has not joined the job")
        return self._pod_session

    def _asked_weights(self) -> Reference:
        if self._weights is None:
            raise ConfigurationError(f"pod {self.pod.name!r} is asked for nothing yet")
        return self._weights
