"""A round: exactly the mean of what came, or a named end that leaves all as it was."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitfount_model import codec
from bitfount_model.errors import BitfountError, QuorumError, SupersededError
from bitfount_model.federation import MetricSums
from bitfount_model.federation.pod import Update
from bitfount_model.parameters import euclidean_norm
from tasks.federated import rounds as rounds_module
from tasks.federated.exchange import delta_name, round_phase
from tasks.federated.federation import Federation
from tasks.federated.round_record import read_records
from tasks.federated.rounds import Rounds
from tests.tasks.federated.by_hand import PODS, Told, averaged, federation_by_hand, same_bits, update_of
from tests.tasks.federated.team import Team

ROUND = round_phase(1)


def answer(federation: Federation, update: Update) -> None:
    federation.exchange.put_update(update)


def with_nan(update: Update) -> Update:
    name = next(name for name, value in update.delta.items() if value.is_floating_point())
    return replace(update, delta={**update.delta, name: torch.full_like(update.delta[name], torch.nan)})


def fail(pod: str, federation: Federation, reach: Told, update: Update) -> str:
    """Lets a pod fail in a way of its own; gives what is to be said of it."""
    exchange = federation.exchange
    if pod == "ann":
        exchange.put_failure(ROUND, pod, federation.session, "pod 'ann' failed to fit: its disk is full")
        return "its disk is full"
    if pod == "bob":
        reach.reasons[pod] = "its flow run ended as Crashed"
        return "its flow run ended as Crashed"
    if pod == "cat":
        answer(federation, with_nan(update))
        return "ParameterError"
    if pod == "dan":
        answer(federation, replace(update, base_digest="0" * 64))
        return "started from other parameters"
    answer(federation, update)
    note = exchange.update_note(ROUND, pod)
    assert note is not None
    exchange.forget_update(ROUND, note)
    return "StorageError: there is no"


@pytest.mark.parametrize("from_bytes", [0, 2**30], ids=["read beside", "read in turn"])
@pytest.mark.parametrize(
    "failing",
    [failing for size in range(6) for failing in itertools.combinations(PODS, size)],
    ids=lambda failing: "+".join(failing) or "nobody",
)
def test_whichever_pods_fail_the_others_are_averaged_to_the_bit_or_the_round_does_not_count(
    team: Team, failing: tuple[str, ...], from_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds_module, "BESIDE_BYTES", from_bytes)
    reach = Told()
    federation = federation_by_hand(team, reach)
    rounds = Rounds(federation)
    before, published = dict(rounds.state.parameters), rounds.weights
    assert rounds.open() == {"round": 1, "pods": list(PODS)}
    sent, said = {}, {}
    for pod in reversed(PODS):  # the order in which answers come does not matter
        update = update_of(pod, before, seed=7)
        if pod in failing:
            said[pod] = fail(pod, federation, reach, update)
        else:
            sent[pod] = update
            answer(federation, update)
    survivors = [pod for pod in PODS if pod not in failing]

    if len(survivors) < 3:
        with pytest.raises(
            QuorumError, match=rf"round 1: {len(survivors)} of 5 pods answered, the quorum is 3"
        ) as caught:
            rounds.aggregate()
        assert set(caught.value.refused) == set(failing)
        for pod, words in said.items():
            assert words in caught.value.refused[pod] and f"\n  {pod}: " in str(caught.value)
        assert (rounds.state.round_number, rounds.weights, rounds.records) == (0, published, [])
        assert codec.digest(rounds.state.parameters) == codec.digest(before) == published.sha256
        assert read_records(federation.store) == []
        assert not federation.exchange.is_closed(ROUND)
        for pod in survivors:
            note = federation.exchange.update_note(ROUND, pod)
            assert note is not None and federation.exchange.update(ROUND, note, before).weight == sent[pod].weight
        return

    record = rounds.aggregate()

    assert same_bits(rounds.state.parameters, averaged(before, [sent[pod] for pod in survivors]))
    assert record.pods == tuple(survivors) and set(record.missing) == set(failing)
    assert all(words in record.missing[pod] for pod, words in said.items())
    assert record.weight == sum(update.weight for update in sent.values())
    accuracies = [sent[pod].metrics.mean()["Accuracy"] for pod in survivors]
    assert record.metrics == {"Accuracy": pytest.approx(float(np.mean(accuracies)))}
    assert record.weights.sha256 == codec.digest(rounds.state.parameters) == rounds.weights.sha256
    assert read_records(federation.store) == rounds.records == [record]
    assert federation.exchange.is_closed(ROUND)


@settings(max_examples=30)
@given(
    weights=st.lists(st.integers(0, 2**20), min_size=5, max_size=5).filter(any),
    seed=st.integers(0, 2**31),
    weighted=st.booleans(),
)
def test_the_mean_is_exact_for_any_weights(
    tmp_path_factory: pytest.TempPathFactory, weights: list[int], seed: int, weighted: bool
) -> None:
    rows = dict(zip(PODS, weights, strict=True))
    federation = federation_by_hand(Team(tmp_path_factory.mktemp("team")), Told(), rows, weighted=weighted)
    rounds = Rounds(federation)
    before = dict(rounds.state.parameters)
    rounds.open()
    sent = [update_of(pod, before, seed, weight=weight) for pod, weight in zip(PODS, weights, strict=True)]
    for update in sent:
        answer(federation, update)
    rounds.aggregate()
    counted = sent if weighted else [replace(update, weight=1) for update in sent]
    assert same_bits(rounds.state.parameters, averaged(before, counted))


def test_an_update_under_another_pods_name_counts_for_nobody(team: Team) -> None:
    federation = federation_by_hand(team, Told(), quorum=4)
    rounds = Rounds(federation)
    rounds.open()
    for pod in PODS[1:]:
        answer(federation, update_of(pod, rounds.state.parameters, seed=1))
    stolen = federation.exchange.store.get(f"{ROUND}/updates/bob.json")
    federation.exchange.store.put(f"{ROUND}/updates/ann.json", stolen)
    record = rounds.aggregate()
    assert record.pods == PODS[1:]
    assert "it is of pod 'bob'" in record.missing["ann"]


def test_deltas_go_once_the_next_round_is_open_and_parameters_once_they_are_old(team: Team) -> None:
    federation = federation_by_hand(team, Told(), epochs=4, optimiser="FedAdam")
    exchange, rounds = federation.exchange, Rounds(federation)
    deltas: list[str] = []
    for number in range(1, 5):
        rounds.open()
        assert not any(map(exchange.store.has, deltas)), "those of the rounds before"
        sent = [update_of(pod, rounds.state.parameters, seed=number, round_number=number) for pod in PODS]
        for update in sent:
            answer(federation, update)
        rounds.aggregate()
        phase = round_phase(number)
        for update in sent:
            note = exchange.update_note(phase, update.pod)
            assert note is not None, "what pods said of their updates stays"
            deltas.append(delta_name(phase, update.pod, note.delta_sha256))
    assert not any(map(exchange.store.has, deltas)), "no round follows the last"
    kept = [federation.exchange.store.has(record.weights.name) for record in rounds.records]
    assert kept == [False, False, False, True]
    states = [record.server for record in rounds.records]
    assert [state is not None and federation.store.has(state.name) for state in states] == [False, False, False, True]


def test_the_best_round_is_chosen_by_its_metric_and_its_parameters_stay(team: Team) -> None:
    federation = federation_by_hand(team, Told(), epochs=5, best={"metric": "Accuracy"})
    rounds = Rounds(federation)
    assert rounds.best is None
    accuracies = [0.5, 0.9, 0.9, 0.2, float("nan")]
    digests = []
    for number, accuracy in enumerate(accuracies, start=1):
        rounds.open()
        for pod in PODS:
            metrics = MetricSums.of({"Accuracy": accuracy}, 10)
            answer(federation, update_of(pod, rounds.state.parameters, number, number, metrics=metrics))
        rounds.aggregate()
        digests.append(codec.digest(rounds.state.parameters))
    assert rounds.best is not None and rounds.best.round_number == 2, "of equal rounds the first is the best"
    again = Rounds(federation)
    assert again.best == rounds.best
    assert codec.digest(federation.exchange.weights(again.best.weights)) == digests[1]
    kept = [federation.exchange.store.has(record.weights.name) for record in rounds.records]
    assert kept == [False, True, False, False, True]


def test_a_round_that_asks_a_sample_waits_for_nobody_else(team: Team) -> None:
    federation = federation_by_hand(team, Told(), sample=2, quorum=2)
    rounds = Rounds(federation)
    asked = rounds.open()["pods"]
    assert len(asked) == 2
    for pod in PODS:
        answer(federation, update_of(pod, rounds.state.parameters, seed=1))
    record = rounds.aggregate()
    assert record.pods == tuple(asked) and record.missing == {}


def test_an_older_session_ends_where_a_newer_one_has_begun(team: Team) -> None:
    federation = federation_by_hand(team, Told())
    rounds = Rounds(federation)
    newer = replace(federation, session=federation.exchange.begin_session({}))
    with pytest.raises(SupersededError, match="session 2 of the job 'job-1' has begun; session 1 ends here"):
        rounds.open()
    assert federation.exchange.asked(ROUND) is None
    assert Rounds(newer).open()["round"] == 1


def test_reasons_of_an_older_session_do_not_count(team: Team) -> None:
    reach = Told()
    federation = federation_by_hand(team, reach, quorum=5)
    rounds = Rounds(federation)
    rounds.open()
    for pod in PODS[1:]:
        answer(federation, update_of(pod, rounds.state.parameters, seed=1))
    federation.exchange.put_failure(ROUND, "ann", federation.session, "its disk is full")
    with pytest.raises(QuorumError):
        rounds.aggregate()

    newer = replace(federation, session=federation.exchange.begin_session({}))
    rounds = Rounds(newer)
    rounds.open()
    answer(newer, update_of("ann", rounds.state.parameters, seed=1))
    assert rounds.aggregate().pods == PODS


def test_bytes_norms_and_seconds_are_those_of_the_updates(team: Team) -> None:
    federation = federation_by_hand(team, Told(), sample=3)
    rounds = Rounds(federation)
    asked = rounds.open()["pods"]
    sent = {pod: update_of(pod, rounds.state.parameters, seed=1, seconds=0.25 + len(pod)) for pod in asked}
    for update in sent.values():
        answer(federation, update)
    size = rounds.weights.size
    record = rounds.aggregate()
    assert record.bytes_down == 3 * size
    assert record.bytes_up == sum(len(codec.encode(update.delta)) for update in sent.values())
    assert record.fit_seconds == {pod: update.seconds for pod, update in sent.items()}
    assert record.train_loss == {pod: update.train_loss for pod, update in sent.items()}
    for pod, update in sent.items():
        floats = [
            value.numpy().astype(np.float64).ravel() for value in update.delta.values() if value.is_floating_point()
        ]
        assert record.norms[pod] == pytest.approx(np.linalg.norm(np.concatenate(floats)), rel=1e-12)
        assert euclidean_norm(update.delta) == record.norms[pod]


def test_rounds_need_pods_that_have_joined(team: Team) -> None:
    with pytest.raises(BitfountError, match="pods have not joined"):
        Rounds(team.began())
