"""Between a model and a file or the store: parameters as safetensors bytes, and back with nothing taken on trust.

The format is that of https://github.com/huggingface/safetensors: 8 bytes with the length of a JSON header, the header
(name -> dtype, shape, place), then the values, little-endian, without gaps. Bytes are deterministic: equal parameters
and metadata give equal bytes, so their sha256 names them. That is why the header is written here: the
safetensors package writes metadata in an order that changes from call to call.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from bitfount_model.errors import ParameterError, WeightsFileError
from bitfount_model.files import sha256_of
from bitfount_model.parameters import check_compatible, check_finite, quoted
from bitfount_model.types import Parameters

DEFAULT_MAX_BYTES = 2 * 1024**3
"""The largest weights file that is read unless the caller says otherwise: 2 GiB."""

MAX_HEADER_BYTES = 8 * 1024**2
"""The largest header that is parsed: 8 MiB, about 80,000 tensors."""

MAX_NAME_LENGTH = 512
"""The longest name of a tensor, in characters."""

_DTYPE_OF = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODE_OF = {dtype: code for code, dtype in _DTYPE_OF.items()}
_METADATA = "__metadata__"
_UNSAFE_NAME = re.compile(r"[/\\:]|^\.|\.$|\.\.|^\s|\s$")
_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive, as torch.save writes it",
    b"\x80": "a Python pickle",
    b"\x1f\x8b": "a gzip archive",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array file",
    b"GGUF": "a GGUF file",
}


@dataclass(frozen=True)
class Weights:
    """What a weights file holds.

    Attributes:
        params: name -> CPU tensor, with memory of its own unless `decode` left them in place.
        metadata: text -> text, as given to `encode`; whoever wrote the file chose it.
    """

    params: dict[str, Tensor]
    metadata: dict[str, str]


@dataclass(frozen=True)
class _Entry:
    """One tensor as the header describes it; `start` and `stop` count bytes from the end of the header."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def encode(params: Parameters, metadata: Mapping[str, str] | None = None) -> bytes:
    """Writes parameters as safetensors bytes; any safetensors reader can read them.

    Args:
        params: name -> dense tensor, on any device, contiguous or not; tensors that share memory are written apart.
        metadata: text to keep with them. None or empty writes none.

    Returns:
        The file's bytes: a function of names, shapes, dtypes, values and metadata alone. Wide dtypes come first,
        so that every tensor is aligned, then names in order.

    Raises:
        ParameterError: a dtype, layout, name or metadata that a weights file cannot hold. Values are not looked at:
            `decode` refuses what is not finite.
    """
    return b"".join(pieces(params, metadata))


def pieces(params: Parameters, metadata: Mapping[str, str] | None = None) -> list[memoryview]:
    """What `encode` joins: the header, then each tensor's values where they lie, so that nothing is copied.

    Args:
        params: as for `encode`; tensors that are not contiguous on the CPU are copied. As long as the pieces are used,
            they must not change.
        metadata: as for `encode`.

    Raises:
        ParameterError: as `encode`.
    """
    problems = [problem for name, value in params.items() for problem in _unwritable(name, value)]
    problems += [
        f"metadata {quoted(key)}: {quoted(value)} is not text -> text"
        for key, value in (metadata or {}).items()
        if not (_is_text(key) and _is_text(value))
    ]
    if problems:
        raise ParameterError(f"the parameters cannot be written as a weights file: {_listed(problems)}")
    header: dict[str, Any] = {_METADATA: dict(sorted(metadata.items()))} if metadata else {}
    values: list[memoryview] = []
    position = 0
    for name, value in sorted(params.items(), key=lambda item: (-item[1].element_size(), item[0])):
        size = value.numel() * value.element_size()
        header[name] = {
            "dtype": _CODE_OF[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [position, position + size],
        }
        values.append(_bytes_of(value))
        position += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise ParameterError(f"the header would take {len(text)} bytes, at most {MAX_HEADER_BYTES} can be read back")
    return [memoryview(len(text).to_bytes(8, "little") + text), *values]


def decode(
    data: bytes | bytearray | memoryview,
    *,
    expected: Parameters | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    in_place: bool = False,
) -> Weights:
    """Reads safetensors bytes that may come from anyone; nothing in them is ever executed.

    Args:
        data: the file's bytes; neither kept nor changed, unless values stay in place.
        expected: the model's parameters. If given, names, shapes and dtypes must be theirs, the result has their
            order, and an infinity passes only where they hold the same one. If None, no infinity passes.
        max_bytes: the largest file that is looked into.
        in_place: leaves the values where they are, such as in a file that is mapped into memory: tensors are then views of
            `data`, which nobody else may change. Those that are not aligned, or cannot be written to, are copied all the same.

    Returns:
        The parameters and the metadata.

    Raises:
        WeightsFileError: the bytes are of another format, too large, cut short, or break a rule of the format; the
            message names the rule and the tensor. Or, without `expected`, values are not finite.
        ParameterError: the file is sound, but not of the expected model; every difference is listed.
    """
    view = _plain_view(data, max_bytes)
    header_stop = _header_stop(view)
    metadata, entries = _parsed(bytes(view[8:header_stop]))
    values = view[header_stop:]
    _check_places(entries, len(values))
    params = {entry.name: _tensor(entry, values[entry.start : entry.stop], in_place) for entry in entries}
    if expected is None:
        try:
            check_finite(params, what="the weights file")
        except ParameterError as error:
            raise WeightsFileError(str(error)) from None
        return Weights(params, metadata)
    check_compatible(expected, params, what="the weights file")
    return Weights({name: params[name] for name in expected}, metadata)


def metadata_of(data: bytes | bytearray | memoryview) -> dict[str, str]:
    """The metadata of safetensors bytes, whose tensors are not looked at.

    Raises:
        WeightsFileError: they do not begin as safetensors bytes do.
    """
    view = _plain_view(data, memoryview(data).nbytes)
    return _parsed(bytes(view[8 : _header_stop(view)]))[0]


def looks_like_safetensors(data: bytes | bytearray | memoryview) -> bool:
    """Tells safetensors bytes from other formats by their start; the rest may still be refused by `decode`.

    The length that a safetensors file begins with can look like a pickle's or a zip archive's first bytes, so ask
    this before asking for those.
    """
    view = memoryview(data).cast("B")
    length = int.from_bytes(view[:8], "little")
    return length <= min(MAX_HEADER_BYTES, len(view) - 8) and bytes(view[8:9]) == b"{"


def digest(params: Parameters) -> str:
    """The sha256 of `encode(params)`, as 64 hexadecimal digits: equal parameters, and only those, have equal digests.

    Args:
        params: name -> tensor; the order of names does not matter.

    Returns:
        The digest.

    Raises:
        ParameterError: as `encode`.
    """
    return sha256_of(pieces(params))


def _unwritable(name: object, value: object) -> Iterator[str]:
    reason = _name_fault(name)
    if reason:
        yield f"the name {quoted(name)} {reason}"
    if not isinstance(value, Tensor):
        yield f"{quoted(name)} is of type {type(value).__name__}, want a torch.Tensor"
    elif value.dtype not in _CODE_OF or value.layout != torch.strided:
        yield f"{quoted(name)} is {value.layout} of {value.dtype}, want a dense tensor of {', '.join(_DTYPE_OF)}"


def _bytes_of(value: Tensor) -> memoryview:
    """A tensor's values in row order; they are copied only if they are not already so on the CPU."""
    flat = value.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _plain_view(data: object, max_bytes: int) -> memoryview:
    if not isinstance(data, bytes | bytearray | memoryview):
        raise _refused(f"found {type(data).__name__}, want the bytes of a safetensors file")
    size = memoryview(data).nbytes
    if size > max_bytes:
        raise _refused(
            f"it has {size} bytes, at most {max_bytes} are read: raise max_bytes if the file is to be trusted"
        )
    view = memoryview(data)
    return view.cast("B") if view.c_contiguous else memoryview(view.tobytes())


def _header_stop(view: memoryview) -> int:
    """Where the header ends; names the format of files that are something else."""
    if len(view) < 8:
        raise _refused(f"it has {len(view)} bytes, a safetensors file has at least 8: it was cut short")
    length = int.from_bytes(view[:8], "little")
    if looks_like_safetensors(view):
        return 8 + length
    for magic, format_name in _OTHER_FORMATS.items():
        if bytes(view[: len(magic)]) == magic:
            raise _refused(f"it is {format_name}, which is never opened: save the weights as safetensors")
    if length > MAX_HEADER_BYTES:
        raise _refused(f"its header claims {length} bytes, at most {MAX_HEADER_BYTES} are read")
    if length > len(view) - 8:
        raise _refused(f"its header claims {length} bytes, {len(view) - 8} are there: it was cut short")
    raise _refused("its header does not begin with '{': it is no safetensors file")


def _parsed(text: bytes) -> tuple[dict[str, str], list[_Entry]]:
    """The header's metadata and entries, each by itself sound."""
    try:
        header = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
    except RecursionError:
        raise _refused("its header is nested too deeply") from None
    except WeightsFileError:
        raise
    except ValueError as error:  # broken JSON, text that is not UTF-8, integers of thousands of digits
        raise _refused(f"its header is not JSON in UTF-8: {error}") from error
    if not isinstance(header, dict):
        raise _refused(f"its header is a {type(header).__name__}, want an object")
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(_is_text(key) and _is_text(value) for key, value in metadata.items()):
        raise _refused(f"{_METADATA} must be an object of text -> text")
    return metadata, [_entry(name, fields) for name, fields in header.items()]


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; readers disagree about which of two equal keys counts, so there must be none."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = [quoted(key) for key, times in Counter(key for key, _ in pairs).items() if times > 1]
        raise _refused(f"its header has duplicate names: {_listed(twice)}")
    return found


def _no_number(text: str) -> NoReturn:
    raise _refused(f"its header has the number {quoted(text)}, want whole numbers")


def _entry(name: str, fields: Any) -> _Entry:
    reason = _name_fault(name)
    if reason:
        raise _refused(f"the name {quoted(name)} {reason}")
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        found = sorted(fields) if isinstance(fields, dict) else type(fields).__name__
        raise _refused(f"{quoted(name)} is described by {quoted(found)}, want dtype, shape and data_offsets")
    dtype = _DTYPE_OF.get(fields["dtype"]) if isinstance(fields["dtype"], str) else None
    if dtype is None:
        raise _refused(f"{quoted(name)} has dtype {quoted(fields['dtype'])}, want one of {', '.join(_DTYPE_OF)}")
    shape, places = fields["shape"], fields["data_offsets"]
    if not _are_counts(shape) or len(shape) > 32 or math.prod(max(count, 1) for count in shape) > 2**60:
        raise _refused(
            f"{quoted(name)} has shape {quoted(shape)}, want at most 32 whole numbers >= 0 of a sane product"
        )
    if not _are_counts(places) or len(places) != 2 or places[0] > places[1]:
        raise _refused(f"{quoted(name)} has data_offsets {quoted(places)}, want two ascending whole numbers")
    start, stop = places
    size = math.prod(shape) * dtype.itemsize
    if stop - start != size:
        raise _refused(f"{quoted(name)} has {stop - start} bytes, its shape {shape} of {dtype} takes {size}")
    return _Entry(name, dtype, tuple(shape), start, stop)


def _check_places(entries: Sequence[_Entry], size: int) -> None:
    """The tensors must fill the values exactly: nothing read twice, nothing hidden between or behind them."""
    position = 0
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.stop)):
        if entry.start < position:
            raise _refused(
                f"{quoted(entry.name)} overlaps the tensor before it: it starts at {entry.start}, not {position}"
            )
        if entry.start > position:
            raise _refused(f"{quoted(entry.name)} leaves a hole before it: it starts at {entry.start}, not {position}")
        position = entry.stop
    if position != size:
        state = "it was cut short" if position > size else "bytes are hidden behind the tensors"
        raise _refused(f"its tensors take {position} bytes, {size} are there: {state}")


def _tensor(entry: _Entry, values: memoryview, in_place: bool) -> Tensor:
    if not len(values):
        return torch.empty(entry.shape, dtype=entry.dtype)
    raw = np.frombuffer(values, dtype=np.uint8)
    if not in_place or values.readonly or raw.ctypes.data % entry.dtype.itemsize:
        raw = raw.copy()  # into memory of its own
    if entry.dtype == torch.bool and raw.max() > 1:
        raise _refused(f"{quoted(entry.name)} is boolean, but has bytes other than 0 and 1")
    return torch.from_numpy(raw).view(entry.dtype).reshape(entry.shape)


def _name_fault(name: object) -> str | None:
    """Why a name is refused: names become keys, and sometimes files, so they must be plain."""
    if not isinstance(name, str) or not name:
        return "is not a text of at least one character"
    if len(name) > MAX_NAME_LENGTH:
        return f"has {len(name)} characters, at most {MAX_NAME_LENGTH} are read"
    if name == _METADATA or not name.isprintable():
        return "is reserved or holds characters that cannot be printed"
    return "looks like a path, want names of modules joined by single dots" if _UNSAFE_NAME.search(name) else None


def _is_text(value: object) -> bool:
    """Text that UTF-8 can hold: JSON can smuggle in halves of surrogate pairs."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(each) is int and each >= 0 for each in value)


def _listed(texts: Sequence[str]) -> str:
    return "; ".join(texts[:20]) + (f"; and {len(texts) - 20} more" if len(texts) > 20 else "")


def _refused(reason: str) -> WeightsFileError:
    return WeightsFileError(f"the weights file is refused: {reason}")
