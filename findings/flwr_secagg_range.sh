#!/usr/bin/env bash
# flwr 1.42.0: under SecAgg+, clipping_range=8 clips at 8 for clients of 1000 examples, at 160 for those of 50.
#
# It is documented as the range that each model parameter is clipped to, 8 by default. One expects that, or no
# clipping at all, as weights and updates are far smaller. But what is clipped is a parameter times
# examples / max_weight, and whole models are sent. So equal models of clients average to another one, with
# other running statistics of BatchNorm, or to the same, depending on how many examples the clients have.
# There is no warning. Set clipping_range above all values that the model keeps, at the price of precision.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check flwr==1.42.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import logging
from copy import deepcopy

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import NDArrays, Scalar
from flwr.server import LegacyContext, SimpleClientManager
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.supercore.task_identity import TaskIdentity

logging.getLogger("flwr").setLevel(logging.ERROR)
TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1  # as in a ServerApp

MODEL = {"weight": 0.5, "running_mean": -12.0, "running_var": 30.0, "num_batches_tracked": 100.0}
NODES = range(1, 6)


class Client(NumPyClient):
    """A client that returns the server's model."""

    def __init__(self, examples: int) -> None:
        self.examples = examples

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Return the model, and on how many examples it was trained."""
        return parameters, self.examples, {}


class Clients:
    """A grid of clients in this process."""

    def __init__(self, examples: int) -> None:
        self.app = ClientApp(lambda _: Client(examples).to_client(), mods=[secaggplus_mod])
        self.contexts = {node: context(node) for node in NODES}

    def send_and_receive(self, messages: list[Message], timeout: float | None) -> list[Message]:
        """Return the replies of all clients."""
        return [
            self.app(deepcopy(message), self.contexts[message.metadata.dst_node_id])
            for message in messages
        ]


def context(node: int) -> Context:
    """Return the empty context of a node."""
    return Context(
        run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={}, series_id=1
    )


def aggregated(examples: int) -> dict[str, float]:
    """Return the mean of equal models."""
    grid = Clients(examples)
    manager = SimpleClientManager()
    for node in NODES:
        manager.register(GridClientProxy(node, grid, 1))
    server = LegacyContext(context(0), client_manager=manager)
    arrays = [Array(np.array([value], np.float32)) for value in MODEL.values()]
    server.state[MAIN_PARAMS_RECORD] = ArrayRecord(
        {str(index): array for index, array in enumerate(arrays)}
    )
    server.state[MAIN_CONFIGS_RECORD] = ConfigRecord({"current_round": 1})
    SecAggPlusWorkflow(num_shares=3, reconstruction_threshold=2)(grid, server)
    means = server.state[MAIN_PARAMS_RECORD].to_numpy_ndarrays()
    return {name: round(mean.item(), 1) for name, mean in zip(MODEL, means, strict=True)}


for examples in (50, 200, 500, 1000):
    print(f"clients with {examples} examples: {aggregated(examples)}")
PYTHON

cat > "$folder/seen" <<'SEEN'
clients with 50 examples: {'weight': 0.5, 'running_mean': -12.0, 'running_var': 30.0, 'num_batches_tracked': 100.0}
clients with 200 examples: {'weight': 0.5, 'running_mean': -12.0, 'running_var': 30.0, 'num_batches_tracked': 40.0}
clients with 500 examples: {'weight': 0.5, 'running_mean': -12.0, 'running_var': 16.0, 'num_batches_tracked': 16.0}
clients with 1000 examples: {'weight': 0.5, 'running_mean': -8.0, 'running_var': 8.0, 'num_batches_tracked': 8.0}
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
