"""Server optimisers: each against plain torch or a plain NumPy transcription of its paper."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitfount_model import codec
from bitfount_model.errors import ConfigurationError, ParameterError
from bitfount_model.federation import PUBLISHED, SERVER_OPTIMISERS, RunningMean, ServerSettings, server_settings
from bitfount_model.parameters import snapshot, update_module
from bitfount_model.updates import apply_updates
from tests.bitfount_model.named_tensors import assert_equal, copies, network

BUFFERS = ("1.running_mean", "1.running_var", "1.num_batches_tracked")
ADAPTIVE = ("FedAdagrad", "FedAdam", "FedYogi")


def updates_of(base: dict[str, Tensor], number: int, seed: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            name: torch.randn(value.shape, generator=generator, dtype=value.dtype) / 50
            if value.is_floating_point()
            else value + position
            for name, value in base.items()
        }
        for position in range(number)
    ]


def mean_of(base: dict[str, Tensor], updates: list[dict[str, Tensor]], weights: list[float]) -> dict[str, Tensor]:
    running = RunningMean(base)
    for position, (update, weight) in enumerate(zip(updates, weights, strict=True)):
        running.add(f"pod-{position}", update, weight)
    return running.mean()


def means(base: dict[str, Tensor], rounds: int) -> list[dict[str, Tensor]]:
    return [mean_of(base, updates_of(base, 2, seed), [3, 1]) for seed in range(rounds)]


def run(
    name: str, base: dict[str, Tensor], steps: list[dict[str, Tensor]], chosen: ServerSettings | None = None
) -> list[dict[str, Tensor]]:
    """The parameters after each round."""
    state: dict[str, Tensor] = {}
    params, found = base, []
    for mean in steps:
        state, params = SERVER_OPTIMISERS[name](state, params, mean, chosen or server_settings(name))
        found.append(params)
    return found


def test_fed_avg_is_apply_updates_to_the_bit() -> None:
    base = snapshot(network())
    updates = updates_of(base, 3, 1)
    state, found = SERVER_OPTIMISERS["FedAvg"]({}, base, mean_of(base, updates, [5, 1, 2]), server_settings("FedAvg"))
    assert state == {}
    assert_equal(found, apply_updates(base, updates, [5, 1, 2]))


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 0.99), st.floats(0.01, 2), st.integers(0, 1000))
def test_fed_avg_m_is_torchs_sgd_with_momentum_along_the_negative_mean_update(
    beta1: float, learning_rate: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = {"w": torch.randn(3, 2, dtype=torch.float64, generator=generator)}
    steps = [{"w": torch.randn(3, 2, dtype=torch.float64, generator=generator)} for _ in range(5)]
    parameter = torch.nn.Parameter(base["w"].clone())
    oracle = torch.optim.SGD([parameter], lr=learning_rate, momentum=beta1)
    chosen = server_settings("FedAvgM", {"beta1": beta1, "learning_rate": learning_rate})
    for mean, found in zip(steps, run("FedAvgM", base, steps, chosen), strict=True):
        parameter.grad = -mean["w"]
        oracle.step()
        torch.testing.assert_close(found["w"], parameter.detach(), rtol=1e-13, atol=1e-13)


def transcribed(
    name: str, x: np.ndarray, deltas: list[np.ndarray], eta: float, beta1: float, beta2: float, tau: float
) -> Any:
    """Algorithm 2 of Reddi et al. (2021), line by line, one array."""
    m, v = np.zeros_like(x), np.full_like(x, tau**2)
    for delta in deltas:
        m = beta1 * m + (1 - beta1) * delta
        if name == "FedAdagrad":
            v = v + delta**2
        elif name == "FedYogi":
            v = v - (1 - beta2) * delta**2 * np.sign(v - delta**2)
        else:
            v = beta2 * v + (1 - beta2) * delta**2
        x = x + eta * m / (np.sqrt(v) + tau)
    return x


@pytest.mark.parametrize("name", ADAPTIVE)
@settings(max_examples=20, deadline=None)
@given(st.floats(0, 0.99), st.floats(0, 0.999), st.floats(1e-8, 1), st.floats(0.001, 1), st.integers(0, 1000))
def test_adaptive_steps_are_those_of_the_papers_algorithm_2(
    name: str, beta1: float, beta2: float, tau: float, eta: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = {"w": torch.randn(4, dtype=torch.float64, generator=generator)}
    steps = [{"w": torch.randn(4, dtype=torch.float64, generator=generator) / 10} for _ in range(6)]
    given_settings = {"learning_rate": eta, "beta1": beta1, "beta2": beta2, "tau": tau}
    chosen = server_settings(name, {key: value for key, value in given_settings.items() if key in PUBLISHED[name]})
    found = run(name, base, steps, chosen)[-1]["w"].numpy()
    deltas = [mean["w"].numpy() for mean in steps]
    np.testing.assert_allclose(found, transcribed(name, base["w"].numpy(), deltas, eta, beta1, beta2, tau), rtol=1e-11)


def test_published_settings_are_those_of_the_papers() -> None:
    assert server_settings("FedAvg").learning_rate == 1.0
    assert (server_settings("FedAvgM").beta1, server_settings("FedAvgM").learning_rate) == (0.9, 1.0)
    assert (server_settings("FedAdagrad").beta1, server_settings("FedAdagrad").tau) == (0.0, 1e-3)
    for name in ("FedAdam", "FedYogi"):
        chosen = server_settings(name)
        assert (chosen.beta1, chosen.beta2, chosen.tau) == (0.9, 0.99, 1e-3)
    assert set(PUBLISHED) == set(SERVER_OPTIMISERS)


@pytest.mark.parametrize("name", SERVER_OPTIMISERS)
def test_statistics_and_counters_of_batch_norm_move_by_their_plain_mean_under_every_optimiser(name: str) -> None:
    base = snapshot(network())
    steps = means(base, 3)
    plain, found = run("FedAvg", base, steps), run(name, base, steps)
    for each, want in zip(found, plain, strict=True):
        assert_equal({buffer: each[buffer] for buffer in BUFFERS}, {buffer: want[buffer] for buffer in BUFFERS})
    assert bool((found[-1]["1.running_var"] >= 0).all())
    update_module(network(), found[-1])
    if name != "FedAvg":
        assert not torch.equal(found[-1]["3.weight"], plain[-1]["3.weight"])


@pytest.mark.parametrize("name", SERVER_OPTIMISERS)
def test_buffers_that_are_named_in_the_settings_are_left_out_too(name: str) -> None:
    base = {"w": torch.zeros(2), "ema": torch.zeros(2), "mask": torch.full((2,), -math.inf)}
    mean = {name: torch.full((2,), 0.25, dtype=torch.float64) for name in base} | {"mask": torch.zeros(2).double()}
    state, found = SERVER_OPTIMISERS[name]({}, base, mean, server_settings(name, buffers=["ema"]))
    assert found["ema"].tolist() == [0.25, 0.25]
    assert torch.equal(found["mask"], base["mask"])
    assert not any("ema" in key for key in state)


@pytest.mark.parametrize("name", SERVER_OPTIMISERS)
def test_a_state_that_went_through_a_weights_file_continues_to_the_same_bits(name: str) -> None:
    base = snapshot(network())
    steps, chosen = means(base, 4), server_settings(name)
    state, params = SERVER_OPTIMISERS[name]({}, base, steps[0], chosen)
    for mean in steps[1:]:
        state = codec.decode(codec.encode(state)).params
        params = codec.decode(codec.encode(params), expected=base).params
        state, params = SERVER_OPTIMISERS[name](state, params, mean, chosen)
    assert_equal(params, run(name, base, steps)[-1])
    assert all(value.dtype == torch.float64 for value in state.values())


@pytest.mark.parametrize("name", SERVER_OPTIMISERS)
def test_no_argument_is_changed_and_nothing_shares_memory(name: str) -> None:
    base = snapshot(network())
    chosen, (first, second) = server_settings(name), means(base, 2)
    state, params = SERVER_OPTIMISERS[name]({}, base, first, chosen)
    kept = copies(state), copies(params), copies(second)
    one, two = (SERVER_OPTIMISERS[name](state, params, second, chosen) for _ in range(2))
    for left, right in zip(one, two, strict=True):
        assert_equal(left, right)
    for result in one:
        for value in result.values():
            value.fill_(1)
    for found, want in zip((state, params, second), kept, strict=True):
        assert_equal(found, want)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_no_update_means_no_step(name: str) -> None:
    base = {"w": torch.ones(3)}
    found = run(name, base, [{"w": torch.zeros(3, dtype=torch.float64)}] * 2)
    assert_equal(found[-1], base)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVER_OPTIMISERS)
def test_a_state_of_another_optimiser_or_model_is_refused(name: str) -> None:
    base = {"w": torch.zeros(2)}
    mean = {"w": torch.ones(2, dtype=torch.float64)}
    for state in (
        {"momentum.v": torch.zeros(2).double()},
        {"momentum.w": torch.zeros(()).double()},
        {"x": torch.ones(1)},
    ):
        with pytest.raises(ParameterError, match="the server optimiser's state cannot be used"):
            SERVER_OPTIMISERS[name](state, base, mean, server_settings(name))


@pytest.mark.parametrize("name", SERVER_OPTIMISERS)
@pytest.mark.parametrize(
    "mean", [{}, {"w": torch.ones(1).double()}, {"w": torch.ones(2)}, {"w": torch.ones(2).double(), "v": torch.ones(1)}]
)
def test_a_mean_update_of_another_model_is_refused_not_broadcast(name: str, mean: dict[str, Tensor]) -> None:
    with pytest.raises(ParameterError, match="the mean update cannot be applied"):
        SERVER_OPTIMISERS[name]({}, {"w": torch.zeros(2)}, mean, server_settings(name))


@pytest.mark.parametrize(
    ("name", "given_settings", "message"),
    [
        ("FedSGD", {}, "unknown server optimiser 'FedSGD'"),
        ("FedAdm", {}, "did you mean 'FedAdam'"),
        ("FedAvg", {"beta1": 0.5}, "FedAvg has no setting 'beta1'"),
        ("FedAdagrad", {"beta2": 0.5}, "FedAdagrad has no setting 'beta2'"),
        ("FedAdam", {"lr": 0.5, "momentum": 1}, "no setting 'lr'.*no setting 'momentum'"),
        ("FedAdam", {"learning_rate": 0, "beta1": 1, "tau": -1}, "learning_rate is 0.*beta1 is 1.*tau is -1"),
        ("FedAdam", {"beta2": math.nan}, "beta2 is nan"),
        ("FedAvgM", {"learning_rate": "1"}, "learning_rate is '1'"),
        ("FedAvgM", {"learning_rate": math.inf}, "learning_rate is inf"),
        ("FedAvgM", {"beta1": True}, "beta1 is True"),
    ],
)
def test_settings_that_an_optimiser_does_not_have_or_cannot_use_are_refused(
    name: str, given_settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        server_settings(name, given_settings)
