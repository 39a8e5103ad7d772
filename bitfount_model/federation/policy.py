"""What a pod's owner allows: a job that asks for more is refused by name, before any row is read.

Everything that is not allowed is denied; a pod without a policy takes part in nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from marshmallow import RAISE, Schema, ValidationError, fields, post_load, validate

from bitfount_model.errors import ConfigurationError
from bitfount_model.federation.job import FederatedJob
from bitfount_model.types import JSON


@dataclass(frozen=True)
class PodPolicy:
    """What one pod allows.

    Attributes:
        columns: names of the columns that models may see, targets included; "all" is all of them.
        minimum_rows: training rows below which the pod does not train.
        maximum_rounds: of one job.
        maximum_epochs: of one job, where it counts in epochs.
        maximum_steps: of one job, where it counts in steps.
        minimum_pods: the fewest pods that a job must have.
        models: sha256 of the model sources that may run here; "all" trusts whoever may start jobs.
        predictions_may_leave: whether row-wise predictions may be sent to the modeller.
        errors_may_leave: whether the modeller is sent the text and traceback of whatever goes wrong, which may hold values
            of rows; otherwise it is told what kind of error it was, and where.
        tables: names of tables of its database that jobs may read in place of the pod's own.
        allow_unconfined: whether models may run where the kernel does not let a deployed pod shut them off from network,
            files and other processes; otherwise the pod refuses all jobs there.
    """

    columns: tuple[str, ...] | Literal["all"]
    minimum_rows: int
    maximum_rounds: int
    maximum_epochs: int
    maximum_steps: int
    minimum_pods: int
    models: tuple[str, ...] | Literal["all"] = ()
    predictions_may_leave: bool = False
    errors_may_leave: bool = False
    tables: tuple[str, ...] = ()
    allow_unconfined: bool = False


def policy_from_json(value: Any) -> PodPolicy:
    """Checks a policy.

    Args:
        value: a mapping; None is refused, as a missing policy allows nothing.

    Raises:
        ConfigurationError: missing or unknown keys, or bad values; all of them.
    """
    if value is None:
        raise ConfigurationError(
            "the pod has no policy, so it takes part in nothing: say what is allowed under `policy`"
        )
    try:
        policy: PodPolicy = _PolicySchema().load(value)
    except ValidationError as error:
        raise ConfigurationError(f"the pod's policy: {error.messages}") from error
    return policy


def refusals(policy: PodPolicy, job: FederatedJob, pod: str) -> list[str]:
    """Why a pod refuses a job; empty if it does not.

    Args:
        policy: the pod's.
        job: what is asked.
        pod: the pod's own name.
    """
    asked = _columns_of(job.datastructure)
    hidden = [] if policy.columns == "all" or asked is None else sorted(asked - set(policy.columns))
    rules: list[tuple[bool, str]] = [
        (pod not in job.pods, f"it does not name this pod; it names {', '.join(job.pods)}"),
        (
            policy.models != "all" and job.model_sha256 not in policy.models,
            f"the source of its model (sha256 {job.model_sha256}) is not among the models that may run here",
        ),
        (
            job.wants_predictions and not policy.predictions_may_leave,
            "it asks for predictions of rows, which may not leave (predictions_may_leave)",
        ),
        (
            len(job.pods) < policy.minimum_pods,
            f"it has {len(job.pods)} pods, at least {policy.minimum_pods} are wanted",
        ),
        (
            job.rounds > policy.maximum_rounds,
            f"it has {job.rounds} rounds, at most {policy.maximum_rounds} are allowed",
        ),
        (
            job.rounds > 0 and job.epochs is not None and job.epochs > policy.maximum_epochs,
            f"it trains {job.epochs} epochs, at most {policy.maximum_epochs} are allowed",
        ),
        (
            job.rounds > 0 and job.steps is not None and job.steps > policy.maximum_steps,
            f"it trains {job.steps} steps, at most {policy.maximum_steps} are allowed",
        ),
        (bool(hidden), f"it uses columns that are not allowed: {', '.join(hidden)}"),
        (
            asked is None and policy.columns != "all",
            "it does not select its columns, and this pod allows only some: name them under selected_cols",
        ),
        (
            not isinstance(job.datastructure.get("query"), type(None)),
            "it brings a query of its own, and this pod reads only its own table",
        ),
    ]
    return [reason for broken, reason in rules if broken]


def _columns_of(datastructure: Mapping[str, Any]) -> set[str] | None:
    """The columns that a job names; None where it takes whatever there is."""
    selected = datastructure.get("selected_cols")
    if not selected:
        return None
    target = datastructure.get("target")
    targets = [target] if isinstance(target, str) else list(target or ())
    others = [datastructure.get(key) for key in ("loss_weights_col", "ignore_classes_col")]
    return {*selected, *targets, *(datastructure.get("image_cols") or ()), *(name for name in others if name)}


class _Listed(fields.Field[Any]):
    """`all`, or a list of texts."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if value == "all":
            return value
        if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
            return tuple(value)
        raise ValidationError(f"is {value!r}, wanted `all`, or a list")


class _PolicySchema(Schema):
    class Meta:
        unknown = RAISE

    columns = _Listed(required=True)
    models = _Listed(required=True)
    minimum_rows = fields.Integer(strict=True, required=True, validate=validate.Range(min=1))
    maximum_rounds = fields.Integer(strict=True, required=True, validate=validate.Range(min=1))
    maximum_epochs = fields.Integer(strict=True, load_default=0, validate=validate.Range(min=0))
    maximum_steps = fields.Integer(strict=True, load_default=0, validate=validate.Range(min=0))
    minimum_pods = fields.Integer(strict=True, required=True, validate=validate.Range(min=1))
    tables = fields.List(fields.String(), load_default=list)
    predictions_may_leave = fields.Boolean(load_default=False)
    errors_may_leave = fields.Boolean(load_default=False)
    allow_unconfined = fields.Boolean(load_default=False)

    @post_load
    def make_policy(self, data: JSON, **_: Any) -> PodPolicy:
        """The dataclass."""
        return PodPolicy(**{**data, "tables": tuple(data["tables"])})
