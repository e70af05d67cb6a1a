"""Measurements of a round's votes or vectors, for the round's report."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from fedmedian.blocks import Blocks
from fedmedian.decoding import mean_per_vote
from fedmedian.noise import Noise

Float32 = NDArray[np.float32]

_CHUNK = 1 << 14

SAMPLE = 1 << 14
"""The number of evenly spread coordinates, about, over which a median is taken."""

PER_BLOCK = ("noise-scale", "signal-to-noise-per-block")
"""The measurements that are a list, of as many entries as a round has blocks."""

Report = dict[str, float | list[float]]
"""Measurements that are worth reporting about a round, by name."""


def describe_votes(
    votes: Float32, weights: NDArray[np.float64], blocks: Blocks, noise: Noise | None
) -> Report:
    """Describe weighted sums of signs.

    Parameters
    ----------
    votes : (d,) float32
        Σ_i w_{i,l}·s_i per coordinate, the decoded mean where the weights say so.
    weights : (M, L) float64
        The weight of each client's votes on each block.
    blocks : Blocks
        The votes' blocks.
    noise : Noise or None
        The clients' noise family.

    Returns
    -------
    dict
        ``vote-agreement``, the mean over coordinates of |Σ w_i·s_i|/Σ w_i, in [0, 1]. With noise,
        and unless all votes agree, also ``signal-to-noise``, the votes' expected energy over
        their noise's, estimated, and ``signal-to-noise-per-block``; both are too low by about
        the mean of E[s_i]² where clients disagree. And ``margin``, how many clients of mean
        weight would have had to vote otherwise to turn a coordinate, the median over a sample of
        coordinates.
    """
    agreement = signals = spreads = 0.0
    ratios, excess, stride = [], [], sample_stride(blocks.dim)
    reach = weights.sum(axis=0).tolist()
    for part, total, column in zip(blocks.split(votes), reach, weights.T, strict=True):
        signal = spread = 0.0
        if total > 0 and part.size > 0:
            agreement += _sum_of_magnitudes(part) / total
            excess.append(np.abs(part[::stride]) * np.float32(len(weights) / total))
            # E[v²] = μ² + (1 − μ²)·n for mean votes v of expectation μ, with n = Σw²/(Σw)².
            share = float(np.square(column).sum()) / total**2
            if share < 1:
                energy = float(np.vdot(part, part)) / part.size / total**2
                expected = min(max((energy - share) / (1 - share), 0.0), 1.0)
                signal = part.size * total**2 * expected
                spread = part.size * total**2 * share * (1 - expected)
        ratios.append(signal / spread if spread > 0 else 0.0)
        signals, spreads = signals + signal, spreads + spread
    report: Report = {"vote-agreement": agreement / max(blocks.dim, 1)}
    report |= _margin(excess)
    if noise is not None and spreads > 0:
        report["signal-to-noise"] = signals / spreads
        report["signal-to-noise-per-block"] = ratios
    return report


@dataclass
class MeanGap:
    """The distance between a median and the mean of the vectors, measured part by part.

    Parameters
    ----------
    energy : float (default: 0.0)
        Σ(median − mean)² over the coordinates seen so far.
    opposite : int (default: 0)
        The number of those coordinates where median and mean have opposite signs.
    """

    energy: float = 0.0
    opposite: int = 0

    def add(self, median: Float32, rows: Sequence[Float32]) -> None:
        """Take in a part: its median, (n,) float32, and the vectors', M times (n,) float32."""
        with np.errstate(over="ignore", invalid="ignore"):  # a bad client's values may be huge
            for start in range(0, median.size, _CHUNK):
                chunk = slice(start, start + _CHUNK)
                mean = rows[0][chunk].copy()
                for row in rows[1:]:
                    mean += row[chunk]
                mean /= np.float32(len(rows))
                difference = median[chunk] - mean
                self.energy += float(np.square(difference, dtype=np.float64).sum())
                self.opposite += count_opposite_signs(median[chunk], mean)


def describe_median(
    median: Float32,
    gap: MeanGap,
    excess: Sequence[Float32],
    num_rows: int,
    scales: NDArray[np.float64],
    blocks: Blocks,
    noise: Noise | None,
) -> Report:
    """Describe the median of vectors.

    Parameters
    ----------
    median : (d,) float32
        The median.
    gap : MeanGap
        What was measured between it and the mean.
    excess : sequence of (n,) float32
        By how many vectors one sign is more frequent than the other, at sampled coordinates.
    num_rows : int
        M, the number of vectors.
    scales : (L,) float64
        The noise scale of each block in the vectors, 0 for none.
    blocks : Blocks
        The vectors' blocks.
    noise : Noise or None
        The family of that noise.

    Returns
    -------
    dict
        ``median-mean-gap``, the L2 norm of the median minus the mean of the vectors that it is
        of, the quantity that the theory turns on; ``majority-contradicts-mean``, the fraction of
        coordinates where the two have opposite signs; ``margin``, how many vectors would have had
        to lie elsewhere to turn a coordinate, the median over the sample. With noise also
        ``signal-to-noise``, the median's energy over its noise's by the asymptotic variance
        b²/(4·φ0²·M), and ``signal-to-noise-per-block``.
    """
    report: Report = {
        "median-mean-gap": sqrt(gap.energy),
        "majority-contradicts-mean": gap.opposite / max(median.size, 1),
        **_margin(excess),
    }
    if noise is not None and scales.any():
        variances = np.square(mean_per_vote(noise) * scales) / num_rows
        spreads = variances * blocks.sizes
        energies = np.array([float(np.vdot(part, part)) for part in blocks.split(median)])
        ratios = np.divide(energies, spreads, out=np.ones_like(spreads), where=spreads > 0) - 1
        report["signal-to-noise"] = max(float(energies.sum() / spreads.sum()) - 1, 0.0)
        report["signal-to-noise-per-block"] = [max(float(ratio), 0.0) for ratio in ratios]
    return report


def sample_stride(dim: int) -> int:
    """Return the distance between coordinates of a sample of about `SAMPLE` of them."""
    return max(dim // SAMPLE, 1)


def excess_of_signs(rows: Sequence[Float32]) -> Float32:
    """Return by how many of M rows, (n,) float32, one sign is more frequent, (n,) float32."""
    total = np.zeros(rows[0].size, dtype=np.float32)
    for row in rows:
        total += np.sign(row)
    return np.abs(total)


def _margin(excess: Sequence[Float32]) -> Report:
    """Return the median number of voters that would have turned a coordinate, if there is one."""
    sample = np.concatenate([np.zeros(0, dtype=np.float32), *excess])
    if sample.size == 0:
        return {}
    # Rounding errors of weights must not turn an excess of two into less.
    return {"margin": float(np.median(np.floor(sample / 2 + 1e-3) + 1))}


def _sum_of_magnitudes(values: Float32) -> float:
    chunks = range(0, values.size, _CHUNK)
    return sum(
        float(np.abs(values[start : start + _CHUNK]).sum(dtype=np.float64)) for start in chunks
    )


def count_opposite_signs(left: Float32 | NDArray[np.int8], right: Float32) -> int:
    """Return the number of coordinates where two vectors have opposite signs."""
    return sum(
        int(np.count_nonzero(np.sign(left[chunk]) * np.sign(right[chunk]) < 0))
        for chunk in (slice(start, start + _CHUNK) for start in range(0, left.size, _CHUNK))
    )
