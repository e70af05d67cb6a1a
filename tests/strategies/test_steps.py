"""What the server makes of a round: client steps, optimizer, schedule, and its report.

Where noise plays a part it is seeded, so that a statistical bound holds always or never.
"""

from itertools import cycle
from math import inf, nan

import numpy as np
import pytest

from fedmedian import (
    Adam,
    Adaptive,
    ClientMomentum,
    Clip,
    Cosine,
    DivideByLearningRate,
    Gaussian,
    Majority,
    Momentum,
    Theory,
    Uniform,
)
from fedmedian.clients import InProcessGrid
from fedmedian.strategies import MedianSGD, SignSGD

QUIET = {
    "rotation": None,
    "fraction_evaluate": 0.0,
    "min_train_nodes": 1,
    "min_available_nodes": 1,
    "seed": 1,
}
PLAIN = {"noise": None, **QUIET}


def draws(rounds=6, clients=1, dim=4, seed=0):
    return np.random.default_rng(seed).standard_normal((rounds, clients, dim))


def debiased_averages(updates, beta):
    """Each round's exponential average of all updates so far, over what a constant's would be."""
    mean, averages = 0.0, []
    for t, update in enumerate(updates, start=1):
        mean = beta * mean + (1 - beta) * update
        averages.append(mean / (1 - beta**t))
    return np.array(averages)


class TestOptimizer:
    def test_without_an_optimizer_the_step_is_the_direction(self, steps):
        moved, _ = steps(MedianSGD(**PLAIN), draws())
        np.testing.assert_allclose(moved, draws()[:, 0], rtol=1e-5)

    def test_momentum_steps_along_the_average_of_all_directions_so_far(self, steps):
        strategy = MedianSGD(learning_rate=0.5, optimizer=Momentum(0.8), **PLAIN)
        expected = 0.5 * debiased_averages(draws()[:, 0], 0.8)
        np.testing.assert_allclose(steps(strategy, draws())[0], expected, rtol=1e-4, atol=1e-6)

    def test_adams_steps_are_of_the_learning_rates_size(self, steps):
        updates = np.ones((5, 3, 2)) * [1e-2, -100.0]
        strategy = MedianSGD(learning_rate=0.1, optimizer=Adam(tau=1e-9), **PLAIN)
        expected = np.tile([0.1, -0.1], (5, 1))
        np.testing.assert_allclose(steps(strategy, updates)[0], expected, rtol=1e-4)

    def test_one_optimizer_may_serve_two_strategies(self, steps):
        optimizer = Momentum(0.9)
        one, other = (MedianSGD(optimizer=optimizer, **PLAIN) for _ in range(2))
        alone, _ = steps(one, draws())
        steps(other, draws(seed=1))
        np.testing.assert_array_equal(steps(one, draws())[0], alone)

    def test_momentum_cuts_the_noise_of_decoded_votes(self, steps):
        dim, updates = 4000, np.zeros((25, 3, 4000))
        noisy, _ = steps(SignSGD(Gaussian(1.0), **QUIET), updates)
        calm, _ = steps(SignSGD(Gaussian(1.0), optimizer=Momentum(0.8), **QUIET), updates)
        ratio = np.var(calm[-1]) / np.var(noisy[-1])
        assert ratio == pytest.approx((1 - 0.8) / (1 + 0.8), rel=6 * np.sqrt(2 / dim))


class TestSchedule:
    @pytest.mark.parametrize(
        ("schedule", "rates"),
        [
            (0.25, [0.25] * 4),
            (Cosine(1.0, rounds=3, final=0.2), [1.0, 0.6, 0.2, 0.2]),
            (lambda number: np.float32(1 / number), [1, 1 / 2, 1 / 3, 1 / 4]),
        ],
        ids=["constant", "cosine", "callable"],
    )
    @pytest.mark.parametrize("make", [MedianSGD, SignSGD])
    def test_a_schedule_sets_each_rounds_learning_rate(self, make, schedule, rates, steps):
        options = {"aggregator": Majority()} if make is SignSGD else {}
        moved, _ = steps(make(learning_rate=schedule, **options, **PLAIN), np.ones((4, 3, 1)))
        np.testing.assert_allclose(moved[:, 0], rates, rtol=1e-6)

    @pytest.mark.parametrize("rate", [0.0, -0.1, nan, inf, "0.1", None], ids=repr)
    def test_a_scheduled_rate_that_is_no_number_above_zero_ends_the_run_and_is_named(
        self, rate, steps
    ):
        strategy = MedianSGD(learning_rate=lambda _: rate, **PLAIN)
        where = r"^learning_rate\(1\) must "
        with pytest.raises((ValueError, TypeError), match=where) as refused:
            steps(strategy, np.ones((1, 3, 1)))
        assert repr(rate) in str(refused.value)


class TestTheory:
    NOISE = Gaussian(Theory(rounds=16, dim=625))

    def test_theory_moves_a_majority_by_the_theorems_rate(self, steps):
        moved, _ = steps(SignSGD(self.NOISE, Majority(), **QUIET), np.ones((1, 3, 1)))
        np.testing.assert_allclose(np.abs(moved), 0.01)

    def test_theory_sets_the_theorems_noise(self, steps):
        _, outcome = steps(SignSGD(self.NOISE, Majority(), **QUIET), np.ones((2, 3, 1)))
        scales = [report["noise-scale"] for report in outcome.reports.values()]
        np.testing.assert_allclose(scales, [[10.0], [10.0]])


class TestClientSteps:
    @pytest.mark.parametrize("options", [{}, {"mods": ()}], ids=["on the client", "on the server"])
    def test_client_steps_are_taken_in_the_order_of_the_list(self, options, steps):
        divided, clipped = DivideByLearningRate(0.1), Clip(1.0)
        updates = [[[3.0, 4.0]], [[0.03, 0.04]]]
        for client_steps, lengths in [
            ([divided, clipped], (1, 0.5)),
            ([clipped, divided], (10, 0.5)),
        ]:
            moved, _ = steps(MedianSGD(client_steps=client_steps, **PLAIN), updates, **options)
            np.testing.assert_allclose(np.linalg.norm(moved, axis=1), lengths, rtol=1e-5)

    def test_decoded_votes_are_in_units_of_the_update_over_the_clients_learning_rate(self, steps):
        divide = DivideByLearningRate(0.1)
        strategy = SignSGD(Uniform(Adaptive(3.0)), client_steps=[divide], **QUIET)
        moved, outcome = steps(strategy, np.full((1, 3, 20_000), 0.05))
        assert outcome.reports[1]["noise-scale"] == pytest.approx([1.5])
        assert moved.mean() == pytest.approx(0.5, abs=0.05)

    def test_dividing_by_the_clients_learning_rate_does_not_change_what_a_majority_says(
        self, steps
    ):
        usual, divided = (
            steps(SignSGD(None, Majority(), 0.1, client_steps=client_steps, **QUIET), draws(2, 3))
            for client_steps in ([], [DivideByLearningRate(0.01)])
        )
        np.testing.assert_array_equal(usual[0], divided[0])

    def test_clipping_comes_before_the_noise_which_is_not_clipped(self, step):
        """An update of norm 100·√d is cut to 1, noise of scale 5 is not."""
        dim = 10_000
        strategy = MedianSGD(Gaussian(5.0), client_steps=[Clip(1.0)], **QUIET)
        moved = step(strategy, np.full((2, dim), 100.0))
        assert moved.std() == pytest.approx(5 / np.sqrt(2), rel=0.05)
        assert abs(moved.mean() - 1 / np.sqrt(dim)) < 4 * moved.std() / np.sqrt(dim)

    def test_clipping_bounds_what_one_client_reports(self, steps):
        strategy = SignSGD(Gaussian(Adaptive(1.0)), client_steps=[Clip(1.0)], **QUIET)
        _, outcome = steps(strategy, np.full((2, 3, 4), 1e6))
        # Of norm 1, an update of four equal entries has the RMS ½.
        assert outcome.reports[2]["noise-scale"] == pytest.approx([0.5])

    def test_client_momentum_is_kept_from_round_to_round(self, steps):
        strategy = MedianSGD(client_steps=[ClientMomentum(0.8)], **PLAIN)
        expected = debiased_averages(draws()[:, 0], 0.8)
        np.testing.assert_allclose(steps(strategy, draws())[0], expected, rtol=1e-4, atol=1e-6)

    def test_client_momentum_is_each_clients_own(self, steps):
        strategy = MedianSGD(client_steps=[ClientMomentum(0.5)], **PLAIN)
        moved, _ = steps(strategy, [[[1.0], [5.0], [9.0]]] * 3)
        np.testing.assert_allclose(moved, 5.0, rtol=1e-6)

    def test_client_momentum_is_forgotten_when_another_run_begins(
        self, make_app, as_record, as_arrays
    ):
        updates = cycle([1.0, 5.0, 9.0, -3.0])

        def train(model, partition):
            return {"x": model["x"] - next(updates)}, {"num-examples": 1}

        strategy = MedianSGD(client_steps=[ClientMomentum(0.9)], **PLAIN)
        grid, start = InProcessGrid(make_app(train), 1), as_record({"x": np.zeros(2)})
        first, second = (as_arrays(strategy.start(grid, start, 4).arrays)["x"] for _ in range(2))
        np.testing.assert_array_equal(first, second)

    def test_client_momentum_is_not_for_clients_without_the_mod(self, steps, warnings):
        strategy = MedianSGD(client_steps=[ClientMomentum(0.5)], **PLAIN)
        moved, outcome = steps(strategy, np.ones((1, 3, 2)), mods=())
        assert outcome.reports[1]["replies-rejected"] == 3
        assert all("momentum" in text for text in warnings("aggregate_train: dropped"))
        np.testing.assert_array_equal(moved, 0)


class TestReport:
    def test_a_report_has_the_noise_scale_that_was_in_force(self, steps):
        updates = np.ones((3, 3, 4)) * np.array([1.0, 1.1, 9.0])[:, None, None]
        _, outcome = steps(SignSGD(Gaussian(Adaptive(2.0)), **QUIET), updates)
        scales = [report["noise-scale"] for report in outcome.reports.values()]
        # The first round's is the clients' own; the others follow, at most twice as large.
        np.testing.assert_allclose(scales, [[2.0], [2.0], [2.2]], rtol=1e-6)

    SWITCHED = frozenset(
        {
            "margin",
            "vote-agreement",
            "signal-to-noise",
            "signal-to-noise-per-block",
            "majority-contradicts-mean",
            "median-mean-gap",
        }
    )

    @pytest.mark.parametrize("make", [SignSGD, MedianSGD])
    def test_leaving_diagnostics_out_changes_nothing_else(self, make, steps):
        usual, with_them = steps(make(Gaussian(), **QUIET), draws(clients=3))
        quiet, without = steps(make(Gaussian(), diagnostics=False, **QUIET), draws(clients=3))
        np.testing.assert_array_equal(usual, quiet)
        for number, report in with_them.reports.items():
            assert {"signal-to-noise", "majority-contradicts-mean"} <= set(report)
            kept = {key: value for key, value in report.items() if key not in self.SWITCHED}
            assert without.reports[number] == kept
