"""What a reply costs, whatever is in it."""

import tracemalloc
from enum import IntEnum

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.common import MetricsRecord, ParametersRecord

from fedmedian.clients import InProcessGrid
from fedmedian.records import serialized_size
from fedmedian.strategies.sizes import mean_size, mean_sizes_of_training
from fedmedian.wire.scalars import PREFIX


class Level(IntEnum):
    LOW = 3


@pytest.fixture
def reply(make_app):
    """Makes a reply as a grid returns it."""

    def reply(records):
        grid = InProcessGrid(make_app(lambda model, _: (model, {"num-examples": 1})), 1)
        (node,) = grid.get_node_ids()
        asked = grid.create_message(RecordDict({"arrays": ArrayRecord()}), "train", node, "")
        (answer,) = grid.send_and_receive([asked])
        return Message(content=RecordDict(records), metadata=answer.metadata)

    return reply


CONTENTS = {
    "nothing": {},
    "arrays": {"a": ArrayRecord({"w": Array(np.ones((30, 40))), "b": Array(np.ones(40))})},
    "metrics": {"m": MetricRecord({"num-examples": 10, "loss": 0.5, "per-class": [0.1, 0.2]})},
    "config": {"c": ConfigRecord({"a": "text", "b": b"bytes", "c": True, "d": [1.0] * 9})},
    "records by their older names": {
        "a": ParametersRecord({"w": Array(np.ones(9))}),
        "m": MetricsRecord({"num-examples": 10}),
    },
    "a number with a name": {"c": ConfigRecord({"level": Level.LOW})},
    "lists": {
        "m": MetricRecord({"integers": [0, -1, 200, 2**60], "none": [], "loss": [0.5] * 300}),
        "c": ConfigRecord({"texts": ["one", "zwei"], "bytes": [b"1", b"23"], "bits": [True] * 5}),
    },
    "names of any letters": {
        "m": MetricRecord({"потеря": 0.5, "損失": 10**9}),
        "ошибка": ConfigRecord(),
    },
    "many arrays": {"a": ArrayRecord({f"layer-{n}": Array(np.full(n, n)) for n in range(1, 9)})},
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_the_size_of_a_reply_is_what_flower_sends_to_within_some_bytes(reply, content):
    one = reply(content)
    assert mean_size([one]) == pytest.approx(serialized_size(one), abs=64)
    assert mean_sizes_of_training([one], ArrayRecord())[0] == mean_size([one])


def test_with_fedavg_a_reply_has_the_model_in_place_of_its_arrays_and_no_payload(reply):
    model = ArrayRecord({"w": Array(np.ones((30, 40))), "b": Array(np.ones(40))})
    own = ConfigRecord({"by": "me"})
    ours = ConfigRecord({f"{PREFIX}payload": 1, f"{PREFIX}scales": b"1" * 400})
    for of_ours, of_fedavg in (
        ({"config": own, "fedmedian": ours}, {"config": own}),
        ({"fitres.metrics": ConfigRecord({**own, **ours})}, {"fitres.metrics": own}),
        ({"fitres.metrics": ours}, {"fitres.metrics": ConfigRecord()}),
    ):
        metrics = {"m": MetricRecord({"num-examples": 10, "loss": 0.5})}
        packed = ArrayRecord({f"{PREFIX}0": Array(np.ones(9, np.uint8))})
        replies = [reply({"arrays": packed, **metrics, **of_ours}) for _ in range(2)]
        weights = reply({"arrays": model, **metrics, **of_fedavg})
        mean, with_fedavg = mean_sizes_of_training(replies, model)
        assert mean == mean_size(replies)
        assert with_fedavg == pytest.approx(serialized_size(weights), abs=64)


def metrics_of(number, names=1):
    return {"m": MetricRecord({f"{number}-{name}" * 3: 0.5 for name in range(names)})}


def test_replies_of_as_many_forms_as_there_are_replies_are_measured_without_serialising_them(
    reply, monkeypatch
):
    mean_size([reply({})])
    replies = [reply(metrics_of(number)) for number in range(9)]
    serialised = []
    deflate = MetricRecord.deflate
    monkeypatch.setattr(MetricRecord, "deflate", lambda one: serialised.append(one) or deflate(one))
    mean_size(replies)
    assert serialised == []


def test_nothing_is_remembered_of_a_reply_that_was_measured(reply):
    mean_size([reply({})])
    hostile = reply(metrics_of(0, names=20_000))
    tracemalloc.start()
    mean_size([hostile])
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 50_000


def test_the_size_of_replies_is_their_mean(reply):
    small, large = (reply({"a": ArrayRecord({"w": Array(np.ones(n))})}) for n in (10, 1000))
    assert mean_size([small, large]) == pytest.approx((mean_size([small]) + mean_size([large])) / 2)


def train(model, partition):
    trained = {name: array + np.ones_like(array) for name, array in model.items()}
    return trained, {"num-examples": partition + 1, "loss": 0.5}


MODEL = {"0": np.zeros((4, 5), np.float32), "1": np.zeros(10), "2": np.array(0)}


@pytest.mark.parametrize("make", ["SignSGD", "MedianSGD"])
def test_a_round_reports_what_its_clients_have_sent(make, message_api, run):
    outcome = run(message_api.make(make, fraction_evaluate=0.0), train, MODEL, 3)
    assert 3 * outcome.reports[1]["uplink-bytes"] == pytest.approx(outcome.grid.bytes_up, abs=192)


def test_a_round_of_the_older_api_reports_the_bytes_of_its_clients_arrays(older_api, run):
    header = 128  # of an .npy file
    signs, exact = -(-(20 + 10) // 8), 8
    report = run(older_api.make("SignSGD"), train, MODEL, 3).reports[1]
    assert report["uplink-bytes"] == (header + signs) + (header + exact)
