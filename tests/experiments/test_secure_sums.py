"""Secure sums on Flower itself: in its simulation on Ray, and deployed over TLS with an outage."""

from dataclasses import dataclass

import numpy as np
import pytest

from experiments.demos.deployment_runtime import SuperNode, superlink_options, write_certificates
from experiments.demos.flower_runtime import flower_runtime, wait_until
from fedmedian.clients import InProcessGrid
from tests.tools.projects import project_of

pytestmark = pytest.mark.slow

APP = """
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedmedian import SecureSum
from fedmedian.clients import perturb
from fedmedian.secure import masking, opening
from fedmedian.strategies import SignSGD

mask, open_sum = masking.Key.mask, opening.SumCohort.open


def record(message, context, call_next):
    '''Write the plain votes that the client masks.'''
    folder = Path(context.run_config["folder"])

    def masked(key, votes):
        np.save(folder / f"{key.public.hex()}-{key.question[0]}.npy", votes)
        return mask(key, votes)

    masking.Key.mask = masked
    return call_next(message, context)


client = ClientApp(mods=[record, perturb])
server = ServerApp()


@client.train()
def train(message, context):
    partition = context.node_config["partition-id"]
    if context.run_config["fails"] and partition == message.content["config"]["server-round"]:
        raise ConnectionError("gone")
    model = message.content["arrays"]["w"].numpy()
    aim = np.random.default_rng(partition).standard_normal(model.size, dtype=np.float32)
    content = {"arrays": ArrayRecord({"w": Array(model + (aim - model) / 2)})}
    content["metrics"] = MetricRecord({"num-examples": 1})
    return Message(RecordDict(content), reply_to=message)


def run(grid, config):
    '''Train, and write each sum with the keys of its members, and the model.'''
    folder = Path(config["folder"])

    def opened(cohort, votes, dim, ask):
        total = open_sum(cohort, votes, dim, ask)
        keys = [cohort.keys[one].hex() for one in total.members]
        last = max(int(one.stem.split("-")[1]) for one in folder.glob(f"{keys[0]}-*.npy"))
        path = folder / f"sum-{last}.npz"
        np.savez(path, counts=total.counts, keys=keys, least=cohort.circle.least)
        return total

    opening.SumCohort.open = opened
    strategy = SignSGD(
        weighted=False,
        secure=SecureSum(),
        fraction_evaluate=0.0,
        min_available_nodes=config["num-clients"],
        seed=1,
    )
    start = ArrayRecord({"w": Array(np.zeros(999, np.float32))})
    result = strategy.start(grid, start, config["rounds"], timeout=config["timeout"])
    np.save(folder / "model.npy", result.arrays["w"].numpy())


@server.main()
def main(grid, context):
    run(grid, context.run_config)
"""


@dataclass
class Outcome:
    """What a run has written: each round's counts, beside the sum of its members' plain votes."""

    folder: object

    @property
    def model(self):
        return np.load(self.folder / "model.npy")

    def members(self):
        """Return how many votes are in each round's sum, once all sums are seen to be right."""
        numbers = {}
        for path in self.folder.glob("sum-*.npz"):
            stored, number = np.load(path), int(path.stem.removeprefix("sum-"))
            plain = [np.load(self.folder / f"{key}-{number}.npy") for key in stored["keys"]]
            np.testing.assert_array_equal(stored["counts"], np.sum(plain, axis=0, dtype=int))
            assert len(plain) >= stored["least"]
            numbers[number] = len(plain)
        return dict(sorted(numbers.items()))


def write_app(folder, num_clients, **config):
    """Write the app, and return its configuration."""
    project = project_of("secure-run", "Clients whose votes are summed", num_clients)
    entries = "\n".join(f"{name} = {str(value).lower()}" for name, value in config.items())
    (folder / "pyproject.toml").write_text(f"{project}{entries}\n")
    (folder / "secure_run.py").write_text(APP)


class TestSimulation:
    """Clients' keys outlive their processes, and so does what they have revealed."""

    NUM_CLIENTS = ROUNDS = 6
    CONFIG = {"rounds": ROUNDS, "fails": True, "timeout": 600}  # noqa: RUF012

    @pytest.fixture(scope="class")
    @classmethod
    def on_ray(cls, tmp_path_factory):
        app, folder = tmp_path_factory.mktemp("app"), tmp_path_factory.mktemp("results")
        write_app(app, cls.NUM_CLIENTS, **cls.CONFIG)
        with flower_runtime() as runtime:
            config = {"num-clients": cls.NUM_CLIENTS, "folder": str(folder)}
            log = "\n".join(runtime.simulate(app, config))
        assert (folder / "model.npy").exists(), log
        return Outcome(folder)

    def test_every_sum_is_that_of_the_plain_votes_of_those_that_did_not_fail(self, on_ray):
        assert on_ray.members() == dict.fromkeys(range(1, 6), 5) | {6: 6}

    def test_it_ends_at_the_same_bits_as_in_one_process(self, on_ray, tmp_path):
        names, config = {}, {**self.CONFIG, "num-clients": 6, "folder": str(tmp_path)}
        exec(APP, names)
        grid = InProcessGrid(names["client"], self.NUM_CLIENTS, run_config=config)
        with pytest.MonkeyPatch.context() as patch:  # the app replaces them
            replaced = (names["masking"].Key, "mask"), (names["opening"].SumCohort, "open")
            for owner, name in replaced:
                patch.setattr(owner, name, getattr(owner, name))
            names["run"](grid, config)
        assert on_ray.model.tobytes() == Outcome(tmp_path).model.tobytes()


class TestDeployment:
    """A SuperNode is stopped while it trains; another one takes its place in the run."""

    NUM_NODES, ROUNDS = 5, 2

    @pytest.fixture(scope="class")
    @classmethod
    def outcome(cls, tmp_path_factory):
        app, folder = tmp_path_factory.mktemp("app"), tmp_path_factory.mktemp("results")
        write_app(app, cls.NUM_NODES, rounds=cls.ROUNDS, fails=False, timeout=600)
        with flower_runtime() as runtime:
            write_certificates(runtime.home)
            ca = runtime.home / "ca.crt"
            port = runtime.start_superlink(*superlink_options(runtime.home), ca=ca)
            nodes = [
                SuperNode(
                    runtime, f"node-{index}", port, min(index, cls.NUM_NODES - 1), cls.NUM_NODES
                )
                for index in range(cls.NUM_NODES + 1)
            ]
            for node in nodes:
                node.register()
            *first, spare = nodes
            for node in first:
                node.start()
            assert all(node.is_accepted() for node in first)
            run = runtime.submit(app, {"folder": str(folder)})
            # Its key, then votes.
            wait_until(lambda: first[-1].trainings == 2, "votes of round 1")
            first[-1].stop()
            spare.start()
            assert spare.is_accepted()
            for number in range(1, cls.ROUNDS + 1):
                stored = folder / f"sum-{number}.npz"
                wait_until(lambda stored=stored: stored.exists() or not run.running, stored.name)
            wait_until(lambda: not run.running, "the end of the run")
            runtime.require_completed()
        return Outcome(folder)

    def test_every_sum_is_that_of_the_plain_votes_and_lacks_only_those_of_one(self, outcome):
        assert outcome.members() == {1: 4, 2: 5}

    def test_the_model_is_trained(self, outcome):
        aims = [
            np.random.default_rng(partition).standard_normal(999, dtype=np.float32)
            for partition in range(self.NUM_NODES)
        ]
        goal = np.mean(aims, axis=0)
        assert 0.7 * goal @ goal < outcome.model @ goal < 1.3 * goal @ goal
