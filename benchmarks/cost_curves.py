"""How cost grows: seconds of a round, and the peak of memory, against clients, parameters, rows and deployed pods.

Every point is a process of its own with a real Prefect server. Clients: simulated, 10 of them a round. Parameters: three pods in
one process, one batch a round. Rows: one epoch of a local job that streams 30 columns from Parquet. Pods: processes of their own
with 1 MB of parameters, one batch a round, the modeller's peak. The first round is left out. Plots and figures go to
docs/images/costs.png and docs/costs.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from deployed_rounds import width_of
from federation import Federation
from memory import peak_mb
from simulate import Simulated
from streaming import figures, write_job
from tables import dealt, digits

DOCS = Path(__file__).parents[1] / "docs"
ROUNDS = 6
CURVES: Mapping[str, tuple[int, ...]] = {
    "clients": (10, 100, 1_000, 10_000),
    "parameters": (10_000, 100_000, 1_000_000, 10_000_000),
    "rows": (10_000, 100_000, 1_000_000),
    "pods": (1, 2, 4, 8),
}
FULL: Mapping[str, tuple[int, ...]] = {"parameters": (100_000_000,), "rows": (20_000_000,)}
"""Points that take many minutes and gigabytes."""


def clients(count: int, folder: Path) -> float:
    """Seconds of a round of 10 clients among so many."""
    simulated = Simulated(folder)
    with simulated.federation.prefect():
        return statistics.median(simulated.seconds(count, 10, ROUNDS, "clients"))


def parameters(count: int, folder: Path) -> float:
    """Seconds of a round of three pods in one process with so many parameters."""
    return federated(folder, 3, count, deployed=False)


def pods(count: int, folder: Path) -> float:
    """Seconds of a round of so many pods that are processes of their own."""
    return federated(folder, count, 250_000, deployed=True)


def federated(folder: Path, pods: int, parameters: int, *, deployed: bool) -> float:
    """Seconds of a round of one batch a pod."""
    width = max(1, width_of(round(parameters / 250_000))) if parameters >= 250_000 else parameters // 120
    federation = Federation(folder, dealt(digits(), pods))
    settings = {"hidden": [width, width], "momentum": 0}
    job = federation.job(settings, deployed=deployed, steps=ROUNDS, batch_size=32)
    with federation.prefect():
        if not deployed:
            records = federation.train(job, "curve")
        else:
            with federation.served(pods):
                records = federation.train(job, "curve")
    return statistics.median(record.seconds for record in records[1:])


def rows(count: int, folder: Path) -> tuple[float, float]:
    """Seconds of an epoch over so many rows, and the command's peak of memory in MB."""
    write_job(folder, count)
    found = figures(folder, count)
    return found["fit_seconds"], found["peak_mb"]


POINTS: Mapping[str, Callable[[int, Path], Any]] = {
    "clients": clients,
    "parameters": parameters,
    "rows": rows,
    "pods": pods,
}


def print_point(curve: str, count: int) -> None:
    """Measures one point in this process, and prints it as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        found = POINTS[curve](count, Path(folder))
    seconds, peak = found if isinstance(found, tuple) else (found, peak_mb(os.getpid()))
    print(json.dumps({"count": count, "seconds": seconds, "peak_mb": peak}))


def point(curve: str, count: int) -> dict[str, float]:
    """One point, measured by a process of its own."""
    command = [sys.executable, __file__, "--point", curve, str(count)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    found: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    print(f"{curve:<12}{count:>12,}{found['seconds']:>12.3f} s{found['peak_mb']:>10.0f} MB", flush=True)
    return found


def plot(curves: Mapping[str, list[dict[str, float]]], path: Path) -> None:
    """Draws seconds, both axes logarithmic, and memory, from 0, of each curve."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter, NullLocator

    figure, axes = plt.subplots(2, len(curves), figsize=(4 * len(curves), 6), squeeze=False, layout="constrained")
    for column, (name, points) in enumerate(curves.items()):
        counts = [each["count"] for each in points]
        seconds, memory = ([each[key] for each in points] for key in ("seconds", "peak_mb"))
        time_axis, memory_axis = axes[0][column], axes[1][column]
        time_axis.plot(counts, seconds, marker="o")
        # A decade at least, so that a flat curve looks flat.
        time_axis.set(yscale="log", ylim=(min(seconds) / 3, max(seconds) * 3))
        time_axis.set_ylabel("seconds of an epoch" if name == "rows" else "seconds of a round")
        memory_axis.plot(counts, memory, marker="o")
        memory_axis.set(ylim=(0, 1.2 * max(memory)), ylabel="peak of memory, MB")
        for axis in (time_axis, memory_axis):
            axis.set(xscale="log", xlabel=name)
            axis.set_xticks(counts)
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.grid(visible=True, which="major", alpha=0.3)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    """Measures curves, and writes figures and plots; points that are not measured now stay as they were."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curves", nargs="+", choices=CURVES, default=list(CURVES), help="which (default: all)")
    parser.add_argument(
        "--full", action="store_true", help="the points of 100,000,000 parameters and 20,000,000 rows too"
    )
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.point:
        print_point(options.point[0], int(options.point[1]))
        return
    path = DOCS / "costs.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    curves = {name: {found["count"]: found for found in known.get(name, [])} for name in CURVES}
    for name in options.curves:
        for count in (*CURVES[name], *(FULL.get(name, ()) if options.full else ())):
            curves[name][count] = point(name, count)
            lines = {name: [points[count] for count in sorted(points)] for name, points in curves.items() if points}
            path.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
            plot(lines, DOCS / "images" / "costs.png")


if __name__ == "__main__":
    main()
