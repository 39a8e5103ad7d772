"""The order of a federated job, at the modeller: join, rounds, evaluate, predict, keep; each step a task."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from prefect import flow
from prefect.states import Failed, State

from bitfount_model import BitfountModelReference
from bitfount_model.errors import ConfigurationError, QuorumError, SupersededError
from bitfount_model.federation.job import FederatedJob
from bitfount_model.reference import argument_problems, load_model_class
from flows.deployed_pods import DeployedPods
from flows.embedded_pods import EmbeddedPods
from flows.settings import read_pod
from tasks.federated.exchange import Exchange
from tasks.federated.federation import Federation
from tasks.federated.finish import (
    ask_for_evaluation,
    ask_for_predictions,
    collect_evaluation,
    collect_predictions,
    keep_weights,
)
from tasks.federated.job_file import FederatedJobFile, check_federated_job, federated_job_to_json, job_for_pods
from tasks.federated.rounds import Rounds
from tasks.federated.start import initialise, join_pods
from tasks.initialise import as_json
from tasks.progress import tell
from tasks.step import reference, step
from tasks.store import Store

Value = TypeVar("Value")


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
    asked = check_federated_job(job)
    try:
        with session_of(asked, job_id, Store(store_url), Exchange(exchange_url)) as federation:
            return run(federation)
    except QuorumError as error:
        return Failed(name="BelowQuorum", message=str(error), data=error)


def run(federation: Federation) -> dict[str, Any]:
    """All steps of a job, in their order."""
    done: dict[str, Any] = {}
    reach, job = federation.reach, federation.job
    tell("begin", {"step": "join"})
    reach.work()
    joined = task("join", lambda: join_pods(federation))
    tell("joined", joined)
    reach.work()
    done["initialise"] = task("initialise", lambda: reference(initialise(federation)))
    tell("end", {"step": "join"})
    rounds = Rounds(federation)
    train(federation, rounds)
    done["fit"] = task("keep weights", lambda: reference(keep_weights(federation, rounds)))
    if job.wants_evaluation:
        ask_for_evaluation(federation, rounds.weights)
        reach.work()
        done["evaluate"] = task("evaluate", lambda: reference(collect_evaluation(federation)))
    if job.wants_predictions:
        ask_for_predictions(federation, rounds.weights)
        reach.work()
        done["predict"] = task("predict", lambda: reference(collect_predictions(federation)))
    return done


def train(federation: Federation, rounds: Rounds) -> None:
    """The rounds that are left."""
    open_round = step("open round", "open round {round_number}")(lambda round_number: rounds.open())
    aggregate = step("aggregate", "aggregate round {round_number}")(lambda round_number: rounds.aggregate().to_json())
    while not rounds.are_over:
        number = rounds.state.round_number + 1
        tell("round_open", {**open_round(number), "rounds": federation.job.rounds})
        federation.reach.work()
        tell("round_closed", aggregate(number))


def task(name: str, body: Callable[[], Value]) -> Value:
    """Runs a step of the modeller as a task of that name."""
    result: Value = step(name, name)(body)()
    return result


@contextmanager
def session_of(asked: FederatedJobFile, job_id: str, store: Store, exchange: Exchange) -> Iterator[Federation]:
    """Begins a session of the job: publishes it, reaches the pods, and sends them home at the end, whatever it is.

    Raises:
        ConfigurationError: the job cannot be asked of pods.
        ModelFileError: the model's source cannot be used.
    """
    source = store.get("model.py") if store.has("model.py") else model_source(asked)
    pods = [read_pod(Path(path)).pod() for path in asked.pods] if asked.is_embedded else []
    job = job_for_pods(asked, job_id, [pod.name for pod in pods] or asked.pods, source)
    check_hyperparameters(job, source)
    store.put("job.json", as_json(federated_job_to_json(asked)))
    exchange.publish(job, source)
    number = exchange.begin_session({"host": socket.gethostname(), "user": getpass.getuser(), "process": os.getpid()})
    reach: EmbeddedPods | DeployedPods = (
        EmbeddedPods(sorted(pods, key=lambda pod: pod.name), exchange, number)
        if asked.is_embedded
        else DeployedPods(job.pods, job_id, exchange, number)
    )
    pretrained = asked.training["pretrained_file"]
    federation = Federation(
        job=job,
        name=asked.name,
        experiment=asked.experiment,
        source=source,
        store=store,
        exchange=exchange,
        session=number,
        reach=reach,
        pretrained=None if pretrained is None else Path(pretrained).read_bytes(),
        require_all_pods=asked.federation["require_all_pods"],
    )
    state, reason = "failed", "the modeller's process ended"
    try:
        reach.begin()
        yield federation
        state, reason = "finished", ""
    except QuorumError as error:
        state, reason = "below_quorum", str(error)
        raise
    except SupersededError as error:
        state, reason = "superseded", str(error)
        raise
    except BaseException as error:
        state, reason = "failed", f"{type(error).__name__}: {error}"
        raise
    finally:
        exchange.end_session(number, state, reason)


def model_source(asked: FederatedJobFile) -> bytes:
    """The bytes of the model's source."""
    where = asked.model.get("file") or asked.model["reference"]
    return BitfountModelReference(where, model_version=asked.model["version"]).source()


def check_hyperparameters(job: FederatedJob, source: bytes) -> None:
    """Refuses hyperparameters that the model does not take, before any pod is asked.

    Raises:
        ConfigurationError: lists all of them.
    """
    cls = load_model_class(source, job.model_class)
    given = {"datastructure": None, "schema": None, **job.hyperparameters}
    if problems := list(argument_problems(cls, given)):
        raise ConfigurationError(f"{cls.__name__} cannot be constructed: {'; '.join(problems)}.")
