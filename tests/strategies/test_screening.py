"""Replies that cannot be used: each is dropped, counted and logged, and touches nothing."""

import copy
import logging
from math import inf, nan

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmedian import Gaussian
from fedmedian.clients import InProcessGrid
from fedmedian.strategies import MedianSGD, SignSGD
from fedmedian.wire import PREFIX

MODEL = {
    "weight": np.arange(20, dtype=np.float32).reshape(4, 5),
    "bias": np.linspace(0, 1, 5),
    "norm.running_mean": np.zeros(5, dtype=np.float32),
    "steps": np.array(0),
}
NUM_CLIENTS = 5
BAD = 2  # the client whose reply is replaced
BODY, DENSE = f"{PREFIX}0", f"{PREFIX}1"  # the arrays of a payload

STRATEGIES = {
    "counts": lambda: SignSGD(seed=1),
    "counts, fixed scale": lambda: SignSGD(Gaussian(0.5), seed=1),
    "majority": lambda: SignSGD(None, "majority", 0.1, seed=1),
    "median, noise at the client": lambda: MedianSGD(Gaussian(0.5), seed=1),
    "median, noise at the server": lambda: MedianSGD(noise_at="server", seed=1),
    "median": lambda: MedianSGD(None, seed=1),
}


@pytest.fixture(scope="module")
def app(make_app):
    def train(model, partition):
        draws = np.random.default_rng(partition)
        trained = {
            name: array + draws.standard_normal(array.shape).astype(array.dtype)
            for name, array in model.items()
        }
        return trained, {"num-examples": partition + 1, "loss": float(partition)}

    return make_app(train)


@pytest.fixture(scope="module")
def play(app, honest_round):
    """Returns the honest round of a strategy made anew, which comes out the same each time."""
    return lambda make: honest_round(make(), app, NUM_CLIENTS, MODEL)


def body_of(reply):
    """The payload's packed signs or vector."""
    return reply.content["arrays"][BODY].numpy()


def replace_array(reply, array, name=BODY):
    record = dict(reply.content["arrays"])
    reply.content["arrays"] = ArrayRecord({**record, name: array})


def change(key, value):
    """A corruption: another value for one of the payload's scalars; None takes it out."""

    def corrupt(reply):
        config = dict(reply.content["fedmedian"])
        if value is None:
            del config[PREFIX + key]
        else:
            config[PREFIX + key] = value
        reply.content["fedmedian"] = ConfigRecord(config)

    return corrupt


def examples(value):
    def corrupt(reply):
        reply.content["metrics"] = MetricRecord({"num-examples": value, "loss": 1.0})

    return corrupt


def no_examples(reply):
    reply.content["metrics"] = MetricRecord({"loss": 1.0})


def no_metrics(reply):
    del reply.content["metrics"]


def two_metrics(reply):
    reply.content["more"] = MetricRecord({"num-examples": 1})


def no_arrays(reply):
    del reply.content["arrays"]


def two_array_records(reply):
    reply.content["more"] = ArrayRecord({})


def three_arrays(reply):
    replace_array(reply, Array(np.zeros(1)), name="2")


def no_array(reply):
    reply.content["arrays"] = ArrayRecord({})


def dense_arrays_missing(reply):
    reply.content["arrays"] = ArrayRecord({BODY: reply.content["arrays"][BODY]})


def dense_nan(reply):
    dense = reply.content["arrays"][DENSE].numpy().copy()
    dense[: 4 * 5] = np.full(5, nan, np.float32).view(np.uint8)
    replace_array(reply, Array(dense), name=DENSE)


def longer_body(reply):
    replace_array(reply, Array(np.append(body_of(reply), body_of(reply)[:1])))


def shorter_body(reply):
    replace_array(reply, Array(body_of(reply)[:-1]))


def other_shape(reply):
    replace_array(reply, Array(body_of(reply)[None]))


def other_dtype(reply):
    replace_array(reply, Array(body_of(reply).astype(np.float64)))


def truncated_bytes(reply):
    whole = reply.content["arrays"][BODY]
    replace_array(reply, Array(whole.dtype, whole.shape, whole.stype, whole.data[:-1]))


def not_npy(reply):
    replace_array(reply, Array("uint8", (4,), "numpy.ndarray", b"junk"))


def empty_bytes(reply):
    replace_array(reply, Array("uint8", (4,), "numpy.ndarray", b""))


def pickled_objects(reply):
    header = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    text = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    data = header + text.ljust(117) + b"\n" + b"cos\nsystem\n(S'true'\ntR."
    replace_array(reply, Array("object", (1,), "numpy.ndarray", data))


def huge_shape(reply):
    header = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999,), }"
    data = header + text.ljust(117) + b"\n"
    replace_array(reply, Array("float32", (999999999999,), "numpy.ndarray", data))


BAD_REPLIES = {
    "no arrays": (no_arrays, "expected one ArrayRecord, got 0"),
    "two array records": (two_array_records, "expected one ArrayRecord, got 2"),
    "an empty array record": (no_array, "a payload has one or two arrays, got 0"),
    "three arrays": (three_arrays, "a payload has one or two arrays, got 3"),
    "dense arrays missing": (dense_arrays_missing, "dense arrays must be uint8 of shape (28,)"),
    "a running statistic of NaN": (dense_nan, "'norm.running_mean' holds NaN"),
    "a body too long": (longer_body, "of shape"),
    "a body too short": (shorter_body, "of shape"),
    "a body of another shape": (other_shape, "of shape"),
    "a body of another dtype": (other_dtype, "got float64"),
    "truncated bytes": (truncated_bytes, "not in .npy format"),
    "bytes that are no array": (not_npy, "not in .npy format"),
    "no bytes at all": (empty_bytes, "not in .npy format"),
    "pickled objects": (pickled_objects, "not in .npy format"),
    "a shape that fills the memory": (huge_shape, "not in .npy format"),
    "no metrics": (no_metrics, "expected one MetricRecord, got 0"),
    "two metric records": (two_metrics, "expected one MetricRecord, got 2"),
    "no number of examples": (no_examples, "'num-examples' must be a number > 0, got None"),
    **{
        f"{value} examples": (examples(value), "'num-examples' must be a number > 0")
        for value in (0, -1, nan, inf, [1, 2])
    },
    "another version": (change("payload", 99), "version 99"),
    "a version in words": (change("payload", "1"), "fedmedian.payload must be int"),
    "another kind": (change("kind", "essay"), "fedmedian.kind must be one of"),
    "no kind": (change("kind", None), "fedmedian.kind is missing"),
    "unknown noise": (change("noise", "pink"), "fedmedian.noise must be one of"),
    "other noise than told": (change("noise", "uniform"), "used noise 'uniform'"),
    "no scales": (change("scales", None), "fedmedian.scales is missing"),
    "scales of a wrong type": (change("scales", 1.0), "fedmedian.scales must be bytes"),
    "scales of a strange length": (change("scales", b"123"), "cannot have 3 bytes"),
    "too few scales": (change("scales", b""), "scales must be float32 of shape (2,)"),
    "scales of NaN": (
        change("scales", np.full(2, nan, "<f4").tobytes()),
        "scales must be finite",
    ),
    "negative magnitudes": (
        change("magnitudes", np.full(2, -1, "<f4").tobytes()),
        "magnitudes must be finite and not negative",
    ),
    "no magnitudes": (change("magnitudes", None), "fedmedian.magnitudes is missing"),
}

every_strategy = pytest.mark.parametrize("make", STRATEGIES.values(), ids=STRATEGIES)
every_bad_reply = pytest.mark.parametrize(
    ("corrupt", "reason"), BAD_REPLIES.values(), ids=BAD_REPLIES
)


def with_bad(replies, corrupt):
    corrupt(replies[BAD])
    return replies


def without_bad(replies):
    return [reply for client, reply in enumerate(replies) if client != BAD]


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def same_models(one, other):
    return list(one) == list(other) and all(
        one[name].tobytes() == other[name].tobytes() for name in one
    )


@pytest.fixture
def assert_dropped(play, caplog):
    """Asserts that a reply is dropped for a reason, and the round is as if it had not come."""

    def check(make, replies_of, reason):
        expected, expected_report = (lambda r: r.aggregate(without_bad(r.replies)))(play(make))
        caplog.clear()
        spoilt = play(make)
        node = spoilt.messages[BAD].metadata.dst_node_id
        model, report = spoilt.aggregate(replies_of(spoilt))
        assert same_models(model, expected)
        assert report["replies-rejected"] == 1
        assert report["replies-accepted"] == NUM_CLIENTS - 1
        assert report["loss"] == expected_report["loss"]
        (warning,) = warnings(caplog)
        assert warning.startswith(f"aggregate_train: dropped the reply of node {node}: ")
        assert reason in warning

    return check


@every_strategy
@every_bad_reply
def test_a_bad_reply_is_dropped_counted_and_logged(make, corrupt, reason, assert_dropped):
    assert_dropped(make, lambda spoilt: with_bad(spoilt.replies, corrupt), reason)


@pytest.mark.parametrize(
    "make", [make for make in STRATEGIES.values() if make().core.kind == "vector"]
)
@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_a_vector_that_is_not_finite_is_dropped(make, value, assert_dropped):
    def corrupt(reply):
        body = body_of(reply).copy()
        body[7] = value
        replace_array(reply, Array(body))

    reason = "vector holds NaN or infinity"
    assert_dropped(make, lambda spoilt: with_bad(spoilt.replies, corrupt), reason)


def test_a_client_that_sets_its_own_noise_scale_is_dropped(assert_dropped):
    louder = change("scales", np.full(2, 0.6, "<f4").tobytes())
    for name in ("counts, fixed scale", "median, noise at the client"):
        assert_dropped(
            STRATEGIES[name],
            lambda spoilt: with_bad(spoilt.replies, louder),
            "used another noise scale than it was told",
        )


def test_a_vector_instead_of_signs_is_dropped_and_signs_instead_of_a_vector(play, assert_dropped):
    pairs = [("majority", "median"), ("median", "majority")]
    for asked, sent in pairs:
        other = play(STRATEGIES[sent]).replies[BAD]

        def swap(reply, other=other):
            reply.content["arrays"] = other.content["arrays"]
            reply.content["fedmedian"] = other.content["fedmedian"]

        assert_dropped(
            STRATEGIES[asked], lambda spoilt, swap=swap: with_bad(spoilt.replies, swap), "sent '"
        )


def plain_weights(model, as_record):
    def corrupt(reply):
        reply.content["arrays"] = as_record(model)
        del reply.content["fedmedian"]

    return corrupt


@pytest.mark.parametrize("name", ["counts", "majority", "median, noise at the client"])
def test_weights_from_a_client_without_the_mod_are_dropped_where_it_is_needed(
    name, assert_dropped, as_record
):
    assert_dropped(
        STRATEGIES[name],
        lambda spoilt: with_bad(spoilt.replies, plain_weights(MODEL, as_record)),
        "does its ClientApp have mods=[perturb]?",
    )


BAD_WEIGHTS = {
    "a missing array": (
        {name: array for name, array in MODEL.items() if name != "bias"},
        "missing ['bias'], extra []",
    ),
    "another name": (
        {("b" if name == "bias" else name): array for name, array in MODEL.items()},
        "missing ['bias'], extra ['b']",
    ),
    "another order": (dict(reversed(MODEL.items())), "not in the model's order"),
    "another shape": ({**MODEL, "bias": np.zeros(6)}, "array 'bias' has shape (6,)"),
    "NaN": ({**MODEL, "bias": np.full(5, nan)}, "update of array 'bias' holds NaN"),
    "infinity": ({**MODEL, "bias": np.full(5, inf)}, "update of array 'bias' holds NaN"),
}


@pytest.mark.parametrize("name", ["median", "median, noise at the server"])
@pytest.mark.parametrize(("weights", "reason"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_weights_that_are_not_the_models_are_dropped(
    name, weights, reason, assert_dropped, as_record
):
    assert_dropped(
        STRATEGIES[name],
        lambda spoilt: with_bad(spoilt.replies, plain_weights(weights, as_record)),
        reason,
    )


def error_reply(message, src_node_id=None):
    reply = Message(Error(ErrorCode.NODE_UNAVAILABLE, "gone fishing"), reply_to=message)
    if src_node_id is not None:
        reply.metadata.__dict__["_src_node_id"] = src_node_id
    return reply


@every_strategy
def test_a_failure_that_the_superlink_reports_is_put_down_to_its_node(make, assert_dropped):
    def replies(spoilt):
        failed = error_reply(spoilt.messages[BAD], SUPERLINK_NODE_ID)
        return [*without_bad(spoilt.replies), failed]

    assert_dropped(make, replies, f"error {ErrorCode.NODE_UNAVAILABLE}: gone fishing")


@every_strategy
def test_without_a_usable_reply_the_model_stays(make, play, caplog):
    spoilt = play(make)
    model, report = spoilt.aggregate([error_reply(message) for message in spoilt.messages])
    assert model is None
    assert report["replies-accepted"] == 0
    assert report["replies-rejected"] == NUM_CLIENTS
    assert "round 1 keeps the model as it is: 0 usable replies" in caplog.text


@every_strategy
def test_nodes_that_do_not_reply_are_counted_and_named(make, play, caplog):
    silent = play(make)
    model, report = silent.aggregate([])
    assert model is None
    assert dict(report) == {
        "replies-accepted": 0,
        "replies-rejected": 0,
        "replies-missing": NUM_CLIENTS,
    }
    for message in silent.messages:
        node = message.metadata.dst_node_id
        assert f"aggregate_train: no reply from node {node}\n" in caplog.text


def test_a_round_without_training_has_nothing_to_report(app, honest_round):
    idle = honest_round(SignSGD(fraction_train=0.0), app, NUM_CLIENTS, MODEL)
    assert idle.aggregate([]) == (None, None)


@every_strategy
def test_one_usable_reply_is_enough(make, play):
    spoilt = play(make)
    model, report = spoilt.aggregate(
        [spoilt.replies[0], *(error_reply(message) for message in spoilt.messages[1:])]
    )
    assert all(np.isfinite(array).all() for array in model.values())
    assert report["replies-accepted"] == 1


def test_a_run_outlives_rounds_in_which_every_client_fails(make_app, as_record, as_arrays):
    def fail(model, partition):
        raise RuntimeError("no luck")

    result = SignSGD().start(InProcessGrid(make_app(fail), 3), as_record(MODEL), num_rounds=2)
    assert [r["replies-rejected"] for r in result.train_metrics_clientapp.values()] == [3, 3]
    assert not result.arrays


def test_aggregating_before_asking_is_a_mistake():
    with pytest.raises(RuntimeError, match="aggregated before a round was configured"):
        SignSGD().aggregate_train(1, [])


@pytest.mark.parametrize(
    "odd",
    [
        {"num-examples": 3},
        {"num-examples": 3, "loss": 1.0, "accuracy": 0.5},
        {"num-examples": 3, "loss": [1.0, 2.0]},
        {"num-examples": 3, "loss": nan},
    ],
    ids=["lacks one", "adds one", "a list instead of a number", "no number at all"],
)
@every_strategy
def test_odd_metrics_are_left_out_but_the_reply_counts(make, odd, play, caplog):
    honest = play(make)
    expected, _ = honest.aggregate(honest.replies)
    spoilt = play(make)
    spoilt.replies[BAD].content["metrics"] = MetricRecord(odd)
    caplog.clear()
    model, report = spoilt.aggregate(spoilt.replies)
    assert report["replies-accepted"] == NUM_CLIENTS
    assert same_models(model, expected)
    assert report["loss"] == pytest.approx(np.average([0, 1, 3, 4], weights=[1, 2, 4, 5]))
    assert any("left the metrics of 1 replies out" in text for text in warnings(caplog))


@every_strategy
def test_a_client_with_more_examples_than_can_be_summed_does_no_harm_to_the_arithmetic(make, play):
    spoilt = play(make)
    for reply in spoilt.replies[:2]:
        reply.content["metrics"] = MetricRecord({"num-examples": 1.7e308, "loss": 1.0})
    model, _ = spoilt.aggregate(spoilt.replies)
    assert all(np.isfinite(array).all() for array in model.values())


@pytest.mark.parametrize("name", ["median", "median, noise at the client"])
def test_one_client_with_enormous_values_cannot_move_a_median_far(name, play):
    honest = play(STRATEGIES[name])
    expected, _ = honest.aggregate(honest.replies)
    spoilt = play(STRATEGIES[name])
    body = np.full_like(body_of(spoilt.replies[BAD]), np.finfo(np.float32).max)
    replace_array(spoilt.replies[BAD], Array(body))
    model, report = spoilt.aggregate(spoilt.replies)
    assert report["replies-accepted"] == NUM_CLIENTS
    for array in ("weight", "bias"):
        assert np.abs(model[array] - expected[array]).max() < 10


def test_one_client_with_an_enormous_scale_cannot_outweigh_the_others(play):
    def loud(reply):
        change("scales", np.full(2, 3e38, "<f4").tobytes())(reply)
        change("magnitudes", np.full(2, 3e38, "<f4").tobytes())(reply)

    honest, spoilt = play(STRATEGIES["counts"]), play(STRATEGIES["counts"])
    expected, _ = honest.aggregate(honest.replies)
    model, _ = spoilt.aggregate(with_bad(spoilt.replies, loud))
    for array in ("weight", "bias"):
        assert np.abs(model[array] - expected[array]).max() < 30


scalars = (
    st.none()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=12)
    | st.booleans()
)
own_keys = st.sampled_from(
    [PREFIX + key for key in ("payload", "kind", "noise", "scales", "magnitudes")]
)


@pytest.fixture(scope="module")
def rounds(play):
    return {name: play(make) for name, make in STRATEGIES.items()}


class TestJunk:
    """Whatever a client sends, the round goes on."""

    def survives(self, rounds, name, spoil):
        played = rounds[name]
        replies = [copied(reply) for reply in played.replies]
        spoil(replies[BAD])
        model, report = played.aggregate(replies)
        assert report["replies-accepted"] + report["replies-rejected"] == NUM_CLIENTS
        assert report["replies-accepted"] >= NUM_CLIENTS - 1
        assert all(np.isfinite(array).all() for array in model.values())

    @settings(max_examples=60)
    @given(name=st.sampled_from(list(STRATEGIES)), data=st.binary(max_size=300))
    def test_in_an_arrays_bytes(self, rounds, name, data):
        junk = Array("float32", (1,), "numpy.ndarray", data)
        self.survives(rounds, name, lambda reply: replace_array(reply, junk))

    @settings(max_examples=60)
    @given(
        name=st.sampled_from(list(STRATEGIES)),
        position=st.integers(0, 10_000),
        value=st.integers(0, 255),
        array=st.sampled_from([BODY, DENSE]),
    )
    def test_in_one_byte_of_an_array(self, rounds, name, position, value, array):
        def spoil(reply):
            old = reply.content["arrays"][array]
            data = bytearray(old.data)
            data[position % len(data)] = value
            replace_array(reply, Array(old.dtype, old.shape, old.stype, bytes(data)), array)

        self.survives(rounds, name, spoil)

    @settings(max_examples=60)
    @given(
        name=st.sampled_from(list(STRATEGIES)),
        config=st.dictionaries(own_keys | st.text(max_size=5), scalars, max_size=6),
        whole=st.booleans(),
    )
    def test_in_the_payloads_scalars(self, rounds, name, config, whole):
        def spoil(reply):
            old = {} if whole else dict(reply.content["fedmedian"])
            new = {k: v for k, v in config.items() if v is not None}
            taken_out = [k for k, v in config.items() if v is None]
            merged = {k: v for k, v in {**old, **new}.items() if k not in taken_out}
            reply.content["fedmedian"] = ConfigRecord(merged)

        self.survives(rounds, name, spoil)

    @settings(max_examples=60)
    @given(
        name=st.sampled_from(list(STRATEGIES)),
        sizes=st.binary(min_size=8, max_size=8),
        key=st.sampled_from(["scales", "magnitudes"]),
    )
    def test_in_the_sizes_that_a_client_reports(self, rounds, name, sizes, key):
        self.survives(rounds, name, change(key, sizes))

    @settings(max_examples=60)
    @given(
        name=st.sampled_from(list(STRATEGIES)),
        metrics=st.dictionaries(
            st.sampled_from(["num-examples", "loss", "extra"]),
            st.integers(-(2**63), 2**63 - 1)
            | st.floats()
            | st.lists(st.floats(), max_size=3)
            | st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
        ),
    )
    def test_in_the_metrics(self, rounds, name, metrics):
        def spoil(reply):
            reply.content["metrics"] = MetricRecord(metrics)

        self.survives(rounds, name, spoil)


def copied(reply):
    content = {name: type(record)(dict(record)) for name, record in reply.content.items()}
    return Message(RecordDict(content), metadata=copy.copy(reply.metadata))


class TestEvaluation:
    """Replies with metrics of the evaluation are screened in the same way."""

    @pytest.fixture
    def evaluated(self, app, as_record):
        """A strategy after its messages for evaluation, with the honest replies."""

        def evaluate(make):
            strategy, grid = make(), InProcessGrid(app, NUM_CLIENTS)
            messages = list(strategy.configure_evaluate(1, as_record(MODEL), ConfigRecord(), grid))
            messages.sort(key=lambda message: message.metadata.dst_node_id)
            return strategy, messages, grid.send_and_receive(messages)

        return evaluate

    @every_strategy
    def test_metrics_are_averaged(self, make, evaluated):
        strategy, _, replies = evaluated(make)
        assert dict(strategy.aggregate_evaluate(1, replies)) == {"loss": pytest.approx(2.0)}

    @pytest.mark.parametrize(
        "name", [name for name in BAD_REPLIES if "example" in name or "metric" in name]
    )
    def test_a_bad_reply_is_dropped_and_logged(self, name, evaluated, caplog):
        corrupt, reason = BAD_REPLIES[name]
        strategy, messages, replies = evaluated(STRATEGIES["counts"])
        corrupt(replies[BAD])
        metrics = strategy.aggregate_evaluate(1, replies)
        assert metrics["loss"] == pytest.approx(np.mean([0, 1, 3, 4]))
        (warning,) = warnings(caplog)
        node = messages[BAD].metadata.dst_node_id
        assert warning.startswith(f"aggregate_evaluate: dropped the reply of node {node}: ")
        assert reason in warning

    def test_a_failure_that_the_superlink_reports_is_put_down_to_its_node(self, evaluated, caplog):
        strategy, messages, replies = evaluated(STRATEGIES["counts"])
        replies[BAD] = error_reply(messages[BAD], SUPERLINK_NODE_ID)
        strategy.aggregate_evaluate(1, replies)
        (warning,) = warnings(caplog)
        assert f"the reply of node {messages[BAD].metadata.dst_node_id}: error" in warning

    def test_odd_metrics_are_left_out(self, evaluated):
        strategy, _, replies = evaluated(STRATEGIES["counts"])
        replies[BAD].content["metrics"] = MetricRecord({"num-examples": 2, "other": 1.0})
        metrics = strategy.aggregate_evaluate(1, replies)
        assert dict(metrics) == {"loss": pytest.approx(np.mean([0, 1, 3, 4]))}

    def test_without_a_usable_reply_there_are_no_metrics(self, evaluated):
        strategy, messages, _ = evaluated(STRATEGIES["counts"])
        assert strategy.aggregate_evaluate(1, [error_reply(one) for one in messages]) is None
        assert strategy.aggregate_evaluate(1, []) is None


def test_replies_that_differ_only_in_what_they_do_not_vote_on_may_come_in_any_order(play):
    make = STRATEGIES["majority"]
    results = []
    for step in (1, -1):
        tied = play(make)
        for client, reply in enumerate(tied.replies):
            replace_array(reply, tied.replies[0].content["arrays"][BODY])
            reply.content["metrics"] = MetricRecord({"num-examples": 3, "loss": 0.1 * client})
        results.append(tied.aggregate(tied.replies[::step]))
    (one, one_report), (other, other_report) = results
    assert same_models(one, other)
    assert one_report == other_report
