"""A small table, a network with BatchNorm and dropout, and its clients: what the tests of this folder share."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pandas as pd
import torch

from bitfount_model import BitfountSchema, DataFrameSource, DataStructure, PyTorchBitfountModel
from bitfount_model.data import PercentageSplitter
from bitfount_model.federation.job import FederatedJob
from bitfount_model.federation.pod import Pod
from bitfount_model.federation.pod_session import PodSession
from bitfount_model.federation.policy import PodPolicy
from bitfount_model.reference import load_model_class
from bitfount_model.simulation.clients import Clients
from bitfount_model.simulation.partition import Partition, iid
from bitfount_model.types import Parameters

MODEL = """\
import torch
from torch import nn
from torch.nn import functional as F

from bitfount_model import PyTorchBitfountModel, PyTorchClassifierMixIn


class Net(PyTorchClassifierMixIn, PyTorchBitfountModel):
    def create_model(self):
        return nn.Sequential(
            nn.Linear(self.datastructure.input_size, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3)
        )

    def forward(self, x):
        x, sup = x
        return self._model(x)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return {"loss": loss}

    def validation_step(self, batch, batch_idx):
        x, y = batch
        return {"validation_loss": F.cross_entropy(self(x), y)}

    def test_step(self, batch, batch_idx):
        x, y = batch
        return {"predictions": F.softmax(self(x), dim=1), "targets": y}
"""
ALL_TRAIN = PercentageSplitter(0, 0)
POLICY = PodPolicy("all", 1, 1000, 1000, 100000, 1, "all")
SEED = 11


def table(rows: int = 90) -> pd.DataFrame:
    """Four numbers, a class of three that depends on them, and a site."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(rows, 4))
    frame = pd.DataFrame(features, columns=list("abcd"))
    return frame.assign(y=(features[:, 0] > 0).astype(int) + (features[:, 1] > 0.3), site=np.arange(rows) % 7)


def job(clients: int, **settings: Any) -> FederatedJob:
    """The settings of rounds, for pods named as clients are."""
    length = {} if "steps" in settings else {"epochs": 6}
    given: dict[str, Any] = {"between_updates": 2, "batch_size": 8, **length, **settings}
    return FederatedJob(
        job_id="lab",
        pods=tuple(f"client-{number}" for number in range(clients)),
        model_sha256=hashlib.sha256(MODEL.encode()).hexdigest(),
        datastructure={"target": "y", "ignore_cols": ["site"]},
        types={"categorical": ["y"]},
        seed=SEED,
        quorum=1,
        **given,
    )


class Lab:
    """One table, divided among clients.

    Args:
        clients: how many; ignored where a partition is given.
        source: of the model.
        partition: of the rows.
        settings: of the rounds.
    """

    def __init__(
        self, clients: int = 6, source: str = MODEL, partition: Partition | None = None, **settings: Any
    ) -> None:
        self.frame = table()
        self.source = source.encode()
        self.partition = partition or iid(len(self.frame), clients, SEED)
        self.job = job(self.partition.clients, **settings)
        self.schema = BitfountSchema("lab")
        self.schema.generate_full_schema(self.frame, force_stypes={"categorical": ["y"]}, ignore_cols=["site"])
        self.model = self._model()
        self.clients = Clients(self.model, self.partition, self.job)
        self.parameters: Parameters = {
            name: value + (0.01 if value.is_floating_point() else 0)
            for name, value in self.model.get_param_states().items()
        }

    def _model(self) -> PyTorchBitfountModel:
        cls = load_model_class(self.source, None)
        structure = DataStructure(target="y", ignore_cols=["site"], data_splitter=ALL_TRAIN)
        length: dict[str, Any] = {"steps": 1} if self.job.steps else {"epochs": 1}
        model = cls(
            datastructure=structure,
            schema=self.schema,
            batch_size=8,
            seed=SEED,
            param_clipping=self.job.param_clipping,
            **length,
        )
        model.trainer_init = quiet_trainer  # type: ignore[method-assign]
        model.initialise_model(DataFrameSource(self.frame), ALL_TRAIN)
        return model

    def pod(self, client: int) -> PodSession:
        """A pod that has a client's rows and no others, and its name."""
        rows = self.frame.iloc[self.partition.rows_of(client)].reset_index(drop=True)
        pod = Pod(f"client-{client}", DataFrameSource(rows), POLICY, ALL_TRAIN)
        settings = {**self.job.to_json(), "model_sha256": hashlib.sha256(self.source).hexdigest()}
        session = PodSession(pod, FederatedJob(**{**settings, "pods": self.job.pods}), self.source)
        assert self.model.preparation is not None
        session.prepare(self.schema, self.model.preparation)
        return session


def quiet_trainer() -> Any:
    """The default one, on the CPU."""
    from bitfount_model.training import slim_trainer

    return slim_trainer(accelerator="cpu")


def equal(one: Parameters, other: Parameters) -> bool:
    """Whether two sets of parameters have the same bits."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
