"""The order of a federated job, at the modeller: join, rounds, evaluate, predict, compare, keep; each step a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Failed

from bitfount_model.errors import QuorumError
from bitfount_model.federation.job import PREDICT
from flows.federated_session import embedded_pods, session_of
from tasks.ending import end_kept
from tasks.federated.compare import compare
from tasks.federated.contents import job_note
from tasks.federated.exchange import Exchange
from tasks.federated.federation import Federation
from tasks.federated.finish import (
    ask_for_evaluation,
    ask_for_predictions,
    collect_evaluation,
    collect_predictions,
    keep_weights,
)
from tasks.federated.job_file import FederatedJobFile, check_federated_job
from tasks.federated.pages import pages
from tasks.federated.plot import plot_federation
from tasks.federated.record import LiveRounds
from tasks.federated.recording import record_end, recorded
from tasks.federated.round_record import read_records
from tasks.federated.rounds import Rounds
from tasks.federated.start import initialise, join_pods
from tasks.manifest import Manifest, read_manifest
from tasks.package import package
from tasks.progress import listening, stage, tell
from tasks.record import finished_steps
from tasks.recording import Tracking, live_metrics
from tasks.register import register
from tasks.report.step import report
from tasks.step import reference, step, untagged
from tasks.store import Store
from tasks.summary_page import show_summary

Value = TypeVar("Value")

PHASES = {
    "evaluate": (ask_for_evaluation, collect_evaluation),
    "predict": (ask_for_predictions, collect_predictions),
}
"""What comes after the last round: how pods are asked, how their answers are collected."""


@flow(name="federated_training", flow_run_name="{job_id}", validate_parameters=False, persist_result=False)
def federated_training(
    job: dict[str, Any], job_id: str, store_url: str, exchange_url: str, tracking: dict[str, Any]
) -> dict[str, Any] | State[Any]:
    """Trains over pods, evaluates on each of them and together; what is done already is not done again.

    Args:
        job: as `tasks.federated.job_file.check_federated_job` takes it, with a seed.
        job_id: names the run.
        store_url: the modeller's own store for the job.
        exchange_url: where modeller and pods meet, for this job alone.
        tracking: the fields of `tasks.recording.Tracking`.

    Returns:
        The steps' manifests by name. A job that too few pods answered ends in the state `BelowQuorum`.
    """
    asked, store = check_federated_job(job), Store(store_url)
    steps = [
        *pod_steps(asked),
        *(["compare"] if asked.compare else []),
        "plots",
        "report",
        *(["package"] if asked.register else []),
    ]
    done: dict[str, Any] = {}
    try:
        with untagged(), end_kept(store), end_recorded(store, Tracking(**tracking)):
            if any(read_manifest(store, name) is None for name in pod_steps(asked)):
                with session_of(asked, job_id, store, Exchange(exchange_url, owned=asked.is_embedded)) as federation:
                    ask_pods(federation, tracking, steps)
            done |= {name: reference(found) for name in steps if (found := read_manifest(store, name)) is not None}
            finish(asked, store, tracking, steps, done)
    except QuorumError as error:
        return Failed(name="BelowQuorum", message=str(error), data=error)
    return done


def ask_pods(federation: Federation, tracking: dict[str, Any], steps: list[str]) -> None:
    """The steps that pods take part in, in their order."""
    reach, store, done = federation.reach, federation.store, dict[str, Any]()
    with stage("initialise", done):
        reach.work()
        joined = task("join", lambda: join_pods(federation))
        tell("joined", joined)
        reach.work()
        done["initialise"] = task("initialise", lambda: reference(initialise(federation, joined["missing"])))
    recorded(store.url, tracking, flow_run.get_id(), steps)
    rounds = Rounds(federation)
    if federation.job.rounds:
        with stage("fit", done):
            train(federation, rounds, Tracking(**tracking))
            done["fit"] = task("keep weights", lambda: reference(keep_weights(federation, rounds)))
    else:
        done["fit"] = task("keep weights", lambda: reference(keep_weights(federation, rounds)))
    for name in [name for name in PHASES if name in steps]:
        ask, collect = PHASES[name]
        with stage(name, done):
            ask(federation, rounds.weights)
            reach.work()
            done[name] = task(name, partial(_collected, collect, federation))


def _collected(collect: Callable[[Federation], Manifest], federation: Federation) -> dict[str, Any]:
    return reference(collect(federation))


def train(federation: Federation, rounds: Rounds, tracking: Tracking) -> None:
    """The rounds that are left, seen live in MLflow and in Prefect."""
    with (
        live_metrics(federation.store.url, tracking, LiveRounds, "round_closed") as to_mlflow,
        pages(federation.job) as to_prefect,
        listening(to_mlflow),
        listening(to_prefect),
    ):
        go_on(federation, rounds)


def go_on(federation: Federation, rounds: Rounds) -> None:
    """Opens and closes one round after the other."""
    open_round = step("open round", "open round {round_number}")(lambda round_number: rounds.open())
    aggregate = step("aggregate", "aggregate round {round_number}")(lambda round_number: rounds.aggregate().to_json())
    while not rounds.are_over:
        number = rounds.state.round_number + 1
        tell("round_open", {**open_round(number), "rounds": federation.job.rounds})
        federation.reach.work()
        for name, collect in rounds.steps_of_sum.items():
            step(name, f"{name} of round {number}")(collect)()
            federation.reach.work()
        tell("round_closed", aggregate(number))


def finish(
    asked: FederatedJobFile, store: Store, tracking: dict[str, Any], steps: list[str], done: dict[str, Any]
) -> None:
    """What the modeller does alone."""
    if asked.compare:
        with stage("compare", done):
            done["compare"] = task("compare", lambda: reference(compare(store, embedded_pods(asked))))
    with stage("plots", done):
        done["plots"] = task("plot", lambda: reference(plot_federation(store)))
    with stage("report", done):
        done["report"] = report(store.url)
    if asked.register:
        with stage("package", done):
            done["package"] = package(store.url)
    with stage("record", done):
        done["record"] = recorded(store.url, tracking, flow_run.get_id(), steps)
    show_summary(asked.name, job_note(store, finished_steps(store, steps), read_records(store)), done["record"])
    if asked.register and done["record"]:
        with stage("register", done):
            done["register"] = register(store.url, tracking["uri"], asked.register)


def pod_steps(asked: FederatedJobFile) -> list[str]:
    """The steps that pods take part in."""
    wanted = {
        "evaluate": asked.evaluate and asked.operation != PREDICT,
        "predict": asked.predict or asked.operation == PREDICT,
    }
    return ["initialise", "fit", *(name for name in PHASES if wanted[name])]


def task(name: str, body: Callable[[], Value]) -> Value:
    """Runs a step of the modeller as a task of that name."""
    result: Value = step(name, name)(body)()
    return result


@contextmanager
def end_recorded(store: Store, tracking: Tracking) -> Iterator[None]:
    """A job that fails or is interrupted says so in MLflow too."""
    try:
        yield
    except KeyboardInterrupt:
        record_end(store, tracking, "interrupted", interrupted=True)
        raise
    except Exception as error:
        record_end(store, tracking, f"{type(error).__name__}: {error}", interrupted=False)
        raise
