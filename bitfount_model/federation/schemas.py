"""Before round 1: the pods' schemas -> the one schema that all of them encode their rows by, or every difference at once.

What may differ between pods, and what becomes of it:

- the order of columns: that of the first pod by name counts, as do its descriptions;
- categories: those of all pods together, in the order in which `BitfountSchema` sorts them, so that a category has the
  same code everywhere;
- the dtype: where some pods hold integers and others floats, a continuous column becomes float64; times and spans may
  differ in their unit and time zone, and become those of nanoseconds; other columns become object;
- the columns that were left out, and the schema's name, which is kept where all pods agree.

What may not: the columns there are; their semantic types; for continuous columns, numbers at one pod and times, spans or
text at another; for categorical ones, only numbers at one pod and only text at another, as no code would mean the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bitfount_model.data.columns import Column, SemanticType
from bitfount_model.data.schema import BitfountSchema
from bitfount_model.errors import ConfigurationError, SchemaMismatchError


def merge_schemas(schemas: Mapping[str, BitfountSchema]) -> BitfountSchema:
    """Compares the pods' schemas and merges them; the order of pods does not matter.

    Where pods differ, what most of them have is taken for right (in a tie, what the first by name has), and each of the
    others is told how it differs.

    Args:
        schemas: pod -> schema of its table, at least one pod; left as they are.

    Returns:
        The common schema, see the module's docstring.

    Raises:
        ConfigurationError: no pods.
        SchemaMismatchError: columns, semantic types or kinds of values differ; lists every difference, pod by pod.
    """
    if not schemas:
        raise ConfigurationError("there are no schemas to compare: found no pods, want at least one")
    columns = {pod: {column.name: column for column in schemas[pod].columns} for pod in sorted(schemas)}
    names = list(dict.fromkeys(name for held in columns.values() for name in held))
    wanted = {name: _majority([_kind(held.get(name)) for held in columns.values()]) for name in names}
    differences = tuple(
        f"pod {pod!r}: {text}"
        for pod, held in columns.items()
        for name in names
        if (text := _difference(name, held.get(name), wanted[name], name in schemas[pod].ignored)) is not None
    )
    if differences:
        raise SchemaMismatchError(
            f"the tables of {len(schemas)} pods do not fit together: "
            + "; ".join(differences)
            + "; correct these tables, name the types with schema_types_override, or leave the columns out with ignore_cols",
            differences,
        )
    labels = {schema.name for schema in schemas.values()}
    return BitfountSchema(
        name=labels.pop() if len(labels) == 1 else None,
        columns=[_merged([held[name] for held in columns.values()]) for name in names],
        ignored=[
            name
            for name in dict.fromkeys(name for pod in columns for name in schemas[pod].ignored)
            if name not in set(names)
        ],
    )


def _kind(column: Column | None) -> str:
    """What must be the same at every pod; plain "categorical" where the values are of both kinds, or there are none."""
    if column is None:
        return _MISSING
    if column.semantic_type is SemanticType.CONTINUOUS:
        return f"continuous ({_family(column.dtype)})"
    if column.semantic_type is SemanticType.CATEGORICAL:
        texts = {isinstance(category, str) for category in column.categories}
        return "categorical" if len(texts) != 1 else f"categorical ({'text' if texts.pop() else 'numbers'})"
    return column.semantic_type.value


def _family(dtype: str) -> str:
    """What a continuous column holds, by pandas' or pyarrow's name of its dtype."""
    families = (family for start, family in _FAMILIES.items() if dtype.lower().startswith(start))
    return next(families, "text or objects")


def _majority(kinds: Sequence[str]) -> str:
    """The kind that most pods have; of several, that of the first. A column is there unless most pods lack it."""
    certain = [kind for kind in kinds if kind.startswith("categorical (")]
    counted = [_most(certain) if certain and kind == "categorical" else kind for kind in kinds]
    if 2 * counted.count(_MISSING) > len(counted):
        return _MISSING
    return _most([kind for kind in counted if kind != _MISSING])


def _most(kinds: Sequence[str]) -> str:
    return Counter(kinds).most_common(1)[0][0]


def _difference(name: str, column: Column | None, wanted: str, ignored: bool) -> str | None:
    """How one pod's column differs from what is wanted, in one clause; None if it does not."""
    found = _kind(column)
    if found == wanted or (found == "categorical" and wanted.startswith("categorical")):
        return None
    if wanted == _MISSING:
        return f"has column {name!r}, which most other pods lack"
    if column is None:
        return f"column {name!r} is {'left out (ignored) there' if ignored else 'missing'}, elsewhere it is {wanted}"
    return f"column {name!r} is {found} with dtype {column.dtype}, elsewhere it is {wanted}"


def _merged(columns: Sequence[Column]) -> Column:
    """One column from those of all pods, which are of one kind."""
    first = columns[0]
    dtypes = {column.dtype for column in columns}
    common = _COMMON_DTYPE.get(_family(first.dtype), "object") if first.semantic_type is _CONTINUOUS else "object"
    return Column(
        name=first.name,
        semantic_type=first.semantic_type,
        dtype=first.dtype if len(dtypes) == 1 else common,
        categories=_merged_categories([column.categories for column in columns]),
        description=next((column.description for column in columns if column.description is not None), None),
    )


def _merged_categories(categories: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """All categories once, numbers by value and then text. True equals 1 and 1.0: the whole number stands for them."""
    found = sorted({(_RANK[type(value)], value) for each in categories for value in each}, key=lambda pair: pair[0])
    distinct: dict[Any, Any] = {}
    for _, value in found:
        distinct.setdefault(value, value)
    return tuple(sorted(distinct, key=lambda value: (isinstance(value, str), value)))


_CONTINUOUS = SemanticType.CONTINUOUS
_MISSING = "missing"
_RANK: Mapping[type, int] = {int: 0, float: 1, bool: 2, str: 3}
_FAMILIES: Mapping[str, str] = {
    "int": "numbers", "uint": "numbers", "float": "numbers", "double": "numbers", "halffloat": "numbers",
    "bool": "numbers", "decimal": "numbers",
    "datetime": "times", "timestamp": "times", "date": "times",
    "timedelta": "spans of time", "duration": "spans of time",
}  # fmt: skip
_COMMON_DTYPE: Mapping[str, str] = {
    "numbers": "float64",
    "times": "datetime64[ns]",
    "spans of time": "timedelta64[ns]",
}
