"""What a user sees of a federated job: a live table of rounds and pods on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flows.console import RunView, metric_text, show_files, show_metrics
from tasks.federated.compare import comparison_rows

ROUNDS_SHOWN = 10
PODS_SHOWN = 6
"""More pods than these are counted, not listed."""
METRICS_SHOWN = 2


class FederatedView(RunView):
    """Shows the events of a federated job as they come.

    Args:
        stream: where to; a terminal gets a live table.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._live: Live | None = None
        self._rounds = RoundsTable()
        self._said: set[tuple[str, str]] = set()

    def __exit__(self, *details: object) -> None:
        self._stop_table()
        super().__exit__(*details)

    def on_event(self, event: str, values: dict[str, Any]) -> None:
        """Shows one event of `tasks.progress`."""
        handler = {
            "joined": self._joined,
            "round_open": self._round_open,
            "pod_batch": self._pod_batch,
            "pod_fitted": self._pod_fitted,
            "pod_answered": self._pod_answered,
            "pod_failed": self._pod_failed,
            "round_closed": self._round_closed,
        }.get(event)
        if event in ("begin", "end"):
            self._stop_table()
        if handler is None:
            super().on_event(event, values)
        elif event != "joined" or not self._rounds.pods:
            handler(values)
        if self._live is not None:
            self._live.update(self._rounds.drawn())

    def _joined(self, values: dict[str, Any]) -> None:
        for pod, reason in values["missing"].items():
            self._say_missing("joining", pod, reason)
        self.say(f"  {len(values['joined'])} pods: {', '.join(values['joined'])}")

    def _round_open(self, values: dict[str, Any]) -> None:
        self._rounds.open(values["round"], values["rounds"], values["pods"])
        if self.console.is_terminal and self._live is None:
            self._pause_bar()
            self._live = Live(self._rounds.drawn(), console=self.console, refresh_per_second=8, transient=True)
            self._live.start()

    def _pod_batch(self, values: dict[str, Any]) -> None:
        done = (values["epoch"] - 1) * values["batches"] + values["batch"]
        self._rounds.show(values["pod"], f"training {done}/{values['epochs'] * values['batches']}")

    def _pod_fitted(self, values: dict[str, Any]) -> None:
        self._rounds.show(values["pod"], "sent")

    def _pod_answered(self, values: dict[str, Any]) -> None:
        record = {"train_loss": None, "val_stats": dict(list(values["metrics"].items())[:METRICS_SHOWN])}
        self._rounds.show(values["pod"], f"✓ {values['rows_per_second']:,.0f} rows/s  {metric_text(record)}")

    def _pod_failed(self, values: dict[str, Any]) -> None:
        self._rounds.show(values["pod"], "✗ failed")

    def _round_closed(self, values: dict[str, Any]) -> None:
        number, losses = values["round_number"], [v for v in values["train_loss"].values() if v is not None]
        loss = sum(losses) / len(losses) if losses else None
        metrics = metric_text({"train_loss": loss, "val_stats": values["metrics"]})
        self._rounds.close(metrics)
        for pod, reason in values["missing"].items():
            self._rounds.show(pod, "✗ missing")
            self._say_missing(f"round {number}", pod, reason)
        if not self.console.is_terminal:
            there, of = len(values["pods"]), len(values["pods"]) + len(values["missing"])
            self.say(
                f"  round {number}/{self._rounds.wanted}  {there} of {of} pods  {metrics}  {values['seconds']:.2f} s"
            )

    def _say_missing(self, when: str, pod: str, reason: str) -> None:
        if (pod, reason) not in self._said:  # the same reason in each of a hundred rounds helps nobody
            self._said.add((pod, reason))
            self.say(f"! {when}: pod {pod} is missing: {reason}")

    def _stop_table(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
            self._resume_bar()


class RoundsTable:
    """Rounds as rows, pods as columns, and how long it will take."""

    def __init__(self) -> None:
        self.pods: tuple[str, ...] = ()
        self._rounds: deque[dict[str, Any]] = deque(maxlen=ROUNDS_SHOWN)
        self.wanted = 0
        self._opened: deque[float] = deque(maxlen=ROUNDS_SHOWN)

    def open(self, number: int, wanted: int, pods: list[str]) -> None:
        """A round begins."""
        self.pods = tuple(sorted({*self.pods, *pods}))
        self.wanted = wanted
        self._opened.append(time.monotonic())
        self._rounds.append({"round": number, "cells": dict.fromkeys(pods, "asked"), "metrics": ""})

    def show(self, pod: str, state: str) -> None:
        """A pod's state in the newest round."""
        if self._rounds:
            self._rounds[-1]["cells"][pod] = state

    def close(self, metrics: str) -> None:
        """The newest round has its result."""
        if self._rounds:
            self._rounds[-1]["metrics"] = metrics

    def left(self) -> float | None:
        """Seconds that the other rounds will take, at the pace of the last ones; None before there is a pace."""
        if len(self._opened) < 2 or not self._rounds:
            return None
        pace: float = (self._opened[-1] - self._opened[0]) / (len(self._opened) - 1)
        return pace * (self.wanted - int(self._rounds[-1]["round"]) + 1)

    def drawn(self) -> Group:
        """For a terminal."""
        newest = self._rounds[-1]["round"] if self._rounds else 0
        left = self.left()
        title = f"round {newest} of {self.wanted}" + ("" if left is None else f", about {left:,.0f} s left")
        table = Table(expand=False)
        table.add_column("round", justify="right")
        columns = self.pods if len(self.pods) <= PODS_SHOWN else ("pods",)
        for name in columns:
            table.add_column(Text(name))
        table.add_column("all pods")
        for row in self._rounds:
            cells = self._cells(row["cells"])
            table.add_row(str(row["round"]), *map(Text, cells), Text(row["metrics"]))
        return Group(Text(title), table)

    def _cells(self, cells: Mapping[str, str]) -> list[str]:
        if len(self.pods) <= PODS_SHOWN:
            return [cells.get(pod, "not asked") for pod in self.pods]
        answered = sum(state.startswith("✓") for state in cells.values())
        failed = sum(state.startswith("✗") for state in cells.values())
        return [f"{answered} of {len(cells)} answered" + (f", {failed} missing" if failed else "")]


def show_federated_summary(view: RunView, summary: dict[str, Any]) -> None:
    """Prints what came out: together, pod by pod, against training without federating, and where it is."""
    view.say("")
    show_metrics(view, summary["name"], summary["metrics"], summary["test_rows"])
    show_pods(view, summary)
    if summary["comparison"] is not None:
        show_comparison(view, summary["comparison"])
    best = summary["best_weights"] and f"{summary['best_weights']} (round {summary['best_round']})"
    predictions = "\n             ".join(summary["predictions"].values()) or None
    show_files(view, {**summary, "predictions": predictions, "test_predictions": None, "best": best})


def show_pods(view: RunView, summary: dict[str, Any]) -> None:
    """Prints each pod's part, and why it was missing."""
    table = Table(title=f"pods: {summary['rounds']} rounds", title_justify="left")
    for name in ("pod", "rounds", "test rows", *summary["metrics"]):
        table.add_column(Text(name), justify="left" if name == "pod" else "right")
    for pod, part in summary["pods"].items():
        values = [figure(part["metrics"].get(name)) for name in summary["metrics"]]
        table.add_row(Text(pod), str(part["rounds"]), f"{part['test_rows']:,}", *values)
    view.console.print(table)
    for pod, part in summary["pods"].items():
        reasons: dict[str, list[str]] = {}
        for when, reason in part["missing"].items():
            reasons.setdefault(reason, []).append(when)
        for reason, times in reasons.items():
            when = times[0] if len(times) == 1 else f"{times[0]} and {len(times) - 1} more"
            view.say(f"! pod {pod} was missing in {when}: {reason}")


def show_comparison(view: RunView, comparison: Mapping[str, Any]) -> None:
    """Prints what federating was worth."""
    table = Table(title="trained alone, federated, pooled; tested on the test rows of all pods", title_justify="left")
    names = list(comparison["federated"])
    for name in ("trained on", *names):
        table.add_column(Text(name), justify="left" if name == "trained on" else "right")
    for who, metrics in comparison_rows(comparison):
        table.add_row(Text(who), *(figure(metrics.get(name)) for name in names))
    view.console.print(table)
    for who, reason in comparison["missing"].items():
        view.say(f"! {who} could not be trained: {reason}")


def figure(value: float | None) -> str:
    """A metric for people."""
    return "undefined" if value is None else f"{value:.4f}"
