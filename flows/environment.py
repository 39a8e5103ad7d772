"""What Prefect, MLflow and Lightning read from the environment, set before any of them is imported.

A variable that the user has set stays as it is. Nothing heavy is imported here: see `flows.prefect_server`.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

SERVER = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # SQLite behind Prefect's server takes about 60 task runs a second one by one, and over 200 in batches.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}

# No step keeps its result in Prefect; should one ever, then as JSON and not as pickle.
RESULTS = {"PREFECT_RESULTS_DEFAULT_SERIALIZER": "json"}

QUIET = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}


def prepare(home: Path, *, verbose: bool, environment: MutableMapping[str, str] | None = None) -> None:
    """Sets the variables that are not set yet.

    Args:
        home: the workspace; Prefect's own files go below it.
        verbose: leaves the packages' logging as it is.
        environment: the process's own, by default.
    """
    from tasks.mlflow_client import quiet_mlflow_environment

    target = os.environ if environment is None else environment
    wanted = {**SERVER, **RESULTS, **quiet_mlflow_environment(), "PREFECT_HOME": str((home / "prefect").resolve())}
    for name, value in {**wanted, **({} if verbose else QUIET)}.items():
        target.setdefault(name, value)
