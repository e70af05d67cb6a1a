"""Models whose arrays come, go, grow and change their order between rounds.

What the server remembers belongs to an array's name: a new array begins afresh, and no other one
is touched. In the older API a name is a position, and what is remembered is also forgotten where
the shape at that position changes.
"""

from collections import Counter

import numpy as np
import pytest

from fedmedian import (
    Adam,
    Adaptive,
    ClientMomentum,
    CodedSteps,
    Gaussian,
    Majority,
    Momentum,
    Theory,
    TopUp,
)
from fedmedian.strategies import Checkpoint

NUM_CLIENTS, NUM_ROUNDS = 4, 12
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


ALL_AT_ONCE = "one shrinks, one grows, and they change places"

# What is sent in a round, and what becomes of the model after it.
CHANGES = {
    "nothing changes": (as_before, as_before),
    "a head, then all": (
        lambda number, model: part(model, "head") if number <= 4 else model,
        as_before,
    ),
    "all, then all but the first": (
        lambda number, model: part(model, "body", "tail") if number > 8 else model,
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
    ALL_AT_ONCE: (
        lambda number, model: part(model, "tail", "body", "head") if number > 5 else model,
        lambda number, model: grown(shrunk(model, "head"), "tail") if number == 5 else model,
    ),
}
QUICK_ADAM = {"optimizer": Adam(0.5, 0.9, tau=1.0), "learning_rate": 1.0}
QUICK = {"optimizer": Momentum(0.5)}
QUICK_STEPS = {"client_steps": [ClientMomentum(0.5)]}
OPTIONS = {
    "signs, topped up": ("SignSGD", Gaussian(TopUp()), {}),
    "signs, adaptive": ("SignSGD", Gaussian(Adaptive(3.0)), {}),
    "signs, adaptive, no rotation": ("SignSGD", Gaussian(Adaptive(3.0)), {"rotation": None}),
    "signs, a number": ("SignSGD", Gaussian(1.5), {}),
    "signs, theory": ("SignSGD", Gaussian(Theory(2, 2)), {"learning_rate": 1.0}),
    "signs, momentum": ("SignSGD", Gaussian(TopUp()), QUICK),
    "signs, clients' momentum": ("SignSGD", Gaussian(TopUp()), QUICK_STEPS),
    "signs, coded downlink": ("SignSGD", Gaussian(TopUp()), {"downlink": CodedSteps()}),
    "signs, Adam": ("SignSGD", Gaussian(Adaptive(3.0)), QUICK_ADAM),
    "majority": ("SignSGD", Gaussian(TopUp()), {"aggregator": Majority(calibrated=True)}),
    "median, no noise": ("MedianSGD", None, {}),
    "median, adaptive": ("MedianSGD", Gaussian(Adaptive(0.5)), {"rotation": None}),
    "median, topped up": ("MedianSGD", Gaussian(TopUp()), {}),
    "median, momentum": ("MedianSGD", None, QUICK),
    "median, Adam": ("MedianSGD", Gaussian(0.1), {**QUICK_ADAM, "rotation": None}),
}
ANY_CHANGE = {
    "message_api": (
        "signs, momentum",
        "signs, clients' momentum",
        "signs, coded downlink",
        "median, Adam",
    ),
    "older_api": ("signs, momentum",),
}
"""The options that meet each change; others meet all changes at once."""

IN_OLDER_API = (
    "signs, topped up",
    "signs, momentum",
    "signs, clients' momentum",
    "majority",
    "median, Adam",
)


def table():
    """Yield each option under all changes at once, and each change under some options."""
    for api, any_change in ANY_CHANGE.items():
        for name in OPTIONS if api == "message_api" else IN_OLDER_API:
            for change in CHANGES if name in any_change else [ALL_AT_ONCE]:
                # By turns, each array is trained in half of the rounds.
                rounds = NUM_ROUNDS * (2 if change == "by turns" else 1)
                label = f"{api}, {name}: {change}"
                yield pytest.param(api, *OPTIONS[name], *CHANGES[change], rounds, id=label)


@pytest.fixture
def play(habitual, seeking, run):
    """Runs a strategy whose subclass changes what is sent; returns the outcome."""

    def play(api, make, noise, choose, after, model=MODEL, num_rounds=NUM_ROUNDS, **options):
        app = options.pop("app", None) or seeking(api, aim, num_clients=NUM_CLIENTS)
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
        return run(strategy, app, model, NUM_CLIENTS, num_rounds)

    return play


@pytest.mark.parametrize(
    ("api", "make", "noise", "options", "choose", "after", "rounds"), [*table()]
)
def test_every_array_ends_where_its_clients_take_it(
    api, make, noise, options, choose, after, rounds, play, request
):
    api = request.getfixturevalue(api)
    outcome = play(api, make, noise, choose, after, MODEL, rounds, seed=1, **options)
    for name, array in outcome.model.items():
        goal = aim(name, array)
        assert np.mean(array) == pytest.approx(goal, abs=0.5), name


OPTIMIZERS = {
    "no optimizer": {},
    "momentum": {"optimizer": Momentum()},
    "Adam": {"optimizer": Adam(), "learning_rate": 0.1},
    "clients' momentum": {"client_steps": [ClientMomentum()]},
}


@pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
class TestOptimizers:
    """Without noise an array goes the way that it would go in a model of its own, to the bit."""

    @pytest.fixture
    def paths(self, play, message_api, options):
        """Returns an array's values after each round, as it is sent with others and alone."""

        def paths(choose, after=as_before, model=MODEL, num_rounds=6):
            fixed = {"rotation": None, **options}
            path = play(message_api, "MedianSGD", None, choose, after, model, num_rounds, **fixed)
            return [{name: array.tolist() for name, array in one.items()} for one in path.path]

        return paths

    def test_arrays_by_turns_do_not_touch_each_other(self, paths):
        path = paths(CHANGES["by turns"][0])
        head = paths(as_before, model=part(MODEL, "head"), num_rounds=3)
        rest = paths(as_before, model=part(MODEL, "body", "tail"), num_rounds=3)
        for number in range(4):
            at = max(2 * number - 1, 0)  # its last round
            assert path[at]["head"] == head[number]["head"]
            assert [path[2 * number][name] for name in ("body", "tail")] == [
                rest[number][name] for name in ("body", "tail")
            ]

    def test_a_new_array_begins_afresh_and_touches_no_other(self, paths):
        path = paths(lambda number, model: model if number > 3 else part(model, "body"))
        body = paths(as_before, model=part(MODEL, "body"))
        head = paths(as_before, model=part(MODEL, "head"), num_rounds=3)
        assert [one["body"] for one in path] == [one["body"] for one in body]
        assert [one["head"] for one in path[3:]] == [one["head"] for one in head]

    def test_an_array_that_is_away_for_some_rounds_resumes(self, paths):
        path = paths(lambda number, model: part(model, "body") if number in (3, 4) else model)
        head = paths(as_before, model=part(MODEL, "head"), num_rounds=4)
        assert [path[number]["head"] for number in (0, 1, 2, 5, 6)] == [one["head"] for one in head]

    def test_an_array_that_grows_begins_afresh_and_touches_no_other(self, paths):
        path = paths(
            as_before, lambda number, model: grown(model, "body") if number == 3 else model
        )
        start = {"body": np.asarray(path[3]["body"], np.float32)}
        body = paths(as_before, model=start, num_rounds=3)
        head = paths(as_before, model=part(MODEL, "head"))
        assert [one["body"] for one in path[3:]] == [one["body"] for one in body]
        assert [one["head"] for one in path] == [one["head"] for one in head]

    def test_the_order_of_the_arrays_does_not_matter(self, paths):
        assert paths(CHANGES["another order each round"][0]) == paths(as_before)


@pytest.mark.parametrize("make", ["SignSGD", "MedianSGD"])
class TestScales:
    """A noise scale is that of its array, which it would have in a model of its own."""

    SIZES = {"head": 8.0, "body": 0.01, "tail": 1.0}  # noqa: RUF012

    @pytest.fixture
    def scales(self, play, make, message_api, make_app):
        """Returns the noise scales of each round by name, where updates shrink in each.

        A scale at most halves in a round, so that it tells what it was before.
        """

        def scales(choose, after=as_before, model=MODEL, num_rounds=6):
            trained, sent = Counter(), []

            def train(model, partition):
                steps = {}
                for name, array in model.items():
                    size = self.SIZES[name] * 0.2 ** trained[name, partition]
                    trained[name, partition] += 1
                    steps[name] = array + np.float32(size)
                return steps, {"num-examples": 10}

            def chosen(number, model):
                sent.append([*choose(number, model)])
                return choose(number, model)

            noise = Gaussian(Adaptive(3.0))
            fixed = {"rotation": None, "app": make_app(train)}
            run = play(message_api, make, noise, chosen, after, model, num_rounds, **fixed)
            reports = [run.reports[number]["noise-scale"] for number in range(1, num_rounds + 1)]
            return [
                dict(zip(names, of_blocks, strict=True))
                for names, of_blocks in zip(sent, reports, strict=True)
            ]

        return scales

    @pytest.fixture
    def alone(self, scales):
        """Returns the noise scales of an array in a model of its own."""

        def alone(name, num_rounds=6):
            of_rounds = scales(as_before, model=part(MODEL, name), num_rounds=num_rounds)
            return pytest.approx([one[name] for one in of_rounds], rel=1e-4)

        return alone

    def test_the_order_of_the_arrays_does_not_matter(self, scales, alone):
        found = scales(CHANGES["another order each round"][0])
        for name in MODEL:
            assert [one[name] for one in found] == alone(name)

    def test_arrays_by_turns_do_not_touch_each_other(self, scales, alone):
        found = scales(CHANGES["by turns"][0])
        for name in MODEL:
            assert [one[name] for one in found if name in one] == alone(name, 3)

    def test_a_new_array_begins_afresh_and_touches_no_other(self, scales, alone):
        found = scales(lambda number, model: model if number > 3 else part(model, "tail"))
        assert [one["tail"] for one in found] == alone("tail")
        assert [one["body"] for one in found[3:]] == alone("body", 3)

    def test_an_array_that_is_away_for_some_rounds_resumes(self, scales, alone):
        found = scales(lambda number, model: part(model, "tail") if number in (3, 4) else model)
        for name, num_rounds in (("tail", 6), ("head", 4)):
            assert [one[name] for one in found if name in one] == alone(name, num_rounds)

    def test_an_array_that_grows_begins_afresh_and_touches_no_other(self, scales, alone):
        found = scales(
            as_before, lambda number, model: grown(model, "body") if number == 3 else model
        )
        assert [one["head"] for one in found] == alone("head")
        size = self.SIZES["body"] * 0.2**3
        assert found[3]["body"] == pytest.approx(3.0 * size, rel=0.01)


def test_an_array_that_grows_late_is_not_said_to_have_a_noise_scale_that_has_grown(
    api, play, warnings
):
    """Its first updates are long again, and those of the array before have become short."""

    def after(number, model):
        return {**model, "body": np.full((60, 12), 97, np.float32)} if number == 11 else model

    play(api, "SignSGD", Gaussian(TopUp()), as_before, after, part(MODEL, "body"), 14, seed=1)
    assert not warnings("the noise scale of")


class TestOlderApi:
    """Names are positions there; what can be told apart by its shape is."""

    @pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
    def test_an_array_whose_shape_has_changed_begins_afresh_and_touches_no_other(
        self, options, play, older_api
    ):

        def path(model, num_rounds, after=as_before):
            fixed = {"rotation": None, **options}
            run = play(older_api, "MedianSGD", None, as_before, after, model, num_rounds, **fixed)
            return [{name: array.tolist() for name, array in one.items()} for one in run.path]

        found = path(MODEL, 6, lambda number, model: grown(model, "body") if number == 3 else model)
        body = path({"body": np.asarray(found[3]["body"], np.float32)}, 3)
        assert [one["body"] for one in found[3:]] == [one["body"] for one in body]
        for name in ("head", "tail"):
            alone = path(part(MODEL, name), 6)
            assert [one[name] for one in found] == [one[name] for one in alone]


HEAD_FIRST, HEAD_LAST, TURNS = "a head, then all", "all, then all but the first", "by turns"


class TestResume:
    """A checkpoint has the last value of every array, whatever part of a model a round trains."""

    @pytest.fixture
    def start(self, play, tmp_path):
        """Starts a run, or resumes the one in the folder."""

        def start(api, num_rounds, choose, model=MODEL, after=as_before, folder=tmp_path):
            checkpoint = None if folder is None else Checkpoint(folder)
            options = {"seed": 1, "checkpoint": checkpoint, **QUICK}
            noise = Gaussian(TopUp())
            return play(api, "SignSGD", noise, choose, after, model, num_rounds, **options)

        return start

    @pytest.mark.parametrize("change", [HEAD_FIRST, HEAD_LAST, TURNS, "another order each round"])
    def test_a_resumed_run_ends_as_if_nothing_had_happened(
        self, change, start, message_api, bits, warnings
    ):
        choose = CHANGES[change][0]
        for stop in (1, 9):
            start(message_api, stop, choose)
        resumed, whole = start(message_api, 10, choose), start(message_api, 10, choose, folder=None)
        assert bits(resumed.model) == bits(whole.model)
        assert resumed.reports == whole.reports
        assert warnings("a part of the model") == warnings("the model is not") == []

    @pytest.mark.parametrize(
        "choose",
        [
            CHANGES[HEAD_FIRST][0],
            lambda number, model: part(model, "head") if number > 3 else model,
        ],
        ids=["first", "last"],
    )
    def test_the_older_api_resumes_where_a_part_is_the_first_arrays(
        self, choose, start, older_api, bits, warnings
    ):
        for stop in (1, 9):
            start(older_api, stop, choose)
        resumed, whole = start(older_api, 10, choose), start(older_api, 10, choose, folder=None)
        assert bits(resumed.model) == bits(whole.model)
        assert warnings("a part of the model") == warnings("the model is not") == []

    SQUARES = {name: np.zeros((8, 10), np.float32) for name in "ab"}  # noqa: RUF012

    @pytest.mark.parametrize("stop", [1, 4])
    @pytest.mark.parametrize("model", [part(MODEL, "head", "body"), SQUARES], ids=["two", "equal"])
    def test_the_older_api_says_at_once_that_it_cannot_resume_from_other_parts(
        self, model, stop, start, older_api, warnings
    ):

        def by_turns(number, model):
            return part(model, [*model][number % 2])

        start(older_api, stop, by_turns, model)
        (warning,) = warnings("a part of the model")
        assert "no run can resume" in warning
        assert not warnings("the model is not")
        with pytest.raises(
            ValueError, match="holds 1 of the model's 2 arrays, which have no names"
        ):
            start(older_api, 6, by_turns, model)

    def test_a_run_whose_array_has_grown_resumes_with_the_model_that_it_began_with(
        self, start, message_api, bits
    ):
        def grow(number, model):
            is_small = model["body"].shape == MODEL["body"].shape
            return grown(model, "body") if number >= 2 and is_small else model

        start(message_api, 4, as_before, after=grow)
        resumed = start(message_api, 6, as_before, after=grow)
        whole = start(message_api, 6, as_before, after=grow, folder=None)
        assert bits(resumed.model) == bits(whole.model)

    def test_an_array_that_was_not_loaded_is_refused_in_its_first_round(self, start, message_api):
        turns = CHANGES[TURNS][0]
        start(message_api, 3, turns)
        with pytest.raises(RuntimeError, match=r"of round 3 .* was not loaded, array 'body'"):
            start(
                message_api, 6, turns, after=lambda number, model: {**model, **part(MODEL, "body")}
            )

    def test_arrays_that_the_first_round_leaves_out_are_named_in_the_log(
        self, start, message_api, caplog
    ):
        choose = CHANGES[HEAD_LAST][0]
        start(message_api, 9, choose)
        caplog.clear()
        start(message_api, 11, choose)
        (line,) = [one for one in caplog.messages if "a part of the model" in one]
        assert "arrays ['head'] of the checkpoint are in what aggregate_train returned" in line

    @pytest.mark.parametrize(
        ("model", "difference"),
        [
            ({"head": MODEL["head"]}, "left out "),
            ({**MODEL, "more": MODEL["head"]}, "new ['more']"),
            ({**MODEL, "head": np.zeros(9)}, "of another shape or dtype ['head']"),
        ],
        ids=["fewer", "more", "another shape"],
    )
    def test_a_model_with_other_arrays_is_refused(self, model, difference, start, message_api):
        start(message_api, 1, as_before)
        with pytest.raises(
            ValueError, match="than the initial one, in which arrays are"
        ) as refused:
            start(message_api, 2, as_before, model)
        assert f"are {difference}" in str(refused.value)
        assert str(refused.value).endswith("or start over in another folder")
