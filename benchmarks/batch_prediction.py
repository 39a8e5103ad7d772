"""What batch prediction costs: memory and time for 5,000,000 rows of 30 floats, killed once in the middle and continued.

`bitfount-flows predict --model` as a process of its own, with its own Prefect server: from Parquet to a folder of Parquet
files, and from a SQLite table to another one. The process is killed by SIGKILL when half of the rows are done, and the same
command goes on. Memory is the peak of resident memory (VmHWM) of the command, and of the server that it starts; rows and
keys are counted afterwards, by pyarrow and by SQLite.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from federation import one_line

COLUMNS = [f"c{number}" for number in range(30)]
CHUNK = 100_000
PROMISE_MB = 1000
"""Most resident memory of the command."""

MODEL = """\
import torch
from torch import nn
from torch.nn import functional as F

from bitfount_model import PyTorchBitfountModel, PyTorchClassifierMixIn


class Net(PyTorchClassifierMixIn, PyTorchBitfountModel):
    def create_model(self):
        return nn.Sequential(nn.Linear(self.datastructure.input_size, 64), nn.ReLU(), nn.Linear(64, self.n_classes))

    def forward(self, x):
        x, sup = x
        return self._model(x)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        return {"validation_loss": self.training_step(batch, batch_idx)}

    def test_step(self, batch, batch_idx):
        x, y = batch
        return {"predictions": F.softmax(self(x), dim=1), "targets": y}
"""

JOB = """\
name: rows
register: rows
model: {file: model.py}
data: {parquet: known.parquet, key: id}
datastructure: {target: target}
schema: {types: {categorical: [target]}}
training: {epochs: 1, batch_size: 512, seed: 1}
"""


@dataclass(frozen=True)
class Workload:
    """One way from rows to predictions.

    Attributes:
        data: the option --data.
        out: the option --out.
        done: how many rows are predicted.
        counted: rows and distinct keys of the predictions.
    """

    data: str
    out: str
    done: Callable[[], int]
    counted: Callable[[], tuple[int, int]]


def table(start: int, rows: int) -> pa.Table:
    """Rows of random numbers, the same for the same place."""
    values = np.random.default_rng(start).normal(size=(len(COLUMNS), rows))
    return pa.table({"id": np.arange(start, start + rows), **dict(zip(COLUMNS, values, strict=True))})


def write_rows(folder: Path, rows: int) -> None:
    """The rows to predict, as Parquet and as a table of SQLite; and a few known ones, to train on."""
    known = table(0, 2000)
    target = pc.cast(pc.greater(known["c0"], 0), pa.int64())
    pq.write_table(known.append_column("target", target), folder / "known.parquet")
    database = sqlite3.connect(folder / "rows.db")
    database.execute(f"CREATE TABLE rows (id INTEGER PRIMARY KEY, {', '.join(f'{name} REAL' for name in COLUMNS)})")
    insert = f"INSERT INTO rows VALUES ({', '.join('?' * (len(COLUMNS) + 1))})"  # noqa: S608 - only question marks
    with pq.ParquetWriter(folder / "rows.parquet", table(0, 1).schema) as writer:
        for start in range(0, rows, CHUNK):
            chunk = table(start, min(CHUNK, rows - start))
            writer.write_table(chunk)
            with database:
                columns = [column.to_pylist() for column in chunk.columns]
                database.executemany(insert, zip(*columns, strict=True))
    database.close()


def workloads(folder: Path) -> dict[str, Workload]:
    """From Parquet to Parquet, and from SQLite to SQLite."""
    parts, answers = folder / "parts", folder / "answers.db"

    def in_parts() -> int:
        return sum(pq.read_metadata(path).num_rows for path in parts.glob("*/*.parquet"))

    def counted_in_parts() -> tuple[int, int]:
        keys = ds.dataset(parts).to_table(columns=["key"])["key"]
        return len(keys), pc.count_distinct(keys).as_py()

    def asked(query: str) -> tuple[Any, ...]:
        with sqlite3.connect(answers, timeout=60) as database:
            return tuple(database.execute(query).fetchone() or (0,))

    def in_table() -> int:
        try:
            return int(asked("SELECT rows_done FROM bitfount_predictions")[0])
        except sqlite3.OperationalError:  # not made yet
            return 0

    return {
        "Parquet": Workload(f"{{parquet: {folder / 'rows.parquet'}, key: id}}", str(parts), in_parts, counted_in_parts),
        "SQLite": Workload(
            f"{{sql: {{url: 'sqlite:///{folder / 'rows.db'}', table: rows}}, key: id}}",
            f"{{sql: {{url: 'sqlite:///{answers}', table: answers}}}}",
            in_table,
            lambda: asked("SELECT count(*), count(DISTINCT key) FROM answers"),  # type: ignore[return-value]
        ),
    }


def command(*arguments: str) -> list[str]:
    """The command line."""
    return [sys.executable, "-m", "flows.cli", *arguments]


def peaks(pid: int) -> tuple[int, int]:
    """MB of resident memory at most so far, of a process and of its children together."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return peak(pid), sum(peak(int(child)) for child in children)


def peak(pid: int) -> int:
    """MB of resident memory that a process has had at most; 0 of one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), 0)


def run(arguments: list[str], until: Callable[[], bool]) -> tuple[float, tuple[int, int], int]:
    """Runs a command until it ends, or until it is killed.

    Returns:
        Seconds; peaks of memory; exit code.
    """
    began, found = time.monotonic(), (0, 0)
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(arguments, stdout=said, stderr=said, start_new_session=True)  # noqa: S603 - our own command line
        while process.poll() is None:
            try:
                now = peaks(process.pid)
            except OSError:
                now = found
            found = max(found[0], now[0]), max(found[1], now[1])
            if until():
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            time.sleep(0.2)
        if process.returncode not in (0, -signal.SIGKILL):
            said.seek(0)
            raise RuntimeError(said.read().decode(errors="replace"))
        return time.monotonic() - began, found, process.returncode


def measure(home: Path, workload: Workload, rows: int) -> dict[str, Any]:
    """Figures of one prediction, killed when half of its rows are done and continued."""
    arguments = command(
        "predict", "--model", "rows@champion", "--data", workload.data, "--out", workload.out, "--home", str(home)
    )
    _, before, code = run(arguments, lambda: workload.done() >= rows // 2)
    if code != -signal.SIGKILL:
        raise RuntimeError("the command ended before it was killed: give it more --rows")
    at = workload.done()
    seconds, after, _ = run(arguments, lambda: False)
    kept, keys = workload.counted()
    return {
        "rows": rows,
        "killed_at": at,
        "kept": kept,
        "keys": keys,
        "peak_mb": max(before[0], after[0]),
        "server_mb": max(before[1], after[1]),
        "rows_a_second": (rows - at) / seconds,
        "promise_mb": PROMISE_MB,
    }


def main() -> None:
    """Prints a table, and writes it as JSON where asked."""
    parser = argparse.ArgumentParser(description=one_line(__doc__))
    parser.add_argument("--rows", type=int, default=5_000_000, help="rows to predict (default: 5000000)")
    parser.add_argument("--json", type=Path, help="a file to write the figures to")
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.py").write_text(MODEL, encoding="utf-8")
        (folder / "job.yaml").write_text(JOB, encoding="utf-8")
        write_rows(folder, options.rows)
        train = command("train", str(folder / "job.yaml"), "--home", str(folder / "home"))
        subprocess.run(train, check=True, capture_output=True)  # noqa: S603 - our own command line
        for kind, workload in workloads(folder).items():
            found[kind] = measure(folder / "home", workload, options.rows)
    print(
        "batch prediction, 30 columns     killed at      rows kept   distinct keys   rows/s   peak MB (+ server)   promise"
    )
    for kind, row in found.items():
        exact = row["kept"] == row["keys"] == row["rows"]
        met = "met" if exact and row["peak_mb"] <= row["promise_mb"] else "missed"
        print(
            f"{kind:<30}{row['killed_at']:>12,}{row['kept']:>15,}{row['keys']:>16,}{row['rows_a_second']:>9,.0f}"
            f"{row['peak_mb']:>10,} (+ {row['server_mb']:,})   {row['promise_mb']:>10,} {met}"
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
