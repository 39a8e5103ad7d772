"""What a flow that a worker runs stands on: its log, its folder, the id of its job, and how it ends."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from logging import Logger, LoggerAdapter
from pathlib import Path
from typing import Any, TextIO, cast
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Failed

from bitfount_model.errors import BitfountError, QuorumError
from flows.console import RunView
from flows.run import Surroundings
from flows.workspace import Workspace
from tasks.memory import garbage_left_at_exit

MOST_KILLS = 3
"""How often in a row the process of a run may be killed before the run ends as failed."""
KILLED_TOO_OFTEN = "KilledTooOften"
BELOW_QUORUM = "BelowQuorum"
"""Names of states in which runs end."""


class LogStream(io.TextIOBase):
    """A text stream whose lines become those of a log.

    Args:
        log: the flow run's.
    """

    def __init__(self, log: Logger | LoggerAdapter[Logger]) -> None:
        self._log = log
        self._begun = ""

    def writable(self) -> bool:
        """It is for writing alone."""
        return True

    def write(self, text: str) -> int:
        """Logs each line that is complete, and that says something."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if line.strip():
                self._log.info("%s", line.rstrip())
        return len(text)


def surroundings_of(home: str) -> Surroundings:
    """What a job runs in here: the worker's own Prefect, and the flow run's log for people.

    Args:
        home: folder of jobs; a relative one is below the worker's working directory.
    """
    view = RunView(cast(TextIO, LogStream(get_run_logger())))
    return Surroundings(Workspace(Path(home)), server=None, view=view, verbose=True)


def given_or_set(value: str | None, variable: str) -> str | None:
    """A parameter of the run, else what the worker's environment says."""
    return value or os.environ.get(variable) or None


def this_run() -> str:
    """The id of the flow run that is going on."""
    run_id = flow_run.get_id()
    if run_id is None:
        raise RuntimeError("no flow run is going on")
    return str(run_id)


def job_id_of(name: str, run_id: str | None = None) -> str:
    """The id of the job that a flow run does: the same each time that Prefect starts the run.

    Args:
        name: of the job.
        run_id: the flow run's; by default that of the run that is going on.
    """
    # Prefect's ids begin with the time, so that runs of one minute begin alike; their ends are random.
    return f"{name[:50]}-{(run_id or this_run())[-8:]}"


Ended = dict[str, Any] | State[Any]
"""How a run ends: with its summary, or in a failed state."""


def ended(body: Callable[[], Ended]) -> Ended:
    """Does a run's work; how it ended otherwise is a state with a name and the message that the command line prints.

    Args:
        body: does the work, and gives the run's summary.

    Returns:
        What the body gives; or a failed state, `BelowQuorum` where too few pods answered, `KilledTooOften` where the run's
        process was killed `MOST_KILLS` times in a row.
    """
    garbage_left_at_exit()
    if stopped := killed_too_often():
        return stopped
    try:
        return body()
    except QuorumError as error:
        return Failed(name=BELOW_QUORUM, message=str(error))
    except BitfountError as error:
        return Failed(message=str(error))


def killed_too_often() -> State[Any] | None:
    """The state in which this run ends, if its process was killed `MOST_KILLS` times in a row."""
    kills = killed_in_a_row(states_of(this_run()))
    if kills < MOST_KILLS:
        return None
    return Failed(
        name=KILLED_TOO_OFTEN,
        message=f"the process of this run was killed {kills} times, and is not started again by itself: see what kills it,"
        " memory for example, and retry the run; it goes on where it was",
    )


def states_of(run_id: str) -> list[str]:
    """The types of the states that a flow run has been in, oldest first."""
    with get_client(sync_client=True) as client:
        states = client.read_flow_run_states(UUID(run_id))
    return [state.type.value for state in sorted(states, key=lambda state: state.timestamp)]


def killed_in_a_row(states: Sequence[str]) -> int:
    """How often a run has crashed since it last ended in another way: a person who retries it starts the count anew."""
    crashes = 0
    for state in states:
        if state == "CRASHED":
            crashes += 1
        elif state in ("COMPLETED", "FAILED", "CANCELLED"):
            crashes = 0
    return crashes
