"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path

from bitfount_model.errors import StorageError

# How file systems without hard links (FAT, some network and FUSE ones) refuse to make one.
NO_HARD_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})


def write_atomically(path: str | os.PathLike[str], content: bytes) -> Path:
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


def create_atomically(path: str | os.PathLike[str], content: bytes, *, durable: bool = True) -> bool:
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


def _write(part: Path, content: bytes, durable: bool) -> None:
    with part.open("xb") as stream:
        stream.write(content)
        if durable:
            stream.flush()
            os.fsync(stream.fileno())
