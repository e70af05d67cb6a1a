"""InProcessGrid: a simulation without Ray that behaves like one."""

import copy
import pickle
from asyncio import CancelledError
from itertools import product
from threading import Condition

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.common.constant import ErrorCode
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg as OlderFedAvg
from flwr.serverapp.strategy import FedAvg, FedMedian, FedXgbCyclic
from flwr.supercore.run import Run

from fedmedian.clients import InProcessGrid
from fedmedian.records import serialized_sizes
from fedmedian.strategies import MedianSGD, SignSGD, legacy


def app_of(answer):
    """A ClientApp that answers training messages with the content that a function returns."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        return Message(answer(message, context), reply_to=message)

    return app


def array(values):
    return Array(np.asarray(values))


def record_dict(**arrays):
    return {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1})}


def metrics(**values):
    return RecordDict({"metrics": MetricRecord(values)})


def echo(message, context):
    arrays = message.content["arrays"]
    return RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})


def to_all(grid, content=None):
    content = content or RecordDict()
    return [grid.create_message(content, MessageType.TRAIN, n, "1") for n in grid.get_node_ids()]


def answers(grid, content=None):
    return [reply.content["metrics"] for reply in grid.send_and_receive(to_all(grid, content))]


class TestNodes:
    def test_each_node_has_an_id_and_a_partition_of_its_own(self):
        def whoami(message, context):
            config = context.node_config
            return metrics(
                id=context.node_id,
                partition=config["partition-id"],
                partitions=config["num-partitions"],
            )

        grid = InProcessGrid(app_of(whoami), 3)
        found = answers(grid)
        assert [one["partition"] for one in found] == [0, 1, 2]
        assert {one["partitions"] for one in found} == {3}
        assert [one["id"] for one in found] == grid.get_node_ids()
        assert len(set(grid.get_node_ids())) == 3

    def test_each_node_sees_the_run_configuration_and_cannot_change_another_nodes(self):
        def spoil(message, context):
            seen = context.run_config["lr"]
            context.run_config["lr"] = -1.0
            return metrics(lr=seen)

        config = {"lr": 0.5}
        grid = InProcessGrid(app_of(spoil), 3, run_config=config)
        assert [one["lr"] for one in answers(grid)] == [0.5] * 3
        assert config == {"lr": 0.5}

    def test_each_node_keeps_its_state_from_round_to_round(self):
        def count(message, context):
            old = context.state.metric_records.get("count", {"n": 0})["n"]
            new = old + 1 + context.node_config["partition-id"]
            context.state["count"] = MetricRecord({"n": new})
            return metrics(n=new)

        grid = InProcessGrid(app_of(count), 3)
        assert [one["n"] for one in answers(grid)] == [1, 2, 3]
        assert [one["n"] for one in answers(grid)] == [2, 4, 6]

    def test_the_nodes_of_two_grids_share_no_state(self):
        def count(message, context):
            context.state["seen"] = MetricRecord({"n": len(context.state) + 1})
            return metrics(n=len(context.state))

        app = app_of(count)
        assert answers(InProcessGrid(app, 1)) == answers(InProcessGrid(app, 1))


class TestIsolation:
    """What one side does to its own records stays there."""

    @pytest.fixture
    def content(self, as_record):
        return RecordDict(
            {
                "arrays": as_record({"x": np.zeros(3)}),
                "config": ConfigRecord({"words": ["a", "b"], "n": 1}),
            }
        )

    def test_a_client_cannot_change_what_the_server_or_another_client_has(self, content):
        def spoil(message, context):
            intact = (
                list(message.content) == ["arrays", "config"]
                and list(message.content["arrays"]) == ["x"]
                and dict(message.content["config"]) == {"words": ["a", "b"], "n": 1}
            )
            message.content["arrays"].pop("x")
            message.content["config"]["words"].append("c")
            message.content["config"]["n"] = 2
            del message.content["config"]
            message.content["more"] = MetricRecord({"n": 1})
            return metrics(intact=int(intact))

        grid = InProcessGrid(app_of(spoil), 3)
        assert [one["intact"] for one in answers(grid, content)] == [1, 1, 1]
        assert list(content) == ["arrays", "config"]
        assert list(content["arrays"]) == ["x"]
        assert dict(content["config"]) == {"words": ["a", "b"], "n": 1}

    def test_the_server_cannot_change_what_a_client_keeps(self, content):
        def keep(message, context):
            if "kept" not in context.state:
                context.state["kept"] = message.content["arrays"]
            return RecordDict({"arrays": context.state["kept"]})

        grid = InProcessGrid(app_of(keep), 1)
        for _ in range(2):
            (reply,) = grid.send_and_receive(to_all(grid, content))
            assert list(reply.content["arrays"]) == ["x"]
            reply.content["arrays"].pop("x")

    @pytest.mark.parametrize("strategy", [FedAvg, FedMedian])
    def test_flowers_strategies_work_with_clients_that_echo(self, strategy, as_record):
        initial = as_record({"x": np.arange(3, dtype=np.float32)})
        grid = InProcessGrid(app_of(echo), 3)
        result = strategy(fraction_evaluate=0.0).start(grid, initial, 2)
        np.testing.assert_array_equal(result.arrays["x"].numpy(), [0, 1, 2])
        np.testing.assert_array_equal(initial["x"].numpy(), [0, 1, 2])


class OfItsOwn(BaseException):
    """Nothing that an app is expected to raise."""


RAISED = [SystemExit(3), GeneratorExit("x"), CancelledError(), OfItsOwn("odd"), StopIteration(1)]


class TestFailures:
    def test_an_exception_in_an_app_becomes_an_error_reply_and_the_other_nodes_go_on(self):
        def unlucky(message, context):
            if context.node_config["partition-id"] == 1:
                raise ValueError("out of luck")
            return metrics(n=1)

        grid = InProcessGrid(app_of(unlucky), 3)
        messages = to_all(grid)
        replies = grid.send_and_receive(messages)
        assert [reply.has_error() for reply in replies] == [False, True, False]
        failed = replies[1]
        assert failed.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        assert "ValueError" in failed.error.reason
        assert "out of luck" in failed.error.reason
        assert failed.metadata.reply_to_message_id == messages[1].metadata.message_id

    def test_a_reply_that_could_not_be_sent_becomes_an_error_reply(self):
        def unlucky(message, context):
            return metrics(n=10**30 if context.node_config["partition-id"] == 1 else 1)

        grid = InProcessGrid(app_of(unlucky), 3)
        replies = grid.send_and_receive(to_all(grid))
        assert [reply.has_error() for reply in replies] == [False, True, False]
        assert replies[1].error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        assert grid.bytes_up == sum(serialized_sizes(replies))

    def test_its_text_has_its_nodes_and_bytes(self):
        grid = InProcessGrid(app_of(lambda message, context: metrics(n=1)), 3)
        grid.send_and_receive(to_all(grid))
        sizes = f"bytes_up={grid.bytes_up:,}, bytes_down={grid.bytes_down:,}"
        assert repr(grid) == f"<InProcessGrid of 3 nodes, {sizes}>"

    def test_an_answer_that_is_no_reply_becomes_an_error_reply(self):
        app = ClientApp()
        app.train()(lambda message, context: None)
        grid = InProcessGrid(app, 1)
        (reply,) = grid.send_and_receive(to_all(grid))
        assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION

    def test_an_exception_in_an_app_is_logged_with_its_traceback(self, caplog):
        def unlucky(message, context):
            raise ValueError("out of luck")

        grid = InProcessGrid(app_of(unlucky), 1)
        grid.send_and_receive(to_all(grid))
        (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
        first, *_, last = (
            record.getMessage().removeprefix("ClientApp raised an exception\n").split("\n")
        )
        assert (first, last) == ("Traceback (most recent call last):", "ValueError: out of luck")

    def test_one_error_of_all_nodes_in_all_rounds_is_logged_with_one_traceback(self, caplog):
        def unlucky(message, context):
            partition = context.node_config["partition-id"]
            if partition < 3:
                raise ValueError(f"no file {partition}")
            if partition < 5:
                raise KeyError("label")
            raise ValueError("another line")

        grid = InProcessGrid(app_of(unlucky), 10)
        for _ in range(3):
            replies = grid.send_and_receive(to_all(grid))
            assert all(reply.has_error() for reply in replies)
            assert "no file 2" in replies[2].error.reason
        last = [r.getMessage().split("\n")[-1] for r in caplog.records if r.levelname == "ERROR"]
        assert last == ["ValueError: no file 0", "KeyError: 'label'", "ValueError: another line"]

    @pytest.mark.parametrize("raised", RAISED, ids=repr)
    def test_whatever_an_app_raises_but_ctrl_c_becomes_an_error_reply(self, raised):
        def unlucky(message, context):
            if context.node_config["partition-id"] == 1:
                raise raised
            return metrics(n=1)

        grid = InProcessGrid(app_of(unlucky), 3)
        replies = grid.send_and_receive(to_all(grid))
        assert [reply.has_error() for reply in replies] == [False, True, False]
        assert replies[1].error.reason == f"{type(raised).__name__}: {raised}"
        assert grid.bytes_up == sum(serialized_sizes(replies))

    @pytest.mark.parametrize("failure", [RuntimeError(), SystemExit()], ids=repr)
    def test_an_exception_that_cannot_be_printed_becomes_an_error_reply_with_its_type(
        self, failure
    ):
        class Unprintable(Exception):
            def __str__(self):
                raise failure

            __repr__ = __str__

        def unlucky(message, context):
            raise Unprintable

        grid = InProcessGrid(app_of(unlucky), 1)
        (reply,) = grid.send_and_receive(to_all(grid))
        assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        assert "Unprintable" in reply.error.reason

    def test_an_exception_that_no_encoding_takes_becomes_an_error_reply_that_can_be_sent(self):
        def unlucky(message, context):
            raise FileNotFoundError("lone \ud800")

        grid = InProcessGrid(app_of(unlucky), 1)
        (reply,) = grid.send_and_receive(to_all(grid))
        assert reply.error.reason == r"FileNotFoundError: lone \ud800"
        assert grid.bytes_up == sum(serialized_sizes([reply]))

    def test_a_message_to_an_unknown_node_is_answered_with_an_error(self):
        grid = InProcessGrid(app_of(echo), 1)
        message = grid.create_message(RecordDict(), MessageType.TRAIN, 987, "1")
        (reply,) = grid.send_and_receive([message])
        assert reply.error.code == ErrorCode.NODE_UNAVAILABLE

    def test_an_app_without_the_function_that_is_asked_for_answers_with_an_error(self):
        grid = InProcessGrid(app_of(echo), 1)
        (node,) = grid.get_node_ids()
        message = grid.create_message(RecordDict(), MessageType.EVALUATE, node, "1")
        (reply,) = grid.send_and_receive([message])
        assert reply.has_error()

    def test_ctrl_c_in_an_app_ends_the_run(self):
        def interrupt(message, context):
            raise KeyboardInterrupt

        grid = InProcessGrid(app_of(interrupt), 1)
        with pytest.raises(KeyboardInterrupt):
            grid.send_and_receive(to_all(grid))


class TestBytes:
    def test_a_grid_counts_the_bytes_of_all_messages_as_serialized(self):
        def answer(message, context):
            size = 100 * (1 + context.node_config["partition-id"])
            return RecordDict({"arrays": ArrayRecord({"x": Array(np.zeros(size))})})

        grid = InProcessGrid(app_of(answer), 3)
        down = up = 0
        for _ in range(2):
            messages = to_all(grid, RecordDict({"config": ConfigRecord({"n": 1})}))
            replies = grid.send_and_receive(messages)
            down += sum(serialized_sizes(messages))
            up += sum(serialized_sizes(replies))
            assert (grid.bytes_down, grid.bytes_up) == (down, up)
        assert up > 2 * 8 * (100 + 200 + 300)

    @pytest.mark.parametrize(
        "content",
        [
            record_dict(x=array([0.5] * 40), y=array([0.5] * 40), z=array([0.5] * 41)),
            record_dict(x=array([0.5] * 40), y=array([0.25] * 40)),
            record_dict(x=array(np.zeros((3, 4))), y=array(np.zeros((4, 3))), of=array([1])),
            record_dict(x=Array("u1", (1,), "raw", b"a"), y=Array("u1", (1,), "raw", b"b")),
            record_dict(long=array(np.zeros(1 << 20)), as_long=array(np.ones(1 << 20))),
            record_dict(x=array([0.5])) | {"same": ArrayRecord({"x": array([0.5])})},
            record_dict(x=array([0.5])) | {"none": ArrayRecord()},
            record_dict(),
        ],
        ids=[
            "equal",
            "unequal",
            "shapes",
            "tiny",
            "several chunks",
            "equal records",
            "empty record",
            "none",
        ],
    )
    def test_arrays_are_sent_once_where_flower_finds_them_equal(self, content):
        grid = InProcessGrid(app_of(lambda *_: RecordDict(content)), 2)
        replies = grid.send_and_receive(to_all(grid))
        assert all(list(reply.content) == list(content) for reply in replies)
        assert grid.bytes_up == sum(serialized_sizes(replies))

    def test_a_grid_counts_the_bytes_of_error_replies(self):
        def fail(message, context):
            raise ValueError("out of luck")

        grid = InProcessGrid(app_of(fail), 1)
        (reply,) = grid.send_and_receive(to_all(grid))
        assert grid.bytes_up == sum(serialized_sizes([reply])) > 0


class TestProtocol:
    """What Flower expects of a Grid."""

    def test_nodes_answer_in_the_order_of_their_partitions_whichever_is_asked_first(self):
        asked = []

        def note(message, context):
            asked.append(context.node_config["partition-id"])
            return RecordDict()

        grid = InProcessGrid(app_of(note), 4)
        grid.send_and_receive([to_all(grid)[index] for index in (2, 0, 3, 1)])
        assert asked == [0, 1, 2, 3]

    def test_a_grids_replies_come_in_the_order_of_their_messages(self):
        grid = InProcessGrid(app_of(echo_partition), 4)
        messages = to_all(grid)[::-1]
        replies = grid.send_and_receive(messages)
        assert [r.content["metrics"]["n"] for r in replies] == [3, 2, 1, 0]
        assert [r.metadata.reply_to_message_id for r in replies] == [
            m.metadata.message_id for m in messages
        ]
        assert [r.metadata.src_node_id for r in replies] == [
            m.metadata.dst_node_id for m in messages
        ]

    def test_a_grid_takes_a_generator_of_messages(self):
        grid = InProcessGrid(app_of(echo_partition), 2)
        assert len(grid.send_and_receive(message for message in to_all(grid))) == 2

    def test_replies_to_pushed_messages_can_be_pulled_once(self):
        grid = InProcessGrid(app_of(echo_partition), 2)
        first, second = grid.push_messages(to_all(grid))
        (reply,) = grid.pull_messages([second])
        assert reply.content["metrics"]["n"] == 1
        assert [r.content["metrics"]["n"] for r in grid.pull_messages([first, second])] == [0]
        assert grid.pull_messages([first, second, "unknown"]) == []

    def test_every_message_has_an_id_of_its_own(self):
        grid = InProcessGrid(app_of(echo_partition), 3)
        pushed = [*grid.push_messages(to_all(grid)), *grid.push_messages(to_all(grid))]
        replies = [reply.metadata.message_id for reply in grid.pull_messages(pushed)]
        assert len({*pushed, *replies}) == 12

    def test_the_run_of_a_grid_can_be_set(self):
        grid = InProcessGrid(app_of(echo), 1)
        run = Run.create_empty(7)
        grid.set_run(run)
        assert grid.run is run


def echo_partition(message, context):
    return metrics(n=context.node_config["partition-id"])


class TestNodesThatCannotJoin:
    """A strategy that waits for more nodes than there are would wait for ever."""

    @pytest.fixture(autouse=True)
    def _no_patience(self, monkeypatch):
        def give_up(*_, **__):
            raise AssertionError("waits")

        monkeypatch.setattr("flwr.serverapp.strategy.strategy_utils.sleep", give_up)
        monkeypatch.setattr(Condition, "wait_for", give_up)

    @pytest.fixture
    def grid_of(self, make_app):
        def train(model, partition):
            return model, {"num-examples": 1}

        return lambda num_nodes: InProcessGrid(make_app(train), num_nodes)

    TOO_FEW = (
        (1, 2, {}),
        (5, 10, {"available": 10}),
        (5, 6, {"available": 6, "train": 6}),
        (1, 2, {"available": 2, "train": 1, "evaluate": 1}),
        (1, 2, {"available": 1}),  # of whom the older API samples nobody, without waiting
    )

    @pytest.mark.parametrize(
        ("strategy", "num_nodes", "waits_for", "minima"),
        [
            (FedXgbCyclic, *TOO_FEW[0]),
            *((s, *few) for s, few in product([FedAvg, SignSGD, MedianSGD], TOO_FEW)),
        ],
    )
    def test_it_is_ended_with_the_arguments_to_set(
        self, strategy, num_nodes, waits_for, minima, grid_of, as_record
    ):
        made = strategy(**{f"min_{name}_nodes": number for name, number in minima.items()})
        arguments = "min_available_nodes, min_train_nodes and min_evaluate_nodes"
        expected = f"{arguments} must be <= {num_nodes}, .* waits for {waits_for}$"
        with pytest.raises(ValueError, match=expected):
            made.start(grid_of(num_nodes), as_record({"x": np.zeros(3, np.float32)}), 1)

    @pytest.mark.parametrize(("num_nodes", "waits_for", "minima"), TOO_FEW[:-1])
    @pytest.mark.parametrize("strategy", [OlderFedAvg, legacy.SignSGD, legacy.MedianSGD])
    def test_so_it_is_in_the_older_api(self, strategy, num_nodes, waits_for, minima, grid_of):
        words = {"available": "available", "train": "fit", "evaluate": "evaluate"}
        own = {f"min_{words[name]}_clients": number for name, number in minima.items()}
        made = strategy(initial_parameters=ndarrays_to_parameters([np.zeros(3)]), **own)
        arguments = "min_available_clients, min_fit_clients and min_evaluate_clients"
        expected = f"{arguments} must be <= {num_nodes}, .* waits for {waits_for}$"
        components = ServerAppComponents(strategy=made, config=ServerConfig(num_rounds=1))
        server_app = ServerApp(server_fn=lambda context: components)
        with pytest.raises(ValueError, match=expected):
            server_app(grid_of(num_nodes), Context(1, 1, {}, RecordDict(), {}))

    @pytest.mark.parametrize("strategy", [FedAvg, SignSGD, MedianSGD])
    def test_one_node_is_enough_for_a_strategy_that_says_so(self, strategy, grid_of, as_record):
        made = strategy(min_available_nodes=1, min_train_nodes=1, min_evaluate_nodes=1)
        made.start(grid_of(1), as_record({"x": np.zeros(3, np.float32)}), 2)

    def test_whoever_waits_for_nobody_is_told_who_is_there_as_often_as_it_likes(self, grid_of):
        grid = grid_of(1)
        assert [list(grid.get_node_ids()) for _ in range(9)] == [[2]] * 9


@pytest.mark.parametrize("strategy", [FedAvg, FedMedian, SignSGD, MedianSGD])
def test_what_a_run_returns_and_began_with_can_be_pickled_and_copied(
    strategy, make_app, as_record, as_arrays
):
    def train(model, partition):
        return {name: array + 1 for name, array in model.items()}, {"num-examples": 1}

    initial = as_record({"x": np.zeros((20, 30), np.float32)})
    result = strategy().start(InProcessGrid(make_app(train), 3), initial, 2)
    for made, again in (
        (result, pickle.loads(pickle.dumps(result))),
        (result, copy.deepcopy(result)),
    ):
        np.testing.assert_array_equal(as_arrays(again.arrays)["x"], as_arrays(made.arrays)["x"])
        assert again.train_metrics_clientapp == made.train_metrics_clientapp
    assert pickle.loads(pickle.dumps(initial)) == initial == copy.deepcopy(initial)


@pytest.mark.parametrize(
    ("argument", "wrong", "values"),
    [
        ("client_app", TypeError, (lambda: None, None)),
        ("num_nodes", ValueError, (0, -1)),
        ("num_nodes", TypeError, (2.0, "2", True)),
        ("run_config", TypeError, (3, "lr=0.1", ["lr"])),
    ],
)
def test_an_argument_that_a_grid_cannot_use_is_named(argument, wrong, values):
    for value in values:
        with pytest.raises(wrong, match=f"^{argument} must "):
            InProcessGrid(**{"client_app": ClientApp(), "num_nodes": 2, argument: value})


def test_a_mod_that_answers_the_apps_reply_answers_for_its_node(make_app):
    """As Flower's mods do that refuse what the app has sent."""

    def refuse(message, context, call_next):
        return Message(Error(99, "not so"), reply_to=call_next(message, context))

    app = ClientApp(mods=[refuse])

    @app.query()
    def query(message, context):
        return Message(RecordDict(), reply_to=message)

    grid = InProcessGrid(app, 3)
    asked = [
        Message(RecordDict(), dst_node_id=node, message_type="query")
        for node in grid.get_node_ids()
    ]
    replies = grid.send_and_receive(asked)
    for message, reply in zip(asked, replies, strict=True):
        assert reply.metadata.src_node_id == message.metadata.dst_node_id
        assert reply.metadata.reply_to_message_id == message.metadata.message_id
