"""What the server makes of a direction: optimiser, schedule, average; and what it reports."""

import logging
from itertools import cycle
from math import inf, nan

import numpy as np
import pytest
from flwr.serverapp.strategy import Result, Strategy

from fedmedian import (
    Adam,
    Adaptive,
    Cosine,
    Gaussian,
    Momentum,
    StepDecay,
    Theory,
    Uniform,
)
from fedmedian.clients import InProcessGrid, perturb
from fedmedian.strategies import MedianSGD, SignSGD
from fedmedian.strategies.base import AveragedResult

QUIET = {"fraction_evaluate": 0.0, "min_train_nodes": 1, "min_available_nodes": 1}
PLAIN = {"noise": None, **QUIET}


@pytest.fixture
def run(make_app, as_record, as_arrays):
    """Runs a strategy on clients whose updates are `updates[round][partition]`.

    Returns the models before and after each round, and the result.
    """

    def run(strategy, updates, mods=(perturb,), start=0.0, dtype=np.float64):
        numbers = iter(np.repeat(np.arange(len(updates)), len(updates[0])))

        def train(model, partition):
            update = np.asarray(updates[next(numbers)][partition], dtype=dtype)
            return {"x": model["x"] - update}, {"num-examples": 1}

        path = []
        nodes = InProcessGrid(make_app(train, mods), len(updates[0]))
        result = strategy.start(
            nodes,
            as_record({"x": np.full(np.shape(updates[0][0]), start, dtype=dtype)}),
            len(updates),
            evaluate_fn=lambda _, arrays: path.append(as_arrays(arrays)["x"]),
        )
        return np.array(path), result

    return run


def draws(rounds=6, clients=1, dim=4, seed=0):
    return np.random.default_rng(seed).standard_normal((rounds, clients, dim))


class TestOptimizer:
    def test_without_one_the_step_is_the_direction(self, run):
        updates = draws()
        path, _ = run(MedianSGD(**PLAIN), updates)
        np.testing.assert_allclose(-np.diff(path, axis=0), updates[:, 0], rtol=1e-5)

    @pytest.mark.parametrize("beta", [0.5, 0.9])
    def test_momentum_steps_along_the_average_of_all_directions_so_far(self, beta, run):
        updates, mean = draws(), 0.0
        path, _ = run(MedianSGD(learning_rate=0.5, optimizer=Momentum(beta), **PLAIN), updates)
        for t, (update,) in enumerate(updates, start=1):
            mean = beta * mean + (1 - beta) * update
            expected = 0.5 * mean / (1 - beta**t)
            np.testing.assert_allclose(path[t - 1] - path[t], expected, rtol=1e-4, atol=1e-6)

    def test_adams_steps_are_of_the_learning_rates_size(self, run):
        updates = np.ones((5, 3, 2)) * [1e-2, -100.0]
        path, _ = run(MedianSGD(learning_rate=0.1, optimizer=Adam(tau=1e-9), **PLAIN), updates)
        np.testing.assert_allclose(-np.diff(path, axis=0), np.tile([0.1, -0.1], (5, 1)), rtol=1e-4)

    @pytest.mark.parametrize("optimizer", [Momentum(), Adam()], ids=repr)
    def test_a_second_run_knows_nothing_of_the_first(self, optimizer, run):
        strategy = MedianSGD(optimizer=optimizer, **PLAIN)
        first, _ = run(strategy, draws())
        second, _ = run(strategy, draws())
        np.testing.assert_array_equal(first, second)

    def test_one_optimizer_may_serve_two_strategies(self, run):
        optimizer = Momentum(0.9)
        one, other = (MedianSGD(optimizer=optimizer, **PLAIN) for _ in range(2))
        alone, _ = run(one, draws())
        run(other, draws(seed=1))
        together, _ = run(one, draws())
        np.testing.assert_array_equal(alone, together)

    def test_momentum_cuts_the_noise_of_decoded_votes(self, run):
        dim, updates = 4000, np.zeros((40, 3, 4000))
        noisy, _ = run(SignSGD(Gaussian(1.0), seed=1, **QUIET), updates)
        calm, _ = run(SignSGD(Gaussian(1.0), seed=1, optimizer=Momentum(0.8), **QUIET), updates)
        ratio = np.var(calm[-1] - calm[-2]) / np.var(noisy[-1] - noisy[-2])
        assert ratio == pytest.approx((1 - 0.8) / (1 + 0.8), rel=6 * np.sqrt(2 / dim))


class TestSchedule:
    @pytest.mark.parametrize(
        ("schedule", "rates"),
        [
            (0.25, [0.25] * 4),
            (Cosine(1.0, rounds=3, final=0.2), [1.0, 0.6, 0.2, 0.2]),
            (StepDecay(1.0, {1: 2, 3: 10}), [1.0, 0.5, 0.5, 0.1]),
            (lambda number: 1 / number, [1, 1 / 2, 1 / 3, 1 / 4]),
            (lambda number: np.float32(0.5), [0.5] * 4),
        ],
        ids=["constant", "cosine", "steps", "callable", "numpy"],
    )
    def test_sets_each_rounds_learning_rate(self, schedule, rates, run):
        path, _ = run(MedianSGD(learning_rate=schedule, **PLAIN), np.ones((4, 3, 1)))
        np.testing.assert_allclose(-np.diff(path[:, 0]), rates, rtol=1e-6)

    def test_of_a_majority(self, run):
        strategy = SignSGD(None, "majority", StepDecay(1.0, {1: 4}), **QUIET)
        path, _ = run(strategy, np.ones((2, 3, 1)))
        np.testing.assert_allclose(-np.diff(path[:, 0]), [1.0, 0.25])

    @pytest.mark.parametrize("rate", [0.0, -0.1, nan, inf])
    def test_a_rate_out_of_range_ends_the_run_and_is_named(self, rate, run):
        strategy = MedianSGD(learning_rate=lambda _: rate, **PLAIN)
        with pytest.raises(ValueError, match=r"^learning_rate must be .*> 0, got"):
            run(strategy, np.ones((1, 3, 1)))

    @pytest.mark.parametrize("rate", ["0.1", None])
    def test_a_rate_that_is_no_number_ends_the_run_and_is_named(self, rate, run):
        strategy = MedianSGD(learning_rate=lambda _: rate, **PLAIN)
        with pytest.raises(TypeError, match=r"^learning_rate must be a number"):
            run(strategy, np.ones((1, 3, 1)))


class TestTheory:
    T, D = 16, 625

    @property
    def noise(self):
        return Gaussian(Theory(rounds=self.T, dim=self.D))

    def test_gives_a_majority_the_learning_rate_of_theorem_5(self, run):
        assert SignSGD(self.noise, "majority").core.learning_rate == pytest.approx(0.01)
        path, _ = run(SignSGD(self.noise, "majority", seed=1, **QUIET), np.ones((1, 3, 1)))
        np.testing.assert_allclose(np.abs(np.diff(path, axis=0)), (self.T * self.D) ** -0.5)

    def test_gives_the_median_the_learning_rate_of_theorem_6(self):
        expected = (self.T * self.D) ** (-2 / 3)
        assert MedianSGD(self.noise).core.learning_rate == pytest.approx(expected)
        assert MedianSGD(self.noise, "server").core.learning_rate == pytest.approx(expected)

    def test_an_estimate_of_the_mean_keeps_its_natural_rate(self):
        assert SignSGD(self.noise).core.learning_rate == 1.0
        assert SignSGD(self.noise, "majority", calibrated=True).core.learning_rate == 1.0

    def test_a_rate_that_is_given_is_kept(self):
        assert SignSGD(self.noise, "majority", 0.5).core.learning_rate == 0.5
        assert MedianSGD(self.noise, learning_rate=0.5).core.learning_rate == 0.5

    def test_sets_the_theorems_noise(self, run):
        _, result = run(SignSGD(self.noise, "majority", seed=1, **QUIET), np.ones((2, 3, 1)))
        scales = [report["noise-scale"] for report in result.train_metrics_clientapp.values()]
        np.testing.assert_allclose(scales, [[10.0], [10.0]])


class TestAverage:
    @pytest.mark.parametrize("decay", [0.5, 0.9])
    def test_is_the_exponential_average_of_the_rounds_models(self, decay, run, as_arrays):
        path, result = run(MedianSGD(average=decay, **PLAIN), draws(), start=3.0)
        average = path[1]
        for model in path[2:]:
            average = decay * average + (1 - decay) * model
        averaged = as_arrays(result.averaged_arrays)
        assert list(averaged) == ["x"]
        assert averaged["x"].dtype == path.dtype
        np.testing.assert_allclose(averaged["x"], average, rtol=1e-12)
        np.testing.assert_array_equal(as_arrays(result.arrays)["x"], path[-1])

    def test_comes_beside_everything_that_flowers_result_has(self, run):
        _, result = run(MedianSGD(average=0.5, **PLAIN), draws())
        assert isinstance(result, AveragedResult)
        assert isinstance(result, Result)
        assert sorted(result.train_metrics_clientapp) == [1, 2, 3, 4, 5, 6]

    def test_without_one_there_is_none(self, run):
        strategy = MedianSGD(**PLAIN)
        _, result = run(strategy, draws())
        assert result.averaged_arrays is None
        assert strategy.averaged_arrays is None

    def test_before_the_first_round_there_is_none(self):
        assert MedianSGD(average=0.5).averaged_arrays is None

    def test_does_not_touch_the_path_of_the_model(self, run):
        plain, _ = run(MedianSGD(**PLAIN), draws())
        averaging, _ = run(MedianSGD(average=0.9, **PLAIN), draws())
        np.testing.assert_array_equal(plain, averaging)

    def test_is_begun_anew_in_a_second_run(self, run, as_arrays):
        strategy = MedianSGD(average=0.9, **PLAIN)
        _, first = run(strategy, draws())
        _, second = run(strategy, draws())
        one, other = (as_arrays(result.averaged_arrays)["x"] for result in (first, second))
        np.testing.assert_array_equal(one, other)

    def test_has_the_models_dtypes_and_takes_integers_from_the_last(
        self, make_app, as_record, as_arrays
    ):
        def train(model, partition):
            return {
                "half": model["half"] - np.float16(1),
                "norm.running_mean": model["norm.running_mean"] + np.float32(2),
                "norm.num_batches_tracked": model["norm.num_batches_tracked"] + 10,
            }, {"num-examples": 1}

        start = {
            "half": np.zeros((2, 2), np.float16),
            "norm.running_mean": np.zeros(3, np.float32),
            "norm.num_batches_tracked": np.array(0),
        }
        grid = InProcessGrid(make_app(train), 2)
        result = MedianSGD(average=0.5, **PLAIN).start(grid, as_record(start), 3)
        averaged = as_arrays(result.averaged_arrays)
        assert {n: (a.shape, a.dtype) for n, a in averaged.items()} == {
            n: (a.shape, a.dtype) for n, a in start.items()
        }
        # 1, 2, 3 average to ¼·1 + ¼·2 + ½·3.
        np.testing.assert_allclose(averaged["half"], -2.25)
        np.testing.assert_allclose(averaged["norm.running_mean"], 4.5)
        assert averaged["norm.num_batches_tracked"] == 30

    def test_start_passes_on_whatever_flowers_start_takes(self, monkeypatch):
        passed = {}

        def start(self, *args, **kwargs):
            passed.update(args=args, kwargs=kwargs)
            return Result()

        monkeypatch.setattr(Strategy, "start", start)
        result = MedianSGD(average=0.5).start("grid", "arrays", num_rounds=3, new_in_flower=7)
        assert passed["args"] == ("grid", "arrays")
        assert passed["kwargs"] == {"num_rounds": 3, "new_in_flower": 7}
        assert isinstance(result, AveragedResult)


class TestClientLearningRate:
    def test_divides_the_updates(self, run):
        updates = draws()
        path, _ = run(MedianSGD(client_learning_rate=0.1, **PLAIN), updates)
        np.testing.assert_allclose(-np.diff(path, axis=0), 10 * updates[:, 0], rtol=1e-5)

    def test_clients_without_the_mod_are_divided_by_the_server(self, run):
        updates = draws()
        path, _ = run(MedianSGD(client_learning_rate=0.1, **PLAIN), updates, mods=())
        np.testing.assert_allclose(-np.diff(path, axis=0), 10 * updates[:, 0], rtol=1e-5)

    def test_decoded_votes_are_in_units_of_what_was_divided(self, run):
        updates = np.full((1, 3, 20_000), 0.05)
        strategy = SignSGD(Uniform(Adaptive(3.0)), client_learning_rate=0.1, seed=1, **QUIET)
        path, result = run(strategy, updates)
        assert result.train_metrics_clientapp[1]["noise-scale"] == pytest.approx([1.5])
        assert -path[1].mean() == pytest.approx(0.5, abs=0.05)

    def test_does_not_change_what_a_majority_says(self, run):
        updates = draws(rounds=2, clients=3)
        usual, divided = (
            run(SignSGD(None, "majority", 0.1, client_learning_rate=rate, **QUIET), updates)[0]
            for rate in (1.0, 0.01)
        )
        np.testing.assert_array_equal(usual, divided)


class TestClientMomentum:
    def test_is_kept_by_the_client_from_round_to_round(self, run):
        updates, beta, mean = draws(), 0.8, 0.0
        path, _ = run(MedianSGD(client_momentum=beta, **PLAIN), updates)
        for t, (update,) in enumerate(updates, start=1):
            mean = beta * mean + (1 - beta) * update
            expected = mean / (1 - beta**t)
            np.testing.assert_allclose(path[t - 1] - path[t], expected, rtol=1e-4, atol=1e-6)

    def test_is_each_clients_own(self, run):
        path, _ = run(MedianSGD(client_momentum=0.5, **PLAIN), [[[1.0], [5.0], [9.0]]] * 3)
        np.testing.assert_allclose(-np.diff(path[:, 0]), [5.0] * 3, rtol=1e-6)

    def test_is_forgotten_when_another_run_begins(self, make_app, as_record, as_arrays):
        updates = cycle([1.0, 5.0, 9.0, -3.0])

        def train(model, partition):
            return {"x": model["x"] - next(updates)}, {"num-examples": 1}

        strategy = MedianSGD(client_momentum=0.9, **PLAIN)
        grid, start = InProcessGrid(make_app(train), 1), as_record({"x": np.zeros(2)})
        first, second = (as_arrays(strategy.start(grid, start, 4).arrays)["x"] for _ in range(2))
        np.testing.assert_array_equal(first, second)

    def test_a_client_without_the_mod_cannot_have_one_and_is_dropped(self, run, caplog):
        with caplog.at_level(logging.WARNING):
            path, result = run(MedianSGD(client_momentum=0.5, **PLAIN), np.ones((1, 3, 2)), mods=())
        assert result.train_metrics_clientapp[1]["replies-rejected"] == 3
        assert "momentum, which this client cannot remember" in caplog.text
        np.testing.assert_array_equal(path, 0)


class TestReport:
    @pytest.mark.parametrize(
        "strategy",
        [
            SignSGD(seed=1, **QUIET),
            SignSGD(Gaussian(0.5), "majority", 0.1, seed=1, **QUIET),
            SignSGD(seed=1, diagnostics=False, **QUIET),
            SignSGD(seed=1, noise_from="client", **QUIET),
            MedianSGD(seed=1, **QUIET),
            MedianSGD(noise_at="server", seed=1, **QUIET),
            MedianSGD(estimator="smoothed", **QUIET),
        ],
        ids=[
            *("counts", "majority", "quiet", "clients' own"),
            *("median", "at the server", "smoothed"),
        ],
    )
    def test_every_round_has_its_noise_scale(self, strategy, run):
        _, result = run(strategy, draws(rounds=3, clients=3))
        for report in result.train_metrics_clientapp.values():
            (scale,) = report["noise-scale"]
            assert 0 < scale < 100

    def test_it_is_the_scale_that_was_in_force(self, run):
        updates = np.ones((3, 3, 4)) * np.array([1.0, 1.1, 9.0])[:, None, None]
        _, result = run(SignSGD(Gaussian(Adaptive(2.0)), seed=1, **QUIET), updates)
        scales = [report["noise-scale"] for report in result.train_metrics_clientapp.values()]
        # The first round's is the clients' own; the others follow, at most twice as large.
        np.testing.assert_allclose(scales, [[2.0], [2.0], [2.2]], rtol=1e-6)

    @pytest.mark.parametrize(
        "strategy",
        [SignSGD(None, "majority", 0.1, **QUIET), MedianSGD(**PLAIN)],
        ids=["signs", "median"],
    )
    def test_without_noise_there_is_no_scale(self, strategy, run):
        _, result = run(strategy, draws(clients=3))
        assert all("noise-scale" not in r for r in result.train_metrics_clientapp.values())

    SWITCHED = (
        "vote-agreement",
        "signal-to-noise",
        "signal-to-noise-per-array",
        "majority-contradicts-mean",
        "median-mean-gap",
    )

    @pytest.mark.parametrize("make", [SignSGD, MedianSGD])
    def test_diagnostics_can_be_left_out_and_change_nothing(self, make, run):
        usual, with_them = run(make(seed=1, **QUIET), draws(clients=3))
        quiet, without = run(make(seed=1, diagnostics=False, **QUIET), draws(clients=3))
        np.testing.assert_array_equal(usual, quiet)
        for report in without.train_metrics_clientapp.values():
            assert not set(self.SWITCHED) & set(report)
            assert {"replies-accepted", "noise-scale", "uplink-bytes"} <= set(report)
        for report in with_them.train_metrics_clientapp.values():
            assert {"signal-to-noise", "majority-contradicts-mean"} <= set(report)
            assert len(report["signal-to-noise-per-array"]) == 1


def test_the_summary_names_what_was_chosen(caplog):
    with caplog.at_level(logging.INFO):
        MedianSGD(optimizer=Adam(tau=0.5), average=0.25, client_momentum=0.125).summary()
    for chosen in ("Adam(", "tau=0.5", "average=0.25", "client_momentum=0.125"):
        assert chosen in caplog.text
