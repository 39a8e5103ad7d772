"""What a pod says beside its delta: every bit arrives, and whatever else is sent is refused with all that is wrong."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitfount_model.errors import SerializationError
from bitfount_model.federation import MetricSums
from bitfount_model.federation.messages import UpdateNote, note_from_json, note_of, rows_from_json
from bitfount_model.federation.pod import Rows, Update
from bitfount_model.federation.privacy import Spent

NOTE: dict[str, Any] = {
    "pod": "ann",
    "round_number": 1,
    "base_digest": "a" * 64,
    "weight": 10,
    "metrics": {"AUC": [7.5, 10.0]},
    "train_loss": 0.5,
    "seconds": 0.25,
    "delta_sha256": "b" * 64,
    "delta_bytes": 100,
}
ROWS: dict[str, Any] = {"train": 8, "validation": 1, "test": 1, "digest": "c" * 64}

numbers = st.floats(allow_nan=False, allow_infinity=False)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
counts = st.integers(0, 2**53)
sums = st.dictionaries(st.text(max_size=9), st.tuples(numbers, st.floats(0, 1e300)), max_size=4).map(MetricSums)
notes = st.builds(
    UpdateNote, st.text(max_size=9), st.integers(1, 2**40), digests, counts, sums, st.none() | numbers, st.floats(0, 1e300),
    digests, counts, st.none() | st.builds(Spent, st.floats(0, 1e300), st.floats(0, 1)),
)  # fmt: skip


def over_the_wire(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


@given(notes)
def test_every_bit_of_a_note_arrives(note: UpdateNote) -> None:
    arrived = note_from_json(over_the_wire(note.to_json()))
    assert arrived == note
    assert math.copysign(1, arrived.seconds) == math.copysign(1, note.seconds)


@given(st.builds(Rows, counts, counts, counts, digests))
def test_every_count_of_rows_arrives(rows: Rows) -> None:
    value = {"train": rows.train, "validation": rows.validation, "test": rows.test, "digest": rows.digest}
    assert rows_from_json(over_the_wire(value)) == rows


@pytest.mark.parametrize(("loss", "said"), [(0.5, 0.5), (None, None), (math.nan, None), (math.inf, None)])
def test_a_note_is_made_of_an_update_and_makes_it_again(loss: float | None, said: float | None) -> None:
    delta = {"w": torch.ones(2)}
    metrics = MetricSums.of({"AUC": 0.75, "F1": math.nan}, 4)
    update = Update("ann", 3, "a" * 64, delta, 10, metrics, loss, 0.25)
    note = note_of(update, "b" * 64, 100)
    assert (note.train_loss, note.delta_sha256, note.delta_bytes) == (said, "b" * 64, 100)
    again = note_from_json(over_the_wire(note.to_json())).update(delta)
    assert again == Update("ann", 3, "a" * 64, delta, 10, metrics, said, 0.25)
    assert again.delta is delta


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("pod", 3),
        ("round_number", 0),
        ("round_number", 1.5),
        ("round_number", "1"),
        ("base_digest", "A" * 64),
        ("base_digest", "a" * 63),
        ("base_digest", "a" * 64 + "\n"),
        ("weight", -1),
        ("weight", 2**53 + 1),
        ("weight", 1.5),
        ("metrics", {"AUC": [math.inf, 1]}),
        ("metrics", {"AUC": [1, -1]}),
        ("metrics", {"AUC": 0.5}),
        ("metrics", [1]),
        ("metrics", None),
        ("train_loss", math.nan),
        ("train_loss", "low"),
        ("seconds", -0.1),
        ("seconds", math.nan),
        ("seconds", math.inf),
        ("delta_sha256", "../../etc/passwd"),
        ("delta_bytes", -1),
        ("spent", {"epsilon": -1, "delta": 0.1}),
        ("spent", {"epsilon": math.inf, "delta": 0.1}),
        ("spent", {"epsilon": 1, "delta": 2}),
        ("spent", {"epsilon": 1}),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_key(key: str, wrong: Any) -> None:
    with pytest.raises(SerializationError, match=key):
        note_from_json({**NOTE, key: wrong})


@pytest.mark.parametrize("key", NOTE)
def test_no_key_of_a_note_may_be_missing(key: str) -> None:
    with pytest.raises(SerializationError, match=key):
        note_from_json({name: value for name, value in NOTE.items() if name != key})


@pytest.mark.parametrize(
    ("key", "wrong"), [("train", -1), ("validation", 0.5), ("test", None), ("digest", "c"), ("more", 1)]
)
def test_counts_of_rows_that_cannot_be_are_refused(key: str, wrong: Any) -> None:
    with pytest.raises(SerializationError, match=key):
        rows_from_json({**ROWS, key: wrong})


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(SerializationError) as caught:
        note_from_json({**NOTE, "weight": -1, "seconds": -1, "extra": 1, "metrics": {"AUC": "high"}})
    assert all(key in str(caught.value) for key in ("weight", "seconds", "extra", "AUC"))


@pytest.mark.parametrize("read", [note_from_json, rows_from_json])
@pytest.mark.parametrize("value", [None, [], "note", 3, {}, [[]]])
def test_what_is_no_object_is_refused(read: Any, value: Any) -> None:
    with pytest.raises(SerializationError):
        read(value)
