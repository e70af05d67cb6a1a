"""Levels that clients vote on, one bit a block: runs train as well as with reported sizes."""

from fractions import Fraction

import numpy as np
import pytest
from flwr.app import ConfigRecord

from fedmedian import Adaptive, CodedSteps, Gaussian, Majority, TopUp
from fedmedian.clients import perturb
from fedmedian.rules.scales import LADDER
from fedmedian.wire.scalars import PREFIX

NUM_CLIENTS = 5
MODEL = {
    "0": np.random.default_rng(0).standard_normal((60, 5)).astype(np.float32),
    "1": np.zeros(70, np.float32),
}
GOAL = {"0": 2.0, "1": -1.0}

CASES = {
    "counts": ("SignSGD", TopUp, {}),
    "counts with a coded downlink": ("SignSGD", TopUp, {"downlink": CodedSteps()}),
    "calibrated majority": ("SignSGD", TopUp, {"aggregator": Majority(calibrated=True)}),
    "counts with Adaptive": ("SignSGD", Adaptive, {}),
    "median": ("MedianSGD", TopUp, {}),
    "median with noise at the server": ("MedianSGD", TopUp, {"noise_at": "server"}),
}


@pytest.fixture
def play(run, seeking):
    """Runs a strategy on clients that go half of the way to their goal."""

    def play(api, make, rounds, *mods, **options):
        clients = seeking(api, lambda name, array: GOAL[name], (*mods, perturb), NUM_CLIENTS)
        strategy = api.make(make, fraction_evaluate=0.0, **options)
        return run(strategy, clients, MODEL, NUM_CLIENTS, rounds)

    return play


def distance(model):
    """Return how far a model is from the goal, on average over its parameters."""
    away = [np.abs(array - GOAL[name]).ravel() for name, array in model.items()]
    return float(np.concatenate(away).mean())


@pytest.mark.parametrize(("make", "rule", "options"), CASES.values(), ids=CASES)
def test_a_run_gets_as_near_its_goal_as_with_reported_sizes(make, rule, options, api, play):
    voted, reported = (
        play(api, make, 12, noise=Gaussian(rule(voted=vote)), **options).path
        for vote in (True, False)
    )
    for rounds in (4, 12):
        assert distance(voted[rounds]) < 1.5 * distance(reported[rounds])


@pytest.mark.parametrize("rule", [Adaptive, TopUp])
def test_a_run_with_a_fraction_for_a_factor_is_that_with_the_same_float(rule, message_api, play):
    whole, fraction = (
        play(message_api, "SignSGD", 5, noise=Gaussian(rule(factor, voted=True)))
        for factor in (1.5, Fraction(3, 2))
    )
    assert fraction.reports == whole.reports
    assert np.array_equal(fraction.model["0"], whole.model["0"])


def test_each_client_sends_one_bit_a_block_once_its_size_is_known(message_api, play):
    noise, sent = Gaussian(TopUp(voted=True)), []

    def look(message, context, call_next):
        told = message.content["config"].get(PREFIX + "size-votes.thresholds")
        thresholds = np.full(2, np.nan) if told is None else np.frombuffer(told, np.float32)
        reply = call_next(message, context)
        own = reply.content["fedmedian"]
        reports = [key for key in own if key.startswith(PREFIX + "reports.")]
        assert reports == [PREFIX + "reports.size-votes"]
        votes = np.frombuffer(own[reports[0]], np.float32)
        assert np.isin(votes, (0, 1)).all()
        unknown = np.count_nonzero(np.isnan(thresholds))
        assert votes.size == unknown * LADDER.size + (2 - unknown)
        sent.append(votes.size)
        return reply

    play(message_api, "SignSGD", 6, look, noise=noise)
    assert sent[0] == 2 * LADDER.size
    assert min(sent) == 2


@pytest.mark.parametrize("quantile", [0.5, 0.8, 0.9, 1.0])
def test_a_client_that_always_votes_for_more_does_not_set_the_noise(
    quantile, message_api, play, spoiling
):
    def lie(content):
        key, own = PREFIX + "reports.size-votes", content["fedmedian"]
        more = np.ones_like(np.frombuffer(own[key], np.float32))
        content["fedmedian"] = ConfigRecord({**own, key: more.tobytes()})

    noise = Gaussian(TopUp(quantile=quantile, voted=True))
    outcome = play(message_api, "SignSGD", 30, spoiling(lie, partition=0), noise=noise)
    first, last = (np.array(outcome.reports[number]["noise-scale"]) for number in (1, 30))
    assert np.all(last < first / 2)
    assert distance(outcome.model) < 0.3


@pytest.mark.parametrize("scale", [TopUp(voted=True), Adaptive(3.0, voted=True)], ids=repr)
def test_without_trained_arrays_there_are_no_sizes_to_vote_on(scale, message_api, run):
    model = {"bn.running_mean": np.zeros(3, np.float32)}

    def train(model, partition):
        return {name: array + 1 for name, array in model.items()}, {"num-examples": 1}

    outcome = run(message_api.make("SignSGD", Gaussian(scale)), train, model, 4, 2)
    assert outcome.model["bn.running_mean"].tolist() == [2, 2, 2]


@pytest.mark.parametrize("claim", [2.0, 0.5, -1.0, 1e30, np.nan, np.inf])
def test_a_client_that_claims_more_than_a_bit_is_left_out(
    claim, message_api, play, spoiling, warnings
):
    def lie(content):
        votes = np.frombuffer(content["fedmedian"][PREFIX + "reports.size-votes"], np.float32)
        claimed = np.full(votes.size, claim, np.float32)
        content["fedmedian"][PREFIX + "reports.size-votes"] = claimed.tobytes()

    noise = Gaussian(TopUp(voted=True))
    outcome = play(message_api, "SignSGD", 2, spoiling(lie, 0), noise=noise)
    assert [one["replies-accepted"] for one in outcome.reports.values()] == [NUM_CLIENTS - 1] * 2
    assert warnings("aggregate_train: dropped", 0)[0].endswith("size votes must be 0 or 1")


@pytest.mark.parametrize("vote", [0.0, 1.0])
def test_a_client_that_always_votes_one_way_does_not_make_levels_drift(
    vote, message_api, play, spoiling
):
    def lie(content):
        size = len(content["fedmedian"][PREFIX + "reports.size-votes"])
        claimed = np.full(size // 4, vote, np.float32).tobytes()
        content["fedmedian"][PREFIX + "reports.size-votes"] = claimed

    noise = Gaussian(TopUp(voted=True))
    outcome = play(message_api, "SignSGD", 12, spoiling(lie, 0), noise=noise)
    honest = play(message_api, "SignSGD", 12, noise=noise)
    assert distance(outcome.model) < 2 * distance(honest.model) + 0.02
