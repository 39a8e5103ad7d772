"""Puts one file's training or retraining on a work pool, and the automations that start killed runs again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import EntrypointType
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.schedules import Cron, Schedule
from prefect.workers.process import ProcessWorker
from pydantic import ValidationError
from ruamel.yaml import YAML

from bitfount_model.errors import ConfigurationError
from flows.deployed import training
from flows.prefect_server import require_answer
from flows.retrain import retraining
from flows.settings import read_job, read_retraining, read_yaml
from tasks.federated.job_file import FederatedJobFile
from tasks.mlflow_client import without_password

AUTOMATIONS = Path(__file__).parent.parent / "deployments" / "automations.yaml"
RESTARTED = "restart-when-killed"
"""The tag of runs that the automations look at."""
ENVIRONMENT = {
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # what the automations count on
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
}
"""What a run's process has in its environment."""


def require_prefect() -> str:
    """The URL of the Prefect server that deployments are kept by.

    Raises:
        ConfigurationError: `PREFECT_API_URL` is not set.
        ServerError: it does not answer.
    """
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        raise ConfigurationError(
            "deployments are kept by a Prefect server: set PREFECT_API_URL to yours, e.g. http://127.0.0.1:4200/api"
        )
    require_answer(url)
    return url


def deploy(
    path: Path, given: dict[str, Any], *, name: str | None, cron: str | None, timezone: str, pool: str
) -> tuple[str, str]:
    """Makes or updates the deployment of a job's or a retraining's file.

    Args:
        path: the file, where the worker finds it too.
        given: parameters of its runs beside the file.
        name: of the deployment; by default the file's own name.
        cron: when it runs by itself; None for never.
        timezone: that the cron means.
        pool: the work pool, of the type process; made where there is none.

    Returns:
        The deployment's full name, `flow/name`, and its id.

    Raises:
        ConfigurationError: the file or the schedule is wrong.
    """
    own_name, flow, parameter, tags = described(path)
    require_no_password(given)
    schedule = schedule_of(cron, timezone)
    with get_client(sync_client=True) as client:
        require_pool(client, pool)
    deployment = flow.to_deployment(
        name or own_name,
        description=(flow.__doc__ or "").splitlines()[0],
        tags=[*tags, RESTARTED],
        parameters={parameter: str(path.resolve()), **given},
        schedules=[] if schedule is None else [schedule],
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
        work_pool_name=pool,
        job_variables={"env": ENVIRONMENT},
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    return f"{flow.name}/{deployment.name}", str(deployment.apply())


def described(path: Path) -> tuple[str, Flow[..., Any], str, list[str]]:
    """Reads a file and checks it, as `train` or `retrain` does.

    Returns:
        Its name, the flow that runs it, the parameter of the flow that names the file, and tags.

    Raises:
        ConfigurationError: it is neither a job nor a retraining, or is wrong.
    """
    if "job" in read_yaml(path, "file"):
        asked = read_retraining(path)
        read_job(Path(asked.job))
        return asked.name, retraining, "retraining_file", ["retraining"]
    job = read_job(path)
    kind = "federated" if isinstance(job, FederatedJobFile) else "local"
    return job.name, training, "job_file", ["training", kind]


def require_no_password(given: dict[str, Any]) -> None:
    """Prefect shows a deployment's parameters to everybody who may use it.

    Raises:
        ConfigurationError: a URL among them holds one.
    """
    for parameter, value in given.items():
        if value and without_password(str(value)) != value:
            raise ConfigurationError(
                f"{parameter} holds a password, which everybody would see in Prefect: give it without one, and set the password"
                " in the worker's environment"
            )


def schedule_of(cron: str | None, timezone: str) -> Schedule | None:
    """When a deployment runs by itself.

    Raises:
        ConfigurationError: no cron, or no time zone, of this kind.
    """
    if cron is None:
        return None
    try:
        ZoneInfo(timezone)
        return Cron(cron, timezone=timezone)
    except (ValidationError, ValueError, ZoneInfoNotFoundError) as error:
        raise ConfigurationError(
            f"--cron {cron!r} --timezone {timezone!r}: wanted five fields such as '0 2 * * *', and a time zone such as"
            " Europe/London"
        ) from error


def require_pool(client: SyncPrefectClient, name: str) -> None:
    """Makes the work pool where there is none.

    Raises:
        ConfigurationError: it is there, and its workers start no processes.
    """
    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        pool = client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
    if pool.type != "process":
        raise ConfigurationError(
            f"the work pool {name!r} is of the type {pool.type}: wanted process; choose another --pool"
        )


def install_automations(path: Path = AUTOMATIONS) -> Sequence[str]:
    """Makes the automations of a file, or updates those of the same name that are not the same.

    Returns:
        Their names.

    Raises:
        ConfigurationError: the file is not there, or holds something else.
    """
    wanted = read_automations(path)
    with get_client(sync_client=True) as client:
        for automation in wanted:
            there = client.read_automations_by_name(automation.name)
            if not there:
                client.create_automation(automation)
            elif content_of(there[0]) != content_of(automation):  # an update forgets which runs have beaten
                client.update_automation(there[0].id, automation)
    return [automation.name for automation in wanted]


def content_of(automation: AutomationCore) -> dict[str, Any]:
    """An automation without the ids that the server gives it."""
    content: dict[str, Any] = automation.model_dump(mode="json", include=set(AutomationCore.model_fields))
    trigger = {name: value for name, value in content["trigger"].items() if name != "id"}
    # Prefect keeps them as sets, in any order.
    return {
        **content,
        "trigger": {**trigger, **{name: sorted(trigger[name]) for name in ("after", "expect", "for_each")}},
    }


def read_automations(path: Path) -> list[AutomationCore]:
    """The automations of a file, in the form that `prefect automation create --from-file` takes.

    Raises:
        ConfigurationError: the file is not there, or holds something else.
    """
    document = YAML(typ="safe").load(path) if path.is_file() else None
    if not isinstance(document, dict) or not isinstance(document.get("automations"), list):
        raise ConfigurationError(
            f"{path}: wanted a file with a list `automations`, as deployments/automations.yaml of a clone"
        )
    try:
        return [AutomationCore.model_validate(each) for each in document["automations"]]
    except ValidationError as error:
        places = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors()[:3])
        raise ConfigurationError(f"{path}: not an automation: see {places}") from error
