"""SignSGD: what a round of signs does to the model, and what it asks for.

Noise and coins are seeded, so that a statistical bound holds always or never.
"""

import numpy as np
import pytest

from fedmedian import (
    Adaptive,
    Clip,
    Counts,
    Gaussian,
    Instruction,
    Laplace,
    Logistic,
    Majority,
    Uniform,
)
from fedmedian.clients import perturb
from fedmedian.steps.noise import AddNoise, Measure
from fedmedian.strategies import SignSGD

COPIES = 4000
IN_PLACE = {"rotation": None, "seed": 1}


def majority(ties="random", **options):
    return SignSGD(None, Majority(ties), 0.1, fraction_evaluate=0.0, **IN_PLACE, **options)


class TestMajority:
    def test_a_majority_moves_each_coordinate_by_the_learning_rate(self, step):
        moved = step(majority(), [[1, -1, 3], [2, -5, -1], [-9, 0.1, -2]])
        np.testing.assert_allclose(moved, [0.1, -0.1, -0.1], rtol=1e-6)

    def test_votes_count_in_proportion_to_examples_unless_told_otherwise(self, step):
        updates, examples = [[1.0]] * 3 + [[-1.0]] * 4, [5] * 3 + [3] * 4
        assert step(majority(), updates, examples) == pytest.approx(0.1)
        assert step(majority(weighted=False), updates, examples) == pytest.approx(-0.1)

    def test_a_tie_can_leave_the_coordinate_unchanged(self, step):
        np.testing.assert_array_equal(step(majority("unchanged"), [[1, 1], [-1, 1]])[0], 0)

    @pytest.mark.parametrize(
        "updates",
        [[np.ones(COPIES), -np.ones(COPIES)], np.zeros((3, COPIES))],
        ids=["of a tie", "of no update"],
    )
    def test_the_sign_is_left_to_a_fair_coin(self, updates, step):
        moved = step(majority(), updates)
        assert set(np.round(moved, 6)) == {0.1, -0.1}
        assert abs(moved.mean()) < 0.1 * 5 / np.sqrt(COPIES)


class TestCounts:
    @pytest.mark.parametrize("noise", [Gaussian, Logistic, Laplace, Uniform])
    def test_counts_estimate_the_mean_update(self, noise, step):
        scale = 5.0
        updates = [np.full(COPIES, value) for value in (0.1, 0.2, 1.0)]
        moved = step(SignSGD(noise(scale), **IN_PLACE), updates)
        deviation = scale / (2 * noise(scale).density_at_zero) / np.sqrt(3 * COPIES)
        assert abs(moved.mean() - 1.3 / 3) < 5 * deviation

    def test_counts_estimate_the_mean_weighted_by_examples(self, step):
        updates = [np.full(COPIES, value) for value in (0.1, 0.2, 1.0)]
        moved = step(SignSGD(Uniform(0.6), **IN_PLACE), updates, [5, 5, 3])
        # Five standard errors; the mean of equal weights is nine away.
        assert moved.mean() == pytest.approx((0.5 + 1.0 + 3.0) / 13, abs=0.05)
        assert abs(moved.mean() - 1.3 / 3) > 0.03

    def test_counts_take_clients_with_louder_noise_for_more(self, step):
        # In the first round everyone's noise is three times their own update's size.
        updates = [np.full(20_000, value) for value in (1.0, 1.0, 2.0)]
        assert step(SignSGD(Gaussian(Adaptive(3.0)), **IN_PLACE), updates).mean() == pytest.approx(
            4 / 3, abs=0.1
        )

    def test_counts_estimate_what_clipping_leaves(self, step):
        # Uniform noise of half-width √3 decodes it without bias: 1 of 100, spread evenly.
        dim = 10_000
        strategy = SignSGD(Uniform(1.0), client_steps=[Clip(1.0)], **IN_PLACE)
        moved = step(strategy, np.full((10, dim), 1.0))
        assert abs(moved.mean() - 0.01) < 5 * np.sqrt(3) / np.sqrt(10 * dim)


def test_a_fraction_of_the_clients_is_enough_to_learn(run):
    optimum = 3.0

    def train(model, partition):
        return {"x": model["x"] - 0.5 * (model["x"] - optimum)}, {"num-examples": 1}

    strategy = SignSGD(learning_rate=0.1, fraction_train=0.5, fraction_evaluate=0.0, seed=1)
    outcome = run(strategy, train, {"x": np.zeros(400, np.float32)}, 8, 80)
    assert {r["replies-accepted"] for r in outcome.reports.values()} == {4}
    assert {r["replies-missing"] for r in outcome.reports.values()} == {0}
    assert outcome.model["x"].mean() == pytest.approx(optimum, rel=0.1)


def test_a_seed_decides_which_clients_are_sampled(api, run):
    def sampled(seed):
        calls = []

        def train(model, partition):
            calls.append(partition)
            return model, {"num-examples": 1}

        strategy = api.make("SignSGD", fraction_train=0.5, fraction_evaluate=0.0, seed=seed)
        run(strategy, train, {"x": np.zeros(3, np.float32)}, 8, 6)
        return [sorted(calls[i : i + 4]) for i in range(0, len(calls), 4)]

    first = sampled(1)
    assert len({str(nodes) for nodes in first}) > 1  # not the same four in every round
    assert sampled(1) == first != sampled(2)


class TestInstruction:
    """What the clients are asked for."""

    @pytest.fixture
    def asked(self, run):
        """The instructions of a strategy's rounds, as its clients receive them."""

        def asked(strategy, moves=(1.0, 2.0, 4.0)):
            told = {}

            def listen(message, context, call_next):
                (config,) = message.content.config_records.values()
                if Instruction.is_in(config):
                    instruction = Instruction.decode(config)
                    told[instruction.server_round] = instruction
                return call_next(message, context)

            def train(model, partition):
                return {**model, "x": model["x"] - moves[partition]}, {"num-examples": 1}

            start = {"x": np.zeros(5, np.float32), "running_mean": np.zeros(2, np.float32)}
            run(strategy, train, start, 3, 2, mods=(listen, perturb))
            return told

        return asked

    def test_an_instruction_says_what_the_strategy_was_made_with(self, api, asked):
        strategy = api.make(
            "SignSGD", Laplace(0.5), client_steps=[Clip(9.0)], exact=["*mean", "1"], seed=7
        )
        told = asked(strategy)
        assert [told[r].server_round for r in told] == [1, 2]
        for instruction in told.values():
            assert (instruction.encoding.name, instruction.seed, instruction.exact) == (
                "signs",
                7,
                (1,),
            )
            assert instruction.find(Clip) == Clip(9.0)
            assert isinstance(instruction.find(AddNoise).noise, Laplace)
            np.testing.assert_array_equal(instruction.find(AddNoise).scales, [0.5])

    def test_an_instruction_holds_no_noise_and_no_seed_where_there_is_none(self, asked):
        told = asked(SignSGD(None, Majority(), 0.1))
        assert told[1].find(AddNoise) is None
        assert told[1].seed is None

    @pytest.mark.parametrize(
        ("rule", "measure", "second"),
        [
            (Adaptive(0.5), "rms", 0.5 * 2.0),
            (Adaptive(0.1, magnitude="max", quantile=1.0), "max", 0.1 * 4.0),
        ],
        ids=["the median client's RMS", "the largest maximum, as in the paper"],
    )
    def test_adaptive_scales_follow_what_clients_measured_from_the_second_round_on(
        self, rule, measure, second, asked
    ):
        told = asked(SignSGD(Gaussian(rule), **IN_PLACE))
        assert told[1].find(Measure) == Measure(measure)
        assert told[1].find(AddNoise).scales is None
        assert told[1].find(AddNoise).factor == rule.factor
        np.testing.assert_allclose(told[2].find(AddNoise).scales, [second])


class TestExactArrays:
    @pytest.fixture
    def trained(self, run):
        def trained(strategy, values=(1.0, 2.0, 3.0), examples=(1, 2, 2)):
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
            return run(strategy, train, start, len(values)).model

        return trained

    def test_running_statistics_are_averaged_by_examples(self, trained):
        model = trained(SignSGD(seed=1))
        np.testing.assert_allclose(model["norm.running_var"], 1 + (1 + 4 + 6) / 5)
        assert model["norm.running_var"].dtype == np.float32
        assert model["norm.num_batches_tracked"] == np.rint((0 + 2 + 4) / 5)
        assert model["norm.num_batches_tracked"].dtype == np.int64

    def test_running_statistics_of_equal_clients_are_averaged_alike(self, trained):
        model = trained(SignSGD(seed=1, weighted=False))
        np.testing.assert_allclose(model["norm.running_var"], 1 + 2.0)

    def test_without_exact_patterns_running_statistics_are_voted_on(self, trained):
        model = trained(SignSGD(None, Majority(), 0.25, exact=(), **IN_PLACE))
        np.testing.assert_array_equal(model["norm.running_var"], 1.25)

    def test_any_array_can_be_sent_exactly(self, trained):
        model = trained(SignSGD(decode=Counts(), seed=1, exact=["w", "*running*"]))
        np.testing.assert_allclose(model["w"], -1.0)

    def test_the_older_api_knows_exact_arrays_by_position(self, older_api, trained):
        model = trained(older_api.make("SignSGD", exact=["1"]))
        np.testing.assert_allclose(model["norm.running_var"], 1 + (1 + 4 + 6) / 5)
