"""A weights file cannot harm: hostile files are refused by name, flipped bits are refused or found by the digest."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitfount_model.codec import MAX_HEADER_BYTES, decode, encode
from bitfount_model.errors import ParameterError, WeightsFileError

GOOD = {
    "0.weight": torch.arange(6.0).reshape(2, 3) / 7,
    "0.bias": torch.tensor([0.25, -3.5]),
    "1.num_batches_tracked": torch.tensor(12),
    "1.ready": torch.tensor([True, False]),
}


def raw(header: bytes, values: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + values


def built(header: object, values: bytes = b"") -> bytes:
    return raw(json.dumps(header).encode(), values)


def tensor(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8), **more: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def pickled(marker: Path) -> bytes:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            return Path.touch, (marker,)

    return pickle.dumps({"w": Bomb()})


def torch_saved(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(GOOD, buffer)
    return buffer.getvalue()


def numpy_saved(marker: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def zipped(marker: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../escape", b"x")
    return buffer.getvalue()


HOSTILE: dict[str, tuple[Callable[[Path], bytes], str]] = {
    # other formats
    "a pickle that runs code": (pickled, "it is a Python pickle"),
    "a torch.save file": (torch_saved, "it is a zip archive, as torch.save writes it"),
    "a zip archive with a climbing path": (zipped, "it is a zip archive"),
    "a NumPy file": (numpy_saved, "it is a NumPy array file"),
    "a gzip bomb": (lambda _: gzip.compress(bytes(10**7)), "it is a gzip archive"),
    "nothing": (lambda _: b"", "it has 0 bytes"),
    "text": (lambda _: b"<html>not found</html>", "claims"),
    # headers
    "a header longer than the file": (lambda _: raw(b"{}")[:8] + b"{", "cut short"),
    "a header of 2^63 bytes": (lambda _: b"\xff" * 7 + b"\x7f" + b"{}", "its header claims 9223372036854775807 bytes"),
    "a header above the limit": (
        lambda _: raw(b"{" + b" " * MAX_HEADER_BYTES + b"}"),
        f"at most {MAX_HEADER_BYTES} are read",
    ),
    "a header that is a list": (lambda _: built([1]), "does not begin with '{'"),
    "a header that is not JSON": (lambda _: raw(b"{w: 1}"), "is not JSON in UTF-8"),
    "a header that is not UTF-8": (lambda _: raw(b'{"\xff": 1}'), "is not JSON in UTF-8"),
    "a header with text after it": (lambda _: raw(b"{} {}"), "is not JSON in UTF-8"),
    "a header nested too deeply": (
        lambda _: raw(b'{"w":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
        "nested too deeply",
    ),
    "a number of ten thousand digits": (lambda _: raw(b'{"w":' + b"9" * 10_000 + b"}"), "is not JSON in UTF-8"),
    "NaN in the header": (lambda _: raw(b'{"w":NaN}'), "has the number 'NaN'"),
    "a fraction in the header": (lambda _: built({"w": tensor(shape=[2.0])}, bytes(8)), r"has the number '2\.0'"),
    # names
    "duplicate names": (
        lambda _: raw(
            b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
            b'"w":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}',
            bytes(16),
        ),
        "duplicate names: 'w'",
    ),
    "duplicate names by escapes": (
        lambda _: raw(
            b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
            b'"\\u0077":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}',
            bytes(16),
        ),
        "duplicate names: 'w'",
    ),
    "duplicate keys of a tensor": (
        lambda _: raw(b'{"w":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
        "duplicate names: 'dtype'",
    ),
    "a climbing name": (lambda _: built({"../../etc/passwd": tensor()}, bytes(8)), "looks like a path"),
    "an absolute name": (lambda _: built({"/etc/passwd": tensor()}, bytes(8)), "looks like a path"),
    "a Windows path": (lambda _: built({"C:\\w": tensor()}, bytes(8)), "looks like a path"),
    "a name of dots": (lambda _: built({"..": tensor()}, bytes(8)), "looks like a path"),
    "a NUL in a name": (lambda _: built({"w\x00.weight": tensor()}, bytes(8)), "cannot be printed"),
    "half a surrogate pair in a name": (lambda _: built({"w\ud800": tensor()}, bytes(8)), "cannot be printed"),
    "a name that turns the text round": (lambda _: built({"w\u202e": tensor()}, bytes(8)), "cannot be printed"),
    "a name of a million letters": (lambda _: built({"w" * 10**6: tensor()}, bytes(8)), "at most 512"),
    "an empty name": (lambda _: built({"": tensor()}, bytes(8)), "is not a text of at least one character"),
    # metadata
    "metadata that is no object": (lambda _: built({"__metadata__": [1]}), "__metadata__ must be"),
    "metadata with numbers": (lambda _: built({"__metadata__": {"a": 1}}), "__metadata__ must be"),
    "metadata with half a surrogate pair": (lambda _: built({"__metadata__": {"a": "\udfff"}}), "__metadata__ must be"),
    # descriptions
    "an unknown dtype": (lambda _: built({"w": tensor("F128")}, bytes(8)), "has dtype 'F128'"),
    "a dtype that is a list": (lambda _: built({"w": tensor(["F32"])}, bytes(8)), "has dtype"),  # type: ignore[arg-type]
    "an unknown key": (lambda _: built({"w": tensor(run="x")}, bytes(8)), "want dtype, shape and data_offsets"),
    "a missing key": (lambda _: built({"w": {"dtype": "F32", "shape": [2]}}, bytes(8)), "want dtype, shape"),
    "a tensor that is a number": (lambda _: built({"w": 1}), "is described by 'int'"),
    "a negative dimension": (lambda _: built({"w": tensor(shape=[-2])}, bytes(8)), "has shape"),
    "a dimension that is true": (lambda _: built({"w": tensor(shape=[True, 2])}, bytes(8)), "has shape"),
    "a product that overflows": (lambda _: built({"w": tensor(shape=[2**40] * 4)}, bytes(8)), "has shape"),
    "an empty tensor of huge strides": (
        lambda _: built({"w": tensor(shape=[0, 2**40, 2**40], offsets=[0, 0])}),
        "has shape",
    ),
    "a thousand dimensions": (lambda _: built({"w": tensor(shape=[1] * 1000, offsets=[0, 4])}, bytes(4)), "has shape"),
    "values that promise more than there is": (lambda _: built({"w": tensor(shape=[2**30])}, bytes(8)), "takes"),
    # places
    "offsets outside the file": (lambda _: built({"w": tensor(offsets=[0, 8])}, bytes(4)), "cut short"),
    "offsets that go backwards": (lambda _: built({"w": tensor(offsets=[8, 0])}, bytes(8)), "ascending"),
    "negative offsets": (lambda _: built({"w": tensor(offsets=[-8, 0])}, bytes(8)), "ascending"),
    "three offsets": (lambda _: built({"w": tensor(offsets=[0, 8, 8])}, bytes(8)), "ascending"),
    "overlapping tensors": (
        lambda _: built({"a": tensor(), "b": tensor(offsets=[4, 12])}, bytes(12)),
        "'b' overlaps the tensor before it",
    ),
    "the same place twice": (
        lambda _: built({"a": tensor(), "b": tensor()}, bytes(8)),
        "'b' overlaps the tensor before it",
    ),
    "a hole between tensors": (
        lambda _: built({"a": tensor(), "b": tensor(offsets=[12, 20])}, bytes(20)),
        "'b' leaves a hole before it",
    ),
    "bytes hidden behind the tensors": (lambda _: built({"a": tensor()}, bytes(9)), "hidden behind the tensors"),
    "bytes hidden before the tensors": (lambda _: built({"a": tensor(offsets=[8, 16])}, bytes(16)), "leaves a hole"),
    # values
    "NaN": (lambda _: encode({"w": torch.tensor([1.0, float("nan")])}), "'w' has 1 of 2 values that are NaN"),
    "infinity": (lambda _: encode({"w": torch.tensor([1.0, float("inf")])}), "'w' has 1 of 2 values"),
    "booleans that are neither": (
        lambda _: built({"w": tensor("BOOL", [2], [0, 2])}, b"\x01\x02"),
        "bytes other than 0 and 1",
    ),
}


def test_there_are_at_least_seventeen_hostile_files() -> None:
    assert len(HOSTILE) >= 17


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    make, message = HOSTILE[name]
    marker = tmp_path / "executed"
    data = make(marker)
    kept = bytes(data)
    with pytest.raises(WeightsFileError, match=message) as caught:
        decode(data)
    with pytest.raises(ParameterError):
        decode(data, expected=GOOD)
    assert len(str(caught.value)) < 2000
    assert data == kept
    assert not marker.exists()


@pytest.mark.parametrize("data", [None, "text", 3, [1, 2], np.zeros(3)])
def test_what_is_no_bytes_is_refused(data: Any) -> None:
    with pytest.raises(WeightsFileError, match="want the bytes of a safetensors file"):
        decode(data)


def test_every_truncation_is_refused() -> None:
    written = encode(GOOD, {"round": "3"})
    for length in range(len(written)):
        with pytest.raises(WeightsFileError):
            decode(written[:length])


def outcome(data: bytes, expected: dict[str, torch.Tensor] | None) -> str:
    """ "refused", or the digest of what was accepted; any other exception fails the test that asks."""
    try:
        found = decode(data, expected=expected)
    except ParameterError:
        return "refused"
    return hashlib.sha256(encode(found.params, found.metadata)).hexdigest()


def test_no_flipped_bit_is_accepted_under_the_right_digest() -> None:
    written = encode(GOOD, {"round": "3"})
    right = hashlib.sha256(written).hexdigest()
    assert outcome(written, None) == outcome(written, GOOD) == right
    for bit in range(8 * len(written)):
        flipped = bytearray(written)
        flipped[bit // 8] ^= 1 << bit % 8
        assert outcome(bytes(flipped), None) != right
        assert outcome(bytes(flipped), GOOD) != right


def test_no_group_of_flipped_bits_raises_anything_foreign_or_keeps_the_digest(
    record_property: Callable[[str, object], None],
) -> None:
    written = encode(GOOD, {"round": "3"})
    right = hashlib.sha256(written).hexdigest()
    source = random.Random(20_000)
    for _ in range(20_000):
        flipped = bytearray(written)
        # Half of the flips in the header, where they can do most.
        for _ in range(source.choice([1, 2, 3, 8])):
            place = source.randrange(len(written)) if source.random() < 0.5 else source.randrange(len(written) - 36)
            flipped[place] ^= 1 << source.randrange(8)
        if flipped != written:
            assert outcome(bytes(flipped), None) != right
    record_property("figure", "20,000 files with flipped bits: 0 foreign exceptions, 0 accepted with the right digest")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_at_all_raise_anything_foreign(data: bytes) -> None:
    for each in (data, raw(data), raw(b"{" + data), raw(b'{"w":' + data + b"}")):
        assert outcome(each, GOOD) == "refused"
        outcome(each, None)  # b"{}" is a sound file of no tensors


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["F32", "I64"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "w"]), inner)
        ),
    ),
    st.binary(max_size=16),
)
def test_no_json_at_all_raises_anything_foreign(header: object, values: bytes) -> None:
    for each in (header, {"w": header}, {"w": tensor(shape=header)}, {"w": tensor(offsets=header)}):  # type: ignore[arg-type]
        assert outcome(built(each, values), GOOD) == "refused"
        outcome(built(each, values), None)
