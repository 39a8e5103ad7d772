"""What of an error may leave a pod: Prefect and the modeller see the reason, and a text may hold values of rows."""

from __future__ import annotations

import traceback

from bitfount_model.errors import (
    BitfountError,
    ConfigurationError,
    ConfinedModelError,
    ConfinementError,
    DivergedError,
    ParameterError,
    PrivacyBudgetError,
    SchemaMismatchError,
    SecureSumError,
    StorageError,
    TooFewRowsError,
)
from bitfount_model.federation.pod import Pod
from bitfount_model.reference import SOURCE_MODULE
from tasks.federated.secure_part import KEYS, MASK, SHARES, UNMASK

# Their messages are made of settings, names, counts and shapes, never of values of rows.
SPEAKABLE = (
    ConfigurationError,
    ConfinementError,
    DivergedError,
    ParameterError,
    PrivacyBudgetError,
    SecureSumError,
    StorageError,
    TooFewRowsError,
)
DOING = {
    "statistics": "summarise its rows",
    KEYS: "publish its keys",
    SHARES: "share its seeds",
    MASK: "mask its update",
    UNMASK: "answer for the masks",
}
"""Steps whose names are no verbs."""


class TooLateError(TimeoutError):
    """A fit took longer than its round waits; doing it again would take as long."""


def reason(pod: Pod, name: str, error: Exception, deadline_seconds: float | None) -> str:
    """What the modeller is told of an error.

    Args:
        pod: whose policy says what may leave.
        name: of the step that failed.
        error: why.
        deadline_seconds: of the job; None before the pod has joined one.
    """
    if not pod.policy.errors_may_leave:
        return plain_reason(pod.name, name, error, deadline_seconds, names_columns=pod.policy.columns == "all")
    if isinstance(error, ConfinedModelError):
        return f"{failed_to(pod.name, name)}: {error}"
    return (
        f"{failed_to(pod.name, name)}: {type(error).__name__}: {error}\n"
        f"{''.join(traceback.format_tb(error.__traceback__))}".rstrip()
    )


def plain_reason(
    pod: str, name: str, error: Exception, deadline_seconds: float | None, *, names_columns: bool = False
) -> str:
    """What may be told of an error without a value of a row in it.

    Args:
        pod: its name.
        name: of the step that failed.
        error: why.
        deadline_seconds: of the job; None before the pod has joined one.
        names_columns: whether differences between tables may be told, which name columns.
    """
    what = failed_to(pod, name)
    if isinstance(error, ConfinedModelError):
        met = "" if error.met is None else f" (it seems to have met {error.met})"
        return f"{what}: {error.kind} in the model or below it{met}; its text, which may hold values, is in the pod's own log"
    if isinstance(error, TooLateError):
        return f"{what}: it took longer than the deadline of {deadline_seconds:g} s"
    names_all_columns = isinstance(error, SchemaMismatchError) and names_columns
    if (isinstance(error, SPEAKABLE) or names_all_columns) and not came_through_model(error):
        text = str(error)
        return text if text.startswith(f"pod {pod!r}") else f"{what}: {text}"
    where = "" if isinstance(error, BitfountError) else " in the model or below it"
    return f"{what}: {type(error).__name__}{where}; its text, which may hold values, is in the pod's own log"


def failed_to(pod: str, name: str) -> str:
    """How a reason begins."""
    return f"pod {pod!r} failed to {DOING.get(name, name)}"


def came_through_model(error: BaseException) -> bool:
    """Whether an error was raised in a model's own code, or below it: then its text may hold anything, whatever its type."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(str(frame.f_globals.get("__name__", "")).startswith(SOURCE_MODULE) for frame, _ in frames)
