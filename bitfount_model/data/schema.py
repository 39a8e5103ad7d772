"""Table -> names, semantic types and categories of its columns; what the modeller and the pods agree on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from marshmallow import Schema, ValidationError, fields

from bitfount_model.data.base_source import BaseSource
from bitfount_model.data.columns import Column, ColumnSchema, SemanticType
from bitfount_model.data.inference import describe_column, value_family
from bitfount_model.data.names import repeated, require_columns, suggestion
from bitfount_model.data.survey import surveyed_columns
from bitfount_model.errors import ConfigurationError, SchemaMismatchError, SerializationError
from bitfount_model.files import write_atomically
from bitfount_model.types import JSON

__all__ = ["BitfountSchema", "Column", "SemanticType", "registry"]


class BitfountSchema:
    """The columns of a table, with their meaning.

    Args:
        name: of the schema, for people.
        columns: the columns, in the table's order.
        ignored: columns of the table that were left out on purpose.

    Raises:
        ConfigurationError: two columns of one name, or something that is no `Column`.
    """

    fields_dict: ClassVar[dict[str, fields.Field[Any]]] = {
        "name": fields.String(allow_none=True),
        "columns": fields.List(fields.Nested(ColumnSchema)),
        "ignored": fields.List(fields.String()),
    }
    nested_fields: ClassVar[dict[str, Mapping[str, type]]] = {}

    def __init__(self, name: str | None = None, columns: Sequence[Column] = (), ignored: Sequence[str] = ()) -> None:
        self.name = name
        self.ignored = tuple(ignored)
        self._columns = {column.name: column for column in columns}
        names = [column.name for column in columns]
        if repeated(names):
            raise ConfigurationError(f"schema {name!r}: columns {repeated(names)} appear more than once")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BitfountSchema):
            return NotImplemented
        return (self.name, self.columns, self.ignored) == (other.name, other.columns, other.ignored)

    __hash__ = None  # type: ignore[assignment]  # it can be generated anew, so it is no key

    def __repr__(self) -> str:
        counts = {kind.value: len(self.get_feature_names(kind)) for kind in SemanticType}
        return f"BitfountSchema(name={self.name!r}, {', '.join(f'{kind}={n}' for kind, n in counts.items() if n)})"

    def generate_full_schema(
        self,
        datasource: BaseSource | pd.DataFrame,
        force_stypes: Mapping[str | SemanticType, Sequence[str]] | None = None,
        ignore_cols: Sequence[str] = (),
        table: str | None = None,
        query: str | None = None,
    ) -> None:
        """Describe the columns of a table; replaces the columns that were here before.

        Booleans and strings are categorical, or text when there are very many different strings
        (`TEXT_MIN_DISTINCT`); numbers and times are continuous. A missing value is no category.

        Args:
            datasource: the table, or where to read it.
            force_stypes: semantic type -> columns that have it whatever they look like; images need it.
            ignore_cols: columns to leave out.
            table: passed to the source's `read`.
            query: passed to the source's `read`.

        Raises:
            SchemaMismatchError: a column that is named does not exist.
            ConfigurationError: an unknown semantic type, or a column forced to two of them.
            DataError: the values of a column cannot be categories.
        """
        frame = datasource.read(table, query) if isinstance(datasource, BaseSource) else datasource
        names = [str(name) for name in frame.columns]
        forced = _forced_types(force_stypes or {})
        require_columns([*forced, *ignore_cols], names, "force_stypes and ignore_cols")
        self.ignored = tuple(name for name in names if name in set(ignore_cols))
        self._columns = {
            name: describe_column(name, frame.iloc[:, position], forced.get(name))
            for position, name in enumerate(names)
            if name not in self.ignored
        }

    def generate_from_chunks(
        self, chunks: Iterable[pd.DataFrame], force_stypes: Mapping[str | SemanticType, Sequence[str]] | None = None
    ) -> None:
        """`generate_full_schema` of a table that comes in chunks and is never held as a whole.

        Args:
            chunks: at least one, as `BaseSource.read_chunks` gives them.
            force_stypes: as for `generate_full_schema`.

        Raises:
            SchemaMismatchError, ConfigurationError, DataError: as `generate_full_schema`, and for a categorical column of more
                than a million values.
        """
        rest = iter(chunks)
        first = next(rest)
        forced = _forced_types(force_stypes or {})
        require_columns(list(forced), [str(name) for name in first.columns], "force_stypes and ignore_cols")
        self.ignored = ()
        self._columns = {column.name: column for column in surveyed_columns(chain([first], rest), forced)}

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns, in the table's order."""
        return tuple(self._columns.values())

    @property
    def features(self) -> dict[str, dict[str, Column]]:
        """Semantic type -> name -> column, for the types that occur."""
        grouped = {kind.value: {c.name: c for c in self.columns if c.semantic_type is kind} for kind in SemanticType}
        return {kind: columns for kind, columns in grouped.items() if columns}

    def get_feature_names(self, semantic_type: str | SemanticType | None = None) -> list[str]:
        """Names of the columns, in order; of one semantic type, if one is given."""
        kind = None if semantic_type is None else SemanticType(semantic_type)
        return [column.name for column in self.columns if kind is None or column.semantic_type is kind]

    def column(self, name: str) -> Column:
        """The column of that name.

        Raises:
            SchemaMismatchError: there is none.
        """
        if name not in self._columns:
            raise SchemaMismatchError(
                f"schema {self.name!r} has no column {name!r}{suggestion(name, list(self._columns))}"
            )
        return self._columns[name]

    def get_categorical_feature_size(self, name: str) -> int:
        """Number of categories of a column.

        Raises:
            SchemaMismatchError: there is no such column, or it is not categorical.
        """
        column = self.column(name)
        if column.semantic_type is not SemanticType.CATEGORICAL:
            raise SchemaMismatchError(
                f"column {name!r} is {column.semantic_type.value}, wanted a categorical one; generate the schema with "
                f'force_stypes={{"categorical": ["{name}"]}}'
            )
        return len(column.categories)

    def check(self, frame: pd.DataFrame, columns: Sequence[str] | None = None) -> None:
        """Compare a table with the schema.

        Categories that the schema does not know, and columns that it does not name, are no differences.

        Args:
            frame: the table.
            columns: look at these columns only; None looks at all of the schema.

        Raises:
            SchemaMismatchError: lists every difference.
        """
        wanted = self.columns if columns is None else [self.column(name) for name in columns]
        differences = tuple(text for column in wanted if (text := _difference(column, frame)) is not None)
        if differences:
            raise SchemaMismatchError(
                f"the table differs from schema {self.name!r}: "
                + "; ".join(differences)
                + "; give a table of this schema, or generate the schema again",
                differences,
            )

    def to_json(self) -> JSON:
        """A JSON object."""
        dumped: JSON = _FileSchema().dump({"name": self.name, "columns": self.columns, "ignored": self.ignored})
        return dumped

    @classmethod
    def from_json(cls, data: Any) -> BitfountSchema:
        """The inverse of `to_json`.

        Raises:
            SerializationError: unknown or missing keys, or bad values; lists all of them.
        """
        try:
            return cls(**_FileSchema().load(data))
        except ValidationError as error:
            raise SerializationError(f"not a schema: {error.messages}") from error
        except ConfigurationError as error:
            raise SerializationError(str(error)) from error

    def dumps(self) -> str:
        """The schema as YAML."""
        from bitfount_model.data.schema_yaml import to_yaml  # YAML is seldom needed and slow to import

        return to_yaml(self.to_json())

    @classmethod
    def loads(cls, text: str) -> BitfountSchema:
        """The inverse of `dumps`.

        Raises:
            SerializationError: the text is no YAML, or not a schema.
        """
        from bitfount_model.data.schema_yaml import from_yaml

        return cls.from_json(from_yaml(text))

    def dump(self, path: str | Path) -> None:
        """Write the schema to a YAML file, whole or not at all.

        Raises:
            StorageError: the file cannot be written.
        """
        write_atomically(path, self.dumps().encode("utf-8"))

    @classmethod
    def load_from_file(cls, path: str | Path) -> BitfountSchema:
        """The inverse of `dump`.

        Raises:
            SerializationError: the file cannot be read, or does not hold a schema; names the file.
        """
        try:
            return cls.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeError, SerializationError) as error:
            raise SerializationError(f"{path}: {error}") from error


class _FileSchema(Schema):
    """How a schema crosses the border of a file or a message."""

    name = fields.String(allow_none=True, load_default=None)
    columns = fields.List(fields.Nested(ColumnSchema), required=True)
    ignored = fields.List(fields.String(), load_default=list)


def _forced_types(force_stypes: Mapping[str | SemanticType, Sequence[str]]) -> dict[str, SemanticType]:
    known = [kind.value for kind in SemanticType]
    problems = [
        f"semantic type {str(kind)!r}{suggestion(str(kind), known)}" for kind in force_stypes if kind not in known
    ]
    forced: dict[str, SemanticType] = {}
    for kind, names in force_stypes.items():
        if isinstance(names, str):
            problems.append(f"{kind!r} is given {names!r}, wanted a list of columns")
            continue
        for name in names if kind in known else ():
            if forced.setdefault(name, SemanticType(kind)) is not SemanticType(kind):
                problems.append(f"column {name!r} is forced to be {forced[name].value} and {SemanticType(kind).value}")
    if problems:
        raise ConfigurationError("force_stypes: " + "; ".join(problems))
    return forced


def _difference(column: Column, frame: pd.DataFrame) -> str | None:
    """One sentence on how the table's column differs from the schema's, or None."""
    if column.name not in frame.columns:
        return f"column {column.name!r} is missing{suggestion(column.name, [str(name) for name in frame.columns])}"
    values = frame[column.name]
    found, wanted = value_family(values), _wanted_families(column)
    if found == "nothing" or found in wanted:
        return None
    return (
        f"column {column.name!r} holds {found} values ({values.dtype}), "
        f"wanted {' or '.join(sorted(wanted))} ({column.semantic_type.value}, {column.dtype})"
    )


def _wanted_families(column: Column) -> set[str]:
    anything = {"number", "string", "time", "other"}
    if column.semantic_type is SemanticType.CONTINUOUS:
        return {"number", "string"} if column.dtype in ("object", "str", "string") else {"number", "time"}
    if column.semantic_type is SemanticType.IMAGE:
        return {"string", "other"}
    if column.semantic_type is SemanticType.TEXT or not column.categories:
        return anything
    texts = any(isinstance(category, str) for category in column.categories)
    numbers = any(not isinstance(category, str) for category in column.categories)
    # dates and other objects are kept as their text; mixed columns have no family of their own
    return (anything - {"number"} if texts else set()) | ({"number"} if numbers else set())


registry: Mapping[str, type] = {"BitfountSchema": BitfountSchema}
"""Schemas that a dumped object may name."""
