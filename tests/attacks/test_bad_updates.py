"""A bad update: each of 25 kinds is refused by name, whatever the aggregation, and the global parameters stay as they were.

The pods before and after the bad one are honest. Where they are enough, the round goes on without it, to the same bits
as if it had never come; where they are not, it does not count.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bitfount_model import codec
from bitfount_model.errors import QuorumError
from bitfount_model.federation import MetricSums
from bitfount_model.federation.messages import note_of
from bitfount_model.federation.pod import Update
from bitfount_model.federation.robust import AGGREGATIONS
from bitfount_model.types import Parameters
from tasks.federated.exchange import answer_name, delta_name, round_phase
from tasks.federated.federation import Federation
from tasks.federated.rounds import Rounds
from tests.tasks.federated.by_hand import PODS, ROWS, Told, federation_by_hand, update_of
from tests.tasks.federated.team import Team

ROUND = round_phase(1)
BAD = "cat"
GIVEN: dict[str, dict[str, float]] = {
    "mean": {},
    "median": {},
    "trimmed_mean": {"malicious": 1},
    "krum": {"malicious": 0},
    "multi_krum": {"malicious": 0},
    "norm_clipping": {"maximum_norm": 10.0},
}


@dataclass(frozen=True)
class Sent:
    """What lies in the exchange for the bad pod, as bytes and JSON that no honest code would write."""

    delta: bytes
    note: dict[str, Any]
    sha256: str | None = None  # the name under which the delta lies, where it is not its own


def sent(update: Update, **note: Any) -> Sent:
    content = codec.encode(update.delta)
    honest = note_of(replace(update, train_loss=0.5), codec.digest(update.delta), len(content)).to_json()
    return Sent(content, {**honest, **note})


def changed(name: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Update], Sent]:
    return lambda update: sent(replace(update, delta={**update.delta, name: value(update.delta[name])}))


def with_value(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def put(tensor: torch.Tensor) -> torch.Tensor:
        spoilt = tensor.clone()
        spoilt.view(-1)[0] = value
        return spoilt

    return put


def renamed(delta: Parameters) -> Parameters:
    return {f"x{name}" if name == "1.weight" else name: value for name, value in delta.items()}


def padded(update: Update) -> Sent:
    good = sent(update)
    return replace(good, delta=good.delta + b"\0" * 64)


KINDS: dict[str, tuple[Callable[[Update], Sent], str]] = {
    # finite
    "a NaN": (changed("1.weight", with_value(torch.nan)), "NaN or infinite"),
    "an infinity": (changed("1.bias", with_value(torch.inf)), "NaN or infinite"),
    "a negative infinity in a buffer": (changed("0.running_mean", with_value(-torch.inf)), "NaN or infinite"),
    # names
    "a parameter that is missing": (
        lambda update: sent(replace(update, delta={k: v for k, v in update.delta.items() if k != "1.bias"})),
        "'1.bias' is missing",
    ),
    "a parameter too many": (
        lambda update: sent(replace(update, delta={**update.delta, "extra": torch.zeros(2)})),
        "'extra'",
    ),
    "a parameter under another name": (lambda update: sent(replace(update, delta=renamed(update.delta))), "x1.weight"),
    "no parameters": (lambda update: sent(replace(update, delta={})), "missing"),
    # shapes
    "another shape": (changed("1.weight", lambda value: torch.zeros(3, 3)), "shape"),
    "a shape that broadcasts": (changed("1.bias", lambda value: torch.zeros(1)), "shape"),
    "the transposed shape": (changed("0.weight", lambda value: value.reshape(1, -1)), "shape"),
    # dtypes
    "a wider dtype": (changed("1.weight", lambda value: value.double()), "dtype"),
    "a narrower dtype": (changed("1.weight", lambda value: value.half()), "dtype"),
    "whole numbers for floating point": (changed("1.bias", lambda value: value.long()), "dtype"),
    # weight
    "more rows than it joined with": (lambda update: sent(update, weight=ROWS[BAD] * 1000), "training rows"),
    "a negative weight": (lambda update: sent(update, weight=-5), "weight"),
    "a weight that is a text": (lambda update: sent(update, weight="many"), "weight"),
    # round
    "another round": (lambda update: sent(update, round_number=2), "is of round 2"),
    "round 0": (lambda update: sent(update, round_number=0), "round_number"),
    # base digest
    "other global parameters": (lambda update: sent(update, base_digest="0" * 64), "started from other parameters"),
    "no digest": (lambda update: sent(update, base_digest="latest"), "base_digest"),
    # pod
    "another pod's name": (lambda update: sent(update, pod="ann"), "says that it is of pod 'ann'"),
    # size and bytes
    "bytes after the end": (padded, "size|bytes|digest|changed"),
    "half of a file": (lambda update: replace(sent(update), delta=sent(update).delta[:80]), "changed|digest|size"),
    "a file that is not there": (lambda update: sent(update, delta_sha256="1" * 64), "there is no"),
    # all else in the note
    "metrics that are not finite": (
        lambda update: replace(sent(update), note={**sent(update).note, "metrics": {"Accuracy": [1e999, 1.0]}}),
        "metrics|JSON",
    ),
}


def put(federation: Federation, bad: Sent) -> None:
    """Puts an answer into the exchange past all code that would not write it."""
    exchange = federation.exchange
    exchange.store.put(delta_name(ROUND, BAD, codec_digest_of(bad)), bad.delta)
    exchange.store.put(answer_name(ROUND, BAD), json.dumps(bad.note).encode())


def codec_digest_of(bad: Sent) -> str:
    claimed = bad.note["delta_sha256"]
    return "2" * 64 if claimed == "1" * 64 else claimed


def test_there_are_twenty_five_kinds_and_all_aggregations() -> None:
    assert len(KINDS) == 25
    assert set(GIVEN) == set(AGGREGATIONS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("team")


def closed_with(folder: Path, aggregation: str, pods: tuple[str, ...], bad: Sent | None, **job: Any) -> Rounds:
    """Round 1 with honest answers of some pods, and one that is bad."""
    federation = federation_by_hand(
        Team(folder), Told(), aggregation=aggregation, aggregation_settings=GIVEN[aggregation], **job
    )
    rounds = Rounds(federation)
    rounds.open()
    for pod in pods:
        federation.exchange.put_update(update_of(pod, rounds.state.parameters, seed=1))
    if bad is None:
        federation.exchange.put_failure(ROUND, BAD, federation.session, "stayed away")
    else:
        put(federation, bad)
    rounds.aggregate()
    return rounds


@pytest.fixture(scope="module")
def honest(folder: Path) -> dict[str, str]:
    """Aggregation -> digest of the parameters that the four honest pods make."""
    pods = tuple(pod for pod in PODS if pod != BAD)
    return {name: closed_with(folder, name, pods, None, quorum=4).weights.sha256 for name in AGGREGATIONS}


@pytest.fixture(scope="module")
def update(folder: Path) -> Update:
    parameters = Rounds(federation_by_hand(Team(folder), Told())).state.parameters
    return update_of(BAD, parameters, seed=1)


@pytest.mark.parametrize("aggregation", list(AGGREGATIONS))
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_bad_update_is_refused_by_name_and_counts_for_nothing(
    folder: Path, honest: dict[str, str], update: Update, kind: str, aggregation: str
) -> None:
    made, said = KINDS[kind]
    others = tuple(pod for pod in PODS if pod != BAD)
    rounds = closed_with(folder, aggregation, others, made(update), quorum=4)
    record = rounds.records[-1]
    assert set(record.missing) == {BAD}
    assert any(word in record.missing[BAD] for word in said.split("|")), record.missing[BAD]
    assert record.pods == others
    assert rounds.weights.sha256 == honest[aggregation]


@pytest.mark.parametrize("aggregation", list(AGGREGATIONS))
@pytest.mark.parametrize("kind", list(KINDS))
def test_below_the_quorum_the_global_digest_is_unchanged(
    folder: Path, update: Update, kind: str, aggregation: str
) -> None:
    federation = federation_by_hand(
        Team(folder), Told(), aggregation=aggregation, aggregation_settings=GIVEN[aggregation], quorum=5
    )
    rounds = Rounds(federation)
    before = rounds.weights.sha256
    rounds.open()
    for pod in PODS:
        if pod != BAD:
            federation.exchange.put_update(update_of(pod, rounds.state.parameters, seed=1))
    put(federation, KINDS[kind][0](update))
    with pytest.raises(QuorumError, match="4 of 5 pods answered, the quorum is 5"):
        rounds.aggregate()
    assert rounds.weights.sha256 == codec.digest(rounds.state.parameters) == before
    assert rounds.records == []
    assert not federation.exchange.is_closed(ROUND)


def test_metrics_of_a_bad_update_are_not_shown(folder: Path, update: Update) -> None:
    liar = replace(update, metrics=MetricSums.of({"Accuracy": 1.0}, 10**9), base_digest="0" * 64)
    rounds = closed_with(folder, "mean", tuple(pod for pod in PODS if pod != BAD), sent(liar), quorum=4)
    assert BAD not in rounds.records[-1].by_pod
    assert rounds.records[-1].metrics["Accuracy"] < 1
