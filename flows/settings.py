"""From a YAML file to a checked job: paths resolved, overrides applied, and problems reported with their line."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from marshmallow import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from bitfount_model.errors import ConfigurationError
from tasks.job import JobError, LocalJob, SourceSection, check_job

PATHS = (
    ("model", "file"),
    ("schema", "file"),
    ("training", "pretrained_file"),
    ("data", "csv"),
    ("data", "parquet"),
    ("predict", "data", "csv"),
    ("predict", "data", "parquet"),
)
"""Keys that hold a path, relative to the job file."""


def read_job(path: Path, overrides: Sequence[str] = ()) -> LocalJob:
    """Reads and checks a job file.

    Args:
        path: the YAML file.
        overrides: `key.key=value` each, the value in YAML.

    Raises:
        ConfigurationError: the file cannot be read, is not YAML, or is not a job; all problems are listed, with lines.
    """
    document = read_yaml(path)
    for override in overrides:
        set_key(document, override)
    value = plain(document)
    resolve_paths(value, path.resolve().parent)
    try:
        return check_job(value)
    except JobError as error:
        lines = [f"  {place(document, path, keys)}: {'.'.join(keys) or 'job'}: {text}" for keys, text in error.problems]
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise ConfigurationError(f"{path} has {count}:\n" + "\n".join(lines)) from error


def read_yaml(path: Path) -> CommentedMap:
    """A YAML mapping that remembers its lines.

    Raises:
        ConfigurationError: unreadable, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigurationError(f"cannot read the job file {path}: {reason}") from error
    try:
        document = YAML(typ="rt").load(io.StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark
        at = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigurationError(f"{at}: not YAML: {error.problem or error.context}") from error
    except YAMLError as error:
        raise ConfigurationError(f"{path}: not YAML: {error}") from error
    if not isinstance(document, CommentedMap):
        raise ConfigurationError(f"{path} holds no mapping of keys; see the examples for the keys of a job")
    return document


def set_key(document: CommentedMap, override: str) -> None:
    """Applies one `key.key=value` to the document.

    Raises:
        ConfigurationError: no `=`, or a key below something that is not a mapping.
    """
    keys, separator, text = override.partition("=")
    path = keys.strip().split(".")
    if not separator or not all(path):
        raise ConfigurationError(f"--set {override!r}: wanted key=value, e.g. training.epochs=20")
    node: Any = document
    for key in path[:-1]:
        node = node.setdefault(key, CommentedMap())
        if not isinstance(node, CommentedMap):
            raise ConfigurationError(f"--set {override!r}: {key!r} is not a mapping in the job file")
    try:
        node[path[-1]] = YAML(typ="rt").load(io.StringIO(text))
    except YAMLError as error:
        raise ConfigurationError(f"--set {override!r}: {text!r} is not a YAML value") from error


def plain(node: Any) -> Any:
    """The document as dicts, lists and scalars."""
    if isinstance(node, CommentedMap):
        return {str(key): plain(value) for key, value in node.items()}
    if isinstance(node, CommentedSeq):
        return [plain(value) for value in node]
    if isinstance(node, bool) or node is None:
        return node
    for kind in (int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def resolve_paths(value: dict[str, Any], folder: Path) -> None:
    """Makes the paths of a job absolute, in place."""
    for path in PATHS:
        node: Any = value
        for key in path[:-1]:
            node = node.get(key) if isinstance(node, Mapping) else None
        if isinstance(node, dict) and isinstance(node.get(path[-1]), str):
            node[path[-1]] = str(folder / Path(node[path[-1]]).expanduser())


def place(document: CommentedMap, path: Path, keys: Sequence[str]) -> str:
    """`file:line` of a key, or of its nearest parent that is there."""
    line = 1
    node: Any = document
    for key in keys:
        if isinstance(node, CommentedMap) and key in node:
            try:
                line = node.lc.key(key)[0] + 1
            except (KeyError, AttributeError):
                return "--set"
            node = node[key]
        elif isinstance(node, CommentedSeq) and key.isdigit() and int(key) < len(node):
            line = node.lc.item(int(key))[0] + 1
            node = node[int(key)]
        else:
            break
    return f"{path.name}:{line}"


def read_source(text: str) -> dict[str, Any]:
    """A source from the command line: a file by its ending, or a mapping in YAML as in a job's `data`.

    Raises:
        ConfigurationError: neither.
    """
    value = None
    for kind, endings in (("csv", (".csv", ".csv.gz")), ("parquet", (".parquet",))):
        if text.lower().endswith(endings):
            value = {kind: str(Path(text).expanduser().resolve())}
    if value is None:
        with suppress(YAMLError):
            value = plain(YAML(typ="rt").load(io.StringIO(text)))
    if not isinstance(value, dict):
        raise ConfigurationError(
            f"--data {text!r}: wanted a .csv or .parquet file, or a source such as '{{sklearn: digits}}'"
        )
    try:
        checked: dict[str, Any] = SourceSection().load(value)
    except ValidationError as error:
        raise ConfigurationError(f"--data {text!r}: {error.messages}") from error
    return checked
