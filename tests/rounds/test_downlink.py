"""The server's side of a coded downlink: what each node is sent, and where that leads."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmedian.model.layout import Layout
from fedmedian.rounds.downlink import CodedSteps, Held
from fedmedian.rounds.recipe import Recipe
from fedmedian.rounds.state import RunState
from fedmedian.steps.downlink import CatchUp, fingerprint, version_of_whole
from fedmedian.steps.tied import average
from tests.tools import downlink
from tests.tools.downlink import RECIPE, length

shapes = st.sampled_from([(), (0,), (1,), (7,), (2, 3), (300,), (20, 30)])
dtypes = st.sampled_from(["f2", "f4", "f8", "i8", "u1", "?"])


@st.composite
def models(draw):
    """Draw a model of arrays of any shape and dtype, some of them tied, exact or masks."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    model = {}
    for number in range(draw(st.integers(1, 5))):
        shape, dtype = draw(shapes), draw(dtypes)
        model[f"a{number}"] = (3 * rng.standard_normal(shape)).astype(dtype)
        if draw(st.booleans()):
            model[f"b{number}"] = model[f"a{number}"].copy()
    if draw(st.booleans()):
        model["mask"] = np.array([[0, -np.inf], [np.nan, 1]], np.float32)
    return model


def later(model, rng, layout):
    """Return the server's model after another round, whose tied arrays are still tied."""
    step = (0.1 * rng.standard_normal(layout.dim)).astype(np.float32)
    average(layout.blocks.split(step), layout.tied(model))
    exact = {spec.name: model[spec.name] for spec in layout.exact}
    exact |= {name: array + 1 for name, array in exact.items() if array.dtype.kind == "i"}
    return layout.move(model, step, 1.0, exact)


def is_whole(content):
    return version_of_whole(content.scalars) is not None


def followed(content, held):
    """Return the model of a client that holds one and is sent a content."""
    if is_whole(content):
        return content.arrays
    update = CatchUp.decode([*content.arrays.values()], content.scalars)
    update.require_start(fingerprint(held))
    return update.applied(held, fingerprint(held))


class TestAnyModel:
    @given(models(), st.integers(1, 9), st.integers(0, 99), st.integers(1, 3))
    def test_whatever_a_node_holds_it_gets_to_the_same_model_by_the_shortest_way(
        self, model, rounds, seed, bits
    ):
        layout, rng = Layout.of_model(model), np.random.default_rng(seed)
        held, path = Held.of(model), [model]
        for _ in range(rounds):
            model = later(model, rng, layout)
            held = held.towards(model, layout, 1, bits)
            path.append(held.model)
        whole = held.content_for(None)
        assert is_whole(whole)
        assert whole.arrays is held.model
        for old in path:
            content = held.content_for(fingerprint(old))
            assert length(content) <= length(whole)
            assert fingerprint(followed(content, old)) == fingerprint(held.model)

    @given(models(), st.integers(0, 99))
    def test_exact_arrays_are_the_servers_and_tied_arrays_stay_tied(self, model, seed):
        layout, rng = Layout.of_model(model), np.random.default_rng(seed)
        held = Held.of(model)
        for _ in range(5):
            model = later(model, rng, layout)
            held = held.towards(model, layout, 1)
        for spec in layout.exact:
            assert np.array_equal(held.model[spec.name], model[spec.name])
        for first, *others in layout.tied(model):
            for other in others:
                one, two = layout.flat[first].name, layout.flat[other].name
                assert np.array_equal(held.model[one], held.model[two])

    @given(models(), st.integers(0, 99))
    def test_steps_do_not_depend_on_the_order_of_the_servers_arrays(self, model, seed):
        layout, rng = Layout.of_model(model), np.random.default_rng(seed)
        held = other = Held.of(model)
        for _ in range(5):
            model = later(model, rng, layout)
            held = held.towards(model, layout, 1)
            shuffled = {name: model[name] for name in rng.permutation([*model]).tolist()}
            other = other.towards(shuffled, Layout.of_model(shuffled), 1)
            assert other.versions == held.versions
            assert [*other.model] == [*held.model]

    @given(models())
    def test_a_model_that_does_not_change_is_no_step(self, model):
        layout = Layout.of_model(model)
        held = Held.of(model)
        assert held.towards({**model}, layout, 1) is held
        moved = held.towards(later(model, np.random.default_rng(0), layout), layout, 1)
        assert moved.towards({**moved.model}, layout, None).count <= moved.count + 1


def model_of(size=2000, dtype=np.float32):
    return {"w": np.random.default_rng(0).standard_normal(size).astype(dtype)}


def move(held, model, rounds=1, seed=1):
    layout, rng = Layout.of_model(model), np.random.default_rng(5)
    for _ in range(rounds):
        model = later(model, rng, layout)
        held = held.towards(model, layout, seed)
    return held, model


class TestCost:
    def test_steps_are_sent_up_to_the_length_of_the_model_and_the_whole_after_that(self):
        model = model_of(20_000)
        held, last = move(Held.of(model), model, 40)
        sent = [held.content_for(version) for version in held.versions]
        assert is_whole(held.content_for(fingerprint(model)))
        assert sum(map(is_whole, sent)) <= 2
        assert len(sent) >= 30
        assert length(sent[-2]) < last["w"].nbytes / 28
        assert sent[-1].arrays["fedmedian.0"].size == 0

    @pytest.mark.parametrize("bits", [1, 2, 3])
    def test_each_bit_sends_as_much_again_and_leaves_a_share_of_what_the_last_one_lost(self, bits):
        model = model_of(2**14)
        layout, old = Layout.of_model(model), Held.of(model)
        target = later(model, np.random.default_rng(5), layout)
        held = old.towards(target, layout, 1, bits)
        left = layout.difference(held.model, target)
        lost = np.square(left).sum() / np.square(layout.difference(model, target)).sum()
        assert lost == pytest.approx((1 - 2 / np.pi) ** bits, rel=0.1)
        signs = held.content_for(fingerprint(model)).arrays["fedmedian.0"]
        assert signs.size == bits * 2**14 / 8

    @pytest.mark.parametrize(
        ("bits", "error"), [(0, ValueError), (9, ValueError), (1.5, TypeError), (True, TypeError)]
    )
    def test_a_number_of_bits_that_is_not_allowed_is_refused_by_name(self, bits, error):
        with pytest.raises(error, match=f"bits.*{bits}"):
            CodedSteps(bits)

    def test_a_model_that_no_step_leads_to_is_sent_as_a_whole_however_many_bits_there_are(self):
        model = model_of()
        grown = {**model, "new": np.ones(5, dtype=np.float32)}
        held = Held.of(model).towards(grown, Layout.of_model(grown), 1, 3)
        assert held.model is grown
        assert held.steps == ()

    def test_nodes_that_hold_the_same_are_sent_the_same_object(self):
        model = model_of()
        held, _ = move(Held.of(model), model, 3)
        for version in (held.versions[1], None, "unknown"):
            assert held.content_for(version) is held.content_for(version)
        assert held.content_for(None) is held.content_for("unknown")

    @pytest.mark.parametrize(
        "model",
        [
            {"w": np.linspace(0, 1, 5, dtype=np.float32)},
            {"w": np.linspace(0, 1, 5, dtype=np.float32), "table": np.arange(5000)},
            {"table": np.arange(10)},
            {f"w{i}": np.linspace(i, 9, 1, dtype=np.float32) for i in range(30)},
        ],
        ids=["few parameters", "large exact arrays", "exact arrays alone", "many tiny arrays"],
    )
    def test_steps_are_never_longer_than_the_whole_model(self, model):
        held, _ = move(Held.of(model), model, 20)
        whole = length(held.content_for(None))
        assert all(length(held.content_for(one)) <= whole for one in held.versions)


class TestArraysThatStepsCannotMove:
    """The whole model is sent where no step leads to the server's, and steps after that."""

    def follows(self, before, after, *, whole=True):
        layout = Layout.of_model(before)
        held, before = move(Held.of(before), before)
        after = {**before, **after}
        layout = Layout.of_model(after)
        changed = held.towards(after, layout, 1)
        content = changed.content_for(held.versions[-1])
        assert is_whole(content) == whole
        if whole:
            assert fingerprint(content.arrays) == fingerprint(after)
        further, _ = move(changed, after)
        assert not is_whole(further.content_for(changed.versions[-1]))

    def test_an_array_that_gets_nan_or_infinity(self):
        model = {**model_of(), "mask": np.zeros(30, np.float32)}
        self.follows(model, {"mask": np.where(np.arange(30) % 2, -np.inf, 0).astype(np.float32)})
        self.follows(model, {"mask": np.full(30, np.nan, np.float32)})

    def test_an_array_that_becomes_finite(self):
        model = {**model_of(), "mask": np.full(30, -np.inf, np.float32)}
        self.follows(model, {"mask": np.zeros(30, np.float32)})

    def test_a_mask_whose_finite_entries_change(self):
        mask = np.where(np.arange(30) % 2, -np.inf, 0).astype(np.float32)
        self.follows({**model_of(), "mask": mask}, {"mask": mask + np.float32(1)})

    @pytest.mark.parametrize("far", [1e13, 1e38, 1e300])
    def test_an_array_that_jumps_far(self, far):
        self.follows({**model_of(), "far": np.zeros(30)}, {"far": np.full(30, far)})

    def test_an_array_of_float16_near_its_end(self):
        near = np.full(30, 65_000, np.float16)
        near[::2] = -60_000
        self.follows({**model_of(), "near": np.zeros(30, np.float16)}, {"near": near})

    @pytest.mark.parametrize(
        "after",
        [{"w": np.zeros(2500, np.float32)}, {"w": np.zeros(2000)}, {"more": np.zeros(9)}],
        ids=["grows", "another dtype", "a new array"],
    )
    def test_arrays_that_come_and_grow(self, after):
        self.follows(model_of(), after)

    def test_an_array_of_zeros_that_takes_the_place_of_another_is_no_version_of_it(self):
        first, second = {"a": np.zeros(300, np.float32)}, {"b": np.zeros(300, np.float32)}
        held = Held.of(first).towards(second, Layout.of_model(second), 1)
        assert is_whole(held.content_for(fingerprint(first)))

    def test_arrays_that_get_tied_later_are_followed_each_by_itself_until_they_are_equal(self):
        rng = np.random.default_rng(0)
        one, two = rng.standard_normal((2, 600)).astype(np.float32)
        held = Held.of({"one": one, "two": two})
        tied = {"one": one, "two": one}
        layout = Layout.of_model(tied)
        for number in range(60):
            tied = {name: array + np.float32(1e-7 * number) for name, array in tied.items()}
            held = held.towards(tied, layout, 1)
        assert np.abs(held.model["two"] - tied["two"]).max() < 1e-3

    def test_arrays_that_begin_as_the_same_constant_and_are_tied_from_then_on_stay_tied(self):
        constant = np.ones(600, np.float32)
        held = Held.of({"one": constant, "two": constant})
        moved = np.random.default_rng(0).standard_normal(600).astype(np.float32)
        tied = {"one": moved, "two": moved}
        held = held.towards(tied, Layout.of_model(tied), 1)
        assert np.array_equal(held.model["one"], held.model["two"])


class TestOrder:
    MODEL = {"w": np.zeros((3, 4), np.float32), "n": np.array(7), "v": np.ones(5, np.float32)}  # noqa: RUF012

    def test_a_question_has_the_order_of_what_clients_hold(self):
        state = RECIPE.ask(RunState(), 1, self.MODEL).state
        after = {"v": self.MODEL["v"] + 1, "n": np.array(8), "w": self.MODEL["w"] + 1}
        question = RECIPE.ask(state, 2, after)
        assert [*question.model] == [*question.sent] == ["w", "n", "v"]
        assert [spec.name for spec in question.layout.specs] == ["w", "n", "v"]
        assert question.instruction.exact == (1,)

    def test_without_a_downlink_a_question_has_the_order_of_its_model(self):
        recipe = replace(RECIPE, downlink=None)
        state = recipe.ask(RunState(), 1, self.MODEL).state
        after = dict(reversed(self.MODEL.items()))
        assert recipe.ask(state, 2, after).model is after


class TestResume:
    @pytest.mark.parametrize("rests", [False, True], ids=["after a step", "after none"])
    def test_a_resumed_server_makes_the_steps_of_the_unbroken_run(self, rests):
        model = model_of()
        layout = Layout.of_model(model)
        state = RECIPE.with_held(RunState(), model, layout)
        for _ in range(3):
            before, model = model, later(model, np.random.default_rng(2), layout)
            state = RECIPE.with_held(state, model, layout)
        resumed = RunState.from_groups(state.to_groups())
        if not rests:
            model = later(model, np.random.default_rng(3), layout)
        unbroken = RECIPE.with_held(state, model, layout).held
        again = RECIPE.with_held(resumed, model, layout).held
        assert fingerprint(again.model) == fingerprint(unbroken.model)
        assert (again.count, again.target) == (unbroken.count, unbroken.target)
        assert is_whole(again.content_for(state.held.versions[-2]))
        assert fingerprint(before) != again.target

    def test_without_a_downlink_nothing_is_held(self):
        model = model_of()
        recipe = replace(Recipe(), downlink=None)
        state = recipe.with_held(RunState(), model, Layout.of_model(model))
        assert state.held is None
        assert "held" not in state.to_groups()


def test_whatever_happens_to_clients_and_server_nobody_trains_from_a_wrong_model(caplog):
    caplog.set_level(logging.CRITICAL, "flwr")
    downlink.play(500, derandomize=True)
