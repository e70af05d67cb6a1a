"""docs/recipes.md: each snippet does what its heading says."""

import asyncio
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedmedian.clients import InProcessGrid, perturb
from fedmedian.strategies import SignSGD
from tests.tools.places import DOCS

PAGE = (DOCS / "recipes.md").read_text()
SNIPPETS = {
    heading: snippet
    for heading, text in re.findall(r"^##+ (.*?)\n(.*?)(?=^##|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    for snippet in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
}


@pytest.fixture
def given(tmp_path, monkeypatch):
    """What the page says that snippets are given, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    app = ClientApp(mods=[perturb])

    @app.train()
    def train(message, context):
        weights = message.content["arrays"]["x"].numpy()
        metrics = MetricRecord({"num-examples": 1, "loss": float(abs(weights.mean() - 1))})
        arrays = ArrayRecord({"x": Array(weights + (1 - weights) / 2)})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        loss = float(abs(message.content["arrays"]["x"].numpy().mean() - 1))
        metrics = MetricRecord({"num-examples": 1, "loss": loss})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return {
        "client_app": app,
        "arrays": ArrayRecord({"x": Array(np.zeros(1000, np.float32))}),
        "grid": InProcessGrid(app, 10),
        "accuracy_of": lambda arrays: float(arrays["x"].numpy().mean()),
    }


@pytest.fixture
def run(given):
    def run_snippet(heading):
        exec(SNIPPETS[heading], given)
        return SimpleNamespace(**given)

    return run_snippet


def test_a_model_is_saved_and_trained_further(run):
    pytest.importorskip("torch")
    ran = run("Save a model, and train from a saved one")
    before, after = map(ran.accuracy_of, (ran.saved, ran.result.arrays))
    assert 0 < before < after


def test_the_best_model_is_kept(run):
    ran = run("Keep the best model")
    evaluations = ran.result.evaluate_metrics_serverapp.values()
    assert ran.best["accuracy"] == max(one["accuracy"] for one in evaluations) > 0.9
    assert ran.accuracy_of(ran.best["arrays"]) == ran.best["accuracy"]


def test_a_run_stops_early(run, capsys):
    ran = run("Stop early")
    assert 2 <= ran.found["rounds"] <= 8
    assert capsys.readouterr().out == f"stopped after {ran.found['rounds']} rounds\n"


def test_the_learning_rate_falls(run):
    done = run("Lower the learning rate")
    rates = [done.strategy.recipe.learning_rate(number) for number in range(1, 6)]
    assert rates[0] == 1.0
    assert sorted(rates, reverse=True) == rates
    assert rates[-1] == pytest.approx(0.01)
    assert done.result.arrays["x"].numpy().mean() > 0.5


def test_progress_is_printed(run, capsys):
    run("See progress and the time left")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert re.fullmatch(r"round 5 of 5, about 0 s left", lines[-1])


def test_each_clients_metrics_are_in_the_result(run, capsys):
    found = run("See each client's metrics").result.evaluate_metrics_clientapp[3]
    assert len(found["losses"]) == 10
    assert found["loss"] == pytest.approx(np.mean(found["losses"]))
    assert capsys.readouterr().out == f"{found['losses']}\n"


def test_a_result_is_drawn_and_written(run, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("pandas")
    run("Draw a run, or write it to a file")
    assert (tmp_path / "loss.png").stat().st_size > 1000
    head, *rows = (tmp_path / "training.csv").read_text().splitlines()
    assert "uplink-bytes" in head
    assert [row.split(",")[0] for row in rows] == list("12345")


def test_each_round_is_logged(run, monkeypatch):
    logged = []

    class Writer:
        def __init__(self, folder):
            pass

        def add_scalar(self, name, value, step):
            logged.append((step, name, float(value)))

        def close(self):
            logged.append("closed")

    stub = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stub)
    pytest.importorskip("torch")
    run("Log to TensorBoard or Weights & Biases while a run trains")
    assert {step for step, _, _ in logged[:-1]} == {1, 2, 3}
    assert {"loss", "uplink-bytes"} <= {name for _, name, _ in logged[:-1]}


def test_each_round_is_logged_to_weights_and_biases_by_one_line(given, monkeypatch):
    heading = "Log to TensorBoard or Weights & Biases while a run trains"
    (line,) = re.findall(r"`(wandb\.log\(.*?\))`", PAGE)
    loop = re.compile(r"for name, value in .*?\n.*?\n")
    snippet, replaced = loop.subn(f"{line}\n", SNIPPETS[heading])
    assert replaced == 1
    logged = []
    wandb = SimpleNamespace(log=lambda metrics, step: logged.append((step, metrics)))
    writer = SimpleNamespace(SummaryWriter=lambda _: SimpleNamespace(close=lambda: None))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", writer)
    pytest.importorskip("torch")
    exec(snippet, {**given, "wandb": wandb})
    assert [step for step, _ in logged] == [1, 2, 3]
    assert all({"loss", "uplink-bytes"} <= metrics.keys() for _, metrics in logged)


def test_models_move_to_the_device_and_back(run):
    torch = pytest.importorskip("torch")
    ran, model = run("Train clients on a GPU"), torch.nn.Linear(3, 2)
    trained = torch.nn.Linear(3, 2)
    moved = ran.load(model, ran.to_record(trained))
    assert moved.weight.device.type == ran.device.type
    assert np.array_equal(ran.to_record(moved)["weight"].numpy(), trained.weight.detach().numpy())


def test_a_snippet_runs_in_a_cell_whose_notebook_has_an_event_loop(run):
    async def cell():
        return run("Test an app in a second").test_all_clients_train()

    asyncio.run(cell())


def test_fedavg_is_compared(run, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    run("Compare with FedAvg in your app")
    sent = [
        int(one.replace(",", ""))
        for one in re.findall(r"([\d,]+) bytes up", capsys.readouterr().out)
    ]
    assert sent[0] > 1.5 * sent[1]
    assert (tmp_path / "compared.png").exists()


def test_an_app_is_tested(run):
    run("Test an app in a second").test_all_clients_train()


def test_other_optimizers_train(run):
    for strategy in run("FedOpt, FedProx, SCAFFOLD").strategies:
        assert type(strategy) is SignSGD


def test_a_run_resumes(run, given):
    first = run("Interrupt a run and resume it").result
    sent = given["grid"].bytes_up
    again = run("Interrupt a run and resume it").result
    assert np.array_equal(first.arrays["x"].numpy(), again.arrays["x"].numpy())
    assert given["grid"].bytes_up < 1.5 * sent


def test_ctrl_c_costs_at_most_the_current_round(run, given, monkeypatch):
    grid, rounds = given["grid"], []

    def interrupted(messages, **options):
        messages = list(messages)
        rounds.extend(one.content["config"]["server-round"] for one in messages[:1])
        if messages and rounds == [1, 1, 2, 2, 3]:  # training and evaluation
            raise KeyboardInterrupt
        return InProcessGrid.send_and_receive(grid, messages, **options)

    monkeypatch.setattr(grid, "send_and_receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("Interrupt a run and resume it")
    result = run("Interrupt a run and resume it").result
    assert sorted(result.train_metrics_clientapp) == [1, 2, 3, 4, 5]
    assert rounds[5:] == [2, 3, 3, 4, 4, 5, 5]  # the last stored model is evaluated again


def test_slow_clients_are_not_waited_for(run):
    assert run("Do not wait for slow clients").strategy.min_replies == 3


def test_three_clients_are_enough(run):
    assert run("Train with two or three clients").strategy.min_train_nodes == 3


class TestFrameworks:
    """The same small problem, y = Xw, in each framework: SignSGD learns it as FedAvg does."""

    RNG = np.random.default_rng(3)
    X = RNG.standard_normal((256, 300)).astype(np.float32)
    Y = X @ RNG.standard_normal(300).astype(np.float32)

    def learn(self, make, train, predict, heading):
        """Train with FedAvg and with SignSGD, and require that both learn."""
        names = {}
        exec(SNIPPETS[heading], names)
        to_record, load = names["to_record"], names["load"]
        app = ClientApp(mods=[perturb])

        @app.train()
        def fit(message, context):
            model = make()
            model = load(model, message.content["arrays"]) or model
            model = train(model, self.X, self.Y) or model
            content = {
                "arrays": to_record(model),
                "metrics": MetricRecord({"num-examples": len(self.Y)}),
            }
            return Message(RecordDict(content), reply_to=message)

        for strategy in (FedAvg(fraction_evaluate=0.0), SignSGD(seed=1, fraction_evaluate=0.0)):
            result = strategy.start(InProcessGrid(app, 4), to_record(make()), 5)
            model = make()
            model = load(model, result.arrays) or model
            error = np.mean((np.ravel(predict(model, self.X)) - self.Y) ** 2)
            assert error < 0.2 * np.mean(self.Y**2)

    def test_pytorch_learns(self):
        torch = pytest.importorskip("torch")
        x, y = torch.from_numpy(self.X), torch.from_numpy(self.Y)

        def train(model, *_):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for _ in range(20):
                optimizer.zero_grad()
                ((model(x).ravel() - y) ** 2).mean().backward()
                optimizer.step()

        self.learn(
            lambda: torch.nn.Linear(300, 1),
            train,
            lambda model, _: model(x).detach().numpy(),
            "PyTorch, Lightning, Hugging Face",
        )

    def test_lightning_learns(self):
        torch = pytest.importorskip("torch")
        lightning = pytest.importorskip("lightning")
        data = torch.utils.data.TensorDataset(torch.from_numpy(self.X), torch.from_numpy(self.Y))

        class Regression(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.linear = torch.nn.Linear(300, 1)

            def training_step(self, batch, index):
                return ((self.linear(batch[0]).ravel() - batch[1]) ** 2).mean()

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.1)

        def train(model, *_):
            trainer = lightning.Trainer(
                max_epochs=20,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=256))

        self.learn(
            Regression,
            train,
            lambda model, x: model.linear(torch.from_numpy(x)).detach().numpy(),
            "PyTorch, Lightning, Hugging Face",
        )

    def test_hugging_face_learns(self):
        torch = pytest.importorskip("torch")
        transformers = pytest.importorskip("transformers")
        tokens = torch.arange(64).reshape(4, 16) % 32
        config = transformers.GPT2Config(
            vocab_size=32, n_positions=16, n_embd=32, n_layer=1, n_head=2
        )
        names = {}
        exec(SNIPPETS["PyTorch, Lightning, Hugging Face"], names)

        def make():
            transformers.set_seed(0)
            return transformers.GPT2LMHeadModel(config)

        app = ClientApp(mods=[perturb])

        @app.train()
        def fit(message, context):
            model = make()
            names["load"](model, message.content["arrays"])
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
            for _ in range(5):
                optimizer.zero_grad()
                model(input_ids=tokens, labels=tokens).loss.backward()
                optimizer.step()
            content = {
                "arrays": names["to_record"](model),
                "metrics": MetricRecord({"num-examples": 4}),
            }
            return Message(RecordDict(content), reply_to=message)

        for strategy in (FedAvg(fraction_evaluate=0.0), SignSGD(seed=1, fraction_evaluate=0.0)):
            result = strategy.start(InProcessGrid(app, 4), names["to_record"](make()), 5)
            model = make()
            names["load"](model, result.arrays)
            assert model(input_ids=tokens, labels=tokens).loss.item() < 1.5  # 3.5 before

    def test_jax_learns(self):
        jax = pytest.importorskip("jax")

        def loss(params, x, y):
            return ((x @ params["dense"]["w"] + params["dense"]["b"] - y) ** 2).mean()

        def train(params, x, y):
            for _ in range(20):
                slope = jax.grad(loss)(params, x, y)
                params = jax.tree_util.tree_map(lambda p, g: p - 0.1 * g, params, slope)
            return params

        self.learn(
            lambda: {"dense": {"w": jax.numpy.zeros(300), "b": jax.numpy.zeros(())}},
            train,
            lambda params, x: x @ params["dense"]["w"] + params["dense"]["b"],
            "JAX",
        )

    def test_keras_learns(self):
        keras = pytest.importorskip("keras")

        def make():
            model = keras.Sequential([keras.Input((300,)), keras.layers.Dense(1)])
            model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
            return model

        self.learn(
            make,
            lambda model, x, y: model.fit(x, y, batch_size=256, epochs=20, verbose=0) and None,
            lambda model, x: model.predict(x, verbose=0),
            "TensorFlow and Keras",
        )

    def test_scikit_learn_learns(self):
        linear = pytest.importorskip("sklearn.linear_model")

        def make():
            model = linear.SGDRegressor(
                alpha=0.0,
                eta0=0.001,
                learning_rate="constant",
                max_iter=20,
                tol=None,
                warm_start=True,
            )
            model.coef_, model.intercept_ = np.zeros(300), np.zeros(1)
            return model

        self.learn(
            make,
            lambda model, x, y: model.fit(x.astype(float), y) and None,
            lambda model, x: x @ model.coef_ + model.intercept_,
            "scikit-learn",
        )
