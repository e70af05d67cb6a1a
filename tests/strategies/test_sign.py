"""SignSGD: what a round of signs does to the model."""

import numpy as np
import pytest

from fedmedian import Adaptive, Gaussian, Instruction, Laplace, Logistic, Uniform
from fedmedian.clients import InProcessGrid, perturb
from fedmedian.strategies import SignSGD


@pytest.fixture
def step(make_app, as_record, as_arrays):
    """One round: clients with these updates and example counts; returns how far x went."""

    def step(strategy, updates, examples=None):
        examples = examples or [1] * len(updates)

        def train(model, partition):
            update = np.asarray(updates[partition], dtype=np.float64)
            return {"x": model["x"] - update}, {"num-examples": examples[partition]}

        start = np.zeros(np.shape(updates[0]))
        grid = InProcessGrid(make_app(train), len(updates))
        result = strategy.start(grid, as_record({"x": start}), 1)
        return start - as_arrays(result.arrays)["x"]

    return step


def majority(**options):
    return SignSGD(None, "majority", 0.1, **options)


def test_a_majority_moves_each_coordinate_by_the_learning_rate(step):
    moved = step(majority(), [[1, -1, 3], [2, -5, -1], [-9, 0.1, -2]])
    np.testing.assert_allclose(moved, [0.1, -0.1, -0.1], rtol=1e-6)


def test_votes_count_in_proportion_to_examples(step):
    updates, examples = [[1.0], [-1.0], [-1.0]], [5, 2, 2]
    assert step(majority(), updates, examples) == pytest.approx(0.1)
    assert step(majority(weighted=False), updates, examples) == pytest.approx(-0.1)


def test_a_tie_can_leave_the_coordinate_unchanged(step):
    np.testing.assert_array_equal(step(majority(ties="unchanged"), [[1, 1], [-1, 1]])[0], 0)


def test_a_tie_can_be_left_to_a_fair_coin(step):
    moved = step(majority(seed=1), [np.ones(4000), -np.ones(4000)])
    assert set(np.round(moved, 6)) == {0.1, -0.1}
    assert abs(moved.mean()) < 0.1 * 5 / np.sqrt(4000)


def test_what_no_client_moved_drifts_nowhere(step):
    moved = step(majority(seed=1), np.zeros((3, 4000)))
    assert abs(moved.mean()) < 0.1 * 5 / np.sqrt(4000)


@pytest.mark.parametrize("noise", [Gaussian, Logistic, Laplace, Uniform])
def test_counts_estimate_the_mean_update(noise, step):
    copies, scale = 4000, 5.0
    updates = [np.full(copies, value) for value in (0.1, 0.2, 1.0)]
    moved = step(SignSGD(noise(scale), seed=1), updates)
    deviation = scale / (2 * noise.density_at_zero) / np.sqrt(3 * copies)
    assert abs(moved.mean() - 1.3 / 3) < 5 * deviation


def test_counts_estimate_the_mean_weighted_by_examples(step):
    copies = 4000
    updates = [np.full(copies, value) for value in (0.1, 0.2, 1.0)]
    moved = step(SignSGD(Uniform(2.0), seed=1), updates, [6, 1, 1])
    assert moved.mean() == pytest.approx((0.6 + 0.2 + 1.0) / 8, abs=0.15)
    assert abs(moved.mean() - 1.3 / 3) > 0.05


def test_clients_with_louder_noise_count_for_more(step):
    # In the first round everyone's noise is three times their own update's size.
    copies = 20_000
    moved = step(SignSGD(seed=1), [np.full(copies, value) for value in (1.0, 1.0, 2.0)])
    assert moved.mean() == pytest.approx(4 / 3, abs=0.1)


def test_the_learning_rate_multiplies_the_step(step):
    updates = np.random.default_rng(0).standard_normal((3, 5))
    usual = step(SignSGD(seed=1), updates)
    np.testing.assert_allclose(
        step(SignSGD(seed=1, learning_rate=0.5), updates), usual / 2, rtol=1e-5
    )


def test_a_clipped_update_is_no_longer_than_the_bound(step):
    # Uniform noise of half-width √3 decodes without bias what is left: 1 of 100, spread evenly.
    copies = 10_000
    moved = step(SignSGD(Uniform(1.0), clip=1.0, seed=1), np.full((10, copies), 1.0))
    assert abs(moved.mean() - 0.01) < 5 * np.sqrt(3) / np.sqrt(10 * copies)


class TestInstruction:
    """What the clients are asked for."""

    @pytest.fixture
    def asked(self, make_app, as_record):
        """The instructions of a strategy's rounds, as its clients receive them."""

        def asked(strategy, rounds=2, moves=(1.0, 2.0, 4.0)):
            told = {}

            def listen(message, context, call_next):
                config = message.content["config"]
                told[config["server-round"]] = Instruction.decode(config)
                return call_next(message, context)

            def train(model, partition):
                return {**model, "x": model["x"] - moves[partition]}, {"num-examples": 1}

            app = make_app(train, mods=(listen, perturb))
            start = {"x": np.zeros(5, np.float32), "running_mean": np.zeros(2, np.float32)}
            strategy.start(InProcessGrid(app, 3), as_record(start), rounds)
            return told

        return asked

    def test_it_says_what_the_strategy_was_made_with(self, asked):
        told = asked(SignSGD(Laplace(0.5), clip=9.0, dense=["*mean"], seed=7))
        assert [told[r].server_round for r in told] == [1, 2]
        for instruction in told.values():
            assert (instruction.kind, instruction.noise) == ("signs", "laplace")
            assert (instruction.clip, instruction.seed) == (9.0, 7)
            assert instruction.dense == (1,)
            np.testing.assert_array_equal(instruction.scales, [0.5])

    def test_without_noise_it_sets_no_scale(self, asked):
        told = asked(majority())
        assert told[1].noise is None
        assert told[1].scales is None

    def test_without_a_seed_it_holds_none(self, asked):
        assert asked(SignSGD())[1].seed is None

    def test_adaptive_noise_follows_the_clients_median_from_the_second_round_on(self, asked):
        told = asked(SignSGD(Gaussian(Adaptive(0.5)), seed=1))
        assert told[1].scales is None
        assert (told[1].factor, told[1].of) == (0.5, "rms")
        np.testing.assert_allclose(told[2].scales, [0.5 * 2.0])

    def test_the_papers_rule_follows_the_clients_maximum(self, asked):
        told = asked(SignSGD(Gaussian(Adaptive(0.1, of="max", quantile=1.0)), seed=1))
        assert told[1].of == "max"
        np.testing.assert_allclose(told[2].scales, [0.1 * 4.0])

    def test_a_second_run_forgets_the_scales_of_the_first(self, asked):
        strategy = SignSGD(seed=1)
        asked(strategy)
        assert asked(strategy)[1].scales is None


class TestDenseArrays:
    @pytest.fixture
    def trained(self, make_app, as_record, as_arrays):
        def run(strategy, values, examples=(1, 1, 2)):
            def train(model, partition):
                return {
                    "w": model["w"] - 1,
                    "norm.running_var": model["norm.running_var"] + values[partition],
                    "norm.num_batches_tracked": model["norm.num_batches_tracked"] + partition,
                }, {"num-examples": examples[partition]}

            start = {
                "w": np.zeros(3, dtype=np.float32),
                "norm.running_var": np.ones(2, dtype=np.float32),
                "norm.num_batches_tracked": np.array(0),
            }
            grid = InProcessGrid(make_app(train), len(values))
            return as_arrays(strategy.start(grid, as_record(start), 1).arrays)

        return run

    def test_running_statistics_are_averaged_by_examples(self, trained):
        model = trained(SignSGD(seed=1), (1.0, 2.0, 3.0))
        np.testing.assert_allclose(model["norm.running_var"], 1 + (1 + 2 + 6) / 4)
        assert model["norm.running_var"].dtype == np.float32
        assert model["norm.num_batches_tracked"] == np.rint((0 + 1 + 4) / 4)
        assert model["norm.num_batches_tracked"].dtype == np.int64

    def test_or_alike(self, trained):
        model = trained(SignSGD(seed=1, weighted=False), (1.0, 2.0, 3.0))
        np.testing.assert_allclose(model["norm.running_var"], 1 + 2.0)

    def test_without_patterns_they_are_voted_on(self, trained):
        strategy = SignSGD(None, "majority", 0.25, dense=())
        model = trained(strategy, (1.0, 2.0, 3.0))
        np.testing.assert_array_equal(model["norm.running_var"], 1.25)

    def test_any_array_can_be_sent_in_full(self, trained):
        model = trained(SignSGD(seed=1, dense=["w", "*running*"]), (1.0, 2.0, 3.0))
        np.testing.assert_allclose(model["w"], 1 * -1.0)
