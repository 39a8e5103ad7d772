"""Before a secure sum: who takes part in which round, and what all of its masks, shares and signatures are bound to."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from bitfount_model.errors import SecureSumError

MINIMUM_PODS = 3
"""With two pods, each would know the other's update from the sum."""

PROTOCOL = "bitfount secure sum 1"
"""Begins everything that is hashed or signed, so that nothing made for another purpose can stand in."""


def default_threshold(pods: int) -> int:
    """`floor(2n / 3) + 1`: the sum survives the loss of almost a third of the pods.

    Nobody's update can be told as long as fewer than a third of the pods help the server to ask pods for different things.

    Args:
        pods: how many take part, n.

    Raises:
        SecureSumError: there are fewer than 3.
    """
    if pods < MINIMUM_PODS:
        raise SecureSumError(
            f"a secure sum has {pods} pods, want at least {MINIMUM_PODS}: add pods, or sum in the open"
        )
    return 2 * pods // 3 + 1


@dataclass(frozen=True)
class Context:
    """One secure sum. Pods with different contexts share no masks and read none of each other's shares.

    Attributes:
        job_id: of the job.
        round_number: from 1.
        base_digest: sha256 of the global parameters that updates start from, 64 hexadecimal digits.
        layout_digest: `fixed_point.Layout.digest`: pods that scale their values differently must not be summed, as the
            sum would tell them apart.
        pods: names of the pods that were asked, in any order; kept in the order of names.
        threshold: how many pods must take every step, more than half of them.

    Raises:
        SecureSumError: fewer than 3 pods, a name twice, a threshold that is not above half of the pods and at most all of
            them, no round, or no digest; lists all of it.
    """

    job_id: str
    round_number: int
    base_digest: str
    layout_digest: str
    pods: tuple[str, ...]
    threshold: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "pods", tuple(sorted(self.pods)))
        number = len(self.pods)
        problems = [f"the {what} is {value!r}, want a text" for what, value in self._texts() if not _is_text(value)]
        problems += [
            f"{what} is {value!r}, want 64 hexadecimal digits"
            for what, value in (("base_digest", self.base_digest), ("layout_digest", self.layout_digest))
            if not (isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value))
        ]
        problems += [f"pod {name!r} is named twice" for name in repeated(self.pods)]
        if number < MINIMUM_PODS:
            problems.append(f"there are {number} pods, want at least {MINIMUM_PODS}")
        elif not (type(self.threshold) is int and number // 2 < self.threshold <= number):
            problems.append(
                f"the threshold is {self.threshold!r}, want {number // 2 + 1} to {number} with {number} pods"
                f" (usually {default_threshold(number)})"
            )
        if type(self.round_number) is not int or self.round_number < 1:
            problems.append(f"the round is {self.round_number!r}, want a whole number from 1")
        if problems:
            raise SecureSumError("no secure sum can be made: " + "; ".join(problems))

    @cached_property
    def digest(self) -> str:
        """sha256 of everything in it, 64 hexadecimal digits: what masks, shares and signatures are bound to."""
        parts = [self.job_id, self.round_number, self.base_digest, self.layout_digest, list(self.pods), self.threshold]
        return hashlib.sha256(canonical("context", *parts)).hexdigest()

    def check_pods(self, names: Iterable[str], *, what: str) -> None:
        """Refuses names that are not of this sum, names twice, and fewer than the threshold.

        Args:
            names: of pods.
            what: names them in the message, such as "the survivors".

        Raises:
            SecureSumError: lists what is wrong.
        """
        given = list(names)
        problems = [f"pod {name!r} is not one of this sum" for name in given if name not in self.pods]
        problems += [f"pod {name!r} is there twice" for name in repeated(given)]
        if len(given) < self.threshold:
            problems.append(f"there are {len(given)} pods, want at least {self.threshold} of {len(self.pods)}")
        if problems:
            raise SecureSumError(f"{self}: {what} are refused: " + "; ".join(problems))

    def __str__(self) -> str:
        return f"secure sum of round {self.round_number}"

    def _texts(self) -> list[tuple[str, object]]:
        return [("job's id", self.job_id), *(("name of a pod", pod) for pod in self.pods)]


def canonical(purpose: str, *parts: object) -> bytes:
    """The same bytes for the same parts and for no others: JSON of texts, whole numbers and lists of them.

    Args:
        purpose: what the bytes are for; the protocol's name is put before it.
        parts: what they say.
    """
    return json.dumps([PROTOCOL, purpose, *parts], separators=(",", ":")).encode("ascii")


def repeated(names: Iterable[str]) -> list[str]:
    """The names that are there more than once, in their order."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)
