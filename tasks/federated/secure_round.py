"""The modeller's side of a round whose updates are seen only in their sum: asks pods for one step after the other.

    trained -> keys -> shares -> masked vectors -> answers for the masks -> the sum

After each step the modeller says who was in time, once; pods that were not are left out of the steps that follow. What is
there says how far the sum is. A session that begins again in mid-round looks first whether an earlier one got so far
that its answers give the sum. If not, it asks the pods whose vectors were to be summed then, and no others: they would
not answer for different survivors, since the difference of two sums could be one pod's update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from bitfount_model.errors import ParameterError, QuorumError, StorageError, StoreAwayError
from bitfount_model.federation.fixed_point import Layout, SecureMean
from bitfount_model.federation.privacy import Spent
from bitfount_model.federation.secure_layout import context_of, layout_of
from bitfount_model.federation.secure_sum import MINIMUM_PODS, Context, PublicKeys, UnmaskAnswer, unmasked_sum
from bitfount_model.types import Parameters, Words
from tasks.federated.exchange import round_phase
from tasks.federated.federation import Federation, listed
from tasks.federated.secure_messages import SecureMessages, Summed, Trained
from tasks.progress import tell
from tasks.store import Reference

Value = TypeVar("Value")


@dataclass(frozen=True)
class SecureResult:
    """A round's sum.

    Attributes:
        summed: the weighted mean, the weights together and the metrics.
        pods: the survivors, sorted.
        seconds: pod -> seconds that training took there.
        bytes_up: of the survivors' vectors.
        spent: pod -> what its updates have told so far, in a private job.
    """

    summed: SecureMean
    pods: tuple[str, ...]
    seconds: Mapping[str, float]
    bytes_up: int
    spent: Mapping[str, Spent]


class SecureRound:
    """One round.

    Args:
        federation: the job, initialised.
        round_number: from 1.
        parameters: the global ones.
        base_digest: of them.
        asked: the pods that the round asks.

    Attributes:
        missing: pod -> why it is not in the sum, of those that were asked.
        waited: seconds spent waiting for pods.
    """

    def __init__(
        self,
        federation: Federation,
        round_number: int,
        parameters: Parameters,
        base_digest: str,
        asked: tuple[str, ...],
    ) -> None:
        self._federation = federation
        self._number = round_number
        self._phase = round_phase(round_number)
        self._parameters = parameters
        self._digest = base_digest
        self._messages = SecureMessages(federation.exchange, self._phase, federation.session)
        self._asked = asked
        self._is_restricted = False
        self.missing: dict[str, str] = {}
        self.waited = 0.0
        self._take_up_earlier()

    @property
    def steps(self) -> Mapping[str, Callable[[], object]]:
        """What is left to be done before `result`, in its order: after each, pods of this process get their turn."""
        if self._messages.survivors() is not None:
            return {}
        return {
            "collect trained": self.collect_trained,
            "collect keys": self.collect_keys,
            "collect shares": self.collect_shares,
            "collect masked": self.collect_masked,
        }

    def collect_trained(self) -> list[str]:
        """Waits until pods have trained, then says who is summed.

        Raises:
            QuorumError: too few pods trained in time.
        """

        def look(pod: str) -> Trained | None:
            trained = self._messages.trained(pod)
            if trained is not None:
                self._federation.exchange.check_rows(pod, trained.rows)
            return trained

        found = {}
        for pod, trained in self._answers(self._asked, look):
            found[pod] = trained
            rate = trained.rows / trained.seconds if trained.seconds else 0.0
            tell(
                "pod_answered",
                {"pod": pod, "round": self._number, "rows_per_second": rate, "metrics": {}, "train_loss": None},
            )
        self._require(found, MINIMUM_PODS)
        metrics = sorted({name for trained in found.values() for name in trained.metrics})
        summed = Summed(tuple(sorted(found)), sum(each.rows for each in found.values()), tuple(metrics))
        self._messages.put_summed(summed)
        return list(summed.pods)

    def collect_keys(self) -> list[str]:
        """Waits for the pods' keys, then shows them to all.

        Raises:
            QuorumError: too few came in time.
        """
        keys = dict(self._answers(self._summed().pods, self._messages.keys))
        self._require(keys, self._context().threshold)
        self._messages.put_roster([keys[pod] for pod in sorted(keys)])
        return sorted(keys)

    def collect_shares(self) -> list[str]:
        """Waits for the pods' encrypted shares, then says whose came.

        Raises:
            QuorumError: too few came in time.
        """
        shares = dict(self._answers(sorted(self._roster()), self._messages.shares))
        self._require(shares, self._context().threshold)
        self._messages.put_senders(sorted(shares))
        return sorted(shares)

    def collect_masked(self) -> list[str]:
        """Waits for the pods' masked vectors, then says whose are summed.

        Raises:
            QuorumError: too few came in time.
        """
        masked = dict(self._answers(self._messages.senders() or (), self._usable))
        self._require(masked, self._context().threshold)
        if self._is_restricted and set(masked) != set(self._asked):
            raise self._below(masked, len(self._asked))
        self._messages.put_survivors(sorted(masked))
        return sorted(masked)

    def result(self) -> SecureResult:
        """Waits for the survivors' answers, and takes the masks off their sum.

        Raises:
            QuorumError: too few answers came in time.
            SecureSumError: the answers do not give back what the pods published.
        """
        survivors = self._messages.survivors() or ()
        answers = dict(self._answers(survivors, self._messages.unmask))
        self._require(answers, self._context().threshold)
        # A survivor that gives no answer is in the sum all the same.
        self.missing = {pod: reason for pod, reason in self.missing.items() if pod not in survivors}
        return self._sum(survivors, list(answers.values()))

    def forget(self) -> None:
        """Removes the vectors, once the round's record is written."""
        self._messages.forget_masked(self._messages.senders() or ())

    def _sum(self, survivors: Sequence[str], answers: list[UnmaskAnswer]) -> SecureResult:
        context, layout, size = self._context(), self._layout(), 0

        def vectors() -> Iterator[tuple[str, Words]]:
            nonlocal size
            for pod in survivors:
                reference = self._reference(pod)
                size += reference.size
                yield pod, self._messages.words(reference, layout.size)

        words = unmasked_sum(context, self._roster(), vectors(), answers)
        trained = {pod: each for pod in survivors if (each := self._messages.trained(pod)) is not None}
        seconds = {pod: each.seconds for pod, each in trained.items()}
        spent = {pod: each.spent for pod, each in trained.items() if each.spent is not None}
        pods = tuple(sorted(survivors))
        self.missing |= {
            pod: "it dropped out of the secure sum" for pod in self._asked if pod not in {*pods, *self.missing}
        }
        return SecureResult(layout.decode(words), pods, seconds, size, spent)

    def _usable(self, pod: str) -> Reference | None:
        """A masked vector that has the right form."""
        reference = self._messages.masked(pod)
        if reference is not None:
            self._messages.words(reference, self._layout().size)
        return reference

    def _reference(self, pod: str) -> Reference:
        reference = self._messages.masked(pod)
        if reference is None:
            raise StorageError(f"the masked vector of pod {pod!r} is gone")
        return reference

    def _answers(self, pods: Sequence[str], look: Callable[[str], Value | None]) -> Iterator[tuple[str, Value]]:
        collector = self._federation.collector(self._phase)
        yield from collector.answers(pods, look)
        self.missing |= collector.missing
        self.waited += collector.waited

    def _require(self, found: Mapping[str, object], wanted: int) -> None:
        wanted = max(wanted, self._federation.job.quorum)
        if len(found) < wanted:
            raise self._below(found, wanted)

    def _below(self, found: Mapping[str, object], wanted: int) -> QuorumError:
        return QuorumError(
            f"round {self._number}: {len(found)} of {len(self._asked)} pods took every step of the secure sum so far, it needs"
            f" {wanted}{listed(self.missing)}",
            self.missing,
        )

    def _summed(self) -> Summed:
        summed = self._messages.summed()
        if summed is None:
            raise StorageError(f"the secure sum of round {self._number} has lost who is summed")
        return summed

    def _layout(self) -> Layout:
        summed = self._summed()
        return layout_of(self._federation.job, self._parameters, summed.pods, summed.rows, summed.metrics)

    def _context(self) -> Context:
        return context_of(self._federation.job, self._number, self._digest, self._summed().pods, self._layout())

    def _roster(self) -> dict[str, PublicKeys]:
        return {keys.pod: keys for keys in self._messages.roster() or ()}

    def _take_up_earlier(self) -> None:
        """Goes on with the newest earlier session that has said who survived, or asks its survivors alone."""
        for session in range(self._federation.session - 1, 0, -1):
            earlier = SecureMessages(self._federation.exchange, self._phase, session)
            survivors = earlier.survivors()
            if survivors is None:
                continue
            mine, self._messages = self._messages, earlier
            if sum(self._answer_of(pod) is not None for pod in survivors) < self._context().threshold:
                self._messages, self._asked, self._is_restricted = mine, survivors, True
            return

    def _answer_of(self, pod: str) -> UnmaskAnswer | None:
        try:
            return self._messages.unmask(pod)
        except StoreAwayError:
            raise
        except (ParameterError, StorageError, ValueError):
            return None
