"""The order of a local job: initialise, fit, evaluate, predict, plot, and record each in MLflow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from bitfount_model.errors import TrackingError
from tasks.ending import end_kept
from tasks.evaluate import evaluate, evaluate_rows
from tasks.fit import fit
from tasks.initialise import initialise_model
from tasks.package import package
from tasks.plot import plot
from tasks.predict import predict, predict_rows
from tasks.progress import listening, stage, tell
from tasks.record import finished_steps
from tasks.recording import Tracking, live_metrics, record, record_end
from tasks.register import register
from tasks.report.step import report
from tasks.run_contents import note
from tasks.step import untagged
from tasks.store import Store
from tasks.summary_page import show_summary


@flow(name="local_training", flow_run_name="{job_id}", validate_parameters=False, persist_result=False)
def local_training(job: dict[str, Any], job_id: str, store_url: str, tracking: dict[str, Any]) -> dict[str, Any]:
    """Trains, evaluates and predicts on this machine's rows; what is done already is not done again.

    Args:
        job: as `tasks.job.check_job` takes it, with a seed.
        job_id: names the run.
        store_url: the job's own store.
        tracking: the fields of `tasks.recording.Tracking`.

    Returns:
        The steps' manifests by name; `record` is None where MLflow could not be reached: the next run with this id records.
    """
    done: dict[str, Any] = {}
    with untagged(), end_kept(Store(store_url)), end_recorded(store_url, Tracking(**tracking)):
        with stage("initialise", done):
            done["initialise"] = initialise_model(store_url, job, job_id)
        recorded(store_url, tracking, steps_of(job))
        with stage("fit", done), live_metrics(store_url, Tracking(**tracking)) as listener, listening(listener):
            done["fit"] = fit(store_url)
        finish(job, store_url, tracking, done)
    return done


def finish(job: dict[str, Any], store_url: str, tracking: dict[str, Any], done: dict[str, Any]) -> None:
    """The steps after training, in their order.

    Args:
        job: as for the flow.
        store_url: the job's own store.
        tracking: as for the flow.
        done: step -> manifest; those of these steps are added.
    """
    with stage("evaluate", done):
        done["evaluate"] = evaluate(store_url)
    if job.get("predict"):
        with stage("predict", done):
            done["predict"] = predict(store_url, job["predict"]["data"])
    with stage("plots", done):
        done["plots"] = plot(store_url)
    with stage("report", done):
        done["report"] = report(store_url)
    if job.get("register"):
        with stage("package", done):
            done["package"] = package(store_url)
    with stage("record", done):
        done["record"] = recorded(store_url, tracking, steps_of(job))
    store = Store(store_url)
    show_summary(job["name"], note(store, finished_steps(store)), done["record"])
    if job.get("register") and done["record"]:
        with stage("register", done):
            done["register"] = register(store_url, tracking["uri"], job["register"])


@flow(name="local_evaluation", flow_run_name="evaluate {job_id}", validate_parameters=False, persist_result=False)
def local_evaluation(job_id: str, store_url: str, data: dict[str, Any] | None) -> dict[str, Any]:
    """Metrics of a trained job on its test rows, or on all rows of another source.

    Args:
        job_id: names the run.
        store_url: the job's own store.
        data: as the job's `data`; None means the job's own test rows.

    Returns:
        `{"metrics": name -> number, "rows": int}`.
    """
    if data is None:
        values: dict[str, Any] = evaluate(store_url)["values"]
    else:
        values = evaluate_rows(store_url, data)
    return values


@flow(name="local_prediction", flow_run_name="predict {job_id}", validate_parameters=False, persist_result=False)
def local_prediction(job_id: str, store_url: str, data: dict[str, Any], out: str) -> dict[str, Any]:
    """Predictions of a trained job for every row of a source.

    Args:
        job_id: names the run.
        store_url: the job's own store.
        data: as the job's `data`.
        out: the Parquet file to write.

    Returns:
        `{"rows": int, "predictions": path}`.
    """
    values: dict[str, Any] = predict_rows(store_url, data, out)
    return values


def steps_of(job: dict[str, Any]) -> list[str]:
    """The steps that make a job complete."""
    predicted = ["predict"] if job.get("predict") else []
    packaged = ["package"] if job.get("register") else []
    return ["initialise", "fit", "evaluate", *predicted, "plots", "report", *packaged]


def recorded(store_url: str, tracking: dict[str, Any], steps: list[str]) -> dict[str, Any] | None:
    """What MLflow has of the job after this call; None, with a word to the user, where it cannot be reached."""
    try:
        manifest: dict[str, Any] = record(store_url, tracking, flow_run.get_id(), steps)
    except TrackingError as error:
        tell("tracking", {"error": str(error)})
        return None
    return manifest


@contextmanager
def end_recorded(store_url: str, tracking: Tracking) -> Iterator[None]:
    """A job that fails or is interrupted says so in MLflow too."""
    try:
        yield
    except KeyboardInterrupt:
        record_end(store_url, tracking, "interrupted", interrupted=True)
        raise
    except Exception as error:
        record_end(store_url, tracking, f"{type(error).__name__}: {error}", interrupted=False)
        raise
