"""Pods that run in the modeller's process: they do what is asked when the modeller lets them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bitfount_model.federation.identity import identities_of_one_process
from bitfount_model.federation.pod import Pod
from tasks.federated.exchange import Exchange
from tasks.federated.pod_worker import PodWorker


class EmbeddedPods:
    """Reaches pods of this process: see `tasks.federated.collect.Reach`.

    Args:
        pods: the pods, in the order of their names.
        exchange: of the job.
        session: the modeller's.
    """

    def __init__(self, pods: Sequence[Pod], exchange: Exchange, session: int) -> None:
        identities = identities_of_one_process(pod.name for pod in pods)
        known = [replace(pod, identity=identities[pod.name]) for pod in pods]
        self._workers = {pod.name: PodWorker(pod, exchange, session) for pod in known}

    def begin(self) -> None:
        """They are here already."""

    def end(self) -> None:
        """They end with this process."""

    def work(self) -> None:
        """Lets each pod in turn do all that is asked of it now; of large models, one at a time takes memory."""
        for worker in self._workers.values():
            while worker.advance():
                pass
            worker.rest()

    def gone(self, pod: str) -> str | None:
        """Why a pod will not answer: it had its turn, so what is not there now never will be."""
        return self._workers[pod].left or "it gave no answer"

    def is_away(self, pod: str) -> bool:
        """Never: nobody waits for a pod of this process."""
        return False

    def missed(self, pod: str, phase: str) -> None:
        """Cannot be: see `gone`."""
