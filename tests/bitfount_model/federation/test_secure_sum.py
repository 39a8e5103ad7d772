"""A secure sum is exact in Z_2^64, whoever drops out when; what it says travels as JSON and is checked."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from Crypto.Cipher import AES
from Crypto.Hash import SHA256
from Crypto.Protocol.KDF import HKDF
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from bitfount_model.errors import SecureSumError, SerializationError
from bitfount_model.federation.secure_sum import (
    Context,
    EncryptedShare,
    PublicKeys,
    UnmaskAnswer,
    default_threshold,
    unmasked_sum,
)
from bitfount_model.federation.secure_sum.masks import Mask, apply_masks
from bitfount_model.federation.secure_sum.secrets import combined, split
from tests.bitfount_model.federation.secure_rounds import Masked, Shared, context, masked, names, seeded, shared

FIVE = context(5, 3)
KEYS, SHARES, MASKED, UNMASK, NEVER = range(5)  # before which step a pod drops
SUM = NEVER  # the step that only pods that never drop come to


def big_sum(vectors: list[np.ndarray]) -> list[int]:
    """The oracle: Python's own integers."""
    return [sum(words) % 2**64 for words in zip(*(vector.tolist() for vector in vectors), strict=True)]


def random_words(generator: random.Random, size: int) -> np.ndarray:
    return np.array([generator.getrandbits(64) for _ in range(size)], dtype=np.uint64)


# --- exact, or refused ------------------------------------------------------------------------------------------------


VECTORS = {name: random_words(random.Random(name), 7) for name in FIVE.pods}


@lru_cache(None)
def shared_by(pods: tuple[str, ...], made: Context = FIVE) -> Shared:
    return shared(made, pods)


@lru_cache(None)
def masked_by(keys: tuple[str, ...], shares: tuple[str, ...], sends: tuple[str, ...]) -> Masked:
    return masked(shared_by(keys), {name: VECTORS[name] for name in sends}, shares)


@lru_cache(None)
def answers_of(keys: tuple[str, ...], shares: tuple[str, ...], sends: tuple[str, ...]) -> dict[str, UnmaskAnswer]:
    return masked_by(keys, shares, sends).answers(sends)


def ends(fates: tuple[int, ...]) -> tuple[int, list[int] | None]:
    """Runs a round: the step that was refused, or that nobody was left for, and None; or NEVER + 1 and the sum."""
    keys, shares, sends, answer = (
        tuple(name for name, fate in zip(FIVE.pods, fates, strict=True) if fate > step)
        for step in (KEYS, SHARES, MASKED, UNMASK)
    )
    step = SHARES
    try:
        if not keys or not shared_by(keys):
            return step, None
        step = MASKED
        if not shares or not masked_by(keys, shares, shares):
            return step, None
        step = UNMASK
        if not sends or not (found := answers_of(keys, shares, sends)):
            return step, None
        step = SUM
        total = masked_by(keys, shares, sends).sum(sends, [found[name] for name in answer])
    except SecureSumError:
        return step, None
    return NEVER + 1, total.tolist()


def predicted(fates: tuple[int, ...]) -> int:
    """The first step that fewer than three pods came to."""
    return next((step for step in (SHARES, MASKED, UNMASK, SUM) if sum(fate >= step for fate in fates) < 3), NEVER + 1)


def test_five_pods_dropping_at_any_time_give_the_exact_sum_or_a_refusal(
    record_property: Callable[[str, object], None],
) -> None:
    found: Counter[str] = Counter()
    for fates in itertools.product((KEYS, SHARES, MASKED, UNMASK, NEVER), repeat=5):
        step, total = ends(fates)
        assert step == predicted(fates), fates
        if total is not None:
            assert total == big_sum(
                [VECTORS[name] for name, fate in zip(FIVE.pods, fates, strict=True) if fate > MASKED]
            )
        found["refused" if total is None else "exact"] += 1
    # Exact if three or more never drop: 5 choose 3 with two pods at 4 other times, 5 choose 4 with one, and all.
    assert found == {"exact": 10 * 4**2 + 5 * 4 + 1, "refused": 3125 - 181}
    record_property(
        "figure",
        f"5 pods, threshold 3: {found.total():,} patterns of dropping out, {found['exact']:,} exact, {found['refused']:,} refused,"
        " 0 wrong",
    )


def test_random_sums_of_3_to_16_pods_are_those_of_big_integers(record_property: Callable[[str, object], None]) -> None:
    generator = random.Random(1)
    sizes = list(range(3, 17)) + generator.choices(range(3, 17), weights=[1 / n**3 for n in range(3, 17)], k=986)
    for number in sizes:
        made = context(number, generator.randint(number // 2 + 1, number))
        left = list(made.pods)
        steps = []
        for _ in range(4):
            left = sorted(generator.sample(left, generator.randint(made.threshold, len(left))))
            steps.append(left)
        keys, shares, sends, answer = steps
        size = generator.randint(1, 20)
        vectors = {name: random_words(generator, size) for name in sends}
        round_ = masked(shared_by(tuple(keys), made), vectors, shares)
        answers = round_.answers(sends)
        total = round_.sum(sends, [answers[name] for name in answer])
        assert total.tolist() == big_sum(list(vectors.values()))
    record_property("figure", f"{len(sizes):,} random sums of 3 to 16 pods equal sums of Python's integers")


@pytest.mark.parametrize("size", [1, 2, 8191, 8192, 8193, 3 * 8192, 20_001])
def test_vectors_of_any_length_around_a_chunk_are_summed_and_left_as_they_are(size: int) -> None:
    vectors = {
        name: np.random.default_rng(place).integers(2**64, size=size, dtype=np.uint64)
        for place, name in enumerate(FIVE.pods)
    }
    before = {name: vector.copy() for name, vector in vectors.items()}
    round_ = masked(shared_by(FIVE.pods), {name: vectors[name] for name in FIVE.pods[1:]})
    sent = {name: vector.copy() for name, vector in round_.vectors.items()}
    total = round_.sum(FIVE.pods[1:], round_.answers(FIVE.pods[1:]).values())
    assert np.array_equal(total, np.add.reduce([vectors[name] for name in FIVE.pods[1:]]))
    assert all(np.array_equal(vectors[name], before[name]) for name in FIVE.pods)
    assert all(np.array_equal(round_.vectors[name], sent[name]) for name in sent)


def test_vectors_are_read_one_at_a_time() -> None:
    vector = np.arange(10**6, dtype=np.uint64)
    round_ = masked(shared_by(FIVE.pods), dict.fromkeys(FIVE.pods, vector))
    answers = list(round_.answers(FIVE.pods).values())
    tracemalloc.start()
    try:
        read = ((name, round_.vectors[name].copy()) for name in FIVE.pods)
        total = unmasked_sum(FIVE, round_.shared.roster, read, answers)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.array_equal(total, 5 * vector)
    assert peak < 2.5 * vector.nbytes


# --- the bytes, by other libraries ------------------------------------------------------------------------------------


def derived(made: Context, label: str, secret: bytes, *between: str) -> bytes:
    """HKDF by PyCryptodome."""
    info = json.dumps(["bitfount secure sum 1", label, *between], separators=(",", ":")).encode()
    return HKDF(secret, 32, bytes.fromhex(made.digest), SHA256, context=info)


def stream(key: bytes, size: int) -> np.ndarray:
    """AES-256-CTR by PyCryptodome."""
    cipher = AES.new(key, AES.MODE_CTR, nonce=b"", initial_value=0)
    return np.frombuffer(cipher.encrypt(bytes(8 * size)), dtype="<u8")


def test_a_masked_vector_is_what_the_protocol_says() -> None:
    made, size = context(3, 2), 10_000
    vector = np.arange(size, dtype=np.uint64)
    found = masked(shared(made, seed="golden"), dict.fromkeys(made.pods, vector)).vectors

    keys, self_masks = {}, {}
    for name in made.pods:
        randomness = seeded(f"golden {name}")
        randomness(32)  # the key that shares are encrypted to
        keys[name] = X25519PrivateKey.from_private_bytes(derived(made, "masking key", randomness(16), name))
        self_masks[name] = stream(derived(made, "self mask", randomness(16), name), size)
    public = {name: key.public_key().public_bytes_raw() for name, key in keys.items()}
    for name in made.pods:
        want = vector + self_masks[name]
        for other in set(made.pods) - {name}:
            first, second = sorted((name, other))
            agreed = keys[name].exchange(X25519PublicKey.from_public_bytes(public[other]))
            key = derived(made, "pairwise mask", agreed, first, second, public[first].hex(), public[second].hex())
            want = want + stream(key, size) if name == first else want - stream(key, size)
        assert np.array_equal(found[name], want)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [0, 1, 8191, 8192, 50_001])
def test_threads_take_their_parts_of_one_key_stream(size: int, threads: int) -> None:
    keys = [bytes([number]) * 32 for number in range(3)]
    words = np.arange(size, dtype=np.uint64)
    apply_masks(
        words, [Mask(keys[0], added=True), Mask(keys[1], added=False), Mask(keys[2], added=True)], threads=threads
    )
    want = np.arange(size, dtype=np.uint64) + stream(keys[0], size) - stream(keys[1], size) + stream(keys[2], size)
    assert np.array_equal(words, want)


def test_the_same_randomness_gives_the_same_keys_and_masked_vectors() -> None:
    rounds = [masked(shared(FIVE, seed="again"), VECTORS) for _ in range(2)]
    other = masked(shared(FIVE, seed="other"), VECTORS)
    assert rounds[0].shared.roster == rounds[1].shared.roster != other.shared.roster
    for name in FIVE.pods:
        assert np.array_equal(rounds[0].vectors[name], rounds[1].vectors[name])
        assert not np.any(rounds[0].vectors[name] == other.vectors[name])


def test_a_context_is_known_by_the_bytes_of_all_its_parts() -> None:
    text = '["bitfount secure sum 1","context","job",1,"' + "0" * 64 + '","' + "1" * 64 + '",["a","b","c"],2]'
    made = Context("job", 1, "0" * 64, "1" * 64, ("c", "a", "b"), 2)
    assert made.digest == hashlib.sha256(text.encode()).hexdigest()
    assert made.pods == ("a", "b", "c")
    changes: list[dict[str, Any]] = [
        {"job_id": "other"}, {"round_number": 2}, {"base_digest": "2" * 64}, {"layout_digest": "2" * 64},
        {"pods": ("a", "b", "d")}, {"pods": ("a", "b", "c", "d"), "threshold": 3}, {"threshold": 3},
    ]  # fmt: skip
    assert len({made.digest, *(replace(made, **change).digest for change in changes)}) == 8


def test_shares_of_a_seed_give_it_back_from_any_threshold_of_them_and_from_no_fewer() -> None:
    seed = bytes(range(16))
    shares = split(FIVE, seed)
    for number, back in ((2, False), (3, True)):
        for chosen in itertools.combinations(FIVE.pods, number):
            assert (combined(FIVE, {name: shares[name] for name in chosen}) == seed) is back
    by_place = [(place, shares[name]) for place, name in enumerate(FIVE.pods, start=1)]
    assert Shamir.combine(by_place[1:4]) == seed


# --- what a sum wants -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pods", "threshold"), [(3, 3), (4, 3), (5, 4), (6, 5), (9, 7), (10, 7), (16, 11)])
def test_the_default_threshold_is_two_thirds_and_one(pods: int, threshold: int) -> None:
    assert default_threshold(pods) == threshold
    assert context(pods).threshold == threshold


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pods": ("a", "b")}, "there are 2 pods, want at least 3"),
        ({"pods": ()}, "there are 0 pods, want at least 3"),
        ({"pods": ("a", "b", "a", "c")}, "pod 'a' is named twice"),
        ({"pods": ("a", "b", "")}, "name of a pod is '', want a text"),
        ({"threshold": 2}, "the threshold is 2, want 3 to 5 with 5 pods (usually 4)"),
        ({"threshold": 6}, "the threshold is 6, want 3 to 5"),
        ({"threshold": True}, "the threshold is True"),
        ({"threshold": 3.0}, "the threshold is 3.0"),
        ({"pods": names(6), "threshold": 3}, "the threshold is 3, want 4 to 6"),
        ({"round_number": 0}, "the round is 0, want a whole number from 1"),
        ({"round_number": True}, "the round is True"),
        ({"base_digest": "0" * 63}, "base_digest is"),
        ({"base_digest": "0" * 64 + "\n"}, "base_digest is"),
        ({"layout_digest": "F" * 64}, "layout_digest is"),
        ({"job_id": ""}, "job's id is '', want a text"),
    ],
)
def test_a_context_that_could_protect_nobody_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(SecureSumError, match=re.escape(said)):
        replace(FIVE, **change)


@pytest.mark.parametrize("pods", [0, 1, 2])
def test_there_is_no_threshold_below_three_pods(pods: int) -> None:
    with pytest.raises(SecureSumError, match="want at least 3"):
        default_threshold(pods)


# --- messages ---------------------------------------------------------------------------------------------------------


@lru_cache(None)
def messages() -> tuple[PublicKeys | EncryptedShare | UnmaskAnswer, ...]:
    round_ = masked(shared_by(FIVE.pods), VECTORS)
    answer = round_.pod(FIVE.pods[0]).unmask(FIVE.pods[:4], round_.shares_for(FIVE.pods[0]))
    return round_.shared.roster[FIVE.pods[0]], round_.shared.sent[0], answer


def test_messages_come_back_from_json_as_they_were() -> None:
    for message in messages():
        assert type(message).from_json(json.loads(json.dumps(message.to_json()))) == message


def test_damaged_messages_are_refused_and_all_faults_are_named() -> None:
    for message in messages():
        good = message.to_json()
        for name, value in good.items():
            for wrong in (
                None,
                3,
                "",
                "zz",
                ["x"],
                {"x": "00"},
                {"": "00" * 16},
                value.upper() + "\n" if isinstance(value, str) else "x",
            ):
                if name in ("pod", "sender", "receiver") and wrong not in (None, 3, ""):
                    continue
                with pytest.raises(SerializationError, match=name):
                    type(message).from_json({**good, name: wrong})
            with pytest.raises(SerializationError, match=name):
                type(message).from_json({key: each for key, each in good.items() if key != name})
        with pytest.raises(SerializationError, match="'surplus'.*Unknown field"):
            type(message).from_json({**good, "surplus": 1})
        for nothing in (None, [], "text", 3):
            with pytest.raises(SerializationError):
                type(message).from_json(nothing)
