"""The cipher ChaCha20 as a NumPy bit generator; needs the extra ``privacy``."""

import secrets
from collections.abc import Iterable

from randomgen import ChaCha


class ChaCha20(ChaCha):  # type: ignore[misc]
    """The key stream of ChaCha20 (RFC 8439), for noise that must not be reproducible by others.

    The cipher is randomgen's. randomgen passes seeds through a SeedSequence, which is not
    cryptographic and keeps only 128 bits; here the seed is the key itself.

    Parameters
    ----------
    seed : iterable of int, optional
        Four integers below 2⁶⁴ that form the key. By default the key comes from the operating
        system's entropy.
    """

    def __init__(self, seed: Iterable[int] | None = None) -> None:
        key = secrets.token_bytes(32)
        if seed is not None:
            key = b"".join(word.to_bytes(8, "little") for word in seed)
        super().__init__(key=int.from_bytes(key, "little"))
