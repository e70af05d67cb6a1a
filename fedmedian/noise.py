"""The noise that clients add before the sign or the median, and its law.

Every family has mean 0 and variance 1 at scale 1 and is symmetric and unimodal, which is what
the convergence proofs of Chen et al. (arXiv 1906.01736, Section 4) ask of it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from math import pi, sqrt
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, ndtr

from fedmedian.scales import Adaptive, ScaleRule, as_scale_rule

_SQRT3 = sqrt(3.0)
_LOGISTIC_SCALE = _SQRT3 / pi
_LAPLACE_SCALE = 1.0 / sqrt(2.0)


@dataclass(frozen=True)
class Noise(ABC):
    """A noise family together with the rule that sets its scale.

    Parameters
    ----------
    scale : float or scale rule (default: ``Adaptive(3.0)``)
        The noise scale b, the standard deviation of the noise in units of the update: one
        number for all arrays and rounds, or a rule that chooses one per array and round.

    Raises
    ------
    TypeError
        If `scale` is neither a number nor a scale rule.
    ValueError
        If `scale` is a number that is not finite and positive.
    """

    scale: float | ScaleRule = field(default_factory=lambda: Adaptive(3.0))

    name: ClassVar[str]
    """The family's name on the wire."""

    density_at_zero: ClassVar[float]
    """φ0 = F'(0) at unit variance."""

    def __post_init__(self) -> None:
        as_scale_rule(self.scale)

    @property
    def rule(self) -> ScaleRule:
        """The scale rule in force; a plain number is a rule that never changes."""
        return as_scale_rule(self.scale)

    @abstractmethod
    def cdf(self, x: ArrayLike) -> NDArray[np.floating]:
        """Return F(x) = P(ξ ≤ x) at unit variance, elementwise, in the precision of `x`."""

    @abstractmethod
    def density(self, x: ArrayLike) -> NDArray[np.floating]:
        """Return F'(x) at unit variance, elementwise, in the precision of `x`."""

    @abstractmethod
    def rough_vote(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return 2F(x) − 1, elementwise and in [−1, 1], quickly and within `ROUGH_ERROR`."""

    @abstractmethod
    def sample(self, rng: np.random.Generator, size: int) -> NDArray[np.float32]:
        """Draw `size` independent values of variance 1, as float32."""


@dataclass(frozen=True)
class Gaussian(Noise):
    """Gaussian noise; with a clipped update and a fixed scale also a privacy mechanism.

    See `Noise` for the parameter `scale`. Its vote law is E[sign(g + bξ)] = 2Φ(g/b) − 1.
    """

    name: ClassVar[str] = "gaussian"
    density_at_zero: ClassVar[float] = 1.0 / sqrt(2.0 * pi)

    def cdf(self, x: ArrayLike) -> NDArray[np.floating]:
        """Return Φ(x), elementwise."""
        return np.asarray(ndtr(_floating(x)))

    def density(self, x: ArrayLike) -> NDArray[np.floating]:
        """Return exp(−x²/2)/√(2π), elementwise."""
        values = _floating(x)
        peak = values.dtype.type(self.density_at_zero)
        return np.asarray(peak * np.exp(-np.square(values) / 2))

    def rough_vote(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return tanh(√(2/π)·(x + .044715·x³)), which is 2Φ(x) − 1 within 4·10⁻⁴."""
        slope = np.square(x)
        slope *= np.float32(0.044715 * 2 * self.density_at_zero)
        slope += np.float32(2 * self.density_at_zero)
        slope *= x
        np.tanh(slope, out=slope)
        return slope

    def sample(self, rng: np.random.Generator, size: int) -> NDArray[np.float32]:
        """Draw `size` standard normal values, as float32."""
        return rng.standard_normal(size, dtype=np.float32)


@dataclass(frozen=True)
class Logistic(Noise):
    """Logistic noise, of scale parameter √3/π at unit variance.

    See `Noise` for the parameter `scale`. Its tails are heavier than a Gaussian's.
    """

    name: ClassVar[str] = "logistic"
    density_at_zero: ClassVar[float] = 1.0 / (4.0 * _LOGISTIC_SCALE)

    def cdf(self, x: ArrayLike) -> NDArray[np.floating]:
        """Return 1 / (1 + exp(−πx/√3)), elementwise."""
        values = _floating(x)
        return np.asarray(expit(values / values.dtype.type(_LOGISTIC_SCALE)))

    def density(self, x: ArrayLike) -> NDArray[np.floating]:
        """Return 4·φ0·F(x)·F(−x), elementwise."""
        values = _floating(x)
        peak = values.dtype.type(4 * self.density_at_zero)
        return np.asarray(peak * self.cdf(values) * self.cdf(-values))

    def rough_vote(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return tanh(πx/(2√3))."""
        vote = x * np.float32(0.5 / _LOGISTIC_SCALE)
        np.tanh(vote, out=vote)
        return vote

    def sample(self, rng: np.random.Generator, size: int) -> NDArray[np.float32]:
        """Draw `size` logistic values of variance 1, as float32."""
        return rng.logistic(0.0, _LOGISTIC_SCALE, size).astype(np.float32)


@dataclass(frozen=True)
class Laplace(Noise):
    """Laplace noise, of scale parameter 1/√2 at unit variance.

    See `Noise` for the parameter `scale`. It has the largest density at zero of the four, so
    the smallest variance of decoded votes and the largest bias.
    """

    name: ClassVar[str] = "laplace"
    density_at_zero: ClassVar[float] = 1.0 / (2.0 * _LAPLACE_SCALE)

    def cdf(self, x: ArrayLike) -> NDArray[np.floating]:
        """Return ½·exp(√2·x) for x < 0 and 1 − ½·exp(−√2·x) elsewhere."""
        values = _floating(x)
        tail = np.exp(-np.abs(values) / values.dtype.type(_LAPLACE_SCALE)) / 2
        return np.asarray(np.where(values < 0, tail, 1 - tail))

    def density(self, x: ArrayLike) -> NDArray[np.floating]:
        """Return exp(−√2·|x|)/√2, elementwise."""
        values = _floating(x)
        peak = values.dtype.type(self.density_at_zero)
        return np.asarray(peak * np.exp(-np.abs(values) / values.dtype.type(_LAPLACE_SCALE)))

    def rough_vote(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return sign(x)·(1 − exp(−√2·|x|))."""
        tail = np.abs(x)
        tail *= np.float32(-1 / _LAPLACE_SCALE)
        np.exp(tail, out=tail)
        np.subtract(np.float32(1), tail, out=tail)
        np.copysign(tail, x, out=tail)
        return tail

    def sample(self, rng: np.random.Generator, size: int) -> NDArray[np.float32]:
        """Draw `size` Laplace values of variance 1, as float32."""
        return rng.laplace(0.0, _LAPLACE_SCALE, size).astype(np.float32)


@dataclass(frozen=True)
class Uniform(Noise):
    """Uniform noise on (−√3, √3) at unit variance.

    See `Noise` for the parameter `scale`. Votes decode without any bias while no client's
    update exceeds √3·b in magnitude.
    """

    name: ClassVar[str] = "uniform"
    density_at_zero: ClassVar[float] = 1.0 / (2.0 * _SQRT3)

    def cdf(self, x: ArrayLike) -> NDArray[np.floating]:
        """Return ½ + x/(2√3), clipped to [0, 1], elementwise."""
        values = _floating(x)
        half, width = values.dtype.type(0.5), values.dtype.type(2 * _SQRT3)
        return np.asarray(np.clip(values / width + half, 0, 1))

    def density(self, x: ArrayLike) -> NDArray[np.floating]:
        """Return 1/(2√3) inside of (−√3, √3) and 0 elsewhere."""
        values = _floating(x)
        inside = np.abs(values) < values.dtype.type(_SQRT3)
        return np.asarray(np.where(inside, self.density_at_zero, 0).astype(values.dtype))

    def rough_vote(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return x/√3, clipped to [−1, 1]."""
        vote = x * np.float32(1 / _SQRT3)
        np.clip(vote, -1, 1, out=vote)
        return vote

    def sample(self, rng: np.random.Generator, size: int) -> NDArray[np.float32]:
        """Draw `size` values uniform on (−√3, √3), as float32."""
        return (rng.random(size, dtype=np.float32) - np.float32(0.5)) * np.float32(2 * _SQRT3)


NOISE_FAMILIES: dict[str, type[Noise]] = {
    family.name: family for family in (Gaussian, Logistic, Laplace, Uniform)
}
"""Every noise family by its name on the wire."""


def _floating(x: ArrayLike) -> NDArray[np.floating]:
    values = np.asarray(x)
    return values if np.issubdtype(values.dtype, np.floating) else values.astype(np.float64)
