"""A pod's audit log: every line on the disk before anything comes of it, and no line that can be changed unseen."""

from __future__ import annotations

import hashlib
import json
import random
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bitfount_model.errors import IntegrityError, StorageError
from bitfount_model.federation.book import FAILED, HEALED, JOINED, TRAINED, Decision
from tasks.federated.audit import FIRST, MAX_REASON, AuditLog

SAID = [
    Decision(JOINED, job="job-1", model="a" * 64, modeller="ssh-ed25519 AAAA", rows=24),
    Decision(TRAINED, job="job-1", model="a" * 64, round_number=1, rows=19),
    Decision(FAILED, job="job-1", model="a" * 64, round_number=2, reason="größer als\nerlaubt"),
    Decision(TRAINED, job="job-2", model="b" * 64, round_number=1, rows=19),
    Decision(TRAINED, job="job-1", model="a" * 64, round_number=3, rows=19),
]


def log_in(folder: Path) -> AuditLog:
    return AuditLog(folder / "audit.jsonl", "ann")


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    """A log of five lines."""
    log = log_in(tmp_path)
    for decision in SAID:
        log.append(decision)
    return log


def contents(log: AuditLog) -> list[bytes]:
    return log.path.read_bytes().splitlines(keepends=True)


def first_bad_line(log: AuditLog) -> int | None:
    """The line that the log names, or None for a sound one."""
    try:
        list(log.lines())
    except IntegrityError as error:
        return int(str(error).split()[1])
    return None


def test_what_was_said_is_there_in_order_and_chained_by_digests_that_anybody_can_compute(log: AuditLog) -> None:
    lines = list(log.lines())
    assert [line.decision for line in lines] == SAID
    assert [line.number for line in lines] == [1, 2, 3, 4, 5]
    assert {line.pod for line in lines} == {"ann"}
    previous = FIRST
    for content, line in zip(contents(log), lines, strict=True):
        assert content.isascii() and json.loads(content)["previous"] == previous
        previous = hashlib.sha256(content.rstrip(b"\n")).hexdigest()
        assert line.sha256 == previous
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600


def test_a_log_that_was_never_written_is_empty(tmp_path: Path) -> None:
    assert list(log_in(tmp_path).lines()) == [] and log_in(tmp_path).torn_bytes() == 0


def test_no_byte_of_any_line_but_the_last_can_be_changed_unseen(log: AuditLog) -> None:
    whole = log.path.read_bytes()
    ends = [place for place, byte in enumerate(whole) if byte == ord("\n")]
    numbers = random.Random(1)
    for place in range(ends[-2]):
        changed = bytearray(whole)
        changed[place] ^= 1 << numbers.randrange(8)
        log.path.write_bytes(changed)
        line = 1 + sum(end < place for end in ends)
        assert first_bad_line(log) == line, place


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_line_that_was_written_anew_is_named(log: AuditLog, number: int) -> None:
    lines = contents(log)
    value: dict[str, Any] = json.loads(lines[number - 1])
    lines[number - 1] = json.dumps({**value, "rows": 1}, sort_keys=True).encode() + b"\n"
    log.path.write_bytes(b"".join(lines))
    assert first_bad_line(log) == number


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_line_that_was_removed_doubled_or_moved_is_named_by_its_place(log: AuditLog, number: int) -> None:
    lines = contents(log)
    place = number - 1
    for changed in (
        lines[:place] + lines[number:],
        [*lines[:place], lines[place + 1], lines[place], *lines[place + 2 :]],
    ):
        log.path.write_bytes(b"".join(changed))
        assert first_bad_line(log) == number
    log.path.write_bytes(b"".join([*lines[:number], lines[place], *lines[number:]]))
    assert first_bad_line(log) == number + 1


@pytest.mark.parametrize(
    "line",
    [b"\n", b"[]\n", b"null\n", b"{}\n", b"\xff\n", b"[" * 10_000 + b"\n", b'{"number":6}\n', b'{"number":"6"}\n'],
)
def test_what_is_no_line_is_named_and_nothing_is_written_behind_it(log: AuditLog, line: bytes) -> None:
    with log.path.open("ab") as stream:
        stream.write(line)
    assert first_bad_line(log) == 6
    before = log.path.read_bytes()
    if line != b'{"number":6}\n':  # which the writer, who looks at the number alone, cannot tell
        with pytest.raises(IntegrityError, match="none that a pod writes"):
            log.append(SAID[0])
        assert log.path.read_bytes() == before


def test_a_line_that_a_crash_cut_off_anywhere_is_healed_with_a_note_and_no_tampering(log: AuditLog) -> None:
    *before, last = contents(log)
    for length in range(1, len(last)):
        log.path.write_bytes(b"".join(before) + last[:length])
        assert log.torn_bytes() == length
        assert [line.decision for line in log.lines()] == SAID[:-1], "what is cut off is left out"
        log.append(SAID[-1])
        found = list(log.lines())
        assert log.torn_bytes() == 0
        assert [line.decision for line in found if line.decision.what != HEALED] == SAID
        (note,) = (line.decision.reason for line in found if line.decision.what == HEALED)
        assert note is not None and f"line 5 was ended in the middle of it: {length} bytes" in note


def test_a_first_line_that_was_cut_off_is_healed_too(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.path.write_bytes(b'{"job": "jo')
    log.append(SAID[0])
    assert [line.decision.what for line in log.lines()] == [HEALED, JOINED]


def test_a_long_reason_is_cut_and_the_next_line_still_finds_it(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.append(Decision(FAILED, reason="\U0001f9ea" * 100_000))
    log.append(SAID[0])
    first, second = log.lines()
    assert first.decision.reason == "\U0001f9ea" * MAX_REASON and second.decision == SAID[0]


def test_a_log_that_cannot_be_written_says_so_without_a_path(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.path.mkdir()
    with pytest.raises(StorageError, match="the pod's audit log cannot be written") as caught:
        log.append(SAID[0])
    assert str(tmp_path) not in str(caught.value)


WRITER = """
import sys
from pathlib import Path

from bitfount_model.federation.book import TRAINED, Decision
from tasks.federated.audit import AuditLog

print("ready", flush=True)
sys.stdin.readline()
for number in range(1, 26):
    AuditLog(Path(sys.argv[1]), "ann").append(Decision(TRAINED, job=sys.argv[2], round_number=number))
"""


def test_jobs_that_write_at_the_same_time_as_processes_of_their_own_make_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, path, f"job-{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=120)
        assert writer.returncode == 0
    said = [line.decision for line in AuditLog(path, "ann").lines()]
    assert len(said) == 100
    for number in range(4):
        own = [decision.round_number for decision in said if decision.job == f"job-{number}"]
        assert own == list(range(1, 26))
