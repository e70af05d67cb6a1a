"""The model that a client holds in its Context.state, and what it makes of messages."""

import gc
import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fedmedian.clients import holding
from fedmedian.clients.holding import receive
from fedmedian.clients.memory import recall
from fedmedian.model.layout import Layout
from fedmedian.records import to_arrays, to_record
from fedmedian.rounds.downlink import Held
from fedmedian.steps.downlink import NotHeldError, fingerprint
from fedmedian.wire.scalars import WireError

MODEL = {
    "w": np.linspace(-1, 1, 600, dtype=np.float32).reshape(20, 30),
    "b": np.linspace(-1, 1, 40).astype(np.float16),
    "n": np.array(3),
}
LAYOUT = Layout.of_model(MODEL)


def server(rounds):
    """Return what clients are to hold after each of some rounds."""
    held, model = Held.of(MODEL), MODEL
    path = [held]
    for number in range(rounds):
        step = np.random.default_rng(number).standard_normal(LAYOUT.dim).astype(np.float32)
        model = LAYOUT.move(model, step, 0.1, {"n": model["n"] + 1})
        held = held.towards(model, LAYOUT, 1)
        path.append(held)
    return path


def client():
    return Context(1, 2, {"partition-id": 0}, RecordDict(), {})


def message_of(content, kind="train", **more):
    config = ConfigRecord({**content.scalars, "lr": 0.1, **more})
    records = {"arrays": to_record(content.arrays), "config": config}
    return Message(RecordDict(records), dst_node_id=2, message_type=kind)


def model_in(message):
    return to_arrays(message.content["arrays"])


def is_equal(model, other):
    return fingerprint(model) == fingerprint(other)


@pytest.fixture(autouse=True)
def identified():
    """Allow messages to be made outside a ServerApp."""
    from fedmedian.clients.in_process import _identify_this_process

    _identify_this_process()


@pytest.fixture(params=["shared", "alone"])
def process(request, monkeypatch):
    """Lets clients share models with others of their process, or not."""
    if request.param == "alone":

        class Nothing(dict):
            def setdefault(self, version, record):
                return record

        monkeypatch.setattr(holding, "_MODELS", Nothing())
    return request.param


@pytest.mark.parametrize("kind", ["train", "evaluate"])
class TestFollowing:
    def test_a_client_that_has_held_all_of_them_is_at_the_servers_model_after_each_message(
        self, kind, process
    ):
        context, version = client(), None
        for held in server(5):
            message = message_of(held.content_for(version), kind)
            version = receive(message, context)
            assert version == held.versions[-1]
            assert is_equal(model_in(message), held.model)
            assert list(message.content["config"]) == ["lr"]

    @pytest.mark.parametrize("missed", [0, 1, 3])
    def test_one_that_missed_rounds_catches_up(self, missed, kind, process):
        path = server(5)
        context = client()
        receive(message_of(path[0].content_for(None)), context)
        last = path[missed]
        message = message_of(last.content_for(path[0].versions[0]), kind)
        assert receive(message, context) == last.versions[-1]
        assert is_equal(model_in(message), last.model)

    def test_one_that_holds_more_than_the_server_knows_takes_only_what_is_missing(
        self, kind, process
    ):
        path = server(5)
        context = client()
        receive(message_of(path[3].content_for(None)), context)
        for last in (path[5], path[5]):
            message = message_of(last.content_for(path[0].versions[0]), kind)
            assert receive(message, context) == last.versions[-1]
            assert is_equal(model_in(message), last.model)

    def test_one_without_the_model_refuses_and_its_state_stays(self, kind, process):
        path = server(2)
        steps = path[2].content_for(path[0].versions[0])
        context = client()
        with pytest.raises(NotHeldError, match="holds no model, was sent steps from"):
            receive(message_of(steps, kind), context)
        assert not context.state
        other = {**MODEL, "w": MODEL["w"] + 1}
        receive(message_of(Held.of(other).content_for(None)), context)
        with pytest.raises(NotHeldError, match=f"holds model {fingerprint(other)}"):
            receive(message_of(steps, kind), context)
        assert is_equal(to_arrays(context.state[holding.MODEL_STATE]), other)

    def test_a_whole_model_replaces_whatever_it_holds(self, kind, process):
        path, context = server(1), client()
        other = Held.of({"other": np.zeros(9, np.float32)})
        receive(message_of(other.content_for(None)), context)
        message = message_of(path[1].content_for(None), kind)
        assert receive(message, context) == path[1].versions[-1]
        assert is_equal(model_in(message), path[1].model)


def test_steps_that_lead_elsewhere_than_on_the_server_are_refused(monkeypatch):
    """As where two processors' transforms differ in the last bits."""
    monkeypatch.setattr(holding, "_MODELS", {})
    path, context = server(1), client()
    receive(message_of(path[0].content_for(None)), context)
    content = path[1].content_for(path[0].versions[0])
    signs = content.arrays["fedmedian.0"] ^ np.uint8(128)
    drifted = type(content)({**content.arrays, "fedmedian.0": signs}, content.scalars)
    with pytest.raises(NotHeldError, match="the whole model is needed"):
        receive(message_of(drifted), context)
    assert is_equal(to_arrays(context.state[holding.MODEL_STATE]), MODEL)


def test_messages_without_a_model_to_hold_stay_as_they_are():
    context = client()
    plain = Held.of(MODEL).content_for(None)
    message = message_of(type(plain)(plain.arrays))
    before = {**message.content}
    assert receive(message, context) is None
    assert {**message.content} == before
    assert not context.state


@pytest.mark.parametrize("records", [0, 2])
def test_a_message_without_exactly_one_record_of_arrays_is_refused(records):
    message = message_of(Held.of(MODEL).content_for(None))
    record = message.content.pop("arrays")
    for number in range(records):
        message.content[f"arrays{number}"] = record
    with pytest.raises(WireError, match=f"expected one ArrayRecord, got {records}"):
        receive(message, client())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda message: message.content["config"].update({"fedmedian.model.seeds": "[1.5]"}),
        lambda message: message.content["config"].pop("fedmedian.model.base"),
        lambda message: message.content["config"].update({"fedmedian.model": 99}),
        # The mean of so many arrays takes 87,000 times the memory of one.
        lambda message: message.content["config"].update(
            {"fedmedian.model.tied": json.dumps([[[0] * 87_000]])}
        ),
        # So many means take minutes.
        lambda message: message.content["config"].update(
            {"fedmedian.model.tied": json.dumps([[[0]] * 40_000])}
        ),
        lambda message: message.content["arrays"].clear(),
        lambda message: message.content.update({"arrays": to_record({"x": np.array(1)})}),
        lambda message: message.content.update(
            {"arrays": to_record({"x": np.array(1, np.uint8), "y": np.zeros(8, np.uint8)})}
        ),
    ],
)
def test_malformed_steps_are_refused_and_the_model_stays(spoil, monkeypatch):
    monkeypatch.setattr(holding, "_MODELS", {})
    path, context = server(1), client()
    receive(message_of(path[0].content_for(None)), context)
    message = message_of(path[1].content_for(path[0].versions[0]))
    spoil(message)
    with pytest.raises(WireError) as refused:
        receive(message, context)
    assert not isinstance(refused.value, NotHeldError)
    assert is_equal(to_arrays(context.state[holding.MODEL_STATE]), MODEL)


class TestSharing:
    def test_equal_models_of_a_process_are_one_object(self):
        contexts = [client() for _ in range(5)]
        path, known = server(3), None
        for held in path:
            for context in contexts:
                receive(message_of(held.content_for(known)), context)
            known = held.versions[-1]
            records = [context.state[holding.MODEL_STATE] for context in contexts]
            assert len({id(record) for record in records}) == 1

    def test_they_are_freed_with_the_last_client_that_holds_them(self):
        context = client()
        held = Held.of({"x": np.arange(77, dtype=np.float32)})
        receive(message_of(held.content_for(None)), context)
        assert held.versions[0] in holding._MODELS
        del context
        gc.collect()
        assert held.versions[0] not in holding._MODELS

    def test_models_of_zeros_with_other_names_or_shapes_are_not_mixed_up(self):
        forms = [
            {"a": np.zeros(6, np.float32)},
            {"b": np.zeros(6, np.float32)},
            {"a": np.zeros((2, 3), np.float32)},
            {"a": np.zeros(3), "b": np.zeros(0)},
        ]
        contexts = [client() for _ in forms]
        for model, context in zip(forms, contexts, strict=True):
            message = message_of(Held.of(model).content_for(None))
            receive(message, context)
            for found in (model_in(message), to_arrays(context.state[holding.MODEL_STATE])):
                assert list(found) == list(model)
                assert [one.shape for one in found.values()] == [
                    one.shape for one in model.values()
                ]

    def test_a_client_that_lacks_the_base_does_not_profit_from_others_of_its_process(self):
        path, informed, newcomer = server(1), client(), client()
        for held, known in ((path[0], None), (path[1], path[0].versions[0])):
            receive(message_of(held.content_for(known)), informed)
        with pytest.raises(NotHeldError):
            receive(message_of(path[1].content_for(path[0].versions[0])), newcomer)

    def test_what_an_app_does_to_its_message_does_not_reach_the_state(self):
        context = client()
        message = message_of(server(0)[0].content_for(None))
        receive(message, context)
        record = message.content["arrays"]
        assert isinstance(record, ArrayRecord)
        record.clear()
        assert is_equal(to_arrays(context.state[holding.MODEL_STATE]), MODEL)

    @pytest.mark.parametrize("number", [0, 1], ids=["whole", "by steps"])
    def test_what_an_app_does_to_its_state_does_not_reach_other_clients(self, number):
        path, careless, other = server(1), client(), client()
        receive(message_of(path[0].content_for(None)), other)
        receive(message_of(path[0].content_for(None)), careless)
        if number:
            receive(message_of(path[1].content_for(path[0].versions[0])), careless)
        careless.state[holding.MODEL_STATE]["w"] = Array(np.ones((20, 30), np.float32))
        for context in (client(), other) if number == 0 else (other,):
            known = path[0].versions[0] if number else None
            message = message_of(path[number].content_for(known))
            receive(message, context)
            assert is_equal(model_in(message), path[number].model)


def test_the_model_is_no_client_steps_memory():
    context = client()
    receive(message_of(server(0)[0].content_for(None)), context)
    assert recall(context) == {}
