"""Runs with a coded downlink on both APIs: bytes, lost states, liars, habits, resumes."""

import gc
import re
from collections import Counter
from dataclasses import replace
from threading import Lock

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedmedian import CodedSteps, Gaussian, Momentum
from fedmedian.clients import (
    InProcessGrid,
    Policy,
    holding,
    perturb,
    perturb_with,
)
from fedmedian.records import arrays_to_parameters, to_arrays, to_record
from fedmedian.steps.downlink import HELD, NOT_HELD
from fedmedian.strategies import Checkpoint
from tests.tools.apis import contexts_of

NUM_CLIENTS = 4
LARGE = {"0": np.random.default_rng(0).standard_normal((100, 120)).astype(np.float32)}
MODEL = {"0": LARGE["0"][:10]}
GOAL = 2.0
NODE_IDS = InProcessGrid(ClientApp(), NUM_CLIENTS).get_node_ids()
COUNTS = ("replies-accepted", "replies-rejected", "replies-missing")


def train(model, partition):
    aside = 0.1 * (partition - (NUM_CLIENTS - 1) / 2)
    trained = {
        name: (array + 0.5 * (GOAL + aside - array)).astype(array.dtype)
        for name, array in model.items()
    }
    return trained, {"num-examples": 10, "loss": 1.0}


def counts(report):
    return tuple(report[name] for name in COUNTS)


def is_near_goal(model, goal=GOAL):
    return all(abs(np.mean(array) - goal) < 0.3 for array in model.values())


class MeasuringGrid(InProcessGrid):
    """Remembers the bytes of each message to a node, in order, and what it was sent."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.down = []
        self.whole = []
        self.measuring = Lock()  # Flower's older server sends from several threads

    def push_messages(self, messages):
        with self.measuring:
            before = self.bytes_down
            ids = super().push_messages(messages)
            self.down += [(self.bytes_down - before) / max(len(messages), 1)] * len(messages)
            self.whole += [is_whole(message) for message in messages]
        return ids

    def states(self):
        """Return the nodes' states, by partition."""
        return [context.state for context in contexts_of(self)]


def is_whole(message):
    """Tell whether a message holds a whole model, not steps to it."""
    (record,) = message.content.array_records.values()
    return not any(name.startswith("fedmedian.") for name in record) and all(
        "fedmedian.model.base" not in config for config in message.content.config_records.values()
    )


def in_rounds(values, size=NUM_CLIENTS):
    """Split what belongs to messages into rounds."""
    return [values[start : start + size] for start in range(0, len(values), size)]


@pytest.fixture(scope="session")
def play(run):
    """Runs a strategy on this file's clients and model."""

    def play(strategy, num_rounds=6, *, model=MODEL, num_clients=NUM_CLIENTS, **options):
        return run(
            strategy, train, model, num_clients, num_rounds, **({"grid": MeasuringGrid} | options)
        )

    return play


def make(api, strategy="SignSGD", **options):
    return api.make(strategy, **{"downlink": CodedSteps(), "fraction_evaluate": 0.0} | options)


def wiping(partition, after):
    """Make a mod with which a client loses its state after so many of its messages."""
    seen = []

    def wipe(message, context, call_next):
        if context.node_config["partition-id"] == partition:
            seen.append(message)
            if len(seen) == after + 1:
                context.state.clear()
        return call_next(message, context)

    return wipe


def claiming(partition, version):
    """Make a mod with which a client claims to hold a version."""

    def claim(message, context, call_next):
        reply = call_next(message, context)
        if context.node_config["partition-id"] == partition and reply.has_content():
            for record in reply.content.config_records.values():
                if HELD in record:
                    record[HELD] = version(record[HELD])
        return reply

    return claim


class TestBytes:
    def test_each_message_after_the_first_round_holds_a_twenty_fifth_of_the_model(self, api, play):
        reports = play(make(api), model=LARGE).reports
        assert reports[1]["downlink-bytes"] > LARGE["0"].nbytes
        for number in range(2, 7):
            assert reports[number]["downlink-bytes"] < LARGE["0"].nbytes / 25

    def test_the_log_compares_the_whole_run_with_fedavg(self, message_api, play, caplog):
        def factors(downlink):
            caplog.clear()
            play(make(message_api, downlink=downlink), model=LARGE)
            up, down = re.findall(r"([\d.]+) times as much", caplog.text)
            return float(up), float(down)

        (up, down), (usual, one) = factors(CodedSteps()), factors(None)
        assert up == pytest.approx(usual, rel=0.05)
        assert one == pytest.approx(1, abs=0.05)
        assert down > 4  # the first of six rounds sends the whole model

    def test_with_all_of_flowers_headers_it_costs_a_twelfth(self, api, play):
        first, *others = in_rounds(play(make(api), model=LARGE).grid.down)
        assert min(first) > LARGE["0"].nbytes
        assert len(others) == 5
        assert max(max(sizes) for sizes in others) < LARGE["0"].nbytes / 12

    def test_a_round_that_evaluates_too_sends_each_step_once(self, api, play):
        grid = play(make(api, fraction_evaluate=1.0), model=LARGE).grid
        phases = in_rounds(grid.down)
        assert len(phases) == 12
        # Training begins from what was evaluated: no step, only what it asks.
        bare = [max(sizes) for sizes in phases[2::2]]
        with_steps = [min(sizes) for sizes in phases[1::2]]
        assert max(bare) < 2_300
        assert max(with_steps) < 3_300
        assert not any(grid.whole[NUM_CLIENTS:])

    def test_the_model_is_about_as_good_as_without_it(self, api, play):
        for strategy in ("SignSGD", "MedianSGD"):
            outcome = play(make(api, strategy), 12)
            assert counts(outcome.reports[12]) == (NUM_CLIENTS, 0, 0)
            assert is_near_goal(outcome.model)

    def test_a_tenth_of_the_clients_catches_up_with_the_steps_that_it_missed(self, api, play):
        outcome = play(make(api, fraction_train=0.1), 40, model=LARGE, num_clients=20)
        grid = outcome.grid
        assert sum(grid.whole) <= 20  # each client's first
        assert len(grid.whole) == 80
        assert sum(grid.down[40:]) < 40 * LARGE["0"].nbytes / 2
        assert all(counts(outcome.reports[number]) == (2, 0, 0) for number in range(1, 41))
        # The mean of what twenty clients aim at.
        assert is_near_goal(outcome.model, GOAL + 0.1 * (20 - NUM_CLIENTS) / 2)


class TestLostStates:
    def test_a_client_whose_state_is_lost_is_named_and_back_in_the_next_but_one_round(
        self, api, play, warnings
    ):
        outcome = play(make(api), mods=(wiping(3, after=2), perturb))
        for number in range(1, 7):
            accepted, rejected, missing = counts(outcome.reports[number])
            assert accepted == NUM_CLIENTS - (number == 3)
            assert rejected + missing == (number == 3)
        assert warnings("aggregate_train", partition=3)
        wholes = [sum(phase) for phase in in_rounds(outcome.grid.whole)]
        assert wholes == [NUM_CLIENTS, 0, 0, 1, 0, 0]

    def test_the_message_apis_log_says_why(self, message_api, play, warnings):
        play(make(message_api), mods=(wiping(3, after=2), perturb))
        (warning,) = warnings("aggregate_train", partition=3)
        assert "holds no model, was sent steps from" in warning
        assert "the whole model is needed" in warning

    def test_one_lost_before_evaluation_is_back_in_the_next_round_of_training(self, api, play):
        # Its messages are two a round: the fourth is the evaluation of the second round.
        strategy = make(api, fraction_evaluate=1.0)
        outcome = play(strategy, mods=(wiping(3, after=3), perturb))
        assert all(counts(outcome.reports[number])[0] == NUM_CLIENTS for number in range(1, 7))
        wholes = [sum(phase) for phase in in_rounds(outcome.grid.whole)]
        assert wholes == [NUM_CLIENTS, 0, 0, 0, 1, *[0] * 7]

    def test_one_that_is_lost_each_time_is_sent_the_whole_model_after_two_losses(self, api, play):
        def forget(message, context, call_next):
            if context.node_config["partition-id"] == 3:
                context.state.clear()
            return call_next(message, context)

        outcome = play(make(api), mods=(forget, perturb))
        wholes = [sum(phase) for phase in in_rounds(outcome.grid.whole)]
        assert wholes == [NUM_CLIENTS, 0, 1, 0, 1, 1]

    def test_an_app_that_replaces_its_state_keeps_the_model(self, api, play):
        def forget(message, context, call_next):
            context.state = RecordDict()
            return call_next(message, context)

        outcome = play(make(api, fraction_evaluate=1.0), mods=(perturb, forget))
        assert {counts(report) for report in outcome.reports.values()} == {(NUM_CLIENTS, 0, 0)}
        wholes = [sum(phase) for phase in in_rounds(outcome.grid.whole)]
        assert wholes == [NUM_CLIENTS, *[0] * 11]

    def test_all_may_lose_it_at_once(self, api, play):
        mods = [wiping(partition, after=2) for partition in range(NUM_CLIENTS)]
        outcome = play(make(api, max_failed_rounds=None), mods=(*mods, perturb))
        for number in (1, 2, 4, 5, 6):
            assert counts(outcome.reports[number]) == (NUM_CLIENTS, 0, 0)

    def test_a_client_whose_app_fails_is_sent_the_whole_model_after_that(self, api, play):
        calls = []

        def fail(message, context, call_next):
            if context.node_config["partition-id"] == 3:
                calls.append(message)
                if len(calls) == 3:
                    raise OSError("no space left")
            return call_next(message, context)

        outcome = play(make(api), mods=(perturb, fail))
        assert counts(outcome.reports[3])[0] == NUM_CLIENTS - 1
        assert counts(outcome.reports[4])[0] == NUM_CLIENTS
        wholes = [sum(phase) for phase in in_rounds(outcome.grid.whole)]
        assert wholes == [NUM_CLIENTS, 0, 0, 1, 0, 0]


class TestLiars:
    CLAIMS = {  # noqa: RUF012
        "unknown": lambda version: "0" * 32,
        "empty": lambda version: "",
        "long": lambda version: "x" * 100_000,
        "of another form": lambda version: "fedmedian\n\x1b[2J",
    }

    @pytest.fixture(scope="class")
    @classmethod
    def honest(cls, api, play):
        return play(make(api))

    @pytest.fixture(scope="class")
    @classmethod
    def honest_with_evaluation(cls, api, play):
        return play(make(api, fraction_evaluate=1.0))

    @pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
    def test_a_claim_of_another_version_changes_neither_the_model_nor_what_others_are_sent(
        self, claim, api, play, bits, honest
    ):
        outcome = play(make(api), mods=(claiming(3, claim), perturb))
        assert bits(outcome.model) == bits(honest.model)
        wholes = [sum(phase) for phase in in_rounds(outcome.grid.whole)]
        assert wholes == [NUM_CLIENTS, 1, 1, 1, 1, 1]

    def test_a_claim_of_an_old_version_costs_only_the_steps_since(self, api, play, bits, honest):
        first = []

        def old(version):
            first.append(version)
            return first[0]

        outcome = play(make(api), mods=(claiming(3, old), perturb))
        assert bits(outcome.model) == bits(honest.model)
        assert sum(outcome.grid.whole) == NUM_CLIENTS

    @pytest.mark.parametrize("value", [0, b"x", ["x"]], ids=repr)
    def test_a_version_that_is_no_text_gets_the_reply_dropped_and_nothing_else(
        self, value, message_api, play
    ):
        outcome = play(make(message_api), mods=(claiming(3, lambda version: value), perturb))
        for number in range(1, 7):
            assert counts(outcome.reports[number]) == (NUM_CLIENTS - 1, 1, 0)

    @pytest.mark.parametrize("value", [0, "x"], ids=repr)
    def test_a_reply_to_evaluation_may_claim_anything(
        self, value, api, play, bits, honest_with_evaluation
    ):
        honest = honest_with_evaluation

        def lie(message, context, call_next):
            reply = call_next(message, context)
            if message.metadata.message_type == "evaluate":
                return claiming(3, lambda version: value)(message, context, lambda *_: reply)
            return reply

        outcome = play(make(api, fraction_evaluate=1.0), mods=(lie, perturb))
        assert bits(outcome.model) == bits(honest.model)
        assert outcome.evaluations == honest.evaluations

    def test_an_error_that_says_so_does_not_make_another_client_one_that_keeps_no_state(
        self, api, play
    ):
        """The older API does not say whose errors they are."""
        sent = {partition: [] for partition in range(NUM_CLIENTS)}

        def fail(message, context, call_next):
            partition = context.node_config["partition-id"]
            sent[partition].append(is_whole(message))
            if len(sent[partition]) in (3, 5):
                if partition == 0:
                    raise RuntimeError(NOT_HELD)
                if partition == 3:
                    raise MemoryError
            return call_next(message, context)

        play(make(api), 8, mods=(fail, perturb))
        assert sent[3] == [True, False, False, True, False, True, False, False]


class TestClients:
    def test_clients_without_the_mod_are_sent_the_whole_model_in_each_round(
        self, any_client, play, bits
    ):
        def play_with(mods):
            return play(make(any_client, "MedianSGD", noise=None, rotation=None), mods=mods)

        plain, ours = play_with(()), play_with((perturb,))
        assert bits(plain.model) == bits(ours.model)
        assert all(plain.grid.whole)
        assert counts(plain.reports[6]) == (NUM_CLIENTS, 0, 0)

    def test_torch_clients_without_the_mod_train_from_what_they_are_sent(self, older_api, run):
        torch = pytest.importorskip("torch")
        from fedmedian.clients import GradientClient, SignClient

        data = torch.utils.data.TensorDataset(torch.eye(4), torch.arange(4) % 3)
        loader = torch.utils.data.DataLoader(data, 4)
        initial = {"0": np.zeros((3, 4), np.float32), "1": np.zeros(3, np.float32)}
        for strategy, client in (("SignSGD", SignClient), ("MedianSGD", GradientClient)):

            def client_fn(context):
                return client(context, torch.nn.Linear(4, 3), loader).to_client()  # noqa: B023

            outcome = run(make(older_api, strategy), ClientApp(client_fn=client_fn), initial, 4, 6)
            assert counts(outcome.reports[6]) == (4, 0, 0)
            losses = [
                torch.nn.functional.cross_entropy(
                    torch.eye(4) @ torch.tensor(model["0"]).T + torch.tensor(model["1"]),
                    torch.arange(4) % 3,
                )
                for model in outcome.path
            ]
            assert losses[-1] < losses[0]

    def test_a_policy_that_the_server_keeps_is_no_obstacle(self, api, play):
        policy = Policy(clip=1.0, noise_scale=0.5, rounds=9)
        strategy = make(api, noise=Gaussian(1.0), seed=None)
        outcome = play(strategy, mods=(perturb_with(policy),))
        assert counts(outcome.reports[6])[0] == NUM_CLIENTS
        assert sum(outcome.grid.whole) == NUM_CLIENTS

    def test_a_client_whose_policy_sends_no_metrics_follows_nevertheless(self, api, play):
        policy = Policy(clip=1.0, noise_scale=0.5, rounds=9, metrics=())
        strategy = make(api, noise=Gaussian(1.0), seed=None, fraction_evaluate=1.0)
        outcome = play(strategy, mods=(perturb_with(policy),))
        assert sum(outcome.grid.whole) == NUM_CLIENTS

    def test_a_policy_is_enforced_as_ever(self, api, play):
        refuses = perturb_with(Policy(clip=1.0, noise_scale=1e6, rounds=9))
        with pytest.raises(RuntimeError, match="noise"):
            play(make(api), mods=(refuses,))

    def test_an_app_sees_the_model_under_its_names_and_no_key_of_ours(self, api, play):
        seen = []

        def listen(message, context, call_next):
            (record,) = message.content.array_records.values()
            (config,) = (
                one for key, one in message.content.config_records.items() if "config" in key
            )
            seen.append((list(record), [key for key in config if "fedmedian" in key]))
            return call_next(message, context)

        play(make(api, fraction_evaluate=1.0), mods=(perturb, listen))
        assert len(seen) == 12 * NUM_CLIENTS
        assert all(own == (["0"], []) for own in seen)

    def test_an_app_that_changes_what_it_is_given_does_not_change_what_its_client_holds(
        self, message_api, play
    ):
        def spoil(message, context, call_next):
            reply = call_next(message, context)
            (record,) = message.content.array_records.values()
            record.clear()
            return reply

        outcome = play(make(message_api), mods=(perturb, spoil))
        assert sum(outcome.grid.whole) == NUM_CLIENTS
        assert counts(outcome.reports[6]) == (NUM_CLIENTS, 0, 0)

    @pytest.mark.parametrize("evaluated", [0.0, 1.0])
    def test_clients_in_one_process_share_equal_models(self, evaluated, api, play):
        grid = play(make(api, fraction_evaluate=evaluated)).grid
        states = [state[holding.MODEL_STATE] for state in grid.states()]
        assert len(states) == NUM_CLIENTS
        assert len({id(record) for record in states}) == 1
        assert len({id(array.data) for record in states for array in record.values()}) == 1

    def test_models_that_nobody_holds_any_more_are_freed(self, message_api, play):
        before = len(holding._MODELS)
        outcome = play(make(message_api), 12)
        gc.collect()
        assert len(holding._MODELS) <= before + 1
        assert outcome.reports[12]


class TestArrays:
    """Steps are of arrays by name: their order does not matter, and other arrays have no step."""

    TWO = {"a": LARGE["0"], "b": -LARGE["0"], "count": np.array(0)}  # noqa: RUF012

    @pytest.fixture
    def start(self, message_api, habitual, run):
        """Runs a strategy that sends what `choose` makes of the model in each round."""

        def start(choose, strategy="SignSGD", model=self.TWO, **options):
            whole = {}

            def ask(number, model, usual):
                whole.update(model)
                return usual(choose(number, model))

            def hear(number, heard, usual):
                new, metrics = usual(heard)
                return whole | new, metrics

            options = {"downlink": CodedSteps(), "fraction_evaluate": 0.5, "seed": 1} | options
            own = habitual(message_api, strategy, model, ask=ask, hear=hear, **options)
            return run(own, train, model, NUM_CLIENTS, 6, grid=MeasuringGrid)

        return start

    @staticmethod
    def turned(number, model):
        return dict(sorted(model.items(), reverse=number % 2))

    @pytest.mark.parametrize("strategy", ["SignSGD", "MedianSGD"])
    def test_arrays_in_another_order_each_round_are_moved_by_the_same_steps(
        self, strategy, start, bits
    ):
        usual = start(lambda number, model: dict(sorted(model.items(), reverse=True)), strategy)
        turned = start(self.turned, strategy)
        assert bits(turned.model) == bits(usual.model)
        assert turned.reports == usual.reports
        assert turned.grid.whole == usual.grid.whole
        assert sum(turned.grid.whole) == NUM_CLIENTS

    def test_an_order_that_changes_with_the_evaluation_costs_no_whole_model(self, start):
        outcome = start(self.turned, fraction_evaluate=1.0)
        assert sum(outcome.grid.whole) == NUM_CLIENTS

    def test_other_arrays_are_sent_whole_and_the_log_says_why_once(self, start, caplog):
        def choose(number, model):
            return {"a": model["a"]} if number in (3, 5) else model

        outcome = start(choose, fraction_evaluate=0.0)
        whole = [all(of_round) for of_round in in_rounds(outcome.grid.whole)]
        assert whole == [True, False, True, True, True, True]
        (line,) = [one for one in caplog.messages if "its arrays differ from" in one]
        assert line.startswith("all clients are sent the whole model, 48,000 bytes each")
        assert "left out ['b', 'count']" in line

    def test_the_log_names_no_arrays_while_they_stay_the_same(self, start, caplog):
        start(self.turned)
        assert not any("its arrays differ from" in one for one in caplog.messages)


@pytest.mark.parametrize("filtered", [False, True], ids=["all", "some"])
def test_a_client_that_has_lost_its_state_is_back_after_a_round_also_if_clients_are_filtered(
    filtered, api, habitual, seeking, run
):
    def ask(number, model, usual):
        return [one for one in usual(model) if one.partition % 2 or not filtered]

    model = {"w": np.zeros((30, 40), np.float32)}
    strategy = habitual(
        api, "SignSGD", model, ask=ask, downlink=CodedSteps(), fraction_evaluate=0.0
    )
    app = seeking(api, lambda *array: 2.0, (wiping(3, after=2), perturb), NUM_CLIENTS)
    outcome = run(strategy, app, model, NUM_CLIENTS, 5)
    asked = NUM_CLIENTS // 2 if filtered else NUM_CLIENTS
    accepted = [outcome.reports[number]["replies-accepted"] for number in range(1, 6)]
    assert accepted == [asked, asked, asked - 1, asked, asked]


class TestHabits:
    @pytest.fixture
    def habits(self, api, habitual, run, seeking):
        """Runs a strategy of a subclass with habits."""

        def habits(num_rounds=6, *, model=MODEL, strategy="MedianSGD", **options):
            options = {"downlink": CodedSteps(), "fraction_evaluate": 0.0} | options
            subclass = habitual(api, strategy, model, **options)
            app = seeking(api, lambda name, array: GOAL, num_clients=NUM_CLIENTS)
            return run(subclass, app, model, NUM_CLIENTS, num_rounds, grid=MeasuringGrid)

        return habits

    def test_messages_that_go_to_others_than_were_drawn(self, habits):
        odd = range(1, NUM_CLIENTS, 2)

        def ask(number, model, usual):
            (first, *_) = usual(model)
            return [first.to(partition) for partition in odd]

        outcome = habits(12, ask=ask, fraction_train=0.5)
        for number in range(1, 13):
            assert counts(outcome.reports[number]) == (len(odd), 0, 0)
        assert is_near_goal(outcome.model)

    def test_rounds_that_are_skipped(self, habits):
        def ask(number, model, usual):
            asked = usual(model)
            return asked if number % 2 else []

        outcome = habits(8, ask=ask)
        assert sorted(outcome.reports) == [1, 3, 5, 7]
        assert sum(outcome.grid.whole) == NUM_CLIENTS

    def test_models_that_are_thrown_away(self, habits):
        def hear(number, heard, usual):
            return usual(heard) if number % 2 else (None, None)

        outcome = habits(8, hear=hear)
        assert all(counts(outcome.reports[n]) == (NUM_CLIENTS, 0, 0) for n in (1, 3, 5, 7))

    def test_two_groups_of_clients_with_models_of_their_own(self, habits):
        """Each group's clients are sent steps of its own model."""
        models = [MODEL["0"], -MODEL["0"] - 4]

        def ask(number, model, usual):
            letters = []
            for group, array in enumerate(models):
                own = [one for one in usual({"0": array}) if one.partition % 2 == group]
                letters += own
            return letters

        def hear(number, heard, usual):
            metrics = {}
            for group in (0, 1):
                own, metrics = usual([one for one in heard if one.partition % 2 == group])
                models[group] = own["0"]
            return {"0": models[0]}, metrics

        outcome = habits(8, ask=ask, hear=hear)
        assert abs(models[0].mean() - GOAL) < 0.3
        assert abs(models[1].mean() - GOAL) < 0.3
        assert sum(outcome.grid.whole) == NUM_CLIENTS

    def test_arrays_that_come_go_and_grow(self, habits):
        def ask(number, model, usual):
            changed = {
                1: {"0": MODEL["0"]},
                2: {"0": MODEL["0"], "1": np.zeros(300, np.float32)},
                3: {"0": MODEL["0"][:5], "1": np.zeros(300, np.float32)},
                4: {"0": MODEL["0"][:5]},
            }
            return usual(changed.get(number, {"0": MODEL["0"][:5]}))

        def hear(number, heard, usual):
            arrays, metrics = usual(heard)
            return {"0": np.resize(arrays["0"], MODEL["0"].shape)}, metrics

        outcome = habits(6, ask=ask, hear=hear)
        assert all(counts(outcome.reports[n]) == (NUM_CLIENTS, 0, 0) for n in range(1, 7))

    def test_arrays_of_zeros_that_take_each_others_place(self, message_api, habitual, run):
        """As where adapters are trained by turns: equal arrays, other names."""
        zeros = np.zeros(600, np.float32)
        seen = []

        def ask(number, model, usual):
            return usual({f"adapter{number % 2}": zeros})

        def hear(number, heard, usual):
            return MODEL, usual(heard)[1]

        def listen(message, context, call_next):
            (record,) = message.content.array_records.values()
            seen.append(tuple(record))
            return call_next(message, context)

        options = {"downlink": CodedSteps(), "fraction_evaluate": 0.0}
        strategy = habitual(message_api, "MedianSGD", MODEL, ask=ask, hear=hear, **options)
        run(strategy, train, MODEL, NUM_CLIENTS, 4, mods=(perturb, listen))
        names = [Counter(phase) for phase in in_rounds(seen)]
        assert names == [{(f"adapter{n % 2}",): NUM_CLIENTS} for n in range(1, 5)]


class TestMessages:
    """Nodes share what they are sent alike, and nothing else."""

    def test_nodes_keep_what_a_subclass_has_sent_each_of_them(self, message_api, run):
        class Own(message_api.module.MedianSGD):
            def _construct_messages(self, record, node_ids, message_type):
                messages = super()._construct_messages(record, node_ids, message_type)
                for message, node in zip(messages, node_ids, strict=True):
                    config = ConfigRecord({**record["config"], "node": node})
                    message.content = RecordDict({**record, "config": config})
                return messages

        seen = []

        def listen(message, context, call_next):
            seen.append((context.node_id, message.content["config"]["node"]))
            return call_next(message, context)

        strategy = message_api.make_own(Own, downlink=CodedSteps())
        outcome = run(strategy, train, MODEL, NUM_CLIENTS, 3, mods=(perturb, listen))
        assert len(seen) == 6 * NUM_CLIENTS
        assert all(node == own for node, own in seen)
        assert counts(outcome.reports[3]) == (NUM_CLIENTS, 0, 0)

    @pytest.mark.parametrize("phase", ["train", "evaluate"])
    @pytest.mark.parametrize("kind", ["message_api", "numpy_clients"])
    def test_content_that_a_subclass_sends_to_other_nodes_is_written_for_them(
        self, phase, kind, request, habitual, run, warnings
    ):
        """They hold another model than the node whose content it was, or none."""

        def ask(number, model, usual):
            first, *_ = usual(model)
            chosen = np.random.default_rng(number).permutation(NUM_CLIENTS)[:2]
            return [first.to(partition) for partition in chosen]

        own = {"ask": ask} if phase == "train" else {"ask_to_evaluate": ask}
        options = {"downlink": CodedSteps(), "fraction_train": 0.5, "fraction_evaluate": 0.5}
        api = request.getfixturevalue(kind)
        strategy = habitual(api, "MedianSGD", MODEL, **own, **options)
        outcome = run(strategy, train, MODEL, NUM_CLIENTS, 6)
        assert {one["replies-rejected"] for one in outcome.reports.values()} == {0}
        assert len(outcome.evaluations) == 6
        assert not warnings("aggregate_")

    def test_a_node_that_a_subclass_sends_other_arrays_gets_these(self, message_api, run):
        own, seen = to_record({"0": np.full_like(MODEL["0"], 5.0)}), []

        class Personal(message_api.module.MedianSGD):
            def _construct_messages(self, record, node_ids, message_type):
                usual = super()._construct_messages
                yield from usual(record, node_ids[1:], message_type)
                yield from usual(RecordDict({**record, "arrays": own}), node_ids[:1], message_type)

        def listen(message, context, call_next):
            (record,) = message.content.array_records.values()
            seen.append(np.array_equal(to_arrays(record)["0"], to_arrays(own)["0"]))
            return call_next(message, context)

        strategy = message_api.make_own(Personal, downlink=CodedSteps())
        run(strategy, train, MODEL, NUM_CLIENTS, 3, mods=(perturb, listen))
        assert sum(seen) == len(seen) / NUM_CLIENTS == 6

    @pytest.mark.parametrize("server_round", [1, 2])
    def test_what_nodes_are_sent_alike_is_one_object(self, server_round, api, habitual, run):
        contents = []

        def ask(number, model, usual):
            letters = usual(model)
            if number == server_round:
                contents.extend(content_of(letter.raw) for letter in letters)
            return letters

        options = {"downlink": CodedSteps(), "fraction_evaluate": 1.0}
        strategy = habitual(api, "SignSGD", MODEL, ask=ask, ask_to_evaluate=ask, **options)
        run(strategy, train, MODEL, NUM_CLIENTS, 2)
        assert len(contents) == 2 * NUM_CLIENTS
        assert len({id(content) for content in contents}) == 2


def passed_on(letter, partition):
    """Return a message with another receiver, as a subclass makes it by itself."""
    if isinstance(letter.raw, tuple):
        return letter.to(partition)
    node, usual = NODE_IDS[partition], letter.raw
    return replace(letter, raw=Message(usual.content, node, usual.metadata.message_type))


def with_model(letter, model):
    """Return a message with a model of a subclass's own, and the config as it was."""
    if isinstance(letter.raw, tuple):
        client, ins = letter.raw
        own = type(ins)(arrays_to_parameters(model), {**ins.config, "lr": 0.1})
        return replace(letter, raw=(client, own))
    letter.raw.content = RecordDict({**letter.raw.content, "arrays": to_record(model)})
    return letter


class TestMessagesOfItsOwn:
    """A subclass need not know that messages have steps, which only some nodes can take."""

    @pytest.fixture
    def require_all_heard(self, api, habitual, run, warnings):
        """Runs a strategy with habits; requires that nothing is lost, and returns the outcome."""

        def require_all_heard(mods=(perturb,), **options):
            options = {"downlink": CodedSteps(), "fraction_evaluate": 0.0} | options
            strategy = habitual(api, "MedianSGD", MODEL, **options)
            outcome = run(strategy, train, MODEL, NUM_CLIENTS, 6, mods=mods)
            assert {one["replies-rejected"] for one in outcome.reports.values()} == {0}
            assert {one["replies-missing"] for one in outcome.reports.values()} == {0}
            assert not warnings("aggregate_")
            return outcome

        return require_all_heard

    @pytest.mark.parametrize("phase", ["train", "evaluate"])
    def test_steps_for_one_node_may_be_sent_to_another(self, phase, require_all_heard):
        def ask(number, model, usual):
            first, *_ = usual(model)
            chosen = np.random.default_rng(number).permutation(NUM_CLIENTS)[:2]
            return [passed_on(first, partition) for partition in chosen]

        own = {"ask": ask} if phase == "train" else {"ask_to_evaluate": ask}
        fraction = 0.5 if phase == "evaluate" else 0.0
        outcome = require_all_heard(fraction_train=0.5, fraction_evaluate=fraction, **own)
        assert len(outcome.evaluations) == 12 * fraction

    def test_a_model_in_place_of_the_steps_is_trained_as_it_is(self, require_all_heard):
        seen = []

        def ask(number, model, usual):
            own = {"0": model["0"] + np.float32(0.01)}
            return [one if number % 2 else with_model(one, own) for one in usual(model)]

        def listen(message, context, call_next):
            (record,) = message.content.array_records.values()
            seen.append([array.shape for array in to_arrays(record).values()])
            return call_next(message, context)

        outcome = require_all_heard((perturb, listen), ask=ask)
        assert seen == [[MODEL["0"].shape]] * 6 * NUM_CLIENTS
        assert is_near_goal(outcome.model)

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["in order", "reversed"])
    def test_a_node_may_train_two_models_in_each_round(self, order, require_all_heard):
        models = [MODEL["0"], -MODEL["0"] - 4]

        def ask(number, model, usual):
            return [letter for array in models for letter in usual({"0": array})]

        def hear(number, heard, usual):
            own = [[one for one in heard if question_of(one.raw) == n] for n in (0, 1)]
            for group in order:
                arrays, metrics = usual(own[group])
                models[group] = arrays["0"]
            return {"0": models[0]}, metrics

        outcome = require_all_heard(ask=ask, hear=hear, fraction_evaluate=1.0)
        assert len(outcome.evaluations) == 6
        assert all(abs(model.mean() - GOAL) < 0.5 for model in models)

    def test_a_node_may_evaluate_a_model_besides_the_one_that_it_trains(
        self, api, habitual, run, warnings
    ):
        models = [MODEL["0"], -MODEL["0"] - 4]

        def ask(number, model, usual):
            groups = [usual({"0": array}) for array in models]
            return [one for n in (0, 1) for one in groups[n] if one.partition % 2 == n]

        def hear(number, heard, usual):
            for group in (0, 1):
                arrays, metrics = usual([one for one in heard if one.partition % 2 == group])
                models[group] = arrays["0"]
            return {"0": models[0]}, metrics

        def ask_to_evaluate(number, model, usual):
            return [letter for array in models for letter in usual({"0": array})]

        habits = {"ask": ask, "hear": hear, "ask_to_evaluate": ask_to_evaluate}
        strategy = habitual(api, "MedianSGD", MODEL, downlink=CodedSteps(), **habits)
        outcome = run(strategy, train, MODEL, NUM_CLIENTS, 4)
        assert {one["replies-rejected"] for one in outcome.reports.values()} == {0}
        assert not [text for text in warnings() if NOT_HELD in text]

    def test_a_node_that_has_evaluated_two_models_is_sent_one_whole_model(
        self, api, older_api, require_all_heard
    ):
        def ask(number, model, usual):
            models = [model, {"0": -MODEL["0"] - 4}] if number == 2 else []
            return [one for own in models for one in usual(own)]

        def hear_nobody(number, heard, usual):
            return (None, {}) if api is older_api else None

        own = {"ask_to_evaluate": ask, "hear_evaluation": hear_nobody}
        outcome = require_all_heard(fraction_evaluate=1.0, **own)
        sizes = [one["downlink-bytes"] for one in outcome.reports.values()]
        assert [size > MODEL["0"].nbytes for size in sizes] == [True, False, True] + [False] * 3


def question_of(raw):
    """Return the number of the question that a reply answers."""
    scalars = raw[1].metrics if isinstance(raw, tuple) else raw.content["fedmedian"]
    return scalars.get("fedmedian.question", 0)


def content_of(raw):
    """Return what a message holds a model in."""
    return raw[1].parameters if isinstance(raw, tuple) else raw.content


class Killed(BaseException):
    """Stands for the end of the process."""


def kill(strategy, in_round):
    """Let a strategy's process end between a round's training and its evaluation."""
    configure = strategy.configure_evaluate

    def configure_evaluate(server_round, *arguments, **named):
        if server_round == in_round:
            raise Killed
        return configure(server_round, *arguments, **named)

    strategy.configure_evaluate = configure_evaluate
    return strategy


class TestResume:
    @pytest.mark.parametrize(
        ("strategy", "evaluated", "every"),
        [("SignSGD", 0.0, 1), ("SignSGD", 1.0, 3), ("MedianSGD", 1.0, 1)],
    )
    def test_a_resumed_run_ends_with_the_bits_of_the_unbroken_one(
        self, strategy, evaluated, every, api, play, bits, tmp_path
    ):
        def start(**options):
            own = {"optimizer": Momentum(), "fraction_evaluate": evaluated, "fraction_train": 0.5}
            return make(api, strategy, **own, **options)

        whole = play(start(), 6)
        checkpoint = Checkpoint(tmp_path, every)
        with pytest.raises(Killed):
            play(kill(start(checkpoint=checkpoint), 4), 6)
        resumed = play(start(checkpoint=checkpoint), 6)
        assert bits(resumed.model) == bits(whole.model)
        for number in (5, 6):
            wanted, found = ({**one.reports[number]} for one in (whole, resumed))
            for report in (wanted, found):
                report.pop("downlink-bytes", None)
            assert found == wanted

    def test_also_after_a_round_without_a_step(self, api, play, bits, tmp_path):
        """The next round sends no new step in either run."""

        def silent(in_round):
            def fail(message, context, call_next):
                configs = message.content.config_records.values()
                if any(config.get("fedmedian.round") == in_round for config in configs):
                    raise OSError("off for the night")
                return call_next(message, context)

            return fail

        def start(killed_in=None, **options):
            strategy = make(api, "MedianSGD", **options)
            return play(kill(strategy, killed_in), 6, mods=(silent(3), perturb))

        whole = start()
        with pytest.raises(Killed):
            start(3, checkpoint=Checkpoint(tmp_path))
        resumed = start(checkpoint=Checkpoint(tmp_path))
        assert counts(whole.reports[3])[0] == 0
        assert bits(resumed.model) == bits(whole.model)

    def test_another_downlink_is_another_run(self, api, play, tmp_path):
        play(make(api, checkpoint=Checkpoint(tmp_path)), 1)
        with pytest.raises(ValueError, match="downlink"):
            play(make(api, downlink=None, checkpoint=Checkpoint(tmp_path)), 2)


def test_without_a_downlink_messages_are_as_ever(message_api, play):
    assert isinstance(make(message_api), FedAvg)
    grid = play(make(message_api, downlink=None)).grid
    assert all(grid.whole)
    assert not any(state for state in grid.states())
