"""The harness of the studies and what it writes: seeds, measurements, tables."""

from math import isnan

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from experiments.studies.harness import App, StudyGrid, run
from experiments.studies.tables import make_table
from fedmedian.strategies import SignSGD

CONFIG = {"num-clients": 3, "rounds": 2}


def noisy_step(model, partition):
    """Train by a random step, from a generator that nobody has seeded."""
    return {"x": model["x"] + np.random.default_rng().normal(size=8)}, {"num-examples": 1}


@pytest.fixture
def make_study_app(make_app, as_record):
    """Makes an app of a strategy, whose test accuracy is the model's first entry."""

    def make(strategy, client_app):
        def serve(config, grid, tell):
            def test(server_round, arrays):
                tell(server_round, float(arrays["x"].numpy()[0]))
                return MetricRecord({"tested": 1})

            strategy.start(
                grid=grid,
                initial_arrays=as_record({"x": np.zeros(8)}),
                num_rounds=config["rounds"],
                evaluate_fn=test,
            )

        return App(client_app, serve)

    return make


class TestRun:
    def test_one_run_for_each_seed_with_the_accuracy_after_each_round(
        self, make_study_app, make_app
    ):
        app = make_study_app(FedAvg(fraction_evaluate=0.0), make_app(noisy_step))
        runs = run("FedAvg", app, CONFIG, seeds=(3, 5))
        assert [(one.strategy, one.seed) for one in runs] == [("FedAvg", 3), ("FedAvg", 5)]
        for one in runs:
            assert [server_round for server_round, _ in one.history] == [0, 1, 2]
            assert one.history[0] == (0, 0.0)
            assert (one.rounds, one.accuracy) == one.history[-1]

    @pytest.mark.parametrize("strategy", [FedAvg, SignSGD])
    def test_a_seed_decides_the_run_of_an_app_and_a_strategy_without_one(
        self, make_study_app, make_app, strategy
    ):
        def accuracies(seed):
            app = make_study_app(strategy(fraction_evaluate=0.0), make_app(noisy_step))
            (one,) = run("any", app, CONFIG, seeds=(seed,))
            return one.history

        assert accuracies(1) == accuracies(1) != accuracies(2)

    def test_after_a_run_generators_without_a_seed_differ_again(self, make_study_app, make_app):
        app = make_study_app(FedAvg(fraction_evaluate=0.0), make_app(noisy_step))
        drawn = []
        for _ in range(2):
            run("FedAvg", app, CONFIG, seeds=(1,))
            drawn.append(np.random.default_rng().integers(2**63))
        assert drawn[0] != drawn[1]

    def test_a_client_that_fails_ends_the_run(self, make_study_app, make_app):
        def fail(*_):
            raise ValueError("no data here")

        app = make_study_app(FedAvg(), make_app(fail))
        with pytest.raises(RuntimeError, match=r"a client failed: .*no data here"):
            run("FedAvg", app, CONFIG, seeds=(1,))

    def test_a_client_that_says_its_training_has_diverged_does_not_end_the_run(
        self, make_study_app, make_app
    ):
        def diverge(model, partition):
            return {name: array * np.nan for name, array in model.items()}, {"num-examples": 1}

        app = make_study_app(SignSGD(fraction_evaluate=0.0), make_app(diverge))
        (one,) = run("SignSGD", app, CONFIG, seeds=(1,))
        assert one.history == [(number, one.history[0][1]) for number, _ in one.history]

    def test_what_clients_evaluate_is_weighed_by_their_examples(self, as_record):
        client_app = ClientApp()

        @client_app.evaluate()
        def evaluate(message, context):
            partition = context.node_config["partition-id"]
            metrics = MetricRecord({"accuracy": partition / 2, "num-examples": partition + 1})
            return Message(RecordDict({"metrics": metrics}), reply_to=message)

        def serve(config, grid, tell):
            initial = as_record({"x": np.zeros(8)})
            FedAvg(fraction_train=0.0, min_train_nodes=0).start(grid, initial, num_rounds=2)
            for server_round, accuracy in grid.evaluations:
                tell(server_round, accuracy)

        (one,) = run("none", App(client_app, serve), CONFIG, seeds=(1,))
        assert one.history == [(1, (0.5 * 2 + 1.0 * 3) / 6), (2, (0.5 * 2 + 1.0 * 3) / 6)]


class TestMeter:
    """Bytes of training alone count, and those of errors do not."""

    def train(self, client_app, as_record, strategy):
        grid = StudyGrid(client_app, CONFIG)
        strategy.start(grid, as_record({"x": np.zeros(8)}), num_rounds=2)
        return grid

    def test_means_are_those_of_all_messages_and_replies_of_training(self, make_app, as_record):
        metrics = {"num-examples": 1, "accuracy": 0.5}
        app = make_app(lambda model, _: (model, metrics), evaluate=lambda *_: metrics)
        grid = self.train(app, as_record, FedAvg(fraction_evaluate=0.0))
        assert grid.bytes_of_training == (grid.bytes_up / 6, grid.bytes_down / 6)
        evaluating = self.train(app, as_record, FedAvg())
        assert evaluating.bytes_of_training == pytest.approx(grid.bytes_of_training, rel=0.01)
        assert evaluating.bytes_up > 1.3 * grid.bytes_up

    def test_errors_do_not_count_as_replies(self, make_app, as_record):
        def diverge(model, partition):
            return {"x": model["x"] * (np.nan if partition else 1.0)}, {"num-examples": 1}

        one, all_of_them = (
            self.train(make_app(train), as_record, SignSGD(fraction_evaluate=0.0, seed=1))
            for train in (diverge, lambda model, _: (model, {"num-examples": 1}))
        )
        assert one.bytes_of_training == pytest.approx(all_of_them.bytes_of_training, rel=0.05)

    def test_without_training_there_is_no_mean(self, make_app):
        grid = StudyGrid(make_app(noisy_step), CONFIG)
        assert all(map(isnan, grid.bytes_of_training))


class TestTable:
    def test_columns_line_up_words_to_the_left_and_numbers_to_the_right(self):
        rows = [["FedAvg", "all", "1"], ["me", "none", "-1,000"]]
        assert make_table(["who", "tries", "bytes"], rows).splitlines() == [
            "| who    | tries |  bytes |",
            "| ------ | ----- | -----: |",
            "| FedAvg | all   |      1 |",
            "| me     | none  | -1,000 |",
        ]
