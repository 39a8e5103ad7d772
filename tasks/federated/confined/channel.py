"""What a pod and its model's process say to each other: a JSON header, over a socket, and bytes, in a file in memory.

    4 bytes: length of the header | 8 bytes: length of the body | header, JSON in UTF-8

Lengths are big-endian. The body begins where the file begins: one writes and one reads at a time, for every question has one
answer. Nothing is unpickled, no file descriptor is taken, the pod copies the file before it looks at it, and nothing is longer
than the reader says.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitfount_model.errors import ConfinementError
from bitfount_model.types import JSON

LENGTHS = struct.Struct("!IQ")
MAX_HEADER_BYTES = 1024**2
"""Of what the model's process says; schemas and the like, which the pod says, may be longer."""
LOOK_MILLISECONDS = 200
"""How often a wait is interrupted: a deadline that is kept by another thread is only seen between two calls of the kernel."""


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        header: a JSON object.
        body: bytes that belong to it, often none, which may be changed; where the other side is trusted they stay until
            something with a body is sent.
    """

    header: JSON
    body: memoryview


class Channel:
    """One end of the socket.

    Args:
        connected: the socket.
        shared: descriptor of the file, which is closed with the channel.
        trusting: whether the other side may be trusted to leave the file alone, and to keep its length, while it is read.
    """

    def __init__(self, connected: socket.socket, shared: int, *, trusting: bool = False) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._shared = shared
        self._trusting = trusting
        self._owner = os.getpid()

    def send(self, header: JSON, body: Sequence[bytes | memoryview] = ()) -> None:
        """Says something.

        Args:
            header: a JSON object.
            body: bytes that belong to it, in pieces that follow each other.

        Raises:
            ConnectionError: the other side has gone.
        """
        if os.getpid() != self._owner:
            os._exit(1)  # a copy of the process, which the model made, has no say here
        text = json.dumps(header).encode()
        length = sum(map(len, body))
        if length:
            os.ftruncate(self._shared, length)
            self._write_file(body)
        rest = memoryview(LENGTHS.pack(len(text), length) + text)
        while len(rest):
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                self._wait(select.POLLOUT)

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
        header = self._read(header_length)
        return None if header is None else Message(_parsed(bytes(header)), self._read_file(body_length))

    def close(self) -> None:
        """Ends it."""
        self._socket.close()
        os.close(self._shared)

    def _write_file(self, pieces: Sequence[bytes | memoryview]) -> None:
        place = 0
        for piece in pieces:
            view = memoryview(piece)
            while len(view):
                count = os.pwrite(self._shared, view, place)
                view, place = view[count:], place + count

    def _read_file(self, length: int) -> memoryview:
        if self._trusting and length:
            return memoryview(mmap.mmap(self._shared, length, access=mmap.ACCESS_COPY))
        view, place = np.empty(length, dtype=np.uint8).data, 0  # not set to 0 first
        while place < length:
            count = os.preadv(self._shared, [view[place:]], place)
            if not count:
                raise ConfinementError(f"the model's process sends {place} bytes where it says that there are {length}")
            place += count
        return view

    def _read(self, length: int) -> bytearray | None:
        """So many bytes of the socket; None where there are fewer."""
        content = bytearray(length)
        rest = memoryview(content)
        while len(rest):
            try:
                count = self._socket.recv_into(rest)
            except BlockingIOError:
                self._wait(select.POLLIN)
                continue
            except ConnectionError:
                return None
            if not count:
                return None
            rest = rest[count:]
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
