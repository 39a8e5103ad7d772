"""The S3 server of the tests."""

from __future__ import annotations

import s3fs

from tests.object_store import object_store


def test_each_server_begins_with_an_empty_bucket_of_its_own() -> None:
    for _ in range(2):
        with object_store() as server:
            files = s3fs.S3FileSystem()
            assert files.ls(server.bucket) == []
            files.pipe(f"{server.url}/left-behind", b"bytes")
