"""How a job ended that did not finish, in its own folder: there is no such word of one that runs, finished or was killed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from bitfount_model.errors import StorageError
from tasks.layout import ENDED
from tasks.store import Store


@contextmanager
def end_kept(store: Store) -> Iterator[None]:
    """Keeps why the work in this block did not finish, for those who look at the job afterwards."""
    store.delete(ENDED)
    try:
        yield
    except KeyboardInterrupt:
        keep_end(store, "stopped", "interrupted")
        raise
    except Exception as error:
        keep_end(store, "failed", f"{type(error).__name__}: {error}")
        raise


def keep_end(store: Store, state: str, reason: str) -> None:
    """Writes how a job ended; where that cannot be written, what ended it matters more.

    Args:
        store: the job's own.
        state: `stopped` or `failed`.
        reason: for people.
    """
    with suppress(StorageError):
        store.put(ENDED, json.dumps({"state": state, "reason": reason}, ensure_ascii=False).encode())


def read_end(store: Store) -> dict[str, Any]:
    """`state` and `reason`, or nothing.

    Raises:
        StorageError: it cannot be read.
    """
    content = store.find(ENDED)
    return {} if content is None else dict(json.loads(content))
