"""Flower's simulation engine on a Ray cluster that somebody else has started."""

import contextlib
import re
import tempfile

import pytest
from ray.cluster_utils import Cluster

from experiments.demos.flower_runtime import flower_runtime
from tests.tools.projects import project_of

pytestmark = pytest.mark.slow

NUM_CLIENTS = 6
PROJECT = project_of("two-machines", "Clients on two machines", NUM_CLIENTS)
APP = """
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedmedian.clients import perturb
from fedmedian.strategies import SignSGD

client = ClientApp(mods=[perturb])
server = ServerApp()


@client.train()
def train(message, context):
    import ray

    machine = ray.get_runtime_context().get_node_id()
    partition = context.node_config["partition-id"]
    (Path(context.run_config["folder"]) / f"client-{partition}").write_text(machine)
    time.sleep(0.5)  # long enough for both machines to be asked
    model = message.content["arrays"]["w"].numpy() - np.float32(1)
    content = {"arrays": ArrayRecord({"w": Array(model)})}
    content["metrics"] = MetricRecord({"num-examples": 1})
    return Message(RecordDict(content), reply_to=message)


@server.main()
def main(grid, context):
    strategy = SignSGD(seed=1, fraction_evaluate=0.0)
    start = ArrayRecord({"w": Array(np.zeros(300, np.float32))})
    result = strategy.start(grid, start, 2)
    accepted = [metrics["replies-accepted"] for metrics in result.train_metrics_clientapp.values()]
    (Path(context.run_config["folder"]) / "server").write_text(repr(accepted))
"""


@pytest.fixture
def cluster():
    """A cluster of two machines, of one core each, that are both this one."""
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


def test_a_simulation_joins_the_ray_cluster_that_ray_address_names_and_uses_its_machines(
    cluster, tmp_path, monkeypatch
):
    app, folder = tmp_path / "app", tmp_path / "results"
    app.mkdir()
    folder.mkdir()
    (app / "pyproject.toml").write_text(PROJECT)
    (app / "two_machines.py").write_text(APP)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    with flower_runtime() as runtime:
        config = {"num-clients": NUM_CLIENTS, "folder": str(folder)}
        log = "\n".join(runtime.simulate(app, config))
    assert (folder / "server").read_text() == repr([NUM_CLIENTS] * 2), log
    assert re.findall(r"\[ROUND .*?\] .*?:", log) == [
        f"[ROUND {number}/2] aggregate_train:" for number in (1, 2)
    ]
    assert "configure_train" not in log
    machines = {
        node.node_id: [one.name for one in folder.iterdir() if one.read_text() == node.node_id]
        for node in cluster.list_all_nodes()
    }
    assert len(machines) == 2
    assert all(machines.values()), machines
