"""All keys of a table, in parts -> those that appear more than once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd

KeyPasses = Callable[[], Iterable["pd.Series[Any]"]]
"""Reads all keys once more, in parts."""

_SUSPECTS = 1000
_SHOWN = 5


def repeated_keys(passes: KeyPasses) -> list[Any]:
    """Keys that appear more than once, found with 8 bytes a key.

    Args:
        passes: gives all keys, in parts; called again only where two keys seem to be alike.

    Returns:
        Some of them; none where all keys are different.
    """
    hashes = np.concatenate([np.empty(0, dtype=np.uint64), *(key_hashes(part) for part in passes())])
    hashes.sort()
    twice = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])[:_SUSPECTS]
    if not len(twice):
        return []
    # Different keys may have one hash.
    suspects = pd.concat([part[np.isin(key_hashes(part), twice)] for part in passes()])
    shown: list[Any] = suspects[suspects.duplicated()].unique()[:_SHOWN].tolist()
    return shown


def key_hashes(keys: pd.Series[Any]) -> np.ndarray:
    """One number a key, `(keys,)` uint64: alike for equal keys, nearly always different for others."""
    return np.asarray(pd.util.hash_pandas_object(keys, index=False), dtype=np.uint64)
