"""Weights files: written whole, read back equal, and nothing believed that a file says."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from bitfount_model.data import Preparation
from bitfount_model.errors import ParameterError, StorageError, WeightsFileError
from bitfount_model.weights_files import PREPARATION, read_weights, write_weights
from tests.bitfount_model.models import same

PREPARED = Preparation({"age": (0.1, 3.3)}, {"sex": ("f", "m")})
WEIGHTS = {
    "layer.weight": torch.randn(3, 2, generator=torch.Generator().manual_seed(0)),
    "layer.bias": torch.tensor([0.1, -0.0, 1e-40]),
    "count": torch.tensor(2**60 + 1),
    "half": torch.tensor([1.5], dtype=torch.bfloat16),
    "empty": torch.empty(0, 3),
}
KINDS = ["w.pt", "w.safetensors"]


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.path}",))


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


# -- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("preparation", [PREPARED, None], ids=["prepared", "bare"])
def test_what_was_written_is_read_back_to_the_last_bit(
    name: str, preparation: Preparation | None, tmp_path: Path
) -> None:
    path = write_weights(tmp_path / "deep" / "folder" / name, WEIGHTS, preparation)
    found = read_weights(path, WEIGHTS, True)
    assert same(dict(found.parameters), WEIGHTS)
    assert {key: value.dtype for key, value in found.parameters.items()} == {k: v.dtype for k, v in WEIGHTS.items()}
    assert found.preparation == preparation
    assert os.listdir(path.parent) == [name]


@pytest.mark.parametrize("name", KINDS)
def test_a_path_its_text_bytes_and_a_file_object_are_all_read(name: str, tmp_path: Path) -> None:
    path = write_weights(tmp_path / name, WEIGHTS, PREPARED)
    with path.open("rb") as stream:
        for content in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), stream):
            assert same(dict(read_weights(content, WEIGHTS, True).parameters), WEIGHTS)


def test_torch_and_safetensors_read_what_we_write(tmp_path: Path) -> None:
    write_weights(tmp_path / "w.pt", WEIGHTS, PREPARED)
    assert same(dict(torch.load(tmp_path / "w.pt", weights_only=True)), WEIGHTS)
    write_weights(tmp_path / "w.safetensors", WEIGHTS, PREPARED)
    assert same(safetensors.torch.load_file(tmp_path / "w.safetensors"), WEIGHTS)


def test_a_module_takes_the_pt_file_as_its_state_dict(tmp_path: Path) -> None:
    layer, other = nn.Linear(2, 3), nn.Linear(2, 3)
    write_weights(tmp_path / "w.pt", layer.state_dict(), PREPARED)
    other.load_state_dict(torch.load(tmp_path / "w.pt", weights_only=True))
    assert same(dict(other.state_dict()), dict(layer.state_dict()))


def test_we_read_what_torch_and_safetensors_write() -> None:
    layer = nn.Linear(2, 3)
    state = dict(layer.state_dict())
    for content in (saved(layer.state_dict()), saved(state), safetensors.torch.save(state)):
        found = read_weights(content, state, True)
        assert same(dict(found.parameters), state)
        assert found.preparation is None


def test_what_a_file_is_depends_on_its_content_not_on_its_name(tmp_path: Path) -> None:
    write_weights(tmp_path / "w.safetensors", WEIGHTS, None).rename(tmp_path / "w.pt")
    assert same(dict(read_weights(tmp_path / "w.pt", WEIGHTS, True).parameters), WEIGHTS)


def test_a_failed_write_leaves_the_older_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_weights(tmp_path / "w.pt", WEIGHTS, None)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        write_weights(path, {}, None)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["w.pt"]


# -- files that are not what they should be --------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_a_pickle_bomb_is_refused_and_nothing_is_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    for content in (saved({"w": Bomb(mark)}), saved(Bomb(mark)), pickle.dumps(Bomb(mark))):
        with pytest.raises(WeightsFileError):
            read_weights(content, WEIGHTS, True)
    assert not mark.exists()


def test_a_whole_network_is_refused_unless_pickled_objects_are_allowed() -> None:
    layer = nn.Linear(2, 3)
    with pytest.raises(WeightsFileError, match="not a state dict that can be read: Weights only load failed"):
        read_weights(saved(layer), WEIGHTS, True)
    found = read_weights(saved(layer), WEIGHTS, False)
    assert same(dict(found.parameters), dict(layer.state_dict()))
    assert isinstance(found.module, nn.Linear)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello", "not a state dict that can be read"),
        (saved([torch.ones(1)]), "holds a list, wanted a state dict"),
        (saved({"w": 1.0}), "holds a dict, wanted a state dict: names and tensors only"),
        (saved({1: torch.ones(1)}), "names and tensors only"),
        (saved({"w": {"x": torch.ones(1)}}), "names and tensors only"),
    ],
)
def test_what_is_no_state_dict_is_refused_with_the_reason(content: bytes, message: str) -> None:
    with pytest.raises(WeightsFileError, match=message):
        read_weights(content, WEIGHTS, True)


def test_a_missing_file_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(WeightsFileError, match=r"cannot read the weights file .*none\.pt: No such file"):
        read_weights(tmp_path / "none.pt", WEIGHTS, True)
    with pytest.raises(WeightsFileError, match="Is a directory"):
        read_weights(tmp_path, WEIGHTS, True)


@pytest.mark.parametrize(
    "prepared",
    ["not json", "[1]", "3", '{"continuous": {}}', "[" * 100_000, 7, {"a": 1}],
    ids=["text", "a list", "a number", "keys missing", "deep", "no text", "a dict"],
)
def test_a_preparation_that_makes_no_sense_is_refused(prepared: Any) -> None:
    state = OrderedDict(WEIGHTS)
    state._metadata = OrderedDict({PREPARATION: {"json": prepared}})  # type: ignore[attr-defined]
    contents = [saved(state)]
    if isinstance(prepared, str):
        contents.append(safetensors.torch.save(WEIGHTS, {PREPARATION: prepared}))
    for content in contents:
        with pytest.raises(WeightsFileError, match="does not say properly how rows were encoded"):
            read_weights(content, WEIGHTS, True)


@pytest.mark.parametrize("metadata", [3, "x", [1], {PREPARATION: 3}, {PREPARATION: [1]}, {}], ids=str)
def test_metadata_of_others_is_passed_over(metadata: Any) -> None:
    state = OrderedDict(WEIGHTS)
    state._metadata = metadata  # type: ignore[attr-defined]
    assert read_weights(saved(state), WEIGHTS, True).preparation is None


WHOLE = {"pt": saved(OrderedDict(WEIGHTS)), "safetensors": safetensors.torch.save(WEIGHTS), "pickle": pickle.dumps({})}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", WHOLE)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), changes=st.integers(1, 20), cut=st.booleans())
def test_damaged_files_are_read_or_refused_and_nothing_else(kind: str, seed: int, changes: int, cut: bool) -> None:
    damage = random.Random(seed)
    content = bytearray(WHOLE[kind])
    for _ in range(changes):
        content[damage.randrange(len(content))] = damage.randrange(256)
    if cut:
        del content[damage.randrange(len(content)) :]
    try:
        read_weights(bytes(content), WEIGHTS, True)
    except (WeightsFileError, ParameterError):
        pass


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), changes=st.integers(1, 8))
def test_a_damaged_pickle_in_a_whole_archive_is_read_or_refused(seed: int, changes: int) -> None:
    """The archive's checksums are right, so that torch reads the pickle inside."""
    damage = random.Random(seed)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(WHOLE["pt"])) as old, zipfile.ZipFile(buffer, "w") as new:
        for info in old.infolist():
            part = bytearray(old.read(info))
            if info.filename.endswith("data.pkl"):
                for _ in range(changes):
                    part[damage.randrange(len(part))] = damage.randrange(256)
            new.writestr(info.filename, bytes(part))
    try:
        read_weights(buffer.getvalue(), WEIGHTS, True)
    except WeightsFileError:
        pass


def test_the_preparation_is_plain_json(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "w.safetensors", WEIGHTS, PREPARED)
    with safetensors.safe_open(path, "pt") as file:
        assert json.loads(file.metadata()[PREPARATION]) == PREPARED.to_json()
