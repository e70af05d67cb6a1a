"""MedianSGD: what a round of updates does to the model.

Noise is seeded, so that a statistical bound holds always or never.
"""

import numpy as np
import pytest
from flwr.serverapp.strategy import FedMedian

from fedmedian import (
    Adaptive,
    Gaussian,
    Laplace,
    Logistic,
    SmoothedMedian,
    Uniform,
    smoothed_median,
)
from fedmedian.clients import InProcessGrid
from fedmedian.strategies import MedianSGD

QUIET = {
    "rotation": None,
    "fraction_evaluate": 0.0,
    "min_train_nodes": 1,
    "min_available_nodes": 1,
}
SEEDED = {"seed": 1, **QUIET}
DEFAULTS = {key: value for key, value in SEEDED.items() if key != "rotation"}
UPDATES = np.random.default_rng(0).standard_normal((5, 6))

either_client = pytest.mark.parametrize(
    "options", [{}, {"mods": ()}], ids=["with the mod", "without the mod"]
)


class TestPlainMedian:
    @either_client
    @pytest.mark.parametrize("num_clients", [1, 2, 5])
    def test_a_plain_median_moves_the_model_by_the_median_of_the_updates(
        self, num_clients, options, step
    ):
        updates = UPDATES[:num_clients]
        moved = step(MedianSGD(None, learning_rate=0.1, **QUIET), updates, **options)
        np.testing.assert_allclose(moved, 0.1 * np.median(updates, axis=0), rtol=1e-6)

    def test_a_plain_median_does_what_flowers_median_does(self, make_app, as_record, as_arrays):
        def train(model, partition):
            return {"x": model["x"] - UPDATES[partition]}, {"num-examples": 1}

        ours, theirs = (
            strategy.start(InProcessGrid(make_app(train, ()), 5), as_record({"x": np.zeros(6)}), 1)
            for strategy in (MedianSGD(None, rotation=None), FedMedian())
        )
        np.testing.assert_allclose(
            as_arrays(ours.arrays)["x"], as_arrays(theirs.arrays)["x"], rtol=1e-6
        )

    def test_a_median_counts_all_clients_alike(self, step):
        moved = step(MedianSGD(None), [[1.0], [2.0], [3.0]], examples=[1, 1, 1000])
        assert moved == pytest.approx(2.0)

    @either_client
    def test_a_median_replaces_running_statistics_by_their_median(self, options, run):
        values = (1.0, 2.0, 600.0)

        def train(model, partition):
            return {
                "w": model["w"] - np.float16(1),
                "norm.running_mean": np.full(2, values[partition], np.float32),
                "norm.num_batches_tracked": np.array(int(values[partition])),
            }, {"num-examples": 1}

        start = {
            "w": np.zeros(3, dtype=np.float16),
            "norm.running_mean": np.zeros(2, dtype=np.float32),
            "norm.num_batches_tracked": np.array(0),
        }
        model = run(MedianSGD(None), train, start, 3, **options).model
        np.testing.assert_array_equal(model["w"], np.full(3, -1, np.float16), strict=True)
        np.testing.assert_array_equal(
            model["norm.running_mean"], np.full(2, 2, np.float32), strict=True
        )
        assert model["norm.num_batches_tracked"] == 2


class TestNoisyMedian:
    @pytest.mark.parametrize("noise_at", ["client", "server"])
    @pytest.mark.parametrize("noise", [Gaussian(20.0), Laplace(20.0), Uniform(20.0)], ids=str)
    def test_a_noisy_median_is_drawn_to_the_mean(self, noise, noise_at, step):
        copies = 20_000
        updates = np.repeat([[1.0], [2.0], [10.0]], copies, axis=1)
        moved = step(MedianSGD(noise, noise_at=noise_at, **SEEDED), updates)
        assert abs(moved.mean() - 13 / 3) < 0.15 + 5 * np.std(moved) / np.sqrt(copies)

    @pytest.mark.parametrize("noise_at", ["client", "server"])
    def test_default_noise_is_proportional_to_the_updates(self, noise_at, step):
        updates = np.random.default_rng(0).standard_normal((9, 2000))
        small, large = (
            step(MedianSGD(noise_at=noise_at, **DEFAULTS), factor * updates) for factor in (1, 1000)
        )
        assert np.std(large) == pytest.approx(1000 * np.std(small), rel=0.05)

    def test_clients_noise_has_the_scale_that_they_were_told(self, step):
        moved = step(MedianSGD(Gaussian(3.0), **SEEDED), np.zeros((2, 20_000)))
        assert np.std(moved) == pytest.approx(3.0 / np.sqrt(2), rel=0.05)

    def test_clients_do_not_share_their_noise(self, step):
        one, both = (
            step(MedianSGD(Gaussian(1.0), **SEEDED), np.zeros((clients, 5000)))
            for clients in (1, 2)
        )
        other = 2 * both - one
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(5000)

    def test_less_signal_is_reported_where_there_is_more_noise(self, steps):
        updates = np.random.default_rng(0).standard_normal((1, 1, 2000)).repeat(5, axis=1)
        quiet, loud = (
            steps(MedianSGD(Gaussian(Adaptive(factor)), **SEEDED), updates)[1].reports[1]
            for factor in (0.1, 3.0)
        )
        assert quiet["signal-to-noise"] > loud["signal-to-noise"]

    def test_a_minority_of_liars_moves_a_median_less_than_the_mean(self, step):
        updates = np.repeat([[1.0]] * 7 + [[-1000.0]] * 3, 50, axis=1)
        moved = step(MedianSGD(**DEFAULTS), updates)
        assert np.abs(moved).mean() < 30  # the mean would move by 299
        np.testing.assert_array_equal(step(MedianSGD(None, **SEEDED), updates), 1.0)


def test_the_gap_between_median_and_mean_is_reported(steps):
    _, outcome = steps(MedianSGD(None), [[[1.0, 0.0], [2.0, 0.0], [10.0, 0.0]]])
    assert outcome.reports[1]["median-mean-gap"] == pytest.approx(13 / 3 - 2, rel=1e-6)


class TestSmoothedMedian:
    SPREAD = np.random.default_rng(0).standard_normal((5, 50)) ** 3

    @either_client
    @pytest.mark.parametrize("noise", [Logistic(0.7), Gaussian(Adaptive(2.0))], ids=str)
    def test_the_smoothed_median_is_the_step_whether_clients_know_of_it_or_not(
        self, noise, options, steps
    ):
        strategy = MedianSGD(noise, aggregator=SmoothedMedian(), **QUIET)
        moved, outcome = steps(strategy, [self.SPREAD], **options)
        expected = smoothed_median(self.SPREAD, noise, outcome.reports[1]["noise-scale"][0])
        np.testing.assert_allclose(moved[0], expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("noise", [None, Uniform(1.0)], ids=str)
    def test_the_smoothed_median_needs_a_smooth_noise_law(self, noise):
        with pytest.raises(ValueError, match=r"^noise must ") as refused:
            MedianSGD(noise, aggregator=SmoothedMedian())
        assert repr(noise) in str(refused.value)

    def test_the_smoothed_median_goes_where_the_noisy_one_goes_on_average(self, step):
        updates = np.repeat([[1.0], [2.0], [10.0]], 40_000, axis=1)
        smooth = step(MedianSGD(Gaussian(20.0), aggregator=SmoothedMedian(), **SEEDED), updates)
        noisy = step(MedianSGD(Gaussian(20.0), **SEEDED), updates)
        # They differ by (c_3 − 1/6)·κ₃/b², κ₃ = 44.7 the third cumulant of (1, 2, 10).
        difference = (0.413 - 1 / 6) * 44.7 / 400
        error = noisy.std() / np.sqrt(noisy.size)
        assert abs(smooth.mean() - noisy.mean()) < difference + 4 * error
        assert smooth.std() < 1e-6 < noisy.std()
