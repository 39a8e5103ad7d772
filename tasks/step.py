"""How a function becomes a step: a Prefect task with a readable name, retried where that can help, remembered by its manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.context import TagsContext
from prefect.tasks import exponential_backoff

from tasks.manifest import Manifest
from tasks.retries import FIRST_DELAY_SECONDS, RETRIES, retry_if_transient

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def step(name: str, run_name: str | None = None) -> Callable[[Callable[Parameters, Result]], Any]:
    """Makes a function a step of that name.

    Args:
        name: of the step.
        run_name: how one run of it is called in Prefect, with the function's arguments in braces; None for the step's name.

    The store decides whether a step is done, so Prefect neither caches nor keeps results.
    """
    return task(
        name=name,
        task_run_name=run_name or name,  # Prefect's own has a number behind it that says nothing
        retries=RETRIES,
        retry_delay_seconds=exponential_backoff(backoff_factor=FIRST_DELAY_SECONDS),
        retry_jitter_factor=0.5,
        retry_condition_fn=retry_if_transient,
        cache_policy=NO_CACHE,
        persist_result=False,
    )


@contextmanager
def untagged() -> Iterator[None]:
    """Runs a flow's steps without its tags, which are for finding the flow run.

    For each tag of a task Prefect asks its server, before the task begins, whether a concurrency limit of that name has room: that
    took more time than all else that Prefect does around a short task.
    """
    with TagsContext(current_tags=set()):
        yield


def reference(manifest: Manifest) -> dict[str, Any]:
    """A manifest as the JSON that passes between steps."""
    return asdict(manifest)
