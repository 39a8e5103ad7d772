"""What a model's process says is taken only in the forms that it may have, and never longer than the pod expects."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from bitfount_model.errors import ConfinementError
from tasks.federated.confined.channel import LENGTHS, Channel
from tasks.federated.confined.messages import (
    MET,
    BatchSchema,
    ConfinedSchema,
    EvaluatedSchema,
    OpenedSchema,
    checked,
    error_from_json,
    fitted_from_json,
    sums_from_json,
)

FITTED = {"weight": 19, "metrics": {"AUC": [1.5, 2.0]}, "train_loss": 0.5, "seconds": 0.1}
TOLD = {"kinds": ["ValueError"], "text": "no", "trace": "in step", "met": None, "transient": False}


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    """The pod's end, and the model's, which it may write to as it likes."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours, os.memfd_create("body"))
    yield channel, theirs
    channel.close()
    theirs.close()


@pytest.mark.parametrize("size", [0, 1, 10 * 2**20])
def test_what_is_said_is_heard(ends: tuple[Channel, socket.socket], size: int) -> None:
    channel, other = ends
    body, header = os.urandom(size), {"answer": {"é": ["x" * 10**6, None]}}
    model = Channel(other, os.dup(channel._shared))
    said = threading.Thread(target=model.send, args=(header, [body[: size // 3], memoryview(body)[size // 3 :]]))
    said.start()
    heard = channel.receive(2 * 10**6, size)
    said.join()
    assert heard is not None and heard.header == header and heard.body == body
    model.close()


@pytest.mark.parametrize("cut", [0, 5, LENGTHS.size, LENGTHS.size + 1])
def test_whoever_goes_in_mid_word_has_gone(ends: tuple[Channel, socket.socket], cut: int) -> None:
    channel, other = ends
    other.sendall((LENGTHS.pack(2, 3) + b"{}")[:cut])
    other.close()
    assert channel.receive(1000, 1000) is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff" * 64, "sends 4294967295 bytes of header"),
        (struct.pack("!IQ", 2, 2**60) + b"{}", f"{2**60} bytes, at most 1000 and 10 are taken"),
        (struct.pack("!IQ", 2, 9) + b"{}", "sends 0 bytes where it says that there are 9"),
        (struct.pack("!IQ", 5, 0) + b"hello", "a header that is no JSON"),
        (struct.pack("!IQ", 900, 0) + b"\xff" * 900, "a header that is no JSON"),
        (struct.pack("!IQ", 6, 0) + b"[1, 2]", "a header that is no JSON object"),
    ],
)
def test_what_is_no_message_is_refused(ends: tuple[Channel, socket.socket], content: bytes, said: str) -> None:
    channel, other = ends
    other.sendall(content)
    with pytest.raises(ConfinementError, match=said):
        channel.receive(1000, 10)


def test_json_that_is_nested_too_deeply_is_refused(ends: tuple[Channel, socket.socket]) -> None:
    channel, other = ends
    other.sendall(struct.pack("!IQ", 10**5, 0) + b"[" * 10**5)
    with pytest.raises(ConfinementError, match="no JSON"):
        channel.receive(10**6, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"weight": -1},
        {"weight": 1.5},
        {"weight": "19"},
        {"metrics": {"AUC": "row 1"}},
        {"metrics": [1]},
        {"train_loss": float("nan")},
        {"seconds": -1.0},
        {"seconds": None},
        {"note": "row 1"},
    ],
    ids=str,
)
def test_a_fit_that_is_none_is_refused_without_a_word_of_it(change: dict[str, Any]) -> None:
    with pytest.raises(ConfinementError) as caught:
        fitted_from_json(FITTED | change)
    assert "row 1" not in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (ConfinedSchema(), {"confined": True}),
        (OpenedSchema(), {"classifier": "row 1"}),
        (EvaluatedSchema(), {"metrics": None}),
        (BatchSchema(), {"epoch": 1, "epochs": 2, "batch": "row 1", "batches": 3}),
        (BatchSchema(), {"epoch": 1, "epochs": 2, "batch": 2**60, "batches": 3}),
        (BatchSchema(), {}),
    ],
)
def test_other_answers_are_held_against_their_schemas(schema: Any, value: dict[str, Any]) -> None:
    with pytest.raises(ConfinementError, match="answers what it may not") as caught:
        checked(value, schema)
    assert "row 1" not in str(caught.value)


def test_sound_answers_are_taken() -> None:
    fitted = fitted_from_json(json.loads(json.dumps(FITTED)))
    assert (fitted.weight, fitted.train_loss, fitted.metrics) == (19, 0.5, sums_from_json({"AUC": [1.5, 2.0]}))
    assert checked({"epoch": 1, "epochs": None, "batch": 2, "batches": 3}, BatchSchema())["batch"] == 2


def test_of_an_error_the_first_kind_that_is_known_counts() -> None:
    told = TOLD | {"kinds": ["RowOf4711", "OutOfMemoryError", "RuntimeError", "Exception"], "met": "memory"}
    error = error_from_json(told)
    assert error.kind == "RuntimeError" and error.met == MET["memory"] and not error.transient
    assert error_from_json(TOLD | {"kinds": ["RowOf4711"]}).kind == "Exception"
    assert str(error_from_json(TOLD)) == "ValueError: no\nin step"


@pytest.mark.parametrize(
    "change", [{"met": "row 1"}, {"text": "x" * 20_001}, {"kinds": "ValueError"}, {"more": 1}], ids=str
)
def test_an_error_that_is_not_told_as_it_must_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfinementError):
        error_from_json(TOLD | change)
