"""What README and docs say, run."""

import re
import shlex
import subprocess
import sys
import tomllib

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.utils.data import DataLoader, TensorDataset

from experiments.flower_runtime import SimulationRuntime
from experiments.heterogeneous.cli import APP, read_config
from experiments.noise import decoding_table
from fedmedian.clients import InProcessGrid, perturb
from fedmedian.strategies import SignSGD


@pytest.fixture(scope="module")
def readme(root):
    return (root / "README.md").read_text()


def fences(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(text):
    return [line for fence in fences(text, "console") for line in fence.splitlines()]


def test_every_command_is_known_to_a_test(readme):
    known = ("git clone", "make demo", "make test", "pip install .", "flwr run", ".venv/bin/python")
    assert commands(readme)
    assert all(command.startswith(known) for command in commands(readme))


@pytest.mark.parametrize(
    ("target", "does"),
    [("demo", "-m experiments.heterogeneous.simulate"), ("test", "-m pytest")],
)
def test_make_sets_up_and_runs(root, target, does):
    plan = subprocess.run(
        ["make", "--dry-run", "--always-make", target],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert plan.index("--constraint constraints.txt --editable '.[dev]'") < plan.index(does)


@pytest.mark.slow
def test_it_installs_without_the_repository(root, tmp_path):
    install = [*(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"), "."]
    subprocess.run([*install, "--target", str(tmp_path)], cwd=root, check=True)
    assert (tmp_path / "fedmedian" / "py.typed").exists()
    code = (
        "import fedmedian, fedmedian.clients as c, fedmedian.strategies as s, sys;"
        "print(fedmedian.__file__, c.perturb, s.SignSGD(), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(tmp_path))
    assert done.stdout.endswith("False\n")


def test_the_quick_comparison_runs(root, readme):
    (command,) = (line for line in commands(readme) if "-m experiments" in line)
    _, *arguments = shlex.split(command)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=root, capture_output=True, text=True, check=True
    )
    assert "SignSGD" in done.stdout


@pytest.mark.slow
def test_the_app_runs_with_the_configuration_that_is_shown(readme):
    (command,) = (line for line in commands(readme) if line.startswith("flwr run"))
    words = shlex.split(command)
    assert words[2] == "experiments/heterogeneous"
    shown = words[words.index("-c") + 1]
    overrides = tomllib.loads("\n".join(re.findall(r"[\w-]+=(?:'[^']*'|\S+)", shown)))
    assert set(overrides) < set(read_config([]))
    nodes = words[words.index("--federation-config") + 1]
    assert f"num-supernodes={read_config([])['num-clients']} " in nodes
    lines = []
    with SimulationRuntime() as runtime:
        runtime.run(APP, {**overrides, "rounds": 1, "num-clients": 2}, 2, lines.append)
    assert any("SignSGD" in line and "round   1/1" in line for line in lines)


def test_the_diff_makes_a_strategy_and_a_client(readme):
    (diff,) = fences(readme, "diff")
    added = [line[1:].strip() for line in diff.splitlines() if line.startswith("+")]
    names = {"ClientApp": ClientApp}
    exec("\n".join(added), names)
    assert isinstance(names["strategy"], SignSGD)
    assert names["strategy"].fraction_train == 0.5
    assert isinstance(names["app"], ClientApp)


def test_the_snippet_of_a_grid_without_ray_trains(readme):
    client_app = ClientApp(mods=[perturb])

    @client_app.train()
    def train(message, context):
        (name,) = message.content["arrays"]
        arrays = ArrayRecord({name: Array(message.content["arrays"][name].numpy() - 1)})
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    @client_app.evaluate()
    def evaluate(message, context):
        metrics = MetricRecord({"num-examples": 1, "loss": 0.0})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    (snippet,) = (code for code in fences(readme, "python") if "InProcessGrid" in code)
    names = {
        "client_app": client_app,
        "arrays": ArrayRecord({"x": Array(np.zeros(1000, np.float32))}),
    }
    exec(snippet, names)
    moved = names["result"].arrays["x"].numpy()
    assert moved.mean() == pytest.approx(-20, rel=0.15)


def test_the_snippet_of_a_torch_client_trains(readme):
    def load_data(context):
        points = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(points, (points[:, 0] > 0).long()), batch_size=8)

    (snippet,) = (code for code in fences(readme, "python") if "SignClient" in code)
    names = {"make_model": lambda: torch.nn.Linear(3, 2), "load_data": load_data}
    exec(snippet, names)
    (arguments,) = re.findall(r"`SignSGD\((arrayrecord_key=.*?)\)`", readme, flags=re.DOTALL)
    strategy = eval(f"SignSGD({arguments}, seed=1)", {"SignSGD": SignSGD})
    model = torch.nn.Linear(3, 2)
    result = strategy.start(
        grid=InProcessGrid(names["app"], 4),
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=10,
    )
    model.load_state_dict(result.arrays.to_torch_state_dict())
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    assert ((model(points).argmax(dim=1) == (points[:, 0] > 0)).float().mean()) > 0.9


def test_the_table_of_decodings_is_what_its_command_prints(root):
    assert decoding_table() in (root / "docs" / "noise.md").read_text()
