"""What Prefect, MLflow and Lightning read from the environment, set before any of them is imported.

A variable that the user has set stays as it is. Nothing heavy is imported here: see `flows.prefect_server`.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
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
    if environment is None:
        with suppress(
            OSError
        ):  # Prefect warns of a folder that it does not find, and says itself what is wrong with one
            Path(target["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)


@contextmanager
def quiet(verbose: bool) -> Iterator[None]:
    """Keeps what packages log and warn about out of the user's way."""
    if verbose:
        yield
        return
    names = (
        "pytorch_lightning",
        "lightning",
        "lightning.pytorch",
        "mlflow",
        "alembic",
        "prefect",
        "prefect._internal",
        "httpx",
        "py.warnings",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        levels = {name: logging.getLogger(name).level for name in names}
        for name in names:
            # What its threads say of a server that is away for a while helps nobody.
            logging.getLogger(name).setLevel(logging.CRITICAL if name == "prefect._internal" else logging.ERROR)
        consoles = prefect_consoles()
        for handler in consoles:
            handler.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for handler, level in consoles.items():
                handler.setLevel(level)
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def prefect_consoles() -> dict[logging.Handler, int]:
    """The handlers through which Prefect prints, with their levels: none where it was told to be quiet before its import."""
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in list(logging.Logger.manager.loggerDict))]
    found = {handler for logger in loggers for handler in logger.handlers}
    return {handler: handler.level for handler in found if type(handler).__name__ == "PrefectConsoleHandler"}
