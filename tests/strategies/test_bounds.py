"""What any t of M clients can do together, whatever they claim: the bounds of docs/robustness.md.

In each round the hostile clients send one thing and then its opposite under the same claims. Half
of the difference between the two steps is their part of the step.
"""

from dataclasses import dataclass, replace
from math import pi, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmedian import (
    Adaptive,
    Counts,
    Gaussian,
    Majority,
    Median,
    Rotation,
    SmoothedMedian,
    TopUp,
)
from fedmedian.kernels.signs import pack_signs
from fedmedian.rounds.recipe import Question, Recipe
from fedmedian.rounds.screening import Answer
from fedmedian.rounds.state import RunState
from fedmedian.rules.trust import PROPORTION, SHARE, num_tolerated
from fedmedian.steps.instruction import perturb_update
from fedmedian.steps.noise import AddNoise
from fedmedian.wire.scalars import LARGEST

ROUNDS = 3
SPREAD = 1e-3
"""How far single precision may leave a bound."""

RNG = np.random.default_rng(0)
MODEL = {
    # In double precision, so that the step can be read off the model.
    "a": RNG.normal(size=300),
    "b": RNG.normal(size=(16, 17)),
    "c": np.zeros(5),
}
MODEL["tied"] = MODEL["b"].copy()


def sign_recipe(noise=None, aggregator=None, learning_rate=None, *, rotation=None, **options):
    aggregator = aggregator or Counts()
    return Recipe(
        aggregator, noise, learning_rate, weighted=True, rotation=rotation, seed=1, **options
    )


def median_recipe(noise=None, aggregator=None, rotation=None, noise_at="client"):
    aggregator = aggregator or Median()
    return Recipe(aggregator, noise, 1.0, noise_at=noise_at, rotation=rotation, seed=1)


TOP_UP, IN_PLACE = Gaussian(TopUp()), Gaussian(Adaptive(3.0))

COUNTS = {
    "by default": lambda: sign_recipe(TOP_UP, rotation=Rotation()),
    "in the parameters' basis": lambda: sign_recipe(IN_PLACE),
    "scales from clients": lambda: sign_recipe(TOP_UP, rotation=Rotation(), scale_from="client"),
    "own scales in the parameters' basis": lambda: sign_recipe(IN_PLACE, scale_from="client"),
    "fixed noise": lambda: sign_recipe(Gaussian(0.3)),
}
MAJORITIES = {
    "plain": lambda: sign_recipe(None, Majority(), 1.0),
    "with noise": lambda: sign_recipe(IN_PLACE, Majority(), 1.0),
    "calibrated": lambda: sign_recipe(IN_PLACE, Majority(calibrated=True)),
}
MEDIANS = {
    "by default": lambda: median_recipe(TOP_UP, rotation=Rotation()),
    "without noise": median_recipe,
    "noise at the server": lambda: median_recipe(TOP_UP, rotation=Rotation(), noise_at="server"),
    "smoothed": lambda: median_recipe(TOP_UP, SmoothedMedian(), Rotation()),
    "smoothed in place": lambda: median_recipe(Gaussian(0.05), SmoothedMedian()),
}


@dataclass(frozen=True)
class Claims:
    """What the hostile clients report: factors of what they would report honestly."""

    examples: float
    scale: float
    magnitude: float
    ties: bool
    length: float


factors = st.sampled_from([0.0, 1e-9, 0.3, 1.0, 4.0, 1e3, 1e30])
some_claims = st.builds(
    Claims,
    examples=st.sampled_from([1e-300, 1e-3, 1.0, 4.0, 1e12, 1e300]),
    scale=factors,
    magnitude=factors,
    ties=st.booleans(),
    length=st.sampled_from([0.0, 1.0, 30.0, 1e30]),
)


def honest_update(client, number, layout, clients):
    """Updates of unlike clients around a common one; the tied arrays have one."""
    rng = np.random.default_rng((client, number))
    common = np.random.default_rng(number).normal(size=layout.dim)
    own = (common + rng.normal(size=layout.dim)) * rng.uniform(0.5, 1.5) * 0.1
    parts = layout.blocks.split(own)
    parts[3][:] = parts[1]
    return own.astype(np.float32)


def scaled(values, factor):
    return np.clip(values * np.float64(factor), -LARGEST, LARGEST).astype(np.float32)


def spoiled(payload, instruction, claims, direction):
    """An honest payload with other content and claims, as it would still be accepted."""
    is_votes = payload.encoding == "signs"
    factors = {
        "measure": claims.magnitude,
        "noise": claims.scale,
        "top-up": claims.scale,
        "tied": 0.0,
    }
    reports = {step: scaled(one, factors[step]) for step, one in payload.reports.items()}
    if claims.ties and "tied" in reports:
        reports["tied"] += 1
    body = pack_signs(direction) if is_votes else scaled(direction, claims.length)
    return replace(
        payload,
        body=body,
        reports=reports,
    )


@dataclass
class Played:
    """A round: both directions, and what honest clients sent."""

    part: np.ndarray
    directions: tuple
    honest: list
    question: Question

    @property
    def blocks(self):
        """The blocks of what clients send."""
        return self.question.blocks

    @property
    def magnitudes(self):
        """The largest magnitude of each block among honest clients."""
        return np.max([answer(self.question, 0, one).magnitudes for one in self.honest], axis=0)

    @property
    def scales(self):
        """The largest noise scale of each block among honest clients."""
        return np.max([answer(self.question, 0, one).scales for one in self.honest], axis=0)


def direction_to(question, model):
    """The direction of a step to a model, with a learning rate of 1."""
    names = [spec.name for spec in question.layout.flat]
    return np.concatenate([(question.model[name] - model[name]).ravel() for name in names])


def answer(question, node, payload, examples=1.0):
    sizes = question.instruction.sizes_of(payload, question.blocks)
    return Answer(node, examples, {}, None, payload, *sizes)


def play(recipe, clients, claims):
    """Yield each round's outcome; the run continues with one of the two steps."""
    model, state, hostile = dict(MODEL), RunState(), num_tolerated(clients)
    for number in range(1, ROUNDS + 1):
        question = recipe.ask(state, number, model)
        instruction, layout = question.instruction, question.layout
        honest, liars = [], []
        for client in range(clients):
            update = honest_update(client, number, layout, clients)
            rng = np.random.default_rng((client, number, 1))
            payload = perturb_update(instruction, layout, update, model, rng, {}, client)
            (liars if client < hostile else honest).append(payload)
        away = np.random.default_rng(number).normal(size=question.blocks.dim).astype(np.float32)
        away[away == 0] = 1
        models = []
        for sign in (1, -1):
            sent = [spoiled(one, instruction, claims, sign * away) for one in liars]
            for one in sent:
                instruction.require_answer(one, layout, model)
            answers = [
                *(answer(question, i, one, claims.examples * 100) for i, one in enumerate(sent)),
                *(answer(question, 100 + i, one, 100.0) for i, one in enumerate(honest)),
            ]
            moved, following, _ = recipe.step(question, answers, state, diagnostics=False)
            models.append(moved)
        first, second = (direction_to(question, moved) for moved in models)
        yield Played((first - second) / 2, (first, second), honest, question)
        model, state = models[number % 2], following


def any_cohort(cases):
    """Go through cohort sizes for each case, with claims that hypothesis chooses."""

    def decorate(test):
        sized = pytest.mark.parametrize("clients", [2, 3, 4, 5, 10, 15])(test)
        return pytest.mark.parametrize("case", cases.values(), ids=cases)(sized)

    return decorate


few_examples = settings(max_examples=3, deadline=None)


@any_cohort(COUNTS)
@few_examples
@given(claims=some_claims)
def test_t_clients_have_a_share_near_t_of_m_of_decoded_counts(case, clients, claims):
    share = SHARE * num_tolerated(clients) / clients
    for played in play(case(), clients, claims):
        noise = played.question.instruction.find(AddNoise)
        sizes = played.magnitudes
        if noise.scales is None:
            # Twice the largest honest level; and who claims no noise only makes the step longer.
            most, longer = 2 * played.scales, 1 / (1 - share)
        else:
            most = noise.scales
            longer = np.maximum(1, sizes / np.maximum(most, 1e-30))
        reach = share * sqrt(pi / 2) * most * longer * np.sqrt(played.blocks.sizes)
        assert np.linalg.norm(played.part) <= np.linalg.norm(reach) * (1 + SPREAD)


@any_cohort(MAJORITIES)
@few_examples
@given(claims=some_claims)
def test_t_clients_turn_no_coordinate_on_which_the_others_agree(case, clients, claims):
    tied = np.r_[300:572, 577:849]  # whose direction is a mean of two
    for played in play(case(), clients, claims):
        packed = np.stack([one.body for one in played.honest])
        votes = np.unpackbits(packed, axis=1)[:, : played.blocks.dim]
        agreed = np.setdiff1d(np.flatnonzero(votes.min(axis=0) == votes.max(axis=0)), tied)
        for direction in played.directions:
            # Of two clients one can make every vote a tie, which is a coin.
            against = direction[agreed] * (2.0 * votes[0, agreed] - 1) < 0
            assert clients == 2 or not against.any()


@any_cohort(MEDIANS)
@few_examples
@given(claims=some_claims)
def test_t_clients_move_a_median_no_farther_than_the_others_are(case, clients, claims):
    recipe = case()
    for played in play(recipe, clients, claims):
        norms = np.stack(
            [
                [np.linalg.norm(np.float64(part)) for part in played.blocks.split(one.body)]
                for one in played.honest
            ]
        )
        scales = np.zeros(len(played.blocks))
        if recipe.noise is not None and recipe.client_noise is None:
            # What the server adds or smooths with, in the size that honest clients have at most.
            scales = 4 * np.maximum(played.magnitudes, 0.1) * np.sqrt(played.blocks.sizes)
        for direction in played.directions:
            moved = np.linalg.norm(direction)
            if clients == 2:
                most = np.linalg.norm((1 + PROPORTION) / 2 * norms.max(axis=0) + 2 * scales)
            else:
                # Each coordinate lies between the others', so that its square is at most their sum.
                most = np.linalg.norm(np.sqrt(np.square(norms).sum(axis=0)) + len(norms) * scales)
            assert moved <= most * (1 + SPREAD)


@pytest.mark.parametrize(
    ("noise", "rotation", "least", "most"),
    [(IN_PLACE, None, 0.9, 1.0), (TOP_UP, Rotation(), 10.0, 20.0)],
    ids=["parameters' basis", "random basis"],
)
def test_a_single_weight_may_move_by_more_than_its_share_in_a_random_basis(
    noise, rotation, least, most
):
    """One of ten knows the round's rotation, and votes as if one weight were all of its update."""
    model, recipe = {"w": np.zeros(400, np.float32)}, sign_recipe(noise, rotation=rotation)
    state = RunState()
    question = recipe.ask(state, 1, model)
    instruction, layout = question.instruction, question.layout
    answers = []
    for client in range(10):
        rng = np.random.default_rng(client)
        update = rng.normal(size=400).astype(np.float32)
        if client == 0:
            update = np.zeros(400, np.float32)
            update[7] = -20  # as long as the others
        payload = perturb_update(instruction, layout, update, model, rng, {}, client)
        answers.append(answer(question, client, payload))
    moved, *_ = recipe.step(question, answers, state)
    without, *_ = recipe.step(question, answers[1:], state)
    share = sqrt(pi / 2) * answers[0].scales.item() / 10
    far = abs(moved["w"][7] - 0.9 * without["w"][7]) / share
    assert least <= far <= most * (1 + SPREAD)
