"""The cipher ChaCha20 as a bit generator of NumPy's; needs the extra ``privacy``."""

import secrets
from collections.abc import Iterable

from randomgen import ChaCha


class ChaCha20(ChaCha):  # type: ignore[misc]
    """The key stream of ChaCha20 (RFC 8439), for noise that nobody must be able to draw again.

    The cipher is randomgen's. Its own seeds pass through a SeedSequence, which is no cryptographic
    function and leaves 128 bits of them; here they are the key.

    Parameters
    ----------
    seed : iterable of int, optional
        Four integers below 2⁶⁴ that make up the key. Without them the key is the operating
        system's entropy.
    """

    def __init__(self, seed: Iterable[int] | None = None) -> None:
        key = (
            secrets.token_bytes(32)
            if seed is None
            else b"".join(word.to_bytes(8, "little") for word in seed)
        )
        super().__init__(key=int.from_bytes(key, "little"))
