"""A pod's session in one job: its own rows and a warm model, and what it answers in each round. Knows no network and no Prefect.

What a pod does in a round is a function of (job, round, global parameters, rows): it keeps no state between rounds that an
answer depends on. A session that is opened again after a crash, or that went on after a fit that failed, gives the same bits.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from bitfount_model import codec, updates
from bitfount_model.batch_progress import OnBatch
from bitfount_model.data import BitfountSchema, DataStructure, Preparation, digest, split_rows
from bitfount_model.data.sql_source import SQLSource
from bitfount_model.errors import ConfigurationError, NotInitialisedError, TooFewRowsError
from bitfount_model.federation.book import Approval
from bitfount_model.federation.job import PREDICT, FederatedJob
from bitfount_model.federation.job_model import build_model, chosen_metrics
from bitfount_model.federation.local_training import train_locally
from bitfount_model.federation.metric_sums import MetricSums
from bitfount_model.federation.pod import Pod, Rows, Update
from bitfount_model.federation.policy import refusals
from bitfount_model.federation.privacy import PrivacyBudget, PrivacySettings, private_update, running_statistics
from bitfount_model.federation.privacy_ledger import PrivacyLedger
from bitfount_model.federation.statistics import PodStatistics, pod_statistics
from bitfount_model.metrics import MetricCollection
from bitfount_model.mixins import PyTorchClassifierMixIn
from bitfount_model.model import PyTorchBitfountModel
from bitfount_model.parameters import let_go, public_states, take_back, trainable_names
from bitfount_model.reference import load_model_class
from bitfount_model.seeding import derive_seed
from bitfount_model.several_processes import require_one_process
from bitfount_model.slim_fit import reasons_for_trainer
from bitfount_model.types import EvaluateReturnType, Parameters, PredictReturnType, SplitIndices, TaskContext

RESTING_BYTES = 8 * 2**20
"""Models of so many bytes give back their parameters' memory between a pod's turns; for smaller ones it is not worth the time."""


@dataclass(frozen=True)
class _Private:
    """What a private job's updates need: how they are protected, what they may spend, and where it is counted."""

    settings: PrivacySettings
    budget: PrivacyBudget
    ledger: PrivacyLedger


class PodSession:
    """One pod in one job. Opened, it has checked the job against the policy and read no row yet.

    Args:
        pod: the pod.
        job: what is asked.
        source_code: the model's source, whose sha256 the job names.
        found_at: where the pod's owner finds that source.

    Raises:
        ConfigurationError: the policy refuses the job (every reason is listed), or the source is another one.
        ModelFileError: the source does not hold the model class.

    Attributes:
        model_is_classifier: whether targets are categories.
    """

    def __init__(self, pod: Pod, job: FederatedJob, source_code: bytes, found_at: str = "model.py") -> None:
        self.pod = pod
        self.job = job
        approval = self._approval()
        self._datastructure = DataStructure(**job.datastructure, data_splitter=pod.splitter)
        if reasons := list(self._refusals(approval, found_at)):
            raise ConfigurationError(f"pod {pod.name!r} refuses the job {job.job_id!r}: {'; '.join(reasons)}")
        found = hashlib.sha256(source_code).hexdigest()
        if found != job.model_sha256:
            raise ConfigurationError(
                f"pod {pod.name!r}: the model's source has sha256 {found[:16]}…, the job names {job.model_sha256[:16]}…"
            )
        self._class_name = approval.class_name if approval else job.model_class
        self._common: tuple[BitfountSchema, Preparation] | None = None
        self._model: PyTorchBitfountModel | None = None
        self._bytes = 0  # of the model's parameters
        self._resting = False  # whether the model is without the memory of its parameters
        self.model_is_classifier = self._load(source_code)

    def schema(self) -> BitfountSchema:
        """The columns that the job's model sees, their types and categories, for `merge_schemas`; the job's own, if it has one.

        Raises:
            DataError: the rows cannot be read.
        """
        if self.job.schema is not None:
            return BitfountSchema.loads(self.job.schema)
        frame = self._frame()
        # Columns that the model does not see stay unknown to the modeller, their categories above all.
        seen = self._datastructure.visible_columns(map(str, frame.columns))
        types = self._datastructure.force_stypes(self.pod.name if self._has_types_of_pods() else None)
        for kind, columns in self.job.types.items():
            types.setdefault(kind, []).extend(column for column in columns if column not in types[kind])
        if self.model_is_classifier:
            stated = {column for columns in types.values() for column in columns}
            types.setdefault("categorical", []).extend(t for t in self._datastructure.targets if t not in stated)
        schema = BitfountSchema(self.job.job_id)
        # Of columns that the job leaves out itself, it may know that they are there.
        ignored = [name for name in map(str, frame.columns) if name in self._datastructure.ignore_cols]
        named = [*seen, *(name for name in ignored if name not in seen)]
        schema.generate_full_schema(frame[named], force_stypes=types, ignore_cols=ignored)
        return schema

    def statistics(self, schema: BitfountSchema) -> PodStatistics:
        """The moments of the continuous features over the training rows, for `merge_statistics`.

        Args:
            schema: the common one.

        Raises:
            TooFewRowsError: fewer rows than the policy or the job wants.
        """
        frame = self._frame()
        training = frame.iloc[self._split(frame).train]
        self._require_rows(len(training), "training rows")
        return pod_statistics(training, schema, self._datastructure, min_rows=self.job.minimum_statistics_rows)

    def rows(self) -> Rows:
        """How many rows there are for what, and their digest.

        Raises:
            DataError: the rows cannot be read or split.
            TooFewRowsError: fewer than the policy wants.
        """
        frame = self._frame()
        empty = np.empty(0, dtype=np.int64)
        split = SplitIndices(empty, empty, empty) if self.job.operation == PREDICT else self._split(frame)
        if self.job.operation == PREDICT:
            self._require_rows(len(frame), "rows")
        else:
            self._require_rows(len(split.train), "training rows")
        named = f"{self.pod.name}/{digest(frame)}"
        # Whoever sees a plain digest can try out which rows give it.
        private = self._private()
        named_digest = private.ledger.keyed_digest(named) if private else hashlib.sha256(named.encode()).hexdigest()
        return Rows(len(split.train), len(split.validation), len(split.test), named_digest)

    def table(self) -> tuple[pd.DataFrame, SplitIndices]:
        """The rows as the source gives them and how they are split, for whoever may see them.

        Raises:
            DataError: the rows cannot be read or split.
        """
        structure = self._datastructure
        frame = self.pod.source.read(structure.table_for(self.pod.name), structure.query_for(self.pod.name))
        return frame, self._split(structure.transform(frame))

    def prepare(self, schema: BitfountSchema, preparation: Preparation) -> None:
        """Builds model and loaders with the encoding that all pods share.

        Args:
            schema: the common one.
            preparation: of all pods' training rows.

        Raises:
            ConfigurationError: a private job's model has BatchNorm layers, or others with running statistics; or the model's
                `trainer_init` asks for several processes.
        """
        self._common = (schema, preparation)
        self._model, self._resting = self._built(schema, preparation), False

    @property
    def parameters(self) -> Parameters:
        """The names, shapes and dtypes that global parameters have; the values are those of the last call."""
        return self._ready().get_param_states()

    @property
    def trainable(self) -> Collection[str]:
        """Names of the parameters that training may change."""
        return trainable_names(self._ready())

    def fit(
        self,
        round_number: int,
        parameters: Parameters,
        *,
        base_digest: str | None = None,
        on_batch: OnBatch | None = None,
    ) -> Update:
        """Trains for one round from the global parameters.

        The optimiser is a new one each round, as in federated averaging; batches go on where the rounds before ended.

        Args:
            round_number: from 1.
            parameters: the global ones; left as they are.
            base_digest: `codec.digest` of them, where it is known already.
            on_batch: is told of the progress.

        Raises:
            PrivacyBudgetError: a private job's update would go beyond the pod's budget.
        """
        private = self._private()
        if private is not None:
            private.ledger.require(private.settings, private.budget)
        try:
            update = self._fitted(round_number, parameters, base_digest or codec.digest(parameters), on_batch)
            return update if private is None else self._protected(update, private)
        except BaseException:
            self._model = None  # a Trainer that was stopped within a step is not one to go on with
            raise

    def _fitted(self, round_number: int, parameters: Parameters, base_digest: str, on_batch: OnBatch | None) -> Update:
        model, job = self._ready(), self.job
        model.update_params(parameters)
        model.set_model_training_iterations(job.iterations_of(round_number))
        before = job.iterations_before(round_number)
        model.position = before * len(model.train_dataloader()) if job.epochs is not None else before
        model.val_stats.clear()  # each round's are in its update; a long job keeps no list of them
        began = time.perf_counter()
        records = train_locally(
            model, metrics=chosen_metrics(model, job.metrics), mu=job.proximal_mu, on_batch=on_batch
        )
        seconds = time.perf_counter() - began
        model.forget_training()
        validation_rows = 0 if model.validation_dl is None else int(model.validation_dl.rows)  # type: ignore[attr-defined]
        return Update(
            pod=self.pod.name,
            round_number=round_number,
            base_digest=base_digest,
            delta=updates.diff_params(parameters, public_states(model)),
            weight=int(model.train_dataloader().rows),
            metrics=MetricSums.of(records[-1].val_stats, validation_rows),
            train_loss=records[-1].train_loss,
            seconds=seconds,
        )

    def _protected(self, update: Update, private: _Private) -> Update:
        """What may leave of a private job's update; counted before it is made."""
        spent = private.ledger.spend(self.job.job_id, update.round_number, private.settings, private.budget)
        delta = private_update(update.delta, self.trainable, private.settings)
        if private.budget.metrics_may_leave:
            return replace(update, delta=delta, spent=spent)
        return replace(update, delta=delta, metrics=MetricSums({}), train_loss=None, spent=spent)

    def evaluate(self, parameters: Parameters) -> MetricSums:
        """The test metrics of global parameters on the pod's test rows, as sums; empty where there are none that may leave."""
        if not self._metrics_may_leave():
            return MetricSums({})
        model = self._ready()
        if model.test_dl is None:
            return MetricSums({})
        model.update_params(parameters)
        result = model.evaluate()
        if not isinstance(result, EvaluateReturnType):
            raise ConfigurationError("evaluate on a pod's own rows gave no predictions")
        metrics = MetricCollection.create_from_model(model, chosen_metrics(model, self.job.metrics))
        return MetricSums.of(metrics.compute(result.targs, result.preds), len(result.preds))

    def predict(self, parameters: Parameters) -> PredictReturnType:
        """Predictions for all of the pod's rows, in order.

        Raises:
            ConfigurationError: the policy keeps predictions at the pod.
        """
        if not self.pod.policy.predictions_may_leave:
            raise ConfigurationError(f"pod {self.pod.name!r} does not let predictions leave (predictions_may_leave)")
        return self._predicted(parameters)

    def _predicted(self, parameters: Parameters) -> PredictReturnType:
        model = self._ready()
        model.update_params(parameters)
        result = model.predict(self.pod.source)
        if not isinstance(result, PredictReturnType):
            raise ConfigurationError("predict on a pod's own rows gave no predictions")
        return result

    def rest(self) -> None:
        """Gives back the memory of a large model's parameters until the next call; until then `parameters` has no values."""
        if self._model is not None and not self._resting and self._bytes >= RESTING_BYTES:
            let_go(self._model)
            self._resting = True

    def close(self) -> None:
        """Lets go of the model; the next call builds it again."""
        self._model = None

    def _load(self, source_code: bytes) -> bool:
        """Runs the model's source; says whether it is a classifier."""
        self._class = load_model_class(source_code, self._class_name)
        return issubclass(self._class, PyTorchClassifierMixIn)

    def _ready(self) -> PyTorchBitfountModel:
        if self._common is None:
            raise NotInitialisedError(f"pod {self.pod.name!r}: prepare comes before the first round")
        if self._model is None:
            self._model, self._resting = self._built(*self._common), False
        if self._resting:
            take_back(self._model)
            self._resting = False
        return self._model

    def _built(self, schema: BitfountSchema, preparation: Preparation) -> PyTorchBitfountModel:
        model = build_model(self._class, self.job, schema, self._datastructure, seed=self._seed())
        model.preparation = preparation
        model.set_datastructure_identifier(self.pod.name)
        # Rows that are only predicted need no target, and are not split.
        data = None if self.job.operation == PREDICT else self.pod.source
        model.initialise_model(data, context=TaskContext.WORKER)
        states = public_states(model)
        self._refuse_running_statistics(states)
        self._bytes = sum(value.nbytes for value in states.values())
        if reasons_for_trainer(type(model)):
            require_one_process(model.trainer_for_fit(), "pods")
        return model

    def _metrics_may_leave(self) -> bool:
        private = self._private()
        return private is None or private.budget.metrics_may_leave

    def _refuse_running_statistics(self, parameters: Parameters) -> None:
        """A private job's model keeps nothing of its batches that would leave without noise."""
        if self.job.privacy is not None and self.job.rounds and (names := running_statistics(parameters)):
            raise ConfigurationError(
                f"pod {self.pod.name!r}: the model keeps running statistics of its batches ({', '.join(names)}), which would"
                " leave without noise; in a private job use GroupNorm or LayerNorm, or track_running_stats=False"
            )

    def _private(self) -> _Private | None:
        """What a private job needs, all of which was there when the session opened; None where the job is not private."""
        settings, budget, ledger = self.job.privacy, self.pod.policy.privacy, self.pod.ledger
        if settings is None or budget is None or ledger is None:
            return None
        return _Private(settings, budget, ledger)

    def _require_rows(self, there: int, what: str) -> None:
        wanted = self.pod.policy.minimum_rows
        if there < wanted:
            raise TooFewRowsError(f"pod {self.pod.name!r} has {there} {what}, its policy wants at least {wanted}")

    def _approval(self) -> Approval | None:
        """What the owner has approved of the job's source, where the policy goes by that."""
        book = self.pod.book if self.pod.policy.models == "approved" else None
        return None if book is None else book.approval_of(self.job.model_sha256)

    def _refusals(self, approval: Approval | None, found_at: str) -> Iterator[str]:
        """Why the pod does not take part, as far as it can be said without a look at the rows."""
        yield from refusals(self.pod.policy, self.job, self.pod.name, approval, found_at)
        yield from self._strangers()
        if self.job.privacy is not None and self.pod.ledger is None:
            yield "it is a private job, and this pod has no folder of its own to count in what it has told"
        source, asked = self.pod.source, self._datastructure.table_for(self.pod.name)
        if isinstance(source, SQLSource) and asked not in (None, source.table, *self.pod.policy.tables):
            yield f"it asks for the table {asked!r}, and this pod reads only its own and those under `tables`"

    def _strangers(self) -> Iterator[str]:
        """Why the pod takes part in no secure sum with the job's pods."""
        if not self.job.secure_aggregation:
            return
        if self.pod.identity is None:
            yield "it asks for secure sums, and this pod has no `identity` to sign its keys with"
        elif unknown := [pod for pod in self.job.pods if pod not in self.pod.identity.pinned(self.pod.name)]:
            yield f"it asks for secure sums with {', '.join(unknown)}, whose public keys are not under this pod's `peers`"

    def _split(self, frame: Any) -> SplitIndices:
        return split_rows(frame, self.pod.splitter, self._datastructure, self._seed())

    def _seed(self) -> int:
        return derive_seed(self.job.seed, "pod", self.pod.name)

    def _frame(self) -> Any:
        structure = self._datastructure
        frame = self.pod.source.read(structure.table_for(self.pod.name), structure.query_for(self.pod.name))
        return structure.transform(frame)

    def _has_types_of_pods(self) -> bool:
        return any(isinstance(types, Mapping) for types in (self._datastructure.schema_types_override or {}).values())
