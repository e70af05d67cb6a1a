"""Which mechanism a strategy's clients run, or why it is none."""

from collections.abc import Iterator
from dataclasses import dataclass

from fedmedian.privacy.accounting import LEAST_MULTIPLIER, Mechanism
from fedmedian.rounds.core import Core, Round
from fedmedian.rules.noise import Gaussian, Noise
from fedmedian.rules.scales import Fixed, Theory
from fedmedian.steps.client_steps import ClientStep, Clip


@dataclass(frozen=True)
class NoMechanism:
    """What is said where clients' answers have no bound in ε and δ.

    Parameters
    ----------
    reasons : tuple of str
        Why not: each names the argument, or the arrays of the model, that are in the way.
    """

    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return "; ".join(self.reasons)


def mechanism_of(
    core: Core, fraction_evaluate: float, current: Round | None = None
) -> Mechanism | NoMechanism:
    """Return the mechanism that clients run in each round, or the reasons why it is none.

    Parameters
    ----------
    core : Core
        The strategy's own work.
    fraction_evaluate : float
        The share of nodes that are asked to evaluate the model.
    current : Round, optional
        A round that has begun. Without one the model, which may be in the way, is not known.

    Returns
    -------
    Mechanism or NoMechanism
        What clients release if they do as they are told, and their apps send no
        metrics of their own.
    """
    clip, noise = _clip(core), core.client_noise
    reasons = [*_against(core, clip, noise, fraction_evaluate)]
    if current is not None:
        reasons += against_model(current)
    if reasons or clip is None or noise is None:
        return NoMechanism(tuple(reasons))
    return Mechanism(clip.norm, _scale(core, noise), core.kind)


def against_model(current: Round) -> Iterator[str]:
    """Yield what is in the way of a mechanism in the model of a round that has begun."""
    specs, instruction = current.layout.specs, current.instruction
    if names := [specs[position].name for position in instruction.exact]:
        yield f"exact: arrays {names} leave clients without noise"
    for group in instruction.tied:
        names = [current.layout.flat[index].name for index in group]
        yield f"arrays {names} are tied, and clients report without noise whether they remain so"


def _clip(core: Core) -> Clip | None:
    return next((step for step in core.settings.client_steps if type(step) is Clip), None)


def _scale(core: Core, noise: Noise) -> float:
    scales = noise.rule.first(1, core.kind)
    assert scales is not None  # the rule is one of those that have the same for ever
    return float(scales[0])


def _against(
    core: Core, clip: Clip | None, noise: Noise | None, fraction_evaluate: float
) -> Iterator[str]:
    """Yield what is in the way of a mechanism among a strategy's arguments."""
    steps: list[ClientStep] = [*core.settings.client_steps]
    if noise is None:
        yield "noise: clients add none"
    elif type(noise) is not Gaussian:
        yield f"noise={noise!r}: only Gaussian noise hides what has a bounded L2 norm"
    elif noise.rule.magnitude is not None:
        yield f"noise={noise!r}: clients report the size of their updates, without noise"
    elif type(noise.rule) not in (Fixed, Theory):
        yield f"noise={noise!r}: the scale may follow from the updates"
    elif clip is not None and _scale(core, noise) < LEAST_MULTIPLIER * clip.norm:
        yield f"noise={noise!r}: the scale is less than {LEAST_MULTIPLIER} times the norm of {clip}"
    if clip is None:
        yield "client_steps: without Clip(…) an update may be of any length"
    elif steps[-1] is not clip:
        yield f"client_steps: {steps[-1]!r} comes after {clip!r} and may lengthen the update"
    if core.settings.seed is not None:
        yield f"seed={core.settings.seed}: the server can draw the noise again"
    if core.weighted:
        yield "weighted=True: clients report their number of examples, without noise"
    if fraction_evaluate > 0:
        yield f"fraction_evaluate={fraction_evaluate}: clients report metrics, without noise"
