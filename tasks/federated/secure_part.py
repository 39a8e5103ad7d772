"""A pod's side of a round whose updates are seen only in their sum: what it does next, each step once.

What it has said lies in the exchange; its secrets live here alone. A pod that is started again in mid-sum has lost them:
its old keys are not its own any more, so it drops out of that sum.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from bitfount_model.errors import ConfigurationError, SecureSumError
from bitfount_model.federation.book import UNMASKED, Decision
from bitfount_model.federation.fixed_point import Layout
from bitfount_model.federation.job import FederatedJob
from bitfount_model.federation.pod import Pod, Update
from bitfount_model.federation.secure_layout import context_of, layout_of
from bitfount_model.federation.secure_sum import SecurePod
from bitfount_model.types import Parameters, Words
from tasks.federated.secure_messages import SecureMessages, Summed, Trained

logger = logging.getLogger("bitfount.pod")

KEYS, SHARES, MASK, UNMASK = "keys", "shares", "mask", "unmask"


class SecurePart:
    """One pod in the secure sum of one round, in one session of the modeller.

    Args:
        pod: the pod, with an identity.
        job: what it has joined.
        messages: of the round and the session.
        base: the global parameters.
        update: what it has trained from them.

    Attributes:
        is_over: whether nothing is left to do.
    """

    def __init__(self, pod: Pod, job: FederatedJob, messages: SecureMessages, base: Parameters, update: Update) -> None:
        self._pod = pod
        self._job = job
        self._messages = messages
        self._base = base
        self._update = update
        self._layout: Layout | None = None
        self._secrets: SecurePod | None = None
        self._words: Words | None = None
        self._told: set[str] = set()
        self.is_over = False

    def announce(self) -> None:
        """Says that it has trained; how many rows, and what its metrics are called."""
        update = self._update
        self._messages.put_trained(
            self._pod.name, Trained(update.weight, tuple(sorted(update.metrics.sums)), update.seconds, update.spent)
        )

    def next_step(self) -> str | None:
        """What can be done now; None while the modeller has not said what the step needs, or when all is over."""
        summed = self._messages.summed()
        if self.is_over or summed is None:
            return None
        if self._pod.name not in summed.pods:
            self.is_over = True
            return None
        needed: Mapping[str, Callable[[], object | None]] = {
            KEYS: lambda: summed,
            SHARES: self._messages.roster,
            MASK: self._messages.senders,
            UNMASK: self._messages.survivors,
        }
        step = next(step for step in needed if step not in self._told)
        return step if needed[step]() is not None else None

    def take(self, step: str) -> None:
        """Does a step.

        Args:
            step: what `next_step` gave.

        Raises:
            ConfigurationError: the sum is of fewer pods than the pod's owner wants.
            ParameterError: the update holds values that are out of range.
            SecureSumError: what the modeller or other pods said would give the pod's update away, or does not fit.
        """
        {KEYS: self._publish_keys, SHARES: self._share, MASK: self._mask, UNMASK: self._unmask}[step]()
        self._told.add(step)
        self.is_over = step == UNMASK

    def _publish_keys(self) -> None:
        summed = self._messages.summed()
        identity = self._pod.identity
        if summed is None or identity is None:
            raise ConfigurationError(f"pod {self._pod.name!r} has no identity, or is asked for keys too early")
        wanted = self._pod.policy.minimum_pods
        if len(summed.pods) < wanted:
            raise ConfigurationError(
                f"the secure sum is of {len(summed.pods)} pods, pod {self._pod.name!r} wants at least {wanted}"
            )
        self._layout = self._layout or self._made_layout(summed)
        if self._secrets is None:
            update = self._update
            context = context_of(self._job, update.round_number, update.base_digest, summed.pods, self._layout)
            self._secrets = SecurePod(context, self._pod.name, identity.key)
        self._messages.put_keys(self._secrets.keys())

    def _share(self) -> None:
        secrets, identity, roster = self._secrets, self._pod.identity, self._messages.roster()
        if secrets is None or identity is None or roster is None:
            raise SecureSumError(f"pod {self._pod.name!r} has published no keys in this sum")
        self._messages.put_shares(self._pod.name, secrets.shares(roster, identity.pinned(self._pod.name)))

    def _mask(self) -> None:
        if self._words is None:  # once: a second vector under the same masks would tell the difference
            self._words = self._masked()
        self._messages.put_masked(self._pod.name, self._words)
        self._words = None

    def _masked(self) -> Words:
        if self._secrets is None or self._layout is None:
            raise SecureSumError(f"pod {self._pod.name!r} has published no keys in this sum")
        weight = self._update.weight if self._job.weighted else 1
        clips = self._job.param_clipping is not None
        encoded = self._layout.encode(self._update.delta, weight, self._update.metrics, clip=clips)
        if encoded.clipped:
            logger.warning(
                "pod %s, round %d: %d values of the update were clipped to %g (param_clipping)",
                self._pod.name,
                self._update.round_number,
                encoded.clipped,
                self._layout.bound,
            )
        return self._secrets.masked(encoded.words, self._messages.senders() or ())

    def _unmask(self) -> None:
        survivors, senders = self._messages.survivors() or (), self._messages.senders() or ()
        if self._secrets is None:
            raise SecureSumError(f"pod {self._pod.name!r} has published no keys in this sum")
        received = [
            share
            for sender in senders
            if sender != self._pod.name
            for share in self._messages.shares(sender) or ()
            if share.receiver == self._pod.name
        ]
        answer = self._secrets.unmask(survivors, received)
        self._refuse_other_survivors(tuple(sorted(survivors)))
        self._messages.put_unmask(answer)

    def _refuse_other_survivors(self, survivors: tuple[str, ...]) -> None:
        """A round is summed over one set of pods, in whichever session: two sums could differ by one pod's update."""
        book, update = self._pod.book, self._update
        if book is None:
            return
        first = book.first_survivors(self._job.job_id, update.round_number, survivors)
        if first != survivors:
            raise SecureSumError(
                f"pod {self._pod.name!r} has helped to sum round {update.round_number} over {', '.join(first)}; a sum over"
                f" {', '.join(survivors)} beside it could give one pod's update away"
            )
        book.note(
            Decision(
                UNMASKED,
                job=self._job.job_id,
                model=self._job.model_sha256,
                round_number=update.round_number,
                rows=update.weight,
                reason=f"in a sum over {', '.join(survivors)}",
            )
        )

    def _made_layout(self, summed: Summed) -> Layout:
        return layout_of(self._job, self._base, summed.pods, summed.rows, summed.metrics)
