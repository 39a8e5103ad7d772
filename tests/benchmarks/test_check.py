"""The check on speed: it fails where a figure is over twice the recorded one, each time it is measured, and nowhere else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from bench import BENCHMARKS, LONG
from promises import Promise, amount, read_rows, write_json
from recorded import better, regressions, unrecorded

FOLDER = Path(__file__).parents[2] / "benchmarks"
MEASURED = """\
from pathlib import Path

from promises import Form, amount, command_line

runs = Path(__file__).with_suffix(".runs")
runs.open("a").write("run\\n")
figures = {figures}
figure = figures[min(len(runs.read_text().split()), len(figures)) - 1]
command_line(lambda count, form: [amount("{name}", [figure], 1.0, unit="s")], "A benchmark.", dict.fromkeys(Form, 1))
"""


def row(figure: float, name: str = "fit") -> Promise:
    """A row of one figure."""
    return amount(name, [figure], 1.0, unit="s")


@pytest.mark.parametrize(("figure", "fails"), [(0.1, False), (1.0, False), (2.0, False), (2.01, True), (40.0, True)])
def test_a_figure_over_twice_the_recorded_one_is_a_regression(figure: float, fails: bool) -> None:
    assert bool(regressions([row(figure)], [row(1.0)])) is fails


def test_what_must_be_zero_may_not_become_one() -> None:
    assert not regressions([row(0.0)], [row(0.0)])
    assert regressions([row(1.0)], [row(0.0)])


def test_a_figure_that_is_no_number_is_a_regression() -> None:
    assert regressions([row(float("nan"))], [row(1.0)])


def test_a_regression_says_what_was_found_and_what_was_recorded() -> None:
    assert regressions([row(2.5)], [row(1.0)]) == {"fit": "2.5 s, recorded 1"}


def test_rows_are_held_against_those_of_their_own_name() -> None:
    rows, recorded = [row(9.0, "new"), row(1.0, "fit")], [row(0.1, "import"), row(1.0, "fit")]
    assert not regressions(rows, recorded)
    assert unrecorded(rows, recorded) == ["new"]


def test_of_two_measurements_the_better_one_counts_row_by_row() -> None:
    first, second = [row(5.0, "a"), row(1.0, "b"), row(1.0, "c")], [row(4.0, "a"), row(2.0, "b")]
    assert [each.figure for each in better(first, second)] == [4.0, 1.0, 1.0]


def benchmark(folder: Path, name: str, figures: Sequence[float]) -> Path:
    """A benchmark that finds one figure at its first run, another at its second."""
    path = folder / f"{name}.py"
    path.write_text(MEASURED.format(name=name, figures=list(figures)))
    return path


def run(folder: Path, *files: Path, recorded: Sequence[Promise] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs benchmarks as `make bench` does, or as `make bench-check` does."""
    command = [sys.executable, FOLDER / "bench.py", *files, "--json", folder / "bench.json"]
    if recorded is not None:
        write_json(folder / "recorded.json", recorded)
        command += ["--quick", "--check", folder / "recorded.json"]
    environment = {**os.environ, "PYTHONPATH": str(FOLDER)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def runs_of(path: Path) -> int:
    """How often a benchmark was run."""
    return len(path.with_suffix(".runs").read_text().split())


def test_the_check_passes_what_is_as_it_was(tmp_path: Path) -> None:
    path = benchmark(tmp_path, "fit", [1.9])
    ended = run(tmp_path, path, recorded=[row(1.0)])
    assert ended.returncode == 0, ended.stderr
    assert runs_of(path) == 1


def test_the_check_fails_on_a_gross_regression_and_names_it(tmp_path: Path) -> None:
    path = benchmark(tmp_path, "fit", [2.5, 2.2])
    ended = run(tmp_path, path, benchmark(tmp_path, "import", [1.0]), recorded=[row(1.0), row(1.0, "import")])
    assert ended.returncode == 1
    assert "over twice what is recorded: fit: 2.2 s, recorded 1" in ended.stderr
    assert "import:" not in ended.stderr.split("over twice")[1]
    assert runs_of(path) == 2


def test_a_machine_that_was_busy_once_is_asked_again(tmp_path: Path) -> None:
    path = benchmark(tmp_path, "fit", [2.5, 1.2])
    ended = run(tmp_path, path, recorded=[row(1.0)])
    assert ended.returncode == 0, ended.stderr
    assert [each.figure for each in read_rows(tmp_path / "bench.json")] == [1.2]


def test_a_promise_that_is_missed_is_shown_and_fails_nothing(tmp_path: Path) -> None:
    ended = run(tmp_path, benchmark(tmp_path, "fit", [7.0]))
    assert ended.returncode == 0
    assert ended.stdout.splitlines()[-1].split() == ["fit", "7", "s", "7", "s", "1", "s", "missed"]


def test_the_others_go_on_when_a_benchmark_fails(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit('no disk is left')")
    ended = run(tmp_path, broken, benchmark(tmp_path, "fit", [0.5]))
    assert ended.returncode == 1
    assert "no disk is left" in ended.stderr
    assert "failed: broken" in ended.stderr
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written["failed"] == ["broken"]
    assert [each["name"] for each in written["rows"]] == ["fit"]


def test_every_benchmark_that_is_run_is_there_and_in_the_page() -> None:
    page = (FOLDER / "README.md").read_text()
    for name in (*BENCHMARKS, *LONG):
        assert (FOLDER / f"{name}.py").is_file()
        assert f"`{name}.py`" in page


def test_what_is_recorded_says_on_which_machine_and_of_every_benchmark() -> None:
    recorded = json.loads((FOLDER / "recorded.json").read_text())
    assert "cores" in recorded["machine"]
    assert recorded["failed"] == []
    assert len({each.name for each in read_rows(FOLDER / "recorded.json")}) == len(recorded["rows"]) >= 20
