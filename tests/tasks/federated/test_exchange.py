"""The exchange: written once, found by either side, held against schemas and digests."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch

from bitfount_model import BitfountSchema, codec
from bitfount_model.data import Preparation
from bitfount_model.errors import BitfountError, IntegrityError, ParameterError, SerializationError, StorageError
from bitfount_model.federation import MetricSums
from bitfount_model.federation.job import FederatedJob
from bitfount_model.federation.pod import Rows, Update
from tasks.federated.exchange import EVALUATION, JOIN, PREDICTION, Exchange, delta_name, round_phase
from tasks.federated.messages import MAX_REASON, Asked, Joined, Start

PARAMETERS = {"layer.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3), "count": torch.tensor(7)}
JOB = FederatedJob(
    job_id="job-1",
    pods=("ann", "bob"),
    model_sha256="0" * 64,
    datastructure={"target": "y"},
    between_updates=1,
    seed=1,
    quorum=1,
    epochs=2,
)
UPDATE = Update(
    pod="ann",
    round_number=1,
    base_digest=codec.digest(PARAMETERS),
    delta={"layer.weight": torch.ones(2, 3), "count": torch.tensor(1)},
    weight=10,
    metrics=MetricSums.of({"AUC": 0.75}, 4),
    train_loss=0.5,
    seconds=0.25,
)
ROUND = round_phase(1)


@pytest.fixture(params=["a folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "exchange") if request.param == "a folder" else f"memory://{uuid4().hex}"


@pytest.fixture
def exchange(url: str) -> Exchange:
    return Exchange(url)


def test_a_job_is_found_as_it_was_published(exchange: Exchange, url: str) -> None:
    assert Exchange(url).job() is None
    exchange.publish(JOB, b"class Model: ...")
    exchange.publish(JOB, b"class Model: ...")
    assert Exchange(url).job() == (JOB, b"class Model: ...")
    with pytest.raises(IntegrityError):
        exchange.publish(replace(JOB, seed=2), b"class Model: ...")


def test_each_start_of_the_modeller_has_a_number_of_its_own(exchange: Exchange, url: str) -> None:
    other = Exchange(url)
    assert [exchange.begin_session({"who": "a"}), other.begin_session({"who": "b"})] == [1, 2]
    assert exchange.session() == other.session(1) == 2
    exchange.say_here(2, "ann")
    assert (other.is_here(2, "ann"), other.is_here(1, "ann"), other.is_here(2, "bob")) == (True, False, False)
    assert other.session_end(2) is None
    exchange.end_session(2, "finished", "")
    assert other.session_end(2) == {"state": "finished", "reason": ""}


def test_two_modellers_at_the_same_moment_take_different_numbers(
    exchange: Exchange, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Exchange(url).begin_session({"who": "first"})
    monkeypatch.setattr(exchange, "session", lambda after=0: 0)  # it looked before the first one wrote
    assert exchange.begin_session({"who": "second"}) == 2


def test_what_comes_before_the_rounds_survives_the_way(exchange: Exchange, url: str) -> None:
    other, schema = Exchange(url), BitfountSchema("s")
    preparation = Preparation({"x": (1.0, 2.0)}, {}, "codes", True)
    assert (other.joined("ann"), other.common(), other.start(), other.statistics("ann")) == (None,) * 4
    joined = Joined(schema, Rows(1, 2, 3, "d" * 64))
    exchange.put_joined("ann", joined)
    exchange.put_common(schema)
    exchange.put_start(Start(schema, preparation, ("ann",)))
    assert other.joined("ann") == joined
    assert other.common() == schema
    assert other.start() == Start(schema, preparation, ("ann",))
    with pytest.raises(IntegrityError):
        exchange.put_joined("ann", Joined(schema, Rows(9, 2, 3, "e" * 64)))


def test_an_update_arrives_bit_for_bit_and_only_the_first_counts(exchange: Exchange, url: str) -> None:
    assert exchange.update_note(ROUND, "ann") is None and not exchange.has_answer(ROUND, "ann")
    exchange.put_update(UPDATE)
    exchange.put_update(replace(UPDATE, seconds=9.0))
    other = Exchange(url)
    note = other.update_note(ROUND, "ann")
    assert note is not None and other.has_answer(ROUND, "ann")
    arrived = other.update(ROUND, note, PARAMETERS)
    assert arrived.seconds == 0.25 and arrived.metrics == UPDATE.metrics and arrived.weight == 10
    assert all(torch.equal(arrived.delta[name], UPDATE.delta[name]) for name in PARAMETERS)
    other.forget_update(ROUND, note)
    with pytest.raises(StorageError, match="there is no"):
        exchange.update(ROUND, note, PARAMETERS)


def test_an_update_of_another_model_is_refused(exchange: Exchange) -> None:
    exchange.put_update(replace(UPDATE, delta={"layer.weight": torch.ones(3, 3), "count": torch.tensor(1)}))
    note = exchange.update_note(ROUND, "ann")
    assert note is not None
    with pytest.raises(ParameterError, match=r"layer\.weight"):
        exchange.update(ROUND, note, PARAMETERS)


def test_a_changed_delta_is_noticed(tmp_path: Path) -> None:
    exchange = Exchange(str(tmp_path))
    exchange.put_update(UPDATE)
    note = exchange.update_note(ROUND, "ann")
    assert note is not None
    (tmp_path / delta_name(ROUND, "ann", note.delta_sha256)).write_bytes(codec.encode(PARAMETERS))
    with pytest.raises(IntegrityError, match="sha256"):
        exchange.update(ROUND, note, PARAMETERS)


def test_weights_are_held_against_their_digest(tmp_path: Path) -> None:
    reference = Exchange(str(tmp_path)).put_weights(PARAMETERS)
    assert reference.sha256 == codec.digest(PARAMETERS)
    assert torch.equal(Exchange(str(tmp_path)).weights(reference)["layer.weight"], PARAMETERS["layer.weight"])
    (tmp_path / reference.name).write_bytes(codec.encode(UPDATE.delta))
    with pytest.raises(IntegrityError):
        Exchange(str(tmp_path)).weights(reference)


def test_a_phase_is_asked_answered_and_closed(exchange: Exchange, url: str) -> None:
    asked = Asked(("ann",), exchange.put_weights(PARAMETERS))
    for phase in (ROUND, EVALUATION, PREDICTION):
        assert exchange.asked(phase) is None and not exchange.is_closed(phase)
        exchange.ask(phase, asked)
        exchange.close(phase)
        assert Exchange(url).asked(phase) == asked and Exchange(url).is_closed(phase)
    exchange.put_evaluation("ann", UPDATE.metrics)
    assert Exchange(url).evaluation("ann") == UPDATE.metrics and exchange.has_answer(EVALUATION, "ann")


def test_who_asked_does_not_read_what_it_asked(tmp_path: Path) -> None:
    exchange, asked = Exchange(str(tmp_path)), Asked(("ann",), Exchange(str(tmp_path)).put_weights(PARAMETERS))
    exchange.ask(ROUND, asked)
    (tmp_path / ROUND / "open.json").unlink()
    assert exchange.asked(ROUND) == asked and exchange.asked(EVALUATION) is None
    assert Exchange(str(tmp_path)).asked(ROUND) is None


def test_predictions_come_with_plain_keys(exchange: Exchange) -> None:
    exchange.put_predictions("ann", torch.tensor([[0.25, 0.75]]), [torch.tensor(4711)])
    exchange.put_predictions("bob", torch.tensor([[1.0]]), None)
    ann, bob = exchange.predictions("ann"), exchange.predictions("bob")
    assert ann is not None and bob is not None
    assert (ann.preds.tolist(), ann.keys, bob.keys) == ([[0.25, 0.75]], [4711], None)


def test_a_reason_belongs_to_a_session_and_is_cut(exchange: Exchange) -> None:
    exchange.put_failure(ROUND, "ann", 1, "x" * (2 * MAX_REASON))
    exchange.put_failure(ROUND, "ann", 1, "another")
    assert exchange.failure(ROUND, "ann", 1) == "x" * MAX_REASON
    assert exchange.failure(ROUND, "ann", 2) is None and exchange.failure(ROUND, "bob", 1) is None


NONSENSE: list[tuple[str, Callable[[Exchange], Any]]] = [
    (f"{JOIN}/ann/schema.json", lambda exchange: exchange.joined("ann")),
    (f"{JOIN}/ann/statistics.json", lambda exchange: exchange.statistics("ann")),
    (f"{ROUND}/updates/ann.json", lambda exchange: exchange.update_note(ROUND, "ann")),
    (f"{ROUND}/failed/ann.0001.json", lambda exchange: exchange.failure(ROUND, "ann", 1)),
    (f"{ROUND}/open.json", lambda exchange: exchange.asked(ROUND)),
    (f"{EVALUATION}/ann.json", lambda exchange: exchange.evaluation("ann")),
    (f"{PREDICTION}/ann.json", lambda exchange: exchange.predictions("ann")),
    ("start.json", lambda exchange: exchange.start()),
    ("common.json", lambda exchange: exchange.common()),
]


@pytest.mark.parametrize(("name", "read"), NONSENSE, ids=[name for name, _ in NONSENSE])
@pytest.mark.parametrize(
    "content", [b"{", b"\xff\xfe", b"[1, 2]", b'{"a": {"b": NaN}}', json.dumps({"weight": -1}).encode()]
)
def test_nonsense_is_an_error_of_ours(
    tmp_path: Path, name: str, read: Callable[[Exchange], Any], content: bytes
) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BitfountError) as caught:
        read(Exchange(str(tmp_path)))
    assert isinstance(caught.value, SerializationError), caught.value


def test_waiting_ends_when_something_is_found_or_the_time_is_up(exchange: Exchange) -> None:
    looks: list[int] = []

    def found_at(number: int) -> Callable[[], str | None]:
        looks.clear()
        return lambda: looks.append(1) or ("found" if len(looks) == number else None)

    assert exchange.awaited(found_at(3), 60) == "found" and len(looks) == 3
    assert exchange.awaited(found_at(2), 0) is None and len(looks) == 1
    assert exchange.awaited(found_at(10**9), 0.05) is None
