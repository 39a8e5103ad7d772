"""MLflow's own pages over the runs of a workspace, on loopback."""

from __future__ import annotations

import os
import subprocess
import sys

from bitfount_model.errors import ConfigurationError
from flows.environment import prepare
from flows.workspace import Workspace


def serve(workspace: Workspace, port: int) -> int:
    """Runs MLflow's server until it is stopped.

    Returns:
        Its exit code; 0 after Ctrl-C.

    Raises:
        ConfigurationError: the workspace has no runs.
    """
    if not (workspace.home / "mlflow.db").exists():
        raise ConfigurationError(f"there are no runs in {workspace.home}: train a job first, or name its --home")
    prepare(workspace.home, verbose=False)
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", workspace.tracking_uri, "--default-artifact-root", workspace.artifacts.as_uri()),
    ]
    server = subprocess.Popen(command, env=dict(os.environ))  # noqa: S603 - our own interpreter, no shell
    try:
        return server.wait()
    except KeyboardInterrupt:
        # The terminal sent the interrupt to the server as well: it is on its way out.
        server.wait()
        return 0
