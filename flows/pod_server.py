"""The data owner's process: serves one pod through Prefect, with outbound connections only."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential

from bitfount_model.errors import ConfigurationError
from bitfount_model.federation.policy import policy_from_json
from flows.environment import prepare, quiet
from flows.prefect_server import require_answer
from flows.settings import read_pod
from flows.workspace import only_once
from tasks.federated.pod_file import PodFile

POLL_SECONDS = "1"
"""How often Prefect is asked for new jobs."""
LONGEST_PAUSE_SECONDS = 30.0
"""Between two tries to reach a Prefect server that is away."""


def serve_pod(pod_file: Path, home: Path, *, verbose: bool, say: Callable[[str], None]) -> None:
    """Registers `pod/<name>` with the Prefect of `PREFECT_API_URL` and takes part in jobs until it is stopped.

    Args:
        pod_file: the owner's file.
        home: folder of Prefect's own files.
        verbose: leaves the packages' logging as it is.
        say: prints a line.

    Raises:
        ConfigurationError: the file, its policy, its store, its private folder or `PREFECT_API_URL` is missing or
            wrong.
        ServerError: Prefect does not answer.
    """
    settings = read_pod(pod_file)
    policy_from_json(settings.policy)
    settings.private().prepare()
    api = os.environ.get("PREFECT_API_URL")
    if not api:
        raise ConfigurationError(
            "a pod is reached through a Prefect server: set PREFECT_API_URL to the one that the modeller uses, e.g."
            " http://prefect.example.org:4200/api"
        )
    require_answer(api)
    prepare(home, verbose=verbose)
    os.environ.setdefault("PREFECT_RUNNER_POLL_FREQUENCY", POLL_SECONDS)
    from flows import pod as pod_flow

    os.environ[pod_flow.POD_FILE] = str(pod_file.resolve())
    if verbose:
        os.environ[pod_flow.VERBOSE] = "1"
    store = pod_flow.store_of(settings)
    settings.pod()
    with only_once(home / "pods" / settings.name, "pod"), quiet(verbose):
        say(
            f"pod {settings.name}: serving pod/{settings.name} through {api}, meeting modellers in {store}; Ctrl-C ends it"
        )
        serve_for_ever(settings, say)


def serve_for_ever(settings: PodFile, say: Callable[[str], None]) -> None:
    """Takes part in jobs; a Prefect server that is away for long is waited for."""
    from prefect import serve
    from prefect.deployments.runner import RunnerDeployment

    from flows import pod as pod_flow
    from flows.stale_runs import end_stale_runs
    from tasks.prefect_errors import UNREACHABLE

    def once() -> None:
        end_stale_runs("the pod's process was stopped", flow=pod_flow.pod.name, deployment=settings.name)
        deployment = pod_flow.pod.to_deployment(
            settings.name, tags=["pod"], description="A data owner's pod: takes part in one federated job per run."
        )
        serve(
            cast(RunnerDeployment, deployment),
            limit=settings.jobs_at_once,
            print_starting_message=False,
            pause_on_shutdown=False,
        )

    def told(state: RetryCallState) -> None:
        say(f"pod {settings.name}: Prefect does not answer; trying again …")

    # What its runner raises when Prefect has not answered for minutes, after its own retries.
    away = retry_if_exception_type((RuntimeError, ExceptionGroup, *UNREACHABLE))
    Retrying(retry=away, wait=wait_exponential(multiplier=1, max=LONGEST_PAUSE_SECONDS), before_sleep=told)(once)
