"""Diagnostics of a round's votes or vectors, for its report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import pi, sin, sqrt
from typing import Any

import numpy as np

from fedmedian.model.blocks import Blocks
from fedmedian.rules.noise import Noise, mean_per_vote
from fedmedian.wire.scalars import Float32, Float64

_CHUNK = 1 << 16

_ROUNDING = 1e-5
"""The share of the votes' energy below which noise may be float32 rounding."""

SAMPLE = 1 << 14
"""The approximate number of evenly spaced coordinates in the sample for margins and agreement."""

_LISTS = ("noise-scale", "signal-to-noise-per-block", "agreement-per-client")
"""The measurements that are lists, with one entry per block or client."""

Report = dict[str, float | list[float]]
"""A round's measurements by name."""


@dataclass(frozen=True)
class Seen:
    """What some blocks of a round's votes or vectors have shown; `report_of` adds up all blocks'.

    Parameters
    ----------
    dim : int
        The number of coordinates.
    excess : sequence of (n,) float32
        How many more clients of mean weight have one sign than the other, at sampled coordinates.
    signals, spreads : list of float
        The energies of each block's signal and of its noise; 0 and 0 where they are unknown.
    agreement : float, optional
        The sum over coordinates of |Σ w_i·s_i|/Σ w_i, of votes, estimated from those sampled.
    gap : float, optional
        The squared distance from the mean, of vectors.
    opposite : int, optional
        The number of coordinates where majority and mean have opposite signs, if known.
    """

    dim: int
    excess: Sequence[Float32]
    signals: list[float]
    spreads: list[float]
    agreement: float | None = None
    gap: float | None = None
    opposite: int | None = None


def report_of(seen: Sequence[Seen]) -> Report:
    """Return the report of a round from what all of its blocks have shown, in order.

    Returns
    -------
    dict
        Of votes ``vote-agreement``, the mean over coordinates of |Σ w_i·s_i|/Σ w_i, in [0, 1]. Of
        vectors ``median-mean-gap``, the L2 norm of median minus mean, which the theory depends on.
        ``majority-contradicts-mean``, the fraction of coordinates where the two have opposite
        signs; ``margin``, how many clients of mean weight would have to change their vote, or to
        move, to flip a coordinate, the median over a sample of coordinates. With noise also
        ``signal-to-noise``, the energy of the signal over that of its noise, and
        ``signal-to-noise-per-block``, 0 for a block where they are unknown. If that is every block,
        both are missing.
    """
    report: Report = {}
    dim = max(sum(one.dim for one in seen), 1)
    if all(one.agreement is not None for one in seen):
        report["vote-agreement"] = sum(one.agreement or 0.0 for one in seen) / dim
    if all(one.gap is not None for one in seen):
        report["median-mean-gap"] = sqrt(sum(one.gap or 0.0 for one in seen))
    if all(one.opposite is not None for one in seen):
        report["majority-contradicts-mean"] = sum(one.opposite or 0 for one in seen) / dim
    report |= _margin([part for one in seen for part in one.excess])
    signals = [signal for one in seen for signal in one.signals]
    spreads = [spread for one in seen for spread in one.spreads]
    if (noise := sum(spreads)) > 0:
        report["signal-to-noise"] = max(sum(signals) / noise, 0.0)
        pairs = zip(signals, spreads, strict=True)
        report["signal-to-noise-per-block"] = [max(s / n, 0.0) if n > 0 else 0.0 for s, n in pairs]
    return report


def describe_votes(
    votes: Float32,
    weights: Float64,
    blocks: Blocks,
    noise: Noise | None,
    scales: Float64 | None = None,
    sizes: Float64 | None = None,
    stride: int = 1,
    opposite: int | None = None,
) -> Seen:
    """Measure the agreement, noise and margin of weighted sums of signs.

    A sum v = Σ_i w_i·s_i has energy Σ_i w_i² + Σ_{i≠k} w_i·w_k·E[s_i·s_k] per coordinate. The
    second part is what the clients have in common. In the first part, a share q_i is each client's
    update, see `shares_of_votes`. The rest is noise: Σ_i w_i²·(1 − q_i). The q_i are at least the
    mean of E[s_i·s_k] over all pairs, their value for similar clients.

    Where noise tops updates up, in a random basis, E[s_i·s_k] is (2/π)·arcsin ρ for updates with
    correlation ρ. Then (2/π)·(arcsin ρ − ρ) is also noise, with the ρ that the mean of E[s_i·s_k]
    over all pairs implies.

    Parameters
    ----------
    votes : (d,) float32
        Σ_i w_{i,l}·s_{i,l} per coordinate; with the weights of the mean, the decoded mean.
    weights : (M, L) float64
        The weight of each client's votes on each block.
    blocks : Blocks
        The votes' blocks.
    noise : Noise or None
        The clients' noise family.
    scales : (M, L) float64, optional
        The clients' noise scales b_i, or the levels that noise tops updates up to.
    sizes : (M, L) float64, optional
        The root mean squares of their updates, if known.
    stride : int (default: 1)
        The stride of the sample of coordinates.
    opposite : int, optional
        See `Seen`.

    Returns
    -------
    Seen
        Signal and noise are 0 for a block whose votes have no weight, all agree without topping
        up, or come from one client whose update's size is unknown.
    """
    agreement, excess = 0.0, []
    signals, spreads = [0.0] * len(blocks.sizes), [0.0] * len(blocks.sizes)
    updates = np.zeros_like(weights)
    if noise is not None and scales is not None and sizes is not None:
        updates = np.square(weights) * shares_of_votes(noise, scales, sizes)
    in_random_basis = noise is not None and noise.rule.tops_up
    split = _split_in_random_basis if in_random_basis else _split_energy
    columns = zip(blocks.split(votes), weights.T, updates.T, strict=True)
    for block, (part, column, own) in enumerate(columns):
        total = float(column.sum())
        if total == 0 or part.size == 0:
            continue
        # In float64: one of two clients may claim noise that is almost zero.
        voters = np.divide(np.abs(part[::stride]), total / len(weights), dtype=np.float64)
        excess.append(voters.astype(np.float32))
        agreement += part.size * float(voters.mean()) / len(weights)
        if noise is None:
            continue
        energy = _sum_of_squares(part) / part.size / total**2
        alone, update = float(np.square(column).sum()) / total**2, float(own.sum()) / total**2
        signal, spread = split(energy, alone, update)
        signals[block] = part.size * total**2 * signal
        spreads[block] = part.size * total**2 * spread
    return Seen(blocks.dim, excess, signals, spreads, agreement, opposite=opposite)


def shares_of_votes(noise: Noise, scales: Float64, sizes: Float64) -> Float64:
    """Return the share of each client's update in the energy of its votes.

    Where noise tops updates up to a level c, in a random basis, it is (2/π)·min(σ²/c², 1); the rest
    is added noise and rounding to one bit. In the parameters' own basis it is E[(2F(u/b) − 1)²] for
    normal coordinates u.

    Parameters
    ----------
    noise : Noise
        The clients' noise family.
    scales : (M, L) float64
        The clients' noise scales b_i, or levels c.
    sizes : (M, L) float64
        The root mean squares σ_i of their updates.

    Returns
    -------
    (M, L) float64
        The shares, in [0, 1].
    """
    ratios = np.divide(sizes, scales, out=np.zeros_like(scales), where=scales > 0)
    if noise.rule.tops_up:
        return np.square(np.minimum(ratios, 1)) * 2 / pi
    # Gauss-Hermite quadrature; the integrand is even.
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    shares = np.zeros_like(ratios)
    for node, weight in zip(nodes[4:], weights[4:], strict=True):
        shares += weight * np.square(2 * noise.cdf(node * ratios) - 1)
    return shares * 2 / sqrt(2 * pi)


def _split_energy(energy: float, alone: float, update: float) -> tuple[float, float]:
    """Return signal and noise in the energy of votes whose weights add up to 1.

    `alone` is Σ_i w_i², and `update` is the part of it that is known to come from updates.
    """
    alike = max((energy - alone) / (1 - alone), 0.0) * alone if alone < 1 else 0.0
    spread = alone - max(update, alike)
    # The votes of one client say nothing about its update.
    if spread <= _ROUNDING * alone or (alone >= 1 and update == 0):
        return 0.0, 0.0
    return max(energy - spread, 0.0), spread


def _split_in_random_basis(energy: float, alone: float, update: float) -> tuple[float, float]:
    """Return the same for normal coordinates that noise tops up to one variance."""
    pairs = 1 - alone
    common = min(max((energy - alone) / pairs, -1.0), 1.0) if pairs > 0 else 0.0
    signal = min(max(update + pairs * sin(pi / 2 * common) * 2 / pi, 0.0), energy)
    return signal, energy - signal


@dataclass
class MeanGap:
    """The distance between the median and the mean of vectors, measured part by part.

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
        """Add a part: its median, (n,) float32, and the vectors, M times (n,) float32."""
        with np.errstate(over="ignore", invalid="ignore"):  # a bad client's values may be huge
            for chunk in _chunks(median.size):
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
    scales: Float64,
    blocks: Blocks,
    noise: Noise | None,
    levels: Float64 | None = None,
    variance: float | None = None,
) -> Seen:
    """Measure a median's distance from the mean, its noise and its margin.

    Two parts of its energy per coordinate are noise: b²/M, as in a mean, and V − 1/M times the
    variance that the vectors do not have in common, with V the `variance`. That variance is b²,
    or (c² − energy)/(1 − V) where noise tops updates up to a level c, in a random basis.

    Parameters
    ----------
    median : (d,) float32
        The median.
    gap : MeanGap
        Its distance from the mean.
    excess : sequence of (n,) float32
        How many more vectors have one sign than the other, at sampled coordinates.
    num_rows : int
        M, the number of vectors.
    scales : (L,) float64
        The noise scale b of each block, the root mean square over the vectors; 0 for none.
    blocks : Blocks
        The vectors' blocks.
    noise : Noise or None
        The noise family.
    levels : (L,) float64, optional
        Where noise tops updates up: the vectors' median root mean square c, noise included.
    variance : float, optional
        V, the variance of the center of M independent draws of variance 1. By default the
        `variance_of_median`.

    Returns
    -------
    Seen
        Signal and noise are 0 for a block without noise.
    """
    signals, spreads = np.zeros((2, len(blocks.sizes)))
    noisy = (scales > 0) & (np.array(blocks.sizes) > 0)
    if noise is not None and noisy.any():
        counts = np.array(blocks.sizes)[noisy]
        variance = variance_of_median(noise, num_rows) if variance is None else variance
        energies = np.array([_sum_of_squares(part) for part in blocks.split(median)])[noisy]
        added = apart = np.square(scales[noisy])
        if levels is not None and variance < 1:
            private = np.square(levels[noisy]) - energies / counts
            apart = np.maximum(private / (1 - variance), added)
        spreads[noisy] = counts * (added / num_rows + (variance - 1 / num_rows) * apart)
        signals[noisy] = energies - spreads[noisy]
    split = signals.tolist(), spreads.tolist()
    return Seen(blocks.dim, excess, *split, gap=gap.energy, opposite=gap.opposite)


def variance_of_median(noise: Noise, num_rows: int) -> float:
    """Return the approximate variance of the median of M draws of noise of scale 1.

    It is 1/M for M ≤ 2 and tends to κ/M, κ = 1/(4·φ0²). Between them it is

        κ / (M + (κ − 1)·(1 if M is odd, 2 if M is even)),

    accurate to 3 % for Gaussian noise.

    Parameters
    ----------
    noise : Noise
        The family.
    num_rows : int
        M, >= 1.

    Returns
    -------
    float
        The variance.
    """
    limit = mean_per_vote(noise) ** 2
    return limit / (num_rows + (limit - 1) * (2 - num_rows % 2))


def without_lists(metrics: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Split a round's metrics into single numbers and lists."""
    lists = {name: metrics[name] for name in _LISTS if name in metrics}
    return {name: metrics[name] for name in metrics if name not in lists}, lists


def sample_stride(dim: int) -> int:
    """Return the stride of a sample of about `SAMPLE` coordinates."""
    return max(dim // SAMPLE, 1)


def excess_of_signs(rows: Sequence[Float32], weights: Float64) -> Float32:
    """Return how many more of M rows, (n,) float32, have one sign than the other, (n,) float32.

    A row of mean weight counts as one; `weights`, (M,), add up to 1.
    """
    total = np.zeros(rows[0].size, dtype=np.float32)
    for row, weight in zip(rows, len(rows) * weights, strict=True):
        total += np.float32(weight) * np.sign(row)
    return np.abs(total)


def _margin(excess: Sequence[Float32]) -> Report:
    """Return the median number of voters needed to flip a coordinate, if there are any."""
    sample = np.concatenate([np.zeros(0, dtype=np.float32), *excess])
    if sample.size == 0:
        return {}
    # Rounding errors of weights must not turn an excess of two into less.
    return {"margin": float(np.median(np.floor(sample / 2 + 1e-3) + 1))}


def _sum_of_squares(values: Float32) -> float:
    return sum(float(np.einsum("i,i->", values[one], values[one])) for one in _chunks(values.size))


def count_opposite_signs(left: Float32, right: Float32) -> int:
    """Return the number of coordinates where two vectors have opposite signs."""
    return int(np.count_nonzero(np.sign(left) * np.sign(right) < 0))


def _chunks(size: int) -> list[slice]:
    return [slice(start, start + _CHUNK) for start in range(0, size, _CHUNK)]
