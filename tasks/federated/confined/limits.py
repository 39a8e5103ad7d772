"""How much of its machine a model may take."""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil

from bitfount_model import codec

GIB = 1024**3


@dataclass(frozen=True)
class Limits:
    """What a model's process may have at most.

    Attributes:
        memory_bytes: of each process: private memory that can be written (RLIMIT_DATA), which leaves alone what is only
            reserved, as CUDA does. Memory that processes share is not counted; when the machine has none left, the model's
            processes are the first that the kernel ends.
        file_bytes: of one file, what it sends to its pod among them, and of all files together where the file system is closed.
        processes: processes and threads together; some kernels take no less than 301.
        open_files: of each process.
    """

    memory_bytes: int
    file_bytes: int
    processes: int
    open_files: int

    def for_kernel(self) -> dict[str, int]:
        """Names of the kernel's limits, and their values."""
        return {
            "RLIMIT_DATA": self.memory_bytes,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_NPROC": self.processes,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_CORE": 0,
        }


def limits_here() -> Limits:
    """Three quarters of this machine's memory, and of the rest what training takes and a little more.

    Libraries start a thread a core or two, each of them.
    """
    memory = psutil.virtual_memory().total * 3 // 4
    return Limits(
        memory, file_bytes=codec.DEFAULT_MAX_BYTES, processes=512 + 16 * (os.cpu_count() or 1), open_files=1024
    )
