"""The strategies for Flower's older API: they do what those of the Message API do."""

import logging
from dataclasses import dataclass
from math import inf, nan

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common import Code, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import Server, ServerApp, ServerAppComponents, ServerConfig, SimpleClientManager
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedmedian import Adam, Adaptive, Cosine, Gaussian, Laplace, Momentum
from fedmedian.clients import GradientClient, InProcessGrid, SignClient, perturb
from fedmedian.strategies import Checkpoint, MedianSGD, SignSGD, legacy
from fedmedian.wire import PREFIX

NUM_CLIENTS = 5
BAD = 2  # the client that misbehaves
ARRAYS, METRICS = "fitres.parameters", "fitres.metrics"

MODEL = [
    np.arange(20, dtype=np.float32).reshape(4, 5),
    np.linspace(0, 1, 5),
    np.zeros(5, dtype=np.float32),
    np.array(0),
]


@dataclass
class Outcome:
    """What a run leaves: the model, and per round what was reported."""

    model: list
    history: object

    def report(self, server_round=1):
        """One round's report on training."""
        reported = self.history.metrics_distributed_fit
        return {
            name: value
            for name, values in reported.items()
            for number, value in values
            if number == server_round
        }


class ServerThatRemembers(Server):
    """Flower's server, which keeps the history that a ServerApp throws away."""

    def fit(self, num_rounds, timeout):
        self.history, elapsed = super().fit(num_rounds, timeout)
        return self.history, elapsed


class GridWithoutBad(InProcessGrid):
    """Nodes among which the bad client never was."""

    def get_node_ids(self):
        return [node for i, node in enumerate(super().get_node_ids()) if i != BAD]


def run(strategy, app, num_rounds=1, num_clients=NUM_CLIENTS, grid=InProcessGrid):
    server = ServerThatRemembers(client_manager=SimpleClientManager(), strategy=strategy)
    components = ServerAppComponents(server=server, config=ServerConfig(num_rounds=num_rounds))
    server_app = ServerApp(server_fn=lambda context: components)
    server_app(grid(app, num_clients), Context(1, 1, {}, RecordDict(), {}))
    return Outcome(parameters_to_ndarrays(server.parameters), server.history)


def from_model(make, model=MODEL, **options):
    """A strategy that begins with a model and is decided by a seed."""
    return make(**{"seed": 1, "initial_parameters": ndarrays_to_parameters(model), **options})


def bits(model):
    return [(array.dtype, array.shape, array.tobytes()) for array in model]


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def node_of(partition, partition_known=False):
    node = InProcessGrid(ClientApp(), NUM_CLIENTS).get_node_ids()[partition]
    return f"node {node} (partition {partition})" if partition_known else f"node {node}"


def fit(parameters, config, partition):
    """Walks at random, by as many examples as the client's number, and one."""
    draws = np.random.default_rng(partition)
    moved = [x + draws.standard_normal(x.shape).astype(x.dtype) for x in parameters]
    return moved, partition + 1, {}


@pytest.fixture(scope="module")
def plain_app(make_numpy_app):
    return make_numpy_app(fit)


@pytest.fixture(scope="module")
def perturbed_app(make_numpy_app):
    return make_numpy_app(fit, mods=[perturb])


@pytest.fixture(autouse=True)
def one_thread():
    """Models as small as these only wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class TestTraining:
    """The paper's toy, f_i(x) = (x − a_i)²/2: where it comes to rest; see test_knowledge.py."""

    A = (1.0, 2.0, 10.0)
    COPIES = 4000  # independent ones, over which the noise averages out

    @pytest.fixture
    def numpy_app(self, make_numpy_app):
        def jump(parameters, config, partition):
            return [np.full_like(x, self.A[partition]) for x in parameters], 1, {}

        return lambda mods: make_numpy_app(jump, mods=mods)

    @pytest.fixture
    def torch_app(self):
        def loss(outputs, targets):
            return ((outputs - targets) ** 2).sum() / (2 * len(targets))

        def app(make):
            def client_fn(context):
                optimum = self.A[context.node_config["partition-id"]]
                data = TensorDataset(torch.ones(2, 1), torch.full((2, self.COPIES), optimum))
                model = nn.Linear(1, self.COPIES, bias=False)
                return make(context, model, DataLoader(data), loss=loss).to_client()

            return ClientApp(client_fn=client_fn)

        return app

    def rest(self, strategy, app, num_rounds):
        end = {}

        def server_fn(context):
            return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds))

        strategy.evaluate_fn = lambda number, model, config: end.update(x=model[0])
        grid = InProcessGrid(app, len(self.A))
        ServerApp(server_fn=server_fn)(grid, Context(1, 1, {}, RecordDict(), {}))
        return end["x"].mean()

    def toy(self, make, *args, **options):
        start = [np.full((self.COPIES, 1), 4.0, np.float32)]
        options = {"diagnostics": False, "fraction_evaluate": 0.0, **options}
        return from_model(lambda **more: make(*args, **more), start, **options)

    def test_a_plain_median_of_unmodified_clients_ends_at_the_median(self, numpy_app):
        strategy = self.toy(legacy.MedianSGD, None)
        assert self.rest(strategy, numpy_app([]), num_rounds=2) == 2.0

    def test_a_smoothed_median_of_unmodified_clients_ends_near_the_mean(self, numpy_app):
        strategy = self.toy(legacy.MedianSGD, Gaussian(10.0), estimator="smoothed")
        assert self.rest(strategy, numpy_app([]), num_rounds=12) == pytest.approx(4.259, abs=0.002)

    def test_noise_at_the_server_takes_unmodified_clients_near_the_mean(self, numpy_app):
        strategy = self.toy(legacy.MedianSGD, Gaussian(10.0), "server", 0.2)
        assert self.rest(strategy, numpy_app([]), num_rounds=25) == pytest.approx(4.162, abs=0.2)

    def test_so_does_noise_from_the_mod(self, numpy_app):
        strategy = self.toy(legacy.MedianSGD, Gaussian(10.0), learning_rate=0.2)
        app = numpy_app([perturb])
        assert self.rest(strategy, app, num_rounds=25) == pytest.approx(4.162, abs=0.2)

    def test_and_so_do_the_signs_of_the_mod(self, numpy_app):
        strategy = self.toy(legacy.SignSGD, Gaussian(10.0), learning_rate=0.2)
        app = numpy_app([perturb])
        assert self.rest(strategy, app, num_rounds=25) == pytest.approx(4.259, abs=0.2)

    def test_plain_signs_step_towards_the_median(self, numpy_app):
        strategy = self.toy(legacy.SignSGD, None, "majority", 0.125)
        assert self.rest(strategy, numpy_app([perturb]), num_rounds=15) == 4.0 - 15 * 0.125

    def test_sign_clients_end_near_the_mean(self, torch_app):
        strategy = self.toy(legacy.SignSGD, Gaussian(10.0), learning_rate=0.2)
        app = torch_app(SignClient)
        assert self.rest(strategy, app, num_rounds=25) == pytest.approx(4.259, abs=0.2)

    def test_gradient_clients_end_near_the_mean(self, torch_app):
        strategy = self.toy(legacy.MedianSGD, Gaussian(10.0), learning_rate=0.2)
        app = torch_app(GradientClient)
        assert self.rest(strategy, app, num_rounds=25) == pytest.approx(4.162, abs=0.2)


class TestBatchNorm:
    """Arrays have no names: `dense` tells running statistics by position."""

    BATCHES = 2

    @staticmethod
    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))

    MEAN, VARIANCE, COUNTER = 4, 5, 6  # in the order of its state dict

    @staticmethod
    def batches(partition):
        draws = torch.Generator().manual_seed(partition)
        data = TensorDataset(torch.randn(8, 4, generator=draws), torch.arange(8) % 3)
        return DataLoader(data, 8 // TestBatchNorm.BATCHES)

    def statistics(self, partition):
        """A client's running mean and variance after a round."""
        model = self.model().train()
        for inputs, _ in self.batches(partition):
            model(inputs)
        state = list(model.state_dict().values())
        return state[self.MEAN].numpy(), state[self.VARIANCE].numpy()

    @pytest.mark.parametrize(
        ("make", "client", "combine"),
        [
            (legacy.SignSGD, SignClient, np.mean),
            (legacy.MedianSGD, GradientClient, np.median),
        ],
    )
    def test_running_statistics_travel_whole(self, make, client, combine):
        def client_fn(context):
            batches = self.batches(context.node_config["partition-id"])
            return client(context, self.model(), batches, test_loader=batches).to_client()

        initial = [value.numpy() for value in self.model().state_dict().values()]
        strategy = from_model(make, initial, dense=[str(self.MEAN), str(self.VARIANCE)])
        model = run(strategy, ClientApp(client_fn=client_fn)).model
        clients = [self.statistics(partition) for partition in range(NUM_CLIENTS)]
        for position, values in zip(
            (self.MEAN, self.VARIANCE), zip(*clients, strict=True), strict=True
        ):
            np.testing.assert_allclose(model[position], combine(values, axis=0), rtol=1e-5)
        assert model[self.COUNTER] == self.BATCHES
        assert [array.dtype for array in model] == [array.dtype for array in initial]
        assert model[self.COUNTER].dtype == np.int64
        assert not np.array_equal(model[0], initial[0])


SAME_AS_THE_MESSAGE_API = {
    "signs": ("SignSGD", {}, [perturb]),
    "majority": (
        "SignSGD",
        {"noise": None, "decode": "majority", "learning_rate": 0.1, "ties": "unchanged"},
        [perturb],
    ),
    "majority, calibrated": (
        "SignSGD",
        {"decode": "majority", "calibrated": True, "weighted": False},
        [perturb],
    ),
    "signs, much on the server": (
        "SignSGD",
        {"optimizer": Momentum(), "average": 0.5, "learning_rate": Cosine(1.0, 3)},
        [perturb],
    ),
    "signs, much on the clients": (
        "SignSGD",
        {"client_momentum": 0.9, "client_learning_rate": 0.1, "clip": 1.0, "noise_from": "client"},
        [perturb],
    ),
    "signs, a dense array": ("SignSGD", {"dense": ["2"]}, [perturb]),
    "median": ("MedianSGD", {}, [perturb]),
    "median, Adam": ("MedianSGD", {"optimizer": Adam(), "learning_rate": 0.01}, [perturb]),
    "median, unmodified clients": ("MedianSGD", {"noise": None, "clip": 2.0}, []),
    "median, noise at the server": ("MedianSGD", {"noise_at": "server"}, []),
    "smoothed": ("MedianSGD", {"estimator": "smoothed"}, []),
}


@pytest.mark.parametrize(
    ("name", "options", "mods"), SAME_AS_THE_MESSAGE_API.values(), ids=SAME_AS_THE_MESSAGE_API
)
def test_model_and_reports_are_those_of_the_message_api(
    name, options, mods, make_numpy_app, as_record, as_arrays
):
    app, rounds = make_numpy_app(fit, mods=mods), 3
    older = run(from_model(getattr(legacy, name), **options), app, rounds)
    strategy = {"SignSGD": SignSGD, "MedianSGD": MedianSGD}[name](
        **options, seed=1, numpy_clients=True
    )
    initial = as_record({str(i): array for i, array in enumerate(MODEL)})
    newer = strategy.start(InProcessGrid(app, NUM_CLIENTS), initial, rounds)
    assert bits(older.model) == bits(as_arrays(newer.arrays).values())
    assert bits(older.model) != bits(MODEL)
    for number, metrics in newer.train_metrics_clientapp.items():
        # Its size as sent is another: Flower's headers are not the older API's to see.
        expected = {key: value for key, value in metrics.items() if key != "uplink-bytes"}
        reported = older.report(number)
        assert reported.pop("uplink-bytes") > 0
        assert reported == expected


def test_the_uplink_is_the_clients_arrays(perturbed_app):
    strategy = from_model(legacy.SignSGD)
    header = 128  # of an .npy file
    voted, dense = 20 + 5 + 5, 8
    signs = -(-voted // 8)
    outcome = run(strategy, perturbed_app)
    assert outcome.report()["uplink-bytes"] == (header + signs) + (header + dense)


def test_the_average_over_rounds_is_kept(perturbed_app):
    strategy = from_model(legacy.SignSGD, average=0.75)
    assert strategy.averaged_parameters is None
    models = []
    strategy.evaluate_fn = lambda number, model, config: models.append(model)
    run(strategy, perturbed_app, num_rounds=2)
    averaged = parameters_to_ndarrays(strategy.averaged_parameters)
    _, first, second = models
    np.testing.assert_allclose(averaged[0], 0.75 * first[0] + 0.25 * second[0], rtol=1e-6)
    assert averaged[3] == second[3]


def test_without_an_initial_model_a_client_is_asked_for_one(make_numpy_app):
    class WithParameters(SignClient):
        def __init__(self):
            pass

        def get_parameters(self, config):
            return MODEL

        def fit(self, parameters, config):
            return fit(parameters, config, 0)

        def evaluate(self, parameters, config):
            return 0.0, 1, {}

    app = ClientApp(client_fn=lambda context: WithParameters().to_client(), mods=[perturb])
    outcome = run(legacy.SignSGD(seed=1), app)
    assert [array.shape for array in outcome.model] == [array.shape for array in MODEL]
    assert outcome.report()["replies-accepted"] == NUM_CLIENTS


def test_a_strategy_says_what_it_is_made_of():
    text = repr(legacy.MedianSGD(Laplace(0.5), clip=3.0))
    assert text.startswith("MedianSGD(noise=Laplace(scale=0.5)")
    assert "clip=3.0" in text


# What a client can do wrong: a corruption of its reply, the reason that is logged, and whether the
# older API still gives it to the strategy (and it is rejected) or makes it a failure of unknown
# origin (and the client is missing).


def put(reply, position, array):
    record = dict(reply.content[ARRAYS])
    reply.content[ARRAYS] = ArrayRecord({**record, str(position): Array(array)})


def spoil_array(position, change):
    def corrupt(reply):
        put(reply, position, change(reply.content[ARRAYS][str(position)].numpy()))

    return corrupt


def with_value(value):
    def change(array):
        spoilt = array.copy()
        spoilt.flat[1] = value
        return spoilt

    return change


def one_array_less(reply):
    del reply.content[ARRAYS]["3"]


def one_array_more(reply):
    put(reply, 4, np.zeros(3))


def no_array(reply):
    reply.content[ARRAYS] = ArrayRecord({})


def junk_bytes(reply):
    key = next(iter(reply.content[ARRAYS]))
    reply.content[ARRAYS][key] = Array("float32", (4, 5), "numpy.ndarray", b"junk")


def truncated_bytes(reply):
    (key, whole), *_ = reply.content[ARRAYS].items()
    reply.content[ARRAYS][key] = Array(whole.dtype, whole.shape, whole.stype, whole.data[:-1])


def examples(value):
    def corrupt(reply):
        reply.content["fitres.num_examples"] = MetricRecord({"num_examples": value})

    return corrupt


def bad_status(reply):
    status = {"code": Code.FIT_NOT_IMPLEMENTED.value, "message": "out of memory"}
    reply.content["fitres.status"] = ConfigRecord(status)


def crash(reply):
    raise RuntimeError("the disk is full")


def no_arrays_record(reply):
    del reply.content[ARRAYS]


def change(key, value):
    def corrupt(reply):
        assert PREFIX + key in reply.content[METRICS]
        reply.content[METRICS] = ConfigRecord({**reply.content[METRICS], PREFIX + key: value})

    return corrupt


def plain_weights(reply):
    reply.content[ARRAYS] = ArrayRecord({str(i): Array(x) for i, x in enumerate(MODEL)})
    reply.content[METRICS] = ConfigRecord({})


REJECTED, MISSING = "replies-rejected", "replies-missing"

BAD_IN_ANY_REPLY = {
    "it raises": (crash, "the disk is full", MISSING),
    "half a message": (no_arrays_record, "KeyError('fitres.parameters')", MISSING),
    "it says it failed": (bad_status, "client failed: 'out of memory'", REJECTED),
    "junk bytes": (junk_bytes, "not in .npy format", REJECTED),
    "truncated bytes": (truncated_bytes, "not in .npy format", REJECTED),
    **{
        f"{value} examples": (examples(value), "'num_examples' must be a number > 0", REJECTED)
        for value in (0, -1, nan, inf, [1, 2])
    },
}

BAD_WEIGHTS = {
    **BAD_IN_ANY_REPLY,
    **{
        f"{value}": (
            spoil_array(0, with_value(value)),
            "update of array '0' holds NaN or infinity",
            REJECTED,
        )
        for value in (nan, inf, -inf)
    },
    "another shape": (spoil_array(0, np.ravel), "array '0' has shape (20,)", REJECTED),
    "a shape that broadcasts": (spoil_array(1, lambda x: x[:1]), "has shape (1,)", REJECTED),
    "text": (spoil_array(1, lambda x: x.astype(str)), "'subtract'", REJECTED),
    "an array less": (one_array_less, "missing ['3'], extra []", REJECTED),
    "an array more": (one_array_more, "missing [], extra ['4']", REJECTED),
    "no array": (no_array, "missing ['0', '1', '2', '3']", REJECTED),
}

BAD_SIGNS = {
    **BAD_IN_ANY_REPLY,
    "plain weights": (plain_weights, "does its ClientApp have mods=[perturb]?", REJECTED),
    "other noise": (change("noise", "uniform"), "used noise 'uniform'", REJECTED),
    "another scale": (
        change("scales", np.full(3, 0.6, "<f4").tobytes()),
        "used another noise scale than it was told",
        REJECTED,
    ),
    "a vector": (change("kind", "vector"), "sent 'vector', was asked for 'signs'", REJECTED),
    "another version": (change("payload", 99), "version 99", REJECTED),
    "no array": (no_array, "a payload has one or two arrays, got 0", REJECTED),
}


def spoiling(corrupt, only=BAD, in_round=None):
    """A mod that corrupts one client's replies to training, in every round or one."""

    def spoil(message, context, call_next):
        server_round = int(message.metadata.group_id or 0)
        reply = call_next(message, context)
        if (
            context.node_config["partition-id"] == only
            and message.metadata.message_type == "train"
            and in_round in (None, server_round)
        ):
            corrupt(reply)
        return reply

    return spoil


def fixed_signs(**options):
    return from_model(legacy.SignSGD, noise=Gaussian(0.5), **options)


def plain_median(**options):
    return from_model(legacy.MedianSGD, noise=None, **options)


class TestBadResults:
    """They neither end the run nor touch the model; they are counted, and logged with a reason."""

    @pytest.fixture
    def assert_dropped(self, make_numpy_app, caplog):
        def check(make, mods, reason, counted):
            good = [mod for mod in mods if mod is perturb]
            expected = run(make(), make_numpy_app(fit, mods=good), grid=GridWithoutBad)
            assert bits(expected.model) != bits(MODEL)
            caplog.clear()
            spoilt = run(make(), make_numpy_app(fit, mods=mods))
            assert bits(spoilt.model) == bits(expected.model)
            report = spoilt.report()
            assert report["replies-accepted"] == NUM_CLIENTS - 1
            assert {key: report[key] for key in (REJECTED, MISSING)} == {
                REJECTED: 0,
                MISSING: 0,
                counted: 1,
            }
            if counted == REJECTED:
                (warning,) = (w for w in warnings(caplog) if w.startswith("aggregate_fit:"))
                assert f"dropped the reply of {node_of(BAD)}: " in warning
                assert reason in warning
            else:
                failed, missing = (w for w in warnings(caplog) if w.startswith("aggregate_fit:"))
                assert failed.startswith("aggregate_fit: a client failed: ")
                assert reason in failed
                assert missing == f"aggregate_fit: no reply from {node_of(BAD)}"

        return check

    @pytest.mark.parametrize(
        ("corrupt", "reason", "counted"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS
    )
    def test_bad_weights(self, corrupt, reason, counted, assert_dropped):
        assert_dropped(plain_median, [spoiling(corrupt)], reason, counted)

    @pytest.mark.parametrize(("corrupt", "reason", "counted"), BAD_SIGNS.values(), ids=BAD_SIGNS)
    def test_bad_signs(self, corrupt, reason, counted, assert_dropped):
        assert_dropped(fixed_signs, [spoiling(corrupt), perturb], reason, counted)

    def test_what_the_mod_refuses_to_send(self, assert_dropped):
        spoil = spoiling(spoil_array(0, with_value(nan)))
        reason = "perturb: update of array '0' holds NaN or infinity"
        assert_dropped(fixed_signs, [perturb, spoil], reason, MISSING)

    def test_once_a_client_has_told_its_partition_the_log_has_it(self, make_numpy_app, caplog):
        for corrupt, line in [(crash, "no reply from {}"), (bad_status, "dropped the reply of {}")]:
            caplog.clear()
            mods = [spoiling(corrupt, in_round=2), perturb]
            run(fixed_signs(), make_numpy_app(fit, mods=mods), num_rounds=2)
            line = line.format(node_of(BAD, partition_known=True))
            assert any(line in warning for warning in warnings(caplog))

    def test_rounds_in_which_every_client_fails_leave_the_model(self, make_numpy_app, caplog):
        def fail(parameters, config, partition):
            raise RuntimeError("not today")

        outcome = run(plain_median(), make_numpy_app(fail), num_rounds=2)
        assert bits(outcome.model) == bits(MODEL)
        assert outcome.report(2) == {
            "replies-accepted": 0,
            "replies-rejected": 0,
            "replies-missing": NUM_CLIENTS,
        }
        kept = "round 2 keeps the model as it is: 0 usable replies, min_replies is 1"
        assert kept in warnings(caplog)

    @pytest.mark.parametrize("corrupt", [crash, bad_status, junk_bytes])
    @pytest.mark.parametrize("accept_failures", [True, False])
    def test_a_round_with_failures_can_be_refused(
        self, corrupt, accept_failures, make_numpy_app, caplog
    ):
        strategy = plain_median(accept_failures=accept_failures)
        outcome = run(strategy, make_numpy_app(fit, mods=[spoiling(corrupt)]))
        assert (bits(outcome.model) == bits(MODEL)) is not accept_failures
        said = "no reply is used: some clients failed, and accept_failures is False"
        assert (said in warnings(caplog)) is not accept_failures

    def test_a_round_without_failures_is_not(self, plain_app):
        assert bits(run(plain_median(accept_failures=False), plain_app).model) != bits(MODEL)

    @pytest.mark.parametrize(("min_replies", "moves"), [(4, True), (5, False)])
    def test_a_round_with_too_few_replies_keeps_the_model(self, min_replies, moves, make_numpy_app):
        app = make_numpy_app(fit, mods=[spoiling(crash)])
        outcome = run(plain_median(min_replies=min_replies), app)
        assert (bits(outcome.model) != bits(MODEL)) is moves


class TestMetrics:
    @pytest.fixture
    def aggregated(self, make_numpy_app):
        """Runs a round of clients with these metrics; returns what they are aggregated from."""

        def aggregated(metrics_of, **options):
            received = []

            def aggregate(metrics):
                received.extend(metrics)
                return {"loss": 0.5, "clients": len(metrics)}

            def fit_with_metrics(parameters, config, partition):
                moved, num_examples, _ = fit(parameters, config, partition)
                return moved, num_examples, metrics_of(partition)

            strategy = fixed_signs(fit_metrics_aggregation_fn=aggregate, **options)
            outcome = run(strategy, make_numpy_app(fit_with_metrics, mods=[perturb]))
            return sorted(received, key=lambda pair: pair[0]), outcome

        return aggregated

    def test_they_are_the_clients_own_and_are_reported_with_ours(self, aggregated):
        received, outcome = aggregated(lambda partition: {"loss": 0.1 * partition, "by": "me"})
        assert received == [
            (partition + 1, {"loss": 0.1 * partition, "by": "me"})
            for partition in range(NUM_CLIENTS)
        ]
        report = outcome.report()
        assert (report["loss"], report["clients"]) == (0.5, NUM_CLIENTS)
        assert report["replies-accepted"] == NUM_CLIENTS
        assert set(report) >= {"noise-scale", "vote-agreement", "signal-to-noise"}

    @pytest.mark.parametrize("odd", [{"accuracy": 1.0}, {"loss": "junk"}, {"loss": nan}])
    def test_odd_ones_are_left_out_but_the_result_counts(self, aggregated, odd, caplog):
        received, outcome = aggregated(lambda i: odd if i == BAD else {"loss": 1.0})
        assert len(received) == NUM_CLIENTS - 1
        assert all(metrics == {"loss": 1.0} for _, metrics in received)
        assert outcome.report()["replies-accepted"] == NUM_CLIENTS
        (warning,) = (w for w in warnings(caplog) if "left the metrics" in w)
        assert "['loss (number)']" in warning

    def test_too_few_replies_to_move_the_model_have_metrics_too(self, aggregated):
        received, outcome = aggregated(lambda i: {"loss": 1.0}, min_replies=NUM_CLIENTS + 1)
        assert len(received) == NUM_CLIENTS
        assert outcome.report()["loss"] == 0.5
        assert bits(outcome.model) == bits(MODEL)


class TestConfig:
    @pytest.mark.parametrize("mods", [[], [perturb]])
    def test_the_callers_reaches_the_clients_and_stays_as_it_was(self, mods, make_numpy_app):
        config, seen = {"epochs": 3, "name": "x", "raw": b"\x00"}, []

        def listen(parameters, config, partition):
            seen.append(dict(config))
            return fit(parameters, config, partition)

        strategy = from_model(
            legacy.MedianSGD, noise_at="server", on_fit_config_fn=lambda server_round: config
        )
        run(strategy, make_numpy_app(listen, mods=mods), num_rounds=2)
        assert config == {"epochs": 3, "name": "x", "raw": b"\x00"}
        assert len(seen) == 2 * NUM_CLIENTS
        assert all(config.items() <= received.items() for received in seen)
        if mods:
            assert all(received == config for received in seen)

    def test_evaluations_has_nothing_of_ours(self, make_numpy_app):
        seen = []

        def listen(parameters, config, partition):
            seen.append(dict(config))
            return 0.0, 1, {}

        strategy = fixed_signs(on_evaluate_config_fn=lambda server_round: {"at": server_round})
        run(strategy, make_numpy_app(fit, listen, mods=[perturb]))
        assert seen == [{"at": 1}] * NUM_CLIENTS


def evaluate(parameters, config, partition):
    return float(partition), partition + 1, {"accuracy": 0.1 * partition}


def weighted(metrics):
    total = sum(num_examples for num_examples, _ in metrics)
    return {"accuracy": sum(n * own["accuracy"] for n, own in metrics) / total}


def mean_over(partitions, value_of):
    return np.average([value_of(i) for i in partitions], weights=[i + 1 for i in partitions])


class TestEvaluation:
    ALL = tuple(range(NUM_CLIENTS))
    GOOD = tuple(i for i in ALL if i != BAD)

    @pytest.fixture
    def evaluated(self, make_numpy_app):
        """Runs a round whose clients evaluate like this; returns loss and accuracy, if any."""

        def evaluated(evaluate, **options):
            strategy = plain_median(evaluate_metrics_aggregation_fn=weighted, **options)
            history = run(strategy, make_numpy_app(fit, evaluate)).history
            losses, accuracies = (
                dict(history.losses_distributed),
                dict(history.metrics_distributed.get("accuracy", ())),
            )
            return losses.get(1), accuracies.get(1)

        return evaluated

    @staticmethod
    def but(bad):
        """Clients one of which does otherwise."""
        return lambda *args: (bad if args[2] == BAD else evaluate)(*args)

    def assert_averages(self, results, partitions):
        loss, accuracy = results
        assert loss == pytest.approx(mean_over(partitions, float))
        assert accuracy == pytest.approx(mean_over(partitions, lambda i: 0.1 * i))

    def test_losses_and_metrics_are_averaged_by_examples(self, evaluated):
        self.assert_averages(evaluated(evaluate), self.ALL)

    @pytest.mark.parametrize(
        ("result", "reason"),
        [
            ((nan, 1, {"accuracy": 0.5}), "loss must be finite, got nan"),
            ((inf, 1, {"accuracy": 0.5}), "loss must be finite, got inf"),
            ((1.0, 0, {"accuracy": 0.5}), "'num_examples' must be a number > 0, got 0"),
            ((1.0, -1, {"accuracy": 0.5}), "'num_examples' must be a number > 0, got -1"),
        ],
    )
    def test_a_bad_result_is_dropped_and_logged(self, result, reason, evaluated, caplog):
        self.assert_averages(evaluated(self.but(lambda *args: result)), self.GOOD)
        (warning,) = (w for w in warnings(caplog) if "aggregate_evaluate" in w)
        assert warning.startswith(f"aggregate_evaluate: dropped the reply of {node_of(BAD)}: ")
        assert reason in warning

    def test_a_client_that_raises_is_named(self, evaluated, caplog):
        def fail(*args):
            raise RuntimeError("no test data")

        self.assert_averages(evaluated(self.but(fail)), self.GOOD)
        failed, missing = (w for w in warnings(caplog) if "aggregate_evaluate" in w)
        assert "no test data" in failed
        assert missing == f"aggregate_evaluate: no reply from {node_of(BAD)}"

    def test_a_result_with_odd_metrics_is_left_out(self, evaluated):
        def odd(*args):
            return 1.0, 1, {"f1": 0.5}

        self.assert_averages(evaluated(self.but(odd)), self.GOOD)

    def test_a_round_with_failures_can_be_refused(self, evaluated):
        def diverge(*args):
            return nan, 1, {}

        assert evaluated(self.but(diverge), accept_failures=False) == (None, None)
        self.assert_averages(evaluated(evaluate, accept_failures=False), self.ALL)

    def test_without_a_usable_result_there_is_none(self, evaluated):
        assert evaluated(lambda *args: (nan, 1, {})) == (None, None)

    def test_the_servers_own_sees_every_model(self, plain_app):
        seen = []

        def evaluate_fn(server_round, model, config):
            seen.append((server_round, bits(model)))
            return 0.25, {"accuracy": 0.75}

        outcome = run(plain_median(evaluate_fn=evaluate_fn), plain_app, num_rounds=2)
        assert [server_round for server_round, _ in seen] == [0, 1, 2]
        assert seen[0][1] == bits(MODEL)
        assert seen[2][1] == bits(outcome.model)
        assert outcome.history.losses_centralized == [(0, 0.25), (1, 0.25), (2, 0.25)]


class TestCheckpoint:
    """A run that was stopped goes on with a fresh strategy and the same folder."""

    @pytest.mark.parametrize(
        ("make", "options"),
        [
            (legacy.SignSGD, {"noise": Gaussian(Adaptive(2.0)), "average": 0.5}),
            (legacy.SignSGD, {"optimizer": Adam(), "learning_rate": 0.1}),
            (legacy.MedianSGD, {"optimizer": Momentum()}),
        ],
        ids=["signs", "signs, Adam", "median, Momentum"],
    )
    @pytest.mark.parametrize(("every", "stored"), [(1, 3), (2, 2)])
    def test_it_ends_with_the_model_of_a_run_that_was_not(
        self, make, options, every, stored, make_numpy_app, tmp_path
    ):
        trained = []

        def count(parameters, config, partition):
            trained.append(partition)
            return fit(parameters, config, partition)

        app = make_numpy_app(count, mods=[perturb])

        def strategy(**more):
            return from_model(make, **options, **more)

        whole = strategy()
        expected = run(whole, app, num_rounds=6)
        checkpoint = Checkpoint(tmp_path / "run", every=every)
        run(strategy(checkpoint=checkpoint), app, num_rounds=3)
        trained.clear()
        resumed = strategy(checkpoint=checkpoint)
        outcome = run(resumed, app, num_rounds=6)
        assert bits(outcome.model) == bits(expected.model)
        assert resumed.averaged_parameters == whole.averaged_parameters
        assert len(trained) == (6 - stored) * NUM_CLIENTS
        for server_round in range(stored + 1, 7):
            assert outcome.report(server_round) == expected.report(server_round)

    def test_only_the_rounds_that_are_left_are_evaluated(self, perturbed_app, tmp_path):
        checkpoint = Checkpoint(tmp_path)
        run(fixed_signs(checkpoint=checkpoint), perturbed_app, num_rounds=2)
        seen = []
        strategy = fixed_signs(
            checkpoint=checkpoint, evaluate_fn=lambda number, *args: seen.append(number)
        )
        outcome = run(strategy, perturbed_app, num_rounds=4)
        assert seen == [2, 3, 4]
        assert [number for number, _ in outcome.history.losses_distributed] == [2, 3, 4]

    def test_the_model_need_not_be_given_again(self, perturbed_app, tmp_path):
        checkpoint = Checkpoint(tmp_path)
        first = run(fixed_signs(checkpoint=checkpoint), perturbed_app)
        again = fixed_signs(checkpoint=checkpoint, initial_parameters=None)
        assert bits(run(again, perturbed_app).model) == bits(first.model)

    @pytest.mark.parametrize(
        ("other", "reason"),
        [
            (lambda **own: fixed_signs(seed=2, **own), "seed=1, this one has seed=2"),
            (plain_median, "kind='signs', this one has kind='vector'"),
            (
                lambda **own: from_model(legacy.SignSGD, MODEL[:1], noise=Gaussian(0.5), **own),
                "is of another model",
            ),
        ],
    )
    def test_another_run_is_refused(self, other, reason, perturbed_app, tmp_path):
        checkpoint = Checkpoint(tmp_path)
        run(fixed_signs(checkpoint=checkpoint), perturbed_app)
        with pytest.raises(ValueError, match="checkpoint") as raised:
            other(checkpoint=checkpoint).initialize_parameters(SimpleClientManager())
        assert reason in str(raised.value)
