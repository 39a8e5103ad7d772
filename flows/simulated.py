"""The order of a simulated job: as a local one, with rounds over many clients in place of a fit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import flow
from prefect.settings import PREFECT_API_URL
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from bitfount_model.errors import ConfigurationError
from flows.local import end_recorded, finish, recorded, steps_of
from tasks.ending import end_kept
from tasks.initialise import initialise_model
from tasks.progress import listening, stage
from tasks.recording import Tracking, live_metrics
from tasks.simulation.rounds import Work, train_rounds
from tasks.simulation.session import opened
from tasks.simulation.train_clients import train_clients
from tasks.step import reference
from tasks.store import Reference, Store

API_URL = "PREFECT_API_URL"


@flow(name="simulated_training", flow_run_name="{job_id}", validate_parameters=False, persist_result=False)
def simulated_training(
    job: dict[str, Any], job_id: str, store_url: str, tracking: dict[str, Any], workers: int = 1
) -> dict[str, Any]:
    """Trains over simulated clients, evaluates and predicts on this machine's rows; what is done already is not done again.

    Args:
        job: as `tasks.simulation.job_file.check_simulated_job` takes it, with a seed.
        job_id: names the run.
        store_url: the job's own store.
        tracking: the fields of `tasks.recording.Tracking`.
        workers: how many tasks share a round; one is done by this process itself.

    Returns:
        The steps' manifests by name, as `local_training`.
    """
    done: dict[str, Any] = {}
    with end_kept(Store(store_url)), end_recorded(store_url, Tracking(**tracking)):
        with stage("initialise", done):
            done["initialise"] = initialise_model(store_url, job, job_id)
        recorded(store_url, tracking, steps_of(job))
        with stage("fit", done), live_metrics(store_url, Tracking(**tracking)) as listener, listening(listener):
            try:
                done["fit"] = reference(train_rounds(opened(store_url), workers, work_of(store_url, workers)))
            finally:
                opened.cache_clear()
        finish(job, store_url, tracking, done)
    return done


def simulate(
    job: dict[str, Any], job_id: str, store_url: str, tracking: dict[str, Any], *, workers: int, dask: str | None
) -> dict[str, Any]:
    """Runs the flow with the workers that a job asks for: see `simulated_training`.

    Args:
        job: as for the flow.
        job_id: as for the flow.
        store_url: as for the flow.
        tracking: as for the flow.
        workers: how many tasks share a round.
        dask: address of the scheduler of a Dask cluster, or None.
    """
    run = simulated_training.with_options(task_runner=runner_for(workers, dask))
    with api_of_children():
        return run(job, job_id, store_url, tracking, workers)


@contextmanager
def api_of_children() -> Iterator[None]:
    """Says in the environment which Prefect API this process talks to: its workers would start a server of their own."""
    before, url = os.environ.get(API_URL), PREFECT_API_URL.value()
    if before is not None or url is None:
        yield
        return
    os.environ[API_URL] = url
    try:
        yield
    finally:
        del os.environ[API_URL]


def work_of(store_url: str, workers: int) -> Work:
    """How the clients of a round are trained: by this process, or by the workers of the flow's task runner."""

    def here(number: int, weights: Reference, parts: list[range]) -> list[Reference]:
        found = [train_clients(store_url, number, vars(weights), part.start, part.stop) for part in parts]
        return [Reference(**each["sums"]) for each in found]

    def there(number: int, weights: Reference, parts: list[range]) -> list[Reference]:
        sent = [train_clients.submit(store_url, number, vars(weights), part.start, part.stop) for part in parts]
        return [Reference(**each.result()["sums"]) for each in sent]

    return here if workers == 1 else there


def runner_for(workers: int, dask: str | None) -> TaskRunner[Any]:
    """What runs the tasks of a round.

    Args:
        workers: how many share a round.
        dask: address of the scheduler of a Dask cluster; None takes processes of this machine.

    Raises:
        ConfigurationError: `prefect-dask` is not installed.
    """
    if dask is None:
        return ThreadPoolTaskRunner(max_workers=1) if workers == 1 else ProcessPoolTaskRunner(max_workers=workers)
    try:
        from prefect_dask.task_runners import DaskTaskRunner
    except ImportError as error:
        raise ConfigurationError(
            f"simulate.dask is {dask!r}, and prefect-dask is not installed: pip install 'bitfount-flows[dask]', here and on the"
            " cluster's workers"
        ) from error
    return DaskTaskRunner(address=dask)
