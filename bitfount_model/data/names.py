"""Unknown names of columns -> messages that say what was probably meant; used wherever columns are named."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from bitfount_model.errors import SchemaMismatchError

_SHOWN = 20


def suggestion(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name: close names, or else those that there are."""
    close = difflib.get_close_matches(name, list(known), n=3)
    if close:
        return f", did you mean {' or '.join(repr(other) for other in close)}?"
    shown = ", ".join(repr(other) for other in known[:_SHOWN])
    return f"; there are: {shown}{', ...' if len(known) > _SHOWN else ''}" if known else "; there are none"


def repeated(names: Sequence[str]) -> list[str]:
    """Names that appear more than once, sorted."""
    return sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []


def require_columns(names: Sequence[str], known: Sequence[str], where: str) -> None:
    """Refuse names of columns that do not exist.

    Args:
        names: the names that are used.
        known: the names that there are.
        where: who uses them, for the message.

    Raises:
        SchemaMismatchError: lists every unknown name with close ones.
    """
    existing = set(known)
    unknown = tuple(f"no column {name!r}{suggestion(name, known)}" for name in names if name not in existing)
    if unknown:
        raise SchemaMismatchError(f"{where}: " + " ".join(unknown), unknown)
