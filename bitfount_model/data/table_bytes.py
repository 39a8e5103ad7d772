"""Table -> bytes that another process of the same pod reads, and back: the same dtypes, keys and values, nothing pickled.

The bytes are an Arrow stream (https://arrow.apache.org/docs/format/Columnar.html). Columns of objects that Arrow would change,
such as numbers beside texts, travel as JSON, each value with its type.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from bitfount_model.errors import DataError
from bitfount_model.types import JSON

_ABOUT = b"table"
_ZONE = "zone "


def table_to_bytes(frame: pd.DataFrame) -> memoryview:
    """Writes a table.

    Args:
        frame: with text as names of its columns; left as it is.

    Raises:
        DataError: a column holds what has no written form; it is named.
    """
    index = frame.index
    columns: list[tuple[str, pd.Series[Any]]] = [(str(name), column) for name, column in frame.items()]
    about: JSON = {"names": [name for name, _ in columns], "index": index.name, "range": None, "ways": []}
    if isinstance(index, pd.RangeIndex):
        about["range"] = [index.start, index.stop, index.step]
    else:
        columns.append(("its keys", pd.Series(index)))
    written: dict[str, Any] = {}
    for place, (name, column) in enumerate(columns):
        try:
            way, values = _written(column.reset_index(drop=True))
        except TypeError as error:
            raise _unwritable(name, error) from error
        about["ways"].append(way)
        written[str(place)] = values
    plain = pd.DataFrame(written, index=pd.RangeIndex(len(frame)))
    try:
        table = pa.Table.from_pandas(plain, preserve_index=False)
    except pa.ArrowException as error:
        raise _unwritable(", ".join(_not_for_arrow(plain, [name for name, _ in columns])), error) from error
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _ABOUT: json.dumps(about).encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return memoryview(sink.getvalue())


def table_from_bytes(content: bytes | bytearray | memoryview) -> pd.DataFrame:
    """The inverse of `table_to_bytes`."""
    table = pa.ipc.open_stream(pa.py_buffer(content)).read_all()
    about = json.loads(table.schema.metadata[_ABOUT])
    plain = table.to_pandas()
    columns = [_read(way, plain[str(place)]) for place, way in enumerate(about["ways"])]
    keys = pd.RangeIndex(*about["range"]) if about["range"] is not None else pd.Index(columns.pop())
    frame = pd.DataFrame(dict(enumerate(columns)), index=pd.RangeIndex(len(keys)))
    return frame.set_axis(pd.Index(about["names"], dtype=object), axis="columns").set_axis(
        keys.rename(about["index"]), axis="index"
    )


def _unwritable(name: str, error: Exception) -> DataError:
    return DataError(
        f"column {name!r} cannot be handed to the model's process: {error}; turn its values into numbers or text, or leave the"
        " column out of the pod's source"
    )


def _not_for_arrow(plain: pd.DataFrame, names: list[str]) -> Iterator[str]:
    """The names of columns that Arrow does not take."""
    for place, name in enumerate(names):
        try:
            pa.Table.from_pandas(plain[[str(place)]], preserve_index=False)
        except pa.ArrowException:
            yield name


def _written(column: pd.Series[Any]) -> tuple[str, Any]:
    """How a column travels, and as what."""
    if isinstance(
        column.dtype, pd.DatetimeTZDtype
    ):  # the present Arrow reads their zones in a way that pandas warns of
        return f"{_ZONE}{column.dtype.tz}", column.dt.tz_convert(None)
    if column.dtype != object:
        return "arrow", column
    kinds = set(map(type, column))
    if kinds <= {bytes}:
        return "objects", column
    return "json", pd.Series([json.dumps(_tagged(value)) for value in column], dtype=object)


def _read(way: str, column: pd.Series[Any]) -> pd.Series[Any]:
    if way == "json":
        values = np.empty(len(column), dtype=object)
        for place, text in enumerate(column):
            values[place] = _untagged(json.loads(text))
        return pd.Series(values, dtype=object)
    if way.startswith(_ZONE):
        there: pd.Series[Any] = column.dt.tz_localize("UTC").dt.tz_convert(way.removeprefix(_ZONE))
        return there
    return column.astype(object) if way == "objects" else column


_Writer = Callable[[Any], Any]
_FORMS: Mapping[type, tuple[str, _Writer, _Writer]] = {
    type(None): ("none", lambda value: None, lambda plain: None),
    type(pd.NA): ("NA", lambda value: None, lambda plain: pd.NA),
    type(pd.NaT): ("NaT", lambda value: None, lambda plain: pd.NaT),
    bool: ("bool", bool, bool),
    int: ("int", str, int),
    float: ("float", float.hex, float.fromhex),
    str: ("str", str, str),
    bytes: ("bytes", lambda value: base64.b64encode(value).decode(), base64.b64decode),
    decimal.Decimal: ("decimal", str, decimal.Decimal),
    uuid.UUID: ("uuid", str, uuid.UUID),
    datetime.date: ("date", datetime.date.isoformat, datetime.date.fromisoformat),
    datetime.time: ("time", datetime.time.isoformat, datetime.time.fromisoformat),
    datetime.datetime: ("datetime", datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    pd.Timestamp: (
        "timestamp",
        lambda value: [value.isoformat(), None if value.tz is None else str(value.tz)],
        lambda plain: pd.Timestamp(plain[0]) if plain[1] is None else pd.Timestamp(plain[0]).tz_convert(plain[1]),
    ),
    datetime.timedelta: (
        "span",
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda plain: datetime.timedelta(*plain),
    ),
    pd.Timedelta: ("timedelta", pd.Timedelta.isoformat, pd.Timedelta),
    list: ("list", lambda value: [_tagged(each) for each in value], lambda plain: [_untagged(each) for each in plain]),
    tuple: ("tuple", lambda value: [_tagged(each) for each in value], lambda plain: tuple(map(_untagged, plain))),
    dict: (
        "dict",
        lambda value: [[_tagged(key), _tagged(each)] for key, each in value.items()],
        lambda plain: {_untagged(key): _untagged(each) for key, each in plain},
    ),
}
_READERS = {name: reader for name, _, reader in _FORMS.values()}


def _tagged(value: Any) -> list[Any]:
    """A value as `[type, plain JSON]`."""
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        values = [_tagged(each) for each in array.ravel().tolist()] if array.dtype == object else None
        content = base64.b64encode(array.tobytes()).decode() if values is None else values
        return ["numpy", [array.dtype.str, isinstance(value, np.generic), list(array.shape), content]]
    form = _FORMS.get(type(value))
    if form is None:
        raise TypeError(f"a value of type {type(value).__name__} has no written form")
    return [form[0], form[1](value)]


def _untagged(tagged: list[Any]) -> Any:
    name, plain = tagged
    if name != "numpy":
        return _READERS[name](plain)
    dtype, is_scalar, shape, content = plain
    if np.dtype(dtype) == object:
        values = np.empty(len(content), dtype=object)
        for place, each in enumerate(content):
            values[place] = _untagged(each)
        return values.reshape(shape)
    array = np.frombuffer(base64.b64decode(content), dtype=dtype).reshape(shape).copy()
    return array[()] if is_scalar else array
