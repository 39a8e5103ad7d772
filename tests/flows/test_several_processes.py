"""A model whose `trainer_init` asks for two processes: jobs and scripts end with the weights of one process on doubled batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from tests.flows.conftest import Ended, run_command

ROWS, BATCH = 400, 16
"""320 rows train: 20 batches, or 10 of twice the rows."""
MODEL = """\
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from bitfount_model import PyTorchBitfountModel, PyTorchClassifierMixIn


class Net(PyTorchClassifierMixIn, PyTorchBitfountModel):
    def __init__(self, devices=1, strategy="auto", precision="32-true", **kwargs):
        super().__init__(**kwargs)
        self.devices, self.strategy, self.precision = devices, strategy, precision

    def create_model(self):
        return nn.Sequential(nn.Linear(self.datastructure.input_size, 8), nn.ReLU(), nn.Linear(8, self.n_classes))

    def forward(self, x):
        x, sup = x
        return self._model(x)

    def trainer_init(self):
        return pl.Trainer(
            accelerator="cpu", devices=self.devices, strategy=self.strategy, precision=self.precision, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, num_sanity_val_steps=0,
        )

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

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
SCRIPT = """\
import json
import os
import sys
from pathlib import Path

import pandas as pd

from bitfount_model import BitfountSchema, CSVSource, DataStructure
from model import Net

if __name__ == "__main__":
    devices, strategy, batch_size = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    rows, schema = CSVSource("rows.csv"), BitfountSchema()
    schema.generate_full_schema(pd.read_csv("rows.csv"), force_stypes={"categorical": ["target"]})
    structure = DataStructure(target="target")
    lengths = {"epochs": 2, "seed": 7, "batch_size": batch_size}
    model = Net(devices, strategy, datastructure=structure, schema=schema, **lengths)
    model.fit(rows)
    model.serialize("weights.safetensors")
    said = {"val_stats": model.val_stats, "tested": len(model.evaluate().preds)}
    Path(f"said.{os.environ.get('LOCAL_RANK', 0)}.json").write_text(json.dumps(said))
"""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    table = pd.DataFrame(generator.standard_normal((ROWS, 5)), columns=list("abcde"))
    table["target"] = (table.a + table.b * table.c > 0).astype(int)
    path = tmp_path / "rows.csv"
    table.to_csv(path, index=False)
    return path


@pytest.fixture
def write(job_file: Callable[..., Path], rows: Path) -> Callable[..., Path]:
    """A job's file; keyword arguments are hyperparameters of the model, but for `training`, which has the length."""

    def call(training: dict[str, Any] | None = None, **hyperparameters: Any) -> Path:
        return job_file(
            MODEL,
            model={"file": "model.py", "hyperparameters": hyperparameters},
            data={"csv": str(rows)},
            training={"seed": 7, "batch_size": BATCH, **(training or {"epochs": 2})},
            predict=None,
        )

    return call


def trained(job: Path, home: Path, job_id: str) -> Ended:
    """A job in a process of its own, as a fork wants it."""
    return run_command("train", job, "--home", home, "--job-id", job_id, "--json")


def weights_of(path: str | Path) -> dict[str, np.ndarray]:
    weights: dict[str, np.ndarray] = load_file(path)
    return weights


def assert_close(found: str | Path, want: str | Path) -> None:
    one, other = weights_of(found), weights_of(want)
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], rtol=0, atol=1e-6, err_msg=name)


def test_a_job_in_two_processes_ends_with_the_weights_of_one_on_doubled_batches(
    prefect_url: str, write: Callable[..., Path], home: Path
) -> None:
    names = ("in-two-processes", "in-one-process")
    two = trained(write(devices=2, strategy="ddp_fork"), home, names[0])
    assert two.code == 0, two
    one = trained(write({"epochs": 2, "batch_size": 2 * BATCH}), home, names[1])
    assert one.code == 0, one

    assert_close(two.summary["weights"], one.summary["weights"])
    assert two.summary["metrics"] == pytest.approx(one.summary["metrics"], abs=1e-4)
    history, wanted = (json.loads((home / "jobs" / name / "fit/history.json").read_text()) for name in names)
    assert [epoch["rows"] for epoch in history] == [320, 320]
    for epoch, other in zip(history, wanted, strict=True):
        assert epoch["train_loss"] == pytest.approx(other["train_loss"], abs=1e-6)
        assert epoch["val_stats"] == pytest.approx(other["val_stats"], abs=1e-4)
    assert count_of_task_runs(names[0]) == count_of_task_runs(names[1])


def count_of_task_runs(flow: str) -> int:
    """How many steps Prefect has seen of a job."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

    with get_client(sync_client=True) as client:
        named = FlowRunFilter(name=FlowRunFilterName(any_=[flow]))
        return len(client.read_task_runs(flow_run_filter=named, limit=200))


@pytest.mark.parametrize(
    ("training", "hyperparameters", "said"),
    [
        ({}, {"devices": 2, "strategy": "ddp"}, "run the whole command again, which a job cannot"),
        ({}, {"devices": 2, "strategy": "ddp_spawn"}, "import the model by name, which a job cannot"),
        ({"steps": 3}, {"devices": 2, "strategy": "ddp_fork"}, "a fit in steps runs in one process"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(
    main: Callable[..., Ended],
    write: Callable[..., Path],
    home: Path,
    training: dict[str, Any],
    hyperparameters: dict[str, Any],
    said: str,
) -> None:
    job = write(training, **hyperparameters)
    ended = main(["train", job, "--home", home, "--job-id", "refused"])
    assert ended.code == 2, ended
    assert said in ended.err.replace("\n", " "), ended.err


def test_a_script_that_lightning_starts_again_for_each_process(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL, encoding="utf-8")
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")

    run_script(tmp_path, "1", "auto", str(2 * BATCH))
    (tmp_path / "weights.safetensors").rename(tmp_path / "wanted.safetensors")
    run_script(tmp_path, "2", "ddp", str(BATCH))

    assert_close(tmp_path / "weights.safetensors", tmp_path / "wanted.safetensors")
    first, second = (json.loads((tmp_path / f"said.{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert (len(first["val_stats"]), first["tested"]) == (2, 40)


def run_script(folder: Path, *arguments: str) -> None:
    ended = subprocess.run(
        [sys.executable, "script.py", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(folder)])},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def test_precision_is_lightnings(main: Callable[..., Ended], write: Callable[..., Path], home: Path) -> None:
    exact = main(["train", write(), "--home", home, "--job-id", "exact", "--json"])
    mixed = main(["train", write(precision="bf16-mixed"), "--home", home, "--job-id", "mixed", "--json"])
    assert (exact.code, mixed.code) == (0, 0), mixed
    one, other = weights_of(exact.summary["weights"]), weights_of(mixed.summary["weights"])
    assert all(value.dtype == np.float32 for value in other.values())
    assert 0 < max(np.abs(value - other[name]).max() for name, value in one.items()) < 0.2
