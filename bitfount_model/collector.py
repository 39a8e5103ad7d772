"""Around the library's imports: Python's garbage collector waits until they are done."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keeps the collector from running; afterwards it is as it was before.

    Modules that are imported stay. The collector would go through all their objects, over a million with torch and Lightning,
    several times while they are being imported, and find next to nothing to free.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
