"""Keys, masks and shares of secrets: every use of cryptography in a secure sum.

X25519 (RFC 7748) gives each pair of clients a secret that the server does not know. HKDF (RFC 5869)
derives separate keys from it for each round and use. A mask is the key stream of ChaCha20 (RFC
8439) under a whole key of 256 bits, so that each of its bytes is uniform. Shares of a secret are
Shamir's, and travel under ChaCha20-Poly1305 (RFC 8439).
"""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, reduce
from hashlib import sha256
from operator import xor
from typing import Any

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

KEY_SIZE = 32
"""The bytes of a key, of a seed, and of a share of a seed."""

SEALED_SIZE = KEY_SIZE + 16
"""The bytes of a sealed share."""

NO_SHARE = bytes(KEY_SIZE)
"""Stands for a share that its holder could not read."""

_HALF = KEY_SIZE // 2
_MOST_PAIRS = 1 << 14
_NONCE = bytes(12)  # each key seals one message


def new_private_key() -> bytes:
    """Return a new private key from the operating system's entropy."""
    return X25519PrivateKey.generate().private_bytes_raw()


@lru_cache(maxsize=_MOST_PAIRS)
def public_key(private: bytes) -> bytes:
    """Return the public key of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def new_seed() -> bytes:
    """Return a new seed from the operating system's entropy."""
    return secrets.token_bytes(KEY_SIZE)


@lru_cache(maxsize=_MOST_PAIRS)  # a round takes each several times
def pair_secret(private: bytes, public: bytes) -> bytes:
    """Return the secret of two clients, the same on both sides.

    Raises
    ------
    ValueError
        If the public key is not one, or gives every private key the same secret.
    """
    other = X25519PublicKey.from_public_bytes(public)
    return X25519PrivateKey.from_private_bytes(private).exchange(other)


def derived(secret: bytes, *use: object) -> bytes:
    """Return a key for one use of a secret; keys of other uses reveal nothing about it.

    Parameters
    ----------
    secret : bytes
        The secret.
    *use : object
        What names the use, as text.
    """
    info = " ".join(map(str, ("fedmedian", *use))).encode()
    return HKDF(SHA256(), KEY_SIZE, salt=None, info=info).derive(secret)


def mask(seed: bytes, out: NDArray[np.unsignedinteger[Any]]) -> None:
    """Fill an array of residues, little-endian if wide, with the key stream of a seed."""
    stream = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
    out[:] = 0
    data = out.view(np.uint8).data
    stream.update_into(data, data)


def commitment(seed: bytes) -> bytes:
    """Return what binds a client to a seed without revealing it, 32 bytes."""
    return sha256(b"fedmedian commitment " + seed).digest()


def combined(parts: Iterable[bytes]) -> bytes:
    """Return the exclusive or of parts of a seed; without one of them it can be any seed."""
    return reduce(xor, map(int.from_bytes, parts)).to_bytes(KEY_SIZE)


def split(seed: bytes, holders: int, enough: int) -> list[bytes]:
    """Return shares of a seed: any `enough` of them reveal it, fewer reveal nothing."""
    halves = [Shamir.split(enough, holders, seed[at : at + _HALF], ssss=False) for at in (0, _HALF)]
    return [first + second for (_, first), (_, second) in zip(*halves, strict=True)]


def join(shares: Mapping[int, bytes]) -> bytes:
    """Return the seed in shares, by the holder's index; a wrong one if a share is wrong."""
    weights = _weights_of([index + 1 for index in shares])
    halves = []
    for at in (0, _HALF):
        values = (int.from_bytes(share[at : at + _HALF]) for share in shares.values())
        halves.append(_reduced(reduce(xor, map(_times, weights, values))).to_bytes(_HALF))
    return b"".join(halves)


def _weights_of(places: Sequence[int]) -> list[int]:
    """Return the weights of a polynomial's values at some places in its value at 0, by Lagrange.

    The library does the same, but takes tens of times as long, because it multiplies by places as
    if they had 128 bits. After a single dropout the server joins shares for every other client.
    """
    every, weights = 1, []
    for place in places:
        every = _reduced(_times(every, place))
    for place in places:
        others = place
        for other in places:
            if other != place:
                others = _times(others, place ^ other)
        weights.append(_reduced(_times(every, _inverse(_reduced(others)))))
    return weights


def _times(one: int, other: int) -> int:
    """Return the product of two polynomials modulo 2, whose coefficients are bits."""
    product = 0
    while other:
        last = other & -other
        product ^= one << last.bit_length() - 1
        other ^= last
    return product


def _reduced(value: int) -> int:
    """Return a polynomial modulo that of Shamir's field, x^128 + x^7 + x^2 + x + 1."""
    while high := value >> 128:
        value ^= high << 128 ^ high << 7 ^ high << 2 ^ high << 1 ^ high
    return value


def _inverse(value: int) -> int:
    """Return one over an element of Shamir's field, by Euclid's algorithm."""
    one, other, factor, cofactor = value, 1 << 128 | 0x87, 1, 0
    while one != 1:
        if (shift := one.bit_length() - other.bit_length()) < 0:
            one, other, factor, cofactor = other, one, cofactor, factor
            shift = -shift
        one ^= other << shift
        factor ^= cofactor << shift
    return _reduced(factor)


def seal(key: bytes, share: bytes) -> bytes:
    """Return a share that only the holder of a key can read; a key seals one share."""
    return ChaCha20Poly1305(key).encrypt(_NONCE, share, None)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """Return the share in a sealed one, or `NO_SHARE` if it was not sealed with this key."""
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, None)
    except InvalidTag:  # the others' shares may be enough
        return NO_SHARE
