"""The mod: an app that trains as always, and answers a fedmedian server with less."""

import re
from math import inf, nan

import numpy as np
import pytest
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
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

from fedmedian import (
    Adaptive,
    ClientMomentum,
    Clip,
    Gaussian,
    Instruction,
    Majority,
    Payload,
    unpack_signs,
)
from fedmedian.clients import InProcessGrid, Policy, perturb, perturb_with
from fedmedian.records import serialized_sizes
from fedmedian.strategies import MedianSGD, SignSGD
from fedmedian.wire.scalars import PREFIX

MODEL = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bias": np.zeros(3),
    "norm.running_mean": np.zeros(2, dtype=np.float32),
    "steps": np.array(3),
}
UPDATE = np.array([1, -2, 3, -4, 5, -6, 0.5, -0.5, 0.25], dtype=np.float32)
NO_EVALUATION = {"rotation": None, "fraction_evaluate": 0.0}
OLDER_KEYS = {
    "arrayrecord_key": "fitins.parameters",
    "configrecord_key": "fitins.config",
    "weighted_by_key": "num_examples",
    "fraction_evaluate": 0.0,
}

SIGNS = SignSGD(None, Majority(), 0.1, **NO_EVALUATION)
VECTORS = MedianSGD(None, **NO_EVALUATION)


def trained(model):
    """What a client makes of the model: one update, and new running statistics."""
    return {
        "weight": model["weight"] - UPDATE[:6].reshape(2, 3),
        "bias": model["bias"] - UPDATE[6:],
        "norm.running_mean": model["norm.running_mean"] + 7,
        "steps": model["steps"] + 1,
    }


def train(model, partition):
    return trained(model), {"num-examples": 5, "loss": 0.5}


@pytest.fixture
def ask(as_record):
    """Sends the app a message as a strategy does, or one with a config; returns the reply."""

    def ask(app, strategy=None, config=None):
        grid = InProcessGrid(app, 3)
        if strategy is not None:
            messages = list(strategy.configure_train(1, as_record(MODEL), ConfigRecord(), grid))
        else:
            content = {"arrays": as_record(MODEL), "config": ConfigRecord(config or {})}
            (node, *_) = grid.get_node_ids()
            messages = [
                Message(RecordDict(content), dst_node_id=node, message_type=MessageType.TRAIN)
            ]
        return grid.send_and_receive(messages)[0]

    return ask


@pytest.fixture
def app(make_app):
    return make_app(train)


def payload_of(reply):
    arrays = [array.numpy() for array in reply.content["arrays"].values()]
    return Payload.decode(arrays, reply.content["fedmedian"])


def require_refusal(reply, *named):
    """The reply is an error that names each of the strings in turn."""
    assert reply.has_error()
    assert reply.error.code == ErrorCode.MOD_FAILED_PRECONDITION
    assert re.search(".*".join(map(re.escape, named)), reply.error.reason), reply.error.reason


class TestReply:
    def test_without_an_instruction_the_mod_replies_as_the_app_would(self, app, make_app, ask):
        plain = make_app(train, mods=())
        with_mod, without = ask(app, config={"lr": 0.1}), ask(plain, config={"lr": 0.1})
        assert with_mod.content == without.content

    def test_signs_are_one_bit_for_each_entry_of_the_update(self, app, ask):
        payload = payload_of(ask(app, SIGNS))
        assert payload.encoding == "signs"
        np.testing.assert_array_equal(unpack_signs(payload.body, UPDATE.size), np.sign(UPDATE))

    def test_a_vector_without_noise_is_the_update(self, app, ask):
        payload = payload_of(ask(app, VECTORS))
        assert payload.encoding == "vector"
        np.testing.assert_array_equal(payload.body, UPDATE)

    def test_noise_has_the_scale_that_the_server_told(self, app, ask):
        payload = payload_of(ask(app, MedianSGD(Gaussian(1e-3), rotation=None, seed=1)))
        assert payload.reports == {}
        assert 0 < np.abs(payload.body - UPDATE).max() < 1e-2

    def test_magnitudes_are_reported_to_a_server_that_adapts_and_to_no_other(self, app, ask):
        rms = [np.sqrt(np.mean(part**2)) for part in (UPDATE[:6], UPDATE[6:])]
        adaptive, fixed = (
            payload_of(ask(app, SignSGD(noise, rotation=None, seed=1)))
            for noise in (Gaussian(Adaptive(3.0)), Gaussian(0.5))
        )
        np.testing.assert_allclose(adaptive.reports["measure"], rms, rtol=1e-6)
        assert fixed.reports == {}

    def test_running_statistics_and_counters_are_sent_exactly(self, app, ask):
        expected = trained(MODEL)["norm.running_mean"].tobytes() + np.array(4).tobytes()
        assert payload_of(ask(app, SIGNS)).exact.tobytes() == expected

    def test_the_clients_own_metrics_stay_in_the_reply(self, app, ask):
        assert dict(ask(app, SIGNS).content["metrics"]) == {"num-examples": 5, "loss": 0.5}

    def test_replies_to_evaluation_are_not_perturbed(self, as_record):
        app = ClientApp(mods=[perturb])
        metrics = MetricRecord({"num-examples": 1, "loss": 0.25})

        @app.evaluate()
        def evaluate(message, context):
            return Message(RecordDict({"metrics": metrics}), reply_to=message)

        grid = InProcessGrid(app, 3)
        strategy = SignSGD()
        messages = strategy.configure_evaluate(1, as_record(MODEL), ConfigRecord(), grid)
        replies = grid.send_and_receive(messages)
        assert all(list(reply.content) == ["metrics"] for reply in replies)
        assert dict(strategy.aggregate_evaluate(1, replies)) == {"loss": 0.25}


class TestEvaluation:
    """Of replies to evaluation Flower's strategies read metrics alone."""

    @pytest.fixture
    def evaluated(self, as_record):
        """Makes a strategy ask an app that answers with the model; returns the replies."""

        def evaluated(strategy, *mods, metrics=("loss",)):
            app = ClientApp(mods=list(mods))
            seen = []

            @app.evaluate()
            def evaluate(message, context):
                seen.append(dict(message.content["config"]))
                content = {"arrays": as_record(MODEL), "more": as_record(MODEL)}
                content["metrics"] = MetricRecord({"num-examples": 1, "loss": 0.25})
                return Message(RecordDict(content), reply_to=message)

            grid = InProcessGrid(app, 3)
            told = ConfigRecord({"lr": 0.1})
            messages = list(strategy.configure_evaluate(1, as_record(MODEL), told, grid))
            replies = grid.send_and_receive(messages)
            assert dict(strategy.aggregate_evaluate(1, replies)) == {"loss": 0.25}
            assert all(config["lr"] == 0.1 for config in seen)
            return replies, seen

        return evaluated

    @pytest.mark.parametrize("strategy", [SIGNS, SignSGD(), MedianSGD(), MedianSGD(None)])
    def test_arrays_in_them_stay_on_the_client_where_a_strategy_of_ours_asks(
        self, strategy, evaluated
    ):
        strategy.fraction_evaluate = 1.0
        replies, seen = evaluated(strategy, perturb)
        assert all(list(reply.content) == ["metrics"] for reply in replies)
        assert not any(key.startswith(PREFIX) for config in seen for key in config)

    def test_so_they_do_of_a_client_with_a_policy_which_would_refuse_them(self, evaluated):
        policy = Policy(clip=1.0, noise_scale=0.5, rounds=1, metrics=["loss", "num-examples"])
        replies, _ = evaluated(SignSGD(), perturb_with(policy))
        assert all(list(reply.content) == ["metrics"] for reply in replies)

    def test_any_other_strategy_gets_what_the_app_answers(self, evaluated):
        replies, _ = evaluated(FedAvg(), perturb)
        without, _ = evaluated(FedAvg())
        assert [one.content for one in replies] == [one.content for one in without]

    @pytest.mark.parametrize("base", [SignSGD, MedianSGD])
    def test_a_subclass_that_reads_them_gets_what_the_app_answers(self, base, evaluated):
        class Reading(base):
            def aggregate_evaluate(self, server_round, replies):
                replies = list(replies)
                for reply in replies:
                    np.testing.assert_array_equal(reply.content["arrays"]["steps"].numpy(), 3)
                return super().aggregate_evaluate(server_round, replies)

        replies, seen = evaluated(Reading(), perturb)
        assert all(list(reply.content) == ["arrays", "more", "metrics"] for reply in replies)
        assert not any(key.startswith(PREFIX) for config in seen for key in config)

    @pytest.mark.parametrize("base", [SignSGD, MedianSGD])
    def test_so_does_a_function_of_the_users_that_aggregates_their_metrics(self, base, evaluated):
        def read(contents, key):
            assert all("more" in content for content in contents)
            return MetricRecord({"loss": 0.25})

        evaluated(base(evaluate_metrics_aggr_fn=read), perturb)

    def test_clients_without_the_mod_are_asked_as_ever(self, evaluated):
        replies, _ = evaluated(SignSGD())
        assert all(list(reply.content) == ["arrays", "more", "metrics"] for reply in replies)

    def test_a_numpyclients_replies_have_no_arrays(self, as_record):
        class Evaluating(NumPyClient):
            def evaluate(self, parameters, config):
                assert not any(key.startswith(PREFIX) for key in config)
                return 0.25, 1, {}

        app = ClientApp(client_fn=lambda context: Evaluating().to_client(), mods=[perturb])
        grid, strategy = InProcessGrid(app, 2), SignSGD(numpy_clients=True)
        messages = strategy.configure_evaluate(1, as_record(MODEL), ConfigRecord(), grid)
        for reply in grid.send_and_receive(messages):
            assert not reply.content.array_records


class TestInstruction:
    def test_the_instruction_is_what_the_strategy_was_made_with(self, ask, make_app):
        told = []

        def listen(message, context, call_next):
            told.append(Instruction.decode(message.content["config"]))
            return call_next(message, context)

        steps = [ClientMomentum(0.5), Clip(2.0)]
        app = make_app(train, mods=(listen, perturb))
        ask(app, SignSGD(Gaussian(0.5), client_steps=steps, seed=3))
        instruction = told[0]
        assert (instruction.encoding.name, instruction.seed) == ("signs", 3)
        assert list(instruction.steps[:2]) == steps
        assert [step.name for step in instruction.steps[2:]] == ["rotation", "noise", "signs"]

    def test_the_app_does_not_see_the_instruction(self, ask):
        seen = {}
        app = ClientApp(mods=[perturb])

        @app.train()
        def train(message, context):
            seen.update(message.content["config"])
            return Message(RecordDict({"arrays": message.content["arrays"]}), reply_to=message)

        assert not ask(app, SIGNS).has_error()
        assert seen == {"server-round": 1}

    def test_mods_after_it_see_the_trained_weights(self, ask, make_app):
        seen = []

        def look(message, context, call_next):
            reply = call_next(message, context)
            seen.append({name: array.numpy() for name, array in reply.content["arrays"].items()})
            return reply

        ask(make_app(train, mods=(perturb, look)), SIGNS)
        np.testing.assert_array_equal(seen[0]["weight"], trained(MODEL)["weight"])


def replacing(message, context, call_next):
    """A mod of an app that replaces its state."""
    context.state = RecordDict({"own": ConfigRecord({"seen": 1})})
    return call_next(message, context)


@pytest.mark.parametrize("mods", [(perturb,), (perturb, replacing)], ids=["as usual", "replaced"])
def test_each_client_with_the_mod_remembers_its_own_momentum_over_the_rounds(
    mods, make_app, as_record, as_arrays
):
    visits = [0, 0, 0]

    def train(model, partition):
        visits[partition] += 1
        return {"x": model["x"] - visits[partition] * (partition + 1)}, {"num-examples": 1}

    strategy = MedianSGD(None, client_steps=[ClientMomentum(0.5)], **NO_EVALUATION)
    grid = InProcessGrid(make_app(train, mods=mods), 3)
    result = strategy.start(grid, as_record({"x": np.zeros(2, np.float32)}), 2)
    # The client in the middle has updates 2 and 4, whose average with decay 1/2 is 10/3.
    np.testing.assert_allclose(as_arrays(result.arrays)["x"], -(2 + 10 / 3), rtol=1e-6)


class TestErrors:
    def test_an_exception_of_the_app_is_reported_as_its_own(self, make_app, ask):
        def fail(model, partition):
            raise KeyError("no data")

        reply = ask(make_app(fail), SIGNS)
        assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        assert "no data" in reply.error.reason

    def test_an_error_reply_of_the_app_passes_through(self, ask):
        app = ClientApp(mods=[perturb])

        @app.train()
        def train(message, context):
            return Message(Error(77, "not today"), reply_to=message)

        reply = ask(app, SIGNS)
        assert (reply.error.code, reply.error.reason) == (77, "not today")

    @pytest.mark.parametrize("mods", [[perturb], []], ids=["with the mod", "without it"])
    @pytest.mark.parametrize("strategy", [SIGNS, None], ids=["training", "no instruction"])
    @pytest.mark.parametrize("returned", [None, RecordDict()], ids=["nothing", "a content"])
    def test_an_app_that_returns_no_message_is_told_so(self, mods, strategy, returned, ask):
        app = ClientApp(mods=mods)
        app.train()(lambda message, context: returned)
        reply = ask(app, strategy)
        assert reply.error.reason.startswith("TypeError: the ClientApp's function must return a ")
        assert reply.error.reason.endswith(f"got {type(returned).__name__}")

    @pytest.mark.parametrize(
        ("strategy", "value"), [(SIGNS, nan), (VECTORS, -inf)], ids=["signs", "vector"]
    )
    def test_an_update_that_is_not_finite_is_refused(self, strategy, value, make_app, ask):
        app = make_app(lambda model, _: ({**model, "bias": np.array([0, value, 0])}, {}))
        require_refusal(ask(app, strategy), "'bias'")

    @pytest.mark.parametrize(
        ("arrays", "named"),
        [
            ({**MODEL, "bias": np.zeros(4)}, ["'bias'", "(4,)", "(3,)"]),
            ({"weight": MODEL["weight"], "more": np.zeros(1)}, ["'bias'", "'more'"]),
        ],
        ids=["shape", "names"],
    )
    def test_arrays_that_are_not_the_models_are_refused(self, arrays, named, make_app, ask):
        require_refusal(ask(make_app(lambda model, _: (arrays, {})), SIGNS), *named)

    @pytest.mark.parametrize("count", [0, 2])
    def test_a_reply_without_exactly_one_array_record_is_refused(self, count, ask, as_record):
        app = ClientApp(mods=[perturb])

        @app.train()
        def train(message, context):
            records = {str(i): as_record(MODEL) for i in range(count)}
            return Message(RecordDict(records), reply_to=message)

        require_refusal(ask(app, SIGNS), "ArrayRecord", f"{count}")

    def test_an_unreadable_instruction_is_refused_before_training(self, make_app, ask):
        def train(model, partition):
            raise AssertionError("trained in vain")

        config = {PREFIX + "instruction": 99}
        require_refusal(ask(make_app(train), config=config), "version 99")

    @pytest.mark.parametrize(
        ("answer", "config"),
        [
            ({**MODEL, "bias": np.full(3, nan)}, {}),
            ({**MODEL, "bias": np.zeros(4)}, {}),
            ({"weight": MODEL["weight"]}, {}),
            (MODEL, {PREFIX + "surprise": 1}),
            (MODEL, {PREFIX + "instruction": 99}),
        ],
        ids=["not finite", "shape", "names", "unknown key", "version"],
    )
    def test_each_refusal_is_one_line_in_the_clients_own_log(
        self, answer, config, make_app, as_record, caplog
    ):
        grid = InProcessGrid(make_app(lambda model, _: (answer, {})), 2)
        message, _ = SIGNS.configure_train(1, as_record(MODEL), ConfigRecord(), grid)
        message.content["config"].update(config)
        caplog.clear()
        (reply,) = grid.send_and_receive([message])
        assert caplog.messages == [reply.error.reason]

    def test_so_is_each_refusal_of_a_policy(self, make_app, as_record, caplog):
        policy = Policy(clip=1.0, noise_scale=0.5, rounds=1)
        grid = InProcessGrid(make_app(train, mods=[perturb_with(policy)]), 2)
        for messages in (
            SIGNS.configure_train(1, as_record(MODEL), ConfigRecord(), grid),
            FedAvg().configure_train(1, as_record(MODEL), ConfigRecord(), grid),
            FedAvg().configure_evaluate(1, as_record(MODEL), ConfigRecord(), grid),
        ):
            caplog.clear()
            (reply,) = grid.send_and_receive(list(messages)[:1])
            assert caplog.messages == [reply.error.reason]

    def test_a_message_with_two_models_is_refused(self, app, as_record):
        grid = InProcessGrid(app, 3)
        (message, *_) = SIGNS.configure_train(1, as_record(MODEL), ConfigRecord(), grid)
        message.content["other"] = ArrayRecord()
        (reply,) = grid.send_and_receive([message])
        require_refusal(reply, "ArrayRecord", "2")


@pytest.mark.parametrize("dim", [8, 10**6])
def test_a_reply_takes_one_bit_per_parameter_and_less_than_a_kilobyte_and_a_half(
    dim, make_app, as_record
):
    grid = InProcessGrid(make_app(lambda model, _: (model, {"num-examples": 1})), 2)
    model = as_record({"x": np.ones(dim, dtype=np.float32)})
    (message, _) = SignSGD().configure_train(1, model, ConfigRecord(), grid)
    (reply,) = grid.send_and_receive([message])
    (size,) = serialized_sizes([reply])
    assert 0 < size - dim / 8 < 1500


class Older(NumPyClient):
    """A client of the older API, whose update is the same in every round."""

    def __init__(self, context):
        self.partition = context.node_config["partition-id"]

    def fit(self, parameters, config):
        assert not any(key.startswith(PREFIX) for key in config)
        model = dict(zip(MODEL, parameters, strict=True))
        return list(trained(model).values()), self.partition + 1, {"loss": 0.5}


class TestNumPyClient:
    """NumPyClients need no more than the mod either."""

    @pytest.fixture
    def start(self, as_record):
        def start(strategy, rounds):
            app = ClientApp(client_fn=lambda context: Older(context).to_client(), mods=[perturb])
            return strategy.start(InProcessGrid(app, 3), as_record(MODEL), rounds)

        return start

    @pytest.mark.parametrize(
        ("make", "direction"),
        [
            (lambda **keys: SignSGD(None, Majority(), 0.1, rotation=None, **keys), np.sign(UPDATE)),
            # Noise a 250,000th of the smallest update: no vote changes in 10^6 runs.
            (
                lambda **keys: SignSGD(Gaussian(1e-6), Majority(), 0.1, rotation=None, **keys),
                np.sign(UPDATE),
            ),
            (lambda **keys: MedianSGD(None, learning_rate=0.1, **keys), UPDATE),
            (lambda **keys: MedianSGD(Gaussian(1e-6), learning_rate=0.1, **keys), UPDATE),
        ],
        ids=["signs", "noisy signs", "median", "noisy median"],
    )
    def test_a_numpyclient_with_the_mod_takes_part_in_rounds(
        self, make, direction, start, as_arrays
    ):
        result = start(make(seed=1, **OLDER_KEYS), 2)
        assert [r["replies-accepted"] for r in result.train_metrics_clientapp.values()] == [3, 3]
        model = as_arrays(result.arrays)
        moved = MODEL["weight"] - model["weight"]
        np.testing.assert_allclose(moved.ravel(), 0.2 * direction[:6], atol=1e-4)
        np.testing.assert_array_equal(model["norm.running_mean"], [14, 14])
        assert model["steps"] == 5
        assert {n: a.dtype for n, a in model.items()} == {n: a.dtype for n, a in MODEL.items()}

    def test_a_numpyclient_without_an_instruction_replies_its_weights(self, start):
        result = start(FedAvg(**OLDER_KEYS), 1)
        np.testing.assert_allclose(result.arrays["0"].numpy(), trained(MODEL)["weight"])


def test_the_mod_twice_does_what_it_does_once_and_says_so(ask, make_app, caplog):
    once = ask(make_app(train, (perturb,)), SIGNS)
    assert "twice" not in caplog.text
    twice = ask(make_app(train, (perturb, perturb)), SIGNS)
    assert "perturb is listed twice in a ClientApp's mods" in caplog.text
    (first,), (second,) = (one.content.array_records.values() for one in (once, twice))
    assert {name: array.data for name, array in first.items()} == {
        name: array.data for name, array in second.items()
    }
