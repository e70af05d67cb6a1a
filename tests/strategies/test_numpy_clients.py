"""NumPyClients behind the Message API: how their messages are read, and that they are served."""

from math import nan

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp

from fedmedian.clients import perturb
from fedmedian.rounds.metrics import MOST_METRICS, fair_examples
from fedmedian.strategies import RunFailedError
from fedmedian.strategies.numpy_clients import read_reply
from fedmedian.wire.scalars import PREFIX, WireError

NUM_CLIENTS = 4
MODEL = {"weight": np.ones((3, 2), np.float32), "bias": np.zeros(2), "steps": np.array(0)}


def train(model, partition):
    moved = {name: array - np.asarray(partition, array.dtype) for name, array in model.items()}
    metrics = {"num-examples": partition + 1, "train-loss": 0.1 * partition, "by": "me"}
    return moved, metrics


def mean(value_of):
    return np.average(
        [value_of(i) for i in range(NUM_CLIENTS)],
        weights=fair_examples(range(1, NUM_CLIENTS + 1)),
    )


def reply(own, num_examples=3, **records):
    return RecordDict(
        {
            "fitres.status": ConfigRecord({"code": 0, "message": "Success"}),
            "fitres.num_examples": MetricRecord({"num_examples": num_examples}),
            "fitres.metrics": ConfigRecord(own),
            **{f"fitres.{name}": record for name, record in records.items()},
        }
    )


class TestReadReply:
    def test_reading_keeps_the_arrays_and_the_numbers_among_the_metrics(self):
        arrays = ArrayRecord({"0": Array(np.ones(2))})
        own = {"loss": 0.5, "correct": 7, "by": "me", "done": True, "raw": b"\x00"}
        read = read_reply(reply(own, parameters=arrays))
        (kept,) = read.array_records.values()
        assert kept == arrays
        (metrics,) = read.metric_records.values()
        assert dict(metrics) == {"loss": 0.5, "correct": 7, "num_examples": 3}

    def test_reading_prefers_flowers_numbers_to_a_clients_own_of_the_same_name(self):
        read = read_reply(reply({"num_examples": 1000}))
        assert read["metrics"]["num_examples"] == 3

    def test_reading_keeps_no_more_numbers_than_show_that_there_are_too_many(self):
        scalars = {f"{PREFIX}payload": 2, f"{PREFIX}partition": 1}
        read = read_reply(reply({f"{i}": 1.0 for i in range(99_999)} | scalars))
        assert MOST_METRICS < len(read["metrics"]) < MOST_METRICS + 3
        assert read["metrics"]["num_examples"] == 3
        assert scalars.items() <= dict(read["payload"]).items()

    def test_reading_keeps_a_payload_apart_from_the_metrics(self):
        scalars = {f"{PREFIX}payload": 2, f"{PREFIX}partition": 1}
        read = read_reply(reply({"loss": 0.5, **scalars}))
        assert set(read["metrics"]) == {"loss", "num_examples"}
        assert scalars.items() <= dict(read["payload"]).items()

    @pytest.mark.parametrize("code", [1, 99, nan, None], ids=str)
    def test_a_reply_without_a_good_status_is_refused_with_what_the_client_says(self, code):
        bad = reply({})
        message = "out of memory"
        bad["fitres.status"] = ConfigRecord(
            {"message": message} if code is None else {"code": code, "message": message}
        )
        with pytest.raises(WireError, match=message):
            read_reply(bad)

    @pytest.mark.parametrize("lacking", ["fitres.status", "fitres.metrics"])
    def test_what_is_no_numpy_clients_reply_is_refused_and_its_records_named(self, lacking):
        bad = reply({})
        del bad[lacking]
        with pytest.raises(WireError, match=r"fitres\.num_examples"):
            read_reply(bad)


class TestInARun:
    @pytest.fixture
    def play(self, run, numpy_clients):
        def play(make, train=train, num_rounds=1, evaluate=None, mods=(perturb,), **options):
            strategy = numpy_clients.make(make, **options)
            more = {} if evaluate is None else {"evaluate": evaluate}
            return run(strategy, train, MODEL, NUM_CLIENTS, num_rounds, mods=mods, **more)

        return play

    def test_unmodified_clients_do_for_a_plain_median(self, play):
        model = play("MedianSGD", num_rounds=2, noise=None, rotation=None, mods=()).model
        # Each round takes 0, 1, 2 and 3 off: their median is 1.5.
        np.testing.assert_array_equal(model["weight"], MODEL["weight"] - 3, strict=True)
        np.testing.assert_array_equal(model["bias"], MODEL["bias"] - 3, strict=True)

    def test_signs_without_the_mod_are_refused_with_a_hint(self, play, warnings):
        with pytest.raises(RunFailedError, match=r"mods=\[perturb\]"):
            play("SignSGD", mods=())
        assert all("mods=[perturb]" in text for text in warnings("aggregate_train: dropped"))

    def test_reports_have_the_clients_numbers_averaged_and_nothing_of_ours_or_flowers(self, play):
        def evaluate(model, partition):
            own = {"accuracy": 0.2 * partition, "by": "me", "done": True}
            return {"num-examples": partition + 1, "loss": float(partition), **own}

        outcome = play("SignSGD", num_rounds=2, evaluate=evaluate)
        for report in outcome.reports.values():
            assert report["train-loss"] == pytest.approx(mean(lambda i: 0.1 * i))
            assert not {"by", "num_examples"} & set(report)
            assert not any(name.startswith(PREFIX) for name in report)
        for metrics in outcome.evaluations.values():
            assert metrics == {
                "loss": pytest.approx(mean(float)),
                "accuracy": pytest.approx(mean(lambda i: 0.2 * i)),
            }

    def test_clients_are_sent_the_new_model_to_evaluate(self, play):
        def first_weight(model, partition):
            return {"num-examples": 1, "loss": float(model["weight"].flat[0])}

        outcome = play("MedianSGD", evaluate=first_weight, noise=None, rotation=None)
        assert outcome.evaluations[1]["loss"] == 1 - 1.5

    def test_without_a_fraction_to_evaluate_no_client_is_asked(self, play):
        def fail(model, partition):
            raise AssertionError

        assert play("MedianSGD", evaluate=fail, fraction_evaluate=0.0).evaluations == {}


def test_a_numpy_client_needs_no_evaluation(run, numpy_clients):
    class Trainer(NumPyClient):
        def fit(self, parameters, config):
            return [x + 1 for x in parameters], 1, {}

    app = ClientApp(client_fn=lambda context: Trainer().to_client())
    strategy = numpy_clients.make("MedianSGD", None, rotation=None)
    outcome = run(strategy, app, {"x": np.zeros(3, np.float32)}, 2)
    assert outcome.evaluations == {}
    np.testing.assert_array_equal(outcome.model["x"], 1)
