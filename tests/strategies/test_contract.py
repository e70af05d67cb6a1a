"""What every strategy promises, whatever its noise, its decoding and its ties."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from flwr.app import ConfigRecord

from fedmedian import (
    Adam,
    Adaptive,
    Cosine,
    Gaussian,
    Laplace,
    Logistic,
    Momentum,
    Theory,
    Uniform,
)
from fedmedian.clients import InProcessGrid
from fedmedian.strategies import MedianSGD, SignSGD

NUM_CLIENTS = 4
ROUNDS = 2
EXAMPLES = (3, 3, 5, 5)  # in pairs, so that votes can tie with weights as well as without

MODEL = {
    "half": np.linspace(-1, 1, 3).astype(np.float16),
    "single": np.arange(6, dtype=np.float32).reshape(2, 3),
    "double": np.linspace(0, 1, 9),
    "scalar": np.array(0.5, dtype=np.float32),
    "empty": np.zeros((0, 4), dtype=np.float32),
    "counter": np.array(7, dtype=np.int64),
    "bytes": np.array([1, 2], dtype=np.uint8),
    "norm.running_mean": np.ones(3, dtype=np.float32),
}


@dataclass(frozen=True)
class Case:
    """A strategy's configuration, and what to expect of it."""

    make: type
    options: dict
    random: bool = True  # whether anything in a round is left to chance
    reports: frozenset = field(default_factory=frozenset)

    def strategy(self, seed=1):
        return self.make(**self.options, seed=seed, fraction_evaluate=0.0)


VOTES = frozenset({"vote-agreement"})
NOISY_VOTES = VOTES | {"signal-to-noise"}
GAP = frozenset({"median-mean-gap"})
NOISY_GAP = GAP | {"signal-to-noise"}


def majority(noise, **options):
    return {"noise": noise, "decode": "majority", "learning_rate": 0.01, **options}


CASES = {
    "default signs": Case(SignSGD, {}, reports=NOISY_VOTES),
    "default median": Case(MedianSGD, {}, reports=NOISY_GAP),
    **{
        f"counts, {noise.name}, {name}": Case(
            SignSGD, {"noise": noise(scale), "weighted": weighted}, reports=NOISY_VOTES
        )
        for noise in (Gaussian, Logistic, Laplace, Uniform)
        for name, scale, weighted in [
            ("fixed scale", 0.5, True),
            ("adaptive scale", Adaptive(2.0, of="max"), False),
        ]
    },
    **{
        f"majority, {noise}, ties {ties}, weighted {weighted}": Case(
            SignSGD,
            majority(noise, ties=ties, weighted=weighted),
            random=noise is not None or ties == "random",
            reports=VOTES if noise is None else NOISY_VOTES,
        )
        for noise in (None, Gaussian(0.5))
        for ties in ("random", "unchanged")
        for weighted in (True, False)
    },
    "majority, scale by theory": Case(
        SignSGD, majority(Gaussian(Theory(rounds=ROUNDS, dim=19))), reports=NOISY_VOTES
    ),
    "majority, calibrated": Case(
        SignSGD, {"decode": "majority", "calibrated": True}, reports=NOISY_VOTES
    ),
    "signs, clients' own noise": Case(SignSGD, {"noise_from": "client"}, reports=NOISY_VOTES),
    "signs, everything on the server": Case(
        SignSGD,
        {"optimizer": Momentum(), "average": 0.9, "learning_rate": Cosine(1.0, ROUNDS)},
        reports=NOISY_VOTES,
    ),
    "signs, everything on the clients": Case(
        SignSGD, {"client_momentum": 0.9, "client_learning_rate": 0.1}, reports=NOISY_VOTES
    ),
    "signs, no diagnostics": Case(SignSGD, {"diagnostics": False}),
    "median, Adam": Case(
        MedianSGD, {"optimizer": Adam(), "learning_rate": 0.01}, reports=NOISY_GAP
    ),
    "median, smoothed": Case(
        MedianSGD, {"noise": Logistic(0.5), "estimator": "smoothed"}, random=False, reports=GAP
    ),
    "signs, clipped": Case(SignSGD, {"clip": 0.1}, reports=NOISY_VOTES),
    "median, no noise": Case(MedianSGD, {"noise": None}, random=False, reports=GAP),
    "median, noise at the client": Case(
        MedianSGD, {"noise": Laplace(0.5), "noise_at": "client"}, reports=NOISY_GAP
    ),
    "median, noise at the server": Case(
        MedianSGD, {"noise": Uniform(0.5), "noise_at": "server"}, reports=NOISY_GAP
    ),
    "median, adaptive noise at the server": Case(
        MedianSGD, {"noise_at": "server"}, reports=NOISY_GAP
    ),
}


def each(cases):
    return pytest.mark.parametrize("case", cases.values(), ids=cases)


every_case = each(CASES)
random_cases = each({name: case for name, case in CASES.items() if case.random})
certain_cases = each({name: case for name, case in CASES.items() if not case.random})


class ReversingGrid(InProcessGrid):
    """Delivers the replies in the opposite order."""

    def send_and_receive(self, messages, *, timeout=None):
        return super().send_and_receive(messages, timeout=timeout)[::-1]


@pytest.fixture(scope="module")
def app(make_app):
    def train(model, partition):
        draws = np.random.default_rng(partition)
        trained = {}
        for name, array in model.items():
            shift = (
                np.full(array.shape, partition)
                if array.dtype.kind in "iu"
                else 0.1 * draws.standard_normal(array.shape)
            )
            trained[name] = (array + shift).astype(array.dtype)
        # Half of the clients pull one way, half the other: a tie.
        trained["single"] = model["single"] + np.float32(1 if partition % 2 else -1)
        metrics = {"num-examples": EXAMPLES[partition], "train-loss": 0.1 * partition}
        return trained, metrics

    return make_app(train)


@pytest.fixture(scope="module")
def run(app, as_record, as_arrays):
    """Runs a strategy; returns the final model, the reports per round, and the grid."""

    def run(strategy, grid=InProcessGrid, num_rounds=ROUNDS, **options):
        nodes = grid(app, NUM_CLIENTS)
        result = strategy.start(nodes, as_record(MODEL), num_rounds, **options)
        return as_arrays(result.arrays), result.train_metrics_clientapp, nodes

    return run


@pytest.fixture(scope="module")
def usual_run(run):
    """Runs a case with seed 1, once for all tests."""
    results = {}

    def usual_run(case):
        if id(case) not in results:
            results[id(case)] = run(case.strategy())
        return results[id(case)]

    return usual_run


def bits(model):
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in model.items()}


@every_case
def test_the_new_model_has_the_old_ones_names_shapes_and_dtypes(case, usual_run):
    model, _, _ = usual_run(case)
    assert list(model) == list(MODEL)
    assert {n: (a.shape, a.dtype) for n, a in model.items()} == {
        n: (a.shape, a.dtype) for n, a in MODEL.items()
    }


@every_case
def test_the_new_model_is_finite_and_another(case, usual_run):
    model, _, _ = usual_run(case)
    assert all(np.isfinite(array).all() for array in model.values())
    assert bits(model) != bits(MODEL)


@every_case
def test_a_seed_decides_every_bit(case, run, usual_run):
    first, first_reports, _ = usual_run(case)
    second, second_reports, _ = run(case.strategy())
    assert bits(first) == bits(second)
    assert first_reports == second_reports


@every_case
def test_with_a_seed_the_order_of_the_replies_does_not_matter(case, run, usual_run):
    usual, usual_reports, _ = usual_run(case)
    reversed_, reversed_reports, _ = run(case.strategy(), ReversingGrid)
    assert bits(usual) == bits(reversed_)
    assert usual_reports == reversed_reports


@random_cases
def test_another_seed_gives_another_model(case, run, usual_run):
    assert bits(usual_run(case)[0]) != bits(run(case.strategy(seed=2))[0])


@random_cases
def test_without_a_seed_no_two_runs_are_the_same(case, run):
    assert bits(run(case.strategy(None))[0]) != bits(run(case.strategy(None))[0])


@certain_cases
def test_where_nothing_is_left_to_chance_the_seed_changes_nothing(case, run, usual_run):
    model, other = usual_run(case)[0], run(case.strategy(seed=2))[0]
    assert list(model) == list(other)
    for name in model:
        np.testing.assert_array_equal(model[name], other[name])


@every_case
def test_a_strategy_starts_afresh_when_it_is_used_again(case, run, usual_run):
    strategy = case.strategy()
    run(strategy)
    first, first_reports, _ = usual_run(case)
    second, second_reports, _ = run(strategy)
    assert bits(first) == bits(second)
    assert first_reports == second_reports


@every_case
def test_every_round_is_reported(case, usual_run):
    _, reports, grid = usual_run(case)
    assert sorted(reports) == list(range(1, ROUNDS + 1))
    for report in reports.values():
        assert set(report) >= case.reports | {
            *("replies-accepted", "replies-rejected", "replies-missing", "uplink-bytes"),
            "train-loss",
        }
        assert report["replies-accepted"] == NUM_CLIENTS
        assert report["replies-rejected"] == 0
        assert 0 <= report.get("vote-agreement", 0) <= 1
        assert report.get("signal-to-noise", 0) >= 0
        assert report.get("median-mean-gap", 0) >= 0
    sent = sum(report["uplink-bytes"] for report in reports.values())
    assert sent * NUM_CLIENTS == pytest.approx(grid.bytes_up, abs=64 * NUM_CLIENTS)


@every_case
def test_the_clients_metrics_are_averaged_by_their_examples(case, usual_run):
    _, reports, _ = usual_run(case)
    expected = np.average([0.0, 0.1, 0.2, 0.3], weights=EXAMPLES)
    assert reports[1]["train-loss"] == pytest.approx(expected)


@every_case
def test_the_callers_config_stays_as_it_was(case, run):
    config = ConfigRecord({"lr": 0.1})
    run(case.strategy(), train_config=config)
    assert dict(config) == {"lr": 0.1}


@every_case
def test_the_callers_model_stays_as_it_was(case, app, as_record, as_arrays):
    initial = as_record(MODEL)
    case.strategy().start(InProcessGrid(app, NUM_CLIENTS), initial, num_rounds=1)
    assert bits(as_arrays(initial)) == bits(MODEL)


@every_case
def test_counters_are_averaged_or_take_the_median_and_are_never_voted_on(case, run):
    model, _, _ = run(case.strategy(), num_rounds=1)
    # Client i has added i; 7 + 1.75 by examples is 9, 7 + 1.5 rounds to the even 8.
    assert model["counter"] == (9 if case.strategy().core.weighted else 8)


@every_case
def test_a_strategy_says_what_it_is_made_of(case, caplog):
    case.strategy().summary()
    assert "Noise:" in caplog.text
    assert "Learning rate:" in caplog.text
