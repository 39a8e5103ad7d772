"""Where artifacts lie between steps and between machines: any fsspec URL, written once, read with their digest.

Many processes on many machines may share one store: of two that write one name, one wins, and a place that does not answer for a
while delays them and loses nothing.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from bitfount_model.errors import ConfigurationError, IntegrityError, StorageError, StoreAwayError
from bitfount_model.files import (
    Content,
    create_atomically,
    create_named_by_digest,
    pieces,
    read_digested,
    sha256_of,
    size_of,
)
from tasks.storage_errors import http_status, is_of_storage, may_pass

MAX_BYTES = 16 * 2**30
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}(/[A-Za-z0-9][A-Za-z0-9._-]{0,200}){0,7}")

LOCAL_PATIENCE_SECONDS = 10.0
REMOTE_PATIENCE_SECONDS = 120.0
FIRST_WAIT_SECONDS = 0.05
LONGEST_WAIT_SECONDS = 5.0

# The protocols whose `pipe_file(mode="create")` the server itself decides: S3 by If-None-Match, Google by ifGenerationMatch=0.
# Elsewhere fsspec ignores the mode (http), or looks first and then writes in place, where a reader can see half of the bytes.
EXCLUSIVE = frozenset({"s3", "s3a", "gs", "gcs"})
# How file systems refuse to map a file that cannot (some FUSE and network ones).
NOT_MAPPED = frozenset({errno.ENODEV, errno.EINVAL, errno.ENOSYS})
# memory:// looks first and then writes, but all of it is in this process.
_memory = threading.Lock()

# Options for a kind of file system. Other kinds' listings are invalidated before each look.
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "s3": {"use_listings_cache": False},
    "s3a": {"use_listings_cache": False},
}

PRECONDITION_FAILED = 412
T = TypeVar("T")


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


class Store:
    """Write-once artifacts under one URL.

    Every call that meets an error which may pass (a connection that broke, a server that is overloaded) is made again, after waits
    that grow from 0.05 s to 5 s, until the store's patience is used up. Threads may share a store.

    Args:
        url: a folder, or any URL that fsspec knows (`s3://bucket/prefix`, `memory://name`).
        max_bytes: artifacts larger than this are refused, written or read.
        patience_seconds: for how long a call is tried; by default 10 s for a folder and 120 s for anything else.
        sleep: waits for so many seconds; for tests.

    Raises:
        ConfigurationError: the URL is not a place to store artifacts.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        max_bytes: int = MAX_BYTES,
        *,
        patience_seconds: float | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = str(url)
        self.max_bytes = max_bytes
        protocol = fsspec.core.split_protocol(self.url)[0]
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url, **OPTIONS.get(protocol, {}))
        except (ValueError, ImportError) as error:
            raise ConfigurationError(f"{self.url!r} is not a place to store artifacts: {error}") from error
        self._local = isinstance(self._fs, LocalFileSystem)
        self._protocols = {self._fs.protocol} if isinstance(self._fs.protocol, str) else set(self._fs.protocol)
        default = LOCAL_PATIENCE_SECONDS if self._local else REMOTE_PATIENCE_SECONDS
        self.patience_seconds = default if patience_seconds is None else patience_seconds
        self._sleep = sleep

    def put(self, name: str, content: Content, *, durable: bool = True) -> Reference:
        """Writes an artifact, whole or not at all; of several that write other bytes under one name, one succeeds.

        Folders without hard links, and protocols other than `file`, `memory`, `s3` and `gcs`, cannot promise the latter to writers
        within the same moment: there all of them read back what they wrote, and those that find other bytes fail. A server that
        speaks S3 must know `If-None-Match`.

        Args:
            name: letters, digits, `.`, `_`, `-`, with `/` between folders.
            content: the bytes, or pieces of them, which are joined only where the place is no folder.
            durable: False for what can be made again: in a folder it may be lost if the machine loses power, which saves time.

        Returns:
            Its reference; the same as before if these bytes are already there.

        Raises:
            IntegrityError: other bytes are already there under this name.
            StorageError: the place cannot be written, is full, or did not answer for as long as the store's patience.
        """
        return self._put(Reference(name, sha256_of(content), size_of(content)), content, durable)

    def put_named_by_digest(self, name: Callable[[str], str], content: Content, *, durable: bool = True) -> Reference:
        """Writes an artifact as `put` does, under a name that tells its sha256; a folder's are digested while they are written.

        Args:
            name: gives the name for the 64 hexadecimal digits; whichever they are, it lies in the same folder.
            content: as for `put`.
            durable: as for `put`.

        Returns:
            Its reference.

        Raises:
            IntegrityError, StorageError: as `put`.
        """
        size = size_of(content)
        if not self._local:
            sha256 = sha256_of(content)
            return self._put(Reference(name(sha256), sha256, size), content, durable)
        example = name("0" * 64)
        self._check_size(example, size)
        folder = self._path(example).rpartition("/")[0]
        sha256, made = self._patiently(
            f"write to {folder} in",
            lambda: create_named_by_digest(
                folder, lambda sha256: name(sha256).rpartition("/")[2], content, durable=durable
            ),
        )
        return self._compared(Reference(name(sha256), sha256, size), made)

    def _put(self, reference: Reference, content: Content, durable: bool) -> Reference:
        path = self._path(reference.name)
        self._check_size(reference.name, reference.size)
        made = self._patiently(f"write {reference.name} to", lambda: self._create(path, content, durable))
        return self._compared(reference, made)

    def _check_size(self, name: str, size: int) -> None:
        if size > self.max_bytes:
            raise StorageError(f"{name} has {size} bytes; the store takes at most {self.max_bytes}")

    def _compared(self, reference: Reference, made: bool) -> Reference:
        """The reference, once it is certain that its bytes are there."""
        if not made:
            # Another's, or this call's own from a try whose answer was lost.
            self.get(reference.name, reference.sha256)
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
        content = self._there(name, self.find(name))
        if sha256 is not None:
            self._check_digest(name, hashlib.sha256(content).hexdigest(), sha256)
        return content

    def load(self, name: str, sha256: str) -> memoryview:
        """Reads a large artifact as `get` does, into memory that is the caller's alone; a folder's are digested on the way.

        Args:
            name: as it was written.
            sha256: the digest that the bytes must have.

        Returns:
            The bytes, which may be changed.

        Raises:
            StorageError, IntegrityError: as `get`.
        """
        if not self._local:
            return memoryview(bytearray(self.get(name, sha256)))
        path = self._path(name)
        found = self._patiently(f"read {name} from", lambda: self._digested(path, name))
        content, digest = self._there(name, found)
        self._check_digest(name, digest, sha256)
        return content

    def mapped(self, name: str, sha256: str) -> memoryview:
        """An artifact's bytes, mapped into memory where the store is a folder: they are read as they are looked at.

        What is written into the view stays with it. For a store that is this process's own: a file that another process
        cuts short under a map ends this process. Of a place that is no folder, the bytes are read.

        Args:
            name: as it was written.
            sha256: the digest that the bytes must have.

        Raises:
            StorageError, IntegrityError: as `get`.
        """
        if not self._local:
            return memoryview(bytearray(self.get(name, sha256)))
        path = self._path(name)
        view = self._there(name, self._patiently(f"read {name} from", lambda: self._map(path, name)))
        self._check_digest(name, hashlib.sha256(view).hexdigest(), sha256)
        return view

    def find(self, name: str) -> bytes | None:
        """An artifact's bytes, or None where there is none.

        Raises:
            StorageError: it is too large, or cannot be read.
        """
        path = self._path(name)
        return self._patiently(f"read {name} from", lambda: self._read(path, name))

    def has(self, name: str) -> bool:
        """Whether an artifact is there now, whoever wrote it.

        Raises:
            StorageError: the place did not say.
        """
        path = self._path(name)
        return self._patiently(f"look for {name} in", lambda: self._size(path)) is not None

    def delete(self, name: str) -> None:
        """Removes an artifact; nothing happens if it is not there.

        Raises:
            StorageError: it cannot be removed.
        """
        path = self._path(name)
        self._patiently(f"delete {name} from", lambda: self._remove(path))

    def location(self, name: str) -> str:
        """The artifact's path or URL, for people."""
        path = self._path(name)
        return path if self._local else str(self._fs.unstrip_protocol(path))

    def _there(self, name: str, found: T | None) -> T:
        if found is None:
            raise StorageError(f"there is no {name} in {self.url}")
        return found

    def _check_digest(self, name: str, found: str, wanted: str) -> None:
        if found != wanted:
            raise IntegrityError(
                f"{name} in {self.url} has sha256 {found[:16]}…, wanted {wanted[:16]}…: it was changed since it was written,"
                " or another job wrote here. Use another job id."
            )

    def _path(self, name: str) -> str:
        if not NAME.fullmatch(name):
            raise StorageError(
                f"{name!r} is not the name of an artifact: letters, digits, '.', '_', '-', '/' between folders"
            )
        return f"{self._root}/{name}"

    def _size(self, path: str) -> int | None:
        """The artifact's bytes, or None where there is none; not `exists`, which takes every error for a no."""
        self._fs.invalidate_cache(path)
        try:
            info = self._fs.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return None if info["type"] == "directory" else int(info["size"])

    def _read(self, path: str, name: str) -> bytes | None:
        if not self._is_there(path, name):
            return None
        try:
            return bytes(self._fs.cat_file(path))
        except FileNotFoundError:
            return None

    def _digested(self, path: str, name: str) -> tuple[memoryview, str] | None:
        """The bytes of a file in new memory, and the sha256 of what was read."""
        if not self._is_there(path, name):
            return None
        try:
            return read_digested(path)
        except FileNotFoundError:
            return None

    def _map(self, path: str, name: str) -> memoryview | None:
        """The bytes of a file where they are."""
        if not self._is_there(path, name):
            return None
        try:
            with Path(path).open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                if not size:  # nothing can be mapped of an empty file
                    return memoryview(bytearray())
                try:
                    return memoryview(mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_COPY))
                except OSError as error:
                    if error.errno not in NOT_MAPPED:
                        raise
                    return memoryview(bytearray(stream.read()))
        except FileNotFoundError:
            return None

    def _is_there(self, path: str, name: str) -> bool:
        """Whether there is an artifact, which is not too large."""
        size = self._size(path)
        if size is not None and size > self.max_bytes:
            raise StorageError(f"{name} in {self.url} is larger than the limit of {self.max_bytes} bytes")
        return size is not None

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            self._fs.rm_file(path)

    def _create(self, path: str, content: Content, durable: bool) -> bool:
        """Whether this call certainly made the artifact; if not, what is there must be compared."""
        if self._local:
            return create_atomically(path, content, durable=durable)
        whole = b"".join(pieces(content))
        try:
            if "memory" in self._protocols:
                with _memory:
                    self._fs.pipe_file(path, whole, mode="create")
            elif self._protocols & EXCLUSIVE:
                self._fs.pipe_file(path, whole, mode="create")
            else:
                self._move_into_place(path, whole)
                return False
        except FileExistsError:
            return False
        except OSError as error:
            if http_status(error) != PRECONDITION_FAILED:
                raise
            return False
        return True

    def _move_into_place(self, path: str, content: bytes) -> None:
        if self._size(path) is not None:
            return
        part = f"{path}.{uuid.uuid4().hex}.part"
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        try:
            self._fs.pipe_file(part, content)
            self._fs.mv(part, path)
        except OSError:
            with suppress(OSError):
                self._fs.rm_file(part)
            raise

    def _patiently(self, doing: str, call: Callable[[], T]) -> T:
        """The call's result; errors of reading and writing become StorageErrors once they do not pass."""
        try:
            return call()  # nearly all go well, and what tries again costs as much as a call to a folder
        except Exception as error:
            if not is_of_storage(error):
                raise
        backoff = wait_random_exponential(
            multiplier=2 * FIRST_WAIT_SECONDS, min=FIRST_WAIT_SECONDS, max=LONGEST_WAIT_SECONDS
        )
        retrying = Retrying(
            retry=retry_if_exception(is_of_storage),
            wait=lambda state: min(backoff(state), max(0.0, self.patience_seconds - _tried_for(state))),
            stop=lambda state: not may_pass(_error(state)) or _tried_for(state) >= self.patience_seconds,
            retry_error_callback=lambda state: self._give_up(doing, state),
            sleep=self._sleep,
        )
        return retrying(call)

    def _give_up(self, doing: str, state: RetryCallState) -> None:
        error = _error(state)
        what = f"cannot {doing} {self.url}: {getattr(error, 'strerror', None) or str(error) or type(error).__name__}"
        if may_pass(error):
            raise StoreAwayError(
                f"{what}, tried for {_tried_for(state):.0f} s. Run it again when the place answers."
            ) from error
        if self._local:
            what += ". Free some space, make the folder writable, or choose another."
        else:
            what += ". Check the URL, its credentials, what they allow, and the space that is left."
        raise StorageError(what) from error


def _error(state: RetryCallState) -> BaseException | None:
    return None if state.outcome is None else state.outcome.exception()


def _tried_for(state: RetryCallState) -> float:
    """Seconds since the first try; no less than those that were waited, on whatever clock the waiting goes by."""
    return max(state.seconds_since_start or 0.0, state.idle_for)


def local_path(store: Store, name: str) -> Path:
    """An artifact's path in a store that is a folder.

    Raises:
        ConfigurationError: the store is not a folder of this machine.
    """
    location = store.location(name)
    if "://" in location:
        raise ConfigurationError(f"{store.url} is not a folder of this machine")
    return Path(location)
