"""A real Prefect server for the session, and job files on real rows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows.environment import prepare
from flows.prefect_server import PrefectServer

MODEL = """\
import torch
from torch import nn
from torch.nn import functional as F

from bitfount_model import PyTorchBitfountModel, PyTorchClassifierMixIn


class Net(PyTorchClassifierMixIn, PyTorchBitfountModel):
    def __init__(self, lr=0.01, **kwargs):
        super().__init__(**kwargs)
        self.lr = lr

    def create_model(self):
        size = self.datastructure.input_size
        return nn.Sequential(nn.Linear(size, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, self.n_classes))

    def forward(self, x):
        x, sup = x
        return self._model(x)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)

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

JOB: dict[str, Any] = {
    "name": "tumours",
    "model": {"file": "model.py"},
    "data": {"sklearn": "breast_cancer"},
    "datastructure": {"target": "target"},
    "training": {"epochs": 3, "seed": 7, "batch_size": 32},
    "predict": {"data": {"sklearn": "breast_cancer"}},
}


@pytest.fixture(scope="session")
def prefect_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server of this session's own; code in this process and its children talks to it."""
    home = tmp_path_factory.mktemp("prefect")
    prepare(home, verbose=False)
    server = PrefectServer(home)
    try:
        url = server.wait()
        os.environ["PREFECT_API_URL"] = url
        from flows.run import drain, settings_for

        with settings_for(url):
            yield url
            drain()
    finally:
        os.environ.pop("PREFECT_API_URL", None)
        server.stop()


@pytest.fixture
def home(tmp_path: Path, mlflow_database: Path) -> Path:
    """A workspace of the test's own."""
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copy(mlflow_database, folder / "mlflow.db")
    return folder


@pytest.fixture
def job_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a job file beside a model file; keyword arguments replace the job's sections."""

    def write(source: str = MODEL, **sections: Any) -> Path:
        (tmp_path / "model.py").write_text(source, encoding="utf-8")
        path = tmp_path / "job.yaml"
        with path.open("w", encoding="utf-8") as stream:
            YAML().dump({**JOB, **sections}, stream)
        return path

    return write


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def summary(self) -> dict[str, Any]:
        """The JSON object of the last line."""
        value: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return value


def command(*arguments: str | Path) -> list[str]:
    """The command line as a user's shell would start it."""
    return [sys.executable, "-m", "flows.cli", *map(str, arguments)]


def run_command(*arguments: str | Path, timeout: float = 240, environment: Mapping[str, str] | None = None) -> Ended:
    """Runs the command line in a process of its own; its environment is this one's, with these variables."""
    env = {**os.environ, **(environment or {})}
    ended = subprocess.run(command(*arguments), env=env, capture_output=True, text=True, timeout=timeout, check=False)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture
def command_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[[Sequence[str | Path]], Ended]:
    """The command line's `main` in this process: what it prints, and its exit code."""
    from flows.cli import main as entry

    def call(arguments: Sequence[str | Path]) -> Ended:
        monkeypatch.setattr(sys, "argv", ["bitfount-flows", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            entry()
        said = capfd.readouterr()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else 0, said.out, said.err)

    return call


@pytest.fixture
def main(
    prefect_url: str, command_line: Callable[[Sequence[str | Path]], Ended]
) -> Callable[[Sequence[str | Path]], Ended]:
    """The same, with the session's Prefect server."""
    return command_line
