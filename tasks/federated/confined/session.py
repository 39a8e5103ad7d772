"""A pod's session whose model runs in a process of its own: rows are read, counted and described here, by no code of the model.

The process is kept from round to round. Once it has met a limit, come too late or said what it may not, it is ended, and the
next call starts another.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar

import pandas as pd

from bitfount_model import codec
from bitfount_model.batch_progress import OnBatch
from bitfount_model.data import BitfountSchema, DatasetSplitter, Preparation, digest
from bitfount_model.data.table_bytes import table_to_bytes
from bitfount_model.errors import (
    ConfigurationError,
    ConfinedModelError,
    ConfinementError,
    DataError,
    NotInitialisedError,
    ParameterError,
)
from bitfount_model.federation.job import PREDICT, FederatedJob
from bitfount_model.federation.metric_sums import MetricSums
from bitfount_model.federation.pod import Pod, Update
from bitfount_model.federation.pod_session import PodSession
from bitfount_model.parameters import check_compatible
from bitfount_model.types import JSON, Parameters, PredictReturnType
from tasks.federated.confined.channel import Message
from tasks.federated.confined.limits import Limits, limits_here
from tasks.federated.confined.messages import (
    EvaluatedSchema,
    OpenedSchema,
    PredictedSchema,
    PreparedSchema,
    checked,
    fitted_from_json,
    sums_from_json,
)
from tasks.federated.confined.process import ModelProcess
from tasks.federated.pod_worker import POD_LOGGER
from tasks.job import SPLITTERS

logger = logging.getLogger(POD_LOGGER)

Value = TypeVar("Value")


def open_confined(pod: Pod, job: FederatedJob, source_code: bytes, found_at: str) -> PodSession:
    """Opens a session whose model is shut off; see `PodSession`, whose arguments and errors these are too.

    Raises:
        ConfigurationError: the model cannot be shut off here, and the policy does not allow it to run all the same.
    """
    if sys.platform == "linux":
        return ConfinedSession(pod, job, source_code, found_at)
    require_leave(pod, job, f"its system is {sys.platform}, and only Linux can")
    return PodSession(pod, job, source_code, found_at)


def require_leave(pod: Pod, job: FederatedJob, reason: str) -> None:
    """Goes on without confinement only where the pod's owner allows it, and says so in the pod's log.

    Raises:
        ConfigurationError: he does not.
    """
    if not pod.policy.allow_unconfined:
        raise ConfigurationError(
            f"pod {pod.name!r} refuses the job {job.job_id!r}: its machine does not let a model be shut off from network, files"
            f" and other processes ({reason}). Its owner may allow unprivileged user namespaces there, or write"
            " `allow_unconfined: true` in its policy"
        )
    logger.warning(
        "pod %s, job %s: the model is NOT shut off from network, files and other processes (%s), as the policy allows",
        pod.name,
        job.job_id,
        reason,
    )


class ConfinedSession(PodSession):
    """A session whose model runs in a process that can reach nothing but the rows that it is handed.

    Args:
        pod: the pod; its splitter is one of those that a pod file knows.
        job: what is asked.
        source_code: the model's source, whose sha256 the job names.
        found_at: where the pod's owner finds that source.
        limits: what the model may take; None for `limits_here`.

    Raises:
        ConfigurationError: as `PodSession`, or the kernel does not let the process be shut off and the policy does not allow
            it to run all the same.
        ConfinedModelError: the source raised, or does not hold the model class.
        ConfinementError: the process has ended, or answers what it may not. So do all methods that ask it.
    """

    def __init__(
        self,
        pod: Pod,
        job: FederatedJob,
        source_code: bytes,
        found_at: str = "model.py",
        limits: Limits | None = None,
    ) -> None:
        self._limits = limits or limits_here()
        self._source_code = source_code
        self._process: ModelProcess | None = None
        self._parameters: Parameters = {}
        self._handed: str | None = None  # the digest of the rows
        self._keys: list[Any] = []
        self._training_rows = 0
        self._trainable_names: list[str] = []
        super().__init__(pod, job, source_code, found_at)

    def prepare(self, schema: BitfountSchema, preparation: Preparation) -> None:
        """Hands the rows to the process, which builds model and loaders.

        Args:
            schema: the common one.
            preparation: of all pods' training rows.

        Raises:
            DataError: the rows cannot be read or handed over, or are others than those that were handed over before.
        """
        self._common = (schema, preparation)
        if self._process is None:
            self._begin()
        try:
            self._hand_over(schema, preparation)
        except BaseException:
            self.close()
            raise

    @property
    def parameters(self) -> Parameters:
        """The names, shapes and dtypes that global parameters have; the values are the first ones."""
        self._warm()
        return self._parameters

    def evaluate(self, parameters: Parameters) -> MetricSums:
        """As `PodSession.evaluate`."""
        if not self._metrics_may_leave():
            return MetricSums({})
        answer = self._ask("evaluate", {}, self._checked(parameters))
        return self._believed(lambda: sums_from_json(checked(answer.header, EvaluatedSchema())["metrics"]))

    def close(self) -> None:
        """Ends the process; the next call starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.end()

    def _load(self, source_code: bytes) -> bool:
        return self._begin()

    @property
    def trainable(self) -> Collection[str]:
        """What the process says; what it leaves out is sent as no change, and what it names gets noise."""
        return self._trainable_names

    def _fitted(self, round_number: int, parameters: Parameters, base_digest: str, on_batch: OnBatch | None) -> Update:
        """Asks for a round."""
        content = self._checked(parameters)
        answer = self._ask(
            "fit",
            {"round_number": round_number, "base_digest": base_digest},
            content,
            max_body=sum(map(len, content)) + codec.MAX_HEADER_BYTES,
            on_batch=on_batch,
        )

        def update() -> Update:
            fitted = fitted_from_json(answer.header)
            if fitted.weight > self._training_rows:
                raise ConfinementError(
                    f"the model's process says that it trained on {fitted.weight} rows, there are {self._training_rows}"
                )
            delta = codec.decode(answer.body, expected=parameters, in_place=True).params
            return Update(
                pod=self.pod.name, round_number=round_number, base_digest=base_digest, delta=delta, **vars(fitted)
            )

        return self._believed(update)

    def _predicted(self, parameters: Parameters) -> PredictReturnType:
        answer = self._ask("predict", {}, self._checked(parameters), max_body=codec.DEFAULT_MAX_BYTES)

        def result() -> PredictReturnType:
            checked(answer.header, PredictedSchema())
            tensors = codec.decode(answer.body).params
            if set(tensors) != {"predictions"} or tensors["predictions"].shape[:1] != (len(self._keys),):
                raise ConfinementError(
                    f"the model's process sends no predictions of {len(self._keys)} rows: one for each is wanted"
                )
            return PredictReturnType(tensors["predictions"].numpy(), self._keys)

        return self._believed(result)

    def _begin(self) -> bool:
        """Starts the process and lets it run the model's source; says whether the model is a classifier."""
        process = ModelProcess(self.pod.name, self._limits, allow_unconfined=self.pod.policy.allow_unconfined)
        self._process = process
        if process.refusal is not None:
            try:
                require_leave(self.pod, self.job, process.refusal)
            except ConfigurationError:
                self.close()
                raise
        # Noise and masks come on top here, where the model cannot look; which class may run was decided here too.
        plain = replace(self.job, privacy=None, secure_aggregation=False, model_class=self._class_name)
        asked = {"job": plain.to_json(), "pod": self.pod.name, "splitter": splitter_to_json(self.pod.splitter)}
        answer = self._ask_process("open", asked, [self._source_code])
        return self._believed(lambda: bool(checked(answer.header, OpenedSchema())["classifier"]))

    def _hand_over(self, schema: BitfountSchema, preparation: Preparation) -> None:
        """Reads the rows, once more if the process is a new one, and gives them to it."""
        frame = self._rows_as_they_are()
        found = digest(frame)
        if self._handed not in (None, found):
            raise DataError(
                f"the rows of pod {self.pod.name!r} have changed while the job {self.job.job_id!r} was running; start a new job"
            )
        self._keys = frame.index.tolist()
        if self.job.operation != PREDICT:
            self._training_rows = len(self._split(self._datastructure.transform(frame)).train)
        asked = {"schema": schema.dumps(), "preparation": preparation.to_json()}
        answer = self._ask_process("prepare", asked, [table_to_bytes(frame)], max_body=codec.DEFAULT_MAX_BYTES)

        def parameters() -> Parameters:
            header, found_parameters = checked(answer.header, PreparedSchema()), codec.decode(answer.body).params
            if header["rows"] != found:
                raise ConfinementError("the model's process has other rows than it was handed")
            self._trainable_names = [name for name in header["trainable"] if name in found_parameters]
            return found_parameters

        self._parameters = self._believed(parameters)
        self._refuse_running_statistics(self._parameters)
        self._handed = found

    def _rows_as_they_are(self) -> pd.DataFrame:
        structure = self._datastructure
        return self.pod.source.read(structure.table_for(self.pod.name), structure.query_for(self.pod.name))

    def _warm(self) -> None:
        """Starts a process in place of one that has failed."""
        if self._common is None:
            raise NotInitialisedError(f"pod {self.pod.name!r}: prepare comes before the first round")
        if self._process is None:
            self.prepare(*self._common)

    def _checked(self, parameters: Parameters) -> list[memoryview]:
        """Global parameters as bytes, held against the model's here: what differs may be told."""
        self._warm()
        check_compatible(self._parameters, parameters, what="the global parameters")
        return codec.pieces(parameters)

    def _ask(self, call: str, arguments: JSON, body: Sequence[bytes | memoryview], **named: Any) -> Message:
        self._warm()
        return self._ask_process(call, arguments, body, **named)

    def _ask_process(self, call: str, arguments: JSON, body: Sequence[bytes | memoryview], **named: Any) -> Message:
        """Asks the process, and ends it if that fails, were it only that the answer was not waited for.

        It is kept where no more happened than that the model's code raised.
        """
        if self._process is None:
            raise NotInitialisedError(f"pod {self.pod.name!r}: the model's process is not there")
        try:
            return self._process.ask(call, arguments, body, **named)
        except BaseException as error:
            if not isinstance(error, ConfinedModelError) or error.met is not None or call == "open":
                self.close()
            raise

    def _believed(self, read: Callable[[], Value]) -> Value:
        """What an answer says; a process whose answer is not what it must be is ended."""
        try:
            return read()
        except BaseException as error:
            self.close()
            if isinstance(error, ParameterError):  # its text quotes names that the model chose
                raise ConfinementError("the model's process sends parameters that are not the job's") from error
            raise


def splitter_to_json(splitter: DatasetSplitter) -> JSON:
    """A splitter as a pod file names it.

    Raises:
        ConfigurationError: a pod file knows none of its kind.
    """
    for kind, cls in SPLITTERS.items():
        if type(splitter) is cls:
            return {kind: asdict(splitter)}  # type: ignore[call-overload]
    raise ConfigurationError(
        f"a model's process takes no {type(splitter).__name__}: use one of {', '.join(cls.__name__ for cls in SPLITTERS.values())}"
    )
