"""Scale rules: the size of the clients' noise, per block and round.

A rule is a frozen value without state: the strategy keeps the current scales and asks the rule for
the next ones. Scales and magnitudes are float64 vectors with one entry per block.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fedmedian.checks import require_choice, require_integer, require_real, require_type
from fedmedian.rules.trust import PROPORTION, agreed_size, num_tolerated
from fedmedian.wire.scalars import LARGEST, Float32, Float64, require_positive

Magnitude = Literal["rms", "max"]
"""The measure of a block of an update: root mean square, or largest absolute entry."""

Scales = Float64
"""The noise scale of each block, (L,) float64; NaN where each client chooses its own."""

LADDER: Float32 = np.exp2(np.arange(-40, 20.25, 0.25)).astype(np.float32)
"""The sizes, (241,) float32, that voting clients compare a block of unknown size with."""

_MAX_CHANGE = 2.0
"""A scale changes by at most this factor from one round to the next."""


class ScaleRule(ABC):
    """A rule that sets the noise scale b from what the server knows."""

    magnitude: Magnitude | None = None
    """The magnitude that clients report for each block; None for a rule that needs none."""

    tops_up: ClassVar[bool] = False
    """Whether scales are levels that noise tops updates up to, not the noise's own."""

    quantile: float = 0.5
    """Which quantile over clients of the magnitude counts, in [0, 1]."""

    voted: bool = False
    """Whether clients vote on that quantile instead of reporting their magnitudes."""

    @property
    def own_factor(self) -> float:
        """The factor on its magnitude with which a client chooses its own scale."""
        return 1.0

    @abstractmethod
    def first(self, num_blocks: int, encoding: str) -> Scales:
        """Return the scales of new blocks."""

    def following(self, scales: Scales, magnitudes: Float64) -> Scales:
        """Return the next round's scales; by default the current ones.

        Parameters
        ----------
        scales : (L,) float64
            The current scales; NaN where each client chose its own.
        magnitudes : (M, L) float64
            What the accepted clients reported, finite and not negative, M >= 1.

        Returns
        -------
        (L,) float64
            The scales, never negative or infinite.
        """
        return scales

    def learning_rate(self, encoding: str) -> float | None:
        """Return the server's step δ that a theorem gives for these scales, or None."""
        return None


@dataclass(frozen=True)
class Fixed(ScaleRule):
    """One noise scale for every block and round: what a plain number means.

    Parameters
    ----------
    scale : float
        The noise scale b, in units of the update, from 1.2e-38 to 1e12.

    Raises
    ------
    TypeError, ValueError
        If `scale` is not a number or is out of range.
    """

    scale: float

    def __post_init__(self) -> None:
        require_positive("scale", self.scale)

    def first(self, num_blocks: int, encoding: str) -> Scales:
        """Return the scale, once per block."""
        return np.full(num_blocks, float(self.scale))


@dataclass(frozen=True)
class Adaptive(ScaleRule):
    """A multiple of the size of the clients' updates in the last round, per block.

    b_l = factor · quantile over clients of the magnitude of block l. A scale at most doubles or
    halves per round, but one below a quarter of factor · median rises to that at once. The paper's
    CIFAR-10 rule is ``Adaptive(0.1, magnitude="max", quantile=1.0)`` (arXiv 1906.01736, Section 6).
    A quantile below 1 keeps a single client from setting the noise of all; see `agreed_size`.

    In the first round each client uses `factor` times its own magnitude. Clients that did not move
    a block are left out of its quantile. A block moved by at most t clients keeps its scale,
    initially 0.

    Parameters
    ----------
    factor : float (default: 3.0)
        The multiple, > 0.
    magnitude : {"rms", "max"} (default: "rms")
        The measure: root mean square of the block's update, or its largest absolute entry.
    quantile : float (default: 0.5)
        Which quantile over clients, in [0, 1]; 0.5 is the median, 1 the maximum.
    voted : bool (default: False)
        Whether clients vote on the magnitude: is that of each block above the last quantile? The
        quantile doubles or halves at most. No client reports, or can claim, more than this one bit
        per block, and t clients alone cannot raise it, whatever the quantile. In the first round,
        and after a unanimous vote, clients compare theirs with each of 241 sizes, from 2^-40 to
        2^20, outside of which nothing is learned (Andrew et al., arXiv 1905.03871, move a norm to
        clip to in this way).

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.
    """

    factor: float = 3.0
    magnitude: Magnitude = "rms"
    quantile: float = 0.5
    voted: bool = False

    def __post_init__(self) -> None:
        require_positive("factor", self.factor)
        require_choice("magnitude", self.magnitude, get_args(Magnitude))
        require_real("quantile", self.quantile, low=0.0, high=1.0)
        require_type("voted", self.voted, bool, "a bool")

    @property
    def own_factor(self) -> float:
        """`factor`."""
        return self.factor

    def first(self, num_blocks: int, encoding: str) -> Scales:
        """Return NaN: nothing is known yet, so each client scales its own noise."""
        return np.full(num_blocks, np.nan)

    def following(self, scales: Scales, magnitudes: Float64) -> Scales:
        """Return the scales for the next round; see `ScaleRule.following`."""
        return _following(scales, magnitudes, self.factor, self.quantile)


@dataclass(frozen=True)
class TopUp(ScaleRule):
    """A level that every client's update is topped up to with noise, per block.

    c_l = factor · quantile over clients of the root mean square σ of block l in the last round. It
    changes from round to round as in `Adaptive`. A client adds Gaussian noise of variance
    max(c² − σ², 0), so that the coordinates of all clients have one variance. In a random basis
    (`Rotation`) they are also normal, and votes times c·√(π/2) estimate the mean update without
    bias. But a σ above c counts as c, so that no client moves the mean by more than that.

    The variance of votes falls with the number of clients M. An error that similar clients have in
    common falls only with a higher level, so the default grows with M. In the first round each
    client tops up to a multiple of its own σ.

    Parameters
    ----------
    factor : float, optional
        The multiple, > 0. By default M^0.08 for M clients: 1 for one, 1.2 for ten, 1.45 for a
        hundred. A client that chooses its own level uses 1.2.
    quantile : float (default: 0.5)
        Which quantile over clients, in [0, 1]; 0.5 is the median, 1 the maximum.
    voted : bool (default: False)
        As for `Adaptive`. The default factor is then 1.2.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.
    """

    factor: float | None = None
    quantile: float = 0.5
    voted: bool = False

    magnitude: Magnitude | None = field(default="rms", init=False, repr=False)

    tops_up: ClassVar[bool] = True

    _GROWTH: ClassVar[float] = 0.08

    def __post_init__(self) -> None:
        Adaptive(self.own_factor, "rms", self.quantile, self.voted)  # checks the arguments

    @property
    def own_factor(self) -> float:
        """`factor`, or 1.2 by default: a client does not know the number of clients."""
        return 1.2 if self.factor is None else self.factor

    def first(self, num_blocks: int, encoding: str) -> Scales:
        """Return NaN: nothing is known yet, so each client chooses its own level."""
        return np.full(num_blocks, np.nan)

    def following(self, scales: Scales, magnitudes: Float64) -> Scales:
        """Return the levels for the next round; see `ScaleRule.following`."""
        grown = len(magnitudes) ** self._GROWTH
        factor = grown if self.factor is None else self.factor
        return _following(scales, magnitudes, factor, self.quantile)


@dataclass(frozen=True)
class Theory(ScaleRule):
    """The constant scales of the paper's Theorems 5 and 6 (arXiv 1906.01736).

    b = (Td)^{1/4} for signs, with server step δ = (Td)^{−1/2}; b = (Td)^{1/6} for the median,
    with δ = (Td)^{−2/3}. They are worst-case choices for gradients of order 1, rarely the best.

    Parameters
    ----------
    rounds : int
        T, the number of rounds, >= 1.
    dim : int
        d, the number of voted parameters, >= 1.

    Raises
    ------
    TypeError, ValueError
        If an argument is not an integer or is out of range.
    """

    rounds: int
    dim: int

    _SCALE_EXPONENT: ClassVar[dict[str, float]] = {"signs": 1 / 4, "vector": 1 / 6}
    _RATE_EXPONENT: ClassVar[dict[str, float]] = {"signs": -1 / 2, "vector": -2 / 3}

    def __post_init__(self) -> None:
        require_integer("rounds", self.rounds, low=1, high=2**63)
        require_integer("dim", self.dim, low=1, high=2**63)

    def learning_rate(self, encoding: str) -> float:
        """Return the theorem's server step δ for majority votes or for the median."""
        return self._power(self._RATE_EXPONENT, encoding)

    def first(self, num_blocks: int, encoding: str) -> Scales:
        """Return the theorem's noise scale b, once per block."""
        return np.full(num_blocks, self._power(self._SCALE_EXPONENT, encoding))

    def _power(self, exponents: Mapping[str, float], encoding: str) -> float:
        if encoding not in exponents:
            raise ValueError(f"scale must not be {self!r} where clients send {encoding!r}")
        return float((float(self.rounds) * float(self.dim)) ** exponents[encoding])


def _following(scales: Scales, magnitudes: Float64, factor: float, quantile: float) -> Scales:
    factor, quantile = float(factor), float(quantile)  # an array times a fraction is no float64
    wanted = np.minimum(factor * agreed_size(magnitudes, quantile), LARGEST)
    # A scale of zero, of a block that has not moved yet, cannot grow by a factor.
    is_new = np.isnan(scales) | (scales == 0)
    bounded = np.clip(wanted, scales / _MAX_CHANGE, scales * _MAX_CHANGE)
    # In a small cohort t clients can set a scale far too small, so it recovers at once. They
    # cannot make the median size too large.
    least = factor * agreed_size(magnitudes) / PROPORTION
    bounded = np.maximum(bounded, np.minimum(wanted, least))
    kept = (wanted == 0) & ~np.isnan(scales)
    following = np.where(kept, scales, np.where(is_new, wanted, bounded))
    return np.minimum(following, LARGEST)


def size_by_votes(
    size: float, above: NDArray[np.integer[Any]], num_votes: int, quantile: float
) -> float:
    """Return the quantile of a block's magnitudes from votes.

    Parameters
    ----------
    size : float
        The last quantile; NaN if it is unknown.
    above : (n,) integers
        How many clients have a larger magnitude: than `size`, or than each of `LADDER`.
    num_votes : int
        M, the number of clients that voted, >= 1.
    quantile : float
        Which quantile, in [0, 1].

    Returns
    -------
    float
        The quantile. Of an unknown one it is 0 if at most t clients have moved the block. Else it
        is NaN if the vote is unanimous, because it may be anything.
    """
    liars = num_tolerated(num_votes)
    if not np.isnan(size):
        share = float(above[0]) / num_votes
        # They must not raise it on their own, in each round, nor keep it from falling.
        wanted = max(1 - quantile, min((liars + 0.5) / num_votes, 0.5))
        step = float(np.clip(2 * (share - wanted), -1, 1))
        return size * 2**step if 0 < share < 1 else nan
    moved = int(above[0])
    if moved <= liars:
        return 0.0
    least = max(min((1 - quantile) * moved, moved - 1), liars)  # one of more is honest
    rung = np.flatnonzero(above > least).max(initial=0)
    return float(LADDER[rung]) * 2**0.125


@dataclass(frozen=True)
class DefaultScale:
    """A scale that was not given; a strategy replaces it by its default rule."""


def as_scale_rule(scale: Any) -> ScaleRule:
    """Return `scale` itself if it is a scale rule, else the `Fixed` rule of that number.

    A `DefaultScale` that no strategy has replaced means ``Adaptive(3.0)``.

    Raises
    ------
    TypeError
        If `scale` is neither a number nor a scale rule.
    ValueError
        If it is a number that is not finite and positive.
    """
    if isinstance(scale, DefaultScale):
        return Adaptive()
    return scale if isinstance(scale, ScaleRule) else Fixed(scale)
