"""From seeds to keys, masks and shares: every use of a cryptographic primitive in a secure sum but the masks' streams.

Primitives are those of `cryptography` (X25519, HKDF-SHA256, ChaCha20-Poly1305) and of PyCryptodome (Shamir's secret
sharing over GF(2^128)). Every derived key has a label of its own and is bound to the context and to who it is between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from bitfount_model.errors import SecureSumError
from bitfount_model.federation.secure_sum.context import Context, canonical
from bitfount_model.federation.secure_sum.messages import SEED_BYTES, EncryptedShare, PublicKeys

Randomness = Callable[[int], bytes]
"""How many bytes -> so many secret bytes that nobody can guess, as `os.urandom`."""

_NONCE_BYTES = 12


def masking_key(context: Context, pod: str, seed: bytes) -> X25519PrivateKey:
    """The private key of a pod's pairwise masks, from its seed of 16 bytes."""
    return X25519PrivateKey.from_private_bytes(_derived(context, "masking key", seed, pod))


def self_mask_key(context: Context, pod: str, seed: bytes) -> bytes:
    """The 32-byte AES key of a pod's self mask, from its seed of 16 bytes."""
    return _derived(context, "self mask", seed, pod)


def commitment(context: Context, pod: str, seed: bytes) -> bytes:
    """32 bytes that only this seed of a self mask gives; independent of the mask."""
    return _derived(context, "commitment to the self mask", seed, pod)


def pairwise_mask_key(context: Context, private: X25519PrivateKey, mine: PublicKeys, theirs: PublicKeys) -> bytes:
    """The 32-byte AES key of the mask between two pods, the same from either side.

    Args:
        context: of the sum.
        private: the masking key of one of them.
        mine: that pod's public keys.
        theirs: the other's.

    Raises:
        SecureSumError: the other's key is of low order, so that everybody knows the mask.
    """
    first, second = sorted((mine, theirs), key=lambda keys: keys.pod)
    between = (first.pod, second.pod, first.masking.hex(), second.masking.hex())
    return _derived(context, "pairwise mask", _agreed(private, theirs.pod, theirs.masking), *between)


def encrypted(
    context: Context,
    private: X25519PrivateKey,
    sender: PublicKeys,
    receiver: PublicKeys,
    shares: tuple[bytes, bytes],
    randomness: Randomness,
) -> EncryptedShare:
    """Shares for another pod, as only it can read them, and as only this pod can have written them.

    Args:
        context: of the sum.
        private: the sender's sharing key.
        sender: its public keys.
        receiver: the other pod's.
        shares: of the masking key's seed, and of the self mask's; 16 bytes each.
        randomness: for the nonce.

    Raises:
        SecureSumError: the receiver's key is of low order.
    """
    nonce = randomness(_NONCE_BYTES)
    cipher = ChaCha20Poly1305(_share_key(context, private, receiver, sender, receiver))
    sealed = cipher.encrypt(nonce, b"".join(shares), _share_header(context, sender.pod, receiver.pod))
    return EncryptedShare(sender.pod, receiver.pod, context.digest, nonce + sealed)


def decrypted(
    context: Context, private: X25519PrivateKey, sender: PublicKeys, receiver: PublicKeys, share: EncryptedShare
) -> tuple[bytes, bytes]:
    """The inverse of `encrypted`, at the receiver.

    Args:
        context: of the sum.
        private: the receiver's sharing key.
        sender: the other pod's public keys.
        receiver: its own.
        share: what came.

    Returns:
        The shares of the masking key's seed and of the self mask's.

    Raises:
        SecureSumError: it is damaged, or was made for another sum, by another pod or for another one.
    """
    nonce, sealed = share.ciphertext[:_NONCE_BYTES], share.ciphertext[_NONCE_BYTES:]
    cipher = ChaCha20Poly1305(_share_key(context, private, sender, sender, receiver))
    try:
        opened = cipher.decrypt(nonce, sealed, _share_header(context, sender.pod, receiver.pod))
    except (InvalidTag, ValueError) as error:
        raise SecureSumError(
            f"{context}: the share of pod {sender.pod!r} for pod {receiver.pod!r} cannot be read: it is damaged, or was made"
            " for another round, for another pod or by another one"
        ) from error
    if len(opened) != 2 * SEED_BYTES:
        raise SecureSumError(
            f"{context}: the share of pod {sender.pod!r} for pod {receiver.pod!r} has {len(opened)} bytes, want"
            f" {2 * SEED_BYTES}"
        )
    return opened[:SEED_BYTES], opened[SEED_BYTES:]


def split(context: Context, seed: bytes) -> dict[str, bytes]:
    """Shares of a seed of 16 bytes, one for each pod of the context; fewer than the threshold tell nothing about it.

    Shamir, "How to share a secret" (1979). A pod's share is that of its place in the order of names.
    """
    shares = Shamir.split(context.threshold, len(context.pods), seed, ssss=False)
    return {context.pods[place - 1]: share for place, share in shares}


def combined(context: Context, shares: Mapping[str, bytes]) -> bytes:
    """The seed of 16 bytes behind shares; something else, in silence, if one of them is wrong.

    Args:
        context: of the sum.
        shares: pod -> its share, as many as the threshold.
    """
    placed = [(context.pods.index(pod) + 1, share) for pod, share in shares.items()]
    return Shamir.combine(placed, ssss=False)


def _share_key(
    context: Context, private: X25519PrivateKey, other: PublicKeys, sender: PublicKeys, receiver: PublicKeys
) -> bytes:
    """A key for the one message from sender to receiver, the same at both of them."""
    between = (sender.pod, receiver.pod, sender.sharing.hex(), receiver.sharing.hex())
    return _derived(context, "share encryption", _agreed(private, other.pod, other.sharing), *between)


def _share_header(context: Context, sender: str, receiver: str) -> bytes:
    return canonical("share", context.digest, sender, receiver)


def _agreed(private: X25519PrivateKey, pod: str, public: bytes) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise SecureSumError(
            f"the key of pod {pod!r} is no usable X25519 key: what is agreed on with it would be known to everybody"
        ) from error


def _derived(context: Context, label: str, secret: bytes, *between: str) -> bytes:
    """HKDF-SHA256 (RFC 5869) with the context's digest as salt: 32 bytes for one purpose."""
    salt = bytes.fromhex(context.digest)
    return HKDF(SHA256(), 32, salt, canonical(label, *between)).derive(secret)
