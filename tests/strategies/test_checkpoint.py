"""Runs that go on where they were killed."""

import json
import os
import signal
import subprocess
import sys
import time
from math import nan
from pathlib import Path

import numpy as np
import pytest
from flwr.app import MetricRecord
from flwr.serverapp.strategy import FedAvg

from fedmedian import Adam, Gaussian, Momentum
from fedmedian.clients import InProcessGrid
from fedmedian.strategies import Checkpoint, MedianSGD, SignSGD
from fedmedian.strategies.checkpoint import Saved

MODEL = {
    "weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "norm.running_mean": np.zeros(2, np.float32),
    "steps": np.array(0),
}
TARGETS = np.random.default_rng(0).standard_normal((4, 3, 4)).astype(np.float32)


class Killed(BaseException):
    """Stands for the end of the process."""


class Run:
    """Starts of one run on stateless clients, each in a strategy and a grid of its own."""

    def __init__(self, make_strategy, make_app, as_record, as_arrays):
        self.make_strategy = make_strategy
        self.make_app = make_app
        self.as_record = as_record
        self.as_arrays = as_arrays
        self.trained = 0  # how often a client has
        self.evaluated = []  # the rounds after which the server has

    def start(self, num_rounds, checkpoint=None, killed_in=None, **options):
        def train(model, partition):
            self.trained += 1
            return {
                "weight": model["weight"] - 0.3 * (model["weight"] - TARGETS[partition]),
                "norm.running_mean": model["norm.running_mean"] + partition,
                "steps": model["steps"] + 1,
            }, {"num-examples": partition + 1, "train-loss": float(abs(model["weight"]).mean())}

        def evaluate(server_round, arrays):
            if server_round == killed_in:
                raise Killed
            self.evaluated.append(server_round)
            return MetricRecord({"norm": float(np.linalg.norm(arrays["weight"].numpy()))})

        strategy = self.make_strategy(checkpoint=checkpoint, **{"seed": 1, **options})
        return strategy.start(
            InProcessGrid(self.make_app(train), 4),
            self.as_record(MODEL),
            num_rounds,
            evaluate_fn=evaluate,
        )

    def killed(self, killed_in, checkpoint, **options):
        with pytest.raises(Killed):
            self.start(killed_in, checkpoint, killed_in, **options)

    def bits(self, arrays):
        return {name: array.tobytes() for name, array in self.as_arrays(arrays).items()}


STRATEGIES = {
    "counts": lambda **options: SignSGD(**options),
    "counts with Adam": lambda **options: SignSGD(optimizer=Adam(), learning_rate=0.1, **options),
    "an average beside the model": lambda **options: SignSGD(average=0.8, **options),
    "majority of fixed noise": lambda **options: SignSGD(Gaussian(0.5), "majority", 0.1, **options),
    "half of the clients": lambda **options: SignSGD(fraction_train=0.5, **options),
    "median": lambda **options: MedianSGD(optimizer=Momentum(0.9), **options),
    "median, noise at the server": lambda **options: MedianSGD(noise_at="server", **options),
}


@pytest.fixture(params=STRATEGIES.values(), ids=STRATEGIES)
def any_run(request, make_app, as_record, as_arrays):
    return Run(request.param, make_app, as_record, as_arrays)


@pytest.fixture
def run(make_app, as_record, as_arrays):
    return Run(SignSGD, make_app, as_record, as_arrays)


@pytest.mark.parametrize("every", [1, 3])
def test_a_run_that_goes_on_ends_as_if_nothing_had_happened(any_run, tmp_path, every):
    whole = any_run.start(8)
    any_run.killed(5, Checkpoint(tmp_path, every))
    resumed = any_run.start(8, Checkpoint(tmp_path, every))
    assert any_run.bits(resumed.arrays) == any_run.bits(whole.arrays)
    assert resumed.train_metrics_clientapp == whole.train_metrics_clientapp
    assert resumed.evaluate_metrics_clientapp == whole.evaluate_metrics_clientapp
    assert resumed.evaluate_metrics_serverapp == whole.evaluate_metrics_serverapp
    if whole.averaged_arrays is not None:
        assert any_run.bits(resumed.averaged_arrays) == any_run.bits(whole.averaged_arrays)


def test_what_is_stored_is_not_computed_again(run, tmp_path):
    run.killed(5, Checkpoint(tmp_path, every=2))
    run.trained, run.evaluated = 0, []
    run.start(8, Checkpoint(tmp_path, every=2))
    assert run.trained == 4 * len([5, 6, 7, 8])
    # The round of the checkpoint is evaluated anew: the process may have ended before.
    assert run.evaluated == [4, 5, 6, 7, 8]


def test_a_run_that_has_ended_returns_at_once_what_it_returned(run, tmp_path):
    first = run.start(5, Checkpoint(tmp_path, every=4))
    run.trained = 0
    again = run.start(5, Checkpoint(tmp_path, every=4))
    assert run.trained == 0
    assert run.bits(again.arrays) == run.bits(first.arrays)
    assert again.train_metrics_clientapp == first.train_metrics_clientapp


def test_a_run_that_has_ended_can_be_given_more_rounds(run, tmp_path):
    run.start(3, Checkpoint(tmp_path, every=10))
    longer = run.start(7, Checkpoint(tmp_path, every=10))
    assert run.bits(longer.arrays) == run.bits(run.start(7).arrays)


def test_a_run_that_has_ended_cannot_be_given_fewer_rounds(run, tmp_path):
    run.start(3, Checkpoint(tmp_path))
    with pytest.raises(ValueError, match=r"num_rounds must be >= 3, .*, got 2"):
        run.start(2, Checkpoint(tmp_path))


def test_rounds_that_keep_the_model_count_as_well(run, tmp_path):
    never = run.start(3, Checkpoint(tmp_path), min_replies=5)
    assert len(never.arrays) == 0
    resumed = run.start(5, Checkpoint(tmp_path))
    assert sorted(resumed.train_metrics_clientapp) == [1, 2, 3, 4, 5]
    assert resumed.train_metrics_clientapp[3]["replies-accepted"] == 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 2}, "is of a run with seed=1, this one has seed=2"),
        ({"optimizer": Momentum()}, r"has optimizer='Momentum\(beta_1=0.9\)'"),
    ],
)
def test_another_run_is_refused(run, tmp_path, change, reason):
    run.start(1, Checkpoint(tmp_path))
    with pytest.raises(ValueError, match=reason):
        run.start(2, Checkpoint(tmp_path), **change)


def test_a_folder_that_cannot_be_made_is_known_before_training(run, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        run.start(1, Checkpoint(tmp_path / "file" / "folder"))
    assert run.trained == 0


def test_another_strategy_is_refused(run, tmp_path):
    run.start(1, Checkpoint(tmp_path))
    run.make_strategy = MedianSGD
    with pytest.raises(ValueError, match="of a run with kind='signs', this one has kind='vector'"):
        run.start(2, Checkpoint(tmp_path))


def test_another_model_is_refused(run, as_record, make_app, tmp_path):
    run.start(1, Checkpoint(tmp_path))
    other = as_record({**MODEL, "weight": np.zeros(5, np.float32)})
    grid = InProcessGrid(make_app(lambda model, _: (model, {"num-examples": 1})), 2)
    with pytest.raises(ValueError, match="of another model than the initial one"):
        SignSGD(seed=1, checkpoint=Checkpoint(tmp_path)).start(grid, other, 2)


@pytest.mark.parametrize("checkpoint", [None, "runs"])
def test_start_passes_on_what_a_newer_flower_takes(monkeypatch, tmp_path, as_record, checkpoint):
    passed = {}

    def start(self, grid, initial_arrays, num_rounds=3, should_stop=None):
        passed.update(num_rounds=num_rounds, should_stop=should_stop)
        return old(self, grid, initial_arrays, 0)

    old = FedAvg.start
    monkeypatch.setattr(FedAvg, "start", start)
    strategy = SignSGD(checkpoint=checkpoint and Checkpoint(tmp_path / checkpoint))
    strategy.start(None, as_record(MODEL), 7, should_stop="when it is enough")
    assert passed == {"num_rounds": 7, "should_stop": "when it is enough"}


SAVED = Saved(
    7,
    {"seed": 2**200, "optimizer": None},
    {
        "model": {"a/b c.weight": np.arange(6, dtype=np.float16).reshape(2, 3), "n": np.array(3)},
        "scales": {"scales": np.array([0.1, 0.2])},
        "optimizer": {},
    },
    {"train": {1: {"loss": nan, "noise-scale": [0.1, 0.3], "replies": 3}, 7: {}}},
)


class TestCheckpoint:
    def test_is_read_as_it_was_written(self, tmp_path):
        Checkpoint(tmp_path / "new" / "folder").save(SAVED)
        read = Checkpoint(str(tmp_path / "new" / "folder")).load()
        assert (read.server_round, read.identity) == (7, SAVED.identity)
        assert list(read.arrays) == list(SAVED.arrays)
        for group, arrays in SAVED.arrays.items():
            assert list(read.arrays[group]) == list(arrays)
            for name, array in arrays.items():
                assert read.arrays[group][name].dtype == array.dtype
                np.testing.assert_array_equal(read.arrays[group][name], array, strict=True)
        np.testing.assert_equal(read.history, SAVED.history)

    def test_holds_arrays_and_json_and_no_pickle(self, tmp_path):
        Checkpoint(tmp_path).save(SAVED)
        (folder,) = tmp_path.iterdir()
        assert sorted(path.name for path in folder.iterdir()) == ["arrays.npz", "state.json"]
        assert json.loads((folder / "state.json").read_text())["round"] == 7
        with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
            assert all(arrays[name].dtype != object for name in arrays.files)

    def test_without_one_there_is_nothing_to_load(self, tmp_path):
        assert Checkpoint(tmp_path).load() is None
        assert Checkpoint(tmp_path / "missing").load() is None

    def test_the_last_one_replaces_those_before(self, tmp_path):
        for number in (9, 10, 1_000_000):
            Checkpoint(tmp_path).save(Saved(number, {}, {}))
        assert [path.name for path in tmp_path.iterdir()] == ["round-1000000"]
        assert Checkpoint(tmp_path).load().server_round == 1_000_000

    def test_a_half_written_one_is_not_there(self, tmp_path):
        Checkpoint(tmp_path).save(SAVED)
        (tmp_path / ".round-000008").mkdir()
        (tmp_path / ".round-000008" / "arrays.npz").write_bytes(b"half")
        assert Checkpoint(tmp_path).load().server_round == 7
        Checkpoint(tmp_path).save(Saved(8, {}, {}))
        assert [path.name for path in tmp_path.iterdir()] == ["round-000008"]

    def test_files_of_others_stay(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        Checkpoint(tmp_path).save(SAVED)
        Checkpoint(tmp_path).save(Saved(8, {}, {}))
        assert (tmp_path / "notes.txt").read_text() == "mine"

    @pytest.mark.parametrize(
        ("name", "content"),
        [("state.json", "{"), ("state.json", "{}"), ("arrays.npz", "junk")],
    )
    def test_one_that_cannot_be_read_is_named(self, tmp_path, name, content):
        Checkpoint(tmp_path).save(SAVED)
        (tmp_path / "round-000007" / name).write_text(content)
        with pytest.raises(ValueError, match=r"cannot go on from the checkpoint .*round-000007"):
            Checkpoint(tmp_path).load()

    def test_one_of_another_version_is_named(self, tmp_path):
        Checkpoint(tmp_path).save(SAVED)
        path = tmp_path / "round-000007" / "state.json"
        path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
        with pytest.raises(ValueError, match="it has format 2, this version reads 1"):
            Checkpoint(tmp_path).load()

    @pytest.mark.parametrize(
        ("arguments", "error", "reason"),
        [
            ({"folder": 3}, TypeError, "folder must be a path, got 3"),
            ({"folder": "runs", "every": 0}, ValueError, "every must be .*, got 0"),
            ({"folder": "runs", "every": 1.5}, TypeError, "every must be an integer, got 1.5"),
        ],
    )
    def test_bad_arguments_are_named(self, arguments, error, reason):
        with pytest.raises(error, match=reason):
            Checkpoint(**arguments)


# A run in a process of its own: it prints each round and, when it has ended, its model.
SCRIPT = """
import sys
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from fedmedian import Adam
from fedmedian.clients import InProcessGrid, perturb
from fedmedian.strategies import Checkpoint, SignSGD

app = ClientApp(mods=[perturb])

@app.train()
def train(message, context):
    x = message.content["arrays"]["x"].numpy()
    trained = x - 0.1 * (x - context.node_config["partition-id"])
    arrays = ArrayRecord({"x": Array(trained)})
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

checkpoint = Checkpoint(sys.argv[1]) if len(sys.argv) > 1 else None
strategy = SignSGD(
    optimizer=Adam(), learning_rate=0.1, seed=1, fraction_evaluate=0.0, checkpoint=checkpoint
)
result = strategy.start(
    InProcessGrid(app, 4),
    ArrayRecord({"x": Array(np.zeros(20_000, np.float32))}),
    num_rounds=150,
    evaluate_fn=lambda number, arrays: print(number, flush=True),
)
print("model", result.arrays["x"].numpy().tobytes().hex())
"""


@pytest.mark.slow
def test_a_process_that_is_killed_again_and_again_ends_with_the_same_model(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script)]

    def model_of(output):
        return output.rsplit("model ", 1)[1].strip()

    whole = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kills, rng = 0, np.random.default_rng()
    folder = tmp_path / "checkpoints"
    while True:
        process = subprocess.Popen(
            [*command, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        start = int(max((p.name[6:] for p in folder.glob("round-*")), default=0))
        killed = False
        for line in process.stdout:
            if kills < 4 and line.strip().isdecimal() and int(line) >= start + 20:
                time.sleep(rng.uniform(0, 0.02))  # anywhere in a round, or in its checkpoint
                os.kill(process.pid, signal.SIGKILL)
                killed = True
                break
            if line.startswith("model"):
                resumed = line
        process.stdout.close()
        process.wait()
        kills += killed
        if not killed:
            break
    assert kills == 4
    assert model_of(resumed) == model_of(whole)
    assert [path.name for path in Path(folder).iterdir()] == ["round-000150"]
