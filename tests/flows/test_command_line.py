"""Help answers at once, with examples; the view suits the stream it is shown on."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from flows.console import RunView, program
from tests.tracking_server import free_port, wait_until_it_answers

RECORD = {"epoch": 2, "epochs": 4, "rows": 10, "train_loss": 0.5, "val_stats": {"AUC": 0.75}}


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"], ["predict"], ["ui"]])
def test_help_says_what_for_and_gives_examples(command: list[str]) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "flows.cli", *command, "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert ("Examples:" in said) == bool(command)
    assert ("Exit codes:" in said) == (not command)


def test_help_imports_none_of_the_heavy_packages() -> None:
    code = (
        "import sys; sys.argv = ['bitfount-flows', 'train', '--help']\n"
        "from flows.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'prefect', 'mlflow', 'pandas', 'pytorch_lightning') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "[]"


def test_a_wrong_option_ends_with_usage_and_two() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "flows.cli", "train", "--nope"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "--nope" in ended.stderr


def test_elsewhere_than_on_a_terminal_the_view_is_plain_lines() -> None:
    stream = io.StringIO()
    with RunView(stream) as view:
        view.on_event("begin", {"step": "fit"})
        view.on_event("batch", {"epoch": 1, "epochs": 4, "batch": 1, "batches": 2})
        view.on_event("epoch", RECORD)
        view.on_event("end", {"step": "fit", "values": {}})
    assert stream.getvalue() == "training …\n  epoch 2/4  loss 0.5000  AUC 0.7500\n"


def test_on_a_terminal_the_view_shows_epochs_metrics_and_the_time_left() -> None:
    stream = io.StringIO()
    view = RunView(stream)
    view.console = Console(file=stream, force_terminal=True, width=120, height=20)
    with view:
        view.on_event("begin", {"step": "fit"})
        view.on_event("batch", {"epoch": 2, "epochs": 4, "batch": 1, "batches": 2})
        view.on_event("epoch", RECORD)
    shown = stream.getvalue()
    assert "epoch 2/4" in shown
    assert "AUC 0.7500" in shown
    assert "left" in shown


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_ui_answers_on_loopback_and_leaves_no_process_behind(home: Path, ending: signal.Signals) -> None:
    port = free_port()
    command = [sys.executable, "-m", "flows.cli", "ui", "--home", str(home), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as ui:
        assert wait_until_it_answers(f"http://127.0.0.1:{port}/health", ui)
        children = psutil.Process(ui.pid).children(recursive=True)
        ui.send_signal(ending)
        said = ui.communicate(timeout=60)[0]
    assert ui.returncode == 0
    assert children
    assert psutil.wait_procs(children, timeout=30)[1] == []
    assert "Warning" not in said
    assert "INFO" not in said


def test_the_ui_without_runs_says_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flows.cli", "ui", "--home", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "train a job first" in ended.stderr


def test_commands_are_said_as_the_users_shell_finds_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / ".venv" / "bin" / "bitfount-flows"), "train"])
    monkeypatch.setenv("PATH", "")
    assert program() == ".venv/bin/bitfount-flows"
    script = tmp_path / "bitfount-flows"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program() == "bitfount-flows"
