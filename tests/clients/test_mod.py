"""The mod: an app that trains as always, and answers a fedmedian server with less."""

import re
from math import inf, nan

import numpy as np
import pytest
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp.strategy import FedAvg

from fedmedian import Gaussian, Payload, unpack_signs
from fedmedian.clients import InProcessGrid, perturb
from fedmedian.strategies import MedianSGD, SignSGD
from fedmedian.wire import PREFIX, Instruction, serialized_size

MODEL = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bias": np.zeros(3),
    "norm.running_mean": np.zeros(2, dtype=np.float32),
    "steps": np.array(3),
}
UPDATE = np.array([1, -2, 3, -4, 5, -6, 0.5, -0.5, 0.25], dtype=np.float32)
VOTED = ("weight", "bias")
NO_EVALUATION = {"fraction_evaluate": 0.0}

SIGNS = SignSGD(None, "majority", 0.1, **NO_EVALUATION)
VECTORS = MedianSGD(None, **NO_EVALUATION)


def trained(model):
    """What a client makes of the model: one update, and new running statistics."""
    return {
        "weight": model["weight"] - UPDATE[:6].reshape(2, 3),
        "bias": model["bias"] - UPDATE[6:],
        "norm.running_mean": model["norm.running_mean"] + 7,
        "steps": model["steps"] + 1,
    }


@pytest.fixture
def ask(as_record):
    """Sends the app a message as a strategy does, or one with a config; returns the reply."""

    def ask(app, strategy=None, config=None, model=MODEL):
        grid = InProcessGrid(app, 3)
        if strategy is not None:
            messages = list(strategy.configure_train(1, as_record(model), ConfigRecord(), grid))
        else:
            content = {"arrays": as_record(model), "config": ConfigRecord(config or {})}
            (node, *_) = grid.get_node_ids()
            messages = [
                Message(RecordDict(content), dst_node_id=node, message_type=MessageType.TRAIN)
            ]
        return grid.send_and_receive(messages)[0]

    return ask


@pytest.fixture
def app(make_app):
    return make_app(lambda model, partition: (trained(model), {"num-examples": 5, "loss": 0.5}))


def payload_of(reply):
    arrays = [array.numpy() for array in reply.content["arrays"].values()]
    return Payload.decode(arrays, reply.content["fedmedian"])


def refused(reply, reason):
    assert reply.has_error()
    assert reply.error.code == ErrorCode.MOD_FAILED_PRECONDITION
    assert re.search(reason, reply.error.reason)
    return True


def test_without_an_instruction_the_reply_is_the_apps(app, make_app, ask):
    plain = make_app(lambda model, _: (trained(model), {"num-examples": 5, "loss": 0.5}), mods=())
    with_mod, without = ask(app, config={"lr": 0.1}), ask(plain, config={"lr": 0.1})
    assert with_mod.content == without.content


def test_asked_for_signs_it_sends_one_bit_for_each_entry_of_the_update(app, ask):
    payload = payload_of(ask(app, SIGNS))
    assert payload.kind == "signs"
    np.testing.assert_array_equal(unpack_signs(payload.body, UPDATE.size), np.sign(UPDATE))


def test_asked_for_a_vector_it_sends_the_update(app, ask):
    payload = payload_of(ask(app, VECTORS))
    assert payload.kind == "vector"
    np.testing.assert_array_equal(payload.body, UPDATE)


def test_noise_of_the_scale_that_it_is_told_is_added(app, ask):
    payload = payload_of(ask(app, MedianSGD(Gaussian(1e-3), seed=1)))
    noise = payload.body - UPDATE
    assert 0 < np.abs(noise).max() < 1e-2
    np.testing.assert_allclose(payload.scales, 1e-3)


def test_the_clients_own_metrics_stay(app, ask):
    assert dict(ask(app, SIGNS).content["metrics"]) == {"num-examples": 5, "loss": 0.5}


def test_the_size_of_each_array_of_the_update_is_reported_to_a_server_that_adapts(app, ask):
    sizes = [np.sqrt(np.mean(part**2)) for part in (UPDATE[:6], UPDATE[6:])]
    reported = payload_of(ask(app, SignSGD(seed=1))).magnitudes
    np.testing.assert_allclose(reported, sizes, rtol=1e-6)


def test_no_size_is_reported_to_a_server_with_a_scale_of_its_own(app, ask):
    assert not payload_of(ask(app, SignSGD(Gaussian(0.5), seed=1))).magnitudes.any()


def test_running_statistics_and_counters_travel_whole(app, ask):
    payload = payload_of(ask(app, SIGNS))
    expected = trained(MODEL)["norm.running_mean"].tobytes() + np.array(4).tobytes()
    assert payload.dense.tobytes() == expected


def test_the_app_does_not_see_the_instruction(ask):
    seen = {}
    app = ClientApp(mods=[perturb])

    @app.train()
    def train(message, context):
        seen.update(message.content["config"])
        return Message(RecordDict({"arrays": message.content["arrays"]}), reply_to=message)

    assert not ask(app, SIGNS).has_error()
    assert seen == {"server-round": 1}


def test_an_exception_of_the_app_is_its_own(make_app, ask):
    def fail(model, partition):
        raise KeyError("no data")

    reply = ask(make_app(fail), SIGNS)
    assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert "no data" in reply.error.reason


def test_an_error_reply_of_the_app_passes_through(ask):
    app = ClientApp(mods=[perturb])

    @app.train()
    def train(message, context):
        return Message(Error(77, "not today"), reply_to=message)

    reply = ask(app, SIGNS)
    assert (reply.error.code, reply.error.reason) == (77, "not today")


@pytest.mark.parametrize("strategy", [SIGNS, VECTORS], ids=["signs", "vector"])
@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_an_update_that_is_not_finite_is_not_sent(strategy, value, make_app, ask):
    app = make_app(lambda model, _: ({**model, "bias": np.array([0, value, 0])}, {}))
    assert refused(ask(app, strategy), r"update of array 'bias' holds NaN or infinity")


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({**MODEL, "bias": np.zeros(4)}, r"array 'bias' has shape \(4,\), the model's is \(3,\)"),
        ({"weight": MODEL["weight"]}, r"missing \['bias', .*\], extra \[\]"),
        ({**MODEL, "more": np.zeros(1)}, r"missing \[\], extra \['more'\]"),
        (dict(reversed(MODEL.items())), "not in the model's order"),
        ({}, r"missing \['weight'"),
    ],
    ids=["shape", "missing", "extra", "order", "empty"],
)
def test_arrays_that_are_not_the_models_are_not_sent(arrays, reason, make_app, ask):
    assert refused(ask(make_app(lambda model, _: (arrays, {})), SIGNS), reason)


@pytest.mark.parametrize("count", [0, 2])
def test_a_reply_needs_exactly_one_array_record(count, ask, as_record):
    app = ClientApp(mods=[perturb])

    @app.train()
    def train(message, context):
        records = {str(i): as_record(MODEL) for i in range(count)}
        return Message(RecordDict(records), reply_to=message)

    assert refused(ask(app, SIGNS), f"expected one ArrayRecord, got {count}")


def test_an_instruction_that_cannot_be_read_is_refused_before_training(make_app, ask):
    def train(model, partition):
        raise AssertionError("trained in vain")

    config = {PREFIX + "instruction": 99}
    assert refused(ask(make_app(train), config=config), "instruction is of version 99")


def test_a_message_with_more_than_one_model_is_refused(app, as_record):
    grid = InProcessGrid(app, 3)
    (message, *_) = SIGNS.configure_train(1, as_record(MODEL), ConfigRecord(), grid)
    message.content["other"] = ArrayRecord()
    (reply,) = grid.send_and_receive([message])
    assert refused(reply, "expected one ArrayRecord, got 2")


def test_only_training_is_perturbed(as_record):
    app = ClientApp(mods=[perturb])
    metrics = MetricRecord({"num-examples": 1, "loss": 0.25})

    @app.evaluate()
    def evaluate(message, context):
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    grid = InProcessGrid(app, 3)
    messages = SignSGD().configure_evaluate(1, as_record(MODEL), ConfigRecord(), grid)
    replies = grid.send_and_receive(messages)
    assert all(list(reply.content) == ["metrics"] for reply in replies)
    assert dict(SignSGD().aggregate_evaluate(1, replies)) == {"loss": 0.25}


def test_other_mods_inside_see_the_weights(ask, make_app):
    seen = []

    def look(message, context, call_next):
        reply = call_next(message, context)
        seen.append({name: array.numpy() for name, array in reply.content["arrays"].items()})
        return reply

    app = make_app(lambda model, _: (trained(model), {"num-examples": 1}), mods=(perturb, look))
    ask(app, SIGNS)
    np.testing.assert_array_equal(seen[0]["weight"], trained(MODEL)["weight"])


class TestIdentity:
    """Whose noise it is: with a seed the partition's, without one nobody's."""

    @pytest.fixture
    def noise_of(self, as_record):
        def noise_of(strategy, node_config, node_id, server_round=1):
            def unchanged(message, context):
                return Message(RecordDict({"arrays": message.content["arrays"]}), reply_to=message)

            grid = InProcessGrid(ClientApp(), 2)
            model = as_record({"x": np.zeros(100, dtype=np.float32)})
            (message, *_) = strategy.configure_train(server_round, model, ConfigRecord(), grid)
            context = Context(1, node_id, node_config, RecordDict(), {})
            return payload_of(perturb(message, context, unchanged)).body.tobytes()

        return noise_of

    def test_the_same_partition_draws_the_same_whatever_its_node_id(self, noise_of):
        strategy = MedianSGD(Gaussian(1.0), seed=1)
        first = noise_of(strategy, {"partition-id": 3}, 11)
        assert noise_of(strategy, {"partition-id": 3}, 12) == first
        assert noise_of(strategy, {"partition-id": 4}, 11) != first

    def test_every_round_draws_anew(self, noise_of):
        strategy = MedianSGD(Gaussian(1.0), seed=1)
        rounds = {noise_of(strategy, {"partition-id": 3}, 11, number) for number in (1, 2)}
        assert len(rounds) == 2

    def test_without_a_partition_the_node_id_takes_its_place(self, noise_of):
        strategy = MedianSGD(Gaussian(1.0), seed=1)
        assert noise_of(strategy, {}, 11) == noise_of(strategy, {}, 11)
        assert noise_of(strategy, {}, 11) != noise_of(strategy, {}, 2**63 + 5)

    def test_without_a_seed_nothing_repeats(self, noise_of):
        strategy = MedianSGD(Gaussian(1.0))
        noises = {noise_of(strategy, {"partition-id": 3}, 11) for _ in range(3)}
        assert len(noises) == 3


class TestUplink:
    """What a reply costs on the wire."""

    @pytest.fixture
    def size(self, make_app, as_record):
        def size(strategy, dim):
            app = make_app(lambda model, _: (model, {"num-examples": 1}))
            grid = InProcessGrid(app, 2)
            model = as_record({"x": np.ones(dim, dtype=np.float32)})
            messages = strategy.configure_train(1, model, ConfigRecord(), grid)
            return serialized_size(grid.send_and_receive(messages)[0])

        return size

    @pytest.mark.parametrize("noise", [None, Gaussian()], ids=["no noise", "noise"])
    def test_a_parameter_costs_one_bit(self, noise, size):
        strategy = SignSGD(noise, "majority", 0.1, **NO_EVALUATION)
        # Some lengths are themselves written with a varying number of bytes.
        assert size(strategy, 1_000_000) - size(strategy, 200_000) == pytest.approx(100_000, abs=9)

    def test_a_million_parameters_fit_into_a_thirtieth_of_fedavgs_reply(self, size):
        assert size(SignSGD(**NO_EVALUATION), 10**6) * 30 < size(FedAvg(**NO_EVALUATION), 10**6)

    def test_everything_else_takes_less_than_a_kilobyte_and_a_half(self, size):
        assert size(SignSGD(**NO_EVALUATION), 8) < 1500


class Older(NumPyClient):
    """A client of the older API, whose update is the same in every round."""

    def __init__(self, context):
        self.partition = context.node_config["partition-id"]

    def fit(self, parameters, config):
        assert not any(key.startswith(PREFIX) for key in config)
        model = dict(zip(MODEL, parameters, strict=True))
        return list(trained(model).values()), self.partition + 1, {"loss": 0.5}


@pytest.mark.parametrize(
    "make",
    [
        lambda **keys: SignSGD(None, "majority", 0.1, **keys),
        lambda **keys: SignSGD(Gaussian(1e-6), "majority", 0.1, seed=1, **keys),
        lambda **keys: MedianSGD(None, learning_rate=0.1, **keys),
        lambda **keys: MedianSGD(Gaussian(1e-6), learning_rate=0.1, seed=1, **keys),
    ],
    ids=["signs", "noisy signs", "median", "noisy median"],
)
def test_a_numpyclient_needs_no_more_than_the_mod_either(make, as_record, as_arrays):
    strategy = make(
        arrayrecord_key="fitins.parameters",
        configrecord_key="fitins.config",
        weighted_by_key="num_examples",
        fraction_evaluate=0.0,
    )
    app = ClientApp(client_fn=lambda context: Older(context).to_client(), mods=[perturb])
    result = strategy.start(InProcessGrid(app, 3), as_record(MODEL), 2)
    assert [r["replies-accepted"] for r in result.train_metrics_clientapp.values()] == [3, 3]
    model = as_arrays(result.arrays)
    direction = np.sign(UPDATE) if strategy.core.kind == "signs" else UPDATE
    moved = MODEL["weight"] - model["weight"]
    np.testing.assert_allclose(moved.ravel(), 0.2 * direction[:6], atol=1e-4)
    np.testing.assert_array_equal(model["norm.running_mean"], [14, 14])
    assert model["steps"] == 5
    assert {n: a.dtype for n, a in model.items()} == {n: a.dtype for n, a in MODEL.items()}


def test_a_numpyclient_without_an_instruction_replies_its_weights(as_record):
    app = ClientApp(client_fn=lambda context: Older(context).to_client(), mods=[perturb])
    strategy = FedAvg(
        arrayrecord_key="fitins.parameters",
        configrecord_key="fitins.config",
        weighted_by_key="num_examples",
        fraction_evaluate=0.0,
    )
    result = strategy.start(InProcessGrid(app, 3), as_record(MODEL), 1)
    np.testing.assert_allclose(result.arrays["0"].numpy(), trained(MODEL)["weight"])


def test_the_instruction_is_what_the_strategy_was_made_with(ask, make_app):
    told = []

    def listen(message, context, call_next):
        told.append(Instruction.decode(message.content["config"]))
        return call_next(message, context)

    app = make_app(lambda model, _: (model, {}), mods=(listen, perturb))
    ask(app, SignSGD(Gaussian(0.5), seed=3, clip=2.0))
    assert (told[0].kind, told[0].noise, told[0].seed, told[0].clip) == (
        ("signs", "gaussian", 3, 2.0)
    )
