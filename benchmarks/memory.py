"""How much memory a process has held."""

from __future__ import annotations

from pathlib import Path


def peak_mb(pid: int) -> int:
    """MB of resident memory that a process has had at most (VmHWM); 0 of one that has ended.

    Not getrusage's: a process inherits that one from whoever started it.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), 0)
