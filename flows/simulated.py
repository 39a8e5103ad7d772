"""The order of a simulated job: as a local one, with rounds over many clients in place of a fit."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from bitfount_model.errors import ConfigurationError
from flows.local import end_recorded, finish, recorded, steps_of
from tasks.ending import end_kept
from tasks.initialise import initialise_model
from tasks.progress import listening, stage
from tasks.recording import Tracking, live_metrics
from tasks.simulation.rounds import train_rounds
from tasks.simulation.session import close, opened
from tasks.simulation.workers import workers_for
from tasks.step import reference, untagged
from tasks.store import Store


@flow(name="simulated_training", flow_run_name="{job_id}", validate_parameters=False, persist_result=False)
def simulated_training(
    job: dict[str, Any],
    job_id: str,
    store_url: str,
    tracking: dict[str, Any],
    workers: int = 1,
    dask: str | None = None,
) -> dict[str, Any]:
    """Trains over simulated clients, evaluates and predicts on this machine's rows; what is done already is not done again.

    Args:
        job: as `tasks.simulation.job_file.check_simulated_job` takes it, with a seed.
        job_id: names the run.
        store_url: the job's own store.
        tracking: the fields of `tasks.recording.Tracking`.
        workers: how many tasks share a round; one is done by this process itself.
        dask: address of the scheduler of the cluster that the flow's task runner reaches, or None.

    Returns:
        The steps' manifests by name, as `local_training`.
    """
    done: dict[str, Any] = {}
    with untagged(), end_kept(Store(store_url)), end_recorded(store_url, Tracking(**tracking)):
        with stage("initialise", done):
            done["initialise"] = initialise_model(store_url, job, job_id)
        recorded(store_url, tracking, steps_of(job))
        with stage("fit", done), live_metrics(store_url, Tracking(**tracking)) as listener, listening(listener):
            try:
                with workers_for(store_url, workers, dask) as work:
                    done["fit"] = reference(train_rounds(opened(store_url), workers, work))
            finally:
                close()
        finish(job, store_url, tracking, done)
    return done


def simulate(
    job: dict[str, Any], job_id: str, store_url: str, tracking: dict[str, Any], *, workers: int, dask: str | None
) -> dict[str, Any]:
    """Runs the flow with the workers that a job asks for: see `simulated_training`."""
    run = simulated_training.with_options(task_runner=runner_for(workers, dask))
    return run(job, job_id, store_url, tracking, workers, dask)


def runner_for(workers: int, dask: str | None) -> TaskRunner[Any]:
    """What runs the tasks of a round: threads, each of which may wait for a process; or a cluster.

    Args:
        workers: how many share a round.
        dask: address of the scheduler of a Dask cluster, or None.

    Raises:
        ConfigurationError: `prefect-dask` is not installed.
    """
    if dask is None:
        return ThreadPoolTaskRunner(max_workers=workers)
    try:
        from prefect_dask.task_runners import DaskTaskRunner
    except ImportError as error:
        raise ConfigurationError(
            f"simulate.dask is {dask!r}, and prefect-dask is not installed: pip install 'bitfount-flows[dask]', here and on the"
            " cluster's workers"
        ) from error
    return DaskTaskRunner(address=dask)
