"""What a client's answer releases, for the server's budget and for a client's policy."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from fedmedian.model.layout import WITHOUT_EXACT, Layout
from fedmedian.privacy.accounting import LEAST_MULTIPLIER, LEAST_ROUNDED, Mechanism
from fedmedian.rules.noise import Gaussian
from fedmedian.rules.scales import DefaultScale
from fedmedian.steps.base import ClientStep
from fedmedian.steps.encodings import Encoding
from fedmedian.steps.noise import AddNoise, Measure
from fedmedian.steps.rotation import Rotation
from fedmedian.steps.tied import Tied
from fedmedian.steps.updates import Clip, Limit

SHORTEST = 1e-30
"""The smallest clip norm: float32 has fewer bits for the entries of much shorter vectors."""

_KEEP_THE_NORM = (Rotation, Limit, Measure)


@dataclass(frozen=True)
class NoMechanism:
    """The reasons why clients' answers have no bound in ε and δ.

    Parameters
    ----------
    reasons : tuple of str
        The reasons, each with the argument or the arrays of the model that cause it.
    """

    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return "; ".join(self.reasons)


@dataclass(frozen=True)
class Obstacle:
    """One reason why an answer has no bound in ε and δ.

    Parameters
    ----------
    rule : str
        The rule of a client's policy that refuses it.
    cause : str
        The argument, step or arrays that cause it.
    why : str
        The problem with it.
    """

    rule: str
    cause: str
    why: str

    def __str__(self) -> str:
        return f"{self.cause}: {self.why}"


def mechanism_of(
    steps: Sequence[ClientStep], *, seed: int | None = None
) -> Mechanism | NoMechanism:
    """Return what a client that takes these steps releases.

    Parameters
    ----------
    steps : sequence of ClientStep
        The steps of an instruction. The last one is an encoding.
    seed : int, optional
        The instruction's seed.

    Returns
    -------
    Mechanism or NoMechanism
        The mechanism, or the reasons why there is none.
    """
    reasons = [*map(str, obstacles(steps, seed=seed))]
    noise, norm = noise_of(steps), _norm_of(steps)
    if noise is not None and not reasons:
        scale, limit, encoding = least_scale(steps), limit_of(steps), steps[-1]
        if scale >= LEAST_ROUNDED * min(norm, limit):
            return Mechanism(norm, scale, encoding.name, limit)
        clipped = "the norm that updates are" if norm <= limit else "what their entries are"
        reasons.append(
            f"noise={noise.noise!r}: the scale is less than {LEAST_MULTIPLIER} times {clipped} "
            f"clipped to, {float(min(norm, limit)):g}"
        )
    return NoMechanism(tuple(reasons))


def obstacles(
    steps: Sequence[ClientStep],
    *,
    seed: int | None = None,
    clip: float | None = None,
    exact: Sequence[str] = (),
    layout: Layout | None = None,
) -> Iterator[Obstacle]:
    """Yield the reasons why a client that takes these steps runs no Gaussian mechanism.

    The size of the noise does not matter here.

    Parameters
    ----------
    steps, seed
        As for `mechanism_of`.
    clip : float, optional
        The L2 norm to which the client itself clips the vector that noise is added to. Without it,
        there must be a `Clip` among the steps.
    exact : sequence of str
        The names of the arrays that are sent exactly.
    layout : Layout, optional
        The model's layout, for the names of tied arrays.
    """
    if seed is not None:
        yield Obstacle("seed", f"seed={seed}", "the server can draw the noise again")
    yield from _in_reports(steps, layout)
    yield from _in_noise(steps)
    if clip is None:
        yield from _in_clipping(steps)
    if exact:
        why = f"arrays {[*exact]} are sent without noise; {WITHOUT_EXACT}"
        yield Obstacle("exact", "exact", why)


def noise_of(steps: Sequence[ClientStep]) -> AddNoise | None:
    """Return the noise right before the encoding, the only one that counts, or None."""
    last = steps[-2] if len(steps) > 1 else None
    return last if isinstance(last, AddNoise) else None


def least_scale(steps: Sequence[ClientStep]) -> float:
    """Return the least scale that the server asks for; infinity for a model without parameters."""
    noise = noise_of(steps)
    assert noise is not None
    assert noise.scales is not None  # else the scales depend on the update
    return float(noise.scales.min(initial=np.inf))


def limit_of(steps: Sequence[ClientStep]) -> float:
    """Return the largest entry of the vector that gets the noise; infinity without a `Limit`."""
    limit = inf
    for step in steps[:-2]:
        if type(step) is not Measure:
            limit = step.largest if type(step) is Limit else inf
    return limit


def largest_entry(steps: Sequence[ClientStep]) -> float:
    """Return the largest entry that these steps let any client have; infinity without a bound."""
    return min(limit_of(steps), _norm_of(steps))


def _norm_of(steps: Sequence[ClientStep]) -> float:
    """Return the largest norm of the vector that gets the noise; infinity without a bound."""
    if any(_in_clipping(steps)):
        return inf
    return next(step.norm for step in reversed(steps) if type(step) is Clip)


def _in_reports(steps: Sequence[ClientStep], layout: Layout | None) -> Iterator[Obstacle]:
    noise = next((step.noise for step in steps if isinstance(step, AddNoise)), None)
    for step in steps:
        match step:
            case Measure():
                # A client is not told the rule.
                is_known = noise is not None and not isinstance(noise.scale, DefaultScale)
                cause = f"noise={noise!r}" if is_known else repr(step)
                why = (
                    f"clients report {step.reveals}, without noise, because the noise follows it; "
                    "give the noise a number as its scale"
                )
                yield Obstacle("magnitudes", cause, why)
            case Tied() if layout is not None:
                for group in step.groups:
                    names = [layout.flat[index].name for index in group]
                    why = "clients report, without noise, whether they stay tied"
                    yield Obstacle("tied", f"arrays {names} are tied", why)
            case _ if step.reveals:
                rule = "tied" if isinstance(step, Tied) else "reports"
                yield Obstacle(rule, repr(step), f"clients report {step.reveals}, without noise")


def _in_noise(steps: Sequence[ClientStep]) -> Iterator[Obstacle]:
    """Yield the first fault of the noise."""
    step, every = noise_of(steps), [one for one in steps if isinstance(one, AddNoise)]
    if not every:
        yield Obstacle("noise_scale", "noise", "clients add none")
    elif step is None:
        after = steps[-2]
        yield Obstacle("noise_scale", repr(after), "it comes after the noise")
    elif type(step.noise) is not Gaussian:
        why = f"only Gaussian noise hides a vector of bounded L2 norm, not {step.noise.name}"
        yield Obstacle("noise_scale", f"noise={step.noise!r}", why)
    elif (type(step) is not AddNoise or step.has_own_scales) and not any(
        isinstance(one, Measure) for one in steps
    ):
        why = "the noise scale depends on the update"
        yield Obstacle("noise_scale", f"noise={step.noise!r}", why)


def _in_clipping(steps: Sequence[ClientStep]) -> Iterator[Obstacle]:
    """Yield the first reason why the vector that noise is added to may have any norm."""
    places = [index for index, step in enumerate(steps) if type(step) is Clip]
    if not places:
        yield Obstacle("clip", "client_steps", "without Clip(…) an update may have any norm")
        return
    clip = steps[places[-1]]
    assert isinstance(clip, Clip)
    if clip.norm < SHORTEST:
        why = f"float32 does not hold the norm of {clip!r}, it must be >= {SHORTEST:g}"
        yield Obstacle("clip", "client_steps", why)
    for step in steps[places[-1] + 1 :]:
        if not isinstance(step, AddNoise | Encoding) and type(step) not in _KEEP_THE_NORM:
            why = f"{step!r} comes after {clip!r} and may lengthen the update"
            yield Obstacle("clip", "client_steps", why)
            return
