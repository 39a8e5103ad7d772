"""Between a model's parameters and a file of them: `.pt` state dicts and `.safetensors`, told apart by their content."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from bitfount_model import codec
from bitfount_model.data import Preparation
from bitfount_model.errors import WeightsFileError
from bitfount_model.files import Content, write_atomically
from bitfount_model.types import Parameters

PREPARATION = "bitfount_model.preparation"
"""Where both kinds of file keep the preparation (JSON): in the state dict's own metadata, in safetensors' header."""


UNREADABLE = (
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
"""What torch.load raises for damaged files, as fuzzing shows."""


@dataclass(frozen=True)
class SavedModel:
    """What a weights file holds.

    Attributes:
        parameters: name -> tensor on the CPU.
        preparation: how rows were encoded for these weights, if the file says so.
        module: the whole network, where the file holds one and pickled objects were allowed.
    """

    parameters: Parameters
    preparation: Preparation | None = None
    module: nn.Module | None = None


def to_safetensors(parameters: Parameters, preparation: Preparation | None) -> Content:
    """Parameters as safetensors, with the preparation in its header; in pieces, which refer to the parameters."""
    return codec.pieces(parameters, None if preparation is None else {PREPARATION: json.dumps(preparation.to_json())})


def preparation_of(data: bytes | memoryview) -> Preparation | None:
    """The preparation that safetensors bytes hold, if any; their parameters are not looked at.

    Raises:
        WeightsFileError: they are no safetensors, or do not say it properly.
    """
    return _preparation("the weights file", codec.metadata_of(data).get(PREPARATION))


def write_weights(path: str | os.PathLike[str], parameters: Parameters, preparation: Preparation | None) -> Path:
    """Writes parameters: safetensors if the name ends so, else a state dict as `torch.save` writes it.

    Raises:
        StorageError: the file cannot be written; an older one is then still whole.
    """
    if Path(path).suffix == ".safetensors":
        return write_atomically(path, to_safetensors(parameters, preparation))
    prepared = None if preparation is None else json.dumps(preparation.to_json())
    state = OrderedDict(parameters)
    # nn.Module keeps its state dict's versions in the same place; torch saves it and strict loading passes over it.
    state._metadata = OrderedDict({PREPARATION: {"json": prepared}} if prepared else {})  # type: ignore[attr-defined]
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return write_atomically(path, buffer.getvalue())


def read_weights(
    content: str | os.PathLike[str] | bytes | IO[bytes],
    expected: Parameters | None,
    weights_only: bool,
    **load_options: Any,
) -> SavedModel:
    """Reads either kind of file.

    Args:
        content: a path, the bytes, or a binary file object.
        expected: the parameters that a safetensors file must fit; None takes any.
        weights_only: False lets torch unpickle anything that the file holds: never for files of others.
        load_options: arguments of `torch.load`, e.g. `map_location` (default: the CPU).

    Raises:
        WeightsFileError: missing, damaged or not a weights file; the first cause is in the message.
    """
    name, data = _bytes_of(content)
    if not data:
        raise WeightsFileError(f"{name} is empty")
    if codec.looks_like_safetensors(data):
        weights = codec.decode(data, expected=expected)
        return SavedModel(weights.params, _preparation(name, weights.metadata.get(PREPARATION)))
    try:
        loaded = torch.load(io.BytesIO(data), weights_only=weights_only, **{"map_location": "cpu", **load_options})
    except UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsFileError(f"{name} is not a state dict that can be read: {reason}") from error
    if isinstance(loaded, nn.Module):
        return SavedModel(dict(loaded.state_dict()), module=loaded)
    if not isinstance(loaded, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in loaded.items()
    ):
        raise WeightsFileError(f"{name} holds a {type(loaded).__name__}, wanted a state dict: names and tensors only")
    metadata = getattr(loaded, "_metadata", None)
    kept = metadata.get(PREPARATION) if isinstance(metadata, dict) else None
    return SavedModel(dict(loaded), _preparation(name, kept.get("json") if isinstance(kept, dict) else None))


def _preparation(name: str, text: Any) -> Preparation | None:
    """The preparation that a file holds as JSON, if any."""
    if text is None:
        return None
    try:
        return Preparation.from_json(json.loads(text))
    except (TypeError, AttributeError, ValueError, RecursionError) as error:
        raise WeightsFileError(f"{name} does not say properly how rows were encoded: {error}") from error


def _bytes_of(content: str | os.PathLike[str] | bytes | IO[bytes]) -> tuple[str, bytes]:
    """A name for messages, and all the bytes."""
    if isinstance(content, bytes):
        return "the weights given as bytes", content
    if isinstance(content, str | os.PathLike):
        try:
            return str(content), Path(content).read_bytes()
        except OSError as error:
            raise WeightsFileError(f"cannot read the weights file {content}: {error.strerror}") from error
    return str(getattr(content, "name", "the weights file")), content.read()
