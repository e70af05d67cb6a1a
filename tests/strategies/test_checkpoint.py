"""Runs that go on where they were killed."""

import hashlib
import inspect
import io
import json
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from errno import EACCES, EIO, ENOSPC, EPERM
from functools import partial
from itertools import pairwise
from math import inf, nan
from threading import Thread
from typing import ClassVar

import numpy as np
import pytest
from flwr.app import MetricRecord
from flwr.server import SimpleClientManager

from fedmedian import (
    Adam,
    Adaptive,
    Clip,
    Cosine,
    Gaussian,
    Logistic,
    Majority,
    Momentum,
    Rotation,
    SmoothedMedian,
)
from fedmedian.clients import InProcessGrid
from fedmedian.privacy.accounting import Draw
from fedmedian.records import arrays_to_parameters, parameters_to_arrays, to_arrays, to_record
from fedmedian.rounds import checkpoint as checkpoints
from fedmedian.rounds.checkpoint import Saved
from fedmedian.rounds.journal import identity_of
from fedmedian.rounds.watch import RunFailedError
from fedmedian.strategies import Checkpoint, MedianSGD, SignSGD, legacy
from tests.tools.apis import each_case
from tests.tools.wrapped import Wrapped

NUM_CLIENTS = 3
MODEL = {  # the older API knows arrays by their positions
    "0": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "1": np.zeros(2, np.float32),
    "2": np.array(0),
}
TARGETS = np.random.default_rng(0).standard_normal((NUM_CLIENTS, 3, 4)).astype(np.float32)


def train(model, partition):
    return {
        "0": model["0"] - np.float32(0.3) * (model["0"] - TARGETS[partition]),
        "1": model["1"] + np.float32(partition),
        "2": model["2"] + 1,
    }, {"num-examples": partition + 1, "train-loss": float(abs(model["0"]).mean())}


class Tensor:
    """A number as TensorFlow's: an array without `tolist`."""

    shape = ()

    def __array__(self, dtype=None, copy=None):
        return np.array(0.5, np.float32)


class Killed(BaseException):
    """Stands for the end of the process."""


def kill(strategy, in_round):
    """Let a strategy's process end between a round's training and its evaluation."""
    configure_evaluate = strategy.configure_evaluate

    def configure(server_round, *arguments, **named):
        if server_round == in_round:
            raise Killed
        return configure_evaluate(server_round, *arguments, **named)

    strategy.configure_evaluate = configure
    return strategy


@pytest.fixture
def play(run):
    """Runs a strategy on this file's clients and model."""

    def play(strategy, num_rounds, **options):
        return run(strategy, train, MODEL, NUM_CLIENTS, num_rounds, **options)

    return play


CASES = {
    "counts with Adam": ("SignSGD", {"optimizer": Adam(), "learning_rate": 0.1}),
    "half of the clients": (
        "SignSGD",
        {
            "noise": Gaussian(0.5),
            "aggregator": Majority(),
            "learning_rate": 0.1,
            "fraction_train": 0.5,
        },
    ),
    "median with momentum": ("MedianSGD", {"optimizer": Momentum(0.9)}),
    "median with noise at the server": ("MedianSGD", {"noise_at": "server"}),
}


@each_case(
    ("every", "make", "options"),
    {f"{every}-{name}": (every, *case) for every in (1, 3) for name, case in CASES.items()},
    older=("1-half of the clients", "3-counts with Adam"),
)
def test_a_run_that_resumes_ends_as_if_nothing_had_happened(
    every, make, options, api, play, bits, tmp_path
):
    checkpoint = Checkpoint(tmp_path, every)
    whole = play(api.make(make, **options), 6)
    with pytest.raises(Killed):
        play(kill(api.make(make, checkpoint=checkpoint, **options), 4), 6)
    resumed = play(api.make(make, checkpoint=checkpoint, **options), 6)
    assert bits(resumed.model) == bits(whole.model)
    # The older API's History has only the rounds that were run.
    stored = 4 if every == 1 else 3
    first = 1 if api.name == "Message API" else stored + 1
    for number in range(first, 7):
        assert resumed.reports[number] == whole.reports[number]
        assert resumed.evaluations[number] == whole.evaluations[number]


@pytest.mark.parametrize("in_round", [1, 4])
def test_a_run_that_was_killed_in_the_second_training_of_a_round_repeats_the_round(
    in_round, message_api, play, bits, tmp_path
):
    class TwoPasses(message_api.module.SignSGD):
        killed_in = 0

        def configure_train(self, server_round, arrays, config, grid):
            self.asking = arrays, config, grid
            return super().configure_train(server_round, arrays, config, grid)

        def aggregate_train(self, server_round, replies):
            trained = super().aggregate_train(server_round, replies)
            asked = super().configure_train(server_round, trained[0], *self.asking[1:])
            if not (asked := [*asked]):  # the checkpoint holds the round
                return trained
            if server_round == self.killed_in:
                raise Killed
            return super().aggregate_train(server_round, self.asking[2].send_and_receive(asked))

    def make(checkpoint=None):
        return message_api.make_own(TwoPasses, optimizer=Momentum(0.5), checkpoint=checkpoint)

    whole = play(make(), 6)
    killed = make(Checkpoint(tmp_path))
    killed.killed_in = in_round
    with pytest.raises(Killed):
        play(killed, 6)
    resumed = play(make(Checkpoint(tmp_path)), 6)
    assert bits(resumed.model) == bits(whole.model)
    assert resumed.reports == whole.reports
    assert names_in(tmp_path) == ["round-000005", "round-000006"]


def test_a_round_whose_second_training_fails_is_stored(message_api, play, tmp_path):
    class FailsAgain(message_api.module.SignSGD):
        def configure_train(self, server_round, arrays, config, grid):
            self.asking = config, grid
            return super().configure_train(server_round, arrays, config, grid)

        def aggregate_train(self, server_round, replies):
            trained = super().aggregate_train(server_round, replies)
            asked = super().configure_train(server_round, trained[0], *self.asking)
            again = super().aggregate_train(server_round, self.asking[1].send_and_receive(asked))
            assert again == (None, None)
            if server_round == 3:
                raise Killed  # or the end of the run would store it
            return trained

    def refuse_every_second(cohort):
        cohorts.append(cohort)
        refused = () if len(cohorts) % 2 else range(len(cohort.replies))
        return dict.fromkeys(refused, "refused by the test")

    cohorts = []
    strategy = message_api.make_own(
        FailsAgain, checkpoint=Checkpoint(tmp_path), cohort_rules=[refuse_every_second]
    )
    with pytest.raises(Killed):
        play(strategy, 6)
    assert "round-000003" in names_in(tmp_path)


def test_a_round_that_is_asked_about_again_but_not_trained_is_stored(message_api, play, tmp_path):
    class AsksAgain(message_api.module.SignSGD):
        def configure_train(self, server_round, arrays, config, grid):
            self.asking = arrays, config, grid
            return super().configure_train(server_round, arrays, config, grid)

        def aggregate_train(self, server_round, replies):
            trained = super().aggregate_train(server_round, replies)
            super().configure_train(server_round, trained[0], *self.asking[1:])
            return trained

    play(message_api.make_own(AsksAgain, checkpoint=Checkpoint(tmp_path)), 3)
    assert Checkpoint(tmp_path).load().server_round == 3


def test_what_is_stored_is_not_computed_again(api, run, tmp_path):
    def start(num_rounds, killed_in=None):
        trained, evaluated = [], []

        def count(model, partition):
            trained.append(partition)
            return train(model, partition)

        def evaluate(model, partition):
            evaluated.append(partition)
            return {"num-examples": 1, "loss": 0.0}

        strategy = kill(api.make("SignSGD", checkpoint=Checkpoint(tmp_path, every=2)), killed_in)
        outcome = run(strategy, count, MODEL, NUM_CLIENTS, num_rounds, evaluate=evaluate)
        return len(trained), len(evaluated), len(outcome.path)

    with pytest.raises(Killed):
        start(8, killed_in=5)
    # The round of the checkpoint is evaluated anew: the process may have ended before.
    rounds = len([4, 5, 6, 7, 8])
    assert start(8) == ((rounds - 1) * NUM_CLIENTS, rounds * NUM_CLIENTS, rounds)


def test_metrics_of_the_servers_own_evaluation_are_stored_too(
    message_api, make_app, as_record, tmp_path
):
    def start(num_rounds):
        strategy = message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path))
        result = strategy.start(
            InProcessGrid(make_app(train), NUM_CLIENTS),
            as_record(MODEL),
            num_rounds,
            evaluate_fn=lambda n, arrays: MetricRecord({"sum": float(arrays["0"].numpy().sum())}),
        )
        return result.evaluate_metrics_serverapp

    first, resumed = start(2), start(4)
    assert sorted(resumed) == [0, 1, 2, 3, 4]
    assert [resumed[number] for number in sorted(first)] == list(first.values())


def test_they_may_be_any_mapping(message_api, make_app, as_record, tmp_path):
    def start(num_rounds):
        strategy = message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path))
        return strategy.start(
            InProcessGrid(make_app(train), NUM_CLIENTS),
            as_record(MODEL),
            num_rounds,
            evaluate_fn=lambda n, arrays: {"half": np.float32(n / 2), "even": n % 2 == 0, "x": "y"},
        ).evaluate_metrics_serverapp

    start(2)
    assert start(4) == {n: {"half": n / 2, "even": n % 2 == 0, "x": "y"} for n in range(5)}


def test_arrays_among_them_are_lists_after_the_run_resumes(
    message_api, make_app, as_record, tmp_path
):
    recalls = np.arange(3000.0)  # too many for their text to name them all

    def start(num_rounds):
        return message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path)).start(
            InProcessGrid(make_app(train), NUM_CLIENTS),
            as_record(MODEL),
            num_rounds,
            evaluate_fn=lambda n, arrays: {"recalls": recalls, "by pair": np.eye(2)},
        )

    start(1)
    resumed = start(2).evaluate_metrics_serverapp
    assert resumed[0] == {"recalls": recalls.tolist(), "by pair": [[1, 0], [0, 1]]}


@pytest.mark.parametrize(
    "returned",
    [
        lambda number: (np.float32(number), {"loss": 2.5, "more": np.float32(number)}),
        lambda number: (np.array(2.5), {np.int64(3): np.array(number), ("a", 4): [0.5]}),
    ],
    ids=["numbers by names", "arrays by numbers"],
)
def test_in_the_older_api_a_subclass_finds_an_evaluation_of_the_server_in_each_round(
    returned, older_api, play, tmp_path
):
    """As Flower's tutorial, which takes what `super().evaluate` returns apart."""

    def evaluate(number, arrays, config):
        called.append(number)
        return returned(number)

    class Unpacking(legacy.SignSGD):
        def evaluate(self, server_round, parameters):
            self.evaluate_fn = evaluate
            loss, metrics = super().evaluate(server_round, parameters)
            found[server_round] = loss, metrics
            return loss, metrics

    for num_rounds in (2, 4):
        called, found = [], {}
        play(older_api.make_own(Unpacking, checkpoint=Checkpoint(tmp_path)), num_rounds)
        assert found == {number: returned(number) for number in range(num_rounds + 1)}
    assert called == [2, 3, 4]


def test_a_run_of_the_older_api_with_evaluations_resumes_in_the_message_api(
    older_api, numpy_clients, play, tmp_path
):
    """The older API's metrics may be texts, which no MetricRecord can hold."""

    class Evaluating(legacy.SignSGD):
        def evaluate(self, server_round, parameters):
            self.evaluate_fn = lambda *_: (0.5, {"note": "a text"})
            return super().evaluate(server_round, parameters)

    play(older_api.make_own(Evaluating, checkpoint=Checkpoint(tmp_path)), 2)
    outcome = play(numpy_clients.make("SignSGD", checkpoint=Checkpoint(tmp_path)), 3)
    assert [*outcome.reports] == [1, 2, 3]


def test_a_run_that_has_ended_returns_at_once_what_it_returned(message_api, play, bits, tmp_path):
    first = play(message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path, every=4)), 5)
    strategy = message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path, every=4))
    result = play(strategy, 5)
    assert bits(result.model) == bits(first.model)
    assert result.reports == first.reports
    assert result.grid.bytes_up < first.grid.bytes_up / 5


def test_a_run_that_has_ended_can_be_given_more_rounds_but_not_fewer(
    message_api, play, bits, tmp_path
):
    def strategy():
        return message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path, every=10))

    play(strategy(), 3)
    with pytest.raises(ValueError, match=r"^num_rounds must .* got 2;"):
        play(strategy(), 2)
    longer, whole = play(strategy(), 7), play(message_api.make("SignSGD"), 7)
    assert bits(longer.model) == bits(whole.model)


def refuse_all(*rounds):
    """Return a cohort rule that lets no client count in some rounds."""

    def rule(cohort):
        refused = range(len(cohort.replies)) if cohort.server_round in rounds else ()
        return dict.fromkeys(refused, "refused by the test")

    return [rule]


@pytest.mark.parametrize("every", [1, 2, 3])
def test_rounds_that_keep_the_model_are_stored_with_the_next_step(every, api, play, bits, tmp_path):
    """If one was due, the round before them is stored at once."""

    def strategy(in_round=None):
        made = api.make(
            "SignSGD", checkpoint=Checkpoint(tmp_path, every), cohort_rules=refuse_all(3, 4)
        )
        return made if in_round is None else kill(made, in_round)

    whole = play(api.make("SignSGD", cohort_rules=refuse_all(3, 4)), 6)
    for killed_in, stored in [(4, "round-000002"), (5, "round-000005")]:
        with pytest.raises(Killed):
            play(strategy(killed_in), 6)
        assert max(path.name for path in tmp_path.glob("round-*")) == stored
    resumed = play(strategy(), 6)
    assert bits(resumed.model) == bits(whole.model)
    assert 6 in resumed.reports
    assert resumed.reports == {number: whole.reports[number] for number in resumed.reports}


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("lost", [1, 3])
def test_a_run_that_failed_trains_again_the_rounds_in_which_it_did(
    lost, every, api, play, bits, tmp_path
):
    failing = refuse_all(*range(lost, 9))
    whole = play(api.make("SignSGD"), 5)
    for _ in range(3):  # or restarts would use up all rounds, and the last one would succeed
        with pytest.raises(RunFailedError, match=f"^rounds {lost} to {lost + 2} made no new model"):
            play(
                api.make("SignSGD", checkpoint=Checkpoint(tmp_path, every), cohort_rules=failing), 5
            )
    resumed = play(api.make("SignSGD", checkpoint=Checkpoint(tmp_path, every)), 5)
    assert bits(resumed.model) == bits(whole.model)


def test_a_last_round_that_keeps_the_model_is_stored_at_the_end(message_api, play, bits, tmp_path):
    def strategy():
        return message_api.make(
            "SignSGD", checkpoint=Checkpoint(tmp_path), cohort_rules=refuse_all(3)
        )

    first = play(strategy(), 3)
    assert (tmp_path / "round-000003").exists()
    again = play(strategy(), 3)
    assert bits(again.model) == bits(first.model)
    assert again.reports == first.reports


def test_the_older_api_need_not_be_given_the_model_again(older_api, play, bits, tmp_path):
    first = play(older_api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), 1)
    again = older_api.make("SignSGD", checkpoint=Checkpoint(tmp_path))
    parameters = again.initialize_parameters(SimpleClientManager())
    assert bits(parameters_to_arrays(parameters)) == bits(first.model)


@pytest.mark.parametrize(
    ("make", "change", "named"),
    [
        ("SignSGD", {"seed": 2}, ("seed=1", "seed=2")),
        ("SignSGD", {"optimizer": Momentum()}, ("optimizer=None", f"optimizer={Momentum()}")),
        ("MedianSGD", {}, ("aggregator=Counts()", "aggregator=Median()")),
    ],
    ids=["seed", "optimizer", "strategy"],
)
def test_a_checkpoint_of_another_run_is_refused_by_what_is_different(
    make, change, named, api, play, tmp_path
):
    play(api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), 1)
    with pytest.raises(ValueError, match="checkpoint") as refused:
        play(api.make(make, checkpoint=Checkpoint(tmp_path), **change), 2)
    for words in (*named, str(tmp_path)):
        assert words in str(refused.value)


class TestIdentity:
    """A run does not go on as another: whatever its model depends on is compared by name."""

    SIGNS: ClassVar = {
        "noise": Gaussian(Adaptive(0.5)),
        "aggregator": Majority(),
        "learning_rate": Cosine(0.1, 5),
    }
    MEDIANS: ClassVar = {"noise": Gaussian(Adaptive(0.5))}

    @pytest.fixture(scope="class")
    @classmethod
    def stored(cls, message_api, run, tmp_path_factory):
        """The folders of a run of each strategy."""
        folders = {}
        for make, options in (("SignSGD", cls.SIGNS), ("MedianSGD", cls.MEDIANS)):
            folders[make] = tmp_path_factory.mktemp(make)
            strategy = message_api.make(make, **options, checkpoint=Checkpoint(folders[make]))
            run(strategy, train, MODEL, NUM_CLIENTS, 1)
        return folders

    @pytest.mark.parametrize(
        ("argument", "value"),
        [
            ("noise", None),
            ("noise", Gaussian(50.0)),
            ("noise", Logistic(Adaptive(0.5))),
            ("noise", Gaussian(Adaptive(0.5, quantile=0.4))),
            ("aggregator", Majority("unchanged")),
            ("learning_rate", 0.1),
            ("learning_rate", Cosine(0.1, 6)),
            ("weighted", False),
            ("optimizer", Adam()),
            ("client_steps", [Clip(1.0)]),
            ("rotation", None),
            ("rotation", Rotation(smallest=9)),
            ("scale_from", "client"),
            ("exact", ["1"]),
            ("seed", None),
        ],
        ids=str,
    )
    def test_signs_do_not_resume_with_another_argument(
        self, argument, value, stored, message_api, play
    ):
        self.refuse(message_api, play, stored, "SignSGD", self.SIGNS, argument, value)

    @pytest.mark.parametrize(
        ("argument", "value"),
        [
            ("noise", Gaussian(50.0)),
            ("noise_at", "server"),
            ("aggregator", SmoothedMedian()),
            ("learning_rate", 0.5),
        ],
        ids=str,
    )
    def test_medians_do_not_resume_with_another_argument(
        self, argument, value, stored, message_api, play
    ):
        self.refuse(message_api, play, stored, "MedianSGD", self.MEDIANS, argument, value)

    def refuse(self, message_api, play, stored, make, options, argument, value):
        changed = {**options, argument: value, "checkpoint": Checkpoint(stored[make])}
        with pytest.raises(ValueError, match="is of a run with") as refused:
            play(message_api.make(make, **changed), 2)
        assert f" with {argument}=" in str(refused.value)
        assert f"this one has {argument}={value!r}; continue as that run" in str(refused.value)

    @pytest.mark.parametrize(
        "cls",
        [SignSGD, MedianSGD, legacy.SignSGD, legacy.MedianSGD],
        ids=lambda cls: f"{cls.__module__}.{cls.__name__}",
    )
    def test_only_arguments_that_say_who_is_heard_how_long_and_what_is_noted_may_change(self, cls):
        may_change = {"cohort_rules", "min_replies", "max_failed_rounds", "diagnostics"}
        may_change |= {"checkpoint", "privacy_budget", "numpy_clients", "threads"}
        arguments = inspect.signature(cls).parameters
        assert set(arguments) - {*may_change, "flower"} <= set(identity_of(cls().recipe))
        assert not may_change & set(identity_of(cls().recipe))

    def test_a_run_resumes_with_another_cohort_rule_and_other_reports(
        self, api, play, bits, tmp_path
    ):
        whole = play(api.make("SignSGD"), 3)
        play(api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), 1)
        changed = {"cohort_rules": [lambda cohort: {}], "diagnostics": False, "min_replies": 2}
        resumed = play(api.make("SignSGD", checkpoint=Checkpoint(tmp_path, 2), **changed), 3)
        assert bits(resumed.model) == bits(whole.model)

    def test_a_number_is_the_same_as_numpys(self, message_api, play, tmp_path):
        for number in (float, np.float32, np.float64):
            options = {"noise": Gaussian(number(0.5)), "client_steps": [Clip(number(2))]}
            checkpoint = Checkpoint(tmp_path)
            play(message_api.make("SignSGD", **options, checkpoint=checkpoint), 1)

    def test_an_array_is_the_same_however_it_is_printed_and_another_if_one_entry_is(
        self, message_api, play, tmp_path
    ):
        def make(rates):
            schedule = partial(np.interp, xp=np.arange(len(rates)), fp=rates)
            return message_api.make(
                "SignSGD", learning_rate=schedule, checkpoint=Checkpoint(tmp_path)
            )

        rates = np.random.default_rng(0).random(2000)
        play(make(rates), 1)
        with np.printoptions(precision=3, threshold=5):
            play(make(rates), 2)
        rates[1000] += 1e-12
        with pytest.raises(ValueError, match="this one has learning_rate=") as refused:
            play(make(rates), 3)
        assert len(str(refused.value)) < 3_000

    def test_a_function_is_known_by_its_name_wherever_it_lies_in_memory(
        self, message_api, play, tmp_path
    ):
        def make(function):
            return message_api.make(
                "SignSGD", learning_rate=function, checkpoint=Checkpoint(tmp_path)
            )

        def halve(server_round):
            return 0.5**server_round

        first = halve

        def halve(server_round):
            return 0.5**server_round

        play(make(first), 1)
        play(make(halve), 2)
        with pytest.raises(ValueError, match=r"halve>, this one has learning_rate=.*<lambda>>;"):
            play(make(lambda server_round: 0.5), 3)

    def test_sequences_are_compared_by_what_is_in_them(self, message_api, play, tmp_path):
        for number, sequence in enumerate((list, tuple), 1):
            options = {"client_steps": sequence([Clip(1.0)]), "exact": sequence(["1"])}
            play(message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path), **options), number)

    def test_numbers_of_another_type_are_the_same(self, message_api, play, tmp_path):
        for number, (seed, rate) in enumerate([(np.int64(3), 1), (3, np.float64(1))], 1):
            own = {"seed": seed, "learning_rate": rate, "checkpoint": Checkpoint(tmp_path)}
            play(message_api.make("SignSGD", **own), number)
        assert Checkpoint(tmp_path).load().server_round == 2


def test_a_checkpoint_of_another_model_is_refused(api, play, run, tmp_path):
    play(api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), 1)
    other = {**MODEL, "0": np.zeros(5, np.float32)}
    with pytest.raises(ValueError, match="model"):
        run(api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), train, other, NUM_CLIENTS, 2)


def test_a_run_resumes_with_the_arrays_in_another_order(message_api, play, run, tmp_path):
    play(message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), 1)
    strategy = message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path))
    outcome = run(strategy, train, dict(reversed(MODEL.items())), NUM_CLIENTS, 2)
    assert list(outcome.reports) == [1, 2]


def test_a_checkpoint_folder_that_cannot_be_made_is_known_before_training(api, run, tmp_path):
    def fail(model, partition):
        raise AssertionError

    (tmp_path / "file").write_text("in the way")
    strategy = api.make("SignSGD", checkpoint=Checkpoint(tmp_path / "file" / "folder"))
    with pytest.raises(OSError, match="file"):
        run(strategy, fail, MODEL, NUM_CLIENTS)


def names_in(folder):
    """What is in a folder, but for the lock that a run leaves there."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


SAVED = Saved(
    7,
    {"seed": str(2**200), "optimizer": "None"},
    {
        "model": {"a/b c.weight": np.arange(6, dtype=np.float16).reshape(2, 3), "n": np.array(3)},
        "scale": {"a/b c.weight": np.array(0.1)},
        "optimizer.m": {},
    },
    {"train": {1: {"loss": nan, "noise-scale": [0.1, 0.3], "replies": 3}, 7: {}}},
)


class TestCheckpoint:
    def test_a_checkpoint_is_read_as_it_was_written(self, tmp_path):
        checkpoint = Checkpoint(tmp_path / "new" / "folder")
        checkpoint.claim().release()
        checkpoint.save(SAVED)
        read = Checkpoint(str(tmp_path / "new" / "folder")).load()
        assert (read.server_round, read.identity) == (7, SAVED.identity)
        assert list(read.arrays) == list(SAVED.arrays)
        for group, arrays in SAVED.arrays.items():
            assert list(read.arrays[group]) == list(arrays)
            for name, array in arrays.items():
                assert read.arrays[group][name].dtype == array.dtype
                np.testing.assert_array_equal(read.arrays[group][name], array, strict=True)
        np.testing.assert_equal(read.history, SAVED.history)

    def test_a_checkpoint_holds_arrays_and_json_and_no_pickle(self, tmp_path):
        Checkpoint(tmp_path).save(SAVED)
        (folder,) = tmp_path.iterdir()
        files = sorted(path.name for path in folder.iterdir())
        assert files == ["SHA256SUMS", "arrays.npz", "history.jsonl", "state.json"]
        assert json.loads((folder / "state.json").read_text())["round"] == 7
        with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
            assert all(arrays[name].dtype != object for name in arrays.files)

    def test_without_a_checkpoint_there_is_nothing_to_load(self, tmp_path):
        assert Checkpoint(tmp_path).load() is None
        assert Checkpoint(tmp_path / "missing").load() is None

    def test_the_last_two_checkpoints_are_kept(self, tmp_path):
        for before, number in pairwise((0, 9, 10, 1_000_000)):
            Checkpoint(tmp_path).save(Saved(number, {}, {}), before)
        assert names_in(tmp_path) == ["round-000010", "round-1000000"]
        assert Checkpoint(tmp_path).load().server_round == 1_000_000

    def test_a_half_written_checkpoint_is_not_there(self, tmp_path):
        Checkpoint(tmp_path).save(SAVED)
        (tmp_path / ".draft").mkdir()
        (tmp_path / ".draft" / "arrays.npz").write_bytes(b"half")
        assert Checkpoint(tmp_path).load().server_round == 7
        Checkpoint(tmp_path).save(Saved(8, {}, {}), before=7)
        assert names_in(tmp_path) == ["round-000007", "round-000008"]

    def test_a_checkpoint_leaves_what_is_others(self, tmp_path):
        for name in ("notes.txt", "round-000001"):
            (tmp_path / name).write_text("mine")
        for number in (7, 8, 9):
            Checkpoint(tmp_path).save(Saved(number, {}, {}))
        assert Checkpoint(tmp_path).load().server_round == 9
        assert (tmp_path / "notes.txt").read_text() == "mine"
        assert (tmp_path / "round-000001").read_text() == "mine"

    @pytest.mark.skipif(os.name != "posix", reason="other systems have no such modes")
    def test_nobody_but_the_owner_can_read_a_checkpoint(self, tmp_path):
        mask = os.umask(0)
        try:
            checkpoint = Checkpoint(tmp_path / "run")
            checkpoint.claim().release()
            checkpoint.save(SAVED)
        finally:
            os.umask(mask)
        modes = {
            path.name: stat.S_IMODE(path.stat().st_mode)
            for path in (tmp_path / "run", *(tmp_path / "run").rglob("*"))
        }
        assert modes == {
            "run": 0o700,
            ".lock": 0o600,
            "round-000007": 0o700,
            "arrays.npz": 0o600,
            "history.jsonl": 0o600,
            "state.json": 0o600,
            "SHA256SUMS": 0o600,
        }

    @pytest.mark.parametrize(
        ("arguments", "error", "reason"),
        [
            ({"folder": 3}, TypeError, "^folder must .* 3"),
            ({"folder": "runs", "every": 0}, ValueError, "^every must .* 0"),
            ({"folder": "runs", "every": 1.5}, TypeError, "^every must .* 1.5"),
        ],
    )
    def test_bad_arguments_of_a_checkpoint_are_named(self, arguments, error, reason):
        with pytest.raises(error, match=reason):
            Checkpoint(**arguments)


class TestRoundsThatAreStored:
    def test_where_none_is_left_the_log_says_that_none_is_trained(self, play, tmp_path, caplog):
        caplog.set_level("INFO")
        for rounds in (2, 3, 3):
            said = "holds all 3 rounds, so none is trained: to train on, set num_rounds to more"
            assert said not in caplog.text
            play(SignSGD(checkpoint=Checkpoint(tmp_path)), rounds)
        assert said in caplog.text

    def test_a_run_of_fewer_rounds_is_refused(self, play, tmp_path):
        play(SignSGD(checkpoint=Checkpoint(tmp_path)), 3)
        with pytest.raises(ValueError, match=r"must be >= 3, .*, got 2; to start over, use anoth"):
            play(SignSGD(checkpoint=Checkpoint(tmp_path)), 2)


class TestHistory:
    """Metrics of all rounds are kept, and what is written of them does not grow with the rounds."""

    @pytest.fixture
    @staticmethod
    def written(monkeypatch):
        """The numbers of bytes that each save has written as text."""
        sizes, create, dumps = [0], checkpoints.create_text, json.dumps

        def note_text(path, text):
            sizes[-1] += len(text)
            create(path, text)

        def note_json(*arguments, **named):
            text = dumps(*arguments, **named)
            sizes[-1] += len(text)
            return text

        monkeypatch.setattr(checkpoints, "create_text", note_text)
        monkeypatch.setattr(checkpoints.json, "dumps", note_json)
        return sizes

    @pytest.mark.parametrize("every", [1, 3])
    def test_a_save_after_thirty_rounds_costs_what_one_after_ten_does(
        self, every, message_api, run, written, tmp_path
    ):
        def note(model, partition):
            if partition == 0:
                written.append(0)
            return train(model, partition)

        strategy = message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path, every))
        run(strategy, note, MODEL, NUM_CLIENTS, 43)
        early, late = (max(written[start : start + 12]) for start in (10, 31))
        assert 0 < late < 1.1 * early

    def test_two_checkpoints_have_copies_of_their_own(self, play, message_api, tmp_path):
        play(message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), 9)
        first, second = (path / "history.jsonl" for path in sorted(tmp_path.glob("round-*")))
        assert not first.samefile(second)
        lines = [set(path.read_text().splitlines()) for path in (first, second)]
        assert len(lines[0]) == 15
        assert len(lines[1] - lines[0]) == 2
        assert lines[0] < lines[1]

    @pytest.mark.parametrize(
        ("rounds", "links"),
        [(3, True), (4, True), (7, True), (3, False)],
        ids=["3", "4", "7", "3, no hard links"],
    )
    def test_a_run_that_was_killed_again_and_again_has_all_of_it(
        self, rounds, links, message_api, play, tmp_path, monkeypatch
    ):
        if not links:
            monkeypatch.setattr(os, "link", Disk.refuse)
        whole = play(message_api.make("SignSGD"), 12)
        for last in range(rounds, 12, rounds):
            strategy = message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path))
            with pytest.raises(Killed):
                play(kill(strategy, last), 12)
        resumed = play(message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), 12)
        assert resumed.reports == whole.reports
        assert resumed.evaluations == whole.evaluations

    def test_a_run_that_has_gone_back_does_not_continue_what_it_has_left(
        self, message_api, play, tmp_path
    ):
        whole = play(message_api.make("SignSGD"), 9)
        play(message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), 5)
        wipe(tmp_path / "round-000005" / "arrays.npz")
        play(message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), 8)
        wipe(tmp_path / "round-000008" / "history.jsonl")
        resumed = play(message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), 9)
        assert resumed.reports == whole.reports
        assert resumed.evaluations == whole.evaluations

    def test_a_round_that_is_stored_twice_leaves_the_checkpoint_before_it(
        self, message_api, play, bits, tmp_path
    ):
        """As by a subclass that tries some replies first."""

        def make(checkpoint=None):
            strategy = message_api.make("SignSGD", checkpoint=checkpoint)
            aggregate_train = strategy.aggregate_train

            def aggregate(server_round, replies):
                replies = [*replies]
                aggregate_train(server_round, replies[:2])
                return aggregate_train(server_round, replies)

            strategy.aggregate_train = aggregate
            return strategy

        whole = play(make(), 8)
        for last in (5, 7):
            play(make(Checkpoint(tmp_path)), last)
            assert names_in(tmp_path) == [f"round-00000{number}" for number in (last - 1, last)]
            wipe(tmp_path / f"round-00000{last}" / "arrays.npz")
        resumed = play(make(Checkpoint(tmp_path)), 8)
        assert bits(resumed.model) == bits(whole.model)
        assert resumed.reports == whole.reports
        assert resumed.evaluations == whole.evaluations

    def test_a_save_that_has_failed_leaves_both_checkpoints_before_it_whole(
        self, api, run, play, disk, bits, tmp_path
    ):
        def fill(model, partition):
            disk.full = int(model["2"]) + 1 >= 6
            return train(model, partition)

        whole = play(api.make("SignSGD"), 8)
        run(api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), fill, MODEL, NUM_CLIENTS, 7)
        disk.full = False
        wipe(tmp_path / "round-000005" / "history.jsonl")
        resumed = play(api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), 8)
        assert bits(resumed.model) == bits(whole.model)
        assert resumed.reports[8] == whole.reports[8]


class TestPlace:
    """Where a checkpoint is does not change, and nothing is written through a link."""

    def test_a_relative_folder_is_that_of_the_time_when_it_was_named(
        self, api, play, tmp_path, monkeypatch
    ):
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path)
        strategies = [api.make("SignSGD", checkpoint=Checkpoint("runs/first")) for _ in range(2)]
        play(strategies[0], 1)
        monkeypatch.chdir(tmp_path / "elsewhere")
        play(strategies[1], 2)
        assert names_in(tmp_path / "runs" / "first") == ["round-000001", "round-000002"]
        assert names_in(tmp_path / "elsewhere") == []

    def test_a_folder_that_is_a_link_is_the_one_that_it_points_to(self, api, play, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        for number in (1, 2):
            play(api.make("SignSGD", checkpoint=Checkpoint(tmp_path / "link")), number)
        assert names_in(tmp_path / "real") == ["round-000001", "round-000002"]

    @pytest.mark.parametrize("make_link", [os.symlink, os.link])
    @pytest.mark.parametrize("name", [".lock", ".draft", ".draft-answered-rounds.json"])
    def test_a_file_that_a_link_points_to_is_left_as_it_is(
        self, name, make_link, api, play, tmp_path
    ):
        (tmp_path / "run").mkdir()
        (tmp_path / "precious").write_text("precious")
        make_link(tmp_path / "precious", tmp_path / "run" / name)
        with suppress(OSError):
            play(api.make("SignSGD", checkpoint=Checkpoint(tmp_path / "run")), 2)
        with suppress(OSError):
            Checkpoint(tmp_path / "run").note_answered_rounds({Draw(): 1}, 1, None)
        assert (tmp_path / "precious").read_text() == "precious"

    @pytest.mark.parametrize("name", [".draft", "round-000002"])
    def test_a_folder_that_a_link_points_to_is_left_as_it_is_and_the_run_is_stored(
        self, name, api, play, tmp_path
    ):
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious" / "file").write_text("precious")
        play(api.make("SignSGD", checkpoint=Checkpoint(tmp_path / "run")), 1)
        (tmp_path / "run" / name).symlink_to(tmp_path / "precious")
        play(api.make("SignSGD", checkpoint=Checkpoint(tmp_path / "run")), 2)
        assert (tmp_path / "precious" / "file").read_text() == "precious"
        assert names_in(tmp_path / "run") == ["round-000001", "round-000002"]

    @pytest.mark.parametrize("target", ["there.json", "missing.json"])
    def test_a_count_of_rounds_that_is_a_link_is_refused(self, target, tmp_path):
        Checkpoint(tmp_path).note_answered_rounds({Draw(): 5}, 5, None)
        (tmp_path / "answered-rounds.json").rename(tmp_path / "there.json")
        (tmp_path / "answered-rounds.json").symlink_to(target)
        with pytest.raises(OSError, match=r"answered-rounds\.json"):
            Checkpoint(tmp_path).answered_rounds()


class Disk:
    """A disk that can be full."""

    @staticmethod
    def refuse(*arguments):
        raise OSError(EPERM, "Operation not permitted")

    full = False


@pytest.fixture
def disk(monkeypatch):
    """The disk that everything here is written to."""
    disk, fsync = Disk(), os.fsync

    def fsync_if_there_is_room(descriptor):
        if disk.full:
            raise OSError(ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync_if_there_is_room)
    return disk


def no_training(model, partition):
    raise AssertionError("a round has begun")


class TestDiskThatFails:
    """It is found before the first round where it can be; later it does not end a run."""

    @pytest.fixture
    @staticmethod
    def filling(disk):
        """Makes a training function in some of whose rounds the disk is full."""

        def filling(*rounds):
            def fill_and_train(model, partition):
                disk.full = int(model["2"]) + 1 in rounds
                return train(model, partition)

            return fill_and_train

        return filling

    def errors(self, caplog):
        return [one.getMessage() for one in caplog.records if one.levelname == "ERROR"]

    def test_a_full_disk_is_known_before_training_and_left_as_it_was(
        self, api, run, disk, tmp_path
    ):
        disk.full = True
        strategy = api.make("SignSGD", checkpoint=Checkpoint(tmp_path))
        with pytest.raises(OSError, match="No space left on device") as full:
            run(strategy, no_training, MODEL, NUM_CLIENTS)
        assert str(tmp_path) in str(full.value)
        assert names_in(tmp_path) == []

    def test_a_disk_that_has_filled_since_is_known_before_a_run_resumes(
        self, api, play, run, disk, tmp_path
    ):
        play(api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), 1)
        disk.full = True
        strategy = api.make("SignSGD", checkpoint=Checkpoint(tmp_path))
        with pytest.raises(OSError, match="No space left on device"):
            run(strategy, no_training, MODEL, NUM_CLIENTS, 2)
        assert names_in(tmp_path) == ["round-000001"]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_that_cannot_be_written_to_is_known_before_training(self, api, run, tmp_path):
        tmp_path.chmod(0o500)
        strategy = api.make("SignSGD", checkpoint=Checkpoint(tmp_path))
        with pytest.raises(PermissionError):
            run(strategy, no_training, MODEL, NUM_CLIENTS)

    def test_a_folder_that_can_no_longer_be_written_to_is_found_before_a_run_resumes(
        self, api, play, run, tmp_path, monkeypatch
    ):
        play(api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), 1)

        def refuse(path, *arguments):
            raise PermissionError(EACCES, "Permission denied", str(path))

        strategy = api.make("SignSGD", checkpoint=Checkpoint(tmp_path))
        with monkeypatch.context() as read_only:
            read_only.setattr(os, "mkdir", refuse)  # root may write everywhere
            with pytest.raises(PermissionError, match="Permission denied"):
                run(strategy, no_training, MODEL, NUM_CLIENTS, 2)
        assert names_in(tmp_path) == ["round-000001"]
        play(api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), 2)

    def test_a_run_continues_while_its_disk_is_full_and_stores_what_comes_after(
        self, api, play, run, bits, filling, tmp_path, warnings, caplog
    ):
        whole = play(api.make("SignSGD"), 5)
        strategy = api.make("SignSGD", checkpoint=Checkpoint(tmp_path))
        outcome = run(strategy, filling(2, 3), MODEL, NUM_CLIENTS, 5)
        assert bits(outcome.model) == bits(whole.model)
        assert warnings("round") == [
            f"round {number} was not stored, the run continues without it: "
            "[Errno 28] No space left on device"
            for number in (2, 3)
        ]
        assert self.errors(caplog) == []
        assert names_in(tmp_path) == ["round-000004", "round-000005"]

    def test_the_last_word_of_a_run_that_could_not_be_stored_says_from_where_on(
        self, message_api, play, run, bits, disk, filling, tmp_path, warnings, caplog
    ):
        def strategy():
            return message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path, every=2))

        first = run(strategy(), filling(3, 4, 5), MODEL, NUM_CLIENTS, 5)
        assert [warning[:7] for warning in warnings("round")] == ["round 4"]
        assert self.errors(caplog) == [
            f"the run ended after round 5, but nothing after round 2 is stored in {tmp_path}: "
            "[Errno 28] No space left on device"
        ]
        disk.full = False
        assert names_in(tmp_path) == ["round-000002"]
        assert bits(play(strategy(), 5).model) == bits(first.model)

    def test_a_disk_that_is_full_at_the_last_round_alone_is_tried_once_more(
        self, message_api, run, disk, tmp_path, warnings, caplog
    ):
        def free(model, partition):
            disk.full = False
            return {"num-examples": 1, "loss": 0.0}

        def fill(model, partition):
            disk.full = True
            return train(model, partition)

        strategy = message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path))
        run(strategy, fill, MODEL, NUM_CLIENTS, 1, evaluate=free)
        assert len(warnings("round")) == 1
        assert self.errors(caplog) == []
        assert names_in(tmp_path) == ["round-000001"]

    def test_a_last_round_that_is_not_stored_is_a_warning_once_and_then_an_error(
        self, message_api, run, filling, tmp_path, warnings, caplog
    ):
        strategy = message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path))
        run(strategy, filling(2), MODEL, NUM_CLIENTS, 2)
        assert len(warnings("round 2 was not stored")) == 1
        (error,) = self.errors(caplog)
        assert error.startswith("the run ended after round 2, but nothing after round 1")

    @pytest.mark.parametrize(
        "metrics",
        [
            {"raw": b"\x00", "mean": np.float32(0.5)},
            {(1, 2): 3.0},
            {np.int64(3): 0.5},
            {"classes": {np.int64(3): 0.5}},
            {"mean": Tensor()},
        ],
        ids=["of their own type", "of a name that is none", "of a class", "of all", "of tensors"],
    )
    def test_no_metrics_of_the_users_end_a_run_or_leave_it_without_a_checkpoint(
        self, metrics, older_api, play, tmp_path, warnings
    ):
        strategy = older_api.make(
            "SignSGD",
            checkpoint=Checkpoint(tmp_path),
            fit_metrics_aggregation_fn=lambda own: metrics,
        )
        play(strategy, 2)
        assert not warnings("round")
        assert names_in(tmp_path) == ["round-000001", "round-000002"]


class PassesOverSilentRounds(Wrapped):
    """Passes on nothing that it is answered where there are no replies."""

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        answer = super().aggregate_train(server_round, replies)
        return answer if replies else (None, None)


class LeavesOutSilentRounds(Wrapped):
    """Does not even ask where there are no replies."""

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        return super().aggregate_train(server_round, replies) if replies else (None, None)


class Blends(Wrapped):
    """Blends each model with the last."""

    last: ClassVar = None

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is not None:
            new = to_arrays(arrays)
            if self.last is not None:
                new["0"] = np.float32(0.9) * self.last["0"] + np.float32(0.1) * new["0"]
            self.last, arrays = new, to_record(new)
        return arrays, metrics


class TestWhoDrivesTheRounds:
    """What resumes is the run that was stored, whoever drives its rounds, or an error."""

    @pytest.fixture
    @staticmethod
    def drive(make_app, as_record, message_api, tmp_path):
        """Runs a wrapper around a strategy with a checkpoint, for a number of rounds."""

        def drive(wrapper, num_rounds, every=1, **options):
            strategy = message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path, every))
            grid = InProcessGrid(make_app(train), NUM_CLIENTS)
            return wrapper(strategy).start(grid, as_record(MODEL), num_rounds, **options)

        return drive

    def test_a_wrapped_strategy_resumes_as_if_nothing_had_happened(
        self, drive, play, message_api, bits, warnings
    ):
        drive(Wrapped, 4)
        resumed, whole = drive(Wrapped, 6), play(message_api.make("SignSGD"), 6)
        assert bits(to_arrays(resumed.arrays)) == bits(whole.model)
        assert resumed.train_metrics_clientapp.keys() == whole.reports.keys()
        assert not warnings("the model is not")

    @pytest.mark.parametrize("every", [1, 4])
    def test_two_strategies_of_one_wrapper_may_not_share_a_folder(
        self, every, drive, message_api, tmp_path
    ):
        class Both(Wrapped):
            def configure_train(self, *args):
                other.configure_train(*args)  # as for another cluster of nodes
                return super().configure_train(*args)

            def aggregate_train(self, server_round, replies):
                other.aggregate_train(server_round, [])
                return super().aggregate_train(server_round, replies)

        other = message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path, every))
        with pytest.raises(RuntimeError, match="in use by another run, of this process"):
            drive(Both, 3, every)

    @pytest.mark.parametrize("wrapper", [PassesOverSilentRounds, LeavesOutSilentRounds])
    def test_a_round_that_does_not_begin_where_the_stored_run_ended_is_refused(
        self, wrapper, drive, tmp_path
    ):
        drive(wrapper, 8)
        before = names_in(tmp_path)
        with pytest.raises(RuntimeError, match=r"model of round 8 in .* was not loaded"):
            drive(wrapper, 9)
        assert names_in(tmp_path) == before == ["round-000007", "round-000008"]

    def test_the_older_api_refuses_it_too(self, older_api, play, tmp_path, monkeypatch):
        play(older_api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), 3)
        before = names_in(tmp_path)
        strategy = older_api.make("SignSGD", checkpoint=Checkpoint(tmp_path))
        initialize = strategy.initialize_parameters

        def begin_anew(client_manager):
            initialize(client_manager)
            return arrays_to_parameters(MODEL)

        strategy.initialize_parameters = begin_anew
        with pytest.raises(RuntimeError, match=r"model of round 3 in .* was not loaded"):
            play(strategy, 4)
        assert names_in(tmp_path) == before

    @pytest.mark.parametrize("every", [1, 4])
    def test_what_changes_a_model_between_rounds_is_said_once_not_to_be_stored(
        self, every, drive, warnings
    ):
        drive(Blends, 5, every)
        (warning,) = warnings("the model is not the one that the last round returned")
        assert "resume" in warning
        with pytest.raises(RuntimeError, match="was not loaded"):
            drive(Blends, 6, every)

    def test_so_is_what_a_subclass_changes(self, play, tmp_path, warnings):
        class Ema(SignSGD):
            last = None

            def aggregate_train(self, server_round, replies):
                arrays, metrics = super().aggregate_train(server_round, replies)
                new = to_arrays(arrays)
                if self.last is not None:
                    new["0"] = np.float32(0.9) * self.last["0"] + np.float32(0.1) * new["0"]
                self.last = new
                return to_record(new), metrics

        play(Ema(seed=1), 3)
        assert not warnings("the model is not")  # there is nothing that it could be missing from
        play(Ema(seed=1, checkpoint=Checkpoint(tmp_path)), 3)
        assert len(warnings("the model is not")) == 1

    def test_nothing_is_said_of_rounds_that_keep_the_model_nor_of_what_is_not_finite(
        self, api, run, tmp_path, warnings
    ):
        model, asked = {**MODEL, "3": np.array([nan, inf, -0.0], np.float32)}, []

        def fail_in_round_2(own, partition):
            asked.append(partition)
            if NUM_CLIENTS < len(asked) <= 2 * NUM_CLIENTS:
                raise RuntimeError("not today")
            trained, metrics = train(own, partition)
            return {**own, **trained}, metrics

        for num_rounds in (4, 6):
            strategy = api.make("SignSGD", checkpoint=Checkpoint(tmp_path))
            run(strategy, fail_in_round_2, model, NUM_CLIENTS, num_rounds)
        assert warnings("round 2 keeps the model")
        assert not warnings("the model is not")

    def test_a_run_of_fewer_rounds_than_are_stored_ends_with_the_stored_model_and_says_so(
        self, drive, bits, warnings
    ):
        stored = drive(Wrapped, 5).arrays
        assert not warnings("resuming")
        resumed = drive(Wrapped, 3).arrays
        assert bits(to_arrays(resumed)) == bits(to_arrays(stored))
        (warning,) = warnings("resuming after round 5")
        assert "a run of fewer rounds ends with the model of round 5" in warning

    def test_an_evaluate_fn_sees_the_stored_model_in_rounds_that_are_not_run_again_and_it_is_said(
        self, drive, bits, warnings
    ):
        stored, seen = to_arrays(drive(Wrapped, 3).arrays), {}

        def evaluate(number, arrays):
            seen[number] = bits(to_arrays(arrays))

        drive(Wrapped, 4, evaluate_fn=evaluate)
        assert [seen[number] == bits(stored) for number in range(5)] == [0, 1, 1, 1, 0]
        (warning,) = warnings("resuming after round 3")
        assert "rounds 1 to 2 do not run again" in warning

    def test_a_run_that_our_own_start_resumes_has_nothing_to_say_of_it(
        self, api, play, tmp_path, warnings
    ):
        for num_rounds in (3, 5):
            play(api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), num_rounds)
        assert not warnings("resuming")
        assert not warnings("the model is not")


class TestTwoRuns:
    """One folder belongs to one run at a time."""

    @pytest.fixture
    @staticmethod
    def start_another(message_api, make_app, as_record):
        """Makes a function that starts a run in a thread of its own, and returns what it raised."""

        def start_another(folder):
            raised = []

            def start():
                try:
                    message_api.make("SignSGD", checkpoint=Checkpoint(folder)).start(
                        InProcessGrid(make_app(train), NUM_CLIENTS), as_record(MODEL), 9
                    )
                except Exception as error:
                    raised.append(error)

            thread = Thread(target=start)
            thread.start()
            thread.join()
            return raised

        return start_another

    def test_a_second_run_is_refused_while_the_first_continues(
        self, api, run, bits, play, start_another, tmp_path
    ):
        whole, raised = play(api.make("SignSGD"), 2), []

        def train_and_start(model, partition):
            if partition == 0:
                raised.extend(start_another(tmp_path))
            return train(model, partition)

        strategy = api.make("SignSGD", checkpoint=Checkpoint(tmp_path))
        outcome = run(strategy, train_and_start, MODEL, NUM_CLIENTS, 2)
        assert [type(error) for error in raised] == [RuntimeError] * 2
        assert all(str(tmp_path) in str(error) for error in raised)
        assert bits(outcome.model) == bits(whole.model)

    @pytest.mark.parametrize("num_rounds", [1, 2], ids=["which is refused", "which ends"])
    def test_a_run_leaves_its_folder_to_others(
        self, num_rounds, message_api, play, start_another, tmp_path
    ):
        play(message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), 2)
        with suppress(ValueError):
            play(message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), num_rounds)
        with suppress(ValueError):
            play(message_api.make("MedianSGD", checkpoint=Checkpoint(tmp_path)), 2)
        assert start_another(tmp_path) == []

    def test_a_run_that_was_killed_leaves_its_folder_to_others(
        self, message_api, play, start_another, tmp_path
    ):
        with pytest.raises(Killed):
            play(kill(message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), 1), 2)
        assert start_another(tmp_path) == []


def remove(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"\n")


def wipe(path):
    path.write_bytes(bytes(path.stat().st_size))


def turn_into_a_folder(path):
    path.unlink()
    path.mkdir()


def rewrite(folder, change):
    """Change the state in a checkpoint by hand, and its checksum with it."""
    path = folder / "state.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    lines = (
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("arrays.npz", "state.json")
    )
    (folder / "SHA256SUMS").write_text("".join(lines))


class TestDamage:
    """What is broken is found and named, and the checkpoint before it is as good as ever."""

    @pytest.fixture
    @staticmethod
    def stored(tmp_path):
        Checkpoint(tmp_path).save(SAVED)
        return tmp_path / "round-000007"

    @pytest.mark.parametrize(
        ("damage", "name"),
        [
            (damage, name)
            for damage in (remove, empty, cut, lengthen, wipe, turn_into_a_folder)
            for name in ("state.json", "arrays.npz", "history.jsonl", "SHA256SUMS")
            # An empty line more says nothing, and what follows the history is not the checkpoint's.
            if damage is not lengthen or name not in ("SHA256SUMS", "history.jsonl")
        ],
    )
    def test_a_damaged_file_is_named(self, damage, name, stored, tmp_path):
        damage(stored / name)
        with pytest.raises(ValueError, match=r"^cannot resume from any checkpoint") as broken:
            Checkpoint(tmp_path).load()
        assert str(stored) in str(broken.value)
        assert name in str(broken.value)

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            (lambda state: None, "state.json"),
            (lambda state: [], "state.json"),
            (lambda state: {}, "state.json"),
            (lambda state: {**state, "format": 1}, "state.json .* format 1,"),
            (lambda state: {**state, "history": [1]}, "state.json"),
            (lambda state: {**state, "history": {"entries": {}, "bytes": 3}}, "state.json"),
            (
                lambda state: {**state, "history": {"entries": {}, "bytes": 3, "sha256": "0"}},
                "history.jsonl",
            ),
            (lambda state: {**state, "arrays": {"model": ["a", "b", "c"]}}, "arrays.npz"),
            (lambda state: {**state, "arrays": {"model": 3}}, "state.json"),
        ],
    )
    def test_a_state_that_somebody_has_changed_is_named(self, change, named, stored, tmp_path):
        rewrite(stored, change)
        with pytest.raises(ValueError, match=rf"round-000007.{named} "):
            Checkpoint(tmp_path).load()

    def test_an_array_that_has_become_another_is_found(self, stored, tmp_path):
        with (stored / "arrays.npz").open("wb") as file:
            np.savez(file, **{"model.0": np.zeros((2, 3)), "model.1": np.array(3)})
        with pytest.raises(ValueError, match=r"arrays\.npz .*does not match"):
            Checkpoint(tmp_path).load()

    @pytest.mark.parametrize("name", ["arrays.npz", "history.jsonl"])
    @pytest.mark.parametrize("damage", [remove, empty, cut, wipe])
    def test_a_damaged_checkpoint_gives_way_to_the_one_before(
        self, damage, name, stored, tmp_path, warnings
    ):
        Checkpoint(tmp_path).save(Saved(8, {}, {}, SAVED.history), before=7)
        damage(tmp_path / "round-000008" / name)
        assert Checkpoint(tmp_path).load().server_round == 7
        (warning,) = warnings("going back")
        assert str(tmp_path / "round-000008" / name) in warning

    def test_an_empty_checkpoint_gives_way_and_is_replaced(self, stored, tmp_path, warnings):
        (tmp_path / "round-000009").mkdir()
        (tmp_path / "round-000010").mkdir()
        assert Checkpoint(tmp_path).load().server_round == 7
        assert len(warnings("going back")) == 2
        Checkpoint(tmp_path).save(Saved(9, {}, {}), before=7)
        assert names_in(tmp_path) == ["round-000007", "round-000009"]
        assert Checkpoint(tmp_path).load().server_round == 9

    def test_each_of_many_broken_checkpoints_is_named(self, stored, tmp_path):
        Checkpoint(tmp_path).save(Saved(8, {}, {}), before=7)
        cut(stored / "state.json")
        empty(tmp_path / "round-000008" / "arrays.npz")
        with pytest.raises(ValueError, match="cannot resume") as broken:
            Checkpoint(tmp_path).load()
        for path in (stored / "state.json", tmp_path / "round-000008" / "arrays.npz"):
            assert str(path) in str(broken.value)

    def test_a_run_whose_last_checkpoint_is_damaged_ends_as_if_nothing_had_happened(
        self, api, play, bits, tmp_path, warnings
    ):
        whole = play(api.make("SignSGD"), 6)
        play(api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), 4)
        wipe(tmp_path / "round-000004" / "arrays.npz")
        resumed = play(api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), 6)
        assert bits(resumed.model) == bits(whole.model)
        assert len(warnings("going back")) == 1

    def test_a_run_that_has_gone_back_keeps_the_checkpoint_that_it_has_gone_back_to(
        self, message_api, play, tmp_path
    ):
        play(message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), 3)
        wipe(tmp_path / "round-000003" / "state.json")
        play(message_api.make("SignSGD", checkpoint=Checkpoint(tmp_path, every=4)), 4)
        assert names_in(tmp_path) == ["round-000002", "round-000004"]

    def test_a_checkpoint_of_another_format_says_what_to_do(self, stored, tmp_path):
        rewrite(stored, lambda state: {**state, "format": 3})
        with pytest.raises(ValueError, match="format 3, this version reads 4: resume with"):
            Checkpoint(tmp_path).load()

    @pytest.fixture
    @staticmethod
    def unreadable(monkeypatch):
        """Makes a context in which a file raises an error when it is opened."""

        @contextmanager
        def unreadable(path, error=OSError):
            opened = io.open

            def fail(file, *arguments, **named):
                if str(file) == str(path):
                    raise error(EIO, "not now")
                return opened(file, *arguments, **named)

            with monkeypatch.context() as patch:
                patch.setattr(io, "open", fail)
                patch.setattr("builtins.open", fail)
                with pytest.raises(error, match="not now"):
                    yield

        return unreadable

    @pytest.mark.parametrize("error", [PermissionError, TimeoutError, OSError])
    @pytest.mark.parametrize("name", ["arrays.npz", "history.jsonl", "state.json", "SHA256SUMS"])
    def test_a_file_that_cannot_be_read_for_now_is_no_damage(
        self, name, error, stored, unreadable, tmp_path, warnings
    ):
        Checkpoint(tmp_path).save(replace(SAVED, server_round=8), before=7)
        with unreadable(tmp_path / "round-000008" / name, error):
            Checkpoint(tmp_path).load()
        assert Checkpoint(tmp_path).load().server_round == 8
        assert not warnings("going back")

    def test_a_run_that_cannot_read_for_now_deletes_nothing_and_resumes_later(
        self, api, play, bits, unreadable, tmp_path, warnings
    ):
        whole = play(api.make("SignSGD"), 5)
        play(api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), 3)
        before = names_in(tmp_path)
        with unreadable(tmp_path / "round-000003" / "state.json"):
            play(api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), 5)
        assert names_in(tmp_path) == before
        resumed = play(api.make("SignSGD", checkpoint=Checkpoint(tmp_path)), 5)
        assert bits(resumed.model) == bits(whole.model)
        assert not warnings("going back")

    def test_memory_that_does_not_suffice_is_not_taken_for_damage(
        self, stored, tmp_path, monkeypatch
    ):
        def load(*arguments, **named):
            raise MemoryError

        monkeypatch.setattr(np, "load", load)
        with pytest.raises(MemoryError):
            Checkpoint(tmp_path).load()


# A run in a process of its own: it prints each round, waits for a word to go on and, when it has
# ended, prints its model.
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

def wait(number, arrays):
    print(number, flush=True)
    sys.stdin.readline()

result = strategy.start(
    InProcessGrid(app, 4),
    ArrayRecord({"x": Array(np.zeros(20_000, np.float32))}),
    num_rounds=60,
    evaluate_fn=wait,
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

    whole = subprocess.run(
        command, capture_output=True, stdin=subprocess.DEVNULL, text=True, check=True
    ).stdout
    kills, rng = 0, np.random.default_rng(0)
    folder = tmp_path / "checkpoints"
    while True:
        process = subprocess.Popen(
            [*command, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        start = int(max((p.name[6:] for p in folder.glob("round-*")), default=0))
        killed = False
        for line in process.stdout:
            if line.startswith("model"):
                resumed = line
            elif line.strip().isdecimal():
                process.stdin.write("\n")
                process.stdin.flush()
                if kills < 4 and int(line) >= start + 10:
                    time.sleep(rng.uniform(0, 0.02))  # anywhere in a round, or in its checkpoint
                    os.kill(process.pid, signal.SIGKILL)
                    killed = True
                    break
        process.communicate()
        kills += killed
        if not killed:
            break
    assert kills == 4
    assert model_of(resumed) == model_of(whole)
    assert names_in(folder) == ["round-000059", "round-000060"]
