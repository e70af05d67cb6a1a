"""Hostile servers against a client with a policy of its own, and honest ones.

Every hostile server is first seen to get what it asks for from a client without a policy.
"""

import os
import re
import sys
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp.strategy import FedAvg
from hypothesis import given
from hypothesis import strategies as st

from fedmedian import (
    Adaptive,
    ClientMomentum,
    ClientStep,
    Clip,
    DivideByLearningRate,
    Gaussian,
    Instruction,
    Laplace,
    Payload,
    Rotation,
    TopUp,
    unpack_signs,
)
from fedmedian.chacha import ChaCha20
from fedmedian.clients import InProcessGrid, Policy, answering, perturb, perturb_with
from fedmedian.clients.ledger import Ledger
from fedmedian.clients.policy import CONFIG_KEY, VARIABLE, Policies, PolicyError
from fedmedian.model.layout import Layout
from fedmedian.privacy.accounting import Draw, Mechanism, PrivacyLoss
from fedmedian.records import to_record
from fedmedian.secure.cohort import Place
from fedmedian.steps.base import CLIENT_STEPS, register_client_step
from fedmedian.steps.encodings import Signs, Vector
from fedmedian.steps.noise import AddNoise, Measure, TopUpNoise
from fedmedian.steps.tied import Tied
from fedmedian.steps.updates import Limit
from fedmedian.strategies import MedianSGD, SignSGD
from fedmedian.wire.scalars import PREFIX
from tests.tools.apis import contexts_of

POLICY = Policy(clip=1.0, noise_scale=0.5, rounds=100)
ARGUMENTS = {"clip": 1.0, "noise_scale": 0.5, "rounds": 100}
TEXT = "clip = 1.0, noise-scale = 0.5, rounds = 100"

DIM = 4000
UPDATE = np.random.default_rng(0).standard_normal(DIM).astype(np.float32)
MODEL = {
    "weight": np.zeros(DIM, np.float32),
    "norm.running_mean": np.zeros(2, np.float32),
    "secret": np.zeros(3, np.float32),
}
RUNNING = 1
METRICS = {"num-examples": 5, "loss": 0.5, "accuracy": 0.75}

NOISE = AddNoise(Gaussian(), np.float32([0.5, 0.5]))
ASKED = Instruction((NOISE, Signs()), server_round=1, seed=None, exact=())


class Client:
    """A ClientApp on its own node, and how often it has trained."""

    def __init__(self, as_record, *mods, model=MODEL, run_config=None):
        self.trained = 0
        self._model, self._as_record = as_record(model), as_record
        app = ClientApp(mods=list(mods))

        @app.train()
        def train(message, context):
            self.trained += 1
            moved = {"weight": -UPDATE, "norm.running_mean": np.float32([7, 8])}
            arrays = {**MODEL, **moved}
            content = {"arrays": as_record({name: arrays[name] for name in model})}
            notes = ConfigRecord({"loss": 0.5, "who": "Ann"})
            content |= {"metrics": MetricRecord(METRICS), "notes": notes}
            return Message(RecordDict(content), reply_to=message)

        @app.evaluate()
        def evaluate(message, context):
            self.trained += 1
            content = {"metrics": MetricRecord(METRICS)}
            if "leak" in message.content["config"]:
                content["arrays"] = as_record({"x": UPDATE})
            return Message(RecordDict(content), reply_to=message)

        self._grid = InProcessGrid(app, 1, run_config=run_config)

    @property
    def context(self):
        (context,) = contexts_of(self._grid)
        return context

    def tell(self, config, kind=MessageType.TRAIN):
        """Return the reply to a message with a config."""
        content = RecordDict({"arrays": self._model, "config": ConfigRecord(config)})
        (node,) = self._grid.get_node_ids()
        (reply,) = self._grid.send_and_receive(
            [Message(content, dst_node_id=node, message_type=kind)]
        )
        return reply

    def ask(self, instruction=ASKED, **changed):
        """Return the reply to an instruction."""
        return self.tell(replace(instruction, **changed).encode())

    def answer(self, instruction=ASKED, **changed):
        """Return the payload of the answer to an instruction."""
        reply = self.ask(instruction, **changed)
        assert not reply.has_error(), reply.error.reason
        arrays = [array.numpy() for array in reply.content["arrays"].values()]
        return Payload.decode(arrays, reply.content["fedmedian"])


# Two blocks: the running mean is exact, or not, as each test asks.
TWO = {name: MODEL[name] for name in ("weight", "secret")}


@pytest.fixture
def client(as_record):
    """Makes a client with a policy, on a model of two arrays unless another is given."""

    def client(policy=POLICY, model=TWO, **options):
        return Client(as_record, perturb_with(policy), model=model, **options)

    return client


@pytest.fixture
def trusting(as_record):
    """A client that does what any server asks for."""
    return Client(as_record, perturb, model=TWO)


def require_refusal(reply, rule, *named):
    assert reply.has_error()
    assert reply.error.code == ErrorCode.MOD_FAILED_PRECONDITION
    pattern = ".*".join(map(re.escape, (f"policy rule {rule!r}: ", *map(str, named))))
    assert re.search(pattern, reply.error.reason), reply.error.reason


def signs_of(payload):
    return unpack_signs(payload.body, DIM + 3)[:DIM]


def likeness(direction):
    return np.corrcoef(direction, UPDATE)[0, 1]


def with_noise(*steps):
    return Instruction((*steps, Signs()), 1, None, ())


def scales(*values):
    return np.array(values, np.float32)


HOSTILE = {
    "a seed that the server chose": ("seed", replace(ASKED, seed=7)),
    "the noisy update": ("vectors", replace(ASKED, steps=(NOISE, Vector()))),
    "the update": ("vectors", replace(ASKED, steps=(Vector(),))),
    "the update's RMS": ("magnitudes", with_noise(Measure("rms"), NOISE)),
    "the update's largest entry, afterwards": ("magnitudes", with_noise(NOISE, Measure("max"))),
    "signs without noise": ("noise_scale", with_noise()),
    "noise of scale 0": ("noise_scale", with_noise(AddNoise(Gaussian(), scales(0, 0)))),
    "noise of scale 1e-30": (
        "noise_scale",
        with_noise(AddNoise(Gaussian(), scales(1e-30, 1e-30))),
    ),
    "noise on the other array alone": (
        "noise_scale",
        with_noise(AddNoise(Gaussian(), scales(0, 9))),
    ),
    "noise that is divided before the signs are drawn": (
        "noise_scale",
        with_noise(NOISE, DivideByLearningRate(0.5)),
    ),
    "noise of another family": ("noise_scale", with_noise(AddNoise(Laplace(), scales(0.5, 0.5)))),
}


@pytest.mark.parametrize(("rule", "instruction"), HOSTILE.values(), ids=HOSTILE)
def test_a_server_that_asks_for_too_much_is_refused_before_training(rule, instruction, client):
    careful = client()
    require_refusal(careful.ask(instruction), rule)
    assert careful.trained == 0


@pytest.mark.parametrize(
    "instruction", [instruction for _, instruction in HOSTILE.values()], ids=HOSTILE
)
def test_what_a_policy_refuses_any_server_gets_without_one(instruction, trusting):
    assert trusting.answer(instruction).server_round == 1


class TestInstruction:
    def test_training_without_an_instruction_is_refused_before_it_begins(self, client, trusting):
        exact = trusting.tell({}).content["arrays"]["weight"].numpy()
        np.testing.assert_array_equal(exact, -UPDATE)
        careful = client()
        require_refusal(careful.tell({"lr": 0.1}), "instruction")
        assert careful.trained == 0

    def test_training_by_another_name_is_training(self, as_record):
        app = ClientApp(mods=[perturb_with(POLICY)])

        @app.train("quietly")
        def train(message, context):
            raise AssertionError("trained in vain")

        content = {"arrays": as_record(TWO), "config": ConfigRecord()}
        grid = InProcessGrid(app, 1)
        (node,) = grid.get_node_ids()
        message = Message(RecordDict(content), dst_node_id=node, message_type="train.quietly")
        require_refusal(grid.send_and_receive([message])[0], "instruction")

    def test_an_evaluation_that_answers_with_arrays_is_refused(self, client, trusting):
        arrays = trusting.tell({"leak": 1}, MessageType.EVALUATE).content["arrays"]
        np.testing.assert_array_equal(arrays["x"].numpy(), UPDATE)
        careful = client(replace(POLICY, metrics=["*"]))
        require_refusal(careful.tell({"leak": 1}, MessageType.EVALUATE), "instruction", "arrays")

    def test_an_honest_server_gets_noisy_signs(self, client):
        careful = client()
        payload = careful.answer()
        assert (payload.encoding, payload.reports, careful.trained) == ("signs", {}, 1)

    def test_a_mod_with_a_policy_after_another_refuses_everything_and_says_why(self, as_record):
        careful = Client(as_record, perturb, perturb_with(POLICY), model=TWO)
        for reply in (careful.ask(), careful.tell({}), careful.tell({}, MessageType.EVALUATE)):
            assert "use perturb_with(…) instead of perturb" in reply.error.reason
        assert careful.trained == 0


class TestVectors:
    def test_a_policy_may_allow_the_noisy_update(self, client):
        policy = replace(POLICY, vectors=True)
        body = client(policy).answer(steps=(NOISE, Vector())).body
        assert body.shape == (DIM + 3,)
        # The clipped update has a norm of 1, the noise one of √4000/2.
        assert np.linalg.norm(body) == pytest.approx(np.hypot(1, 0.5 * np.sqrt(DIM + 3)), rel=0.1)
        require_refusal(client(policy).ask(steps=(Vector(),)), "noise_scale", "add none")

    def test_noise_is_drawn_and_added_in_float64(self, client, monkeypatch):
        """In float32 one normal number in 2²³ is exactly 0, and shows an entry of the update."""
        monkeypatch.setattr(answering, "secret_rng", lambda: np.random.default_rng(5))
        policy = replace(POLICY, clip=1e3, vectors=True)
        body = client(policy).answer(steps=(NOISE, Vector())).body
        update = np.append(UPDATE, MODEL["secret"]).astype(np.float64)
        noise = np.random.default_rng(5).standard_normal(DIM + 3)
        assert np.array_equal(body, np.float32(update + 0.5 * noise))


class TestClip:
    """A divisor of 1e-9 makes the update so long that noise no longer matters."""

    @pytest.mark.parametrize(
        "steps",
        [
            (DivideByLearningRate(1e-9),),
            (DivideByLearningRate(3e-38),),
            (Clip(1.0), DivideByLearningRate(1e-9)),
            (ClientMomentum(0.0), DivideByLearningRate(1e-9)),
            (),
        ],
        ids=["divided", "divided by the least", "clipped, then divided", "averaged", "as it is"],
    )
    def test_the_client_clips_last_before_the_noise(self, steps, client):
        policy = replace(POLICY, clip=3.0, vectors=True, noise_scale=1e-6)
        noise = AddNoise(Gaussian(), scales(1e-6, 1e-6))
        body = client(policy).answer(steps=(*steps, noise, Vector())).body
        assert np.linalg.norm(body) == pytest.approx(3.0, rel=1e-4)
        assert likeness(body[:DIM]) > 0.999

    def test_a_server_that_divides_by_1e9th_learns_no_more_than_one_that_does_not(
        self, client, trusting
    ):
        divided = (DivideByLearningRate(1e-9), NOISE, Signs())
        np.testing.assert_array_equal(signs_of(trusting.answer(steps=divided)), np.sign(UPDATE))
        # Clipped, the update is a 32nd of the noise: likeness .025, with a deviation of .016.
        assert abs(likeness(signs_of(client().answer(steps=divided)))) < 0.15

    def test_a_server_may_clip_to_less(self, client):
        policy = replace(POLICY, vectors=True, noise_scale=1e-6)
        steps = (Clip(0.25), AddNoise(Gaussian(), scales(1e-6, 1e-6)), Vector())
        assert np.linalg.norm(client(policy).answer(steps=steps).body) == pytest.approx(0.25, 1e-4)


class TestUpdatesThatAreNotFinite:
    """An error would tell, without noise, whether an update reaches a size that a server chose."""

    DIVIDED = (DivideByLearningRate(1e-38), NOISE, Signs())

    def test_a_server_that_divides_until_the_update_overflows_gets_noise_alone(
        self, client, trusting, caplog
    ):
        assert "not finite" in trusting.ask(steps=self.DIVIDED).error.reason
        payload = client().answer(steps=self.DIVIDED)
        assert abs(likeness(signs_of(payload))) < 6 / np.sqrt(DIM)
        assert "1e-38 is not finite; sent noise alone" in caplog.text

    def test_a_model_that_makes_training_overflow_is_answered_like_any_other(
        self, as_record, make_app
    ):
        def overflow(model, partition):
            return {**model, "weight": np.full(DIM, np.inf, np.float32)}, METRICS

        grid = InProcessGrid(make_app(overflow, mods=[perturb_with(POLICY)]), 1)
        (node,) = grid.get_node_ids()
        content = {"arrays": as_record(TWO), "config": ConfigRecord(ASKED.encode())}
        message = Message(RecordDict(content), dst_node_id=node, message_type="train")
        assert grid.send_and_receive([message])[0].has_content()


@dataclass(frozen=True)
class Spoil(ClientStep):
    """A custom step that does something to the draft where the update's first entry is large."""

    what: str

    name: ClassVar[str] = "spoil"

    def apply(self, draft):
        memory = draft.memory_of(self)
        memory["rounds"] = memory.get("rounds", np.zeros(1)) + 1
        if draft.vector[0] > 1:
            SPOILING[self.what](draft, memory)


def fail_with(error):
    def fail(draft, memory):
        memory["rounds"][:] = np.nan
        raise error

    return fail


SPOILING = {
    "raises": fail_with(KeyError("large")),
    "exits": fail_with(SystemExit(3)),
    "cannot be printed": fail_with(type("Unprintable", (Exception,), {"__str__": lambda _: 1})()),
    "warns": lambda draft, memory: np.divide(draft.vector, np.float32(0)),
    "one entry of NaN": lambda draft, memory: draft.vector.__setitem__(7, np.nan),
    "overflow": lambda draft, memory: draft.replace(draft.vector * np.float32(3e38)),
    "another length": lambda draft, memory: draft.replace(draft.vector[:1]),
    "no memory": lambda draft, memory: memory.update(rounds="many"),
    "exact signs": lambda draft, memory: Signs().apply(draft),
    "exact sizes": lambda draft, memory: Measure("max").apply(draft),
    "own noise": lambda draft, memory: draft.add_noise(Laplace(), scales(3, 3)),
}


@pytest.fixture
def answers(registries, monkeypatch):
    """Answers instructions, one a round, as clients with these updates do; at -W error."""
    monkeypatch.setitem(CLIENT_STEPS._classes, Spoil.name, Spoil)

    def answers(update, *instructions, policy=POLICY):
        mod, context = perturb_with(policy), Context(1, 2, {}, RecordDict(), {})
        found = []
        for number, steps in enumerate(instructions, 1):
            config = ConfigRecord({**replace(ASKED, steps=steps, server_round=number).encode()})
            content = RecordDict({"arrays": to_record({"x": np.zeros_like(update)})})
            content["config"] = config
            message = Message(content, dst_node_id=2, message_type="train")

            def train(message, context):
                trained = RecordDict({"arrays": to_record({"x": -update})})
                return Message(trained, reply_to=message)

            with warnings.catch_warnings(), np.errstate(all="warn"):
                warnings.simplefilter("error")
                reply = mod(message, context, train)
            if reply.has_error():
                found.append(reply.error.reason)
            else:
                arrays = [array.numpy() for array in reply.content["arrays"].values()]
                found.append(Payload.decode(arrays, reply.content["fedmedian"]))
        return found

    InProcessGrid(ClientApp(), 1)  # lets messages be made in this process
    return answers


PREPARED = {
    "nothing": (),
    "a tiny divisor": (DivideByLearningRate(1e-45),),
    "a divisor that some updates survive": (DivideByLearningRate(1e-20),),
    "a rotation": (Rotation(1, 5),),
    "a rotation of what overflows": (DivideByLearningRate(1e-19), Rotation(1, 5)),
    "momentum": (ClientMomentum(0.9),),
    "momentum of what overflows": (DivideByLearningRate(1e-20), ClientMomentum(0.9)),
    "clipped to nothing": (Clip(5e-324),),
    "clipped to anything": (Clip(1.7e308),),
    **{f"custom: {what}": (Spoil(what),) for what in SPOILING},
    **{f"custom, then momentum: {w}": (Spoil(w), ClientMomentum(0.5)) for w in SPOILING},
}


class TestNothingButNoiseDependsOnTheUpdate:
    """Between an error and an answer no value of the update decides, nor in what else is sent."""

    LOUD = AddNoise(Gaussian(), scales(0.5))
    SIZES = (1e-45, 1e-3, 2.0, 1e20, 3e38, np.inf, np.nan)

    @pytest.mark.parametrize("steps", PREPARED.values(), ids=PREPARED)
    def test_clients_whose_updates_differ_all_answer_and_in_the_same_form(self, steps, answers):
        told = set()
        for size in self.SIZES:
            update = np.full(DIM, size, np.float32)
            asked = [(*steps, self.LOUD, Signs())] * 3
            for payload in answers(update, *asked):
                assert isinstance(payload, Payload), payload
                assert payload.reports == {}
                told.add((payload.encoding, payload.body.shape))
        assert len(told) == 1

    @pytest.mark.parametrize("steps", PREPARED.values(), ids=PREPARED)
    def test_what_is_noised_is_finite_and_within_the_clip(self, steps, answers, monkeypatch):
        noised = []
        add_noise = AddNoise.apply

        def watch(step, draft):
            noised.append(np.linalg.norm(draft.vector.astype(np.float64)))
            add_noise(step, draft)

        monkeypatch.setattr(AddNoise, "apply", watch)
        for clip in (1e-30, 1.0, 3e38):
            policy = replace(POLICY, clip=clip, vectors=True)
            for size in self.SIZES:
                update = np.random.default_rng(1).uniform(0.5, 1, DIM).astype(np.float32)
                answers(np.float32(size) * update, (*steps, self.LOUD, Vector()), policy=policy)
            assert len(noised) == len(self.SIZES)
            assert all(norm <= clip for norm in noised)
            noised.clear()

    def test_one_block_that_overflows_takes_the_others_with_it(self, answers):
        update = np.full(DIM, 1e-3, np.float32)
        update[:8] = 1e20  # over 1e-19 too much for float32, as the others are not
        steps = (DivideByLearningRate(1e-19), AddNoise(Gaussian(), scales(1e-6)), Vector())
        policy = replace(POLICY, vectors=True, noise_scale=1e-6)
        (payload,) = answers(update, steps, policy=policy)
        # 4000 normal values of scale 1e-6: none is as large as 1e-5 in 10^6 runs.
        assert np.abs(payload.body).max() < 1e-5

    def test_errors_do_not_find_the_largest_entry_of_a_remembered_average(self, answers):
        update = np.zeros(DIM, np.float32)
        update[3] = 0.04
        largest = float(np.finfo(np.float32).max)
        steps = [(ClientMomentum(0.9), self.LOUD, Signs())]
        for _ in range(10):
            for threshold in (1e-6, 1e-3, 0.04, 1.0):
                divisor = DivideByLearningRate(threshold / largest)
                steps.append((ClientMomentum(0.9), divisor, self.LOUD, Signs()))
        assert all(isinstance(one, Payload) for one in answers(update, *steps))

    @pytest.mark.parametrize("spoiled", ["one entry of NaN", "overflow", "raises"])
    def test_a_client_recovers_from_a_round_that_has_diverged(self, spoiled, answers):
        """Its average is that of the rounds that have not."""
        quiet = AddNoise(Gaussian(), scales(1e-6))
        policy = replace(POLICY, vectors=True, noise_scale=1e-6)
        update = np.full(DIM, 2.0, np.float32)
        well = (ClientMomentum(0.9), quiet, Vector())
        ill = (Spoil(spoiled), *well)
        first, diverged, then = answers(update, well, ill, well, policy=policy)
        assert np.linalg.norm(diverged.body) < 1e-4 * np.linalg.norm(first.body)
        np.testing.assert_allclose(then.body, first.body, atol=1e-5)

    def test_the_clients_own_log_says_once_why_it_answers_with_noise_alone(self, answers, caplog):
        update = np.full(DIM, 2.0, np.float32)
        answers(update, (Spoil("raises"), self.LOUD, Signs()))
        (line,) = caplog.messages
        assert "'large'; sent noise alone" in line

    def test_a_second_instruction_in_a_message_does_not_reach_the_app(self, as_record):
        seen = []
        app = ClientApp(mods=[perturb_with(POLICY)])

        @app.train()
        def train(message, context):
            seen.extend(dict(record) for record in message.content.config_records.values())
            return Message(RecordDict({"arrays": message.content["arrays"]}), reply_to=message)

        grid = InProcessGrid(app, 1)
        (node,) = grid.get_node_ids()
        content = {"arrays": as_record(TWO), "config": ConfigRecord(ASKED.encode())}
        content["fitins.config"] = ConfigRecord({**replace(ASKED, seed=7).encode(), "lr": 0.1})
        message = Message(RecordDict(content), dst_node_id=node, message_type="train")
        assert grid.send_and_receive([message])[0].has_content()
        assert seen == [{}, {"lr": 0.1}]


class TestInstructionsThatFitNoUpdate:
    """They are refused before training, and do not count as answered."""

    @pytest.mark.parametrize(
        ("steps", "reason"),
        [
            ((AddNoise(Gaussian(), scales(9)), Signs()), "noise scales for 1 blocks"),
            ((Rotation(1), NOISE, Signs()), "seed is missing"),
            ((Rotation(10**6, 1), NOISE, Signs()), "noise scales for 2 blocks, the update has 1"),
        ],
        ids=["scales of other blocks", "a rotation without a seed", "blocks of a rotation"],
    )
    def test_an_instruction_that_does_not_fit_the_model_is_refused(self, steps, reason, client):
        careful = client()
        reply = careful.ask(steps=steps)
        assert reason in reply.error.reason
        assert careful.trained == 0
        careful.answer()

    def test_what_pretends_to_be_the_signs_is_refused(self, client, registries):
        @register_client_step
        @dataclass(frozen=True)
        class Alike(Signs):
            name: ClassVar[str] = "alike"

        require_refusal(client().ask(steps=(NOISE, Alike())), "vectors")

    def test_noise_before_the_noise_does_not_count_for_the_budget(self, client, registries):
        @register_client_step
        @dataclass(frozen=True, eq=False)
        class Louder(AddNoise):
            name: ClassVar[str] = "louder"

        mechanism = Mechanism(1.0, 8.0)
        policy = replace(POLICY, noise_scale=8.0, epsilon=mechanism.epsilon(1e-5) * 1.1, delta=1e-5)
        loud, enough = (AddNoise(Gaussian(), scales(b, b)) for b in (1e30, 8.0))
        steps = (Louder(loud.noise, loud.scales), enough, Signs())
        careful = client(policy)
        careful.answer(steps=steps)
        require_refusal(careful.ask(steps=steps, server_round=2), "epsilon")


class TestNoise:
    @pytest.mark.parametrize("scale", [0.7, 0.1, 1e-3])
    def test_noise_of_exactly_the_floor_is_enough_though_it_travels_in_float32(self, scale, client):
        policy = replace(POLICY, noise_scale=scale)
        steps = (AddNoise(Gaussian(), scales(scale, scale)), Signs())
        client(policy).answer(steps=steps)
        below = np.nextafter(scales(scale, scale), np.float32(0))
        require_refusal(
            client(policy).ask(steps=(AddNoise(Gaussian(), below), Signs())),
            "noise_scale",
            np.float32(scale),
            str(below[0]),
        )

    @pytest.mark.parametrize("rule", [Adaptive(3.0), TopUp()], ids=["adaptive", "topped up"])
    def test_strategies_whose_noise_follows_from_updates_are_refused(
        self, rule, client, as_record, make_app
    ):
        strategy = SignSGD(Gaussian(rule))
        grid = InProcessGrid(make_app(trains_in_vain, mods=[perturb_with(POLICY)]), 2)
        messages = strategy.configure_train(1, as_record(TWO), ConfigRecord(), grid)
        for reply in grid.send_and_receive(messages):
            require_refusal(reply, "magnitudes")

    @pytest.mark.parametrize(
        "step",
        [
            AddNoise(Gaussian()),
            AddNoise(Gaussian(), scales(9, np.nan)),
            TopUpNoise(Gaussian(), scales(9, 9)),
        ],
        ids=["own", "own for one block", "top-up"],
    )
    def test_noise_that_depends_on_the_update_is_refused(self, step, client):
        require_refusal(client().ask(steps=(step, Signs())), "noise_scale", "depends")

    def test_it_comes_of_the_cipher_and_of_nothing_else(self, client, monkeypatch):
        drawn_with = []

        def watch(instruction, layout, update, after, rng, *rest):
            drawn_with.append(type(rng.bit_generator))
            return perturb_update(instruction, layout, update, after, rng, *rest)

        perturb_update = answering.perturb_update
        monkeypatch.setattr(answering, "perturb_update", watch)
        client().answer()
        assert drawn_with == [ChaCha20]

    def test_two_clients_that_send_the_same_update_do_not_send_the_same_signs(self, client):
        # 4000 coins that fall alike: never in 10^6 runs.
        assert (client().answer().body != client().answer().body).any()


def trains_in_vain(model, partition):
    raise AssertionError("trained in vain")


class TestExact:
    """A server that wants all arrays dense gets the update exactly."""

    def test_arrays_that_no_pattern_names_are_refused_before_training(self, as_record):
        trusting = Client(as_record, perturb)
        steps = (AddNoise(Gaussian(), scales()), Signs())
        payload = trusting.answer(steps=steps, exact=(0, 1, 2))
        np.testing.assert_array_equal(payload.exact[: 4 * DIM].view(np.float32), -UPDATE)
        for policy in (POLICY, replace(POLICY, exact=["*running_mean"])):
            careful = Client(as_record, perturb_with(policy))
            require_refusal(careful.ask(steps=steps, exact=(0, 1, 2)), "exact", "'weight'")
            assert careful.trained == 0

    def test_arrays_that_a_pattern_names_leave_as_they_are(self, client):
        policy = replace(POLICY, exact=["*running_mean", "*running_var"])
        payload = client(policy, MODEL).answer(exact=(RUNNING,))
        assert payload.exact.view(np.float32).tolist() == [7, 8]

    @pytest.mark.parametrize(
        ("patterns", "may"), [(["1"], True), (["*running_mean"], False), ([], False)]
    )
    def test_a_numpyclients_arrays_have_no_names_that_a_server_could_choose(
        self, patterns, may, as_record
    ):
        class Trained(NumPyClient):
            def fit(self, parameters, config):
                return parameters, 5, {"loss": 0.5}

        policy = replace(POLICY, exact=patterns)
        app = ClientApp(
            client_fn=lambda context: Trained().to_client(), mods=[perturb_with(policy)]
        )
        # What the server calls a running mean may be the client's last layer.
        content = {
            "fitins.parameters": as_record(MODEL),
            "fitins.config": ConfigRecord(replace(ASKED, exact=(RUNNING,)).encode()),
        }
        grid = InProcessGrid(app, 1)
        (node,) = grid.get_node_ids()
        message = Message(RecordDict(content), dst_node_id=node, message_type=MessageType.TRAIN)
        (reply,) = grid.send_and_receive([message])
        if may:
            assert reply.content["fitres.num_examples"]["num_examples"] == 1
            assert reply.content["fitres.status"]["code"] == 0
            assert Payload.is_in(reply.content["fitres.metrics"])
            assert "loss" not in reply.content["fitres.metrics"]
        else:
            require_refusal(reply, "exact")


def test_a_server_that_asks_whether_arrays_are_alike_is_refused(client, trusting):
    """It could ask that of any two, and a client tells it without noise."""
    asked = (Tied(((0, 1),)), NOISE, Signs())
    assert trusting.answer(steps=asked).reports["tied"].tolist() == [0]
    careful = client()
    require_refusal(careful.ask(steps=asked), "tied")
    assert careful.trained == 0


def test_a_custom_step_that_reports_something_of_the_update_is_refused(client, registries):
    @register_client_step
    @dataclass(frozen=True)
    class Largest(ClientStep):
        name: ClassVar[str] = "largest"
        reveals: ClassVar[str] = "their largest entry"

        def apply(self, draft):
            draft.report(self, draft.vector.max(keepdims=True))

    careful = client()
    refused = careful.ask(steps=(Largest(), NOISE, Signs()))
    require_refusal(refused, "reports", "clients report their largest entry, without noise")
    assert careful.trained == 0


class TestBudget:
    """Answers in noise of scale 8 to updates of norm 2 or less."""

    DELTA = 1e-5
    LARGE = AddNoise(Gaussian(), np.float32([8, 8]))
    MECHANISM = Mechanism(2.0, 8.0)

    def policy(self, epsilon, **changed):
        own = {"clip": 2.0, "noise_scale": 8.0, "epsilon": epsilon * 1.001, "delta": self.DELTA}
        return replace(POLICY, **own | changed)

    def test_answers_end_before_they_tell_more_than_epsilon(self, client):
        careful = client(self.policy(self.MECHANISM.epsilon(self.DELTA, 3)))
        for number in (1, 2, 3):
            careful.answer(steps=(self.LARGE, Signs()), server_round=number)
        refused = careful.ask(steps=(self.LARGE, Signs()), server_round=4)
        require_refusal(refused, "epsilon", f"{self.MECHANISM.epsilon(self.DELTA, 4):.4g}")
        assert careful.trained == 3

    def test_an_answer_in_less_noise_spends_more(self, client):
        small = AddNoise(Gaussian(), np.float32([8, 2]))  # the least of its blocks counts
        total = PrivacyLoss.of_answer("signs", 4.0) + PrivacyLoss.of_answer("signs", 1.0)
        careful = client(self.policy(total.epsilon(self.DELTA), noise_scale=2.0))
        careful.answer(steps=(self.LARGE, Signs()), server_round=1)
        careful.answer(steps=(small, Signs()), server_round=2)
        require_refusal(careful.ask(steps=(small, Signs()), server_round=3), "epsilon")

    def test_a_budget_of_fractions_is_refused_in_the_same_words(self, client):
        price = Fraction(self.MECHANISM.epsilon(self.DELTA)) * 11 / 10
        careful = client(replace(self.policy(8.0), epsilon=price, delta=Fraction(1, 100_000)))
        careful.answer(steps=(self.LARGE, Signs()), server_round=1)
        refused = careful.ask(steps=(self.LARGE, Signs()), server_round=2)
        require_refusal(refused, "epsilon", f"{float(price):g} at delta 1e-05")

    def test_vectors_spend_what_a_gaussian_mechanism_does(self, client):
        mechanism = Mechanism(2.0, 8.0, "vector")
        careful = client(self.policy(mechanism.epsilon(self.DELTA, 2), vectors=True))
        for number in (1, 2):
            careful.answer(steps=(self.LARGE, Vector()), server_round=number)
        require_refusal(careful.ask(steps=(self.LARGE, Vector()), server_round=3), "epsilon")

    def test_of_several_policies_the_shortest_norm_and_each_budget_count(self, client, monkeypatch):
        text = "clip = 1.0, noise-scale = 8.0, rounds = 9, epsilon = {}, delta = 1e-5"
        price = Mechanism(1.0, 8.0).epsilon(self.DELTA)
        monkeypatch.setenv(VARIABLE, text.format(price * 1.001))
        careful = client(self.policy(30.0))
        careful.answer(steps=(self.LARGE, Signs()), server_round=1)
        require_refusal(careful.ask(steps=(self.LARGE, Signs()), server_round=2), "epsilon")

    def test_a_budget_without_an_answer_is_refused_with_the_price_of_one(self):
        price = Mechanism(1.0, 0.5).epsilon(self.DELTA)
        with pytest.raises(ValueError, match=f"epsilon .* {price:.4g}"):
            replace(POLICY, epsilon=price / 2, delta=self.DELTA)

    @pytest.mark.parametrize("half", [{"epsilon": 8.0}, {"delta": 1e-5}])
    def test_half_a_budget_is_refused(self, half):
        with pytest.raises(ValueError, match="epsilon and delta must be given together"):
            replace(POLICY, **half)


class TestSecureSums:
    """Votes that only their sum is known of, in noise of scale 2 to entries of at most a half.

    A client shares masks with one more than a lying server must leave in its sum. With 10 in the
    sum, of these 12 clients 3 may collude, so 7 are honest; with 20, 5 of 22, so 15.
    """

    POLICY = Policy(clip=2.0, noise_scale=2.0, rounds=9, cohort=10)
    NOISE = AddNoise(Gaussian(), np.float32([2, 2]))
    SUMMED = replace(ASKED, steps=(Limit(0.5), NOISE, Signs()))
    MECHANISM = Mechanism(2.0, 2.0, limit=0.5)
    DELTA = 1e-5

    @pytest.fixture
    def admit(self):
        """Admits the rounds' instructions, each with a number of clients, until one is refused."""
        context = Context(0, 0, {}, RecordDict(), {})
        layout = Layout.of_model(TWO, ())

        def admit(policies, *cohorts, instruction=self.SUMMED, first=1):
            for number, least in enumerate(cohorts, first):
                asked = replace(instruction, server_round=number)
                keys = tuple(bytes([key]) * 32 for key in range(least + 1))
                place = Place(bits=5, enough=least, neighbors=keys)
                assert place.least == least
                Policies(policies).admit(asked, layout, context, place)

        return admit

    def with_budget(self, rounds, honest=0.8):
        epsilon = self.MECHANISM.epsilon_of(rounds, self.DELTA) * 1.001
        return replace(self.POLICY, epsilon=epsilon, delta=self.DELTA, honest=honest)

    def test_votes_that_are_not_summed_are_refused(self, client, admit):
        require_refusal(client(self.POLICY).ask(self.SUMMED), "cohort", "without a secure sum")
        with pytest.raises(PolicyError, match="'cohort': must be >= 10, the sum may have 9"):
            admit((self.POLICY,), 9)
        admit((self.POLICY,), 10)

    def test_an_answer_costs_what_is_left_to_see_in_the_honest_clients_sum(self, admit):
        careful = self.with_budget({Draw(summed=7): 2, Draw(summed=15): 1})
        admit((careful,), 10, 20, 10)
        with pytest.raises(PolicyError, match="'epsilon'"):
            admit((careful,), 20, first=4)

    def test_entries_without_a_limit_cost_more(self, admit):
        careful = self.with_budget({Draw(summed=7): 1})
        for steps in ((), (Limit(0.5), Rotation(seed=1))):  # the rotation undoes the limit
            asked = replace(ASKED, steps=(*steps, self.NOISE, Signs()))
            with pytest.raises(PolicyError, match="'epsilon'"):
                admit((careful,), 10, instruction=asked)
        admit((careful,), 10)

    @pytest.mark.parametrize(
        "steps",
        [
            (),
            (Limit(1e6),),
            (Clip(1e6),),
            (Clip(2.0), DivideByLearningRate(1e-6)),
            (Limit(0.5), Rotation(seed=1)),
        ],
        ids=["none", "large entries", "a large norm", "a norm that grows", "turned entries"],
    )
    def test_clients_whose_votes_may_be_certain_hide_none(self, steps, admit):
        """The policy clips this client's own update, and no other client's."""
        asked = replace(ASKED, steps=(*steps, self.NOISE, Signs()))
        price = Mechanism(2.0, 2.0).epsilon(self.DELTA)
        for factor, is_enough in ((0.999, False), (1.001, True)):
            careful = replace(self.POLICY, epsilon=price * factor, delta=self.DELTA)
            with nullcontext() if is_enough else pytest.raises(PolicyError, match="'epsilon'"):
                admit((careful,), 20, instruction=asked)

    @pytest.mark.parametrize("steps", [(Clip(2.0),), (Clip(0.1),), (Limit(2.0),)])
    def test_entries_that_a_server_limits_for_all_as_the_policy_does_cost_no_more(
        self, steps, admit
    ):
        asked = replace(ASKED, steps=(*steps, self.NOISE, Signs()))
        price = Mechanism(2.0, 2.0).epsilon(self.DELTA, summed=15)
        careful = replace(self.POLICY, epsilon=price * 1.001, delta=self.DELTA)
        admit((careful,), 20, instruction=asked)

    def test_of_several_policies_the_fewest_honest_clients_count(self, admit):
        careful = self.with_budget({Draw(summed=7): 1})
        for other in (replace(self.POLICY, honest=0.7), replace(self.POLICY, cohort=None)):
            with pytest.raises(PolicyError, match="'epsilon'"):
                admit((careful, other), 10)
        admit((careful, replace(self.POLICY, honest=1.0)), 10)

    def test_colluding_clients_stay_in_the_sum_and_honest_ones_are_called_lost(self):
        """With 48 neighbors and 29 shares, 11 clients are in a sum, and 10 of them may lie."""
        keys = tuple(bytes([key]) * 32 for key in range(48))
        place = Place(bits=7, enough=29, neighbors=keys)
        assert [place.least, place.honest(10), place.honest(11)] == [11, 1, 1]
        asked, layout = replace(self.SUMMED, server_round=1), Layout.of_model(TWO, ())
        for rounds, is_enough in (({Draw(summed=8): 1}, False), ({Draw(): 1}, True)):
            policies = Policies((self.with_budget(rounds),))
            with nullcontext() if is_enough else pytest.raises(PolicyError, match="'epsilon'"):
                policies.admit(asked, layout, Context(0, 0, {}, RecordDict(), {}), place)

    @pytest.mark.parametrize(
        ("name", "value", "error"),
        [("cohort", 2, ValueError), ("cohort", 9.5, TypeError), ("honest", 0.0, ValueError)],
    )
    def test_a_cohort_and_a_share_out_of_range_are_refused(self, name, value, error):
        with pytest.raises(error, match=f"{name} must "):
            replace(self.POLICY, **{name: value})

    def test_a_text_may_describe_both(self):
        text = "clip = 2.0, noise-scale = 2.0, rounds = 9, cohort = 10, honest = 0.5"
        assert Policy.from_text(text) == replace(self.POLICY, honest=0.5)


class TestRounds:
    def test_a_server_that_repeats_one_round_gets_one_answer(self, client, trusting):
        repeated = np.sum([signs_of(trusting.answer()) for _ in range(200)], axis=0)
        assert likeness(repeated) > 0.9
        careful = client()
        careful.answer()
        for _ in range(3):
            require_refusal(careful.ask(), "one answer per round", 1)
        assert careful.trained == 1

    def test_rounds_that_do_not_come_one_after_the_other_are_refused(self, client):
        careful = client()
        for number in (1, 2, 7):
            careful.answer(server_round=number)
        for number in (7, 3, 0):
            require_refusal(careful.ask(server_round=number), "one answer per round", number, 7)

    def test_no_more_rounds_are_answered_than_the_policy_says(self, client):
        careful = client(replace(POLICY, rounds=2))
        for number in (1, 5):
            careful.answer(server_round=number)
        require_refusal(careful.ask(server_round=6), "rounds", 2)
        assert careful.trained == 2

    def test_what_is_refused_before_training_counts_for_nothing(self, client):
        careful = client(replace(POLICY, rounds=1))
        require_refusal(careful.ask(seed=7), "seed")
        careful.answer()

    def test_a_training_that_fails_is_an_answer_too(self, as_record, make_app):
        """Whether it fails may depend on the data, and a server could ask again and again."""

        def fail(model, partition):
            raise KeyError("no data")

        app = make_app(fail, mods=[perturb_with(POLICY)])
        grid = InProcessGrid(app, 1)
        (node,) = grid.get_node_ids()
        replies = []
        for _ in range(2):
            content = {"arrays": as_record(TWO), "config": ConfigRecord(ASKED.encode())}
            message = Message(RecordDict(content), dst_node_id=node, message_type="train")
            replies += grid.send_and_receive([message])
        assert replies[0].error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        require_refusal(replies[1], "one answer per round")

    @pytest.mark.parametrize("fails", [False, True], ids=["answers", "fails"])
    def test_an_app_that_replaces_its_state_does_not_touch_the_count(self, as_record, fails):
        app = ClientApp(mods=[perturb_with(replace(POLICY, rounds=2, metrics=["loss"]))])

        @app.train()
        @app.evaluate()
        def forget(message, context):
            context.state = RecordDict({"own": ConfigRecord({"seen": 1})})
            if fails:
                raise KeyError("no data")
            content = {"metrics": MetricRecord(METRICS)}
            if message.metadata.message_type == MessageType.TRAIN:
                content["arrays"] = as_record(TWO)
            return Message(RecordDict(content), reply_to=message)

        grid = InProcessGrid(app, 1)
        (node,) = grid.get_node_ids()

        def ask(server_round, kind=MessageType.TRAIN):
            config = ConfigRecord(replace(ASKED, server_round=server_round).encode())
            content = RecordDict({"arrays": as_record(TWO), "config": config})
            message = Message(content, dst_node_id=node, message_type=kind)
            (reply,) = grid.send_and_receive([message])
            return reply

        assert ask(1).has_error() is fails
        ask(1, MessageType.EVALUATE)
        require_refusal(ask(1), "one answer per round")
        assert ask(2).has_error() is fails
        require_refusal(ask(3), "rounds", 2)
        (context,) = contexts_of(grid)
        assert context.state["own"] == ConfigRecord({"seen": 1})

    def test_what_a_step_remembers_does_not_touch_the_count(self, client, registries):
        @register_client_step
        @dataclass(frozen=True)
        class Forgetful(ClientMomentum):
            name: ClassVar[str] = "policy"

        careful = client()
        careful.answer(steps=(Forgetful(0.5), NOISE, Signs()))
        require_refusal(careful.ask(), "one answer per round")


class TestLedger:
    """Answers are counted on disk, over all runs."""

    @pytest.fixture
    def ledger(self, tmp_path):
        return str(tmp_path / "ledger")

    @pytest.fixture
    def counting(self, client, ledger):
        """Makes a client that counts on disk, in a run."""

        def counting(run=1, rounds=3, **changed):
            made = client(replace(POLICY, rounds=rounds, ledger=ledger, **changed))
            made.context.run_id = run
            return made

        return counting

    def test_a_supernode_that_is_started_again_continues_to_count(self, counting):
        counting().answer(server_round=5)
        require_refusal(counting().ask(server_round=5), "one answer per round", 5)
        counting().answer(server_round=6)
        counting().answer(server_round=7)
        require_refusal(counting().ask(server_round=8), "rounds", 3)

    def test_another_run_begins_at_its_own_round_and_spends_what_is_left(self, counting):
        for run, number in ((1, 8), (2, 1), (3, 1)):
            counting(run).answer(server_round=number)
        require_refusal(counting(4).ask(server_round=1), "rounds", 3)

    def test_one_that_is_new_is_logged_since_an_old_one_may_be_lost(self, counting, caplog):
        counting().answer()
        counting().answer(server_round=2)
        assert caplog.text.count("is a new ledger: answers are counted from 0; restore it") == 1

    def test_a_round_that_is_no_number_does_not_damage_it(self, counting):
        careful = counting()
        reply = careful.tell(ASKED.encode() | {PREFIX + "round": True})
        assert "fedmedian.round must be int, got True" in reply.error.reason
        assert careful.trained == 0
        counting().answer()
        counting(2).answer()

    def test_two_clients_with_one_are_told_so(self, counting):
        counting().answer()
        require_refusal(counting().ask(), "one answer per round", "does another client use its")

    def test_a_budget_is_one_for_all_runs(self, counting):
        price = Mechanism(1.0, 0.5).epsilon(1e-5, 2)
        budget = {"epsilon": price * 1.001, "delta": 1e-5}
        counting(1, **budget).answer()
        counting(2, **budget).answer()
        require_refusal(counting(3, **budget).ask(), "epsilon")

    def test_a_training_that_fails_is_counted(self, counting, ledger):
        failing = counting()
        failing.trained = None  # adding to it fails
        assert failing.ask().error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        with Ledger(ledger) as opened:
            assert opened.read().number == 1

    def test_what_any_policy_refuses_is_not_counted(self, counting, ledger, monkeypatch):
        monkeypatch.setenv(VARIABLE, "clip = 1.0, noise-scale = 0.5, rounds = 1")
        careful = counting()
        require_refusal(careful.ask(seed=7), "seed")
        careful.answer()
        require_refusal(careful.ask(server_round=2), "rounds", 1)
        with Ledger(ledger) as opened:
            assert opened.read().number == 1

    def test_a_policy_without_one_counts_its_own_run_alone(self, counting, monkeypatch):
        monkeypatch.setenv(VARIABLE, "clip = 1.0, noise-scale = 0.5, rounds = 1")
        for run in (1, 2):
            careful = counting(run)
            careful.answer()
            require_refusal(careful.ask(server_round=2), "rounds", 1)

    @pytest.mark.parametrize("is_damaged", [True, False], ids=["damaged", "no folder"])
    def test_one_that_cannot_be_used_lets_nothing_out_and_only_the_clients_log_has_its_path(
        self, is_damaged, counting, ledger, caplog
    ):
        if is_damaged:
            os.mkdir(ledger)
            (Path(ledger) / "answers.json").touch()
        else:
            Path(ledger).touch()
        careful = counting()
        reply = careful.ask()
        require_refusal(reply, "ledger", "cannot be used")
        assert ledger not in reply.error.reason
        assert f"the ledger {ledger} cannot be used" in caplog.text
        assert careful.trained == 0

    def test_the_run_config_must_not_choose_a_file_of_the_client(self, as_record, ledger):
        config = {CONFIG_KEY: f"{TEXT}, ledger = '{ledger}'"}
        reply = Client(as_record, perturb, model=TWO, run_config=config).ask()
        assert "must not have a ledger" in reply.error.reason
        assert not Path(ledger).exists()

    def test_two_of_them_are_refused(self, counting, ledger, monkeypatch):
        monkeypatch.setenv(VARIABLE, f"{TEXT}, ledger = '{ledger}-2'")
        assert "must have one ledger, got 2" in counting().ask().error.reason
        monkeypatch.setenv(VARIABLE, f"{TEXT}, ledger = '{ledger}/'")
        counting().answer()

    @pytest.mark.parametrize(
        ("path", "error", "words"),
        [
            ("relative/path", ValueError, "must be an absolute path"),
            ("", ValueError, "must be an absolute path"),
            (b"/x", TypeError, "must be a string"),
        ],
    )
    def test_is_an_absolute_path(self, path, error, words):
        with pytest.raises(error, match=f"ledger {words}"):
            replace(POLICY, ledger=path)


class TestMetrics:
    def test_metrics_of_training_stay_and_a_client_counts_as_one_example(self, client, trusting):
        content = trusting.ask().content
        assert dict(content["metrics"]) == METRICS
        assert content["notes"]["who"] == "Ann"
        content = client().ask().content
        assert dict(content["metrics"]) == {"num-examples": 1}
        assert not content["notes"]

    def test_metrics_that_a_pattern_names_leave(self, client):
        policy = replace(POLICY, metrics=["loss", "num-*"])
        content = client(policy).ask().content
        assert dict(content["metrics"]) == {"num-examples": 5, "loss": 0.5}
        assert dict(content["notes"]) == {"loss": 0.5}

    def test_an_evaluation_whose_metrics_all_stay_is_refused_before_it_begins(
        self, client, trusting
    ):
        assert dict(trusting.tell({}, MessageType.EVALUATE).content["metrics"]) == METRICS
        careful = client()
        require_refusal(careful.tell({}, MessageType.EVALUATE), "metrics")
        assert careful.trained == 0

    def test_an_evaluation_answers_with_the_metrics_that_may_leave(self, client):
        careful = client(replace(POLICY, metrics=["accuracy"]))
        content = careful.tell({}, MessageType.EVALUATE).content
        assert dict(content["metrics"]) == {"num-examples": 1, "accuracy": 0.75}

    def test_a_numpyclients_loss_stays_too(self, as_record):
        class Evaluating(NumPyClient):
            def evaluate(self, parameters, config):
                return 0.5, 7, {"accuracy": 0.75}

        def evaluate(*metrics):
            policy = replace(POLICY, metrics=metrics)
            app = ClientApp(
                client_fn=lambda context: Evaluating().to_client(), mods=[perturb_with(policy)]
            )
            grid = InProcessGrid(app, 1)
            (node,) = grid.get_node_ids()
            content = {
                "evaluateins.parameters": as_record(TWO),
                "evaluateins.config": ConfigRecord(),
            }
            message = Message(RecordDict(content), dst_node_id=node, message_type="evaluate")
            return grid.send_and_receive([message])[0]

        require_refusal(evaluate("accuracy"), "metrics", "'evaluateres.loss'")
        content = evaluate("loss").content
        assert content["evaluateres.loss"]["loss"] == 0.5
        assert content["evaluateres.num_examples"]["num_examples"] == 1
        assert not content["evaluateres.metrics"]
        assert content["evaluateres.status"]["code"] == 0

    def test_a_numpyclients_parameters_do_not_leave_because_a_server_asks_for_them(self):
        class Trained(NumPyClient):
            def get_parameters(self, config):
                return [UPDATE]

        policy = replace(POLICY, metrics=["*"])
        app = ClientApp(
            client_fn=lambda context: Trained().to_client(), mods=[perturb_with(policy)]
        )
        grid = InProcessGrid(app, 1)
        (node,) = grid.get_node_ids()
        content = RecordDict({"getparametersins.config": ConfigRecord()})
        message = Message(content, dst_node_id=node, message_type="get_parameters")
        require_refusal(grid.send_and_receive([message])[0], "instruction", "arrays")


class TestWithoutChangingTheCode:
    """An app with the plain mod keeps what the environment and the run config say."""

    @pytest.fixture
    def plain(self, as_record):
        return lambda **options: Client(as_record, perturb, model=TWO, **options)

    def test_the_environment_holds_a_policy(self, plain, monkeypatch):
        monkeypatch.setenv(VARIABLE, TEXT)
        careful = plain()
        require_refusal(careful.tell({}), "instruction")
        careful.answer()
        require_refusal(careful.ask(), "one answer per round")

    def test_the_run_config_holds_a_policy(self, plain):
        require_refusal(plain(run_config={CONFIG_KEY: TEXT}).ask(seed=7), "seed")

    def test_policies_add_up(self, as_record, monkeypatch):
        monkeypatch.setenv(VARIABLE, f"{TEXT}, metrics = ['loss']")
        allowing = "clip = 9.0, noise-scale = 1e-3, rounds = 1, metrics = ['*'], vectors = true"
        own = replace(POLICY, metrics=["loss", "accuracy"], vectors=True, noise_scale=0.25)
        careful = Client(as_record, perturb_with(own), model=TWO, run_config={CONFIG_KEY: allowing})
        require_refusal(careful.ask(steps=(NOISE, Vector())), "vectors")
        low = (AddNoise(Gaussian(), scales(0.4, 0.4)), Signs())
        require_refusal(careful.ask(steps=low), "noise_scale", 0.5)
        reply = careful.ask()
        assert dict(reply.content["metrics"]) == {"num-examples": 1, "loss": 0.5}
        require_refusal(careful.ask(server_round=2), "rounds", 1)

    BOTH = (
        "clip = 1.0, noise-scale = 5.0, noise_scale = 0.5, rounds = 100",
        "clip = 1.0, noise_scale = 0.5, noise-scale = 5.0, rounds = 100",
        'clip = 1.0, "noise-scale" = 0.5, noise_scale = 5.0, rounds = 100',
    )

    @pytest.mark.parametrize("text", BOTH)
    def test_both_spellings_of_a_key_at_once_are_refused_and_named(self, text, plain, monkeypatch):
        with pytest.raises(ValueError, match="are one parameter") as refused:
            Policy.from_text(text)
        assert all(f"'{key}'" in str(refused.value) for key in ("noise-scale", "noise_scale"))
        assert "are one parameter" in plain(run_config={CONFIG_KEY: text}).ask().error.reason
        monkeypatch.setenv(VARIABLE, text)
        assert "are one parameter" in plain().ask().error.reason

    @pytest.mark.parametrize("more", ["clip = 2.0", "noise-scale = 9.0", "'rounds' = 1"])
    def test_a_key_that_is_there_twice_is_refused(self, more):
        with pytest.raises(ValueError, match=r"(?i)duplicate|overwrite"):
            Policy.from_text(f"{TEXT}, {more}")

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (
                f"{TEXT}, round = 3",
                "there is no parameter 'round', only clip, noise-scale, rounds, ",
            ),
            ("clip = 1.0", "it must also have noise-scale, rounds"),
            (TEXT.replace(",", ";"), "it must be a text such as 'clip = 1.0, noise-scale = 0.5, "),
        ],
        ids=["unknown", "missing", "semicolons"],
    )
    def test_what_is_wrong_with_a_text_is_said_in_its_own_words(self, text, said, plain):
        reason = plain(run_config={CONFIG_KEY: text}).ask().error.reason
        assert f"holds no valid policy: {said}" in reason

    def test_a_text_that_ends_the_table_and_begins_another_is_refused(self):
        with pytest.raises(ValueError, match="one table"):
            Policy.from_text(f"{TEXT}}}\nmore = {{clip = 2.0")

    @pytest.mark.parametrize(
        "key",
        [
            "fedmedian_policy",
            "FEDMEDIAN_POLICY",
            "Fedmedian-Policy",
            "fedmedian.policy",
            "fedmedian.policy.clip",
            f"{CONFIG_KEY}.clip",
        ],
    )
    def test_another_spelling_of_the_run_configs_key_lets_nothing_out(self, key, plain):
        reason = plain(run_config={key: TEXT}).ask().error.reason
        assert key in reason
        assert f"is not {CONFIG_KEY}" in reason

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "clip",
            "rounds = 1",
            f"{TEXT}, magnitudes = true",
            f"{TEXT}, exact = '*'",
            f"{TEXT}}}",
        ],
        ids=["empty", "no value", "too little", "unknown", "no list", "not closed"],
    )
    def test_a_policy_that_cannot_be_read_lets_nothing_out(self, text, plain, monkeypatch):
        monkeypatch.setenv(VARIABLE, text)
        for reply in (plain().ask(), plain().tell({}), plain().tell({}, MessageType.EVALUATE)):
            assert VARIABLE in reply.error.reason

    def test_a_policy_is_kept_once_though_the_mod_stands_twice(self, as_record, monkeypatch):
        monkeypatch.setenv(VARIABLE, TEXT)
        careful = Client(as_record, perturb, perturb, model=TWO)
        careful.answer()
        require_refusal(careful.ask(), "one answer per round")

    def test_a_run_config_that_holds_something_else_lets_nothing_out(self, plain):
        assert CONFIG_KEY in plain(run_config={CONFIG_KEY: 1}).ask().error.reason

    def test_clients_for_torch_models_refuse_to_work_where_no_mod_keeps_the_policy(
        self, as_record, monkeypatch
    ):
        torch = pytest.importorskip("torch")
        from torch.utils.data import DataLoader, TensorDataset

        from fedmedian.clients import SignClient

        def client_fn(context):
            data = TensorDataset(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64))
            return SignClient(context, torch.nn.Linear(2, 2), DataLoader(data)).to_client()

        def replies(*mods):
            grid = InProcessGrid(ClientApp(client_fn=client_fn, mods=list(mods)), 1)
            (node,) = grid.get_node_ids()
            model = as_record({"0": np.zeros((2, 2), np.float32), "1": np.zeros(2, np.float32)})
            return [
                grid.send_and_receive(
                    [
                        Message(
                            RecordDict(
                                {
                                    f"{name}ins.parameters": model,
                                    f"{name}ins.config": ConfigRecord(config),
                                }
                            ),
                            dst_node_id=node,
                            message_type=kind,
                        )
                    ]
                )[0]
                for name, kind, config in (
                    ("fit", MessageType.TRAIN, ASKED.encode()),
                    ("evaluate", MessageType.EVALUATE, {}),
                )
            ]

        monkeypatch.setenv(VARIABLE, TEXT)
        assert all("add mods=[perturb]" in reply.error.reason for reply in replies())
        trained, evaluated = replies(perturb)
        assert trained.has_content()
        require_refusal(evaluated, "metrics")


def test_a_strategy_trains_with_clients_that_keep_a_policy(make_app, as_record, as_arrays):
    """Clipped to a norm of 1 and voted on with noise of scale 1, the model still moves downhill."""

    def train(model, partition):
        return {"x": model["x"] - 5.0}, {"num-examples": 100 * (partition + 1), "loss": 1.0}

    policy = Policy(clip=1.0, noise_scale=1.0, rounds=5, metrics=["loss"])
    strategy = SignSGD(Gaussian(1.0), client_steps=[Clip(1.0)], fraction_evaluate=0.0)
    grid = InProcessGrid(make_app(train, mods=[perturb_with(policy)]), 20)
    start = as_record({"x": np.zeros(16, np.float32)})
    result = strategy.start(grid, start, 5)
    for report in result.train_metrics_clientapp.values():
        assert report["replies-accepted"] == 20
        assert report["loss"] == pytest.approx(1.0)
    # Nine deviations from zero.
    assert as_arrays(result.arrays)["x"].mean() < 0


def test_a_strategy_for_exact_weights_gets_none(make_app, as_record):
    grid = InProcessGrid(make_app(trains_in_vain, mods=[perturb_with(POLICY)]), 2)
    for strategy in (FedAvg(), MedianSGD(None, seed=1)):
        messages = strategy.configure_train(1, as_record(TWO), ConfigRecord(), grid)
        assert all(reply.has_error() for reply in grid.send_and_receive(messages))


def refusal_of(numbers):
    """The error of making a policy of these numbers; None if it is made."""
    try:
        Policy(**numbers, rounds=100)
    except (TypeError, ValueError) as error:
        return error
    return None


class TestArguments:
    @pytest.mark.parametrize(
        ("name", "value", "error"),
        [
            ("clip", 0.0, ValueError),
            ("clip", float("inf"), ValueError),
            ("clip", "1", TypeError),
            ("clip", 1e-31, ValueError),
            ("clip", 1e-300, ValueError),
            ("clip", 10**400, ValueError),
            ("rounds", 2**63, ValueError),
            ("noise_scale", -1.0, ValueError),
            ("noise_scale", 1e-40, ValueError),
            ("rounds", 0, ValueError),
            ("rounds", 1.5, TypeError),
            ("exact", "weight", TypeError),
            ("exact", [1], TypeError),
            ("metrics", "loss", TypeError),
            ("vectors", 1, TypeError),
            ("epsilon", 8.0, ValueError),
        ],
    )
    def test_a_wrong_argument_is_refused_by_its_name(self, name, value, error):
        with pytest.raises(error, match=name):
            Policy(**(ARGUMENTS | {name: value}))

    NUMBERS = st.one_of(
        st.floats(),
        st.integers(),
        st.sampled_from([1e-300, 1e-38, 1e-30, 1e38, 5e-324, 10**400, True, None, "1"]),
    )

    @given(clip=NUMBERS, noise_scale=NUMBERS, epsilon=NUMBERS, delta=NUMBERS)
    def test_any_numbers_make_a_policy_or_are_refused_by_name(
        self, clip, noise_scale, epsilon, delta
    ):
        numbers = {"clip": clip, "noise_scale": noise_scale, "epsilon": epsilon, "delta": delta}
        error = refusal_of(numbers)
        assert error is None or str(error).split()[0] in numbers

    @given(
        clip=st.floats(1e-30, 3.4e38),
        noise_scale=st.floats(1.2e-38, 3.4e38),
        epsilon=st.floats(0, exclude_min=True, allow_infinity=False),
        delta=st.floats(0, 1, exclude_min=True, exclude_max=True),
    )
    def test_a_policy_with_any_budget_is_made_or_its_budget_refused(
        self, clip, noise_scale, epsilon, delta
    ):
        numbers = {"clip": clip, "noise_scale": noise_scale, "epsilon": epsilon, "delta": delta}
        error = refusal_of(numbers)
        assert error is None or str(error).startswith(("noise_scale must", "epsilon must afford"))

    def test_a_policy_says_what_it_needs_where_it_is_missing(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "randomgen", None)
        monkeypatch.delitem(sys.modules, "fedmedian.chacha")
        with pytest.raises(ImportError, match=r"pip install 'fedmedian\[privacy\]'"):
            Policy(**ARGUMENTS)

    def test_a_mod_with_something_else_than_a_policy_is_refused(self):
        with pytest.raises(TypeError, match="policy must be a Policy"):
            perturb_with(0.5)

    def test_the_text_of_a_policy_has_all_its_parameters(self):
        text = f"{TEXT}, exact = ['*_mean'], metrics = ['loss', 'acc*'], vectors = true"
        expected = Policy(**ARGUMENTS, exact=["*_mean"], metrics=["loss", "acc*"], vectors=True)
        assert Policy.from_text(text) == expected
        assert hash(expected) == hash(Policy.from_text(text))


def test_names_with_brackets_may_leave_if_a_policy_has_them_word_for_word():
    policy = Policy(**ARGUMENTS, metrics=["recall[0]"], exact=["layers[0].mean"])
    policies = Policies((policy,))
    content = RecordDict({"metrics": MetricRecord({"recall[0]": 0.5, "recall[1]": 0.25})})
    policies.withhold(content)
    assert dict(content["metrics"]) == {"recall[0]": 0.5}
    policies.require_exact(replace(ASKED, exact=(0,)), ["layers[0].mean"])
    with pytest.raises(PolicyError, match=r"layers\[1\]"):
        policies.require_exact(replace(ASKED, exact=(0,)), ["layers[1].mean"])
