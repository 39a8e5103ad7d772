"""What is to be done: one local job as a JSON value, checked once, then passed between the steps.

The schema here is the only definition of a job's keys; every problem of a job is reported at once, each with its path.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from typing import Any, TypeVar

from marshmallow import RAISE, Schema, ValidationError, fields, validate, validates, validates_schema

from bitfount_model.data import (
    BaseSource,
    DatasetSplitter,
    DataStructure,
    PercentageSplitter,
    SplitterDefinedInData,
    literal_secrets,
    source_from_config,
)
from bitfount_model.errors import ConfigurationError

JSON = dict[str, Any]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
SPLITTERS: Mapping[str, type[DatasetSplitter]] = {
    "percentage": PercentageSplitter,
    "defined_in_data": SplitterDefinedInData,
}
SOURCES = ("csv", "parquet", "sql", "sklearn")
CSV_OPTIONS = (
    "comment", "decimal", "encoding", "keep_default_na", "na_values", "quotechar", "sep", "skipinitialspace", "skiprows",
    "thousands",
)  # fmt: skip
"""Arguments of `pandas.read_csv` that a job may give: how the file is written."""
OWN_ARGUMENTS = ("datastructure", "schema", "batch_size", "epochs", "steps", "seed", "param_clipping")
"""Arguments of a model's constructor that sections of the job give."""
MOST_THREADS = 256
"""Many thousands would stop the machine."""

is_name = validate.Regexp(
    rf"^{NAME.pattern}\Z",
    error="must be letters, digits, '.', '_' or '-', at most 80, beginning with a letter or digit",
)


@dataclass(frozen=True)
class LocalJob:
    """A checked local job.

    Attributes:
        name: what people call it; the MLflow run's name.
        experiment: the MLflow experiment.
        model: `{"file" | "reference", "version", "class", "hyperparameters"}`.
        data: `{"csv" | "parquet" | "sql" | "sklearn": ..., "key": column, "stream": true, false or "auto"}`.
        datastructure: arguments of `DataStructure`.
        schema: `{"file": YAML file}` or `{"types": semantic type -> columns}`.
        splitter: `{"percentage" | "defined_in_data": arguments}`.
        training: epochs or steps, batch_size, seed, threads (of torch), workers (processes that decode images),
            pretrained_file, param_clipping.
        metrics: names of the default metrics to compute; None for all of them.
        predict: `{"data": like data}`, or None.
        register: the name in MLflow's registry that the trained model becomes a version of, or None.
    """

    name: str
    experiment: str
    model: JSON
    data: JSON
    datastructure: JSON
    schema: JSON
    splitter: JSON
    training: JSON
    metrics: list[str] | None
    predict: JSON | None
    register: str | None


Own = TypeVar("Own", bound=LocalJob)
"""A job that has rows of its own: a local one, or a kind of it."""


class StrictSchema(Schema):
    """Unknown keys are errors, and the message names the key that was probably meant."""

    class Meta:
        unknown = RAISE


class ModelSection(StrictSchema):
    """Where the model's source is, and its hyperparameters."""

    file = fields.String()
    reference = fields.String()
    version = fields.Integer(strict=True, allow_none=True, load_default=None)
    class_name = fields.String(data_key="class", allow_none=True, load_default=None)
    hyperparameters = fields.Dict(keys=fields.String(), load_default=dict)

    @validates("hyperparameters")
    def none_of_the_jobs_own(self, value: JSON, data_key: str) -> None:
        """What other sections say is said once."""
        if taken := [name for name in OWN_ARGUMENTS if name in value]:
            raise ValidationError(f"{', '.join(taken)}: belongs to the job's own sections, not to the hyperparameters")

    @validates_schema
    def one_place(self, data: JSON, **_: Any) -> None:
        """Exactly one of file and reference."""
        if ("file" in data) == ("reference" in data):
            raise ValidationError(
                "give one and only one of file (a path) and reference (a name in the registry)", "file"
            )


class SQLSection(StrictSchema):
    """A database; a job is kept and shown, so it names secrets and does not hold them."""

    url = fields.String(required=True)
    table = fields.String()
    query = fields.String()

    @validates("url")
    def no_secret(self, value: str, data_key: str) -> None:
        """Passwords stay in the environment."""
        try:
            secrets_in_it = literal_secrets(value)
        except ConfigurationError as error:
            raise ValidationError(str(error)) from error
        if secrets_in_it:
            raise ValidationError(
                f"the URL holds a secret ({', '.join(secrets_in_it)}), and the job is kept and recorded: write ${{NAME}} in its"
                " place, and set the environment variable NAME"
            )

    @validates_schema
    def one_of_both(self, data: JSON, **_: Any) -> None:
        """Not both table and query."""
        if "table" in data and "query" in data:
            raise ValidationError("give one of table and query, not both", "query")


class SourceSection(StrictSchema):
    """Where rows come from."""

    csv = fields.String()
    parquet = fields.String()
    sql = fields.Nested(SQLSection)
    sklearn = fields.String(validate=validate.OneOf(["breast_cancer", "digits", "diabetes"]))
    key = fields.String(allow_none=True, load_default=None)
    read_csv_kwargs = fields.Dict(keys=fields.String(validate=validate.OneOf(CSV_OPTIONS)))

    @validates_schema
    def one_kind(self, data: JSON, **_: Any) -> None:
        """Exactly one kind of source."""
        if sum(kind in data for kind in SOURCES) != 1:
            raise ValidationError(f"give one and only one of {', '.join(SOURCES)}")
        if "read_csv_kwargs" in data and "csv" not in data:
            raise ValidationError("only a csv source takes these", "read_csv_kwargs")


class JobSourceSection(SourceSection):
    """Where a job's own rows come from, and whether they are held in memory."""

    stream = fields.Raw(validate=validate.OneOf([True, False, "auto"], error="must be true, false or auto"))


class SchemaSection(StrictSchema):
    """The columns' types: a file, or what differs from the inferred types."""

    file = fields.String()
    types = fields.Dict(
        keys=fields.String(validate=validate.OneOf(["categorical", "continuous", "image", "text"])),
        values=fields.List(fields.String()),
        load_default=dict,
    )

    @validates_schema
    def one_type_a_column(self, data: JSON, **_: Any) -> None:
        """A file says all; and no column has two types."""
        if "file" in data and data["types"]:
            raise ValidationError("give one of file and types: a schema file says the types of all columns", "types")
        stated = [column for columns in data["types"].values() for column in columns]
        if double := sorted({column for column in stated if stated.count(column) > 1}):
            raise ValidationError(f"columns {double} are named more than once", "types")


class SplitterSection(StrictSchema):
    """One splitter and its arguments."""

    percentage = fields.Nested(
        StrictSchema.from_dict(dict(PercentageSplitter.fields_dict), name="PercentageSection"), unknown=RAISE
    )
    defined_in_data = fields.Nested(
        StrictSchema.from_dict(dict(SplitterDefinedInData.fields_dict), name="DefinedInDataSection"), unknown=RAISE
    )

    @validates_schema
    def one_splitter(self, data: JSON, **_: Any) -> None:
        """Exactly one splitter."""
        if len(data) != 1:
            raise ValidationError(f"give one and only one of {', '.join(SPLITTERS)}")


class TrainingSection(StrictSchema):
    """How long and how."""

    epochs = fields.Integer(strict=True, validate=validate.Range(min=1))
    steps = fields.Integer(strict=True, validate=validate.Range(min=1))
    batch_size = fields.Integer(strict=True, validate=validate.Range(min=1), load_default=32)
    seed = fields.Integer(
        strict=True, validate=validate.Range(min=0, max=2**63 - 1), load_default=None, allow_none=True
    )
    threads = fields.Integer(strict=True, validate=validate.Range(min=1, max=MOST_THREADS), load_default=1)
    workers = fields.Integer(strict=True, validate=validate.Range(min=0, max=MOST_THREADS), load_default=0)
    pretrained_file = fields.String(load_default=None, allow_none=True)
    param_clipping = fields.Dict(keys=fields.String(), load_default=None, allow_none=True)

    @validates_schema
    def one_length(self, data: JSON, **_: Any) -> None:
        """Exactly one of epochs and steps."""
        if ("epochs" in data) == ("steps" in data):
            raise ValidationError("give one and only one of epochs and steps", "epochs")


class PredictSection(StrictSchema):
    """What to predict after training."""

    data = fields.Nested(SourceSection, required=True)


class JobSchema(StrictSchema):
    """The keys of a local job."""

    name = fields.String(required=True, validate=is_name)
    experiment = fields.String(load_default="bitfount-flows", validate=validate.Length(min=1))
    model = fields.Nested(ModelSection, required=True)
    data = fields.Nested(JobSourceSection, required=True)
    datastructure = fields.Nested(
        StrictSchema.from_dict(dict(DataStructure.fields_dict), name="DataStructureSection"),
        required=True,
        unknown=RAISE,
    )
    schema = fields.Nested(SchemaSection, load_default=lambda: {"types": {}})
    splitter = fields.Nested(SplitterSection, load_default=lambda: {"percentage": {}})
    training = fields.Nested(TrainingSection, required=True)
    metrics = fields.List(fields.String(), load_default=None, allow_none=True, validate=validate.Length(min=1))
    predict = fields.Nested(PredictSection, load_default=None, allow_none=True)
    register = fields.String(load_default=None, allow_none=True, validate=is_name)


class JobError(ConfigurationError):
    """A job with problems, each with the path of its key.

    Attributes:
        problems: (path, message) pairs; a path is the keys from the top.
    """

    def __init__(self, problems: list[tuple[tuple[str, ...], str]]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{'.'.join(path) or 'the job'}: {message}" for path, message in problems))


def check_job(value: Any) -> LocalJob:
    """Checks a job.

    Args:
        value: plain JSON.

    Raises:
        JobError: all problems together.
    """
    return LocalJob(**loaded(JobSchema(), value))


def loaded(schema: Schema, value: Any) -> JSON:
    """A value as a schema takes it.

    Raises:
        JobError: all problems together.
    """
    try:
        found: JSON = schema.load(value)
    except ValidationError as error:
        raise JobError(problems_of(error.messages, schema)) from error
    return found


def check_source(value: Any) -> JSON:
    """Checks a source as a job's `data` section has it.

    Raises:
        JobError: all problems together.
    """
    return loaded(SourceSection(), value)


def with_seed(job: Own, seed: int | None = None) -> Own:
    """The same job with a seed: its own, else the one given, else one from the operating system, so that it can be continued."""
    if job.training["seed"] is not None:
        return job
    drawn = secrets.randbits(31) if seed is None else seed
    return replace(job, training={**job.training, "seed": drawn})


def to_json(job: LocalJob) -> JSON:
    """The job as `check_job` takes it."""
    dumped: JSON = JobSchema().dump(asdict(job))
    return {key: value for key, value in dumped.items() if value is not None}


def source_of(job: LocalJob) -> BaseSource:
    """Where the job's rows are."""
    return source_from_config({key: value for key, value in job.data.items() if key != "stream"})


def splitter_of(job: LocalJob) -> DatasetSplitter:
    """The job's splitter, with the job's seed unless it has its own."""
    ((kind, arguments),) = job.splitter.items()
    return SPLITTERS[kind](**arguments)


def problems_of(messages: Any, schema: Schema, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], str]]:
    """marshmallow's nested messages as a flat list of (path, text); unknown keys get the nearest known one."""
    if isinstance(messages, str):
        return [(path, messages)]
    if isinstance(messages, list):
        return [problem for message in messages for problem in problems_of(message, schema, path)]
    problems = []
    for key, inner in messages.items():
        if key == "_schema":
            problems += problems_of(inner, schema, path)
            continue
        if inner == ["Unknown field."]:
            known = [field.data_key or name for name, field in schema.fields.items()]
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(known))}"
            problems.append(((*path, str(key)), f"unknown key; {hint}"))
            continue
        field = next((f for n, f in schema.fields.items() if (f.data_key or n) == key), None)
        below = field.schema if isinstance(field, fields.Nested) else schema
        problems += problems_of(inner, below, (*path, str(key)))
    return problems
