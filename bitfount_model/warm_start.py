"""What a process pays once, so that no round does."""

from __future__ import annotations

import torch


def warm_start() -> None:
    """Makes an optimiser: torch loads its compiler, more than 800 modules in up to a second, with the first one of a process.

    Call it where a process gets ready to train, and before processes are forked that will.
    """
    torch.optim.SGD([torch.zeros(1)], lr=1.0)
