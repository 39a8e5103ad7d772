"""What a retraining is asked: which job, when rows are worth it, and when a challenger takes the champion's place."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from typing import Any

from marshmallow import ValidationError, fields, validate, validates, validates_schema

from bitfount_model.errors import ConfigurationError
from tasks.job import JSON, StrictSchema, is_name, loaded

WARM, SCRATCH = "warm", "scratch"
VARIABLE = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True)
class RetrainingFile:
    """A checked retraining.

    Attributes:
        name: what people call it.
        job: path of the job file; its `register` names the model.
        train_when: `minimum_new_rows`, `maximum_drift` (population stability index of any column), `minimum_rows`.
        start: "warm" from the champion's weights where they fit, or "scratch".
        compare: `metric`, `mode`, `minimum_gain`, `confidence`, `resamples`, `minimum_rows`.
        webhook: URL that is told how it ended, with `${NAME}` for environment variables, or None.
    """

    name: str
    job: str
    train_when: JSON
    start: str
    compare: JSON
    webhook: str | None


class TrainWhenSection(StrictSchema):
    """When rows are worth a training: enough new ones, or enough drift."""

    minimum_new_rows = fields.Integer(strict=True, validate=validate.Range(min=1), load_default=1)
    maximum_drift = fields.Float(validate=validate.Range(min=0, min_inclusive=False), load_default=0.25)
    minimum_rows = fields.Integer(strict=True, validate=validate.Range(min=1), load_default=1)


class CompareSection(StrictSchema):
    """When the challenger is better."""

    metric = fields.String(load_default=None, allow_none=True)
    mode = fields.String(validate=validate.OneOf(["min", "max", "auto"]), load_default="auto")
    minimum_gain = fields.Float(load_default=0.0, allow_nan=False)
    confidence = fields.Float(
        validate=validate.Range(min=0.5, max=1, max_inclusive=False, error="must be from 0.5 to below 1"),
        load_default=0.95,
    )
    resamples = fields.Integer(strict=True, validate=validate.Range(min=100, max=1_000_000), load_default=1000)
    minimum_rows = fields.Integer(strict=True, validate=validate.Range(min=2), load_default=30)

    @validates_schema
    def a_mode_is_of_a_metric(self, data: JSON, **_: Any) -> None:
        """Which way is better depends on the metric."""
        if data["mode"] != "auto" and data["metric"] is None:
            raise ValidationError("a mode needs a metric: say which one", "mode")


class RetrainingSchema(StrictSchema):
    """The keys of a retraining."""

    name = fields.String(required=True, validate=is_name)
    job = fields.String(required=True)
    train_when = fields.Nested(TrainWhenSection, load_default=lambda: TrainWhenSection().load({}))
    start = fields.String(validate=validate.OneOf([WARM, SCRATCH]), load_default=WARM)
    compare = fields.Nested(CompareSection, load_default=lambda: CompareSection().load({}))
    webhook = fields.String(load_default=None, allow_none=True)

    @validates("webhook")
    def is_http(self, value: str | None, data_key: str) -> None:
        """A webhook's URL is often its secret."""
        if value is not None and not value.startswith(("http://", "https://", "${")):
            raise ValidationError("wanted an http(s) URL, or ${NAME} for the environment variable that holds it")


def check_retraining(value: Any) -> RetrainingFile:
    """Checks a retraining.

    Args:
        value: plain JSON.

    Raises:
        JobError: all problems together.
    """
    return RetrainingFile(**loaded(RetrainingSchema(), value))


def retraining_to_json(retraining: RetrainingFile) -> JSON:
    """The retraining as `check_retraining` takes it."""
    return asdict(retraining)


def webhook_of(retraining: RetrainingFile) -> str | None:
    """The webhook's URL with its environment variables filled in; shown and kept nowhere.

    Raises:
        ConfigurationError: a variable is not set.
    """
    if retraining.webhook is None:
        return None
    if unset := [name for name in VARIABLE.findall(retraining.webhook) if name not in os.environ]:
        raise ConfigurationError(f"webhook: the environment variable {unset[0]} is not set; set it and start again")
    return VARIABLE.sub(lambda found: os.environ[found[1]], retraining.webhook)
