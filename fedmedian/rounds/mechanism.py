"""What a strategy's clients release in each round."""

from collections.abc import Iterator

from fedmedian.privacy.accounting import Mechanism
from fedmedian.privacy.mechanism import NoMechanism, Obstacle, mechanism_of, obstacles
from fedmedian.rounds.core import Core, Round
from fedmedian.rules.scales import Fixed, Theory


def mechanism_of_strategy(
    core: Core, fraction_evaluate: float, current: Round | None = None
) -> Mechanism | NoMechanism:
    """Return the mechanism that clients run in each round, or the reasons why there is none.

    Parameters
    ----------
    core : Core
        The strategy's core.
    fraction_evaluate : float
        The share of nodes that are asked to evaluate the model.
    current : Round, optional
        A round that has begun. Without one, the model is unknown and adds no reasons.

    Returns
    -------
    Mechanism or NoMechanism
        What clients release if they follow their instructions and their apps send no metrics.
    """
    found = mechanism_of(core.usual_steps, seed=core.settings.seed)
    reasons = [*_against(core, fraction_evaluate)]
    if isinstance(found, NoMechanism):
        reasons += found.reasons
    if current is not None:
        reasons += map(str, against_model(current))
    return NoMechanism(tuple(reasons)) if reasons else found


def against_model(current: Round) -> Iterator[Obstacle]:
    """Yield the obstacles in the model of a round that has begun."""
    specs, instruction = current.layout.specs, current.instruction
    names = [specs[position].name for position in instruction.exact]
    for obstacle in obstacles(instruction.steps, exact=names, layout=current.layout):
        if obstacle.rule in ("exact", "tied"):
            yield obstacle


def _against(core: Core, fraction_evaluate: float) -> Iterator[str]:
    """Yield the reasons among a strategy's arguments that are not in its clients' steps."""
    noise = core.client_noise
    rule = None if noise is None else noise.rule
    if rule is not None and rule.magnitude is None and type(rule) not in (Fixed, Theory):
        yield f"noise={noise!r}: the scale may follow from the updates"
    if core.weighted:
        yield "weighted=True: clients report their number of examples, without noise"
    if fraction_evaluate > 0:
        yield f"fraction_evaluate={fraction_evaluate}: clients report metrics, without noise"
