"""Processes that outlive the command that starts them, known by id and start time, so that a recycled id is never taken for one."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

CLOCK_SECONDS = 2.0
"""By how much the start time of one process may seem to differ after the clock was set."""
END_SECONDS = 15.0
"""How long a process has to end by itself."""


@dataclass(frozen=True)
class Detached:
    """A process that leads a group of its own.

    Attributes:
        pid: its id, and the group's.
        started: when, in seconds since 1970.
    """

    pid: int
    started: float

    def process(self) -> psutil.Process | None:
        """The process, or None where it has ended, also if another one has its id by now."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < CLOCK_SECONDS
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        return None

    def family(self) -> list[psutil.Process]:
        """The process and all that it has started; nothing where it has ended."""
        process = self.process()
        with suppress(psutil.NoSuchProcess):
            return [process, *process.children(recursive=True)] if process else []
        return []


def start(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Detached:
    """Starts a process in a session of its own.

    Args:
        command: path of a program, and arguments; no shell reads them.
        environment: all of its variables.
        log: what it prints is added to this file, which its owner alone may read.
    """
    pid = os.posix_spawn(
        command[0],
        list(command),
        dict(environment),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    return Detached(pid, psutil.Process(pid).create_time())


def end(detached: Detached) -> bool:
    """Ends a process, its group and all that it started, and waits until they are gone.

    Returns:
        Whether it was still running.
    """
    family = detached.family()
    if not family:
        return False
    with suppress(ProcessLookupError):
        os.killpg(detached.pid, signal.SIGTERM)
    _, left = psutil.wait_procs(family, timeout=END_SECONDS)
    for each in left:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(left, timeout=END_SECONDS)
    return True


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen on a port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def listener(port: int) -> str:
    """Who listens on a port, for people: a name and a process id, as far as this user may know."""
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status != psutil.CONN_LISTEN or not connection.laddr or not connection.pid:
                continue
            if connection.laddr.port == port:
                return f"{psutil.Process(connection.pid).name()!r} (process {connection.pid})"
    return "another process"
