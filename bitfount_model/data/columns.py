"""One column of a table as the schema knows it: a name, a meaning, the categories."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from marshmallow import Schema, ValidationError, fields, post_load


class SemanticType(StrEnum):
    """What a column means to a model."""

    CATEGORICAL = "categorical"
    CONTINUOUS = "continuous"
    IMAGE = "image"
    TEXT = "text"


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: the column's name.
        semantic_type: what it means.
        dtype: pandas' name of its type, when the schema was made.
        categories: of a categorical column, in the order of their codes: plain bool, int, float or str; numbers come
            first, by value, then text.
        description: for people.
    """

    name: str
    semantic_type: SemanticType
    dtype: str
    categories: tuple[Any, ...] = ()
    description: str | None = None


class Category(fields.Field[Any]):
    """A bool, int, finite float or str, kept exactly as it is."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if type(value) not in (bool, int, float, str) or (type(value) is float and not math.isfinite(value)):
            raise ValidationError(f"a category is {value!r}, wanted a finite number, a text, true or false.")
        return value


class ColumnSchema(Schema):
    """How a column crosses the border of a file or a message."""

    name = fields.String(required=True)
    semantic_type = fields.Enum(SemanticType, by_value=True, required=True)
    dtype = fields.String(required=True)
    categories = fields.List(Category(), load_default=list)
    description = fields.String(allow_none=True, load_default=None)

    @post_load
    def make_column(self, data: dict[str, Any], **kwargs: Any) -> Column:
        """The column, after its parts were checked."""
        categories = tuple(data["categories"])
        if categories and data["semantic_type"] is not SemanticType.CATEGORICAL:
            raise ValidationError("only categorical columns have categories.", "categories")
        if len(set(categories)) < len(categories):
            raise ValidationError("a category appears more than once.", "categories")
        return Column(**{**data, "categories": categories})
