"""Where a step says how far it is: whoever runs the flow may listen, and a step does not know who."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Listener = Callable[[str, dict[str, Any]], None]
"""(event, values): `epoch` with the epoch's record, `batch` with the batches done and wanted."""

_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("listeners", default=())


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Passes the events of the steps in this block to one more listener."""
    token = _listeners.set((*_listeners.get(), listener))
    try:
        yield
    finally:
        _listeners.reset(token)


def tell(event: str, values: dict[str, Any]) -> None:
    """Reports an event to whoever listens."""
    for listener in _listeners.get():
        listener(event, values)


@contextmanager
def stage(name: str, done: Mapping[str, Any]) -> Iterator[None]:
    """Tells when a step begins and ends.

    Args:
        name: of the step.
        done: where its manifest will be found at the end.
    """
    tell("begin", {"step": name})
    yield
    tell("end", {"step": name, "values": (done[name] or {}).get("values", {})})
