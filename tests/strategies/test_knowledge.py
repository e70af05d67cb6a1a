"""What a server that knows its clients' noise can promise, seen from outside.

Statistics are taken over independent copies of a problem, one per coordinate, and a standard error
is measured over the copies. Every round has a fixed seed: a bound of three or four standard errors
holds always or never, and would for some 99.7 % or more of the seeds.
"""

from dataclasses import replace
from math import inf, nan, sqrt
from typing import ClassVar

import numpy as np
import pytest
from flwr.app import ConfigRecord

from fedmedian import (
    Adaptive,
    Gaussian,
    Instruction,
    Laplace,
    Majority,
    Payload,
    SmoothedMedian,
    Uniform,
    count_votes,
    mean_from_votes,
)
from fedmedian.clients import perturb
from fedmedian.rules.trust import PROPORTION
from fedmedian.steps.noise import AddNoise
from fedmedian.strategies import MedianSGD, SignSGD
from fedmedian.wire.scalars import PREFIX

ROTATED = {"seed": 1, "fraction_evaluate": 0.0}
SEEDED = {"rotation": None, **ROTATED}


def standard_error(copies):
    return copies.std() / sqrt(copies.size)


@pytest.fixture(scope="module")
def play(run):
    """Runs a strategy on clients whose update at x is `update(x, partition)`."""

    def play(strategy, update, clients, start, rounds=1, **options):
        def train(model, partition):
            return {"x": model["x"] - update(model["x"], partition)}, {"num-examples": 1}

        return run(strategy, train, {"x": start}, clients, rounds, **options)

    return play


class TestFixedPointsOfTheToy:
    """Where the toy of arXiv 1906.01736, Figure 1, comes to rest.

    f_i(x) = (x − a_i)²/2 with a = (1, 2, 10): without noise at the median, 2, and with it
    the closer to the mean, 13/3, the larger the noise.

    The noisy fixed points are zeros of the expected step, to three decimals. That a run comes to
    rest there in as many rounds as it takes is a claim of `experiments.claims.toy`.
    """

    A = (1.0, 2.0, 10.0)
    COPIES, ASIDE = 800_000, 50_000

    def towards_optimum(self, x, partition):
        return x - self.A[partition]

    @pytest.mark.parametrize(
        "strategy",
        [SignSGD(None, Majority(), 0.01, **SEEDED), MedianSGD(None, learning_rate=0.1, **SEEDED)],
        ids=["signs", "median"],
    )
    def test_without_noise_the_toy_rests_at_the_median(self, strategy, play):
        outcome = play(strategy, self.towards_optimum, 3, np.full(10, 1.7), 60)
        assert outcome.model["x"] == pytest.approx(2.0, abs=0.011)

    @pytest.mark.parametrize(
        ("algorithm", "scale", "expected"),
        [
            *[("median", 5.0, 3.752), ("median", 20.0, 4.289)],
            *[("majority", 5.0, 3.767), ("majority", 20.0, 4.292)],
            *[("counts", 5.0, 4.021), ("counts", 20.0, 4.315)],
        ],
    )
    def test_with_noise_the_mean_step_is_zero_where_theory_says(
        self, algorithm, scale, expected, play
    ):
        noise, options = Gaussian(scale), {"diagnostics": False, **SEEDED}
        strategy = {
            "median": MedianSGD(noise, **options),
            "majority": SignSGD(noise, Majority(), 1.0, **options),
            "counts": SignSGD(noise, **options),
        }[algorithm]
        sizes = [self.ASIDE, self.COPIES, self.ASIDE]
        start = np.repeat([expected - 1, expected, expected + 1], sizes)
        moved = play(strategy, self.towards_optimum, 3, start).model["x"] - start
        below, there, above = np.split(moved, np.cumsum(sizes[:2]))
        assert below.mean() > 4 * standard_error(below)
        assert abs(there.mean()) < 4 * standard_error(there)
        assert above.mean() < -4 * standard_error(above)


class TestUniformNoise:
    """Votes decode without bias while √3·b covers the largest update."""

    COPIES = 100_000

    @pytest.mark.parametrize(("clients", "covers"), [(2, 1.0), (3, 1.5), (10, 1.0)])
    def test_votes_with_uniform_noise_decode_to_the_mean_without_bias(self, clients, covers, step):
        updates = np.random.default_rng(clients).uniform(-1, 1, (clients, self.COPIES))
        updates += np.linspace(-0.5, 1.0, clients)[:, None]
        scale = covers * np.abs(updates).max() / sqrt(3)
        error = step(SignSGD(Uniform(scale), **SEEDED), updates) - updates.mean(axis=0)
        assert abs(error.mean()) < 3 * standard_error(error)
        # Nor does the error lean on the mean itself: large ones are not shrunk.
        leaning = error * updates.mean(axis=0)
        assert abs(leaning.mean()) < 3 * standard_error(leaning)

    def test_uniform_noise_shrinks_what_it_does_not_cover(self, step):
        moved = step(SignSGD(Uniform(1.0), **SEEDED), np.full((3, 20_000), 2.0))
        np.testing.assert_allclose(moved, sqrt(3), rtol=1e-6)


def told(change, partition=None):
    """A client's disobedience: `change` of the noise step that it was told, None for no noise.

    `partition` is whose; by default it is everybody's. A client that was to choose its scales
    reports those that it took.
    """

    def mod(message, context, call_next):
        own = context.node_config["partition-id"]
        if partition in (None, own) and message.metadata.message_type == "train":
            config = message.content["config"]
            instruction = Instruction.decode(config)
            steps = [
                change(step, own) if isinstance(step, AddNoise) else step
                for step in instruction.steps
            ]
            steps = tuple(step for step in steps if step is not None)
            others = {key: value for key, value in config.items() if not key.startswith(PREFIX)}
            obeyed = replace(instruction, steps=steps).encode()
            message.content["config"] = ConfigRecord({**others, **obeyed})
            reply = call_next(message, context)
            for step in steps:
                if isinstance(step, AddNoise) and step.scales is not None:
                    payload = payload_of(reply.content)
                    reports = {**payload.reports, step.name: step.scales}
                    scalars = replace(payload, reports=reports).encode()[1]
                    reply.content["fedmedian"] = ConfigRecord(scalars)
            return reply
        return call_next(message, context)

    return mod


def own_scale(scale_of):
    """Clients that choose their noise scale by their partition, whatever they were told."""

    def change(step, partition):
        return replace(step, scales=np.array([scale_of(partition)], np.float32))

    return told(change)


def payload_of(content):
    arrays = [array.numpy() for array in content["arrays"].values()]
    return Payload.decode(arrays, content["fedmedian"])


class TestClientsWithTheirOwnScale:
    """With ``scale_from="client"``."""

    COPIES, B = 100_000, 2.0
    STRATEGY = SignSGD(Uniform(Adaptive(1.0)), scale_from="client", **SEEDED)

    def scale_of(self, partition):
        return self.B if partition % 2 == 0 else 4 * self.B

    def updates(self, clients=10):
        """Clients with little noise go up, those with much go less far."""
        return np.array([np.full(self.COPIES, 0.2 if i % 2 else 1.0) for i in range(clients)])

    def test_votes_with_own_scales_weigh_as_much_as_their_noise_and_decode_without_bias(self, step):
        payloads = []

        def keep(message, context, call_next):
            reply = call_next(message, context)
            payloads.append(payload_of(reply.content))
            return reply

        mods = (keep, own_scale(self.scale_of), perturb)
        moved = step(self.STRATEGY, self.updates(), mods=mods)
        assert abs(moved.mean() - 0.6) < 3 * standard_error(moved)
        # With equal weights they would not.
        scale = np.mean([payload.reports["noise"][0] for payload in payloads])
        counts = count_votes([payload.body for payload in payloads], self.COPIES)
        naive = mean_from_votes(counts, 10, Uniform(), scale).astype(np.float64)
        assert abs(naive.mean() - 0.6) > 50 * standard_error(naive)

    def test_votes_with_own_scales_weigh_by_examples_besides(self, step):
        mods = (own_scale(self.scale_of), perturb)
        moved = step(self.STRATEGY, self.updates(4), [5, 3, 5, 3], mods=mods)
        assert abs(moved.mean() - (10 * 1.0 + 6 * 0.2) / 16) < 3 * standard_error(moved)

    def test_no_vote_weighs_more_than_the_cap_whatever_scale_its_client_claims(self, step):
        votes = np.array([[-1.0]] * 9 + [[1.0]]) * 1e6  # far beyond any noise but the last one's
        for claim in (1e3, 1e30):
            mods = (own_scale(lambda i, claim=claim: claim if i == 9 else 1.0), perturb)
            moved = step(self.STRATEGY, np.repeat(votes, 1000, axis=1), mods=mods)
            assert np.abs(moved + sqrt(3) * 0.9).max() <= sqrt(3) * 0.1 * PROPORTION * (1 + 1e-5)

    def test_clients_that_choose_their_scale_are_told_the_rules_factor(self, step):
        seen = []

        def listen(noise, partition):
            seen.append(noise)
            return noise

        strategy = SignSGD(Gaussian(Adaptive(2.5)), scale_from="client", **SEEDED)
        step(strategy, np.ones((2, 3)), mods=(told(listen), perturb))
        assert [(noise.scales, noise.factor) for noise in seen] == [(None, 2.5)] * 2

    def test_of_own_scales_the_median_clients_is_reported(self, steps):
        mods = (own_scale(lambda i: (0.5, 2.0, 70.0)[i]), perturb)
        _, outcome = steps(self.STRATEGY, np.ones((1, 3, 4)), mods=mods)
        assert outcome.reports[1]["noise-scale"] == pytest.approx([2.0])

    @pytest.mark.parametrize(
        ("change", "accepted"),
        [
            (lambda noise, _: None, 3),
            (lambda noise, _: replace(noise, scales=np.array([0.25], np.float32)), 4),
        ],
        ids=["no noise", "another scale"],
    )
    def test_clients_may_choose_a_noise_scale_where_allowed_but_must_report_it(
        self, change, accepted, steps
    ):
        _, outcome = steps(self.STRATEGY, np.ones((1, 4, 4)), mods=(told(change, 2), perturb))
        assert outcome.reports[1]["replies-accepted"] == accepted


def lying(factor_of_round, partition=0):
    """One client that reports its magnitude, and noise it chose by it, as other than they are."""

    def mod(message, context, call_next):
        instruction = Instruction.decode(message.content["config"])
        reply = call_next(message, context)
        if context.node_config["partition-id"] == partition:
            payload = payload_of(reply.content)
            factor = np.float32(factor_of_round(instruction.server_round))
            with np.errstate(all="ignore"):
                reports = {step: values * factor for step, values in payload.reports.items()}
            lie = replace(payload, reports=reports)
            reply.content["fedmedian"] = ConfigRecord(lie.encode()[1])
        return reply

    return mod


class TestOneLiarOfTen:
    """Whatever one client of ten reports or sends, no scale changes by a factor of two."""

    LIES: ClassVar = {
        "large at first": (lambda number: 1e6 if number == 1 else 1, 1),
        "small once": (lambda number: 1e-6 if number == 2 else 1, 1),
        "always large": (lambda number: 1e6, 1),
        "junk": (lambda number: (1e38, 0, nan, -1, inf)[number % 5], 1),
        "a large update": (lambda number: 1, 1e6),
    }

    @pytest.mark.parametrize(
        "make",
        [
            lambda: SignSGD(**ROTATED),
            lambda: SignSGD(Gaussian(Adaptive(1.0, magnitude="max")), **SEEDED),
            lambda: SignSGD(scale_from="client", **ROTATED),
            lambda: MedianSGD(noise_at="server", **ROTATED),
        ],
        ids=["by default", "by maximum", "clients' own", "at the server"],
    )
    def test_one_liar_of_ten_changes_no_noise_scale_by_a_factor_of_two(self, make, play):
        def scales(lie, factor):
            def update(x, partition):
                draws = np.random.default_rng(partition).standard_normal(x.shape)
                return (factor if partition == 0 else 1) * draws

            mods = (lying(lie), perturb)
            outcome = play(make(), update, 10, np.zeros(200, np.float32), rounds=5, mods=mods)
            assert all(report["replies-accepted"] >= 9 for report in outcome.reports.values())
            return np.array([report["noise-scale"][0] for report in outcome.reports.values()])

        honest = scales(lambda number: 1, 1)
        for name, lie in self.LIES.items():
            changed = scales(*lie) / honest
            assert np.all((changed > 0.5) & (changed < 2)), name


class TestCalibratedMajority:
    """b·maj/(2κ_M) estimates the mean update while that is much smaller than b.

    Allowed besides four standard errors: 1 % for the next order in g/b = .1, and, for unequal
    weights, 5 % for the central limit theorem at few clients.
    """

    COPIES = 200_000

    @pytest.mark.parametrize(
        ("noise", "clients", "examples", "ties"),
        [
            (Gaussian, 3, None, "random"),
            (Gaussian, 4, None, "random"),
            (Gaussian, 4, None, "unchanged"),
            (Uniform, 10, None, "random"),
            (Gaussian, 7, [3, 4, 5, 6, 7, 8, 9], "random"),
        ],
        ids=["3", "4, ties random", "4, ties unchanged", "10, uniform", "7 unequal"],
    )
    def test_a_calibrated_majority_estimates_the_mean_to_leading_order(
        self, noise, clients, examples, ties, step
    ):
        values = np.linspace(0.05, 0.15, clients)
        strategy = SignSGD(noise(1.0), Majority(ties, calibrated=True), **SEEDED)
        moved = step(strategy, np.repeat(values[:, None], self.COPIES, axis=1), examples)
        mean = np.average(values, weights=examples)
        allowed = (0.01 if examples is None else 0.05) * mean
        assert abs(moved.mean() - mean) < 4 * standard_error(moved) + allowed

    def test_a_calibrated_majority_has_a_worth_for_each_array(self, run):
        def train(model, partition):
            return {"a": model["a"] - 1, "b": model["b"] - 100}, {"num-examples": 1}

        strategy = SignSGD(Gaussian(Adaptive(5.0)), Majority(calibrated=True), **SEEDED)
        model = run(strategy, train, {"a": np.zeros(20_000), "b": np.zeros(20_000)}, 3).model
        assert -model["a"].mean() == pytest.approx(1.0, abs=0.1)
        assert -model["b"].mean() == pytest.approx(100.0, abs=10.0)


class TestNoDrift:
    """A coordinate that no client moves is a random walk at most: its mean stays where it was."""

    STILL, MOVING, ROUNDS = 3000, 1000, 10

    def walked(self, strategy, clients, play):
        def update(x, partition):
            return np.where(np.arange(x.size) < self.MOVING, (-1.0) ** partition + 0.5, 0.0)

        start = np.zeros(self.MOVING + self.STILL)
        return play(strategy, update, clients, start, self.ROUNDS).model["x"][self.MOVING :]

    @pytest.mark.parametrize("clients", [3, 4])
    @pytest.mark.parametrize(
        "strategy",
        [
            SignSGD(None, Majority("random"), 0.01, **SEEDED),
            SignSGD(None, Majority("unchanged"), 0.01, **SEEDED),
            SignSGD(Gaussian(1.0), Majority("random"), 0.01, **SEEDED),
            SignSGD(Laplace(Adaptive(1.0)), Majority("unchanged"), 0.01, **SEEDED),
        ],
        ids=["no noise", "no noise, ties unchanged", "noise", "adaptive noise, ties unchanged"],
    )
    def test_a_majority_leaves_what_nobody_moves_to_walk_no_farther_than_coins_would(
        self, strategy, clients, play
    ):
        walked = self.walked(strategy, clients, play)
        assert abs(walked.mean()) < 4 * standard_error(walked)
        assert walked.std() < 0.01 * sqrt(self.ROUNDS) * (1 + 4 / sqrt(2 * self.STILL))

    @pytest.mark.parametrize(
        ("strategy", "clients"),
        [
            (SignSGD(Gaussian(1.0), Majority(calibrated=True), **SEEDED), 4),
            (SignSGD(Uniform(1.0), **SEEDED), 3),
            (SignSGD(Gaussian(Adaptive(3.0)), **SEEDED), 4),
            (MedianSGD(Gaussian(1.0), **SEEDED), 4),
            (MedianSGD(Gaussian(1.0), noise_at="server", **SEEDED), 3),
        ],
        ids=["calibrated", "counts", "adaptive counts", "noisy median", "noise at the server"],
    )
    def test_estimates_of_the_mean_do_not_drift_where_nobody_moves(self, strategy, clients, play):
        walked = self.walked(strategy, clients, play)
        assert abs(walked.mean()) < 4 * standard_error(walked)

    @pytest.mark.parametrize(
        "options",
        [{"noise": None}, {"noise": Gaussian(), "aggregator": SmoothedMedian()}],
        ids=["plain", "smoothed"],
    )
    def test_a_median_without_noise_leaves_what_nobody_moves_exactly(self, options, play):
        assert not self.walked(MedianSGD(**options, **SEEDED), 4, play).any()
