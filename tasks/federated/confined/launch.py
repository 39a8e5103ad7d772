"""Starts the process that a model runs in: takes all away from it that it does not need, then lets it begin, and ends it.

Run by its path, with the standard library alone and a single thread: the kernel moves no process with threads into a
user namespace. What it is to do comes as one JSON argument, see `orders_of` in `tasks.federated.confined.process`.

What is taken away: see user_namespaces(7), pid_namespaces(7), mount_setattr(2), setrlimit(2), prctl(2).
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

NEW_MOUNTS, NEW_NAMES, NEW_IPC = 0x00020000, 0x04000000, 0x08000000
NEW_USERS, NEW_PIDS, NEW_NET = 0x10000000, 0x20000000, 0x40000000
MOUNT_NOSUID, MOUNT_NODEV, MOUNT_NOEXEC, MOUNT_RECURSIVE, MOUNT_PRIVATE = 0x2, 0x4, 0x8, 0x4000, 0x40000
MOUNT_SETATTR = 442
"""The number of the system call, the same on all machines: https://docs.kernel.org/process/adding-syscalls.html."""
HERE, EVERYTHING_BELOW = -100, 0x8000
READ_ONLY = 0x1
DIE_WITH_PARENT, NO_NEW_PRIVILEGES = 1, 38
NOBODY = 65534
SIGNALLED = 128
"""Added to a signal's number, an exit status says that the signal ended the process, as shells have it."""

libc = ctypes.CDLL(None, use_errno=True)


def called(what: str, result: int) -> None:
    """Raises what the kernel said of a call.

    Raises:
        OSError: the call failed.
    """
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(kind: str | None, place: str, flags: int, options: str = "") -> None:
    """mount(2)."""
    name = None if kind is None else kind.encode()
    called(f"mount {kind or ''} on {place}", libc.mount(name, place.encode(), name, flags, options.encode()))


def set_read_only(place: str, below: int = 0) -> None:
    """mount_setattr(2), since Linux 5.12."""
    attributes = struct.pack("=QQQQ", READ_ONLY, 0, 0, 0)
    result = libc.syscall(MOUNT_SETATTR, HERE, place.encode(), below, attributes, len(attributes))
    called(f"make {place} read-only", result)


def leave_namespaces() -> None:
    """Moves this process into a user namespace of its own, where it is itself and nobody else, and away from all networks.

    Processes that it starts from now on have numbers of their own, and see no others.
    """
    user, group = os.geteuid(), os.getegid()
    called(
        "unshare",
        libc.unshare(NEW_USERS | NEW_NET | NEW_PIDS | NEW_MOUNTS | NEW_IPC | NEW_NAMES),
    )
    Path("/proc/self/setgroups").write_text("deny")
    # As anyone but 0, it keeps no rights within its namespace either once it has become another program.
    Path("/proc/self/uid_map").write_text(f"{user or NOBODY} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group or NOBODY} {group} 1")


def close_file_system(scratch: str, scratch_bytes: int, processes: int) -> None:
    """Makes all that is mounted read-only, but for a small folder in memory."""
    mount(None, "/", MOUNT_RECURSIVE | MOUNT_PRIVATE)
    set_read_only("/", EVERYTHING_BELOW)
    for place in filter(os.path.isdir, (scratch, "/dev/shm")):  # noqa: S108 (a file system of its own is mounted there)
        mount("tmpfs", place, MOUNT_NOSUID | MOUNT_NODEV, f"size={scratch_bytes},mode=700")
    try:
        mount("proc", "/proc", MOUNT_NOSUID | MOUNT_NODEV | MOUNT_NOEXEC)
    except PermissionError:
        return  # within a container; other processes are named there, but may be neither read nor ended
    with suppress(OSError):  # since Linux 6.14; unlike the limit on processes it also holds for root
        Path("/proc/sys/kernel/pid_max").write_text(str(processes))
    set_read_only("/proc")


def limit(limits: dict[str, int]) -> None:
    """Sets each limit, for good, and lets nothing that is run give rights back."""
    for name, wanted in limits.items():
        number = getattr(resource, name)
        _, highest = resource.getrlimit(number)
        value = wanted if highest == resource.RLIM_INFINITY else min(wanted, highest)
        resource.setrlimit(number, (value, value))
    called("prctl", libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0))


def tasks_of(user: int) -> int:
    """How many threads a user has: without a namespace of its own, the limit on them counts all."""
    count = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if folder.stat().st_uid == user:
                count += len(list((folder / "task").iterdir()))
        except OSError:
            continue  # it has ended
    return count


def tried(what: Callable[[], None]) -> str | None:
    """Why the kernel does not allow something; None if it does."""
    try:
        what()
    except OSError as error:
        return error.strerror or str(error)
    return None


def say(channel: int, reason: str | None) -> None:
    """Tells the pod whether the process is confined, in the form of `tasks.federated.confined.channel`."""
    header = json.dumps({"confined": reason is None, "reason": reason or ""}).encode()
    os.write(channel, struct.pack("!IQ", len(header), 0) + header)


def become_child(orders: dict[str, Any], reason: str | None) -> None:
    """Gives up the rest and becomes the program that runs the model."""
    channel, limits = orders["channel"], orders["limits"]
    libc.prctl(DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    os.setsid()
    Path("/proc/self/oom_score_adj").write_text("1000")  # the first process to go when the machine's memory runs out
    if reason is None:
        sizes = orders["scratch_bytes"], limits["RLIMIT_NPROC"]
        reason = tried(lambda: close_file_system(orders["scratch"], *sizes))
    if reason is not None:
        limits["RLIMIT_NPROC"] += tasks_of(os.geteuid())
    say(channel, reason)
    if reason is not None and not orders["allow_unconfined"]:
        return
    limit(limits)
    os.chdir(orders["scratch"])
    first, second = sorted((channel, orders["shared"]))
    for start, stop in ((3, first), (first + 1, second), (second + 1, os.sysconf("SC_OPEN_MAX"))):
        os.closerange(start, stop)
    os.execv(orders["command"][0], orders["command"])  # noqa: S606 (no shell is wanted)


def watch(child: int, lifeline: int) -> int:
    """Waits until the child has ended, or the pod has gone or wants its end; gives its exit status."""
    ended = os.pidfd_open(child)
    waiting = select.poll()
    waiting.register(ended, select.POLLIN)
    waiting.register(lifeline, select.POLLIN | select.POLLHUP)
    waiting.poll()
    for kill in (os.killpg, os.kill):  # it may have no group yet
        with suppress(ProcessLookupError):
            kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return SIGNALLED + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def main() -> int:
    """Starts the process and stays beside it."""
    orders = json.loads(sys.argv[1])
    reason = tried(leave_namespaces)
    child = os.fork()
    if child == 0:
        try:
            become_child(orders, reason)
        except OSError as error:
            print(f"cannot begin: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(1)
    for descriptor in (orders["channel"], orders["shared"]):
        os.close(descriptor)
    return watch(child, orders["lifeline"])


if __name__ == "__main__":
    sys.exit(main())
