"""What a federated job asks of every pod, as one JSON value that both sides check.

Nothing in it is code or a path: the model is named by the sha256 of its source, which travels beside the job.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from marshmallow import RAISE, Schema, ValidationError, fields, post_load, validate, validates_schema

from bitfount_model.data.preparation import Preparation
from bitfount_model.data.schema import BitfountSchema
from bitfount_model.errors import ConfigurationError, SerializationError
from bitfount_model.federation.early_stopping import EarlyStopping
from bitfount_model.federation.privacy import PrivacySettings
from bitfount_model.federation.robust import AGGREGATIONS, MEAN, fewest_pods, robust_settings
from bitfount_model.federation.secure_sum import MINIMUM_PODS
from bitfount_model.federation.server_optimisers import PUBLISHED, server_settings
from bitfount_model.types import JSON

FIT, EVALUATE, PREDICT = "fit", "evaluate", "predict"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
"""Names of jobs and pods: they become names of files and of runs."""
CLIPS, MULTIPLIERS = validate.Range(min=1e-9, max=1e9), validate.Range(min=1e-3, max=1e4)
DELTAS = validate.Range(min=1e-100, max=1, max_inclusive=False)
"""What clips, noise multipliers and deltas may be: what is computed of them is finite."""


@dataclass(frozen=True)
class FederatedJob:
    """A checked federated job.

    Attributes:
        job_id: names the job everywhere.
        pods: names of the pods that may take part, sorted: updates are added in this order.
        model_sha256: of the model's source text, hex.
        model_class: the class in that source, where it holds several.
        operation: "fit" trains, evaluates, and predicts if asked; "evaluate" and "predict" apply given weights and train nothing.
        hyperparameters: arguments of the model's constructor.
        datastructure: arguments of `DataStructure`.
        types: semantic type -> columns, in place of what a pod would infer.
        batch_size: rows of a batch.
        epochs: passes over each pod's rows in the whole job; exactly one of `epochs` and `steps`.
        steps: batches in the whole job.
        between_updates: epochs (or steps) of each round; the last round trains the remainder.
        predict: whether pods send predictions for all of their rows at the end.
        seed: fixes initial weights, splits, order, dropout and sampling.
        threads: of torch, at each pod.
        param_clipping: as the model's argument.
        optimiser: the server's: a name in `SERVER_OPTIMISERS`.
        optimiser_settings: in place of the published ones.
        aggregation: how the updates of a round become one: a name in `AGGREGATIONS`.
        aggregation_settings: of it; see `robust`.
        secure_aggregation: updates are seen only in their sum; see `secure_sum`.
        weighted: pods count by their training rows, where the aggregation lets them; False counts each once.
        proximal_mu: strength of FedProx's pull to the global parameters (Li et al., "Federated Optimization in Heterogeneous
            Networks", 2020); 0 is none.
        sample: pods drawn for each round; None takes all.
        quorum: updates that a round needs, at least 1.
        deadline_seconds: how long a round waits for them.
        early_stopping: arguments of `EarlyStopping`, or None.
        best: `{"metric", "mode"}`: by which the best round is chosen and kept beside the last; None keeps the last alone.
        schema: the columns of all pods, as `BitfountSchema.dumps`; None merges one of the pods' own.
        preparation: how all pods encode their rows, as `Preparation.to_json`; None makes one of the pods' statistics.
        metrics: names of default metrics that pods compute on validation rows; None for all.
        minimum_statistics_rows: the fewest rows that a pod sends statistics of.
        privacy: how pods protect their updates by noise; None sends them as they are.
    """

    job_id: str
    pods: tuple[str, ...]
    model_sha256: str
    datastructure: JSON
    between_updates: int
    seed: int
    quorum: int
    epochs: int | None = None
    steps: int | None = None
    model_class: str | None = None
    operation: str = FIT
    predict: bool = False
    hyperparameters: JSON = field(default_factory=dict)
    types: Mapping[str, list[str]] = field(default_factory=dict)
    batch_size: int = 32
    threads: int = 1
    param_clipping: JSON | None = None
    optimiser: str = "FedAvg"
    optimiser_settings: Mapping[str, float] = field(default_factory=dict)
    aggregation: str = MEAN
    aggregation_settings: Mapping[str, float] = field(default_factory=dict)
    secure_aggregation: bool = False
    weighted: bool = True
    proximal_mu: float = 0.0
    sample: int | None = None
    deadline_seconds: float = 600.0
    early_stopping: JSON | None = None
    best: JSON | None = None
    schema: str | None = None
    preparation: JSON | None = None
    metrics: list[str] | None = None
    minimum_statistics_rows: int = 10
    privacy: PrivacySettings | None = None

    @property
    def iterations(self) -> int:
        """Epochs or steps of the whole job."""
        return self.epochs if self.epochs is not None else int(self.steps or 0)

    @property
    def wants_predictions(self) -> bool:
        """Whether row-wise predictions are to leave the pods."""
        return self.predict or self.operation == PREDICT

    @property
    def wants_evaluation(self) -> bool:
        """Whether pods compute metrics on their test rows at the end."""
        return self.operation in (FIT, EVALUATE)

    @property
    def rounds(self) -> int:
        """How many rounds that makes; the last may be shorter. A job that trains nothing has none."""
        if self.operation != FIT:
            return 0
        return -(-self.iterations // self.between_updates)

    def iterations_of(self, round_number: int) -> int:
        """Epochs or steps of one round.

        Args:
            round_number: from 1.
        """
        return min(self.between_updates, self.iterations - self.iterations_before(round_number))

    def iterations_before(self, round_number: int) -> int:
        """Epochs or steps of all rounds before one: where in its data a pod stands, whether or not it took part in them."""
        if not 1 <= round_number <= self.rounds:
            raise ConfigurationError(f"there is no round {round_number}: the job has rounds 1 to {self.rounds}")
        return (round_number - 1) * self.between_updates

    def to_json(self) -> JSON:
        """The value that `job_from_json` takes."""
        return {**asdict(self), "pods": list(self.pods)}


def selection(best: Mapping[str, Any]) -> EarlyStopping:
    """What keeps count of the best round: an early stopping that never stops.

    Args:
        best: `metric`, and `mode` where its name does not tell it.

    Raises:
        ConfigurationError: the metric's direction is not known.
        TypeError: unknown keys.
    """
    return EarlyStopping(**best, patience=_FOREVER)


def job_from_json(value: Any) -> FederatedJob:
    """Checks what another machine, or a file, says a job is.

    Raises:
        ConfigurationError: unknown keys, missing ones or bad values; all of them, each with its key.
    """
    try:
        job: FederatedJob = _JobSchema().load(value)
    except ValidationError as error:
        listed = "; ".join(f"{key}: {'; '.join(_texts(texts))}" for key, texts in _by_key(error.messages))
        raise ConfigurationError(f"not a federated job: {listed}") from error
    return job


def check_enough_pods(data: Mapping[str, Any], asked: int) -> None:
    """Refuses an aggregation that needs more updates than a round may end with.

    Args:
        data: a job's `aggregation`, `aggregation_settings` and `quorum`.
        asked: how many pods a round asks.

    Raises:
        ConfigurationError: too few pods, or settings that are none.
    """
    name, quorum = data["aggregation"], data["quorum"]
    fewest = fewest_pods(name, robust_settings(name, data["aggregation_settings"]))
    if fewest > asked:
        raise ConfigurationError(f"{name} needs updates of {fewest} pods, and a round asks {asked}")
    if fewest > quorum:
        raise ConfigurationError(f"{name} needs updates of {fewest} pods, and the quorum is {quorum}: raise it")


def check_can_be_secure(data: Mapping[str, Any], asked: int) -> None:
    """Refuses what a secure sum cannot do.

    Args:
        data: a job's `secure_aggregation`, `aggregation` and `quorum`.
        asked: how many pods a round asks.

    Raises:
        ConfigurationError: a rule that looks at single updates, or too few pods.
    """
    if not data["secure_aggregation"]:
        return
    if data["aggregation"] != MEAN:
        raise ConfigurationError(
            f"aggregation is {data['aggregation']}, which looks at single updates, and a secure sum shows none: take one of"
            " the two"
        )
    if asked < MINIMUM_PODS or data["quorum"] < MINIMUM_PODS:
        raise ConfigurationError(
            f"a round asks {asked} pods and its quorum is {data['quorum']}; a secure sum needs at least {MINIMUM_PODS} of both,"
            " or pods would know each other's updates from the sum"
        )


def _by_key(messages: Any) -> list[tuple[str, Any]]:
    return sorted(messages.items()) if isinstance(messages, Mapping) else [("job", messages)]


def _texts(messages: Any) -> list[str]:
    if isinstance(messages, str):
        return [messages]
    values = messages.values() if isinstance(messages, Mapping) else messages
    return [text for value in values for text in _texts(value)]


_FOREVER = 2**62
_is_name = validate.Regexp(rf"^{NAME.pattern}\Z", error="must be letters, digits, '.', '_' or '-', at most 80 of them")
_is_positive = validate.Range(min=1)


class _PrivacySchema(Schema):
    """How pods protect their updates."""

    class Meta:
        unknown = RAISE

    clip = fields.Float(required=True, validate=CLIPS)
    noise_multiplier = fields.Float(required=True, validate=MULTIPLIERS)
    delta = fields.Float(required=True, validate=DELTAS)

    @post_load
    def make_settings(self, data: JSON, **_: Any) -> PrivacySettings:
        """The dataclass."""
        return PrivacySettings(**data)


class _JobSchema(Schema):
    class Meta:
        unknown = RAISE

    job_id = fields.String(required=True, validate=_is_name)
    pods = fields.List(fields.String(validate=_is_name), required=True, validate=validate.Length(min=1))
    model_sha256 = fields.String(required=True, validate=validate.Regexp(r"^[0-9a-f]{64}\Z"))
    model_class = fields.String(load_default=None, allow_none=True)
    operation = fields.String(load_default=FIT, validate=validate.OneOf((FIT, EVALUATE, PREDICT)))
    predict = fields.Boolean(load_default=False)
    hyperparameters = fields.Dict(keys=fields.String(), load_default=dict)
    datastructure = fields.Dict(keys=fields.String(), required=True)
    types = fields.Dict(keys=fields.String(), values=fields.List(fields.String()), load_default=dict)
    batch_size = fields.Integer(strict=True, validate=_is_positive, load_default=32)
    epochs = fields.Integer(strict=True, validate=_is_positive, load_default=None, allow_none=True)
    steps = fields.Integer(strict=True, validate=_is_positive, load_default=None, allow_none=True)
    between_updates = fields.Integer(strict=True, validate=_is_positive, required=True)
    seed = fields.Integer(strict=True, validate=validate.Range(min=0, max=2**63 - 1), required=True)
    threads = fields.Integer(strict=True, validate=_is_positive, load_default=1)
    param_clipping = fields.Dict(keys=fields.String(), load_default=None, allow_none=True)
    optimiser = fields.String(load_default="FedAvg", validate=validate.OneOf(list(PUBLISHED)))
    optimiser_settings = fields.Dict(keys=fields.String(), values=fields.Float(), load_default=dict)
    aggregation = fields.String(load_default=MEAN, validate=validate.OneOf(list(AGGREGATIONS)))
    aggregation_settings = fields.Dict(keys=fields.String(), values=fields.Float(), load_default=dict)
    secure_aggregation = fields.Boolean(load_default=False)
    weighted = fields.Boolean(load_default=True)
    proximal_mu = fields.Float(load_default=0.0, validate=validate.Range(min=0, max=1e6))
    sample = fields.Integer(strict=True, validate=_is_positive, load_default=None, allow_none=True)
    quorum = fields.Integer(strict=True, validate=_is_positive, required=True)
    deadline_seconds = fields.Float(load_default=600.0, validate=validate.Range(min=0, min_inclusive=False))
    early_stopping = fields.Dict(keys=fields.String(), load_default=None, allow_none=True)
    best = fields.Dict(keys=fields.String(), load_default=None, allow_none=True)
    schema = fields.String(load_default=None, allow_none=True)
    preparation = fields.Dict(keys=fields.String(), load_default=None, allow_none=True)
    metrics = fields.List(fields.String(), load_default=None, allow_none=True)
    minimum_statistics_rows = fields.Integer(strict=True, validate=_is_positive, load_default=10)
    privacy = fields.Nested(_PrivacySchema, load_default=None, allow_none=True)

    @validates_schema
    def check_together(self, data: JSON, **_: Any) -> None:
        """What only shows when keys are seen together."""
        problems: dict[str, str] = {}
        if (data.get("epochs") is None) == (data.get("steps") is None):
            problems["epochs"] = "give one and only one of epochs and steps"
        pods = data.get("pods", [])
        if len(set(pods)) < len(pods):
            problems["pods"] = f"{sorted({pod for pod in pods if pods.count(pod) > 1})} are named more than once"
        asked = min(data.get("sample") or len(pods), len(pods))
        if pods and (data.get("sample") or 1) > len(pods):
            problems["sample"] = f"is {data['sample']}, and there are {len(pods)} pods"
        if pods and data.get("quorum", 1) > asked:
            problems["quorum"] = f"is {data['quorum']}, and a round asks {asked} pods"
        for key, check in (
            ("optimiser_settings", lambda: server_settings(data["optimiser"], data["optimiser_settings"])),
            ("aggregation_settings", lambda: check_enough_pods(data, asked)),
            ("secure_aggregation", lambda: check_can_be_secure(data, asked)),
            ("early_stopping", lambda: data["early_stopping"] and EarlyStopping(**data["early_stopping"])),
            ("best", lambda: data["best"] and selection(data["best"])),
            ("schema", lambda: data["schema"] and BitfountSchema.loads(data["schema"])),
            ("preparation", lambda: data["preparation"] and Preparation.from_json(data["preparation"])),
        ):
            try:
                check()
            except (ConfigurationError, SerializationError, TypeError) as error:
                problems[key] = str(error)
        if problems:
            raise ValidationError({key: [text] for key, text in problems.items()})

    @post_load
    def make_job(self, data: JSON, **_: Any) -> FederatedJob:
        """The dataclass, with the pods in their order."""
        return FederatedJob(**{**data, "pods": tuple(sorted(data["pods"]))})
