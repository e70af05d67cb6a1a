"""The clients' own metrics: what is checked before Flower aggregates them."""

from math import inf, nan

import numpy as np
import pytest

from fedmedian.strategies.cohort import Reply
from fedmedian.strategies.metrics import require_examples, with_usual_metrics
from fedmedian.wire import WireError

NUM_CLIENTS = 4
ODD = 2


@pytest.mark.parametrize("value", [1, 2.5, 1e308])
def test_a_number_of_examples_is_any_that_is_finite_and_positive(value):
    assert require_examples("num-examples", value) == value


@pytest.mark.parametrize("value", [0, -1, nan, inf, None, "3", [1, 2]])
def test_a_number_of_examples_that_is_none_is_refused_by_name_and_value(value):
    with pytest.raises(WireError, match="'n'") as refused:
        require_examples("n", value)
    assert repr(value) in str(refused.value)


def usual(*metrics):
    replies = [Reply(node, 1.0, own, None) for node, own in enumerate(metrics)]
    return [reply.node for reply in with_usual_metrics(replies)]


@pytest.mark.parametrize(
    "odd",
    [{}, {"loss": 1.0, "accuracy": 0.5}, {"loss": [1.0, 2.0]}, {"loss": nan}, {"loss": "junk"}],
    ids=str,
)
def test_metrics_of_other_names_or_forms_than_most_are_left_out_and_logged(odd, warnings):
    assert usual({"loss": 1.0}, {"loss": 2}, odd) == [0, 1]
    (warning,) = warnings("left the metrics of 1 ")
    assert "loss (number)" in warning


def test_metrics_that_are_lists_have_one_form_if_they_have_one_length():
    assert usual({"loss": [1.0, 2.0]}, {"loss": [3, 4]}, {"loss": [1.0]}) == [0, 1]


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

    LOSS = np.average([0, 1, 3], weights=[1, 2, 4])

    def test_odd_metrics_of_training_are_left_out_but_the_reply_counts(self, any_client, run, bits):
        honest = self.play(run, any_client, {"loss": 2.0})
        spoilt = self.play(run, any_client, {"f1": 0.5})
        assert bits(spoilt.model) == bits(honest.model)
        assert spoilt.reports[1]["replies-accepted"] == NUM_CLIENTS
        assert spoilt.reports[1]["loss"] == pytest.approx(self.LOSS)

    def test_odd_metrics_of_evaluation_are_left_out(self, any_client, run):
        metrics = self.play(run, any_client, {"loss": 2.0}).evaluations[1]
        assert metrics["loss"] == pytest.approx(self.LOSS)
        assert metrics["error"] == pytest.approx(self.LOSS / 2)

    def test_too_few_replies_to_move_the_model_have_metrics_too(self, any_client, run):
        outcome = self.play(run, any_client, {"loss": 2.0}, min_replies=NUM_CLIENTS + 1)
        np.testing.assert_array_equal(outcome.model["x"], 0)
        everyone = np.average(range(NUM_CLIENTS), weights=range(1, NUM_CLIENTS + 1))
        assert outcome.reports[1]["loss"] == pytest.approx(everyone)
