"""What a strategy's clients release in each round."""

from collections.abc import Iterator, Sequence

from fedmedian.privacy.accounting import Mechanism
from fedmedian.privacy.mechanism import NoMechanism, Obstacle, mechanism_of, obstacles
from fedmedian.rounds.recipe import Question, Recipe
from fedmedian.rules.scales import Fixed, Theory
from fedmedian.steps.base import ClientStep
from fedmedian.steps.updates import Limit
from fedmedian.wire.scalars import FLOAT32_TINY

UNKNOWN_MODEL = "what a secure sum reveals depends on the model's size, known in the first round"


def mechanism_of_strategy(
    recipe: Recipe, fraction_evaluate: float, question: Question | None = None
) -> Mechanism | NoMechanism:
    """Return the mechanism that clients run in each round, or the reasons why there is none.

    Parameters
    ----------
    recipe : Recipe
        What the strategy asks of clients.
    fraction_evaluate : float
        The share of nodes that are asked to evaluate the model.
    question : Question, optional
        A question that was asked. Without one, the model is unknown and adds no reasons, except for
        secure sums: what they reveal depends on the model's size.

    Returns
    -------
    Mechanism or NoMechanism
        What clients release if they follow their instructions and their apps send no metrics.
    """
    found = mechanism_of(_steps(recipe, question), seed=recipe.seed)
    reasons = [*_against(recipe, fraction_evaluate, question)]
    if isinstance(found, NoMechanism):
        reasons += found.reasons
    if question is not None:
        reasons += map(str, against_model(question))
    return NoMechanism(tuple(reasons)) if reasons else found


def _steps(recipe: Recipe, question: Question | None) -> Sequence[ClientStep]:
    if recipe.secure is None:
        return recipe.usual_steps
    if question is not None:
        return question.instruction.steps
    # A limit so small that it adds no reasons, since that of the model is not known.
    return [Limit(FLOAT32_TINY) if type(step) is Limit else step for step in recipe.usual_steps]


def against_model(question: Question) -> Iterator[Obstacle]:
    """Yield the obstacles in the model of a question."""
    specs, instruction = question.layout.specs, question.instruction
    names = [specs[position].name for position in instruction.exact]
    for obstacle in obstacles(instruction.steps, exact=names, layout=question.layout):
        if obstacle.rule in ("exact", "tied"):
            yield obstacle


def _against(recipe: Recipe, fraction_evaluate: float, question: Question | None) -> Iterator[str]:
    """Yield the reasons among a strategy's arguments that are not in its clients' steps."""
    noise = recipe.client_noise
    rule = None if noise is None else noise.rule
    if rule is not None and rule.magnitude is None and type(rule) not in (Fixed, Theory):
        yield f"noise={noise!r}: the scale may follow from the updates"
    if recipe.weighted:
        yield "weighted=True: clients report their number of examples, without noise"
    if recipe.secure is not None and question is None:
        yield UNKNOWN_MODEL
    if fraction_evaluate > 0:
        yield f"fraction_evaluate={fraction_evaluate}: clients report metrics, without noise"
