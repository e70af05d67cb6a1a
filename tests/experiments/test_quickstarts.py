"""Two changed lines make apps as Flower's quickstarts are use fedmedian."""

import re
import sys

import numpy as np
import pytest

from experiments.quickstarts import comparison
from experiments.quickstarts.__main__ import main
from experiments.quickstarts.comparison import APPS, Outcomes, Pair, compare, make_table
from experiments.quickstarts.plugging import REPLACEMENTS, PlugInError, plug_in
from experiments.quickstarts.running import NUM_CLIENTS, Outcome, loaded, run
from fedmedian.clients import perturb
from fedmedian.strategies import SignSGD

APP_NAMES = [app.name for app in APPS]

SERVER = """from flwr.serverapp.strategy import FedAvg

strategy = FedAvg(fraction_train=0.5)
"""
CLIENT = """from flwr.clientapp import ClientApp

app = ClientApp()
"""
PROJECT = """[tool.flwr.app.components]
serverapp = "some_app.server_app:strategy"
clientapp = "some_app.client_app:app"

[tool.flwr.app.config]
num-server-rounds = 3
"""


@pytest.fixture
def write_app(tmp_path):
    """Writes the least of an app that can be changed and loaded."""

    def write(server=SERVER, client=CLIENT):
        package = tmp_path / "app" / "some_app"
        package.mkdir(parents=True)
        (package / "server_app.py").write_text(server)
        (package / "client_app.py").write_text(client)
        (tmp_path / "app" / "pyproject.toml").write_text(PROJECT)
        return tmp_path / "app"

    return write


def sources(app):
    return {path.name: path.read_text() for path in app.rglob("*.py")}


class TestTheChange:
    def test_it_is_the_one_that_the_readme_shows(self, root, write_app, tmp_path):
        (diff,) = re.findall(r"```diff\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)
        server, client = re.split(r"^ # \w+\.py\n", diff, flags=re.MULTILINE)[1:]

        def lines(part, sign):
            return [line[1:].strip() for line in part.splitlines() if line.startswith(sign)]

        plug_in(write_app(), tmp_path / "changed")
        for part, name in ((server, "server_app.py"), (client, "client_app.py")):
            before, after = sources(tmp_path / "app")[name], sources(tmp_path / "changed")[name]
            assert set(lines(part, "-")) == set(before.splitlines()) - set(after.splitlines())
            assert set(lines(part, "+")) == set(after.splitlines()) - set(before.splitlines())

    @pytest.mark.parametrize("app", APPS, ids=APP_NAMES)
    def test_nothing_else_of_an_app_changes(self, app, tmp_path):
        plug_in(app, tmp_path / "changed")
        before, after = sources(app), sources(tmp_path / "changed")
        added = {
            name: len(set(after[name].splitlines()) - set(before[name].splitlines()))
            for name in before
        }
        assert added == {"__init__.py": 0, "client_app.py": 2, "server_app.py": 2, "task.py": 0}

    @pytest.mark.parametrize("app", APPS, ids=APP_NAMES)
    def test_before_it_an_app_knows_nothing_of_fedmedian(self, app):
        texts = [*sources(app).values(), (app / "pyproject.toml").read_text()]
        assert not any("fedmedian" in text for text in texts)

    def test_what_the_app_gives_fedavg_is_kept(self, write_app, tmp_path):
        plug_in(write_app(), tmp_path / "changed")
        names = {}
        exec(sources(tmp_path / "changed")["server_app.py"], names)
        assert isinstance(names["strategy"], SignSGD)
        assert names["strategy"].fraction_train == 0.5

    @pytest.mark.parametrize(
        ("file", "old"), [(file, old) for file in REPLACEMENTS for old, _ in REPLACEMENTS[file]]
    )
    @pytest.mark.parametrize("times", [0, 2])
    def test_a_line_that_is_not_there_once_is_named(self, write_app, tmp_path, file, old, times):
        texts = {"server_app.py": SERVER, "client_app.py": CLIENT}
        texts[file] = texts[file].replace(old, old * times)
        app = write_app(texts["server_app.py"], texts["client_app.py"])
        expected = f"app/{file} has {old.strip()!r} {times} times, must have it once"
        with pytest.raises(PlugInError, match=re.escape(expected)):
            plug_in(app, tmp_path / "changed")

    def test_a_file_that_is_not_there_is_named(self, write_app, tmp_path):
        app = write_app()
        (app / "some_app" / "client_app.py").unlink()
        with pytest.raises(PlugInError, match=r"app has 0 files called client_app\.py, must have"):
            plug_in(app, tmp_path / "changed")


class TestLoading:
    def test_an_app_and_its_copy_can_be_loaded_one_after_the_other(self, write_app, tmp_path):
        app, copy = write_app(), tmp_path / "changed"
        plug_in(app, copy)
        mods = []
        for folder in (app, copy):
            with loaded(folder) as found:
                mods.append(found.client_app._mods)
                assert found.run_config == {"num-server-rounds": 3}
                assert sys.modules["some_app.client_app"].__file__.startswith(str(folder))
        assert mods == [[], [perturb]]
        assert not [name for name in sys.modules if name.startswith("some_app")]
        assert not {str(app), str(copy)} & set(sys.path)

    def test_a_client_that_fails_ends_the_run(self, monkeypatch):
        def fail(*_):
            raise ValueError("no data here")

        (app,) = (folder for folder in APPS if folder.name == "quickstart-numpy")
        with loaded(app) as loaded_app:
            monkeypatch.setattr(sys.modules["quickstart_numpy.client_app"], "load_data", fail)
            with pytest.raises(RuntimeError, match=r"a client failed: .*no data here"):
                run(loaded_app, seed=0)


def test_the_table_holds_the_means_over_repetitions(as_record):
    model = as_record({"w": np.zeros((50, 30), np.float32), "bn.running_mean": np.zeros(30)})
    fedavg = Outcomes([Outcome(model, 0.90, 6000.0), Outcome(model, 0.94, 6200.0)])
    sign = Outcomes([Outcome(model, 0.89, 200.0), Outcome(model, 0.91, 300.0)])
    table = make_table([Pair("some-app", 7, fedavg, sign)])
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells == ["some-app", "1,500", "7", "0.920", "0.900", "6,100", "250", "24.4"]


@pytest.fixture(scope="module", params=APPS, ids=APP_NAMES)
def pair(request):
    """Three runs of an app as it stands, and three with the change."""
    return compare(request.param, repetitions=3)


@pytest.mark.slow
class TestTraining:
    def test_the_app_learns_as_well_as_with_fedavg(self, pair):
        assert pair.fedavg.accuracy > 0.93
        assert pair.sign.accuracy > pair.fedavg.accuracy - 0.03

    def test_a_training_reply_is_a_twentieth_of_fedavgs(self, pair):
        assert pair.ratio > 20

    def test_arrays_keep_their_names_shapes_and_precision(self, pair):
        # FedAvg turns counters into floating-point numbers.
        fedavg, sign = (
            {
                name: (array.shape, array.dtype)
                for name, array in outcomes.runs[0].arrays.items()
                if not name.endswith("num_batches_tracked")
            }
            for outcomes in (pair.fedavg, pair.sign)
        )
        assert sign == fedavg


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What the last round's clients trained, their examples, and the server's model."""
    (app,) = (folder for folder in APPS if folder.name == "quickstart-torch")
    changed = tmp_path_factory.mktemp("changed") / app.name
    plug_in(app, changed)
    states, examples = [], []
    with loaded(changed) as loaded_app:
        client_app = sys.modules["quickstart_torch.client_app"]
        train = client_app.train_fn

        def watched(model, loader, *rest):
            loss = train(model, loader, *rest)
            states.append({k: v.numpy().copy() for k, v in model.state_dict().items()})
            examples.append(len(loader.dataset))
            return loss

        client_app.train_fn = watched
        loaded_app.run_config["num-server-rounds"] = 2
        outcome = run(loaded_app, seed=0)
    model = {name: array.numpy() for name, array in outcome.arrays.items()}
    return states[-NUM_CLIENTS:], examples[-NUM_CLIENTS:], model


@pytest.mark.slow
class TestBatchNorm:
    @pytest.mark.parametrize("layer", ["bn1", "bn2"])
    @pytest.mark.parametrize("statistic", ["running_mean", "running_var"])
    def test_running_statistics_are_the_clients_mean(self, trained, layer, statistic):
        states, examples, model = trained
        name = f"{layer}.{statistic}"
        mean = np.average([state[name] for state in states], axis=0, weights=examples)
        assert np.ptp([state[name] for state in states], axis=0).min() > 1e-3
        np.testing.assert_allclose(model[name], mean, rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize("layer", ["bn1", "bn2"])
    def test_counters_stay_whole_and_are_the_clients_mean(self, trained, layer):
        states, examples, model = trained
        name = f"{layer}.num_batches_tracked"
        mean = np.average([state[name] for state in states], weights=examples)
        assert model[name].dtype == np.int64
        assert model[name] == np.rint(mean)


@pytest.mark.slow
def test_the_command_prints_a_line_for_each_app(monkeypatch, capsys):
    (numpy_app,) = (folder for folder in APPS if folder.name == "quickstart-numpy")
    monkeypatch.setattr(comparison, "APPS", (numpy_app,))
    monkeypatch.setattr(sys, "argv", ["quickstarts"])
    main()
    assert re.search(r"quickstart-numpy │\s+50,890 │", capsys.readouterr().out)


@pytest.mark.parametrize("repetitions", ["0", "-1", "many"])
def test_a_wrong_number_of_repetitions_is_refused(monkeypatch, capsys, repetitions):
    monkeypatch.setattr(sys, "argv", ["quickstarts", repetitions])
    with pytest.raises(SystemExit):
        main()
    assert repetitions in capsys.readouterr().err
