"""Replies that cannot be used: on each API they are dropped, counted and logged, and touch nothing.

What is wrong with an answer's arrays and scalars is the same on each API, and test_protocol.py's.
"""

from dataclasses import dataclass
from functools import cache
from math import inf, nan

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord
from flwr.common import Code
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmedian import Gaussian
from fedmedian.clients import InProcessGrid, perturb
from fedmedian.records import to_record
from fedmedian.rounds.metrics import fair_examples
from fedmedian.steps.payload import Payload
from fedmedian.strategies import SignSGD
from fedmedian.wire.scalars import PREFIX

MODEL = {  # the older API knows arrays by their positions
    "0": np.arange(20, dtype=np.float32).reshape(4, 5),
    "1": np.linspace(0, 1, 5),
    "2": np.zeros(5, dtype=np.float32),
    "3": np.array(0),
}
NUM_CLIENTS = 5
BAD = 2  # the client that misbehaves
GOOD = tuple(client for client in range(NUM_CLIENTS) if client != BAD)
COUNTED = ("replies-accepted", "replies-rejected", "replies-missing")


def train(model, partition):
    draws = np.random.default_rng(partition)
    trained = {
        name: array + draws.standard_normal(array.shape).astype(array.dtype)
        for name, array in model.items()
    }
    return trained, {"num-examples": partition + 1, "loss": float(partition)}


def evaluate(model, partition):
    return {"num-examples": partition + 1, "loss": float(partition), "error": 0.1 * partition}


def mean_over(partitions, value_of=float):
    weights = fair_examples([i + 1 for i in partitions])
    return np.average([value_of(i) for i in partitions], weights=weights)


# What a client can do wrong: changes to the content of its reply.


def crash(content):
    raise RuntimeError("the disk is full")


def first_array(data):
    """Put other bytes in place of the first array's, or a part of them."""

    def change(content):
        (record,) = content.array_records.values()
        key, old = next(iter(record.items()))
        spoilt = old.data[data] if isinstance(data, slice) else data
        record[key] = Array(old.dtype, old.shape, old.stype, spoilt)

    return change


def examples(value):
    def change(content):
        for record in content.metric_records.values():
            for key in record:
                if key in ("num-examples", "num_examples"):
                    record[key] = value

    return change


def another_version(content):
    (record,) = (one for one in content.config_records.values() if Payload.is_in(one))
    record[f"{PREFIX}payload"] = 99


def plain_weights(content):
    (name,) = content.array_records
    content[name] = to_record(MODEL)
    for key, record in content.config_records.items():
        own = {name: value for name, value in record.items() if not name.startswith(PREFIX)}
        content[key] = ConfigRecord(own)


def without(part):
    def change(content):
        (name,) = (name for name in content if name.endswith(part))
        del content[name]

    return change


def no_examples(content):
    content["metrics"] = MetricRecord({"loss": 1.0})


def added(record):
    def change(content):
        content["more"] = record

    return change


def status(code, message):
    def change(content):
        (name,) = (name for name in content if name.endswith(".status"))
        content[name] = ConfigRecord({"code": code, "message": message})

    return change


def status_in_numbers(content):
    (name,) = (name for name in content if name.endswith(".status"))
    content[name] = MetricRecord({"code": 1})


def a_message_api_reply(content):
    content.clear()
    content["metrics"] = MetricRecord({"num-examples": 1, "loss": 0.0})


FAILED = status(Code.FIT_NOT_IMPLEMENTED.value, "out of memory")
PICKLED = (
    b"\x93NUMPY\x01\x00"
    + (118).to_bytes(2, "little")
    + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117)
    + b"\ncos\nsystem\n(S'true'\ntR."
)
HUGE = (
    b"\x93NUMPY\x01\x00"
    + (118).to_bytes(2, "little")
    + b"{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999,), }".ljust(117)
    + b"\n"
)


@dataclass(frozen=True)
class Bad:
    """A bad reply, words of the reason, and whether the older API keeps it from the strategy."""

    change: object
    reason: str
    swallowed: bool = False


IN_ANY_REPLY = {
    "it raises": Bad(crash, "the disk is full", swallowed=True),
    **{
        f"{value} examples": Bad(examples(value), "examples' must be") for value in (0, nan, [1, 2])
    },
}
IN_ANY_TRAINING = {
    **IN_ANY_REPLY,
    "bytes that are no array": Bad(first_array(b"junk"), ".npy"),
    "truncated bytes": Bad(first_array(slice(0, -1)), ".npy"),
    "a payload of another version": Bad(another_version, "99"),
    "plain weights": Bad(plain_weights, "mods=[perturb]"),
}
IN_MESSAGES = {
    "no metrics": Bad(without("metrics"), "MetricRecord"),
    "two metric records": Bad(added(MetricRecord({"num-examples": 1})), "MetricRecord"),
    "no number of examples": Bad(no_examples, "'num-examples'"),
}
IN_NUMPY_REPLIES = {
    "it says that it failed": Bad(FAILED, "'out of memory'"),
    "a status unheard of": Bad(status(99, ""), "''"),
    "no status": Bad(without(".status"), "num_examples"),
    "a status in numbers": Bad(status_in_numbers, "None"),
    "no metrics": Bad(without(".metrics"), "status"),
    "a reply of the Message API": Bad(a_message_api_reply, "['metrics']"),
    "an empty reply": Bad(lambda content: content.clear(), "[]"),
    "no number of examples": Bad(without(".num_examples"), "'num_examples'"),
}

BAD_TRAINING = [
    *[("any_client", name, bad) for name, bad in IN_ANY_TRAINING.items()],
    *[("message_api", name, bad) for name, bad in IN_MESSAGES.items()],
    ("message_api", "pickled objects", Bad(first_array(PICKLED), ".npy")),
    ("message_api", "a shape that fills the memory", Bad(first_array(HUGE), ".npy")),
    ("message_api", "no arrays", Bad(without("arrays"), "ArrayRecord")),
    ("message_api", "two array records", Bad(added(ArrayRecord()), "ArrayRecord")),
    *[("numpy_clients", name, bad) for name, bad in IN_NUMPY_REPLIES.items()],
    ("numpy_clients", "no arrays", Bad(without(".parameters"), "ArrayRecord")),
    ("older_api", "it says that it failed", Bad(FAILED, "'out of memory'")),
    ("older_api", "half a message", Bad(without(".parameters"), "fitres.parameters", True)),
]
BAD_EVALUATION = [
    *[("any_client", name, bad) for name, bad in IN_ANY_REPLY.items()],
    *[("message_api", name, bad) for name, bad in IN_MESSAGES.items()],
    *[("numpy_clients", name, bad) for name, bad in IN_NUMPY_REPLIES.items()],
    ("older_api", "it says that it failed", Bad(FAILED, "'out of memory'")),
]


def each(cases):
    names = {
        "any_client": ("message_api", "numpy_clients", "older_api"),
        **{name: (name,) for name in ("message_api", "numpy_clients", "older_api")},
    }
    return pytest.mark.parametrize(
        ("client", "bad"),
        [
            pytest.param(client, bad, id=f"{client}-{name}")
            for clients, name, bad in cases
            for client in names[clients]
        ],
    )


@pytest.fixture(scope="module")
def play(run):
    """Runs a strategy on this file's clients and model."""

    def play(strategy, num_rounds=1, train=train, **options):
        return run(strategy, train, MODEL, NUM_CLIENTS, num_rounds, evaluate=evaluate, **options)

    return play


@pytest.fixture
def assert_logged(warnings):
    """Asserts that the log says once whose reply was dropped and why."""

    def assert_logged(phase, bad, swallowed):
        if swallowed:  # Flower does not tell whose it was
            assert [text for text in warnings("aggregate_") if bad.reason in text]
            assert len(warnings(f"{phase}: no usable reply", BAD)) == 1
            assert not warnings(f"{phase}: no reply")
        else:
            (dropped,) = warnings(f"{phase}: dropped", BAD)
            assert bad.reason in dropped

    return assert_logged


@pytest.fixture(scope="module")
def of_the_others(play, bits, without):
    """Returns the model that the good clients make without the bad one."""
    return cache(
        lambda api: bits(play(api.make("SignSGD", Gaussian(0.5)), grid=without(BAD)).model)
    )


@each(BAD_TRAINING)
def test_a_bad_reply_to_training_leaves_model_and_metrics_to_the_others(
    client, bad, request, play, bits, of_the_others, spoiling, assert_logged, caplog
):
    api = request.getfixturevalue(client)
    expected = of_the_others(api)
    caplog.clear()
    mods = (spoiling(bad.change, BAD), perturb)
    spoilt = play(api.make("SignSGD", Gaussian(0.5)), mods=mods)
    assert bits(spoilt.model) == expected
    report, swallowed = spoilt.reports[1], bad.swallowed and client == "older_api"
    assert [report[name] for name in COUNTED] == [len(GOOD), not swallowed, swallowed]
    assert report["loss"] == pytest.approx(mean_over(GOOD))
    assert_logged("aggregate_train", bad, swallowed)


@each(BAD_EVALUATION)
def test_a_bad_reply_to_evaluation_leaves_the_metrics_to_the_others(
    client, bad, request, play, spoiling, assert_logged
):
    api = request.getfixturevalue(client)
    mods = (spoiling(bad.change, BAD, "evaluate"), perturb)
    metrics = play(api.make("SignSGD"), mods=mods).evaluations[1]
    assert metrics["loss"] == pytest.approx(mean_over(GOOD))
    assert metrics["error"] == pytest.approx(mean_over(GOOD, lambda i: 0.1 * i))
    assert_logged("aggregate_evaluate", bad, bad.swallowed and client == "older_api")


@pytest.mark.parametrize("loss", [nan, inf])
def test_a_loss_that_is_not_finite_is_left_out_of_the_average(loss, any_client, run):
    def diverge(model, partition):
        return {
            "num-examples": partition + 1,
            "loss": loss if partition == BAD else partition * 1.0,
        }

    outcome = run(any_client.make("SignSGD"), train, MODEL, NUM_CLIENTS, evaluate=diverge)
    assert outcome.evaluations[1]["loss"] == pytest.approx(mean_over(GOOD))


def test_an_update_that_the_mod_refuses_to_send_is_dropped_with_its_reason(
    any_client, play, spoiling, warnings
):
    def diverge(content):
        (record,) = content.array_records.values()
        record[next(iter(record))] = Array(np.full((4, 5), nan, np.float32))

    outcome = play(any_client.make("SignSGD"), mods=(perturb, spoiling(diverge, BAD)))
    assert outcome.reports[1]["replies-accepted"] == len(GOOD)
    assert [text for text in warnings("aggregate_") if "'0'" in text]


def test_a_node_is_named_by_its_partition_once_it_has_replied(any_client, play, spoiling, warnings):
    play(any_client.make("SignSGD"), num_rounds=3, mods=(spoiling(crash, BAD, only=2), perturb))
    (named,) = warnings("aggregate_train: ", BAD)
    assert f"(partition {BAD})" in named


def test_an_answer_of_the_round_before_is_dropped_with_that_reason(any_client, play, warnings):
    sent = []

    def replay(message, context, call_next):
        reply = call_next(message, context)
        if message.metadata.message_type == "train" and context.node_config["partition-id"] == BAD:
            sent.append(reply.content)
            reply.content = sent[0]
        return reply

    strategy = any_client.make("SignSGD", Gaussian(0.5))
    outcome = play(strategy, num_rounds=2, mods=(replay, perturb))
    rejected = [outcome.reports[number]["replies-rejected"] for number in (1, 2)]
    assert rejected == [0, 1]
    (dropped,) = warnings("aggregate_train: dropped", BAD)
    assert "round 1" in dropped
    assert "round 2" in dropped


def raises(error):
    def change(content):
        raise error

    return change


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("not even this")

    __repr__ = __str__


FORGED = "\nWARNING :   aggregate_train: all is well\x1b[2J"


@pytest.mark.parametrize("message_type", ["train", "evaluate"])
@pytest.mark.parametrize(
    "error",
    [ValueError(f"no{FORGED}"), ValueError("x" * 10**7), Unprintable(), OSError("\ud800")],
    ids=["a forged line", "ten megabytes", "unprintable", "a lone surrogate"],
)
def test_whatever_a_client_raises_is_one_line_of_the_log_and_not_a_long_one(
    error, message_type, any_client, play, spoiling, warnings
):
    mods = (spoiling(raises(error), BAD, message_type), perturb)
    outcome = play(any_client.make("SignSGD"), mods=mods)
    assert outcome.evaluations[1]["loss"] == pytest.approx(
        mean_over(GOOD if message_type == "evaluate" else range(NUM_CLIENTS))
    )
    lines = warnings()
    assert lines
    assert all(line.isprintable() and len(line) < 500 for line in lines)


@pytest.mark.parametrize("text", [FORGED, "x" * 10**7], ids=["a forged line", "ten megabytes"])
@pytest.mark.parametrize("client", ["numpy_clients", "older_api"])
def test_whatever_status_a_client_sends_is_one_line_of_the_log_and_not_a_long_one(
    client, text, request, play, spoiling, warnings
):
    change = status(Code.FIT_NOT_IMPLEMENTED.value, text)
    api = request.getfixturevalue(client)
    play(api.make("SignSGD"), mods=(spoiling(change, BAD), perturb))
    (line,) = warnings("aggregate_train: dropped", BAD)
    assert line.isprintable()
    assert len(line) < 500


def test_whatever_names_a_clients_arrays_have_is_one_line_of_the_log_and_not_a_long_one(
    message_api, play, spoiling, warnings
):
    def rename(content):
        arrays = {FORGED: np.zeros(1), **{f"{i:09d}": np.zeros(1) for i in range(1999)}}
        content["arrays"] = to_record(arrays)

    strategy = message_api.make("MedianSGD", None, rotation=None)
    play(strategy, mods=(spoiling(rename, BAD),))
    (line,) = warnings("aggregate_train: dropped", BAD)
    assert line.isprintable()
    assert len(line) < 500


def test_a_run_outlives_rounds_in_which_every_client_fails(any_client, play, bits):
    def fail(model, partition):
        raise RuntimeError("not today")

    outcome = play(any_client.make("MedianSGD"), num_rounds=2, train=fail)
    assert bits(outcome.model) == bits(MODEL)
    assert [outcome.reports[number]["replies-accepted"] for number in (1, 2)] == [0, 0]


@pytest.mark.parametrize(
    ("min_replies", "moves"), [(len(GOOD), True), (len(GOOD) + 1, False)], ids=["just", "too few"]
)
def test_a_round_moves_the_model_if_it_has_min_replies(
    min_replies, moves, any_client, play, spoiling, bits, warnings
):
    strategy = any_client.make("MedianSGD", min_replies=min_replies)
    outcome = play(strategy, mods=(spoiling(crash, BAD), perturb))
    assert (bits(outcome.model) != bits(MODEL)) is moves
    assert any(f"min_replies is {min_replies}" in text for text in warnings()) is not moves


def test_one_usable_reply_is_enough_by_default(any_client, play, bits):
    def fail_but_one(model, partition):
        if partition != BAD:
            raise RuntimeError("not today")
        return train(model, partition)

    outcome = play(any_client.make("SignSGD"), train=fail_but_one)
    assert outcome.reports[1]["replies-accepted"] == 1
    assert bits(outcome.model) != bits(MODEL)


def test_without_a_usable_reply_evaluation_has_no_metrics(any_client, run):
    def fail(model, partition):
        raise RuntimeError("no test data")

    outcome = run(any_client.make("MedianSGD"), train, MODEL, NUM_CLIENTS, evaluate=fail)
    assert outcome.evaluations == {}


class GridWithALostNode(InProcessGrid):
    """One node is gone, and the SuperLink replies in its place."""

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        replies = super().send_and_receive(messages, timeout=timeout)
        lost = self.get_node_ids()[BAD]
        for i, message in enumerate(messages):
            if message.metadata.dst_node_id == lost:
                replies[i] = Message(Error(ErrorCode.NODE_UNAVAILABLE, "gone"), reply_to=message)
                replies[i].metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
        return replies


def test_a_failure_that_the_superlink_reports_is_put_down_to_its_node(message_api, play, warnings):
    outcome = play(message_api.make("SignSGD"), grid=GridWithALostNode)
    assert [outcome.reports[1][name] for name in COUNTED] == [len(GOOD), 1, 0]
    assert outcome.evaluations[1]["loss"] == pytest.approx(mean_over(GOOD))
    for phase in ("aggregate_train", "aggregate_evaluate"):
        (dropped,) = warnings(f"{phase}: dropped", BAD)
        assert "gone" in dropped


class GridThatANodeLeaves(GridWithALostNode):
    """A node leaves after it was drawn: the reply of the SuperLink names no message."""

    def send_and_receive(self, messages, *, timeout=None):
        replies = super().send_and_receive(messages, timeout=timeout)
        for reply in replies:
            if reply.has_error():
                reply.metadata.__dict__["_reply_to_message_id"] = ""
        return replies


@pytest.mark.parametrize("left_out", [0, 1])
def test_a_node_that_leaves_before_it_is_asked_is_missing_and_the_log_says_why(
    left_out, message_api, play, warnings
):
    class LeavingOut(SignSGD):
        def aggregate_train(self, server_round, replies):
            usable = [one for one in replies if one.has_content()]
            others = [one for one in replies if one.has_error()]
            return super().aggregate_train(server_round, usable[left_out:] + others)

    outcome = play(message_api.make_own(LeavingOut), grid=GridThatANodeLeaves)
    assert [outcome.reports[1][name] for name in COUNTED] == [len(GOOD) - left_out, 0, 1]
    assert outcome.evaluations[1]["loss"] == pytest.approx(mean_over(GOOD))
    for phase in ("aggregate_train", "aggregate_evaluate"):
        (reason,) = warnings(f"{phase}: a node could not be asked: error ")
        assert "gone" in reason
        assert len(warnings(f"{phase}: no usable reply", BAD)) == 1


class GridWithASilentNode(InProcessGrid):
    """One node does not reply."""

    def pull_messages(self, message_ids):
        silent = self.get_node_ids()[BAD]
        replies = super().pull_messages(message_ids)
        return [reply for reply in replies if reply.metadata.src_node_id != silent]


def test_a_node_that_does_not_reply_is_counted_and_named(message_api, play, warnings):
    outcome = play(message_api.make("SignSGD"), grid=GridWithASilentNode)
    assert [outcome.reports[1][name] for name in COUNTED] == [len(GOOD), 0, 1]
    for phase in ("aggregate_train", "aggregate_evaluate"):
        assert len(warnings(f"{phase}: no reply", BAD)) == 1


def test_a_round_without_training_has_nothing_to_report(message_api, play, bits):
    outcome = play(message_api.make("SignSGD", fraction_train=0.0))
    assert outcome.reports == {}
    assert bits(outcome.model) == bits(MODEL)


@pytest.fixture(scope="module")
def survives(run, spoiling, message_api):
    def survives(change):
        mods = (spoiling(change, BAD), perturb)
        strategy = message_api.make("SignSGD", fraction_evaluate=0.0)
        outcome = run(strategy, train, MODEL, NUM_CLIENTS, mods=mods)
        report = outcome.reports[1]
        assert report["replies-accepted"] + report["replies-rejected"] == NUM_CLIENTS
        assert report["replies-accepted"] >= len(GOOD)
        assert all(np.isfinite(array).all() for array in outcome.model.values())

    return survives


class TestJunk:
    """Whatever a client sends, the round continues; see test_protocol.py for its scalars."""

    @settings(max_examples=20)
    @given(data=st.binary(max_size=300))
    def test_junk_in_the_bytes_of_one_clients_array_does_not_end_the_round(self, survives, data):
        survives(first_array(data))

    @settings(max_examples=20)
    @given(
        metrics=st.dictionaries(
            st.sampled_from(["num-examples", "loss", "extra"]),
            st.integers(-(2**63), 2**63 - 1)
            | st.floats()
            | st.lists(st.floats(), max_size=3)
            | st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
        ),
    )
    def test_junk_in_one_clients_metrics_does_not_end_the_round(self, survives, metrics):
        survives(lambda content: content.update(metrics=MetricRecord(metrics)))
