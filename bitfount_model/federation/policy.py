"""What a pod's owner allows: a job that asks for more is refused by name, before any row is read.

Everything that is not allowed is denied; a pod without a policy takes part in nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from marshmallow import RAISE, Schema, ValidationError, fields, post_load, validate

from bitfount_model.errors import ConfigurationError
from bitfount_model.federation.book import Approval
from bitfount_model.federation.job import DELTAS, FederatedJob
from bitfount_model.federation.privacy import PrivacyBudget, epsilon_spent
from bitfount_model.federation.sampling import sample_pods
from bitfount_model.federation.signing import public_key
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
        models: "approved" runs those that the owner has approved; or sha256 of the model sources that may run here; "all"
            trusts whoever may start jobs.
        predictions_may_leave: whether row-wise predictions may be sent to the modeller.
        errors_may_leave: whether the modeller is sent the text and traceback of whatever goes wrong, which may hold values
            of rows; otherwise it is told what kind of error it was, and where.
        tables: names of tables of its database that jobs may read in place of the pod's own.
        secure_aggregation: whether only jobs that see updates in their sum alone may train.
        modellers: public keys of those whose jobs run; "all" runs unsigned jobs too.
        privacy: what private jobs may spend, and whether there are others; None takes part in no private job.
        allow_unconfined: whether models may run where the kernel does not let a deployed pod shut them off from network,
            files and other processes; otherwise the pod refuses all jobs there.
    """

    columns: tuple[str, ...] | Literal["all"]
    minimum_rows: int
    maximum_rounds: int
    maximum_epochs: int
    maximum_steps: int
    minimum_pods: int
    models: tuple[str, ...] | Literal["all", "approved"] = "approved"
    predictions_may_leave: bool = False
    errors_may_leave: bool = False
    tables: tuple[str, ...] = ()
    modellers: tuple[str, ...] | Literal["all"] = "all"
    secure_aggregation: bool = False
    privacy: PrivacyBudget | None = None
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


def refusals(
    policy: PodPolicy, job: FederatedJob, pod: str, approval: Approval | None = None, found_at: str = "model.py"
) -> list[str]:
    """Why a pod refuses a job; empty if it does not.

    Args:
        policy: the pod's.
        job: what is asked.
        pod: the pod's own name.
        approval: what the pod's owner has approved of the job's source; None if nothing.
        found_at: where the owner finds that source.
    """
    asked = _columns_of(job.datastructure)
    hidden = [] if policy.columns == "all" or asked is None else sorted(asked - set(policy.columns))
    rules: list[tuple[bool, str]] = [
        (pod not in job.pods, f"it does not name this pod; it names {', '.join(job.pods)}"),
        *_unapproved(policy, job, approval, found_at),
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
        (
            policy.secure_aggregation and job.rounds > 0 and not job.secure_aggregation,
            "it would see this pod's updates one by one, and this pod trains for secure sums alone (secure_aggregation)",
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
    return [*(reason for broken, reason in rules if broken), *_privacy_refusals(policy.privacy, job, pod)]


def _privacy_refusals(budget: PrivacyBudget | None, job: FederatedJob, pod: str) -> Iterator[str]:
    """Why a job does not protect its updates as the pod wants."""
    if job.privacy is None:
        if budget is not None and budget.required:
            yield "its updates have no noise, and this pod takes part in private jobs only (federation.privacy)"
        return
    if budget is None:
        yield "it is a private job, and this pod's policy has no budget for it (privacy)"
        return
    if not budget.metrics_may_leave and (job.early_stopping is not None or job.best is not None):
        yield (
            "it looks at validation metrics (early_stopping, best), which have no noise and may not leave"
            " (metrics_may_leave)"
        )
    if not budget.statistics_may_leave and (job.schema is None or job.preparation is None):
        yield (
            "it asks for categories and statistics of columns, which have no noise and may not leave"
            " (statistics_may_leave): bring a schema and a weights file that says how rows are encoded"
        )
    asked = sum(_is_asked(job, pod, number) for number in range(1, job.rounds + 1))
    whole = epsilon_spent([job.privacy.noise_multiplier] * asked, budget.delta)
    if whole > budget.epsilon:
        yield (
            f"its {asked} updates of this pod would spend epsilon {whole:.4g} at delta {budget.delta:g}, and the budget is"
            f" {budget.epsilon:g}: add more noise (noise_multiplier), or ask for fewer rounds"
        )


def _is_asked(job: FederatedJob, pod: str, round_number: int) -> bool:
    """Whether a round asks a pod."""
    return job.sample is None or pod in sample_pods(job.seed, round_number, job.pods, job.sample)


def _unapproved(
    policy: PodPolicy, job: FederatedJob, approval: Approval | None, found_at: str
) -> list[tuple[bool, str]]:
    """Rules on the model's source."""
    if policy.models != "approved":
        return [
            (
                policy.models != "all" and job.model_sha256 not in policy.models,
                f"the source of its model (sha256 {job.model_sha256}) is not among the models that may run here",
            )
        ]
    approves_it = approval is not None and approval.sha256 == job.model_sha256
    approved_class = approval.class_name if approval is not None else None
    return [
        (
            not approves_it,
            f"the source of its model (sha256 {job.model_sha256}) is not approved: the pod's owner reads it and runs"
            f" `bitfount-flows pod approve POD.yaml {shlex.quote(found_at)}`, which needs no restart",
        ),
        (
            approves_it and job.model_class not in (None, approved_class),
            f"it asks for the class {job.model_class}, and of that source the class {approved_class} is approved",
        ),
    ]


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
    """One of a few words, or a list of texts.

    Args:
        words: those that may stand in place of a list.
    """

    def __init__(self, *words: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.words = words

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if isinstance(value, str) and value in self.words:
            return value
        if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
            return tuple(value)
        raise ValidationError(f"is {value!r}, wanted {', '.join(f'`{word}`' for word in self.words)}, or a list")


def _are_public_keys(value: Any) -> None:
    """Each text of a list is a public key."""
    for text in () if isinstance(value, str) else value:
        try:
            public_key(text)
        except ConfigurationError as error:
            raise ValidationError(str(error)) from error


class _BudgetSchema(Schema):
    class Meta:
        unknown = RAISE

    epsilon = fields.Float(required=True, validate=validate.Range(min=0, min_inclusive=False))
    delta = fields.Float(required=True, validate=DELTAS)
    required = fields.Boolean(load_default=False)
    metrics_may_leave = fields.Boolean(load_default=False)
    statistics_may_leave = fields.Boolean(load_default=False)

    @post_load
    def make_budget(self, data: JSON, **_: Any) -> PrivacyBudget:
        """The dataclass."""
        return PrivacyBudget(**data)


class _PolicySchema(Schema):
    class Meta:
        unknown = RAISE

    columns = _Listed("all", required=True)
    models = _Listed("all", "approved", load_default="approved")
    modellers = _Listed("all", load_default="all", validate=_are_public_keys)
    minimum_rows = fields.Integer(strict=True, required=True, validate=validate.Range(min=1))
    maximum_rounds = fields.Integer(strict=True, required=True, validate=validate.Range(min=1))
    maximum_epochs = fields.Integer(strict=True, load_default=0, validate=validate.Range(min=0))
    maximum_steps = fields.Integer(strict=True, load_default=0, validate=validate.Range(min=0))
    minimum_pods = fields.Integer(strict=True, required=True, validate=validate.Range(min=1))
    tables = fields.List(fields.String(), load_default=list)
    predictions_may_leave = fields.Boolean(load_default=False)
    errors_may_leave = fields.Boolean(load_default=False)
    secure_aggregation = fields.Boolean(load_default=False)
    privacy = fields.Nested(_BudgetSchema, load_default=None, allow_none=True)
    allow_unconfined = fields.Boolean(load_default=False)

    @post_load
    def make_policy(self, data: JSON, **_: Any) -> PodPolicy:
        """The dataclass."""
        return PodPolicy(**{**data, "tables": tuple(data["tables"])})
