"""Real MLflow for the tests of recording: databases of each test's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.tracking_server import free_port


@pytest.fixture
def sqlite_uri(mlflow_database: Path, tmp_path: Path) -> str:
    """A tracking database of the test's own."""
    path = tmp_path / "mlflow.db"
    shutil.copy(mlflow_database, path)
    return f"sqlite:///{path}"


@pytest.fixture
def dead_uri() -> str:
    """The tracking URI of a server that is not there."""
    return f"http://127.0.0.1:{free_port()}"
