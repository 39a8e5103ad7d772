"""One start of a federated job at the modeller: the job is checked and published, pods are reached, and sent home at the end."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from bitfount_model import BitfountModelReference, BitfountSchema
from bitfount_model.errors import ConfigurationError, QuorumError, StorageError, SupersededError, WeightsFileError
from bitfount_model.federation.job import FederatedJob
from bitfount_model.federation.pod import Pod
from bitfount_model.federation.signing import JobSignature, sign
from bitfount_model.reference import argument_problems, load_model_class
from bitfount_model.weights_files import read_weights
from flows.deployed_pods import DeployedPods
from flows.embedded_pods import EmbeddedPods
from flows.settings import read_pod
from tasks.federated.exchange import Exchange
from tasks.federated.federation import Federation
from tasks.federated.job_file import FederatedJobFile, federated_job_to_json, job_for_pods
from tasks.initialise import as_json
from tasks.memory import freed_memory_kept
from tasks.store import Store


@contextmanager
def session_of(asked: FederatedJobFile, job_id: str, store: Store, exchange: Exchange) -> Iterator[Federation]:
    """Begins a session of the job: publishes it, reaches the pods, and sends them home at the end, whatever it is.

    Raises:
        ConfigurationError: the job cannot be asked of pods.
        ModelFileError: the model's source cannot be used.
    """
    source = store.get("model.py") if store.has("model.py") else model_source(asked)
    pods, pretrained = embedded_pods(asked), first_weights(asked)
    job = job_for_pods(
        asked,
        job_id,
        [pod.name for pod in pods] or asked.pods,
        source,
        schema=columns_of(asked),
        preparation=None if pretrained is None else read_weights(pretrained, None, True).preparation,
    )
    check_hyperparameters(job, source)
    store.put("job.json", as_json(federated_job_to_json(asked)))
    exchange.publish(job, source, signature_of(asked, job))
    number = exchange.begin_session({"host": socket.gethostname(), "user": getpass.getuser(), "process": os.getpid()})
    reach = EmbeddedPods(pods, exchange, number) if pods else DeployedPods(job.pods, job_id, exchange, number)
    federation = Federation(
        job=job,
        name=asked.name,
        experiment=asked.experiment,
        source=source,
        store=store,
        exchange=exchange,
        session=number,
        reach=reach,
        pretrained=pretrained,
        require_all_pods=asked.federation["require_all_pods"],
    )
    with ended(exchange, number), nullcontext() if pods else freed_memory_kept():
        reach.begin()
        try:
            yield federation
        finally:
            reach.end()


@contextmanager
def ended(exchange: Exchange, session: int) -> Iterator[None]:
    """Says in the exchange how the session ended."""
    state, reason = "failed", "the modeller's process ended"
    try:
        yield
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
        with suppress(StorageError):  # pods of a store that is away give up by themselves
            exchange.end_session(session, state, reason)


def embedded_pods(asked: FederatedJobFile) -> list[Pod]:
    """The pods of a job that run in this process, in the order of their names; none if they are deployed.

    Raises:
        ConfigurationError: a pod's file cannot be used.
        DataSourceError: a pod's rows are not there.
    """
    if not asked.is_embedded:
        return []
    return sorted((read_pod(Path(path)).pod() for path in asked.pods), key=lambda pod: pod.name)


def first_weights(asked: FederatedJobFile) -> bytes | None:
    """The bytes of the weights file that the job begins with, or None.

    Raises:
        WeightsFileError: it cannot be read.
    """
    name = asked.training["pretrained_file"]
    try:
        return None if name is None else Path(name).read_bytes()
    except OSError as error:
        raise WeightsFileError(f"cannot read the weights file {name}: {error.strerror}") from error


def signature_of(asked: FederatedJobFile, job: FederatedJob) -> JobSignature | None:
    """The modeller's signature of what is published; None where the job names no key to sign with.

    Raises:
        ConfigurationError: the key cannot be read, or is none.
    """
    if asked.sign_with is None:
        return None
    try:
        return sign(job, Path(asked.sign_with).read_bytes())
    except OSError as error:
        raise ConfigurationError(f"sign_with: cannot read the key {asked.sign_with}: {error.strerror}") from error


def columns_of(asked: FederatedJobFile) -> BitfountSchema | None:
    """The schema that the job brings, or None where pods' own are merged."""
    name = asked.schema["file"]
    return None if name is None else BitfountSchema.load_from_file(name)


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
