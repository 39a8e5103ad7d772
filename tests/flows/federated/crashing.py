"""A modeller that kills itself: a process that has imported everything, and forks one child for each run of a job.

Each child counts the objects that it puts into stores, and is killed by SIGKILL right before or after one of them:
every state that a crash can leave behind lies between two such puts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPORT = "BITFOUNT_TEST_REPORT"


@dataclass(frozen=True)
class Crashed:
    """How a run ended.

    Attributes:
        killed: whether it was killed.
        puts: names of the objects that it put, in order.
        summary: of a run that came to its end.
        error: of a run that failed.
    """

    killed: bool
    puts: list[str]
    summary: dict[str, Any] | None
    error: str | None


class Modeller:
    """The process that forks."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.flows.federated.crashing"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def run(self, job: Path, home: Path, job_id: str, die_at: int | None = None, after: bool = True) -> Crashed:
        """Runs or continues a job.

        Args:
            job: its file.
            home: the workspace.
            job_id: its id.
            die_at: the put at which the modeller is killed, from 0; None is never.
            after: whether it is killed after that put, or before it.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        asked = {"job": str(job), "home": str(home), "job_id": job_id, "die_at": die_at, "after": after}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return Crashed(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


def main() -> None:
    """Forks a child for each line of standard input, and says on standard output how it ended."""
    from flows.environment import prepare

    prepare(Path(os.environ["PREFECT_HOME"]), verbose=False)
    import flows.federated
    import flows.federated_run
    import flows.simulated  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            child(asked, writer)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as stream:
            said = [json.loads(text) for text in stream]
        _, status = os.waitpid(pid, 0)
        end = next((found for found in said if isinstance(found, dict)), {})
        result = {
            "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
            "puts": [found for found in said if isinstance(found, str)],
            "summary": end.get("summary"),
            "error": end.get("error"),
        }
        print(json.dumps(result), flush=True)


def child(asked: dict[str, Any], writer: int) -> None:
    """One run of the job."""
    import io

    from bitfount_model.errors import BitfountError
    from flows import federated_run, run
    from flows.console import RunView
    from flows.run import Surroundings
    from flows.settings import read_job
    from flows.workspace import Workspace
    from tasks.job import LocalJob
    from tasks.store import Store

    puts = 0
    put = Store.put

    def counted(self: Store, name: str, *arguments: Any, **named: Any) -> Any:
        nonlocal puts
        number, puts = puts, puts + 1
        os.write(writer, (json.dumps(f"{name}") + "\n").encode())
        if number == asked["die_at"] and not asked["after"]:
            os.kill(os.getpid(), signal.SIGKILL)
        reference = put(self, name, *arguments, **named)
        if number == asked["die_at"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return reference

    Store.put = counted  # type: ignore[method-assign]
    surroundings = Surroundings(Workspace(Path(asked["home"])), None, RunView(io.StringIO()), verbose=False)
    try:
        job = read_job(Path(asked["job"]))
        train: Any = run.train if isinstance(job, LocalJob) else federated_run.train
        end = {"summary": train(job, asked["job_id"], None, surroundings)}
    except BitfountError as error:
        end = {"error": f"{type(error).__name__}: {error}"}
    os.write(writer, (json.dumps(end) + "\n").encode())


if __name__ == "__main__":
    main()
