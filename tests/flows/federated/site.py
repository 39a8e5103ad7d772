"""Pods as their owners have them: files, rows and processes of their own; and a model that a test can hold at a round."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from ruamel.yaml import YAML
from sklearn.datasets import load_breast_cancer

from tests.flows.conftest import command

WAIT_SECONDS = 240
SERVED: dict[tuple[str, str], subprocess.Popen[bytes]] = {}
"""(a Prefect server, a pod) -> the newest process that serves it."""

MODEL = """\
import os
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from bitfount_model import PyTorchBitfountModel, PyTorchClassifierMixIn


class Net(PyTorchClassifierMixIn, PyTorchBitfountModel):
    def __init__(self, gate="", lr=0.05, width=8, **kwargs):
        super().__init__(**kwargs)
        self.gate = gate
        self.width = width
        self.lr = lr

    def create_model(self):
        size = self.datastructure.input_size
        hidden = [nn.Linear(size, self.width), nn.BatchNorm1d(self.width), nn.ReLU(), nn.Dropout(0.2)]
        return nn.Sequential(*hidden, nn.Linear(self.width, self.n_classes))

    def forward(self, x):
        x, sup = x
        return self._model(x)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def on_train_start(self):
        if not self.gate:
            return
        gate = Path(self.gate)
        name = f"{self._identifier}.{self.position // len(self.train_dataloader()) + 1}"
        if (gate / f"{name}.here").exists():  # a pipe: all that a model that is shut off may write to
            here = os.open(gate / f"{name}.here", os.O_RDWR)  # does not wait for a reader
            os.write(here, b".")
            os.close(here)
        if (gate / f"{name}.raise").exists():
            raise ValueError(f"cannot go on with the row of {self.read(self._data).iloc[0].to_dict()}")
        while (gate / f"{name}.hold").exists():
            time.sleep(0.01)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        return {"validation_loss": F.cross_entropy(self(x), y)}

    def test_step(self, batch, batch_idx):
        x, y = batch
        return {"predictions": F.softmax(self(x), dim=1), "targets": y}
"""

POLICY: dict[str, Any] = {
    "columns": "all",
    "minimum_rows": 10,
    "maximum_rounds": 1000,
    "maximum_epochs": 1000,
    "maximum_steps": 10000,
    "minimum_pods": 1,
    "models": "all",
}


def rows_of(pods: int = 3, rows: int = 60) -> list[pd.DataFrame]:
    """Some real rows for each pod, six measures of a cell and whether it is malignant."""
    frame = load_breast_cancer(as_frame=True).frame
    frame = frame[[*frame.columns[:6], "target"]].rename(columns=lambda name: name.replace(" ", "_"))
    return [frame.iloc[place * rows : (place + 1) * rows].reset_index(drop=True) for place in range(pods)]


def write_yaml(path: Path, value: Mapping[str, Any]) -> Path:
    """A YAML file."""
    with path.open("w", encoding="utf-8") as stream:
        YAML().dump(dict(value), stream)
    return path


def wait_for(what: Callable[[], Any], said: str) -> Any:
    """What a condition gives once it holds; a test that waits in vain says for what."""
    until = time.monotonic() + WAIT_SECONDS
    while not (found := what()):
        if time.monotonic() > until:
            raise AssertionError(f"waited {WAIT_SECONDS} s in vain for {said}")
        threading.Event().wait(0.02)
    return found


class Here:
    """A pipe that a model writes to when it is at a place in its training.

    Args:
        path: where it is made.
    """

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        self._pipe: int | None = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def exists(self) -> bool:
        """Whether it has written."""
        if self._pipe is not None and select.select([self._pipe], [], [], 0)[0] and os.read(self._pipe, 1):
            os.close(self._pipe)
            self._pipe = None
        return self._pipe is None


@dataclass
class Site:
    """Pods, a model and jobs below one folder.

    Attributes:
        folder: of everything.
        names: of the pods.
    """

    folder: Path
    names: tuple[str, ...] = ("ann", "bob", "cat")
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store = self.folder / "store"
        self.gate = self.folder / "gate"
        self.gate.mkdir(parents=True)
        (self.folder / "model.py").write_text(MODEL, encoding="utf-8")
        for name, rows in zip(self.names, rows_of(len(self.names)), strict=True):
            rows.to_csv(self.folder / f"{name}.csv", index=False)
            self.write_pod(name)

    def write_pod(self, name: str, policy: Mapping[str, Any] | None = None, **keys: Any) -> Path:
        """A pod's file; keyword arguments replace its keys."""
        value = {"name": name, "data": {"csv": f"{name}.csv"}, "store": "store", "policy": {**POLICY, **(policy or {})}}
        return write_yaml(self.folder / f"{name}.yaml", {**value, **keys})

    def write_job(self, *, deployed: bool, name: str = "job", rounds: int = 3, **sections: Any) -> Path:
        """A job's file; keyword arguments replace its sections."""
        value = {
            "name": "cells",
            "model": {"file": "model.py", "hyperparameters": {"gate": str(self.gate)}},
            "pods": list(self.names) if deployed else [f"{pod}.yaml" for pod in self.names],
            **({"store": "store"} if deployed else {}),
            "datastructure": {"target": "target"},
            "training": {"epochs": rounds, "seed": 5, "batch_size": 16},
            "federation": {"quorum": 2, "deadline_seconds": 150},
            "metrics": ["AUC"],
        }
        return write_yaml(self.folder / f"{name}.yaml", {**value, **sections})

    def hold(self, pod: str, round_number: int) -> Here:
        """The pod stops at the start of its training in a round; gives what says that it is there."""
        here = Here(self.gate / f"{pod}.{round_number}.here")
        (self.gate / f"{pod}.{round_number}.hold").touch()
        return here

    def let_go(self, pod: str, round_number: int) -> None:
        """The pod goes on."""
        (self.gate / f"{pod}.{round_number}.hold").unlink()

    def raises(self, pod: str, round_number: int) -> None:
        """The pod's model raises in a round."""
        (self.gate / f"{pod}.{round_number}.raise").touch()

    def clear(self) -> None:
        """No pod is held, and none raises."""
        for path in self.gate.iterdir():
            path.unlink()

    # -- processes ------------------------------------------------------------------------------------------------------------

    def serve(self, *pods: str, **environment: str) -> None:
        """Starts `pod serve` for pods, and waits until each is registered; their names are no other site's at that moment."""
        for pod in pods:
            place = (os.environ["PREFECT_API_URL"], pod)
            other = SERVED.get(place)
            assert other is None or other.poll() is not None, f"another site's pod {pod} would take this one's jobs"
            log = self.log(pod).open("ab")
            self.processes[pod] = SERVED[place] = subprocess.Popen(
                command("pod", "serve", self.folder / f"{pod}.yaml", "--home", self.folder / f"home-{pod}"),
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            )
            log.close()
        for pod in pods:
            wait_for(lambda pod=pod: self._is_served(pod), f"pod {pod} to be served:\n{self.log(pod).read_text()}")

    def _is_served(self, pod: str) -> bool:
        if self.processes[pod].poll() is not None:
            raise AssertionError(f"pod {pod} ended:\n{self.log(pod).read_text()}")
        return is_registered(pod)

    def log(self, pod: str) -> Path:
        """What the pod's owner sees."""
        return self.folder / f"{pod}.log"

    def worker(self, pod: str, job_id: str) -> psutil.Process:
        """The process that takes part in a job for a pod."""
        wait_for(lambda: f"job {job_id}: began" in self.log(pod).read_text(), f"pod {pod} to begin {job_id}")
        children = psutil.Process(self.processes[pod].pid).children(recursive=True)
        return next(child for child in reversed(children) if "prefect" in " ".join(child.cmdline()))

    def stop(self, *pods: str) -> None:
        """Ends pods as their owners do, and checks that nothing of them is left."""
        for pod in pods:
            process = self.processes.pop(pod)
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            process.send_signal(signal.SIGINT)
            process.wait(WAIT_SECONDS)
            _, left = psutil.wait_procs(family, timeout=WAIT_SECONDS)
            assert not left, f"left of pod {pod}: {left}"

    def kill_all(self) -> None:
        """At the end of a test that may have failed: nothing stays behind."""
        for process in self.processes.values():
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()
                process.wait()


def is_registered(pod: str) -> bool:
    """Whether Prefect knows `pod/<name>`."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            return bool(client.read_deployment_by_name(f"pod/{pod}"))
        except ObjectNotFound:
            return False
