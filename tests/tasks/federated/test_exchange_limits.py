"""The exchange under several writers, at its limits, and with whatever a pod may have put there."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitfount_model import BitfountSchema, DataStructure, codec
from bitfount_model.errors import (
    BitfountError,
    ConfigurationError,
    IntegrityError,
    ParameterError,
    SerializationError,
    StorageError,
)
from bitfount_model.federation import MetricSums, pod_statistics
from tasks.federated.exchange import EVALUATION, JOIN, PREDICTION, Exchange, round_phase
from tasks.federated.messages import plain_keys
from tests.tasks.federated.by_hand import update_of
from tests.tasks.federated.team import SOURCE, Team, table

ROUND = round_phase(1)
PARAMETERS = {"layer.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3), "count": torch.tensor(7)}


@pytest.fixture(params=["a folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "exchange") if request.param == "a folder" else f"memory://{uuid4().hex}"


def at_once(count: int, call: Callable[[int], Any]) -> list[Any]:
    """What a call gives in so many threads that begin together."""
    together = threading.Barrier(count)

    def begin(number: int) -> Any:
        together.wait()
        return call(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


def test_modellers_that_begin_together_take_different_numbers(url: str) -> None:
    for begun in (0, 6):
        numbers = at_once(6, lambda number: Exchange(url).begin_session({"who": number}))
        assert sorted(numbers) == list(range(begun + 1, begun + 7))
    assert Exchange(url).session() == 12


def test_of_answers_that_are_given_together_one_counts_and_none_fails(url: str) -> None:
    def answer(number: int) -> None:
        Exchange(url).put_update(update_of("ann", PARAMETERS, seed=1, seconds=float(number)))
        Exchange(url).put_failure(ROUND, "bob", 1, f"reason {number}")
        Exchange(url).put_evaluation("ann", MetricSums.of({"AUC": 1.0 / (1 + number)}, 3))

    at_once(6, answer)
    exchange = Exchange(url)
    note = exchange.update_note(ROUND, "ann")
    assert note is not None and note.seconds in range(6)
    assert exchange.update(ROUND, note, PARAMETERS).seconds == note.seconds
    assert exchange.failure(ROUND, "bob", 1) in {f"reason {number}" for number in range(6)}
    assert exchange.evaluation("ann") in [MetricSums.of({"AUC": 1.0 / (1 + number)}, 3) for number in range(6)]


def test_of_jobs_that_are_published_together_under_one_name_one_is_there(url: str, tmp_path: Path) -> None:
    team = Team(tmp_path / "team")

    def publish(number: int) -> bool:
        try:
            Exchange(url).publish(team.job(seed=number), SOURCE)
        except IntegrityError:
            return False
        return True

    won = at_once(4, publish)
    assert won.count(True) == 1
    found = Exchange(url).job()
    assert found is not None and found[0].seed == won.index(True)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**31),
    weight=st.integers(0, 2**53),
    loss=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    seconds=st.floats(0, 1e9),
    stats=st.dictionaries(st.text(max_size=9), st.floats(-1e9, 1e9), max_size=3),
)
def test_every_bit_of_an_update_arrives(
    seed: int, weight: int, loss: float | None, seconds: float, stats: dict[str, float]
) -> None:
    exchange = Exchange(f"memory://{uuid4().hex}")
    metrics = MetricSums.of(stats, 7)
    sent = update_of("ann", PARAMETERS, seed, weight=weight, metrics=metrics, train_loss=loss, seconds=seconds)
    exchange.put_update(sent)
    note = exchange.update_note(ROUND, "ann")
    assert note is not None
    arrived = exchange.update(ROUND, note, PARAMETERS)
    assert replace(arrived, delta={}) == replace(sent, delta={})
    assert codec.digest(arrived.delta) == codec.digest(sent.delta) == note.delta_sha256
    assert note.delta_bytes == len(codec.encode(sent.delta))


def test_statistics_survive_the_way(url: str) -> None:
    schema = BitfountSchema("s")
    schema.generate_full_schema(table("ann"), force_stypes={"categorical": ["y"]})
    sent = pod_statistics(table("ann"), schema, DataStructure(target="y"))
    exchange = Exchange(url)
    exchange.put_statistics("ann", sent)
    assert exchange.statistics("ann") == Exchange(url).statistics("ann") == sent


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_no_numbers_do_not_arrive(url: str, value: float) -> None:
    exchange = Exchange(url)
    sent = update_of("ann", PARAMETERS, seed=1)
    exchange.put_update(replace(sent, delta={**sent.delta, "layer.weight": torch.full((2, 3), value)}))
    note = exchange.update_note(ROUND, "ann")
    assert note is not None
    with pytest.raises(ParameterError, match=r"layer\.weight"):
        exchange.update(ROUND, note, PARAMETERS)


@pytest.mark.parametrize(
    "delta",
    [
        {"layer.weight": torch.ones(2, 3)},
        {"layer.weight": torch.ones(2, 3), "count": torch.tensor(1), "more": torch.ones(1)},
        {"layer.weight": torch.ones(3, 2), "count": torch.tensor(1)},
        {"layer.weight": torch.ones(2, 3, dtype=torch.float64), "count": torch.tensor(1)},
        {},
    ],
    ids=["a name is missing", "a name too many", "another shape", "another dtype", "nothing"],
)
def test_a_delta_of_another_model_is_refused(url: str, delta: dict[str, torch.Tensor]) -> None:
    exchange = Exchange(url)
    exchange.put_update(replace(update_of("ann", PARAMETERS, seed=1), delta=delta))
    note = exchange.update_note(ROUND, "ann")
    assert note is not None
    with pytest.raises(ParameterError):
        exchange.update(ROUND, note, PARAMETERS)


def test_parameters_that_are_too_large_are_refused_on_both_sides(url: str) -> None:
    large = {"w": torch.zeros(1000)}
    small = Exchange(url, max_bytes=1000)
    with pytest.raises(StorageError, match="1000"):
        small.put_weights(large)
    reference = Exchange(url).put_weights(large)
    with pytest.raises(StorageError, match="1000"):
        small.weights(reference)
    with pytest.raises(StorageError, match="1000"):
        small.put_update(update_of("ann", large, seed=1))
    assert small.update_note(ROUND, "ann") is None, "the note is written last"


PHASES: list[tuple[str, Callable[[Exchange], Any]]] = [
    (f"{JOIN}/ann/schema.json", lambda exchange: exchange.joined("ann")),
    (f"{JOIN}/ann/statistics.json", lambda exchange: exchange.statistics("ann")),
    (f"{ROUND}/updates/ann.json", lambda exchange: exchange.update_note(ROUND, "ann")),
    (f"{ROUND}/failed/ann.0001.json", lambda exchange: exchange.failure(ROUND, "ann", 1)),
    (f"{EVALUATION}/ann.json", lambda exchange: exchange.evaluation("ann")),
    (f"{PREDICTION}/ann.json", lambda exchange: exchange.predictions("ann")),
]
ROWS = {"train": 1, "validation": 1, "test": 1, "digest": "0" * 64}
HOSTILE: dict[str, bytes] = {
    "deeper than Python": b"[" * 200_000,
    "a number without end": b"9" * 100_000,
    "no text": bytes(range(256)),
    "nothing": b"",
    "a deep schema": json.dumps({"schema": "[" * 5_000, "rows": ROWS}).encode(),
    "no schema": json.dumps({"schema": "[1, 2]", "rows": ROWS}).encode(),
    "a tag of YAML": json.dumps({"schema": "!!python/object/apply:os.getcwd []", "rows": ROWS}).encode(),
    "another key": json.dumps({"reason": "x", "more": 1}).encode(),
    "no number": b'{"AUC": [NaN, 1]}',
    "an infinite weight": b'{"AUC": [1, 1e999]}',
}


@pytest.mark.parametrize(("name", "read"), PHASES, ids=[name for name, _ in PHASES])
@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_whatever_a_pod_wrote_is_refused_by_name(name: str, read: Callable[[Exchange], Any], content: bytes) -> None:
    exchange = Exchange(f"memory://{uuid4().hex}")
    exchange.store.put(name, content)
    with pytest.raises(SerializationError):
        read(exchange)


def test_a_reason_longer_than_pods_write_is_refused() -> None:
    exchange = Exchange(f"memory://{uuid4().hex}")
    exchange.store.put(f"{ROUND}/failed/ann.0001.json", json.dumps({"reason": "x" * 20_001}).encode())
    with pytest.raises(SerializationError, match="20000"):
        exchange.failure(ROUND, "ann", 1)


@pytest.mark.parametrize("pod", ["../bob", "a/../../b", "", "a b", "ä"])
def test_a_pods_name_leads_nowhere_else(url: str, pod: str) -> None:
    with pytest.raises(StorageError):
        Exchange(url).put_failure(ROUND, f"{pod}/../x", 1, "reason")
    with pytest.raises(StorageError):
        Exchange(url).evaluation(f"../{pod}")


def test_a_job_that_is_none_is_refused(url: str) -> None:
    exchange = Exchange(url)
    exchange.store.put("job.json", b"{}")
    with pytest.raises(ConfigurationError, match="job_id"):
        exchange.job()


def test_predictions_of_other_bytes_or_names_are_refused(url: str) -> None:
    exchange = Exchange(url)
    exchange.put_predictions("ann", torch.ones(3), [1, 2, 3])
    stolen = json.loads(exchange.store.get(f"{PREDICTION}/ann.json"))
    stolen["array"]["sha256"] = "0" * 64
    exchange.store.put(f"{PREDICTION}/bob.json", json.dumps(stolen).encode())
    other = exchange.store.put("other.safetensors", codec.encode({"labels": torch.ones(3)}))
    named = {"name": other.name, "sha256": other.sha256, "size": other.size}
    exchange.store.put(f"{PREDICTION}/cat.json", json.dumps({"array": named, "keys": None}).encode())
    with pytest.raises(IntegrityError):
        exchange.predictions("bob")
    with pytest.raises(BitfountError, match="'cat' hold \\['labels'\\]"):
        exchange.predictions("cat")


def test_the_second_predictions_change_nothing(url: str) -> None:
    exchange = Exchange(url)
    exchange.put_predictions("ann", torch.ones(3), None)
    exchange.put_predictions("ann", torch.zeros(3), None)
    found = exchange.predictions("ann")
    assert found is not None and found.preds.tolist() == [1, 1, 1]


def test_keys_are_numbers_and_texts() -> None:
    keys = [1, "a", 2.5, np.int64(3), np.float32(0.5), np.datetime64("2020-01-02"), None, True]
    assert plain_keys(keys) == [1, "a", 2.5, 3, 0.5, "2020-01-02", "None", True]
    assert plain_keys(None) is None
    assert plain_keys([float("nan"), np.float64(np.inf), 1.0]) == ["nan", "inf", 1.0]


def test_rows_without_a_key_can_be_predicted(url: str) -> None:
    exchange = Exchange(url)
    exchange.put_predictions("ann", torch.ones(2), [np.nan, 4711.0])
    found = exchange.predictions("ann")
    assert found is not None and found.keys == ["nan", 4711.0]


def test_waiting_slows_down_and_ends_with_the_time(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = Exchange(url)
    now, pauses, looks = [0.0], list[float](), list[float]()

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    clock = SimpleNamespace(sleep=sleep, monotonic=lambda: now[0])
    monkeypatch.setattr("tenacity.nap.time", clock)
    monkeypatch.setattr("tenacity.time", clock)
    assert exchange.awaited(lambda: looks.append(now[0]), 5) is None
    assert looks[0] == 0 and 5 <= looks[-1] <= 5 + exchange.longest_pause
    assert pauses == sorted(pauses) and max(pauses) == exchange.longest_pause > pauses[0]
    assert exchange.awaited(lambda: "here" if now[0] > 7 else None, 3600) == "here"
    assert now[0] <= 7 + exchange.longest_pause
    pauses.clear()
    assert exchange.awaited(lambda: None, 0) is None and pauses == []
