"""Copies of a strategy that keeps something outside of itself: a folder, a budget."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import numpy as np
import pytest
from flwr.app import ConfigRecord

from fedmedian import Clip, CodedSteps, Gaussian, SecureSum
from fedmedian.clients import InProcessGrid
from fedmedian.privacy.accounting import PrivacyBudget
from fedmedian.strategies import Checkpoint, SignSGD
from tests.tools.apis import protocol_of

MODEL = {"0": np.zeros((20, 30), np.float32)}
NUM_CLIENTS = 3
COPIES = {
    "pickle": lambda strategy: pickle.loads(pickle.dumps(strategy)),
    "deepcopy": copy.deepcopy,
}
copied = pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)


def train(model, partition):
    trained = {name: array + np.float32(partition) for name, array in model.items()}
    return trained, {"num-examples": 1}


@pytest.fixture
def play(run):
    def play(strategy, num_rounds):
        outcome = run(strategy, train, MODEL, NUM_CLIENTS, num_rounds)
        if hasattr(strategy, "evaluate_fn"):
            strategy.evaluate_fn = None  # the test's own closure
        return outcome

    return play


@pytest.fixture
def make(api):
    """Makes a strategy that can be pickled, with functions that can."""

    def make(**options):
        functions = {"train_metrics_aggr_fn": None, "evaluate_metrics_aggr_fn": None}
        return api.make("SignSGD", **functions, **options)

    return make


@pytest.mark.parametrize("options", [{}, {"downlink": CodedSteps()}], ids=["whole", "coded"])
def test_a_strategy_keeps_nothing_of_the_runs_before_the_last(options, make, play):
    strategy, sizes = make(**options), []
    for _ in range(4):
        play(strategy, 1)
        sizes.append(len(pickle.dumps(strategy)))
    assert max(sizes) < 1.1 * sizes[0]


@copied
def test_a_copy_resumes_from_the_checkpoint_of_the_original(make_copy, make, play, tmp_path, bits):
    strategy = make(checkpoint=Checkpoint(tmp_path))
    play(strategy, 2)
    resumed = play(make_copy(strategy), 4)
    assert bits(resumed.model) == bits(play(make(), 4).model)


@copied
def test_a_copy_does_not_hold_the_folder_that_the_original_holds(make_copy, make, tmp_path):
    strategy = make(checkpoint=Checkpoint(tmp_path))
    protocol = protocol_of(strategy)
    protocol.open(MODEL)
    copied_one = make_copy(strategy)
    protocol_of(copied_one).journal.release()
    with pytest.raises(RuntimeError, match="in use"):
        in_another_thread(lambda: protocol_of(make(checkpoint=Checkpoint(tmp_path))).open(MODEL))
    protocol.journal.release()


@copied
def test_a_copy_that_is_made_in_mid_round_ends_the_round_as_the_original_would(
    make_copy, message_api, make_app, as_record, as_arrays, bits, warnings
):
    models = []
    for copy_it in (lambda strategy: strategy, make_copy):
        strategy, grid = message_api.make("SignSGD"), InProcessGrid(make_app(train), NUM_CLIENTS)
        asked = strategy.configure_train(1, as_record(MODEL), ConfigRecord(), grid)
        strategy = copy_it(strategy)
        arrays, metrics = strategy.aggregate_train(1, grid.send_and_receive(asked))
        assert metrics["replies-accepted"] == NUM_CLIENTS
        models.append(bits(as_arrays(arrays)))
    assert models[0] == models[1]
    assert not warnings("round 1")


@copied
def test_a_copy_has_spent_what_the_original_had(make_copy, make, play):
    budget = PrivacyBudget(epsilon=50.0, delta=1e-5)
    strategy = make(
        noise=Gaussian(5.0),
        client_steps=[Clip(1.0)],
        privacy_budget=budget,
        seed=None,
        weighted=False,
        fraction_evaluate=0.0,
        max_failed_rounds=None,
    )
    first = play(strategy, 2).reports
    second = play(make_copy(strategy), 1).reports
    assert second[1]["epsilon"] > first[2]["epsilon"] > first[1]["epsilon"]


class Unlocked:
    """Leaves a lock out of copies."""

    lock = None

    def __getstate__(self):
        return {**vars(self), "lock": None}


class MixedIn(SignSGD, Unlocked):
    """Has the mixin after the strategy."""


class MixedInFirst(Unlocked, SignSGD):
    """Has it before."""


class Slotted(SignSGD):
    """Has an attribute that is not in its dict."""

    __slots__ = ("own",)


class TestSubclasses:
    """A subclass says what a copy of it has, as where it is one of FedAvg."""

    @copied
    @pytest.mark.parametrize("subclass", [MixedIn, MixedInFirst])
    def test_it_leaves_out_what_cannot_be_copied(self, make_copy, subclass):
        strategy = subclass(seed=1)
        strategy.lock = Lock()
        assert make_copy(strategy).lock is None

    @copied
    def test_its_slots_are_copied(self, make_copy):
        strategy = Slotted(seed=1)
        strategy.own = "kept"
        assert make_copy(strategy).own == "kept"

    @copied
    @pytest.mark.parametrize("cls", [SignSGD, MixedIn, MixedInFirst, Slotted])
    def test_it_can_be_copied_by_evaluate_fn(self, make_copy, cls, make_app, as_record):
        strategy, copies = cls(secure=SecureSum(), weighted=False, fraction_evaluate=0.0), []
        strategy.start(
            InProcessGrid(make_app(train), NUM_CLIENTS),
            as_record(MODEL),
            num_rounds=2,
            evaluate_fn=lambda server_round, arrays: copies.append(make_copy(strategy)),
        )
        assert len(copies) == 3


class TestSecureSums:
    """The server asks clients during a round, so it keeps the grid, which cannot be copied."""

    @pytest.fixture
    def make(self, message_api):
        functions = {"train_metrics_aggr_fn": None, "evaluate_metrics_aggr_fn": None}
        secure = {"secure": SecureSum(), "weighted": False}
        return lambda: message_api.make_trainer("SignSGD", **secure, **functions)

    @pytest.fixture
    def ask(self, as_record):
        def ask(strategy, server_round, grid):
            record = as_record(MODEL)
            return strategy.configure_train(server_round, record, ConfigRecord(), grid)

        return ask

    @copied
    def test_a_copy_that_is_made_between_rounds_continues_as_the_original_would(
        self, make_copy, make, make_app, ask, as_arrays, bits
    ):
        models = []
        for copy_it in (lambda strategy: strategy, make_copy):
            strategy, grid = make(), InProcessGrid(make_app(train), NUM_CLIENTS)
            strategy.aggregate_train(1, grid.send_and_receive(ask(strategy, 1, grid)))
            strategy = copy_it(strategy)
            replies = grid.send_and_receive(ask(strategy, 2, grid))
            arrays, metrics = strategy.aggregate_train(2, replies)
            assert metrics["replies-accepted"] == NUM_CLIENTS
            models.append(bits(as_arrays(arrays)))
        assert models[0] == models[1]

    @copied
    def test_a_copy_that_is_made_in_mid_round_names_the_remedy(
        self, make_copy, make, make_app, ask
    ):
        strategy, grid = make(), InProcessGrid(make_app(train), NUM_CLIENTS)
        replies = grid.send_and_receive(ask(strategy, 1, grid))
        with pytest.raises(RuntimeError, match="copy strategies between rounds"):
            make_copy(strategy).aggregate_train(1, replies)


def in_another_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()
