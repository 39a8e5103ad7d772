"""Who takes part in a round: pods and (seed, round) -> the sample, the same wherever and however often it is drawn."""

from __future__ import annotations

from collections.abc import Sequence

from bitfount_model.errors import ConfigurationError
from bitfount_model.seeding import derive_seed


def sample_pods(seed: int, round_number: int, pods: Sequence[str], size: int) -> tuple[str, ...]:
    """Draws pods for a round, uniformly and without replacement.

    Every pod has a number, `derive_seed(seed, "sample", round_number, pod)`: a hash of SHA-256 that depends on nothing
    else. Those with the smallest numbers are drawn. So the order of `pods` does not matter, rounds are independent of
    each other, a larger sample contains the smaller one, and a pod that joins or leaves takes at most one place: the
    rest of the draw stays.

    Args:
        seed: of the job, an integer >= 0.
        round_number: of the round, an integer >= 0.
        pods: the names to draw from, each once.
        size: how many to draw, from 1 to the number of pods.

    Returns:
        The names that were drawn, sorted: the order in which pods are added.

    Raises:
        ConfigurationError: lists every argument that is not what it must be.
    """
    names = list(pods)
    problems = [
        f"{what} is {value!r}, want a whole number from {low}{'' if high is None else f' to {high}, the number of pods'}"
        for what, value, low, high in (
            ("the seed", seed, 0, None),
            ("the round", round_number, 0, None),
            ("the sample size", size, 1, len(names)),
        )
        if type(value) is not int or value < low or (high is not None and value > high)
    ]
    if isinstance(pods, str) or not all(isinstance(name, str) and name for name in names):
        problems.append(f"pods are {pods!r}, want a list of names")
    elif len(set(names)) < len(names):
        problems.append(f"pods {sorted({name for name in names if names.count(name) > 1})} are listed more than once")
    if problems:
        raise ConfigurationError("pods cannot be sampled: " + "; ".join(problems))
    drawn = sorted(names, key=lambda name: (derive_seed(seed, "sample", round_number, name), name))[:size]
    return tuple(sorted(drawn))
