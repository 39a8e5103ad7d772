"""Chunks of a table -> what a schema says of its columns, as if they were read as one table; for tables larger than memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from bitfount_model.data.columns import Column, SemanticType
from bitfount_model.data.inference import (
    TEXT_MIN_DISTINCT,
    checked_categories,
    distinct_values,
    plain_value,
    semantic_type_of_dtype,
    value_family,
)
from bitfount_model.data.keys import key_hashes
from bitfount_model.errors import DataError

MOST_CATEGORIES = 1_000_000
"""Different values of a column that are held; a column of more is text, or refused."""


class ColumnSurvey:
    """What has been seen of one column so far.

    Of values that may be categories all different ones are held, up to `MOST_CATEGORIES`, and 8 bytes beside for each of them in
    each chunk.

    Args:
        name: the column's.
        forced: the type that it has whatever it looks like; None infers it.
    """

    def __init__(self, name: str, forced: SemanticType | None) -> None:
        self.name = name
        self._forced = forced
        self._rows = 0
        self._dtype: np.dtype[Any] | Any = None
        self._families: set[str] = set()
        self._categories: set[Any] | None = set()
        self._hashes: list[np.ndarray] = []
        self._only_booleans = True

    def add(self, values: pd.Series[Any]) -> None:
        """Looks at the column in one more chunk.

        Raises:
            DataError: a value cannot be a category.
        """
        self._rows += len(values)
        is_missing = not values.notna().any()
        if self._dtype is None or not is_missing:
            self._dtype = values.dtype if self._dtype is None or not self._families else _common(self._dtype, values)
        if is_missing:
            return
        inferred = semantic_type_of_dtype(values.dtype)
        # Numbers need no look at their values, unless they are to be categories.
        self._families.add("number" if inferred is SemanticType.CONTINUOUS else value_family(values))
        if (self._forced or inferred or SemanticType.CATEGORICAL) is SemanticType.CATEGORICAL:
            self._add_distinct(distinct_values(values)[1])

    def column(self) -> Column:
        """What a schema says of it: see `inference.describe_column`.

        Raises:
            DataError: it is categorical and has too many different values.
        """
        dtype = object if self._dtype is None else self._dtype
        kind = self._forced or semantic_type_of_dtype(dtype) or self._inferred()
        categories = self._found_categories() if kind is SemanticType.CATEGORICAL else ()
        return Column(name=self.name, semantic_type=kind, dtype=str(dtype), categories=categories)

    def _add_distinct(self, distinct: list[Any]) -> None:
        self._only_booleans &= all(type(value) is bool for value in distinct)
        if self._families == {"string"}:
            self._hashes.append(key_hashes(pd.Series(distinct, dtype=object)))
        if self._categories is not None:
            self._categories.update(distinct)
            if len(self._categories) > MOST_CATEGORIES:
                self._categories = None

    def _inferred(self) -> SemanticType:
        if self._families == {"string"}:
            distinct = len(np.unique(np.concatenate(self._hashes)))
            if distinct > TEXT_MIN_DISTINCT and distinct > self._rows / 2:
                return SemanticType.TEXT
        return SemanticType.CATEGORICAL

    def _found_categories(self) -> tuple[Any, ...]:
        if self._categories is None:
            raise DataError(
                f"column {self.name!r} is categorical with more than {MOST_CATEGORIES:,} different values, more than can be"
                " held; make it text or continuous in the schema's types"
            )
        found = self._categories
        return checked_categories(self.name, found if self._only_booleans else {plain_value(value) for value in found})


def surveyed_columns(chunks: Iterable[pd.DataFrame], forced: Mapping[str, SemanticType]) -> list[Column]:
    """The columns of a table that comes in chunks, in its order, with their types and categories.

    Args:
        chunks: at least one, all with the same columns.
        forced: column -> the type that it has whatever it looks like.

    Raises:
        DataError: the values of a column cannot be categories.
    """
    surveys: dict[str, ColumnSurvey] = {}
    for chunk in chunks:
        for name in map(str, chunk.columns):
            surveys.setdefault(name, ColumnSurvey(name, forced.get(name))).add(chunk[name])
    return [survey.column() for survey in surveys.values()]


def _common(dtype: Any, values: pd.Series[Any]) -> Any:
    """The type that holds what two chunks of a column hold: pages of a database are typed one by one."""
    if dtype == values.dtype:
        return dtype
    found = [each for each in (dtype, values.dtype) if isinstance(each, np.dtype) and each.kind in "iuf"]
    return np.result_type(*found) if len(found) == 2 else np.dtype(object)
