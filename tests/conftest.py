"""What tests of several rooms share: a real MLflow server, and its empty database."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tasks.mlflow_client import connect
from tests.tracking_server import TrackingServer

# On a busy machine any example may take long. The gate tries the same examples each time; people's machines try new ones.
settings.register_profile("project", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("project")


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables and nothing in them, to copy: making the tables takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def mlflow_server(mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    """A server for the session; a test that stops it starts it again."""
    folder = tmp_path_factory.mktemp("mlflow-server")
    shutil.copy(mlflow_database, folder / "mlflow.db")
    server = TrackingServer(folder)
    server.start()
    yield server
    server.stop()
