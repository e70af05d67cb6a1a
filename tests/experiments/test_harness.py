"""The harness of the studies and what it writes: seeds, measurements, tables."""

from math import isnan

import numpy as np
import pytest
from flwr.app import Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from experiments.apps.heterogeneous.fedmedian_heterogeneous.measuring import MeteredGrid, measure
from experiments.apps.heterogeneous.fedmedian_heterogeneous.tables import make_table
from experiments.studies.harness import App, run
from fedmedian.clients import InProcessGrid
from fedmedian.strategies import Checkpoint, SignSGD

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
            assert one.seconds > 0

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
    def test_it_counts_messages_and_bytes_of_each_kind_in_both_directions(
        self, make_app, as_record
    ):
        grid = InProcessGrid(make_app(lambda model, _: (model, {"num-examples": 1})), 3)
        metered = MeteredGrid(grid)
        FedAvg().start(metered, as_record({"x": np.zeros(8)}), num_rounds=2)
        for counted in (metered.sent, metered.received):
            assert counted == {MessageType.TRAIN: 6, MessageType.EVALUATE: 6}
        assert metered.bytes_up.total() == grid.bytes_up
        assert metered.bytes_down.total() == grid.bytes_down

    def test_errors_do_not_count_as_replies(self, make_app, as_record):
        def fail_once(model, partition):
            if partition == 0:
                raise ValueError
            return model, {"num-examples": 1}

        metered = MeteredGrid(InProcessGrid(make_app(fail_once), 3))
        FedAvg(fraction_evaluate=0.0).start(metered, as_record({"x": np.zeros(8)}), num_rounds=1)
        assert metered.sent == {MessageType.TRAIN: 3}
        assert metered.received == {MessageType.TRAIN: 2}

    def test_a_run_that_a_checkpoint_has_finished_has_an_accuracy_and_no_bytes(
        self, make_app, as_record, tmp_path
    ):
        def serve(grid, tell):
            SignSGD(checkpoint=Checkpoint(tmp_path), fraction_evaluate=0.0).start(
                grid,
                as_record({"x": np.zeros(8)}),
                num_rounds=2,
                evaluate_fn=lambda server_round, _: tell(server_round, 0.5),
            )

        grid = InProcessGrid(make_app(lambda model, _: (model, {"num-examples": 1})), 3)
        whole, again = (measure("SignSGD", 1, MeteredGrid(grid), serve) for _ in range(2))
        assert whole.uplink_bytes > 0
        assert isnan(again.uplink_bytes)
        assert again.history[-1] == (2, 0.5)


class TestTable:
    def test_columns_line_up_words_to_the_left_and_numbers_to_the_right(self):
        rows = [["FedAvg", "all", "1"], ["me", "none", "-1,000"]]
        assert make_table(["who", "tries", "bytes"], rows).splitlines() == [
            "| who    | tries |  bytes |",
            "| ------ | ----- | -----: |",
            "| FedAvg | all   |      1 |",
            "| me     | none  | -1,000 |",
        ]
