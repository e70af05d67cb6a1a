"""Flower's simulation engine on a Ray cluster that somebody else has started.

The downlink is coded: clients' states outlive their processes, on whichever machine these are.
"""

import contextlib
import json
import re
import tempfile
from dataclasses import dataclass

import numpy as np
import pytest

from experiments.demos.flower_runtime import flower_runtime
from fedmedian.clients import InProcessGrid
from tests.tools.projects import project_of

pytestmark = pytest.mark.slow

NUM_CLIENTS, ROUNDS, DIM = 6, 4, 30_000
PROJECT = project_of("two-machines", "Clients that hold the model on two machines", NUM_CLIENTS)
APP = f"""
import json
import time
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


def note_machine(context):
    import ray

    partition = context.node_config["partition-id"]
    machine = ray.get_runtime_context().get_node_id()
    (Path(context.run_config["folder"]) / f"client-{{partition}}").write_text(machine)
    time.sleep(0.5)  # long enough for both machines to be asked


@client.train()
def train(message, context):
    if context.run_config and message.content["config"]["server-round"] == 1:
        note_machine(context)
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
def cluster():
    """A cluster of two machines, of one core each, that are both this one."""
    from ray.cluster_utils import Cluster

    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="fm-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        contextlib.ExitStack() as stack,
    ):
        patch.setenv("RAY_TMPDIR", folder)  # sockets' paths must be short
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        stack.callback(cluster.shutdown)
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster


@dataclass(frozen=True)
class Outcome:
    """A run's log, model, reports of training and evaluation, and bytes of what is evaluated."""

    log: str
    model: np.ndarray
    training: list
    evaluation: list
    sent_to_evaluate: list
    machines: dict


@pytest.fixture(scope="module")
def on_ray(cluster, tmp_path_factory):
    app, folder = tmp_path_factory.mktemp("app"), tmp_path_factory.mktemp("results")
    (app / "pyproject.toml").write_text(PROJECT)
    (app / "two_machines.py").write_text(APP)
    with pytest.MonkeyPatch.context() as patch, flower_runtime() as runtime:
        patch.setenv("RAY_ADDRESS", cluster.address)
        config = {"num-clients": NUM_CLIENTS, "folder": str(folder)}
        log = "\n".join(runtime.simulate(app, config))
    assert (folder / "reports.json").exists(), log
    machines = {one.name: one.read_text() for one in folder.glob("client-*")}
    reports = json.loads((folder / "reports.json").read_text())
    return Outcome(log, np.load(folder / "model.npy"), *reports, machines)


@pytest.fixture(scope="module")
def in_process():
    names = {}
    exec(APP, names)
    return names["run"](InProcessGrid(names["client"], NUM_CLIENTS))


def test_a_simulation_joins_the_ray_cluster_that_ray_address_names_and_uses_its_machines(
    on_ray, cluster
):
    assert [report["replies-accepted"] for report in on_ray.training] == [NUM_CLIENTS] * ROUNDS
    assert re.findall(r"\[ROUND .*?\] aggregate_train:", on_ray.log) == [
        f"[ROUND {number}/{ROUNDS}] aggregate_train:" for number in range(1, ROUNDS + 1)
    ]
    assert "configure_train" not in on_ray.log
    assert len(on_ray.machines) == NUM_CLIENTS
    assert {*on_ray.machines.values()} == {node.node_id for node in cluster.list_all_nodes()}
    assert len({*on_ray.machines.values()}) == 2


def test_it_ends_at_the_same_bits_as_in_one_process(on_ray, in_process):
    assert on_ray.model.tobytes() == in_process.arrays["w"].numpy().tobytes()
    assert len(on_ray.training) == len(on_ray.evaluation) == ROUNDS
    here = in_process.train_metrics_clientapp.values()
    for own, report in zip(on_ray.training, here, strict=True):
        assert own["noise-scale"] == report["noise-scale"]
    here = in_process.evaluate_metrics_clientapp.values()
    for own, report in zip(on_ray.evaluation, here, strict=True):
        assert own["loss"] == report["loss"]


def test_after_the_whole_model_all_clients_are_sent_one_bit_per_parameter(on_ray):
    assert all(report["replies-accepted"] == NUM_CLIENTS for report in on_ray.training)
    first, *later = [report["downlink-bytes"] for report in on_ray.training]
    assert first > 4 * DIM
    # Evaluation has sent the step to the model that training begins with.
    assert max(later) < 0.1 * first / 32
    assert len(on_ray.sent_to_evaluate) == ROUNDS * NUM_CLIENTS
    assert max(on_ray.sent_to_evaluate) < 1.1 * first / 32
