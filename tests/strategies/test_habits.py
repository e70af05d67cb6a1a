"""What people do in subclasses of Flower's strategies: what was sent counts, whoever has made it.

They filter, re-address and drop the messages that a strategy makes, skip rounds, train two groups
of nodes in one round, and leave out what a strategy returns. A report says the truth about the
messages that were sent.
"""

import pickle
from collections import Counter
from copy import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.server.strategy import FedAvg as OlderFedAvg
from flwr.serverapp.strategy import FedAvg

from fedmedian import Adaptive, ClientMomentum, CodedSteps, Gaussian, Momentum, SecureSum
from fedmedian.clients import InProcessGrid, perturb
from fedmedian.rounds.watch import RunFailedError
from fedmedian.rules.optimizers import Optimizer
from fedmedian.strategies import Checkpoint, SignSGD
from tests.tools.apis import each_pair

NUM_CLIENTS = 10
ODD = range(1, NUM_CLIENTS, 2)
MODEL = {"w": np.zeros((30, 40), np.float32)}
GOAL = 2.0
COUNTS = ("replies-accepted", "replies-rejected", "replies-missing")


def aim(name, array):
    return GOAL


def crash(message, context, call_next):
    raise RuntimeError("out of memory")


def counts(report):
    return tuple(report[name] for name in COUNTS)


MAKES = ("SignSGD", "MedianSGD")
either_strategy = each_pair("make", MAKES)


@pytest.fixture
def play(make, api, habitual, seeking, run, warnings):
    """Runs a strategy with habits; returns the outcome and what is warned of its rounds."""

    def play(num_rounds=4, aim=aim, grid=InProcessGrid, mods=(perturb,), **options):
        options = {"fraction_evaluate": 0.0, "seed": 1} | options
        strategy = habitual(api, make, MODEL, **options)
        app = seeking(api, aim, mods, NUM_CLIENTS)
        outcome = run(strategy, app, MODEL, NUM_CLIENTS, num_rounds, grid=grid)
        return outcome, [text for text in warnings() if not text.startswith("fraction_")]

    return play


def require_counts(outcome, rounds, expected):
    assert {number: counts(outcome.reports[number]) for number in outcome.reports} == dict.fromkeys(
        rounds, expected
    )


def copied(message):
    """Return a copy of a message of the Message API, of whose id nobody knows."""
    kept = {name: getattr(message.metadata, name) for name in ("message_type", "group_id")}
    return Message(message.content, dst_node_id=message.metadata.dst_node_id, **kept)


def losing(*partitions):
    """Make a kind of grid on which the replies of some partitions get lost."""

    class Losing(InProcessGrid):
        def send_and_receive(self, messages, **options):
            lost = [self.get_node_ids()[partition] for partition in partitions]
            replies = super().send_and_receive(messages, **options)
            return [one for one in replies if one.metadata.src_node_id not in lost]

    return Losing


def near_goal(model, num_rounds):
    """Tell whether the mean is about where FedAvg's would be."""
    return np.mean(model["w"]) == pytest.approx(GOAL * (1 - 0.5**num_rounds), abs=0.2)


@either_strategy
class TestWhoIsAsked:
    def test_without_habits_all_are_heard(self, play):
        outcome, warned = play()
        require_counts(outcome, range(1, 5), (NUM_CLIENTS, 0, 0))
        assert near_goal(outcome.model, 4)
        assert not warned

    def test_messages_that_a_subclass_drops_are_not_missed(self, play):
        def ask(number, model, usual):
            return [one for one in usual(model) if one.partition in ODD]

        outcome, warned = play(ask=ask)
        require_counts(outcome, range(1, 5), (len(ODD), 0, 0))
        assert near_goal(outcome.model, 4)
        assert not warned

    @pytest.mark.parametrize("drawn", [0.4, 0.5], ids=["to more", "to as many"])
    def test_content_that_is_sent_to_others_than_were_drawn_is_answered_by_them(self, drawn, play):
        def ask(number, model, usual):
            (first, *_) = usual(model)
            return [first.to(partition) for partition in ODD]

        outcome, warned = play(ask=ask, fraction_train=drawn)
        require_counts(outcome, range(1, 5), (len(ODD), 0, 0))
        assert near_goal(outcome.model, 4)
        assert not warned

    def test_more_may_be_asked_than_were_drawn(self, play):
        def ask(number, model, usual):
            asked = usual(model)
            drawn = {one.partition for one in asked}
            return asked + [asked[0].to(i) for i in range(NUM_CLIENTS) if i not in drawn]

        outcome, warned = play(ask=ask, fraction_train=0.5)
        require_counts(outcome, range(1, 5), (NUM_CLIENTS, 0, 0))
        assert near_goal(outcome.model, 4)
        assert not warned

    def test_one_question_may_be_made_for_each_of_two_groups(self, play):
        def ask(number, model, usual):
            odd = [one for one in usual(model) if one.partition in ODD]
            return odd + [one for one in usual(model) if one.partition not in ODD]

        outcome, warned = play(ask=ask)
        require_counts(outcome, range(1, 5), (NUM_CLIENTS, 0, 0))
        assert near_goal(outcome.model, 4)
        assert not warned

    def test_each_of_two_groups_is_drawn_anew(self, play):
        drawn = []

        def ask(number, model, usual):
            groups = [usual(model), usual(model)]
            drawn.append([{one.partition for one in group} for group in groups])
            return groups[0]

        for _ in range(2):
            play(ask=ask, fraction_train=0.5)
        assert all(first != second for first, second in drawn)
        assert drawn[:4] == drawn[4:]

    def test_nodes_of_a_group_that_is_silent_count_as_missing(self, play):
        def ask(number, model, usual):
            odd = [one for one in usual(model) if one.partition in ODD]
            return odd + [one for one in usual(model) if one.partition not in ODD]

        outcome, _ = play(ask=ask, grid=losing(*ODD))
        others = NUM_CLIENTS - len(ODD)
        require_counts(outcome, range(1, 5), (others, 0, len(ODD)))

    @pytest.mark.parametrize("drawn", [0.4, 0.5, 1.0])
    def test_nodes_that_were_not_drawn_count_as_missing_if_they_are_asked_and_silent(
        self, drawn, play
    ):
        def ask(number, model, usual):
            (first, *_) = usual(model)
            return [first.to(partition) for partition in ODD]

        outcome, _ = play(ask=ask, grid=losing(1, 3), fraction_train=drawn)
        require_counts(outcome, range(1, 5), (len(ODD) - 2, 0, 2))
        sizes = {report["downlink-bytes"] for report in outcome.reports.values()}
        assert max(sizes) < 1.1 * MODEL["w"].nbytes

    def test_a_round_in_which_none_of_these_replies_has_failed(self, play):
        def ask(number, model, usual):
            (first, *_) = usual(model)
            return [first.to(partition) for partition in ODD]

        with pytest.raises(RunFailedError, match="rounds 1 to 3 made no new model"):
            play(ask=ask, grid=losing(*ODD))

    def test_a_round_that_asks_about_another_model_and_has_no_replies_has_failed(self, play):
        def ask(number, model, usual):
            usual(model)
            return usual({"w": model["w"] + 1})

        with pytest.raises(RunFailedError, match="rounds 1 to 3 made no new model"):
            play(ask=ask, grid=losing(*range(NUM_CLIENTS)))

    def test_downlink_bytes_are_those_of_what_was_sent(self, play):
        def ask(number, model, usual):
            return [one for one in usual(model) if number == 1 or one.partition in ODD]

        usual, _ = play(downlink=CodedSteps())
        outcome, _ = play(ask=ask, downlink=CodedSteps())
        sizes = [[one.reports[n]["downlink-bytes"] for n in (2, 3, 4)] for one in (outcome, usual)]
        assert sizes[0] == sizes[1]

    def test_messages_that_are_kept_for_the_next_round_fail_with_the_remedy(self, play):
        kept = [[]]

        def ask(number, model, usual):
            kept.append(usual(model))
            return kept[-2]

        with pytest.raises(RunFailedError, match="send each message in the round that it was made"):
            play(ask=ask)


@either_strategy
class TestRoundsThatAskNobody:
    def test_all_messages_of_a_round_may_be_dropped(self, play):
        def ask(number, model, usual):
            asked = usual(model)
            return asked if number % 2 else []

        outcome, warned = play(4, ask=ask)
        require_counts(outcome, (1, 3), (NUM_CLIENTS, 0, 0))
        assert near_goal(outcome.model, 2)
        assert not warned

    def test_training_may_be_left_out_of_each_second_round(self, play):
        def ask(number, model, usual):
            return usual(model) if number % 2 == 0 else []

        outcome, warned = play(4, ask=ask)
        require_counts(outcome, (2, 4), (NUM_CLIENTS, 0, 0))
        assert near_goal(outcome.model, 2)
        assert not warned

    def test_replies_of_a_round_may_be_thrown_away(self, play):
        def hear(number, heard, usual):
            return usual(heard) if number % 2 else (None, None)

        outcome, warned = play(4, hear=hear)
        require_counts(outcome, (1, 3), (NUM_CLIENTS, 0, 0))
        assert near_goal(outcome.model, 2)
        assert not warned

    def test_replies_that_are_thrown_away_are_not_missed_in_a_round_that_asks_nobody(self, play):
        def ask(number, model, usual):
            return usual(model) if number % 2 else []

        def hear(number, heard, usual):
            return (None, None) if number == 1 else usual(heard)

        outcome, warned = play(4, ask=ask, hear=hear)
        require_counts(outcome, (3,), (NUM_CLIENTS, 0, 0))
        assert not warned

    def test_a_run_that_stops_early_is_the_run_until_then(self, play):
        def until_then(number, model, usual):
            return usual(model) if number <= 3 else []

        outcome, warned = play(
            10, ask=until_then, ask_to_evaluate=until_then, fraction_evaluate=1.0
        )
        require_counts(outcome, (1, 2, 3), (NUM_CLIENTS, 0, 0))
        assert list(outcome.evaluations) == [1, 2, 3]
        assert near_goal(outcome.model, 3)
        assert not warned

    @pytest.mark.parametrize("first_ask", [False, True], ids=["not asked for", "dropped"])
    def test_evaluation_may_be_left_to_each_second_round(self, first_ask, play):
        def ask_to_evaluate(number, model, usual):
            asked = usual(model) if first_ask or number % 2 == 0 else []
            return asked if number % 2 == 0 else []

        outcome, warned = play(4, ask_to_evaluate=ask_to_evaluate, fraction_evaluate=1.0)
        require_counts(outcome, range(1, 5), (NUM_CLIENTS, 0, 0))
        mean = pytest.approx(np.mean(range(NUM_CLIENTS)))
        losses = {number: report["loss"] for number, report in outcome.evaluations.items()}
        assert losses == {2: mean, 4: mean}
        assert not warned

    @pytest.mark.parametrize("drawn", [0.3, 0.5], ids=["more", "as many"])
    def test_evaluation_may_ask_some_and_others_than_were_drawn(self, drawn, play):
        def ask_to_evaluate(number, model, usual):
            (first, *_) = usual(model)
            return [first.to(partition) for partition in ODD]

        outcome, warned = play(2, ask_to_evaluate=ask_to_evaluate, fraction_evaluate=drawn)
        assert [report["loss"] for report in outcome.evaluations.values()] == [np.mean(ODD)] * 2
        assert not warned


@either_strategy
class TestTwoModels:
    """Clusters of nodes, each with a model of its own, in the same rounds."""

    @pytest.fixture
    def clusters(self, play):
        """Trains some models, one per start; returns all and the reports."""

        def clusters(*starts, trained=lambda number: (0, 1), hear_of=None, after=None, **options):
            models = [{"w": np.full(MODEL["w"].shape, start, np.float32)} for start in starts]
            reports = []

            def of_cluster(letters, odd):
                return [one for one in letters if one.partition % 2 == odd]

            def ask(number, model, usual):
                odds = trained(number)
                return [one for odd in odds for one in of_cluster(usual(models[odd]), odd)]

            def hear(number, heard, usual):
                metrics = None
                for odd in trained(number):
                    own = of_cluster(heard, odd)
                    model, metrics = usual(own if hear_of is None else hear_of(number, odd, own))
                    models[odd] = models[odd] if model is None else model
                    if after is not None:
                        models[odd] = after(models[odd])
                    reports.append(metrics and counts(metrics))
                return models[0], metrics

            return models, reports, *play(4, ask=ask, hear=hear, **options)

        return clusters

    STARTS = (GOAL - 8, GOAL + 8)

    @pytest.fixture
    def require_alone(self, clusters, bits):
        """Asserts that each of two models is trained as if it were the only one, to the bit."""

        def require_alone(trained=lambda number: (0, 1), starts=self.STARTS, **options):
            options = {"optimizer": Momentum(0.5), **options}
            both, *_ = clusters(*starts, trained=trained, **options)
            for one in (0, 1):

                def own(number, one=one):
                    return [one] if one in trained(number) else []

                alone, *_ = clusters(*starts, trained=own, **options)
                assert bits(both[one]) == bits(alone[one])
                assert abs(np.mean(both[one]["w"]) - GOAL) < 6

        return require_alone

    def test_each_cluster_is_heard_by_itself(self, clusters, caplog):
        models, reports, outcome, warned = clusters(0.0, 0.0)
        assert [one for one in caplog.messages if one.startswith("arrays sent in 4 rounds, ")]
        assert reports == [(NUM_CLIENTS // 2, 0, 0)] * 8
        assert list(outcome.reports) == [1, 2, 3, 4]
        assert all(np.mean(model["w"]) > 0.75 * GOAL for model in models)
        assert not warned

    def test_each_is_trained_as_if_it_were_alone(self, require_alone):
        require_alone()

    def test_they_may_begin_with_the_same_model(self, require_alone):
        require_alone(starts=(GOAL + 8, GOAL + 8))

    def test_one_of_the_same_model_may_lose_a_round(self, require_alone):
        def hear_of(number, odd, letters):
            return letters[:1] if (number, odd) == (1, 0) else letters

        require_alone(starts=(GOAL + 8, GOAL + 8), hear_of=hear_of, min_replies=2)

    def test_one_may_lose_a_round(self, require_alone):
        def hear_of(number, odd, letters):
            return letters[:1] if (number, odd) == (2, 0) else letters

        require_alone(hear_of=hear_of, min_replies=2)

    def test_replies_to_copies_of_messages_answer_the_question_that_they_name(self, play, api):
        if api.name == "older API":
            pytest.skip("there replies name no message at all")

        def of_cluster(letters, odd):
            return [one for one in letters if one.partition % 2 == odd]

        def ask(number, model, usual):
            asked = [one for odd in (0, 1) for one in of_cluster(usual(models[odd]), odd)]
            return [replace(one, raw=copied(one.raw)) for one in asked]

        def hear(number, heard, usual):
            for odd in (1, 0):  # not in the order of the questions
                models[odd], metrics = usual(of_cluster(heard, odd))
            return models[0], metrics

        models = [{"w": np.full(MODEL["w"].shape, start, np.float32)} for start in self.STARTS]
        outcome, warned = play(ask=ask, hear=hear)
        require_counts(outcome, range(1, 5), (NUM_CLIENTS // 2, 0, 0))
        assert all(abs(np.mean(model["w"]) - GOAL) < 4 for model in models)
        assert not warned

    @pytest.mark.parametrize(
        ("mods", "reason"),
        [([crash, perturb], "out of memory"), ([], r"mods=\[perturb\]")],
        ids=["that crash", "without the mod"],
    )
    def test_a_run_ends_if_all_clients_fail(self, mods, reason, clusters):
        with pytest.raises(RunFailedError, match=reason):
            clusters(*self.STARTS, mods=mods)

    def test_what_one_reports_stays_where_the_other_loses_all_replies(self, play):
        asked, starts = Counter(), [{"w": np.full(MODEL["w"].shape, one, "f4")} for one in (0, 9)]

        def of_cluster(letters, odd):
            return [one for one in letters if one.partition % 2 == odd]

        def ask(number, model, usual):
            return [one for odd in (0, 1) for one in of_cluster(usual(starts[odd]), odd)]

        def hear(number, heard, usual):
            first, _ = [usual(of_cluster(heard, odd)) for odd in (0, 1)]
            return first

        def spoil(message, context, call_next):
            reply = call_next(message, context)
            asked[context.node_id] += 1
            if context.node_config["partition-id"] in ODD and asked[context.node_id] == 2:
                for record in reply.content.config_records.values():
                    if "fedmedian.payload" in record:
                        record["fedmedian.payload"] = 99
            return reply

        outcome, _ = play(3, ask=ask, hear=hear, mods=(spoil, perturb))
        require_counts(outcome, range(1, 4), (NUM_CLIENTS // 2, 0, 0))
        assert outcome.reports[2].keys() == outcome.reports[1].keys()

    def test_they_may_be_trained_by_turns(self, require_alone):
        require_alone(lambda number: [number % 2])

    def test_one_may_rest_in_some_rounds(self, require_alone):
        require_alone(lambda number: (0, 1) if number % 2 else (0,))

    def test_they_may_be_changed_between_rounds(self, require_alone):
        require_alone(after=lambda model: {"w": model["w"] + np.float32(1e-3)})

    def test_two_liars_of_five_do_not_turn_a_cluster_into_the_other(self, older_api, clusters, api):
        if api is not older_api:
            pytest.skip("there a reply's question is not the client's to say")

        def hear_of(number, odd, letters):
            for letter in letters[:lying] if odd else ():
                letter.raw[1].metrics.pop("fedmedian.question")
            return letters

        lying = 2
        (_, model), reports, *_ = clusters(*self.STARTS, hear_of=hear_of)
        assert GOAL < np.mean(model["w"]) < GOAL + 4
        assert reports[1::2] == [(3, 2, 0)] * 4

    def test_a_client_without_the_mod_does_not_say_which_it_has_trained(
        self, older_api, clusters, api, caplog
    ):
        if api is not older_api:
            pytest.skip("there a reply's question is not the client's to say")

        def hear_of(number, odd, letters):
            metrics = letters[0].raw[1].metrics
            for key in [key for key in metrics if key.startswith("fedmedian.")]:
                del metrics[key]
            return letters

        _, reports, *_ = clusters(*self.STARTS, hear_of=hear_of)
        assert reports == [(NUM_CLIENTS // 2 - 1, 1, 0)] * 8
        assert "plain weights, which do not say which of the round's models" in caplog.text

    def test_where_as_many_results_are_about_either_model_none_is_changed(
        self, older_api, clusters, api, warnings
    ):
        if api is not older_api:
            pytest.skip("there a reply's question is not the client's to say")

        def hear_of(number, odd, letters):
            if odd:
                letters[0].raw[1].metrics.pop("fedmedian.question")
                return letters[:2]
            return letters

        (_, model), *_ = clusters(*self.STARTS, hear_of=hear_of)
        assert (model["w"] == self.STARTS[1]).all()
        assert warnings("round 1 keeps the model as it is: as many results are about")


@either_strategy
class TestWhatIsReturned:
    def test_metrics_may_be_kept_back(self, play):
        def hear(number, heard, usual):
            return usual(heard)[0], None

        outcome, warned = play(hear=hear)
        assert near_goal(outcome.model, 4)
        assert not warned

    def test_model_and_metrics_may_be_kept_back(self, play, bits):
        kept = []

        def hear(number, heard, usual):
            kept.append(usual(heard))
            return None, None

        outcome, warned = play(hear=hear)
        assert bits(outcome.model) == bits(MODEL)
        assert [counts(report) for _, report in kept] == [(NUM_CLIENTS, 0, 0)] * 4
        assert not warned

    def test_where_there_are_metrics_the_clients_own_are_among_them(self, play):
        """A round without a usable reply has none, as with FedAvg, and is counted all the same."""
        found, asked = {}, Counter()

        def hear(number, heard, usual):
            model, metrics = usual(heard)
            if metrics:
                found[number] = metrics["loss"]
            return model, metrics

        def fail(message, context, call_next):
            asked[context.node_id] += 1
            if asked[context.node_id] == 2:
                raise RuntimeError("the network is down")
            return call_next(message, context)

        outcome, _ = play(hear=hear, mods=(fail, perturb))
        assert found == dict.fromkeys((1, 3, 4), pytest.approx(1.0))
        accepted, *lost = counts(outcome.reports[2])
        assert (accepted, sum(lost)) == (0, NUM_CLIENTS)

    def test_some_rounds_may_keep_back_their_metrics(self, play):
        def hear(number, heard, usual):
            model, metrics = usual(heard)
            return model, metrics if number % 2 else None

        outcome, warned = play(hear=hear)
        assert {1, 3} <= set(outcome.reports)
        assert counts(outcome.reports[3]) == (NUM_CLIENTS, 0, 0)
        assert near_goal(outcome.model, 4)
        assert not warned


@either_strategy
class TestOwnModels:
    """A model that a subclass has made of what a step returned continues its state."""

    def test_it_may_be_an_average_over_rounds_that_begins_at_zero(self, play):
        models, states = [], []

        def ask(number, model, usual):
            models.append(model)
            return usual(model)

        def hear(number, heard, usual):
            model, metrics = usual(heard)
            return {"w": 0.9 * models[-1]["w"] + np.float32(0.1) * model["w"]}, metrics

        class Remembering(Optimizer):
            def step(self, direction, state):
                states.append(state.setdefault("rounds", np.zeros(1)).item())
                state["rounds"] = state["rounds"] + 1
                return direction

        play(5, ask=ask, hear=hear, optimizer=Remembering())
        assert states == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("first", [False, True], ids=["after", "before"])
    def test_what_some_of_the_replies_would_have_made_changes_nothing(self, first, play, bits):
        def hear(number, heard, usual):
            if first:
                usual(heard[:3])
            returned = usual(heard)
            if not first:
                usual(heard[:3])
            return returned

        options = {"optimizer": Momentum(0.9), "noise": Gaussian(Adaptive(3.0))}
        alone, tried = play(**options)[0], play(hear=hear, **options)[0]
        assert bits(tried.model) == bits(alone.model)


@either_strategy
class TestRepliesThatAreLeftOut:
    """A client whose reply a subclass leaves out has replied."""

    @pytest.mark.parametrize("phase", ["train", "evaluate"])
    def test_they_are_not_missing(self, phase, play):
        def pick(number, heard, usual):
            return usual([one for one in heard if one.partition in ODD])

        def ask_some(number, model, usual):
            return [one for one in usual(model) if one.partition in range(4)]

        habits = {"hear": pick} if phase == "train" else {"hear_evaluation": pick}
        outcome, warned = play(ask=ask_some, fraction_evaluate=1.0, **habits)
        heard = 2 if phase == "train" else 4
        require_counts(outcome, range(1, 5), (heard, 0, 0))
        evaluated = ODD if phase == "evaluate" else range(NUM_CLIENTS)
        for one in outcome.evaluations.values():
            assert one["loss"] == pytest.approx(np.mean(evaluated))
        assert not [text for text in warned if not text.startswith("replies of 2 clients")]

    def test_errors_among_them_are_why_there_is_no_reply(self, play, api, older_api):
        if api is older_api:
            pytest.skip("there failures are not among the results")

        def without_errors(number, heard, usual):
            return usual([one for one in heard if one.raw.has_content()])

        with pytest.raises(RunFailedError, match="RuntimeError: out of memory"):
            play(hear=without_errors, mods=[crash, perturb])

    def test_trying_each_reply_alone_is_not_a_failed_round(self, play):
        def hear(number, heard, usual):
            for one in heard:
                assert usual([one])[0] is None
            return usual(heard)

        outcome, _ = play(hear=hear, min_replies=2, max_failed_rounds=2)
        require_counts(outcome, range(1, 5), (NUM_CLIENTS, 0, 0))
        assert near_goal(outcome.model, 4)


@either_strategy
class TestEvaluationOfTwoModels:
    def test_each_cluster_is_asked_and_heard_by_itself(self, play):
        def of_cluster(letters, odd):
            return [one for one in letters if one.partition % 2 == odd]

        def ask(number, model, usual):
            models = [model, {"w": model["w"] + 1}]
            return [one for odd in (0, 1) for one in of_cluster(usual(models[odd]), odd)]

        def hear(number, heard, usual):
            return [usual(of_cluster(heard, odd)) for odd in (0, 1)][1]

        outcome, warned = play(ask_to_evaluate=ask, hear_evaluation=hear, fraction_evaluate=1.0)
        for one in outcome.evaluations.values():
            assert one["loss"] == pytest.approx(np.mean(ODD))
        assert not warned


@either_strategy
class TestLateReplies:
    LATE = 3

    def test_a_reply_to_an_earlier_round_does_not_take_the_place_of_one_to_this(
        self, play, warnings
    ):
        held = []

        def hear(number, heard, usual):
            late, held[:] = held[:], [one for one in heard if one.partition == self.LATE]
            if number == 1:
                return usual([one for one in heard if one.partition != self.LATE])
            return usual([*(late if number == 2 else []), *heard])

        outcome, _ = play(3, hear=hear)
        reports = [counts(outcome.reports[number]) for number in (1, 2, 3)]
        others = NUM_CLIENTS - 1
        assert reports == [(others, 0, 0), (NUM_CLIENTS, 1, 0), (NUM_CLIENTS, 0, 0)]
        assert near_goal(outcome.model, 3)
        (dropped,) = warnings("aggregate_train: dropped")
        assert "round 1" in dropped

    def test_a_late_reply_to_an_evaluation_does_not_take_the_place_of_the_current_one(
        self, play, api, warnings
    ):
        if api.name == "older API":
            pytest.skip("which message a result answers is not known there")
        asked, held = Counter(), []

        def as_round(message, context, call_next):
            reply = call_next(message, context)
            if message.metadata.message_type == "evaluate":
                asked[context.node_id] += 1
                reply.content["metrics"]["loss"] = float(asked[context.node_id])
            return reply

        def hear_evaluation(number, heard, usual):
            late, held[:] = held[:], [one for one in heard if one.partition == self.LATE]
            return usual([*late, *heard])

        outcome, _ = play(
            3, hear_evaluation=hear_evaluation, mods=(as_round, perturb), fraction_evaluate=1.0
        )
        losses = {number: report["loss"] for number, report in outcome.evaluations.items()}
        assert losses == {number: pytest.approx(number) for number in (1, 2, 3)}
        dropped = warnings("aggregate_evaluate: dropped")
        assert [one.rpartition(": ")[2] for one in dropped] == [
            f"replies to a message of round {number}" for number in (1, 2)
        ]

    def test_a_node_that_is_always_a_round_late_is_missing_in_each(self, play, api):
        if api.name == "older API":
            pytest.skip("which message a result answers is not known there")
        held, late_node = [], InProcessGrid(ClientApp(), NUM_CLIENTS).get_node_ids()[self.LATE]

        class Slow(InProcessGrid):
            def send_and_receive(self, messages, **options):
                replies = super().send_and_receive(messages, **options)
                if not replies:  # nobody evaluates
                    return replies
                late, held[:] = (
                    held[:],
                    [one for one in replies if one.metadata.src_node_id == late_node],
                )
                return [*late, *(one for one in replies if one not in held)]

        outcome, _ = play(3, grid=Slow)
        others = NUM_CLIENTS - 1
        reports = [counts(outcome.reports[number]) for number in (1, 2, 3)]
        assert reports == [(others, 0, 1), (others, 1, 1), (others, 1, 1)]
        assert near_goal(outcome.model, 3)


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("is_stored", [False, True], ids=["", "with a checkpoint"])
def test_each_round_may_have_two_passes(
    make, is_stored, message_api, seeking, as_record, as_arrays, tmp_path
):
    """The second begins with what the first has made, in round 1, too, and has its own noise."""
    states, seeds = [], []

    class Remembering(Optimizer):
        def step(self, direction, state):
            states.append(state.setdefault("steps", np.zeros(1)).item())
            state["steps"] = state["steps"] + 1
            return direction

    base = getattr(message_api.module, make)

    class TwoPasses(base):
        def configure_train(self, server_round, arrays, config, grid):
            self.grid, self.told = grid, ConfigRecord(dict(config))
            return super().configure_train(server_round, arrays, config, grid)

        def aggregate_train(self, server_round, replies):
            arrays, _ = super().aggregate_train(server_round, replies)
            asked = super().configure_train(server_round, arrays, self.told, self.grid)
            seeds.extend({one.content["config"]["fedmedian.seed"] for one in asked})
            again = self.grid.send_and_receive(asked)
            return super().aggregate_train(server_round, again)

    checkpoint = Checkpoint(tmp_path) if is_stored else None
    strategy = message_api.make_own(
        TwoPasses, fraction_evaluate=0.0, optimizer=Remembering(), checkpoint=checkpoint
    )
    grid = InProcessGrid(seeking(message_api, aim, num_clients=NUM_CLIENTS), NUM_CLIENTS)
    result = strategy.start(grid, as_record(MODEL), 3)
    assert states == [0, 1, 2, 3, 4, 5]
    assert len({*seeds, str(strategy.seed)}) == 4
    assert near_goal(as_arrays(result.arrays), 6)


def test_a_run_that_continues_the_last_one_draws_anew_and_one_that_starts_over_draws_the_same(
    api, seeking, run
):
    """As where a loop of the user's own starts the strategy for one round at a time."""
    seeds, nodes = set(), []

    def listen(message, context, call_next):
        configs = message.content.config_records.values()
        seeds.update(one["fedmedian.seed"] for one in configs if "fedmedian.seed" in one)
        if message.metadata.message_type == MessageType.EVALUATE:
            nodes.append(context.node_id)
        return call_next(message, context)

    def play(model):
        seeds.clear()
        nodes.clear()
        outcome = run(strategy, app, model, NUM_CLIENTS, 2)
        strategy.initial_parameters = None  # the older API's own
        # Several clients of the older API answer at once.
        return frozenset(seeds), sorted(nodes), outcome.model

    strategy = api.make("SignSGD", fraction_evaluate=0.5)
    app = seeking(api, aim, (listen, perturb), NUM_CLIENTS)
    first, evaluating, model = play(MODEL)
    second, others, model = play(model)
    third, *_ = play(model)
    assert first == {str(strategy.seed)}
    assert len(first | second | third) == 5
    assert evaluating != others
    assert play(MODEL)[:2] == (first, evaluating)


@pytest.mark.parametrize("is_stored", [False, True], ids=["", "with a checkpoint"])
class TestPassesOverOneModel:
    """A round that asks a second time, in round 1, too, where the first time made no new model."""

    @pytest.fixture
    def start(self, is_stored, message_api, seeking, as_record, as_arrays, tmp_path):
        def start(model, passes, **options):
            """Train each round's passes: returns the model and reports."""

            class Repeating(message_api.module.MedianSGD):
                def configure_train(self, server_round, arrays, config, grid):
                    self.grid, self.told = grid, ConfigRecord(dict(config))
                    self.whole = as_arrays(arrays)
                    return self.ask(server_round, passes[0][0])

                def ask(self, server_round, names):
                    part = as_record({name: self.whole[name] for name in names})
                    configure = super().configure_train
                    return list(configure(server_round, part, self.told, self.grid))

                def aggregate_train(self, server_round, replies):
                    for number, (names, count) in enumerate(passes):
                        if number:
                            asked = self.ask(server_round, names)
                            replies = self.grid.send_and_receive(asked)
                        heard = list(replies)[:count]
                        arrays, metrics = super().aggregate_train(server_round, heard)
                        self.whole |= {} if arrays is None else as_arrays(arrays)
                    return as_record(self.whole), metrics

            checkpoint = Checkpoint(tmp_path / str(len(passes)), every=2) if is_stored else None
            fixed = {"noise": None, "rotation": None, "fraction_evaluate": 0.0}
            fixed |= {"checkpoint": checkpoint, "optimizer": Momentum(0.9)}
            strategy = message_api.make_own(Repeating, **fixed, **options)
            grid = InProcessGrid(seeking(message_api, aim, num_clients=NUM_CLIENTS), NUM_CLIENTS)
            result = strategy.start(grid, as_record(model), 3)
            reports = {n: counts(one) for n, one in result.train_metrics_clientapp.items()}
            return as_arrays(result.arrays), reports

        return start

    def test_it_may_repeat_a_question_that_too_few_have_answered(self, start, bits):
        usual = start(MODEL, [("w", NUM_CLIENTS)], min_replies=3)
        for _ in range(2):  # with a checkpoint, the second time shows what is stored
            model, reports = start(MODEL, [("w", 2), ("w", NUM_CLIENTS)], min_replies=3)
            assert bits(model) == bits(usual[0])
            assert reports == dict.fromkeys((1, 2, 3), (NUM_CLIENTS, 0, 0)) == usual[1]

    def test_it_may_train_other_arrays(self, start, bits):
        model = {name: np.zeros((30, 4), np.float32) for name in "ab"}
        options = {"client_steps": [ClientMomentum(0.9)]}
        usual, _ = start(model, [("ab", NUM_CLIENTS)], **options)
        found, _ = start(model, [("a", NUM_CLIENTS), ("b", NUM_CLIENTS)], **options)
        assert bits(found) == bits(usual)


class TestMethods:
    """A subclass's methods keep their own arguments, and their strategy can be pickled."""

    class Base(SignSGD):
        def aggregate_train(self, rnd, results, extra=0):
            self.extra = extra
            return super().aggregate_train(rnd, results)

    class Derived(Base):
        def aggregate_train(self, server_round, replies):
            return super().aggregate_train(server_round, replies, extra=3)

    def test_they_may_have_more_and_others(self, seeking, message_api, as_record):
        strategy = self.Derived(fraction_evaluate=0.0)
        grid = InProcessGrid(seeking(message_api, aim), 5)
        strategy.start(grid, as_record(MODEL), 1)
        assert strategy.extra == 3
        config = ConfigRecord()
        asked = strategy.configure_train(2, as_record(MODEL), config, grid)
        replies = grid.send_and_receive(asked)
        model, _ = super(self.Derived, strategy).aggregate_train(rnd=2, results=replies)
        assert model is not None

    @pytest.mark.parametrize("kind", [staticmethod, partial])
    def test_they_may_be_static(self, kind, api, seeking, run):
        def ask_nobody(server_round, *others, **named):
            assert server_round == 1
            return []

        class Static(api.module.SignSGD):
            configure_evaluate = kind(ask_nobody)

        outcome = run(api.make_own(Static), seeking(api, aim), MODEL, 5)
        assert counts(outcome.reports[1]) == (5, 0, 0)
        assert not outcome.evaluations

    def test_they_may_pass_on_what_another_strategy_asks(self, api):
        class PassingOn(api.module.SignSGD):
            def __init__(self, inner):
                self.inner = inner

            def configure_train(self, *given):
                return self.inner(*given)

            configure_fit = configure_evaluate = configure_train

        strategy = PassingOn(lambda number: [(number, "a client", "a question")])
        names = [name for name in dir(FedAvg) + dir(OlderFedAvg) if name.startswith("configure_")]
        for name in names:
            assert getattr(strategy, name)(3) == [(3, "a client", "a question")]

    def test_a_strategy_that_has_run_can_be_pickled(self, seeking, message_api, as_record):
        strategy = SignSGD(downlink=CodedSteps(), seed=1)
        grid = InProcessGrid(seeking(message_api, aim), 5)
        strategy.start(grid, as_record(MODEL), 2)
        again = pickle.loads(pickle.dumps(strategy)).start(grid, as_record(MODEL), 2)
        assert len(again.train_metrics_clientapp) == 2


@pytest.mark.parametrize("phase", ["train", "evaluate"])
def test_a_strategy_around_ours_may_hear_groups_one_after_the_other(
    phase, message_api, seeking, as_record, caplog
):
    """Also if both groups are asked about one model."""
    inner = SignSGD(seed=1)

    class Around(FedAvg):
        def groups(self, configure, server_round, arrays, config, grid):
            asked = [list(configure(server_round, arrays, config, grid)) for _ in (0, 1)]
            return [
                one for odd in (0, 1) for one in asked[odd] if one.metadata.dst_node_id % 2 == odd
            ]

        def configure_train(self, *asked):
            return self.groups(inner.configure_train, *asked)

        def configure_evaluate(self, *asked):
            return self.groups(inner.configure_evaluate, *asked)

        def aggregate_train(self, server_round, replies):
            for odd in (0, 1):
                own = [one for one in replies if one.metadata.src_node_id % 2 == odd]
                arrays, metrics = inner.aggregate_train(server_round, own)
            return arrays, metrics

        def aggregate_evaluate(self, server_round, replies):
            for odd in (0, 1):
                own = [one for one in replies if one.metadata.src_node_id % 2 == odd]
                metrics = inner.aggregate_evaluate(server_round, own)
            return metrics

    app = seeking(message_api, aim, num_clients=NUM_CLIENTS)
    Around().start(InProcessGrid(app, NUM_CLIENTS), as_record(MODEL), 2)
    lines = [one for one in caplog.messages if one.startswith(f"aggregate_{phase}: accepted")]
    assert [one.partition(";")[0] for one in lines] == [
        f"aggregate_{phase}: accepted {NUM_CLIENTS // 2} replies, dropped 0"
    ] * 4


@pytest.mark.parametrize("is_stored", [False, True], ids=["", "with a checkpoint"])
def test_a_strategy_around_ours_may_train_two_parts_of_a_model_in_a_round(
    is_stored, message_api, seeking, as_record, as_arrays, tmp_path
):
    states = []

    class Remembering(Optimizer):
        def step(self, direction, state):
            states.append(state.setdefault("steps", np.zeros(1)).item())
            state["steps"] = state["steps"] + 1
            return direction

    checkpoint = Checkpoint(tmp_path) if is_stored else None
    inner = SignSGD(seed=1, optimizer=Remembering(), checkpoint=checkpoint)

    class Around(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            self.whole, self.told, self.grid = as_arrays(arrays), config, grid
            return self.ask(server_round, "a")

        def ask(self, server_round, name):
            part = as_record({name: self.whole[name]})
            return inner.configure_train(server_round, part, self.told, self.grid)

        def aggregate_train(self, server_round, replies):
            self.whole |= as_arrays(inner.aggregate_train(server_round, replies)[0])
            replies = self.grid.send_and_receive(self.ask(server_round, "b"))
            arrays, metrics = inner.aggregate_train(server_round, replies)
            return as_record(self.whole | as_arrays(arrays)), metrics

    app = seeking(message_api, aim, num_clients=NUM_CLIENTS)
    model = {name: np.zeros((30, 4), np.float32) for name in "ab"}
    Around(fraction_evaluate=0.0).start(InProcessGrid(app, NUM_CLIENTS), as_record(model), 3)
    assert states == [0, 0, 1, 1, 2, 2]


def test_a_strategy_around_ours_may_resume_with_a_new_grid(
    message_api, seeking, as_record, tmp_path, warnings
):
    """Its messages may have the ids of those of the earlier run."""
    inner = SignSGD(seed=1, checkpoint=Checkpoint(tmp_path))

    class Around(FedAvg):
        configure_train, aggregate_train = inner.configure_train, inner.aggregate_train
        configure_evaluate = inner.configure_evaluate
        aggregate_evaluate = inner.aggregate_evaluate

    app = seeking(message_api, aim, num_clients=NUM_CLIENTS)
    for last in (3, 5):
        grid = InProcessGrid(app, NUM_CLIENTS)
        reports = Around().start(grid, as_record(MODEL), last).train_metrics_clientapp
        assert counts(reports[last]) == (NUM_CLIENTS, 0, 0)
    assert not warnings("aggregate_")


def test_a_strategy_around_ours_may_send_copies_for_two_models(
    message_api, seeking, as_record, as_arrays, warnings
):
    inner, models = SignSGD(seed=1), [as_record({"w": MODEL["w"] + one}) for one in (-6, 9)]

    class Around(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            for odd, model in enumerate(models):
                for one in inner.configure_train(server_round, model, config, grid):
                    if one.metadata.dst_node_id % 2 == odd:
                        yield copied(one)

        def aggregate_train(self, server_round, replies):
            for odd in (1, 0):  # not in the order of the questions
                own = [one for one in replies if one.metadata.src_node_id % 2 == odd]
                models[odd], metrics = inner.aggregate_train(server_round, own)
                assert counts(metrics) == (NUM_CLIENTS // 2, 0, 0)
            return models[0], metrics

    app = seeking(message_api, aim, num_clients=NUM_CLIENTS)
    Around(fraction_evaluate=0.0).start(InProcessGrid(app, NUM_CLIENTS), models[0], 4)
    assert all(abs(np.mean(as_arrays(model)["w"]) - GOAL) < 4 for model in models)
    assert not warnings("aggregate_train")


@pytest.mark.parametrize("copied", [copied, copy], ids=["made anew", "shallow"])
def test_of_copies_for_two_models_each_is_counted_once_if_all_clients_of_one_are_silent(
    copied, message_api, seeking, as_record, caplog
):
    class Copying(SignSGD):
        def configure_train(self, *asked):
            server_round, _, *others = asked
            for odd, start in enumerate((-6, 9)):
                model = as_record({"w": MODEL["w"] + start})
                for one in super().configure_train(server_round, model, *others):
                    if one.metadata.dst_node_id % 2 == odd:
                        yield copied(one)

        def aggregate_train(self, server_round, replies):
            for odd in (0, 1):
                own = [one for one in replies if one.metadata.src_node_id % 2 == odd]
                arrays, metrics = super().aggregate_train(server_round, own)
            return arrays, metrics

    app = seeking(message_api, aim, num_clients=NUM_CLIENTS)
    strategy = Copying(fraction_evaluate=0.0, seed=1)
    odd = [
        place
        for place, node in enumerate(InProcessGrid(app, NUM_CLIENTS).get_node_ids())
        if node % 2
    ]
    strategy.start(losing(0, *odd)(app, NUM_CLIENTS), as_record(MODEL), 1)
    accepted = [one.partition(";")[0] for one in caplog.messages if "accepted" in one]
    assert accepted == [
        "[ROUND 1/1] aggregate_train: accepted 4 replies, dropped 0, missing 1",
        "[ROUND 1/1] aggregate_train: accepted 0 replies, dropped 0, missing 5",
    ]


@pytest.mark.parametrize("phase", ["train", "evaluate"])
def test_copies_of_messages_take_a_time_that_grows_with_their_number_alone(
    phase, message_api, seeking, as_record, monkeypatch
):
    class Copying(SignSGD):
        def configure_train(self, *asked):
            return map(copied, super().configure_train(*asked))

        def configure_evaluate(self, *asked):
            return map(copied, super().configure_evaluate(*asked))

    def reads(num_nodes):
        """Return how often anything is read of messages when their replies are aggregated."""
        strategy = Copying(seed=1)
        configure = getattr(strategy, f"configure_{phase}")
        grid = InProcessGrid(seeking(message_api, aim, num_clients=num_nodes), num_nodes)
        strategy.configure_train(1, as_record(MODEL), ConfigRecord(), grid)
        replies = list(grid.send_and_receive(configure(1, as_record(MODEL), ConfigRecord(), grid)))
        usual, counted = Message.metadata.fget, Counter()

        def metadata(message):
            counted["reads"] += 1
            return usual(message)

        with monkeypatch.context() as patch:
            patch.setattr(Message, "metadata", property(metadata))
            getattr(strategy, f"aggregate_{phase}")(1, replies)
        return counted["reads"]

    assert reads(40) < 5 * reads(10)


OPTIONS = {
    "signs": {},
    "coded downlink": {"downlink": CodedSteps()},
    "secure sums": {"secure": SecureSum(), "weighted": False},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_config_of_an_older_message_may_be_used_again(
    options, message_api, seeking, as_record, as_arrays
):
    class Reusing(SignSGD):
        told = None

        def configure_train(self, server_round, arrays, config, grid):
            told = self.told or config
            messages = list(super().configure_train(server_round, arrays, told, grid))
            self.told = messages[0].content["config"]
            return messages

        def configure_evaluate(self, server_round, arrays, config, grid):
            return super().configure_evaluate(server_round, arrays, self.told, grid)

    def start(strategy):
        app = seeking(message_api, aim, num_clients=NUM_CLIENTS)
        result = message_api.make_own(strategy, **options).start(
            InProcessGrid(app, NUM_CLIENTS), as_record(MODEL), 4
        )
        assert [*result.evaluate_metrics_clientapp] == [1, 2, 3, 4]
        return as_arrays(result.arrays)["w"].tolist()

    assert start(Reusing) == start(SignSGD)


@pytest.fixture
def play_secure(message_api, habitual, seeking, run):
    """Runs a strategy with secure sums and habits."""

    def play_secure(**options):
        options = {"secure": SecureSum(), "weighted": False, "fraction_evaluate": 0.0, **options}
        strategy = habitual(message_api, "SignSGD", MODEL, **options)
        app = seeking(message_api, aim, num_clients=NUM_CLIENTS)
        return run(strategy, app, MODEL, NUM_CLIENTS, 4)

    return play_secure


class TestSecureSums:
    def test_one_question_may_be_made_for_each_of_two_groups(self, play_secure):
        def ask(number, model, usual):
            odd = [one for one in usual(model) if one.partition in ODD]
            return odd + [one for one in usual(model) if one.partition not in ODD]

        outcome = play_secure(ask=ask)
        require_counts(outcome, range(1, 5), (NUM_CLIENTS, 0, 0))
        assert near_goal(outcome.model, 4)

    def test_nodes_may_be_drawn_from_what_is_no_whole_grid(self, message_api, seeking, run):
        class Odd:
            def __init__(self, grid):
                self.nodes = [*grid.get_node_ids()][1::2]

            def get_node_ids(self):
                return self.nodes

        class Choosing(SignSGD):
            def configure_train(self, server_round, arrays, config, grid):
                return super().configure_train(server_round, arrays, config, Odd(grid))

        strategy = Choosing(secure=SecureSum(), weighted=False, fraction_evaluate=0.0, seed=1)
        app = seeking(message_api, aim, num_clients=NUM_CLIENTS)
        outcome = run(strategy, app, MODEL, NUM_CLIENTS, 4)
        require_counts(outcome, range(1, 5), (len(ODD), 0, 0))

    @pytest.mark.parametrize("share", [0.5, 0.8])
    def test_each_of_two_groups_may_be_drawn_anew(self, share, play_secure):
        sent = []

        def ask(number, model, usual):
            first, second = ({one.partition: one for one in usual(model)} for _ in range(2))
            sent.append({**first, **second})
            return [*sent[-1].values()]

        outcome = play_secure(ask=ask, fraction_train=share)
        for number, letters in enumerate(sent, start=1):
            assert counts(outcome.reports[number]) == (len(letters), 0, 0)

    def test_nodes_that_were_not_drawn_get_a_place(self, message_api, seeking, run):
        class Others(SignSGD):
            def configure_train(self, server_round, arrays, config, grid):
                asked = super().configure_train(server_round, arrays, config, grid)
                nodes = sorted(grid.get_node_ids())[server_round % 2 :: 2]
                for node, message in zip(nodes, asked, strict=True):
                    yield Message(message.content, node, message.metadata.message_type)

        options = {"fraction_train": 0.5, "fraction_evaluate": 0.0, "seed": 1}
        strategy = Others(secure=SecureSum(), weighted=False, **options)
        app = seeking(message_api, aim, num_clients=NUM_CLIENTS)
        outcome = run(strategy, app, MODEL, NUM_CLIENTS, 4)
        require_counts(outcome, range(1, 5), (NUM_CLIENTS // 2, 0, 0))
        assert near_goal(outcome.model, 4)

    def test_too_few_nodes_are_asked_for_nothing(self, play_secure):
        def ask(number, model, usual):
            return usual(model)[: 2 if number == 2 else None]

        outcome = play_secure(ask=ask)
        require_counts(outcome, (1, 3, 4), (NUM_CLIENTS, 0, 0))

    def test_a_node_that_was_not_drawn_is_refused_with_the_remedy(self, play_secure):
        def ask(number, model, usual):
            drawn = usual(model)
            others = {*range(NUM_CLIENTS)} - {one.partition for one in drawn}
            return [*drawn, drawn[0].to(others.pop())]

        with pytest.raises(ValueError, match="has no place in the secure sum"):
            play_secure(ask=ask, fraction_train=0.8)

    def test_a_node_that_is_sent_other_arrays_is_left_out_and_named(
        self, message_api, seeking, run, as_record, warnings
    ):
        class Personal(SignSGD):
            def _construct_messages(self, record, node_ids, message_type):
                own = RecordDict({**record, "arrays": as_record({"w": MODEL["w"] + 1})})
                usual = super()._construct_messages
                yield from usual(record, node_ids[1:], message_type)
                yield from usual(own, node_ids[:1], message_type)

        strategy = Personal(secure=SecureSum(), weighted=False, fraction_evaluate=0.0, seed=1)
        app = seeking(message_api, aim, num_clients=NUM_CLIENTS)
        outcome = run(strategy, app, MODEL, NUM_CLIENTS, 4)
        require_counts(outcome, range(1, 5), (NUM_CLIENTS - 1, 1, 0))
        assert near_goal(outcome.model, 4)
        assert len([text for text in warnings() if "trained from another model" in text]) == 4

    def test_what_some_of_the_replies_would_have_made_cannot_be_tried_first(
        self, play_secure, warnings
    ):
        def hear(number, heard, usual):
            usual(heard[:9])
            return usual(heard)

        outcome = play_secure(hear=hear, max_failed_rounds=None)
        assert outcome.model["w"].max() == 0
        words = "clients have helped to open the secure sum of 9 replies, and will not help with"
        assert [text for text in warnings("round 4 keeps the model as it is: ") if words in text]
        assert not [text for text in warnings() if "hostile" in text]

    @pytest.mark.parametrize("shown", [(0,), range(NUM_CLIENTS)], ids=["one by one", "all"])
    def test_too_few_replies_or_the_same_again_may_be_tried_first(self, shown, play_secure, bits):
        def hear(number, heard, usual):
            usual([heard[index] for index in shown])
            return usual(heard)

        assert bits(play_secure(hear=hear).model) == bits(play_secure().model)

    def test_a_second_model_for_the_same_clients_costs_the_first_its_sum_and_the_log_says_why(
        self, play_secure, warnings
    ):
        def ask(number, model, usual):
            return usual(model) + usual({"w": model["w"] - 5})

        def hear(number, heard, usual):
            assert usual(heard[:NUM_CLIENTS])[0] is None
            return usual(heard[NUM_CLIENTS:])

        outcome = play_secure(ask=ask, hear=hear, max_failed_rounds=None)
        require_counts(outcome, range(1, 5), (NUM_CLIENTS, 0, 0))
        words = "10 of its 10 clients have been asked for votes in another since"
        assert [text for text in warnings("round 4 keeps the model as it is: ") if words in text]
        assert not [text for text in warnings() if "hostile" in text]


@pytest.mark.parametrize("make", MAKES)
def test_a_round_that_is_aggregated_after_the_next_is_configured_is_refused_with_the_reason(
    make, message_api, seeking, as_record
):
    strategy = message_api.make(make, fraction_evaluate=0.0)
    grid = InProcessGrid(seeking(message_api, aim, num_clients=NUM_CLIENTS), NUM_CLIENTS)
    arrays, config = as_record(MODEL), ConfigRecord()
    replies = grid.send_and_receive(strategy.configure_train(1, arrays, config, grid))
    strategy.configure_train(2, arrays, config, grid)
    with pytest.raises(RuntimeError, match="round 1 were aggregated after configure_train had"):
        strategy.aggregate_train(1, replies)


@pytest.mark.parametrize("make", MAKES)
class TestConstructedMessages:
    """`_construct_messages` with contents of a subclass's own, which the Message API has."""

    @pytest.fixture
    def start(self, message_api, make, seeking, as_record, as_arrays, warnings):
        def start(construct):
            base = getattr(message_api.module, make)

            class Constructing(base):
                def _construct_messages(self, content, node_ids, message_type):
                    return construct(super()._construct_messages, content, node_ids, message_type)

            strategy = message_api.make_own(Constructing, fraction_evaluate=0.0)
            app = seeking(message_api, aim, num_clients=NUM_CLIENTS)
            grid = InProcessGrid(app, NUM_CLIENTS)
            result = strategy.start(grid, as_record(MODEL), 4)
            reports = {n: counts(one) for n, one in result.train_metrics_clientapp.items()}
            assert near_goal(as_arrays(result.arrays), 4)
            assert not [text for text in warnings() if not text.startswith("fraction_")]
            return reports

        return start

    def test_each_node_may_get_a_config_of_its_own(self, start):
        def construct(usual, content, node_ids, message_type):
            for node in node_ids:
                config = ConfigRecord({**content["config"], "local-epochs": 1 + node % 3})
                own = RecordDict({"arrays": content["arrays"], "config": config})
                yield from usual(own, [node], message_type)

        assert start(construct) == dict.fromkeys(range(1, 5), (NUM_CLIENTS, 0, 0))

    def test_nodes_may_be_left_out(self, start):
        def construct(usual, content, node_ids, message_type):
            return usual(content, node_ids[:4], message_type)

        assert start(construct) == dict.fromkeys(range(1, 5), (4, 0, 0))
