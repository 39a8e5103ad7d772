"""The store keeps its contract on a folder and in memory, and its files are whole or not there."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from bitfount_model.errors import ConfigurationError, IntegrityError, StorageError
from tasks.store import Manifest, Store, local_path, manifest_name, read_file, read_manifest, write_manifest
from tests.contracts import check_size_limit, check_store


def test_a_folder_keeps_the_contract(tmp_path: Path) -> None:
    check_store(Store(tmp_path / "store"))
    check_size_limit(Store(tmp_path / "small", max_bytes=10))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "store"], (
        "nothing was written beside the stores"
    )


def test_memory_keeps_the_contract() -> None:
    check_store(Store(f"memory://{uuid.uuid4().hex}"))
    check_size_limit(Store(f"memory://{uuid.uuid4().hex}", max_bytes=10))


def test_an_unknown_kind_of_url_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="nonsense"):
        Store("nonsense://bucket")


def test_files_have_the_users_permissions(tmp_path: Path) -> None:
    Store(tmp_path).put("a", b"1")
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(os.stat(tmp_path / "a").st_mode) == stat.S_IMODE(os.stat(plain).st_mode)


def test_a_writer_that_is_killed_leaves_the_file_whole_or_not_there(tmp_path: Path) -> None:
    code = (
        "import sys; from tasks.store import Store\n"
        "store = Store(sys.argv[1])\n"
        "print('go', flush=True)\n"
        "for number in range(10_000): store.put(f'f{number}', bytes([number % 256]) * 200_000)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        while not (tmp_path / "f3").exists():
            pass
        writer.kill()
    written = [path for path in tmp_path.iterdir() if path.suffix != ".part"]
    assert len(written) > 3
    for path in written:
        number = int(path.name[1:])
        assert path.read_bytes() == bytes([number % 256]) * 200_000


def test_a_manifest_is_read_back_with_its_files(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert read_manifest(store, "fit") is None
    manifest = Manifest("fit", {"weights": store.put("w", b"123")}, {"seconds": 0.1, "names": ["ä"]})
    assert write_manifest(store, manifest) == manifest
    assert read_manifest(store, "fit") == manifest
    assert read_file(store, manifest, "weights") == b"123"
    local_path(store, "w").write_bytes(b"124")
    with pytest.raises(IntegrityError):
        read_file(store, manifest, "weights")


def test_a_manifest_that_is_no_manifest_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(manifest_name("fit"), b"{ not json")
    with pytest.raises(StorageError, match="steps/fit.json"):
        read_manifest(store, "fit")
