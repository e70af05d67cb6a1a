"""Models whose arrays come, go, grow and change their order between rounds.

What the server remembers belongs to an array's name: a new array begins afresh, and no other one
is touched. In the older API a name is a position, and what is remembered is also forgotten where
the shape at that position changes.
"""

import numpy as np
import pytest

from fedmedian import Adam, Adaptive, Gaussian, Majority, Momentum, Theory, TopUp

NUM_CLIENTS, NUM_ROUNDS = 5, 14
MODEL = {
    "head": np.zeros((50, 10), np.float32),
    "body": np.zeros((40, 12), np.float32),
    "tail": np.zeros((80, 6), np.float32),
}
GOALS = {10: 2.0, 12: -3.0, 6: 1.0}
"""Where clients take an array, by its number of columns."""


def aim(name, array):
    return GOALS[array.shape[-1]]


def part(model, *names):
    return {name: model[name] for name in names}


def grown(model, name, rows=8):
    wider = np.pad(model[name], ((0, rows), (0, 0)))
    return {**model, name: wider}


def shrunk(model, name, rows=8):
    return {**model, name: model[name][:-rows]}


def as_before(number, model):
    return model


# What is sent in a round, and what becomes of the model after it.
CHANGES = {
    "nothing changes": (as_before, as_before),
    "a head, then all": (
        lambda number, model: part(model, "head") if number <= 4 else model,
        as_before,
    ),
    "all, then all but the first": (
        lambda number, model: part(model, "body", "tail") if number > 10 else model,
        as_before,
    ),
    "by turns": (
        lambda number, model: part(model, *(["head"] if number % 2 else ["body", "tail"])),
        as_before,
    ),
    "another order each round": (
        lambda number, model: dict(sorted(model.items(), reverse=number % 2)),
        as_before,
    ),
    "one grows": (
        as_before,
        lambda number, model: grown(model, "body") if number in (2, 4) else model,
    ),
    "one shrinks, one grows, and they change places": (
        lambda number, model: part(model, "tail", "body", "head") if number > 5 else model,
        lambda number, model: grown(shrunk(model, "head"), "tail") if number == 5 else model,
    ),
}
QUICK_ADAM = {"optimizer": Adam(0.5, 0.9, tau=1.0), "learning_rate": 1.0}
QUICK = {"optimizer": Momentum(0.5)}
OPTIONS = {
    "signs, topped up": ("SignSGD", Gaussian(TopUp()), {}),
    "signs, adaptive": ("SignSGD", Gaussian(Adaptive(3.0)), {}),
    "signs, adaptive, no rotation": ("SignSGD", Gaussian(Adaptive(3.0)), {"rotation": None}),
    "signs, a number": ("SignSGD", Gaussian(1.5), {}),
    "signs, theory": ("SignSGD", Gaussian(Theory(2, 2)), {"learning_rate": 1.0}),
    "signs, momentum": ("SignSGD", Gaussian(TopUp()), QUICK),
    "signs, Adam": ("SignSGD", Gaussian(Adaptive(3.0)), QUICK_ADAM),
    "majority": ("SignSGD", Gaussian(TopUp()), {"decode": Majority(calibrated=True)}),
    "median, no noise": ("MedianSGD", None, {}),
    "median, adaptive": ("MedianSGD", Gaussian(Adaptive(0.5)), {"rotation": None}),
    "median, topped up": ("MedianSGD", Gaussian(TopUp()), {}),
    "median, momentum": ("MedianSGD", None, QUICK),
    "median, Adam": ("MedianSGD", Gaussian(0.1), {**QUICK_ADAM, "rotation": None}),
}
IN_OLDER_API = ("signs, topped up", "signs, momentum", "majority", "median, Adam")

# State by position: to be emptied.
NOT_YET = {
    change: {*OPTIONS} - {"median, no noise"}
    for change in ("a head, then all", "all, then all but the first", "by turns")
} | {
    "another order each round": {"signs, Adam", "median, Adam"},
    "one grows": {"signs, momentum", "signs, Adam", "median, momentum", "median, Adam"},
    "one shrinks, one grows, and they change places": {
        *("signs, momentum", "signs, Adam", "median, momentum", "median, Adam")
    },
}


def table():
    """Yield each change under each option, all in one API and some in the other."""
    for api in ("message_api", "older_api"):
        for name, options in OPTIONS.items():
            for change, (choose, after) in CHANGES.items():
                if api == "older_api" and name not in IN_OLDER_API:
                    continue
                fails = name in NOT_YET.get(change, ())
                marks = pytest.mark.xfail(strict=True, reason="state by position") if fails else ()
                yield pytest.param(
                    api, *options, choose, after, id=f"{api}, {name}: {change}", marks=marks
                )


@pytest.fixture
def play(habitual, seeking, run):
    """Runs a strategy whose subclass changes what is sent; returns the outcome."""

    def play(
        api, make, noise, choose, after, num_rounds=NUM_ROUNDS, aim=aim, model=MODEL, **options
    ):
        whole = {}

        def ask(number, model, usual):
            whole.clear()
            whole.update(model)
            return usual(choose(number, model))

        def hear(number, heard, usual):
            new, metrics = usual(heard)
            return after(number, whole | (new or {})), metrics

        strategy = habitual(
            api, make, model, noise, ask=ask, hear=hear, fraction_evaluate=0.0, **options
        )
        return run(strategy, seeking(api, aim), model, NUM_CLIENTS, num_rounds)

    return play


@pytest.mark.parametrize(("api", "make", "noise", "options", "choose", "after"), table())
def test_every_array_ends_where_its_clients_take_it(
    api, make, noise, options, choose, after, play, request
):
    api = request.getfixturevalue(api)
    outcome = play(api, make, noise, choose, after, **options)
    for name, array in outcome.model.items():
        goal = aim(name, array)
        assert np.mean(array) == pytest.approx(goal, abs=0.3), name
