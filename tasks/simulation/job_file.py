"""A local job whose training rows are divided among simulated clients, as a JSON value, checked once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from marshmallow import ValidationError, fields, validate, validates, validates_schema

from bitfount_model.errors import ConfigurationError
from bitfount_model.federation.early_stopping import EarlyStopping
from bitfount_model.federation.job import FederatedJob, job_from_json, selection
from bitfount_model.federation.server_optimisers import server_settings
from tasks.federated.job_file import FederationSection, RoundsSection
from tasks.job import JSON, JobError, JobSchema, LocalJob, StrictSchema, check_job, loaded, to_json

MOST_CLIENTS = 10_000_000
MOST_WORKERS = 256
FEDERATION = ("optimiser", "optimiser_settings", "weighted", "proximal_mu", "early_stopping", "best")
"""What of a federated job's settings a simulated one has."""
IID, DIRICHLET, COLUMN = "iid", "dirichlet", "column"
PLACES = ("workers", "dask")
"""Keys of `simulate` that say where a job runs, not what it is: it may go on elsewhere, and its result has the same bits."""


@dataclass(frozen=True)
class SimulatedJob(LocalJob):
    """A checked simulated job: a local one, with rounds.

    Attributes:
        simulate: `{"clients", "sample", "partition", "workers", "dask"}`.
        federation: how updates are added; see `FederationSection`.
    """

    simulate: JSON
    federation: JSON


class SimulateSection(StrictSchema):
    """How many clients, which of them in a round, which rows each has, and what computes them."""

    clients = fields.Integer(
        strict=True, validate=validate.Range(min=1, max=MOST_CLIENTS), load_default=None, allow_none=True
    )
    sample = fields.Integer(strict=True, validate=validate.Range(min=1), load_default=None, allow_none=True)
    partition = fields.Raw(load_default=IID)
    workers = fields.Integer(strict=True, validate=validate.Range(min=1, max=MOST_WORKERS), load_default=1)
    dask = fields.String(load_default=None, allow_none=True, validate=validate.Length(min=1))

    @validates("partition")
    def known_partition(self, value: Any, data_key: str) -> None:
        """One of three."""
        if value == IID:
            return
        wanted = f"wanted {IID}, {{{DIRICHLET}: alpha}} or {{{COLUMN}: NAME}}"
        if not isinstance(value, dict) or len(value) != 1 or not set(value) <= {DIRICHLET, COLUMN}:
            raise ValidationError(f"is {value!r}, {wanted}")
        alpha, column = value.get(DIRICHLET, 1.0), value.get(COLUMN, "name")
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
            raise ValidationError(f"{DIRICHLET} is {alpha!r}, wanted a number > 0: small ones make clients differ more")
        if not isinstance(column, str) or not column:
            raise ValidationError(
                f"{COLUMN} is {column!r}, wanted the name of a column: each of its values is a client"
            )

    @validates_schema
    def goes_together(self, data: JSON, **_: Any) -> None:
        """The number of clients is given, or follows from a column; no sample is larger."""
        clients, sample = data.get("clients"), data.get("sample")
        by_column = isinstance(data.get("partition"), dict) and COLUMN in data["partition"]
        if clients is None and not by_column:
            raise ValidationError(
                "say how many there are; only with partition: {column: NAME} the rows say it", "clients"
            )
        if clients is not None and sample is not None and sample > clients:
            raise ValidationError(f"is {sample}, and there are {clients} clients", "sample")


class SimulatedJobSchema(JobSchema):
    """The keys of a simulated job: those of a local one, with rounds."""

    training = fields.Nested(RoundsSection, required=True)
    simulate = fields.Nested(SimulateSection, required=True)
    federation = fields.Nested(
        FederationSection,
        only=FEDERATION,
        load_default=lambda: FederationSection(only=FEDERATION).load({}),
    )

    @validates_schema
    def usable_settings(self, data: JSON, **_: Any) -> None:
        """The server optimiser and the choice of rounds can be made of their settings."""
        given = data.get("federation", {})
        if not set(FEDERATION) <= set(given):
            return
        checks: dict[str, Callable[[], Any]] = {
            "optimiser_settings": lambda: server_settings(given["optimiser"], given["optimiser_settings"]),
            "early_stopping": lambda: given["early_stopping"] and EarlyStopping(**given["early_stopping"]),
            "best": lambda: given["best"] and selection(given["best"]),
        }
        problems: dict[str, list[str]] = {}
        for key, check in checks.items():
            try:
                check()
            except (ConfigurationError, TypeError) as error:
                problems[key] = [str(error)]
        if problems:
            raise ValidationError({"federation": problems})


def check_simulated_job(value: Any) -> SimulatedJob:
    """Checks a simulated job.

    Args:
        value: plain JSON.

    Raises:
        JobError: all problems together.
    """
    if isinstance(value, dict) and "pods" in value:
        raise JobError([(("pods",), "a simulated job has rows of its own and no pods: leave out pods, or simulate")])
    return SimulatedJob(**loaded(SimulatedJobSchema(), value))


def check_own_rows(value: Any) -> LocalJob:
    """Checks a job that has rows of its own: a simulated one where it says `simulate`, else a local one.

    Raises:
        JobError: all problems together.
    """
    return check_simulated_job(value) if isinstance(value, dict) and "simulate" in value else check_job(value)


def own_rows_to_json(job: LocalJob) -> JSON:
    """The job as `check_own_rows` takes it; where a simulation runs is no part of it."""
    if not isinstance(job, SimulatedJob):
        return to_json(job)
    dumped: JSON = SimulatedJobSchema().dump(asdict(job))
    kept = {key: value for key, value in dumped.items() if value is not None}
    return {**kept, "simulate": {key: value for key, value in kept["simulate"].items() if key not in PLACES}}


def rounds_of(job: SimulatedJob) -> FederatedJob:
    """The settings that rounds are computed with, as a federated job with one pod that stands for all clients.

    Args:
        job: with a seed.

    Raises:
        ConfigurationError: settings that do not go together.
    """
    training = job.training
    unit = "epochs" if "epochs" in training else "steps"
    return job_from_json(
        {
            "job_id": "simulation",
            "pods": ["clients"],
            "quorum": 1,
            "model_sha256": "0" * 64,
            "datastructure": {},
            unit: training[unit],
            "between_updates": training.get(f"{unit}_between_parameter_updates", 1),
            "seed": training["seed"],
            "batch_size": training["batch_size"],
            **job.federation,
        }
    )
