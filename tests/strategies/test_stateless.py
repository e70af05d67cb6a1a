"""Clients that forget everything between rounds, sent coded steps that need what they held."""

import numpy as np
import pytest

from fedmedian import CodedSteps
from fedmedian.clients import InProcessGrid, perturb

MODEL = {"w": np.zeros((30, 40), np.float32)}
NUM_CLIENTS, NUM_ROUNDS, FORGETFUL = 5, 8, 2


def train(model, partition):
    return {"w": model["w"] + (1 - model["w"]) / 2}, {"num-examples": 1}


@pytest.fixture
def accepted(message_api, make_app, as_record):
    """Runs a strategy whose clients forget in some rounds; returns the counts of replies."""

    def accepted(forgets):
        rounds = []

        def forget(message, context, call_next):
            if forgets(context.node_config["partition-id"], len(rounds)):
                for name in list(context.state):
                    del context.state[name]
            return call_next(message, context)

        base = type(message_api.make("SignSGD"))

        class Counting(base):
            def configure_train(self, *arguments):
                rounds.append(arguments[0])
                return super().configure_train(*arguments)

        strategy = Counting(seed=1, fraction_evaluate=0.0, downlink=CodedSteps())
        grid = InProcessGrid(make_app(train, mods=[forget, perturb]), NUM_CLIENTS)
        reports = strategy.start(grid, as_record(MODEL), NUM_ROUNDS).train_metrics_clientapp
        return [reports[number]["replies-accepted"] for number in sorted(reports)]

    return accepted


def test_one_that_always_forgets_is_sent_the_whole_model_after_two_losses(accepted):
    lost = NUM_CLIENTS - 1
    counts = accepted(lambda partition, number: partition == FORGETFUL)
    assert counts == [NUM_CLIENTS, lost, NUM_CLIENTS, lost] + [NUM_CLIENTS] * (NUM_ROUNDS - 4)


def test_one_that_forgets_now_and_then_misses_those_rounds_alone(accepted):
    counts = accepted(lambda partition, number: partition == FORGETFUL and number in (3, 6))
    lost = {3, 6}
    assert counts == [NUM_CLIENTS - (number in lost) for number in range(1, NUM_ROUNDS + 1)]
