"""Blocks of a flat vector; others than one per array go through a whole round."""

from dataclasses import dataclass, replace
from math import sqrt
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmedian import (
    Blocks,
    ClientStep,
    Counts,
    Gaussian,
    Instruction,
    Layout,
    Majority,
    Median,
    SmoothedMedian,
    register_client_step,
    unpack_signs,
)
from fedmedian.aggregators.base import Answers
from fedmedian.steps.encodings import Encoding, Signs, Vector
from fedmedian.steps.instruction import perturb_update
from fedmedian.steps.noise import AddNoise, Measure
from fedmedian.wire.scalars import WireError

any_sizes = st.lists(st.integers(0, 6), max_size=5).map(tuple)


class TestBlocks:
    @given(sizes=any_sizes)
    def test_split_a_vector_into_views_in_order(self, sizes):
        blocks = Blocks(sizes)
        flat = np.arange(blocks.dim)
        parts = blocks.split(flat)
        assert [part.size for part in parts] == list(sizes)
        assert [int(k) for part in parts for k in part] == list(range(sum(sizes)))
        assert all(np.shares_memory(part, flat) for part in parts if part.size)
        assert len(blocks) == len(sizes)
        assert blocks.ends.tolist() == [sum(sizes[: i + 1]) for i in range(len(sizes))]

    @given(sizes=any_sizes, cuts=st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted))
    def test_within_a_part_are_those_of_its_coordinates(self, sizes, cuts):
        blocks = Blocks(sizes)
        part = slice(*(min(cut, blocks.dim) for cut in cuts))
        owner = np.repeat(np.arange(len(sizes)), sizes)[part]
        expected = [int((owner == block).sum()) for block in range(len(sizes))]
        assert blocks.sizes_within(part).tolist() == expected
        values = np.arange(len(sizes), dtype=np.float32)
        assert blocks.repeat_within(part, values).tolist() == owner.tolist()

    def test_of_the_same_sizes_are_equal(self):
        assert Blocks((3, 2)) == Blocks((3, 2)) != Blocks((2, 3))


@dataclass(frozen=True)
class Join(ClientStep):
    """The first blocks as one: they share a noise scale."""

    count: int

    name: ClassVar[str] = "join"

    def apply(self, draft):
        draft.replace(draft.vector, self.blocks(draft.blocks))

    def blocks(self, before):
        return Blocks((sum(before.sizes[: self.count]), *before.sizes[self.count :]))


@dataclass(frozen=True)
class Pad(ClientStep):
    """Zeros behind the vector, in a block of their own; the server cuts them off."""

    count: int

    name: ClassVar[str] = "pad"

    def apply(self, draft):
        vector = np.concatenate([draft.vector, np.zeros(self.count, np.float32)])
        draft.replace(vector, self.blocks(draft.blocks))

    def blocks(self, before):
        return Blocks((*before.sizes, self.count))

    def undo(self, direction, before):
        return direction[: before.dim]


@pytest.fixture(scope="module", autouse=True)
def _own_steps(registries):
    register_client_step(Join)
    register_client_step(Pad)


MODEL = {
    "w": np.zeros((20, 5), np.float32),
    "mean": np.zeros(3, np.int64),
    "b": np.zeros(30, np.float32),
    "c": np.zeros(7, np.float32),
}
LAYOUT = Layout.of_model(MODEL)
DIM, CLIENTS = 137, 5

OTHER_BLOCKS = {
    "joined": ((Join(2),), (130, 7)),
    "padded": ((Pad(9),), (100, 30, 7, 9)),
    "padded and then joined": ((Pad(3), Join(4)), (140,)),
}
other_blocks = pytest.mark.parametrize(
    ("steps", "sizes"), OTHER_BLOCKS.values(), ids=list(OTHER_BLOCKS)
)


def updates():
    return np.random.default_rng(0).standard_normal((CLIENTS, DIM), dtype=np.float32)


def instruct(*steps):
    """An instruction as clients read it."""
    last = () if steps and isinstance(steps[-1], Encoding) else (Vector(),)
    sent = Instruction((*steps, *last), 1, None, LAYOUT.exact_positions)
    return Instruction.decode(sent.encode())


def ask(*steps):
    """The instruction with these steps, and the clients' answers to it, all of them taken."""
    instruction, answers = instruct(*steps), []
    for seed, update in enumerate(updates()):
        rng = np.random.default_rng(seed)
        payload = perturb_update(instruction, LAYOUT, update.copy(), MODEL, rng)
        instruction.require_answer(payload, LAYOUT)
        answers.append(payload)
    return instruction, answers


def told(count):
    return AddNoise(Gaussian(), np.full(count, 0.5, np.float32))


def aggregate(rule, instruction, payloads, **about):
    """The direction that a rule makes of clients' payloads, and the report."""
    blocks = instruction.blocks(LAYOUT)
    sizes = zip(*(instruction.sizes_of(one, blocks) for one in payloads), strict=True)
    scales, magnitudes = map(np.stack, sizes)
    answers = Answers(
        [one.body for one in payloads],
        np.array([0.45, 0.25, 0.1, 0.1, 0.1]),
        blocks,
        Gaussian(),
        scales,
        magnitudes,
        report={},
    )
    answers = replace(answers, **about)
    return rule.direction(answers, np.random.default_rng(9)), answers.report


def elect(rule, *steps):
    """The direction of the model that a rule makes of the clients' signs, and the report."""
    instruction, payloads = ask(*steps, Signs())
    direction, report = aggregate(rule, instruction, payloads)
    return instruction.undo(direction, LAYOUT), report


def center(*steps, rule=Median(), **about):  # noqa: B008 - a frozen value
    """The direction of the model that the center of the clients' vectors is, and the report."""
    instruction, payloads = ask(*steps)
    direction, report = aggregate(rule, instruction, payloads, **about)
    return instruction.undo(direction, LAYOUT), report


def half(*steps):
    """A noise scale of one half for each client and block."""
    return np.full((CLIENTS, len(instruct(*steps).blocks(LAYOUT))), 0.5, np.float32)


@other_blocks
class TestOtherBlocksThanOnePerArray:
    """With one scale for all blocks, a round ends where it ends with one block per array."""

    def test_are_those_of_the_instruction_and_undone_to_those_of_the_model(self, steps, sizes):
        instruction = instruct(*steps)
        assert instruction.blocks(LAYOUT).sizes == sizes
        direction = np.arange(sum(sizes), dtype=np.float32)
        assert instruction.undo(direction, LAYOUT).tolist() == list(range(DIM))

    def test_each_has_a_noise_scale_and_a_magnitude(self, steps, sizes):
        _, answers = ask(*steps, Measure("max"), AddNoise(Gaussian(), None, 2.0))
        for update, payload in zip(updates(), answers, strict=True):
            padded = np.concatenate([update, np.zeros(sum(sizes) - DIM, np.float32)])
            expected = [np.abs(part).max() for part in Blocks(sizes).split(padded)]
            assert payload.reports["measure"] == pytest.approx(expected)
            assert payload.reports["noise"] == pytest.approx(2 * payload.reports["measure"])
            assert payload.body.shape == (sum(sizes),)

    def test_scales_for_each_array_are_refused(self, steps, sizes):
        with pytest.raises(WireError, match=rf"scales\b.*\b{len(sizes) + 1}\b.*\b{len(sizes)}\b"):
            ask(*steps, told(len(sizes) + 1))

    def test_votes_on_the_model_are_the_same(self, steps, sizes):
        _, expected = ask(told(3), Signs())
        _, answers = ask(*steps, told(len(sizes)), Signs())
        for payload, one in zip(answers, expected, strict=True):
            assert payload.body.size == -(-sum(sizes) // 8)
            np.testing.assert_array_equal(
                unpack_signs(payload.body, sum(sizes))[:DIM], unpack_signs(one.body, DIM)
            )

    def test_votes_are_decoded_to_the_same_direction(self, steps, sizes):
        for rule in (Counts(), Majority(ties="unchanged", calibrated=True)):
            expected, _ = elect(rule, told(3))
            direction, report = elect(rule, *steps, told(len(sizes)))
            np.testing.assert_allclose(direction, expected, rtol=1e-6)
            assert len(report["signal-to-noise-per-block"]) == len(sizes)

    def test_vectors_have_the_same_median_smoothed_or_not(self, steps, sizes):
        for rule in (Median(), SmoothedMedian()):
            expected, _ = center(rule=rule, scales=half(), noise_at=None)
            direction, _ = center(*steps, rule=rule, scales=half(*steps), noise_at=None)
            np.testing.assert_array_equal(direction, expected)

    def test_noise_added_at_the_server_has_each_blocks_scale(self, steps, sizes):
        direction, report = center(*steps, scales=half(*steps), noise_at="server")
        assert direction.shape == (DIM,)
        assert np.all(direction != center(*steps)[0])
        assert len(report["signal-to-noise-per-block"]) == len(sizes)


class TestReportOfOtherBlocks:
    """What is measured over coordinates does not depend on how they are put into blocks."""

    def test_joined_votes_agree_and_contradict_as_often_as_those_of_arrays(self):
        (_, apart), (_, joined) = elect(Counts(), told(3)), elect(Counts(), Join(3), told(1))
        for name in ("vote-agreement", "majority-contradicts-mean"):
            assert joined[name] == pytest.approx(apart[name]) != 0
        # One block is all there is.
        assert joined["signal-to-noise-per-block"] == [joined["signal-to-noise"]]

    def test_joined_vectors_differ_from_their_mean_as_those_of_arrays(self):
        (_, apart), (_, joined) = center(), center(Join(3))
        for name in ("median-mean-gap", "majority-contradicts-mean"):
            assert joined[name] == pytest.approx(apart[name]) != 0
        _, noisy = center(Join(3), told(1))
        assert noisy["signal-to-noise-per-block"] == [noisy["signal-to-noise"]]

    def test_blocks_that_are_joined_share_the_scale_of_all_their_coordinates(self):
        _, answers = ask(Join(2), Measure("rms"), AddNoise(Gaussian()))
        for update, payload in zip(updates(), answers, strict=True):
            rms = [np.linalg.norm(update[:130]) / sqrt(130), np.linalg.norm(update[130:]) / sqrt(7)]
            assert payload.reports["noise"] == pytest.approx(rms)

    def test_padding_that_did_not_move_has_no_noise_and_no_say(self):
        instruction, answers = ask(Pad(9), Measure("rms"), AddNoise(Gaussian()), Signs())
        direction, report = aggregate(Counts(), instruction, answers)
        scales = [instruction.sizes_of(one, instruction.blocks(LAYOUT))[0] for one in answers]
        assert [own[-1] for own in scales] == [0.0] * CLIENTS
        assert direction[DIM:].tolist() == [0.0] * 9
        assert report["signal-to-noise-per-block"][-1] == 0.0


@dataclass(frozen=True)
class PadForGood(Pad):
    """Zeros that nobody cuts off again."""

    name: ClassVar[str] = "pad-for-good"

    def undo(self, direction, before):
        return direction


def test_a_step_that_changes_blocks_and_does_not_undo_it_is_named():
    instruction = Instruction((PadForGood(3), Vector()), 1, None, LAYOUT.exact_positions)
    with pytest.raises(ValueError, match=rf"^PadForGood\(count=3\) must return .* \({DIM},\), got"):
        instruction.undo(np.zeros(DIM + 3, np.float32), LAYOUT)
