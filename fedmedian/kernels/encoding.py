"""Packed signs of an update with noise, drawn directly in one pass.

The sign of u + b·ξ is +1 with probability p = F(u/b), so ξ is never sampled: a uniform U is
compared with p. The first byte of U nearly always decides, even against a fast, rough p. Where it
comes close, in one coordinate of 128, the exact p is computed and U gets its remaining bits. The
law of the votes is exact, whatever the rough p.

As a privacy mechanism, votes avoid the flaw of floating-point noise (Mironov, CCS 2012): only some
low bits of u + b·ξ are possible for a given u, and they reveal it. Here no such sum is formed. One
bit is released per coordinate, and any u may produce either value. Rounding only affects p. In the
ratio u/b it is one part in 2²⁴, as if b were smaller by that much. In F and U it is about 2⁻⁵²,
negligible against p while |u| ≤ 5·b in each coordinate. A noise multiplier of at least 0.2
guarantees that, and so does a `Limit` of 5·b, with any multiplier. Noise that is added to a vector
and sent does have the flaw.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedmedian.kernels.signs import Float32, Float64, PackedSigns, packed_size

ROUGH_ERROR = 5e-4
"""The largest error of `VoteLaw.rough_vote`."""

# A multiple of the eight coordinates whose random bytes are drawn at once.
_CHUNK = 1 << 16


class VoteLaw(Protocol):
    """The part of a noise law of variance 1 that votes depend on; `Noise` has it.

    With F its distribution function, P(sign(u + b·ξ) = +1) = F(u/b).
    """

    def cdf(self, x: Float64) -> NDArray[Any]:
        """Return F(x), elementwise."""

    def rough_vote(self, x: Float32) -> Float32:
        """Return 2F(x) − 1, elementwise and in [−1, 1], quickly and within `ROUGH_ERROR`."""


def pack_noisy_signs(
    parts: Iterable[Float32],
    dim: int,
    noise: VoteLaw,
    scales: Iterable[np.float32],
    rng: np.random.Generator,
) -> PackedSigns:
    """Draw the signs of u + b·ξ, and pack them.

    Line 3 of Algorithms 1 and 3 of arXiv 1906.01736: P(+1) = F(u/b) for each coordinate,
    independently.

    Parameters
    ----------
    parts : iterable of L (n,) float32
        The blocks of the update u, finite, in order. They are not changed, and read one at a time.
    dim : int
        d, the number of coordinates of all blocks together.
    noise : VoteLaw
        The law of ξ.
    scales : iterable of L float32
        The noise scale b >= 0 of each block, read after the block. Where b = 0 the sign is that of
        u, and a fair coin if u = 0.
    rng : numpy.random.Generator
        Its state determines the signs, and advances. All randomness comes from bit generators of
        its class, which must accept a list of integers below 2⁶³ as seed.

    Returns
    -------
    (⌈d/8⌉,) uint8
        The packed signs.

    Examples
    --------
    >>> from fedmedian import Gaussian
    >>> update, scales = np.array([9.0, -9.0], np.float32), np.ones(1, np.float32)
    >>> pack_noisy_signs([update], 2, Gaussian(), scales, np.random.default_rng(0)).tolist()
    [128]
    """
    packed = np.empty(packed_size(dim), dtype=np.uint8)
    # Two streams, so that no coordinate shifts the random numbers of another.
    kind, seeds = type(rng.bit_generator), rng.integers(0, 1 << 63, (2, 4)).tolist()
    first_bytes, further_bits = (np.random.Generator(kind(seed)) for seed in seeds)
    error = np.float32(128 * ROUGH_ERROR)
    # Ratios may overflow, which is correct; 0/0 is handled below.
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        for start, ratio in zip(range(0, dim, _CHUNK), _ratios(parts, dim, scales), strict=True):
            words = first_bytes.integers(0, 1 << 64, packed_size(ratio.size), dtype=np.uint64)
            drawn = words.view(np.uint8)[: ratio.size]
            # 256·p is at least this, and exceeds its integer part by less than 2.
            rough = noise.rough_vote(ratio)
            rough *= np.float32(128)
            rough += np.float32(128) - error
            surely = rough.astype(np.uint8)
            positive = drawn < surely
            close = np.flatnonzero(drawn - surely < 2)
            uniform = drawn[close] + further_bits.random(close.size)
            positive[close] = uniform < 256 * noise.cdf(ratio[close].astype(np.float64))
            packed[start // 8 : (start + _CHUNK) // 8] = np.packbits(positive)
    return packed


def _ratios(parts: Iterable[Float32], dim: int, scales: Iterable[np.float32]) -> Iterator[Float32]:
    """Yield u/b in chunks, 0 for 0/0; each is overwritten by the next."""
    ratios, filled = np.empty(min(_CHUNK, dim), dtype=np.float32), 0
    for part, scale in zip(parts, scales, strict=True):
        position = 0
        while position < part.size:
            ratio = ratios[filled : filled + part.size - position]
            np.divide(part[position : position + ratio.size], scale, out=ratio)
            if scale == 0:
                ratio[np.isnan(ratio)] = 0
            position, filled = position + ratio.size, filled + ratio.size
            if filled == ratios.size:
                yield ratios
                filled = 0
    if filled:
        yield ratios[:filled]
