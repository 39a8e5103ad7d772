"""Randomness as a value: seeds derived from (seed, purpose, ...), and blocks that leave the global generators alone."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A seed for one purpose, the same in every process.

    Args:
        seed: the user's seed.
        purpose: what it is for, e.g. `("order", epoch)`; other purposes give unrelated seeds.

    Returns:
        An integer in [0, 2**63): the first bytes of SHA-256 over the arguments as a JSON list.
    """
    text = json.dumps([seed, *purpose])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_generators(seed: int) -> None:
    """Seeds the global generators of Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # users' models draw from the global generator
    if has_accelerator():
        torch.manual_seed(seed)
    else:
        # torch.manual_seed also notes down seeds for devices that may yet appear, each with a stack trace: that costs more
        # than a short round of training, and grows with every call.
        torch.default_generator.manual_seed(seed)


@cache
def has_accelerator() -> bool:
    """Whether this process has a device beside the CPU."""
    return bool(torch.accelerator.is_available())


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Runs a block under a seed and puts the global generators back afterwards.

    Args:
        seed: None leaves the generators alone: the block draws from them as any code would.
    """
    if seed is None:
        yield
        return
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            seed_generators(seed)
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
