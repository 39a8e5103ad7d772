"""Two federated jobs on real servers, and a browser to look at them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.browser.browser import Browser, installed
from tests.flows.conftest import run_command
from tests.tracking_server import TrackingServer, free_port, wait_until_it_answers

ROOT = Path(__file__).parents[2]
HOSPITALS = ROOT / "examples" / "hospitals"
MODEL = "tumours"
PICTURES = "SCREENSHOTS"
"""The environment variable that names the folder for pictures; by default a temporary one."""

# MLflow opens its assistant over a third of the page until it is closed once.
CLOSED_ASSISTANT = """
localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
"""


@dataclass(frozen=True)
class Reviewed:
    """What there is to look at.

    Attributes:
        mlflow: address of the MLflow server.
        prefect: address of the Prefect server's pages.
        home: the workspace.
        first: summary of the job that averages.
        second: summary of the same job with another server optimiser.
    """

    mlflow: str
    prefect: str
    home: Path
    first: dict[str, Any]
    second: dict[str, Any]

    @property
    def summaries(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Both jobs'."""
        return self.first, self.second


@pytest.fixture(scope="module")
def prefect_with_pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prefect server of the module's own: that of other tests has no pages."""
    home = tmp_path_factory.mktemp("prefect-with-pages")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    own = {"PREFECT_HOME": str(home), "PREFECT_API_URL": f"{url}/api", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, **own},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        assert wait_until_it_answers(f"{url}/api/health", server), (home / "server.log").read_text()[-3000:]
        yield url
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture(scope="module")
def reviewed(
    mlflow_server: TrackingServer, prefect_with_pages: str, tmp_path_factory: pytest.TempPathFactory
) -> Reviewed:
    """The hospitals of the example train twice, with another server optimiser; both times a model is registered."""
    folder = tmp_path_factory.mktemp("hospitals")
    example = Path(shutil.copytree(HOSPITALS, folder / "example", ignore=shutil.ignore_patterns("data", "__pycache__")))
    subprocess.run([sys.executable, example / "make_pods.py"], check=True, capture_output=True)
    home = folder / "home"

    def train(optimiser: str) -> dict[str, Any]:
        ended = run_command(
            *("train", example / "job.yaml", "--home", home, "--job-id", f"hospitals-{optimiser.lower()}", "--json"),
            *("--tracking-uri", mlflow_server.uri, "--set", f"register={MODEL}"),
            *("--set", f"federation.optimiser={optimiser}", "--set", "training.epochs=10"),
            environment={"PREFECT_API_URL": f"{prefect_with_pages}/api"},
        )
        assert ended.code == 0, ended
        return ended.summary

    return Reviewed(mlflow_server.uri, prefect_with_pages, home, train("FedAvg"), train("FedAdam"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures go."""
    folder = Path(os.environ.get(PICTURES) or tmp_path_factory.mktemp("pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def browser(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium; without it tests are skipped, but not where the gate runs."""
    programs = installed()
    if programs is None:
        told = "Chromium is missing: as root, apt-get install chromium chromium-driver"
        pytest.fail(told) if "CI" in os.environ else pytest.skip(told)
    browser = Browser(programs, tmp_path_factory.mktemp("chromium"), pictures)
    browser.before_each_page(CLOSED_ASSISTANT)
    yield browser
    browser.close()
