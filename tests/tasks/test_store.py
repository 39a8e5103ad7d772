"""The store keeps its contract on a folder, in memory and on S3.

Artifacts are whole or not there, of several writers one wins, and failures that pass only delay.
"""

from __future__ import annotations

import errno
import json
import os
import random
import stat
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from aiohttp import ClientPayloadError
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from fsspec.implementations.memory import MemoryFileSystem
from s3fs.errors import translate_boto_error

from bitfount_model.errors import ConfigurationError, IntegrityError, StorageError
from tasks.layout import manifest_name
from tasks.manifest import Manifest, read_file, read_manifest, write_manifest
from tasks.store import Store, local_path
from tests.contracts import check_size_limit, check_store
from tests.object_store import ObjectStore, object_store

KINDS = ("folder", "memory", "s3")
# The store in a new process without the rest of the library, which takes seconds to load.
STORE = (
    "import importlib.util, json, sys\n"
    "sys.modules['bitfount_model'] = importlib.util.module_from_spec(importlib.util.find_spec('bitfount_model'))\n"
    "from bitfount_model.errors import IntegrityError; from tasks.store import Store\n"
)


@pytest.fixture(scope="module")
def s3() -> Iterator[ObjectStore]:
    with object_store() as server:
        yield server


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place where nothing is yet, of each kind."""
    if request.param == "s3":
        server: ObjectStore = request.getfixturevalue("s3")
        return server.url
    return f"memory://{uuid.uuid4().hex}" if request.param == "memory" else str(tmp_path / "store")


def test_a_mapped_artifact_is_the_file_held_against_its_digest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    written = store.put("a/b", [b"one", memoryview(b"two")])
    assert written == Store(tmp_path / "other").put("a/b", b"onetwo")
    view = store.mapped("a/b", written.sha256)
    view[0:3] = b"ten"
    assert (bytes(view), store.get("a/b", written.sha256)) == (b"tentwo", b"onetwo")
    store.delete("a/b")
    assert bytes(view) == b"tentwo"
    assert bytes(store.mapped("empty", store.put("empty", b"").sha256)) == b""
    elsewhere = Store(f"memory://{uuid.uuid4().hex}")
    view = elsewhere.mapped("a", elsewhere.put("a", b"one").sha256)
    view[0:3] = b"ten"
    assert (bytes(view), elsewhere.get("a")) == (b"ten", b"one")


def test_what_cannot_be_mapped_is_refused(tmp_path: Path) -> None:
    store, digest = Store(tmp_path, max_bytes=10), "0" * 64
    store.put("a", b"bytes")
    with pytest.raises(IntegrityError, match="wanted 0000"):
        store.mapped("a", digest)
    with pytest.raises(StorageError, match="there is no b"):
        store.mapped("b", digest)
    (tmp_path / "c").write_bytes(bytes(11))
    with pytest.raises(StorageError, match="larger than the limit"):
        store.mapped("c", digest)


class DistantFileSystem(MemoryFileSystem):
    """Memory behind a network: `weather` may raise before a call ("sent") or after it did its work ("done")."""

    protocol: ClassVar[str | tuple[str, ...]] = "distant"
    cachable = False
    weather: ClassVar[Callable[[str], None]]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.partition("://")[2] if "://" in path else path))

    def _travel(self, call: Callable[[], Any]) -> Any:
        type(self).weather("sent")
        result = call()
        type(self).weather("done")
        return result

    def info(self, path: str, **kwargs: Any) -> Any:
        return self._travel(lambda: MemoryFileSystem.info(self, path, **kwargs))

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> Any:
        return self._travel(lambda: MemoryFileSystem.cat_file(self, path, *args, **kwargs))

    def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> Any:
        return self._travel(lambda: MemoryFileSystem.pipe_file(self, path, value, **kwargs))

    def rm_file(self, path: str) -> Any:
        return self._travel(lambda: MemoryFileSystem.rm_file(self, path))

    def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
        def rename() -> None:
            self.store[self._strip_protocol(path2)] = self.store.pop(self._strip_protocol(path1))

        self._travel(rename)

    def exists(self, path: str, **kwargs: Any) -> bool:
        return self._strip_protocol(path) in self.store


class DistantExclusiveFileSystem(DistantFileSystem):
    """The same, and its `mode="create"` is exclusive, as that of `memory`."""

    protocol = ("distant-exclusive", "memory")


@pytest.fixture(params=["distant", "distant-exclusive"])
def distant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Store]:
    """Makes a store over the network, given the weather there."""
    kind = DistantFileSystem if request.param == "distant" else DistantExclusiveFileSystem
    fsspec.register_implementation(request.param, kind, clobber=True)

    def make(weather: Callable[[str], None], **options: Any) -> Store:
        monkeypatch.setattr(kind, "weather", staticmethod(weather), raising=False)
        return Store(f"{request.param}://{uuid.uuid4().hex}", **options)

    return make


def fine(moment: str) -> None:
    """Weather in which nothing fails."""


def from_s3(code: str, status: int) -> BaseException:
    """What s3fs makes of an answer of the server."""
    response: Any = {"Error": {"Code": code, "Message": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error: BaseException = translate_boto_error(ClientError(response, "PutObject"))
    return error


def test_every_kind_keeps_the_contract(url: str) -> None:
    check_store(Store(url))
    check_size_limit(Store(f"{url}/small", max_bytes=10))


def test_a_folder_is_written_inside_only(tmp_path: Path) -> None:
    check_store(Store(tmp_path / "store"))
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert not list(tmp_path.rglob("*.part"))


def test_a_folder_without_hard_links_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    check_store(Store(tmp_path))
    assert not list(tmp_path.rglob("*.part"))


def test_a_file_system_of_an_unknown_kind_keeps_the_contract(distant: Callable[..., Store]) -> None:
    check_store(distant(fine))


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
        f"{STORE}"
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


def test_of_processes_that_write_one_name_one_wins(tmp_path: Path) -> None:
    code = (
        f"{STORE}"
        "store, me, won = Store(sys.argv[1]), sys.argv[2], []\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for number in range(100):\n"
        "    store.put(f'same{number}', b'same')\n"
        "    try: store.put(f'f{number}', me.encode() * 10_000, durable=False); won.append(number)\n"
        "    except IntegrityError: pass\n"
        "print(json.dumps(won))"
    )
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    names = ("a", "b", "c", "d")
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], **pipes) for name in names]
    assert [writer.stdout.readline() for writer in writers if writer.stdout] == ["ready\n"] * len(names)
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    won = {name: json.loads(writer.communicate()[0]) for name, writer in zip(names, writers, strict=True)}
    assert sorted(number for numbers in won.values() for number in numbers) == list(range(100))
    for name, numbers in won.items():
        assert all((tmp_path / f"f{number}").read_bytes() == name.encode() * 10_000 for number in numbers)
    assert not list(tmp_path.glob(".*"))


def test_of_threads_that_write_one_name_one_wins(url: str) -> None:
    stores = (Store(url), Store(url))
    writers = 6
    together = threading.Barrier(writers)

    def write(writer: int) -> list[int]:
        won = []
        for number in range(8):
            together.wait()
            stores[writer % 2].put(f"same{number}", b"same")
            try:
                stores[writer % 2].put(f"f{number}", b"%d" % writer)
                won.append(number)
            except IntegrityError:
                pass
        return won

    with ThreadPoolExecutor(writers) as pool:
        won = list(pool.map(write, range(writers)))
    assert sorted(number for numbers in won for number in numbers) == list(range(8))
    for writer, numbers in enumerate(won):
        assert all(stores[0].get(f"f{number}") == b"%d" % writer for number in numbers)


def test_only_what_must_last_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    Store(tmp_path).put("again", b"1", durable=False)
    assert not synced
    Store(tmp_path).put("once", b"1")
    assert len(synced) == 1


def test_another_process_reaches_s3_by_the_url_alone(s3: ObjectStore) -> None:
    store = Store(s3.url)
    code = f"{STORE}print(Store(sys.argv[1]).put('update', b'1').sha256)"
    command = [sys.executable, "-c", code, store.url]
    assert not store.has("update")
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert store.get("update", result.stdout.strip()) == b"1"


def test_a_listing_of_s3_that_is_old_hides_nothing(s3: ObjectStore) -> None:
    store = Store(s3.url)
    store.put("round/1", b"1")
    for options in ({}, {"use_listings_cache": False}):
        assert len(fsspec.filesystem("s3", **options).ls(f"{store.url}/round")) == 1
    # As another process would: this file system tells the others nothing.
    fsspec.filesystem("s3", skip_instance_cache=True).pipe_file(f"{store.url}/round/2", b"2")
    assert store.has("round/2")
    assert store.get("round/2") == b"2"


def test_a_large_artifact_goes_to_s3_in_parts_and_is_not_replaced(s3: ObjectStore) -> None:
    store = Store(s3.url)
    content = bytes(100 * 2**20)
    reference = store.put("weights", content)
    with pytest.raises(IntegrityError):
        store.put("weights", content[1:])
    assert store.get("weights", reference.sha256) == content


def test_an_s3_server_that_is_away_delays_and_loses_nothing(s3: ObjectStore) -> None:
    waits: list[float] = []

    def comes_back(seconds: float) -> None:
        waits.append(seconds)
        s3.start()

    store = Store(s3.url, sleep=comes_back)
    s3.stop()
    store.put("update", b"1")
    assert len(waits) == 1
    assert store.get("update") == b"1"


def test_a_bucket_that_is_not_there_is_named_at_once(s3: ObjectStore) -> None:
    with pytest.raises(StorageError, match="cannot write a to s3://nobody/x: .*bucket does not exist"):
        Store("s3://nobody/x").put("a", b"1")


def test_a_fifth_of_all_calls_fails_and_nothing_is_lost(distant: Callable[..., Store]) -> None:
    luck = random.Random(20)
    failed = 0
    waits: list[float] = []

    def weather(moment: str) -> None:
        nonlocal failed
        if luck.random() < 0.1:
            failed += 1
            raise luck.choice((ConnectionResetError(), TimeoutError(), OSError(errno.EIO, "I/O error")))

    store = distant(weather, sleep=waits.append)
    references = [store.put(f"update{number}", b"%d" % number) for number in range(200)]
    for number, reference in enumerate(references):
        assert store.has(reference.name)
        assert store.get(reference.name, reference.sha256) == b"%d" % number
        with pytest.raises(IntegrityError):
            store.put(reference.name, b"other")
    for reference in references:
        store.delete(reference.name)
        assert not store.has(reference.name)
    assert failed > 200
    assert all(0.05 <= seconds <= 5 for seconds in waits)


def test_a_place_that_is_away_for_a_minute_delays(distant: Callable[..., Store]) -> None:
    waits: list[float] = []

    def weather(moment: str) -> None:
        if sum(waits) < 60:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    store = distant(weather, sleep=waits.append)
    store.put("update", b"1")
    assert 60 <= sum(waits) <= 65
    assert store.get("update") == b"1"


def test_a_place_that_stays_away_is_named_after_the_patience(distant: Callable[..., Store]) -> None:
    def weather(moment: str) -> None:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    waits: list[float] = []
    store = distant(weather, sleep=waits.append)
    calls: dict[str, Callable[[], object]] = {
        "write update to": lambda: store.put("update", b"1"),
        "read update from": lambda: store.get("update"),
        "look for update in": lambda: store.has("update"),
        "delete update from": lambda: store.delete("update"),
    }
    for doing, call in calls.items():
        waits.clear()
        with pytest.raises(
            StorageError, match=f"cannot {doing} distant.*Connection refused, tried for 120 s"
        ) as raised:
            call()
        assert isinstance(raised.value.__cause__, ConnectionRefusedError)
        assert sum(waits) == pytest.approx(120, abs=1)
        assert 0.05 <= waits[0] <= 0.1
        assert 1 < max(waits) <= 5

    waits.clear()
    with pytest.raises(StorageError, match="tried for 3 s"):
        distant(weather, patience_seconds=3, sleep=waits.append).has("update")
    assert sum(waits) == pytest.approx(3, abs=0.1)


def test_a_disk_with_a_hiccup_is_tried_for_ten_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    sync = os.fsync

    def hiccup(descriptor: int) -> None:
        if sum(waits) < 5:
            raise OSError(errno.EIO, "Input/output error")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", hiccup)
    store = Store(tmp_path, sleep=waits.append)
    store.put("a", b"1")
    assert 5 <= sum(waits) <= 10
    assert [path.name for path in tmp_path.iterdir()] == ["a"]

    waits.clear()
    store = Store(tmp_path, sleep=lambda seconds: None)
    with pytest.raises(StorageError, match="cannot write b to .*Input/output error, tried for 10 s"):
        store.put("b", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_answer_that_was_lost_is_no_other_writer(distant: Callable[..., Store]) -> None:
    lost: list[str] = []

    def weather(moment: str) -> None:
        if moment == "done" and len(lost) < 3:
            lost.append(moment)
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    store = distant(weather, sleep=lambda seconds: None)
    assert store.put("update", b"mine").size == 4
    lost.clear()
    with pytest.raises(IntegrityError):
        store.put("update", b"other")
    lost.clear()
    store.delete("update")
    assert not store.has("update")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(errno.ECONNRESET, "reset"),
        TimeoutError(),
        *(OSError(number, "passes") for number in (errno.EIO, errno.EAGAIN, errno.ETIMEDOUT, errno.ESTALE, errno.EHOSTUNREACH)),
        *(from_s3(*answer) for answer in (("SlowDown", 503), ("InternalError", 500), ("RequestTimeout", 400))),
        *(from_s3(*answer) for answer in (("ConditionalRequestConflict", 409), ("TooManyRequests", 429), ("BadGateway", 502))),
        EndpointConnectionError(endpoint_url="http://away"),
        ClientPayloadError("half of it"),
    ],
    ids=repr,
)  # fmt: skip
def test_what_may_pass_is_tried_again(distant: Callable[..., Store], error: Exception) -> None:
    waits: list[float] = []

    def weather(moment: str) -> None:
        if not waits:
            raise error

    distant(weather, sleep=waits.append).put("update", b"1")
    assert len(waits) == 1


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "stays"),
        *(OSError(number, "stays") for number in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EISDIR)),
        *(from_s3(*answer) for answer in (("AccessDenied", 403), ("NoSuchBucket", 404), ("Unheard", 400), ("NotImplemented", 501))),
        NoCredentialsError(),
    ],
    ids=repr,
)  # fmt: skip
def test_what_stays_is_said_at_once(distant: Callable[..., Store], error: Exception) -> None:
    def weather(moment: str) -> None:
        raise error

    waits: list[float] = []
    store = distant(weather, sleep=waits.append)
    with pytest.raises(StorageError, match="cannot write update to distant"):
        store.put("update", b"1")
    if not isinstance(error, (FileNotFoundError, IsADirectoryError)):
        with pytest.raises(StorageError, match="cannot delete update from distant"):
            store.delete("update")
    assert not waits


def test_a_bug_is_no_matter_of_storage(distant: Callable[..., Store]) -> None:
    def weather(moment: str) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        distant(weather, sleep=lambda seconds: None).has("update")


@pytest.mark.parametrize("code", ["PreconditionFailed", "412"])
def test_a_server_that_only_says_precondition_failed_has_the_artifact(distant: Callable[..., Store], code: str) -> None:
    answers: list[BaseException] = []

    def weather(moment: str) -> None:
        if answers:
            raise answers.pop()

    store = distant(weather)
    reference = store.put("update", b"1")
    answers.append(from_s3(code, 412))
    assert store.put("update", b"1") == reference
    answers.append(from_s3(code, 412))
    with pytest.raises(IntegrityError):
        store.put("update", b"2")


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
