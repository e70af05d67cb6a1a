"""A round's question may have other content for each node."""

import numpy as np
import pytest

from fedmedian.rounds.downlink import Content
from fedmedian.rounds.recipe import Question

CLIENTS = 4
MODEL = {"x": np.zeros(5, np.float32), "y": np.zeros((2, 2), np.float32)}


@pytest.mark.parametrize("strategy", ["SignSGD", "MedianSGD"])
def test_each_client_is_sent_the_questions_content_for_its_node(api, run, strategy, monkeypatch):
    contents, received = {}, {}

    def content_for(question, node):
        offset = np.float32(1 + len(contents))
        own = {name: array + offset for name, array in question.model.items()}
        contents[node] = Content(own)
        return contents[node]

    def train(model, partition):
        received[partition] = model
        return {name: array - np.float32(1) for name, array in model.items()}, {"num-examples": 1}

    monkeypatch.setattr(Question, "content_for", content_for)
    made = api.make(strategy, fraction_evaluate=0.0)
    outcome = run(made, train, MODEL, CLIENTS)
    assert outcome.reports[1]["replies-accepted"] == CLIENTS
    seen = {array["x"][0] for array in received.values()}
    assert seen == {1.0, 2.0, 3.0, 4.0}
    for model in received.values():
        np.testing.assert_array_equal(model["y"], model["x"][0])
    assert (outcome.model["x"] < 0).all()
