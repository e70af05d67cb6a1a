"""What every strategy promises on both of Flower's APIs: a new one is a new line in `CASES`."""

import copy
import logging
import pickle
from dataclasses import dataclass, field

import numpy as np
import pytest
from flwr.app import ConfigRecord

from fedmedian import (
    Adam,
    Adaptive,
    Agreement,
    ClientMomentum,
    Clip,
    ClippedMean,
    CodedSteps,
    Cosine,
    Counts,
    DivideByLearningRate,
    Gaussian,
    Laplace,
    Majority,
    Momentum,
    Rotation,
    SmoothedMedian,
    Uniform,
)
from fedmedian.clients import InProcessGrid, perturb
from tests.tools.apis import each_case, protocol_of

NUM_CLIENTS = 4
ROUNDS = 2
EXAMPLES = (3, 3, 5, 5)  # in pairs, so that votes can tie with weights as well as without
LOSSES = (0.0, 0.1, 0.2, 0.3)

MODEL = {  # the older API knows arrays by their positions
    "0": np.linspace(-1, 1, 3).astype(np.float16),
    "1": np.arange(60, dtype=np.float32).reshape(2, 30),
    "2": np.linspace(0, 1, 9),
    "3": np.array(0.5, dtype=np.float32),
    "4": np.zeros((0, 4), dtype=np.float32),
    "5": np.array(7, dtype=np.int64),
    "6": np.array([1, 2], dtype=np.uint8),
    "7": np.ones(3, dtype=np.float32),
}
TIED = "1"  # half of the clients pull it one way, half the other
COUNTER = "5"


@dataclass(frozen=True)
class Case:
    """A strategy's configuration, and what to expect of it."""

    strategy: str
    options: dict = field(default_factory=dict)
    random: bool = True  # whether anything in a round is left to chance
    weighted: bool = True
    reports: frozenset = frozenset()

    def make(self, api, **more):
        return api.make(self.strategy, **{"fraction_evaluate": 0.0, **self.options, **more})


VOTES = frozenset({"vote-agreement", "margin"})
SIZES = ("uplink-bytes", "downlink-bytes")
NOISE = frozenset({"signal-to-noise", "signal-to-noise-per-block", "noise-scale"})
NOISY_VOTES = VOTES | NOISE
GAP = frozenset({"median-mean-gap", "margin"})
NOISY_GAP = GAP | NOISE
AGREEMENT = frozenset({"agreement-per-client", "clients-apart"})

CASES = {
    "counts": Case("SignSGD", {"exact": ["7"]}, reports=NOISY_VOTES),
    "majority without noise, ties random": Case(
        "SignSGD",
        {"noise": None, "aggregator": Majority(), "learning_rate": 0.01, "rotation": None},
        reports=VOTES,
    ),
    "majority without noise, ties unchanged": Case(
        "SignSGD",
        {
            "noise": None,
            "aggregator": Majority("unchanged"),
            "learning_rate": 0.01,
            "weighted": False,
            "rotation": None,
        },
        random=False,
        weighted=False,
        reports=VOTES,
    ),
    "calibrated majority, clients' own scales": Case(
        "SignSGD",
        {"noise": Laplace(), "aggregator": Majority(calibrated=True), "scale_from": "client"},
        reports=NOISY_VOTES,
    ),
    "counts with all that a server and a client can do besides": Case(
        "SignSGD",
        {
            "noise": Uniform(Adaptive(2.0, magnitude="max")),
            "client_steps": [DivideByLearningRate(0.1), ClientMomentum(0.9), Clip(5.0)],
            "optimizer": Momentum(),
            "learning_rate": Cosine(1.0, ROUNDS + 1),
            "rotation": None,
            "diagnostics": False,
            "fraction_evaluate": 1.0,
        },
        reports=frozenset({"noise-scale"}),
    ),
    "counts of arrays rotated by themselves": Case(
        "SignSGD", {"rotation": Rotation(8)}, reports=NOISY_VOTES
    ),
    "counts without a rotation": Case(
        "SignSGD", {"noise": Gaussian(), "rotation": None}, reports=NOISY_VOTES
    ),
    "calibrated majority": Case(
        "SignSGD", {"aggregator": Majority(calibrated=True)}, reports=NOISY_VOTES
    ),
    "counts with a coded downlink": Case(
        "SignSGD", {"downlink": CodedSteps(), "exact": ["7"]}, reports=NOISY_VOTES
    ),
    "median with a coded downlink": Case(
        "MedianSGD",
        {"noise": None, "downlink": CodedSteps(), "optimizer": Momentum()},
        weighted=False,
        reports=GAP,
    ),
    "median": Case("MedianSGD", weighted=False, reports=NOISY_GAP),
    "median of arrays rotated and topped up at the server": Case(
        "MedianSGD",
        {"rotation": Rotation(8), "noise_at": "server"},
        weighted=False,
        reports=NOISY_GAP,
    ),
    "median with noise at the server, without a rotation": Case(
        "MedianSGD",
        {
            "noise": Gaussian(0.5),
            "noise_at": "server",
            "optimizer": Adam(),
            "learning_rate": 0.01,
            "rotation": None,
        },
        weighted=False,
        reports=NOISY_GAP,
    ),
    "smoothed median": Case(
        "MedianSGD", {"aggregator": SmoothedMedian()}, weighted=False, reports=GAP | {"noise-scale"}
    ),
    "smoothed median without a rotation": Case(
        "MedianSGD",
        {"noise": Gaussian(), "aggregator": SmoothedMedian(), "rotation": None},
        random=False,
        weighted=False,
        reports=GAP | {"noise-scale"},
    ),
    "counts by agreement": Case(
        "SignSGD", {"aggregator": Agreement(Counts())}, reports=NOISY_VOTES | AGREEMENT
    ),
    "mean of clipped vectors by agreement": Case(
        "MedianSGD",
        {"noise": None, "aggregator": Agreement(ClippedMean())},
        weighted=False,
        reports=GAP | AGREEMENT,
    ),
}

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
SOME = (
    "counts",
    "calibrated majority, clients' own scales",
    "smoothed median",
    "counts by agreement",
    "mean of clipped vectors by agreement",
)
some_in_the_older_api = each_case(
    ("case",), {name: (case,) for name, case in CASES.items()}, older=SOME
)


class ReversingGrid(InProcessGrid):
    """Delivers the replies in the opposite order."""

    def pull_messages(self, message_ids):
        return super().pull_messages(message_ids)[::-1]


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
    trained[TIED] = model[TIED] + np.float32(1 if partition % 2 else -1)
    return trained, {"num-examples": EXAMPLES[partition], "train-loss": LOSSES[partition]}


@pytest.fixture(scope="module")
def play(run):
    """Runs a strategy on this file's clients and model."""

    def play(strategy, num_rounds=ROUNDS, **options):
        return run(strategy, train, MODEL, NUM_CLIENTS, num_rounds, **options)

    return play


@pytest.fixture(scope="module")
def usual(play):
    """Runs a case with seed 1, once for all tests."""
    outcomes = {}

    def usual(case, api):
        key = id(case), api.name
        if key not in outcomes:
            outcomes[key] = play(case.make(api))
        return outcomes[key]

    return usual


@every_case
def test_a_new_model_is_finite_and_has_the_old_ones_names_shapes_and_dtypes(case, api, usual, bits):
    for old, new in zip(usual(case, api).path, usual(case, api).path[1:], strict=False):
        assert [(name, a.shape, a.dtype) for name, a in new.items()] == [
            (name, a.shape, a.dtype) for name, a in old.items()
        ]
        assert all(np.isfinite(array).all() for array in new.values())
        assert bits(new) != bits(old)


@some_in_the_older_api
def test_a_seed_decides_every_bit_in_whatever_order_replies_come(case, api, play, usual, bits):
    first, again = usual(case, api), play(case.make(api), grid=ReversingGrid)
    assert bits(again.model) == bits(first.model)
    assert again.reports == first.reports


@some_in_the_older_api
def test_a_strategy_that_is_used_again_starts_afresh(case, api, play, usual, bits):
    strategy = case.make(api)
    play(strategy)
    first, again = usual(case, api), play(strategy)
    assert bits(again.model) == bits(first.model)
    assert again.reports == first.reports


@some_in_the_older_api
def test_another_seed_and_no_seed_give_other_models_only_where_chance_plays_a_part(
    case, api, play, usual, bits
):
    # Equal by chance with probability 2⁻⁶⁰ at most: of as many coins for ties.
    models = [usual(case, api).model, *(play(case.make(api, seed=s)).model for s in (2, None))]
    assert len({str(bits(model)) for model in models}) == (3 if case.random else 1)


@every_case
def test_every_round_is_reported(case, api, usual):
    outcome = usual(case, api)
    assert sorted(outcome.reports) == list(range(1, ROUNDS + 1))
    for report in outcome.reports.values():
        counted = ("replies-accepted", "replies-rejected", "replies-missing")
        assert [report[name] for name in counted] == [NUM_CLIENTS, 0, 0]
        assert 0 <= report["replies-out-of-proportion"] < NUM_CLIENTS / 2
        counted += ("replies-out-of-proportion",)
        own = set(report) - {*counted, *SIZES, "train-loss", "majority-contradicts-mean"}
        assert own == case.reports
        assert 0 <= report.get("vote-agreement", 0) <= 1
        assert report.get("signal-to-noise", 0) >= 0
        assert report.get("median-mean-gap", 0) >= 0
        assert report["train-loss"] == pytest.approx(np.average(LOSSES, weights=EXAMPLES))


@every_case
def test_counters_are_combined_and_never_voted_on(case, api, usual):
    # Client i has added i: 7 + 1.75 by examples is 9, 7 + 1.5 rounds to the even 8.
    assert usual(case, api).path[1][COUNTER] == (9 if case.weighted else 8)


@every_case
def test_both_apis_and_numpy_clients_give_the_same_model_and_reports(
    case, message_api, numpy_clients, older_api, play, usual, bits
):
    def without_sizes(reports):
        # The older API counts arrays alone, not the byte strings beside them.
        return {
            number: {name: value for name, value in report.items() if name not in SIZES}
            for number, report in reports.items()
        }

    first = usual(case, message_api)
    of_numpy_clients, of_older_api = play(case.make(numpy_clients)), usual(case, older_api)
    assert bits(of_numpy_clients.model) == bits(of_older_api.model) == bits(first.model)
    assert of_numpy_clients.reports == first.reports
    assert without_sizes(of_older_api.reports) == without_sizes(first.reports)


@pytest.mark.parametrize("mods", [(), None], ids=["unmodified clients", "clients with the mod"])
def test_a_strategy_without_noise_at_the_client_takes_either_kind_of_client(
    mods, any_client, play, bits
):
    options = {} if mods is None else {"mods": mods}
    outcome = play(any_client.make("MedianSGD", noise_at="server"), **options)
    expected = play(any_client.make("MedianSGD", noise_at="server"))
    assert bits(outcome.model) == bits(expected.model)
    assert outcome.reports[1]["replies-accepted"] == NUM_CLIENTS


def test_the_callers_configs_reach_the_clients_without_our_keys_and_training_changes_none(
    any_client, play
):
    seen = {"train": [], "evaluate": []}

    def listen(message, context, call_next):
        (config,) = (
            record for key, record in message.content.config_records.items() if "config" in key
        )
        seen[message.metadata.message_type].append(dict(config))
        return call_next(message, context)

    configs = {"train": {"epochs": 3, "raw": b"\x00"}, "evaluate": {"batch": 8}}
    kind = dict if "older" in any_client.name else ConfigRecord
    passed = {name: kind(config) for name, config in configs.items()}
    play(
        any_client.make("SignSGD"),
        mods=(perturb, listen),
        train_config=passed["train"],
        evaluate_config=passed["evaluate"],
    )
    assert dict(passed["train"]) == configs["train"]
    for name, config in configs.items():
        assert len(seen[name]) == ROUNDS * NUM_CLIENTS
        for received in seen[name]:
            received.pop("server-round", None)  # the Message API's own
            assert received == config


def pickled(strategy):
    return pickle.loads(pickle.dumps(strategy))


@every_case
def test_copies_of_a_strategy_from_before_in_and_after_a_run_play_that_run_anew(
    case, message_api, usual, play, bits
):
    strategy = case.make(message_api)
    copies = [pickled(strategy)]

    def copy_on_the_way(contents, weighted_by_key):
        strategy.train_metrics_aggr_fn = default
        copies.append(pickled(strategy))
        return default(contents, weighted_by_key)

    default, strategy.train_metrics_aggr_fn = strategy.train_metrics_aggr_fn, copy_on_the_way
    play(strategy)
    copies.append(copy.deepcopy(pickled(strategy)))
    assert len(copies) == 3
    for one in copies:
        outcome, expected = play(one), usual(case, message_api)
        assert bits(outcome.model) == bits(expected.model)
        assert outcome.reports == expected.reports


@pytest.mark.parametrize("case", [CASES[name] for name in SOME], ids=SOME)
def test_copies_of_a_strategy_of_the_older_api_play_the_run_of_the_original(
    case, older_api, usual, play, bits
):
    def make():
        return case.make(older_api, train_metrics_aggr_fn=None, evaluate_metrics_aggr_fn=None)

    strategy = make()
    copies = [pickled(strategy)]
    play(strategy)
    strategy.evaluate_fn = None  # the test's own closure
    copies.append(copy.deepcopy(pickled(strategy)))
    for one in copies:
        assert bits(play(one).model) == bits(usual(case, older_api).model)


def test_a_copy_and_its_original_have_no_state_in_common(api, play):
    strategy = api.make("SignSGD", optimizer=Adam())
    play(strategy)
    copied = copy.deepcopy(strategy)
    before = pickle.dumps(protocol_of(strategy))
    play(copied, num_rounds=3)
    assert pickle.dumps(protocol_of(strategy)) == before


def test_a_strategy_says_what_it_is_made_of(api, caplog):
    strategy = api.make(
        "MedianSGD",
        Laplace(0.125),
        optimizer=Adam(tau=0.5),
        client_steps=[Clip(3.0)],
    )
    if api.name == "Message API":
        with caplog.at_level(logging.INFO):
            strategy.summary()
        text = caplog.text
    else:
        text = repr(strategy)
    for chosen in (repr(Laplace(0.125)), repr(Adam(tau=0.5)), "norm=3.0"):
        assert chosen in text
