"""The codec: deterministic safetensors bytes, read back exactly, checked against the safetensors package."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bitfount_model.codec import (
    DEFAULT_MAX_BYTES,
    Weights,
    decode,
    digest,
    encode,
    looks_like_safetensors,
    metadata_of,
    pieces,
)
from bitfount_model.errors import ParameterError, WeightsFileError
from bitfount_model.parameters import SUPPORTED_DTYPES, snapshot


def some(dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    high = 2 if dtype == torch.bool else 100
    return torch.randint(0, high, shape, generator=generator).to(dtype)


def every_dtype() -> dict[str, Tensor]:
    shapes: list[tuple[int, ...]] = [(), (1,), (7,), (2, 3), (0, 3), (3, 0), (0,)]
    return {
        f"{dtype}.{len(s)}.{sum(s)}".removeprefix("torch."): some(dtype, *s)
        for dtype in SUPPORTED_DTYPES
        for s in shapes
    }


def assert_same(found: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert found.keys() == want.keys()
    for name, value in want.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        assert torch.equal(found[name], value), name


def test_the_bytes_are_pinned() -> None:
    params = {"b": torch.tensor([1.0, -2.0]), "a": torch.tensor([[1], [2]], dtype=torch.int8), "n": torch.tensor(3)}
    header = (
        b'{"__metadata__":{"a":"2","z":"1"},"n":{"dtype":"I64","shape":[],"data_offsets":[0,8]},'
        b'"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]},"a":{"dtype":"I8","shape":[2,1],"data_offsets":[16,18]}}'
    )
    header += b" " * (-len(header) % 8)
    values = b"\x03" + b"\x00" * 7 + b"\x00\x00\x80\x3f\x00\x00\x00\xc0" + b"\x01\x02"
    assert encode(params, {"z": "1", "a": "2"}) == len(header).to_bytes(8, "little") + header + values


def test_the_pieces_of_a_file_are_the_tensors_themselves() -> None:
    params = {"b": torch.tensor([1.0, -2.0]), "a": torch.tensor([3.0])}
    header, *values = pieces(params, {"round": "3"})
    assert b"".join([header, *values]) == encode(params, {"round": "3"})
    params["a"].fill_(7)
    assert bytes(values[0]) == torch.tensor([7.0]).numpy().tobytes()
    assert metadata_of(encode(params, {"round": "3"})) == {"round": "3"}


def test_values_that_are_not_copied_stay_in_the_bytes() -> None:
    params = every_dtype()
    data = bytearray(encode(params))
    weights = decode(memoryview(data), in_place=True)
    assert_same(weights.params, params)
    weights.params["float32.1.7"].fill_(5)
    assert torch.equal(decode(data).params["float32.1.7"], torch.full((7,), 5.0))


def test_values_that_are_not_aligned_are_copied() -> None:
    params = {"w": torch.arange(4.0)}
    data = bytearray(b"." + encode(params))
    weights = decode(memoryview(data)[1:], in_place=True)
    data[-4:] = b"\0\0\0\0"
    assert_same(weights.params, params)


def test_every_dtype_and_shape_survives_a_round_trip() -> None:
    params = every_dtype()
    kept = {name: value.clone() for name, value in params.items()}
    weights = decode(encode(params, {"round": "3"}))
    assert_same(weights.params, kept)
    assert weights.metadata == {"round": "3"}
    assert_same(params, kept)


def test_bytes_that_cannot_be_written_to_are_copied() -> None:
    params = decode(encode({"weight": torch.ones(3)}), in_place=True).params
    params["weight"].fill_(2)
    assert params["weight"].tolist() == [2, 2, 2]


def test_the_safetensors_package_reads_what_is_written_and_writes_what_is_read() -> None:
    params = every_dtype()
    assert_same(safetensors.torch.load(encode(params)), params)
    theirs = safetensors.torch.save(params, metadata={"by": "safetensors"})
    assert_same(decode(theirs).params, params)
    assert decode(theirs).metadata == {"by": "safetensors"}


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(
        st.text(st.characters(categories=["L", "N"], include_characters="_-é"), min_size=1, max_size=20), unique=True
    ),
    metadata=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"]))
    ),
    data=st.data(),
)
def test_any_names_values_and_metadata_survive(names: list[str], metadata: dict[str, str], data: st.DataObject) -> None:
    values = st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), max_size=5)
    params = {name: torch.tensor(data.draw(values), dtype=torch.float32) for name in names}
    written = encode(params, metadata)
    assert encode(dict(reversed(params.items())), dict(reversed(metadata.items()))) == written
    found = decode(written)
    assert_same(found.params, params)
    assert found.metadata == metadata
    assert encode(found.params, found.metadata) == written
    assert_same(safetensors.torch.load(written), params)


def test_the_digest_is_the_sha256_of_the_bytes_and_tells_parameters_apart() -> None:
    params = {"w": torch.tensor([1.0, 2.0]), "b": torch.zeros(2)}
    assert digest(params) == hashlib.sha256(encode(params)).hexdigest()
    others: list[dict[str, Tensor]] = [
        {"w": torch.tensor([2.0, 1.0]), "b": torch.zeros(2)},
        {"w": torch.tensor([[1.0, 2.0]]), "b": torch.zeros(2)},
        {"w": torch.tensor([1.0, 2.0], dtype=torch.float64), "b": torch.zeros(2)},
        {"v": torch.tensor([1.0, 2.0]), "b": torch.zeros(2)},
        {"w": torch.tensor([1.0, 2.0]), "b": torch.tensor([0.0, -0.0])},
        {"w": torch.tensor([1.0, 2.0])},
    ]
    assert len({digest(each) for each in [params, *others]}) == len(others) + 1


def test_what_is_decoded_owns_its_memory_and_can_be_written_to() -> None:
    params = {"a": torch.ones(3), "b": torch.ones(3)}
    written = encode(params)
    first, second = decode(written).params, decode(written).params
    first["a"].fill_(7)
    assert_same(second, params)
    assert torch.equal(first["b"], torch.ones(3))
    assert encode(params) == written


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data))])
def test_bytes_bytearrays_and_memoryviews_are_read_alike(wrap: Any) -> None:
    params = {"a": torch.arange(5), "b": torch.randn(2, 2)}
    assert_same(decode(wrap(encode(params))).params, params)


def test_strided_shared_and_differentiable_tensors_are_written_as_they_read() -> None:
    matrix = torch.arange(12.0).reshape(3, 4)
    params = {
        "transposed": matrix.T,
        "every other": matrix[:, ::2],
        "same": matrix,
        "row": matrix[1],
        "expanded": torch.ones(1).expand(4),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "trained": nn.Parameter(torch.ones(2)),
    }
    found = decode(encode(params)).params
    assert_same(found, params)
    assert all(value.is_contiguous() and not value.requires_grad for value in found.values())


def test_no_parameters_at_all_can_be_written_and_read() -> None:
    assert decode(encode({})) == Weights({}, {})


def test_the_order_of_the_expected_model_is_kept() -> None:
    module = nn.Sequential(nn.Conv1d(1, 2, 2), nn.BatchNorm1d(2))
    params = snapshot(module)
    found = decode(encode(params), expected=params).params
    assert list(found) == list(params)
    assert_same(found, params)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"w": torch.zeros(2)}, "'b' is missing"),
        ({"w": torch.zeros(2), "b": torch.zeros(1), "c": torch.zeros(1)}, "'c' is not a name of the model"),
        ({"w": torch.zeros(1, 2), "b": torch.zeros(1)}, r"'w' has shape \(1, 2\), want \(2,\)"),
        ({"w": torch.zeros(2, dtype=torch.float16), "b": torch.zeros(1)}, "'w' has dtype torch.float16"),
        ({"w": torch.tensor([0, math.nan]), "b": torch.zeros(1)}, "'w' has 1 of 2 values that are NaN"),
    ],
)
def test_a_sound_file_of_another_model_is_refused_by_name(params: dict[str, Tensor], message: str) -> None:
    expected = {"w": torch.zeros(2), "b": torch.zeros(1)}
    with pytest.raises(ParameterError, match=f"the weights file cannot be used: .*{message}"):
        decode(encode(params), expected=expected)


def test_an_infinity_passes_only_where_the_expected_model_has_it() -> None:
    params = {"mask": torch.tensor([0.0, -math.inf])}
    assert_same(decode(encode(params), expected=params).params, params)
    with pytest.raises(ParameterError, match="'mask' has 1 of 2 values"):
        decode(encode({"mask": torch.tensor([-math.inf, -math.inf])}), expected=params)
    with pytest.raises(WeightsFileError, match="'mask' has 1 of 2 values"):
        decode(encode(params))


def test_a_file_at_the_limit_is_read_and_one_byte_more_is_not() -> None:
    written = encode({"w": torch.zeros(10)})
    assert_same(decode(written, max_bytes=len(written)).params, {"w": torch.zeros(10)})
    with pytest.raises(WeightsFileError, match=f"it has {len(written)} bytes, at most {len(written) - 1} are read"):
        decode(written, max_bytes=len(written) - 1)
    assert DEFAULT_MAX_BYTES == 2 * 1024**3


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"w": torch.zeros(1, dtype=torch.complex64)}, "'w' is torch.strided of torch.complex64"),
        ({"w": torch.eye(2).to_sparse()}, "'w' is torch.sparse_coo"),
        ({"w": [1.0]}, "'w' is of type list"),
        ({"a/b": torch.zeros(1)}, "the name 'a/b' looks like a path"),
        ({"": torch.zeros(1)}, "the name '' is not a text"),
        ({3: torch.zeros(1)}, "the name 3 is not a text"),
        ({"__metadata__": torch.zeros(1)}, "the name '__metadata__' is reserved"),
        ({"w" * 513: torch.zeros(1)}, "has 513 characters, at most 512"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(params: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        encode(params)


@pytest.mark.parametrize("metadata", [{"round": 3}, {3: "round"}, {"half": "\ud800"}, {"bytes": b"x"}])
def test_metadata_must_be_text(metadata: Any) -> None:
    with pytest.raises(ParameterError, match="is not text -> text"):
        encode({"w": torch.zeros(1)}, metadata)


def test_more_tensors_than_a_header_holds_are_not_written() -> None:
    name = "w" * 500
    params = {f"{name}{number}": torch.zeros(0) for number in range(16_000)}
    with pytest.raises(ParameterError, match="the header would take"):
        encode(params)


def test_a_header_whose_length_begins_like_a_pickle_is_still_read() -> None:
    params = {"w" * 70: torch.ones(2)}
    written = encode(params)
    assert written.startswith(b"\x80")
    assert looks_like_safetensors(written)
    assert_same(decode(written).params, params)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04" + bytes(100), b"\x80\x02}q\x00.", b"1234567", b"12345678"])
def test_other_formats_do_not_look_like_safetensors(data: bytes) -> None:
    assert not looks_like_safetensors(data)
