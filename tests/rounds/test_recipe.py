"""Rounds as values: the same recipe, model, state and answers make the same step."""

import subprocess
import sys
from dataclasses import replace
from itertools import permutations
from math import nan
from typing import ClassVar

import numpy as np
import pytest

from fedmedian import (
    Adam,
    Adaptive,
    Gaussian,
    Majority,
    Median,
    Momentum,
    Rotation,
    SmoothedMedian,
    TopUp,
)
from fedmedian.rounds.recipe import Recipe
from fedmedian.rounds.screening import Said
from fedmedian.rounds.state import ArrayState, RunState
from fedmedian.steps.instruction import perturb_update

RNG = np.random.default_rng(0)
MODEL = {
    "w": RNG.standard_normal((20, 8)).astype(np.float32),
    "b": RNG.standard_normal(8).astype(np.float32),
    "steps": np.array(7),
}
RECIPES = [
    Recipe(seed=1),
    Recipe(Majority(), Gaussian(0.1), 0.01, rotation=None, optimizer=Momentum(), seed=1),
    Recipe(Majority(calibrated=True), weighted=True, optimizer=Adam(), seed=1),
    Recipe(Median(), Gaussian(TopUp()), noise_at="server", seed=1),
    Recipe(SmoothedMedian(), Gaussian(Adaptive(3.0)), rotation=None, optimizer=Adam(), seed=1),
]

each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: repr(recipe.aggregator))


def answers_to(question, num_clients=4, aim=0.0):
    """Answers of clients that go half of the way to `aim`, each with noise of its own."""
    answers = []
    for client in range(num_clients):
        rng = np.random.default_rng([client, question.server_round])
        received = question.content_for(client).arrays
        after = {
            name: (array + 0.5 * (aim - array) + 0.1 * client).astype(array.dtype)
            for name, array in received.items()
        }
        update = question.layout.difference(received, after)
        payload = perturb_update(question.instruction, question.layout, update, after, rng)
        arrays, scalars = payload.encode()
        arrays = dict(zip(map(str, range(len(arrays))), arrays, strict=True))
        said = Said(arrays, scalars, 1.0 + client, {"loss": client}, None)
        answers.append(question.answer(client, said))
    return answers


def bits(model, state, report):
    arrays = {
        (group, name): array.tobytes()
        for group, arrays in {**state.to_groups(), "model": model}.items()
        for name, array in arrays.items()
    }
    return arrays, repr(report)


def after_rounds(recipe, rounds):
    model, state = MODEL, RunState()
    for number in range(1, rounds + 1):
        question = recipe.ask(state, number, model)
        model, state, _ = recipe.step(question, answers_to(question), state)
    return model, state


@each_recipe
def test_the_same_answers_make_the_same_step_in_whatever_order_they_come(recipe):
    model, state = after_rounds(recipe, 2)
    question = recipe.ask(state, 3, model)
    answers = answers_to(question)
    results = {
        repr(bits(*recipe.step(question, list(order), state))) for order in permutations(answers)
    }
    assert len(results) == 1
    again = recipe.ask(state, 3, model)
    assert repr(bits(*recipe.step(again, answers_to(again), state))) in results


@each_recipe
def test_a_step_changes_neither_the_model_nor_the_state_it_is_made_from(recipe):
    model, state = after_rounds(recipe, 2)
    before = {name: array.copy() for name, array in model.items()}
    groups = repr(state.to_groups())
    question = recipe.ask(state, 3, model)
    moved, following, _ = recipe.step(question, answers_to(question), state)
    assert repr(state.to_groups()) == groups
    for name, array in model.items():
        np.testing.assert_array_equal(array, before[name])
    assert not np.array_equal(moved["w"], model["w"])
    assert following is not state


@each_recipe
def test_two_questions_may_be_open_at_once_and_be_answered_in_any_order(recipe):
    model, state = after_rounds(recipe, 1)
    models, alone = {2: model, 3: {**model, "w": model["w"] + np.float32(1)}}, {}
    for number in (2, 3):
        question = recipe.ask(state, number, models[number])
        alone[number] = bits(*recipe.step(question, answers_to(question), state))
    assert alone[2] != alone[3]
    questions = {number: recipe.ask(state, number, models[number]) for number in (2, 3)}
    answers = {number: answers_to(question) for number, question in questions.items()}
    for order in ((2, 3), (3, 2)):
        for number in order:
            step = recipe.step(questions[number], answers[number], state)
            assert bits(*step) == alone[number]


def test_a_round_that_trains_twice_has_another_basis_and_other_noise_the_second_time():
    """With a seed, too: the noise of several passes must not add up."""
    recipe = replace(RECIPES[3], noise=Gaussian(0.1))
    bases = [recipe.ask(RunState(), 1, MODEL, passes=one).instruction for one in (0, 1)]
    assert len({one.find(Rotation).seed for one in bases}) == 2
    assert len({one.seed for one in bases}) == 2  # which decides about the clients' noise
    recipe = replace(recipe, rotation=None)
    passes = [recipe.ask(RunState(), 1, MODEL, passes=one) for one in (0, 1)]
    models = [recipe.step(one, answers_to(one), RunState())[0] for one in passes]
    assert not np.array_equal(models[0]["w"], models[1]["w"])


@each_recipe
def test_a_runs_state_is_the_same_after_it_was_stored_as_groups_of_arrays(recipe):
    _, state = after_rounds(recipe, 2)
    stored = state.to_groups()
    found = RunState.from_groups(stored)
    assert set(found.arrays) == {"w", "b"}
    for name, known in state.arrays.items():
        restored = found.arrays[name]
        assert restored.shape == known.shape
        np.testing.assert_array_equal(restored.scale, known.scale)
        assert restored.optimizer.keys() == known.optimizer.keys()
        for key, value in known.optimizer.items():
            np.testing.assert_array_equal(restored.optimizer[key], value)


def test_groups_that_are_not_a_runs_state_are_left_out_when_it_is_read():
    state = RunState({"x": ArrayState((3,), 0.5)})
    groups = {**state.to_groups(), "model": {"x": np.zeros(3)}}
    assert RunState.from_groups(groups) == state


def test_rounds_run_without_flower():
    program = """
import pkgutil, importlib, sys
import fedmedian.rounds
for module in pkgutil.iter_modules(fedmedian.rounds.__path__):
    importlib.import_module("fedmedian.rounds." + module.name)
sys.exit("flwr" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


class TestSizesThatClientsVoteOn:
    """One vote of each client about each array's level, from round to round."""

    RECIPE = Recipe(noise=Gaussian(TopUp(voted=True)), seed=1)
    START: ClassVar = {"x": np.zeros(64, np.float32)}

    def following(self, sizes, scale=nan):
        """Return the level after a round of clients with updates of these sizes."""
        state = RunState({"x": ArrayState((64,), scale)})
        question, answers = self.RECIPE.ask(state, 1, self.START), []
        for client, size in enumerate(sizes):
            payload = perturb_update(
                question.instruction,
                question.layout,
                np.full(64, size, np.float32),
                self.START,
                np.random.default_rng(client),
            )
            arrays, scalars = payload.encode()
            said = Said(dict(zip("01", arrays, strict=False)), scalars, 1.0, {}, None)
            answers.append(question.answer(client, said))
        model, state, report = self.RECIPE.step(question, answers, state)
        assert np.isfinite(model["x"]).all()
        assert np.isfinite(report["noise-scale"]).all()
        return state.arrays["x"].scale

    def test_find_the_middle_one_at_once_where_nothing_is_known(self):
        for size in (1e-6, 1.0, 1e4):
            found = self.following([size / 10, size / 2, size, 3 * size, 9 * size])
            assert found == pytest.approx(1.2 * size, rel=0.2)

    def test_follow_it_by_a_factor_of_two_at_most(self):
        level = 1.2
        up = self.following([9.0, 9.0, 9.0, 9.0, 0.1], level)
        down = self.following([9.0, 0.1, 0.1, 0.1, 0.1], level)
        assert level < up <= 2 * level
        assert level / 2 <= down < level

    def test_are_found_anew_after_a_unanimous_vote(self):
        assert np.isnan(self.following([9.0] * 5, 1.2))
        assert np.isnan(self.following([0.1] * 5, 1.2))

    def test_stay_bounded_whatever_clients_claim(self):
        assert self.following([1e13] * 4 + [0.0], 1e12) <= 1e12

    def test_of_an_array_that_no_client_moves_are_unknown_and_it_stays(self):
        assert np.isnan(self.following([0.0] * 5))

    def test_of_an_array_that_a_liar_alone_claims_to_move_are_unknown_too(self):
        assert np.isnan(self.following([0.0] * 4 + [1e6]))
