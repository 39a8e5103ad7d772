"""Runs all benchmarks, one after the other, each as a process of its own, and prints one table of all promises.

Progress goes to standard error, the table to standard output, and all rows to a JSON file. A benchmark that fails is named at the
end, and the others go on. With `--check`, a figure of more than twice the recorded one is measured again; if it is so both times,
it is named too. The exit code is 0 only if nothing was named. A promise that is missed is shown, and is no failure.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import psutil
from promises import Form, Promise, add_form, print_table, read_rows, write_json
from recorded import better, regressions, unrecorded

FOLDER = Path(__file__).parent
BENCHMARKS = ("start_up", "local_fit", "exchange", "secure_sum", "embedded_rounds", "deployed_rounds", "simulate")
LONG = ("streaming", "batch_prediction")
"""Those of the full form alone: many minutes, and gigabytes of disk."""


@dataclass(frozen=True)
class Outcome:
    """What one benchmark gave.

    Attributes:
        rows: its rows; none if it failed.
        error: why it failed, or None.
    """

    rows: list[Promise] = field(default_factory=list)
    error: str | None = None


def run_benchmark(path: Path, form: Form) -> Outcome:
    """Runs one benchmark as a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        command = [sys.executable, str(path), *([] if form is Form.USUAL else [f"--{form}"]), "--json", str(rows)]
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")  # noqa: S603, PLW1510
        if ended.returncode:
            return Outcome(error=f"exit code {ended.returncode}\n{ended.stderr[-2000:]}")
        return Outcome(read_rows(rows))


def measured(path: Path, form: Form, recorded: Sequence[Promise]) -> Outcome:
    """Runs one benchmark; a second time if a figure has grown grossly, as the machine may have been busy."""
    outcome = run_benchmark(path, form)
    if not regressions(outcome.rows, recorded):
        return outcome
    say("    grossly above what is recorded: once more")
    again = run_benchmark(path, form)
    return again if again.error else Outcome(better(outcome.rows, again.rows))


def measure_all(paths: Sequence[Path], form: Form, recorded: Sequence[Promise]) -> Iterator[tuple[str, Outcome]]:
    """Runs benchmarks one after the other, saying how far it is; gives name and outcome of each as it ends."""
    for number, path in enumerate(paths, 1):
        say(f"{number} of {len(paths)}: {path.stem} …")
        began = time.monotonic()
        outcome = measured(path, form, recorded)
        kept = [row.met for row in outcome.rows if row.met is not None]
        ended = f"failed: {outcome.error}" if outcome.error else f"{sum(kept)} of {len(kept)} promises met"
        say(f"    {time.monotonic() - began:.0f} s, {ended}")
        yield path.stem, outcome


def say(text: str) -> None:
    """Tells people how far it is."""
    print(text, file=sys.stderr, flush=True)


def machine() -> str:
    """The machine in words."""
    memory = round(psutil.virtual_memory().total / 2**30)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "pytorch-lightning", "prefect", "mlflow"))
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {memory} GiB; Python {platform.python_version()}, {packages}"
    )


def main() -> int:
    """Measures, prints, writes; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", type=Path, help="files of benchmarks (default: all of this folder)")
    parser.add_argument(
        "--json", type=Path, default=FOLDER.parent / "bench.json", help="the rows (default: bench.json)"
    )
    parser.add_argument("--check", type=Path, help="rows of an earlier run: fails where a figure is over twice theirs")
    add_form(parser)
    options = parser.parse_args()
    names = (*BENCHMARKS, *(LONG if options.form is Form.FULL else ()))
    paths = options.only or [FOLDER / f"{name}.py" for name in names]
    recorded = read_rows(options.check) if options.check else []
    say(f"{machine()}; {options.form} form")
    rows: list[Promise] = []
    failed: list[str] = []
    for name, outcome in measure_all(paths, options.form, recorded):
        rows += outcome.rows
        failed += [name] if outcome.error else []
        # now, so that what is done stays if the rest is stopped
        write_json(options.json, rows, machine=machine(), form=options.form, failed=failed)
    grown = regressions(rows, recorded)
    print_table(rows)
    for name in failed:
        say(f"failed: {name}")
    for name, what in grown.items():
        say(f"over twice what is recorded: {name}: {what}")
    if options.check:
        for name in unrecorded(rows, recorded):
            say(f"not recorded, so not held against anything: {name}")
    return 1 if failed or grown else 0


if __name__ == "__main__":
    sys.exit(main())
