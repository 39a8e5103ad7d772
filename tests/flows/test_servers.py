"""`up` and `down` with real servers: once started they stay, are found again, and nothing of them is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from flows.servers import read, write
from tests.flows.conftest import Ended, command

CommandLine = Callable[[Sequence[str | Path]], Ended]
FREE_PORTS = ("--prefect-port", "0", "--mlflow-port", "0")


@pytest.fixture
def clean_home(home: Path, command_line: CommandLine) -> Iterator[Path]:
    """A workspace in which nothing runs afterwards."""
    yield home
    command_line(["down", "--home", home])


def family_of(home: Path) -> list[psutil.Process]:
    """Every process of a workspace's servers."""
    return [process for each in read(home).values() for process in each.detached.family()]


def test_two_ups_at_once_start_one_set_of_servers_that_down_ends(clean_home: Path, command_line: CommandLine) -> None:
    home = clean_home
    MlflowClient(f"sqlite:///{home}/mlflow.db").create_experiment("recorded before")
    arguments = command("up", "--home", home, *FREE_PORTS, "--worker", "--json")
    both = [subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], said

    one, other = (json.loads(out.splitlines()[-1]) for out, _ in said)
    assert one == other
    assert sorted(sum(line.startswith("started") for line in err.splitlines()) for _, err in said) == [0, 3]
    assert sorted(sum("runs already" in line for line in err.splitlines()) for _, err in said) == [0, 3]
    check_they_stay_and_answer(home, one)
    check_logs_are_the_owners(one)

    family = family_of(home)
    ended = command_line(["down", "--home", home])
    assert ended.code == 0, ended
    assert [line.partition(" (")[0] for line in ended.out.splitlines()] == [
        "ended the worker",
        "ended the MLflow server",
        "ended the Prefect server",
    ]
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)
    assert not (home / "servers.json").exists()
    assert command_line(["down", "--home", home]).out == f"no servers of {home} run\n"


def check_they_stay_and_answer(home: Path, running: dict[str, Any]) -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    names = [experiment.name for experiment in MlflowClient(running["mlflow"]["url"]).search_experiments()]
    assert "recorded before" in names
    with temporary_settings({PREFECT_API_URL: running["prefect"]["url"]}), get_client(sync_client=True) as client:
        assert client.read_work_pool("bitfount").type == "process"
    assert (home / "prefect" / "prefect.db").exists()


def check_logs_are_the_owners(running: dict[str, Any]) -> None:
    assert {stat.S_IMODE(Path(each["log"]).stat().st_mode) for each in running.values()} == {0o600}


def test_a_server_that_was_killed_is_reported_and_started_again(clean_home: Path, command_line: CommandLine) -> None:
    home = clean_home
    assert command_line(["up", "--home", home, *FREE_PORTS]).code == 0
    before = read(home)
    os.killpg(before["mlflow"].pid, signal.SIGKILL)
    os.waitpid(before["mlflow"].pid, 0)

    again = command_line(["up", "--home", home, *FREE_PORTS])

    assert again.code == 0, again
    assert f"the Prefect server runs already: {before['prefect'].url}" in again.out
    assert "started the MLflow server" in again.out
    after = read(home)
    assert f"export PREFECT_API_URL={before['prefect'].url}\n" in again.out
    assert f"export MLFLOW_TRACKING_URI={after['mlflow'].url}\n" in again.out
    os.killpg(after["mlflow"].pid, signal.SIGKILL)
    os.waitpid(after["mlflow"].pid, 0)
    ended = command_line(["down", "--home", home])
    assert f"the MLflow server (process {after['mlflow'].pid}) had ended before; its log is" in ended.out
    assert "ended the Prefect server" in ended.out


def test_a_process_that_has_the_id_of_a_server_by_now_is_left_alone(home: Path, command_line: CommandLine) -> None:
    from flows.servers import Up

    with subprocess.Popen(["sleep", "60"]) as stranger:
        started = psutil.Process(stranger.pid).create_time()
        up = Up("MLflow server", stranger.pid, started - 60, "http://127.0.0.1:1", 1, "mlflow.log")
        write(home, {"mlflow": up})

        ended = command_line(["down", "--home", home])

        assert ended.code == 0
        assert "had ended before" in ended.out
        assert stranger.poll() is None
        stranger.kill()


def test_a_port_that_is_taken_is_named_with_its_holder(home: Path, command_line: CommandLine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        ended = command_line(["up", "--home", home, "--prefect-port", "0", "--mlflow-port", str(port)])
    assert ended.code == 2
    assert f"port {port} of 127.0.0.1 is taken by" in ended.err
    assert f"(process {os.getpid()})" in ended.err
    assert "--mlflow-port" in ended.err
    assert not (home / "servers.json").exists()


def test_a_server_that_dies_while_it_starts_is_shown_with_its_last_words(
    home: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_LOGGING_LEVEL")
    (home / "mlflow.db").write_bytes(b"this is no database" * 100)

    ended = command_line(["up", "--home", home, *FREE_PORTS])

    assert ended.code == 5
    assert "the MLflow server ended when it was started. The end of" in ended.err
    assert "file is not a database" in ended.err
    assert not (home / "servers.json").exists(), "the Prefect server was ended too"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"prefect": {"pid": 1}}', '{"prefect": 5}'])
def test_a_list_of_servers_that_up_did_not_write_is_refused(home: Path, command_line: CommandLine, text: str) -> None:
    (home / "servers.json").write_text(text)
    for name in ("up", "down"):
        ended = command_line([name, "--home", home])
        assert ended.code == 5
        assert "servers.json is not what `bitfount-flows up` writes" in ended.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prefect-port", "7", "--mlflow-port", "7"], "both 7"),
        (["--prefect-db", "postgresql://flows:hunter2@db/prefect"], "--prefect-db: it holds a password"),
        (["--mlflow-db", "postgresql://flows:${NOT_SET_ANYWHERE}@db/mlflow"], "NOT_SET_ANYWHERE is not set"),
        (["--mlflow-db", "mysql://db/mlflow"], "--mlflow-db: a mysql database; wanted postgresql://"),
        (["--prefect-db", "nonsense"], "--prefect-db: the URL cannot be read"),
        (["--host", "::1"], "wanted an IPv4 address"),
        (["--host", "prefect.example.org"], "wanted an IPv4 address"),
    ],
)
def test_wrong_options_are_refused_by_name(
    home: Path, command_line: CommandLine, options: list[str], message: str
) -> None:
    ended = command_line(["up", "--home", home, *options])
    assert ended.code == 2
    assert message in ended.err
    assert "hunter2" not in ended.err
    assert not (home / "servers.json").exists()
