"""What a data owner writes: one pod as a JSON value, checked once; from it comes the pod."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marshmallow import fields, validate

from bitfount_model.data import source_from_config
from bitfount_model.errors import ConfigurationError
from bitfount_model.federation.identity import Identity, identity_of
from bitfount_model.federation.pod import Pod
from bitfount_model.federation.policy import policy_from_json
from bitfount_model.federation.privacy_ledger import PrivacyLedger
from tasks.federated.pod_state import PodState
from tasks.job import JSON, SPLITTERS, SourceSection, SplitterSection, StrictSchema, is_name, loaded


@dataclass(frozen=True)
class PodFile:
    """A checked pod, as its owner writes it.

    Attributes:
        name: unique among the pods of a job; deployed, the pod is `pod/<name>` in Prefect.
        data: the private rows, as in a local job.
        splitter: as in a local job.
        policy: what jobs may ask; None denies all.
        store: where a deployed pod meets modellers.
        patience_seconds: how long a deployed pod waits for a modeller who gives no sign, beyond the job's own deadline.
        jobs_at_once: how many jobs a deployed pod takes part in at a time.
        state: the pod's private folder; None where nothing says it.
        identity: file of the pod's private key, for secure sums; None takes part in none, deployed.
        peers: pod -> public key of the pods that it sums with.
    """

    name: str
    data: JSON
    splitter: JSON
    policy: JSON | None
    store: str | None
    patience_seconds: float
    jobs_at_once: int
    state: str | None = None
    identity: str | None = None
    peers: Mapping[str, str] = field(default_factory=dict)

    def private(self) -> PodState:
        """The pod's private folder, which may not be there yet.

        Raises:
            ConfigurationError: nothing says where it is.
        """
        if self.state is None:
            raise ConfigurationError(f"pod {self.name!r} has no `state`: say in its file where its private folder is")
        return PodState(Path(self.state), self.name)

    def pod(self) -> Pod:
        """The pod; it keeps its book where its private folder has been made.

        Raises:
            ConfigurationError: there is no policy, or it is none.
            DataSourceError: the rows are not there.
        """
        ((kind, arguments),) = self.splitter.items()
        policy = policy_from_json(self.policy)
        return Pod(
            self.name,
            source_from_config(self.data),
            policy,
            SPLITTERS[kind](**arguments),
            book=self.private() if self.state is not None and self.private().is_there else None,
            identity=self._identity(),
            ledger=PrivacyLedger(Path(self.state)) if self.state is not None and policy.privacy is not None else None,
        )

    def _identity(self) -> Identity | None:
        if self.identity is None:
            return None
        try:
            return identity_of(Path(self.identity).read_bytes(), self.peers)
        except OSError as error:
            raise ConfigurationError(
                f"cannot read the pod's key, identity: {self.identity}: {error.strerror}"
            ) from error


class PodSchema(StrictSchema):
    """The keys of a pod's file."""

    name = fields.String(required=True, validate=is_name)
    data = fields.Nested(SourceSection, required=True)
    splitter = fields.Nested(SplitterSection, load_default=lambda: {"percentage": {}})
    policy = fields.Dict(keys=fields.String(), load_default=None, allow_none=True)
    store = fields.String(load_default=None, allow_none=True)
    patience_seconds = fields.Float(load_default=900.0, validate=validate.Range(min=1))
    jobs_at_once = fields.Integer(strict=True, load_default=4, validate=validate.Range(min=1))
    state = fields.String(load_default=None, allow_none=True)
    identity = fields.String(load_default=None, allow_none=True)
    peers = fields.Dict(keys=fields.String(validate=is_name), values=fields.String(), load_default=dict)


def check_pod(value: Any) -> PodFile:
    """Checks a pod.

    Args:
        value: plain JSON.

    Raises:
        JobError: all problems together.
    """
    return PodFile(**loaded(PodSchema(), value))
