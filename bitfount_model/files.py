"""Files that are either whole or not there."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from bitfount_model.errors import StorageError


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
    part = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(target)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write {target}: {error.strerror}. Free some space, make the folder writable, or choose another."
        ) from error
    return target
