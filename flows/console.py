"""What a user sees of a run: a live bar on a terminal, plain lines elsewhere, a summary at the end."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

TITLES = {
    "initialise": "reading rows, building the model",
    "fit": "training",
    "evaluate": "evaluating on the test rows",
    "predict": "predicting",
    "compare": "training on each pod alone, and on all rows pooled",
    "plots": "drawing plots",
    "report": "writing the report",
    "package": "making the model ready to serve",
    "record": "recording in MLflow",
    "register": "registering the model",
}


class RunView:
    """Shows the events of a run as they come.

    Args:
        stream: where to; a terminal gets a live bar.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.console = Console(file=stream, soft_wrap=True, highlight=False)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._began = time.monotonic()
        self._tenths = 0

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._resume_bar()
        return self

    def __exit__(self, *_: object) -> None:
        self._pause_bar()

    def on_event(self, event: str, values: dict[str, Any]) -> None:
        """Shows one event of `tasks.progress`."""
        handler = {
            "begin": self._begin,
            "end": self._end,
            "epoch": self._epoch,
            "batch": self._batch,
            "rows": self._rows,
            "tracking": self._tracking,
        }.get(event)
        if handler is not None:
            handler(values)

    def say(self, text: str) -> None:
        """Prints a line."""
        self.console.print(text, markup=False)

    def _begin(self, values: dict[str, Any]) -> None:
        self._began = time.monotonic()
        title = TITLES.get(values["step"], values["step"])
        if self._bar is None:
            self.say(f"{title} …")
        else:
            self._drop_bar()
            self._task = self._bar.add_task(title, total=None, metrics="")

    def _end(self, values: dict[str, Any]) -> None:
        if self._bar is not None:
            self._drop_bar()
            seconds = time.monotonic() - self._began
            self.say(f"✓ {TITLES.get(values['step'], values['step'])}  {seconds:.1f} s")

    def _batch(self, values: dict[str, Any]) -> None:
        if self._bar is not None and self._task is not None:
            done = (values["epoch"] - 1) * values["batches"] + values["batch"]
            self._bar.update(
                self._task,
                description=f"training: epoch {values['epoch']}/{values['epochs']}",
                completed=done,
                total=values["epochs"] * values["batches"],
            )

    def _rows(self, values: dict[str, Any]) -> None:
        done, rows = values["done"], values["rows"]
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task("predicting", total=rows, metrics="")
            self._bar.update(self._task, completed=done, metrics=f"{done:,} of {rows:,} rows")
        elif (tenth := 10 * done // rows) > self._tenths:
            self._tenths = tenth
            self.say(f"  {done:,} of {rows:,} rows")

    def _epoch(self, record: dict[str, Any]) -> None:
        metrics = metric_text(record)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, metrics=metrics)
        else:
            self.say(f"  {record.get('unit', 'epoch')} {record['epoch']}/{record['epochs']}  {metrics}")

    def _tracking(self, values: dict[str, Any]) -> None:
        self.say(f"! {values['error']}")

    def _resume_bar(self) -> None:
        self._task = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self._bar.start()

    def _pause_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _drop_bar(self) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None


def metric_text(record: dict[str, Any]) -> str:
    """The first few numbers of an epoch, in one line."""
    numbers = {} if record["train_loss"] is None else {"loss": record["train_loss"]}
    numbers.update(record["val_stats"])
    shown = ((name, "undefined" if value is None else f"{value:.4f}") for name, value in numbers.items())
    return "  ".join(f"{name} {value}" for name, value in list(shown)[:4])


def show_summary(view: RunView, summary: dict[str, Any]) -> None:
    """Prints what came out, where it is, and how to look at it."""
    view.say("")
    show_metrics(view, summary["name"], summary["metrics"], summary["test_rows"])
    show_files(view, summary)


def show_files(view: RunView, summary: dict[str, Any]) -> None:
    """Prints where things are, and how to look at them."""
    lines = {
        "job": summary["job_id"],
        "weights": f"{summary['weights']}\n             sha256 {summary['weights_sha256']}",
        "best": summary.get("best"),
        "predictions": summary["predictions"],
        "test rows": summary["test_predictions"],
        "report": summary["report"],
        "MLflow run": summary["mlflow_run_id"] or "not recorded yet: MLflow could not be reached",
        "registered": summary["registered"],
        "took": f"{summary['seconds']:.1f} s",
    }
    for name, value in lines.items():
        if value is not None:
            view.say(f"{name + ':':13s}{value}")
    view.say(f"\nLook at it:  {summary['ui_command']}")


def show_metrics(view: RunView, name: str, metrics: dict[str, float | None], rows: int) -> None:
    """Prints metrics as a table."""
    if not metrics:
        view.say("no test rows, so no test metrics")
        return
    table = Table(title=f"{name}: metrics on {rows} rows", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for metric, value in metrics.items():
        table.add_row(metric, "undefined" if value is None else f"{value:.4f}")
    view.console.print(table)


def program() -> str:
    """How the user's shell finds this program: by its name where it is on the path, else by the file that was started."""
    if shutil.which("bitfount-flows"):
        return "bitfount-flows"
    started = Path(sys.argv[0])
    return os.path.relpath(started) if started.name == "bitfount-flows" else "python -m flows.cli"


def stream_for(as_json: bool) -> TextIO:
    """Where the words for people go: away from standard output when that is for a script."""
    return sys.stderr if as_json else sys.stdout
