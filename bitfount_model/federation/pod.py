"""A data owner's side as it is configured, and what it answers in a round."""

from __future__ import annotations

from dataclasses import dataclass, field

from bitfount_model.data import BaseSource, DatasetSplitter, PercentageSplitter
from bitfount_model.federation.book import Book
from bitfount_model.federation.identity import Identity
from bitfount_model.federation.metric_sums import MetricSums
from bitfount_model.federation.policy import PodPolicy
from bitfount_model.federation.privacy import Spent
from bitfount_model.federation.privacy_ledger import PrivacyLedger
from bitfount_model.types import Parameters


@dataclass(frozen=True)
class Pod:
    """A data owner's side, as it is configured.

    Attributes:
        name: unique among the pods of a job.
        source: the private rows.
        policy: what jobs may ask.
        splitter: how rows are split; rows for testing never train.
        book: what the owner has approved, and where the pod notes what it does; None approves nothing and notes nothing.
        identity: who it is to other pods in secure sums; None takes part in none.
        ledger: where the pod counts what it has told; None takes part in no private job.
    """

    name: str
    source: BaseSource
    policy: PodPolicy
    splitter: DatasetSplitter = field(default_factory=PercentageSplitter)
    book: Book | None = None
    identity: Identity | None = None
    ledger: PrivacyLedger | None = None


@dataclass(frozen=True)
class Update:
    """A pod's answer to a round.

    Attributes:
        pod: its name.
        round_number: from 1.
        base_digest: of the global parameters that it started from.
        delta: new minus global parameters.
        weight: training rows behind it.
        metrics: validation metrics as sums, after the round's last step.
        train_loss: mean over the round's rows; None where the model's steps return none.
        seconds: that training took.
        spent: what the pod's updates in this job have told so far, this one included; None where the job is not private.
    """

    pod: str
    round_number: int
    base_digest: str
    delta: Parameters
    weight: int
    metrics: MetricSums
    train_loss: float | None
    seconds: float = 0.0
    spent: Spent | None = None


@dataclass(frozen=True)
class Rows:
    """How many rows of a pod are for what, and which they are.

    Attributes:
        train: rows that train.
        validation: rows that validate.
        test: rows that test.
        digest: sha256 over the rows and the pod's name: tells a job, and a retraining after it, whether a pod's rows are
            still the same; not which pods have the same rows. In a private job it is made with a key of the pod's.
    """

    train: int
    validation: int
    test: int
    digest: str
