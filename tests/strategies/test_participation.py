"""Rounds in which not everybody takes part."""

import re

import numpy as np
import pytest

from fedmedian import Gaussian
from fedmedian.clients import InProcessGrid
from fedmedian.strategies import MedianSGD, SignSGD

DIM = 400
START = {"x": np.zeros(DIM, np.float32)}
OPTIMUM = 3.0


@pytest.fixture
def run(make_app, as_record, as_arrays):
    """Runs a strategy on clients that train towards one point, some of which may fail."""

    def run(strategy, num_nodes, num_rounds, *, fails=lambda server_round, partition: False):
        calls = dict.fromkeys(range(num_nodes), 0)

        def train(model, partition):
            calls[partition] += 1
            if fails(calls[partition], partition):
                raise RuntimeError("out of memory")
            return {"x": model["x"] - 0.5 * (model["x"] - OPTIMUM)}, {"num-examples": 1}

        result = strategy.start(
            InProcessGrid(make_app(train), num_nodes), as_record(START), num_rounds
        )
        reports = result.train_metrics_clientapp
        model = as_arrays(result.arrays).get("x")
        return model, [reports[number] for number in sorted(reports)]

    return run


@pytest.mark.parametrize("make", [SignSGD, MedianSGD])
@pytest.mark.parametrize(("num_nodes", "fraction", "voters"), [(10, 0.5, 5), (8, 0.5, 4)])
def test_a_fraction_of_the_clients_is_enough(run, make, num_nodes, fraction, voters):
    strategy = make(learning_rate=0.1, fraction_train=fraction, seed=1)  # few voters, much noise
    model, reports = run(strategy, num_nodes, 120)
    assert {report["replies-accepted"] for report in reports} == {voters}
    assert {report["replies-missing"] for report in reports} == {0}
    assert model.mean() == pytest.approx(OPTIMUM, rel=0.1)


def test_a_seed_decides_which_clients_are_sampled(make_app, as_record):
    def sampled(seed):
        calls = []

        def train(model, partition):
            calls.append(partition)
            return model, {"num-examples": 1}

        strategy = SignSGD(fraction_train=0.5, fraction_evaluate=0.0, seed=seed)
        strategy.start(InProcessGrid(make_app(train), 8), as_record(START), 6)
        return calls

    first = sampled(1)
    assert sampled(1) == first
    assert sampled(2) != first
    rounds = {tuple(sorted(first[i : i + 4])) for i in range(0, len(first), 4)}
    assert len(rounds) > 1  # not the same four in every round


@pytest.mark.parametrize("ties", ["random", "unchanged"])
def test_a_tie_among_an_even_number_of_voters_favours_no_side(make_app, as_record, ties):
    def train(model, partition):  # two pull up, two pull down
        return {"x": model["x"] + (-1) ** partition}, {"num-examples": 1}

    strategy = SignSGD(None, "majority", 0.5, ties=ties, seed=1)
    moved = strategy.start(InProcessGrid(make_app(train), 4), as_record(START), 1).arrays["x"]
    steps, counts = np.unique(moved.numpy(), return_counts=True)
    if ties == "unchanged":
        assert steps.tolist() == [0.0]
    else:
        assert steps.tolist() == [-0.5, 0.5]
        assert abs(counts[0] - DIM / 2) < 5 * np.sqrt(DIM / 4)


def test_a_client_that_drops_out_is_named_by_its_partition(run, caplog):
    _, reports = run(
        SignSGD(seed=1), 4, 3, fails=lambda call, partition: (call, partition) == (2, 3)
    )
    assert [report["replies-accepted"] for report in reports] == [4, 3, 4]
    assert [report["replies-rejected"] for report in reports] == [0, 1, 0]
    dropped = r"aggregate_train: dropped the reply of node \d+ \(partition 3\): .*out of memory"
    assert len(re.findall(dropped, caplog.text)) == 1


def test_a_client_that_is_silent_is_named_by_its_partition(make_app, as_record, caplog):
    class Absence(InProcessGrid):
        """From the second round on, the node of partition 1 does not reply."""

        rounds = 0

        def send_and_receive(self, messages, *, timeout=None):
            self.rounds += 1
            replies = super().send_and_receive(messages, timeout=timeout)
            absent = self.get_node_ids()[1]
            return [r for r in replies if self.rounds == 1 or r.metadata.src_node_id != absent]

    app = make_app(lambda model, _: (model, {"num-examples": 1}))
    strategy = SignSGD(seed=1, fraction_evaluate=0.0)
    strategy.start(Absence(app, 3), as_record(START), 2, timeout=1.0)
    assert (
        len(re.findall(r"aggregate_train: no reply from node \d+ \(partition 1\)", caplog.text))
        == 1
    )


def test_below_min_replies_the_round_keeps_the_model_and_says_so(run, caplog):
    strategy = SignSGD(Gaussian(1.0), seed=1, min_replies=3)
    model, reports = run(strategy, 4, 1, fails=lambda call, partition: partition > 1)
    assert model is None
    assert reports[0]["replies-accepted"] == 2
    assert "round 1 keeps the model as it is: 2 usable replies, min_replies is 3" in caplog.text


def test_after_a_round_below_min_replies_training_goes_on(run):
    def fails(call, partition):
        return call == 2 and partition > 1

    strategy = SignSGD(learning_rate=0.2, seed=1, min_replies=3)
    model, reports = run(strategy, 4, 60, fails=fails)
    assert [report["replies-accepted"] for report in reports[:3]] == [4, 2, 4]
    assert model.mean() == pytest.approx(OPTIMUM, rel=0.1)
