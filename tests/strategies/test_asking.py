"""Whom a run has asked is what was sent: runs that ask nobody, and runs that others drive."""

import numpy as np
import pytest
from flwr.app import ConfigRecord

from fedmedian import Momentum
from fedmedian.clients import InProcessGrid
from fedmedian.strategies import Checkpoint, MedianSGD, RunFailedError, SignSGD
from tests.tools.wrapped import Wrapped

MODEL = {"0": np.zeros((4, 5), np.float32), "1": np.linspace(0, 1, 3, dtype=np.float32)}
NUM_CLIENTS = 4


def train(model, partition):
    trained = {name: array + np.float32(1 + partition) for name, array in model.items()}
    return trained, {"num-examples": 1, "loss": 1.0 * partition}


def asking_no_one(base, before=0, *, after_drawing):
    """A class of strategy that asks nobody once some rounds are over, drawn or not."""

    class Stopping(base):
        def configure_train(self, server_round, *rest):
            if server_round <= before:
                return super().configure_train(server_round, *rest)
            if after_drawing:
                super().configure_train(server_round, *rest)
            return []

    return Stopping


@pytest.fixture
def play(run):
    def play(strategy, num_rounds=3, **options):
        return run(strategy, train, MODEL, NUM_CLIENTS, num_rounds, **options)

    return play


class TestNobody:
    """A run in which nobody is ever asked has failed, and others have not."""

    @pytest.mark.parametrize("fraction_evaluate", [0.0, 1.0])
    def test_a_run_whose_fraction_draws_nobody_fails_and_says_which_arguments_do(
        self, api, play, bits, fraction_evaluate
    ):
        options = {"fraction_train": 0.1, "min_train_nodes": 0}
        strategy = api.make("SignSGD", **options, fraction_evaluate=fraction_evaluate)
        with pytest.raises(RunFailedError, match=r"no client was asked to train in 3 ro") as failed:
            play(strategy)
        own = "fraction_fit=0.1" if api.name == "older API" else "fraction_train=0.1"
        assert own in str(failed.value)
        assert bits(failed.value.arrays) == bits(MODEL)

    @pytest.mark.parametrize("base", [SignSGD, MedianSGD])
    @pytest.mark.parametrize("after_drawing", [False, True])
    def test_a_run_whose_subclass_sends_nothing_fails(self, base, after_drawing, play):
        with pytest.raises(RunFailedError, match="configure_train must return messages"):
            play(asking_no_one(base, after_drawing=after_drawing)(), 5)

    def test_a_run_that_neither_trains_nor_evaluates_fails(self, message_api, play):
        with pytest.raises(RunFailedError, match="no client was asked to do anything"):
            play(message_api.make("SignSGD", fraction_train=0.0, fraction_evaluate=0.0))

    def test_a_run_that_is_to_evaluate_only_ends_well(self, message_api, play):
        outcome = play(message_api.make("SignSGD", fraction_train=0.0))
        assert list(outcome.evaluations) == [1, 2, 3]

    @pytest.mark.parametrize("base", [SignSGD, MedianSGD])
    @pytest.mark.parametrize("after_drawing", [False, True])
    def test_rounds_that_ask_nobody_after_others_have_asked_are_no_failure(
        self, base, after_drawing, play, bits, warnings
    ):
        strategy = asking_no_one(base, 2, after_drawing=after_drawing)(seed=1)
        outcome = play(strategy, 9)
        assert list(outcome.reports) == [1, 2]
        assert bits(outcome.model) == bits(play(base(seed=1), 2).model)
        assert not warnings("aggregate_train: no reply")

    def test_a_run_all_of_whose_rounds_are_stored_is_no_failure(self, message_api, play, tmp_path):
        for _ in range(2):
            outcome = play(message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path)))
        assert list(outcome.reports) == [1, 2, 3]

    def test_a_run_that_resumes_to_ask_nobody_any_more_is_no_failure(self, play, tmp_path):
        for num_rounds in (2, 5):
            strategy = asking_no_one(SignSGD, 2, after_drawing=False)
            outcome = play(strategy(seed=1, checkpoint=Checkpoint(tmp_path)), num_rounds)
            assert list(outcome.reports) == [1, 2]

    def test_a_strategy_that_has_failed_so_can_be_started_again(self, message_api, play):
        strategy = asking_no_one(SignSGD, after_drawing=False)()
        for _ in range(2):
            with pytest.raises(RunFailedError, match="no client was asked"):
                play(strategy, 1)

    def test_messages_that_a_subclass_keeps_back_are_not_missed(self, run, warnings):
        class Half(SignSGD):
            def configure_train(self, *arguments):
                return super().configure_train(*arguments)[::2]

        outcome = run(Half(), train, MODEL, NUM_CLIENTS)
        counts = [outcome.reports[1][f"replies-{what}"] for what in ("accepted", "missing")]
        assert counts == [2, 0]
        assert not warnings("aggregate_train: no reply")


def test_with_a_seed_those_that_train_are_not_always_those_that_evaluate(api, run):
    """Or clients would report a model that has just been fitted to their data."""
    trained, evaluated = [], []

    def count(model, partition):
        trained.append(partition)
        return train(model, partition)

    def evaluate(model, partition):
        evaluated.append(partition)
        return {"num-examples": 1, "loss": 1.0}

    strategy = api.make("MedianSGD", fraction_train=0.5, fraction_evaluate=0.5, seed=1)
    run(strategy, count, MODEL, NUM_CLIENTS, 8, evaluate=evaluate)
    rounds = [[{*nodes[at : at + 2]} for at in range(0, 16, 2)] for nodes in (trained, evaluated)]
    assert 0 < sum(map(set.__eq__, *rounds)) < 8


def test_replies_of_a_round_that_was_not_configured_end_the_run(api, run):
    hook = "configure_train" if api.name == "Message API" else "configure_fit"

    def configure(self, server_round, *rest, **more):
        if server_round != 2:
            self.asked = getattr(super(Half, self), hook)(server_round, *rest, **more)
        return self.asked

    Half = type("Half", (type(api.make("SignSGD")),), {hook: configure})
    with pytest.raises(RuntimeError, match=rf"of round 2 were aggregated before .*{hook} must"):
        run(api.make_own(Half), train, MODEL, NUM_CLIENTS, 3)


def test_a_run_that_was_interrupted_leaves_nothing_to_the_next(
    message_api, make_app, as_record, as_arrays, bits
):
    class Interrupted(SignSGD):
        is_first = True

        def configure_train(self, *arguments):
            messages = super().configure_train(*arguments)
            kind = messages[0].metadata.message_type
            nodes = [message.metadata.dst_node_id for message in messages]
            return self._construct_messages(messages[0].content, nodes, kind)

        def aggregate_train(self, *arguments):
            if self.is_first:
                self.is_first = False
                raise KeyboardInterrupt
            return super().aggregate_train(*arguments)

    strategy, grid = Interrupted(seed=1), InProcessGrid(make_app(train), NUM_CLIENTS)
    far = {name: array + 100 for name, array in MODEL.items()}
    with pytest.raises(KeyboardInterrupt):
        strategy.start(grid, as_record(far), 1)
    model = as_arrays(strategy.start(grid, as_record(MODEL), 2).arrays)
    grid = InProcessGrid(make_app(train), NUM_CLIENTS)
    assert bits(model) == bits(as_arrays(SignSGD(seed=1).start(grid, as_record(MODEL), 2).arrays))


class Driver(Wrapped):
    """Counts the messages of each round."""

    def __init__(self, inner):
        super().__init__(inner)
        self.asked = []

    def configure_train(self, *args):
        messages = list(super().configure_train(*args))
        self.asked.append(len(messages))
        return messages


class TestDrivenByAnother:
    """A checkpoint is read whoever drives the rounds, and never overwritten by another run."""

    @pytest.fixture
    def drive(self, make_app, as_record, as_arrays):
        def drive(strategy, num_rounds, model=MODEL):
            driver = Driver(strategy)
            grid = InProcessGrid(make_app(train), NUM_CLIENTS)
            result = driver.start(grid, as_record(model), num_rounds)
            return driver.asked, as_arrays(result.arrays), result

        return drive

    def test_a_run_in_a_wrapper_resumes_and_ends_as_if_nothing_had_happened(
        self, message_api, drive, bits, tmp_path
    ):
        def make(**options):
            return message_api.make("SignSGD", **options)

        _, whole, reported = drive(make(), 5)
        drive(make(checkpoint=Checkpoint(tmp_path, every=2)), 3)
        asked, resumed, result = drive(make(checkpoint=Checkpoint(tmp_path, every=2)), 5)
        assert asked == [0, 0] + [NUM_CLIENTS] * 3
        assert bits(resumed) == bits(whole)
        assert result.train_metrics_clientapp == reported.train_metrics_clientapp

    def test_one_strategy_in_a_wrapper_resumes_in_its_second_run(
        self, message_api, drive, tmp_path
    ):
        strategy = message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path))
        assert drive(strategy, 2)[0] == [NUM_CLIENTS] * 2
        assert drive(strategy, 3)[0] == [0, 0, NUM_CLIENTS]

    def test_a_run_of_one_round_leaves_nothing_to_the_next(self, message_api, drive, bits):
        def make():
            return message_api.make("SignSGD", optimizer=Momentum(0.9))

        strategy, other = make(), {name: array + 1 for name, array in MODEL.items()}
        drive(strategy, 1, other)
        assert bits(drive(strategy, 2)[1]) == bits(drive(make(), 2)[1])

    def test_rounds_may_begin_at_0(self, message_api, make_app, as_record):
        strategy = message_api.make("SignSGD")
        grid = InProcessGrid(make_app(train), NUM_CLIENTS)
        for number in range(3):
            asked = strategy.configure_train(number, as_record(MODEL), ConfigRecord(), grid)
            model, report = strategy.aggregate_train(number, grid.send_and_receive(asked))
            assert model is not None
            assert report["replies-accepted"] == NUM_CLIENTS

    def test_late_plain_weights_do_not_take_the_place_of_those_of_the_round(
        self, message_api, make_app, as_record
    ):
        strategy = message_api.make("MedianSGD", noise=None, rotation=None)
        grid, late = InProcessGrid(make_app(train, mods=[]), NUM_CLIENTS), []
        for number in (1, 2):
            asked = strategy.configure_train(number, as_record(MODEL), ConfigRecord(), grid)
            replies = [*late, *grid.send_and_receive(asked)]
            late = replies[:2]
            _, report = strategy.aggregate_train(number, replies)
        counts = [report[f"replies-{what}"] for what in ("accepted", "rejected", "missing")]
        assert counts == [NUM_CLIENTS, 2, 0]

    @pytest.mark.parametrize("first", [1, 2, 4])
    def test_rounds_that_do_not_take_the_stored_model_over_are_refused(
        self, message_api, drive, make_app, as_record, first, tmp_path
    ):
        """A loop of somebody's own that hears no replies where it has sent no messages."""
        drive(message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), 3)
        strategy = message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path))
        grid = InProcessGrid(make_app(train), NUM_CLIENTS)
        for number in range(first, 4):
            assert strategy.configure_train(number, as_record(MODEL), {}, grid) == []
        with pytest.raises(RuntimeError, match=r"the model of round 3 in .* was not loaded"):
            strategy.configure_train(4, as_record(MODEL), {}, grid)

    def test_a_wrapper_of_the_older_api_that_has_its_own_model_is_refused(
        self, older_api, run, tmp_path
    ):
        class Own(type(older_api.make("SignSGD"))):
            def initialize_parameters(self, client_manager):
                return self.initial_parameters

        run(Own(seed=1, checkpoint=Checkpoint(tmp_path)), train, MODEL, NUM_CLIENTS, 2)
        with pytest.raises(RuntimeError, match=r"the model of round 2 in .* was not loaded"):
            run(Own(seed=1, checkpoint=Checkpoint(tmp_path)), train, MODEL, NUM_CLIENTS, 3)

    @pytest.mark.parametrize("change", [{"seed": 2}, {"learning_rate": 0.5}], ids=str)
    def test_another_run_in_a_wrapper_is_refused_before_anything_is_sent(
        self, message_api, drive, change, tmp_path
    ):
        drive(message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), 2)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
        with pytest.raises(ValueError, match="is of a run with"):
            drive(message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path), **change), 4)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")} == before
