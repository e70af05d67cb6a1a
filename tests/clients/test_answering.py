"""A client's answer: with noise of its own, and a memory of its own for each step."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from fedmedian import (
    ClientMomentum,
    ClientStep,
    Clip,
    DivideByLearningRate,
    Gaussian,
    Instruction,
    Layout,
)
from fedmedian.clients.answering import answer
from fedmedian.clients.memory import recall
from fedmedian.steps.base import UpdateError
from fedmedian.steps.encodings import Signs, Vector
from fedmedian.steps.noise import AddNoise

NOISY = (AddNoise(Gaussian(), np.ones(1, np.float32)),)


@dataclass(frozen=True)
class ForgetEvery(ClientStep):
    """A step that counts the rounds in which it is taken, and forgets now and then."""

    rounds: int

    name: ClassVar[str] = "forget-every"

    def apply(self, draft):
        memory = draft.memory_of(self)
        if memory and memory["count"] == self.rounds:
            memory.clear()
        memory["count"] = memory.get("count", np.zeros((), np.uint8)) + np.uint8(1)


@dataclass(frozen=True)
class Stamped(Vector):
    """The update, in whose place are the round and its question."""

    name: ClassVar[str] = "stamped"

    def pack(self, draft):
        return np.array([draft.server_round, draft.question], np.float32)


def a_context(node_config, node_id=11):
    return Context(1, node_id, node_config, RecordDict(), {})


@pytest.fixture
def context():
    return a_context({"partition-id": 3})


def answer_with(context, steps, update=(0.0,) * 100, server_round=1, seed=1, **others):
    vector = np.array(update, np.float32)
    layout = Layout.of_model({"x": np.zeros_like(vector)})
    last = () if isinstance(steps[-1], Signs | Vector) else (Vector(),)
    exact, question = layout.exact_positions, others.pop("question", 0)
    instruction = Instruction((*steps, *last), server_round, seed, exact, question)
    return answer(context, instruction, layout, vector, {"x": np.zeros_like(vector)}, **others)


def noise_of(node_config, node_id=11, **told):
    return answer_with(a_context(node_config, node_id), NOISY, **told).body.tobytes()


class TestNoise:
    """The partition decides with a seed, and nobody without one."""

    def test_with_a_seed_a_partition_has_the_same_noise_on_any_node_and_no_other_has(self):
        noise = noise_of({"partition-id": 3}, node_id=11)
        assert noise_of({"partition-id": 3}, node_id=12) == noise
        assert noise_of({"partition-id": "3"}) == noise
        assert noise_of({"partition-id": 4}, node_id=11) != noise

    def test_with_a_seed_every_round_has_noise_of_its_own(self):
        noises = {noise_of({"partition-id": 3}, server_round=number) for number in (1, 2, 3)}
        assert len(noises) == 3

    def test_the_node_id_decides_about_the_noise_of_a_client_without_a_partition(self):
        assert noise_of({}, node_id=11) == noise_of({}, node_id=11)
        assert noise_of({}, node_id=11) != noise_of({}, node_id=2**63 + 5)

    def test_without_a_seed_noise_never_repeats(self):
        # 100 normal values that repeat by chance: less than once in 10^600 runs.
        assert len({noise_of({"partition-id": 3}, seed=None) for _ in range(3)}) == 3

    @pytest.mark.parametrize(
        ("node_config", "partition"),
        [
            ({"partition-id": 3}, 3),
            ({"partition-id": "3"}, 3),
            ({}, None),
            ({"partition-id": "berlin"}, None),
            ({"partition-id": -1}, None),
            ({"partition-id": 2**63 - 1}, 2**63 - 1),
            ({"partition-id": str(2**63)}, None),
        ],
    )
    def test_the_answer_tells_the_clients_partition_if_it_has_one(self, node_config, partition):
        assert answer_with(a_context(node_config), [Clip(1.0)]).partition == partition


class TestMemory:
    """Each step remembers in the client's context, from round to round."""

    def test_a_client_sends_the_average_of_its_updates_over_the_rounds(self, context):
        steps = [ClientMomentum(0.5)]
        first = answer_with(context, steps, [4.0, 0.0], 1)
        second = answer_with(context, steps, [1.0, 3.0], 2)
        np.testing.assert_allclose(first.body, [4.0, 0.0])
        np.testing.assert_allclose(second.body, [2.0, 2.0])

    def test_another_context_is_another_clients_memory(self, context):
        steps = [ClientMomentum(0.5)]
        answer_with(context, steps, [4.0, 0.0], 1)
        other = answer_with(a_context({"partition-id": 4}), steps, [1.0, 3.0], 2)
        np.testing.assert_allclose(other.body, [1.0, 3.0])

    def test_momentum_remembers_updates_from_before_clipping_noise_and_signs(self, context):
        steps = [ClientMomentum(0.5), Clip(1e-3), *NOISY, Signs()]
        answer_with(context, steps, [4.0, 0.0], 1)
        answer_with(context, steps, [1.0, 3.0], 2)
        (average,) = (m for name, m in recall(context)["momentum"].items() if name[:2] == "m ")
        np.testing.assert_allclose(average, [0.25 * 4 + 0.5 * 1, 0.5 * 3])

    @pytest.mark.parametrize("clip", [None, 100.0], ids=["", "with a policy"])
    def test_a_second_question_of_a_round_follows_the_first(self, clip, context):
        steps = [ClientMomentum(0.5), AddNoise(Gaussian(), np.zeros(1, np.float32))]
        answer_with(context, steps, [4.0, 0.0], 1, clip=clip)
        second = answer_with(context, steps, [1.0, 3.0], 1, question=1, clip=clip)
        np.testing.assert_allclose(second.body, [2.0, 2.0], rtol=1e-5)

    @pytest.mark.parametrize("clip", [None, 100.0], ids=["", "with a policy"])
    def test_every_step_is_told_the_round_and_its_question(self, clip, context):
        sent = answer_with(context, [*NOISY, Stamped()], [0.0] * 2, 7, question=3, clip=clip)
        np.testing.assert_array_equal(sent.body, [7, 3])

    def test_round_numbers_beyond_those_of_float32_still_follow_each_other(self, context):
        steps = [ClientMomentum(0.5)]
        answer_with(context, steps, [4.0, 0.0], 2**24)
        second = answer_with(context, steps, [1.0, 3.0], 2**24 + 1)
        np.testing.assert_allclose(second.body, [2.0, 2.0])
        last = recall(context)["momentum"]["last-question"]
        assert (last.dtype, last.tolist()) == (np.int64, [2**24 + 1, 0])

    def test_a_step_that_forgets_leaves_another_steps_memory_alone(self, context):
        steps = [ForgetEvery(2), ClientMomentum(0.5)]
        counts, sent = [], []
        for number, update in enumerate([[4.0], [1.0], [7.0]], start=1):
            sent.append(answer_with(context, steps, update, number).body.item())
            counts.append(recall(context)["forget-every"]["count"])
        np.testing.assert_allclose(sent, [4.0, 2.0, (4 / 8 + 1 / 4 + 7 / 2) / (7 / 8)])
        assert [(count.dtype, int(count)) for count in counts] == [
            (np.uint8, 1),
            (np.uint8, 2),
            (np.uint8, 1),
        ]

    def test_momentum_that_begins_another_run_leaves_another_steps_memory_alone(self, context):
        steps = [ForgetEvery(100), ClientMomentum(0.5)]
        for number, update in [(1, [4.0]), (2, [1.0])]:
            answer_with(context, steps, update, number)
        again = answer_with(context, steps, [7.0], 1)
        assert again.body.tolist() == [7.0]
        assert recall(context)["forget-every"]["count"] == 3

    def test_without_a_step_that_remembers_nothing_is_kept(self, context):
        answer_with(context, [Clip(1.0), *NOISY, Signs()], [4.0, 0.0])
        assert list(context.state) == []

    def test_an_update_that_a_later_step_refuses_is_not_remembered(self, context):
        steps = [ClientMomentum(0.5), DivideByLearningRate(1e-37)]
        answer_with(context, steps, [4.0, 0.0], 1)
        with pytest.raises(UpdateError):
            answer_with(context, steps, [1e5, 0.0], 2)
        third = answer_with(context, steps, [1.0, 3.0], 3)
        np.testing.assert_allclose(third.body, [2e37, 2e37], rtol=1e-6)
