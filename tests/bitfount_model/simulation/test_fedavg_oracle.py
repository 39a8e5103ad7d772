"""Federated averaging over simulated clients, against the same written in plain PyTorch."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from bitfount_model.data import Order
from bitfount_model.federation.aggregation import apply_mean
from bitfount_model.seeding import derive_seed, seeded
from bitfount_model.simulation.partition import sampled
from bitfount_model.simulation.round_sums import chunks_of, trained, whole
from tests.bitfount_model.simulation.lab import MODEL, SEED, Lab

PLAIN = (
    MODEL.replace("nn.BatchNorm1d(6), ", "")
    .replace("nn.Dropout(0.3), ", "")
    .replace("Adam(self.parameters(), lr=0.05)", "SGD(self.parameters(), lr=0.1, momentum=0.9)")
)


def test_five_rounds_give_the_parameters_of_a_plain_loop_to_a_millionth() -> None:
    lab = Lab(clients=12, source=PLAIN, epochs=5, between_updates=1)
    table = lab.model.train_dl
    parameters = lab.parameters
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    names = dict(zip(net.state_dict(), parameters, strict=True))
    weights = {name: parameters[names[name]].clone() for name in net.state_dict()}
    for number in range(1, 6):
        asked = sampled(lab.partition, 5, SEED, number)
        with seeded(SEED):
            chunks = chunks_of(asked)
            nodes = trained(lab.clients, chunks, range(len(chunks)), number, parameters, weighted=True)
            parameters = apply_mean(parameters, whole(nodes).mean.mean())

        mean = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in weights.items()}
        total = sum(len(lab.partition.rows_of(client)) for client in asked)
        for client in asked:
            rows = torch.from_numpy(lab.partition.rows_of(client))
            features, targets = table.features[rows], table.targets[rows]  # type: ignore[union-attr]
            net.load_state_dict(copy.deepcopy(weights))
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
            order = Order(derive_seed(SEED, "pod", f"client-{client}"), True).of_epoch(number - 1, len(rows))
            for batch in np.array_split(order, range(8, len(rows), 8)):
                optimizer.zero_grad()
                F.cross_entropy(net(features[batch]), targets[batch]).backward()
                optimizer.step()
            for name, value in net.state_dict().items():
                mean[name] += value.double() * len(rows) / total
        weights = {name: value.float() for name, value in mean.items()}
    for name, value in weights.items():
        assert (value - parameters[names[name]]).abs().max() < 1e-6
