"""What training on a table larger than memory costs: peak memory and rows a second, for 20,000,000 rows of 30 float32 columns.

`bitfount-flows train` with `stream: true` as a process of its own, with its own Prefect server: from a Parquet file, written in
chunks, through one epoch of training, validation and the test. Memory is the peak of resident memory (VmHWM) of the command, and
of the server that it starts. Rows are counted in what the job leaves: those trained, validated and tested make all of them. The
file and the encoded rows take 2.6 GB of disk each.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from batch_prediction import COLUMNS, MODEL, command, run
from federation import one_line

CHUNK = 250_000
PROMISE_MB = 1500
"""Most resident memory of the command."""
BYTES_A_ROW = 400
"""Of disk: the file, the encoded rows, and what the job keeps of its test rows."""

JOB = """\
name: streamed
model: {file: model.py}
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


def measure(folder: Path, rows: int) -> dict[str, Any]:
    """Figures of one job."""
    arguments = command("train", str(folder / "job.yaml"), "--home", str(folder / "home"), "--job-id", "streamed")
    seconds, (peak_mb, server_mb), _ = run(arguments, lambda: False)
    steps = {path.stem: json.loads(path.read_text()) for path in (folder / "home").glob("jobs/streamed/steps/*.json")}
    (epoch,) = json.loads((folder / "home" / "jobs" / "streamed" / "fit" / "history.json").read_text())
    parts = steps["initialise"]["values"]["rows"]
    return {
        "rows": rows,
        "trained": epoch["rows"],
        "split": sum(parts.values()),
        "is_exact": epoch["rows"] == parts["train"] and sum(parts.values()) == rows,
        "tested": steps["evaluate"]["values"]["rows"],
        "auc": steps["evaluate"]["values"]["metrics"]["AUC"],
        "fit_seconds": steps["fit"]["values"]["seconds"],
        "seconds": seconds,
        "rows_a_second": epoch["rows"] / steps["fit"]["values"]["seconds"],
        "peak_mb": peak_mb,
        "server_mb": server_mb,
        "promise_mb": PROMISE_MB,
    }


def main() -> None:
    """Prints a table, and writes it as JSON where asked."""
    parser = argparse.ArgumentParser(description=one_line(__doc__))
    parser.add_argument("--rows", type=int, default=20_000_000, help="rows of the table (default: 20000000)")
    parser.add_argument("--json", type=Path, help="a file to write the figures to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        free = shutil.disk_usage(folder).free
        if free < options.rows * BYTES_A_ROW:
            raise SystemExit(f"{folder} has {free:,} bytes free, wanted {options.rows * BYTES_A_ROW:,}; set TMPDIR")
        (folder / "model.py").write_text(MODEL, encoding="utf-8")
        (folder / "job.yaml").write_text(JOB, encoding="utf-8")
        write_rows(folder / "rows.parquet", options.rows)
        found = measure(folder, options.rows)
    print(
        "streamed training, 30 columns        rows   trained      tested   rows/s   whole s   peak MB (+ server)   promise"
    )
    met = "met" if found["is_exact"] and found["peak_mb"] <= PROMISE_MB else "missed"
    print(
        f"{'Parquet':<28}{found['rows']:>13,}{found['trained']:>12,}{found['tested']:>11,}{found['rows_a_second']:>9,.0f}"
        f"{found['seconds']:>10,.0f}{found['peak_mb']:>10,} (+ {found['server_mb']:,})   {PROMISE_MB:>10,} {met}"
    )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
