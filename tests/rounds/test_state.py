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

    @pytest.mark.parametrize(
        "model",
        [OLD, OLD + np.float32(1e-3), 2 * OLD, OLD.astype(np.float64)],
        ids=["itself", "a little changed", "twice as long", "in another dtype"],
    )
    def test_a_model_that_is_near_continues(self, model, known):
        assert known.state_of({"w": model}) == state_of(1.0)

    @pytest.mark.parametrize(
        "model", [OTHER, -OLD, OLD * 0, 10 * OLD], ids=["unrelated", "opposite", "zero", "long"]
    )
    def test_a_model_that_is_far_starts_fresh(self, model, known):
        assert known.state_of({"w": model}) == FRESH

    def test_other_arrays_continue_too(self, known):
        assert known.state_of({"v": OTHER}) == state_of(1.0)
        known.replace({"v": OTHER}, {"v": -OTHER}, state_of(2.0))
        assert known.state_of({"w": OLD}) == known.state_of({"v": -OTHER}) == state_of(2.0)

    def test_each_model_has_its_own_state(self, known):
        known.replace({"w": OTHER}, {"w": OTHER + 1}, state_of(2.0))
        known.replace({"w": OLD}, {"w": OLD + 1}, state_of(3.0))
        assert known.state_of({"w": OTHER + 1}) == state_of(2.0)
        assert known.state_of({"w": OLD + 1}) == state_of(3.0)

    def test_the_nearest_counts_where_several_are_near(self, known):
        known.replace({"w": OTHER}, {"w": OLD + np.float32(0.1)}, state_of(2.0))
        assert known.state_of({"w": OLD + np.float32(0.02)}) == state_of(1.0)
        assert known.state_of({"w": OLD + np.float32(0.08)}) == state_of(2.0)

    def test_entries_that_are_not_finite_play_no_part(self, known):
        model = np.where(np.arange(1000) % 2, OLD, np.nan)
        assert known.state_of({"w": model}) == state_of(1.0)

    def test_the_oldest_are_forgotten(self, known):
        rng = np.random.default_rng(2)
        for number in range(64):
            model = {"w": rng.standard_normal(1000).astype(np.float32)}
            known.replace(model, model, state_of(10.0 + number))
        assert known.state_of({"w": OLD}) == FRESH
        assert known.state_of(model) == state_of(73.0)


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
