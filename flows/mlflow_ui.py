"""MLflow's own pages over the runs of a workspace, on loopback."""

from __future__ import annotations

import os
import signal
import subprocess

from bitfount_model.errors import ConfigurationError
from flows.environment import prepare
from flows.services import mlflow_command
from flows.workspace import Workspace


def serve(workspace: Workspace, port: int) -> int:
    """Runs MLflow's server until it is stopped.

    Returns:
        Its exit code; 0 after Ctrl-C or SIGTERM.

    Raises:
        ConfigurationError: the workspace has no runs.
    """
    if not (workspace.home / "mlflow.db").exists():
        raise ConfigurationError(f"there are no runs in {workspace.home}: train a job first, or name its --home")
    prepare(workspace.home, verbose=False)
    command = [
        *mlflow_command("127.0.0.1", port),
        *("--backend-store-uri", workspace.tracking_uri, "--default-artifact-root", workspace.artifacts.as_uri()),
    ]
    # In a session of its own, so that it and its workers end together, whatever ends this command.
    server = subprocess.Popen(command, env={**os.environ, "PYTHONWARNINGS": "ignore"}, start_new_session=True)  # noqa: S603 - no shell
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()
