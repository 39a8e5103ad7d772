"""Where artifacts lie between the steps: any fsspec URL, written once, read with their digest.

What a step leaves behind is a set of files and, last, a manifest that names them with their sha256. A step whose manifest is there
is done: retry, resume and audit all ask the same question.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from bitfount_model.errors import ConfigurationError, IntegrityError, StorageError
from bitfount_model.files import write_atomically

MAX_BYTES = 16 * 2**30
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}(/[A-Za-z0-9][A-Za-z0-9._-]{0,200}){0,7}")


@dataclass(frozen=True)
class Reference:
    """An artifact, by name and content.

    Attributes:
        name: relative to the store, `/` between folders.
        sha256: of the bytes, hex.
        size: in bytes.
    """

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """What a finished step left behind.

    Attributes:
        step: the step's name, e.g. `fit`.
        files: role -> artifact, e.g. `{"weights": ...}`.
        values: small results, plain JSON.
    """

    step: str
    files: Mapping[str, Reference] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)


class Store:
    """Write-once artifacts under one URL.

    Args:
        url: a folder, or any URL that fsspec knows (`s3://bucket/prefix`, `memory://name`).
        max_bytes: artifacts larger than this are refused, written or read.
    """

    def __init__(self, url: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> None:
        self.url = str(url)
        self.max_bytes = max_bytes
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise ConfigurationError(f"{self.url!r} is not a place to store artifacts: {error}") from error

    def put(self, name: str, content: bytes) -> Reference:
        """Writes an artifact, whole or not at all.

        Args:
            name: letters, digits, `.`, `_`, `-`, with `/` between folders.
            content: the bytes.

        Returns:
            Its reference; the same as before if these bytes are already there.

        Raises:
            IntegrityError: other bytes are already there under this name.
            StorageError: the place cannot be written, or is full.
        """
        path = self._path(name)
        if len(content) > self.max_bytes:
            raise StorageError(f"{name} has {len(content)} bytes; the store takes at most {self.max_bytes}")
        reference = Reference(name, hashlib.sha256(content).hexdigest(), len(content))
        if self.has(name):
            self.get(name, reference.sha256)
            return reference
        if isinstance(self._fs, LocalFileSystem):
            write_atomically(path, content)
            return reference
        try:
            part = f"{path}.{uuid.uuid4().hex}.part"
            self._fs.pipe_file(part, content)
            self._fs.mv(part, path)
        except OSError as error:
            raise StorageError(f"cannot write {name} to {self.url}: {error}") from error
        return reference

    def get(self, name: str, sha256: str | None = None) -> bytes:
        """Reads an artifact.

        Args:
            name: as it was written.
            sha256: the digest that the bytes must have.

        Raises:
            StorageError: it is not there, too large, or cannot be read.
            IntegrityError: its bytes are others than those that were written.
        """
        path = self._path(name)
        try:
            if self._fs.size(path) > self.max_bytes:
                raise StorageError(f"{name} in {self.url} is larger than the limit of {self.max_bytes} bytes")
            content: bytes = self._fs.cat_file(path)
        except FileNotFoundError as error:
            raise StorageError(f"there is no {name} in {self.url}") from error
        except OSError as error:
            raise StorageError(f"cannot read {name} from {self.url}: {error}") from error
        found = hashlib.sha256(content).hexdigest()
        if sha256 is not None and found != sha256:
            raise IntegrityError(
                f"{name} in {self.url} has sha256 {found[:16]}…, wanted {sha256[:16]}…: it was changed since it was written,"
                " or another job wrote here. Use another job id."
            )
        return content

    def has(self, name: str) -> bool:
        """Whether an artifact is there."""
        try:
            return bool(self._fs.exists(self._path(name)))
        except OSError as error:
            raise StorageError(f"cannot look for {name} in {self.url}: {error}") from error

    def location(self, name: str) -> str:
        """The artifact's path or URL, for people."""
        path = self._path(name)
        return path if isinstance(self._fs, LocalFileSystem) else str(self._fs.unstrip_protocol(path))

    def _path(self, name: str) -> str:
        if not NAME.fullmatch(name):
            raise StorageError(
                f"{name!r} is not the name of an artifact: letters, digits, '.', '_', '-', '/' between folders"
            )
        return f"{self._root}/{name}"


def write_manifest(store: Store, manifest: Manifest) -> Manifest:
    """Marks a step as done: the last thing that it writes."""
    store.put(manifest_name(manifest.step), json.dumps(asdict(manifest), indent=1).encode())
    return manifest


def read_manifest(store: Store, step: str) -> Manifest | None:
    """What a step left behind, or None if it has not finished."""
    if not store.has(manifest_name(step)):
        return None
    name = manifest_name(step)
    try:
        value = json.loads(store.get(name))
        files = {role: Reference(**reference) for role, reference in value["files"].items()}
        return Manifest(value["step"], files, value["values"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{name} in {store.url} is not what a step wrote: {error}. Use another job id.") from error


def manifest_name(step: str) -> str:
    """Where a step's manifest lies."""
    return f"steps/{step}.json"


def read_file(store: Store, manifest: Manifest, role: str) -> bytes:
    """One of a step's files, checked against the manifest."""
    reference = manifest.files[role]
    return store.get(reference.name, reference.sha256)


def local_path(store: Store, name: str) -> Path:
    """An artifact's path in a store that is a folder.

    Raises:
        ConfigurationError: the store is not a folder of this machine.
    """
    location = store.location(name)
    if "://" in location:
        raise ConfigurationError(f"{store.url} is not a folder of this machine")
    return Path(location)
