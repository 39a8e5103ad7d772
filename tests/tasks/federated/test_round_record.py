"""A round's record: every bit of it comes back, and nothing that is not one is taken for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitfount_model import codec
from bitfount_model.errors import IntegrityError, SerializationError, StorageError
from bitfount_model.federation.early_stopping import EarlyStoppingState
from bitfount_model.federation.rounds import GlobalState, RoundSummary
from tasks.federated.exchange import Exchange
from tasks.federated.round_record import (
    Measured,
    RoundRecord,
    read_record,
    read_records,
    record_from_json,
    record_name,
    record_of,
    state_after,
    write_record,
)
from tasks.store import Reference, Store

WEIGHTS = Reference("weights/a.safetensors", "a" * 64, 10)
SERVER = Reference("rounds/00001.b.safetensors", "b" * 64, 20)
SUMMARY = RoundSummary(
    round_number=1,
    pods=("ann", "bob"),
    refused={"cat": "of another model"},
    metrics={"AUC": 0.75, "F1": float("nan")},
    by_pod={"ann": {"AUC": 0.5, "F1": float("inf")}, "bob": {"AUC": 1.0}},
    train_loss={"ann": 0.1 + 0.2, "bob": float("nan")},
    weight=30.0,
    chosen=("ann", "bob"),
)
MEASURED = Measured(
    missing={"dan": "its disk is full"},
    norms={"ann": 1.0, "bob": 2.0},
    fit_seconds={"ann": 0.25, "bob": 0.5},
    seconds=1.23456789,
    wait_seconds=0.1,
    aggregate_seconds=0.01,
    bytes_down=100,
    bytes_up=200,
)
STATE = GlobalState(1, {"w": torch.ones(2)}, {}, EarlyStoppingState(1, 1, 0.75, 0, False, None))


@pytest.fixture
def store() -> Store:
    return Store(f"memory://{uuid4().hex}")


def record(**changes: Any) -> RoundRecord:
    return replace(record_of(SUMMARY, STATE, MEASURED, WEIGHTS, None, None), **changes)


def test_a_record_is_made_of_the_round_and_of_what_was_seen_beside_it() -> None:
    found = record_of(SUMMARY, STATE, MEASURED, WEIGHTS, SERVER, EarlyStoppingState())
    assert found.missing == {"dan": "its disk is full", "cat": "of another model"}
    assert found.metrics == {"AUC": 0.75, "F1": None}
    assert found.by_pod == {"ann": {"AUC": 0.5, "F1": None}, "bob": {"AUC": 1.0}}
    assert found.train_loss == {"ann": 0.1 + 0.2, "bob": None}
    assert found.stopping is STATE.stopping
    assert (found.weights, found.server, found.seconds) == (WEIGHTS, SERVER, 1.234568)


finite = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(max_size=5)
stopping = st.builds(
    EarlyStoppingState, st.none() | st.integers(1, 9), st.just(2), finite, st.integers(0, 9), st.booleans()
)
references = st.builds(Reference, names, st.just("c" * 64), st.integers(0, 2**60))
records = st.builds(
    RoundRecord,
    round_number=st.integers(1, 10**6),
    pods=st.lists(names).map(tuple),
    missing=st.dictionaries(names, names),
    metrics=st.dictionaries(names, st.none() | finite),
    by_pod=st.dictionaries(names, st.dictionaries(names, st.none() | finite)),
    train_loss=st.dictionaries(names, st.none() | finite),
    weight=finite,
    norms=st.dictionaries(names, finite),
    fit_seconds=st.dictionaries(names, finite),
    seconds=finite,
    wait_seconds=finite,
    aggregate_seconds=finite,
    bytes_down=st.integers(0, 2**60),
    bytes_up=st.integers(0, 2**60),
    weights=references,
    server=st.none() | references,
    stopping=stopping,
    best=st.none() | stopping,
)


@given(records)
def test_every_bit_comes_back(written: RoundRecord) -> None:
    assert record_from_json(json.loads(json.dumps(written.to_json(), allow_nan=False))) == written
    store = Store(f"memory://{uuid4().hex}")
    write_record(store, written)
    assert read_record(store, written.round_number) == written


def test_the_rounds_without_a_gap_are_those_that_are_closed(store: Store) -> None:
    assert read_records(store) == []
    written = [record(round_number=number) for number in (1, 2, 4)]
    for each in written:
        write_record(store, each)
    assert read_records(store) == written[:2]
    assert read_records(store, after=1) == written[1:2]
    assert read_records(store, after=2) == []
    assert read_records(store, after=3) == written[2:]


def test_a_closed_round_is_closed_once(store: Store) -> None:
    write_record(store, record())
    write_record(store, record())
    with pytest.raises(IntegrityError):
        write_record(store, record(weight=31.0))


WRONG: list[Callable[[dict[str, Any]], Any]] = [
    lambda value: {key: item for key, item in value.items() if key != "weights"},
    lambda value: {key: item for key, item in value.items() if key != "norms"},
    lambda value: {**value, "more": 1},
    lambda value: {**value, "weights": None},
    lambda value: {**value, "weights": {"name": "a"}},
    lambda value: {**value, "pods": 3},
    lambda value: {**value, "stopping": {}},
    lambda value: {**value, "best": {"best_round": 1}},
    lambda value: {**value, "server": {"path": "../a"}},
    lambda value: [value],
    lambda value: None,
]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_record_is_refused(store: Store, wrong: Callable[[dict[str, Any]], Any]) -> None:
    value = wrong(json.loads(json.dumps(record().to_json())))
    with pytest.raises(SerializationError):
        record_from_json(value)
    store.put(record_name(1), json.dumps(value).encode())
    with pytest.raises(IntegrityError, match=r"rounds/00001\.json .* is not what a round wrote.* another job id"):
        read_records(store)


def test_the_state_after_a_round_is_read_from_both_stores(store: Store) -> None:
    exchange = Exchange(f"memory://{uuid4().hex}")
    weights = exchange.put_weights(STATE.parameters)
    server = {"momentum.w": torch.full((2,), 0.5, dtype=torch.float64)}
    kept = store.put(SERVER.name, codec.encode(server))
    found = state_after(store, exchange, record(weights=weights, server=kept))
    assert found.round_number == 1 and found.stopping == STATE.stopping
    assert torch.equal(found.parameters["w"], STATE.parameters["w"])
    assert torch.equal(found.server["momentum.w"], server["momentum.w"])
    assert state_after(store, exchange, record(weights=weights)).server == {}


def test_a_state_of_other_bytes_is_refused(store: Store) -> None:
    exchange = Exchange(f"memory://{uuid4().hex}")
    weights = exchange.put_weights(STATE.parameters)
    kept = store.put(SERVER.name, codec.encode({"momentum.w": torch.ones(2, dtype=torch.float64)}))
    with pytest.raises(IntegrityError):
        state_after(store, exchange, record(weights=weights, server=replace(kept, sha256="0" * 64)))
    with pytest.raises(IntegrityError):
        state_after(store, Exchange(exchange.url), record(weights=replace(weights, sha256="0" * 64)))
    with pytest.raises(StorageError, match="there is no"):
        state_after(store, exchange, record(weights=WEIGHTS))
