"""What every step of the modeller works with: the job, the modeller's own records, and the exchange with the pods."""

from __future__ import annotations

from dataclasses import dataclass

from bitfount_model import BitfountSchema, DataStructure, PyTorchBitfountModel
from bitfount_model.errors import QuorumError
from bitfount_model.federation.job import FederatedJob
from bitfount_model.federation.job_model import build_model
from bitfount_model.reference import load_model_class
from bitfount_model.types import TaskContext
from tasks.federated.collect import Collector, Reach
from tasks.federated.exchange import JOIN, Exchange
from tasks.store import Store

SHORTEST_JOIN_SECONDS = 120.0


@dataclass(frozen=True)
class Federation:
    """The modeller's view of one job.

    Attributes:
        job: what is asked of pods.
        name: what people call the job.
        experiment: in MLflow.
        source: the model's source, whose sha256 the job names.
        store: the modeller's own; pods do not write there.
        exchange: where both sides meet.
        session: the number of this start of the modeller.
        reach: how pods are reached.
        pretrained: bytes of a weights file to begin with, or None.
        require_all_pods: whether each pod of the job must join.
    """

    job: FederatedJob
    name: str
    experiment: str
    source: bytes
    store: Store
    exchange: Exchange
    session: int
    reach: Reach
    pretrained: bytes | None = None
    require_all_pods: bool = False

    def collector(self, phase: str) -> Collector:
        """Waits for the answers of a phase, as long as the job says; to join, pods have the time that a process takes to start."""
        seconds = self.job.deadline_seconds
        if phase == JOIN:
            seconds = max(seconds, SHORTEST_JOIN_SECONDS)
        return Collector(self.exchange, phase, self.session, self.reach, seconds)

    def model(self, schema: BitfountSchema) -> PyTorchBitfountModel:
        """The job's model without rows, with its first weights.

        Args:
            schema: the common one.
        """
        cls = load_model_class(self.source, self.job.model_class)
        structure = DataStructure(**self.job.datastructure)
        model = build_model(cls, self.job, schema, structure, seed=self.job.seed)
        model.initialise_model(context=TaskContext.MODELLER)
        return model

    def require_quorum(self, what: str, there: int, missing: dict[str, str]) -> None:
        """Ends the job where too few pods answered.

        Raises:
            QuorumError: with the reason of each pod that did not.
        """
        if there < self.job.quorum:
            raise QuorumError(
                f"{what}: {there} of {len(self.job.pods)} pods answered, the quorum is {self.job.quorum}{listed(missing)}",
                missing,
            )


def listed(missing: dict[str, str]) -> str:
    """Why pods are missing, for the end of a message."""
    return "".join(f"\n  {pod}: {reason}" for pod, reason in missing.items())
