"""Rules by which a round's replies are judged together."""

import numpy as np
import pytest

from fedmedian.rounds.screening import Answer, Cohort, Reply, all_or_none, one_reply_per_node

NUM_CLIENTS = 5
MODEL = {"x": np.zeros(40, np.float32)}


def cohort(*nodes, asked=(1, 2, 3), rejected=0, missing=0):
    replies = [Reply(node, 1.0, {}, None) for node in nodes]
    return Cohort(1, asked, replies, rejected, missing)


class TestOneReplyPerNode:
    def test_one_reply_per_node_refuses_nobody_who_was_asked_and_replied_once(self):
        assert one_reply_per_node(cohort(3, 1)) == {}

    def test_one_reply_per_node_refuses_all_but_the_first_reply_of_a_node(self):
        assert list(one_reply_per_node(cohort(1, 2, 1, 1))) == [2, 3]

    def test_one_reply_per_node_refuses_nodes_that_were_not_asked(self):
        assert list(one_reply_per_node(cohort(4, 1, "1"))) == [0, 2]


class TestAllOrNone:
    def test_all_or_none_refuses_nobody_if_all_replied_well(self):
        assert all_or_none(cohort(1, 2, 3)) == {}

    @pytest.mark.parametrize("which", ["rejected", "missing"])
    def test_all_or_none_refuses_everybody_if_one_did_not(self, which):
        assert list(all_or_none(cohort(1, 2, **{which: 1}))) == [0, 1]


def train(model, partition):
    size = 1000.0 if partition == 3 else 1.0 + partition
    return {"x": model["x"] - np.float32(size)}, {"num-examples": 1, "loss": 1.0 * partition}


def hear(api, strategy, change):
    """Let a strategy hear other replies to training than those that were sent."""
    if api.name == "Message API":
        aggregate_train = strategy.aggregate_train
        strategy.aggregate_train = lambda number, replies: aggregate_train(number, change(replies))
    else:
        aggregate_fit = strategy.aggregate_fit
        strategy.aggregate_fit = lambda number, results, failures: aggregate_fit(
            number, change(results), failures
        )
    return strategy


def of_a_stranger(reply):
    reply.metadata.__dict__.update(_src_node_id=999, _reply_to_message_id="")
    return reply


class TestInARound:
    @pytest.fixture
    def play(self, run):
        return lambda strategy, **more: run(strategy, train, MODEL, NUM_CLIENTS, **more)

    def test_a_second_reply_of_a_node_is_refused_counted_and_logged(
        self, api, play, bits, warnings
    ):
        expected = play(api.make("MedianSGD"))
        strategy = hear(api, api.make("MedianSGD"), lambda replies: [*replies, replies[0]])
        outcome = play(strategy)
        assert bits(outcome.model) == bits(expected.model)
        report = outcome.reports[1]
        assert (report["replies-accepted"], report["replies-rejected"]) == (NUM_CLIENTS, 1)
        (warning,) = warnings("aggregate_train: dropped")
        assert "partition" in warning

    def test_the_reply_of_a_node_that_was_not_asked_is_refused_and_the_nodes_own_is_missing(
        self, message_api, play, warnings
    ):
        """In the older API Flower itself calls the clients: whoever answers was asked."""

        def swap(replies):
            return [of_a_stranger(replies[0]), *replies[1:]]

        report = play(hear(message_api, message_api.make("MedianSGD"), swap)).reports[1]
        counted = [report[f"replies-{which}"] for which in ("accepted", "rejected", "missing")]
        assert counted == [NUM_CLIENTS - 1, 1, 1]
        (warning,) = warnings("aggregate_train: dropped")
        assert "node 999" in warning

    def test_a_cohort_rule_of_ones_own_refuses_answers_for_reasons(
        self, api, play, warnings, bits, without
    ):
        seen = []

        def refuse_outliers(cohort):
            seen.append(cohort)
            size = [np.abs(answer.payload.body).max() for answer in cohort.replies]
            return {i: f"size {s:.0f}" for i, s in enumerate(size) if s > 100}

        plain = {"noise": None, "rotation": None}
        outcome = play(api.make("MedianSGD", cohort_rules=[refuse_outliers], **plain))
        expected = play(api.make("MedianSGD", **plain), grid=without(3))
        assert bits(outcome.model) == bits(expected.model)
        report = outcome.reports[1]
        counted = [report[f"replies-{which}"] for which in ("accepted", "rejected", "missing")]
        assert counted == [NUM_CLIENTS - 1, 1, 0]
        assert report["loss"] == expected.reports[1]["loss"]
        (warning,) = warnings("aggregate_train: dropped", partition=3)
        assert "size 1000" in warning
        (cohort,) = seen
        assert (cohort.server_round, cohort.rejected, cohort.missing) == (1, 0, 0)
        assert {answer.node for answer in cohort.replies} == set(cohort.asked)
        assert all(isinstance(answer, Answer) for answer in cohort.replies)

    @pytest.mark.parametrize("refused", [None, {99: "no"}, {-1: "no"}, {"0": "no"}, [0]], ids=str)
    def test_a_cohort_rule_that_returns_something_else_ends_the_run_with_its_name(
        self, refused, api, play
    ):
        def broken_rule(cohort):
            return refused

        with pytest.raises(ValueError, match=r"^cohort rule .*broken_rule.* must map indices"):
            play(api.make("MedianSGD", cohort_rules=[broken_rule]))

    def test_cohort_rules_see_what_those_before_have_left(self, api, play):
        sizes = []

        def refuse_the_first(cohort):
            sizes.append((len(cohort.replies), cohort.rejected))
            return {0: "it is the first"}

        strategy = api.make("MedianSGD", cohort_rules=[refuse_the_first] * 2, min_replies=4)
        outcome = play(strategy)
        assert sizes == [(NUM_CLIENTS, 0), (NUM_CLIENTS - 1, 1)]
        assert outcome.reports[1]["replies-accepted"] == NUM_CLIENTS - 2
        np.testing.assert_array_equal(outcome.model["x"], MODEL["x"])  # less than min_replies
