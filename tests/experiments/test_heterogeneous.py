"""The app on clients whose data differ: what it compares, measures, writes and refuses."""

import json
import sys

import numpy as np
import pytest

from experiments.apps import HETEROGENEOUS, read_command_line, read_config
from experiments.apps.heterogeneous.fedmedian_heterogeneous import server_app, task
from experiments.studies import heterogeneous
from experiments.studies.report import compare_bytes, plot_accuracy, read_runs
from experiments.studies.runs import Run
from fedmedian import Adaptive, CodedSteps, Gaussian, Laplace, TopUp
from fedmedian.strategies import MedianSGD, SignSGD

QUICK = ["rounds=2", "num-clients=3", "batch-size=512"]


def configure(*overrides):
    return read_config(HETEROGENEOUS, overrides)


class TestConfiguration:
    def test_overrides_are_written_as_for_flower(self):
        config = configure("rounds=3", "partition='dirichlet'")
        assert (config["rounds"], config["partition"], config["alpha"]) == (3, "dirichlet", 0.3)

    @pytest.mark.parametrize(
        ("override", "said"),
        {
            "round=3": "'round'",
            "partition=iid": "string",
            "rounds": "must be KEY=VALUE, got 'rounds'",
            "rounds:3": "must be KEY=VALUE, got 'rounds:3'",
            "rounds = 3": "must be KEY=VALUE, got 'rounds = 3'",
            "output='it's'": 'must be KEY=VALUE, got "s\'"',
            "rounds=1.5": "rounds must be int, as in rounds=60, got 1.5",
            "rounds='3'": "rounds must be int, as in rounds=60, got '3'",
            "seed=true": "seed must be int, as in seed=1, got True",
            "missing.toml": "No such file .* 'missing.toml'",
        }.items(),
    )
    def test_what_is_no_override_ends_the_program(self, override, said):
        with pytest.raises(SystemExit, match=said):
            configure(override)

    def test_overrides_may_be_in_one_word_or_in_a_file(self, tmp_path):
        file = tmp_path / "overrides.toml"
        file.write_text('rounds = 3\npartition = "iid"\nalpha = 1\n')
        for overrides in (["rounds=3 partition='iid'", "alpha=1"], [str(file)]):
            config = configure(*overrides)
            assert (config["rounds"], config["partition"], config["alpha"]) == (3, "iid", 1)

    def test_a_command_lists_the_keys_and_refuses_other_options(self, capsys):
        for option, status in (("--help", 0), ("--rounds=3", 2)):
            with pytest.raises(SystemExit) as ended:
                read_command_line("experiments.demos.simulation", [option])
            assert ended.value.code == status
        said = capsys.readouterr()
        assert "\n  rounds=60\n" in said.out
        assert "unrecognized arguments: --rounds=3" in said.err


class TestStrategies:
    def test_an_unknown_name_is_refused_before_anything_runs(self, compare):
        with pytest.raises(ValueError, match=r"strategy must be among .*, got 'krum'"):
            compare("strategy='fedavg,krum'", *QUICK)

    def test_each_has_its_name_in_tables(self):
        names = {
            "fedavg": "FedAvg",
            "fedmedian": "FedMedian",
            "sign-plain": "SignSGD (no noise)",
            "sign-majority": "SignSGD (majority)",
            "sign": "SignSGD",
            "sign-coded": "SignSGD (coded downlink)",
            "median-plain": "MedianSGD (no noise)",
            "median": "MedianSGD",
        }
        assert {name: server_app.make_strategy(name, configure())[0] for name in names} == names

    @pytest.mark.parametrize(
        ("name", "usual"),
        [
            ("sign", SignSGD()),
            ("sign-coded", SignSGD(downlink=CodedSteps())),
            ("median", MedianSGD()),
        ],
    )
    def test_the_noisy_ones_are_the_packages_defaults(self, name, usual):
        _, strategy = server_app.make_strategy(name, configure())
        assert type(strategy) is type(usual)
        assert strategy.recipe.noise == usual.recipe.noise
        assert strategy.recipe.learning_rate == usual.recipe.learning_rate
        assert strategy.recipe.rotation == usual.recipe.rotation
        assert strategy.recipe.downlink == usual.recipe.downlink

    @pytest.mark.parametrize(
        ("rule", "noise"),
        [
            ("top-up", Gaussian(TopUp(0.5))),
            ("rms", Gaussian(Adaptive(0.5))),
            ("max", Gaussian(Adaptive(0.5, magnitude="max"))),
            ("fixed", Gaussian(0.5)),
        ],
    )
    def test_the_noise_can_be_chosen(self, rule, noise):
        config = configure("noise-scale=0.5", f"scale-rule='{rule}'")
        assert server_app.make_noise(config) == noise

    def test_the_basis_can_be_the_parameters_own(self):
        config = configure("rotation=false", "scale-rule='rms'", "noise='laplace'")
        _, strategy = server_app.make_strategy("sign", config)
        assert strategy.recipe.rotation is None
        assert strategy.recipe.noise == Laplace(Adaptive(3.0))


class TestData:
    def split(self, *overrides):
        config = configure(*overrides)
        clients = int(config["num-clients"])
        return [task.load_partition(i, clients, config) for i in range(clients)]

    @pytest.mark.parametrize("partition", ["classes", "dirichlet", "iid"])
    def test_every_training_example_is_one_clients(self, partition):
        parts = self.split(f"partition='{partition}'")
        assert sum(len(labels) for _, labels in parts) == 1437
        assert all(len(images) == len(labels) for images, labels in parts)

    def test_ten_clients_of_one_class_each_hold_one_digit_each(self):
        held = [set(labels.tolist()) for _, labels in self.split()]
        assert sorted(held, key=min) == [{digit} for digit in range(10)]

    def test_clients_of_two_classes_hold_two_digits_each(self):
        parts = self.split("classes-per-client=2")
        assert all(len(set(labels.tolist())) == 2 for _, labels in parts)

    def test_dirichlet_clients_differ_and_iid_clients_do_not(self):
        def spread(parts):
            shares = [np.bincount(labels, minlength=10) / len(labels) for _, labels in parts]
            return np.std(shares, axis=0).mean()

        assert spread(self.split("partition='dirichlet'")) > 3 * spread(
            self.split("partition='iid'")
        )

    def test_a_seed_decides_the_split(self):
        first, again, other = (
            self.split("partition='dirichlet'", f"seed={seed}") for seed in (1, 1, 2)
        )
        sizes = [[len(labels) for _, labels in parts] for parts in (first, again, other)]
        assert sizes[0] == sizes[1] != sizes[2]

    def test_the_test_set_is_nobodys(self):
        images, labels = task.load_test_set()
        assert len(images) == len(labels) == 360

    def test_an_unknown_split_is_refused(self):
        with pytest.raises(ValueError, match="partition must be"):
            self.split("partition='alphabet'")

    def test_the_network_has_at_least_a_hundred_thousand_parameters(self):
        assert sum(p.numel() for p in task.make_network().parameters()) >= 100_000


class TestComparison:
    def test_it_measures_every_strategy_from_the_same_start(self, compare):
        runs = compare(*QUICK)
        assert list(runs) == [
            *("FedAvg", "FedMedian", "SignSGD (no noise)", "SignSGD"),
            *("SignSGD (coded downlink)", "MedianSGD"),
        ]
        for run in runs.values():
            assert [server_round for server_round, _ in run.history] == [0, 1, 2]
            assert all(0 <= accuracy <= 1 for _, accuracy in run.history)
        assert len({run.history[0] for run in runs.values()}) == 1
        size = sum(p.numel() for p in task.make_network().parameters())
        assert 4 * size < runs["FedAvg"].uplink_bytes < 4 * size + 5000
        assert size / 8 < runs["SignSGD"].uplink_bytes < size / 8 + 5000
        for name in ("FedAvg", "SignSGD", "MedianSGD"):
            assert 4 * size < runs[name].downlink_bytes < 4 * size + 5000
        whole_then_steps = (4 * size + size / 8) / 2
        coded = runs["SignSGD (coded downlink)"].downlink_bytes
        assert whole_then_steps < coded < whole_then_steps + 5000

    def test_the_same_seed_gives_the_same_runs(self, compare):
        once, twice = ({name: run.history for name, run in compare(*QUICK).items()} for _ in "12")
        assert once == twice

    def test_the_command_prints_a_table_and_writes_a_report(self, tmp_path, monkeypatch, capsys):
        options = ["strategy='fedavg,sign'", f"output='{tmp_path / 'out'}'"]
        monkeypatch.setattr(sys, "argv", ["heterogeneous", *QUICK, *options])
        heterogeneous.main()
        runs = read_runs(tmp_path / "out")
        assert [run.strategy for run in runs] == ["FedAvg", "SignSGD"]
        assert compare_bytes(runs) in capsys.readouterr().out
        assert json.loads((tmp_path / "out" / "results.json").read_text())["config"]["rounds"] == 2
        assert (tmp_path / "out" / "accuracy.png").read_bytes().startswith(b"\x89PNG")

    def test_a_run_that_a_checkpoint_has_finished_has_an_accuracy_and_no_bytes(
        self, compare, tmp_path
    ):
        stored = ("strategy='sign'", f"checkpoint='{tmp_path}'", *QUICK)
        (whole,), (again,) = (compare(*stored).values() for _ in "12")
        assert whole.uplink_bytes > 0
        assert np.isnan(again.uplink_bytes)
        assert again.history[-1] == whole.history[-1]


class TestReport:
    RUNS = (
        Run("FedAvg", 1, [(0, 0.1), (1, 0.5), (2, 0.9)], 400_000.0, 400_000.0),
        Run("SignSGD", 1, [(0, 0.1), (1, 0.4), (2, 0.8)], 10_000.0, 30_000.0),
    )

    def test_the_table_compares_bytes_with_fedavgs_if_it_is_there(self):
        def cells(runs):
            _, _, *rows = compare_bytes(runs).splitlines()
            return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]

        sign = ["SignSGD", "0.800", "2", "10,000", "30,000"]
        fedavg = ["FedAvg", "0.900", "2", "400,000", "400,000", "1.0", "1.0"]
        assert cells(self.RUNS) == [fedavg, [*sign, "40.0", "20.0"]]
        assert cells(self.RUNS[1:]) == [[*sign, "", ""]]

    def test_the_figure_has_labeled_axes_and_one_curve_for_each_strategy(self):
        figure = plot_accuracy(self.RUNS, "Digits")
        (axes,) = figure.axes
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("round", "test accuracy")
        drawn = [list(zip(*line.get_data(), strict=True)) for line in axes.lines]
        assert drawn == [run.history for run in self.RUNS]
        (legend,) = figure.legends
        texts = [text.get_text() for text in legend.get_texts()]
        assert texts == ["FedAvg: 0.90", "SignSGD: 0.80"]
