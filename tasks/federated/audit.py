"""A pod's log of what it decided and did: one line each, chained by digests, so that a line that was changed shows.

A line is JSON with sorted keys. It holds its own `number`, from 1, and in `previous` the sha256 of the bytes of the line
before it, without the line's end (64 zeros in the first). Whoever notes the digest of the last line elsewhere can show later
that nothing up to there was changed or cut off.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any

from filelock import FileLock

from bitfount_model.errors import IntegrityError, StorageError
from bitfount_model.federation.book import DECISIONS, HEALED, Decision

FIRST = "0" * 64
"""What the first line follows."""
MAX_REASON = 1000
"""The longest reason that a line holds, in characters."""
MAX_LINE = 2**16
"""More bytes than any line has."""
KEYS = {"number", "previous", "when", "pod"} | {each.name for each in fields(Decision)}


@dataclass(frozen=True)
class Line:
    """A line that is in its place.

    Attributes:
        number: from 1.
        when: UTC, ISO 8601.
        pod: whose.
        decision: what it says.
        sha256: of its bytes.
    """

    number: int
    when: str
    pod: str
    decision: Decision
    sha256: str


class AuditLog:
    """One pod's log.

    Args:
        path: of the file; its folder is there.
        pod: name of the pod.
    """

    def __init__(self, path: Path, pod: str) -> None:
        self.path = path
        self.pod = pod

    def append(self, decision: Decision) -> None:
        """Writes a line down, on the disk before this returns; jobs that run at the same time wait for each other.

        A last line that a crash cut off is removed, and a line says so.

        Raises:
            IntegrityError: the last line is none of this log.
            StorageError: the file cannot be written.
        """
        try:
            with FileLock(f"{self.path}.lock", mode=0o600), self._opened() as stream:
                self._heal(stream)
                self._write(stream, decision)
        except OSError as error:
            raise StorageError(f"the pod's audit log cannot be written: {error.strerror}") from error

    def lines(self) -> Iterator[Line]:
        """The lines, each held against the one before it. What a crash cut off at the end is left out.

        Raises:
            IntegrityError: names the first line that is not in its place.
            StorageError: the file cannot be read.
        """
        try:
            contents = self.path.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"the pod's audit log {self.path} cannot be read: {error.strerror}") from error
        previous = FIRST
        for place, content in enumerate(contents):
            line = _line(content, place + 1, previous, follower=contents[place + 1] if contents[place + 1 :] else None)
            previous = line.sha256
            yield line

    def torn_bytes(self) -> int:
        """How many bytes of a line a crash left at the end; the next line will say so.

        Raises:
            IntegrityError: the last line is none of this log.
        """
        if not self.path.exists():
            return 0
        with FileIO(self.path) as stream:
            return len(_tail(stream)[1])

    def _opened(self) -> FileIO:
        is_new = not self.path.exists()
        stream = FileIO(self.path, "a+", opener=lambda path, flags: os.open(path, flags, 0o600))
        if is_new:
            sync_folder(self.path.parent)
        return stream

    def _heal(self, stream: FileIO) -> None:
        _, torn = _tail(stream)
        if torn:
            stream.truncate(stream.seek(0, os.SEEK_END) - len(torn))
            reason = (
                f"the process that wrote line {self._next(stream)[0]} was ended in the middle of it: {len(torn)} bytes"
            )
            self._write(stream, Decision(HEALED, reason=reason))

    def _next(self, stream: FileIO) -> tuple[int, str]:
        """The number of the next line, and the digest of the line that it follows."""
        last, _ = _tail(stream)
        if last is None:
            return 1, FIRST
        try:
            number = json.loads(last)["number"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise _stranger() from error
        if not isinstance(number, int):
            raise _stranger()
        return number + 1, hashlib.sha256(last).hexdigest()

    def _write(self, stream: FileIO, decision: Decision) -> None:
        number, previous = self._next(stream)
        value = {
            **asdict(decision),
            "reason": None if decision.reason is None else decision.reason[:MAX_REASON],
            "number": number,
            "previous": previous,
            "when": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "pod": self.pod,
        }
        content = json.dumps(value, sort_keys=True, allow_nan=False).encode("ascii") + b"\n"
        end = stream.seek(0, os.SEEK_END)
        try:
            if stream.write(content) != len(content):
                raise OSError(0, "the disk is full")
            os.fsync(stream.fileno())
        except OSError:
            stream.truncate(end)
            raise


def sync_folder(folder: Path) -> None:
    """Puts the names of a folder's files on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tail(stream: FileIO) -> tuple[bytes | None, bytes]:
    """The last whole line without its end, or None where there is none; and what a crash left behind it.

    Raises:
        IntegrityError: the file has no line of a length that lines have.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - 2 * MAX_LINE))
    content = stream.read()
    end = content.rfind(b"\n")
    if end < 0:
        if len(content) < size:
            raise _stranger()
        return None, content
    begin = content.rfind(b"\n", 0, end) + 1
    return content[begin:end], content[end + 1 :]


def _stranger() -> IntegrityError:
    return IntegrityError(
        "the last line of the pod's audit log is none that a pod writes: look at it with `bitfount-flows pod audit POD.yaml`;"
        " move the file away to begin a new one"
    )


def _line(content: bytes, number: int, previous: str, follower: bytes | None) -> Line:
    """A line that is to have this number and to follow that line; the one behind it tells whose fault it is if it does not.

    Raises:
        IntegrityError: it does not; names the line that was changed, removed or put in.
    """
    value, sha256 = _value(content), hashlib.sha256(content).hexdigest()
    if value is None:
        raise IntegrityError(f"line {number} of the audit log is none that a pod writes: it was changed or put in")
    if value["number"] != number:
        raise IntegrityError(
            f"line {number} of the audit log says that it is number {value['number']!r}: it was changed, or lines before it"
            " were removed or put in"
        )
    if value["previous"] != previous:
        behind = None if follower is None else _value(follower)
        fits = follower is None or (behind is not None and behind["previous"] == sha256)
        changed = number - 1 if fits and number > 1 else number
        raise IntegrityError(
            f"line {changed} of the audit log was changed: line {number} does not follow from the line before it"
        )
    return Line(number, value["when"], value["pod"], _decision(value), sha256)


def _value(content: bytes) -> dict[str, Any] | None:
    """What a line holds; None for what a pod does not write."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    is_line = isinstance(value, dict) and set(value) == KEYS and value["what"] in DECISIONS
    return value if is_line else None


def _decision(value: dict[str, Any]) -> Decision:
    return Decision(**{each.name: value[each.name] for each in fields(Decision)})
