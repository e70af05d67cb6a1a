"""How far SignSGD as it comes gets on digits, one class per client, averaged over seeds."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ConfigRecord
from flwr.clientapp import ClientApp

from experiments.heterogeneous.cli import read_config
from experiments.heterogeneous.fedmedian_heterogeneous import client_app, server_app
from fedmedian import Instruction, Payload
from fedmedian.clients import InProcessGrid

SEEDS = (1, 2, 3)
ROUNDS = 50
LIE = np.float32(1e6)
LIAR = 0

pytestmark = pytest.mark.slow


def lying(message, context, call_next):
    """One client reports a magnitude, and where it sets its noise a scale, a million times larger.

    Its votes are those of the honest client.
    """
    bootstrap = Instruction.decode(message.content["config"]).scales is None
    reply = call_next(message, context)
    if context.node_config["partition-id"] == LIAR:
        arrays = [array.numpy() for array in reply.content["arrays"].values()]
        honest = Payload.decode(arrays, reply.content["fedmedian"])
        scales = LIE * honest.scales if bootstrap else honest.scales
        claimed = replace(honest, magnitudes=LIE * honest.magnitudes, scales=scales)
        reply.content["fedmedian"] = ConfigRecord(claimed.encode()[1])
    return reply


one_lies = ClientApp(mods=[lying])


@one_lies.train()
def _train(message, context):
    return client_app.app(message, context)


@pytest.fixture(scope="module")
def accuracy():
    """Mean accuracy over the seeds after the same number of rounds, from the same starts."""

    def mean_accuracy(name, app=client_app.app):
        logging.getLogger("flwr").setLevel(logging.ERROR)
        reached = []
        for seed in SEEDS:
            config = read_config([f"strategy='{name}'", f"rounds={ROUNDS}", f"seed={seed}"])
            grid = InProcessGrid(app, int(config["num-clients"]), run_config=config)
            (run,) = server_app.compare(grid, config)
            reached.append(run.accuracy)
        logging.getLogger("flwr").setLevel(logging.DEBUG)
        return float(np.mean(reached))

    return {
        "FedAvg": mean_accuracy("fedavg"),
        "SignSGD": mean_accuracy("sign"),
        "SignSGD, lied to": mean_accuracy("sign", one_lies),
    }


def test_signs_come_within_two_points_of_fedavg(accuracy):
    assert accuracy["FedAvg"] > 0.9
    assert accuracy["SignSGD"] > accuracy["FedAvg"] - 0.02


def test_one_of_ten_clients_that_lies_about_its_size_costs_less_than_three_points(accuracy):
    assert accuracy["SignSGD, lied to"] > accuracy["SignSGD"] - 0.03
