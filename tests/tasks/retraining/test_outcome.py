"""A webhook: what its answers mean, and that its address, which may be a secret, is not in an error."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from bitfount_model.errors import BitfountError, ConfigurationError, TrackingError
from tasks.retraining.outcome import post
from tests.tracking_server import free_port


@pytest.fixture(scope="module")
def hook() -> Iterator[str]:
    """A server that answers with the status that the path asks for."""

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(int(self.path.rpartition("/")[2]))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/secret/"
        server.shutdown()


@pytest.mark.parametrize("status", [200, 201, 204])
def test_an_answer_of_success_is_enough(hook: str, status: int) -> None:
    post.fn(f"{hook}{status}", {"outcome": "kept"})


@pytest.mark.parametrize(
    ("status", "error"),
    [(500, TrackingError), (503, TrackingError), (404, ConfigurationError), (401, ConfigurationError)],
)
def test_a_refusal_is_an_error_that_is_tried_again_where_that_may_help(
    hook: str, status: int, error: type[BitfountError]
) -> None:
    with pytest.raises(error, match=str(status)) as raised:
        post.fn(f"{hook}{status}", {})
    assert "secret" not in str(raised.value)


def test_nobody_at_the_address_is_an_error_without_the_address() -> None:
    with pytest.raises(TrackingError, match="cannot be reached") as raised:
        post.fn(f"http://127.0.0.1:{free_port()}/secret", {})
    assert "secret" not in str(raised.value)


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no URL"):
        post.fn("http://secret:port", {})
