"""Which strategies are a privacy mechanism, and how a budget ends a run."""

import logging
from contextlib import suppress
from dataclasses import dataclass
from errno import ENOSPC
from typing import ClassVar

import numpy as np
import pytest
from flwr.app import ConfigRecord

from fedmedian import (
    Adaptive,
    ClientMomentum,
    Clip,
    DivideByLearningRate,
    Gaussian,
    Laplace,
    Rotation,
    SecureSum,
    SmoothedMedian,
    Theory,
    TopUp,
    register_noise,
)
from fedmedian.clients import InProcessGrid
from fedmedian.privacy.accounting import Draw, Mechanism, PrivacyBudget, honest_of
from fedmedian.rounds.ledger import Ledger
from fedmedian.rounds.options import RunOptions
from fedmedian.rounds.protocol import RoundProtocol
from fedmedian.rounds.recipe import Recipe
from fedmedian.rounds.state import RunState
from fedmedian.steps.base import ClientStep, register_client_step
from fedmedian.strategies import (
    Checkpoint,
    MedianSGD,
    NoMechanism,
    RunFailedError,
    SignSGD,
    legacy,
)

MODEL = {"0": np.linspace(-1, 1, 12, dtype=np.float32), "1": np.zeros(3, np.float32)}
HIDDEN = {
    "noise": Gaussian(8.0),
    "client_steps": [Clip(2.0)],
    "fraction_evaluate": 0.0,
    "seed": None,
}
OF_SIGNS = {**HIDDEN, "weighted": False}
MECHANISM = Mechanism(2.0, 8.0)
BUDGET = PrivacyBudget(epsilon=5.0, delta=1e-5)
AFFORDED = MECHANISM.rounds_within(BUDGET)


def train(model, partition):
    assert 2 < AFFORDED < 8
    return {name: array - 1 for name, array in model.items()}, {"num-examples": 1}


@dataclass(frozen=True)
class OwnScale(Theory):
    """A rule of somebody else's, which may do anything."""


@dataclass(frozen=True)
class OwnGaussian(Gaussian):
    """A family of somebody else's."""

    name: ClassVar[str] = "budget-test"


@register_client_step
@dataclass(frozen=True)
class OwnStep(ClientStep):
    """A step of somebody else's, which may remember anything."""

    name: ClassVar[str] = "budget-test"

    def apply(self, draft):
        pass


class TestMechanism:
    @pytest.mark.parametrize("rotation", [Rotation(), None], ids=str)
    def test_clipped_updates_in_gaussian_noise_of_one_scale_are_one(self, api, rotation):
        signs = api.make("SignSGD", **OF_SIGNS, rotation=rotation)
        vector = api.make("MedianSGD", **HIDDEN, rotation=rotation)
        assert signs.privacy == MECHANISM
        assert vector.privacy == Mechanism(2.0, 8.0, "vector")

    def test_what_comes_before_the_clipping_does_not_matter_and_theorys_scale_is_one(self):
        steps = [DivideByLearningRate(0.1), ClientMomentum(0.9), Clip(2.0)]
        noise = Gaussian(Theory(rounds=16, dim=16))
        assert SignSGD(**{**OF_SIGNS, "client_steps": steps, "noise": noise}).privacy == (
            Mechanism(2.0, 4.0)
        )

    @pytest.mark.parametrize(
        ("changed", "reason"),
        [
            ({"seed": 3}, "seed=3: the server can draw the noise again"),
            ({"noise": Gaussian(Adaptive())}, "Adaptive.*report the size of their updates"),
            ({"noise": Gaussian(TopUp())}, "TopUp.*report the size of their updates"),
            ({"noise": Gaussian(OwnScale(2, 2))}, "OwnScale.*may follow from the updates"),
            ({"noise": Laplace(8.0)}, "Laplace.*only Gaussian"),
            ({"noise": Gaussian(0.39)}, "less than 0.2 times the norm"),
            ({"client_steps": []}, "client_steps: without Clip"),
            ({"client_steps": [Clip(9e-31)]}, "client_steps: float32 does not hold the norm"),
            ({"client_steps": [Clip(2.0), ClientMomentum()]}, "ClientMomentum.*may lengthen"),
            ({"fraction_evaluate": 0.1}, "fraction_evaluate=0.1: clients report metrics"),
            ({"weighted": True}, "weighted=True: clients report their number of examples"),
        ],
        ids=lambda value: str(value)[:30],
    )
    def test_what_is_in_the_way_is_the_reason_and_refuses_a_budget(self, api, changed, reason):
        options = {**OF_SIGNS, **changed}
        found = api.make("SignSGD", **options).privacy
        assert isinstance(found, NoMechanism)
        assert len(found.reasons) == 1
        with pytest.raises(ValueError, match=f"^privacy_budget must be None .*{reason}"):
            api.make("SignSGD", **options, privacy_budget=BUDGET)

    def test_a_family_of_ones_own_is_not_taken_for_gaussian(self, registries):
        register_noise(OwnGaussian)
        found = SignSGD(**{**OF_SIGNS, "noise": OwnGaussian(8.0)}).privacy
        assert "OwnGaussian" in str(found)

    @pytest.mark.parametrize(
        "options",
        [{"noise": None}, {"noise_at": "server"}, {"aggregator": SmoothedMedian()}],
        ids=str,
    )
    def test_noise_that_clients_do_not_add_hides_nothing(self, api, options):
        found = api.make("MedianSGD", **{**HIDDEN, **options}).privacy
        assert found == NoMechanism(("noise: clients add none",))

    def test_all_reasons_of_a_default_strategy_are_given(self):
        assert len(SignSGD().privacy.reasons) == 4
        assert len(MedianSGD().privacy.reasons) == 3
        assert len(legacy.SignSGD().privacy.reasons) == 4

    @pytest.mark.parametrize(
        ("extra", "reason"),
        [
            ({"2": np.array(3)}, "exact: arrays ['2'] are sent without noise; leave arrays of "),
            ({"2": MODEL["0"].copy()}, "arrays ['0', '2'] are tied"),
        ],
        ids=["exact", "tied"],
    )
    def test_what_is_in_the_way_in_the_model_ends_a_run_with_a_budget_before_it_begins(
        self, api, run, extra, reason
    ):
        strategy = api.make("SignSGD", **OF_SIGNS, privacy_budget=BUDGET)
        asked = []

        def train_none(model, partition):
            asked.append(partition)
            return train(model, partition)

        with pytest.raises(ValueError, match=r"^privacy_budget must be None with this model") as no:
            run(strategy, train_none, {**MODEL, **extra}, 3)
        assert reason in str(no.value)
        assert not asked
        assert reason in str(strategy.privacy)


class TestBudget:
    def test_a_run_ends_with_its_result_before_it_would_exceed_the_budget(self, api, run, caplog):
        strategy = api.make("SignSGD", **OF_SIGNS, privacy_budget=BUDGET)
        with caplog.at_level(logging.WARNING):
            outcome = run(strategy, train, MODEL, 3, AFFORDED + 2)
        assert list(outcome.reports) == list(range(1, AFFORDED + 1))
        spent = [report["epsilon"] for report in outcome.reports.values()]
        assert spent == [MECHANISM.epsilon(1e-5, done) for done in outcome.reports]
        assert spent[-1] <= 5 < MECHANISM.epsilon(1e-5, AFFORDED + 1)
        said = [text for text in caplog.messages if "would exceed the privacy budget" in text]
        assert len(said) == 1
        assert str(BUDGET) in said[0]

    def test_a_run_within_its_budget_says_nothing_of_an_end(self, api, run, caplog):
        strategy = api.make("SignSGD", **OF_SIGNS, privacy_budget=BUDGET)
        outcome = run(strategy, train, MODEL, 3, AFFORDED)
        assert len(outcome.reports) == AFFORDED
        assert "would exceed" not in caplog.text

    def test_medians_have_a_budget_as_well(self, api, run):
        strategy = api.make("MedianSGD", **HIDDEN, privacy_budget=BUDGET)
        outcome = run(strategy, train, MODEL, 3, AFFORDED + 2)
        assert len(outcome.reports) == Mechanism(2.0, 8.0, "vector").rounds_within(BUDGET)

    def test_a_budget_for_less_than_a_round_is_refused_with_what_one_costs(self):
        with pytest.raises(ValueError, match=r"^privacy_budget must afford a round, .* 1\.693"):
            SignSGD(**OF_SIGNS, privacy_budget=PrivacyBudget(1.0, 1e-5))

    def test_a_second_run_of_a_strategy_has_what_the_first_has_left(self, run):
        strategy = SignSGD(**OF_SIGNS, privacy_budget=BUDGET)
        run(strategy, train, MODEL, 3, AFFORDED - 1)
        assert list(run(strategy, train, MODEL, 3, 5).reports) == [1]
        with pytest.raises(ValueError, match="the privacy budget is spent"):
            run(strategy, train, MODEL, 3, 1)

    def test_a_round_that_makes_no_model_is_spent_all_the_same(self, api, run):
        def fail(model, partition):
            raise RuntimeError

        strategy = api.make("SignSGD", **OF_SIGNS, privacy_budget=BUDGET, max_failed_rounds=None)
        reports = run(strategy, fail, MODEL, 3, AFFORDED + 1).reports
        assert reports[AFFORDED]["epsilon"] == MECHANISM.epsilon(1e-5, AFFORDED)
        assert AFFORDED + 1 not in reports

    def test_the_log_has_the_mechanism_and_epsilon_where_there_is_one(self, api, run, caplog):
        with caplog.at_level(logging.INFO):
            run(api.make("SignSGD", **OF_SIGNS, privacy_budget=BUDGET), train, MODEL, 3)
        assert "privacy: the signs of updates of norm 2 in Gaussian noise of 8" in caplog.text
        assert f"affords {AFFORDED} rounds" in caplog.text
        assert f"; epsilon {MECHANISM.epsilon(1e-5):.3g}" in caplog.text

    def test_one_round_is_afforded_in_the_singular(self, api, run, caplog):
        budget = PrivacyBudget(MECHANISM.epsilon(1e-5) * 1.01, 1e-5)
        run(api.make("SignSGD", **OF_SIGNS, privacy_budget=budget), train, MODEL, 3, 2)
        assert "which affords 1 round\n" in caplog.text

    def test_the_log_of_any_other_run_does_not_speak_of_it(self, api, run, caplog):
        with caplog.at_level(logging.INFO):
            run(api.make("SignSGD"), train, MODEL, 3)
        assert "privacy" not in caplog.text
        assert "epsilon" not in caplog.text

    @pytest.mark.parametrize(
        ("metrics", "named"),
        [({"num-examples": 7}, ""), ({"num-examples": 1, "loss": 0.5}, "loss")],
        ids=["examples", "metrics"],
    )
    def test_metrics_that_epsilon_does_not_count_are_said_once(
        self, api, run, caplog, metrics, named
    ):
        strategy = api.make("SignSGD", **OF_SIGNS, privacy_budget=BUDGET)
        run(strategy, lambda model, _: (train(model, 0)[0], metrics), MODEL, 3, 2)
        said = [text for text in caplog.messages if "epsilon does not count" in text]
        assert len(said) == 1
        assert named in said[0]

    def test_metrics_of_an_evaluation_that_is_asked_for_later_are_said_too(self, api, run, caplog):
        strategy = api.make("SignSGD", **OF_SIGNS, privacy_budget=BUDGET)
        strategy.fraction_evaluate = 1.0

        def evaluate(model, partition):
            return {"num-examples": 7, "loss": 0.5, "accuracy": 0.25}

        run(strategy, train, MODEL, 3, 2, evaluate=evaluate)
        (said,) = [text for text in caplog.messages if "epsilon does not count" in text]
        assert "accuracy" in said

    def test_examples_that_a_policy_sends_as_one_are_nothing_to_say(self, api, run, caplog):
        run(api.make("SignSGD", **OF_SIGNS, privacy_budget=BUDGET), train, MODEL, 3, 2)
        assert "epsilon does not count" not in caplog.text


class TestSubclasses:
    """What clients have answered counts, whatever a subclass makes of the messages."""

    def play(self, api, run, habitual, ask, **habits):
        budget = PrivacyBudget(epsilon=8.0, delta=1e-5)
        habits |= {"ask": ask, "privacy_budget": budget}
        strategy = habitual(api, "SignSGD", MODEL, **habits, **OF_SIGNS)
        outcome = run(strategy, train, MODEL, 4, 2)
        return outcome.reports[2]["epsilon"]

    def test_a_client_that_is_asked_three_times_counts_three_times(
        self, api, run, habitual, warnings
    ):
        def ask(number, model, usual):
            first, *others = usual(model)
            copies = [first.to(first.partition) for _ in range(2)] if number == 1 else []
            return [first, *copies, *others]

        assert self.play(api, run, habitual, ask) == MECHANISM.epsilon(1e-5, 3 + 1)
        assert len(warnings("round 1: a client has answered twice")) == 1

    def test_a_client_of_two_groups_that_are_heard_one_by_one_counts_twice(
        self, api, run, habitual, warnings
    ):
        def ask(number, model, usual):
            first, *others = usual(model)
            return [first, first.to(first.partition), *others]

        def hear(number, heard, usual):
            usual(heard[:1])
            return usual(heard[1:])

        assert self.play(api, run, habitual, ask, hear=hear) == MECHANISM.epsilon(1e-5, 4)
        assert len(warnings("round 1: a client has answered twice")) == 1

    def test_two_calls_that_ask_some_each_count_once(self, api, older_api, run, habitual, warnings):
        def ask(number, model, usual):
            odd = [one for one in usual(model) if one.partition % 2]
            return odd + [one for one in usual(model) if one.partition % 2 == 0]

        # There nobody knows whether those of the first call were sent anything.
        calls = 2 if api is older_api else 1
        assert self.play(api, run, habitual, ask) == MECHANISM.epsilon(1e-5, 2 * calls)
        assert not warnings("round")

    def test_a_client_that_is_asked_again_counts_again(self, make_app, as_record):
        """A loop may ask again if too few have answered, and aggregate the last replies alone."""
        budget = PrivacyBudget(epsilon=8.0, delta=1e-5)
        strategy = SignSGD(privacy_budget=budget, **OF_SIGNS)
        grid = InProcessGrid(make_app(train), 4)
        for _ in range(3):
            asked = strategy.configure_train(1, as_record(MODEL), ConfigRecord(), grid)
            replies = grid.send_and_receive(asked)
        _, metrics = strategy.aggregate_train(1, replies)
        assert metrics["epsilon"] == MECHANISM.epsilon(1e-5, 3)

    def test_a_run_that_starts_over_counts_on(self, api, run):
        budget = PrivacyBudget(epsilon=8.0, delta=1e-5)
        strategy = api.make("SignSGD", privacy_budget=budget, **OF_SIGNS)
        spent = [run(strategy, train, MODEL, 4, 1).reports[1]["epsilon"] for _ in range(3)]
        assert spent == [MECHANISM.epsilon(1e-5, rounds) for rounds in (1, 2, 3)]


class TestSampling:
    """One of four clients is drawn, and who sees the models alone does not know which."""

    BUDGET = PrivacyBudget(epsilon=5.0, delta=1e-5, sampling=0.25)

    def make(self, api, **options):
        hidden = {"fraction_train": 0.25, "min_train_nodes": 1, "privacy_budget": self.BUDGET}
        return api.make("SignSGD", **{**OF_SIGNS, **hidden, **options})

    def test_a_run_affords_more_rounds_where_it_stays_hidden_who_was_drawn(self, api, run):
        outcome = run(self.make(api), train, MODEL, 4, 40)
        rounds = len(outcome.reports)
        assert rounds == MECHANISM.rounds_within(self.BUDGET) > AFFORDED
        assert outcome.reports[rounds]["epsilon"] == MECHANISM.epsilon(
            1e-5, rounds, "replace", 0.25
        )

    def test_a_budget_that_counts_on_hiding_more_is_refused(self, api):
        with pytest.raises(ValueError, match=r"^privacy_budget must have sampling >= 0\.75"):
            self.make(api, fraction_train=0.75)

    def test_the_more_answers_a_round_takes_the_more_rounds_a_budget_affords(self, api, run):
        rounds, options = [], {"fraction_train": 0.1, "min_train_nodes": 3}
        budget = PrivacyBudget(3.0, 1e-5, sampling=0.1)
        for least in (1, 3):
            strategy = self.make(api, **options, min_replies=least, privacy_budget=budget)
            outcome = run(strategy, train, MODEL, 30, 40)
            rounds.append(len(outcome.reports))
            last = outcome.reports[rounds[-1]]["epsilon"]
            assert last == MECHANISM.epsilon(1e-5, rounds[-1], sampling=0.1, min_replies=least)
        assert 1 < rounds[0] < rounds[1] / 2 < 20

    def test_clients_that_a_subclass_asks_though_they_were_not_drawn_count_as_not_hidden(
        self, api, run, habitual, warnings
    ):
        def ask(number, model, usual):
            (first,) = usual(model)
            return [first.to(partition) for partition in range(4)] if number == 2 else [first]

        hidden = {"fraction_train": 0.25, "min_train_nodes": 1, "privacy_budget": self.BUDGET}
        strategy = habitual(api, "SignSGD", MODEL, ask=ask, **OF_SIGNS, **hidden)
        outcome = run(strategy, train, MODEL, 4, 3)
        expected = MECHANISM.epsilon_of({Draw(0.25): 2, Draw(): 1}, 1e-5)
        assert outcome.reports[3]["epsilon"] == expected
        (warning,) = warnings("round 2: clients answer that were not drawn")
        assert "a subclass must ask" in warning

    @pytest.mark.parametrize(
        ("steps", "counted"),
        [
            ([], 3),
            ([DivideByLearningRate(0.5)], 3),
            ([ClientMomentum(0.9)], 1),
            ([DivideByLearningRate(0.5), ClientMomentum(0.9)], 1),
            ([OwnStep()], 1),
        ],
        ids=str,
    )
    def test_the_answers_that_a_round_takes_count_where_no_step_can_remember_earlier_draws(
        self, steps, counted, api, run
    ):
        budget = PrivacyBudget(3.0, 1e-5, sampling=0.1)
        options = {"fraction_train": 0.1, "min_train_nodes": 3, "min_replies": 3}
        options |= {"client_steps": [*steps, Clip(2.0)], "privacy_budget": budget}
        reports = run(self.make(api, **options), train, MODEL, 30, 2).reports
        expected = MECHANISM.epsilon(1e-5, 2, sampling=0.1, min_replies=counted)
        assert reports[2]["epsilon"] == expected

    def test_epsilon_is_the_same_whoever_answers(self, api, run):
        def fail(model, partition):
            if partition:
                raise RuntimeError("not today")
            return train(model, partition)

        for client in (train, fail):
            strategy = self.make(api, max_failed_rounds=None)
            outcome = run(strategy, client, MODEL, 4, 8)
            assert outcome.reports[8]["epsilon"] == MECHANISM.epsilon(1e-5, 8, sampling=0.25)

    def test_a_draw_that_hides_less_for_answers_that_may_be_missing_is_not_asked(
        self, api, run, caplog
    ):
        own = {"min_train_nodes": 3, "min_replies": 2}
        with caplog.at_level(logging.WARNING), pytest.raises(RunFailedError):
            run(self.make(api, **own), train, MODEL, 12, 3)
        assert (
            "3 clients of 12 were drawn, which with min_replies=2 counts as a share of 0.2887"
            in caplog.text
        )
        assert "or min_replies to the number drawn" in caplog.text
        budget = PrivacyBudget(5.0, 1e-5, sampling=0.29)
        assert run(self.make(api, **own, privacy_budget=budget), train, MODEL, 12, 3).reports

    def test_a_run_that_resumes_counts_each_round_as_it_was_drawn(self, api, run, tmp_path):
        folder = {"checkpoint": Checkpoint(tmp_path)}
        run(self.make(api, **folder, privacy_budget=BUDGET), train, MODEL, 4, 2)
        run(self.make(api, **folder), train, MODEL, 4, 4)
        outcome = run(self.make(api, **folder), train, MODEL, 4, 5)
        counts = {Draw(): 2, Draw(0.25, 1): 3}
        assert outcome.reports[5]["epsilon"] == MECHANISM.epsilon_of(counts, 1e-5)
        assert Checkpoint(tmp_path).answered_rounds() == (counts, 5, MECHANISM)

    def test_a_round_that_asks_nobody_is_not_spent(self, message_api, run):
        class Often(type(message_api.make("SignSGD"))):
            def configure_train(self, server_round, arrays, config, grid):
                self.min_train_nodes = 1 if server_round % 2 else 3
                return super().configure_train(server_round, arrays, config, grid)

        options = {**OF_SIGNS, "fraction_train": 0.25, "privacy_budget": self.BUDGET}
        outcome = run(Often(**options), train, MODEL, 4, 4)
        spent = [report["epsilon"] for report in outcome.reports.values()]
        assert spent == [MECHANISM.epsilon(1e-5, n, sampling=0.25) for n in (1, 2)]

    @pytest.mark.parametrize("skips", ["never configured", "too many drawn"])
    def test_rounds_that_asked_nobody_cost_nothing_when_the_run_resumes(
        self, skips, message_api, run, tmp_path
    ):
        class Often(type(message_api.make("SignSGD"))):
            def configure_train(self, server_round, arrays, config, grid):
                if server_round % 2 == 0 and skips == "never configured":
                    return []
                self.min_train_nodes = 1 if server_round % 2 else 3
                return super().configure_train(server_round, arrays, config, grid)

        options = {**OF_SIGNS, "fraction_train": 0.25, "privacy_budget": self.BUDGET}
        for rounds in (4, 7):
            strategy = Often(**options, checkpoint=Checkpoint(tmp_path))
            outcome = run(strategy, train, MODEL, 4, rounds)
        found = {number: report["epsilon"] for number, report in outcome.reports.items()}
        costs = [MECHANISM.epsilon(1e-5, number, sampling=0.25) for number in range(1, 5)]
        assert found == dict(zip((1, 3, 5, 7), costs, strict=True))
        # Rounds without a budget may have asked everybody.
        plain = Often(**{**options, "privacy_budget": None}, checkpoint=Checkpoint(tmp_path))
        run(plain, train, MODEL, 4, 9)
        outcome = run(Often(**options, checkpoint=Checkpoint(tmp_path)), train, MODEL, 4, 11)
        counts = {Draw(0.25, 1): 5, Draw(): 2}
        assert outcome.reports[11]["epsilon"] == MECHANISM.epsilon_of(counts, 1e-5)

    def test_nobody_is_asked_in_a_round_of_which_a_larger_share_was_drawn(self, api, run, caplog):
        asked = []

        def note(model, partition):
            asked.append(partition)
            return train(model, partition)

        strategy = self.make(api, min_train_nodes=3)
        with caplog.at_level(logging.WARNING), pytest.raises(RunFailedError, match="sampling"):
            run(strategy, note, MODEL, 4, 3)
        assert not asked
        assert "3 clients of 4 were drawn" in caplog.text
        assert "set sampling to that share" in caplog.text
        assert "or min_replies to" not in caplog.text  # with one answer it hides no more


class Killed(BaseException):
    """Stands for the end of the process."""


class TestCheckpoint:
    def make(self, api, folder, every=1, budget=BUDGET):
        checkpoint = None if folder is None else Checkpoint(folder, every)
        return api.make("SignSGD", **OF_SIGNS, privacy_budget=budget, checkpoint=checkpoint)

    def test_a_run_that_resumes_counts_what_was_spent(self, api, run, tmp_path):
        run(self.make(api, tmp_path), train, MODEL, 3, 2)
        outcome = run(self.make(api, tmp_path), train, MODEL, 3, AFFORDED + 2)
        assert max(outcome.reports) == AFFORDED
        assert outcome.reports[AFFORDED]["epsilon"] == MECHANISM.epsilon(1e-5, AFFORDED)

    def test_numbers_of_numpy_are_stored_like_others(self, api, run, tmp_path):
        budget = PrivacyBudget(np.float32(5.0), 1e-5, sampling=np.float32(0.5))
        own = {"privacy_budget": budget, "checkpoint": Checkpoint(tmp_path)}
        strategy = api.make(
            "SignSGD", **OF_SIGNS, **own, min_replies=np.int64(2), fraction_train=0.5
        )
        run(strategy, train, MODEL, 4, 1)
        assert Checkpoint(tmp_path).answered_rounds()[0] == {Draw(0.5, 2): 1}

    def test_rounds_that_were_lost_with_the_process_are_spent(self, api, run, tmp_path):
        strategy = self.make(api, tmp_path, every=2)
        configure_evaluate = strategy.configure_evaluate

        def configure(server_round, *arguments, **named):
            if server_round == 3:
                raise Killed
            return configure_evaluate(server_round, *arguments, **named)

        strategy.configure_evaluate = configure
        with pytest.raises(Killed):
            run(strategy, train, MODEL, 3, AFFORDED)
        outcome = run(self.make(api, tmp_path, every=2), train, MODEL, 3, AFFORDED)
        assert max(outcome.reports) == AFFORDED - 1  # round 3 was asked for twice
        assert outcome.reports[AFFORDED - 1]["epsilon"] == MECHANISM.epsilon(1e-5, AFFORDED)

    @pytest.mark.parametrize(
        ("strategy", "changed"),
        [
            ("SignSGD", {"noise": Gaussian(80.0)}),
            ("SignSGD", {"client_steps": [Clip(1.0)]}),
            ("MedianSGD", {"noise": Gaussian(8.0)}),
        ],
    )
    def test_rounds_that_were_lost_with_the_process_had_the_noise_that_they_had(
        self, strategy, changed, api, run, tmp_path
    ):
        """No checkpoint is left that knows the noise, but the count does."""
        Checkpoint(tmp_path).note_answered_rounds({Draw(): 2}, 2, MECHANISM)
        options = OF_SIGNS if strategy == "SignSGD" else HIDDEN
        own = {**options, **changed, "privacy_budget": PrivacyBudget(50.0, 1e-5)}
        with pytest.raises(ValueError, match=r"counts rounds in which clients sent the signs of"):
            run(api.make(strategy, **own, checkpoint=Checkpoint(tmp_path)), train, MODEL, 3, 3)
        assert Checkpoint(tmp_path).answered_rounds() == ({Draw(): 2}, 2, MECHANISM)

    def test_a_run_whose_budget_is_spent_returns_what_it_has(self, message_api, run, tmp_path):
        first = run(self.make(message_api, tmp_path), train, MODEL, 3, AFFORDED)
        again = run(self.make(message_api, tmp_path), train, MODEL, 3, AFFORDED + 3)
        assert again.reports == first.reports
        assert all(np.array_equal(again.model[name], first.model[name]) for name in MODEL)

    def test_it_may_resume_with_another_budget_and_a_run_without_one_is_counted(
        self, api, run, tmp_path
    ):
        run(self.make(api, tmp_path, budget=None), train, MODEL, 3, 2)
        outcome = run(self.make(api, tmp_path), train, MODEL, 3, 3)
        assert outcome.reports[3]["epsilon"] == MECHANISM.epsilon(1e-5, 3)

    @pytest.mark.parametrize("is_in_the_way", [False, True], ids=["moved", "replaced"])
    def test_a_folder_that_is_lost_in_mid_run_is_a_warning_and_the_budget_holds(
        self, is_in_the_way, api, run, tmp_path, warnings
    ):
        folder = tmp_path / "run"

        def lose(model, partition):
            if folder.is_dir() and (folder / "round-000001").exists():
                folder.rename(tmp_path / "moved")
                if is_in_the_way:
                    folder.write_text("in the way")
            return train(model, partition)

        outcome = run(self.make(api, folder), lose, MODEL, 3, AFFORDED + 2)
        assert max(outcome.reports) == AFFORDED
        assert outcome.reports[AFFORDED]["epsilon"] == MECHANISM.epsilon(1e-5, AFFORDED)
        lost = [
            text for text in warnings("could not record in") if "that round 3 was asked" in text
        ]
        assert len(lost) == 1
        assert str(folder) in lost[0]

    def test_a_count_that_could_not_be_written_for_a_while_is_whole_again(
        self, api, run, tmp_path, monkeypatch, warnings
    ):
        note, rounds = Checkpoint.note_answered_rounds, []

        def fail(checkpoint, counts, *others):
            rounds.append(counts[Draw()])
            if counts[Draw()] == 2:
                raise OSError(ENOSPC, "No space left on device")
            note(checkpoint, counts, *others)

        monkeypatch.setattr(Checkpoint, "note_answered_rounds", fail)
        run(self.make(api, tmp_path), train, MODEL, 3, 3)
        assert rounds == [1, 2, 3]
        (warning,) = warnings("could not record in")
        assert "that round 2 was asked ([Errno 28] No space left on device)" in warning
        assert Checkpoint(tmp_path).answered_rounds() == ({Draw(): 3}, 3, MECHANISM)

    def test_a_run_whose_folder_a_later_one_has_taken_over_leaves_the_count_as_it_is(
        self, tmp_path
    ):
        recipe = Recipe(noise=Gaussian(8.0), client_steps=[Clip(2.0)])
        checkpoint = Checkpoint(tmp_path)
        options = RunOptions(privacy_budget=BUDGET, checkpoint=checkpoint)
        first, later = (
            RoundProtocol(recipe, options, ledger=Ledger.of_strategy(recipe, options, 1.0, 0.0))
            for _ in range(2)
        )
        for run, number in ((first, 1), (later, 1), (later, 2)):
            question = run.ask(number, MODEL)
            assert run.may_ask(question, range(3), 3)
        counted = checkpoint.answered_rounds()
        with pytest.raises(RuntimeError, match="is in use by another run"):
            first.hear(first.last_question, range(3), [], None)
        assert checkpoint.answered_rounds() == counted

    def test_a_damaged_count_is_refused_by_its_file(self, api, run, tmp_path):
        Checkpoint(tmp_path).note_answered_rounds({Draw(): 2}, 7, MECHANISM)
        assert Checkpoint(tmp_path).answered_rounds() == ({Draw(): 2}, 7, MECHANISM)
        (tmp_path / "answered-rounds.json").write_text("-1")
        with pytest.raises(ValueError, match=r"answered-rounds\.json cannot be read"):
            run(self.make(api, tmp_path), train, MODEL, 3, 1)

    def test_no_bit_of_a_count_can_flip_unseen(self, tmp_path):
        checkpoint, path = Checkpoint(tmp_path), tmp_path / "answered-rounds.json"
        counts = {Draw(0.1, 8, 80): 37, Draw(): 2}
        checkpoint.note_answered_rounds(counts, 41, MECHANISM)
        whole = path.read_bytes()
        for bit in range(8 * len(whole)):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            with suppress(ValueError):
                assert checkpoint.answered_rounds() == (counts, 41, MECHANISM)


class TestSecureSums:
    SECURE = SecureSum(0.8)
    NUM_CLIENTS, ROUNDS = 10, 4
    LIMIT = 2.0  # one entry of so few may be all of a clipped update

    def make(self, message_api, budget, kind=SignSGD, **options):
        own = {"weighted": False, "secure": self.SECURE, "rotation": Rotation(100)}
        return message_api.make_own(kind, **HIDDEN, **own, privacy_budget=budget, **options)

    def epsilon(self, *votes, delta=1e-5):
        draws = [Draw(summed=honest_of(0.8, number)) for number in votes]
        mechanism = Mechanism(2.0, 8.0, limit=self.LIMIT)
        return mechanism.epsilon_of({draw: draws.count(draw) for draw in draws}, delta)

    def run(
        self, message_api, run, budget, rounds=ROUNDS, lost=None, grid=InProcessGrid, **options
    ):
        def train_or_fail(model, partition):
            if partition in (lost or ()):
                raise RuntimeError
            return train(model, partition)

        strategy = self.make(message_api, budget, **options)
        outcome = run(strategy, train_or_fail, MODEL, self.NUM_CLIENTS, rounds, grid=grid)
        return strategy, outcome

    def test_the_mechanism_is_known_in_the_first_round(self, message_api, run):
        strategy = self.make(message_api, None)
        assert "known in the first round" in str(strategy.privacy)
        run(strategy, train, MODEL, self.NUM_CLIENTS, 1)
        assert strategy.privacy == Mechanism(2.0, 8.0, limit=self.LIMIT)

    def test_reasons_against_any_mechanism_are_known_before(self):
        with pytest.raises(ValueError, match=r"^privacy_budget must be None .*Laplace"):
            SignSGD(
                **HIDDEN | {"noise": Laplace(8.0)},
                weighted=False,
                secure=self.SECURE,
                privacy_budget=BUDGET,
            )

    @pytest.mark.parametrize("lost", [(), (3,), (3, 7)])
    def test_each_round_counts_the_votes_in_its_sum(self, lost, message_api, run):
        _, outcome = self.run(message_api, run, PrivacyBudget(50.0, 1e-5), lost=lost)
        for number, report in outcome.reports.items():
            votes = [self.NUM_CLIENTS - len(lost)] * number
            assert report["epsilon"] == pytest.approx(self.epsilon(*votes))

    def test_a_sum_that_is_not_opened_counts_as_one_of_the_fewest_votes(self, message_api, run):
        _, outcome = self.run(message_api, run, PrivacyBudget(50.0, 1e-5), 1, lost=(1, 2, 3))
        assert outcome.reports[1]["epsilon"] == pytest.approx(self.epsilon(8))

    @pytest.mark.parametrize(("lost", "votes"), [((), 5), ((0, 2), SECURE.least(5))])
    def test_a_subclass_that_asks_fewer_than_were_drawn_is_charged_for_these(
        self, lost, votes, message_api, run
    ):
        class Half(SignSGD):
            def configure_train(self, *arguments):
                asked = super().configure_train(*arguments)
                return [one for one in asked if one.metadata.dst_node_id % 2 == 0]

        budget = PrivacyBudget(self.epsilon(self.SECURE.least(5)) * 1.001, 1e-5)
        _, outcome = self.run(message_api, run, budget, 1, lost, kind=Half)
        assert outcome.reports[1]["epsilon"] == pytest.approx(self.epsilon(votes))

    def test_no_client_is_asked_once_the_fewest_votes_would_exceed_the_budget(
        self, message_api, run, caplog
    ):
        budget = PrivacyBudget(self.epsilon(10, 10, 8) * 1.001, 1e-5)
        _, outcome = self.run(message_api, run, budget)
        answered = [number for number, one in outcome.reports.items() if "epsilon" in one]
        assert answered == [1, 2, 3]
        assert any("would exceed the privacy budget" in text for text in caplog.messages)

    def test_once_it_is_spent_no_client_is_asked_for_a_key_and_no_round_fails(
        self, message_api, run
    ):
        asked = []

        class Ending(InProcessGrid):
            def send_and_receive(self, messages, *, timeout=None):
                messages = list(messages)
                asked.extend(one.metadata.group_id for one in messages)
                replies = super().send_and_receive(messages, timeout=timeout)
                return [] if "2" in asked else replies

        budget = PrivacyBudget(self.epsilon(10, 8) * 1.001, 1e-5)
        _, outcome = self.run(message_api, run, budget, 8, grid=Ending)
        assert max(asked) == "2"
        assert outcome.reports[1]["replies-accepted"] == self.NUM_CLIENTS

    def test_a_budget_for_less_than_a_round_is_refused_before_a_client_is_asked(
        self, message_api, run
    ):
        class Silent(InProcessGrid):
            def send_and_receive(self, messages, *, timeout=None):
                raise AssertionError("nobody is to be asked")

        budget = PrivacyBudget(self.epsilon(8) * 0.99, 1e-5)
        with pytest.raises(ValueError, match=r"^privacy_budget must afford a round, which costs"):
            self.run(message_api, run, budget, grid=Silent)

    def test_what_was_spent_counts_when_the_run_resumes(self, message_api, run, tmp_path):
        own = {"checkpoint": Checkpoint(tmp_path)}
        budget = PrivacyBudget(50.0, 1e-5)
        self.run(message_api, run, budget, 2, **own)
        _, outcome = self.run(message_api, run, budget, 3, lost=(4,), **own)
        assert outcome.reports[3]["epsilon"] == pytest.approx(self.epsilon(10, 10, 9))

    @pytest.mark.parametrize(
        ("earlier", "is_refused"),
        [
            (Mechanism(2.0, 8.0, limit=1.0), False),
            (Mechanism(2.0, 8.0, limit=9.0), False),
            (Mechanism(2.0, 4.0, limit=2.0), True),
        ],
    )
    def test_a_lost_round_had_the_noise_and_at_least_the_limit_that_it_had(
        self, earlier, is_refused, message_api, run, tmp_path
    ):
        checkpoint = Checkpoint(tmp_path)
        checkpoint.note_answered_rounds({Draw(summed=8): 1}, 1, earlier)
        options = {"budget": PrivacyBudget(50.0, 1e-5), "rounds": 1, "checkpoint": checkpoint}
        if is_refused:
            with pytest.raises(ValueError, match=r"counts rounds in which clients sent .* of 4"):
                self.run(message_api, run, **options)
        else:
            _, outcome = self.run(message_api, run, **options)
            largest = Mechanism(2.0, 8.0, limit=max(earlier.limit, self.LIMIT))
            spent = largest.epsilon_of({Draw(summed=6): 1, Draw(summed=8): 1}, 1e-5)
            assert outcome.reports[1]["epsilon"] == pytest.approx(spent)

    @pytest.fixture
    def ledger_of(self):
        def make(epsilon, sampling=1.0, **options):
            recipe = Recipe(
                noise=Gaussian(8.0),
                client_steps=[Clip(2.0)],
                rotation=Rotation(100),
                secure=self.SECURE,
            )
            budget = PrivacyBudget(epsilon, 1e-5, sampling=sampling, **options)
            options = RunOptions(privacy_budget=budget)
            return recipe, Ledger.of_strategy(recipe, options, sampling, 0.0)

        return make

    def test_a_larger_model_does_not_make_earlier_rounds_cheaper(self, ledger_of):
        recipe, ledger = ledger_of(50.0)
        assert ledger.spend(recipe.ask(RunState(), 1, MODEL), range(10))
        before = ledger.report["epsilon"]
        larger = {"0": np.zeros(10_000, np.float32)}
        assert ledger.spend(recipe.ask(RunState(), 2, larger), range(10))
        assert ledger.report["epsilon"] > before

    def test_a_round_of_few_clients_is_left_out_and_the_next_of_many_is_asked(
        self, ledger_of, caplog
    ):
        recipe, ledger = ledger_of(self.epsilon(10, 10) * 1.001)
        assert ledger.spend(recipe.ask(RunState(), 1, MODEL), range(12))
        assert not ledger.spend(recipe.ask(RunState(), 2, MODEL), range(3))
        assert "in a sum of 3 clients would exceed the privacy budget" in caplog.text
        assert ledger.spend(recipe.ask(RunState(), 3, MODEL), range(12))

    @pytest.mark.parametrize("votes", [(8, 10), (10, 8)])
    def test_groups_that_answer_one_question_count_as_the_smaller_of_their_sums(
        self, votes, ledger_of
    ):
        recipe, ledger = ledger_of(50.0)
        question = recipe.ask(RunState(), 1, MODEL)
        for nodes in (range(10), range(10, 20)):
            assert ledger.spend(question, nodes)
        for number in votes:
            ledger.settle(question, number)
        assert ledger.report["epsilon"] == pytest.approx(self.epsilon(8))

    @pytest.mark.parametrize("drawn", [(10, 10), (20, 10), (10, 20)])
    @pytest.mark.parametrize("sampling", [0.5, 1.0])
    def test_each_draw_of_groups_of_which_fewer_are_asked_counts_as_the_smaller_of_their_sums(
        self, sampling, drawn, ledger_of
    ):
        recipe, ledger = ledger_of(50.0, sampling)
        question = recipe.ask(RunState(), 1, MODEL)
        for number in drawn:
            assert ledger.spend(question, range(number))
        for _ in drawn:
            assert ledger.recharge(question, range(6))
        for votes in (6, 5):
            ledger.settle(question, votes)
        draw = Draw(sampling, summed=honest_of(0.8, 5))
        mechanism, draws = Mechanism(2.0, 8.0, limit=self.LIMIT), 2 if sampling < 1 else 1
        epsilon = mechanism.epsilon_of({draw: draws}, 1e-5)
        assert ledger.report["epsilon"] == pytest.approx(epsilon)

    def test_groups_count_as_the_fewest_votes_until_each_has_had_its_sum(self, ledger_of):
        """A sum that is of no use may have been seen: a hostile client can spoil an open one."""
        recipe, ledger = ledger_of(50.0)
        question = recipe.ask(RunState(), 1, MODEL)
        for nodes in (range(10), range(10, 15)):
            assert ledger.spend(question, nodes)
        ledger.settle(question, 10)
        assert ledger.report["epsilon"] == pytest.approx(self.epsilon(self.SECURE.least(5)))
        ledger.settle(question, 5)
        assert ledger.report["epsilon"] == pytest.approx(self.epsilon(5))

    def test_another_share_of_honest_clients_counts_for_earlier_rounds_too(self, ledger_of):
        spent = []
        for honest in (0.8, 0.5):
            recipe, ledger = ledger_of(50.0, honest=honest)
            question = recipe.ask(RunState(), 1, MODEL)
            assert ledger.spend(question, range(10))
            ledger.settle(question, 10)
            spent.append((dict(ledger._answered), ledger.report["epsilon"]))
        (rounds, first), (others, second) = spent
        assert rounds == others
        assert first < second
