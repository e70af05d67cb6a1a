"""The protocol of a round by itself: plain arrays in, a model out, and no Flower between."""

import random
from dataclasses import dataclass
from math import inf, nan
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmedian import (
    Adaptive,
    ClientStep,
    Clip,
    Counts,
    Gaussian,
    Layout,
    Majority,
    Median,
    Momentum,
    register_client_step,
)
from fedmedian.rounds.options import RunOptions
from fedmedian.rounds.protocol import RoundProtocol
from fedmedian.rounds.recipe import Recipe
from fedmedian.rounds.screening import Reply, Said
from fedmedian.rounds.state import RunState
from fedmedian.steps.base import CLIENT_STEPS
from fedmedian.steps.instruction import perturb_update
from fedmedian.strategies import Checkpoint
from fedmedian.wire.scalars import LARGEST, PREFIX

MODEL = {
    "weight": np.arange(20, dtype=np.float32).reshape(4, 5),
    "bias": np.linspace(0, 1, 5),
    "norm.running_mean": np.zeros(5, dtype=np.float32),
    "steps": np.array(0),
}
NODES = (11, 12, 13, 14, 15)
BAD = 13


MAJORITY = Majority("unchanged")


def recipe(aggregator, noise=None, **options):
    return Recipe(
        aggregator, noise, **{"learning_rate": 0.5, "seed": 1, "rotation": None, **options}
    )


def signs(noise=None, aggregator=MAJORITY, **options):
    return recipe(aggregator, noise, weighted=True, **options)


def medians(noise=None, **options):
    return recipe(Median(), noise, **options)


def protocol_of(recipe, *rules, **options):
    return RoundProtocol(recipe, RunOptions(**options), *rules)


def trained(node):
    """A node's model after training: further from `MODEL` the larger its number."""
    shift = node - NODES[2]  # −2, …, 2
    return {name: (array - shift).astype(array.dtype) for name, array in MODEL.items()}


def weights_of(node, metrics=None, num_examples=1.0):
    """A node's reply with plain weights."""
    return Said(trained(node), None, num_examples, metrics or {"loss": 1.0 * node}, f"reply {node}")


def payload_of(question, node):
    """A node's payload, as arrays by name and scalars."""
    instruction = question.instruction
    layout = Layout.with_exact_positions(MODEL, instruction.exact)
    update = layout.difference(MODEL, trained(node))
    rng = np.random.default_rng(node)
    payload = perturb_update(instruction, layout, update, trained(node), rng, {}, node - NODES[0])
    bodies, scalars = payload.encode()
    return {str(i): body for i, body in enumerate(bodies)}, dict(scalars)


def perturbed(question, node):
    """A node's reply with a payload."""
    return Said(*payload_of(question, node), 1.0, {"loss": 1.0 * node}, f"reply {node}")


@dataclass(frozen=True)
class Reverse(ClientStep):
    """Sends the update multiplied by a ramp, and backwards; the server puts it in order."""

    name: ClassVar[str] = "protocol-test"

    def apply(self, draft):
        draft.replace((draft.vector * np.arange(25, dtype=np.float32))[::-1].copy())

    def undo(self, direction, before):
        return direction[::-1]


def heard_of_changed(recipe, spoil, change, nodes=NODES, plain=False):
    """The outcome of a round in which the payload, or the plain weights, of one are changed."""
    protocol = protocol_of(recipe)
    question = protocol.ask(1, MODEL)
    said = []
    for node in nodes:
        arrays, scalars = (trained(node), None) if plain else payload_of(question, node)
        if node == spoil:
            change(arrays, scalars)
        said.append((node, Said(arrays, scalars, 1.0, {"loss": 1.0}, None)))
    return protocol.hear(question, nodes, said, question.answer)


def replies_of(said, *nodes):
    return [(node, said(node)) for node in nodes]


class TestAsk:
    def test_asking_says_what_the_recipe_wants_of_the_clients(self):
        recipe = signs(Gaussian(0.5), client_steps=[Clip(9.0)], exact=["*mean"], seed=7)
        instruction = protocol_of(recipe).ask(3, MODEL).instruction
        assert (instruction.encoding.name, instruction.server_round, instruction.seed) == (
            "signs",
            3,
            7,
        )
        assert instruction.exact == (2, 3)
        assert instruction.steps[0] == Clip(9.0)

    def test_nothing_is_asked_in_rounds_that_the_checkpoint_holds(self, tmp_path):
        checkpoint = Checkpoint(tmp_path)
        first = protocol_of(medians(), checkpoint=checkpoint)
        first.open(MODEL)
        question = first.ask(1, MODEL)
        heard = first.hear(question, NODES, replies_of(weights_of, *NODES[:3]), question.answer)
        first.end(heard, {}, {"loss": 0.5})
        second = protocol_of(medians(), checkpoint=checkpoint)
        second.open(MODEL)
        assert second.ask(1, MODEL) is None
        assert second.journal.recall("train", 1)["loss"] == 0.5
        with pytest.raises(RuntimeError, match=r"the model of round 1 in .* was not loaded"):
            second.ask(2, MODEL)
        resumed = {name: array.copy() for name, array in second.journal.model.items()}
        np.testing.assert_array_equal(resumed["weight"], heard.model["weight"])
        assert second.ask(2, resumed).server_round == 2

    def test_a_seed_decides_whom_python_samples_while_asking_and_nothing_else(self):
        def sampled(protocol, server_round):
            with protocol.sampling(server_round):
                return random.sample(range(10**6), 5)

        random.seed(0)
        untouched = random.random()
        random.seed(0)
        first, second = (protocol_of(medians(seed=3)) for _ in range(2))
        drawn = [sampled(first, server_round) for server_round in (1, 1, 2)]
        assert drawn == [sampled(second, server_round) for server_round in (1, 1, 2)]
        assert len({*map(tuple, drawn)}) == 3
        assert random.random() == untouched


class TestHear:
    def test_hearing_plain_weights_makes_a_step_and_a_report(self):
        protocol = protocol_of(medians())
        question = protocol.ask(1, MODEL)
        heard = protocol.hear(question, NODES, replies_of(weights_of, 14, 15, 12), question.answer)
        # The updates are −1, 1 and 2: half of their median is taken off.
        np.testing.assert_array_equal(heard.model["weight"], MODEL["weight"] - np.float32(0.5))
        np.testing.assert_array_equal(heard.model["norm.running_mean"], np.full(5, -1, np.float32))
        assert heard.model["steps"] == -1
        counted = [
            heard.report[f"replies-{which}"] for which in ("accepted", "rejected", "missing")
        ]
        assert counted == [3, 0, 2]
        assert sorted(answer.source for answer in heard.usual) == [
            f"reply {n}" for n in (12, 14, 15)
        ]

    def test_hearing_payloads_makes_a_step(self):
        protocol = protocol_of(signs())
        question = protocol.ask(1, MODEL)
        said = [(node, perturbed(question, node)) for node in (12, 14, 15)]
        heard = protocol.hear(question, NODES, said, question.answer)
        np.testing.assert_array_equal(heard.model["weight"], MODEL["weight"] - np.float32(0.5))
        np.testing.assert_allclose(heard.model["norm.running_mean"], -2 / 3, rtol=1e-6)

    def test_hearing_too_few_answers_keeps_the_model_and_their_metrics_and_says_so(self, warnings):
        protocol = protocol_of(medians(), min_replies=3)
        question = protocol.ask(4, MODEL)
        heard = protocol.hear(question, NODES, replies_of(weights_of, 11, 12), question.answer)
        assert heard.model is None
        assert len(heard.usual) == 2
        (warning,) = warnings("round 4 ")
        assert "min_replies is 3" in warning

    def test_hearing_nobody_reports_who_is_missing(self, warnings):
        protocol = protocol_of(medians())
        question = protocol.ask(1, MODEL)
        heard = protocol.hear(question, NODES, [], question.answer)
        assert heard.model is None
        assert heard.report == {
            "replies-accepted": 0,
            "replies-rejected": 0,
            "replies-missing": len(NODES),
        }
        names = ", ".join(f"node {node}" for node in NODES)
        assert warnings("aggregate_train: no reply from 5 nodes: ") == [
            f"aggregate_train: no reply from 5 nodes: {names}"
        ]

    def test_a_node_that_has_told_its_partition_is_named_by_it_from_then_on(self, warnings):
        protocol = protocol_of(signs())
        for server_round, nodes in [(1, NODES), (2, NODES[1:])]:
            question = protocol.ask(server_round, MODEL)
            said = [(node, perturbed(question, node)) for node in nodes]
            protocol.hear(question, NODES, said, question.answer)
        (warning,) = warnings("aggregate_train: ")
        assert "node 11 (partition 0)" in warning

    def test_a_partition_that_another_node_has_claimed_is_no_name_but_the_answer_counts(
        self, warnings
    ):
        protocol = protocol_of(signs())
        question = protocol.ask(1, MODEL)
        said = replies_of(lambda node: perturbed(question, node), *NODES)
        said[2][1].scalars[f"{PREFIX}partition"] = 0  # node 11's
        heard = protocol.hear(question, NODES, said, question.answer)
        assert heard.report["replies-accepted"] == len(NODES)
        assert len(warnings(f"node {BAD} ")) == 1
        question = protocol.ask(2, MODEL)
        protocol.hear(question, NODES, [], question.answer)
        (text,) = warnings("aggregate_train: ")
        names = text.removeprefix("aggregate_train: no reply from 5 nodes: ").split(", ")
        assert names[0] == "node 11 (partition 0)"
        assert names[2] == f"node {BAD}"

    def test_a_run_that_starts_afresh_has_forgotten_who_claimed_what(self, warnings):
        protocol = protocol_of(signs())
        for server_round, nodes in [(1, (11, 12)), (2, (11, 12)), (1, (21, 22)), (2, ())]:
            question = protocol.ask(server_round, MODEL)
            said = []
            for node in nodes:
                arrays, scalars = payload_of(question, node)
                scalars[f"{PREFIX}partition"] = node % 10
                said.append((node, Said(arrays, scalars, 1.0, {}, None)))
            protocol.hear(question, nodes or (21, 22), said, question.answer)
        assert warnings("node 2") == []
        assert warnings("aggregate_train: no reply from 2 nodes: node 21 (partition 1), node 22")

    def test_answers_in_any_order_make_the_same_model_if_there_is_a_seed(self):
        def model(order, metrics):
            protocol = protocol_of(signs(Gaussian(0.5), Counts()))
            question = protocol.ask(1, MODEL)
            body, scalars = payload_of(question, NODES[0])
            said = []
            for node in order:
                # Some differ in what is not voted on alone.
                exact = payload_of(question, node)[0]["1"]
                arrays = {"0": body["0"], "1": exact}
                said.append((node, Said(arrays, scalars, 3.0, metrics(node), None)))
            heard = protocol.hear(question, NODES, said, question.answer)
            return {name: array.tobytes() for name, array in heard.model.items()}, heard.report

        for metrics in (lambda node: {"loss": 0.1 * node}, lambda node: {}):
            assert model(NODES, metrics) == model(NODES[::-1], metrics)

    def test_examples_that_cannot_be_summed_do_no_harm_to_the_arithmetic(self):
        protocol = protocol_of(signs(Gaussian(0.5), Counts()))
        question = protocol.ask(1, MODEL)
        said = [(node, perturbed(question, node)) for node in NODES]
        said = [(n, Said(s.arrays, s.scalars, 1.7e308, s.metrics, s.source)) for n, s in said]
        model = protocol.hear(question, NODES, said, question.answer).model
        assert all(np.isfinite(array).all() for array in model.values())


class TestStep:
    """A question and its answers make a model."""

    @staticmethod
    def step_of(recipe, *nodes):
        """The model that these nodes' answers make, and the report."""
        state = RunState()
        question = recipe.ask(state, 1, MODEL)
        answers = [
            question.answer(node, Said(trained(node), None, 1.0, {}, None)) for node in nodes
        ]
        model, _, report = recipe.step(question, answers, state)
        return model, report

    def test_a_step_moves_by_the_rate_and_replaces_exact_arrays(self):
        recipe = medians(learning_rate=lambda server_round: 0.25 * server_round)
        model, report = self.step_of(recipe, 11, 12, 15)
        for name in ("weight", "bias"):
            np.testing.assert_allclose(model[name], MODEL[name] + 0.25)
        assert model["steps"] == 1
        assert [array.dtype for array in model.values()] == [a.dtype for a in MODEL.values()]
        assert "median-mean-gap" in report

    def test_a_step_undoes_what_client_steps_have_done(self, monkeypatch):
        monkeypatch.setattr(CLIENT_STEPS, "_classes", dict(CLIENT_STEPS._classes))
        register_client_step(Reverse)
        usual, _ = self.step_of(medians(), 11, 12, 15)
        model, _ = self.step_of(medians(client_steps=[Reverse(), Clip(1.0)]), 11, 12, 15)
        ramp = np.arange(25) / np.linalg.norm(np.arange(25))
        for name, expected in (("weight", ramp[:20].reshape(4, 5)), ("bias", ramp[20:])):
            np.testing.assert_allclose(usual[name] - MODEL[name], 0.5)
            np.testing.assert_allclose(model[name] - MODEL[name], 0.5 * expected, atol=1e-5)


# What can be wrong with an answer: a change to the arrays and scalars of one, and words of the
# reason.


def scalar(key, value):
    """Another value for one of the payload's scalars; None takes it out."""

    def change(arrays, scalars):
        scalars.pop(PREFIX + key, None)
        if value is not None:
            scalars[PREFIX + key] = value

    return change


def array(key, change_of):
    def change(arrays, scalars):
        arrays[key] = change_of(arrays[key])

    return change


def added(key, value):
    def change(arrays, scalars):
        (scalars if key.startswith(PREFIX) else arrays)[key] = value

    return change


def dropped(key):
    def change(arrays, scalars):
        del arrays[key]

    return change


def exact_nan(exact):
    spoilt = exact.copy()
    spoilt[: 4 * 5] = np.full(5, nan, np.float32).view(np.uint8)
    return spoilt


def floats(*values):
    return np.array(values, "<f4").tobytes()


BAD_ANSWERS = {
    "no array": (lambda arrays, scalars: arrays.clear(), "0"),
    "three arrays": (added("2", np.zeros(1)), "3"),
    "exact arrays missing": (dropped("1"), "exact arrays"),
    "a running statistic of NaN": (array("1", exact_nan), "'norm.running_mean'"),
    "a body too long": (array("0", lambda body: np.append(body, body[:1])), "of shape"),
    "a body too short": (array("0", lambda body: body[:-1]), "of shape"),
    "a body of another shape": (array("0", lambda body: body[None]), "of shape"),
    "a body of another dtype": (array("0", lambda body: body.astype(np.float64)), "float64"),
    "another version": (scalar("payload", 99), "version 99"),
    "another round": (scalar("round", 2), "round 2"),
    "no round": (scalar("round", None), "fedmedian.round"),
    "a version in words": (scalar("payload", "2"), "fedmedian.payload"),
    "another encoding": (scalar("encoding", "essay"), "'essay'"),
    "no encoding": (scalar("encoding", None), "fedmedian.encoding"),
    "scales though they were told": (scalar("reports.noise", floats(0.6, 0.6)), "'noise'"),
    "magnitudes that were not asked for": (scalar("reports.measure", floats(1, 1)), "'measure'"),
    "a report of a step unheard of": (scalar("reports.pink", floats(1)), "'pink'"),
    "a report of a wrong type": (scalar("reports.noise", 1.0), "fedmedian.reports.noise"),
    "a report of a strange length": (scalar("reports.noise", b"123"), "float32 bytes"),
    "a key that nobody knows": (added(f"{PREFIX}rotated", 1), "fedmedian.rotated"),
}

BAD_VECTORS = {
    str(value): (array("0", lambda body, value=value: np.full_like(body, value)), "vector")
    for value in (nan, inf, -inf)
}

BAD_WEIGHTS = {
    "a missing array": (dropped("bias"), "'bias'"),
    "an array more": (added("more", np.zeros(3)), "'more'"),
    "another shape": (array("bias", lambda bias: np.zeros(6)), "'bias'"),
    "a shape that broadcasts": (array("bias", lambda bias: bias[:1]), "'bias'"),
    "text": (array("bias", lambda bias: bias.astype(str)), ""),
    "NaN": (array("bias", lambda bias: np.full(5, nan)), "'bias'"),
    "infinity": (array("bias", lambda bias: np.full(5, inf)), "'bias'"),
}


class TestBadAnswers:
    """Each is dropped, counted and logged with the reason, and touches nothing."""

    def assert_dropped(self, make_recipe, change, reason, warnings, plain=False):
        others = [node for node in NODES if node != BAD]
        expected = heard_of_changed(make_recipe(), None, change, others, plain)
        assert warnings() == []
        spoilt = heard_of_changed(make_recipe(), BAD, change, plain=plain)
        assert spoilt.model.keys() == expected.model.keys()
        for name in expected.model:
            assert spoilt.model[name].tobytes() == expected.model[name].tobytes()
        assert spoilt.report["replies-rejected"] == 1
        assert spoilt.report["replies-accepted"] == len(NODES) - 1
        (warning,) = warnings(f"aggregate_train: dropped the reply of node {BAD}")
        assert reason in warning

    @pytest.mark.parametrize(("change", "reason"), BAD_ANSWERS.values(), ids=BAD_ANSWERS)
    def test_a_bad_answer_in_place_of_signs_is_dropped(self, change, reason, warnings):
        self.assert_dropped(lambda: signs(Gaussian(0.5), Counts()), change, reason, warnings)

    @pytest.mark.parametrize(("change", "reason"), BAD_VECTORS.values(), ids=BAD_VECTORS)
    def test_a_vector_that_is_not_finite_is_dropped(self, change, reason, warnings):
        self.assert_dropped(lambda: medians(), change, reason, warnings)

    @pytest.mark.parametrize(("change", "reason"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
    def test_plain_weights_that_are_not_the_models_are_dropped(self, change, reason, warnings):
        self.assert_dropped(lambda: medians(), change, reason, warnings, plain=True)

    @pytest.mark.parametrize(
        ("asked", "sent"), [(signs, medians), (medians, signs)], ids=["a vector", "signs"]
    )
    def test_an_answer_of_another_kind_than_asked_is_dropped(self, asked, sent, warnings):
        other = payload_of(protocol_of(sent()).ask(1, MODEL), BAD)

        def swap(arrays, scalars):
            arrays.update(other[0])
            scalars.update(other[1])

        self.assert_dropped(asked, swap, other[1][f"{PREFIX}encoding"], warnings)

    @pytest.mark.parametrize(
        "make_recipe", [signs, lambda: medians(Gaussian(0.5))], ids=["signs", "noise at the client"]
    )
    def test_plain_weights_where_the_mod_is_needed_are_dropped_with_a_hint(
        self, make_recipe, warnings
    ):
        protocol = protocol_of(make_recipe())
        question = protocol.ask(1, MODEL)
        heard = protocol.hear(question, NODES, replies_of(weights_of, BAD), question.answer)
        assert heard.report["replies-rejected"] == 1
        assert any("mods=[perturb]" in text for text in warnings("aggregate_train: dropped"))

    def test_a_reply_that_cannot_be_read_is_dropped(self, warnings):
        def read(node, said):
            raise MemoryError("a shape of 999999999999")

        protocol = protocol_of(medians())
        question = protocol.ask(1, MODEL)
        heard = protocol.hear(question, [BAD], replies_of(weights_of, BAD), read)
        assert (heard.model, heard.report["replies-rejected"]) == (None, 1)
        assert any("999999999999" in text for text in warnings("aggregate_train: dropped"))


def loud(arrays, scalars):
    huge = floats(LARGEST, LARGEST)
    scalars.update({f"{PREFIX}reports.noise": huge, f"{PREFIX}reports.measure": huge})


def enormous(arrays, scalars):
    arrays["0"] = np.full_like(arrays["0"], LARGEST)


@pytest.mark.parametrize(
    ("make_recipe", "change"),
    [
        (lambda: signs(Gaussian(Adaptive(1.0)), Counts(), scale_from="client"), loud),
        (medians, enormous),
        (lambda: medians(Gaussian(0.5)), enormous),
    ],
    ids=["an own noise scale", "values in a median", "values in a noisy median"],
)
def test_one_clients_enormous_numbers_do_not_outweigh_the_others(make_recipe, change):
    def model(spoil):
        heard = heard_of_changed(make_recipe(), spoil, change)
        assert heard.report["replies-accepted"] == len(NODES)
        return heard.model

    for name in ("weight", "bias"):
        assert np.abs(model(BAD)[name] - model(None)[name]).max() < 30


SCALARS = (
    st.none()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=12)
    | st.booleans()
)
KEYS = st.sampled_from(
    [
        PREFIX + key
        for key in ("payload", "round", "encoding", "reports.noise", "reports.measure", "partition")
    ]
) | st.text(max_size=5)


class TestJunk:
    """Whatever a client sends, the round continues."""

    any_recipe = st.sampled_from(
        [
            lambda: signs(Gaussian(Adaptive(1.0)), Counts(), scale_from="client"),
            lambda: medians(optimizer=Momentum()),
        ]
    )

    def survives(self, make_recipe, change):
        heard = heard_of_changed(make_recipe(), BAD, change)
        accepted, rejected = (heard.report[f"replies-{n}"] for n in ("accepted", "rejected"))
        assert accepted + rejected == len(NODES)
        assert accepted >= len(NODES) - 1
        assert all(np.isfinite(array).all() for array in heard.model.values())

    @given(
        make_recipe=any_recipe, junk=st.dictionaries(KEYS, SCALARS, max_size=6), whole=st.booleans()
    )
    def test_junk_in_one_clients_scalars_does_not_end_the_round(self, make_recipe, junk, whole):
        def change(arrays, scalars):
            if whole:
                scalars.clear()
            scalars.update({key: value for key, value in junk.items() if value is not None})
            for key, value in junk.items():
                if value is None:
                    scalars.pop(key, None)

        self.survives(make_recipe, change)

    @given(
        make_recipe=any_recipe,
        sizes=st.binary(min_size=8, max_size=8),
        key=st.sampled_from(["reports.noise", "reports.measure"]),
    )
    def test_junk_in_the_sizes_that_one_client_reports_does_not_end_the_round(
        self, make_recipe, sizes, key
    ):
        self.survives(make_recipe, scalar(key, sizes))

    @given(
        make_recipe=any_recipe,
        key=st.sampled_from(["0", "1"]),
        position=st.integers(0, 10_000),
        value=st.integers(0, 255),
    )
    def test_junk_in_one_byte_of_one_clients_array_does_not_end_the_round(
        self, make_recipe, key, position, value
    ):
        def change(arrays, scalars):
            data = bytearray(arrays[key].tobytes())
            data[position % len(data)] = value
            arrays[key] = np.frombuffer(bytes(data), arrays[key].dtype)

        self.survives(make_recipe, change)


class TestHearEvaluation:
    def hear(self, replies, asked=NODES, rules=(), **options):
        def read(node, reply):
            if reply is None:
                raise ValueError("no loss")
            return Reply(node, 1.0, reply, f"reply {node}")

        protocol = protocol_of(medians(), *rules, **options)
        _, usual, _ = protocol.hear_evaluation(1, asked, replies, read, {})
        return [one.node for one in usual]

    def test_hearing_an_evaluation_returns_the_replies_whose_metrics_can_be_aggregated(
        self, warnings
    ):
        good = {"loss": 1.0}
        replies = [(11, good), (12, {"accuracy": 1.0}), (13, None), (14, good)]
        assert self.hear(replies) == [11, 14]
        (dropped,) = warnings("aggregate_evaluate: dropped")
        assert "node 13" in dropped
        assert "no loss" in dropped
        (missing,) = warnings("aggregate_evaluate: no reply")
        assert "node 15" in missing

    def test_in_evaluation_one_reply_counts_of_each_node_that_was_asked(self):
        replies = [(node, {"loss": 1.0}) for node in (11, 11, 99, 12)]
        assert self.hear(replies, asked=[11, 12]) == [11, 12]

    def test_in_evaluation_the_protocols_rules_hold_and_not_the_options(self):
        def refuse_all(cohort):
            return dict.fromkeys(range(len(cohort.replies)), "not today")

        replies = [(11, {"loss": 1.0})]
        assert self.hear(replies, cohort_rules=[refuse_all]) == [11]
        assert self.hear(replies, rules=[refuse_all]) == []
