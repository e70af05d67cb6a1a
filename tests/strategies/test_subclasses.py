"""Strategies as users extend them, in the ways of Flower's own advanced examples."""

from abc import ABC

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.client_manager import SimpleClientManager
from flwr.serverapp.strategy import FedAvg, Result

from fedmedian.aggregators.base import Aggregator
from fedmedian.aggregators.votes import VoteAggregator
from fedmedian.clients import InProcessGrid, perturb
from fedmedian.rules.noise import Noise
from fedmedian.rules.optimizers import Optimizer
from fedmedian.steps.base import ClientStep
from fedmedian.steps.encodings import Encoding
from fedmedian.strategies import MedianSGD, SignSGD, legacy
from tests.tools.apis import counting_on

MODEL = {"0": np.zeros((20, 30), np.float32), "1": np.zeros(10, np.float32)}
NUM_CLIENTS = 5
STRATEGIES = [SignSGD, MedianSGD, legacy.SignSGD, legacy.MedianSGD]


def in_module(cls):
    return f"{cls.__module__.split('.')[-1]}.{cls.__name__}"


def train(model, partition):
    trained = {name: array + np.float32(partition) for name, array in model.items()}
    return trained, {"num-examples": 1, "loss": 1.0}


class TestMessageApi:
    @pytest.fixture
    def play(self, make_app, as_record, as_arrays):
        def play(strategy, num_rounds=3, seen=None):
            def spy(message, context, call_next):
                if seen is not None and message.metadata.message_type == "train":
                    seen.append(message.content["config"].get("lr"))
                return call_next(message, context)

            grid = InProcessGrid(make_app(train, (perturb, spy)), NUM_CLIENTS)
            result = strategy.start(
                grid, as_record(MODEL), num_rounds, train_config=ConfigRecord({"lr": 0.8})
            )
            return as_arrays(result.arrays)

        return play

    @pytest.fixture(params=[SignSGD, MedianSGD], ids=lambda cls: cls.__name__)
    def base(self, request):
        return request.param

    def test_a_learning_rate_that_falls_in_configure_train_reaches_the_clients(self, base, play):
        class Falling(base):
            def configure_train(self, server_round, arrays, config, grid):
                config["lr"] *= 0.5
                return super().configure_train(server_round, arrays, config, grid)

        seen = []
        model = play(Falling(seed=1), seen=seen)
        assert seen == [0.4] * NUM_CLIENTS + [0.2] * NUM_CLIENTS + [0.1] * NUM_CLIENTS
        np.testing.assert_array_equal(model["0"], play(base(seed=1))["0"])

    def test_what_aggregate_train_returns_can_be_looked_at_and_changed(self, base, play):
        losses = []

        class Halving(base):
            def aggregate_train(self, server_round, replies):
                arrays, metrics = super().aggregate_train(server_round, replies)
                losses.append(metrics["loss"])
                metrics["mine"] = server_round
                return arrays, metrics

        play(Halving(seed=1))
        assert losses == [1.0] * 3

    def test_a_start_of_the_users_own_may_run_the_rounds_itself(self, base, play):
        class OwnLoop(base):
            def start(self, grid, initial_arrays, num_rounds=3, train_config=None, **options):
                arrays, result = initial_arrays, Result()
                for server_round in range(1, num_rounds + 1):
                    messages = self.configure_train(server_round, arrays, train_config, grid)
                    replies = grid.send_and_receive(messages)
                    new, result.train_metrics_clientapp[server_round] = self.aggregate_train(
                        server_round, replies
                    )
                    arrays = arrays if new is None else new
                result.arrays = arrays
                return result

        np.testing.assert_array_equal(play(OwnLoop(seed=1))["0"], play(base(seed=1))["0"])

    def test_a_start_of_the_users_own_may_name_arguments(self, base, play, warnings):
        class OwnLoop(base):
            def start(self, grid, initial_arrays, num_rounds=3, train_config=None, **options):
                result = Result(arrays=initial_arrays)
                for number in range(1, num_rounds + 1):
                    now = {"arrays": result.arrays, "config": train_config, "grid": grid}
                    asked = self.configure_train(server_round=number, **now)
                    replies = grid.send_and_receive(messages=asked)
                    result.arrays, report = self.aggregate_train(
                        server_round=number, replies=iter(replies)
                    )
                    assert (report["replies-accepted"], report["replies-missing"]) == (3, 0)
                    asked = self.configure_evaluate(server_round=number, **now)
                    replies = grid.send_and_receive(messages=asked)
                    assert self.aggregate_evaluate(server_round=number, replies=iter(replies))
                return result

            def aggregate_train(self, server_round, replies):
                return super().aggregate_train(server_round, [*replies][2:])

            def aggregate_evaluate(self, server_round, replies):
                return super().aggregate_evaluate(server_round, [*replies][2:])

        play(OwnLoop(seed=1))
        assert not [text for text in warnings() if "no reply" in text]

    def test_a_start_that_wraps_ours_gets_all_that_ours_returns(self, base, play):
        class Wrapping(base):
            def start(self, *args, **options):
                self.result = super().start(*args, **options)
                return self.result

        strategy = Wrapping(seed=1)
        play(strategy)
        assert len(strategy.result.train_metrics_clientapp) == 3


class TestOlderApi:
    @pytest.fixture(params=[legacy.SignSGD, legacy.MedianSGD], ids=lambda cls: cls.__name__)
    def base(self, request):
        return request.param

    def test_an_aggregate_fit_that_keeps_each_model_sees_those_that_the_run_goes_through(
        self, base, run
    ):
        kept = []

        class Keeping(base):
            def aggregate_fit(self, server_round, results, failures):
                parameters, metrics = super().aggregate_fit(server_round, results, failures)
                kept.append(parameters_to_ndarrays(parameters))
                return parameters, metrics

        outcome = run(Keeping(seed=1), train, MODEL, NUM_CLIENTS, 3)
        for model, arrays in zip(outcome.path[1:], kept, strict=True):
            np.testing.assert_array_equal(model["0"], arrays[0])

    def test_a_configure_fit_of_the_users_own_may_add_to_what_is_told(self, base, run):
        class Telling(base):
            def configure_fit(self, server_round, parameters, client_manager):
                asked = super().configure_fit(server_round, parameters, client_manager)
                for _, ins in asked:
                    ins.config["lr"] = 0.5 / server_round
                return asked

        seen = []

        def spy(message, context, call_next):
            if message.metadata.message_type == "train":
                seen.append(message.content["fitins.config"]["lr"])
            return call_next(message, context)

        own = run(Telling(seed=1), train, MODEL, NUM_CLIENTS, 2, mods=(perturb, spy))
        usual = run(base(seed=1), train, MODEL, NUM_CLIENTS, 2)
        assert seen == [0.5] * NUM_CLIENTS + [0.25] * NUM_CLIENTS
        np.testing.assert_array_equal(own.model["0"], usual.model["0"])


@pytest.mark.parametrize("base", STRATEGIES, ids=in_module)
def test_a_subclass_may_count_rounds_on_for_what_clients_are_told(base, run):
    options = {"fraction_evaluate": 0.0, "seed": 1}
    outcome = run(counting_on(base)(**options), train, MODEL, NUM_CLIENTS, 3)
    assert [*outcome.reports] == [1, 2, 3]
    assert {one["replies-accepted"] for one in outcome.reports.values()} == {NUM_CLIENTS}


class TestNames:
    """A subclass may call its own methods and attributes what it likes."""

    @pytest.mark.parametrize(
        "base",
        [
            *STRATEGIES,
            Aggregator,
            VoteAggregator,
            ClientStep,
            Encoding,
            Noise,
            Optimizer,
            InProcessGrid,
        ],
        ids=in_module,
    )
    def test_no_private_name_of_a_class_to_derive_from_is_in_a_subclasss_way(self, base):
        own = [one for one in base.__mro__ if one.__module__.startswith("fedmedian.")]
        names = {name for one in own for name in vars(one)} - {*dir(FedAvg), *dir(ABC)}
        names |= {*vars(base())} - {*vars(FedAvg())} if base in STRATEGIES else set()
        hidden = ("__", "_fedmedian_", *(f"_{one.__name__.lstrip('_')}__" for one in own))
        assert [one for one in names if one.startswith("_") and not one.startswith(hidden)] == []

    @pytest.mark.parametrize("base", STRATEGIES, ids=in_module)
    def test_helpers_that_are_called_as_ours_change_nothing(self, base, run):
        made = base()
        ours = {name for one in (*base.__mro__, made) for name in vars(one) if "__" in name[2:]}
        names = [f"_{name.split('__')[1]}" for name in ours if not name.startswith("__")]
        assert {"_evaluate", "_aggregate", "_protocol", "_asked"} & {*names}
        methods = type("Methods", (base,), {name: lambda self, *given: "mine" for name in names})
        attributes = base(seed=1)
        vars(attributes).update(dict.fromkeys(names, "mine"))
        usual = run(base(seed=1), train, MODEL, NUM_CLIENTS, 2)
        for own in (methods(seed=1), attributes):
            model = run(own, train, MODEL, NUM_CLIENTS, 2).model
            np.testing.assert_array_equal(model["0"], usual.model["0"])


class Proxy:
    def __init__(self, cid):
        self.cid = cid


class Manager(SimpleClientManager):
    """Three clients, and nobody who waits for more."""

    def num_available(self):
        return 3

    def sample(self, num_clients, min_num_clients=None, criterion=None):
        return [Proxy(str(i)) for i in range(3)]


class TestMessagesWithoutTheInstruction:
    """Subclasses that make messages by themselves, as for any other strategy."""

    def test_a_round_that_our_configure_train_has_not_seen_is_refused_with_what_to_call(
        self, make_app, as_record
    ):
        class OwnMessages(SignSGD):
            def configure_train(self, server_round, arrays, config, grid):
                content = RecordDict({"arrays": arrays, "config": ConfigRecord({**config})})
                return [
                    Message(content, message_type=MessageType.TRAIN, dst_node_id=node)
                    for node in grid.get_node_ids()
                ]

        grid = InProcessGrid(make_app(train), NUM_CLIENTS)
        with pytest.raises(RuntimeError, match=r"must call super\(\)\.configure_train"):
            OwnMessages().start(grid, as_record(MODEL), 1)

    def test_messages_that_drop_our_keys_are_refused_before_anything_is_sent(
        self, make_app, as_record
    ):
        class OwnConfigs(SignSGD):
            def _construct_messages(self, content, node_ids, message_type):
                bare = RecordDict({**content, "config": ConfigRecord({"flow": 1})})
                return super()._construct_messages(bare, node_ids, message_type)

        grid = InProcessGrid(make_app(train), NUM_CLIENTS)
        with pytest.raises(ValueError, match="must keep the keys 'fedmedian"):
            OwnConfigs().start(grid, as_record(MODEL), 1)
        assert grid.bytes_up == 0


class TestWaiting:
    def test_the_older_api_says_how_many_clients_it_sees_while_it_waits(self, older_api, caplog):
        parameters = ndarrays_to_parameters(list(MODEL.values()))
        waiting = older_api.make("SignSGD", min_available_clients=9)
        waiting.configure_fit(1, parameters, Manager())
        assert "Waiting for clients to connect: 3 connected (minimum required: 9)." in caplog.text

    def test_the_older_api_says_nothing_where_there_are_enough(self, older_api, caplog):
        strategy = older_api.make("SignSGD", min_available_clients=3)
        strategy.configure_fit(1, ndarrays_to_parameters(list(MODEL.values())), Manager())
        assert "Waiting" not in caplog.text
