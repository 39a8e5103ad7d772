"""Rounds over secure sums: the plain round's mean, whoever drops out at whichever step, or a named end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from bitfount_model.errors import BitfountError, ConfigurationError, QuorumError
from bitfount_model.federation.identity import identities_of_one_process
from bitfount_model.federation.pod import Pod
from bitfount_model.federation.secure_sum import default_threshold
from flows.embedded_pods import EmbeddedPods
from tasks.federated import pod_worker
from tasks.federated.exchange import round_phase
from tasks.federated.federation import Federation
from tasks.federated.pod_state import PodState
from tasks.federated.pod_worker import PodWorker
from tasks.federated.rounds import Rounds
from tasks.federated.secure_messages import SecureMessages
from tasks.federated.secure_part import SecurePart
from tests.tasks.federated.team import SECRET, Team, files_below, one_round, plain_step, table, trained, with_policy

PODS = ("ann", "bob", "cat", "dan", "eve")
SECURE: dict[str, Any] = {"secure_aggregation": True, "quorum": 3}
STEPS = ("train", "keys", "shares", "mask", "unmask")


@pytest.fixture(autouse=True)
def without_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_worker, "step", plain_step)


def closest(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of any value."""
    return max(
        float((found[name].double() - wanted[name].double()).abs().max()) for name in wanted if wanted[name].numel()
    )


class Dropping(EmbeddedPods):
    """Pods of which some do nothing any more from a step on."""

    dropped: frozenset[str] = frozenset()

    def work(self) -> None:
        for name, worker in self._workers.items():
            while name not in self.dropped and worker.advance():
                pass


def dropping(team: Team, **changes: Any) -> tuple[Federation, Dropping]:
    federation = team.initialised(**{**SECURE, **changes})
    pods = [worker.pod for worker in federation.reach._workers.values()]  # type: ignore[attr-defined]
    reach = Dropping(pods, federation.exchange, federation.session)
    reach.work()
    return replace(federation, reach=reach), reach


def closed_while(team: Team, drops: Mapping[str, str], **changes: Any) -> tuple[Federation, Rounds, Any]:
    """One round in which pods stop before a step of theirs."""
    federation, reach = dropping(team, **changes)
    rounds = Rounds(federation)

    def let_work(step: str) -> None:
        reach.dropped |= frozenset(pod for pod, last in drops.items() if last == step)
        reach.work()

    rounds.open()
    let_work("train")
    for step, collect in zip(STEPS[1:], rounds.steps_of_sum.values(), strict=True):
        collect()
        let_work(step)
    return federation, rounds, rounds.aggregate()


@pytest.mark.parametrize("weighted", [True, False])
def test_five_rounds_are_those_of_the_plain_job(tmp_path: Any, weighted: bool) -> None:
    changes = {
        "epochs": 5,
        "weighted": weighted,
        "optimiser": "FedAvgM",
        "best": {"metric": "Accuracy"},
        "batch_size": 64,
    }
    tables = {"ann": table("ann", 24), "bob": table("bob", 40), "cat": table("cat", 31)}
    plain = trained(Team(tmp_path / "plain", tables=dict(tables)).initialised(**changes))
    secure = trained(Team(tmp_path / "secure", tables=dict(tables)).initialised(**changes, **SECURE))
    assert closest(secure.state.parameters, plain.state.parameters) <= 2**-25
    assert secure.state.parameters["0.num_batches_tracked"] == plain.state.parameters["0.num_batches_tracked"]
    for found, wanted in zip(secure.records, plain.records, strict=True):
        assert found.pods == wanted.pods and found.weight == wanted.weight
        assert found.metrics == pytest.approx(wanted.metrics, abs=2**-20)
        assert found.by_pod == found.norms == found.train_loss == {}


def test_the_exchange_holds_nothing_that_tells_a_single_update(tmp_path: Any) -> None:
    plain, secure = Team(tmp_path / "plain"), Team(tmp_path / "secure")
    sent: dict[str, dict[str, torch.Tensor]] = {}
    put_update = pod_worker.Exchange.put_update

    def keep(exchange: Any, update: Any) -> None:
        sent[update.pod] = update.delta
        put_update(exchange, update)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pod_worker.Exchange, "put_update", keep)
        one_round(*began(plain))
    federation, rounds = began(secure, **SECURE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SecureMessages, "forget_masked", lambda messages, pods: None)
        one_round(federation, rounds)
    files = files_below(secure.folder / "exchange")
    assert any(name.endswith("masked/ann.safetensors") for name in files)
    assert not any("/updates/" in name for name in files)
    for pod, delta in sent.items():
        for name, value in delta.items():
            if value.numel() > 1 and value.is_floating_point():
                needle = value.numpy().tobytes()
                assert not any(needle in content for content in files.values()), (pod, name)
    assert not any(str(SECRET).encode() in content for content in files.values())


def began(team: Team, **changes: Any) -> tuple[Federation, Rounds]:
    federation = team.initialised(**changes)
    return federation, Rounds(federation)


def test_vectors_are_removed_once_they_are_summed(team: Team) -> None:
    one_round(*began(team, **SECURE))
    assert not [name for name in files_below(team.folder / "exchange") if "masked" in name and "safetensors" in name]


FIVE = [
    {"eve": "train"},
    {"eve": "keys"},
    {"eve": "shares"},
    {"eve": "mask"},
    {"eve": "unmask"},
    {"ann": "train", "eve": "mask"},
    {"cat": "unmask", "ann": "keys"},
    {"dan": "train", "bob": "train"},
]


@pytest.mark.parametrize(
    "drops", FIVE, ids=lambda drops: ",".join(f"{pod} before {step}" for pod, step in drops.items())
)
def test_whoever_drops_out_the_sum_is_that_of_those_whose_vectors_came(tmp_path: Any, drops: dict[str, str]) -> None:
    survivors = tuple(pod for pod in PODS if drops.get(pod) in (None, "unmask"))
    trained_pods = [pod for pod in PODS if drops.get(pod) != "train"]
    answering = [pod for pod in PODS if pod not in drops]
    team = Team(tmp_path / "secure", PODS)
    if len(answering) < default_threshold(len(trained_pods)):
        with pytest.raises(QuorumError, match="took every step of the secure sum so far, it needs"):
            closed_while(team, drops)
        return
    _, rounds, record = closed_while(team, drops)
    assert record.pods == survivors
    assert set(record.missing) == set(PODS) - set(survivors)
    wanted = of_survivors(tmp_path / "plain", survivors)
    assert closest(rounds.state.parameters, wanted) <= 2**-25


def of_survivors(folder: Any, survivors: tuple[str, ...]) -> Mapping[str, torch.Tensor]:
    """The plain round in which the other pods stay away."""
    federation, reach = dropping(Team(folder, PODS), secure_aggregation=False)
    rounds = Rounds(federation)
    rounds.open()
    reach.dropped = frozenset(PODS) - set(survivors)
    reach.work()
    rounds.aggregate()
    return rounds.state.parameters


def test_too_many_lost_pods_end_the_round_and_leave_all_as_it_was(tmp_path: Any) -> None:
    team = Team(tmp_path, PODS)
    with pytest.raises(QuorumError, match=r"round 1: 3 of 5 pods took every step.*needs 4.*\n  dan: it gave no answer"):
        closed_while(team, {"dan": "mask", "eve": "mask"})
    again = trained(team.initialised(**SECURE))
    assert again.state.round_number == 3
    assert {record.pods for record in again.records} == {PODS}


@pytest.mark.parametrize("after", ["open", *STEPS[1:]])
def test_a_modeller_who_is_killed_in_mid_sum_goes_on_to_the_same_bits(tmp_path: Any, after: str) -> None:
    wanted = trained(Team(tmp_path / "in-one-go").initialised(**SECURE)).records
    team = Team(tmp_path / "killed")
    federation, rounds = began(team, **SECURE)
    rounds.open()
    federation.reach.work()
    for step, collect in zip(STEPS[1:], rounds.steps_of_sum.values(), strict=True):
        if after == "open":
            break
        collect()
        federation.reach.work()
        if step == after:
            break
    found = trained(team.initialised(**SECURE)).records
    assert [record.weights.sha256 for record in found] == [record.weights.sha256 for record in wanted]


def test_a_session_that_begins_again_after_survivors_were_named_asks_them_alone(tmp_path: Any) -> None:
    """Another set would be a second sum, whose difference from the first could be one pod's update."""
    team = Team(tmp_path, PODS)
    federation, reach = dropping(team)
    rounds = Rounds(federation)
    rounds.open()
    reach.work()
    for step, collect in zip(STEPS[1:], rounds.steps_of_sum.values(), strict=True):
        collect()
        if step == "mask":
            reach.dropped |= {"eve"}  # lost before its vector
        if step == "unmask":
            reach.dropped |= set(PODS)  # the modeller names the survivors, and nobody answers any more
        reach.work()
    again = team.initialised(**SECURE)
    record = one_round(again, Rounds(again))
    assert record.pods == PODS[:4]


def test_a_pod_helps_to_sum_a_round_over_one_set_of_pods_only(tmp_path: Any) -> None:
    team = Team(tmp_path, PODS)
    team.books["ann"] = PodState(tmp_path / "private", "ann").prepare()
    federation, _, _ = closed_while(team, {"eve": "mask"})
    book = team.books["ann"]
    assert book.first_survivors("job-1", 1, PODS) == PODS[:4]
    lines = (book.folder / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["what"] for line in lines].count("unmasked") == 1
    other = Team(tmp_path / "other", PODS, books={"ann": book})
    with pytest.raises(QuorumError, match="has helped to sum round 1 over ann, bob, cat, dan; a sum over"):
        closed_while(other, {"bob": "unmask"})
    assert federation.exchange.is_closed(round_phase(1))


def test_a_pod_that_was_started_again_in_mid_sum_is_a_dropped_one(tmp_path: Any) -> None:
    team = Team(tmp_path, PODS)
    federation, reach = dropping(team)
    rounds = Rounds(federation)
    rounds.open()
    reach.work()
    steps = rounds.steps_of_sum
    for name in ("collect trained", "collect keys"):
        steps[name]()
        reach.work()
    old = reach._workers["eve"]
    reach._workers["eve"] = PodWorker(old.pod, federation.exchange, federation.session)
    steps["collect shares"]()
    reach.work()
    steps["collect masked"]()
    reach.work()
    record = rounds.aggregate()
    assert record.pods == PODS[:4]
    assert "as it published them" in record.missing["eve"]


def test_what_is_out_of_range_drops_a_pod_with_the_parameters_name(tmp_path: Any) -> None:
    team = Team(tmp_path, PODS)
    announce = SecurePart.announce

    def grow(part: SecurePart) -> None:
        if part._pod.name == "eve":
            delta = {**part._update.delta, "1.bias": torch.full((2,), 1e6)}
            part._update = replace(part._update, delta=delta)
        announce(part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SecurePart, "announce", grow)
        _, _, record = closed_while(team, {})
    assert record.pods == PODS[:4]
    assert "'1.bias' has 2 of 2 values beyond 8192" in record.missing["eve"]


def test_a_bound_that_leaves_too_few_digits_ends_the_round_with_the_reason(team: Team) -> None:
    clipping = {"prime_q": 2**61, "precision": 1, "num_workers": 1}
    with pytest.raises(BitfountError, match="the bound of values in a secure sum"):
        one_round(*began(team, **SECURE, param_clipping=clipping))


def test_values_are_clipped_where_the_job_asks_and_it_is_said(team: Team, caplog: pytest.LogCaptureFixture) -> None:
    one_round(*began(team, **SECURE, param_clipping={"prime_q": 2, "precision": 1000, "num_workers": 1}))
    assert "values of the update were clipped to 0.002 (param_clipping)" in caplog.text


def test_a_pod_may_want_more_pods_in_a_sum_than_came(tmp_path: Any) -> None:
    team = Team(tmp_path, PODS, policies={"ann": with_policy(minimum_pods=5)})
    _, _, record = closed_while(team, {"eve": "train"}, quorum=3)
    assert "the secure sum is of 4 pods, pod 'ann' wants at least 5" in record.missing["ann"]


def test_pods_refuse_what_their_owners_did_not_allow(tmp_path: Any) -> None:
    team = Team(tmp_path, policies={"ann": with_policy(secure_aggregation=True)})
    with pytest.raises(QuorumError, match="trains for secure sums alone"):
        team.initialised(quorum=3)
    lonely = Team(tmp_path / "lonely").began(**SECURE)
    source = Team(tmp_path / "lonely").pod("ann")
    for pod, said in (
        (source, "has no `identity`"),
        (known_to(source, "bob"), "with cat, whose public keys are not under this pod's `peers`"),
    ):
        worker = PodWorker(pod, lonely.exchange, lonely.session)
        assert worker.advance()
        assert worker.left is not None and said in worker.left


def known_to(pod: Pod, *others: str) -> Pod:
    return replace(pod, identity=identities_of_one_process((pod.name, *others))[pod.name])


@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "krum", "multi_krum", "norm_clipping"])
def test_secure_sums_and_rules_that_look_at_single_updates_exclude_each_other(team: Team, rule: str) -> None:
    given = {"maximum_norm": 1.0} if rule == "norm_clipping" else {}
    with pytest.raises(
        ConfigurationError, match=f"aggregation is {rule}, which looks at single updates, and a secure sum"
    ):
        team.job(**SECURE, aggregation=rule, aggregation_settings=given)


@pytest.mark.parametrize(("pods", "quorum"), [(("ann", "bob"), 2), (("ann", "bob", "cat"), 2)])
def test_fewer_than_three_pods_are_refused(tmp_path: Any, pods: tuple[str, ...], quorum: int) -> None:
    with pytest.raises(ConfigurationError, match="a secure sum needs at least 3 of both"):
        Team(tmp_path, pods).job(secure_aggregation=True, quorum=quorum)


def test_a_vector_of_another_form_is_refused_before_survivors_are_named(tmp_path: Any) -> None:
    team = Team(tmp_path, PODS)
    masked = SecureMessages.put_masked

    def short(messages: SecureMessages, pod: str, words: Any) -> None:
        masked(messages, pod, words[:-1] if pod == "eve" else words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SecureMessages, "put_masked", short)
        _, rounds, record = closed_while(team, {})
    assert record.pods == PODS[:4]
    assert "shape" in record.missing["eve"]
    assert closest(rounds.state.parameters, of_survivors(tmp_path / "plain", PODS[:4])) <= 2**-25


def test_a_pod_that_claims_other_rows_is_not_summed(tmp_path: Any) -> None:
    team = Team(tmp_path, PODS)
    announce = SecurePart.announce

    def lie(part: SecurePart) -> None:
        if part._pod.name == "eve":
            part._update = replace(part._update, weight=10**6)
        announce(part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SecurePart, "announce", lie)
        _, _, record = closed_while(team, {})
    assert record.pods == PODS[:4]
    assert "claims 1000000 training rows; it joined with" in record.missing["eve"]
