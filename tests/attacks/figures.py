"""Writes the table of docs/security.md from what the tests measured: `make figures` runs the files below with it.

A promise's row counts its tests, and repeats what they recorded as `figure`. A promise of which a test failed, or none ran,
stops the writing.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->\n"
CORE = "tests/bitfount_model/federation"
PROMISES: dict[str, tuple[str, tuple[str, ...]]] = {
    "S1": (
        "A secure sum is exact, or refused",
        (f"{CORE}/test_secure_sum.py", "tests/tasks/federated/test_secure_rounds.py"),
    ),
    "S2": ("Its mean is within 2^-25; what is out of range is refused", (f"{CORE}/test_fixed_point.py",)),
    "S3": (
        "Nothing of a single update can be read from what is sent",
        tuple(
            f"tests/attacks/test_secure_sum.py::test_{name}"
            for name in ("a_constant", "an_encoded", "who_knows", "no_word", "the_vectors", "no_secret")
        ),
    ),
    "S4": ("No answer unmasks one pod", ("tests/attacks/test_secure_sum.py",)),
    "U1": (
        "An update is checked before it is used: 25 kinds, each aggregation",
        ("tests/attacks/test_bad_updates.py",),
    ),
    "R1": ("Robust rules do as published, 500 inputs each; too few pods are refused", (f"{CORE}/test_robust.py",)),
    "M1": ("A weights file cannot harm", ("tests/attacks/test_weights_file.py",)),
    "M2": ("Nothing from elsewhere is unpickled", ("tests/attacks/test_nothing_is_unpickled.py",)),
    "M3": ("Only approved bytes of a model run", ("tests/attacks/test_unapproved_models.py",)),
    "P1": ("Fewer pods than the minimum: a named end at every stage", ("tests/attacks/test_too_few_pods.py",)),
    "F4": ("Names from outside stay inside the folder", ("tests/attacks/test_names_stay_inside.py",)),
    "L1": (
        "No secret, key or row value is told",
        ("tests/flows/federated/test_rows_stay.py", "tests/flows/test_secrets.py"),
    ),
    "W1": ("Servers listen on loopback and check hosts", ("tests/attacks/test_servers_reached_from_elsewhere.py",)),
    "—": (
        "An approved model reaches no network, secret, file or process of others",
        ("tests/attacks/test_confined_models.py",),
    ),
}
passed: dict[str, int] = defaultdict(int)
failed: list[str] = []
figures: dict[str, list[str]] = defaultdict(list)


def promise_of(test: str) -> str | None:
    """The promise that a test is of: that which names most of it."""
    named = [(len(start), name) for name, (_, starts) in PROMISES.items() for start in starts if test.startswith(start)]
    return max(named)[1] if named else None


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Counts a test."""
    name = promise_of(report.nodeid)
    if name is None:
        return
    if report.failed:
        failed.append(report.nodeid)
    elif report.when == "call" and report.passed:
        passed[name] += 1
        figures[name] += [str(value) for key, value in report.user_properties if key == "figure"]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes the table.

    Raises:
        UsageError: a promise is not shown.
    """
    if hasattr(session.config, "workerinput"):
        return  # the process that started this one counts
    if missing := [name for name in PROMISES if not passed[name]]:
        raise pytest.UsageError(f"{PAGE.name} is left as it is: no test of {', '.join(missing)} has run")
    if failed:
        raise pytest.UsageError(f"{PAGE.name} is left as it is: {len(failed)} tests failed")
    text = PAGE.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text(before + BEGIN + table() + END + after)


def table() -> str:
    """The table, in Markdown."""
    rows = ["| id | promise | tests passed | measured | in |", "|---|---|---|---|---|"]
    for name, (promise, starts) in PROMISES.items():
        files = sorted({start.partition("::")[0] for start in starts})
        measured = "; ".join(figures[name])
        rows.append(
            f"| {name} | {promise} | {passed[name]} | {measured} | {', '.join(f'`{file}`' for file in files)} |"
        )
    return "\n".join(rows) + "\n"


def files() -> list[str]:
    """The files of all promises."""
    return sorted({start.partition("::")[0] for _, starts in PROMISES.values() for start in starts})


if __name__ == "__main__":
    print(*files())
