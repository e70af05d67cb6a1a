"""A coded downlink in Flower's simulation on Ray: clients' states outlive their processes."""

import json

import numpy as np
import pytest

from experiments.demos.flower_runtime import flower_runtime
from fedmedian.clients import InProcessGrid
from tests.tools.projects import project_of

pytestmark = pytest.mark.slow

NUM_CLIENTS, ROUNDS, DIM = 4, 4, 30_000
PROJECT = project_of("both-ways", "Clients that hold the model", NUM_CLIENTS)
APP = f"""
import json
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedmedian import CodedSteps
from fedmedian.clients import perturb
from fedmedian.records import sizes_of
from fedmedian.strategies import SignSGD

client = ClientApp(mods=[perturb])
server = ServerApp()


@client.train()
def train(message, context):
    rng = np.random.default_rng(context.node_config["partition-id"])
    model = message.content["arrays"]["w"].numpy()
    aim = rng.standard_normal(model.size, dtype=np.float32)
    content = {{"arrays": ArrayRecord({{"w": Array(model + (aim - model) / 2)}})}}
    content["metrics"] = MetricRecord({{"num-examples": 1}})
    return Message(RecordDict(content), reply_to=message)


@client.evaluate()
def evaluate(message, context):
    loss = float(np.square(message.content["arrays"]["w"].numpy()).mean())
    content = {{"metrics": MetricRecord({{"num-examples": 1, "loss": loss}})}}
    return Message(RecordDict(content), reply_to=message)


class Strategy(SignSGD):
    sent_to_evaluate = []

    def configure_evaluate(self, *arguments):
        messages = super().configure_evaluate(*arguments)
        self.sent_to_evaluate += sizes_of(messages)
        return messages


def run(grid):
    strategy = Strategy(downlink=CodedSteps(), seed=1)
    start = ArrayRecord({{"w": Array(np.zeros({DIM}, np.float32))}})
    return strategy.start(grid, start, {ROUNDS})


@server.main()
def main(grid, context):
    result = run(grid)
    folder = Path(context.run_config["folder"])
    np.save(folder / "model.npy", result.arrays["w"].numpy())
    training, evaluation = (
        [*map(dict, reports.values())]
        for reports in (result.train_metrics_clientapp, result.evaluate_metrics_clientapp)
    )
    reports = json.dumps([training, evaluation, Strategy.sent_to_evaluate])
    (folder / "reports.json").write_text(reports)
"""


@pytest.fixture(scope="module")
def on_ray(tmp_path_factory):
    """A run's model, reports of training and evaluation, and bytes of messages to evaluate."""
    app, folder = tmp_path_factory.mktemp("app"), tmp_path_factory.mktemp("results")
    (app / "pyproject.toml").write_text(PROJECT)
    (app / "both_ways.py").write_text(APP)
    with flower_runtime() as runtime:
        config = {"num-clients": NUM_CLIENTS, "folder": str(folder)}
        log = "\n".join(runtime.simulate(app, config))
    assert (folder / "reports.json").exists(), log
    return np.load(folder / "model.npy"), *json.loads((folder / "reports.json").read_text())


@pytest.fixture(scope="module")
def in_process():
    names = {}
    exec(APP, names)
    return names["run"](InProcessGrid(names["client"], NUM_CLIENTS))


def test_it_ends_at_the_same_bits_as_in_one_process(on_ray, in_process):
    model, training, evaluation, _ = on_ray
    assert model.tobytes() == in_process.arrays["w"].numpy().tobytes()
    assert len(training) == len(evaluation) == ROUNDS
    for own, report in zip(training, in_process.train_metrics_clientapp.values(), strict=True):
        assert own["noise-scale"] == report["noise-scale"]
    for own, report in zip(evaluation, in_process.evaluate_metrics_clientapp.values(), strict=True):
        assert own["loss"] == report["loss"]


def test_after_the_whole_model_all_clients_are_sent_one_bit_per_parameter(on_ray):
    _, training, _, sent_to_evaluate = on_ray
    assert all(report["replies-accepted"] == NUM_CLIENTS for report in training)
    first, *later = [report["downlink-bytes"] for report in training]
    assert first > 4 * DIM
    # Evaluation has sent the step to the model that training begins with.
    assert max(later) < 0.1 * first / 32
    assert len(sent_to_evaluate) == ROUNDS * NUM_CLIENTS
    assert max(sent_to_evaluate) < 1.1 * first / 32
