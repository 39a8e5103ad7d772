"""What batch prediction costs: memory and time for 5,000,000 rows of 30 floats, killed once in the middle and continued.

`bitfount-flows predict --model` as a process of its own, with its own Prefect server: from Parquet to a folder of Parquet
files, and from a SQLite table to another one. The process is killed by SIGKILL when half of the rows are done, and the same
command goes on. Memory is the peak of resident memory (VmHWM) of the command, and of the server that it starts; rows and
keys are counted afterwards, by pyarrow and by SQLite.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
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
from federation import COMMAND, MODEL
from memory import peak_mb
from promises import Form, Promise, amount, command_line

ROWS = {Form.QUICK: 1_000_000, Form.USUAL: 5_000_000, Form.FULL: 5_000_000}
COLUMNS = [f"c{number}" for number in range(30)]
CHUNK = 100_000
PROMISE_MB = 1000
"""Most resident memory of the command."""

JOB = """\
name: rows
register: rows
model: {file: classifier.py, hyperparameters: {hidden: [64]}}
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
    return [*COMMAND, *arguments]


def peaks(pid: int) -> tuple[int, int]:
    """MB of resident memory at most so far, of a process and of its children together."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return peak_mb(pid), sum(peak_mb(int(child)) for child in children)


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


def killed_and_continued(home: Path, workload: Workload, rows: int) -> dict[str, float]:
    """One prediction, killed when half of its rows are done and continued: peak of memory, wrong rows, rows a second."""
    arguments = command(
        "predict", "--model", "rows@champion", "--data", workload.data, "--out", workload.out, "--home", str(home)
    )
    _, before, code = run(arguments, lambda: workload.done() >= rows // 2)
    if code != -signal.SIGKILL:
        raise RuntimeError(f"the command had predicted {rows:,} rows before it was killed: give it more")
    at = workload.done()
    seconds, after, _ = run(arguments, lambda: False)
    kept, keys = workload.counted()
    return {
        "wrong_rows": abs(rows - kept) + abs(rows - keys),
        "peak_mb": max(before[0], after[0]),
        "seconds_a_million": 1e6 * seconds / (rows - at),
    }


def measure(runs: int, form: Form) -> list[Promise]:
    """Rows of memory, of rows that were lost or predicted twice, and of time, for each way."""
    rows = ROWS[form]
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(runs):
        for kind, figures in each_way(rows).items():
            found.setdefault(kind, []).append(figures)
    return [row for kind, figures in found.items() for row in rows_of(f"predicting {rows:,} rows, {kind}", figures)]


def rows_of(name: str, figures: list[dict[str, float]]) -> list[Promise]:
    """What one way's runs gave."""

    def of(which: str) -> list[float]:
        return [each[which] for each in figures]

    return [
        amount(f"{name}, memory", of("peak_mb"), PROMISE_MB, unit="MB"),
        amount(f"{name}, lost or doubled", of("wrong_rows"), 0, unit="rows"),
        amount(f"{name}, a million rows", of("seconds_a_million"), unit="s"),
    ]


def each_way(rows: int) -> dict[str, dict[str, float]]:
    """Figures of each way, below one folder with one trained model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(MODEL, folder)
        (folder / "job.yaml").write_text(JOB, encoding="utf-8")
        write_rows(folder, rows)
        train = command("train", str(folder / "job.yaml"), "--home", str(folder / "home"))
        subprocess.run(train, check=True, capture_output=True)  # noqa: S603 - our own command line
        return {
            kind: killed_and_continued(folder / "home", workload, rows) for kind, workload in workloads(folder).items()
        }


if __name__ == "__main__":
    command_line(measure, __doc__, {Form.QUICK: 1, Form.USUAL: 1, Form.FULL: 1})
