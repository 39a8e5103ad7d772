"""A real MLflow server process on loopback, for tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tasks.mlflow_client import quiet_mlflow_environment

START_SECONDS = 90

# As the command line does, before a test module imports MLflow.
os.environ.update(quiet_mlflow_environment())


def free_port() -> int:
    """A port of loopback on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_it_answers(url: str, process: subprocess.Popen[Any]) -> bool:
    """Waits for a server; False where its process ended, or it took too long."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=1) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            threading.Event().wait(0.1)
    return False


class TrackingServer:
    """An MLflow server that can be stopped and started again on the same port and data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it answers."""
        command = ["server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        places = [
            f"--backend-store-uri=sqlite:///{self.folder}/mlflow.db",
            f"--artifacts-destination={self.folder}/files",
        ]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *command, *places],
                cwd=self.folder,
                env={**os.environ, **quiet_mlflow_environment()},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if not wait_until_it_answers(f"{self.uri}/health", self.process):
            raise RuntimeError((self.folder / "server.log").read_text(errors="replace")[-3000:])

    def stop(self) -> None:
        """Ends it and its workers at once, as a crash would."""
        if self.process is None:
            return
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None
