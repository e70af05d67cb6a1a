"""Arrays have names, and their order says nothing: neither the server's nor a client's.

Only clients without names of their own, such as NumPyClients, are understood by position.
"""

import re
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.common import FitIns, Parameters

from fedmedian import CodedSteps, Gaussian, Instruction, Momentum
from fedmedian.clients import InProcessGrid, Policy, perturb, perturb_with
from fedmedian.clients.attacks import Hostile, SignFlip
from fedmedian.records import arrays_to_parameters, to_arrays, to_record
from fedmedian.steps.encodings import Signs
from fedmedian.steps.noise import AddNoise

NUM_CLIENTS = 5
MODEL = {
    "linear.w": np.zeros((3, 4), np.float32),
    "conv.w": np.ones((4, 3), np.float32),
    "norm.running_mean": np.zeros(3, np.float32),
    "conv.b": np.zeros(12),
    "steps": np.array(0),
}


def train(model, partition):
    """Move each array by an amount that its name and the client's partition tell."""
    trained = {
        name: array + np.asarray(len(name) + partition, array.dtype)
        for name, array in model.items()
    }
    return trained, {"num-examples": 10, "loss": 1.0}


def in_order(arrange):
    """Make clients that return their arrays in another order."""

    def train_in_order(model, partition):
        trained, metrics = train(model, partition)
        return dict(arrange(partition, [*trained.items()])), metrics

    return train_in_order


ORDERS = {
    "sorted": lambda partition, items: sorted(items),
    "reversed": lambda partition, items: items[::-1],
    "another for each client": lambda partition, items: items[partition:] + items[:partition],
}
orders = pytest.mark.parametrize("arrange", ORDERS.values(), ids=ORDERS)

STRATEGIES = {
    "signs": ("SignSGD", (), {}),
    "median": ("MedianSGD", (), {}),
    "median, momentum": ("MedianSGD", (None,), {"optimizer": Momentum(), "rotation": None}),
}
strategies = pytest.mark.parametrize(
    ("make", "args", "options"), STRATEGIES.values(), ids=STRATEGIES
)


@pytest.fixture
def play(message_api, run, warnings):
    """Runs a strategy of the Message API on clients that return arrays by name."""

    def play(make, args, train, model=MODEL, options=(), num_rounds=3, **run_options):
        strategy = message_api.make(make, *args, fraction_evaluate=0.0, **dict(options))
        return run(strategy, train, model, NUM_CLIENTS, num_rounds, **run_options)

    return play


class TestTheOrderOfAReply:
    @orders
    @strategies
    def test_it_changes_nothing(self, make, args, options, arrange, play, bits):
        usual = play(make, args, train, options=options)
        other = play(make, args, in_order(arrange), options=options)
        assert [*map(bits, other.path)] == [*map(bits, usual.path)]
        assert other.reports[3]["replies-accepted"] == NUM_CLIENTS

    @orders
    def test_it_changes_nothing_where_clients_send_plain_weights(self, arrange, play, bits):
        usual = play("MedianSGD", (None,), train, mods=())
        other = play("MedianSGD", (None,), in_order(arrange), mods=())
        assert bits(other.model) == bits(usual.model)

    @orders
    def test_it_changes_nothing_for_a_client_that_attacks(self, arrange, play, bits):
        mods = (perturb, Hostile(SignFlip(), partitions=(1,)))
        usual = play("MedianSGD", (None,), train, mods=mods)
        other = play("MedianSGD", (None,), in_order(arrange), mods=mods)
        assert bits(other.model) == bits(usual.model)


class TestTheOrderOfTheModel:
    """One round may send the same model to two groups of nodes in two orders."""

    SQUARES = {name: np.zeros((20, 20), np.float32) for name in "abc"}  # noqa: RUF012
    GOALS = {"a": 2.0, "b": -3.0, "c": 0.5}  # noqa: RUF012

    @pytest.mark.parametrize("downlink", [None, CodedSteps()], ids=["whole", "coded"])
    @pytest.mark.parametrize("make", ["SignSGD", "MedianSGD"])
    def test_it_changes_nothing(self, make, downlink, message_api, habitual, seeking, run, bits):
        def play(arrange):
            def ask(number, model, usual):
                first, second = usual(model), usual(arrange(model))
                return first[:2] + second[2:]

            options = {"downlink": downlink, "fraction_evaluate": 0.0}
            strategy = habitual(message_api, make, self.SQUARES, ask=ask, **options)
            app = seeking(message_api, lambda name, array: self.GOALS[name])
            return run(strategy, app, self.SQUARES, NUM_CLIENTS, 4).model

        usual = play(lambda model: model)
        assert bits(play(lambda model: dict(reversed(model.items())))) == bits(usual)


@pytest.mark.parametrize("options", [{}, {"downlink": CodedSteps()}], ids=["whole", "coded"])
class TestTheArraysOfMessages:
    """A subclass may put arrays of its own into messages, by name."""

    @pytest.fixture
    def start(self, options, message_api, seeking, as_record, as_arrays):
        def start(arrange):
            class Arranging(message_api.module.SignSGD):
                def configure_train(self, server_round, arrays, config, grid):
                    own = as_record(arrange(as_arrays(arrays)))
                    for message in super().configure_train(server_round, arrays, config, grid):
                        message.content = RecordDict({**message.content, "arrays": own})
                        yield message

            strategy = message_api.make_own(Arranging, fraction_evaluate=0.0, **options)
            goals = {"a": 2.0, "b": -3.0}
            app = seeking(message_api, lambda name, array: goals[name])
            model = {name: np.zeros((20, 20), np.float32) for name in "ab"}
            grid = InProcessGrid(app, NUM_CLIENTS)
            return as_arrays(strategy.start(grid, as_record(model), 1).arrays)

        return start

    def test_their_order_does_not_matter(self, start, bits):
        assert bits(start(lambda model: dict(reversed(model.items())))) == bits(start(dict))

    @pytest.mark.parametrize("names", ["a", "abc"])
    def test_others_are_refused_before_they_are_sent(self, names, start):
        def other(model):
            return {name: model["a"] for name in names}

        with pytest.raises(ValueError, match=r"pass it to super\(\)\.configure_train"):
            start(other)


@pytest.mark.parametrize("downlink", [None, CodedSteps()], ids=["whole", "coded"])
def test_other_arrays_are_refused_in_the_older_api_too(downlink, older_api, seeking, run):
    class Cutting(older_api.module.SignSGD):
        def configure_fit(self, server_round, parameters, client_manager):
            asked = super().configure_fit(server_round, parameters, client_manager)
            part = Parameters(parameters.tensors[:1], parameters.tensor_type)
            return [(client, FitIns(part, ins.config)) for client, ins in asked]

    model = {name: np.zeros((20, 20), np.float32) for name in "ab"}
    strategy = older_api.make_own(Cutting, downlink=downlink)
    with pytest.raises(ValueError, match=r"2 arrays .* got 1: .* super\(\)\.configure_fit"):
        run(strategy, seeking(older_api, lambda *array: 1.0), model, NUM_CLIENTS)


def test_a_subclass_may_compress_the_model_if_a_mod_before_perturb_restores_it(
    api, older_api, habitual, seeking, run, bits
):
    """Arrays that are none of the model's are no part of it."""
    squares = {name: np.zeros((20, 20), np.float32) for name in "ab"}
    key, names = ("fitins.parameters", "01") if api is older_api else ("arrays", "ab")

    def ask(number, model, usual):
        packed = {"packed": np.stack([*model.values()]).astype(np.float16)}
        return [replace(one, raw=with_arrays(one.raw, packed)) for one in usual(model)]

    def with_arrays(raw, arrays):
        if api is older_api:
            client, ins = raw
            return client, FitIns(arrays_to_parameters(arrays), ins.config)
        raw.content = RecordDict({**raw.content, key: to_record(arrays)})
        return raw

    def restore(message, context, call_next):
        (packed,) = to_arrays(message.content[key]).values()
        restored = dict(zip(names, packed.astype(np.float32), strict=True))
        message.content[key] = to_record(restored)
        return call_next(message, context)

    def play(mods, **habits):
        strategy = habitual(api, "SignSGD", squares, fraction_evaluate=0.0, **habits)
        return run(strategy, seeking(api, lambda *array: 2.0, mods), squares, NUM_CLIENTS).model

    assert bits(play([restore, perturb], ask=ask)) == bits(play([perturb]))


NUMBERS = {
    "one before zero": ["1", "0"],
    "sorted as text": sorted(map(str, range(12))),
    "from the last": [str(number) for number in range(11, -1, -1)],
}
numbers = pytest.mark.parametrize("names", NUMBERS.values(), ids=NUMBERS)


def numbered(names):
    return {name: np.zeros(3, np.float32) for name in names}


def to_their_numbers(arrange):
    def train(model, partition):
        moved = {name: array + (int(name) - array) for name, array in model.items()}
        return dict(arrange(partition, [*moved.items()])), {"num-examples": 10}

    return train


class TestNumbersAsNames:
    """Arrays of one shape that are not taken for each other."""

    @numbers
    @orders
    @pytest.mark.parametrize("mods", [(perturb,), ()], ids=["perturbed", "plain"])
    def test_they_are_names_where_they_are_the_models(self, names, arrange, mods, play):
        trained = play(
            "MedianSGD",
            (None,),
            to_their_numbers(arrange),
            numbered(names),
            {"rotation": None},
            mods=mods,
        ).model
        assert {name: array.tolist() for name, array in trained.items()} == {
            name: [int(name)] * 3 for name in names
        }

    @pytest.mark.parametrize("mods", [(perturb,), ()], ids=["perturbed", "plain"])
    def test_they_are_positions_where_a_client_sends_a_list(self, mods, play):
        app = ClientApp(mods=list(mods))

        @app.train()
        def train(message, context):
            count = len(message.content["arrays"])
            record = ArrayRecord([np.full(3, i, np.float32) for i in range(count)])
            content = {"arrays": record, "metrics": MetricRecord({"num-examples": 1})}
            return Message(RecordDict(content), reply_to=message)

        model = {f"layer{number}": np.zeros(3, np.float32) for number in range(12, 0, -1)}
        trained = play("MedianSGD", (None,), app, model, {"rotation": None}).model
        assert [array[0] for array in trained.values()] == list(range(12))

    @pytest.mark.parametrize("mods", [(perturb,), ()], ids=["perturbed", "plain"])
    @numbers
    def test_a_numpyclients_are_positions_even_where_the_models_names_are_numbers(
        self, names, mods, numpy_clients, run
    ):
        def train(model, partition):  # to its place in the list
            trained = {name: np.full(3, i, np.float32) for i, name in enumerate(model)}
            return trained, {"num-examples": 1}

        strategy = numpy_clients.make("MedianSGD", None, rotation=None, fraction_evaluate=0.0)
        outcome = run(strategy, train, numbered(names), NUM_CLIENTS, mods=mods)
        assert [array[0] for array in outcome.model.values()] == list(range(len(names)))

    def test_twelve_arrays_arrive_as_they_are_sent_whatever_the_clients(self, any_client, run):
        def train(model, partition):
            return {name: array + i for i, (name, array) in enumerate(model.items())}, {
                "num-examples": 1,
                "loss": 1.0,
            }

        model = {f"layer{number}": np.zeros(3, np.float32) for number in range(12, 0, -1)}
        outcome = run(any_client.make("MedianSGD", None, rotation=None), train, model, NUM_CLIENTS)
        assert [array[0] for array in outcome.model.values()] == list(range(12))


class TestOtherArrays:
    """Arrays that are not the model's are refused, and nothing else is."""

    BAD = 2
    DAMAGES = {  # noqa: RUF012
        "a part": (lambda arrays: {"conv.w": arrays["conv.w"]}, "'linear.w'"),
        "one too many": (
            lambda arrays: {**arrays, "more": arrays["conv.w"]},
            "'more'|sent 6 arrays",
        ),
        "swapped": (
            lambda arrays: {
                **arrays,
                "conv.w": arrays["linear.w"],
                "linear.w": arrays["conv.w"],
            },
            "'linear.w' has shape",
        ),
        "other names": (
            lambda arrays: {name.upper(): array for name, array in arrays.items()},
            "'LINEAR.W'",
        ),
        "a list that is too short": (
            lambda arrays: dict(zip("01", arrays.values(), strict=False)),
            "'0'",
        ),
        "a list in another order": (
            lambda arrays: dict(zip("01234", reversed(arrays.values()), strict=True)),
            "has shape",
        ),
    }

    @pytest.mark.parametrize(("damage", "named"), DAMAGES.values(), ids=DAMAGES)
    @pytest.mark.parametrize("mods", [(perturb,), ()], ids=["perturbed", "plain"])
    def test_they_are_refused_by_name(self, damage, named, mods, play, warnings):
        def train_badly(model, partition):
            trained, metrics = train(model, partition)
            return damage(trained) if partition == self.BAD else trained, metrics

        outcome = play("MedianSGD", (None,), train_badly, num_rounds=1, mods=mods)
        report = outcome.reports[1]
        assert (report["replies-accepted"], report["replies-rejected"]) == (NUM_CLIENTS - 1, 1)
        (dropped,) = warnings("aggregate_train: dropped")
        assert re.search(named, dropped)


class TestPolicies:
    """The instruction's positions are the sent model's; a policy matches a client's names."""

    NAMES = ("norm.running_mean", "linear.w")

    def reply(self, policy, exact, names, make_app, as_record):
        def train_reversed(model, partition):
            return dict(reversed(train(model, partition)[0].items())), {"num-examples": 1}

        noise = AddNoise(Gaussian(), np.ones(1, np.float32))
        instruction = Instruction((noise, Signs()), 1, None, (exact,))
        model = {name: MODEL[name] for name in names}
        content = {"arrays": as_record(model), "config": ConfigRecord(instruction.encode())}
        grid = InProcessGrid(make_app(train_reversed, (perturb_with(policy),)), 1)
        (node,) = grid.get_node_ids()
        message = Message(RecordDict(content), dst_node_id=node, message_type=MessageType.TRAIN)
        (reply,) = grid.send_and_receive([message])
        return reply

    @pytest.mark.parametrize("names", [NAMES, NAMES[::-1]], ids=["first", "last"])
    def test_what_a_policy_allows_may_leave_wherever_it_stands(self, names, make_app, as_record):
        policy = Policy(clip=1.0, noise_scale=0.5, rounds=9, exact=["*running_mean"])
        place = names.index("norm.running_mean")
        reply = self.reply(policy, place, names, make_app, as_record)
        assert not reply.has_error(), reply.error.reason
        *_, exact = reply.content["arrays"].values()
        assert exact.numpy().view(np.float32).tolist() == [len("norm.running_mean")] * 3

    @pytest.mark.parametrize("names", [NAMES, NAMES[::-1]], ids=["first", "last"])
    def test_what_it_does_not_allow_may_not(self, names, make_app, as_record):
        policy = Policy(clip=1.0, noise_scale=0.5, rounds=9, exact=["*running_mean"])
        reply = self.reply(policy, names.index("linear.w"), names, make_app, as_record)
        assert reply.has_error()
        assert "'linear.w'" in reply.error.reason
