"""Where things lie in a job's folder; light, for commands that only look."""

from __future__ import annotations

JOB = "job.json"
ENDED = "ended.json"
"""How a job ended that did not finish."""
EPOCHS = "scratch/epochs.jsonl"
"""The epochs of a local job that trains, a line each."""
LOCK = "running.lock"
"""Held by the process that runs the job."""


def manifest_name(step: str) -> str:
    """Where a step's manifest lies."""
    return f"steps/{step}.json"


def record_name(round_number: int) -> str:
    """Where a round's record lies."""
    return f"rounds/{round_number:05d}.json"
