"""From 32-byte keys to masks on a vector: AES-256-CTR key streams, added or subtracted in place in Z_2^64.

The stream of a key is read as little-endian words of 64 bits. A key masks one vector only, so its counter starts at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from bitfount_model.types import Words

_BLOCK = 16  # bytes of an AES block
_CHUNK = 1 << 16  # bytes of stream made at a time: words, zeros and stream stay in a core's cache
_WORDS = _CHUNK // 8


@dataclass(frozen=True)
class Mask:
    """A mask and its sign.

    Attributes:
        key: 32 bytes.
        added: True if it is added, False if it is subtracted.
    """

    key: bytes = field(repr=False)
    added: bool


def apply_masks(words: Words, masks: Sequence[Mask], *, threads: int = 1) -> None:
    """Adds masks to a vector, in place, all of them to one chunk before the next.

    Args:
        words: contiguous; changed.
        masks: each with a key of its own.
        threads: that share a long vector; the interpreter's lock is not held while masks are made and added.
    """
    share = -(-len(words) // (threads * _WORDS)) * _WORDS
    with ThreadPoolExecutor(threads) as pool:
        parts = [
            pool.submit(_apply, words[first : first + share], masks, first)
            for first in range(0, len(words), share or 1)
        ]
    for part in parts:
        part.result()


def _apply(words: Words, masks: Sequence[Mask], first: int) -> None:
    """Adds the masks of the words from number `first` on, a multiple of a chunk's."""
    zeros, stream = memoryview(bytes(_CHUNK)), bytearray(_CHUNK + _BLOCK - 1)
    streamed = np.frombuffer(stream, dtype="<u8", count=_WORDS)
    start = CTR((first * 8 // _BLOCK).to_bytes(_BLOCK, "big"))
    steps = [
        (Cipher(AES256(mask.key), start).encryptor().update_into, np.add if mask.added else np.subtract)
        for mask in masks
    ]
    for begin in range(0, len(words), _WORDS):
        chunk = words[begin : begin + _WORDS]
        blank, mask_words = zeros[: chunk.nbytes], streamed[: len(chunk)]
        for encrypt, apply in steps:
            encrypt(blank, stream)  # of zeros: the key stream itself
            apply(chunk, mask_words, out=chunk)
