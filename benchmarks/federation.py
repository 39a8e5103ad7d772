"""A federation in a folder of its own, for benchmarks: pods' tables and files, a Prefect server, jobs."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML
from tables import TARGET

from flows.environment import prepare
from flows.prefect_server import PrefectServer

COMMAND = [sys.executable, "-m", "flows.cli"]
MODEL = Path(__file__).with_name("classifier.py")
POLICY = {
    "columns": "all",
    "minimum_rows": 1,
    "maximum_rounds": 1000,
    "maximum_epochs": 1000,
    "maximum_steps": 100000,
    "minimum_pods": 1,
    "models": "all",
}


class Federation:
    """Pods and jobs below one folder.

    Args:
        folder: an empty one.
        tables: one for each pod.
    """

    def __init__(self, folder: Path, tables: Sequence[pd.DataFrame]) -> None:
        self.folder = folder
        self.pods = [f"pod-{number}" for number in range(len(tables))]
        for pod, table in zip(self.pods, tables, strict=True):
            table.to_csv(folder / f"{pod}.csv", index=False)
            value = {
                "name": pod,
                "data": {"csv": f"{pod}.csv"},
                "splitter": {"percentage": {"validation_percentage": 0, "test_percentage": 0}},
                "policy": POLICY,
                "store": "store",
            }
            self._write(f"{pod}.yaml", value)

    def job(
        self, hyperparameters: Mapping[str, Any], *, deployed: bool = False, pods: int | None = None, **training: Any
    ) -> Path:
        """A job's file: so many of the pods, or all of them, train the classifier."""
        names = self.pods[:pods]
        value: dict[str, Any] = {
            "name": "benchmark",
            "model": {"file": str(MODEL), "hyperparameters": dict(hyperparameters)},
            "pods": names if deployed else [f"{pod}.yaml" for pod in names],
            **({"store": "store"} if deployed else {}),
            "datastructure": {"target": TARGET},
            "schema": {"types": {"categorical": [TARGET]}},
            "training": {"seed": 1, **training},
            "federation": {"quorum": len(names)},
            "evaluate": False,
        }
        return self._write(f"job-{len(names)}.yaml", value)

    def _write(self, name: str, value: dict[str, Any]) -> Path:
        with (self.folder / name).open("w", encoding="utf-8") as stream:
            YAML().dump(value, stream)
        return self.folder / name

    @contextmanager
    def prefect(self) -> Iterator[str]:
        """A Prefect server that this process and its children talk to."""
        prepare(self.folder / "home", verbose=False)
        server = PrefectServer(self.folder / "prefect")
        try:
            url = os.environ["PREFECT_API_URL"] = server.wait()
            from flows.run import drain, settings_for

            with settings_for(url):
                yield url
                drain()
        finally:
            os.environ.pop("PREFECT_API_URL", None)
            server.stop()

    @contextmanager
    def served(self, pods: int) -> Iterator[None]:
        """Pods as processes of their own, for as long as the block."""
        with (self.folder / "pods.log").open("ab") as log:
            processes = [
                subprocess.Popen(  # noqa: S603 - our own command line
                    [*COMMAND, "pod", "serve", self.folder / f"{pod}.yaml", "--home", self.folder / f"home-{pod}"],
                    stdout=log,
                    stderr=log,
                )
                for pod in self.pods[:pods]
            ]
        try:
            self._wait_for(self.pods[:pods])
            yield
        finally:
            for process in processes:
                process.send_signal(signal.SIGINT)
            for process in processes:
                process.wait(60)

    def _wait_for(self, pods: Sequence[str]) -> None:
        from prefect.client.orchestration import get_client
        from prefect.exceptions import ObjectNotFound

        with get_client(sync_client=True) as client:
            for pod in pods:
                for _ in range(600):
                    try:
                        client.read_deployment_by_name(f"pod/{pod}")
                        break
                    except ObjectNotFound:
                        threading.Event().wait(0.1)
                else:
                    raise RuntimeError(f"{pod} is not served: see {self.folder / 'pods.log'}")

    def train(self, job: Path, job_id: str) -> list[Any]:
        """Runs a job; gives the records of its rounds."""
        from flows.console import RunView
        from flows.federated_run import train
        from flows.run import Surroundings
        from flows.settings import read_job
        from flows.workspace import Workspace
        from tasks.federated.job_file import FederatedJobFile
        from tasks.federated.round_record import read_records

        workspace = Workspace(self.folder / "home")
        asked = read_job(job)
        if not isinstance(asked, FederatedJobFile):
            raise TypeError(f"{job} is no federated job")
        train(asked, job_id, None, Surroundings(workspace, None, RunView(io.StringIO()), verbose=False))
        return read_records(workspace.store(job_id))
