"""A pod's handle on its model's process: starts it, asks it, learns why it has ended, and ends it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bitfount_model.batch_progress import BatchCount, OnBatch
from bitfount_model.errors import ConfinementError
from bitfount_model.types import JSON
from tasks.federated.confined import launch
from tasks.federated.confined.channel import MAX_HEADER_BYTES, Channel, Message
from tasks.federated.confined.limits import GIB, Limits
from tasks.federated.confined.messages import BatchSchema, ConfinedSchema, checked, error_from_json
from tasks.federated.pod_worker import POD_LOGGER

INHERITED = (
    "PATH", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "PYTHONHASHSEED", "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS",
)  # fmt: skip
"""The only variables that a model's process has of its pod's environment."""
END_SECONDS = 10.0
MAX_SAID_BYTES = 1024**2
"""Of what a model prints, so much goes to its pod's log."""
LINE_BYTES = 8192

logger = logging.getLogger(POD_LOGGER)


@dataclass(frozen=True)
class _Parts:
    """What has to be ended and removed."""

    launcher: subprocess.Popen[bytes]
    channel: Channel
    lifeline: int
    scratch: str


class ModelProcess:
    """One process that runs one job's model.

    Args:
        pod: its name, for the log.
        limits: what it may take.
        allow_unconfined: whether it may go on where the kernel does not let it be shut off.

    Attributes:
        refusal: why the kernel does not let it be shut off; None if it is.

    Raises:
        ConfinementError: it ends before it says whether it is shut off.
    """

    def __init__(self, pod: str, limits: Limits, *, allow_unconfined: bool) -> None:
        self._limits = limits
        ours, theirs = socket.socketpair()
        lifeline, ours_of_lifeline = os.pipe()
        scratch, shared = tempfile.mkdtemp(prefix="model-"), os.memfd_create("body")
        orders = orders_of(limits, scratch, theirs.fileno(), shared, lifeline, allow_unconfined)
        try:
            launcher = subprocess.Popen(  # noqa: S603 (all of it is made here)
                [sys.executable, "-I", "-S", launch.__file__, json.dumps(orders)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(), shared, lifeline),
                env=environment_of(os.environ, scratch),
                cwd=scratch,
            )
        finally:
            theirs.close()
            os.close(lifeline)
        self._parts = _Parts(launcher, Channel(ours, shared), ours_of_lifeline, scratch)
        self.end = weakref.finalize(self, _end, self._parts)
        if launcher.stdout is not None:
            threading.Thread(target=_log, args=(launcher.stdout, pod), name="model-log", daemon=True).start()
        try:
            state = checked(self._received(0).header, ConfinedSchema())
        except BaseException:
            self.end()
            raise
        self.refusal: str | None = None if state["confined"] else state["reason"]

    def ask(
        self,
        call: str,
        arguments: JSON,
        body: bytes | memoryview = b"",
        *,
        max_body: int = 0,
        on_batch: OnBatch | None = None,
    ) -> Message:
        """Asks for something and waits for the answer.

        Args:
            call: a `do_` method of `tasks.federated.confined.child.Answers`.
            arguments: of it.
            body: of it.
            max_body: the longest body of an answer.
            on_batch: hears how far a fit is.

        Raises:
            ConfinedModelError: the model's code raised.
            ConfinementError: the process has ended, or answers what it may not.
        """
        try:
            self._parts.channel.send({"call": call, **arguments}, body)
        except ConnectionError:
            raise ConfinementError(self._why_ended()) from None
        while True:
            message = self._received(max_body)
            match message.header:
                case {"batch": values, **others} if not others and not message.body:
                    batch = checked(values, BatchSchema())
                    if on_batch is not None:
                        on_batch(BatchCount(**batch))
                case {"error": error, **others} if not others:
                    raise error_from_json(error)
                case {"answer": dict(header), **others} if not others:
                    return Message(header, message.body)
                case _:
                    raise ConfinementError("the model's process says something else than an answer")

    def _received(self, max_body: int) -> Message:
        message = self._parts.channel.receive(MAX_HEADER_BYTES, max_body)
        if message is None:
            raise ConfinementError(self._why_ended())
        return message

    def _why_ended(self) -> str:
        try:
            status = self._parts.launcher.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return "the model's process has closed its connection to the pod"
        limits = self._limits
        return (
            f"the model's process has ended: {_cause(status)}. Its limits are {limits.memory_bytes / GIB:.3g} GiB of memory,"
            f" {limits.processes} processes and threads, files of {limits.file_bytes / GIB:.3g} GiB and {limits.open_files}"
            " open files"
        )


def orders_of(limits: Limits, scratch: str, channel: int, shared: int, lifeline: int, allow_unconfined: bool) -> JSON:
    """What the launcher is to do."""
    return {
        "channel": channel,
        "shared": shared,
        "lifeline": lifeline,
        "limits": limits.for_kernel(),
        "scratch": scratch,
        "scratch_bytes": limits.file_bytes,
        "allow_unconfined": allow_unconfined,
        "command": [sys.executable, "-P", "-m", "tasks.federated.confined.child", str(channel), str(shared)],
    }


def environment_of(environment: Mapping[str, str], scratch: str) -> dict[str, str]:
    """The environment of a model's process: what is named in `INHERITED`, and an empty folder for all that is kept or cached."""
    # The process starts elsewhere, and is to find the packages that this one finds.
    path = [str(Path(place).resolve()) for place in sys.path if Path(place).exists()]
    kept = {name: environment[name] for name in INHERITED if name in environment}
    return {
        **kept,
        "HOME": scratch,
        "TMPDIR": scratch,
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _cause(status: int) -> str:
    """What an exit status of the launcher says of the process."""
    number = status - launch.SIGNALLED
    if number not in set(signal.Signals):
        return f"it ended itself, with status {status}"
    name = signal.Signals(number).name
    likely = {
        "SIGKILL": "as the kernel does when the machine's memory runs out",
        "SIGXFSZ": "as a process that writes too large a file",
        "SIGSYS": "as a process that calls what it may not",
    }.get(name, "as compiled code does that fails, or finds no memory")
    return f"{name} ended it, {likely}"


def _end(parts: _Parts) -> None:
    """Ends the process and all that it started, and removes its folder."""
    os.close(parts.lifeline)
    parts.channel.close()
    try:
        parts.launcher.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        parts.launcher.kill()
        parts.launcher.wait()
    shutil.rmtree(parts.scratch, ignore_errors=True)


def _log(stream: IO[bytes], pod: str) -> None:
    """Sends what a model prints to its pod's log, and to nobody else."""
    left = MAX_SAID_BYTES
    with stream:
        while line := stream.readline(LINE_BYTES):
            if left > 0:
                logger.warning("pod %s, its model prints: %s", pod, line.decode(errors="backslashreplace").rstrip())
                left -= len(line)
                if left <= 0:
                    logger.warning("pod %s, its model prints too much: the rest is left out", pod)
