"""From objects to plain JSON and back: how data structures, schemas, splitters and models are stored and sent.

A class takes part by declaring, as in the seed, `fields_dict` (attribute -> marshmallow field) and, for attributes that
are objects themselves, `nested_fields` (attribute -> registry of class names). Declarations of base classes are merged,
the most derived wins. What is read back goes through the class's constructor, by keyword, and nowhere else.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from marshmallow import Schema, ValidationError, fields, missing

from bitfount_model.errors import BitfountError, SerializationError
from bitfount_model.types import JSON

CLASS_NAME = "class_name"
MAX_DEPTH = 64

Registry = Mapping[str, type[Any]]
"""Class name -> class: the only classes that data may name."""


def dump(obj: object) -> JSON:
    """Turns an object into plain JSON.

    Args:
        obj: an object of a class that declares `fields_dict`. It is left as it was, and shares nothing with the result.

    Returns:
        `{"class_name": ..., <one key a field>}`: dicts with string keys, lists, strings, finite numbers, booleans and
        None.

    Raises:
        SerializationError: the class declares no fields, or a value is missing, does not suit its field, or is not
            JSON. All problems are listed, each with its path.
    """
    try:
        result: JSON = _copied(_dumped(obj))
    except ValidationError as error:
        raise SerializationError(_listed(f"cannot dump a {type(obj).__name__}", error)) from error
    return result


def load(data: Mapping[str, Any], classes: Registry) -> Any:
    """Builds the object that `dump` described.

    Args:
        data: what `dump` gave. It is left as it was, and shares nothing with the result.
        classes: the classes that `data` may name at its top, by name. Below the top, `nested_fields` decides.

    Returns:
        A new object of one of `classes`.

    Raises:
        SerializationError: a key or class name is unknown, a value is bad or missing, or a constructor refuses its
            values. All problems are listed, each with its path.
    """
    try:
        return _loaded(_copied(data), classes)
    except ValidationError as error:
        raise SerializationError(_listed("cannot load", error)) from error


class _Registered(fields.Field[Any]):
    """An attribute that is an object of one of a registry's classes, or None."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(allow_none=True)
        self.registry = registry

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> JSON | None:
        if value is None:
            return None
        if self.registry.get(type(value).__name__) is not type(value):
            raise ValidationError(f"a {type(value).__name__} is not one of the known classes: {sorted(self.registry)}.")
        return _dumped(value)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        return _loaded(value, self.registry)


def _dumped(obj: object) -> JSON:
    result: JSON = {CLASS_NAME: type(obj).__name__}
    problems: dict[str, Any] = {}
    for name, field in _schema_of(type(obj)).dump_fields.items():
        try:
            value = field.serialize(name, obj)
        except ValidationError as error:
            problems[name] = error.messages
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            problems[name] = [f"does not suit its field: {error}"]
        else:
            if value is missing:
                problems[name] = ["the object has no such attribute."]
            elif value is None and not field.allow_none:
                problems[name] = ["is None, which its field would refuse to load (allow_none is not set)."]
            else:
                result[name if field.data_key is None else field.data_key] = value
    if problems:
        raise ValidationError(problems)
    return result


def _loaded(data: Any, registry: Registry) -> Any:
    if not isinstance(data, Mapping):
        raise ValidationError(f"must be an object with a {CLASS_NAME!r}, is a {type(data).__name__}.")
    cls = _class_named(data.get(CLASS_NAME), registry)
    schema = _schema_of(cls)
    try:
        arguments = schema.load({key: value for key, value in data.items() if key != CLASS_NAME})
        problems: dict[str, Any] = {}
    except ValidationError as error:
        arguments, problems = {}, _by_field(error)
    for name in _required_arguments(cls):
        if name not in data and name not in arguments:
            problems.setdefault(name, ["Missing, and the constructor has no default for it."])
    if problems:
        raise ValidationError(problems)
    try:
        return cls(**arguments)
    except (TypeError, ValueError, BitfountError) as error:
        raise ValidationError(f"{cls.__name__} refuses these values: {error}") from error


def _class_named(name: object, registry: Registry) -> type[Any]:
    if name is None:
        raise ValidationError({CLASS_NAME: [f"Missing; known: {sorted(registry)}."]})
    if not isinstance(name, str) or name not in registry:
        close = get_close_matches(name, registry, n=1) if isinstance(name, str) else []
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValidationError({CLASS_NAME: [f"Unknown class {name!r}; known: {sorted(registry)}.{hint}"]})
    return registry[name]


def _schema_of(cls: type[Any]) -> Schema:
    """The marshmallow schema of a class, from the declarations of the class and its bases."""
    declared: dict[str, fields.Field[Any]] = {}
    for base in reversed(cls.__mro__):
        declared.update(vars(base).get("fields_dict", {}))
        declared.update({name: _Registered(known) for name, known in vars(base).get("nested_fields", {}).items()})
    declared.pop(CLASS_NAME, None)
    if not any({"fields_dict", "nested_fields"} & vars(base).keys() for base in cls.__mro__):
        raise ValidationError(f"{cls.__name__} declares no fields_dict: say there which attributes to keep.")
    schema = Schema.from_dict(dict(declared), name=f"{cls.__name__}Schema")()
    schema.error_messages = {**schema.error_messages, "unknown": f"Unknown field; known: {sorted(declared)}."}
    return schema


def _required_arguments(cls: type[Any]) -> Iterator[str]:
    for name, parameter in inspect.signature(cls).parameters.items():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.default is parameter.empty and not variadic:
            yield name


def _copied(value: Any) -> Any:
    """A deep copy of plain JSON; refuses, with its path, whatever JSON would lose or change."""
    problems: dict[str, list[str]] = {}
    copy = _copied_part(value, (), problems)
    if problems:
        raise ValidationError(problems)
    return copy


def _copied_part(value: Any, path: tuple[str, ...], problems: dict[str, list[str]]) -> Any:
    if len(path) > MAX_DEPTH:
        problems[".".join(path[:3]) + "..."] = [f"nested deeper than {MAX_DEPTH} levels."]
    elif isinstance(value, Mapping):
        wrong = [key for key in value if type(key) is not str]
        if wrong:
            problems[".".join(path)] = [f"keys must be strings, found {wrong[:5]!r}."]
        return {key: _copied_part(part, (*path, str(key)), problems) for key, part in value.items()}
    elif isinstance(value, list | tuple):
        return [_copied_part(part, (*path, str(place)), problems) for place, part in enumerate(value)]
    elif isinstance(value, float) and not math.isfinite(value):
        problems[".".join(path)] = [f"{value} is not a finite number."]
    elif value is not None and type(value) not in (str, int, float, bool):
        problems[".".join(path)] = [f"a {type(value).__name__} is not plain JSON."]
    return value


def _by_field(error: ValidationError) -> dict[str, Any]:
    return dict(error.messages) if isinstance(error.messages, dict) else {"_schema": error.messages}


def _listed(what: str, error: ValidationError) -> str:
    found = list(_flat(error.messages))
    return f"{what}: {len(found)} problem{'s'[: len(found) != 1]}:" + "".join(f"\n  {line}" for line in found)


def _flat(messages: Any, path: str = "") -> Iterator[str]:
    if isinstance(messages, Mapping):
        for key, below in messages.items():
            # marshmallow keeps what concerns an object as a whole under "_schema"
            yield from _flat(below, path if key == "_schema" else f"{path}.{key}".lstrip("."))
    elif isinstance(messages, list | tuple):
        for message in messages:
            yield from _flat(message, path)
    else:
        yield f"{path}: {messages}" if path else str(messages)
