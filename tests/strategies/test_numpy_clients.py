"""NumPyClients behind the strategies of the Message API: `numpy_clients=True`."""

import logging
from math import nan

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.clientapp import ClientApp
from flwr.common import Code
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedmedian import Gaussian
from fedmedian.clients import GradientClient, InProcessGrid, SignClient, perturb
from fedmedian.strategies import MedianSGD, SignSGD
from fedmedian.wire import PREFIX

NUM_CLIENTS = 4
BAD = 1  # the client that misbehaves
GOOD = tuple(i for i in range(NUM_CLIENTS) if i != BAD)

MODEL = {"weight": np.ones((3, 2), np.float32), "bias": np.zeros(2), "steps": np.array(0)}


def fit(parameters, config, partition):
    moved = [x - np.asarray(partition, x.dtype) for x in parameters]
    return moved, partition + 1, {"train-loss": 0.1 * partition, "by": "me"}


def evaluate(parameters, config, partition):
    metrics = {"accuracy": 0.2 * partition, "correct": partition, "by": "me", "done": True}
    return float(partition), partition + 1, metrics


def mean_over(partitions, value_of):
    return np.average([value_of(i) for i in partitions], weights=[i + 1 for i in partitions])


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def bits(record):
    return [(name, array.data) for name, array in record.items()]


class GridWithoutBad(InProcessGrid):
    """Nodes among which the bad client never was."""

    def get_node_ids(self):
        return [node for i, node in enumerate(super().get_node_ids()) if i != BAD]


@pytest.fixture
def run(as_record):
    """Runs a strategy of NumPyClients, with a seed."""

    def run(make, app, num_rounds=1, model=MODEL, grid=InProcessGrid, **options):
        strategy = make(**{"numpy_clients": True, "seed": 1, **options})
        nodes = grid(app, NUM_CLIENTS)
        return strategy.start(nodes, as_record(model), num_rounds)

    return run


UNMODIFIED = {
    "plain": {"noise": None},
    "noise at the server": {"noise_at": "server"},
    "smoothed": {"estimator": "smoothed"},
}

every_unmodified = pytest.mark.parametrize("options", UNMODIFIED.values(), ids=UNMODIFIED)


class TestTraining:
    def test_unmodified_clients_do_for_a_plain_median(self, run, make_numpy_app, as_arrays):
        result = run(MedianSGD, make_numpy_app(fit), num_rounds=2, noise=None)
        model = as_arrays(result.arrays)
        # Each round takes 0, 1, 2 and 3 off: their median is 1.5.
        np.testing.assert_array_equal(model["weight"], MODEL["weight"] - 3)
        np.testing.assert_array_equal(model["bias"], MODEL["bias"] - 3)

    @every_unmodified
    def test_models_keep_their_names_shapes_and_dtypes(
        self, options, run, make_numpy_app, as_arrays
    ):
        result = run(MedianSGD, make_numpy_app(fit), **options)
        assert result.train_metrics_clientapp[1]["replies-accepted"] == NUM_CLIENTS
        model = as_arrays(result.arrays)
        assert {name: (x.shape, x.dtype) for name, x in model.items()} == {
            name: (x.shape, x.dtype) for name, x in MODEL.items()
        }

    @pytest.mark.parametrize("make", [SignSGD, MedianSGD])
    def test_with_the_mod_they_answer_as_message_api_clients_do(
        self, make, run, make_numpy_app, make_app
    ):
        def train(model, partition):
            moved, num_examples, metrics = fit(list(model.values()), {}, partition)
            del metrics["by"]  # a MetricRecord takes numbers only
            return dict(zip(model, moved, strict=True)), {"num-examples": num_examples, **metrics}

        older = run(make, make_numpy_app(fit, mods=[perturb]), num_rounds=3)
        newer = run(make, make_app(train), num_rounds=3, numpy_clients=False)
        assert bits(older.arrays) == bits(newer.arrays)
        for server_round, metrics in newer.train_metrics_clientapp.items():
            reported = dict(older.train_metrics_clientapp[server_round])
            # Flower's status and names are a little longer.
            assert reported.pop("uplink-bytes") > metrics.pop("uplink-bytes")
            assert reported == dict(metrics)

    def test_signs_without_the_mod_are_refused_with_a_hint(self, run, make_numpy_app, caplog):
        result = run(SignSGD, make_numpy_app(fit))
        assert result.train_metrics_clientapp[1]["replies-rejected"] == NUM_CLIENTS
        assert "does its ClientApp have mods=[perturb]?" in warnings(caplog)[0]

    @pytest.mark.parametrize(
        ("make", "client"), [(SignSGD, SignClient), (MedianSGD, GradientClient)]
    )
    def test_torch_clients_train_and_evaluate(self, make, client, run):
        optima, copies = (1.0, 2.0, 3.0, 10.0), 500

        def loss(outputs, targets):
            return ((outputs - targets) ** 2).sum() / (2 * len(targets) * copies)

        def client_fn(context):
            optimum = optima[context.node_config["partition-id"]]
            batches = DataLoader(TensorDataset(torch.ones(1, 1), torch.full((1, copies), optimum)))
            model = nn.Linear(1, copies, bias=False)
            return client(context, model, batches, loss=loss, test_loader=batches).to_client()

        result = run(
            make,
            ClientApp(client_fn=client_fn),
            num_rounds=15,
            model={"weight": np.full((copies, 1), 4.0, np.float32)},
            noise=Gaussian(10.0),
            client_learning_rate=1 / copies,  # of the mean over copies
            learning_rate=0.2,
        )
        # The mean, which noise leads to; the median is 2.5.
        assert result.arrays["weight"].numpy().mean() == pytest.approx(4.0, abs=0.5)
        evaluated = result.evaluate_metrics_clientapp[15]
        spread = np.mean([(4.0 - optimum) ** 2 / 2 for optimum in optima])
        assert evaluated["loss"] > 0.9 * spread
        assert set(evaluated) == {"loss", "accuracy"}


class TestMetrics:
    def test_of_training_are_averaged_by_examples(self, run, make_numpy_app):
        result = run(MedianSGD, make_numpy_app(fit), noise=None)
        metrics = result.train_metrics_clientapp[1]
        expected = mean_over(range(NUM_CLIENTS), lambda i: 0.1 * i)
        assert metrics["train-loss"] == pytest.approx(expected)
        assert "by" not in metrics
        assert "num_examples" not in metrics

    def test_of_evaluation_are_the_loss_and_the_clients_own_numbers(self, run, make_numpy_app):
        result = run(MedianSGD, make_numpy_app(fit, evaluate), noise=None, num_rounds=2)
        assert sorted(result.evaluate_metrics_clientapp) == [1, 2]
        everyone = range(NUM_CLIENTS)
        for metrics in result.evaluate_metrics_clientapp.values():
            assert dict(metrics) == {
                "loss": pytest.approx(mean_over(everyone, float)),
                "accuracy": pytest.approx(mean_over(everyone, lambda i: 0.2 * i)),
                "correct": pytest.approx(mean_over(everyone, float)),
            }

    def test_a_clients_own_cannot_take_the_place_of_flowers(self, run, make_numpy_app):
        def boast(parameters, config, partition):
            moved, num_examples, _ = fit(parameters, config, partition)
            return (
                moved,
                num_examples,
                {"num_examples": 1000 - partition, "train-loss": 1.0 * partition},
            )

        def claim(parameters, config, partition):
            return float(partition), partition + 1, {"num_examples": 7, "loss": -1.0}

        app = make_numpy_app(boast, claim, mods=[perturb])
        result = run(SignSGD, app, noise=Gaussian(0.5))
        expected = mean_over(range(NUM_CLIENTS), float)
        assert result.train_metrics_clientapp[1]["train-loss"] == pytest.approx(expected)
        assert result.evaluate_metrics_clientapp[1] == {"loss": pytest.approx(expected)}

    def test_none_of_ours_are_taken_for_the_clients(self, run, make_numpy_app):
        result = run(SignSGD, make_numpy_app(fit, evaluate, mods=[perturb]))
        for metrics in (result.train_metrics_clientapp[1], result.evaluate_metrics_clientapp[1]):
            assert not any(name.startswith(PREFIX) for name in metrics)

    def test_odd_ones_are_left_out_but_the_reply_counts(self, run, make_numpy_app):
        def odd(parameters, config, partition):
            moved, num_examples, metrics = fit(parameters, config, partition)
            return moved, num_examples, {} if partition == BAD else metrics

        metrics = run(MedianSGD, make_numpy_app(odd), noise=None).train_metrics_clientapp[1]
        assert metrics["replies-accepted"] == NUM_CLIENTS
        assert metrics["train-loss"] == pytest.approx(mean_over(GOOD, lambda i: 0.1 * i))


class TestConfig:
    def test_the_callers_reaches_training_and_evaluation(self, make_numpy_app, as_record):
        seen = {"fit": [], "evaluate": []}

        def listen_to_fit(parameters, config, partition):
            seen["fit"].append(dict(config))
            return fit(parameters, config, partition)

        def listen_to_evaluate(parameters, config, partition):
            seen["evaluate"].append(dict(config))
            return evaluate(parameters, config, partition)

        app = make_numpy_app(listen_to_fit, listen_to_evaluate, mods=[perturb])
        SignSGD(numpy_clients=True).start(
            InProcessGrid(app, NUM_CLIENTS),
            as_record(MODEL),
            num_rounds=1,
            train_config=ConfigRecord({"epochs": 3}),
            evaluate_config=ConfigRecord({"batch": 8}),
        )
        assert seen["fit"] == [{"epochs": 3, "server-round": 1}] * NUM_CLIENTS
        assert seen["evaluate"] == [{"batch": 8, "server-round": 1}] * NUM_CLIENTS

    def test_clients_are_sent_the_new_model_to_evaluate(self, run, make_numpy_app):
        def first_weight(parameters, config, partition):
            return float(parameters[0].flat[0]), 1, {}

        result = run(MedianSGD, make_numpy_app(fit, first_weight), noise=None)
        assert result.evaluate_metrics_clientapp[1]["loss"] == 1 - 1.5

    def test_without_evaluation_no_client_is_asked(self, run, make_numpy_app):
        asked = []

        def listen(parameters, config, partition):
            asked.append(partition)
            return evaluate(parameters, config, partition)

        run(MedianSGD, make_numpy_app(fit, listen), noise=None, fraction_evaluate=0.0)
        assert asked == []


def spoiling(corrupt, message_type):
    """A mod that corrupts one client's replies."""

    def spoil(message, context, call_next):
        reply = call_next(message, context)
        if (
            context.node_config["partition-id"] == BAD
            and message.metadata.message_type == message_type
        ):
            corrupt(reply.content)
        return reply

    return spoil


def status(code, message):
    def corrupt(content):
        (name,) = (name for name in content if name.endswith(".status"))
        content[name] = ConfigRecord({"code": code, "message": message})

    return corrupt


def without(part):
    def corrupt(content):
        (name,) = (name for name in content if name.endswith(part))
        del content[name]

    return corrupt


def examples(value):
    def corrupt(content):
        (name,) = (name for name in content if name.endswith(".num_examples"))
        content[name] = MetricRecord({"num_examples": value})

    return corrupt


def status_in_numbers(content):
    (name,) = (name for name in content if name.endswith(".status"))
    content[name] = MetricRecord({"code": 1})


def metrics_in_arrays(content):
    (name,) = (name for name in content if name.endswith(".metrics"))
    content[name] = ArrayRecord({"loss": Array(np.zeros(1))})


def a_message_api_reply(content):
    content.clear()
    content["metrics"] = MetricRecord({"num-examples": 1, "loss": 0.0})


def nothing(content):
    content.clear()


def crash(content):
    raise RuntimeError("the disk is full")


BAD_REPLIES = {
    "it raises": (crash, "RuntimeError: the disk is full"),
    "it says it failed": (
        status(Code.FIT_NOT_IMPLEMENTED.value, "out of memory"),
        "client failed: 'out of memory'",
    ),
    "a status unheard of": (status(99, ""), "client failed: ''"),
    "no status": (without(".status"), "is not a NumPyClient's reply, its records are ["),
    "a status in numbers": (status_in_numbers, "client failed: None"),
    "no metrics": (without(".metrics"), "is not a NumPyClient's reply"),
    "a reply of the Message API": (a_message_api_reply, "its records are ['metrics']"),
    "an empty reply": (nothing, "is not a NumPyClient's reply, its records are []"),
    "no number of examples": (without(".num_examples"), "'num_examples' must be a number > 0"),
    **{
        f"{value} examples": (examples(value), "'num_examples' must be a number > 0")
        for value in (0, -1, nan, [1, 2])
    },
}

BAD_TRAINING = {
    **BAD_REPLIES,
    "no arrays": (without(".parameters"), "expected one ArrayRecord, got 0"),
    "metrics in arrays": (metrics_in_arrays, "expected one ArrayRecord, got 2"),
}


class TestBadReplies:
    """They neither end the run nor touch model or metrics, and are logged with a reason."""

    def assert_logged(self, caplog, phase, reason):
        node = InProcessGrid(ClientApp(), NUM_CLIENTS).get_node_ids()[BAD]
        (warning,) = (w for w in warnings(caplog) if w.startswith(f"{phase}: "))
        assert warning.startswith(f"{phase}: dropped the reply of node {node}: ")
        assert reason in warning

    @pytest.mark.parametrize(("corrupt", "reason"), BAD_TRAINING.values(), ids=BAD_TRAINING)
    def test_to_training(self, corrupt, reason, run, make_numpy_app, caplog):
        expected = run(MedianSGD, make_numpy_app(fit), noise=None, grid=GridWithoutBad)
        caplog.clear()
        app = make_numpy_app(fit, mods=[spoiling(corrupt, "train")])
        spoilt = run(MedianSGD, app, noise=None)
        assert bits(spoilt.arrays) == bits(expected.arrays)
        metrics = spoilt.train_metrics_clientapp[1]
        assert metrics["replies-accepted"] == NUM_CLIENTS - 1
        assert metrics["replies-rejected"] == 1
        assert metrics["train-loss"] == expected.train_metrics_clientapp[1]["train-loss"]
        self.assert_logged(caplog, "aggregate_train", reason)

    @pytest.mark.parametrize(("corrupt", "reason"), BAD_REPLIES.values(), ids=BAD_REPLIES)
    def test_to_evaluation(self, corrupt, reason, run, make_numpy_app, caplog):
        app = make_numpy_app(fit, evaluate, mods=[spoiling(corrupt, "evaluate")])
        metrics = run(MedianSGD, app, noise=None).evaluate_metrics_clientapp[1]
        assert metrics["loss"] == pytest.approx(mean_over(GOOD, float))
        assert metrics["accuracy"] == pytest.approx(mean_over(GOOD, lambda i: 0.2 * i))
        self.assert_logged(caplog, "aggregate_evaluate", reason)

    def test_all_of_them_leave_the_model_alone(self, run, make_numpy_app):
        received = []

        def fail(parameters, config, partition):
            received.append(parameters)
            raise RuntimeError("not today")

        result = run(MedianSGD, make_numpy_app(fail, fail), noise=None, num_rounds=2)
        assert len(received) == 2 * 2 * NUM_CLIENTS
        for parameters in received:
            for array, initial in zip(parameters, MODEL.values(), strict=True):
                np.testing.assert_array_equal(array, initial)
        assert result.train_metrics_clientapp[2]["replies-rejected"] == NUM_CLIENTS
        assert result.evaluate_metrics_clientapp == {}
