"""The data owner's process: serves one pod through Prefect, with outbound connections only."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from bitfount_model.errors import ConfigurationError
from bitfount_model.federation.policy import policy_from_json
from flows.environment import prepare
from flows.prefect_server import require_answer
from flows.settings import read_pod

POLL_SECONDS = "1"
"""How often Prefect is asked for new jobs."""


def serve_pod(pod_file: Path, home: Path, *, verbose: bool, say: Callable[[str], None]) -> None:
    """Registers `pod/<name>` with the Prefect of `PREFECT_API_URL` and takes part in jobs until it is stopped.

    Args:
        pod_file: the owner's file.
        home: folder of Prefect's own files.
        verbose: leaves the packages' logging as it is.
        say: prints a line.

    Raises:
        ConfigurationError: the file, its policy, its store or `PREFECT_API_URL` is missing or wrong.
        ServerError: Prefect does not answer.
    """
    settings = read_pod(pod_file)
    policy_from_json(settings.policy)
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
    store = pod_flow.store_of(settings)
    settings.pod()
    from prefect import serve

    say(f"pod {settings.name}: serving pod/{settings.name} through {api}, meeting modellers in {store}; Ctrl-C ends it")
    deployment = pod_flow.pod.to_deployment(
        settings.name, tags=["pod"], description="A data owner's pod: takes part in one federated job per run."
    )
    serve(deployment, limit=settings.jobs_at_once, print_starting_message=False, pause_on_shutdown=False)
