"""A Prefect API for as long as one command runs: started beside it, and gone when it is gone, even when it was killed.

Run as a module, this is the server process itself, also of `bitfount-flows up`: `python -m flows.prefect_server PORT --help`.
Nothing heavy is imported here: the server starts while the command is still importing what it needs.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flows.environment import SERVER

WAIT_SECONDS = 120
ANSWER_SECONDS = 10
POLL_SECONDS = 0.05
LOOPBACK = ("127.0.0.1", "localhost")


class ServerError(RuntimeError):
    """A Prefect server does not answer."""


class PrefectServer:
    """A Prefect server process on a free loopback port.

    Args:
        home: the folder of its SQLite database and log.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/api"
        self.log = home / "server.log"
        database = f"sqlite+aiosqlite:///{(home / 'prefect.db').resolve()}"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-m", "flows.prefect_server", str(port), "--parent", str(os.getpid())],
                env={
                    **os.environ,
                    **SERVER,
                    "PREFECT_HOME": str(home.resolve()),
                    "PREFECT_API_DATABASE_CONNECTION_URL": database,
                    "PREFECT_UI_ENABLED": "0",
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A Ctrl-C is for the command alone: the server stays until the command has said its last word.
                start_new_session=True,
            )

    def wait(self) -> str:
        """Blocks until the API answers.

        Returns:
            Its URL.

        Raises:
            ServerError: the server stopped, or did not answer in time.
        """
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerError(f"the Prefect server stopped with code {self._process.returncode}; see {self.log}")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=1):  # noqa: S310 - our own loopback address
                    return self.url
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(POLL_SECONDS)
        self.stop()
        raise ServerError(f"the Prefect server did not answer within {WAIT_SECONDS} s; see {self.log}")

    def stop(self) -> None:
        """Ends the process."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def prefect_server(home: Path) -> Iterator[PrefectServer | None]:
    """A server for as long as the block; None where `PREFECT_API_URL` names the user's own."""
    if os.environ.get("PREFECT_API_URL"):
        yield None
        return
    server = PrefectServer(home)
    try:
        yield server
    finally:
        server.stop()


def require_answer(url: str) -> None:
    """Asks a Prefect API that the user named whether it is there: Prefect itself would try for long, and say little.

    Raises:
        ServerError: nothing answers.
    """
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=ANSWER_SECONDS):  # noqa: S310 - the user's own URL
            return
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise ServerError(
                f"{url} (PREFECT_API_URL) is no Prefect API: it knows no /health. A Prefect server's own URL ends in /api."
            ) from error
        return  # whether it lets us in is for Prefect to say
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLError):
            return  # Prefect may have been told which certificate to trust
        raise ServerError(
            f"Prefect at {url} (PREFECT_API_URL) cannot be reached: {reason}. Start it, or unset PREFECT_API_URL to run without a"
            " server of your own."
        ) from error


def free_port() -> int:
    """A port of loopback on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_with(parent: int) -> None:
    """Ends this process soon after its parent has gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def serve(port: int, host: str, allowed_hosts: Sequence[str], parent: int | None) -> None:
    """Runs the server in this process.

    Args:
        port: to listen on.
        host: address to listen on.
        allowed_hosts: names, besides this machine's own, that a request may give in its Host header. Prefect takes any, so
            that a page of another site whose name is made to point here could read the answers.
        parent: process with which the server ends; None for a server that stays.
    """
    import uvicorn
    from fastapi.middleware.trustedhost import TrustedHostMiddleware
    from prefect.server.api.server import create_app

    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    uvicorn.run(
        TrustedHostMiddleware(create_app(), [*LOOPBACK, *allowed_hosts], www_redirect=False),
        host=host,
        port=port,
        log_level="warning",
        lifespan="on",
    )


def main(arguments: Sequence[str]) -> None:
    """The server process."""
    parser = argparse.ArgumentParser(prog="python -m flows.prefect_server")
    parser.add_argument("port", type=int)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--allowed-hosts", nargs="*", default=[])
    parser.add_argument("--parent", type=int)
    given = parser.parse_args(arguments)
    serve(given.port, given.host, given.allowed_hosts, given.parent)


if __name__ == "__main__":
    main(sys.argv[1:])
