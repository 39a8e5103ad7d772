"""Which columns are features, target and weights: the modeller's view of the rows, between schema and loaders."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import pandas as pd
from marshmallow import fields

from bitfount_model.data.columns import SemanticType
from bitfount_model.data.dataset_transforms import apply_transforms, transform_problems
from bitfount_model.data.images import transformation_problems
from bitfount_model.data.names import require_columns
from bitfount_model.data.schema import BitfountSchema
from bitfount_model.data.splitters import DatasetSplitter
from bitfount_model.data.splitters import registry as splitter_registry
from bitfount_model.errors import ConfigurationError, DataError

Encoding = Literal["codes", "one_hot"]


class FeatureColumns(NamedTuple):
    """Names of the columns that a model sees, each group in the schema's order.

    Attributes:
        continuous: numbers; they come first in the tabular tensor.
        categorical: codes or one-hot blocks; they come after the numbers.
        images: one image tensor each.
    """

    continuous: tuple[str, ...]
    categorical: tuple[str, ...]
    images: tuple[str, ...]


@dataclass
class DataStructure:
    """What a model reads from a table.

    Args:
        table: name of the table, or pod identifier -> name.
        query: query that gives the table, or pod identifier -> query.
        schema_types_override: semantic type -> columns, for `force_stypes` when the schema is made; or pod identifier -> such a
            mapping.
        target: column, or columns, to predict.
        ignore_cols: columns that are no features.
        selected_cols: the only columns that are features; empty means all.
        data_splitter: how rows are split; None leaves it to the caller.
        image_cols: columns that hold paths of images.
        batch_transforms: transformations of images.
        dataset_transforms: new columns made of others.
        loss_weights_col: column with the weight of each row in the loss.
        ignore_classes_col: column with the class that is to be ignored in each row.
        categorical_encoding: "codes" gives one number a column, "one_hot" one a category.
        normalise: bring continuous columns to mean 0 and standard deviation 1 over the training rows.

    Attributes:
        input_size: width of the tabular tensor; the model sets it, it is neither compared nor serialised.

    Raises:
        ConfigurationError: arguments that contradict each other; the message lists all problems.
    """

    table: str | Mapping[str, str] | None = None
    query: str | Mapping[str, str] | None = None
    schema_types_override: Mapping[str, Sequence[str]] | Mapping[str, Mapping[str, Sequence[str]]] | None = None
    target: str | Sequence[str] | None = None
    ignore_cols: Sequence[str] = ()
    selected_cols: Sequence[str] = ()
    data_splitter: DatasetSplitter | None = None
    image_cols: Sequence[str] | None = None
    batch_transforms: Sequence[dict[str, Any]] | None = None
    dataset_transforms: Sequence[dict[str, Any]] | None = None
    loss_weights_col: str | None = None
    ignore_classes_col: str | None = None
    categorical_encoding: Encoding = "codes"
    normalise: bool = True
    input_size: int | None = field(default=None, init=False, compare=False)

    fields_dict: ClassVar[dict[str, fields.Field[Any]]] = {
        "table": fields.Raw(allow_none=True),
        "query": fields.Raw(allow_none=True),
        "schema_types_override": fields.Dict(fields.String(), fields.Raw(), allow_none=True),
        "target": fields.Raw(allow_none=True),
        "ignore_cols": fields.List(fields.String()),
        "selected_cols": fields.List(fields.String()),
        "image_cols": fields.List(fields.String(), allow_none=True),
        "batch_transforms": fields.List(fields.Dict(fields.String(), fields.Raw()), allow_none=True),
        "dataset_transforms": fields.List(fields.Dict(fields.String(), fields.Raw()), allow_none=True),
        "loss_weights_col": fields.String(allow_none=True),
        "ignore_classes_col": fields.String(allow_none=True),
        "categorical_encoding": fields.String(),
        "normalise": fields.Boolean(),
    }
    nested_fields: ClassVar[dict[str, Mapping[str, type]]] = {"data_splitter": splitter_registry}

    def __post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            raise ConfigurationError("DataStructure: " + "; ".join(problems))
        self.target = list(self.target) if self.target is not None and not isinstance(self.target, str) else self.target
        self.ignore_cols = list(self.ignore_cols)
        self.selected_cols = list(self.selected_cols)
        self.image_cols = None if self.image_cols is None else list(self.image_cols)
        self.batch_transforms = None if self.batch_transforms is None else list(self.batch_transforms)
        self.dataset_transforms = None if self.dataset_transforms is None else list(self.dataset_transforms)
        if self.schema_types_override is not None:
            types: dict[str, Any] = copy.deepcopy(dict(self.schema_types_override))
            self.schema_types_override = types
        self.table = self.table if self.table is None or isinstance(self.table, str) else dict(self.table)
        self.query = self.query if self.query is None or isinstance(self.query, str) else dict(self.query)

    @property
    def targets(self) -> list[str]:
        """The target columns, none, one or several."""
        if self.target is None:
            return []
        return [self.target] if isinstance(self.target, str) else list(self.target)

    @property
    def support_columns(self) -> list[str]:
        """The columns of weights and ignored classes, which are no features."""
        return [name for name in (self.loss_weights_col, self.ignore_classes_col) if name is not None]

    def force_stypes(self, identifier: str | None = None) -> dict[str, list[str]]:
        """What to pass as `force_stypes` when the schema is made: the overrides, with the image columns.

        Raises:
            ConfigurationError: each pod has its own overrides, and this identifier is not among them.
        """
        overrides: Mapping[str, Any] = self.schema_types_override or {}
        if any(isinstance(names, Mapping) for names in overrides.values()):
            overrides = _of_pod(overrides, identifier, "schema_types_override") or {}
        forced = _lists(overrides)
        images = [name for name in self.image_cols or () if name not in forced.get("image", [])]
        return {**forced, "image": [*forced.get("image", []), *images]} if images else forced

    def table_for(self, identifier: str | None = None) -> str | None:
        """The table's name for one pod.

        Raises:
            ConfigurationError: each pod has its own table, and this identifier is not among them.
        """
        table: str | None = _of_pod(self.table, identifier, "table")
        return table

    def query_for(self, identifier: str | None = None) -> str | None:
        """The query for one pod.

        Raises:
            ConfigurationError: each pod has its own query, and this identifier is not among them.
        """
        query: str | None = _of_pod(self.query, identifier, "query")
        return query

    def feature_columns(self, schema: BitfountSchema) -> FeatureColumns:
        """The columns that the model sees: all of the schema, or the selected ones.

        Left out are targets, ignored columns, columns of weights and split labels, and text.

        Raises:
            SchemaMismatchError: a column that is named is not in the schema.
            DataError: a text column is selected.
        """
        names = schema.get_feature_names()
        self._require_columns(schema, names)
        left_out = {*self.targets, *self.ignore_cols, *self.support_columns, *self._label_columns()}
        wanted = set(self.selected_cols or names) - left_out
        kinds = {name: self._kind(schema, name) for name in names if name in wanted}
        texts = [name for name in self.selected_cols if kinds.get(name) is SemanticType.TEXT]
        if texts:
            raise DataError(
                f"selected columns {texts} are text, which has no numeric form here; leave them out, or force them to "
                "be categorical in the schema"
            )
        return FeatureColumns(
            continuous=tuple(name for name, kind in kinds.items() if kind is SemanticType.CONTINUOUS),
            categorical=tuple(name for name, kind in kinds.items() if kind is SemanticType.CATEGORICAL),
            images=tuple(name for name, kind in kinds.items() if kind is SemanticType.IMAGE),
        )

    def visible_columns(self, names: Iterable[str]) -> list[str]:
        """Of a table's columns those that a model may see, in the table's order: features, targets and columns of weights.

        Args:
            names: of all columns of the table.
        """
        every = list(names)
        features = set(self.selected_cols or every) - {*self.ignore_cols, *self._label_columns()}
        seen = features | {*self.targets, *self.support_columns, *(self.image_cols or ())}
        return [name for name in every if name in seen]

    def tabular_width(self, schema: BitfountSchema) -> int:
        """Width of the tabular tensor: one a column, or with "one_hot" one a category of each categorical column."""
        columns = self.feature_columns(schema)
        if self.categorical_encoding == "codes":
            return len(columns.continuous) + len(columns.categorical)
        return len(columns.continuous) + sum(schema.get_categorical_feature_size(name) for name in columns.categorical)

    def transform(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The table with the columns that `dataset_transforms` add; the given one is not changed.

        The schema is made of the transformed table.

        Raises:
            SchemaMismatchError: an argument of a transform is no column, or its new name is taken.
            DataError: an argument is a column that does not hold numbers.
        """
        return apply_transforms(frame, self.dataset_transforms or ())

    def _kind(self, schema: BitfountSchema, name: str) -> SemanticType:
        return SemanticType.IMAGE if name in (self.image_cols or ()) else schema.column(name).semantic_type

    def _label_columns(self) -> tuple[str, ...]:
        return self.data_splitter.label_columns if self.data_splitter is not None else ()

    def _require_columns(self, schema: BitfountSchema, names: list[str]) -> None:
        used = [*self.targets, *self.selected_cols, *(self.image_cols or ()), *self.support_columns]
        require_columns(list(dict.fromkeys(used)), names, "datastructure")
        require_columns(self.ignore_cols, [*names, *schema.ignored], "datastructure, ignore_cols")


def _lists(types: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    return {kind: list(names) for kind, names in types.items()}


def _of_pod(value: Any, identifier: str | None, what: str) -> Any:
    """The value itself, or, of a mapping, the one for this pod."""
    if value is None or isinstance(value, str):
        return value
    if identifier is None or identifier not in value:
        raise ConfigurationError(
            f"datastructure has a {what} for each of {sorted(value)}, found identifier {identifier!r}; "
            f"add it to `{what}`, or name the pod with set_datastructure_identifier"
        )
    return value[identifier]


def _problems(structure: DataStructure) -> list[str]:
    """Every contradiction among the arguments, one sentence each."""
    problems = _name_problems(structure)
    if problems:
        return problems
    targets = structure.targets
    selected, ignored, images = (
        set(structure.selected_cols),
        set(structure.ignore_cols),
        set(structure.image_cols or ()),
    )
    if structure.table is not None and structure.query is not None:
        problems.append("table and query are both given, wanted one of them")
    for one, other, text in (
        (selected, ignored, "are both selected and ignored"),
        (set(targets), ignored, "are both target and ignored"),
        (set(targets), images, "are both target and image columns"),
        (images, ignored, "are both image columns and ignored"),
        (set(targets), set(structure.support_columns), "are both target and weights"),
    ):
        if one & other:
            problems.append(f"columns {sorted(one & other)} {text}")
    if images and selected and images - selected:
        problems.append(f"image columns {sorted(images - selected)} are not among the selected columns")
    if len(set(targets)) < len(targets):
        problems.append(f"target {targets} names a column twice")
    if structure.categorical_encoding not in ("codes", "one_hot"):
        problems.append(f'categorical_encoding is {structure.categorical_encoding!r}, wanted "codes" or "one_hot"')
    if structure.data_splitter is not None and not isinstance(structure.data_splitter, DatasetSplitter):
        problems.append(f"data_splitter is {structure.data_splitter!r}, wanted a DatasetSplitter")
    problems += transform_problems(structure.dataset_transforms or ())
    return problems + transformation_problems(structure.batch_transforms or ())


def _name_problems(structure: DataStructure) -> list[str]:
    """Arguments that are not of the kind that they must be."""
    names, name = "a list of column names", "a column name"
    checks: Sequence[tuple[str, Any, bool, str]] = (
        ("table", structure.table, _is_text_or_mapping(structure.table), "a name, or pod identifier -> name"),
        ("query", structure.query, _is_text_or_mapping(structure.query), "a query, or pod identifier -> query"),
        ("target", structure.target, isinstance(structure.target, str) or _are_names(structure.target), names),
        ("ignore_cols", structure.ignore_cols, _are_names(structure.ignore_cols), names),
        ("selected_cols", structure.selected_cols, _are_names(structure.selected_cols), names),
        ("image_cols", structure.image_cols, _are_names(structure.image_cols), names),
        ("loss_weights_col", structure.loss_weights_col, isinstance(structure.loss_weights_col, str), name),
        ("ignore_classes_col", structure.ignore_classes_col, isinstance(structure.ignore_classes_col, str), name),
        ("batch_transforms", structure.batch_transforms, _is_list(structure.batch_transforms), "a list"),
        ("dataset_transforms", structure.dataset_transforms, _is_list(structure.dataset_transforms), "a list"),
        ("normalise", structure.normalise, isinstance(structure.normalise, bool), "True or False"),
        (
            "schema_types_override",
            structure.schema_types_override,
            _are_types(structure.schema_types_override) or _are_types_of_pods(structure.schema_types_override),
            f"a mapping of {[kind.value for kind in SemanticType]} to lists of column names, or pod identifier -> such a mapping",
        ),
    )
    never_none = {"ignore_cols", "selected_cols", "normalise"}
    return [
        f"{what} is {value!r}, wanted {wanted}"
        for what, value, right, wanted in checks
        if not right and (value is not None or what in never_none)
    ]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _are_names(value: Any) -> bool:
    return _is_list(value) and all(isinstance(name, str) for name in value)


def _is_text_or_mapping(value: Any) -> bool:
    texts = [*value.keys(), *value.values()] if isinstance(value, Mapping) else [value]
    return all(isinstance(text, str) for text in texts)


def _are_types_of_pods(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(types, Mapping) and _are_types(types) for types in value.values()
    )


def _are_types(value: Any) -> bool:
    known = {kind.value for kind in SemanticType}
    return isinstance(value, Mapping) and set(value) <= known and all(_are_names(names) for names in value.values())


registry: Mapping[str, type] = {"DataStructure": DataStructure}
"""Datastructures that a dumped object may name."""
