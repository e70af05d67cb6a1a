"""Families of the noise that clients add before the sign or the median.

Every family has mean 0 and variance 1 at scale 1 and is symmetric and unimodal, which is what
the convergence proofs of Chen et al. (arXiv 1906.01736, Section 4) require.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import pi, sqrt
from typing import ClassVar, Self, TypeVar

import numpy as np
import scipy  # its subpackages load on first use
from numpy.typing import ArrayLike, NDArray

from fedmedian.rules.scales import DefaultScale, ScaleRule, TopUp, as_scale_rule
from fedmedian.wire.registry import Registry
from fedmedian.wire.scalars import Float32, Float64, WireScalar, parameters_of

_SQRT3 = sqrt(3.0)
_LOGISTIC_SCALE = _SQRT3 / pi
_LAPLACE_SCALE = 1.0 / sqrt(2.0)
_GAUSSIAN_PEAK = 1.0 / sqrt(2.0 * pi)


@dataclass(frozen=True)
class Noise(ABC):
    """A noise family together with the rule that sets its scale.

    A custom family is a frozen dataclass that derives from this class. Decorate it with
    `register_noise` in a module that server and clients import. Its other fields, numbers and
    strings, are its parameters, which the server sends to clients.

    Parameters
    ----------
    scale : float or scale rule, optional
        The noise scale b, the standard deviation of the noise in units of the update: one
        number for all arrays and rounds, or a rule that chooses one per array and round. By
        default the strategy chooses: ``TopUp()`` for Gaussian noise in a random basis,
        ``Adaptive(3.0)`` otherwise.

    Raises
    ------
    TypeError
        If `scale` is neither a number nor a scale rule.
    ValueError
        If `scale` is a number that is not finite and positive, or a rule that tops up for a
        family that is not stable.
    """

    scale: float | ScaleRule | DefaultScale = field(default_factory=DefaultScale)

    name: ClassVar[str]
    """The family's name on the wire."""

    def __post_init__(self) -> None:
        if isinstance(self.scale, DefaultScale) and not self.is_stable:
            object.__setattr__(self, "scale", self.rule)  # the same in every basis
        if self.rule.tops_up and not self.is_stable:
            raise ValueError(
                f"scale must not be {self.scale!r} for {type(self).__name__}: only Gaussian noise "
                "keeps normal coordinates normal; use Gaussian, or a scale such as Adaptive(3.0)"
            )

    is_stable: ClassVar[bool] = False
    """Whether the sum of the noise and a normal variable is normal."""

    @cached_property
    def rule(self) -> ScaleRule:
        """The scale rule in force; see `fedmedian.rules.scales.as_scale_rule`."""
        return as_scale_rule(self.scale)

    def with_scale(self, *, in_random_basis: bool) -> Self:
        """Return this noise with the strategy's default scale rule if none was given.

        Parameters
        ----------
        in_random_basis : bool
            Whether it is added to rotated updates.

        Returns
        -------
        Noise
            The noise: with ``TopUp()`` if it is stable and the basis is random, else with
            ``Adaptive(3.0)``.
        """
        if not isinstance(self.scale, DefaultScale):
            return self
        return replace(self, scale=TopUp() if in_random_basis else self.rule)

    @property
    def density_at_zero(self) -> float:
        """φ0 = F'(0) at unit variance."""
        return float(self.density(0.0))

    @abstractmethod
    def cdf(self, x: ArrayLike) -> NDArray[np.floating]:
        """Return F(x) = P(ξ ≤ x) at unit variance, elementwise, in float64 unless x is float32."""

    @abstractmethod
    def density(self, x: ArrayLike) -> NDArray[np.floating]:
        """Return F'(x) at unit variance, elementwise, in float64 unless x is float32."""

    @property
    def parameters(self) -> dict[str, WireScalar]:
        """The family's parameters on the wire, by name, without the scale."""
        return parameters_of(self, "scale")

    def rough_vote(self, x: Float32) -> Float32:
        """Return 2F(x) − 1, elementwise and in [−1, 1].

        A family may return a faster approximation within `fedmedian.kernels.encoding.ROUGH_ERROR`;
        the law of the votes stays exact.
        """
        return np.asarray(2 * self.cdf(x) - 1, dtype=np.float32)

    @abstractmethod
    def sample(self, rng: np.random.Generator, size: int) -> Float32:
        """Draw `size` independent values of variance 1, as float32."""

    def sample_finely(self, rng: np.random.Generator, size: int) -> Float64:
        """Draw from the same law as float64, for noise that must hide what it is added to.

        By default the values are those of `sample`.
        """
        return self.sample(rng, size).astype(np.float64)


NOISE_FAMILIES: Registry[Noise] = Registry(Noise, "noise family", "register_noise")
"""Every noise family that clients can draw from, by its name on the wire."""

Family = TypeVar("Family", bound=Noise)


def register_noise(family: type[Family]) -> type[Family]:
    """Register a noise family under its name; a decorator.

    Server and clients must both import the module that uses it.

    Parameters
    ----------
    family : type
        A frozen dataclass that derives from `Noise`, with a unique ``name``.

    Returns
    -------
    type
        The family.

    Raises
    ------
    TypeError, ValueError
        If it does not derive from `Noise`, or its name is invalid or already in use.
    """
    return NOISE_FAMILIES.add(family)


@register_noise
@dataclass(frozen=True)
class Gaussian(Noise):
    """Gaussian noise; with a clipped update and a fixed scale, a privacy mechanism.

    See `Noise` for the parameter `scale`. Its vote law is E[sign(g + bξ)] = 2Φ(g/b) − 1.

    Examples
    --------
    >>> float(Gaussian().cdf(0.0))
    0.5
    >>> Gaussian(0.1).sample(np.random.default_rng(0), 3).shape
    (3,)
    """

    name: ClassVar[str] = "gaussian"
    is_stable: ClassVar[bool] = True

    def cdf(self, x: ArrayLike) -> NDArray[np.floating]:
        """Return Φ(x), elementwise."""
        return np.asarray(scipy.special.ndtr(_floating(x)))

    def density(self, x: ArrayLike) -> NDArray[np.floating]:
        """Return exp(−x²/2)/√(2π), elementwise."""
        values = _floating(x)
        peak = values.dtype.type(_GAUSSIAN_PEAK)
        with np.errstate(over="ignore"):  # the density is 0 there
            return np.asarray(peak * np.exp(-np.square(values) / 2))

    def rough_vote(self, x: Float32) -> Float32:
        """Return tanh(√(2/π)·(x + .044715·x³)), which is 2Φ(x) − 1 within 4·10⁻⁴."""
        slope = np.square(x)
        slope *= np.float32(0.044715 * 2 * _GAUSSIAN_PEAK)
        slope += np.float32(2 * _GAUSSIAN_PEAK)
        slope *= x
        np.tanh(slope, out=slope)
        return slope

    def sample(self, rng: np.random.Generator, size: int) -> Float32:
        """Draw `size` standard normal values, as float32; one in 2²³ is exactly 0."""
        return rng.standard_normal(size, dtype=np.float32)

    def sample_finely(self, rng: np.random.Generator, size: int) -> Float64:
        """Draw `size` standard normal values, as float64; one in 2⁵² is exactly 0."""
        return rng.standard_normal(size)


@register_noise
@dataclass(frozen=True)
class Logistic(Noise):
    """Logistic noise, of scale parameter √3/π at unit variance.

    See `Noise` for the parameter `scale`. Its tails are heavier than a Gaussian's.
    """

    name: ClassVar[str] = "logistic"

    def cdf(self, x: ArrayLike) -> NDArray[np.floating]:
        """Return 1 / (1 + exp(−πx/√3)), elementwise."""
        values = _floating(x)
        return np.asarray(scipy.special.expit(values / values.dtype.type(_LOGISTIC_SCALE)))

    def density(self, x: ArrayLike) -> NDArray[np.floating]:
        """Return 4·φ0·F(x)·F(−x), elementwise."""
        values = _floating(x)
        peak = values.dtype.type(1 / _LOGISTIC_SCALE)
        return np.asarray(peak * self.cdf(values) * self.cdf(-values))

    def rough_vote(self, x: Float32) -> Float32:
        """Return tanh(πx/(2√3))."""
        vote = x * np.float32(0.5 / _LOGISTIC_SCALE)
        np.tanh(vote, out=vote)
        return vote

    def sample(self, rng: np.random.Generator, size: int) -> Float32:
        """Draw `size` logistic values of variance 1, as float32."""
        return rng.logistic(0.0, _LOGISTIC_SCALE, size).astype(np.float32)


@register_noise
@dataclass(frozen=True)
class Laplace(Noise):
    """Laplace noise, of scale parameter 1/√2 at unit variance.

    See `Noise` for the parameter `scale`. Of the four families it has the largest density at
    zero, so decoded votes have the smallest variance and the largest bias.
    """

    name: ClassVar[str] = "laplace"

    def cdf(self, x: ArrayLike) -> NDArray[np.floating]:
        """Return ½·exp(√2·x) for x < 0 and 1 − ½·exp(−√2·x) elsewhere."""
        values = _floating(x)
        tail = np.exp(-np.abs(values) / values.dtype.type(_LAPLACE_SCALE)) / 2
        return np.asarray(np.where(values < 0, tail, 1 - tail))

    def density(self, x: ArrayLike) -> NDArray[np.floating]:
        """Return exp(−√2·|x|)/√2, elementwise."""
        values = _floating(x)
        peak = values.dtype.type(1 / (2 * _LAPLACE_SCALE))
        return np.asarray(peak * np.exp(-np.abs(values) / values.dtype.type(_LAPLACE_SCALE)))

    def rough_vote(self, x: Float32) -> Float32:
        """Return sign(x)·(1 − exp(−√2·|x|))."""
        tail = np.abs(x)
        tail *= np.float32(-1 / _LAPLACE_SCALE)
        np.exp(tail, out=tail)
        np.subtract(np.float32(1), tail, out=tail)
        np.copysign(tail, x, out=tail)
        return tail

    def sample(self, rng: np.random.Generator, size: int) -> Float32:
        """Draw `size` Laplace values of variance 1, as float32."""
        return rng.laplace(0.0, _LAPLACE_SCALE, size).astype(np.float32)


@register_noise
@dataclass(frozen=True)
class Uniform(Noise):
    """Uniform noise on (−√3, √3) at unit variance.

    See `Noise` for the parameter `scale`. Votes decode without bias while no client's update
    exceeds √3·b in magnitude.
    """

    name: ClassVar[str] = "uniform"

    def cdf(self, x: ArrayLike) -> NDArray[np.floating]:
        """Return ½ + x/(2√3), clipped to [0, 1], elementwise."""
        values = _floating(x)
        half, width = values.dtype.type(0.5), values.dtype.type(2 * _SQRT3)
        return np.asarray(np.clip(values / width + half, 0, 1))

    def density(self, x: ArrayLike) -> NDArray[np.floating]:
        """Return 1/(2√3) inside (−√3, √3) and 0 elsewhere."""
        values = _floating(x)
        inside = np.abs(values) < values.dtype.type(_SQRT3)
        return np.asarray(np.where(inside, 1 / (2 * _SQRT3), 0).astype(values.dtype))

    def rough_vote(self, x: Float32) -> Float32:
        """Return x/√3, clipped to [−1, 1]."""
        vote = x * np.float32(1 / _SQRT3)
        np.clip(vote, -1, 1, out=vote)
        return vote

    def sample(self, rng: np.random.Generator, size: int) -> Float32:
        """Draw `size` values uniform on (−√3, √3), as float32."""
        return (rng.random(size, dtype=np.float32) - np.float32(0.5)) * np.float32(2 * _SQRT3)


def _floating(x: ArrayLike) -> NDArray[np.floating]:
    values = np.asarray(x)
    # SciPy has Φ for these alone.
    return values if values.dtype.char in "fd" else values.astype(np.float64)


def mean_per_vote(noise: Noise) -> float:
    """Return 1/(2·φ0): the mean update per unit of mean sign, in units of the noise scale."""
    return 1.0 / (2.0 * noise.density_at_zero)
