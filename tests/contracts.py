"""What every adapter of a kind must do, whatever it stands on."""

from __future__ import annotations

import hashlib

import pytest

from bitfount_model.errors import IntegrityError, StorageError
from bitfount_model.files import BESIDE_BYTES
from tasks.store import Store

HOSTILE_NAMES = (
    "", ".", "..", "/", "/etc/passwd", "../up", "a/../b", "a/..", "a//b", "a/", "./a", "a/./b", "~", "~/a", ".hidden", "a/.b",
    "a\\b", "..\\a", "C:\\a", "C:a", "a:b", "a b", "a\n", "a\0b", "a\tb", "ä", "ａ", "%2e%2e/a", "a%00", "$HOME", "`id`", ";id",
    "a|b", "s3://b/a", "file:///a", "a?b", "a*", "-", "-rf", "x" * 300,
)  # fmt: skip


def check_store(store: Store) -> None:
    """The contract of a store: whole, written once, read with its digest, seen by others at once, nothing outside."""
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

    sha256 = hashlib.sha256(b"one").hexdigest()
    loaded = store.load("fit/weights.bin", sha256)
    assert bytes(loaded) == b"one"
    loaded[0] = ord("l")
    assert bytes(store.load("fit/weights.bin", sha256)) == b"one", "what is loaded belongs to the caller alone"
    with pytest.raises(IntegrityError, match="changed"):
        store.load("fit/weights.bin", hashlib.sha256(b"two").hexdigest())

    for read in (store.get, store.load):
        with pytest.raises(StorageError, match="no fit/other.bin"):
            read("fit/other.bin", sha256)
    assert store.put("empty", b"").size == 0
    assert store.get("empty") == b""
    assert store.put("passing", b"three", durable=False).sha256 == hashlib.sha256(b"three").hexdigest()
    with pytest.raises(IntegrityError, match="passing"):
        store.put("passing", b"four", durable=False)

    sha256 = hashlib.sha256(b"seven").hexdigest()
    named = store.put_named_by_digest(lambda digest: f"named/{digest}.bin", [b"se", memoryview(b"ven")])
    assert (named.name, named.sha256, named.size) == (f"named/{sha256}.bin", sha256, 5)
    assert store.get(named.name, sha256) == b"seven"
    assert store.put_named_by_digest(lambda digest: f"named/{digest}.bin", [b"seven"]) == named
    large = [bytes(BESIDE_BYTES), b"nine"]
    digested = store.put_named_by_digest(lambda digest: f"named/{digest}.bin", large)
    assert digested.sha256 == hashlib.sha256(b"".join(large)).hexdigest()
    assert bytes(store.load(digested.name, digested.sha256)) == b"".join(large)
    store.put("named/other.bin", b"eight")
    with pytest.raises(IntegrityError, match="named/other"):
        store.put_named_by_digest(lambda digest: "named/other.bin", [b"seven"], durable=False)
    with pytest.raises(StorageError, match="not the name"):
        store.put_named_by_digest(lambda digest: f"../{digest}", [b"seven"])

    other = Store(store.url)
    assert not other.has("round/1/update"), "asked before it is there"
    store.put("round/1/update", b"five")
    assert other.has("round/1/update")
    assert other.get("round/1/update") == b"five"
    other.delete("round/1/update")
    assert not store.has("round/1/update")
    with pytest.raises(StorageError, match="no round/1/update"):
        store.get("round/1/update")
    store.delete("round/1/update")
    assert store.put("round/1/update", b"six").size == 3, "a name is free again after it was deleted"
    assert other.get("round/1/update") == b"six"

    assert not store.has("fit"), "a folder is no artifact"
    for name in ("fit", "never", "never/there", "fit/weights.bin/below"):
        store.delete(name)
    assert store.get("fit/weights.bin") == b"one"
    for name in HOSTILE_NAMES:
        for call in (store.get, store.has, store.delete, lambda name: store.put(name, b"x")):
            with pytest.raises(StorageError, match="not the name of an artifact"):
                call(name)


def check_size_limit(small: Store) -> None:
    """A store made with `max_bytes=10` refuses more, on writing and on reading."""
    with pytest.raises(StorageError, match="at most 10"):
        small.put("large", bytes(11))
    with pytest.raises(StorageError, match="at most 10"):
        small.put_named_by_digest(lambda digest: digest, [bytes(10), bytes(1)])
    assert not small.has("large")
    Store(small.url).put("large", bytes(11))
    for read in (small.get, small.load):
        with pytest.raises(StorageError, match="limit of 10"):
            read("large", hashlib.sha256(bytes(11)).hexdigest())
