"""Files that rows are read from: whether they are there, and whether they are the same as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitfount_model.errors import DataSourceError

SURVEY_ROWS = 50_000
"""Rows held at a time where only types or keys are looked at."""


def file_state(path: Path) -> dict[str, Any]:
    """Size, and time of the last change.

    Raises:
        DataSourceError: the file is not there, or may not be looked at.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise DataSourceError(f"{path}: {error.strerror}") from error
    return {"size": found.st_size, "changed_ns": found.st_mtime_ns}


def require_file(path: Path, kind: str) -> None:
    """Refuse what is no file.

    Args:
        path: the file.
        kind: of the file, for the message.

    Raises:
        DataSourceError: it is not there, or is a folder.
    """
    if not path.is_file():
        reason = "is a folder" if path.is_dir() else "does not exist"
        raise DataSourceError(f"{path}: {reason}, wanted a {kind} file; check the path (now in {Path.cwd()})")
