"""Rounds as values: the same recipe, model, state and answers make the same step."""

import subprocess
import sys
from itertools import permutations

import numpy as np
import pytest

from fedmedian import (
    Adam,
    Adaptive,
    Gaussian,
    Majority,
    Median,
    Momentum,
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
        received = question.content_for(client)
        after = {
            name: (array + 0.5 * (aim - array) + 0.1 * client).astype(array.dtype)
            for name, array in received.items()
        }
        update = question.layout.difference(received, after)
        payload = perturb_update(
            question.instruction_for(client), question.layout, update, after, rng
        )
        arrays, scalars = payload.encode()
        arrays = dict(zip(map(str, range(len(arrays))), arrays, strict=True))
        said = Said(arrays, scalars, 1.0 + client, {"loss": client}, None)
        answers.append(question.answer(client, said))
    return answers


def bits(step, state, report):
    arrays = {
        (group, name): array.tobytes()
        for group, arrays in {**state.to_groups(), "exact": step.exact}.items()
        for name, array in arrays.items()
    }
    return step.direction.tobytes(), step.rate, arrays, repr(report)


def after_rounds(recipe, rounds):
    model, state = MODEL, RunState()
    for number in range(1, rounds + 1):
        question = recipe.ask(state, number, model)
        step, state, _ = recipe.step(question, answers_to(question), state)
        model = question.move(step)
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
    step, following, _ = recipe.step(question, answers_to(question), state)
    moved = question.move(step)
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
