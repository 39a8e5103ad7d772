"""One round of a federation as a pure function: `(state, updates) -> state`. A run is a fold over its rounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from bitfount_model import codec
from bitfount_model.errors import ParameterError, QuorumError
from bitfount_model.federation.early_stopping import EarlyStopping, EarlyStoppingState
from bitfount_model.federation.fixed_point import SecureMean
from bitfount_model.federation.job import FederatedJob
from bitfount_model.federation.metric_sums import MetricSums
from bitfount_model.federation.pod import Update
from bitfount_model.federation.robust import aggregator
from bitfount_model.federation.sampling import sample_pods
from bitfount_model.federation.server_optimisers import (
    SERVER_OPTIMISERS,
    ServerSettings,
    ServerState,
    Stepped,
    is_plain_averaging,
    server_settings,
)
from bitfount_model.parameters import quoted
from bitfount_model.types import Parameters


@dataclass(frozen=True)
class GlobalState:
    """What the next round needs of all rounds before.

    Attributes:
        round_number: rounds closed so far.
        parameters: the global ones.
        server: what the server optimiser keeps.
        stopping: what early stopping keeps.
    """

    round_number: int
    parameters: Parameters
    server: ServerState = field(default_factory=dict)
    stopping: EarlyStoppingState = field(default_factory=EarlyStoppingState)

    @property
    def stopped(self) -> bool:
        """Whether early stopping ends the job here."""
        return self.stopping.stopped


@dataclass(frozen=True)
class RoundSummary:
    """What a closed round has to say.

    Attributes:
        round_number: from 1.
        pods: whose updates are in, in the order in which they were added.
        refused: pod -> why its update was not used.
        metrics: averaged over the validation rows of the pods that have them.
        by_pod: pod -> its own metrics.
        train_loss: pod -> mean training loss, where there is one.
        weight: training rows behind the round; the number of pods where each counts once.
        chosen: those of `pods` whose updates the result is made of: fewer where Krum chose among them.
    """

    round_number: int
    pods: tuple[str, ...]
    refused: Mapping[str, str]
    metrics: Mapping[str, float]
    by_pod: Mapping[str, Mapping[str, float]]
    train_loss: Mapping[str, float]
    weight: float
    chosen: tuple[str, ...]


def asked_pods(job: FederatedJob, round_number: int) -> tuple[str, ...]:
    """Who is asked for an update in a round: all pods, or a sample by (seed, round)."""
    if job.sample is None:
        return job.pods
    return sample_pods(job.seed, round_number, job.pods, job.sample)


def close_round(
    job: FederatedJob,
    state: GlobalState,
    updates: Iterable[Update],
    buffers: Iterable[str] = (),
    digest: str | None = None,
) -> tuple[GlobalState, RoundSummary]:
    """Adds the updates of a round to the global parameters.

    Updates are taken one at a time, in the order of the pods' names. One that does not belong to this round, or does not
    fit, is left out with its reason. Plain averaging keeps none of them; a robust rule (see `robust`) keeps all that fit.

    Args:
        job: says how.
        state: after the rounds before; left as it is.
        updates: in the order of the pods' names; read once.
        buffers: names of parameters that are buffers: server optimisers leave them to the plain mean.
        digest: `codec.digest` of the global parameters, where it is known already.

    Raises:
        QuorumError: fewer usable updates than the job's quorum.
    """
    round_number = state.round_number + 1
    asked = asked_pods(job, round_number)
    digest = digest or codec.digest(state.parameters)
    mean = aggregator(state.parameters, job.aggregation, job.aggregation_settings, weighted=job.weighted)
    sums, by_pod, losses, refused = MetricSums({}), {}, {}, {}
    for update in updates:
        try:
            check_belongs(update, round_number, asked, digest)
            mean.add(update.pod, update.delta, update.weight)
        except ParameterError as error:
            refused[update.pod] = str(error)
        else:
            sums = sums.add(update.metrics)
            by_pod[update.pod] = update.metrics.mean()
            if update.train_loss is not None:
                losses[update.pod] = update.train_loss
        del update  # before the next one is taken
    if len(mean.pods) < job.quorum:
        why = "; ".join(f"{pod}: {reason}" for pod, reason in refused.items())
        raise QuorumError(
            f"round {round_number} has {len(mean.pods)} usable updates of {len(asked)} pods, its quorum is {job.quorum}"
            + (f" ({why})" if why else ""),
            refused,
        )
    if not mean.weight:
        raise QuorumError(f"round {round_number}: no pod has training rows behind its update", refused)
    metrics = sums.mean()
    settings = server_settings(job.optimiser, job.optimiser_settings, tuple(buffers))
    if is_plain_averaging(job.optimiser, settings) and not state.server:
        following = _followed(job, state, {}, mean.take_moved(), metrics)  # the same bits, in less memory
    else:
        following = _followed(job, state, *_stepped(job, state, mean.take_mean(), settings), metrics)
    return following, RoundSummary(round_number, mean.pods, refused, metrics, by_pod, losses, mean.weight, mean.chosen)


def close_secure_round(
    job: FederatedJob, state: GlobalState, summed: SecureMean, pods: tuple[str, ...], buffers: Iterable[str] = ()
) -> tuple[GlobalState, RoundSummary]:
    """Adds the mean that a secure sum says to the global parameters; of single pods nothing is known but that they are in it.

    Args:
        job: says how.
        state: after the rounds before; left as it is.
        summed: the mean, the weights together and the metrics.
        pods: the survivors, whose updates are in the sum.
        buffers: as in `close_round`.
    """
    metrics = summed.metrics.mean()
    settings = server_settings(job.optimiser, job.optimiser_settings, tuple(buffers))
    following = _followed(job, state, *_stepped(job, state, summed.mean, settings), metrics)
    number = following.round_number
    return following, RoundSummary(number, pods, {}, metrics, {}, {}, float(summed.weight), pods)


def _stepped(job: FederatedJob, state: GlobalState, update: Parameters, settings: ServerSettings) -> Stepped:
    """The server optimiser's step along the round's update."""
    return SERVER_OPTIMISERS[job.optimiser](state.server, state.parameters, update, settings)


def _followed(
    job: FederatedJob, state: GlobalState, server: ServerState, parameters: Parameters, metrics: Mapping[str, float]
) -> GlobalState:
    """The state after the round, which says whether to stop."""
    round_number, stopping = state.round_number + 1, state.stopping
    if job.early_stopping is not None:
        stopping = EarlyStopping(**job.early_stopping).update(stopping, round_number, metrics)
    return GlobalState(round_number, parameters, server, stopping)


def check_belongs(
    update: Update,
    round_number: int,
    asked: tuple[str, ...],
    digest: str,
) -> None:
    """Refuses an update of another round, of a pod that was not asked, or of other global parameters.

    Raises:
        ParameterError: it does not belong to the round.
    """
    if update.pod not in asked:
        raise ParameterError(
            f"pod {quoted(update.pod)} was not asked in round {round_number}; asked were {', '.join(asked)}"
        )
    if update.round_number != round_number:
        raise ParameterError(
            f"the update of pod {update.pod!r} is of round {quoted(update.round_number)}, wanted {round_number}"
        )
    if update.base_digest != digest:
        raise ParameterError(
            f"pod {update.pod!r} started from other parameters ({quoted(update.base_digest)}) than those of round"
            f" {round_number} ({digest[:12]}…)"
        )
