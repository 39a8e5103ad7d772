"""A secure sum tells the sum and nothing else: masked vectors look random, and no request unmasks a single pod."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from bitfount_model.errors import SecureSumError
from bitfount_model.federation.fixed_point import Layout
from bitfount_model.federation.secure_sum import (
    EncryptedShare,
    PublicKeys,
    SecurePod,
    UnmaskAnswer,
    checked_roster,
    unmasked_sum,
)
from bitfount_model.federation.secure_sum.roster import signed_keys
from tests.bitfount_model.federation.secure_rounds import (
    Masked,
    Shared,
    context,
    identity,
    masked,
    pins,
    seeded,
    shared,
)

FIVE = context(5, 3)
A, B, C, D, E = FIVE.pods
LIMIT = stats.chi2.isf(0.001, 255)  # 330.5
SIZE = 1 << 17


@pytest.fixture(scope="module")
def round_() -> Shared:
    """Five pods that have shared, with secrets that are known."""
    return shared(FIVE, seed="attack")


@pytest.fixture(scope="module")
def small(round_: Shared) -> Masked:
    """The same after four of them have masked three words: E dropped."""
    return masked(round_, {name: np.arange(3, dtype=np.uint64) for name in (A, B, C, D)})


# --- nothing can be read from a masked vector -------------------------------------------------------------------------


def unevenness(words: np.ndarray) -> float:
    """Chi-square of the words' bytes against 256 equal bins."""
    return float(stats.chisquare(np.bincount(words.view(np.uint8), minlength=256)).statistic)


def neighbours(words: np.ndarray) -> np.ndarray:
    return words[1:] - words[:-1]


def test_the_limit_is_that_of_one_in_a_thousand() -> None:
    assert round(LIMIT, 1) == 330.5


@pytest.mark.parametrize("value", [0, 1, 2**64 - 1])
def test_a_constant_vector_is_as_even_as_chance_once_it_is_masked(
    round_: Shared, value: int, record_property: Callable[[str, object], None]
) -> None:
    vector = np.full(SIZE, value, dtype=np.uint64)
    vectors = masked(round_, dict.fromkeys(FIVE.pods, vector)).vectors.values()
    found = [max(unevenness(words), unevenness(neighbours(words))) for words in vectors]
    assert max(found) < LIMIT
    record_property(
        "figure", f"constant {value}: chi-square of words and neighbours at most {max(found):.1f}, limit {LIMIT:.1f}"
    )


def test_an_encoded_update_is_as_even_as_chance_once_it_is_masked(round_: Shared) -> None:
    base = {"w": torch.zeros(SIZE)}
    layout = Layout(base, pods=5, total_weight=1000)
    words = layout.encode({"w": torch.full((SIZE,), 0.25)}, 200).words
    found = masked(round_, dict.fromkeys(FIVE.pods, words)).vectors[A]
    assert unevenness(found) < LIMIT
    assert unevenness(neighbours(found)) < LIMIT


def test_the_measure_finds_vectors_that_are_not_masked_or_masked_by_one_number() -> None:
    constant = np.full(SIZE, 7, dtype=np.uint64)
    one_number = constant + np.uint64(0x9E3779B97F4A7C15)
    noise = np.random.default_rng(0).integers(2**64, size=SIZE, dtype=np.uint64)
    repeated = np.resize(noise[:8192], SIZE)  # a stream that starts again with every chunk
    for words in (constant, one_number, repeated):
        assert unevenness(words) > LIMIT or unevenness(neighbours(words)) > LIMIT
    assert unevenness(noise) < LIMIT


def test_who_knows_one_element_recovers_no_other_one(round_: Shared) -> None:
    vector = np.random.default_rng(1).integers(2**64, size=SIZE, dtype=np.uint64)
    found = masked(round_, dict.fromkeys(FIVE.pods, vector)).vectors[A]
    mask_of_first = found[0] - vector[0]
    assert np.flatnonzero(found - mask_of_first == vector).tolist() == [0]
    assert len(np.unique(found - vector)) == SIZE


def test_no_word_of_a_mask_comes_again_in_another_round_or_at_another_pod() -> None:
    zeros = np.zeros(4096, dtype=np.uint64)
    contexts = [FIVE, replace(FIVE, round_number=2), replace(FIVE, job_id="other"), replace(FIVE, base_digest="2" * 64)]
    # Even pods that draw the same secrets again have other masks.
    rounds = [masked(shared(made, seed="same"), dict.fromkeys(FIVE.pods, zeros)) for made in contexts]
    words = np.concatenate([vector for each in rounds for vector in each.vectors.values()])
    assert len(np.unique(words)) == len(words) == 4 * 5 * 4096


def test_the_vectors_of_all_but_one_pod_tell_nothing_of_the_last(round_: Shared) -> None:
    zeros = np.zeros(SIZE, dtype=np.uint64)
    vectors = masked(round_, dict.fromkeys(FIVE.pods, zeros)).vectors
    for number in range(1, 6):
        for chosen in itertools.combinations(FIVE.pods, number):
            assert unevenness(np.add.reduce([vectors[name] for name in chosen])) < LIMIT


# --- pods refuse what could unmask one of them ------------------------------------------------------------------------


def test_a_pod_answers_for_one_list_of_survivors(small: Masked) -> None:
    pod = small.pod(A)
    shares = small.shares_for(A)
    first = pod.unmask([A, B, C, D], shares)
    for other in ([A, B, C], [A, B, D], [A, B, C, D, E]):
        with pytest.raises(SecureSumError, match="it has answered for the survivors"):
            pod.unmask(other, shares)
    assert pod.unmask([D, C, B, A], shares) == first


def test_an_answer_never_has_both_shares_of_a_pod(small: Masked) -> None:
    for number in (3, 4, 5):
        for survivors in itertools.combinations(FIVE.pods, number):
            if A in survivors:
                answer = small.pod(A).unmask(survivors, small.shares_for(A))
                assert set(answer.self_masks) == set(survivors)
                assert set(answer.masking_keys) == set(FIVE.pods) - set(survivors)


def test_whoever_asks_pods_for_different_lists_cannot_unmask_one(round_: Shared) -> None:
    """For every victim, and every way to tell pods that it survived or dropped: not both seeds come back."""
    ready = masked(round_, dict.fromkeys(FIVE.pods, np.arange(3, dtype=np.uint64)))
    for victim in FIVE.pods:
        others = tuple(name for name in FIVE.pods if name != victim)
        for told_dropped in itertools.product((False, True), repeat=4):
            self_masks, masking_keys = 1, 0  # the victim's own answer: it is never told that it dropped
            for name, dropped in zip(others, told_dropped, strict=True):
                answer = ready.pod(name).unmask(others if dropped else FIVE.pods, ready.shares_for(name))
                self_masks += victim in answer.self_masks
                masking_keys += victim in answer.masking_keys
            assert min(self_masks, masking_keys) < FIVE.threshold


UNMASK: dict[str, tuple[list[str], str]] = {
    "under the threshold": ([A, B], "there are 2 pods, want at least 3 of 5"),
    "nobody": ([], "there are 0 pods, want at least 3"),
    "one pod several times": ([A, B, B], "pod 'pod-01' is there twice"),
    "an unknown pod": ([A, B, "stranger"], "pod 'stranger' is not one of this sum"),
    "without the pod that is asked": ([B, C, D], "it is not among them"),
    "a pod that did not share": ([A, B, C, D, E], "['pod-04'] have not shared"),
}


@pytest.mark.parametrize("case", UNMASK)
def test_a_list_of_survivors_that_could_unmask_one_is_refused(round_: Shared, case: str) -> None:
    survivors, said = UNMASK[case]
    pod = round_.pod(A)
    pod.masked(np.arange(3, dtype=np.uint64), [A, B, C, D])
    shares = round_.shares_for(A, [B, C, D])
    refused(lambda: pod.unmask(survivors, shares), said)
    assert set(pod.unmask([A, B, C], shares).masking_keys) == {D}  # nothing was used up


def test_nothing_is_unmasked_before_it_is_masked(round_: Shared) -> None:
    fresh = SecurePod(FIVE, A, identity(A))
    for pod in (fresh, round_.pod(A)):
        refused(lambda pod=pod: pod.unmask([A, B, C], round_.shares_for(A, [B, C])), "it has masked no vector")


SENDERS: dict[str, tuple[list[str], str]] = {
    "under the threshold": ([A, B], "there are 2 pods, want at least 3"),
    "one pod several times": ([A, B, B], "is there twice"),
    "an unknown pod": ([A, B, "stranger"], "is not one of this sum"),
    "without the pod that is asked": ([B, C, D], "it is not among them"),
    "a pod without keys": ([A, B, C, E], "['pod-04'] have not published keys"),
}


@pytest.mark.parametrize("case", SENDERS)
def test_a_vector_is_not_masked_among_doubtful_pods(case: str) -> None:
    senders, said = SENDERS[case]
    pod = shared(FIVE, [A, B, C, D]).pod(A)
    vector = np.arange(3, dtype=np.uint64)
    refused(lambda: pod.masked(vector, senders), said)
    pod.masked(vector, [A, B, C])


def test_a_pod_masks_one_vector_and_only_after_it_shared(round_: Shared) -> None:
    vector = np.arange(3, dtype=np.uint64)
    refused(lambda: SecurePod(FIVE, A, identity(A)).masked(vector, FIVE.pods), "it has not shared its seeds yet")
    pod = round_.pod(A)
    pod.masked(vector, FIVE.pods)
    for again, senders in ((vector, FIVE.pods), (vector + np.uint64(1), FIVE.pods), (vector, [A, B, C])):
        refused(lambda again=again, senders=senders: pod.masked(again, senders), "it has masked a vector in this round")


@pytest.mark.parametrize(
    "vector",
    [np.zeros(3), np.zeros(3, dtype=np.int64), np.zeros((2, 2), dtype=np.uint64), np.zeros(0, dtype=np.uint64), [1, 2]],
    ids=["floats", "signed", "a matrix", "empty", "a list"],
)
def test_what_is_no_vector_of_words_is_not_masked(round_: Shared, vector: Any) -> None:
    refused(lambda: round_.pod(A).masked(vector, FIVE.pods), "want uint64 (words,)")


# --- pods refuse doubtful keys ----------------------------------------------------------------------------------------


def resigned(keys: PublicKeys, **changes: bytes) -> PublicKeys:
    """Keys that their own pod changed and signed."""
    parts = {"sharing": keys.sharing, "masking": keys.masking, "commitment": keys.commitment, **changes}
    return signed_keys(FIVE, keys.pod, identity(keys.pod), **parts)


Keys = list[PublicKeys]
ROSTERS: dict[str, tuple[Callable[[Keys], Keys], str]] = {
    "under the threshold": (lambda k: k[:2], "there are 2 pods, want at least 3"),
    "nobody": (lambda k: [], "there are 0 pods"),
    "a pod twice": (lambda k: [*k, k[1]], "pod 'pod-01' is there twice"),
    "a pod twice, with other keys": (lambda k: [*k, SecurePod(FIVE, B, identity(B)).keys()], "is there twice"),
    "without its own": (lambda k: k[1:], "its own are not among them as it published them"),
    "with others for its own": (
        lambda k: [SecurePod(FIVE, A, identity(A)).keys(), *k[1:]],
        "its own are not among them as it published them",
    ),
    "of an unknown pod": (lambda k: [*k, replace(k[1], pod="stranger")], "pod 'stranger' is not one of this sum"),
    "signed by someone else": (lambda k: [*k[:4], SecurePod(FIVE, E, identity(A)).keys()], "did not sign them"),
    "of a pod under another one's name": (lambda k: [*k[:4], replace(k[3], pod=E)], "did not sign them"),
    "with another sharing key": (lambda k: [*k[:4], replace(k[4], sharing=b"x" * 32)], "did not sign them"),
    "with another masking key": (lambda k: [*k[:4], replace(k[4], masking=b"x" * 32)], "did not sign them"),
    "with another commitment": (lambda k: [*k[:4], replace(k[4], commitment=b"x" * 32)], "did not sign them"),
    "with a signature of nothing": (lambda k: [*k[:4], replace(k[4], signature=bytes(64))], "did not sign them"),
    "with a copied masking key": (
        lambda k: [*k[:4], resigned(k[4], masking=k[3].masking)],
        "masking of pod 'pod-04' is a copy of masking of pod 'pod-03'",
    ),
    "with a copied sharing key": (lambda k: [*k[:4], resigned(k[4], sharing=k[3].sharing)], "is a copy of sharing"),
    "with one key for both": (lambda k: [*k[:4], resigned(k[4], masking=k[4].sharing)], "is a copy of sharing of pod"),
    "with a key that everybody agrees with": (
        lambda k: [*k[:4], resigned(k[4], sharing=bytes(32))],
        "the key of pod 'pod-04' is no usable X25519 key",
    ),
}


@pytest.mark.parametrize("case", ROSTERS)
def test_no_share_is_sent_for_doubtful_keys(case: str) -> None:
    change, said = ROSTERS[case]
    pods = {name: SecurePod(FIVE, name, identity(name)) for name in FIVE.pods}
    keys = [pod.keys() for pod in pods.values()]
    refused(lambda: pods[A].shares(change(keys), pins(FIVE.pods)), said)
    assert len(pods[A].shares(keys, pins(FIVE.pods))) == 4


def test_a_masking_key_that_everybody_agrees_with_masks_nothing() -> None:
    pods = {name: SecurePod(FIVE, name, identity(name)) for name in FIVE.pods}
    keys = [pod.keys() for pod in pods.values()]
    keys[4] = resigned(keys[4], masking=bytes(32))
    pods[A].shares(keys, pins(FIVE.pods))
    refused(lambda: pods[A].masked(np.arange(3, dtype=np.uint64), FIVE.pods), "no usable X25519 key")


@pytest.mark.parametrize("pinned", [None, b"", b"x" * 32, bytes(32), identity(B).public_key().public_bytes_raw()])
def test_no_share_is_sent_to_pods_whose_identity_is_not_pinned(pinned: bytes | None) -> None:
    known = {name: key for name, key in pins(FIVE.pods).items() if name != E}
    pods = [SecurePod(FIVE, name, identity(name)) for name in FIVE.pods]
    keys = [pod.keys() for pod in pods]
    refused(lambda: pods[0].shares(keys, known if pinned is None else {**known, E: pinned}), "pod 'pod-04'")


def test_a_pod_shares_with_one_set_of_keys(round_: Shared) -> None:
    pod, keys = round_.pod(A), list(round_.roster.values())
    assert pod.shares(reversed(keys), pins(FIVE.pods)) == tuple(share for share in round_.sent if share.sender == A)
    refused(lambda: pod.shares(keys[:4], pins(FIVE.pods)), "it has shared its seeds in this round")


OTHERS: dict[str, dict[str, Any]] = {
    "another round": {"round_number": 2},
    "another job": {"job_id": "other"},
    "other global parameters": {"base_digest": "2" * 64},
    "another layout": {"layout_digest": "2" * 64},
    "another threshold": {"threshold": 4},
    "other pods": {"pods": (*FIVE.pods[:4], "pod-05")},
}


@pytest.mark.parametrize("case", OTHERS)
def test_pods_that_were_given_different_things_share_nothing(case: str) -> None:
    """Also where the other context is written over: the signature, the share and the masks are bound to it."""
    other = replace(FIVE, **OTHERS[case])
    mine = [SecurePod(FIVE, name, identity(name)) for name in FIVE.pods]
    theirs = SecurePod(other, B, identity(B)).keys()
    keys = [pod.keys() for pod in mine]
    keys[1] = theirs
    refused(lambda: mine[0].shares(keys, pins(FIVE.pods)), "published them for another sum")
    keys[1] = replace(theirs, context=FIVE.digest)
    refused(lambda: mine[0].shares(keys, pins(FIVE.pods)), "did not sign them")


# --- pods refuse doubtful shares --------------------------------------------------------------------------------------


Shares = list[EncryptedShare]


def flipped(share: EncryptedShare, place: int) -> EncryptedShare:
    changed = bytearray(share.ciphertext)
    changed[place] ^= 1
    return replace(share, ciphertext=bytes(changed))


def from_another_round(shares: Shares) -> Shares:
    other = shared(replace(FIVE, round_number=2), seed="attack")
    return [*shares[:3], replace(other.shares_for(A, [E])[0], context=FIVE.digest)]


CIPHERTEXTS: dict[str, tuple[Callable[[Shares], Shares], str]] = {
    "one is missing": (lambda s: s[:3], "it was given the shares of"),
    "one is there twice": (lambda s: [*s, s[0]], "it was given the shares of"),
    "one of a stranger": (lambda s: [*s, replace(s[0], sender="stranger")], "it was given the shares of"),
    "one for another pod": (lambda s: [*s[:3], replace(s[3], receiver=B)], "are for another pod or another sum"),
    "one for another sum": (lambda s: [*s[:3], replace(s[3], context="2" * 64)], "are for another pod or another sum"),
    "one of another pod": (lambda s: [*s[:3], replace(s[2], sender=E)], "pod 'pod-04' for pod 'pod-00' cannot be read"),
    "one of another round, written over": (from_another_round, "pod 'pod-04' for pod 'pod-00' cannot be read"),
    "one cut short": (lambda s: [*s[:3], replace(s[3], ciphertext=s[3].ciphertext[:-1])], "cannot be read"),
    "an empty one": (lambda s: [*s[:3], replace(s[3], ciphertext=b"")], "cannot be read"),
    **{
        f"one with byte {place} changed": (
            lambda s, place=place: [*s[:3], flipped(s[3], place)],  # type: ignore[misc]
            "cannot be read",
        )
        for place in range(60)
    },
}


@pytest.mark.parametrize("case", CIPHERTEXTS)
def test_no_share_is_handed_out_for_doubtful_ones(round_: Shared, case: str) -> None:
    change, said = CIPHERTEXTS[case]
    pod, shares = round_.pod(A), round_.shares_for(A, [B, C, D, E])
    pod.masked(np.arange(3, dtype=np.uint64), FIVE.pods)
    refused(lambda: pod.unmask([A, B, C], change(shares)), said)
    assert set(pod.unmask([A, B, C], shares).masking_keys) == {D, E}


# --- the server refuses what could be a wrong sum ---------------------------------------------------------------------


def altered(answer: UnmaskAnswer, kind: str, pod: str, share: bytes | None) -> UnmaskAnswer:
    """An answer with another share of a pod, or without one."""
    shares = {**getattr(answer, kind), pod: share}
    return replace(answer, **{kind: {name: each for name, each in shares.items() if each is not None}})


Answers = list[UnmaskAnswer]
ANSWERS: dict[str, tuple[Callable[[Answers], Answers], str]] = {
    "under the threshold": (lambda a: a[:2], "there are 2 pods, want at least 3"),
    "none": (lambda a: [], "there are 0 pods, want at least 3"),
    "one pod's twice": (lambda a: [a[0], a[0], a[1]], "is there twice"),
    "a stranger's": (lambda a: [*a, replace(a[0], pod="stranger")], "pod 'stranger' is not one of this sum"),
    "of a pod that did not survive": (lambda a: [*a[:3], replace(a[3], pod=E)], "pod 'pod-04' answers, but is no surv"),
    "for another sum": (lambda a: [*a[:3], replace(a[3], context="2" * 64)], "['pod-03'] are for another sum"),
    "that do not agree": (lambda a: [*a[:3], altered(a[3], "self_masks", D, None)], "do not agree on the pods"),
    "with both shares of a pod": (
        lambda a: [altered(each, "self_masks", E, bytes(16)) for each in a],
        "pod 'pod-04' is there as a survivor and as dropped",
    ),
    "of a pod without keys": (
        lambda a: [altered(each, "masking_keys", "stranger", bytes(16)) for each in a],
        "pod 'stranger' has published no keys",
    ),
    "with a wrong share of a self mask": (
        lambda a: [altered(a[0], "self_masks", B, bytes(16)), *a[1:]],
        "do not give back the self mask that pod 'pod-01' published",
    ),
    "with a wrong share of a masking key": (
        lambda a: [altered(a[0], "masking_keys", E, bytes(16)), *a[1:]],
        "do not give back the masking key that pod 'pod-04' published",
    ),
    "with shares of two pods exchanged": (
        lambda a: [
            altered(altered(a[0], "self_masks", B, a[0].self_masks[C]), "self_masks", C, a[0].self_masks[B]),
            *a[1:],
        ],
        "do not give back the self mask",
    ),
    "of two pods exchanged": (
        lambda a: [replace(a[0], pod=D), *a[1:3], replace(a[3], pod=A)],
        "do not give back the self mask",
    ),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_doubtful_answers_give_no_sum(small: Masked, case: str) -> None:
    change, said = ANSWERS[case]
    answers = list(small.answers([A, B, C, D]).values())
    refused(lambda: small.sum([A, B, C, D], change(answers)), said)
    assert small.sum([A, B, C, D], answers).tolist() == [0, 4, 8]


Vectors = list[tuple[str, Any]]
VECTORS: dict[str, tuple[Callable[[Vectors], Vectors], str]] = {
    "one is missing": (lambda v: v[:3], "the vectors of ['pod-03'] are missing"),
    "all are missing": (lambda v: [], "are missing"),
    "one is there twice": (lambda v: [*v, v[0]], "the vector of pod 'pod-00' came twice"),
    "one of a dropped pod": (lambda v: [*v, (E, v[0][1])], "the vector of pod 'pod-04' came, but the answers"),
    "one of a stranger": (lambda v: [*v, ("stranger", v[0][1])], "the vector of pod 'stranger' came, but the answers"),
    "one is shorter": (lambda v: [*v[:3], (D, v[3][1][:2])], "has 2 words, that of others 3"),
    "one is of floats": (lambda v: [*v[:3], (D, v[3][1].astype(float))], "is no uint64 array (words,)"),
    "one is a matrix": (lambda v: [*v[:3], (D, v[3][1].reshape(1, 3))], "is no uint64 array (words,)"),
    "one is no array": (lambda v: [*v[:3], (D, None)], "is no uint64 array (words,)"),
}


@pytest.mark.parametrize("case", VECTORS)
def test_doubtful_vectors_give_no_sum(small: Masked, case: str) -> None:
    change, said = VECTORS[case]
    answers = list(small.answers([A, B, C, D]).values())
    vectors = change(list(small.vectors.items()))
    refused(lambda: unmasked_sum(FIVE, small.shared.roster, vectors, answers), said)


def test_a_sum_with_a_vector_that_was_masked_elsewhere_is_not_decoded(round_: Shared) -> None:
    base = {"w": torch.zeros(10)}
    layout = Layout(base, pods=5, total_weight=1000)
    words = layout.encode({"w": torch.ones(10)}, 200).words
    first = masked(round_, dict.fromkeys(FIVE.pods, words))
    other = masked(shared(replace(FIVE, round_number=2), seed="attack"), dict.fromkeys(FIVE.pods, words))
    mixed = {**first.vectors, E: other.vectors[E]}
    total = unmasked_sum(FIVE, round_.roster, mixed.items(), list(first.answers(FIVE.pods).values()))
    refused(lambda: layout.decode(total), "the weights of a sum are together")


# --- secrets are not told ---------------------------------------------------------------------------------------------


def test_no_secret_is_in_a_repr_an_error_a_log_or_a_message(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[bytes] = []

    def watched(pod: str) -> Callable[[int], bytes]:
        source = seeded(f"watched {pod}")

        def draw(size: int) -> bytes:
            told.append(source(size))
            return told[-1]

        return draw

    pods = {name: SecurePod(FIVE, name, identity(name), randomness=watched(name)) for name in FIVE.pods}
    secret = [each for each in told if each]
    keys = [pod.keys() for pod in pods.values()]
    sent = [share for pod in pods.values() for share in pod.shares(keys, pins(FIVE.pods))]
    for pod in pods.values():
        pod.masked(np.arange(3, dtype=np.uint64), FIVE.pods)
    mine = [share for share in sent if share.receiver == A]
    answer = pods[A].unmask([A, B, C], mine)
    errors = []
    for call in (
        lambda: pods[A].unmask([A, B, D], mine),
        lambda: pods[B].unmask([A, B, C], mine),
        lambda: pods[C].shares(keys[:3], pins(FIVE.pods)),
        lambda: unmasked_sum(FIVE, checked_roster(FIVE, keys, pins(FIVE.pods)), [], [answer] * 3),
    ):
        with pytest.raises(SecureSumError) as caught:
            call()
        errors.append(str(caught.value))
    shares = [*answer.self_masks.values(), *answer.masking_keys.values()]
    shown = "".join([*map(repr, pods.values()), repr(answer), *errors, caplog.text])
    sent_text = "".join(str(message.to_json()) for message in (*keys, *sent, answer))
    assert len(secret) == 15
    for value in secret:
        assert value.hex() not in shown + sent_text
        assert repr(value)[2:-1] not in shown
    for value in shares:
        assert value.hex() not in shown
        assert repr(value)[2:-1] not in shown


def test_pods_draw_their_secrets_from_the_operating_system_unless_told_otherwise() -> None:
    pods = [SecurePod(FIVE, A, identity(A)).keys() for _ in range(50)]
    for name in ("sharing", "masking", "commitment"):
        assert len({getattr(keys, name) for keys in pods}) == 50


def refused(call: Callable[[], object], said: str) -> None:
    with pytest.raises(SecureSumError) as caught:
        call()
    assert said in str(caught.value)
