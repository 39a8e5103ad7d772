"""What every adapter of a kind must do, whatever it stands on."""

from __future__ import annotations

import hashlib

import pytest

from bitfount_model.errors import IntegrityError, StorageError
from tasks.store import Store

HOSTILE_NAMES = (
    "", ".", "..", "/", "/etc/passwd", "../up", "a/../b", "a/..", "a//b", "a/", "./a", "a/./b", "~", "~/a", ".hidden", "a/.b",
    "a\\b", "..\\a", "C:\\a", "C:a", "a:b", "a b", "a\n", "a\0b", "a\tb", "ä", "ａ", "%2e%2e/a", "a%00", "$HOME", "`id`", ";id",
    "a|b", "s3://b/a", "file:///a", "a?b", "a*", "-", "-rf", "x" * 300,
)  # fmt: skip


def check_store(store: Store) -> None:
    """The contract of a store: whole, written once, read with its digest, nothing outside."""
    reference = store.put("fit/weights.bin", b"one")
    assert (reference.name, reference.size) == ("fit/weights.bin", 3)
    assert reference.sha256 == hashlib.sha256(b"one").hexdigest()
    assert store.get("fit/weights.bin", reference.sha256) == b"one"
    assert store.has("fit/weights.bin")
    assert not store.has("fit/other.bin")

    assert store.put("fit/weights.bin", b"one") == reference, "the same bytes again are no error"
    with pytest.raises(IntegrityError, match="weights"):
        store.put("fit/weights.bin", b"two")
    assert store.get("fit/weights.bin") == b"one"
    with pytest.raises(IntegrityError, match="changed"):
        store.get("fit/weights.bin", hashlib.sha256(b"two").hexdigest())

    with pytest.raises(StorageError, match="no fit/other.bin"):
        store.get("fit/other.bin")
    assert store.put("empty", b"").size == 0
    assert store.get("empty") == b""
    for name in HOSTILE_NAMES:
        for call in (store.get, store.has, lambda name: store.put(name, b"x")):
            with pytest.raises(StorageError, match="not the name of an artifact"):
                call(name)


def check_size_limit(small: Store) -> None:
    """A store made with `max_bytes=10` refuses more, on writing and on reading."""
    with pytest.raises(StorageError, match="at most 10"):
        small.put("large", bytes(11))
    assert not small.has("large")
    Store(small.url).put("large", bytes(11))
    with pytest.raises(StorageError, match="limit of 10"):
        small.get("large")
