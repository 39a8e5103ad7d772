"""The server's side of a secure sum: masked vectors are added as they come, then the masks are taken off their sum.

Memory: one vector for the sum and the one that is being added, whatever the number of pods.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from bitfount_model.errors import SecureSumError
from bitfount_model.federation.secure_sum import secrets
from bitfount_model.federation.secure_sum.context import Context
from bitfount_model.federation.secure_sum.masks import Mask, apply_masks
from bitfount_model.federation.secure_sum.messages import PublicKeys, UnmaskAnswer
from bitfount_model.types import Words


def unmasked_sum(
    context: Context,
    keys: Mapping[str, PublicKeys],
    vectors: Iterable[tuple[str, Words]],
    answers: Sequence[UnmaskAnswer],
) -> Words:
    """The sum of the survivors' vectors in Z_2^64, exactly.

    The first answers by name, as many as the threshold, give back the seeds; each seed is checked against what its pod
    published, so that a wrong share is refused and never a wrong mask taken off.

    Args:
        context: of the sum.
        keys: pod -> its public keys, as `checked_roster` gives them.
        vectors: (pod, masked vector `(words,)` uint64) of each survivor once, in any order; read one at a time, and each
            is left as it is.
        answers: of the survivors, at least as many as the threshold.

    Returns:
        `(words,)` uint64.

    Raises:
        SecureSumError: too few answers; answers of pods that are no survivors, for other sums, or that do not agree on
            who survived; a vector that is missing, too many, there twice or of another form; shares that do not give
            back what a pod published.
    """
    survivors, dropped = _agreed_on(context, keys, answers)
    chosen = sorted(answers, key=lambda answer: answer.pod)[: context.threshold]
    masks = [_self_mask(context, keys[pod], chosen) for pod in sorted(survivors)]
    for pod in sorted(dropped):
        masks += _pairwise_masks(context, keys, pod, survivors, chosen)
    total = _sum(context, vectors, survivors)
    apply_masks(total, masks, threads=os.cpu_count() or 1)  # the pods wait meanwhile
    return total


def _agreed_on(
    context: Context, keys: Mapping[str, PublicKeys], answers: Sequence[UnmaskAnswer]
) -> tuple[frozenset[str], frozenset[str]]:
    """The survivors and the dropped pods that all answers are for."""
    context.check_pods((answer.pod for answer in answers), what="the answers")
    strangers = [answer.pod for answer in answers if answer.context != context.digest]
    if strangers:
        raise SecureSumError(f"{context}: the answers of {sorted(strangers)} are for another sum")
    lists = {(frozenset(answer.self_masks), frozenset(answer.masking_keys)) for answer in answers}
    if len(lists) > 1:
        raise SecureSumError(
            f"{context}: the answers do not agree on the pods that survived: ask all for the same ones"
        )
    survivors, dropped = lists.pop()
    context.check_pods(survivors, what="the survivors")
    problems = [f"pod {pod!r} is there as a survivor and as dropped" for pod in sorted(survivors & dropped)]
    problems += [f"pod {pod!r} has published no keys" for pod in sorted((survivors | dropped) - set(keys))]
    problems += [f"pod {answer.pod!r} answers, but is no survivor" for answer in answers if answer.pod not in survivors]
    if problems:
        raise SecureSumError(f"{context}: the answers are refused: " + "; ".join(problems))
    return survivors, dropped


def _self_mask(context: Context, keys: PublicKeys, answers: Sequence[UnmaskAnswer]) -> Mask:
    """A survivor's self mask, to be taken off."""
    seed = secrets.combined(context, {answer.pod: answer.self_masks[keys.pod] for answer in answers})
    if secrets.commitment(context, keys.pod, seed) != keys.commitment:
        raise _wrong_seed(context, keys.pod, "self mask", answers)
    return Mask(secrets.self_mask_key(context, keys.pod, seed), added=False)


def _pairwise_masks(
    context: Context,
    keys: Mapping[str, PublicKeys],
    dropped: str,
    survivors: Iterable[str],
    answers: Sequence[UnmaskAnswer],
) -> list[Mask]:
    """What the survivors' masks with a dropped pod left in the sum, to be taken off."""
    seed = secrets.combined(context, {answer.pod: answer.masking_keys[dropped] for answer in answers})
    private = secrets.masking_key(context, dropped, seed)
    if private.public_key().public_bytes_raw() != keys[dropped].masking:
        raise _wrong_seed(context, dropped, "masking key", answers)
    return [
        # A survivor added the mask where its name comes first, so that is where it must be subtracted.
        Mask(secrets.pairwise_mask_key(context, private, keys[dropped], keys[pod]), added=dropped < pod)
        for pod in sorted(survivors)
    ]


def _sum(context: Context, vectors: Iterable[tuple[str, Words]], survivors: frozenset[str]) -> Words:
    total: Words | None = None
    missing = set(survivors)
    for pod, vector in vectors:
        if pod not in missing:
            reason = "came twice" if pod in survivors else "came, but the answers are not for it as a survivor"
            raise SecureSumError(f"{context}: the vector of pod {pod!r} {reason}")
        if not isinstance(vector, np.ndarray) or vector.dtype != np.uint64 or vector.ndim != 1:
            raise SecureSumError(f"{context}: the vector of pod {pod!r} is no uint64 array (words,)")
        if total is None:
            total = np.zeros(len(vector), dtype=np.uint64)
        if len(vector) != len(total):
            raise SecureSumError(
                f"{context}: the vector of pod {pod!r} has {len(vector)} words, that of others {len(total)}"
            )
        np.add(total, vector, out=total)
        missing.remove(pod)
        del vector  # before the next one is read
    if total is None or missing:
        raise SecureSumError(f"{context}: the vectors of {sorted(missing)} are missing: they were to survive")
    return total


def _wrong_seed(context: Context, pod: str, what: str, answers: Sequence[UnmaskAnswer]) -> SecureSumError:
    return SecureSumError(
        f"{context}: the shares of pods {[answer.pod for answer in answers]} do not give back the {what} that pod {pod!r}"
        " published: one of them, or what that pod shared, is wrong"
    )
