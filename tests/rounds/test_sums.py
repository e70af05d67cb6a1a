"""The secure sums of a run: who has which key, and what becomes of clients that do not help."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmedian.rounds.recipe import NoStepError, Recipe
from fedmedian.rounds.roster import Roster
from fedmedian.rounds.state import RunState
from fedmedian.rounds.sums import SecureSums
from fedmedian.secure.cohort import SecureSum
from fedmedian.secure.masking import Key
from fedmedian.secure.requests import answer
from fedmedian.steps.instruction import perturb_update
from fedmedian.steps.sums import VotesLayout, masked_payload
from fedmedian.wire.scalars import PREFIX, WireError

MODEL = {"w": np.zeros(20, np.float32)}
NODES = range(101, 111)

anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.binary(max_size=40), st.lists(st.integers(), max_size=3),
)  # fmt: skip


class Run:
    """A run's sums, and its clients by node, which answer its requests."""

    def __init__(self, **options):
        self.recipe = Recipe(secure=SecureSum(**{"threshold": 2 / 3} | options), seed=1)
        self.sums = SecureSums(self.recipe.secure, Roster())
        self.keys, self.asked, self.instead = {}, [], {}

    def exchange(self, requests):
        """Answer as clients do; `instead` has other answers by node."""
        self.asked.append(sorted(requests))
        replies = {}
        for node, request in requests.items():
            if node in self.instead:
                if self.instead[node] is not Ellipsis:
                    replies[node] = self.instead[node]
                continue
            try:
                self.keys[node], replies[node] = answer(request, self.keys.get(node))
            except WireError as error:
                replies[node] = str(error)
        return replies

    def seat(self, server_round=1, nodes=NODES):
        question = self.recipe.ask(RunState(), server_round, MODEL)
        return self.sums.seat(question, nodes, self.exchange)

    def votes(self, question, nodes, about=None):
        """Return the answers of nodes, some `about` other things, and the sum of their votes."""
        answers, total = [], 0
        for node in nodes:
            update = np.full(20, node - 105.5, np.float32)
            payload = perturb_update(
                question.instruction, question.layout, update, MODEL, np.random.default_rng(node)
            )
            votes = VotesLayout.of(question.instruction, question.layout).votes_of(payload)
            self.keys[node] = self.keys[node].takes(
                question.places[node], question.key, (about or {}).get(node, b"")
            )
            sent = masked_payload(payload, self.keys[node].mask(votes))
            answers.append(SimpleNamespace(node=node, payload=sent))
            total = total + votes.astype(np.int64)
        return answers, total

    def open(self, question, answers):
        return self.sums.open(question, answers, self.exchange)


class TestKeys:
    def test_are_asked_for_once_a_run(self):
        run = Run()
        first, second = run.seat(1), run.seat(2)
        assert run.asked == [[*NODES]]
        assert {*first.places} == {*second.places} == {*NODES}
        assert first.cohort.keys == second.cohort.keys

    def test_of_nodes_that_come_later_are_asked_for_then(self):
        run = Run()
        run.seat(1, NODES[:6])
        run.seat(2)
        assert run.asked == [[*NODES[:6]], [*NODES[6:]]]

    def test_that_were_forgotten_are_asked_for_anew(self):
        run = Run()
        before = run.seat(1).cohort.keys
        run.sums.forget([101, 999])
        after = run.seat(2).cohort.keys
        assert run.asked[1:] == [[101]]
        assert before[101] != after[101]

    def test_a_key_of_another_node_gives_no_place(self):
        run = Run()
        run.seat(1, NODES[:5])
        run.instead[106] = {PREFIX + "sum.public": run.keys[101].public}
        assert 106 not in run.seat(2).places

    def test_each_round_has_other_places_in_another_order(self):
        run = Run()
        orders = {tuple(run.seat(number).cohort.circle.members) for number in range(1, 9)}
        assert len(orders) > 1


class TestNodesWithoutAKey:
    def test_have_no_place_and_are_named_with_their_reasons(self, caplog):
        run = Run()
        run.instead = {101: "out of memory", 102: ..., 103: {}}
        places = run.seat().places
        assert {*places} == {*NODES[3:]}
        assert {len(place.neighbors) for place in places.values()} == {6}
        for words in (
            "node 101 gave no key for the secure sum: out of memory",
            "node 102 gave no key for the secure sum: no reply",
            "node 103 gave no key for the secure sum: fedmedian.sum.public must be 32 bytes",
        ):
            assert words in caplog.text

    def test_are_counted_against_the_threshold(self):
        run = Run()
        run.instead = dict.fromkeys(NODES[:4], "busy")
        with pytest.raises(NoStepError, match="needs 7 clients, and 6 of 10 gave a key"):
            run.seat()
        run.instead = dict.fromkeys(NODES[:3], "busy")
        assert run.seat(2).cohort.circle.least == 7

    def test_are_why_there_is_no_sum_if_they_are_too_many(self):
        """Clients that it helps get the remedy, and all others the reason."""
        run = Run()
        run.instead = {**dict.fromkeys(NODES, "no\ncamera"), 101: "busy", 102: ...}
        with pytest.raises(NoStepError) as failed:
            run.seat()
        assert str(failed.value).endswith(
            "do their ClientApps have mods=[perturb], with perturb first? The others' most common "
            r"reason: no\ncamera"
        )

    def test_are_asked_again_in_the_next_round(self):
        run = Run()
        run.instead = {101: "busy"}
        run.seat(1)
        run.instead = {}
        assert 101 in run.seat(2).places

    def test_many_are_named_in_short(self, caplog):
        run = Run()
        run.instead = dict.fromkeys(NODES, "busy")
        with pytest.raises(NoStepError, match="0 of 10"):
            run.seat()
        assert "node 105 and 5 more gave no key for the secure sum: busy" in caplog.text

    @given(reply=anything | st.dictionaries(st.just(PREFIX + "sum.public"), anything))
    def test_a_malformed_reply_is_as_good_as_none(self, reply):
        run = Run()
        run.instead = {101: reply}
        assert {*run.seat().places} == {*NODES[1:]}


class TestOpening:
    def test_the_sum_is_that_of_the_votes(self):
        run = Run()
        question = run.seat()
        answers, expected = run.votes(question, NODES)
        kept, total = run.open(question, answers)
        assert kept == answers
        np.testing.assert_array_equal(total, expected)

    def test_a_node_that_does_not_help_leaves_the_sum_and_loses_its_key(self, caplog):
        run = Run()
        question = run.seat()
        answers, _ = run.votes(question, NODES[:9])
        run.instead = {101: "gone"}
        kept, total = run.open(question, answers)
        assert [one.node for one in kept] == [*NODES[1:9]]
        assert total.max() <= 8
        assert "node 101 did not help to open the sum: gone" in caplog.text
        run.instead = {}
        run.asked.clear()
        run.seat(2)
        assert run.asked == [[101]]

    @pytest.mark.parametrize("change", [lambda one: one[1:], lambda one: one * 2], ids=["-", "+"])
    def test_a_node_that_reveals_too_much_or_too_little_is_named_and_left_out_and_loses_its_key(
        self, change, caplog
    ):
        run = Run()
        question = run.seat()
        answers, _ = run.votes(question, NODES[:9])

        def exchange(requests):
            replies = run.exchange(requests)
            if 101 in replies:
                replies[101] = {name: change(one) for name, one in replies[101].items()}
            return replies

        kept, _ = run.sums.open(question, answers, exchange)
        assert [one.node for one in kept] == [*NODES[1:9]]
        length = len(change(bytes(32)))
        assert f"node 101 did not help to open the sum: revealed {length} bytes" in caplog.text
        run.asked.clear()
        run.seat(2)
        assert run.asked == [[101]]

    @pytest.mark.parametrize("others", [1, 3, 4])
    def test_nodes_that_were_asked_something_else_than_most_are_left_out_and_named(
        self, others, caplog
    ):
        run = Run()
        question = run.seat()
        answers, _ = run.votes(question, NODES, dict.fromkeys(NODES[:others], b"another model"))
        if others > 3:
            with pytest.raises(NoStepError, match="6 clients are left of 10"):
                run.open(question, answers)
        else:
            kept, total = run.open(question, answers)
            assert kept == answers[others:]
            assert total.max() <= len(kept)
        assert "node 101" in caplog.text
        assert "trained from another model than most clients" in caplog.text

    def test_secrets_of_nodes_that_were_not_asked_are_left_out(self):
        run = Run()
        question = run.seat()
        answers, expected = run.votes(question, NODES[:9])

        def exchange(requests):
            extra = {PREFIX + "sum.secrets": bytes(32)}
            return run.exchange(requests) | {110: extra, 999: extra}

        np.testing.assert_array_equal(run.sums.open(question, answers, exchange)[1], expected)

    @pytest.mark.parametrize("place", [0, 5, 6, 9])
    def test_a_node_that_reveals_noise_stays_in_the_sum_is_named_once_and_loses_its_key(
        self, place, caplog
    ):
        run = Run()
        question = run.seat()
        answers, expected = run.votes(question, NODES)
        liar, secrets, rng = NODES[place], PREFIX + "sum.secrets", np.random.default_rng(0)

        def exchange(requests):
            replies = run.exchange(requests)
            return replies | {liar: {secrets: rng.bytes(len(replies[liar][secrets]))}}

        kept, total = run.sums.open(question, answers, exchange)
        assert kept == answers
        np.testing.assert_array_equal(total, expected)
        assert caplog.text.count(f"node {liar}") == 1
        assert f"node {liar} revealed wrong shares of the mask of node 1" in caplog.text
        run.asked.clear()
        run.seat(2)
        assert run.asked == []

    def test_too_few_votes_open_nothing_and_the_reason_says_so(self):
        run = Run()
        question = run.seat()
        answers, _ = run.votes(question, NODES[:6])
        run.asked.clear()
        with pytest.raises(NoStepError, match=r"cannot be opened: 6 clients are left of 10, .* 7"):
            run.open(question, answers)
        assert run.asked == []

    def test_no_votes_at_all_open_nothing(self):
        run = Run()
        with pytest.raises(NoStepError, match="0 clients are left of 10"):
            run.open(run.seat(), [])

    def test_after_a_round_that_failed_the_next_one_is_opened(self):
        run = Run()
        question = run.seat(1)
        answers, _ = run.votes(question, NODES)
        run.instead = dict.fromkeys(NODES[:6], "gone")
        with pytest.raises(
            NoStepError, match="4 shares of the mask of client 101 were revealed, 6 are"
        ):
            run.open(question, answers)
        run.instead = {}
        question = run.seat(2)
        answers, expected = run.votes(question, NODES)
        np.testing.assert_array_equal(run.open(question, answers)[1], expected)

    def test_a_client_that_holds_another_key_than_it_gave_spoils_one_round(self):
        run = Run()
        question = run.seat(1)
        run.keys[101] = Key.new()  # as where an earlier request for a key came late
        answers, _ = run.votes(question, NODES)
        with pytest.raises(NoStepError, match="the mask of client 101"):
            run.open(question, answers)
        question = run.seat(2)
        assert question.cohort.keys[101] == run.keys[101].public
        answers, expected = run.votes(question, NODES)
        np.testing.assert_array_equal(run.open(question, answers)[1], expected)

    @given(
        reply=anything | st.dictionaries(st.just(PREFIX + "sum.secrets"), anything),
        missing=st.integers(0, 1),
    )
    @settings(max_examples=10)
    def test_a_malformed_reply_is_as_good_as_none(self, reply, missing):
        run = Run()
        question = run.seat()
        answers, _ = run.votes(question, NODES[missing:])
        run.instead = {110: reply}
        kept, total = run.open(question, answers)
        assert len(kept) == 10 - 2 * missing
        assert total.max() <= len(kept)
