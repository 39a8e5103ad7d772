"""A step is a Prefect task that is tried again where that can help, and only there."""

from __future__ import annotations

from typing import Any

import pytest
from prefect import flow, tags
from prefect.runtime import flow_run, task_run

from bitfount_model.errors import DataError, TrackingError
from tasks.retries import RETRIES
from tasks.step import step, untagged


def failing(error: Exception, times: int) -> tuple[Any, list[int]]:
    """A step that raises so many times and then answers, and the record of its calls."""
    calls: list[int] = []

    @step("sometimes")
    def sometimes() -> dict[str, int]:
        calls.append(len(calls))
        if len(calls) <= times:
            raise error
        return {"calls": len(calls)}

    return sometimes.with_options(retry_delay_seconds=0), calls


def called(task: Any) -> Any:
    """What a flow of that step alone returns."""

    @flow(persist_result=False)
    def alone() -> Any:
        return task()

    return alone()


def test_a_service_that_did_not_answer_is_asked_again(prefect_url: str) -> None:
    task, calls = failing(TrackingError("away"), times=2)
    assert called(task) == {"calls": 3}
    assert len(calls) == 3


def test_a_service_that_stays_away_ends_the_step_after_the_last_retry(prefect_url: str) -> None:
    task, calls = failing(TrackingError("away"), times=99)
    with pytest.raises(TrackingError, match="away"):
        called(task)
    assert len(calls) == 1 + RETRIES


@pytest.mark.parametrize("error", [DataError("a NaN"), ValueError("a bug")])
def test_bad_data_and_bugs_are_not_tried_again(prefect_url: str, error: Exception) -> None:
    task, calls = failing(error, times=99)
    with pytest.raises(type(error)):
        called(task)
    assert len(calls) == 1


def test_tags_are_of_the_flow_run_alone(prefect_url: str) -> None:
    seen: list[set[str]] = []

    @step("look")
    def look() -> None:
        seen.append(set(task_run.tags))

    @flow(persist_result=False)
    def tagged() -> None:
        look()
        with untagged():
            look()
        seen.append(set(flow_run.tags))

    with tags("federated"):
        tagged()
    assert seen == [{"federated"}, set(), {"federated"}]
