"""Files that are either whole or not there, and what is written to them."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bitfount_model.errors import StorageError

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
    part = _part_of(target)
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
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target.parent)) from error
    part = _part_of(target)
    try:
        _write(part, content, durable)
        return _link(part, target)
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


def _part_of(target: Path) -> Path:
    return target.with_name(f".{secrets.token_hex(8)}.part")


def _write(part: Path, content: Content, durable: bool) -> None:
    with part.open("xb") as stream:
        stream.writelines(pieces(content))
        if durable:
            stream.flush()
            os.fsync(stream.fileno())
