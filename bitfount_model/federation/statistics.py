"""Before round 1: each pod's training rows -> a few sums a column -> one `Preparation`, so that all pods encode alike.

A pod sends, for each continuous column, how many values there are and two sums about a number of its own, its mean: of
the distances from it, and of their squares. That keeps what sums of plain squares lose, the spread of values that are
large and close together. The sums are merged in exact arithmetic, so neither the order of pods nor the way in which
rows are spread over them is seen in the result, but for the roundings inside each pod: the merged mean is within
1e-13 of the larger of |mean| and scale, the merged scale within 1e-13 of itself, for up to 2**40 rows a pod. What
`fit_preparation` makes of all rows in one table agrees to 1e-12, as long as values are not more than 1e8 times
larger than their spread: from there on, its own rounding shows.

Rows are never sent, but sums of very few values nearly are values. Therefore a pod refuses to send statistics of fewer
than `min_rows` values. This is a floor, not a proof of privacy: a column that is constant at a pod is revealed by its
mean, and someone who sees statistics of the same rows with and without one row can tell that row. A job may bring its
own `Preparation` instead, and then nothing of this is sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import pandas as pd
from marshmallow import Schema, ValidationError, fields, post_load, validate

from bitfount_model.arguments import check_positive
from bitfount_model.data.datastructure import DataStructure
from bitfount_model.data.moments import Moments, mean_and_scale
from bitfount_model.data.preparation import Preparation, column_numbers
from bitfount_model.data.schema import BitfountSchema
from bitfount_model.errors import ConfigurationError, DataError, SerializationError, TooFewRowsError
from bitfount_model.types import JSON

MIN_ROWS = 10
"""The fewest values of a column that a pod sends statistics of, unless it is told otherwise."""

_LARGEST_COUNT = 2**53


@dataclass(frozen=True)
class PodStatistics:
    """What a pod sends before round 1.

    Attributes:
        columns: continuous column -> its moments over the pod's training rows.
    """

    columns: Mapping[str, Moments]

    def to_json(self) -> JSON:
        """A JSON object; floats keep every bit."""
        return {"columns": {name: asdict(moments) for name, moments in self.columns.items()}}

    @classmethod
    def from_json(cls, data: Any) -> PodStatistics:
        """The inverse of `to_json`, for what another machine sent.

        Raises:
            SerializationError: unknown or missing keys, or values that no rows can have; lists all of them.
        """
        try:
            return cls(_StatisticsSchema().load(data)["columns"])
        except ValidationError as error:
            raise SerializationError(f"not statistics of a pod: {error.messages}") from error


def pod_statistics(
    frame: pd.DataFrame, schema: BitfountSchema, datastructure: DataStructure, *, min_rows: int = MIN_ROWS
) -> PodStatistics:
    """What one pod sends of its training rows.

    Args:
        frame: the training rows, with the columns that the datastructure's transforms add; left as they are.
        schema: the common one, as `merge_schemas` gives it.
        datastructure: says which columns are features.
        min_rows: the fewest values of a column that statistics are sent of, at least 1. A column without any values is
            no hindrance: that it has none is all that is said of it.

    Returns:
        The moments of every continuous feature.

    Raises:
        TooFewRowsError: fewer than `min_rows` rows, or values of a column (all such columns are named).
        DataError: a column holds infinity or something that is no number.
        SchemaMismatchError: a column is not in the table.
        ConfigurationError: `min_rows` is not an integer of at least 1.
    """
    check_positive("min_rows", min_rows)
    names = datastructure.feature_columns(schema).continuous
    columns = {name: Moments.of(column_numbers(frame, name)) for name in names}
    few = [f"{name!r} ({moments.count})" for name, moments in columns.items() if 0 < moments.count < min_rows]
    if columns and (few or len(frame) < min_rows):
        raise TooFewRowsError(
            f"statistics of fewer than {min_rows} values are not sent, as they would tell the values: found {len(frame)} "
            f"training rows{'; too few values in ' + ', '.join(few) if few else ''}. Leave such columns out with "
            "ignore_cols, let the job bring its own preparation, or lower min_rows (`minimum_statistics_rows` in a job), if the"
            " data's owner agrees"
        )
    return PodStatistics(columns)


def merge_statistics(
    statistics: Mapping[str, PodStatistics], schema: BitfountSchema, datastructure: DataStructure
) -> Preparation:
    """The preparation that all pods use: as `fit_preparation` makes it of all their rows. The order of pods is not seen.

    Args:
        statistics: pod -> what it sent, at least one pod.
        schema: the common one; gives the categories.
        datastructure: says which columns are features.

    Returns:
        Means and population standard deviations over the values of all pods; a column that is constant over all pods has
        scale 1.0, one without values anywhere mean 0.0.

    Raises:
        ConfigurationError: no pods.
        DataError: pods sent statistics of other columns than the features (all are listed), or of values beyond float64.
    """
    if not statistics:
        raise ConfigurationError("there are no statistics to merge: found no pods, want at least one")
    columns = datastructure.feature_columns(schema)
    problems = [
        f"pod {pod!r} sent columns {sorted(sent.columns)}"
        for pod, sent in sorted(statistics.items())
        if set(sent.columns) != set(columns.continuous)
    ]
    if problems:
        raise DataError(
            f"{'; '.join(problems)}; wanted {sorted(columns.continuous)}: make them with the job's schema and datastructure"
        )
    return Preparation(
        continuous={
            name: _merged(name, [sent.columns[name] for sent in statistics.values()]) for name in columns.continuous
        },
        categorical={name: schema.column(name).categories for name in columns.categorical},
        encoding=datastructure.categorical_encoding,
        normalise=datastructure.normalise,
    )


def _merged(name: str, parts: Sequence[Moments]) -> tuple[float, float]:
    try:
        return mean_and_scale(parts)
    except OverflowError as error:
        raise DataError(f"column {name!r}: a pod's statistics are of values beyond float64; refuse that pod") from error


class _Exact(fields.Field[float]):
    """A finite number, kept exactly as it is."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> float:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ValidationError(f"is {value!r}, wanted a finite number.")
        return float(value)


class _MomentsSchema(Schema):
    """How moments cross the border of a message; refuses what no values can have, so that no variance is negative."""

    count = fields.Integer(strict=True, required=True, validate=validate.Range(0, _LARGEST_COUNT))
    exponent = fields.Integer(strict=True, required=True, validate=validate.Range(-1074, 1024))
    pivot = _Exact(required=True, validate=validate.Range(-1, 1))
    first = _Exact(required=True)
    second = _Exact(required=True, validate=validate.Range(0))

    @post_load
    def make_moments(self, data: dict[str, Any], **kwargs: Any) -> Moments:
        """The moments, after their parts were checked one by one."""
        moments = Moments(**data)
        if moments.count == 0 and moments != Moments(0, 0, 0.0, 0.0, 0.0):
            raise ValidationError("count is 0, so all else must be 0.", "count")
        if Fraction(moments.first) ** 2 > moments.count * Fraction(moments.second):
            raise ValidationError("first is too large for second: no values have such sums.", "first")
        return moments


class _StatisticsSchema(Schema):
    """How statistics cross the border of a message."""

    columns = fields.Dict(fields.String(), fields.Nested(_MomentsSchema), required=True)
