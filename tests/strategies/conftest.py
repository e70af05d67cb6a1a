"""A round of the strategies, for their tests."""

from dataclasses import dataclass

import pytest
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp

from fedmedian.clients import InProcessGrid


@dataclass
class HonestRound:
    """One round of a strategy, stopped between the clients' replies and their aggregation."""

    strategy: object
    messages: list
    replies: list  # in the order of the clients' partitions
    as_arrays: object

    def aggregate(self, replies):
        """The new model (or None) and the report."""
        arrays, report = self.strategy.aggregate_train(1, replies)
        return None if arrays is None else self.as_arrays(arrays), report


@pytest.fixture(scope="session")
def honest_round(as_record, as_arrays):
    """Asks the nodes of an app as a fresh strategy does in its first round."""

    def ask(strategy, app, num_nodes, model):
        grid = InProcessGrid(app, num_nodes)
        messages = strategy.configure_train(1, as_record(model), {}, grid)
        messages = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        return HonestRound(strategy, messages, grid.send_and_receive(messages), as_arrays)

    return ask


@pytest.fixture(scope="session")
def make_numpy_app():
    """Makes an app of NumPyClients of two functions of (arrays, config, partition)."""

    def evaluate_by_partition(parameters, config, partition):
        return float(partition), 2, {}

    def make(fit, evaluate=evaluate_by_partition, mods=()):
        class Client(NumPyClient):
            def __init__(self, partition):
                self.partition = partition

            def fit(self, parameters, config):
                return fit(parameters, config, self.partition)

            def evaluate(self, parameters, config):
                return evaluate(parameters, config, self.partition)

        def client_fn(context):
            return Client(context.node_config["partition-id"]).to_client()

        return ClientApp(client_fn=client_fn, mods=list(mods))

    return make
