"""Rounds that are aggregated some blocks at a time: the model and the report of one at once."""

from dataclasses import dataclass, replace
from unittest.mock import patch

import numpy as np
import pytest

from fedmedian import (
    Adam,
    Blocks,
    ClippedMean,
    Counts,
    Gaussian,
    Majority,
    Median,
    Momentum,
    Rotation,
    SmoothedMedian,
)
from fedmedian.aggregators.base import Answers
from fedmedian.rounds import direction
from fedmedian.rounds.recipe import Recipe
from fedmedian.rounds.screening import Said
from fedmedian.rounds.state import RunState
from fedmedian.steps.instruction import perturb_update

RNG = np.random.default_rng(0)
MODEL = {
    "w": RNG.standard_normal((30, 40)).astype(np.float32),
    "half": RNG.standard_normal(307).astype(np.float16),
    "b": RNG.standard_normal(7).astype(np.float32),
    "tied": RNG.standard_normal(500),
    "c": RNG.standard_normal(9).astype(np.float32),
    "mask": np.full(400, -np.inf, np.float32),
    "frozen": RNG.standard_normal(300).astype(np.float32),
    "steps": np.array(7),
}
MODEL["too"] = MODEL["tied"].copy()
CUT = Rotation(smallest=100, largest=450)
RECIPES = {
    "counts": Recipe(rotation=CUT, seed=1),
    "weighted counts": Recipe(rotation=CUT, seed=1, weighted=True),
    "counts in the parameters' basis": Recipe(noise=Gaussian(), rotation=None, seed=1),
    "momentum": Recipe(rotation=CUT, optimizer=Momentum(), seed=1),
    "majority": Recipe(Majority("unchanged", calibrated=True), rotation=CUT, seed=1),
    "majority with coins": Recipe(Majority(), Gaussian(), 0.1, rotation=None, seed=1),
    "median": Recipe(Median(), rotation=CUT, seed=1),
    "median, noise at the server": Recipe(Median(), rotation=CUT, noise_at="server", seed=1),
    "smoothed median": Recipe(SmoothedMedian(), rotation=CUT, optimizer=Adam(), seed=1),
    "clipped mean": Recipe(ClippedMean(), None, rotation=CUT, seed=1),
}
each_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


def answers_to(question, num_clients=4):
    answers, layout = [], question.layout
    for client in range(num_clients):
        rng = np.random.default_rng([client, question.server_round])
        after = {name: array + array.dtype.type(client) for name, array in MODEL.items()}
        update = rng.standard_normal(layout.dim, dtype=np.float32)
        parts = layout.blocks.split(update)
        for spec, part in zip(layout.flat, parts, strict=True):
            part *= 0 if spec.name in ("frozen", "mask") else 1
        parts[-1][:] = parts[3]
        payload = perturb_update(question.instruction, layout, update, after, rng)
        arrays, scalars = payload.encode()
        named = {str(number): array for number, array in enumerate(arrays)}
        answers.append(question.answer(client, Said(named, scalars, 1.0 + client, {}, None)))
    return answers


def after_two_rounds(recipe, span, threads=1):
    """The model, the state and the last report, with about so many coordinates at once."""
    model, state = MODEL, RunState()
    with patch.object(direction, "_SPAN", span):
        for number in (1, 2):
            question = recipe.ask(state, number, model)
            model, state, report = recipe.step(
                question, answers_to(question), state, threads=threads
            )
    return model, state, report


def bits(model, state):
    groups = {"model": model, **state.to_groups()}
    return {
        (group, name): array.tobytes() for group in groups for name, array in groups[group].items()
    }


@each_recipe
@pytest.mark.parametrize("span", [1, 700])
def test_some_blocks_at_a_time_make_the_model_and_report_of_all_at_once(recipe, span):
    whole, parts = (after_two_rounds(recipe, one) for one in (1 << 20, span))
    assert bits(*parts[:2]) == bits(*whole[:2])
    assert parts[2].keys() == whole[2].keys()
    for name, value in whole[2].items():
        np.testing.assert_allclose(parts[2][name], value, rtol=1e-5, atol=1e-7, err_msg=name)


@each_recipe
def test_nothing_depends_on_the_number_of_threads(recipe):
    one, *others = (after_two_rounds(recipe, 300, threads) for threads in (1, 2, 5))
    for other in others:
        assert bits(*other[:2]) == bits(*one[:2])
        assert other[2] == one[2]


@pytest.mark.parametrize("name", ["counts", "median", "clipped mean"])
def test_a_rule_is_called_for_some_blocks_only_if_it_is_no_subclass(name):
    recipe, lengths = RECIPES[name], []

    @dataclass(frozen=True)
    class Own(type(recipe.aggregator)):
        def direction(self, answers, rng):
            lengths.append(answers.blocks.dim)
            return super().direction(answers, rng)

    own = after_two_rounds(replace(recipe, aggregator=Own()), 1)
    assert bits(*own[:2]) == bits(*after_two_rounds(recipe, 1)[:2])
    assert lengths == [recipe.ask(RunState(), 1, MODEL).blocks.dim] * 2


def test_arrays_that_do_not_train_or_are_not_finite_stay_and_tied_ones_stay_tied():
    model, *_ = after_two_rounds(RECIPES["counts"], 1, threads=2)
    for name in ("frozen", "mask"):
        np.testing.assert_array_equal(model[name], MODEL[name])
    np.testing.assert_array_equal(model["tied"], model["too"])
    assert not np.array_equal(model["tied"], MODEL["tied"])
    assert [array.dtype for array in model.values()] == [array.dtype for array in MODEL.values()]


def test_the_sum_of_votes_in_some_blocks_is_decoded_as_in_all_of_them():
    rng, ones = np.random.default_rng(0), np.ones((4, 3), np.float32)
    counts = rng.integers(0, 5, 60)
    answers = Answers(
        (), np.full(4, 0.25), Blocks((10, 20, 30)), Gaussian(), ones, counts=counts, report={}
    )
    some = answers.within(range(1, 3), Counts().encoding, np.empty(60, np.float32))
    assert some.blocks == Blocks((20, 30))
    np.testing.assert_array_equal(
        Counts().direction(some, rng), Counts().direction(answers, rng)[10:]
    )
    assert len(some.seen) == 1
