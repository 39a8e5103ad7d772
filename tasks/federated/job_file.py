"""What a modeller asks for: one federated job as a JSON value, checked once; from it comes the job that pods are sent."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from marshmallow import RAISE, ValidationError, fields, validate, validates_schema

from bitfount_model.data import BitfountSchema, DataStructure, Preparation
from bitfount_model.errors import ConfigurationError
from bitfount_model.federation.job import (
    CLIPS,
    DELTAS,
    EVALUATE,
    FIT,
    MULTIPLIERS,
    PREDICT,
    FederatedJob,
    check_can_be_secure,
    job_from_json,
)
from bitfount_model.federation.robust import AGGREGATIONS, MEAN, fewest_pods, robust_settings
from bitfount_model.federation.secure_sum import MINIMUM_PODS
from bitfount_model.federation.server_optimisers import PUBLISHED
from tasks.job import (
    JSON,
    MOST_THREADS,
    ModelSection,
    StrictSchema,
    is_name,
    loaded,
)

POD_FILES = (".yaml", ".yml")
"""A pod that is named by such a file runs embedded; one that is named by its name alone is deployed."""


@dataclass(frozen=True)
class FederatedJobFile:
    """A checked federated job, as the modeller writes it.

    Attributes:
        name: what people call it; the MLflow run's name.
        experiment: the MLflow experiment.
        model: `{"file" | "reference", "version", "class", "hyperparameters"}`.
        pods: files of pods that run embedded, or names of pods that are deployed.
        store: where deployed pods and the modeller meet; None for embedded pods, who meet in the job's folder.
        datastructure: arguments of `DataStructure`.
        schema: `{"file": of a schema for all pods, or None; "types": semantic type -> columns}`.
        training: how long and how, as in a local job, with how much of it makes a round.
        federation: how updates are added and what a round needs; see `FederationSection`.
        metrics: names of the default metrics to compute; None for all of them.
        evaluate: whether pods test the result on their test rows.
        predict: whether pods send predictions for all of their rows.
        compare: whether each pod alone and all rows pooled are trained too, for comparison.
        register: the name in MLflow's registry that the trained model becomes a version of, or None.
        operation: `fit`; or `evaluate` or `predict`, which train nothing.
        sign_with: file of the private key that signs the job, or None.
    """

    name: str
    experiment: str
    model: JSON
    pods: list[str]
    store: str | None
    datastructure: JSON
    schema: JSON
    training: JSON
    federation: JSON
    metrics: list[str] | None
    evaluate: bool
    predict: bool
    compare: bool
    register: str | None
    operation: str
    sign_with: str | None = None

    @property
    def is_embedded(self) -> bool:
        """Whether the pods run in the modeller's process."""
        return self.pods[0].endswith(POD_FILES)


class ColumnsSection(StrictSchema):
    """The columns: a schema for all pods, or types in place of what pods would infer."""

    file = fields.String(load_default=None, allow_none=True)

    types = fields.Dict(
        keys=fields.String(validate=validate.OneOf(["categorical", "continuous", "image", "text"])),
        values=fields.List(fields.String()),
        load_default=dict,
    )


class RoundsSection(StrictSchema):
    """How long and how, and how much of it makes a round."""

    epochs = fields.Integer(strict=True, validate=validate.Range(min=1))
    steps = fields.Integer(strict=True, validate=validate.Range(min=1))
    epochs_between_parameter_updates = fields.Integer(strict=True, validate=validate.Range(min=1))
    steps_between_parameter_updates = fields.Integer(strict=True, validate=validate.Range(min=1))
    batch_size = fields.Integer(strict=True, validate=validate.Range(min=1), load_default=32)
    seed = fields.Integer(
        strict=True, validate=validate.Range(min=0, max=2**63 - 1), load_default=None, allow_none=True
    )
    threads = fields.Integer(strict=True, validate=validate.Range(min=1, max=MOST_THREADS), load_default=1)
    pretrained_file = fields.String(load_default=None, allow_none=True)
    param_clipping = fields.Dict(keys=fields.String(), load_default=None, allow_none=True)

    @validates_schema
    def one_length(self, data: JSON, **_: Any) -> None:
        """Exactly one of epochs and steps, and the rounds in the same unit."""
        if ("epochs" in data) == ("steps" in data):
            raise ValidationError("give one and only one of epochs and steps", "epochs")
        unit, other = ("epochs", "steps") if "epochs" in data else ("steps", "epochs")
        if f"{other}_between_parameter_updates" in data:
            raise ValidationError(
                f"the job counts in {unit}: give {unit}_between_parameter_updates", f"{other}_between_parameter_updates"
            )


class PrivacySection(StrictSchema):
    """How pods protect their updates."""

    clip = fields.Float(required=True, validate=CLIPS)
    noise_multiplier = fields.Float(required=True, validate=MULTIPLIERS)
    delta = fields.Float(required=True, validate=DELTAS)


class FederationSection(StrictSchema):
    """How updates are added, and what a round needs."""

    optimiser = fields.String(load_default="FedAvg", validate=validate.OneOf(list(PUBLISHED)))
    optimiser_settings = fields.Dict(keys=fields.String(), values=fields.Float(), load_default=dict)
    aggregation = fields.String(load_default=MEAN, validate=validate.OneOf(list(AGGREGATIONS)))
    aggregation_settings = fields.Dict(keys=fields.String(), values=fields.Float(), load_default=dict)
    secure_aggregation = fields.Boolean(load_default=False)
    weighted = fields.Boolean(load_default=True)
    proximal_mu = fields.Float(load_default=0.0)
    sample = fields.Integer(strict=True, load_default=None, allow_none=True)
    quorum = fields.Integer(strict=True, load_default=None, allow_none=True)
    require_all_pods = fields.Boolean(load_default=False)
    deadline_seconds = fields.Float(load_default=600.0)
    minimum_statistics_rows = fields.Integer(strict=True, load_default=10)
    early_stopping = fields.Dict(keys=fields.String(), load_default=None, allow_none=True)
    best = fields.Dict(keys=fields.String(), load_default=None, allow_none=True)
    privacy = fields.Nested(PrivacySection, load_default=None, allow_none=True)


class FederatedJobSchema(StrictSchema):
    """The keys of a federated job."""

    name = fields.String(required=True, validate=is_name)
    experiment = fields.String(load_default="bitfount-flows", validate=validate.Length(min=1))
    model = fields.Nested(ModelSection, required=True)
    pods = fields.List(fields.String(), required=True, validate=validate.Length(min=1))
    store = fields.String(load_default=None, allow_none=True)
    datastructure = fields.Nested(
        StrictSchema.from_dict(dict(DataStructure.fields_dict), name="DataStructureSection"),
        required=True,
        unknown=RAISE,
    )
    schema = fields.Nested(ColumnsSection, load_default=lambda: ColumnsSection().load({}))
    training = fields.Nested(RoundsSection, required=True)
    federation = fields.Nested(FederationSection, load_default=lambda: FederationSection().load({}))
    metrics = fields.List(fields.String(), load_default=None, allow_none=True, validate=validate.Length(min=1))
    evaluate = fields.Boolean(load_default=True)
    predict = fields.Boolean(load_default=False)
    compare = fields.Boolean(load_default=False)
    register = fields.String(load_default=None, allow_none=True, validate=is_name)
    operation = fields.String(load_default=FIT, validate=validate.OneOf((FIT, EVALUATE, PREDICT)))
    sign_with = fields.String(load_default=None, allow_none=True)

    @validates_schema
    def one_world(self, data: JSON, **_: Any) -> None:
        """Pods are all embedded, or all deployed."""
        pods = data.get("pods", [])
        refuse_insecure_sum(data.get("federation", {}), len(pods))
        files = [pod for pod in pods if pod.endswith(POD_FILES)]
        if files and len(files) < len(pods):
            raise ValidationError("give files of pods (they run here), or names of deployed pods, not both", "pods")
        if files and data.get("store"):
            raise ValidationError("pods that run here meet in the job's folder; a store is for deployed pods", "store")
        if data.get("schema", {}).get("file") and data.get("schema", {}).get("types"):
            raise ValidationError("give a file, which holds the types, or types", "schema")
        if pods and not files and data.get("compare"):
            raise ValidationError("deployed pods do not lend their rows for a comparison", "compare")
        if data.get("compare") and not (data.get("evaluate") and data.get("operation") == FIT):
            raise ValidationError("a comparison needs a job that trains and evaluates", "compare")
        if data.get("compare") and data.get("federation", {}).get("privacy"):
            raise ValidationError("a comparison reads the rows of all pods, which a private job keeps apart", "compare")
        if data.get("operation") == PREDICT and not data.get("training", {}).get("pretrained_file"):
            raise ValidationError(
                "predict needs training.pretrained_file: weights, and how their rows are encoded", "operation"
            )


def refuse_insecure_sum(federation: JSON, pods: int) -> None:
    """Refuses a secure sum that cannot be made, before anything of the job is there.

    Raises:
        ValidationError: names the key.
    """
    asked = min(federation.get("sample") or pods, pods)
    quorum = asked if federation.get("quorum") is None else federation["quorum"]
    try:
        if federation.get("secure_aggregation"):
            check_can_be_secure({**federation, "quorum": quorum}, asked)
    except ConfigurationError as error:
        raise ValidationError({"federation": {"secure_aggregation": [str(error)]}}) from error


def check_federated_job(value: Any) -> FederatedJobFile:
    """Checks a federated job.

    Args:
        value: plain JSON.

    Raises:
        JobError: all problems together.
    """
    return FederatedJobFile(**loaded(FederatedJobSchema(), value))


def federated_job_to_json(job: FederatedJobFile) -> JSON:
    """The job as `check_federated_job` takes it."""
    dumped: JSON = FederatedJobSchema().dump(asdict(job))
    return {key: value for key, value in dumped.items() if value is not None}


def with_own_seed(job: FederatedJobFile, seed: int | None = None) -> FederatedJobFile:
    """The same job with a seed: its own, else the one given, else one from the operating system, so that it can be continued."""
    if job.training["seed"] is not None:
        return job
    drawn = secrets.randbits(31) if seed is None else seed
    return replace(job, training={**job.training, "seed": drawn})


def job_for_pods(
    job: FederatedJobFile,
    job_id: str,
    pods: list[str],
    source: bytes,
    *,
    schema: BitfountSchema | None = None,
    preparation: Preparation | None = None,
) -> FederatedJob:
    """What pods are sent.

    Args:
        job: with a seed.
        job_id: names the job everywhere.
        pods: names of the pods.
        source: the model's source.
        schema: the columns, where the job brings its own.
        preparation: how rows are encoded, where the job brings its own.

    Raises:
        ConfigurationError: settings that do not go together; all of them, each with its key.
    """
    training, federation = job.training, dict(job.federation)
    unit = "epochs" if "epochs" in training else "steps"
    del federation["require_all_pods"]
    if federation["quorum"] is None:
        asked = min(federation["sample"] or len(pods), len(pods))
        robust = robust_settings(federation["aggregation"], federation["aggregation_settings"])
        fewest = MINIMUM_PODS if federation["secure_aggregation"] else fewest_pods(federation["aggregation"], robust)
        federation["quorum"] = min(asked, max(asked // 2 + 1, fewest))
    value: Mapping[str, Any] = {
        "job_id": job_id,
        "pods": pods,
        "model_sha256": hashlib.sha256(source).hexdigest(),
        "model_class": job.model["class_name"],
        "operation": job.operation,
        "predict": job.predict,
        "hyperparameters": job.model["hyperparameters"],
        "datastructure": job.datastructure,
        "types": job.schema["types"],
        "batch_size": training["batch_size"],
        unit: training[unit],
        "between_updates": training.get(f"{unit}_between_parameter_updates", 1),
        "seed": training["seed"],
        "threads": training["threads"],
        "param_clipping": training["param_clipping"],
        "metrics": job.metrics,
        "schema": None if schema is None else schema.dumps(),
        "preparation": None if preparation is None else preparation.to_json(),
        **federation,
    }
    return job_from_json(value)
