"""The clients' own metrics: what is checked before Flower aggregates them."""

import gc
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmedian.clients import perturb
from fedmedian.logs import shown
from fedmedian.rounds.metrics import (
    LARGEST,
    LONGEST_NAME,
    MOST_ENTRIES,
    MOST_METRICS,
    fair_examples,
    require_examples,
    try_to_aggregate,
    with_usual_metrics,
)
from fedmedian.rounds.protocol import paused_collector
from fedmedian.rounds.screening import Reply
from fedmedian.rules.trust import SHARE, num_tolerated
from fedmedian.wire.scalars import WireError

NUM_CLIENTS = 4
ODD = 2


@pytest.mark.parametrize("value", [1, 2.5, 1e308])
def test_a_number_of_examples_is_any_that_is_finite_and_positive(value):
    assert require_examples("num-examples", value) == value


@pytest.mark.parametrize("value", [0, -1, nan, inf, -inf, None, True, "3", [1, 2], 10**400])
def test_a_number_of_examples_that_is_none_is_refused_by_name_and_value(value):
    with pytest.raises(WireError, match="'n'") as refused:
        require_examples("n", value)
    assert shown(value) in str(refused.value)


@pytest.mark.parametrize("examples", [[7], [5, 5], [3, 3, 5, 5], [10, 12, 12, 11, 12], [0.5] * 3])
def test_metrics_of_clients_with_about_as_many_examples_are_averaged_by_their_own(examples):
    assert fair_examples(examples) == examples


@pytest.mark.parametrize(
    ("examples", "fair"),
    [
        ([10] * 9 + [10**12], [10] * 10),
        ([10] * 8 + [1.7e308] * 2, [10] * 10),
        ([10, 1e308], [10, 10]),
        ([2.5] * 4 + [2**70], [2] * 5),
        ([0.5] * 4 + [7], [0.5] * 5),
    ],
)
def test_claims_out_of_proportion_weigh_as_an_ordinary_client_does(examples, fair):
    assert fair_examples(examples) == fair


claims = st.integers(1, 2**70) | st.floats(0, 1.7e308, exclude_min=True)


@given(examples=st.lists(claims, min_size=1, max_size=25))
def test_whatever_clients_claim_sums_are_finite_and_integers_remain_integers(examples):
    fair = fair_examples(examples)
    assert np.isfinite(LARGEST * sum(fair))
    for own, count in zip(examples, fair, strict=True):
        assert count > 0
        assert isinstance(count, int) or not isinstance(own, int) or count < 1


@given(examples=st.lists(claims, min_size=2, max_size=25))
def test_as_many_clients_as_may_lie_hold_little_more_than_their_share_of_metrics(examples):
    fair, tolerated = fair_examples(examples), num_tolerated(len(examples))
    shares = sorted(count / max(fair) for count in fair)
    held = sum(shares[-tolerated:]) / sum(shares)
    assert held <= SHARE * tolerated / len(examples) + 1e-9


def usual(*metrics):
    replies = [Reply(node, 1.0, own, None) for node, own in enumerate(metrics)]
    return [reply.node for reply in with_usual_metrics(replies, "node {}".format)]


@pytest.mark.parametrize(
    "odd",
    [{}, {"loss": 1.0, "accuracy": 0.5}, {"loss": [1.0, 2.0]}, {"loss": "junk"}],
    ids=str,
)
def test_metrics_of_other_names_or_forms_than_most_are_left_out_and_logged(odd, warnings):
    assert usual({"loss": 1.0}, {"loss": 2}, odd) == [0, 1]
    (warning,) = warnings("left the metrics of 1 ")
    assert "loss (number)" in warning


def test_metrics_that_are_lists_have_one_form_if_they_have_one_length():
    assert usual({"loss": [1.0, 2.0]}, {"loss": [3, 4]}, {"loss": [1.0]}) == [0, 1]


@pytest.mark.parametrize(
    "value", [nan, inf, -inf, [1.0, nan], [inf], 10**400], ids=lambda value: str(value)[:9]
)
def test_metrics_that_are_not_finite_are_left_out_even_if_most_are(value, warnings):
    odd = {"loss": value}
    assert usual({"loss": 1.0}, odd, odd) == [0]
    assert warnings() == ["left the metrics of node 1, node 2 out: 'loss' is not finite"]


@pytest.mark.parametrize("value", [1e101, -1.7e308, [1.0, 1e200], 10**101], ids=str)
def test_metrics_that_no_mean_of_floats_can_hold_are_left_out(value, warnings):
    assert usual({"loss": 1.0}, {"loss": value}, {"loss": value}) == [0]
    assert warnings() == [
        "left the metrics of node 1, node 2 out: 'loss' is too large to be averaged"
    ]


def test_metrics_as_large_as_a_float32_can_be_are_averaged():
    assert usual({"loss": 3.4e38}, {"loss": -3.4e38}) == [0, 1]


@pytest.mark.parametrize(
    ("most", "beyond", "reason"),
    [
        (
            {str(i): 1.0 for i in range(MOST_METRICS)},
            {str(i): 1.0 for i in range(MOST_METRICS + 1)},
            "more than 64",
        ),
        ({"n" * LONGEST_NAME: 1.0}, {"n" * (LONGEST_NAME + 1): 1.0}, "129 characters"),
        ({"a": [1.0] * MOST_ENTRIES}, {"a": [1.0] * (MOST_ENTRIES + 1)}, "4097 entries"),
        (
            {"a": [1.0] * (MOST_ENTRIES - 1), "b": 1},
            {"a": [1.0] * (MOST_ENTRIES - 1), "b": 1, "c": 1},
            "4097 entries",
        ),
        ({"a": "x" * MOST_ENTRIES}, {"a": "x" * (MOST_ENTRIES + 1)}, "4097 entries"),
    ],
    ids=["names", "a long name", "a long list", "many numbers", "a long text"],
)
def test_metrics_beyond_what_a_client_may_send_are_left_out_even_if_most_are(
    most, beyond, reason, warnings
):
    assert usual(most, beyond, beyond) == [0]
    (warning,) = warnings("left the metrics of node 1, node 2 out: ")
    assert reason in warning


@pytest.mark.parametrize("others", [[{"accuracy": 1.0}], [{"f1": 1.0}, {"loss": 2.0}, {"f1": 3.0}]])
def test_of_two_forms_that_are_equally_common_neither_is_aggregated(others, warnings):
    assert usual({"loss": 1.0}, *others) == []
    (warning,) = warnings("left the metrics of all ")
    assert "report the same ones: ['loss (number)']" in warning


def test_a_form_that_few_have_is_not_aggregated_where_all_others_differ():
    honest = [{"recall": [1.0] * length} for length in range(2, 10)]
    assert usual(*honest, {"recall": [9.0]}, {"recall": [9.0]}) == []


def test_what_is_left_out_plays_no_part_in_what_is_common():
    assert usual({"loss": 1.0}, {"f1": nan}, {"f1": nan}, {"loss": 2.0}, {"f1": 1.0}) == [0, 3]


def test_names_of_metrics_are_one_line_of_the_log_and_not_a_long_one(warnings):
    forged = {f"\x1b[2J\n{i:099d}": 1.0 for i in range(MOST_METRICS)}
    assert usual(forged, forged, {f"\n{nan}": nan}, {"loss": 1.0}) == [0, 1]
    assert len(warnings("left the metrics of ")) == 2
    assert all(text.isprintable() and len(text) < 500 for text in warnings())


def test_a_function_that_aggregates_metrics_is_believed():
    assert try_to_aggregate("f", lambda: {"loss": 1.0}) == {"loss": 1.0}


def test_a_function_that_raises_while_it_aggregates_metrics_is_named_with_the_place(warnings):
    def aggregate():
        raise KeyError("a\nb")

    assert try_to_aggregate("my_function", aggregate) is None
    (warning,) = warnings("my_function ")
    assert "KeyError" in warning
    assert "test_metrics.py" in warning
    assert warning.isprintable()


def test_without_replies_there_are_none_to_aggregate_metrics_from():
    assert usual() == []


class TestInARound:
    """A client with odd metrics counts; its metrics do not."""

    @staticmethod
    def play(run, api, odd, **options):
        def train(model, partition):
            own = odd if partition == ODD else {"loss": 1.0 * partition}
            return {"x": model["x"] - np.float32(partition)}, {"num-examples": partition + 1, **own}

        def evaluate(model, partition):
            own = {"accuracy" if partition == ODD else "error": 0.5 * partition}
            return {"num-examples": partition + 1, "loss": 1.0 * partition, **own}

        return run(
            api.make(*options.pop("make", ("MedianSGD",)), **options),
            train,
            {"x": np.zeros(9, np.float32)},
            NUM_CLIENTS,
            evaluate=evaluate,
        )

    LOSS = np.average([0, 1, 3], weights=fair_examples([1, 2, 4]))
    OLDER_LOSS = np.average(range(4), weights=fair_examples([1, 2, 3, 4]))
    """That of an evaluation in the older API, where it is no metric like the others."""

    def test_odd_metrics_of_training_are_left_out_but_the_reply_counts(self, any_client, run, bits):
        honest = self.play(run, any_client, {"loss": 2.0})
        spoilt = self.play(run, any_client, {"f1": 0.5})
        assert bits(spoilt.model) == bits(honest.model)
        assert spoilt.reports[1]["replies-accepted"] == NUM_CLIENTS
        assert spoilt.reports[1]["loss"] == pytest.approx(self.LOSS)

    def test_odd_metrics_of_evaluation_are_left_out(self, any_client, run):
        metrics = self.play(run, any_client, {"loss": 2.0}).evaluations[1]
        loss = self.OLDER_LOSS if any_client.name == "older API" else self.LOSS
        assert metrics["loss"] == pytest.approx(loss)
        assert metrics["error"] == pytest.approx(self.LOSS / 2)

    @pytest.mark.parametrize(
        "odd",
        [
            {str(i): 1.0 for i in range(2 * MOST_METRICS)},
            {"n" * 2 * LONGEST_NAME: 1.0},
            {"loss": nan},
        ],
        ids=["names", "a long name", "not finite"],
    )
    def test_metrics_that_cannot_be_aggregated_cost_a_client_no_vote(
        self, odd, any_client, run, bits, warnings
    ):
        honest = self.play(run, any_client, {"loss": 2.0})
        assert warnings("left the metrics of node") == []
        spoilt = self.play(run, any_client, odd)
        assert bits(spoilt.model) == bits(honest.model)
        assert spoilt.reports[1]["replies-accepted"] == NUM_CLIENTS
        assert spoilt.reports[1]["loss"] == pytest.approx(self.LOSS)
        assert len(warnings("left the metrics of node")) == 1

    @pytest.mark.parametrize("phase", ["train", "evaluate"])
    @pytest.mark.parametrize(
        "result",
        [RuntimeError("no such metric"), 3, {"loss": object()}],
        ids=["raises", "returns a number", "returns no number"],
    )
    def test_a_custom_function_that_fails_costs_a_round_its_metrics_alone(
        self, phase, result, any_client, run, bits, warnings
    ):
        def aggregate(*args):
            if isinstance(result, Exception):
                raise result
            return result

        honest = self.play(run, any_client, {"loss": 2.0})
        own = {f"{phase}_metrics_aggr_fn": aggregate}
        outcome = self.play(run, any_client, {"loss": 2.0}, **own)
        assert bits(outcome.model) == bits(honest.model)
        if isinstance(result, dict) and any_client.name == "older API":
            return  # which takes any value
        (warning,) = [text for text in warnings() if "metrics_aggr" in text]
        left, kept = outcome.reports[1], outcome.evaluations.get(1, {})
        if phase == "evaluate":
            left, kept = kept, left
            assert "error" not in left
        else:
            assert "loss" not in left
            assert left["replies-accepted"] == NUM_CLIENTS
        assert "loss" in kept
        if any_client.name == "older API":
            assert outcome.evaluations[1]["loss"] == pytest.approx(self.OLDER_LOSS)
        if isinstance(result, Exception):
            assert "no such metric" in warning

    @pytest.mark.parametrize("phase", ["train", "evaluate"])
    def test_a_custom_function_may_return_none(self, phase, any_client, run, warnings):
        own = {f"{phase}_metrics_aggr_fn": lambda *args: None}
        outcome = self.play(run, any_client, {"loss": 2.0}, **own)
        assert outcome.reports[1]["replies-accepted"] == NUM_CLIENTS
        assert ("loss" in outcome.reports[1]) == (phase == "evaluate")
        assert not [text for text in warnings() if "metrics_aggr" in text]

    def test_no_custom_function_sees_metrics_of_two_forms_or_numbers_that_are_not_finite(
        self, message_api, run
    ):
        seen = []

        def aggregate(contents, key):
            seen.extend(dict(content["metrics"]) for content in contents)
            return contents[0]["metrics"]

        def play(first, others):
            def train(model, partition):
                own = others if partition else first
                return model, {"num-examples": 1, **own}

            strategy = message_api.make(
                "MedianSGD", train_metrics_aggr_fn=aggregate, fraction_evaluate=0.0
            )
            return run(strategy, train, {"x": np.zeros(9, np.float32)}, 2).reports[1]

        for first, others in [
            ({"loss": 1.0}, {"f1": 1.0}),
            ({"loss": [1.0]}, {"loss": [1.0, 2.0]}),
            ({"loss": [1.0, nan]}, {"loss": [1.0, inf]}),
            ({"loss": nan}, {"loss": nan}),
        ]:
            assert play(first, others)["replies-accepted"] == 2
            assert seen == []
        play({"loss": [1.0, nan]}, {"loss": [1.0, 2.0]})
        assert seen == [{"num-examples": 1, "loss": [1.0, 2.0]}]

    @pytest.mark.parametrize("make", ["SignSGD", "MedianSGD"])
    @pytest.mark.parametrize(
        ("claims", "own"),
        [([10**12], 0.0), ([2**60] * 2, 0.0), ([1000], 1e100), ([4, 4], 1.0)],
        ids=["a million times as many", "more than anybody has", "a huge metric", "four"],
    )
    def test_a_client_that_claims_examples_moves_the_mean_of_metrics_by_its_share_alone(
        self, claims, own, make, any_client, run
    ):
        num_clients = 10

        def metrics(partition):
            lies = partition < len(claims)
            return {
                "num-examples": claims[partition] if lies else 1,
                "loss": own if lies else 0.5,
                "accuracy": own if lies else 0.75,
            }

        def train(model, partition):
            return {"x": model["x"] - np.float32(1)}, metrics(partition)

        outcome = run(
            any_client.make(make),
            train,
            {"x": np.zeros(300, np.float32)},
            num_clients,
            evaluate=lambda model, partition: metrics(partition),
        )
        share = len(claims) / num_clients
        for averages in (outcome.reports[1], outcome.evaluations[1]):
            for name, honest in (("loss", 0.5), ("accuracy", 0.75)):
                expected = share * own + (1 - share) * honest
                assert averages[name] == pytest.approx(expected)

    def test_numbers_of_numpy_count_as_numbers(self, any_client, run):
        """In Flower's simulation they arrive as they are; a SuperLink makes floats of them."""
        number = np.float64(0.5)
        outcome = run(
            any_client.make("SignSGD"),
            lambda model, partition: (model, {"num-examples": 1, "loss": number}),
            {"x": np.zeros(9, np.float32)},
            NUM_CLIENTS,
            evaluate=lambda model, partition: {"num-examples": 1, "loss": number, "own": number},
        )
        assert outcome.reports[1]["loss"] == number
        assert outcome.evaluations[1] == {"loss": number, "own": number}

    @pytest.mark.parametrize("phase", ["train", "evaluate"])
    def test_claims_whose_sum_overflows_cost_others_no_metrics(self, phase, any_client, run):
        def metrics(partition):
            return {"num-examples": 1.7e308 if partition < 2 else 3, "loss": 0.5}

        outcome = run(
            any_client.make("MedianSGD"),
            lambda model, partition: (model, metrics(partition)),
            {"x": np.zeros(9, np.float32)},
            10,
            evaluate=lambda model, partition: metrics(partition),
        )
        averages = (outcome.reports if phase == "train" else outcome.evaluations)[1]
        assert averages["loss"] == pytest.approx(0.5)

    def test_a_function_of_the_users_gets_capped_examples_and_copies(self, api, run):
        seen, replied = [], []

        def aggregate(replies, *key):
            if key:
                seen.extend(reply["metrics"][key[0]] for reply in replies)
            else:
                seen.extend(examples for examples, _ in replies)
            return {}

        def listen(message, context, call_next):
            reply = perturb(message, context, call_next)
            replied.append(reply.content)
            return reply

        def train(model, partition):
            return model, {"num-examples": 10**9 if partition == ODD else 20 + partition}

        run(
            api.make("MedianSGD", train_metrics_aggr_fn=aggregate, fraction_evaluate=0.0),
            train,
            {"x": np.zeros(9, np.float32)},
            NUM_CLIENTS,
            mods=[listen],
        )
        assert sorted(seen) == [20, 21, 23, 23]
        assert all(type(count) is int for count in seen)
        name = "metrics" if api.name == "Message API" else "fitres.num_examples"
        key = "num-examples" if api.name == "Message API" else "num_examples"
        assert sorted(content[name][key] for content in replied) == [20, 21, 23, 10**9]

    def test_too_few_replies_to_move_the_model_have_metrics_too(self, any_client, run):
        outcome = self.play(run, any_client, {"loss": 2.0}, min_replies=NUM_CLIENTS + 1)
        np.testing.assert_array_equal(outcome.model["x"], 0)
        everyone = np.average(range(NUM_CLIENTS), weights=fair_examples(range(1, NUM_CLIENTS + 1)))
        assert outcome.reports[1]["loss"] == pytest.approx(everyone)


@pytest.mark.parametrize("enabled", [True, False], ids=["enabled", "disabled"])
def test_the_garbage_collector_rests_while_replies_are_heard_and_is_then_as_it_was(
    api, run, enabled
):
    during = []

    def aggregate(*_):
        during.append(gc.isenabled())
        return {}

    def train(model, partition):
        return model, {"num-examples": 1}

    strategy = api.make("MedianSGD", train_metrics_aggr_fn=aggregate, fraction_evaluate=0.0)
    was_enabled = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        run(strategy, train, {"0": np.zeros(9, np.float32)}, 2)
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()
    assert during
    assert not any(during)


def test_the_garbage_collector_runs_again_after_an_error():
    def lose():
        with paused_collector():
            raise KeyError

    assert gc.isenabled()
    with pytest.raises(KeyError):
        lose()
    assert gc.isenabled()
