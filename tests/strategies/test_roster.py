"""The nodes of a run by name, and what becomes of their replies."""

import gc
import weakref
from dataclasses import dataclass

import numpy as np
import pytest

from fedmedian.rounds.roster import Hearing, Roster
from fedmedian.rounds.screening import Reply


def replies(*nodes):
    return [Reply(node, 1.0, {}, None) for node in nodes]


def test_a_node_has_a_partition_in_its_name_once_it_has_told_one():
    roster = Roster()
    assert roster.name(7) == "node 7"
    roster.learn([(7, None)])
    assert roster.name(7) == "node 7"
    roster.learn([(7, 0)])
    assert roster.name(7) == "node 7 (partition 0)"
    assert roster.name(8) == "node 8"


def test_a_partition_names_the_first_node_that_claims_it_and_the_second_is_logged_once(warnings):
    roster = Roster()
    for node in (7, 8, 8, 7):
        roster.learn([(node, 0)])
    assert roster.name(7) == "node 7 (partition 0)"
    assert roster.name(8) == "node 8"
    (warning,) = warnings("node 8 ")
    assert "partition 0" in warning
    assert "node 7" in warning


def test_a_node_has_the_name_of_its_first_claim_and_takes_no_other(warnings):
    roster = Roster()
    roster.learn([(7, 3), (7, 4), (7, 5), (8, 4)])
    assert roster.name(7) == "node 7 (partition 3)"
    assert roster.name(8) == "node 8 (partition 4)"
    assert warnings() == []


def test_a_node_that_has_claimed_anothers_partition_has_no_name_from_any_later_claim(warnings):
    roster = Roster()
    roster.learn([(7, 0), (8, 0), (8, 1), (8, 0)])
    assert roster.name(8) == "node 8"
    (warning,) = warnings()
    assert warning.endswith("unless it is the same client under a new node id")  # as without a key


def test_a_reply_that_raises_while_it_is_read_is_rejected_and_the_others_are_kept(warnings):
    hearing = Hearing("phase", [1, 2, 3], Roster())

    def read(node, reply):
        if node == 2:
            raise MemoryError("the reason")
        return reply

    readable = hearing.readable([(one.node, one) for one in replies(1, 2)], read)
    kept = hearing.judge(4, readable, [])
    assert [reply.node for reply in kept] == [1]
    assert hearing.counts == {"replies-accepted": 1, "replies-rejected": 1, "replies-missing": 1}
    missing, dropped = warnings("phase: ")
    assert "node 2" in dropped
    assert "the reason" in dropped
    assert "node 3" in missing


def test_cohort_rules_are_asked_one_after_the_other_about_what_is_left(warnings):
    hearing = Hearing("phase", [1, 2, 3], Roster())
    readable = hearing.readable([(one.node, one) for one in replies(1, 2, 3)], lambda _, one: one)
    seen = []

    def refuse_the_last(cohort):
        seen.append(
            (cohort.server_round, [reply.node for reply in cohort.replies], cohort.rejected)
        )
        return {len(cohort.replies) - 1: "it is the last"}

    kept = hearing.judge(4, readable, [refuse_the_last, refuse_the_last])
    assert seen == [(4, [1, 2, 3], 0), (4, [1, 2], 1)]
    assert [reply.node for reply in kept] == [1]
    assert hearing.counts == {"replies-accepted": 1, "replies-rejected": 2, "replies-missing": 0}
    assert warnings("phase: ") == ["phase: dropped 2 replies, of node 3, node 2: it is the last"]


def test_replies_that_are_dropped_for_one_reason_are_one_line_that_names_every_node(warnings):
    nodes = [10**18 + i for i in range(100)]
    roster = Roster()
    hearing = Hearing("phase", [*nodes, 7, 8, 9], roster)
    roster.learn(zip(nodes, range(100), strict=True))

    def read(node, partition):
        raise ValueError("no data" if partition % 2 else f"no file {partition % 4}")

    hearing.readable(zip(nodes, range(100), strict=True), read)
    hearing.judge(1, [], [])
    missing, *dropped = warnings("phase: ")
    assert missing == "phase: no reply from 3 nodes: node 7, node 8, node 9"
    assert [text.rsplit(": ", 1)[1] for text in dropped] == ["no file 0", "no data", "no file 2"]
    assert [text.split(",")[0] for text in dropped] == [
        f"phase: dropped {count} replies" for count in (25, 50, 25)
    ]
    for partition, node in enumerate(nodes):
        assert sum(f"node {node} (partition {partition})" in text for text in dropped) == 1
    assert len(hearing.reasons) == 103


@dataclass(frozen=True)
class FrozenError(Exception):
    """An exception of a custom client step, say, that refuses to be changed."""

    text: str


@pytest.mark.parametrize("kind", [ValueError, FrozenError])
@pytest.mark.parametrize("is_caused", [False, True])
def test_a_reply_that_is_rejected_keeps_no_others_in_memory_after_its_round(is_caused, kind):
    def read(node, reply):
        if node == 2:
            try:
                raise KeyError("the cause")
            except KeyError as error:
                raise kind("the reason") from (error if is_caused else None)
        return reply

    def play():
        said = [(node, np.zeros(9)) for node in (1, 2, 3)]
        hearing = Hearing("phase", [1, 2, 3], Roster())
        assert len(hearing.readable(said, read)) == 2
        assert isinstance(hearing.reasons[0], kind)
        return [weakref.ref(reply) for _, reply in said]

    gc.disable()  # it finds cycles, in time: several rounds' replies may be there until then
    try:
        assert [found() for found in play()] == [None] * 3
    finally:
        gc.enable()
