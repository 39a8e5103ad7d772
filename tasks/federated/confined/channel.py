"""What a pod and its model's process say to each other: a JSON header and bytes, over one socket, each with its length before it.

    4 bytes: length of the header | 8 bytes: length of the body | header, JSON in UTF-8 | body

Lengths are big-endian. Nothing is unpickled, no file descriptor is taken, and nothing is longer than the reader says.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
from dataclasses import dataclass
from typing import Any

from bitfount_model.errors import ConfinementError
from bitfount_model.types import JSON

LENGTHS = struct.Struct("!IQ")
MAX_HEADER_BYTES = 1024**2
"""Of what the model's process says; schemas and the like, which the pod says, may be longer."""
LOOK_MILLISECONDS = 200
"""How often a wait is interrupted: a deadline that is kept by another thread is only seen between two calls of the kernel."""
PIECE_BYTES = 1024**2


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        header: a JSON object.
        body: bytes that belong to it, often none.
    """

    header: JSON
    body: bytearray


class Channel:
    """One end of the socket.

    Args:
        connected: the socket.
    """

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._owner = os.getpid()

    def send(self, header: JSON, body: bytes | memoryview = b"") -> None:
        """Says something.

        Raises:
            ConnectionError: the other side has gone.
        """
        if os.getpid() != self._owner:
            os._exit(1)  # a copy of the process, which the model made, has no say here
        text = json.dumps(header).encode()
        for part in (LENGTHS.pack(len(text), len(body)) + text, body):
            view = memoryview(part).cast("B")
            while len(view):
                self._wait(select.POLLOUT)
                try:
                    view = view[self._socket.send(view) :]
                except BlockingIOError:
                    continue

    def receive(self, max_header: int, max_body: int) -> Message | None:
        """Waits for what the other side says next; None once it has gone.

        Args:
            max_header: the longest header that is read, in bytes.
            max_body: the longest body.

        Raises:
            ConfinementError: what comes is no message, or longer than that.
        """
        lengths = self._read(LENGTHS.size)
        if lengths is None:
            return None
        header_length, body_length = LENGTHS.unpack(lengths)
        if header_length > max_header or body_length > max_body:
            raise ConfinementError(
                f"the model's process sends {header_length} bytes of header and {body_length} bytes, at most {max_header} and"
                f" {max_body} are taken"
            )
        header, body = self._read(header_length), self._read(body_length)
        return None if header is None or body is None else Message(_parsed(bytes(header)), body)

    def close(self) -> None:
        """Ends it."""
        self._socket.close()

    def _read(self, length: int) -> bytearray | None:
        """So many bytes; memory is taken as they come. None where there are fewer."""
        content = bytearray()
        while len(content) < length:
            self._wait(select.POLLIN)
            try:
                piece = self._socket.recv(min(PIECE_BYTES, length - len(content)))
            except BlockingIOError:
                continue
            except ConnectionError:
                return None
            if not piece:
                return None
            content += piece
        return content

    def _wait(self, event: int) -> None:
        waiting = select.poll()
        waiting.register(self._socket, event)
        while not waiting.poll(LOOK_MILLISECONDS):
            pass


def _parsed(text: bytes) -> JSON:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfinementError("the model's process sends a header that is no JSON") from error
    if not isinstance(value, dict):
        raise ConfinementError("the model's process sends a header that is no JSON object")
    return value
