"""Where modeller and pods meet: objects under agreed names in one store, each written once, polled for, never pushed.

What is there says how far a job is, so whoever comes back after a crash finds his place by looking:

    job.json, model.py                       what is asked, and the source that the job names by its sha256
    job.sig.json                             the modeller's signature of the job, where there is one
    sessions/<n>/began.json, ended.json      the modeller's n-th start of the job, and how it ended
    sessions/<n>/here/<pod>.json             a pod that is still up says so
    pods/<pod>/schema.json                   the pod has joined: its columns, and how many rows it has
    common.json                              the common schema: statistics are asked for
    pods/<pod>/statistics.json               sums of its columns
    start.json                               how all pods encode rows: rounds may begin
    weights/<sha256>.safetensors             global parameters, by their digest
    rounds/<r>/open.json                     who is asked in the round, and from which parameters
    rounds/<r>/updates/<pod>.json            a pod's answer; its delta lies beside it
    rounds/<r>/secure/<n>/...                a secure sum in the modeller's n-th session: see `secure_messages`
    rounds/<r>/closed.json                   too late for the round
    evaluation/open.json, closed.json        the last parameters, for the pods' test rows
    evaluation/<pod>.json                    a pod's test metrics
    prediction/open.json, closed.json        the last parameters, for all of the pods' rows
    prediction/<pod>.json                    a pod's predictions
    <phase>/failed/<pod>.<n>.json            why a pod has no answer, in the modeller's n-th session

What a pod wrote is checked by a schema when it is read, and so is what the modeller wrote.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import cache
from typing import Any, TypeVar

from marshmallow import Schema, ValidationError
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_exponential
from torch import Tensor

from bitfount_model import BitfountSchema, codec
from bitfount_model.data import Preparation
from bitfount_model.errors import ConfigurationError, IntegrityError, ParameterError, SerializationError
from bitfount_model.federation.job import FederatedJob, job_from_json
from bitfount_model.federation.messages import UpdateNote, note_from_json, note_of, rows_from_json
from bitfount_model.federation.metric_sums import MetricSums
from bitfount_model.federation.pod import Update
from bitfount_model.federation.signing import JobSignature
from bitfount_model.federation.statistics import PodStatistics
from bitfount_model.types import JSON, Parameters, PredictReturnType
from tasks.federated.messages import (
    MAX_REASON,
    Asked,
    AskedSchema,
    CommonSchema,
    EndSchema,
    FailureSchema,
    Joined,
    JoinedSchema,
    PredictionsSchema,
    SignatureSchema,
    Start,
    StartSchema,
    plain_keys,
)
from tasks.store import Reference, Store, local_path

PATIENCE_SECONDS = 120.0
"""A shared folder may be away for as long as anything else."""
MAX_NOTE_BYTES = 64 * 2**20
"""The largest JSON that is read."""
JOIN, EVALUATION, PREDICTION = "pods", "evaluation", "prediction"
"""Phases beside the rounds."""

Value = TypeVar("Value")


class Exchange:
    """One job's objects.

    Args:
        url: where both sides reach them: any URL that the store takes.
        owned: whether it is a folder of this process's own, with all pods in it: then parameters are mapped into memory, not
            copied there.
        max_bytes: parameters and predictions larger than this are refused.
        patience_seconds: how long a call is tried again when the store does not answer.
    """

    def __init__(
        self,
        url: str,
        *,
        owned: bool = False,
        max_bytes: int = codec.DEFAULT_MAX_BYTES,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self.url = url
        self._owned = owned
        self.store = Store(url, max_bytes, patience_seconds=patience_seconds)
        # What was written once is read once.
        self._joined: dict[str, Joined] = {}
        self._common: BitfountSchema | None = None
        self._start: Start | None = None
        self._newest: tuple[str, dict[str, Any]] | None = None
        self._asked: tuple[str, Asked] | None = None  # last, through this very object
        self._notes = Store(url, MAX_NOTE_BYTES, patience_seconds=patience_seconds)
        self.longest_pause = 0.01 if is_folder(self.store) else 1.0

    def awaited(self, look: Callable[[], Value | None], seconds: float) -> Value | None:
        """Looks again and again, ever more slowly, until there is something or the time is up.

        Args:
            look: gives what was found, or None.
            seconds: how long; 0 looks once.
        """
        first = min(0.005, self.longest_pause)
        retrying = Retrying(
            retry=retry_if_result(lambda found: found is None),
            wait=wait_exponential(multiplier=first, exp_base=1.3, max=self.longest_pause),
            stop=stop_after_delay(seconds),
            retry_error_callback=lambda state: None,
        )
        found: Value | None = retrying(look)
        return found

    # -- the job ----------------------------------------------------------------------------------------------------------

    def publish(self, job: FederatedJob, source: bytes, signature: JobSignature | None = None) -> None:
        """Says what is asked; the signature first, so that no pod finds a signed job without it.

        Raises:
            IntegrityError: another job lies here.
        """
        if signature is not None:
            self._put("job.sig.json", asdict(signature))
        self.store.put("model.py", source)
        self._put("job.json", job.to_json())

    def job(self) -> tuple[FederatedJob, bytes] | None:
        """What is asked and the model's source, or None while nobody has said it.

        Raises:
            ConfigurationError: it is no job.
        """
        value = self._get("job.json")
        return None if value is None else (job_from_json(value), self.store.get("model.py"))

    def signature(self) -> JobSignature | None:
        """The signature that came with the job, not looked at yet; None for an unsigned one.

        Raises:
            SerializationError: it is not what a modeller writes.
        """
        value = self._checked("job.sig.json", SignatureSchema)
        return None if value is None else JobSignature(**value)

    # -- the modeller's sessions --------------------------------------------------------------------------------------------

    def begin_session(self, modeller: JSON) -> int:
        """Takes the next number for a start of the modeller.

        Args:
            modeller: who, for people.
        """
        number = self.session() + 1
        while True:
            try:
                self._put(f"sessions/{number:04d}/began.json", modeller)
                return number
            except IntegrityError:  # another modeller took it at the same moment
                number += 1

    def session(self, after: int = 0) -> int:
        """The number of the newest session.

        Args:
            after: one that is known to have begun.
        """
        while self._notes.has(f"sessions/{after + 1:04d}/began.json"):
            after += 1
        return after

    def end_session(self, number: int, state: str, reason: str) -> None:
        """Sends the pods home: the session is over."""
        self._put(f"sessions/{number:04d}/ended.json", {"state": state, "reason": reason[:MAX_REASON]})

    def session_end(self, number: int) -> JSON | None:
        """`{"state", "reason"}` of a session that is over, else None."""
        end: JSON | None = self._checked(f"sessions/{number:04d}/ended.json", EndSchema)
        return end

    def say_here(self, number: int, pod: str) -> None:
        """A pod is up in a session."""
        self._put(f"sessions/{number:04d}/here/{pod}.json", {})

    def is_here(self, number: int, pod: str) -> bool:
        """Whether a pod has said that it is up in a session."""
        return self._notes.has(f"sessions/{number:04d}/here/{pod}.json")

    # -- before round 1 -------------------------------------------------------------------------------------------------------

    def put_joined(self, pod: str, joined: Joined) -> None:
        """A pod has joined.

        Raises:
            IntegrityError: it had joined with other rows.
        """
        self._put(answer_name(JOIN, pod), {"schema": joined.schema.dumps(), "rows": asdict(joined.rows)})

    def joined(self, pod: str) -> Joined | None:
        """What a pod joined with, or None if it has not.

        Raises:
            SerializationError: it is not what a pod writes.
        """
        if pod not in self._joined:
            value = self._checked(answer_name(JOIN, pod), JoinedSchema)
            if value is None:
                return None
            self._joined[pod] = Joined(BitfountSchema.loads(value["schema"]), rows_from_json(value["rows"]))
        return self._joined[pod]

    def check_rows(self, pod: str, rows: int) -> None:
        """Refuses an update of other rows than a pod has joined with.

        Raises:
            ParameterError: they are others, or it has not joined.
        """
        joined = self.joined(pod)
        if joined is None or rows != joined.rows.train:
            there = "it has not joined" if joined is None else f"it joined with {joined.rows.train}"
            raise ParameterError(f"the update of pod {pod!r} claims {rows} training rows; {there}")

    def put_common(self, schema: BitfountSchema) -> None:
        """Asks for statistics."""
        self._put("common.json", {"schema": schema.dumps()})

    def common(self) -> BitfountSchema | None:
        """The common schema, or None while statistics are not asked for."""
        if self._common is None and (value := self._checked("common.json", CommonSchema)) is not None:
            self._common = BitfountSchema.loads(value["schema"])
        return self._common

    def put_statistics(self, pod: str, statistics: PodStatistics) -> None:
        """A pod's statistics."""
        self._put(f"pods/{pod}/statistics.json", statistics.to_json())

    def statistics(self, pod: str) -> PodStatistics | None:
        """A pod's statistics, or None while it has sent none.

        Raises:
            SerializationError: they are of no rows that there can be.
        """
        value = self._get(f"pods/{pod}/statistics.json")
        return None if value is None else PodStatistics.from_json(value)

    def put_start(self, start: Start) -> None:
        """Rounds may begin."""
        schema, preparation = start.schema.dumps(), start.preparation.to_json()
        self._put("start.json", {"schema": schema, "preparation": preparation, "pods": list(start.pods)})

    def start(self) -> Start | None:
        """What rounds begin with, or None while it is not known."""
        if self._start is None and (value := self._checked("start.json", StartSchema)) is not None:
            schema, preparation = BitfountSchema.loads(value["schema"]), Preparation.from_json(value["preparation"])
            self._start = Start(schema, preparation, tuple(value["pods"]))
        return self._start

    # -- rounds -----------------------------------------------------------------------------------------------------------------

    def put_weights(self, parameters: Parameters) -> Reference:
        """Global parameters, under their digest. From here on nobody may change them: `weights` may give these very ones."""
        reference = self.store.put_named_by_digest(
            lambda sha256: f"weights/{sha256}.safetensors", codec.pieces(parameters)
        )
        self._newest = None if self._owned else (reference.sha256, dict(parameters))
        return reference

    def weights(self, reference: Reference) -> dict[str, Any]:
        """Global parameters, held against their digest. The newest are kept: pods of one process share them, and change none.

        Args:
            reference: whose `sha256` is also `codec.digest` of the parameters.
        """
        if self._newest is None or self._newest[0] != reference.sha256:
            self._newest = None  # before the next ones are in memory
            self._newest = (reference.sha256, self._read_parameters(reference.name, reference.sha256, None))
        return self._newest[1]

    def ask(self, phase: str, asked: Asked) -> None:
        """Opens a round, or the last phase."""
        self._put(f"{phase}/open.json", {"pods": list(asked.pods), "weights": asdict(asked.weights)})
        self._asked = (phase, asked)

    def asked(self, phase: str) -> Asked | None:
        """What is asked in a phase, or None while it is not open."""
        if self._asked is not None and self._asked[0] == phase:
            return self._asked[1]
        value = self._checked(f"{phase}/open.json", AskedSchema)
        return None if value is None else Asked(tuple(value["pods"]), Reference(**value["weights"]))

    def close(self, phase: str) -> None:
        """Nobody waits for answers any more."""
        self._put(f"{phase}/closed.json", {})

    def has_answer(self, phase: str, pod: str) -> bool:
        """Whether a pod has answered a phase."""
        return self._notes.has(answer_name(phase, pod))

    def is_closed(self, phase: str) -> bool:
        """Whether nobody waits for answers any more."""
        return self._notes.has(f"{phase}/closed.json")

    def put_update(self, update: Update) -> None:
        """A pod's answer to a round; the delta first, the note that names it last. A second answer changes nothing."""
        phase = round_phase(update.round_number)
        delta = self.store.put_named_by_digest(
            lambda sha256: delta_name(phase, update.pod, sha256), codec.pieces(update.delta), durable=False
        )
        self._put_once(answer_name(phase, update.pod), note_of(update, delta.sha256, delta.size).to_json())

    def update_note(self, phase: str, pod: str) -> UpdateNote | None:
        """What a pod says of its update, or None while there is none.

        Raises:
            SerializationError: it is not what a pod writes.
        """
        value = self._get(answer_name(phase, pod))
        return None if value is None else note_from_json(value)

    def update(self, phase: str, note: UpdateNote, expected: Parameters) -> Update:
        """A pod's update, held against its digest and against the model's parameters.

        Raises:
            ParameterError: its delta is not that of the model.
            StorageError: its delta is not there, or is another one.
        """
        name = delta_name(phase, note.pod, note.delta_sha256)
        return note.update(self._read_parameters(name, note.delta_sha256, expected))

    def forget_update(self, phase: str, note: UpdateNote) -> None:
        """Removes a delta that has been added."""
        self.store.delete(delta_name(phase, note.pod, note.delta_sha256))

    # -- the end ------------------------------------------------------------------------------------------------------------------

    def put_evaluation(self, pod: str, metrics: MetricSums) -> None:
        """A pod's test metrics as sums; empty without test rows. A second answer changes nothing."""
        self._put_once(answer_name(EVALUATION, pod), metrics.to_json())

    def evaluation(self, pod: str) -> MetricSums | None:
        """A pod's test metrics, or None while there are none.

        Raises:
            SerializationError: they are not what a pod writes.
        """
        value = self._get(answer_name(EVALUATION, pod))
        return None if value is None else MetricSums.from_json(value)

    def put_predictions(self, pod: str, predictions: Tensor, keys: Iterable[Any] | None) -> None:
        """A pod's predictions, `(rows, ...)`, and their rows' keys. A second answer changes nothing."""
        reference = self.store.put_named_by_digest(
            lambda sha256: f"{PREDICTION}/{pod}.{sha256[:16]}.safetensors", codec.pieces({"predictions": predictions})
        )
        self._put_once(answer_name(PREDICTION, pod), {"array": asdict(reference), "keys": plain_keys(keys)})

    def predictions(self, pod: str) -> PredictReturnType | None:
        """A pod's predictions, or None while there are none.

        Raises:
            SerializationError, WeightsFileError: they are not what a pod writes.
        """
        value = self._checked(answer_name(PREDICTION, pod), PredictionsSchema)
        if value is None:
            return None
        array = Reference(**value["array"])
        params = codec.decode(self.store.get(array.name, array.sha256), max_bytes=self.store.max_bytes).params
        if set(params) != {"predictions"}:
            raise SerializationError(f"the predictions of pod {pod!r} hold {sorted(params)}, wanted one array")
        return PredictReturnType(params["predictions"].numpy(), value["keys"])

    # -- failures -----------------------------------------------------------------------------------------------------------------

    def put_failure(self, phase: str, pod: str, session: int, reason: str) -> None:
        """Why a pod has no answer. A second reason in the same session changes nothing."""
        self._put_once(f"{phase}/failed/{pod}.{session:04d}.json", {"reason": reason[:MAX_REASON]})

    def failure(self, phase: str, pod: str, session: int) -> str | None:
        """Why a pod has no answer in a session, or None if it has not said so."""
        value = self._checked(f"{phase}/failed/{pod}.{session:04d}.json", FailureSchema)
        return None if value is None else str(value["reason"])

    # -- secure sums: see `secure_messages` ----------------------------------------------------------------------------------------

    def put_message(self, name: str, value: JSON) -> None:
        """Writes a message once: a second one under the same name changes nothing."""
        self._put_once(name, value)

    def message(self, name: str) -> Any:
        """A message as JSON, not looked at yet; None while there is none.

        Raises:
            SerializationError: it is no JSON.
        """
        return self._get(name)

    # -- below ------------------------------------------------------------------------------------------------------------------

    def _read_parameters(self, name: str, sha256: str, expected: Parameters | None) -> dict[str, Tensor]:
        """Parameters as a file of them says, held against its digest; where nobody else can change the file, they stay in it."""
        content = self.store.mapped(name, sha256) if self._owned else self.store.load(name, sha256)
        return codec.decode(content, expected=expected, max_bytes=self.store.max_bytes, in_place=True).params

    def _put(self, name: str, value: JSON) -> None:
        self._notes.put(name, json.dumps(value, sort_keys=True, allow_nan=False).encode(), durable=False)

    def _put_once(self, name: str, value: JSON) -> None:
        """Keeps what is there already: a step that was done twice differs in the seconds that it took."""
        if not self._notes.has(name):
            try:
                self._put(name, value)
            except IntegrityError:
                return

    def _get(self, name: str) -> Any:
        content = self._notes.find(name)
        try:
            return None if content is None else json.loads(content)
        except (ValueError, RecursionError) as error:
            raise SerializationError(f"{name} in {self.url} is not JSON: {error}") from error

    def _checked(self, name: str, schema: type[Schema]) -> Any:
        value = self._get(name)
        try:
            return None if value is None else _made_once(schema).load(value)
        except ValidationError as error:
            raise SerializationError(f"{name} in {self.url} is not what is written there: {error.messages}") from error


@cache
def _made_once(schema: type[Schema]) -> Schema:
    """A schema to load with: to make one takes longer than to load a message."""
    return schema()


def is_folder(store: Store) -> bool:
    """Whether a store is a folder of this machine, which can be asked often."""
    try:
        local_path(store, "any")
    except ConfigurationError:
        return False
    return True


def round_phase(round_number: int) -> str:
    """The phase of a round."""
    return f"rounds/{round_number:05d}"


def answer_name(phase: str, pod: str) -> str:
    """Where a pod's answer to a phase lies."""
    if phase == JOIN:
        return f"{JOIN}/{pod}/schema.json"
    return f"{phase}/{pod}.json" if phase in (EVALUATION, PREDICTION) else f"{phase}/updates/{pod}.json"


def delta_name(phase: str, pod: str, sha256: str) -> str:
    """Where a pod's delta lies."""
    return f"{phase}/updates/{pod}.{sha256[:16]}.safetensors"
