"""Files that are either whole or not there, and what is written to them."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from bitfount_model.errors import StorageError

BESIDE_BYTES = 8 * 2**20
"""From this size on, a thread of its own is worth its start."""
_BLOCK = 2**20  # stays in a core's cache between its reading and its digest

# How file systems without hard links (FAT, some network and FUSE ones) refuse to make one.
NO_HARD_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})


Content = bytes | Sequence[bytes | memoryview]
"""All bytes of a file; or the pieces that follow each other in it, so that large ones need not be copied into one."""


def pieces(content: Content) -> Sequence[bytes | memoryview]:
    """The pieces that a file is made of."""
    return [content] if isinstance(content, bytes) else content


def size_of(content: Content) -> int:
    """How many bytes there are."""
    return sum(memoryview(piece).nbytes for piece in pieces(content))


def sha256_of(content: Content) -> str:
    """The digest of all bytes, as 64 hexadecimal digits."""
    found = hashlib.sha256()
    for piece in pieces(content):
        found.update(piece)
    return found.hexdigest()


def write_atomically(path: str | os.PathLike[str], content: Content) -> Path:
    """Writes a file under a temporary name beside it, syncs it, and renames it into place.

    Args:
        path: the file; missing folders are made.
        content: all of it.

    Returns:
        The path.

    Raises:
        StorageError: the folder cannot be written, or the disk is full; nothing is left behind.
    """
    target = Path(path)
    part = _part_in(target.parent)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(part, content, durable=True)
        part.replace(target)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write {target}: {error.strerror}. Free some space, make the folder writable, or choose another."
        ) from error
    return target


def create_atomically(path: str | os.PathLike[str], content: Content, *, durable: bool = True) -> bool:
    """Makes a file that is not there yet, whole or not at all; of several writers at the same moment one makes it.

    Args:
        path: the file; missing folders are made.
        content: all of it.
        durable: whether the bytes are on the disk, not only with the operating system, before the file appears.

    Returns:
        Whether this call made the file. False asks the caller to compare: it was there already, or the file system has no hard
        links, so that another writer may have come in between.

    Raises:
        OSError: the folder cannot be written, or the disk is full; nothing is left behind.
    """
    target = Path(path)
    if target.exists():
        return False
    with _new_part(target.parent) as part:
        _write(part, content, durable)
        return _link(part, target)


def create_named_by_digest(
    folder: str | os.PathLike[str],
    name: Callable[[str], str],
    content: Content,
    *,
    durable: bool = True,
) -> tuple[str, bool]:
    """As `create_atomically`, for a file whose name tells its sha256: that is computed while the bytes are written.

    Args:
        folder: where the file is made; missing folders are made too.
        name: gives the file's name for the 64 hexadecimal digits.
        content: all of it.
        durable: as for `create_atomically`.

    Returns:
        The digest, and what `create_atomically` gives.

    Raises:
        OSError: as `create_atomically`.
    """
    with _new_part(Path(folder)) as part:
        sha256 = _written(part, content, durable)
        return sha256, _link(part, part.with_name(name(sha256)))


def read_digested(path: str | os.PathLike[str]) -> tuple[memoryview, str]:
    """Reads a file into new memory, and digests each block as soon as it has been read.

    Args:
        path: the file.

    Returns:
        Its bytes, which may be changed, and their sha256 as 64 hexadecimal digits.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    found = hashlib.sha256()
    with Path(path).open("rb", buffering=0) as stream:
        content = np.empty(os.fstat(stream.fileno()).st_size, dtype=np.uint8).data  # not set to 0 first
        place = 0
        while count := stream.readinto(content[place : place + _BLOCK]):
            found.update(content[place : place + count])
            place += count
    return content[:place], found.hexdigest()


@contextmanager
def _new_part(folder: Path) -> Iterator[Path]:
    """The path of a file that is not there yet, and is not there afterwards, in a folder that is made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error
    part = _part_in(folder)
    try:
        yield part
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _link(part: Path, target: Path) -> bool:
    # A rename would replace what another writer has put there in the meantime; a link does not.
    try:
        os.link(part, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        if not target.exists():
            part.replace(target)
        return False
    return True


def _part_in(folder: Path) -> Path:
    return folder / f".{secrets.token_hex(8)}.part"


def _written(part: Path, content: Content, durable: bool) -> str:
    """Writes a new file; gives the sha256 of its bytes."""
    if size_of(content) < BESIDE_BYTES:
        _write(part, content, durable)
        return sha256_of(content)
    with ThreadPoolExecutor(1) as beside:
        digest = beside.submit(sha256_of, content)
        _write(part, content, durable)
    return digest.result()


def _write(part: Path, content: Content, durable: bool) -> None:
    with part.open("xb") as stream:
        stream.writelines(pieces(content))
        if durable:
            stream.flush()
            os.fsync(stream.fileno())
