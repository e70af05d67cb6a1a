"""Attacks: the arithmetic of each beside a reference, and hostile clients in rounds."""

import pickle
import random
from math import inf, nan, sqrt

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fedmedian import Adaptive, Gaussian, Majority, Payload, SecureSum, TopUp, unpack_signs
from fedmedian.clients import InProcessGrid, perturb
from fedmedian.clients.attacks import (
    ALittleIsEnough,
    ClaimExamples,
    ClaimMagnitude,
    ClaimScale,
    Collusion,
    Drift,
    FoolKrum,
    GaussianNoise,
    HalfMimic,
    Hostile,
    InnerProduct,
    Mimic,
    MinMax,
    MinMaxAngle,
    MinSum,
    MinSumAngle,
    Replay,
    SignFlip,
    TwoCamps,
    flip_labels,
    squared_distances,
)
from fedmedian.strategies import MedianSGD, SignSGD

MODEL = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bias": np.zeros(3),
    "steps": np.array(3),
}
NUM_CLIENTS = 6
UPDATES = np.random.default_rng(0).normal(size=(NUM_CLIENTS, 9)).astype(np.float32)
HOSTILE = (4, 5)
QUIET = {"fraction_evaluate": 0.0}
VALUES = [
    SignFlip(2.0),
    GaussianNoise(3.0, seed=1),
    ALittleIsEnough(),
    InnerProduct(),
    Mimic(),
    MinMax(),
    MinSum(),
    FoolKrum(2),
    HalfMimic(),
    Drift(),
    TwoCamps(),
    MinMaxAngle(),
    MinSumAngle(),
    ClaimExamples(7),
    ClaimMagnitude(1.0),
    ClaimScale(1.0),
    Replay(),
    Hostile(SignFlip(), partitions=(1,)),
]


def honest_updates(least=2):
    """(M, d) updates; multiples of 1/8, for which float64 is exact enough to compare distances."""
    shapes = array_shapes(min_dims=2, max_dims=2, min_side=least, max_side=9)
    eighths = st.integers(-80, 80).map(lambda number: number / 8)
    return arrays(np.float64, shapes, elements=eighths)


def distances_to(vector, honest):
    return np.linalg.norm(honest - vector, axis=1)


def largest(fits, high=1e6):
    """The largest number that fits, by bisection; all smaller ones do."""
    low = 0.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def cosine(first, second):
    return first @ second / np.linalg.norm(first) / np.linalg.norm(second)


def cosines(vectors, one):
    return np.array([cosine(vector, one) for vector in vectors])


def krum(vectors, num_hostile):
    """The index that Krum selects, and each one's score: Blanchard et al., as they write it."""
    nearest = max(len(vectors) - num_hostile - 2, 1)
    scores = [np.sort(distances_to(one, vectors) ** 2)[1 : nearest + 1].sum() for one in vectors]
    return int(np.argmin(scores)), np.array(scores)


@pytest.mark.parametrize("attack", [SignFlip, None, 0.5], ids=str)
def test_a_hostile_clients_attack_is_a_mod(attack):
    with pytest.raises(TypeError, match=r"^attack must be a mod, such as SignFlip\(\), got"):
        Hostile(attack, partitions=(1,))


class TestArithmetic:
    @given(honest_updates())
    def test_a_little_is_enough_is_the_mean_less_deviations(self, honest):
        expected = [column.mean() - 0.5 * column.std() for column in honest.T]
        np.testing.assert_allclose(ALittleIsEnough(0.5).update(honest), expected, atol=1e-9)

    @given(honest_updates())
    def test_inner_product_manipulation_is_a_negative_multiple_of_the_mean(self, honest):
        sent = InnerProduct(0.5).update(honest)
        np.testing.assert_allclose(sent, -0.5 * honest.sum(axis=0) / len(honest), atol=1e-9)
        assert sent @ honest.mean(axis=0) <= 0

    @given(honest_updates())
    def test_a_mimic_sends_the_first_honest_update_and_does_not_share_it(self, honest):
        sent = Mimic().update(honest)
        np.testing.assert_array_equal(sent, honest[0])
        assert not np.shares_memory(sent, honest)

    @given(honest_updates())
    def test_min_max_goes_as_far_as_the_two_honest_updates_that_are_furthest_apart(self, honest):
        mean, spread = honest.mean(axis=0), honest.std(axis=0)
        furthest = max(distances_to(one, honest).max() for one in honest)
        gamma = largest(
            lambda gamma: distances_to(mean - gamma * spread, honest).max() <= furthest + 1e-9
        )
        expected = mean - gamma * spread if spread.any() else mean
        np.testing.assert_allclose(MinMax().update(honest), expected, rtol=1e-3, atol=1e-3)

    @given(honest_updates())
    def test_min_sum_goes_as_far_as_the_least_central_honest_update(self, honest):
        mean, spread = honest.mean(axis=0), honest.std(axis=0)
        most = max(np.square(distances_to(one, honest)).sum() for one in honest)
        gamma = largest(
            lambda gamma: (
                np.square(distances_to(mean - gamma * spread, honest)).sum() <= most + 1e-9
            )
        )
        expected = mean - gamma * spread if spread.any() else mean
        np.testing.assert_allclose(MinSum().update(honest), expected, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("seed", range(5))
    def test_krum_selects_what_fools_it_and_nothing_twice_as_long(self, seed):
        rng = np.random.default_rng(seed)
        honest, num_hostile = rng.normal(rng.normal(size=50), size=(12, 50)), 4
        sent = FoolKrum(num_hostile).update(honest)
        np.testing.assert_allclose(sent / np.abs(sent).max(), -np.sign(honest.mean(axis=0)))
        assert krum(np.vstack([honest, [sent] * num_hostile]), num_hostile)[0] >= 12
        assert krum(np.vstack([honest, [2 * sent] * num_hostile]), num_hostile)[0] < 12

    @given(honest_updates(least=4))
    def test_krum_is_fooled_or_all_but_left_alone(self, honest):
        """Whatever the updates: where nothing is selected, what is sent is next to nothing."""
        sent = FoolKrum(2).update(honest)
        _, scores = krum(np.vstack([honest, [sent] * 2]), 2)
        assert scores[-1] <= scores[:-2].min() + 1e-6 or np.abs(sent).max() < 1e-2

    @pytest.mark.parametrize("attack", VALUES[2:13], ids=repr)
    @pytest.mark.parametrize("honest", [np.zeros((3, 4)), np.ones((1, 4)), np.ones((5, 4))])
    def test_alike_or_lone_honest_clients_are_attacked_with_finite_numbers(self, attack, honest):
        sent = attack.update(honest.astype(np.float32))
        assert sent.shape == (4,)
        assert sent.dtype == np.float32
        assert np.isfinite(sent).all()

    @pytest.mark.parametrize("attack", VALUES[8:13], ids=repr)
    def test_attacks_on_directions_are_as_long_as_the_longest_honest_update(self, attack):
        for sent in attack.camps(UPDATES, 3):
            longest = np.linalg.norm(UPDATES, axis=1).max()
            assert np.linalg.norm(sent) == pytest.approx(longest, rel=1e-5)

    def test_a_half_mimic_points_as_the_outlier_does_less_a_multiple_of_the_mean(self):
        mean = UPDATES.mean(axis=0)
        outlier = UPDATES[np.argmin(cosines(UPDATES, mean))]
        assert cosine(HalfMimic(3.0).update(UPDATES), outlier - 3 * mean) == pytest.approx(1)

    def test_two_camps_are_half_mimics_of_two_outliers(self):
        mean = UPDATES.mean(axis=0)
        outliers = UPDATES[np.argsort(cosines(UPDATES, mean))[:2]]
        camps = TwoCamps(3.0).camps(UPDATES, 1)
        aims = [cosine(camp, one - 3 * mean) for camp, one in zip(camps, outliers, strict=True)]
        assert aims == pytest.approx([1, 1])
        np.testing.assert_array_equal(camps[0], HalfMimic(3.0).update(UPDATES))

    def test_a_drift_starts_near_an_honest_update_and_leaves_it_round_by_round(self):
        mean, attack = UPDATES.mean(axis=0), Drift(0.5)
        start = UPDATES[np.argmax(cosines(UPDATES, mean))]
        for number in (1, 2, 3):
            (sent,) = attack.camps(UPDATES, number)
            assert cosine(sent, start - number * 0.5 * mean) == pytest.approx(1)

    @pytest.mark.parametrize(
        ("attack", "likeness"),
        [(MinMaxAngle(), np.min), (MinSumAngle(), np.sum)],
        ids=["max", "sum"],
    )
    @pytest.mark.parametrize("seed", range(3))
    def test_by_angle_an_attack_goes_as_far_as_the_honest_client_least_like_the_others(
        self, attack, likeness, seed
    ):
        rng = np.random.default_rng(seed)
        honest = rng.normal(rng.normal(size=50), size=(8, 50)).astype(np.float32)
        mean, sent = honest.mean(axis=0), attack.update(honest)
        start = honest[np.argmax(cosines(honest, mean))]
        least = min(likeness(cosines(honest, one)) for one in honest)
        assert likeness(cosines(honest, sent)) >= least - 1e-4
        factor = largest(lambda factor: cosine(start - factor * mean, mean) >= cosine(sent, mean))
        further = start - 1.1 * factor * mean
        assert likeness(cosines(honest, further)) < least
        assert cosine(sent, start - factor * mean) == pytest.approx(1, abs=1e-4)

    @given(honest_updates())
    def test_squared_distances_are_those_of_each_to_each(self, vectors):
        expected = [distances_to(one, vectors) ** 2 for one in vectors]
        np.testing.assert_allclose(squared_distances(vectors), expected, atol=1e-6)

    def test_a_flipped_sign_is_a_negative_multiple_of_the_own_update(self):
        np.testing.assert_array_equal(SignFlip(4.0).update(UPDATES[0]), -4 * UPDATES[0])

    def test_gaussian_noise_has_the_deviation_that_was_asked_for(self):
        """Of 10^5 normals, the deviation is within 5 of its own deviations of .002."""
        own = np.zeros(100_000, dtype=np.float32)
        sent = GaussianNoise(3.0).update(own, np.random.default_rng(0))
        assert sent.std() == pytest.approx(3.0, abs=5 * 3 / sqrt(2 * 100_000))

    def test_flipped_labels_are_counted_from_the_other_end(self):
        np.testing.assert_array_equal(flip_labels(np.array([0, 1, 9]), 10), [9, 8, 0])


def train(model, partition):
    update = UPDATES[partition]
    after = {
        "weight": model["weight"] - update[:6].reshape(2, 3),
        "bias": model["bias"] - update[6:],
        "steps": model["steps"] + 1,
    }
    return after, {"num-examples": 5}


@pytest.fixture
def play(make_app, as_record):
    """Play rounds of a strategy with mods; returns each round's replies, client by client."""

    def play(mods, strategy=None, rounds=1, make=train, clients=NUM_CLIENTS):
        strategy = strategy or FedAvg(**QUIET)
        grid = InProcessGrid(make_app(make, mods=mods), clients)
        played, arrays = [], as_record(MODEL)
        for server_round in range(1, rounds + 1):
            messages = list(strategy.configure_train(server_round, arrays, ConfigRecord(), grid))
            nodes = [message.metadata.dst_node_id for message in messages]
            replies = list(grid.send_and_receive(messages))
            arrays = strategy.aggregate_train(server_round, list(replies))[0] or arrays
            order = sorted(range(len(nodes)), key=nodes.__getitem__)
            played.append([replies[index] for index in order])
        return played

    return play


def updates_in(replies):
    """The update that each reply of the first round stands for, (M, d)."""
    models = [reply.content["arrays"] for reply in replies]
    return np.stack(
        [
            np.concatenate(
                [(MODEL[name] - model[name].numpy()).ravel() for name in ("weight", "bias")]
            )
            for model in models
        ]
    )


def payloads_in(replies):
    return [
        Payload.decode(
            [array.numpy() for array in reply.content["arrays"].values()],
            reply.content["fedmedian"],
        )
        for reply in replies
    ]


@pytest.mark.parametrize(
    ("attack", "told"),
    [(Hostile(SignFlip(), HOSTILE), HOSTILE), (Collusion(MinMax(), HOSTILE), range(4))],
    ids=["own", "collusion"],
)
def test_an_attack_on_updates_before_perturb_is_told_its_place(attack, told, play):
    (replies,) = play([attack, perturb], MedianSGD(**QUIET))
    assert all("list it after perturb" in replies[one].error.reason for one in told)


class TestOwnUpdates:
    def test_hostile_partitions_flip_their_signs_and_the_others_reply_as_ever(self, play):
        (usual,), (replies,) = play([]), play([Hostile(SignFlip(10.0), partitions=HOSTILE)])
        assert [one.content for one in replies[:4]] == [one.content for one in usual[:4]]
        np.testing.assert_allclose(updates_in(replies)[4:], -10 * UPDATES[4:], rtol=1e-4)
        assert [reply.content["arrays"]["steps"].numpy() for reply in replies] == [4] * 6
        assert replies[5].content["arrays"]["bias"].dtype == "float64"

    def test_an_attack_by_itself_is_a_mod_of_an_app_that_is_hostile(self, play):
        (replies,) = play([SignFlip()])
        np.testing.assert_allclose(updates_in(replies), -UPDATES, atol=1e-5)

    def test_inside_perturb_an_attack_turns_votes_round(self, play):
        attack = Hostile(SignFlip(), partitions=HOSTILE)
        strategy = SignSGD(None, Majority(), 0.1, rotation=None, **QUIET)
        (replies,) = play([perturb, attack], strategy)
        votes = [unpack_signs(payload.body, 9) for payload in payloads_in(replies)]
        np.testing.assert_array_equal(votes[:4], np.sign(UPDATES[:4]))
        np.testing.assert_array_equal(votes[4:], -np.sign(UPDATES[4:]))

    def test_gaussian_noise_follows_from_its_seed_and_is_another_in_each_client_and_round(
        self, play
    ):
        mods = [Hostile(GaussianNoise(2.0, seed=3), partitions=HOSTILE)]
        first, second = ([updates_in(one) for one in play(mods, rounds=2)] for _ in range(2))
        np.testing.assert_allclose(first, second, atol=1e-5)  # FedAvg adds up in any order
        sent = [*first[0][4:], *first[1][4:]]
        assert len({tuple(np.sign(one)) for one in sent}) == 4
        np.testing.assert_allclose(first[0][:4], UPDATES[:4], atol=1e-5)

    def test_evaluation_is_left_alone(self, make_app, as_record):
        mods = [
            Replay(),
            ClaimExamples(9),
            SignFlip(),
            GaussianNoise(),
            Collusion(Mimic(), partitions=(0,)),
        ]
        grid = InProcessGrid(make_app(train, mods=mods), 2)
        messages = FedAvg().configure_evaluate(1, as_record(MODEL), ConfigRecord(), grid)
        replies = grid.send_and_receive(messages)
        assert [reply.content["metrics"]["num-examples"] for reply in replies] == [2, 2]

    def test_an_error_of_the_client_passes_through(self, play):
        def fail(model, partition):
            raise KeyError("no data")

        for attack in (SignFlip(), GaussianNoise(), Replay(), ClaimExamples(1), ClaimScale(1.0)):
            (replies,) = play([attack], MedianSGD(**QUIET), make=fail)
            assert all("no data" in reply.error.reason for reply in replies)

    def test_numpyclients_can_be_hostile(self, as_record):
        class Older(NumPyClient):
            def fit(self, parameters, config):
                return [array - 1 for array in parameters], 1, {}

        app = ClientApp(client_fn=lambda context: Older().to_client(), mods=[perturb, SignFlip()])
        keys = {
            "arrayrecord_key": "fitins.parameters",
            "configrecord_key": "fitins.config",
            "weighted_by_key": "num_examples",
            **QUIET,
        }
        for strategy in (FedAvg(**keys), MedianSGD(None, rotation=None, **keys)):
            model = as_record({"x": np.zeros(3, dtype=np.float32)})
            result = strategy.start(InProcessGrid(app, 2), model, 1)
            (moved,) = result.arrays.values()
            np.testing.assert_allclose(moved.numpy(), 1)  # honest clients would move it to −1


class TestCollusion:
    @pytest.mark.parametrize("attack", VALUES[2:13], ids=repr)
    def test_hostile_clients_send_what_follows_from_the_honest_updates(self, attack, play):
        (usual,), (replies,) = play([]), play([Collusion(attack, HOSTILE)])
        assert [one.content for one in replies[:4]] == [one.content for one in usual[:4]]
        camps = attack.camps(UPDATES[:4].astype(np.float64), 1)
        expected = [camps[partition % len(camps)] for partition in HOSTILE]
        np.testing.assert_allclose(updates_in(replies)[4:], expected, rtol=1e-3, atol=1e-5)

    def test_it_is_the_round_of_which_they_know(self, play):
        rounds = []

        def move(model, partition):
            factor = np.float32(partition + 1 + 10 * len(rounds))
            if partition == NUM_CLIENTS - 1:
                rounds.append(1)
            return {**model, "weight": model["weight"] - factor}, {"num-examples": 5}

        mods = [perturb, Collusion(InnerProduct(1.0), HOSTILE)]
        strategy = MedianSGD(None, rotation=None, **QUIET)
        played = play(mods, strategy, rounds=3, make=move)
        sent = [[payload.body[0] for payload in payloads_in(replies)] for replies in played]
        np.testing.assert_allclose(sent[0], [1, 2, 3, 4, -2.5, -2.5], rtol=1e-5)
        np.testing.assert_allclose(sent[1], [11, 12, 13, 14, -12.5, -12.5], rtol=1e-5)
        np.testing.assert_allclose(sent[2], [21, 22, 23, 24, -22.5, -22.5], rtol=1e-5)

    def test_a_second_run_of_one_round_begins_anew(self, make_app, as_record):
        app = make_app(train, mods=[Collusion(Mimic(), HOSTILE)])
        strategy = FedAvg(**QUIET)
        ends = [
            strategy.start(InProcessGrid(app, NUM_CLIENTS), as_record(MODEL), 1) for _ in range(2)
        ]
        assert [len(end.train_metrics_clientapp) for end in ends] == [1, 1]

    @pytest.mark.parametrize(("partitions", "blamed"), [((0,), "client 0"), ((1, 2), "client 3")])
    def test_hostile_clients_that_are_not_the_last_are_an_error(self, partitions, blamed, play):
        (replies,) = play([Collusion(Mimic(), partitions)], MedianSGD(**QUIET))
        reasons = [reply.error.reason for reply in replies if reply.has_error()]
        assert blamed in reasons[0]
        assert "must be the last" in reasons[0]

    def test_a_client_that_failed_is_not_heard_of(self, play):
        def fail_first(model, partition):
            if partition == 0:
                raise KeyError("no data")
            return train(model, partition)

        mods = [perturb, Collusion(Mimic(), HOSTILE)]
        strategy = MedianSGD(None, rotation=None, **QUIET)
        (replies,) = play(mods, strategy, make=fail_first)
        (sent,) = payloads_in(replies[4:5])
        np.testing.assert_allclose(sent.body, UPDATES[1], atol=1e-5)


class TestLies:
    def test_claimed_examples_are_in_the_reply_of_either_api(self, play, as_record):
        (replies,) = play([Hostile(ClaimExamples(10**9), partitions=HOSTILE), perturb])
        told = [reply.content["metrics"]["num-examples"] for reply in replies]
        assert told == [5] * 4 + [10**9] * 2

        class Older(NumPyClient):
            def fit(self, parameters, config):
                return parameters, 1, {}

        app = ClientApp(client_fn=lambda context: Older().to_client(), mods=[ClaimExamples(70)])
        config = ConfigRecord({"server-round": 1})
        content = {"fitins.parameters": as_record(MODEL), "fitins.config": config}
        message = Message(RecordDict(content), dst_node_id=2, message_type=MessageType.TRAIN)
        (reply,) = InProcessGrid(app, 1).send_and_receive([message])
        assert reply.content["fitres.num_examples"]["num_examples"] == 70

    def test_a_claimed_magnitude_is_all_that_is_different_in_a_payload(self, play):
        strategy = SignSGD(Gaussian(TopUp()), **QUIET, seed=1)
        (usual,), (replies,) = (
            play([*lies, perturb], strategy)
            for lies in ((), (Hostile(ClaimMagnitude(3e38), partitions=HOSTILE),))
        )
        before, after = payloads_in(usual[4:]), payloads_in(replies[4:])
        for honest, hostile in zip(before, after, strict=True):
            assert (hostile.reports["measure"] == np.float32(3e38)).all()
            assert (honest.reports["measure"] < 100).all()
            np.testing.assert_array_equal(hostile.body, honest.body)
            np.testing.assert_array_equal(hostile.reports["top-up"], honest.reports["top-up"])
        assert [one.content for one in replies[:4]] == [one.content for one in usual[:4]]

    def test_a_claimed_scale_is_in_the_payload_of_a_client_that_chooses_its_own(self, play):
        strategy = SignSGD(Gaussian(Adaptive(3.0)), rotation=None, **QUIET)
        (replies,) = play([ClaimScale(1e-3), perturb], strategy)
        for payload in payloads_in(replies):
            np.testing.assert_array_equal(payload.reports["noise"], np.float32(1e-3))

    def test_where_there_is_no_payload_and_no_noise_there_is_no_lie(self, play):
        (usual,), (lied) = play([perturb]), play([ClaimScale(2.0), ClaimMagnitude(2.0), perturb])
        assert [one.content for one in lied[0]] == [one.content for one in usual]
        strategy = MedianSGD(None, rotation=None, **QUIET)
        (replies,) = play([ClaimScale(2.0), ClaimMagnitude(2.0), perturb], strategy)
        assert not any(one.reports for one in payloads_in(replies))

    def test_a_replay_is_the_payload_of_the_first_round(self, play):
        mods = [Hostile(Replay(), partitions=HOSTILE), perturb]
        strategy = SignSGD(**QUIET, seed=1)
        first, second, third = play(mods, strategy, rounds=3)
        for client in HOSTILE:
            assert first[client].content == second[client].content == third[client].content
        for client in range(4):
            assert len({str(r[client].content["arrays"]) for r in (first, second, third)}) == 3

    def test_a_replay_in_secure_sums_is_one_of_votes_and_not_of_keys(self, make_app, as_record):
        def train(model, partition):
            return {"weight": model["weight"] - 1}, {"num-examples": 5}

        app = make_app(train, mods=[Hostile(Replay(), partitions=(5,)), perturb])
        grid, model = InProcessGrid(app, NUM_CLIENTS), as_record({"weight": MODEL["weight"]})
        strategy = SignSGD(**QUIET, secure=SecureSum(0.6), weighted=False)
        result = strategy.start(grid, model, 3)
        reports = result.train_metrics_clientapp.values()
        assert [report["replies-accepted"] for report in reports] == [6, 5, 5]


class TestValues:
    @pytest.mark.parametrize("attack", VALUES, ids=repr)
    def test_an_attack_can_be_sent_to_other_processes_and_compared(self, attack):
        assert pickle.loads(pickle.dumps(attack)) == attack

    @pytest.mark.parametrize(
        ("make", "argument", "wrong", "values"),
        [
            (SignFlip, "factor", ValueError, (-1.0, nan, inf)),
            (SignFlip, "factor", TypeError, ("1", None, True)),
            (GaussianNoise, "deviation", ValueError, (-1.0, nan)),
            (lambda seed: GaussianNoise(seed=seed), "seed", ValueError, (-1,)),
            (lambda seed: GaussianNoise(seed=seed), "seed", TypeError, (1.5, "1")),
            (ALittleIsEnough, "deviations", ValueError, (nan, inf)),
            (ALittleIsEnough, "deviations", TypeError, ("1", None)),
            (InnerProduct, "factor", ValueError, (-0.1, inf)),
            (FoolKrum, "num_hostile", ValueError, (0, -1)),
            (FoolKrum, "num_hostile", TypeError, (1.0, None)),
            (ClaimExamples, "num_examples", ValueError, (-1,)),
            (ClaimExamples, "num_examples", TypeError, (1.0,)),
            (ClaimMagnitude, "value", ValueError, (-1.0, 1e39, nan)),
            (ClaimScale, "value", ValueError, (-1.0, 1e39, inf)),
            (lambda attack: Hostile(attack, (0,)), "attack", TypeError, (Mimic(), "flip", None)),
            (lambda one: Hostile(SignFlip(), one), "partitions", TypeError, (3, None, (1.0,))),
            (lambda one: Hostile(SignFlip(), one), "partitions", ValueError, ((-1,),)),
            (lambda attack: Collusion(attack, (0,)), "attack", TypeError, (SignFlip(), Mimic)),
            (lambda one: Collusion(Mimic(), one), "partitions", TypeError, (3, ("1",))),
            (lambda number: flip_labels(np.arange(2), number), "num_classes", ValueError, (1, 0)),
        ],
    )
    def test_an_argument_that_an_attack_cannot_use_is_named(self, make, argument, wrong, values):
        for value in values:
            with pytest.raises(wrong, match=f"^{argument} must "):
                make(value)


def test_hostile_clients_are_the_last_whichever_flower_asks_first(play, monkeypatch):
    """Flower shuffles the nodes; here it asks the hostile ones first."""
    monkeypatch.setattr(random, "sample", lambda nodes, size: sorted(nodes, reverse=True)[:size])
    (replies,) = play([Collusion(Mimic(), HOSTILE)])
    np.testing.assert_allclose(updates_in(replies)[4:], UPDATES[[0, 0]], atol=1e-5)
