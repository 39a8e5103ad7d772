"""What training on a table larger than memory costs: peak memory and rows a second, for 20,000,000 rows of 30 float32 columns.

`bitfount-flows train` with `stream: true` as a process of its own, with its own Prefect server: from a Parquet file, written in
chunks, through one epoch of training, validation and the test. Memory is the peak of resident memory (VmHWM) of the command, and
of the server that it starts. Rows are counted in what the job leaves: those trained, validated and tested make all of them. The
file and the encoded rows take 2.6 GB of disk each.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from batch_prediction import COLUMNS, command, run
from federation import MODEL
from promises import Form, Promise, amount, command_line

ROWS = {Form.QUICK: 1_000_000, Form.USUAL: 20_000_000, Form.FULL: 20_000_000}
CHUNK = 250_000
PROMISE_MB = 1500
"""Most resident memory of the command."""
BYTES_A_ROW = 400
"""Of disk: the file, the encoded rows, and what the job keeps of its test rows."""

JOB = """\
name: streamed
model: {file: classifier.py, hyperparameters: {hidden: [64]}}
data: {parquet: rows.parquet, stream: true}
datastructure: {target: target}
training: {epochs: 1, batch_size: 512, seed: 1}
"""


def table(start: int, rows: int) -> pa.Table:
    """Rows of random numbers and a class that depends on two of them, the same for the same place."""
    values = np.random.default_rng(start).normal(size=(len(COLUMNS), rows)).astype(np.float32)
    target = (values[0] + values[1] > 0).astype(np.int64)
    return pa.table({**dict(zip(COLUMNS, values, strict=True)), "target": target})


def write_rows(path: Path, rows: int) -> None:
    """The rows as a Parquet file, of which one chunk at a time is in memory."""
    with pq.ParquetWriter(path, table(0, 1).schema) as writer:
        for start in range(0, rows, CHUNK):
            writer.write_table(table(start, min(CHUNK, rows - start)))


def measure(runs: int, form: Form) -> list[Promise]:
    """Rows of memory, of rows that were lost or used twice, and of time."""
    rows = ROWS[form]
    found = [streamed(rows) for _ in range(runs)]

    def of(name: str) -> list[float]:
        return [float(each[name]) for each in found]

    name = f"streaming {rows:,} rows"
    return [
        amount(f"{name}, memory", of("peak_mb"), PROMISE_MB, unit="MB"),
        amount(f"{name}, rows lost or doubled", of("wrong_rows"), 0, unit="rows"),
        amount(f"{name}, an epoch", of("fit_seconds"), unit="s"),
    ]


def streamed(rows: int) -> dict[str, Any]:
    """Figures of one job in a folder of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        free = shutil.disk_usage(folder).free
        if free < rows * BYTES_A_ROW:
            raise SystemExit(f"{folder} has {free:,} bytes free, wanted {rows * BYTES_A_ROW:,}; set TMPDIR")
        write_job(folder, rows)
        return figures(folder, rows)


def write_job(folder: Path, rows: int) -> None:
    """The job, its model and its rows."""
    shutil.copy(MODEL, folder)
    (folder / "job.yaml").write_text(JOB, encoding="utf-8")
    write_rows(folder / "rows.parquet", rows)


def figures(folder: Path, rows: int) -> dict[str, Any]:
    """Runs the job: peak of memory in MB, seconds of the epoch, rows that are not in exactly one part."""
    arguments = command("train", str(folder / "job.yaml"), "--home", str(folder / "home"), "--job-id", "streamed")
    _, (peak_mb, _), _ = run(arguments, lambda: False)
    steps = {path.stem: json.loads(path.read_text()) for path in (folder / "home").glob("jobs/streamed/steps/*.json")}
    (epoch,) = json.loads((folder / "home" / "jobs" / "streamed" / "fit" / "history.json").read_text())
    parts = steps["initialise"]["values"]["rows"]
    tested = steps["evaluate"]["values"]["rows"]
    return {
        "peak_mb": peak_mb,
        "wrong_rows": abs(epoch["rows"] - parts["train"])
        + abs(sum(parts.values()) - rows)
        + abs(tested - parts["test"]),
        "fit_seconds": steps["fit"]["values"]["seconds"],
    }


if __name__ == "__main__":
    command_line(measure, __doc__, {Form.QUICK: 1, Form.USUAL: 1, Form.FULL: 1})
