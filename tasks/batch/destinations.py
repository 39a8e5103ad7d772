"""Where predictions go, as a mapping -> the destination itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marshmallow import ValidationError, fields, validate, validates_schema

from tasks.batch.part_folder import PartFolder
from tasks.batch.plan import Destination
from tasks.batch.prediction_table import PROGRESS, PredictionTable
from tasks.job import JSON, SQLSection, StrictSchema, loaded


class TableSection(SQLSection):
    """A table of a database; the URL names secrets and does not hold them."""

    class Meta(StrictSchema.Meta):
        exclude = ("query",)

    table = fields.String(required=True, validate=[validate.Length(min=1), validate.NoneOf([PROGRESS])])


class DestinationSection(StrictSchema):
    """A folder of Parquet files, or a table."""

    parquet = fields.String(validate=validate.Length(min=1))
    sql = fields.Nested(TableSection)

    @validates_schema
    def one_kind(self, data: JSON, **_: Any) -> None:
        """Exactly one of both."""
        if len(data) != 1:
            raise ValidationError("give one and only one of parquet (a folder) and sql (url and table)")


def check_destination(value: Any) -> JSON:
    """Checks where predictions shall go.

    Args:
        value: `{"parquet": folder}` or `{"sql": {"url": ..., "table": ...}}`.

    Raises:
        JobError: all problems together.
    """
    return loaded(DestinationSection(), value)


def destination_of(value: Mapping[str, Any]) -> Destination:
    """The destination that a checked mapping names."""
    if "parquet" in value:
        return PartFolder(Path(value["parquet"]))
    return PredictionTable(value["sql"]["url"], value["sql"]["table"])
