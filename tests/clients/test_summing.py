"""A client in secure sums: its key stays in its state, and hostile servers are refused in words."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from hypothesis import given
from hypothesis import strategies as st

from fedmedian import Gaussian, Instruction, Payload
from fedmedian.clients import InProcessGrid, Policy, perturb, perturb_with
from fedmedian.secure.cohort import Place
from fedmedian.secure.masking import SEED, SHARE, Key
from fedmedian.secure.opening import Wanted
from fedmedian.secure.requests import ask_for_key, ask_to_reveal, read_public, read_secrets
from fedmedian.steps.encodings import Signs, Vector
from fedmedian.steps.noise import AddNoise, Measure, SizeVotes
from fedmedian.steps.payload import MASKED
from fedmedian.wire.scalars import PREFIX
from tests.tools.apis import contexts_of

MODEL = {"w": np.zeros(20, np.float32), "b": np.zeros(3, np.float32)}
NOISE = AddNoise(Gaussian(), np.float32([1, 1]))
ASKED = Instruction((NOISE, Signs()), server_round=1, seed=None, exact=())
OTHERS = [Key.new() for _ in range(4)]
PLACE = Place(3, 3, tuple(key.public for key in OTHERS))

anything = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(),
    st.binary(max_size=100), st.lists(st.integers(0, 9), min_size=1, max_size=3),
)  # fmt: skip


class Client:
    """A ClientApp on its own node, and how often it has trained."""

    def __init__(self, as_record, *mods):
        self.trained, self._model, self.own = 0, as_record(MODEL), b""
        app = ClientApp(mods=list(mods))

        @app.train()
        def train(message, context):
            self.trained += 1
            content = {
                "arrays": as_record({name: array - 1 for name, array in MODEL.items()}),
                "metrics": MetricRecord({"num-examples": 1}),
            }
            return Message(RecordDict(content), reply_to=message)

        @app.evaluate()
        def evaluate(message, context):
            raise AssertionError("the mod answers")

        self._app = app
        self.restart()

    def restart(self):
        """Lose the state."""
        self._grid = InProcessGrid(self._app, 1)

    def tell(self, *configs, kind="train", arrays=True):
        """Return the reply to a message with some configs."""
        content = RecordDict({"arrays": self._model} if arrays else {})
        for index, config in enumerate(configs):
            content[f"config-{index}"] = ConfigRecord(config)
        (node,) = self._grid.get_node_ids()
        (reply,) = self._grid.send_and_receive(
            [Message(content, dst_node_id=node, message_type=kind)]
        )
        return reply

    def public(self):
        """Ask for a key, and return the public one."""
        self.own = read_public(self.scalars(self.tell(ask_for_key(1), arrays=False)))
        return self.own

    def ask(self, place=PLACE, instruction=ASKED, other=None, **changed):
        """Return the reply to an instruction with a place in a sum, some of it as in `other`."""
        asked = replace(instruction, **changed).encode()
        placed = {} if place is None else replace(place, own=self.own).encode() | (other or {})
        return self.tell({**asked, **placed})

    def payload(self, *arguments, **changed):
        """Return the payload of the answer to an instruction with a place in a sum."""
        reply = self.ask(*arguments, **changed)
        assert not reply.has_error(), reply.error.reason
        arrays = [array.numpy() for array in reply.content["arrays"].values()]
        return Payload.decode(arrays, reply.content["fedmedian"])

    @staticmethod
    def scalars(reply):
        assert not reply.has_error(), reply.error.reason
        return dict(reply.content["fedmedian"])


@pytest.fixture(scope="module")
def make(as_record):
    return lambda *mods: Client(as_record, *(mods or (perturb,)))


@pytest.fixture
def client(make):
    """A client with a key."""
    client = make()
    client.public()
    return client


def refused(reply, *words):
    assert reply.has_error()
    assert reply.error.reason.startswith("perturb: ")
    for one in words:
        assert one in reply.error.reason
    return True


class TestKey:
    def test_is_asked_for_without_training(self, client):
        client.public()
        assert client.trained == 0

    def test_stays_the_same_until_another_is_asked_for(self, client):
        public = client.public()
        client.payload()
        assert Key(client_state(client)["private"]).public == public
        assert client.public() != public

    def test_that_the_server_does_not_have_is_not_used(self, make):
        """As where it was made for a request whose reply came too late, or for another strategy."""
        policy = Policy(clip=1.0, noise_scale=1.0, rounds=1)
        client = make(perturb_with(policy))
        earlier, _ = client.public(), client.public()
        reply = client.ask(other={PREFIX + "sum.own": earlier})
        assert refused(reply, "is for a key that this client does not hold")
        assert client.trained == 0
        client.payload()

    def test_is_needed_before_training(self, make):
        client = make()
        assert refused(client.ask(), "no key for secure sums: it has lost its state")
        assert client.trained == 0

    def test_is_lost_with_the_clients_state(self, client):
        client.payload()
        client.restart()
        assert refused(client.ask(server_round=2), "no key for secure sums")
        request = ask_to_reveal((1, 0), Wanted(bytes([SEED, 0, 0, 0])))
        assert refused(client.tell(request), "no key for secure sums")

    def test_is_needed_for_an_answer_to_be_counted(self, make, tmp_path):
        """A SuperNode that is started again lacks its key, but its ledger continues."""
        policy = Policy(clip=1.0, noise_scale=1.0, rounds=2, cohort=3, ledger=str(tmp_path))
        client = make(perturb_with(policy))
        client.public()
        client.payload()
        client.restart()
        assert refused(client.ask(server_round=2), "no key for secure sums")
        client.public()
        client.payload(server_round=2)
        assert refused(client.ask(server_round=3), "policy rule 'rounds'")


def client_state(client):
    (context,) = contexts_of(client._grid)
    return dict(context.state["fedmedian-sum"])


class TestVotes:
    def test_are_masked_and_nothing_is_beside_them(self, client):
        payload = client.payload()
        assert payload.encoding == MASKED
        assert payload.body.shape == (3, 3)
        assert not payload.reports
        assert payload.exact.size == 0

    def test_are_plain_without_a_place(self, client):
        assert client.payload(None).encoding == "signs"

    def test_are_given_once_for_each_question(self, client):
        client.payload()
        assert refused(client.ask(), "masked before")
        client.payload(question=1)
        client.payload(server_round=2)
        for earlier in ({"server_round": 1, "question": 1}, {"server_round": 1, "question": 9}):
            assert refused(client.ask(**earlier), "masked before")
        assert client.trained == 3

    def test_count_as_given_even_if_training_fails(self, make):
        failing = make()
        failing._app = ClientApp(mods=[perturb])

        @failing._app.train()
        def train(message, context):
            raise RuntimeError("out of memory")

        failing.restart()
        failing.public()
        assert "out of memory" in failing.ask().error.reason
        assert refused(failing.ask(), "masked before")

    def test_with_reports_of_votes_are_longer_and_say_no_more(self, client):
        steps = (SizeVotes("rms", np.float32([0.5, 0.5])), NOISE, Signs())
        payload = client.payload(steps=steps)
        assert payload.body.shape == (3, 4)
        assert not payload.reports

    def test_a_key_that_is_asked_for_in_the_middle_of_a_round_opens_nothing(self, client):
        client.payload()
        client.public()
        request = ask_to_reveal((1, 0), Wanted(bytes([SEED, 0, 0, 0])))
        assert refused(client.tell(request), "has no votes in a sum of round 1, question 0")


class TestHostileServer:
    @pytest.mark.parametrize(
        ("changed", "words"),
        [
            ({"steps": (Vector(),)}, "a secure sum is one of signs, not of 'vector'"),
            ({"steps": (NOISE, Vector())}, "a secure sum is one of signs, not of 'vector'"),
            ({"steps": (Measure("rms"), NOISE, Signs())}, "would be sent in the clear"),
            ({"exact": (1,), "steps": (Signs(),)}, "would be sent in the clear"),
        ],
        ids=["vector", "noisy vector", "magnitudes", "exact array"],
    )
    def test_that_asks_for_more_than_votes_is_refused(self, changed, words, client):
        assert refused(client.ask(**changed), words)

    def test_that_makes_a_client_its_own_neighbor_is_refused(self, client):
        own = client.public()
        assert refused(client.ask(replace(PLACE, neighbors=(own, *PLACE.neighbors[1:]))), "own")

    def test_that_names_few_neighbors_is_refused(self, client):
        for neighbors in ((), PLACE.neighbors[:1]):
            reply = client.ask(other={PREFIX + "sum.neighbors": b"".join(neighbors)})
            assert refused(reply, "do not hide a vote")
        assert client.trained == 0

    @given(name=st.sampled_from(["bits", "enough", "neighbors", "own"]), value=anything)
    def test_that_sends_a_malformed_place_is_refused_before_training(self, name, value, make):
        client = make()
        client.public()
        reply = client.ask(other={PREFIX + f"sum.{name}": value})
        if reply.has_error():
            assert refused(reply)
            assert client.trained == 0

    @given(
        base=st.sampled_from([ask_for_key(1), ask_to_reveal((1, 0), Wanted(b"\1\0\0\0"))]),
        data=st.data(),
    )
    def test_that_sends_a_malformed_request_is_refused_in_words(self, base, data, make):
        client = make()
        client.public()
        client.payload()
        changes = st.dictionaries(st.sampled_from([*base, PREFIX + "sum.x"]), anything, min_size=1)
        reply = client.tell({**base, **data.draw(changes)})
        if reply.has_error():
            assert refused(reply)
        assert client.trained == 1

    @given(wanted=st.binary(max_size=6), sealed=st.binary(max_size=150))
    def test_that_asks_to_reveal_anything_is_answered_by_the_rules_or_refused(
        self, wanted, sealed, make
    ):
        client = make()
        client.public()
        client.payload()
        reply = client.tell(ask_to_reveal((1, 0), Wanted(wanted, sealed)))
        if reply.has_error():
            assert refused(reply)
        else:
            assert wanted.count(SEED) <= 1
            assert wanted.count(SHARE) in (0, 2, 3)

    def test_that_hides_a_request_among_other_configs_is_answered_as_usual(self, client):
        reply = client.tell({"lr": 0.1}, ask_for_key(1))
        assert read_public(client.scalars(reply))
        assert client.trained == 0

    def test_that_asks_in_a_message_to_evaluate_gets_no_more(self, client):
        client.payload()
        request = ask_to_reveal((1, 0), Wanted(bytes([SEED] * 4)))
        assert refused(client.tell(request, kind="evaluate"), "4 neighbors are not in the sum")


class TestRevealing:
    def test_is_remembered_between_messages(self, client):
        client.payload()
        wanted = Wanted(bytes([SEED, 0, 0, 0]))
        first = client.tell(ask_to_reveal((1, 0), wanted))
        assert read_secrets(client.scalars(first), wanted)
        second = client.tell(ask_to_reveal((1, 0), Wanted(bytes([0, SEED, 0, 0]))))
        assert refused(second, "2 neighbors are not in the sum, at most 1 of 4")
        sealed = bytes(48 * 4)
        third = client.tell(ask_to_reveal((1, 0), Wanted(bytes([SHARE] * 4), sealed)))
        assert refused(third, "both in a sum and not in it")
        assert client.trained == 1


class TestPolicy:
    POLICY = Policy(clip=1.0, noise_scale=0.5, rounds=100)

    def test_masked_votes_are_allowed_like_plain_ones(self, make):
        client = make(perturb_with(self.POLICY))
        client.public()
        assert client.payload().encoding == MASKED

    def test_one_answer_is_counted_for_each_round(self, make):
        client = make(perturb_with(Policy(clip=1.0, noise_scale=0.5, rounds=1)))
        client.public()
        client.payload()
        assert refused(client.ask(server_round=2), "rounds")

    def test_too_little_noise_is_refused_under_masks_too(self, make):
        client = make(perturb_with(self.POLICY))
        client.public()
        quiet = AddNoise(Gaussian(), np.float32([0.1, 0.1]))
        assert refused(client.ask(steps=(quiet, Signs())), "noise_scale")

    def test_too_few_neighbors_are_refused_by_a_policy_that_relies_on_a_cohort(self, make):
        client = make(perturb_with(Policy(clip=1.0, noise_scale=0.5, rounds=100, cohort=5)))
        client.public()
        assert refused(client.ask(), "cohort", "must be >= 5, the sum may have 3 clients")
        assert refused(client.ask(None), "cohort", "without a secure sum")
        assert client.trained == 0
        assert client.payload(replace(PLACE, enough=4), server_round=2).encoding == MASKED


def test_numpy_clients_take_part_through_the_mod(as_record):
    class Own(NumPyClient):
        def fit(self, parameters, config):
            assert not any(key.startswith(PREFIX) for key in config)
            return [array - 1 for array in parameters], 1, {}

    app = ClientApp(client_fn=lambda context: Own().to_client(), mods=[perturb])
    grid = InProcessGrid(app, 1)
    (node,) = grid.get_node_ids()

    def tell(config, **arrays):
        content = {"fitins.config": ConfigRecord(config), **arrays}
        message = Message(RecordDict(content), dst_node_id=node, message_type="train")
        (reply,) = grid.send_and_receive([message])
        assert not reply.has_error(), reply.error.reason
        return reply.content

    public = read_public(tell(ask_for_key(1))["fedmedian"])
    model = as_record(dict(zip("01", MODEL.values(), strict=True)))
    told = {**ASKED.encode(), **replace(PLACE, own=public).encode()}
    content = tell(told, **{"fitins.parameters": model})
    arrays = [array.numpy() for array in content["fitres.parameters"].values()]
    payload = Payload.decode(arrays, content["fitres.metrics"])
    assert payload.encoding == MASKED
