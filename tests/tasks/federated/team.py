"""A federation in one process: small tables, a small model that can be told to misbehave, and pods in the modeller's hands."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bitfount_model import DataFrameSource
from bitfount_model.federation.book import Book
from bitfount_model.federation.job import FederatedJob, job_from_json
from bitfount_model.federation.pod import Pod
from bitfount_model.federation.policy import PodPolicy
from bitfount_model.federation.privacy_ledger import PrivacyLedger
from flows.embedded_pods import EmbeddedPods
from tasks.federated.exchange import Exchange
from tasks.federated.federation import Federation
from tasks.federated.rounds import Rounds
from tasks.federated.start import initialise, join_pods
from tasks.store import Store

SOURCE = b"""
import threading
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from bitfount_model import PyTorchBitfountModel, PyTorchClassifierMixIn


class Net(PyTorchClassifierMixIn, PyTorchBitfountModel):
    def __init__(self, gate="", lr=0.1, **kwargs):
        super().__init__(**kwargs)
        self.gate = gate
        self.lr = lr

    def create_model(self):
        size = self.datastructure.input_size
        return nn.Sequential(nn.BatchNorm1d(size), nn.Linear(size, self.n_classes))

    def forward(self, x):
        x, sup = x
        return self._model(x)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def is_told_to(self, what):
        return bool(self.gate) and (Path(self.gate) / f"{self._identifier}.{self.round}.{what}").exists()

    def on_train_start(self):
        self.round = self.position // len(self.train_dataloader()) + 1
        if self.is_told_to("raise"):
            raise ValueError(f"cannot go on with the row of {self.read(self._data).iloc[0].to_dict()}")
        while self.is_told_to("hang"):
            threading.Event().wait(0.01)

    def on_train_end(self):
        if self.is_told_to("diverge"):
            with torch.no_grad():
                self._model[1].bias.fill_(float("nan"))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        return {"validation_loss": F.cross_entropy(self(x), y)}

    def test_step(self, batch, batch_idx):
        x, y = batch
        return {"predictions": F.softmax(self(x), dim=1), "targets": y}
"""
"""A file `<pod>.<round>.raise`, `.hang` or `.diverge` in the folder `gate` makes the model do so there and then."""

OPEN = PodPolicy("all", 1, 1000, 1000, 1000, 1, models="all", predictions_may_leave=True)
SECRET = 4711.0815
"""In the first row of every pod, and nowhere else."""


def table(pod: str, rows: int = 24) -> pd.DataFrame:
    """Rows of a pod's own: two measures, and a class that depends on them."""
    numbers = np.random.default_rng(int.from_bytes(hashlib.sha256(pod.encode()).digest()[:4], "big"))
    x = numbers.normal(size=(rows, 2))
    x[0, 0] = SECRET
    return pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": (np.arange(rows) % 2).astype(np.int64)})


@dataclass
class Team:
    """Pods, a job over them, and the places where they meet.

    Args:
        folder: of the exchange, of the modeller's store, and of what the model is told to do.
        names: of the pods.

    Attributes:
        policies: pod -> policy; the others allow all that a job here asks for.
        tables: pod -> its rows.
        books: pod -> what it keeps; the others keep nothing.
        source: of the model.
    """

    folder: Path
    names: tuple[str, ...] = ("ann", "bob", "cat")
    policies: dict[str, PodPolicy] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    books: dict[str, Book] = field(default_factory=dict)
    source: bytes = SOURCE

    def __post_init__(self) -> None:
        self.tables = {name: table(name) for name in self.names} | self.tables
        self.gate = self.folder / "gate"
        self.gate.mkdir(parents=True, exist_ok=True)

    def tell(self, pod: str, round_number: int, what: str) -> Path:
        """The model is to `raise`, `hang` or `diverge` at a pod in a round; gives the file that says so."""
        order = self.gate / f"{pod}.{round_number}.{what}"
        order.touch()
        return order

    def job(self, **changes: Any) -> FederatedJob:
        """What is asked; keyword arguments replace its keys."""
        value: dict[str, Any] = {
            "job_id": "job-1",
            "pods": list(self.names),
            "model_sha256": hashlib.sha256(self.source).hexdigest(),
            "datastructure": {"target": "y"},
            "between_updates": 1,
            "epochs": 3,
            "seed": 3,
            "quorum": 2,
            "batch_size": 8,
            "minimum_statistics_rows": 2,
            "metrics": ["Accuracy"],
            "hyperparameters": {"gate": str(self.gate)},
        }
        return job_from_json(value | changes)

    def pod(self, name: str) -> Pod:
        """A pod as its owner configures it."""
        source, policy = DataFrameSource(self.tables[name]), self.policies.get(name, OPEN)
        ledger = PrivacyLedger(self.folder / "state" / name)
        return Pod(name, source, policy, book=self.books.get(name), ledger=ledger)

    def exchange(self) -> Exchange:
        """Where both sides meet, seen anew."""
        return Exchange(str(self.folder / "exchange"))

    def began(self, exchange: Exchange | None = None, store: Store | None = None, **changes: Any) -> Federation:
        """The modeller's next session of a job that has been published, and pods that have not joined yet."""
        exchange, job = exchange or self.exchange(), self.job(**changes)
        store = store or Store(self.folder / "store")
        store.put("job.json", b"{}")
        exchange.publish(job, self.source)
        session = exchange.begin_session({})
        return Federation(
            job=job,
            name="cells",
            experiment="tests",
            source=self.source,
            store=store,
            exchange=exchange,
            session=session,
            reach=EmbeddedPods([self.pod(name) for name in self.names], exchange, session),
        )

    def initialised(self, **changes: Any) -> Federation:
        """The same, ready for rounds."""
        federation = self.began(**changes)
        federation.reach.work()
        joined = join_pods(federation)
        federation.reach.work()
        initialise(federation, joined["missing"])
        return federation


def one_round(federation: Federation, rounds: Rounds) -> Any:
    """Opens a round, lets the pods train, and closes it."""
    rounds.open()
    federation.reach.work()
    for collect in rounds.steps_of_sum.values():
        collect()
        federation.reach.work()
    return rounds.aggregate()


def trained(federation: Federation) -> Rounds:
    """All rounds that are left."""
    rounds = Rounds(federation)
    while not rounds.are_over:
        one_round(federation, rounds)
    return rounds


def plain_step(name: str, run_name: str | None = None) -> Callable[[Any], Any]:
    """In place of `tasks.step.step`: the function as it is."""
    return lambda body: body


def with_policy(**changes: Any) -> PodPolicy:
    """A policy that allows all but what the keyword arguments change."""
    return replace(OPEN, **changes)


def files_below(folder: Path) -> Mapping[str, bytes]:
    """Name -> bytes of all that lies in a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }
