"""Bare PyTorch that does the same training: what jobs are held beside."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence

import torch
from classifier import optimiser
from tables import Tensors
from torch import nn
from torch.nn import functional as F


def train_epoch(net: nn.Module, features: torch.Tensor, targets: torch.Tensor, batch_size: int) -> None:
    """One epoch: a permutation, gathered batches, forward, backward, step."""
    optimizer = optimiser(net.parameters())
    order = torch.randperm(len(features))
    for start in range(0, len(features), batch_size):
        rows = order[start : start + batch_size]
        optimizer.zero_grad()
        F.cross_entropy(net(features[rows]), targets[rows]).backward()
        optimizer.step()


def federated_rounds(
    net: nn.Module, parts: Sequence[Tensors], rounds: int, batch_size: int, sample: int | None = None
) -> list[float]:
    """Seconds of each round but the first: each part trains a copy of the weights, the copies are averaged by rows.

    Args:
        net: is trained.
        parts: of the rows, one for each pod or client.
        rounds: of one epoch each.
        batch_size: in rows.
        sample: how many parts a round draws; all, if None.
    """
    weights = copy.deepcopy(net.state_dict())
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        asked = [parts[part] for part in torch.randperm(len(parts))[:sample].tolist()]
        total = sum(len(targets) for _, targets in asked)
        mean = {name: torch.zeros_like(value) for name, value in weights.items()}
        for features, targets in asked:
            net.load_state_dict(weights)
            train_epoch(net, features, targets, batch_size)
            for name, value in net.state_dict().items():
                mean[name] += value * (len(targets) / total)
        weights = mean
        seconds.append(time.perf_counter() - began)
    return seconds[1:]
