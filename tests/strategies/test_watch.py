"""What is heard of a run: a line for each round, warnings, and the end of one that is lost."""

import ast
import logging
import pickle
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from logging import INFO, WARNING, LogRecord
from threading import get_ident
from typing import ClassVar

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod
from flwr.common.constant import ErrorCode
from flwr.common.logger import log
from flwr.serverapp.strategy import FedAvg

from fedmedian import (
    Adaptive,
    Agreement,
    Clip,
    ClippedMean,
    CodedSteps,
    Counts,
    Gaussian,
    Majority,
    Momentum,
    SmoothedMedian,
)
from fedmedian.clients import InProcessGrid, Policy, perturb, perturb_with
from fedmedian.records import sizes_of, to_arrays, to_record
from fedmedian.rounds.watch import RUNAWAY, describe_round
from fedmedian.strategies import Checkpoint, RunFailedError, SignSGD, legacy
from fedmedian.strategies.log import _Concise
from fedmedian.wire.scalars import PREFIX
from tests.tools.apis import counting_on, each_case
from tests.tools.ray_failures import CAUSE, CONTEXT, on_ray

MODEL = {"0": np.zeros((4, 5), np.float32), "1": np.zeros(300, np.float32)}
SMALL = {str(number): np.zeros(20, np.float32) for number in range(6)}
NUM_CLIENTS = 5
BYTES_OF_MODEL = sum(128 + array.nbytes for array in MODEL.values())  # of .npy files


def train(model, partition):
    return {name: array + np.float32(1) for name, array in model.items()}, {"num-examples": 2}


def fail(model, partition):
    raise OSError("no camera")


def fail_in_words(model, partition):
    raise OSError("no reply of the camera, whose version is unknown: its image holds NaN")


def failing_in(*rounds):
    """Train, but for all clients' failing in some rounds."""
    trained = dict.fromkeys(range(NUM_CLIENTS), 0)

    def train_or_fail(model, partition):
        trained[partition] += 1
        return (fail if trained[partition] in rounds else train)(model, partition)

    return train_or_fail


def in_bytes(text):
    """Turn a size as the log has it into a number."""
    number, unit = text.split()
    return float(number) * 1000 ** ["B", "kB", "MB", "GB"].index(unit)


class WeighingGrid(InProcessGrid):
    """Counts the bytes that messages and replies hold, without Flower's headers."""

    held_down = held_up = 0

    def push_messages(self, messages):
        messages = list(messages)
        self.held_down += sum(sizes_of(messages))
        return super().push_messages(messages)

    def pull_messages(self, message_ids):
        replies = list(super().pull_messages(message_ids))
        self.held_up += sum(sizes_of(replies))
        return replies


@pytest.fixture
def warnings(caplog):
    """Returns the warnings that hold a text, so far."""

    def warnings(text):
        levels = (one for one in caplog.records if one.levelno == logging.WARNING)
        return [one.getMessage() for one in levels if text in one.getMessage()]

    return warnings


@pytest.fixture
def lines(caplog):
    """Returns the lines of the log that begin with a text, so far."""
    return lambda text: [m for m in caplog.messages if m.lstrip("\t├─>").strip().startswith(text)]


class TestRunsThatFail:
    def test_three_rounds_without_a_usable_reply_end_a_run_with_the_reason(self, any_client, run):
        with pytest.raises(RunFailedError, match=r"^rounds 1 to 3 made no new model") as error:
            run(any_client.make("SignSGD"), fail, MODEL, NUM_CLIENTS, 9)
        assert "15 of 15 replies" in str(error.value)
        assert "no camera" in str(error.value)
        assert "clients' own log" in str(error.value)

    def test_a_run_may_fail_for_as_many_rounds_as_it_is_told_to(self, api, run):
        outcome = run(api.make("SignSGD", max_failed_rounds=None), fail, MODEL, NUM_CLIENTS, 5)
        assert sorted(outcome.reports) == [1, 2, 3, 4, 5]
        with pytest.raises(RunFailedError, match=r"^round 1 made no new model"):
            run(api.make("SignSGD", max_failed_rounds=1), fail, MODEL, NUM_CLIENTS, 5)

    def test_rounds_that_fail_here_and_there_end_no_run(self, api, run):
        failing = failing_in(1, 2, 4, 5, 7)
        outcome = run(api.make("MedianSGD"), failing, MODEL, NUM_CLIENTS, 7)
        accepted = [report["replies-accepted"] for report in outcome.reports.values()]
        assert accepted == [0, 0, 5, 0, 0, 5, 0]

    def test_what_a_run_has_learned_before_it_is_lost_is_in_the_error(self, api, run):
        strategy = api.make("MedianSGD", noise=None)
        with pytest.raises(RunFailedError, match=r"^rounds 3 to 5 made") as error:
            run(strategy, failing_in(3, 4, 5), MODEL, NUM_CLIENTS, 9)
        for array in error.value.arrays.values():
            np.testing.assert_allclose(array, 2, rtol=1e-5)

    def test_the_error_comes_whole_out_of_a_process_of_a_pool(self):
        error = pickle.loads(pickle.dumps(RunFailedError("rounds 1 to 3", {"w": np.ones(2)})))
        assert str(error) == "rounds 1 to 3"
        np.testing.assert_array_equal(error.arrays["w"], [1, 1])

    def test_clients_without_the_mod_end_the_first_round(self, any_client, run):
        with pytest.raises(RunFailedError, match=r"^round 1 made.*mods=\[perturb\]"):
            run(any_client.make("SignSGD"), train, MODEL, NUM_CLIENTS, 9, mods=())

    def test_so_they_do_where_rounds_are_counted_from_another_number(self, api, run):
        with pytest.raises(RunFailedError, match=r"^round 101 made.*mods=\[perturb\]"):
            run(
                api.make_own(counting_on(api.module.SignSGD)), train, MODEL, NUM_CLIENTS, 9, mods=()
            )

    def test_a_client_without_the_mod_ends_nothing(self, message_api, run):
        def only_some(message, context, call_next):
            if context.node_config["partition-id"] == 0:
                return call_next(message, context)
            return perturb(message, context, call_next)

        outcome = run(message_api.make("SignSGD"), train, MODEL, NUM_CLIENTS, 4, mods=[only_some])
        assert outcome.reports[4]["replies-accepted"] == NUM_CLIENTS - 1
        # Not even where all must answer: the others did, so that it is not the app that lacks it.
        strategy = message_api.make("SignSGD", min_replies=NUM_CLIENTS)
        outcome = run(strategy, train, MODEL, NUM_CLIENTS, 2, mods=[only_some])
        assert outcome.reports[2]["replies-accepted"] == NUM_CLIENTS - 1

    def test_models_whose_arrays_change_their_shape_are_refused_in_those_words(self, api, run):
        def grow(model, partition):
            grown = {name: np.append(array, 1) for name, array in model.items()}
            return grown, {"num-examples": 1}

        with pytest.raises(RunFailedError, match=r"change the shapes.*cannot be averaged"):
            run(api.make("SignSGD"), grow, {"0": np.zeros(9, np.float32)}, NUM_CLIENTS, 9)

    def test_too_few_replies_are_a_reason_of_their_own(self, api, run):
        strategy = api.make("SignSGD", min_replies=NUM_CLIENTS + 1)
        with pytest.raises(RunFailedError, match="no new model: 5 usable replies, min_replies is"):
            run(strategy, train, MODEL, NUM_CLIENTS, 9)

    def test_a_new_run_of_a_strategy_counts_afresh(self, api, run):
        strategy = api.make("SignSGD")
        for _ in range(2):
            run(strategy, fail, MODEL, NUM_CLIENTS, 2)


def replying(error):
    """A mod that answers every message with an error."""
    return lambda message, context, call_next: Message(error, reply_to=message)


def telling(**config):
    """A mod that adds to what the server tells, as another version of it would."""

    def tell(message, context, call_next):
        for record in message.content.config_records.values():
            record.update({PREFIX + key: value for key, value in config.items()})
        return call_next(message, context)

    return tell


def telling_a_norm(message, context, call_next):
    for record in message.content.config_records.values():
        record["clipping_norm"] = 1.0
    return call_next(message, context)


def send_a_part(model, partition):
    return {"0": model["0"]}, {"num-examples": 1}


def send(shape):
    def trained(model, partition):
        return {name: np.zeros(shape, np.float32) for name in model}, {"num-examples": 1}

    return trained


def diverge(model, partition):
    return {name: array * np.float32(np.nan) for name, array in model.items()}, {"num-examples": 1}


def diverge_far(model, partition):
    return {name: array + np.float32(1e15) for name, array in model.items()}, {"num-examples": 1}


LOG = "see the clients' own log"
ORDER = "put perturb first in the ClientApp's mods"
NODES = "are the nodes up"
RELEASE = "the same release of fedmedian"
RATE = "lower the clients' learning rate"
PART = "must hold only the arrays that clients send"
CLASSES = "drops classes"
TREES = "trees change the shapes"
NORM = '{"clipping_norm": 1.0}'
NUMPY = "numpy_clients=True"
WORKER = "a Ray worker has died"
POLICY = "mods=[perturb_with(Policy(…))]"
SECURE_SUM = "remove secaggplus_mod"

UNAVAILABLE = Error(ErrorCode.NODE_UNAVAILABLE, "Error: Node Unavailable — no heartbeat")
MOD = Error(ErrorCode.MOD_FAILED_PRECONDITION, "my mod needs the version of no reply, which failed")
DEAD = Error(ErrorCode.UNKNOWN, "<class 'ray.exceptions.ActorDiedError'>:<'The actor died …'>")
CLIPPING = fixedclipping_mod

SITUATIONS = {
    "the app raises": (LOG, fail, [perturb]),
    "the app raises in words of others": (LOG, fail_in_words, [perturb]),
    "the app has no mod": ("mods=[perturb]", train, []),
    "a mod after perturb refuses": (None, train, [perturb, replying(MOD)]),
    "a mod before perturb refuses": (None, train, [replying(MOD), perturb]),
    "Flower's clipping is not told a norm": (NORM, train, [perturb, CLIPPING]),
    "Flower's clipping comes first": (ORDER, train, [telling_a_norm, CLIPPING, perturb]),
    "a node is gone": (None, train, [replying(UNAVAILABLE)]),
    "a Ray worker is gone": (WORKER, train, [replying(DEAD)]),
    "perturb_with is not called": (POLICY, train, [perturb_with]),
    "a secure sum is not asked for": (SECURE_SUM, train, [secaggplus_mod]),
    "a server of another version": (RELEASE, train, [telling(instruction=99), perturb]),
    "a server that knows more": (None, train, [telling(surprise=1), perturb]),
    "training diverges": (RATE, diverge, [perturb]),
    "training diverges to finite numbers": (RATE, diverge_far, [perturb]),
    "clients send a part": (PART, send_a_part, [perturb]),
    "a class is missing": (CLASSES, send((3, 5)), [perturb]),
    "arrays grow": (TREES, send(300), [perturb]),
}


class LikeRay(InProcessGrid):
    """Reports exceptions of the app as Flower's simulation on Ray does."""

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        for number, reply in enumerate(replies):
            if reply.has_error() and reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION:
                reply.error.__dict__["_reason"] = self.told(reply.error.reason, 9000 + number)
        return replies

    @staticmethod
    def told(raised, pid):
        raised = raised.removesuffix(": ")  # as Python does
        message, name = raised.partition(": ")[2], "ClientAppException"
        own = f"{name}: \nException {name} occurred. Message: {message}"
        folder = "/usr/lib/python3.11/site-packages" * 9
        parts = ["ZeroDivisionError: 1", CONTEXT, raised, CAUSE, own]
        return on_ray(name, *parts, pid=pid, folder=folder)


class TestFailuresOnRay:
    @pytest.mark.parametrize(
        ("raised", "said"),
        [
            pytest.param(OSError("/data/3.npz"), "OSError: /data/3.npz", id="a message"),
            pytest.param(AssertionError(), "AssertionError", id="no message"),
            pytest.param(
                RuntimeError("of:\n\tw\n    b"),
                r"RuntimeError: of:\\n\\tw\\n    b",
                id="several lines",
            ),
        ],
    )
    def test_what_the_app_raised_is_said_and_not_where(self, raised, said, api, run, warnings):
        def fail(model, partition):
            raise raised

        with pytest.raises(RunFailedError) as failed:
            run(api.make("SignSGD"), fail, MODEL, NUM_CLIENTS, 9, grid=LikeRay)
        error = str(failed.value)
        assert "15 of 15 replies: " in error
        assert re.search(rf"(error 2: |\(reason: ){said}( \(see|\))", error)
        assert error.endswith(f"({LOG})")
        assert "ray" not in error
        assert warnings("5 of 5 replies are lost for one reason")


NO_REPORTS = {"noise": Gaussian(1.0), "rotation": None, "seed": None, "weighted": False}
NO_REPORTS |= {"client_steps": [Clip(1.0)], "aggregator": Counts()}


def with_a_policy():
    """Options of `run`: clients with a policy, which are the same in each run with these."""
    grids = []

    def same(app, num_clients):
        grids.append(InProcessGrid(app, num_clients))
        return grids[0]

    return {"grid": same, "mods": [perturb_with(Policy(clip=1.0, noise_scale=1.0, rounds=99))]}


class TestHints:
    """Each is there where it is true, and no other is."""

    HINTS = (LOG, ORDER, NODES, RELEASE, RATE, PART, CLASSES, TREES, NORM, NUMPY)
    HINTS += (WORKER, POLICY, SECURE_SUM)

    @pytest.mark.parametrize(("hint", "train", "mods"), SITUATIONS.values(), ids=SITUATIONS)
    def test_what_helps_is_said_where_it_does(self, hint, train, mods, api, run, warnings):
        model = {"0": np.zeros((4, 5), np.float32), "1": np.zeros((4, 5), np.float32)}
        if hint == TREES:
            model = {"0": np.zeros(299, np.float32)}
        for name in ["MedianSGD"] * (hint == RATE) + ["SignSGD"]:
            with pytest.raises(RunFailedError) as failed:
                run(api.make(name, max_failed_rounds=1), train, model, 3, mods=mods)
            assert hint is None or hint in str(failed.value)
            assert hint is None or hint in warnings("lost for one reason")[-1]
        said = str(failed.value)
        assert not [other for other in self.HINTS if other != hint and other in said]

    def test_clients_with_a_policy_answer_a_round_once_in_a_run_of_flower(self, api, run, tmp_path):
        """Who resumes a failed run needs another one, as the next ``flwr run`` is."""
        calls = Counter()

        def fail_at_first(model, partition):
            calls[partition] += 1
            if 2 <= calls[partition] <= 4:
                raise OSError("no camera")
            return train(model, partition)

        again, errors = with_a_policy(), []
        for _ in range(2):
            strategy = api.make("SignSGD", checkpoint=Checkpoint(tmp_path), **NO_REPORTS)
            with pytest.raises(RunFailedError) as failed:
                run(strategy, fail_at_first, MODEL, NUM_CLIENTS, 4, **again)
            errors.append(str(failed.value))
        assert ["flwr run" in error for error in errors] == [False, True]

    def test_a_second_strategy_in_a_run_of_flower_is_not_said_to_resume_the_first(self, api, run):
        first, second = (api.make("SignSGD", **NO_REPORTS) for _ in range(2))
        again = with_a_policy()
        run(first, train, MODEL, NUM_CLIENTS, 4, **again)
        with pytest.raises(RunFailedError, match=r"or another strategy, .* a second one"):
            run(second, train, MODEL, NUM_CLIENTS, 4, **again)

    @pytest.mark.parametrize("make", ["SignSGD", "MedianSGD"])
    def test_numpyclients_that_nobody_has_named_are_named(self, make, message_api, run):
        app = ClientApp(client_fn=lambda context: NumPyClient().to_client(), mods=[perturb])
        with pytest.raises(RunFailedError, match=NUMPY) as failed:
            run(message_api.make(make), app, MODEL, 3, 3)
        assert LOG not in str(failed.value)

    @pytest.mark.parametrize("options", [{"numpy_clients": True}, {"arrayrecord_key": "model"}])
    @pytest.mark.parametrize("grid", [InProcessGrid, LikeRay])
    def test_apps_that_read_another_record_than_they_are_sent_are_told(self, grid, options):
        app = ClientApp(mods=[perturb])
        app.train()(lambda message, context: message.content["arrays"])
        model = ArrayRecord({"0": Array(MODEL["0"])})
        with pytest.raises(RunFailedError, match="leave out numpy_clients=True") as failed:
            SignSGD(**options).start(grid(app, 3), model)
        assert LOG not in str(failed.value)

    def test_apps_that_report_no_metrics_are_told_which_they_must(self):
        app = ClientApp(mods=[perturb])
        app.train()(
            lambda message, _: Message(
                RecordDict({"arrays": message.content["arrays"]}), reply_to=message
            )
        )
        app.evaluate()(lambda message, _: Message(RecordDict(), reply_to=message))
        model = ArrayRecord({"0": Array(MODEL["0"])})
        with pytest.raises(RunFailedError, match=r'got 0 \(let their app report {"num-examples"'):
            SignSGD().start(InProcessGrid(app, 3), model)

    def test_with_the_norm_that_it_advises_flowers_clipping_works(self, api, run):
        outcome = run(
            api.make("MedianSGD", None),
            *(train, MODEL, 3),
            mods=[perturb, CLIPPING],
            train_config=ast.literal_eval(NORM),
        )
        moved = np.concatenate([array.ravel() for array in outcome.model.values()])
        assert np.linalg.norm(moved) == pytest.approx(1, rel=1e-4)

    def test_no_reply_is_no_clients_fault(self, message_api, run):
        class Silent(InProcessGrid):
            def pull_messages(self, message_ids):
                return []

        strategy = message_api.make("SignSGD", max_failed_rounds=1, fraction_evaluate=0.0)
        with pytest.raises(RunFailedError, match=NODES):
            run(strategy, train, MODEL, 3, grid=Silent)


class NotEvaluating(NumPyClient):
    def fit(self, parameters, config):
        return [array + np.float32(1) for array in parameters], 2, {}


@pytest.fixture
def not_evaluating(older_api, api, make_app):
    """An app that can only train, of the API."""
    if api is older_api:
        return ClientApp(client_fn=lambda context: NotEvaluating().to_client(), mods=[perturb])
    app = ClientApp(mods=[perturb])
    app.train()(lambda message, context: make_app(train, mods=())(message, context))
    return app


class TestHintsOnEvaluation:
    """A run trains on without it, so that only the log can say what helps."""

    LOST = "round 1: 3 of 3 replies to evaluation are lost for one reason: "

    @pytest.mark.parametrize(
        "mod",
        [
            pytest.param(CLIPPING, id="clipping_mod"),
            pytest.param(LocalDpMod(1.0, 0.1, 1.0, 1e-5), id="LocalDpMod"),
        ],
    )
    def test_a_mod_that_wants_a_model_in_each_reply_is_one_for_training(
        self, mod, api, run, warnings
    ):
        config = ast.literal_eval(NORM)
        run(api.make("SignSGD"), train, MODEL, 3, 2, mods=[perturb, mod], train_config=config)
        (warning,) = warnings("lost for one reason")
        assert warning.startswith(self.LOST)
        assert "(list this mod for training alone, @app.train(mods=[…]), or set" in warning

    def test_an_app_that_cannot_evaluate_need_not(self, api, not_evaluating, run, warnings):
        outcome = run(api.make("SignSGD"), not_evaluating, MODEL, 3, 2)
        assert sorted(outcome.reports) == [1, 2]
        (warning,) = warnings("lost for one reason")
        assert warning.startswith(self.LOST)
        assert warning.endswith("(write one, or set fraction_evaluate=0.0)")

    def test_numpyclients_that_only_train_are_told_how_to_evaluate(self, warnings):
        class Training(NumPyClient):
            def fit(self, parameters, config):
                return [array + 1 for array in parameters], 3, {}

        app = ClientApp(client_fn=lambda context: Training().to_client(), mods=[perturb])
        strategy = SignSGD(
            arrayrecord_key="fitins.parameters",
            configrecord_key="fitins.config",
            weighted_by_key="num_examples",
        )
        strategy.start(InProcessGrid(app, 3), ArrayRecord([np.zeros(3, np.float32)]), 1)
        (warning,) = warnings("lost for one reason")
        assert warning.startswith(self.LOST)
        assert warning.endswith("(its clients are NumPyClients: numpy_clients=True)")

    def test_there_is_no_warning_of_a_few_that_do_not_evaluate(self, api, run, warnings):
        def mostly(model, partition):
            return {"num-examples": 2 if partition else 0, "loss": 1.0}

        run(api.make("SignSGD"), train, MODEL, 3, 2, evaluate=mostly)
        assert warnings("aggregate_evaluate: dropped the reply of node 2 ")
        assert not warnings("lost for one reason")


class TestDeadWorkers:
    """A Ray worker that has died takes most messages of all later rounds."""

    @staticmethod
    def dead_for(partitions):
        def mod(message, context, call_next):
            if context.node_config["partition-id"] in partitions:
                return Message(DEAD, reply_to=message)
            return call_next(message, context)

        return [mod, perturb]

    def test_rounds_that_lose_most_replies_to_one_end_the_run_with_its_last_model(self, api, run):
        with pytest.raises(RunFailedError, match=r"^3 rounds .* 3 of 4.*ActorDied") as failed:
            run(api.make("MedianSGD"), train, MODEL, 4, 9, mods=self.dead_for((0, 1, 2)))
        assert WORKER in str(failed.value)
        assert all((failed.value.arrays[name] != MODEL[name]).any() for name in MODEL)

    @pytest.mark.parametrize(
        ("partitions", "options"),
        [((0, 1), {}), ((0, 1, 2), {"max_failed_rounds": None})],
        ids=["half", "never to end"],
    )
    def test_a_run_continues(self, partitions, options, api, run):
        mods = self.dead_for(partitions)
        outcome = run(api.make("MedianSGD", **options), train, MODEL, 4, 5, mods=mods)
        assert sorted(outcome.reports) == [1, 2, 3, 4, 5]

    def test_a_round_that_is_heard_twice_counts_once(self, api, habitual, seeking, run):
        def hear(number, heard, usual):
            usual(heard)
            return usual(heard)

        strategy = habitual(api, "MedianSGD", MODEL, hear=hear, fraction_evaluate=0.0)
        app = seeking(api, lambda name, array: 1.0, self.dead_for((0, 1, 2)), num_clients=4)
        with pytest.raises(RunFailedError, match=r"^3 rounds"):
            run(strategy, app, MODEL, 4, 3)
        outcome = run(strategy, app, MODEL, 4, 2)
        assert sorted(outcome.reports) == [1, 2]


class TestWarnings:
    def test_clients_that_have_replied_that_they_failed_are_not_said_to_be_silent(
        self, older_api, run, warnings
    ):
        run(older_api.make("SignSGD"), fail, MODEL, NUM_CLIENTS)
        assert warnings("a client failed: ")
        assert warnings("aggregate_train: no usable reply from 5 nodes: ")
        assert not warnings("no reply")

    def test_most_replies_lost_for_one_reason_are_a_warning_once(self, api, run, warnings):
        def mostly_fail(model, partition):
            return (fail if partition > 1 else train)(model, partition)

        run(api.make("MedianSGD"), mostly_fail, MODEL, NUM_CLIENTS, 3)
        (warning,) = warnings("3 of 5 replies are lost for one reason")
        assert warning.startswith("round 1: ")
        assert "no camera" in warning

    @each_case(
        ("own", "said"),
        {
            "an object's address": (lambda partition, count: object(), "<object object>"),
            "a client's number": (lambda partition, count: f"/data/{partition}.npz", "/data/….npz"),
            "the round": (lambda partition, count: f"in {count // NUM_CLIENTS}", "in …"),
            "the number of tries": (lambda partition, count: f"{count} of 64 B", "… of 64 B"),
        },
        older=("an object's address", "a client's number"),
    )
    def test_reasons_that_differ_only_in_addresses_or_numbers_are_one(
        self, own, said, api, run, warnings
    ):
        made = []

        def refuse(model, partition):
            made.append(own(partition, len(made)))
            raise TypeError(f"got {made[-1]}")

        with pytest.raises(RunFailedError, match=rf"15 of 15 replies: .*got {said}"):
            run(api.make("SignSGD"), refuse, MODEL, NUM_CLIENTS, 9)
        assert len(warnings("5 of 5 replies are lost for one reason")) == 1

    def test_reasons_that_differ_in_words_are_several(self, api, run, warnings):
        def refuse(model, partition):
            raise TypeError(f"got {'abcde'[partition]}")

        with pytest.raises(RunFailedError, match=r" 3 of 15 replies: .*got [a-e]"):
            run(api.make("SignSGD"), refuse, MODEL, NUM_CLIENTS, 9)
        assert not warnings("lost for one reason")

    @each_case(
        ("model", "options", "named"),
        {
            "not rotated": (MODEL, {"rotation": None, "noise": Gaussian()}, "array '1'"),
            "a large one": (MODEL, {}, "array '1'"),
            "small ones": (SMALL, {}, "arrays '0', '1', '2' and 3 more"),
            "three small ones": ({name: SMALL[name] for name in "012"}, {}, "arrays '0', '1', '2'"),
        },
        older=("not rotated",),
    )
    def test_scales_that_run_away_are_a_warning_once_that_names_the_arrays(
        self, model, options, named, api, run, warnings
    ):
        rounds = dict.fromkeys(range(NUM_CLIENTS), 0)

        def diverge(model, partition):
            rounds[partition] += 1
            by = np.float32(3.0 ** rounds[partition])
            return {**model, "1": model["1"] + by}, {"num-examples": 1}

        strategy = api.make_trainer("SignSGD", **options)
        run(strategy, diverge, model, NUM_CLIENTS, 15)
        (warning,) = warnings("has grown to")
        assert f"noise scale of {named} has grown" in warning

    @each_case(
        ("late",),
        {"from the first round on": (0,), "later": (12,)},
        older=("from the first round on",),
    )
    def test_scales_that_are_small_in_a_blocks_first_rounds_are_no_warning(
        self, late, api, run, warnings
    ):
        """As of a layer that starts at zero, or of a rate that warms up."""
        rounds = dict.fromkeys(range(NUM_CLIENTS), 0)

        def warm_up(model, partition):
            rounds[partition] += 1
            since = rounds[partition] - late
            by = np.float32(min(since, 9) ** 3 if since > 0 else 0)
            return {"0": model["0"] + 1, "1": model["1"] + by}, {"num-examples": 1}

        strategy = api.make_trainer("SignSGD")
        run(strategy, warm_up, MODEL, NUM_CLIENTS, late + 15)
        assert not warnings("has grown to")

    def test_scales_that_grow_by_less_are_no_warning(self, api, run, warnings):
        rounds = dict.fromkeys(range(NUM_CLIENTS), 0)

        def warm_up(model, partition):
            rounds[partition] += 1
            by = np.float32(min(1.5 ** rounds[partition], RUNAWAY / 2))
            return {name: array + by for name, array in model.items()}, {"num-examples": 1}

        run(api.make_trainer("SignSGD"), warm_up, MODEL, NUM_CLIENTS, 8)
        assert not warnings("has grown to")

    @pytest.mark.parametrize("make", ["SignSGD", "MedianSGD"])
    def test_clients_with_nothing_in_common_have_a_signal_and_no_warning(
        self, make, api, run, warnings
    ):
        rngs = [np.random.default_rng(partition) for partition in range(10)]

        def wander(model, partition):
            moved = model["0"] + rngs[partition].standard_normal(model["0"].size, np.float32)
            return {"0": moved}, {"num-examples": 1}

        outcome = run(api.make_trainer(make), wander, {"0": np.zeros(20_000, np.float32)}, 10, 6)
        # Their mean has energy 1/10; the noise in it .126 of votes, and .1 of a median.
        for report in outcome.reports.values():
            assert report["signal-to-noise"] == pytest.approx(
                {"SignSGD": 0.79}.get(make, 1), abs=0.2
            )
        assert not warnings("noise")

    def test_a_cohort_that_is_small_is_told_its_price_once(self, api, run, warnings):
        least = ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes")
        alone = dict.fromkeys(least, 1)
        following = {"noise": Gaussian(Adaptive(3.0)), "rotation": None}
        for make, own, price, few, enough in (
            ("SignSGD", {}, "steps are shorter", 3, 4),
            ("SignSGD", following, "the model may drift away", 3, 4),
            ("MedianSGD", {}, "does not exclude a bad one", 2, 3),
        ):
            run(api.make(make, **own), train, MODEL, enough, 2)
            assert not warnings(price)
            run(api.make(make, **own), train, MODEL, few, 2)
            (warning,) = warnings(price)
            assert f"replies of {few} clients" in warning
            run(api.make(make, **own, **alone), train, MODEL, 1)
            assert warnings("replies of 1 client in a round")

    def test_votes_whose_steps_are_never_shortened_have_no_such_price(self, api, run, warnings):
        run(api.make("SignSGD", None, Majority(), 0.1, rotation=None), train, MODEL, 2)
        run(api.make("SignSGD", aggregator=Majority(calibrated=True)), train, MODEL, 2)
        assert not warnings("replies of 2 clients")


def by_round(change):
    """Train by `change(partition, round)`."""
    trained = dict.fromkeys(range(NUM_CLIENTS), 0)

    def train_by(model, partition):
        trained[partition] += 1
        by = np.float32(change(partition, trained[partition]))
        return {name: array + by for name, array in model.items()}, {"num-examples": 2}

    return train_by


class TestClientsThatFewOthersAgreeWith:
    """One of five trains in the opposite direction."""

    RULES: ClassVar = {
        "votes": ("SignSGD", {"aggregator": Agreement(Counts())}),
        "vectors": ("MedianSGD", {"noise": None, "aggregator": Agreement(ClippedMean())}),
    }
    each_rule = each_case(("make", "options"), RULES, older=RULES)
    OF_IT = "few others have agreed with "

    @each_rule
    def test_are_named_once_after_three_rounds_with_since_when(
        self, make, options, api, run, warnings
    ):
        opposing = by_round(lambda partition, number: -1 if partition == 3 else 1)
        run(api.make(make, seed=1, **options), opposing, MODEL, NUM_CLIENTS, 2)
        assert not warnings(self.OF_IT)
        run(api.make(make, seed=1, **options), opposing, MODEL, NUM_CLIENTS, 5)
        (warning,) = warnings(self.OF_IT)
        assert "(partition 3)" in warning
        assert "since round 1, so it counts for little: it may be hostile" in warning

    @each_rule
    def test_are_not_named_if_others_agree_in_between(self, make, options, api, run, warnings):
        """In every third round another client opposes the others."""
        opposing = by_round(
            lambda partition, number: -1 if partition == (3 if number % 3 else 1) else 1
        )
        run(api.make(make, seed=1, **options), opposing, MODEL, NUM_CLIENTS, 7)
        assert not warnings(self.OF_IT)


class TestClientsThatReturnWhatTheyWereSent:
    STRATEGIES = (
        ("SignSGD", {}),
        ("SignSGD", {"rotation": None, "noise": Gaussian()}),
        ("SignSGD", {"scale_from": "client", "noise": Gaussian(Adaptive(3.0))}),
        ("MedianSGD", {}),
        ("MedianSGD", {"noise": None}),
        ("MedianSGD", {"noise_at": "server"}),
        ("MedianSGD", {"noise_at": "server", "noise": Gaussian(0.5)}),
        ("MedianSGD", {"aggregator": SmoothedMedian()}),
    )
    WAYS_TO_SEE: ClassVar = {"measured": STRATEGIES[0], "in full": STRATEGIES[4]}
    every_strategy = each_case(
        ("make", "options"),
        {f"{make}({options})": (make, options) for make, options in STRATEGIES},
        older=("SignSGD({})", "MedianSGD({'noise': None})"),
    )
    each_way_to_see = each_case(("make", "options"), WAYS_TO_SEE, older=WAYS_TO_SEE)

    @every_strategy
    def test_are_a_warning_once_after_three_rounds_with_what_to_do(
        self, make, options, api, run, warnings
    ):
        def forget(model, partition):
            return model, {"num-examples": 2}

        run(api.make_trainer(make, **options), forget, MODEL, NUM_CLIENTS, 2)
        assert not warnings("returned the model unchanged")
        run(api.make_trainer(make, **options), forget, MODEL, NUM_CLIENTS, 5)
        (warning,) = warnings("returned the model unchanged")
        assert warning.startswith("5 of 5 clients (node ")
        assert "(partition 4)" in warning
        assert "returns the weights from after training" in warning

    @every_strategy
    def test_are_not_blamed_for_a_model_that_is_not_finite_and_so_never_moves(
        self, make, options, api, run, warnings
    ):
        model = {name: np.full_like(array, np.nan) for name, array in MODEL.items()}
        run(api.make_trainer(make, **options), train, model, NUM_CLIENTS, 4)
        assert warnings("arrays that hold NaN or infinity are not trained")
        assert not warnings("returned the model unchanged")

    @each_way_to_see
    def test_are_counted_and_named_if_they_are_some_of_them(
        self, make, options, api, run, warnings
    ):
        some = by_round(lambda partition, number: partition % 3)
        run(api.make_trainer(make, **options), some, MODEL, NUM_CLIENTS, 5)
        (warning,) = warnings("returned the model unchanged")
        assert warning.startswith("2 of 5 clients (node ")
        assert "(partition 0)" in warning
        assert "(partition 3)" in warning

    @each_case(("make", "options"), WAYS_TO_SEE, older=("measured",))
    @pytest.mark.parametrize(
        "change",
        [
            lambda partition, number: number <= 2,
            lambda partition, number: number <= 1 + partition,
            lambda partition, number: number == 3,
            lambda partition, number: (number + partition) % 3 == 0,
        ],
        ids=["a finished model", "finished one by one", "late", "now and then"],
    )
    def test_are_no_warning_once_they_have_trained(self, change, make, options, api, run, warnings):
        strategy = api.make_trainer(make, **options)
        run(strategy, by_round(change), MODEL, NUM_CLIENTS, 7)
        assert not warnings("returned the model unchanged")

    @each_way_to_see
    def test_are_no_warning_for_arrays_that_are_frozen(self, make, options, api, run, warnings):
        def train_one(model, partition):
            return {**model, "0": model["0"] + np.float32(1)}, {"num-examples": 2}

        run(api.make_trainer(make, **options), train_one, MODEL, NUM_CLIENTS, 5)
        assert not warnings("returned the model unchanged")

    @pytest.mark.parametrize(
        ("make", "options"),
        [
            ("SignSGD", {"noise": Gaussian(0.5)}),
            ("SignSGD", {"noise": None, "aggregator": Majority(), "learning_rate": 0.1}),
            ("MedianSGD", {"noise": Gaussian(0.5)}),
        ],
        ids=str,
    )
    def test_cannot_be_seen_behind_noise_or_votes(self, make, options, api, run, warnings):
        run(api.make_trainer(make, **options), by_round(lambda *_: 0), MODEL, NUM_CLIENTS, 5)
        assert not warnings("returned the model unchanged")

    def test_are_a_warning_where_rounds_are_counted_from_another_number(self, api, run, warnings):
        strategy = api.make_own(counting_on(api.module.SignSGD))
        run(strategy, by_round(lambda *_: 0), MODEL, NUM_CLIENTS, 5)
        assert len(warnings("5 of 5 clients (node ")) == 1

    def test_are_no_warning_where_a_run_resumes_that_was_finished(
        self, api, run, tmp_path, warnings
    ):
        for rounds, change in ((2, 1), (7, 0)):
            strategy = api.make("MedianSGD", checkpoint=Checkpoint(tmp_path))
            run(strategy, by_round(lambda *_, by=change: by), MODEL, NUM_CLIENTS, rounds)
        assert not warnings("returned the model unchanged")


class TestLines:
    def test_a_rounds_line_has_replies_signal_margin_and_bytes(self, message_api, run, lines):
        outcome = run(message_api.make("SignSGD"), train, MODEL, NUM_CLIENTS)
        (line,) = lines("[ROUND 1/1] aggregate_train")
        report = outcome.reports[1]
        assert line == (
            "[ROUND 1/1] aggregate_train: accepted 5 replies, dropped 0; "
            f"signal to noise {report['signal-to-noise']:.3g}, margin {report['margin']:.3g}; "
            f"{report['uplink-bytes']:,.0f} bytes up and "
            f"{report['downlink-bytes']:,.0f} bytes down per client"
        )

    def test_a_run_of_twenty_rounds_is_at_most_sixty_lines_whose_last_are_its_results(
        self, api, run, caplog, warnings
    ):
        run(api.make("SignSGD"), train, MODEL, NUM_CLIENTS, 20)
        said = [text for text in caplog.messages if text.strip()]
        assert len(said) <= 60
        assert len([text for text in said if text.startswith("[ROUND ")]) == 40
        assert not [text for text in said if "signal-to-noise" in text]
        assert said[-2].startswith("evaluation by clients after round 20: loss ")
        assert said[-1].startswith("arrays sent in 20 rounds, ")
        assert not warnings("")

    def test_an_evaluation_by_the_server_is_one_line_with_its_round(self, message_api, lines):
        model = to_record({"x": np.zeros(3, np.float32)})
        strategy = message_api.make("SignSGD", fraction_train=0.0, fraction_evaluate=0.0)
        found = {0: None, 1: None, 2: MetricRecord({"loss": 0.5})}
        with pytest.raises(RunFailedError):  # no client is asked to train
            strategy.start(
                InProcessGrid(ClientApp(), 2), model, 2, evaluate_fn=lambda number, _: found[number]
            )
        assert lines("[ROUND") == ["[ROUND 2/2] evaluation by the server: {'loss': 0.5}"]

    def test_rounds_that_do_not_run_again_have_none(
        self, message_api, make_app, as_record, tmp_path, caplog
    ):
        for rounds in (3, 5):
            caplog.clear()
            strategy = message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path))
            strategy.start(
                InProcessGrid(make_app(train), NUM_CLIENTS),
                as_record(MODEL),
                rounds,
                evaluate_fn=lambda number, _: MetricRecord({"found": number}),
            )
        said = [text for text in caplog.messages if "evaluation" in text]
        assert [text[: text.index(":")] for text in said] == [
            *(f"[ROUND {number}/5] evaluation by the server" for number in (3, 4, 5)),
            *(f"evaluation by {who} after round 5" for who in ("clients", "the server")),
        ]

    def test_rounds_that_do_not_run_again_have_none_in_the_older_api(
        self, older_api, run, tmp_path, caplog
    ):
        class Evaluating(legacy.SignSGD):
            def evaluate(self, server_round, parameters):
                self.evaluate_fn = lambda number, *_: (0.5, {"found": number})
                return super().evaluate(server_round, parameters)

        for rounds in (3, 5):
            caplog.clear()
            strategy = older_api.make_own(Evaluating, checkpoint=Checkpoint(tmp_path))
            run(strategy, train, MODEL, NUM_CLIENTS, rounds)
        said = [text[:16] for text in caplog.messages if "cancel" in text or "progress" in text]
        assert said == ["fit progress: (" + number for number in "345"]
        assert not [text for text in caplog.messages if text.startswith("initial parameters")]

    def test_the_last_evaluation_has_numbers_of_any_kind(self, message_api, lines):
        model = to_record({"x": np.zeros(3, np.float32)})
        found = {"loss": np.float32(0.5), "hits": np.int64(7), 3: 0.25, "name": "x", "both": [1, 2]}
        grid = InProcessGrid(ClientApp(), 2)
        result = message_api.make("SignSGD").start(grid, model, 0, evaluate_fn=lambda *_: found)
        (line,) = lines("evaluation by the server after")
        assert line == "evaluation by the server after round 0: loss 0.5, hits 7, 3 0.25"
        assert [">3<" in result._repr_html_(), ">name<" in result._repr_html_()] == [True, False]

    def test_after_the_run_and_in_other_threads_flowers_log_is_whole(self, message_api, caplog):
        repeated = "\t└──> Aggregated MetricRecord: %s"

        def say(number, arrays):
            for level in (INFO, WARNING):
                log(level, repeated, f"inside at {level}")
            with ThreadPoolExecutor() as threads:
                threads.submit(log, INFO, repeated, "elsewhere").result()

        model = to_record({"x": np.zeros(3, np.float32)})
        app = ClientApp()
        message_api.make("SignSGD").start(InProcessGrid(app, 2), model, 0, evaluate_fn=say)
        log(INFO, repeated, "after")
        said = [text.split(": ")[1] for text in caplog.messages if "Aggregated" in text]
        assert said == ["inside at 30", "elsewhere", "after"]

    @pytest.mark.parametrize("said", [np.zeros(2), 0.5, {"x": 1}], ids=str)
    def test_an_app_may_log_any_object(self, said, api, run, caplog):
        def train_and_log(model, partition):
            log(INFO, said)
            return train(model, partition)

        outcome = run(api.make("SignSGD"), train_and_log, MODEL, NUM_CLIENTS, 1)
        assert outcome.reports[1]["replies-accepted"] == NUM_CLIENTS
        assert sum(record.msg is said for record in caplog.records) == NUM_CLIENTS

    def test_a_line_that_cannot_be_formatted_is_left_to_the_handlers(self):
        line = LogRecord("flwr", INFO, "app.py", 1, "half", (0.5,), None)
        assert _Concise(get_ident(), 0).filter(line)

    @pytest.mark.parametrize("begins", ["[INIT]", "Starting %s strategy:"])
    def test_after_a_run_of_the_older_api_that_failed_the_next_ones_log_is_whole(
        self, begins, older_api, run, caplog
    ):
        with pytest.raises(RunFailedError):
            run(older_api.make("SignSGD"), fail, MODEL, NUM_CLIENTS, 9)
        caplog.clear()
        for text in ("Global evaluation", begins, "Global evaluation"):
            log(INFO, text)
        assert caplog.messages == [begins, "Global evaluation"]

    @pytest.mark.parametrize("number", [0, 1, 100])
    def test_a_line_names_the_first_few_of_the_clients_metrics(self, number):
        counts = {"replies-accepted": 2, "replies-rejected": 0, "replies-missing": 0}
        own = {"list": [1.0], **{f"{count}\n" * 100: count / 3 for count in range(number)}}
        line = describe_round(counts, own)
        assert line.isprintable()
        assert len(line) < 400
        assert ("clients report 0\\n0" in line) == (number > 0)

    def test_what_is_not_known_is_left_out_of_the_line(self):
        counts = {"replies-accepted": 2, "replies-rejected": 1, "replies-missing": 3}
        assert describe_round(counts, {}) == "accepted 2 replies, dropped 1, missing 3"

    @pytest.mark.parametrize("value", [[1.0, 2.0], [1e30] * 9, 1e30, 7])
    @pytest.mark.parametrize(
        "name", ["epsilon", "margin", "signal-to-noise", "noise-scale", "replies-missing"]
    )
    def test_a_clients_metric_with_the_name_of_a_measurement_is_not_taken_for_one(
        self, name, value, message_api, run, lines, warnings
    ):
        def claim(model, partition):
            after, metrics = train(model, partition)
            return after, {**metrics, name: value}

        strategy = message_api.make("MedianSGD", noise=None, diagnostics=False)
        outcome = run(strategy, claim, MODEL, NUM_CLIENTS, 3)
        assert [report["replies-accepted"] for report in outcome.reports.values()] == [5] * 3
        for line in (line for line in lines("[ROUND") if "aggregate_train" in line):
            ours, _, theirs = line.partition("; clients report ")
            assert not re.search("epsilon|margin|signal", ours)
            assert (name in theirs) == isinstance(value, int | float)
        assert not warnings("noise scale")

    def test_lists_with_an_entry_for_each_block_are_kept_and_not_in_the_log(
        self, any_client, run, caplog
    ):
        outcome = run(any_client.make("SignSGD"), train, MODEL, NUM_CLIENTS, 2)
        for report in outcome.reports.values():
            assert len(report["noise-scale"]) == len(report["signal-to-noise-per-block"]) > 0
        assert sorted(outcome.reports) == [1, 2]
        assert not [text for text in caplog.messages if "noise-scale" in text]
        assert not [text for text in caplog.messages if "per-block" in text]

    def test_lists_of_a_run_of_the_older_api_are_an_attribute_of_its_strategy(self, older_api, run):
        strategy = older_api.make("SignSGD")
        for num_rounds in (3, 2):
            outcome = run(strategy, train, MODEL, NUM_CLIENTS, num_rounds)
            assert sorted(strategy.metrics_per_block) == sorted(outcome.reports)
            assert len(strategy.metrics_per_block) == num_rounds

    @pytest.mark.parametrize("carries", [False, True], ids=["metrics", "metrics and the model"])
    @pytest.mark.parametrize("make", ["SignSGD", "MedianSGD"])
    @pytest.mark.parametrize("width", [1, 30, 400])
    def test_a_run_ends_with_all_its_bytes_beside_those_of_a_run_with_fedavg(
        self, width, make, carries, message_api, lines
    ):
        app, model = ClientApp(mods=[perturb]), {"w": np.zeros((width, width), np.float32)}

        def reply_to(message, by, *, carries):
            arrays = to_arrays(message.content["arrays"])
            content = {"metrics": MetricRecord({"num-examples": 2, "loss": 0.5})}
            if carries:
                content["arrays"] = to_record({k: v + np.float32(by) for k, v in arrays.items()})
            return Message(RecordDict(content), reply_to=message)

        app.train()(lambda message, context: reply_to(message, 1, carries=True))
        app.evaluate()(lambda message, context: reply_to(message, 0, carries=carries))

        def play(strategy):
            grid = WeighingGrid(app, NUM_CLIENTS)
            strategy.start(grid, to_record(model), 2)
            return grid

        grid, of_weights = play(message_api.make(make)), play(FedAvg())
        (line,) = lines("arrays sent in 2 rounds")
        up, down, weights, models = map(in_bytes, re.findall(r"[\d.]+ [kMG]?B", line))
        assert up == pytest.approx(grid.held_up, rel=0.005)
        assert down == pytest.approx(grid.held_down, rel=0.005)
        times, times_down = map(float, re.findall(r"([\d.]+) times as much", line))
        assert models == pytest.approx(of_weights.held_down, rel=0.03)
        assert times_down == pytest.approx(models / down, rel=0.03, abs=0.06)
        if carries:
            # Nobody tells the server of arrays that `perturb` leaves out of evaluation.
            assert weights < of_weights.held_up
        else:
            # The noise scales beside the model are counted as if FedAvg's clients sent them, too.
            assert weights == pytest.approx(of_weights.held_up, rel=0.03)
            assert times == pytest.approx(of_weights.held_up / grid.held_up, rel=0.03, abs=0.06)

    def test_a_line_of_evaluation_has_the_bytes_of_the_model(self, api, run, lines):
        run(api.make("SignSGD"), train, MODEL, NUM_CLIENTS)
        _, line = lines("[ROUND")
        assert line.partition("] ")[2] == (
            "aggregate_evaluate: accepted 5 replies, dropped 0; "
            f"{BYTES_OF_MODEL:,} bytes down per client; clients report loss 2"
        )

    def test_both_apis_report_what_goes_down(self, api, run):
        outcome = run(api.make("SignSGD", fraction_evaluate=0.0), train, MODEL, NUM_CLIENTS)
        assert outcome.reports[1]["downlink-bytes"] == BYTES_OF_MODEL

    @pytest.mark.parametrize("make", ["SignSGD", "MedianSGD"])
    def test_uplink_bytes_are_a_clients_also_if_others_fail(self, make, api, run):
        def mostly(model, partition):
            return (fail if partition > 2 else train)(model, partition)

        sent, sent_by_some = (
            run(api.make(make), clients, MODEL, NUM_CLIENTS).reports[1]["uplink-bytes"]
            for clients in (train, mostly)
        )
        assert sent_by_some == sent

    def test_whole_models_for_clients_that_cannot_follow_are_announced_with_their_bytes(
        self, message_api, run, lines
    ):
        trained = dict.fromkeys(range(NUM_CLIENTS), 0)

        def fail_once(model, partition):
            trained[partition] += 1
            return (fail if partition == trained[partition] == 2 else train)(model, partition)

        strategy = message_api.make("SignSGD", downlink=CodedSteps(), fraction_evaluate=0.0)
        run(strategy, fail_once, MODEL, NUM_CLIENTS, 4)
        (line,) = lines("1 of 5 clients are sent the whole model")
        assert f"{sum(array.nbytes for array in MODEL.values()):,} bytes each: 1 are new" in line

    def test_the_banner_has_what_is_not_as_usual(self, message_api, run, lines):
        run(message_api.make("SignSGD", seed=None), train, MODEL, NUM_CLIENTS)
        assert lines("all defaults")
        strategy = message_api.make("SignSGD", seed=None, rotation=None, noise=Gaussian(2.0))
        run(strategy, train, MODEL, NUM_CLIENTS)
        assert lines("noise=Gaussian(scale=2.0), rotation=None")

    def test_a_strategy_of_the_older_api_shows_what_is_not_as_usual(self, older_api):
        assert repr(older_api.make("MedianSGD", optimizer=Momentum(), seed=3)) == (
            "MedianSGD(optimizer=Momentum(beta_1=0.9), seed=3)"
        )
