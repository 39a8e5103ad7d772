"""From a YAML file to a checked job or pod: paths resolved, overrides applied, and problems reported with their line."""

from __future__ import annotations

import datetime
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from bitfount_model.errors import ConfigurationError
from tasks.batch.destinations import check_destination
from tasks.federated.job_file import POD_FILES, FederatedJobFile, check_federated_job
from tasks.federated.pod_file import PodFile, check_pod
from tasks.federated.pod_state import STATES
from tasks.job import JobError, LocalJob, check_source
from tasks.retraining.retraining_file import RetrainingFile, check_retraining
from tasks.simulation.job_file import check_own_rows

PATHS = (
    ("model", "file"),
    ("schema", "file"),
    ("training", "pretrained_file"),
    ("data", "csv"),
    ("data", "parquet"),
    ("predict", "data", "csv"),
    ("predict", "data", "parquet"),
    ("job",),
    ("out", "parquet"),
    ("sign_with",),
    ("state",),
    ("identity",),
)
"""Keys that hold a path, relative to the file."""

PLACES = (("store",),)
"""Keys that hold a folder, relative to the file, or a URL."""

DATABASES = (("data", "sql", "url"), ("predict", "data", "sql", "url"), ("out", "sql", "url"))
SQLITE_FILE = re.compile(r"(sqlite(?:\+\w+)?:///)(?!/|:memory:|file:|\$\{)(.+)")
"""A SQLite database by its relative path."""


def read_job(path: Path, overrides: Sequence[str] = ()) -> LocalJob | FederatedJobFile:
    """Reads and checks a job file: simulated where it says `simulate`, federated where it names `pods`, else local.

    Args:
        path: the YAML file.
        overrides: `key.key=value` each, the value in YAML.

    Raises:
        ConfigurationError: the file cannot be read, is not YAML, or is not a job; all problems are listed, with lines.
    """
    document = read_yaml(path, "job file")
    for override in overrides:
        set_key(document, override)
    with problems_with_lines(path, document):
        value = resolve_paths(plain(document), path.resolve().parent)
        return check_federated_job(value) if "pods" in value and "simulate" not in value else check_own_rows(value)


def read_pod(path: Path) -> PodFile:
    """Reads and checks a pod's file; a pod that names no private folder has one beside the file.

    Raises:
        ConfigurationError: the file cannot be read, is not YAML, or is not a pod; all problems are listed, with lines.
    """
    document = read_yaml(path, "pod's file")
    folder = path.resolve().parent
    with problems_with_lines(path, document):
        settings = check_pod(resolve_paths(plain(document), folder))
    return settings if settings.state else replace(settings, state=str(folder / STATES / settings.name))


def read_retraining(path: Path) -> RetrainingFile:
    """Reads and checks a retraining's file.

    Raises:
        ConfigurationError: the file cannot be read, is not YAML, or is not a retraining; all problems are listed, with lines.
    """
    document = read_yaml(path, "retraining's file")
    with problems_with_lines(path, document):
        return check_retraining(resolve_paths(plain(document), path.resolve().parent))


@contextmanager
def problems_with_lines(path: Path, document: CommentedMap) -> Iterator[None]:
    """Turns a job's problems into one message that names their lines."""
    try:
        yield
    except JobError as error:
        found = sorted((place(document, keys), ".".join(keys) or "job", text) for keys, text in error.problems)
        lines = [f"  {f'{path.name}:{line}' if line else '--set'}: {name}: {text}" for line, name, text in found]
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise ConfigurationError(f"{path} has {count}:\n" + "\n".join(lines)) from error


def read_yaml(path: Path, what: str) -> CommentedMap:
    """A YAML mapping that remembers its lines.

    Args:
        path: the file.
        what: it is, for messages.

    Raises:
        ConfigurationError: unreadable, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigurationError(f"cannot read the {what} {path}: {reason}") from error
    try:
        document = YAML(typ="rt").load(io.StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark
        at = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigurationError(f"{at}: not YAML: {error.problem or error.context}") from error
    except (YAMLError, ValueError) as error:  # a ValueError is a date that there is not
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
    except (YAMLError, ValueError) as error:
        raise ConfigurationError(f"--set {override!r}: {text!r} is not a YAML value") from error


def plain(node: Any, keys: tuple[str, ...] = ()) -> Any:
    """The document as dicts, lists and scalars that JSON has.

    Raises:
        JobError: a value is of a kind that JSON does not have, such as a date.
    """
    if isinstance(node, CommentedMap):
        return {str(key): plain(value, (*keys, str(key))) for key, value in node.items()}
    if isinstance(node, CommentedSeq):
        return [plain(value, (*keys, str(place))) for place, value in enumerate(node)]
    if isinstance(node, bool) or node is None:
        return node
    if isinstance(node, datetime.date):
        raise JobError([(keys, f"{node} is a date for YAML: write it in quotes")])
    for kind in (int, float, str):
        if isinstance(node, kind):
            return kind(node)
    raise JobError([(keys, f"wanted a number, a text, a list or a mapping, found a {type(node).__name__}")])


def resolve_paths(value: Any, folder: Path, keys: tuple[str, ...] = ()) -> Any:
    """The job with absolute paths, and absolute paths in the URLs of SQLite databases."""
    if isinstance(value, dict):
        return {key: resolve_paths(below, folder, (*keys, key)) for key, below in value.items()}
    if isinstance(value, str) and keys in PATHS:
        return str(folder / Path(value).expanduser())
    if isinstance(value, str) and keys in PLACES and "://" not in value:
        return str(folder / Path(value).expanduser())
    if isinstance(value, list) and keys == ("pods",):
        return [str(folder / Path(pod).expanduser()) if str(pod).endswith(POD_FILES) else pod for pod in value]
    if isinstance(value, str) and keys in DATABASES and (found := SQLITE_FILE.fullmatch(value)):
        return f"{found[1]}{folder / found[2]}"
    return value


def place(document: CommentedMap, keys: Sequence[str]) -> int:
    """The line of a key, or of its nearest parent that is there; 0 for what came from `--set`."""
    line = 1
    node: Any = document
    for key in keys:
        if isinstance(node, CommentedMap) and key in node:
            try:
                line = node.lc.key(key)[0] + 1
            except (KeyError, AttributeError):
                return 0
            node = node[key]
        elif isinstance(node, CommentedSeq) and key.isdigit() and int(key) < len(node):
            line = node.lc.item(int(key))[0] + 1
            node = node[int(key)]
        else:
            break
    return line


def read_source(text: str) -> dict[str, Any]:
    """A source from the command line: a file by its ending, or a mapping in YAML as in a job's `data`.

    Raises:
        ConfigurationError: neither; the message does not repeat the text, which may hold a password.
    """
    for kind, endings in (("csv", (".csv", ".csv.gz")), ("parquet", (".parquet",))):
        if text.lower().endswith(endings):
            return check_source({kind: str(Path(text).expanduser().resolve())})
    with option_named("--data"):
        value = mapping_in(text)
        if value is None:
            raise ConfigurationError("--data: wanted a .csv or .parquet file, or a source such as '{sklearn: digits}'")
        return check_source(resolve_paths({"data": value}, Path.cwd())["data"])


def read_destination(text: str) -> dict[str, Any]:
    """Where predictions go, from the command line: a folder, or a mapping in YAML.

    Raises:
        ConfigurationError: no such mapping; the message does not repeat the text, which may hold a password.
    """
    with option_named("--out"):
        value = mapping_in(text)
    return checked_destination(str(Path(text).expanduser()) if value is None else value)


def checked_source(value: str | dict[str, Any]) -> dict[str, Any]:
    """As `read_source`, of text or of a mapping; relative paths are below the working directory.

    Raises:
        ConfigurationError: it is no source.
    """
    if isinstance(value, str):
        return read_source(value)
    with option_named("data"):
        return check_source(resolve_paths({"data": value}, Path.cwd())["data"])


def checked_destination(value: str | dict[str, Any]) -> dict[str, Any]:
    """Where predictions go: the path of a folder, or a mapping; relative paths are below the working directory.

    Raises:
        ConfigurationError: it is neither.
    """
    with option_named("out"):
        place = {"parquet": value} if isinstance(value, str) else value
        return check_destination(resolve_paths({"out": place}, Path.cwd())["out"])


def mapping_in(text: str) -> dict[str, Any] | None:
    """The mapping that a text is in YAML; None where it is none."""
    value = None
    with suppress(YAMLError, ValueError):
        value = YAML(typ="rt").load(io.StringIO(text))
    return plain(value) if isinstance(value, CommentedMap) else None


@contextmanager
def option_named(name: str) -> Iterator[None]:
    """Says which option a problem is of."""
    try:
        yield
    except JobError as error:
        raise ConfigurationError(f"{name}: {error}") from error
