"""Small clients and rounds for the tests of the strategies."""

import logging
from dataclasses import dataclass

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedmedian.clients import InProcessGrid, perturb


@pytest.fixture(autouse=True)
def quiet_flower():
    """Keep Flower's log for caplog, and off the terminal."""
    logger = logging.getLogger("flwr")
    handlers, logger.handlers = logger.handlers, []
    yield
    logger.handlers = handlers


def to_record(arrays):
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def to_arrays(record):
    return {name: array.numpy() for name, array in record.items()}


@pytest.fixture(scope="session")
def as_record():
    """Turns named numpy arrays into an ArrayRecord."""
    return to_record


@pytest.fixture(scope="session")
def as_arrays():
    """Turns an ArrayRecord into named numpy arrays."""
    return to_arrays


@pytest.fixture(scope="session")
def make_app():
    """Makes a ClientApp of one function, (model, partition) -> (trained model, metrics)."""

    def make(train, mods=(perturb,)):
        app = ClientApp(mods=list(mods))

        @app.train()
        def _train(message, context):
            (record,) = message.content.array_records.values()
            trained, metrics = train(to_arrays(record), context.node_config["partition-id"])
            content = {"arrays": to_record(trained), "metrics": MetricRecord(metrics)}
            return Message(RecordDict(content), reply_to=message)

        @app.evaluate()
        def _evaluate(message, context):
            metrics = {"num-examples": 2, "loss": float(context.node_config["partition-id"])}
            return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

        return app

    return make


@dataclass
class HonestRound:
    """One round of a strategy, stopped between the clients' replies and their aggregation."""

    strategy: object
    messages: list
    replies: list  # in the order of the clients' partitions

    def aggregate(self, replies):
        """The new model (or None) and the report."""
        arrays, report = self.strategy.aggregate_train(1, replies)
        return None if arrays is None else to_arrays(arrays), report


@pytest.fixture(scope="session")
def honest_round():
    """Asks the nodes of an app as a fresh strategy does in its first round."""

    def ask(strategy, app, num_nodes, model):
        grid = InProcessGrid(app, num_nodes)
        messages = strategy.configure_train(1, to_record(model), {}, grid)
        messages = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        return HonestRound(strategy, messages, grid.send_and_receive(messages))

    return ask
