"""MedianSGD: what a round of updates does to the model."""

import numpy as np
import pytest
from flwr.serverapp.strategy import FedMedian

from fedmedian import Adaptive, Gaussian, Laplace, Uniform
from fedmedian.clients import InProcessGrid, perturb
from fedmedian.strategies import MedianSGD

WITH_MOD, WITHOUT_MOD = (perturb,), ()
ALONE = {"min_train_nodes": 1, "min_available_nodes": 1, "fraction_evaluate": 0.0}


@pytest.fixture
def step(make_app, as_record, as_arrays):
    """One round: clients with these updates; returns how far x went, and the report."""

    def step(strategy, updates, mods=WITH_MOD, examples=None):
        examples = examples or [1] * len(updates)

        def train(model, partition):
            update = np.asarray(updates[partition], dtype=np.float64)
            return {"x": model["x"] - update}, {"num-examples": examples[partition]}

        start = np.zeros(np.shape(updates[0]))
        grid = InProcessGrid(make_app(train, mods), len(updates))
        result = strategy.start(grid, as_record({"x": start}), 1)
        return start - as_arrays(result.arrays)["x"], result.train_metrics_clientapp[1]

    return step


either_client = pytest.mark.parametrize("mods", [WITH_MOD, WITHOUT_MOD], ids=["mod", "no mod"])


@either_client
@pytest.mark.parametrize("num_clients", [1, 2, 3, 4, 9])
def test_without_noise_it_moves_the_model_by_the_median(num_clients, mods, step):
    updates = np.random.default_rng(0).standard_normal((num_clients, 6))
    moved, _ = step(MedianSGD(None, **ALONE), updates, mods)
    np.testing.assert_allclose(moved, np.median(updates, axis=0), rtol=1e-6)


def test_without_noise_it_does_what_flowers_median_does(step):
    updates = np.random.default_rng(0).standard_normal((5, 6))
    ours, _ = step(MedianSGD(None), updates, WITHOUT_MOD)
    theirs, _ = step(FedMedian(), updates, WITHOUT_MOD)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_the_learning_rate_multiplies_the_step(step):
    updates = np.random.default_rng(0).standard_normal((3, 6))
    moved, _ = step(MedianSGD(None, learning_rate=0.1), updates)
    np.testing.assert_allclose(moved, 0.1 * np.median(updates, axis=0), rtol=1e-6)


def test_all_clients_count_alike(step):
    updates = [[1.0], [2.0], [3.0]]
    assert step(MedianSGD(None), updates, examples=[1, 1, 1000])[0] == pytest.approx(2.0)


def test_clipping_happens_at_the_client(step):
    moved, _ = step(MedianSGD(None, clip=1.0), np.full((3, 4), 7.0))
    np.testing.assert_allclose(moved, 0.5, rtol=1e-6)


@pytest.mark.parametrize("noise_at", ["client", "server"])
@pytest.mark.parametrize("noise", [Gaussian(20.0), Laplace(20.0), Uniform(20.0)])
def test_noise_draws_the_median_to_the_mean(noise, noise_at, step):
    copies = 20_000
    updates = [np.full(copies, value) for value in (1.0, 2.0, 10.0)]
    moved, _ = step(MedianSGD(noise, noise_at, seed=1), updates)
    spread = np.std(moved) / np.sqrt(copies)
    assert abs(moved.mean() - 13 / 3) < 0.15 + 5 * spread


@pytest.mark.parametrize("noise_at", ["client", "server"])
def test_default_noise_is_proportional_to_the_updates(noise_at, step):
    updates = np.random.default_rng(0).standard_normal((9, 2000))
    small, _ = step(MedianSGD(noise_at=noise_at, seed=1), updates)
    large, _ = step(MedianSGD(noise_at=noise_at, seed=1), 1000 * updates)
    assert np.std(large) == pytest.approx(1000 * np.std(small), rel=0.05)


def test_noise_at_the_server_asks_nothing_of_the_clients(step):
    updates = np.random.default_rng(0).standard_normal((5, 6))
    with_mod, _ = step(MedianSGD(noise_at="server", seed=1), updates, WITH_MOD)
    without, report = step(MedianSGD(noise_at="server", seed=1), updates, WITHOUT_MOD)
    np.testing.assert_array_equal(with_mod, without)
    assert report["replies-accepted"] == 5


def test_noise_at_the_client_has_the_scale_that_it_was_told(step):
    moved, _ = step(MedianSGD(Gaussian(3.0), seed=1), np.zeros((2, 20_000)))
    assert np.std(moved) == pytest.approx(3.0 / np.sqrt(2), rel=0.05)


def test_clients_do_not_share_their_noise(step):
    one, _ = step(MedianSGD(Gaussian(1.0), seed=1, **ALONE), np.zeros((1, 5000)))
    both, _ = step(MedianSGD(Gaussian(1.0), seed=1), np.zeros((2, 5000)))
    other = 2 * both - one
    assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(5000)


def test_the_gap_between_median_and_mean_is_reported(step):
    _, report = step(MedianSGD(None), [[1.0, 0.0], [2.0, 0.0], [10.0, 0.0]])
    assert report["median-mean-gap"] == pytest.approx(13 / 3 - 2, rel=1e-6)


def test_more_noise_is_less_signal(step):
    updates = np.random.default_rng(0).standard_normal((1, 2000)).repeat(5, axis=0)
    quiet, loud = (
        step(MedianSGD(Gaussian(Adaptive(factor)), seed=1), updates)[1] for factor in (0.1, 3.0)
    )
    assert quiet["signal-to-noise"] > loud["signal-to-noise"]


def test_a_minority_of_liars_moves_it_less_than_the_mean(step):
    honest = np.ones((7, 50))
    liars = np.full((3, 50), -1000.0)
    moved, _ = step(MedianSGD(seed=1), np.concatenate([honest, liars]))
    assert np.abs(moved).mean() < 30  # the mean would move by 299
    plain, _ = step(MedianSGD(None), np.concatenate([honest, liars]))
    np.testing.assert_array_equal(plain, 1.0)


@either_client
def test_running_statistics_are_replaced_by_their_median(mods, make_app, as_record, as_arrays):
    values = (1.0, 2.0, 600.0)

    def train(model, partition):
        return {
            "w": model["w"] - 1,
            "norm.running_mean": np.full_like(model["norm.running_mean"], values[partition]),
            "norm.num_batches_tracked": np.array(int(values[partition])),
        }, {"num-examples": 1}

    start = {
        "w": np.zeros(3, dtype=np.float16),
        "norm.running_mean": np.zeros(2, dtype=np.float32),
        "norm.num_batches_tracked": np.array(0),
    }
    grid = InProcessGrid(make_app(train, mods), 3)
    model = as_arrays(MedianSGD(None).start(grid, as_record(start), 1).arrays)
    np.testing.assert_array_equal(model["norm.running_mean"], np.full(2, 2, dtype=np.float32))
    assert model["norm.num_batches_tracked"] == 2
    np.testing.assert_array_equal(model["w"], np.full(3, -1, dtype=np.float16))
    assert {n: a.dtype for n, a in model.items()} == {n: a.dtype for n, a in start.items()}
