"""Sessions that are ready for rounds, confined and not, over the same rows."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from bitfount_model import BitfountSchema, DataFrameSource, DataStructure
from bitfount_model.data import Preparation
from bitfount_model.federation.job import FederatedJob
from bitfount_model.federation.pod import Pod
from bitfount_model.federation.pod_session import PodSession
from bitfount_model.federation.policy import PodPolicy
from bitfount_model.federation.statistics import merge_statistics
from tasks.federated.confined.limits import Limits
from tests.tasks.federated.team import OPEN, SOURCE, Team

MIB = 1024**2
LIMITS = Limits(memory_bytes=3 * 1024 * MIB, file_bytes=16 * MIB, processes=400, open_files=256)

OBEDIENT = (
    SOURCE
    + b"""

class Obedient(Net):
    def on_train_start(self):
        super().on_train_start()
        order = Path(self.gate) / "order.py"
        if order.exists():
            exec(order.read_text(), {"model": self, "gate": Path(self.gate)})
"""
)
"""A model that runs the file `order.py` in the folder `gate` at the start of its training."""


def obedient_job(team: Team, **changes: Any) -> FederatedJob:
    """A job of that model."""
    return team.job(model_sha256=hashlib.sha256(OBEDIENT).hexdigest(), model_class="Obedient", **changes)


def pod_of(team: Team, policy: PodPolicy = OPEN) -> Pod:
    """A pod of the team."""
    return Pod("ann", DataFrameSource(team.tables["ann"]), policy)


def made_ready(session: PodSession) -> PodSession:
    """The session, prepared as if its pod were the only one."""
    session.prepare(*common_of(session))
    return session


def common_of(session: PodSession) -> tuple[BitfountSchema, Preparation]:
    """Schema and preparation of a single pod."""
    schema = session.schema()
    structure = DataStructure(**session.job.datastructure)
    return schema, merge_statistics({session.pod.name: session.statistics(schema)}, schema, structure)


def order(team: Team, text: str) -> Path:
    """The model is to run this text; gives the file that says so."""
    file = team.gate / "order.py"
    file.write_text(text, encoding="utf-8")
    return file
