"""Runs with secure sums: the model of plain votes bit for bit, whoever drops out and when.

What the server sees is in tests/secure; here whole runs go through Flower's messages.
"""

import copy
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedmedian import (
    Adam,
    Adaptive,
    ClientMomentum,
    ClientStep,
    Clip,
    CodedSteps,
    Counts,
    Gaussian,
    Laplace,
    Majority,
    Median,
    Momentum,
    Rotation,
    ScaleRule,
    SecureSum,
    TopUp,
    VoteAggregator,
    register_client_step,
)
from fedmedian.clients import InProcessGrid, Policy, perturb, perturb_with
from fedmedian.records import sizes_of
from fedmedian.rounds.checkpoint import Checkpoint
from fedmedian.rounds.watch import RunFailedError
from fedmedian.secure import masking, opening
from fedmedian.secure.masking import PART, SHARE
from fedmedian.secure.requests import ask_for_key, is_request
from fedmedian.strategies import MedianSGD, SignSGD, legacy
from fedmedian.wire.scalars import PREFIX
from tests.tools.apis import protocol_of

NUM_CLIENTS = 7
LEAST = 5
MODEL = {
    "w": np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32),
    "b": np.zeros(7, np.float32),
}
SECURE = {"secure": SecureSum(2 / 3), "weighted": False, "fraction_evaluate": 0.0}
SAME = ("loss", "noise-scale", "signal-to-noise", "margin", "vote-agreement", "replies-accepted")


@dataclass(frozen=True)
class Halves(ClientStep):
    """A custom step that reports two votes."""

    name: ClassVar[str] = "halves"
    reveals: ClassVar[str] = "the signs of its halves"

    def apply(self, draft):
        draft.report(self, [half.sum() > 0 for half in np.array_split(draft.vector, 2)])

    def num_votes(self, blocks):
        return 2

    def check(self, reported, blocks):
        assert np.isin(reported, (0, 1)).all()


@dataclass(frozen=True)
class Telling(ClientStep):
    """A custom step that reports a number."""

    name: ClassVar[str] = "telling"
    reveals: ClassVar[str] = "its first entry"

    def apply(self, draft):
        draft.report(self, draft.vector[:1])


@dataclass(frozen=True)
class Scaling(ClientStep):
    """A custom step that reports nothing, and is undone."""

    factor: float = 2.0

    name: ClassVar[str] = "scaling"

    def apply(self, draft):
        draft.vector[:] *= np.float32(self.factor)

    def undo(self, direction, before):
        return direction / np.float32(self.factor)


@pytest.fixture(scope="module", autouse=True)
def _own_steps(registries):
    for step in (Halves, Telling, Scaling):
        register_client_step(step)


@pytest.fixture
def app(message_api, seeking):
    """Clients that go half of the way to 2, each a little aside; other mods come first."""

    def app(*mods, num_clients=NUM_CLIENTS):
        all_mods = (*mods, perturb)
        return seeking(message_api, lambda name, array: 2, all_mods, num_clients)

    return app


@pytest.fixture
def play(message_api, run, app):
    """Runs `SignSGD` with secure sums on the clients of `app`."""

    def play(rounds, *mods, model=MODEL, num_clients=NUM_CLIENTS, clients=None, **options):
        strategy = message_api.make("SignSGD", **{**SECURE, **options})
        clients = clients or app(*mods, num_clients=num_clients)
        return run(strategy, clients, model, num_clients, rounds)

    return play


class Half:
    """Half of a grid's nodes."""

    def __init__(self, grid, half):
        self._grid, self._half = grid, half

    def get_node_ids(self):
        nodes = self._grid.get_node_ids()
        return nodes[: len(nodes) // 2] if self._half == 0 else nodes[len(nodes) // 2 :]

    def __getattr__(self, name):
        return getattr(self._grid, name)


def stage_of(message):
    """Return what a message asks for: a key, votes, seeds, parts or shares."""
    for config in message.content.config_records.values():
        if is_request(config):
            if config[PREFIX + "sum.what"] == "key":
                return "key"
            wanted = config[PREFIX + "sum.wanted"]
            return "parts" if PART in wanted else "shares" if SHARE in wanted else "seeds"
    return "votes"


def failing(fails):
    """Return a mod of clients that fail where `fails(partition, round, stage)`."""

    def fail(message, context, call_next):
        partition = context.node_config["partition-id"]
        rounds = [one[PREFIX + "round"] for one in message.content.config_records.values()]
        if fails(partition, *rounds, stage_of(message)):
            raise ConnectionError("gone")
        return call_next(message, context)

    return fail


def spoiling(change, partition=0):
    """Return a mod that changes what a client replies at each stage."""

    def spoil(message, context, call_next):
        stage = stage_of(message)
        reply = call_next(message, context)
        if context.node_config["partition-id"] == partition and reply.has_content():
            change(stage, reply.content)
        return reply

    return spoil


class Audit:
    """Every sum that is opened, beside the sum of the plain votes of its members."""

    def __init__(self, monkeypatch):
        self.votes, self.sums, self.failed = {}, [], 0
        mask, open_sum = masking.Key.mask, opening.SumCohort.open

        def masked(key, votes):
            self.votes[key.public, key.question] = votes.astype(np.int64)
            return mask(key, votes)

        def opened(cohort, votes, dim, ask):
            try:
                total = open_sum(cohort, votes, dim, ask)
            except opening.SumError:
                self.failed += 1
                raise
            keys = [cohort.keys[one] for one in total.members]
            question = max(question for key, question in self.votes if key in keys)
            plain = sum(self.votes[key, question] for key in keys)
            self.sums.append((question[0], total, plain, cohort.circle.least))
            return total

        monkeypatch.setattr(masking.Key, "mask", masked)
        monkeypatch.setattr(opening.SumCohort, "open", opened)

    def require_plain_sums(self):
        for _, total, plain, least in self.sums:
            np.testing.assert_array_equal(total.counts, plain)
            assert len(total.members) >= least


@pytest.fixture
def audit(monkeypatch):
    return Audit(monkeypatch)


CASES = {
    "default": {},
    "laplace": {"noise": Laplace(0.5)},
    "adaptive, in the parameters' basis": {"noise": Gaussian(Adaptive(2.0)), "rotation": None},
    "majority": {
        "noise": Gaussian(0.1), "aggregator": Majority(), "learning_rate": 0.05, "rotation": None,
    },
    "majority without noise": {
        "noise": None, "aggregator": Majority(ties="unchanged"), "learning_rate": 0.05,
    },
    "calibrated majority": {"aggregator": Majority(calibrated=True)},
    "adam": {"optimizer": Adam()},
    "momentum": {"optimizer": Momentum(0.5)},
    "coded downlink": {"downlink": CodedSteps()},
    "clip": {"client_steps": [Clip(1.0)], "noise": Gaussian(0.2)},
    "custom client steps": {"client_steps": [Scaling(), ClientMomentum(0.5), Halves()]},
}  # fmt: skip


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_the_model_and_the_reports_are_those_of_plain_votes(options, play, bits):
    secure = play(4, **options)
    noise = SignSGD(**{**SECURE, **options}).noise
    plain = play(4, **{**options, "noise": noise, "secure": None})
    assert [bits(model) for model in secure.path] == [bits(model) for model in plain.path]
    assert bits(secure.model) != bits(MODEL)
    for number, report in plain.reports.items():
        for name in report.keys() & {*SAME}:
            assert secure.reports[number][name] == report[name], name


@pytest.mark.parametrize("rotation", [Rotation(), None], ids=["default", "none"])
def test_a_small_array_that_moves_most_is_not_held_back(rotation, message_api, make_app, run, bits):
    """A clipped update's entries are limited, but in blocks of their own small ones are large."""
    model = {"w": np.zeros((40, 40), np.float32), "b": np.zeros(3, np.float32)}

    def train(model, partition):
        return {"w": model["w"] + np.float32(1e-4), "b": model["b"] + np.float32(0.5)}, {
            "num-examples": 1
        }

    clipped = {"client_steps": [Clip(1.0)], "noise": Gaussian(0.2), "rotation": rotation}
    secure, plain = (
        run(
            message_api.make("SignSGD", **{**SECURE, **clipped, **own}),
            make_app(train),
            model,
            7,
            3,
        )
        for own in ({}, {"secure": None})
    )
    assert bits(secure.model) == bits(plain.model)


def test_a_run_is_the_same_again_to_the_last_bit_of_its_reports(message_api, make_app, run, bits):
    def train(model, partition):
        loss = (1 / 3, 1e8 / 7, 3e-5, 1e9 / 11, 0.1, 2e7 / 13, 1 / 17)[partition]
        return {name: array - 1 for name, array in model.items()}, {
            "num-examples": 10,
            "loss": loss,
        }

    outcomes = [
        run(message_api.make("SignSGD", **SECURE), make_app(train), MODEL, NUM_CLIENTS, 6)
        for _ in range(2)
    ]
    assert outcomes[0].reports == outcomes[1].reports
    assert bits(outcomes[0].model) == bits(outcomes[1].model)


def test_arrays_that_are_tied_stay_tied(play, bits):
    tied = {"first": MODEL["w"], "other": MODEL["b"], "second": MODEL["w"].copy()}
    secure = play(3, model=tied)
    plain = play(3, model=tied, secure=None, noise=Gaussian(TopUp(voted=True)))
    assert bits(secure.model) == bits(plain.model)
    np.testing.assert_array_equal(secure.model["first"], secure.model["second"])
    assert not np.array_equal(secure.model["first"], MODEL["w"])


def test_arrays_that_no_client_trains_stay_as_they_are(message_api, make_app, run):
    model = {"base": np.linspace(-1, 1, 400, dtype=np.float32), **MODEL}

    def train(model, partition):
        trained = {name: model[name] + np.float32(0.5) * (2 - model[name]) for name in MODEL}
        return {"base": model["base"], **trained}, {"num-examples": 1}

    strategy = message_api.make("SignSGD", **SECURE)
    outcome = run(strategy, make_app(train), model, NUM_CLIENTS, 4)
    np.testing.assert_array_equal(outcome.model["base"], model["base"])
    assert np.abs(outcome.model["w"] - 2).mean() < np.abs(MODEL["w"] - 2).mean() / 2


def test_more_clients_than_a_client_has_neighbors(play, bits):
    rule = SecureSum(neighbors=20)
    secure = play(2, num_clients=24, secure=rule)
    plain = play(2, num_clients=24, secure=None, noise=Gaussian(TopUp(voted=True)))
    assert bits(secure.model) == bits(plain.model)


def test_some_of_the_clients_take_part_in_each_round(play, audit):
    outcome = play(6, num_clients=12, fraction_train=0.5)
    assert [report["replies-accepted"] for report in outcome.reports.values()] == [6] * 6
    assert len(audit.sums) == 6
    audit.require_plain_sums()


def test_an_app_that_replaces_its_state_keeps_its_key(play, seeking, message_api):
    def forget(message, context, call_next):
        context.state = RecordDict()
        return call_next(message, context)

    clients = seeking(message_api, lambda name, array: 2, (perturb, forget), NUM_CLIENTS)
    outcome = play(3, clients=clients)
    assert [one["replies-accepted"] for one in outcome.reports.values()] == [NUM_CLIENTS] * 3


class TestDropouts:
    def test_a_client_that_gets_a_request_for_a_key_late_is_the_only_one_that_is_lost(
        self, play, audit
    ):
        keys = Counter()

        def late(message, context, call_next):
            (config,) = message.content.config_records.values()
            number, stage = config[PREFIX + "round"], stage_of(message)
            keys[number] += stage == "key"
            if (context.node_config["partition-id"], number, stage) == (0, 2, "votes"):
                request = RecordDict({"config": ConfigRecord(ask_for_key(1))})
                call_next(Message(content=request, metadata=message.metadata), context)
            return call_next(message, context)

        outcome = play(3, late)
        accepted = [report["replies-accepted"] for report in outcome.reports.values()]
        assert accepted == [NUM_CLIENTS, NUM_CLIENTS - 1, NUM_CLIENTS]
        assert keys == {1: NUM_CLIENTS, 2: 0, 3: 1}
        audit.require_plain_sums()

    @pytest.mark.parametrize(
        ("stage", "left"),
        [("votes", LEAST), ("seeds", LEAST), ("parts", NUM_CLIENTS), ("shares", NUM_CLIENTS - 1)],
    )
    def test_within_the_threshold_at_one_stage(self, stage, left, play, audit):
        def fails(partition, server_round, at):
            # Only where a vote is missing seeds are asked for, and shares at once.
            first = "votes" if stage in ("seeds", "shares") else stage
            return server_round == 2 and {0: first, 1: stage}.get(partition) == at

        outcome = play(3, failing(fails))
        accepted = [report["replies-accepted"] for report in outcome.reports.values()]
        assert accepted == [NUM_CLIENTS, left, NUM_CLIENTS]
        counted = [outcome.reports[2][f"replies-{kind}"] for kind in ("rejected", "missing")]
        assert sum(counted) == NUM_CLIENTS - left
        assert len(audit.sums) == 3
        audit.require_plain_sums()

    def test_a_client_that_gives_no_key_counts_as_missing(self, play):
        outcome = play(2, failing(lambda partition, number, at: partition == 0 and at == "key"))
        for report in outcome.reports.values():
            counted = [report[f"replies-{kind}"] for kind in ("accepted", "rejected", "missing")]
            assert counted == [NUM_CLIENTS - 1, 0, 1]

    @pytest.mark.parametrize("stage", ["votes", "parts"])
    def test_a_run_whose_sums_cannot_be_opened_ends_with_that_reason_and_the_others(
        self, stage, play
    ):
        def fails(partition, number, at):
            return (partition == 0 and at == "key") or (partition in (1, 2) and at == stage)

        with pytest.raises(
            RunFailedError,
            match=r"reason, \d+ of 21 replies: the secure sum cannot be opened: .*\. The others' "
            r"most common reason: .*ConnectionError: gone",
        ):
            play(3, failing(fails), secure=SecureSum(0.7))

    @pytest.mark.parametrize("stage", ["votes", "parts"])
    def test_below_it_keep_the_model_and_the_next_round_works(
        self, stage, play, audit, bits, caplog
    ):
        keys = Counter()

        def fails(partition, server_round, at):
            keys[server_round] += at == "key"
            return server_round == 2 and at == stage and partition < 3

        outcome = play(3, failing(fails))
        _, first, second, third = map(bits, outcome.path)
        assert first == second != third
        assert outcome.reports[2]["replies-accepted"] == 0
        counted = [outcome.reports[2][f"replies-{kind}"] for kind in ("rejected", "missing")]
        assert sum(counted) == NUM_CLIENTS
        assert "round 2 keeps the model as it is: the secure sum cannot be opened" in caplog.text
        lost = NUM_CLIENTS - (3 if stage == "votes" else 0)
        assert f"round 2: {lost} of {NUM_CLIENTS} replies are lost for one reason" in caplog.text
        assert [number for number, *_ in audit.sums] == [1, 3]
        assert keys == {1: NUM_CLIENTS, 2: 0, 3: NUM_CLIENTS}  # of all: one may be wrong
        audit.require_plain_sums()

    def test_without_keys_of_enough_nobody_is_asked_to_vote(self, play, audit, bits):
        asked = Counter()

        def fails(partition, server_round, at):
            asked[server_round, at] += 1
            return server_round == 1 and partition < 3

        outcome = play(2, failing(fails))
        assert bits(outcome.path[1]) == bits(MODEL) != bits(outcome.path[2])
        assert asked[1, "votes"] == 0
        assert asked[2, "key"] == 3
        assert [number for number, *_ in audit.sums] == [2]

    def test_at_random_in_60_rounds_every_sum_is_the_plain_one_and_none_is_below_the_threshold(
        self, play, audit, bits
    ):
        rng = np.random.default_rng(0)
        failures, model = defaultdict(set), {"w": np.zeros(9, np.float32)}
        for server_round in range(1, 61):
            share = rng.choice([0, 0.05, 0.15, 0.3])
            for stage in ("key", "votes", "seeds", "parts", "shares"):
                failures[server_round, stage] = {*np.flatnonzero(rng.random(7) < share)}

        def fails(partition, server_round, stage):
            return partition in failures[server_round, stage]

        outcome = play(60, failing(fails), model=model, num_clients=7, max_failed_rounds=None)
        audit.require_plain_sums()
        done = {number for number, *_ in audit.sums}
        assert 30 <= len(done) < 58
        assert len({len(total.members) for _, total, _, _ in audit.sums}) >= 3
        for number in range(1, 61):
            before, after = (bits(outcome.path[at]) for at in (number - 1, number))
            assert (before != after) == (number in done)


class TestRefused:
    """By name, when the strategy is made."""

    @dataclass(frozen=True)
    class OwnRule(VoteAggregator):
        def usual_rate(self, noise):
            return 1.0

        def weights(self, ballot):
            return ballot.vote_weights()

        def decode(self, votes, ballot, rng):
            return votes

    @dataclass(frozen=True)
    class OwnScale(ScaleRule):
        magnitude = "rms"

        def first(self, num_blocks, encoding):
            return np.full(num_blocks, np.nan)

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"weighted": True}, "weighted must be False with secure=SecureSum"),
            ({"scale_from": "client"}, "scale_from must be 'server' with secure="),
            ({"cohort_rules": [len]}, "cohort_rules must be empty with secure="),
            ({"aggregator": OwnRule()}, "secure must be None unless the aggregator"),
            ({"client_steps": [Telling()]}, "client_steps[0] must report votes of 0 or 1"),
            ({"client_steps": [Clip(1.0), Telling()]}, "client_steps[1] must report votes"),
            ({"noise": Gaussian(OwnScale())}, "noise must have a scale rule without magnitudes"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_what_needs_more_than_a_sum(self, options, named):
        with pytest.raises(ValueError, match=f"^{re.escape(named)}"):
            SignSGD(**{**SECURE, **options})

    @pytest.mark.parametrize("value", [True, 1, "yes", SecureSum, 2 / 3])
    def test_another_type(self, value):
        with pytest.raises(TypeError, match=r"^secure must be SecureSum\(\), or None"):
            SignSGD(secure=value, weighted=False)

    @pytest.mark.parametrize("strategy", [MedianSGD, legacy.MedianSGD])
    def test_medians(self, strategy):
        with pytest.raises(TypeError, match=r"no argument 'secure': .*of votes, use .*SignSGD"):
            strategy(secure=SecureSum())

    def test_a_median_in_place_of_votes(self):
        with pytest.raises(ValueError, match=r"^aggregator must be of signs"):
            SignSGD(aggregator=Median(), **SECURE)

    def test_the_older_api(self):
        with pytest.raises(
            ValueError, match=r"^secure must be None in the older API.*strategies\.SignSGD"
        ):
            legacy.SignSGD(secure=SecureSum(), weighted=False)

    def test_a_custom_encoding_of_votes(self):
        class Doubled(type(Counts().encoding)):
            name = "doubled"

        class OwnCounts(Counts):
            encoding = Doubled()

        with pytest.raises(ValueError, match=r"^secure must be None unless the aggregator"):
            SignSGD(aggregator=OwnCounts(), **SECURE)

    def test_a_model_with_exact_arrays_in_the_first_round(self, play):
        model = {**MODEL, "norm.running_mean": np.zeros(3, np.float32)}
        with pytest.raises(ValueError, match=r"^secure must be None with this model.*running_mean"):
            play(1, model=model)
        assert play(1, model=model, exact=()).reports[1]["replies-accepted"] == NUM_CLIENTS
        with pytest.raises(ValueError, match=r"'steps'"):
            play(1, model={**MODEL, "steps": np.array(3)}, exact=())

    def test_nothing_else(self):
        strategy = SignSGD(**SECURE, client_steps=[Halves(), Clip(1.0)])
        assert strategy.secure == SECURE["secure"]
        assert strategy.noise == Gaussian(TopUp(voted=True))
        assert "secure=SecureSum(" in repr(strategy)


class TestCheckpoint:
    def test_a_resumed_run_ends_where_the_unbroken_one_does(self, play, bits, tmp_path):
        unbroken = play(6, checkpoint=Checkpoint(tmp_path / "unbroken"))
        play(3, checkpoint=Checkpoint(tmp_path / "broken"))
        resumed = play(6, checkpoint=Checkpoint(tmp_path / "broken"))
        assert bits(resumed.model) == bits(unbroken.model)
        for number, report in unbroken.reports.items():
            for name in SAME:
                assert resumed.reports[number][name] == report[name]

    @pytest.mark.parametrize("other", [None, SecureSum(0.9), SecureSum(neighbors=20)], ids=repr)
    def test_another_sum_is_another_run(self, other, play, tmp_path):
        play(1, checkpoint=Checkpoint(tmp_path))
        noise = Gaussian(TopUp(voted=True))
        with pytest.raises(ValueError, match="secure"):
            play(2, secure=other, noise=noise, checkpoint=Checkpoint(tmp_path))

    def test_a_second_run_of_a_strategy_asks_for_keys_anew(self, message_api, run, app):
        keys = Counter()

        def count(message, context, call_next):
            keys[stage_of(message)] += 1
            return call_next(message, context)

        strategy, clients = message_api.make("SignSGD", **SECURE), app(count)
        for number in (1, 2):
            run(strategy, clients, MODEL, NUM_CLIENTS, 2)
            assert keys["key"] == number * NUM_CLIENTS


class CountingGrid(InProcessGrid):
    """Counts the bytes of what messages contain."""

    up = down = 0

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        replies = super().send_and_receive(messages, timeout=timeout)
        self.down += sum(sizes_of(messages))
        self.up += sum(sizes_of(replies))
        return replies


def assert_all_bytes_counted(strategy, outcome):
    up, down, *_ = protocol_of(strategy).watch._sent
    assert (up, down) == (outcome.grid.up, outcome.grid.down)
    assert up > sum(report["uplink-bytes"] for report in outcome.reports.values())


@pytest.mark.parametrize("lost", [0, 1])
def test_bytes_around_the_votes_are_counted(lost, message_api, run, app):
    def fails(partition, server_round, stage):
        return partition < lost and server_round == 2 and stage == "votes"

    strategy = message_api.make("SignSGD", **SECURE)
    outcome = run(strategy, app(failing(fails)), MODEL, NUM_CLIENTS, 3, grid=CountingGrid)
    assert_all_bytes_counted(strategy, outcome)


def test_a_strategy_may_be_copied_after_a_run(message_api, run, app, bits):
    strategy = message_api.make("SignSGD", **SECURE)
    first = run(strategy, app(), MODEL, NUM_CLIENTS, 2)
    again = run(copy.deepcopy(strategy), app(), MODEL, NUM_CLIENTS, 2)
    assert bits(again.model) == bits(first.model)


class TestSubclasses:
    def asking(self, change):
        class Own(SignSGD):
            def configure_train(self, server_round, arrays, config, grid):
                configure = super().configure_train
                return change(list(configure(server_round, arrays, config, grid)), server_round)

        return Own(**SECURE, seed=1)

    def test_messages_that_are_dropped_are_not_waited_for(self, run, app, audit, caplog):
        dropped = {1: 0, 2: 2, 3: 3, 4: 0}
        strategy = self.asking(lambda asked, number: asked[dropped[number] :])
        outcome = run(strategy, app(), MODEL, NUM_CLIENTS, 4)
        assert [len(total.members) for _, total, _, _ in audit.sums] == [7, 5, 4, 7]
        audit.require_plain_sums()
        assert [one["replies-missing"] for one in outcome.reports.values()] == [0] * 4
        assert "keeps the model as it is" not in caplog.text

    def test_nodes_without_a_key_are_missing_though_messages_are_dropped(self, run, app):
        def fails(partition, server_round, stage):
            return partition == 0 and stage == "key"

        strategy = self.asking(lambda asked, number: asked[number - 1 :])
        outcome = run(strategy, app(failing(fails)), MODEL, NUM_CLIENTS, 2)
        assert [one["replies-missing"] for one in outcome.reports.values()] == [1, 1]

    def test_messages_may_change_places(self, run, app, audit):
        def exchange(asked, number):
            if number == 2:
                first, second = (one.metadata.dst_node_id for one in asked[:2])
                asked[0].metadata.dst_node_id, asked[1].metadata.dst_node_id = second, first
            return asked

        run(self.asking(exchange), app(), MODEL, NUM_CLIENTS, 3)
        audit.require_plain_sums()
        assert [len(total.members) for _, total, _, _ in audit.sums] == [7, 7, 7]

    def test_messages_may_be_copied(self, run, app, audit):
        strategy = self.asking(lambda asked, number: [copy.deepcopy(one) for one in asked])
        outcome = run(strategy, app(), MODEL, NUM_CLIENTS, 2)
        assert [one["replies-accepted"] for one in outcome.reports.values()] == [NUM_CLIENTS] * 2
        audit.require_plain_sums()

    def test_messages_may_be_for_a_function_of_another_name(self, run, audit):
        app = ClientApp(mods=[perturb])

        @app.train("mine")
        def train(message, context):
            content = message.content
            arrays = {name: Array(one.numpy() - 1) for name, one in content["arrays"].items()}
            metrics = MetricRecord({"num-examples": 1})
            reply = {"arrays": ArrayRecord(arrays), "metrics": metrics}
            return Message(RecordDict(reply), reply_to=message)

        class Named(SignSGD):
            def _construct_messages(self, record, node_ids, message_type):
                return super()._construct_messages(record, node_ids, f"{message_type}.mine")

        outcome = run(Named(**SECURE, seed=1), app, MODEL, NUM_CLIENTS, 2)
        assert [one["replies-accepted"] for one in outcome.reports.values()] == [NUM_CLIENTS] * 2
        audit.require_plain_sums()

    def test_groups_that_are_asked_apart_and_heard_together_are_told_so(self, run, app, caplog):
        class Groups(SignSGD):
            def configure_train(self, server_round, arrays, config, grid):
                configure = super().configure_train
                halves = (
                    configure(server_round, arrays, config, Half(grid, one)) for one in (0, 1)
                )
                return [message for asked in halves for message in asked]

        outcome = run(Groups(**SECURE, seed=1), app(num_clients=10), MODEL, 10, 1)
        report = outcome.reports[1]
        assert (report["replies-accepted"], report["replies-rejected"]) == (5, 5)
        assert "one call of configure_train must ask all nodes whose votes are" in caplog.text

    @pytest.mark.parametrize("start", [0, -5], ids=["of one model", "of two models"])
    def test_two_clusters_of_nodes_have_a_sum_each(
        self, start, run, app, audit, as_record, as_arrays
    ):
        class Clusters(SignSGD):
            models: ClassVar = [MODEL, {name: array + start for name, array in MODEL.items()}]

            def configure_train(self, server_round, arrays, config, grid):
                configure = super().configure_train
                self.halves = []
                for half, model in enumerate(self.models):
                    asked = configure(server_round, as_record(model), config, Half(grid, half))
                    self.halves.append(list(asked))
                return [message for asked in self.halves for message in asked]

            def aggregate_train(self, server_round, replies):
                replies, models = list(replies), []
                for asked, before in zip(self.halves, self.models, strict=True):
                    ids = {one.metadata.message_id for one in asked}
                    own = [one for one in replies if one.metadata.reply_to_message_id in ids]
                    arrays, metrics = super().aggregate_train(server_round, own)
                    models.append(before if arrays is None else as_arrays(arrays))
                self.models = models
                return as_record(models[0]), metrics

        strategy = Clusters(**SECURE, seed=1)
        outcome = run(strategy, app(num_clients=10), MODEL, 10, 3, grid=CountingGrid)
        assert_all_bytes_counted(strategy, outcome)
        assert Counter(len(total.members) for _, total, _, _ in audit.sums) == {5: 6}
        audit.require_plain_sums()
        for model, before in zip(strategy.models, (0, start), strict=True):
            assert np.abs(model["b"] - 2).mean() < (2 - before) / 2


class TestOtherClients:
    def test_without_the_mod_end_the_run_with_the_remedy(self, play, seeking, message_api):
        plain = seeking(message_api, lambda name, array: 2, (), NUM_CLIENTS)
        with pytest.raises(
            RunFailedError, match=r"rounds 1 to 3 .* 0 of 7 gave a key.*\[perturb\]"
        ):
            play(5, clients=plain)

    def test_too_few_for_any_sum_are_not_told_to_add_the_mod(self, play):
        with pytest.raises(RunFailedError, match=r"needs 3 clients, and 2 of 2 .*: ask more") as it:
            play(5, num_clients=2)
        assert "perturb" not in str(it.value)

    def test_numpy_clients_take_part_with_the_mod_and_not_without(self, numpy_clients, run):
        def train(model, partition):
            return {name: array - 1 for name, array in model.items()}, {"num-examples": 1}

        strategy = numpy_clients.make("SignSGD", **SECURE)
        outcome = run(strategy, train, MODEL, NUM_CLIENTS, 2)
        assert [one["replies-accepted"] for one in outcome.reports.values()] == [7, 7]
        assert np.all(outcome.model["b"] < -0.5)
        with pytest.raises(RunFailedError, match=r"0 of 7 gave a key: .*mods=\[perturb\]"):
            run(numpy_clients.make("SignSGD", **SECURE), train, MODEL, NUM_CLIENTS, 4, mods=())

    def test_with_a_policy_are_held_to_it(self, play, seeking, message_api):
        policy = Policy(clip=1.0, noise_scale=0.5, rounds=10, metrics=["loss"])
        mods = (perturb_with(policy),)
        clients = seeking(message_api, lambda name, array: 2, mods, NUM_CLIENTS)
        options = {"client_steps": [Clip(1.0)], "clients": clients, "seed": None}
        outcome = play(2, noise=Gaussian(0.5), **options)
        assert outcome.reports[2]["replies-accepted"] == NUM_CLIENTS
        with pytest.raises(RunFailedError, match="noise_scale"):
            play(4, noise=Gaussian(0.1), **options)


class TestHostileClient:
    def garbled(self, stage, content):
        if stage == "votes":
            (name,) = content.array_records
            arrays = {key: Array(np.invert(array.numpy())) for key, array in content[name].items()}
            content[name] = ArrayRecord(arrays)

    def test_that_garbles_its_votes_spoils_rounds_and_nothing_else(self, play):
        outcome = play(4, spoiling(self.garbled), max_failed_rounds=None)
        assert all(np.isfinite(array).all() for array in outcome.model.values())

    def test_that_reveals_noise_is_named_in_each_round_and_changes_nothing(
        self, play, bits, warnings
    ):
        def spoil(stage, content):
            if stage in ("parts", "shares"):
                secrets = content["fedmedian"][PREFIX + "sum.secrets"]
                content["fedmedian"][PREFIX + "sum.secrets"] = secrets[::-1]

        honest, outcome = play(3), play(3, spoiling(spoil, partition=2))
        assert bits(outcome.model) == bits(honest.model)
        named = [one for one in warnings(partition=2) if "revealed wrong shares" in one]
        assert len(named) == 3

    def test_that_adds_to_every_count_shifts_the_sum(self, play, bits, monkeypatch):
        mask = masking.Key.mask

        def shifted(key, votes):
            return mask(key, votes * 3 if key.place is not None and votes[:1].any() else votes)

        honest = play(3)
        monkeypatch.setattr(masking.Key, "mask", shifted)
        outcome = play(3, max_failed_rounds=None)
        assert bits(outcome.model) != bits(honest.model)
        assert all(np.isfinite(array).all() for array in outcome.model.values())

    @pytest.mark.parametrize(
        ("stage", "change", "words"),
        [
            ("key", {"sum.public": b"short"}, "sum.public must be 32 bytes"),
            ("key", {"sum.public": bytes(32)}, "public key of a client is not valid"),
            ("key", {"sum.public": 3}, "sum.public must be 32 bytes"),
            ("votes", {"shares": b"short"}, "there must be a share for each of 6 neighbors"),
            ("votes", {"commitment": b""}, "a commitment has 64 bytes"),
            ("votes", {"shares": 3}, "shares must be bytes"),
            ("votes", {"commitment": "text"}, "commitment must be bytes"),
            ("votes", {"encoding": "signs"}, "is unknown here"),
            ("votes", {"reports.measure": b"\0\0\0\0"}, "without exact arrays and reports"),
            ("votes", {"round": 9}, "answers round 9"),
            ("votes", {"question": 1}, "answers question 1"),
            ("seeds", {"sum.secrets": 3}, "sum.secrets must be bytes"),
            ("seeds", {"sum.secrets": b"short"}, "sum: revealed 5 bytes, was asked for 32"),
        ],
    )
    def test_whose_replies_are_malformed_is_left_out_with_a_reason(
        self, stage, change, words, play, audit, caplog
    ):
        def spoil(at, content):
            if at == stage:
                entries = {PREFIX + name: value for name, value in change.items()}
                content["fedmedian"] = ConfigRecord({**content["fedmedian"], **entries})

        def fails(partition, server_round, at):  # so that seeds are asked for
            return at == "votes" and stage == "seeds" and partition == 1

        outcome = play(2, failing(fails), spoiling(spoil))
        expected = NUM_CLIENTS - 1 - (stage == "seeds")
        assert outcome.reports[1]["replies-accepted"] == expected
        assert words in caplog.text
        assert len(audit.sums) == 2
        audit.require_plain_sums()

    @pytest.mark.parametrize("kind", ["empty", "two records", "no config", "vector", "long"])
    def test_whose_replies_lack_parts_is_left_out(self, kind, play, audit):
        def spoil(at, content):
            if at != "votes":
                if kind in ("empty", "no config"):
                    for name in list(content):
                        del content[name]
                return
            (name,) = content.array_records
            if kind == "two records":
                content["more"] = content[name]
            elif kind == "no config":
                del content["fedmedian"]
            elif kind == "vector":
                content[name] = ArrayRecord({"0": Array(np.zeros(37, np.float32))})
            elif kind == "long":
                content[name] = ArrayRecord({"0": Array(np.zeros((3, 999), np.uint8))})
            else:
                del content[name]

        outcome = play(2, spoiling(spoil))
        assert outcome.reports[2]["replies-accepted"] == NUM_CLIENTS - 1
        audit.require_plain_sums()
