"""What a server that knows its clients' noise can promise, seen from outside.

Statistics are taken over independent copies of a problem, one per coordinate, in rounds with fixed
seeds. A standard error is measured over the copies.
"""

import logging
from dataclasses import replace
from math import inf, nan, sqrt

import numpy as np
import pytest
from flwr.app import ConfigRecord

from fedmedian import (
    Adaptive,
    Gaussian,
    Instruction,
    Laplace,
    Logistic,
    Payload,
    Uniform,
    count_votes,
    mean_from_votes,
    smoothed_median,
)
from fedmedian.aggregation import SCALE_CAP
from fedmedian.clients import InProcessGrid, perturb
from fedmedian.strategies import MedianSGD, SignSGD
from fedmedian.wire import PREFIX

NO_EVALUATION = {"fraction_evaluate": 0.0}
SEEDED = {"seed": 1, **NO_EVALUATION}


@pytest.fixture(scope="module")
def play(make_app, as_record, as_arrays):
    """Runs a strategy on clients whose update at x is `update(x, partition)`.

    Returns x before and after each round, and the rounds' reports.
    """

    def play(strategy, update, clients, start, rounds=1, examples=None, mods=(perturb,)):
        def train(model, partition):
            weight = 1 if examples is None else examples[partition]
            return {"x": model["x"] - update(model["x"], partition)}, {"num-examples": weight}

        path = []
        result = strategy.start(
            InProcessGrid(make_app(train, mods), clients),
            as_record({"x": np.asarray(start)}),
            rounds,
            evaluate_fn=lambda _, arrays: path.append(as_arrays(arrays)["x"]),
        )
        return path, result.train_metrics_clientapp

    return play


def step(play, strategy, updates, **options):
    """How far one round goes, per coordinate, on fixed updates, one row per client."""
    updates = np.asarray(updates, np.float64)
    (before, after), _ = play(
        strategy, lambda x, i: updates[i], len(updates), np.zeros(updates.shape[1]), **options
    )
    return before - after


def standard_error(copies):
    return copies.std() / sqrt(copies.size)


class TestFixedPointsOfTheToy:
    """Where the paper's toy, f_i(x) = (x − a_i)²/2 with a = (1, 2, 10), comes to rest.

    The fixed points are zeros of the expected step, to three decimals. Copies start a quarter
    below, are given six relaxation times or more to arrive, and are then averaged over rounds.
    Besides three standard errors, .0005 is allowed for the decimals and .003 for the step being
    finite: a step δ shifts the mean by −h″·Var(x)/(2h′), h the expected step, which is .0023 for
    counts at b = 5 and less than .001 elsewhere; the noisy median's h is linear in x.
    """

    A = (1.0, 2.0, 10.0)
    COPIES = 4000
    ROUNDING, FINITE_STEP = 0.0005, 0.003

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("algorithm", "scale", "expected"),
        [
            *[("median", 5.0, 3.752), ("median", 10.0, 4.162), ("median", 20.0, 4.289)],
            *[("majority", 5.0, 3.767), ("majority", 10.0, 4.173), ("majority", 20.0, 4.292)],
            *[("counts", 5.0, 4.021), ("counts", 10.0, 4.259), ("counts", 20.0, 4.315)],
        ],
    )
    def test_are_the_ones_that_theory_says(self, algorithm, scale, expected, play):
        noise, options = Gaussian(scale), {"diagnostics": False, **SEEDED}
        strategy, arrive, average = {
            "median": (MedianSGD(noise, learning_rate=0.05, **options), 150, 250),
            "majority": (SignSGD(noise, "majority", 0.2, **options), 500, 300),
            "counts": (SignSGD(noise, learning_rate=0.02, **options), 300, 300),
        }[algorithm]
        path, _ = play(
            strategy,
            lambda x, partition: x - self.A[partition],
            clients=3,
            start=np.full(self.COPIES, expected - 0.25),
            rounds=arrive + average,
        )
        copies = np.mean(path[-average:], axis=0)
        error = copies.mean() - expected
        allowed = 3 * standard_error(copies) + self.ROUNDING + self.FINITE_STEP
        assert standard_error(copies) < 0.02
        assert abs(error) < allowed


class TestUniformNoise:
    """Votes decode without bias while √3·b covers the largest update."""

    COPIES = 100_000

    @pytest.mark.parametrize("covers", [1.0, 1.5], ids=["exactly", "amply"])
    @pytest.mark.parametrize("clients", [2, 3, 10])
    def test_decodes_to_the_mean_without_bias(self, clients, covers, play):
        updates = np.random.default_rng(clients).uniform(-1, 1, (clients, self.COPIES))
        updates += np.linspace(-0.5, 1.0, clients)[:, None]
        scale = covers * np.abs(updates).max() / sqrt(3)
        error = step(play, SignSGD(Uniform(scale), **SEEDED), updates) - updates.mean(axis=0)
        assert abs(error.mean()) < 3 * standard_error(error)
        # Nor does the error lean on the mean itself: large ones are not shrunk.
        leaning = error * updates.mean(axis=0)
        assert abs(leaning.mean()) < 3 * standard_error(leaning)

    def test_shrinks_what_it_does_not_cover(self, play):
        updates = np.full((3, 20_000), 2.0)
        moved = step(play, SignSGD(Uniform(1.0), **SEEDED), updates)
        np.testing.assert_allclose(moved, sqrt(3), rtol=1e-6)


def own_scale(scale_of):
    """A client that chooses its noise scale by its partition, whatever it was told."""

    def mod(message, context, call_next):
        config = message.content["config"]
        scale = scale_of(context.node_config["partition-id"])
        instruction = Instruction.decode(config)
        instruction = replace(instruction, scales=np.array([scale], np.float32))
        message.content["config"] = ConfigRecord({**config, **instruction.encode()})
        return call_next(message, context)

    return mod


class TestClientsWithTheirOwnNoise:
    """With ``noise_from="client"``."""

    COPIES, B = 100_000, 2.0

    def scale_of(self, partition):
        return self.B if partition % 2 == 0 else 4 * self.B

    def updates(self, clients=10):
        """Clients with little noise go up, those with much go less far."""
        return np.array([np.full(self.COPIES, 0.2 if i % 2 else 1.0) for i in range(clients)])

    def test_votes_weigh_as_much_as_their_noise_and_decode_without_bias(self, play):
        updates = self.updates()
        strategy = SignSGD(Uniform(self.B), noise_from="client", **SEEDED)
        moved = step(play, strategy, updates, mods=(own_scale(self.scale_of), perturb))
        assert abs(moved.mean() - 0.6) < 3 * standard_error(moved)

    def test_a_naive_decoding_with_equal_weights_is_biased(self, make_app, honest_round):
        updates = self.updates()
        app = make_app(
            lambda model, i: ({"x": model["x"] - updates[i]}, {"num-examples": 1}),
            mods=(own_scale(self.scale_of), perturb),
        )
        strategy = SignSGD(Uniform(self.B), noise_from="client", **SEEDED)
        played = honest_round(strategy, app, 10, {"x": np.zeros(self.COPIES)})
        ours = -played.aggregate(played.replies)[0]["x"]
        payloads = [payload_of(reply) for reply in played.replies]
        scale = np.mean([payload.scales[0] for payload in payloads])
        counts = count_votes([payload.body for payload in payloads], self.COPIES)
        naive = mean_from_votes(counts, 10, Uniform(), scale).astype(np.float64)
        assert abs(naive.mean() - 0.6) > 50 * standard_error(naive)
        assert abs(ours.mean() - 0.6) < 3 * standard_error(ours)

    def test_examples_weigh_besides(self, play):
        updates, examples = self.updates(4), [1, 5, 2, 4]
        strategy = SignSGD(Uniform(self.B), noise_from="client", **SEEDED)
        moved = step(
            play, strategy, updates, examples=examples, mods=(own_scale(self.scale_of), perturb)
        )
        assert abs(moved.mean() - (3 * 1.0 + 9 * 0.2) / 12) < 3 * standard_error(moved)

    def test_no_client_weighs_more_than_the_cap_whatever_it_claims(self, play):
        votes = np.array([[-1.0]] * 9 + [[1.0]]) * 1e6  # far beyond any noise but the last one's
        strategy = SignSGD(Uniform(1.0), noise_from="client", **SEEDED)
        for claim in (1e3, 1e30):
            mods = (own_scale(lambda i, claim=claim: claim if i == 9 else 1.0), perturb)
            moved = step(play, strategy, np.repeat(votes, 1000, axis=1), mods=mods)
            assert np.abs(moved + sqrt(3) * 0.9).max() <= sqrt(3) * 0.1 * SCALE_CAP * (1 + 1e-5)

    def test_they_are_not_told_a_scale_but_the_rules_factor(self, make_app, honest_round):
        app = make_app(lambda model, i: (model, {"num-examples": 1}))
        strategy = SignSGD(Gaussian(Adaptive(2.5)), noise_from="client", **SEEDED)
        played = honest_round(strategy, app, 2, {"x": np.zeros(3)})
        for message in played.messages:
            instruction = Instruction.decode(message.content["config"])
            assert instruction.scales is None
            assert instruction.factor == 2.5

    def test_the_median_clients_scale_is_reported(self, play):
        strategy = SignSGD(Gaussian(1.0), noise_from="client", **SEEDED)
        mods = (own_scale(lambda i: (0.5, 2.0, 70.0)[i]), perturb)
        _, reports = play(strategy, lambda x, i: np.ones(4), 3, np.zeros(4), mods=mods)
        assert reports[1]["noise-scale"] == pytest.approx([2.0])


def payload_of(reply):
    arrays = [array.numpy() for array in reply.content["arrays"].values()]
    return Payload.decode(arrays, reply.content["fedmedian"])


def told_otherwise(partition, **changes):
    """One client that does other than it was told."""

    def mod(message, context, call_next):
        if context.node_config["partition-id"] == partition:
            config = message.content["config"]
            instruction = replace(Instruction.decode(config), **changes)
            # A missing scale is missing: the message's own must not shine through.
            own = {k: v for k, v in config.items() if not k.startswith(PREFIX)}
            message.content["config"] = ConfigRecord({**own, **instruction.encode()})
        return call_next(message, context)

    return mod


class TestOtherNoiseThanTold:
    SCALE = np.array([0.25], np.float32)

    @pytest.mark.parametrize("make", [SignSGD, MedianSGD])
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"noise": "laplace"}, "used noise 'laplace', was told 'gaussian'"),
            ({"noise": None}, "used noise None, was told 'gaussian'"),
            ({"scales": SCALE}, "used another noise scale than it was told"),
            ({"scales": None}, "used another noise scale than it was told"),
        ],
        ids=["family", "none", "scale", "own scale"],
    )
    def test_is_rejected_with_that_reason(self, make, changes, reason, play, caplog):
        mods = (told_otherwise(2, **changes), perturb)
        with caplog.at_level(logging.WARNING):
            strategy = make(Gaussian(0.5), **SEEDED)
            _, reports = play(strategy, lambda x, i: np.ones(4), 4, np.zeros(4), mods=mods)
        assert (reports[1]["replies-accepted"], reports[1]["replies-rejected"]) == (3, 1)
        assert reason in caplog.text

    @pytest.mark.parametrize(
        ("changes", "accepted"),
        [({"noise": "laplace"}, 3), ({"noise": None}, 3), ({"scales": SCALE}, 4)],
        ids=["family", "none", "scale"],
    )
    def test_clients_may_choose_a_scale_where_allowed_but_not_the_family(
        self, changes, accepted, play
    ):
        strategy = SignSGD(Gaussian(0.5), noise_from="client", **SEEDED)
        mods = (told_otherwise(2, **changes), perturb)
        _, reports = play(strategy, lambda x, i: np.ones(4), 4, np.zeros(4), mods=mods)
        assert reports[1]["replies-accepted"] == accepted

    def test_noise_where_none_was_asked_for_is_rejected_too(self, play, caplog):
        mods = (told_otherwise(2, noise="gaussian", scales=self.SCALE), perturb)
        with caplog.at_level(logging.WARNING):
            _, reports = play(
                SignSGD(None, "majority", 0.1, **SEEDED),
                lambda x, i: np.ones(4),
                4,
                np.zeros(4),
                mods=mods,
            )
        assert reports[1]["replies-rejected"] == 1
        assert "used noise 'gaussian', was told None" in caplog.text


def lying(factor_of_round, partition=0):
    """One client that reports its magnitude, and noise it chose by it, as other than they are."""

    def mod(message, context, call_next):
        number = message.content["config"]["server-round"]
        bootstrap = Instruction.decode(message.content["config"]).scales is None
        reply = call_next(message, context)
        if context.node_config["partition-id"] == partition:
            payload, factor = payload_of(reply), np.float32(factor_of_round(number))
            scales = payload.scales * factor if bootstrap else payload.scales
            with np.errstate(all="ignore"):
                lie = replace(payload, magnitudes=payload.magnitudes * factor, scales=scales)
            reply.content["fedmedian"] = ConfigRecord(lie.encode()[1])
        return reply

    return mod


def outsized(factor):
    """An update function of which client 0's is larger by a factor."""

    def update(x, partition):
        draws = np.random.default_rng(partition).standard_normal(x.shape)
        return (factor if partition == 0 else 1) * draws

    return update


LIED_TO = {
    "counts": lambda: SignSGD(**SEEDED),
    "counts, by maximum": lambda: SignSGD(Gaussian(Adaptive(1.0, of="max")), **SEEDED),
    "majority": lambda: SignSGD(decode="majority", learning_rate=0.1, **SEEDED),
    "calibrated": lambda: SignSGD(decode="majority", calibrated=True, **SEEDED),
    "clients' own noise": lambda: SignSGD(noise_from="client", **SEEDED),
    "median": lambda: MedianSGD(**SEEDED),
    "median, noise at the server": lambda: MedianSGD(noise_at="server", **SEEDED),
    "smoothed median": lambda: MedianSGD(estimator="smoothed", **SEEDED),
}


@pytest.fixture(scope="module")
def scales_of(play):
    """The noise scale in each of five rounds of ten clients."""

    def scales_of(make, factor=1.0, mods=(perturb,)):
        start = np.zeros(200, np.float32)
        _, reports = play(make(), outsized(factor), 10, start, rounds=5, mods=mods)
        assert all(report["replies-accepted"] >= 9 for report in reports.values())
        return np.array([report["noise-scale"][0] for report in reports.values()])

    return scales_of


@pytest.fixture(scope="module", params=LIED_TO.values(), ids=LIED_TO)
def ratios(request, scales_of):
    """How many times its honest size each round's noise scale is when one client lies."""
    honest = scales_of(request.param)
    return lambda **lie: scales_of(request.param, **lie) / honest


class TestOneLiarOfTen:
    @pytest.mark.parametrize("factor", [1e6, 1e-6])
    @pytest.mark.parametrize("round_", [1, 2, 4])
    def test_who_reports_a_million_times_more_once_changes_no_scale_by_a_factor_of_two(
        self, round_, factor, ratios
    ):
        changed = ratios(mods=(lying(lambda n: factor if n == round_ else 1), perturb))
        assert np.all((changed > 0.5) & (changed < 2))

    def test_who_always_does_neither(self, ratios):
        changed = ratios(mods=(lying(lambda number: 1e6), perturb))
        assert np.all((changed > 0.5) & (changed < 2))

    @pytest.mark.parametrize("factor", [1e6, 1e-6])
    def test_whose_update_is_a_million_times_larger_neither(self, factor, ratios):
        changed = ratios(factor=factor)
        assert np.all((changed > 0.5) & (changed < 2))

    @pytest.mark.parametrize("lies", [(0,), (nan, inf, -1), (1e38, 0, nan, 1e-38, inf)], ids=str)
    def test_cannot_make_a_scale_zero_or_nan(self, lies, ratios):
        changed = ratios(mods=(lying(lambda number: lies[number % len(lies)]), perturb))
        assert np.all((changed > 0.5) & (changed < 2))


class TestCalibratedMajority:
    """b·maj/(2κ_M) estimates the mean update while that is much smaller than b.

    Allowed besides four standard errors: 1 % for the next order in g/b = .1, and, for unequal
    weights, 5 % for the central limit theorem at few clients.
    """

    COPIES = 200_000

    @pytest.mark.parametrize("noise", [Gaussian, Logistic, Uniform])
    @pytest.mark.parametrize(
        ("clients", "examples"),
        [(3, None), (4, None), (10, None), (7, [3, 4, 5, 6, 7, 8, 9]), (10, [*range(5, 15)])],
        ids=["3", "4", "10", "7 unequal", "10 unequal"],
    )
    def test_estimates_the_mean_to_leading_order(self, clients, examples, noise, play):
        values = np.linspace(0.05, 0.15, clients)
        strategy = SignSGD(noise(1.0), "majority", calibrated=True, **SEEDED)
        updates = np.repeat(values[:, None], self.COPIES, axis=1)
        moved = step(play, strategy, updates, examples=examples)
        mean = np.average(values, weights=examples)
        allowed = (0.01 if examples is None else 0.05) * mean
        assert abs(moved.mean() - mean) < 4 * standard_error(moved) + allowed

    @pytest.mark.parametrize("ties", ["random", "unchanged"])
    def test_an_even_number_of_clients_may_tie_either_way(self, ties, play):
        strategy = SignSGD(Gaussian(1.0), "majority", calibrated=True, ties=ties, **SEEDED)
        moved = step(play, strategy, np.full((4, self.COPIES), 0.1))
        assert abs(moved.mean() - 0.1) < 4 * standard_error(moved) + 0.001

    def test_each_array_has_its_own_worth(self, make_app, as_record, as_arrays):
        def train(model, partition):
            return {"a": model["a"] - 1, "b": model["b"] - 100}, {"num-examples": 1}

        strategy = SignSGD(Gaussian(Adaptive(5.0)), "majority", calibrated=True, **SEEDED)
        start = as_record({"a": np.zeros(20_000), "b": np.zeros(20_000)})
        model = as_arrays(strategy.start(InProcessGrid(make_app(train), 3), start, 1).arrays)
        assert -model["a"].mean() == pytest.approx(1.0, abs=0.1)
        assert -model["b"].mean() == pytest.approx(100.0, abs=10.0)


class TestNoDrift:
    """A coordinate that no client moves is a random walk at most: its mean stays where it was."""

    STILL, ROUNDS = 3000, 40

    @pytest.mark.parametrize("clients", [3, 4])
    @pytest.mark.parametrize("ties", ["random", "unchanged"])
    @pytest.mark.parametrize(
        "options",
        [
            {"noise": None, "decode": "majority", "learning_rate": 0.01},
            {"noise": Gaussian(1.0), "decode": "majority", "learning_rate": 0.01},
            {"noise": Gaussian(1.0), "decode": "majority", "calibrated": True},
            {"noise": Laplace(Adaptive(1.0)), "decode": "majority", "learning_rate": 0.01},
            {"noise": Uniform(1.0)},
            {"noise": Gaussian(Adaptive(3.0))},
        ],
        ids=[
            *("no noise", "majority", "calibrated", "adaptive majority"),
            *("counts", "adaptive counts"),
        ],
    )
    def test_of_signs(self, options, ties, clients, play):
        walked = self.walked(SignSGD(ties=ties, **options, **SEEDED), clients, play)
        assert abs(walked.mean()) < 4 * standard_error(walked)
        rate = options.get("learning_rate")
        if rate is not None:
            # No farther than a walk of steps ±δ goes, as a fair coin for every round would.
            assert walked.std() < rate * sqrt(self.ROUNDS) * (1 + 4 / sqrt(2 * self.STILL))

    @pytest.mark.parametrize("clients", [3, 4])
    @pytest.mark.parametrize("noise_at", ["client", "server"])
    def test_of_noisy_medians(self, noise_at, clients, play):
        walked = self.walked(MedianSGD(Gaussian(1.0), noise_at, **SEEDED), clients, play)
        assert abs(walked.mean()) < 4 * standard_error(walked)

    @pytest.mark.parametrize("clients", [3, 4])
    @pytest.mark.parametrize("options", [{"noise": None}, {"estimator": "smoothed"}], ids=str)
    def test_without_noise_a_median_leaves_it_exactly(self, options, clients, play):
        assert not self.walked(MedianSGD(**options, **SEEDED), clients, play).any()

    def walked(self, strategy, clients, play):
        moving = 1000

        def update(x, partition):
            return np.where(np.arange(x.size) < moving, (-1.0) ** partition + 0.5, 0.0)

        path, _ = play(strategy, update, clients, np.zeros(moving + self.STILL), self.ROUNDS)
        return path[-1][moving:]


class TestClipping:
    def test_comes_before_the_noise_which_is_not_clipped(self, play):
        """An update of norm 100·√d is cut to 1, noise of scale 5 is not."""
        copies = 10_000
        strategy = MedianSGD(Gaussian(5.0), clip=1.0, **SEEDED)
        moved = step(play, strategy, np.full((1, copies), 100.0).repeat(2, axis=0))
        assert moved.std() == pytest.approx(5 / sqrt(2), rel=0.05)
        assert abs(moved.mean() - 1 / sqrt(copies)) < 4 * standard_error(moved)

    def test_bounds_what_one_client_reports(self, play):
        strategy = SignSGD(Gaussian(Adaptive(1.0)), clip=1.0, **SEEDED)
        _, reports = play(strategy, lambda x, i: np.full(4, 1e6), 3, np.zeros(4), 2)
        # Of norm 1, an update of four equal entries has the RMS ½.
        assert reports[2]["noise-scale"] == pytest.approx([0.5])


class TestSmoothedMedian:
    UPDATES = np.random.default_rng(0).standard_normal((5, 50)) ** 3

    @pytest.mark.parametrize("mods", [(perturb,), ()], ids=["mod", "no mod"])
    @pytest.mark.parametrize(
        "noise", [Gaussian(0.7), Logistic(0.7), Laplace(Adaptive(2.0))], ids=str
    )
    def test_is_the_step_whether_clients_know_of_it_or_not(self, noise, mods, play):
        strategy = MedianSGD(noise, estimator="smoothed", **NO_EVALUATION)
        (before, after), reports = play(
            strategy, lambda x, i: self.UPDATES[i], 5, np.zeros(50), mods=mods
        )
        expected = smoothed_median(self.UPDATES, noise, reports[1]["noise-scale"][0])
        np.testing.assert_allclose(before - after, expected, rtol=1e-5, atol=1e-6)

    def test_nothing_in_it_is_left_to_chance(self, play):
        one, other = (
            step(play, MedianSGD(estimator="smoothed", **NO_EVALUATION), self.UPDATES)
            for _ in range(2)
        )
        np.testing.assert_array_equal(one, other)

    def test_asks_the_clients_for_no_noise(self, make_app, honest_round):
        app = make_app(lambda model, i: (model, {"num-examples": 1}))
        strategy = MedianSGD(Gaussian(1.0), estimator="smoothed", **NO_EVALUATION)
        played = honest_round(strategy, app, 2, {"x": np.zeros(3)})
        assert Instruction.decode(played.messages[0].content["config"]).noise is None

    @pytest.mark.parametrize("noise", [None, Uniform(1.0)])
    def test_needs_a_smooth_law(self, noise):
        with pytest.raises(ValueError, match="noise must have a smooth CDF"):
            MedianSGD(noise, estimator="smoothed")

    def test_goes_where_the_noisy_median_goes_on_average(self, play):
        updates = np.repeat([[1.0], [2.0], [10.0]], 40_000, axis=1)
        smooth = step(play, MedianSGD(Gaussian(20.0), estimator="smoothed", **SEEDED), updates)
        noisy = step(play, MedianSGD(Gaussian(20.0), **SEEDED), updates)
        # They differ by (c_3 − 1/6)·κ₃/b², κ₃ = 44.7 the third cumulant of (1, 2, 10).
        difference = (0.413 - 1 / 6) * 44.7 / 400
        assert abs(smooth.mean() - noisy.mean()) < difference + 4 * standard_error(noisy)
        assert smooth.std() < 1e-6 < noisy.std()
