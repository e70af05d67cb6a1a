"""The benchmarks' own machinery, on work that takes no time."""

import importlib.util

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from benchmarks import imports
from benchmarks.holding import holdings
from benchmarks.memory import client_peaks, estimator_peaks
from benchmarks.rounds import STRATEGIES, ServerRound
from benchmarks.scale import (
    COST_COLUMNS,
    NAMES,
    cost_rows,
    measure_round,
    plot_round_costs,
    round_costs,
)
from benchmarks.timing import Case, compare


def test_benchmarked_contenders_take_turns_and_ours_is_the_reference():
    turns = []

    def contender(name):
        def run():
            turns.append(name)
            return np.zeros(2)

        return run

    case = Case("work", {name: contender(name) for name in ("ours", "peer")}, 8)
    ours, peer = compare(case, bandwidth=1e9)
    assert turns[:6] == ["ours", "peer"] * 3
    assert ours.ours_is_faster is None
    assert peer.ours_is_faster > 0
    assert ours.runs == peer.runs >= 3
    assert ours.of_bandwidth == pytest.approx(8 / ours.seconds / 1e9)


def test_a_benchmark_gives_no_ratio_where_results_differ():
    case = Case("work", {"ours": lambda: np.zeros(2), "peer": lambda: np.ones(2)}, 0)
    _, peer = compare(case, bandwidth=1e9)
    assert not peer.agrees
    assert peer.ours_is_faster is None


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_benchmarked_server_round_can_be_done_again_and_again(strategy):
    server_round = ServerRound(strategy, clients=3, dim=10)
    assert server_round() == server_round() >= 40


def test_the_peak_memory_of_an_estimator_holds_its_result():
    peaks = list(estimator_peaks(clients=3, dim=80_000))
    assert len({peak.by for peak in peaks}) == len(peaks) >= 5
    assert all(peak.mebibytes >= 4 * 80_000 / 2**20 for peak in peaks)


def test_a_clients_votes_take_at_most_one_and_a_half_models_beside_the_apps_own():
    dim = 8_000_000
    models = {peak.by: peak.mebibytes * 2**20 / 4 / dim for peak in client_peaks(dim)}
    assert models["SignSGD, perturb"] < 0.5
    assert max(value for by, value in models.items() if by.startswith("SignSGD")) < 1.5
    assert models["MedianSGD, perturb"] > 1  # a vector is a model


@pytest.mark.skipif(not importlib.util.find_spec("bottleneck"), reason="needs the extra bench")
def test_the_benchmarks_table_marks_results_that_differ():
    from benchmarks.__main__ import timing_table

    case = Case("work", {"ours": lambda: np.zeros(2), "peer": lambda: np.ones(2)}, 0)
    assert "results differ" in timing_table(list(compare(case, bandwidth=1e9)))


def test_the_costs_of_a_round_are_those_of_its_clients_and_parameters(tmp_path):
    costs = [
        measure_round(name, clients, dim)
        for name in NAMES
        for clients, dim in ((2, 300), (3, 300), (2, 5_000))
    ]
    few, more, longer, vector, *_, long_vector = costs
    assert (few.clients, more.clients, longer.dim) == (2, 3, 5_000)
    assert few.up_bytes == more.up_bytes
    assert longer.up_bytes - few.up_bytes == pytest.approx((5_000 - 300) / 8, rel=0.2)
    assert long_vector.up_bytes - vector.up_bytes == pytest.approx(4 * (5_000 - 300), rel=0.2)
    assert longer.down_bytes - few.down_bytes == pytest.approx(4 * (5_000 - 300), rel=0.2)
    assert min(cost.aggregate_seconds for cost in costs) > 0
    assert all(len(row) == len(COST_COLUMNS) for row in cost_rows(costs))
    plot_round_costs(costs, tmp_path / "scale.png")
    assert (tmp_path / "scale.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_memory_of_a_round_is_measured_in_a_process_of_its_own():
    few, long, vector, long_vector = round_costs(clients=(2,), dims=(1_000, 3_000_000))
    assert few.peak_mebibytes < long.peak_mebibytes / 2
    # Two vectors and the model, at least.
    assert long_vector.peak_mebibytes > 3 * 4 * 3_000_000 / 2**20 > vector.peak_mebibytes


@pytest.mark.slow
def test_clients_that_hold_the_model_share_it_in_one_process():
    whole, coded = holdings(clients=12, dim=3_000_000, engines=["InProcessGrid"])
    assert (whole.downlink, coded.downlink) == ("models", "coded steps")
    models = 12 * 4 * 3_000_000 / 2**20
    assert coded.mebibytes - whole.mebibytes < 0.6 * models
    assert min(whole.seconds, coded.seconds) > 0


def test_what_imports_add_is_measured_beside_flowers_own():
    light, answered = imports.parts(runs=1)
    assert light.mebibytes < min(12, answered.mebibytes)
    assert min(light.seconds, light.flower_seconds) > 0
    assert len(imports.rows([light])[0]) == len(imports.COLUMNS)
