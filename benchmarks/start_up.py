"""What it takes until something happens: imports, the command line's help, the first batch of a job.

Every figure is of processes of their own. Imports: `import bitfount_model` against `import pytorch_lightning`, in turn, as
`python -X importtime` counts them; and what the library must not load. Help: `bitfount-flows --help`, beside Python's own start.
First batch: from the start of `bitfount-flows train` on scikit-learn's digits, with its own Prefect server and MLflow, until the
model has its first batch, beside bare PyTorch that reads the same file. One import and one start of the help are left out: they
fill the disk's cache.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from federation import COMMAND, MODEL
from promises import Form, Promise, amount, command_line, ratio
from tables import digits

IMPORT_RATIO, HELP_SECONDS = 1.15, 0.5
NOT_IN_LIBRARY = {"prefect", "mlflow", "tasks", "flows"}
NOT_IN_HELP = {"torch", "pytorch_lightning", "prefect", "mlflow", "pandas"}

BARE = """\
import time

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

table = pd.read_csv("digits.csv")
features = torch.tensor(table.drop(columns="target").to_numpy(), dtype=torch.float32)
targets = torch.tensor(table["target"].to_numpy())
net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
rows = torch.randperm(len(features))[:32]
batch = features[rows], targets[rows]
open("first_batch", "w").write(str(time.time()))
"""
FIRST_BATCH = """

class Watched(Classifier):
    def training_step(self, batch, batch_idx):
        with open("first_batch", "a") as stream:
            stream.write(f"{time.time()}\\n")
        return super().training_step(batch, batch_idx)
"""
JOB = """\
name: first
model: {file: model.py, class: Watched, hyperparameters: {hidden: [64]}}
data: {csv: digits.csv}
datastructure: {target: target}
schema: {types: {categorical: [target]}}
training: {epochs: 1, batch_size: 32, seed: 1}
"""


def measure(runs: int, form: Form) -> list[Promise]:
    """Rows of the imports, the help and the first batch."""
    imports = [(imported("pytorch_lightning"), imported("bitfount_model")) for _ in range(runs + 1)][1:]
    helps = [(seconds("-c", "pass"), seconds(*COMMAND[1:], "--help")) for _ in range(runs + 1)][1:]
    first = [first_batches() for _ in range(max(1, runs // 2))]  # a whole job each
    library = loaded(NOT_IN_LIBRARY, "-c", "import bitfount_model")
    help_page = loaded(NOT_IN_HELP, *COMMAND[1:], "--help")
    python, ours = zip(*helps, strict=True)
    return [
        ratio("import bitfount_model, over import pytorch_lightning", imports, IMPORT_RATIO, unit="s"),
        amount("import bitfount_model, packages it must not load", [library], 0, unit=""),
        amount("bitfount-flows --help, beside Python's start", ours, HELP_SECONDS, unit="s", floor=python),
        amount("bitfount-flows --help, packages it must not load", [help_page], 0, unit=""),
        ratio("first batch of a local job, beside bare PyTorch", first, unit="s"),
    ]


def import_times(*arguments: str) -> dict[str, float]:
    """Module -> seconds, with those of what it imports, of every module that a start of Python loads."""
    command = [sys.executable, "-X", "importtime", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - our own command line
    lines = [line.removeprefix("import time:").split("|") for line in ended.stderr.splitlines() if "|" in line]
    return {name.strip(): 1e-6 * int(cumulative) for _, cumulative, name in lines if cumulative.strip().isdigit()}


def imported(module: str) -> float:
    """Seconds that importing a module takes a new process."""
    return import_times("-c", f"import {module}")[module]


def loaded(forbidden: set[str], *arguments: str) -> float:
    """How many of some packages a start of Python loads."""
    packages = {name.partition(".")[0] for name in import_times(*arguments)}
    if not packages & {"bitfount_model", "flows"}:
        raise RuntimeError(f"python {' '.join(arguments)} loads neither the library nor the command line")
    return float(len(forbidden & packages))


def seconds(*arguments: str) -> float:
    """How long a start of Python takes until it ends."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)  # noqa: S603
    return time.perf_counter() - began


def first_batches() -> tuple[float, float]:
    """Seconds until the first batch, of bare PyTorch and of a local job."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digits().to_csv(folder / "digits.csv", index=False)
        source = MODEL.read_text(encoding="utf-8").replace("import itertools\n", "import itertools\nimport time\n")
        (folder / "model.py").write_text(source + FIRST_BATCH, encoding="utf-8")
        (folder / "job.yaml").write_text(JOB, encoding="utf-8")
        bare = until_first_batch([sys.executable, "-c", BARE], folder)
        return bare, until_first_batch([*COMMAND, "train", "job.yaml", "--home", "home"], folder)


def until_first_batch(command: list[str], folder: Path) -> float:
    """Seconds from the start of a command until it has said that it has a batch."""
    said = folder / "first_batch"
    said.unlink(missing_ok=True)
    began = time.time()
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=os.environ)  # noqa: S603
    return float(said.read_text(encoding="utf-8").splitlines()[0]) - began


if __name__ == "__main__":
    command_line(measure, __doc__, {Form.QUICK: 1, Form.USUAL: 3, Form.FULL: 11})
