"""The votes of a client in a secure sum: signs and reports in one order, and nothing else."""

import re
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmedian import ClientStep, Gaussian, Rotation, register_client_step
from fedmedian.model.layout import Layout
from fedmedian.secure.masking import Masked
from fedmedian.steps.encodings import Signs
from fedmedian.steps.instruction import Instruction, perturb_update
from fedmedian.steps.noise import AddNoise, Measure, SizeVotes
from fedmedian.steps.payload import MASKED, Payload
from fedmedian.steps.sums import VotesLayout, masked_of, masked_payload
from fedmedian.steps.tied import Tied
from fedmedian.wire.scalars import WireError

MODEL = {"a": np.zeros(3, np.float32), "b": np.zeros((2, 5), np.float32)}
LAYOUT = Layout.of_model(MODEL)
NOISE = AddNoise(Gaussian(), np.float32([1, 1]))
VOTED = SizeVotes("rms", np.float32([0.5, 2.0]))


@dataclass(frozen=True)
class Halves(ClientStep):
    """A custom step that reports two votes: is either half of the update positive?"""

    name: ClassVar[str] = "halves"
    reveals: ClassVar[str] = "the signs of its halves"

    def apply(self, draft):
        halves = np.array_split(draft.vector, 2)
        draft.report(self, [half.sum() > 0 for half in halves])

    def num_votes(self, blocks):
        return 2


@dataclass(frozen=True)
class Telling(Halves):
    """A custom step that reports a number."""

    name: ClassVar[str] = "telling"

    def num_votes(self, blocks):
        return 0


@pytest.fixture(scope="module", autouse=True)
def _own_steps(registries):
    register_client_step(Halves)
    register_client_step(Telling)


def asked(*steps, exact=()):
    return Instruction((*steps, Signs()), 3, 1, exact, 2)


def answered(instruction, update=None, layout=LAYOUT):
    update = np.arange(-6, layout.dim - 6, dtype=np.float32) if update is None else update
    after = {name: array + 1 for name, array in MODEL.items()}
    return perturb_update(instruction, layout, update, after, np.random.default_rng(0))


def test_signs_come_first_then_the_reports_of_steps_in_order():
    instruction = asked(Halves(), VOTED)
    order = VotesLayout.of(instruction, LAYOUT)
    assert (order.signs, [*order.reports.items()]) == (13, [("halves", 2), ("size-votes", 2)])
    votes = order.votes_of(answered(instruction))
    update = np.arange(-6, 7)
    signs, rest = votes[:13], votes[13:]
    assert votes.dtype == np.uint8
    assert signs[update != 0].tolist() == (update[update != 0] > 0).tolist()
    assert rest.tolist() == [0, 1, 1, 1]


@given(num_clients=st.integers(1, 9), seed=st.integers(0, 99))
def test_the_sum_of_votes_splits_into_the_counts_of_each_report(num_clients, seed):
    instruction = asked(Tied(((0,),)), Rotation(smallest=1, seed=3), SizeVotes("max"), NOISE)
    order, rng = VotesLayout.of(instruction, LAYOUT), np.random.default_rng(seed)
    payloads = [
        answered(instruction, rng.standard_normal(13).astype(np.float32))
        for _ in range(num_clients)
    ]
    total = sum(order.votes_of(one).astype(np.int64) for one in payloads)
    assert total.size == order.dim
    signs, reports = order.split(total)
    assert signs.size == order.signs
    assert {*reports} == {"tied", "size-votes"}
    for name, counts in reports.items():
        expected = np.sum([one.reports[name] for one in payloads], axis=0)
        assert counts.tolist() == expected.tolist()


def test_a_model_of_no_parameters_has_no_votes():
    layout = Layout.of_model({"a": np.zeros(0, np.float32)})
    order = VotesLayout.of(asked(), layout)
    assert order.dim == order.votes_of(answered(asked(), layout=layout)).size == 0


class TestWhatIsNoVote:
    @pytest.mark.parametrize("step", [Measure("rms"), Telling()], ids=lambda step: step.name)
    def test_a_report_of_numbers_is_not_sent_in_the_clear(self, step):
        instruction = asked(step)
        order = VotesLayout.of(instruction, LAYOUT)
        with pytest.raises(WireError, match="would be sent in the clear"):
            order.votes_of(answered(instruction))

    def test_an_exact_array_is_not_sent_in_the_clear(self):
        layout = Layout.with_exact_positions(MODEL, (0,))
        instruction = asked(exact=(0,))
        order = VotesLayout.of(instruction, layout)
        with pytest.raises(WireError, match=r"exact arrays .* would be sent in the clear"):
            order.votes_of(answered(instruction, layout=layout))


class TestPayload:
    SENT = Masked(np.arange(6, dtype=np.uint8).reshape(3, 2), b"shares", b"commitment", b"about")

    def test_of_masked_votes_holds_nothing_of_the_clients_own(self):
        own = replace(answered(asked(VOTED)), partition=4, held="version")
        sent = masked_payload(own, self.SENT)
        assert (sent.server_round, sent.question) == (3, 2)
        assert (sent.partition, sent.held) == (4, "version")
        assert not sent.reports
        assert sent.exact.size == 0
        assert sent.body is self.SENT.body

    def test_arrives_as_it_was_sent(self):
        sent = masked_payload(answered(asked(VOTED)), self.SENT)
        found = masked_of(Payload.decode(*sent.encode()))
        np.testing.assert_array_equal(found.body, self.SENT.body)
        assert (found.shares, found.commitment) == (b"shares", b"commitment")
        assert found.about == b"about"

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"encoding": "signs"}, f"sent 'signs', was asked for {MASKED!r}"),
            ({"shares": None}, "with 'shares', 'commitment' and 'about'"),
            ({"commitment": None}, "with 'shares', 'commitment' and 'about'"),
            ({"about": None}, "with 'shares', 'commitment' and 'about'"),
            ({"exact": np.zeros(3, np.uint8)}, "without exact arrays and reports"),
            ({"reports": {"measure": np.ones(2, np.float32)}}, "without exact arrays"),
        ],
    )
    def test_that_is_not_of_masked_votes_alone_is_refused(self, change, named):
        sent = masked_payload(answered(asked(VOTED)), self.SENT)
        with pytest.raises(WireError, match=re.escape(named)):
            masked_of(replace(sent, **change))

    def test_of_plain_votes_with_something_of_a_sum_is_refused(self):
        payload = answered(asked(VOTED))
        for name in ("shares", "commitment", "about"):
            with pytest.raises(WireError, match=f"{name} is unknown here"):
                Payload.decode(*replace(payload, **{name: b""}).encode())
