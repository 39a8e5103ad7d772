"""Files of the keys that modellers sign jobs with."""

from __future__ import annotations

import os
from pathlib import Path

from bitfount_model.errors import ConfigurationError, StorageError
from bitfount_model.federation.signing import new_key

PRIVATE, PUBLIC = 0o600, 0o644


def make_key(path: Path) -> str:
    """Writes a new key pair, the private key for its owner alone, and gives the public one as text.

    Args:
        path: of the private key; the public one is beside it, `<path>.pub`.

    Raises:
        ConfigurationError: one of the files is there.
        StorageError: they cannot be written.
    """
    private, public = new_key()
    beside = path.with_name(f"{path.name}.pub")
    if beside.exists():
        raise ConfigurationError(f"{beside} is there already, and keys are never replaced: choose another name")
    _create(path, private, PRIVATE)
    _create(beside, f"{public}\n".encode(), PUBLIC)
    return public


def _create(path: Path, content: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
    except FileExistsError as error:
        raise ConfigurationError(
            f"{path} is there already, and keys are never replaced: choose another name"
        ) from error
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
