"""Between a round's mean update and the next global parameters: the server's optimiser, a pure function with a state.

The mean update plays the part of a negative gradient. With D the mean update, x the parameters, eta the server's
learning rate:

| name | step | published settings |
|---|---|---|
| FedAvg | x + eta D | eta 1, which is plain averaging (McMahan et al. 2017) |
| FedAvgM | m = beta1 m + D; x + eta m | beta1 0.9, eta 1 |
| FedAdagrad | m = beta1 m + (1 - beta1) D; v = v + D^2; x + eta m / (sqrt(v) + tau) | beta1 0, tau 1e-3 |
| FedAdam | the same with v = beta2 v + (1 - beta2) D^2 | beta1 0.9, beta2 0.99, tau 1e-3 |
| FedYogi | the same with v = v - (1 - beta2) D^2 sign(v - D^2) | beta1 0.9, beta2 0.99, tau 1e-3 |

FedAvgM: Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification" (2019). The last three: Reddi et al., "Adaptive Federated Optimization" (2021), Algorithm 2: no bias
correction, m starts at 0 and v at tau^2. That paper publishes no eta for them but tunes it task by task; the default
here is 0.1, and it is the setting to tune first.

Only what is learned goes through momentum and adaptive steps. Integers, booleans and the statistics of BatchNorm
(`running_mean`, `running_var`, `num_batches_tracked`) always move by their mean update, as in plain averaging: they are
measured, not descended along, and an overshooting step could leave a variance or a counter without meaning. Names of
further buffers can be given in the settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bitfount_model.data.names import suggestion
from bitfount_model.errors import ConfigurationError
from bitfount_model.federation.aggregation import apply_mean, check_mean
from bitfount_model.parameters import check_compatible
from bitfount_model.types import Parameters

ServerState = Mapping[str, Tensor]
"""What an optimiser keeps from round to round: `momentum.<name>` and `variance.<name>`, float64, in the parameter's
shape; empty before the first round. `codec` stores it exactly."""

_STATISTICS = frozenset({"running_mean", "running_var", "num_batches_tracked"})


@dataclass(frozen=True)
class ServerSettings:
    """The settings of a server optimiser; each optimiser reads those of its row in the module's table.

    Attributes:
        learning_rate: eta, > 0.
        beta1: decay of the momentum, in [0, 1).
        beta2: decay of the second moment, in [0, 1).
        tau: added to the root of the second moment, > 0, in the unit of an update: the larger, the less adaptive.
        buffers: names that are no parameters, such as `dict(module.named_buffers())`; they move by their mean update.

    Raises:
        ConfigurationError: lists every value out of its range.
    """

    learning_rate: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    buffers: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value!r}, want a number {wanted}"
            for name, value, low, high, wanted in (
                ("learning_rate", self.learning_rate, math.ulp(0), math.inf, "> 0"),
                ("beta1", self.beta1, 0, 1, ">= 0 and below 1"),
                ("beta2", self.beta2, 0, 1, ">= 0 and below 1"),
                ("tau", self.tau, math.ulp(0), math.inf, "> 0"),
            )
            if type(value) not in (int, float) or not low <= value < high
        ]
        if problems:
            raise ConfigurationError("the server optimiser's settings: " + "; ".join(problems))


Stepped = tuple[dict[str, Tensor], dict[str, Tensor]]
"""The state for the next round, and the next global parameters."""

ServerOptimiser = Callable[[ServerState, Parameters, Parameters, ServerSettings], Stepped]
"""`(state, parameters, mean_update, settings) -> (state, parameters)`, as `fed_avg` describes it."""

SecondMoment = Callable[[Tensor, Tensor, float], Tensor]
"""`(v of the last round, D^2, beta2) -> v`."""


def fed_avg(state: ServerState, parameters: Parameters, mean_update: Parameters, settings: ServerSettings) -> Stepped:
    """Federated averaging: with learning rate 1, the parameters plus the mean update, to the bit.

    Every server optimiser has these arguments, results and errors. Steps are computed in float64 and rounded once.

    Args:
        state: what the last round returned; empty in the first.
        parameters: the global parameters that the round's updates started from.
        mean_update: what `RunningMean.mean` gave.
        settings: the row of the module's table says which of them count.

    Returns:
        The state for the next round, and the next global parameters, with names, shapes and dtypes as before. Nothing
        shares memory with an argument.

    Raises:
        ParameterError: the mean update or the state does not fit the parameters (as when the optimiser was changed
            between rounds), or a result does not fit its dtype.
    """
    learned = _learned(parameters, mean_update, settings)
    _started(state, learned, {})
    if settings.learning_rate == 1:  # times 1 changes no bit, and costs as much as the rest
        return {}, apply_mean(parameters, mean_update)
    return {}, _moved(
        parameters, mean_update, {name: update * settings.learning_rate for name, update in learned.items()}
    )


def fed_avg_m(state: ServerState, parameters: Parameters, mean_update: Parameters, settings: ServerSettings) -> Stepped:
    """Averaging with server momentum: what `torch.optim.SGD` with momentum does along the mean update. See `fed_avg`."""
    learned = _learned(parameters, mean_update, settings)
    old = _started(state, learned, {"momentum": 0.0})
    momentum = {name: old[f"momentum.{name}"] * settings.beta1 + update for name, update in learned.items()}
    steps = {name: each * settings.learning_rate for name, each in momentum.items()}
    return {f"momentum.{name}": each for name, each in momentum.items()}, _moved(parameters, mean_update, steps)


def fed_adagrad(
    state: ServerState, parameters: Parameters, mean_update: Parameters, settings: ServerSettings
) -> Stepped:
    """Adagrad at the server, Algorithm 2 of Reddi et al. See `fed_avg`."""
    return _adaptive(state, parameters, mean_update, settings, lambda v, square, beta2: v + square)


def fed_adam(state: ServerState, parameters: Parameters, mean_update: Parameters, settings: ServerSettings) -> Stepped:
    """Adam at the server, Algorithm 2 of Reddi et al.: without bias correction. See `fed_avg`."""
    return _adaptive(
        state, parameters, mean_update, settings, lambda v, square, beta2: v * beta2 + square * (1 - beta2)
    )


def fed_yogi(state: ServerState, parameters: Parameters, mean_update: Parameters, settings: ServerSettings) -> Stepped:
    """Yogi at the server, Algorithm 2 of Reddi et al. See `fed_avg`."""
    return _adaptive(
        state,
        parameters,
        mean_update,
        settings,
        lambda v, square, beta2: v - square * (1 - beta2) * (v - square).sign(),
    )


SERVER_OPTIMISERS: Mapping[str, ServerOptimiser] = {
    "FedAvg": fed_avg,
    "FedAvgM": fed_avg_m,
    "FedAdagrad": fed_adagrad,
    "FedAdam": fed_adam,
    "FedYogi": fed_yogi,
}
"""Name -> server optimiser."""

PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "FedAvg": {"learning_rate": 1.0},
    "FedAvgM": {"learning_rate": 1.0, "beta1": 0.9},
    "FedAdagrad": {"learning_rate": 0.1, "beta1": 0.0, "tau": 1e-3},
    "FedAdam": {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3},
    "FedYogi": {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3},
}
"""Name -> the settings that the optimiser uses, with the values of the module's table."""


def is_plain_averaging(optimiser: str, settings: ServerSettings) -> bool:
    """Whether the next parameters are just those of before plus the mean update: FedAvg with learning rate 1."""
    return optimiser == "FedAvg" and settings.learning_rate == 1


def server_settings(
    optimiser: str, given: Mapping[str, float] | None = None, buffers: Collection[str] = ()
) -> ServerSettings:
    """The published settings of a server optimiser, with those given in their place.

    Args:
        optimiser: a name in `SERVER_OPTIMISERS`.
        given: setting -> value; only what the optimiser uses.
        buffers: see `ServerSettings`.

    Raises:
        ConfigurationError: no such optimiser, a setting that it does not use, or a value out of its range.
    """
    if optimiser not in PUBLISHED:
        raise ConfigurationError(f"unknown server optimiser {optimiser!r}{suggestion(str(optimiser), list(PUBLISHED))}")
    used = PUBLISHED[optimiser]
    unused = [f"{name!r}{suggestion(str(name), list(used))}" for name in given or {} if name not in used]
    if unused:
        raise ConfigurationError(f"{optimiser} has no setting " + "; no setting ".join(unused))
    return ServerSettings(**{**used, **(given or {})}, buffers=frozenset(buffers))


def _adaptive(
    state: ServerState,
    parameters: Parameters,
    mean_update: Parameters,
    settings: ServerSettings,
    second_moment: SecondMoment,
) -> Stepped:
    """Algorithm 2 of Reddi et al. (2021); its variants differ in the second moment alone."""
    learned = _learned(parameters, mean_update, settings)
    old = _started(state, learned, {"momentum": 0.0, "variance": settings.tau**2})
    new: dict[str, Tensor] = {}
    steps: dict[str, Tensor] = {}
    for name, update in learned.items():
        momentum = old[f"momentum.{name}"] * settings.beta1 + update * (1 - settings.beta1)
        variance = second_moment(old[f"variance.{name}"], update.square(), settings.beta2)
        steps[name] = momentum * settings.learning_rate / (variance.sqrt() + settings.tau)
        new |= {f"momentum.{name}": momentum, f"variance.{name}": variance}
    return new, _moved(parameters, mean_update, steps)


def _learned(parameters: Parameters, mean_update: Parameters, settings: ServerSettings) -> dict[str, Tensor]:
    """The mean update of what is learned: floating point, neither a statistic of BatchNorm nor a named buffer."""
    check_mean(parameters, mean_update)
    return {
        name: mean_update[name].detach()
        for name, value in parameters.items()
        if value.is_floating_point() and name not in settings.buffers and name.rpartition(".")[2] not in _STATISTICS
    }


def _started(state: ServerState, learned: Parameters, initial: Mapping[str, float]) -> ServerState:
    """The state, checked; or in the first round, when it is empty, the state to start from."""
    start = {
        f"{kind}.{name}": torch.tensor(value, dtype=torch.float64, device=update.device).expand(update.shape)
        for kind, value in initial.items()
        for name, update in learned.items()
    }
    if not state:
        return start
    check_compatible(start, state, what="the server optimiser's state")
    return state


def _moved(parameters: Parameters, mean_update: Parameters, steps: Parameters) -> dict[str, Tensor]:
    return apply_mean(parameters, {**mean_update, **steps})
