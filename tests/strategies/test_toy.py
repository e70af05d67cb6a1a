"""The one-dimensional toy of arXiv 1906.01736, Figure 1, through strategies and clients.

Three clients, f_i(x) = (x − a_i)²/2 with a = (1, 2, 10): plain signs and plain medians stop at the
median, 2, noisy ones at the mean, 13/3. Many independent copies of the toy, one per coordinate,
stand for the long averages that one would need. The paper's step, .001, takes thousands of rounds;
here noisy runs and plain medians take ten times that, which makes the noise larger, not its mean,
and plain signs start closer.
"""

import numpy as np
import pytest

from fedmedian import Gaussian
from fedmedian.clients import InProcessGrid
from fedmedian.strategies import MedianSGD, SignSGD

OPTIMA = (1.0, 2.0, 10.0)
MEDIAN, MEAN = 2.0, 13 / 3
COPIES = 2000

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(make_app, as_record):
    """Runs a strategy on the toy; returns each round's x, averaged over the copies."""

    def train(model, partition):
        # One step of gradient descent, of rate 1, leads from x to x − (x − a_i).
        return {"x": np.full_like(model["x"], OPTIMA[partition])}, {"num-examples": 1}

    def run(strategy, start, rounds):
        path = []
        initial = as_record({"x": np.full(COPIES, start)})
        strategy.start(
            InProcessGrid(make_app(train), len(OPTIMA)),
            initial,
            rounds,
            evaluate_fn=lambda _, arrays: path.append(arrays["x"].numpy().mean()),
        )
        return np.array(path)

    return run


def test_plain_signs_end_at_the_median(run):
    strategy = SignSGD(None, "majority", 0.001, seed=1, fraction_evaluate=0.0)
    path = run(strategy, start=1.7, rounds=400)
    assert path[-1] == pytest.approx(MEDIAN, abs=0.01)


def test_plain_medians_end_at_the_median(run):
    strategy = MedianSGD(None, learning_rate=0.01, seed=1, fraction_evaluate=0.0)
    path = run(strategy, start=0.0005, rounds=700)
    assert path[-1] == pytest.approx(MEDIAN, abs=0.01)


def test_noisy_medians_average_to_the_mean(run):
    strategy = MedianSGD(Gaussian(20.0), learning_rate=0.01, seed=1, fraction_evaluate=0.0)
    path = run(strategy, start=0.0005, rounds=700)
    assert path[-200:].mean() == pytest.approx(MEAN, abs=0.15)


def test_counted_noisy_signs_average_to_the_mean(run):
    strategy = SignSGD(Gaussian(12.0), learning_rate=0.01, seed=1, fraction_evaluate=0.0)
    path = run(strategy, start=0.0005, rounds=700)
    assert path[-200:].mean() == pytest.approx(MEAN, abs=0.15)


def test_a_noisy_majority_averages_to_the_mean(run):
    # Each round moves x by exactly δ whatever the signal, so that it has to start close.
    strategy = SignSGD(
        Gaussian(20.0), "majority", learning_rate=0.05, seed=1, fraction_evaluate=0.0
    )
    path = run(strategy, start=3.5, rounds=900)
    assert path[-300:].mean() == pytest.approx(MEAN, abs=0.15)
