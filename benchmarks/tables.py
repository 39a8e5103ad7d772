"""The rows that benchmarks train on, and how they are dealt out to pods."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits

TARGET = "target"
Tensors = tuple[torch.Tensor, torch.Tensor]
"""Features, `(rows, columns)` float32, and classes, `(rows,)` int64."""


def digits() -> pd.DataFrame:
    """scikit-learn's digits: 1,797 rows of 64 pixels, 10 classes."""
    features, targets = load_digits(return_X_y=True)
    return pd.DataFrame(features / 16, columns=[f"p{number}" for number in range(64)]).assign(**{TARGET: targets})


def numbers(rows: int = 50_000, columns: int = 30) -> pd.DataFrame:
    """Random numbers, and a class of two that depends on the first two of them."""
    values = np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)
    frame = pd.DataFrame(values, columns=[f"c{number}" for number in range(columns)])
    return frame.assign(**{TARGET: (values[:, 0] + values[:, 1] > 0).astype(int)})


def dealt(table: pd.DataFrame, pods: int) -> list[pd.DataFrame]:
    """The rows in random order, in parts of one size."""
    order = np.random.default_rng(0).permutation(len(table))
    return [table.iloc[part].reset_index(drop=True) for part in np.array_split(order, pods)]


def tensors(table: pd.DataFrame) -> Tensors:
    """The table as a network takes it."""
    features = torch.tensor(table.drop(columns=TARGET).to_numpy(), dtype=torch.float32)
    return features, torch.tensor(table[TARGET].to_numpy())
