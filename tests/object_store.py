"""A real S3 server on loopback, for tests: moto behind a plain HTTP server, reached by s3fs through the environment alone."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import s3fs
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import BaseWSGIServer, make_server


class _Quiet(MotoRequestHandler):
    """Keeps requests out of the tests' output."""

    def log(self, type: str, message: str, *args: Any) -> None:
        """Says nothing."""


class ObjectStore:
    """An S3 server that can be stopped and started again on the same port; what was written stays.

    Attributes:
        bucket: its only bucket; another name each time, since moto keeps one set of buckets for a whole process.
        environment: the variables under which s3fs, in this or another process, reaches it with a plain `s3://` URL.
        requests: how many it has answered.
    """

    def __init__(self) -> None:
        self._port = 0
        self._server: BaseWSGIServer | None = None
        self._thread: threading.Thread | None = None
        self._application = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self.requests = 0
        self.bucket = f"artifacts-{uuid.uuid4().hex[:8]}"
        self.start()
        self.environment: Mapping[str, str] = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",  # of botocore's own; what is to be patient is what is tested
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    @property
    def url(self) -> str:
        """A prefix of the bucket under which nothing is yet; another one each time."""
        return f"s3://{self.bucket}/{uuid.uuid4().hex}"

    def start(self) -> None:
        """Listens, on the same port as before if it was stopped."""
        self._server = make_server("127.0.0.1", self._port, self._answer, threaded=True, request_handler=_Quiet)
        self._port = self._server.port
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Listens no more: who calls is refused."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server = None

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        # S3 decides conditional writes one after the other; moto looks and then writes, so its requests must not overlap.
        with self._lock:
            self.requests += 1
            return list(self._application(environ, start_response))


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A server with an empty bucket; its environment is that of this process and of those that it starts meanwhile."""
    store = ObjectStore()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        patch.delenv("AWS_SESSION_TOKEN", raising=False)
        # Instances are kept by their options, and the server's address is not among them.
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir(store.bucket)
        try:
            yield store
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            store.stop()
