"""What a run remembers, by array and by model."""

import numpy as np
import pytest

from fedmedian import Blocks, Layout, Rotation
from fedmedian.rounds.state import KnownModels, RunState

OLD = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
OTHER = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
FRESH = RunState()


def state_of(value):
    """A state that can be told from others."""
    layout = Layout.of_model({"w": np.zeros(1, np.float32)})
    return FRESH.following(layout.blocks, layout, np.array([value]), {})


class TestKnownModels:
    @pytest.fixture
    def known(self):
        return KnownModels({"w": OLD}, state_of(1.0))

    @pytest.fixture
    def step(self, known):
        """Makes a step from a model in a round, by some nodes' answers."""

        def step(server_round, before, after, value, nodes=(1, 2), number=0):
            one, question = known.to_ask({"w": before}, server_round), (server_round, number)
            known.note_question(question, one, one.state)
            known.note_answer(question, {"w": before}, {"w": after}, state_of(value), nodes)

        return step

    @staticmethod
    def state(known, model, server_round=9):
        return known.to_ask({"w": model}, server_round).state

    @pytest.mark.parametrize(
        "model",
        [OLD, OLD + np.float32(1e-3), 2 * OLD, OLD.astype(np.float64)],
        ids=["itself", "a little changed", "twice as long", "in another dtype"],
    )
    def test_a_model_that_is_near_continues(self, model, known):
        assert self.state(known, model) == state_of(1.0)

    @pytest.mark.parametrize(
        "model", [OTHER, -OLD, OLD * 0, 10 * OLD], ids=["unrelated", "opposite", "zero", "long"]
    )
    def test_a_model_that_is_far_starts_fresh(self, model, known):
        assert self.state(known, model) == FRESH

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
    @pytest.mark.parametrize("start", [OLD, OLD * 0], ids=["any start", "from zero"])
    def test_a_model_between_the_last_two_continues(self, share, start, step, known):
        step(1, start, OTHER, 2.0)
        assert self.state(known, start + np.float32(share) * (OTHER - start)) == state_of(2.0)
        assert self.state(known, start - OTHER) != state_of(2.0)

    def test_other_arrays_continue_too(self, known):
        one = known.to_ask({"v": OTHER}, 1)
        assert one.state == state_of(1.0)
        known.note_question((1, 0), one, one.state)
        known.note_answer((1, 0), {"v": OTHER}, {"v": -OTHER}, state_of(2.0), [1])
        assert self.state(known, OLD) == known.of({"v": -OTHER}).state == state_of(2.0)

    @pytest.mark.parametrize(
        ("before", "after"),
        [((128, 64), (256, 64)), ((256, 64), (320, 64)), ((128, 64), (64, 128))],
        ids=["twice as large", "larger by a fourth", "of another shape"],
    )
    def test_so_does_one_with_an_array_that_has_changed_its_shape(self, before, after):
        rng = np.random.default_rng(2)
        known = KnownModels({"w": OLD, "v": rng.standard_normal(before)}, state_of(1.0))
        changed = known.to_ask({"w": OLD + 1e-3, "v": rng.standard_normal(after)}, 1)
        assert changed.state == state_of(1.0)

    def test_each_model_has_its_own_state(self, step, known):
        step(1, OTHER, OTHER + 1, 2.0)
        step(1, OLD, OLD + 1, 3.0, number=1)
        assert self.state(known, OTHER + 1) == state_of(2.0)
        assert self.state(known, OLD + 1) == state_of(3.0)

    def test_several_models_may_continue_one(self, step, known):
        step(1, OLD, OLD + 1, 2.0, nodes=[1])
        step(1, OLD, OLD - 1, 3.0, nodes=[2])
        for server_round in (2, 3):  # the one may rest
            assert self.state(known, OLD + 1, server_round) == state_of(2.0)
            assert self.state(known, OLD - 1, server_round) == state_of(3.0)

    def test_what_a_round_has_made_is_not_for_another_model_of_it(self, step, known):
        step(1, OLD, OLD + np.float32(0.2), 2.0)
        near = OLD + np.float32(0.1)
        assert self.state(known, near, 1) == state_of(1.0)
        assert self.state(known, OLD + np.float32(0.2), 1) == state_of(2.0)
        assert self.state(known, near, 2) == state_of(2.0)

    def test_alternatives_are_forgotten_once_a_step_is_made_from_one(self, step, known):
        near, other, apart = (OLD + np.float32(at) for at in (0.2, -0.2, 0.4))
        step(1, OLD, near, 2.0, nodes=[1, 2, 3])
        step(1, OLD, other, 3.0, nodes=[2, 3])
        step(1, OLD, apart, 4.0, nodes=[4])
        assert self.state(known, other, 2) == state_of(3.0)
        step(2, near, near + np.float32(0.01), 5.0)
        assert self.state(known, other, 3) != state_of(3.0)
        assert self.state(known, apart, 3) == state_of(4.0)

    def test_they_are_too_once_a_step_is_made_from_their_average(self, step, known, caplog):
        model = OLD
        for server_round in range(1, 100):
            for number, nodes in enumerate([[1], [2]]):
                step(server_round, model, model + np.float32(0.01 * number), 2.0, nodes=nodes)
            model = model + np.float32(0.005)
        assert len(known._known) <= 4
        assert not caplog.records

    def test_many_alternatives_are_no_models(self, step, known, caplog):
        for number in range(100):
            step(1, OLD, OLD + np.float32(0.001 * number), 2.0, nodes=[1, number + 2])
        assert not caplog.records

    def test_the_nearest_counts_where_several_are_near(self, step, known):
        step(1, OTHER, OLD + np.float32(0.1), 2.0)
        assert self.state(known, OLD + np.float32(0.02)) == state_of(1.0)
        assert self.state(known, OLD + np.float32(0.08)) == state_of(2.0)

    @pytest.mark.filterwarnings("error")
    def test_entries_that_are_not_finite_play_no_part(self, step, known):
        step(1, np.where(OLD < 0, OLD, -np.inf), np.where(OLD < 1, OLD, np.inf), 2.0)
        model = np.where(np.arange(1000) % 2, OLD, np.nan)
        assert self.state(known, model) == state_of(2.0)

    def test_the_oldest_are_forgotten_with_a_warning(self, known, caplog):
        rng = np.random.default_rng(2)
        models = [rng.standard_normal(1000).astype(np.float32) for _ in range(65)]
        for number, model in enumerate(models[:63]):
            known.to_ask({"w": model}, 1).state = state_of(10.0 + number)
        assert self.state(known, OLD) == state_of(1.0)
        assert not caplog.records
        for model in models[63:]:
            known.to_ask({"w": model}, 1)
        assert self.state(known, models[1]) == state_of(11.0)
        assert self.state(known, OLD) == FRESH
        (record,) = caplog.records
        assert "more than 64 models are trained" in record.getMessage()


def test_blocks_without_arrays_do_not_share_a_name_with_an_array():
    layout = Layout.of_model({"block 0": np.zeros(3, np.float32)})
    own = {"block 0": {"m": np.ones(3, np.float32)}}
    state = FRESH.following(Blocks((2, 1)), layout, np.array([1.0, 2.0]), own)
    assert state.of("block 0", (3,)).optimizer["m"].tolist() == [1, 1, 1]
    assert state.scales(Blocks((2, 1)), layout).tolist() == [1, 2]


def test_each_part_of_a_long_array_has_a_scale_which_a_checkpoint_keeps():
    layout = Layout.of_model({"w": np.zeros(30, np.float32), "b": np.zeros(4, np.float32)})
    blocks = Rotation(smallest=4, largest=10).blocks(layout.blocks)
    scales = np.array([1.0, 2.0, 3.0, 4.0])
    state = FRESH.following(blocks, layout, scales, {"w": {"m": np.ones(30, np.float32)}})
    kept = RunState.from_groups(state.to_groups())
    assert kept.scales(blocks, layout).tolist() == scales.tolist()
    assert kept.of("w", (30,)).optimizer["m"].sum() == 30
    whole = Rotation(smallest=4).blocks(layout.blocks)
    np.testing.assert_array_equal(kept.scales(whole, layout), [np.nan, 4.0])
