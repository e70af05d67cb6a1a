"""From payloads to a direction: what it estimates, who counts how much, and what is reported."""

import tracemalloc
from math import pi, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmedian import (
    Gaussian,
    Laplace,
    Layout,
    Logistic,
    Payload,
    Uniform,
    aggregation,
    coordinate_median,
    count_votes,
    majority_vote,
    mean_from_votes,
    pack_signs,
    smoothed_median,
)
from fedmedian.aggregation import SCALE_CAP, aggregate_signs, aggregate_vectors

GAUSSIAN = Gaussian()
FAMILIES = [GAUSSIAN, Logistic(), Laplace(), Uniform()]


def layout_of(*sizes):
    return Layout.of({str(i): np.zeros(size, np.float32) for i, size in enumerate(sizes)})


def payload(kind, body, scales, noise="gaussian"):
    scales = np.array(scales, np.float32)
    nothing = np.empty(0, np.uint8)
    return Payload(kind, noise, scales, np.zeros_like(scales), body, nothing)


def signs(rows, scales):
    """One payload per row of numbers, of which only the signs count."""
    return [payload("signs", pack_signs(row), own) for row, own in zip(rows, scales, strict=True)]


def noisy_rows(updates, noise, scales, sizes, seed):
    """Rows u_i + b_i·ξ, where u_i and b_i have one value per array."""
    rng = np.random.default_rng(seed)
    return [
        np.repeat(u, sizes) + np.repeat(b, sizes) * noise.sample(rng, sum(sizes))
        for u, b in zip(np.float32(updates), np.float32(scales), strict=True)
    ]


def equal_weights(clients):
    return np.full(clients, 1 / clients)


def aggregate(payloads, layout, weights=None, noise=GAUSSIAN, decode="counts", ties="random"):
    weights = equal_weights(len(payloads)) if weights is None else np.asarray(weights, float)
    return aggregate_signs(payloads, weights, layout, noise, decode, ties, np.random.default_rng(0))


@st.composite
def elections(draw):
    """Votes of M clients on two arrays, with a positive number of examples and scales for each."""
    clients, first, second = (draw(st.integers(low, 9)) for low in (1, 0, 0))
    rows = draw(hnp.arrays(np.int8, (clients, first + second), elements=st.sampled_from([-1, 1])))
    examples = draw(hnp.arrays(np.int64, clients, elements=st.integers(1, 10)))
    # At most a factor of two apart, which no cap touches.
    scales = draw(hnp.arrays(np.float32, (clients, 2), elements=st.floats(0.5, 1.0, width=32)))
    return rows, examples, scales, (first, second)


class TestCounts:
    @given(election=elections(), noise=st.sampled_from(FAMILIES))
    def test_is_the_sum_of_signs_times_weight_times_scale_over_twice_the_density(
        self, election, noise
    ):
        rows, examples, scales, sizes = election
        weights = examples / examples.sum()
        result = aggregate(signs(rows, scales), layout_of(*sizes), weights, noise)
        expected = [
            sum(
                weights[i] * scales[i, int(k >= sizes[0])] / (2 * noise.density_at_zero) * row[k]
                for i, row in enumerate(rows)
            )
            for k in range(sum(sizes))
        ]
        assert result.direction.dtype == np.float32
        np.testing.assert_allclose(result.direction, expected, rtol=1e-5, atol=1e-5)

    @given(election=elections(), noise=st.sampled_from(FAMILIES))
    def test_with_equal_scales_and_weights_is_the_decoded_mean(self, election, noise):
        rows, _, _, sizes = election
        payloads = signs(rows, np.full((len(rows), 2), 0.3))
        counts = count_votes([one.body for one in payloads], sum(sizes))
        np.testing.assert_allclose(
            aggregate(payloads, layout_of(*sizes), noise=noise).direction,
            mean_from_votes(counts, len(rows), noise, 0.3),
            rtol=1e-5,
            atol=1e-6,
        )

    @pytest.mark.parametrize("scales", [(0.7, 0.7, 0.7), (0.6, 0.9, 1.8)], ids=["equal", "own"])
    @pytest.mark.parametrize("weights", [(1 / 3, 1 / 3, 1 / 3), (0.5, 0.3, 0.2)])
    def test_estimates_the_weighted_mean_update_without_bias(self, scales, weights):
        updates, n, noise = np.array([0.2, -0.5, 1.0]), 100_000, Uniform()
        own = np.array(scales)[:, None]
        rows = noisy_rows(updates[:, None], noise, own, [n], seed=1)
        estimate = aggregate(signs(rows, own), layout_of(n), weights, noise).direction.astype(
            np.float64
        )
        error = estimate.mean() - np.dot(weights, updates)
        assert abs(error) < 4 * estimate.std() / sqrt(n)
        # Uniform votes have variance at most 3b².
        assert estimate.var() < 3 * np.square(np.multiply(weights, scales)).sum()

    @pytest.mark.parametrize("noise", FAMILIES, ids=lambda noise: noise.name)
    def test_estimates_it_for_every_family_once_the_noise_is_large(self, noise):
        updates, scales, n = np.array([0.02, -0.05, 0.1]), np.array([0.6, 0.9, 1.8]), 200_000
        rows = noisy_rows(updates[:, None], noise, scales[:, None], [n], seed=2)
        estimate = aggregate(signs(rows, scales[:, None]), layout_of(n), noise=noise).direction
        # Beyond chance a bias of order |g|·(g/b), the largest that any of the four has.
        bias = np.mean(np.square(updates) / scales)
        error = abs(estimate.mean(dtype=np.float64) - updates.mean())
        assert error < 4 * estimate.std() / sqrt(n) + bias


class TestScalesThatClientsChoose:
    def test_a_client_weighs_at_most_the_cap_times_the_median_client(self):
        scales = np.array([[1.0], [1.0], [2.0], [3.0], [1e6]])
        rows = [[-1.0]] * 4 + [[1.0]]
        expected = sqrt(3) * (SCALE_CAP * 2.0 - 1 - 1 - 2 - 3) / 5
        result = aggregate(signs(rows, scales), layout_of(1), noise=Uniform())
        assert result.direction == pytest.approx([expected])

    def test_the_cap_is_each_arrays_own(self):
        scales = np.array([[1.0, 100.0], [1.0, 100.0], [100.0, 100.0]])
        result = aggregate(signs(np.ones((3, 2)), scales), layout_of(1, 1), noise=Uniform())
        assert result.direction == pytest.approx([sqrt(3) * (2 + SCALE_CAP) / 3, sqrt(3) * 100])

    def test_clients_that_did_not_move_an_array_neither_vote_nor_lower_the_cap(self):
        scales = np.array([[0.0], [0.0], [0.0], [2.0], [3.0]])
        result = aggregate(signs([[-1.0]] * 3 + [[1.0]] * 2, scales), layout_of(1), noise=Uniform())
        assert result.direction == pytest.approx([sqrt(3) * (2 + 3) / 5])

    def test_an_array_that_nobody_moved_stays(self):
        scales = np.array([[0.0, 1.0]] * 3)
        result = aggregate(signs(np.ones((3, 5)), scales), layout_of(3, 2))
        assert result.direction.tolist()[:3] == [0.0, 0.0, 0.0]
        assert result.diagnostics["vote-agreement"] == pytest.approx(2 / 5)


class TestMajority:
    @given(election=elections())
    def test_is_the_sign_of_the_weighted_sum_and_a_tie_leaves_the_coordinate_unchanged(
        self, election
    ):
        rows, examples, scales, sizes = election
        result = aggregate(
            signs(rows, scales),
            layout_of(*sizes),
            examples / examples.sum(),
            decode="majority",
            ties="unchanged",
        )
        assert result.direction.dtype == np.float32
        sums = examples @ rows.astype(np.int64)
        assert result.direction.tolist() == np.sign(sums).tolist()

    @given(election=elections())
    def test_random_ties_touch_ties_only(self, election):
        rows, examples, scales, sizes = election
        payloads, weights = signs(rows, scales), examples / examples.sum()
        settings = {"layout": layout_of(*sizes), "weights": weights, "decode": "majority"}
        random = aggregate(payloads, ties="random", **settings).direction
        unchanged = aggregate(payloads, ties="unchanged", **settings).direction
        assert np.all(np.abs(random) == 1)
        assert np.array_equal(random[unchanged != 0], unchanged[unchanged != 0])
        assert np.array_equal(aggregate(payloads, ties="random", **settings).direction, random)

    def test_random_ties_are_fair_coins(self):
        n = 100_000
        rows = np.ones((2, n)) * [[1], [-1]]
        result = aggregate(signs(rows, np.ones((2, 1))), layout_of(n), decode="majority")
        assert set(result.direction.tolist()) == {-1.0, 1.0}
        assert abs(result.direction.sum()) < 4 * sqrt(n)

    def test_weights_that_cancel_only_on_paper_are_a_tie(self):
        payloads = signs([[1.0], [1.0], [-1.0]], np.ones((3, 1)))
        result = aggregate(
            payloads, layout_of(1), [0.1, 0.4, 0.5], decode="majority", ties="unchanged"
        )
        assert result.direction.tolist() == [0.0]

    @pytest.mark.parametrize("clients", [1, 2, 7, 10, 101])
    def test_with_equal_weights_is_the_majority_vote(self, clients):
        rows = np.random.default_rng(clients).standard_normal((clients, 200))
        payloads = signs(rows, np.ones((clients, 1)))
        result = aggregate(payloads, layout_of(200), decode="majority", ties="unchanged")
        expected = majority_vote([one.body for one in payloads], 200)
        assert np.array_equal(result.direction, expected)

    def test_noise_scales_and_noise_play_no_part(self):
        rows = np.random.default_rng(0).standard_normal((3, 9))
        directions = [
            aggregate(signs(rows, scales), layout_of(9), noise=noise, decode="majority").direction
            for scales in (np.ones((3, 1)), [[1.0], [1.0], [1e9]], np.zeros((3, 1)))
            for noise in (None, Gaussian(), Uniform())
        ]
        assert all(np.array_equal(direction, directions[0]) for direction in directions)


class TestVoteAgreement:
    @pytest.mark.parametrize("decode", ["counts", "majority"])
    def test_is_1_where_all_agree_and_0_where_they_are_split(self, decode):
        same, split = np.ones((4, 6)), np.repeat([[1.0], [-1.0]], 2, axis=0) * np.ones((4, 6))
        for rows, agreement in ((same, 1.0), (split, 0.0), (np.c_[same, split], 0.5)):
            payloads = signs(rows, np.ones((4, 1)))
            result = aggregate(payloads, layout_of(rows.shape[1]), decode=decode)
            assert result.diagnostics["vote-agreement"] == pytest.approx(agreement)

    @given(election=elections())
    def test_is_the_mean_absolute_weighted_vote(self, election):
        rows, examples, scales, sizes = election
        result = aggregate(
            signs(rows, scales), layout_of(*sizes), examples / examples.sum(), decode="majority"
        )
        votes = np.abs(examples @ rows.astype(np.int64)) / examples.sum()
        expected = votes.mean() if votes.size else 0.0
        assert result.diagnostics["vote-agreement"] == pytest.approx(expected, abs=1e-6)

    def test_of_counts_weighs_clients_with_their_noise_as_well(self):
        payloads = signs([[1.0], [-1.0]], [[1.0], [3.0]])
        agreement = aggregate(payloads, layout_of(1)).diagnostics["vote-agreement"]
        assert agreement == pytest.approx((3 - 1) / (3 + 1))

    @pytest.mark.parametrize("decode", ["counts", "majority"])
    def test_of_a_model_without_parameters_is_0(self, decode):
        result = aggregate(signs([[]], np.ones((1, 0))), layout_of(), decode=decode)
        assert result.direction.shape == (0,)
        assert set(result.diagnostics.values()) == {0.0}


def true_signal_to_noise(updates, noise, scales, sizes):
    """Energy of the expected decoded mean over the energy of its noise, by the vote law."""
    updates, scales = np.asarray(updates), np.asarray(scales)
    expected_signs = 2 * noise.cdf(updates / scales) - 1
    worth = scales / (2 * noise.density_at_zero) / len(updates)
    signal = np.square((worth * expected_signs).sum(axis=0))
    spread = (np.square(worth) * (1 - np.square(expected_signs))).sum(axis=0)
    return np.dot(signal, sizes) / np.dot(spread, sizes)


class TestSignalToNoise:
    @pytest.mark.parametrize("noise", FAMILIES, ids=lambda noise: noise.name)
    @pytest.mark.parametrize("decode", ["counts", "majority"])
    def test_of_pure_noise_is_about_0(self, noise, decode):
        n = 50_000
        rows = noisy_rows(np.zeros((5, 1)), noise, np.ones((5, 1)), [n], seed=3)
        result = aggregate(signs(rows, np.ones((5, 1))), layout_of(n), noise=noise, decode=decode)
        assert 0 <= result.diagnostics["signal-to-noise"] < 0.03

    @pytest.mark.parametrize("noise", FAMILIES, ids=lambda noise: noise.name)
    @pytest.mark.parametrize("update", [0.1, 0.4, 1.0])
    @pytest.mark.parametrize("clients", [2, 10])
    def test_of_clients_that_agree_is_recovered(self, noise, update, clients):
        n, updates, scales = 200_000, np.full((clients, 1), update), np.ones((clients, 1))
        rows = noisy_rows(updates, noise, scales, [n], seed=4)
        result = aggregate(signs(rows, scales), layout_of(n), noise=noise)
        expected = true_signal_to_noise(updates, noise, scales, [n])
        assert result.diagnostics["signal-to-noise"] == pytest.approx(expected, rel=0.05, abs=0.02)

    def test_is_what_the_mathematics_says_for_gaussian_noise(self):
        """M·ū² / (π·b²/2) while |u| is much smaller than b."""
        n, clients, update = 50_000, 50, 0.2
        rows = noisy_rows([[update]] * clients, Gaussian(), np.ones((clients, 1)), [n], seed=5)
        result = aggregate(signs(rows, np.ones((clients, 1))), layout_of(n))
        expected = clients * update**2 / (pi / 2)
        assert result.diagnostics["signal-to-noise"] == pytest.approx(expected, rel=0.05)

    def test_adds_up_over_arrays_of_different_scales_and_sizes(self):
        sizes, clients = [200_000, 50_000], 8
        updates, scales = np.tile([0.3, 2.0], (clients, 1)), np.tile([1.0, 5.0], (clients, 1))
        rows = noisy_rows(updates, Logistic(), scales, sizes, seed=6)
        result = aggregate(signs(rows, scales), layout_of(*sizes), noise=Logistic())
        expected = true_signal_to_noise(updates, Logistic(), scales, sizes)
        assert result.diagnostics["signal-to-noise"] == pytest.approx(expected, rel=0.05)

    def test_weighs_clients_as_their_votes_are_weighed(self):
        n, scales = 200_000, np.array([[1.0], [1.5], [1.0], [2.0], [1.2]])
        updates = 0.4 * scales
        rows = noisy_rows(updates, Gaussian(), scales, [n], seed=7)
        result = aggregate(signs(rows, scales), layout_of(n))
        expected = true_signal_to_noise(updates, Gaussian(), scales, [n])
        assert result.diagnostics["signal-to-noise"] == pytest.approx(expected, rel=0.05)

    def test_is_a_cautious_estimate_where_clients_disagree(self):
        """One vote per client cannot tell how sure it was, which makes noise look larger."""
        n, scales = 200_000, np.ones((5, 1))
        updates = np.array([[0.1], [0.5], [-0.2], [0.3], [0.4]])
        rows = noisy_rows(updates, Gaussian(), scales, [n], seed=8)
        measured = aggregate(signs(rows, scales), layout_of(n)).diagnostics["signal-to-noise"]
        expected = true_signal_to_noise(updates, Gaussian(), scales, [n])
        certainty = np.mean(np.square(2 * Gaussian().cdf(updates) - 1))
        assert expected - certainty - 0.02 < measured < expected

    @pytest.mark.parametrize(
        ("clients", "noise", "decode"),
        [(1, GAUSSIAN, "counts"), (1, GAUSSIAN, "majority"), (5, None, "majority")],
        ids=["one vote", "one vote by majority", "no noise"],
    )
    def test_is_not_reported_where_it_cannot_be_known(self, clients, noise, decode):
        rows = np.random.default_rng(0).standard_normal((clients, 99))
        payloads = signs(rows, np.ones((clients, 1)))
        result = aggregate(payloads, layout_of(99), noise=noise, decode=decode)
        assert "signal-to-noise" not in result.diagnostics

    def test_is_not_reported_where_all_votes_agree(self):
        result = aggregate(signs(np.ones((5, 9)), np.ones((5, 1))), layout_of(9))
        assert "signal-to-noise" not in result.diagnostics


vector_rows = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 7), st.integers(0, 9)),
    elements=st.floats(-1000, 1000, width=32),
)


class TestVectors:
    @given(rows=vector_rows)
    def test_the_direction_is_the_coordinate_wise_median(self, rows):
        payloads = [payload("vector", row, [0.0], None) for row in rows]
        result = aggregate_vectors(payloads, None, layout_of(rows.shape[1]))
        assert result.direction.dtype == np.float32
        assert np.array_equal(result.direction, coordinate_median(rows))

    @given(rows=vector_rows)
    def test_the_gap_is_the_distance_from_the_median_to_the_mean(self, rows):
        payloads = [payload("vector", row, [0.0], None) for row in rows]
        result = aggregate_vectors(payloads, None, layout_of(rows.shape[1]))
        exact = rows.astype(np.float64)
        gap = np.linalg.norm(np.median(exact, axis=0) - exact.mean(axis=0))
        assert "signal-to-noise" not in result.diagnostics
        assert result.diagnostics["median-mean-gap"] == pytest.approx(gap, rel=1e-4, abs=1e-3)

    def test_the_gap_of_the_toy(self):
        payloads = [payload("vector", np.float32([u]), [0.0], None) for u in (1, 2, 10)]
        gap = aggregate_vectors(payloads, None, layout_of(1)).diagnostics["median-mean-gap"]
        assert gap == pytest.approx(7 / 3)

    @pytest.mark.parametrize("noise", FAMILIES, ids=lambda noise: noise.name)
    def test_signal_to_noise_of_pure_noise_is_about_0(self, noise):
        n, clients = 20_000, 51
        rows = noisy_rows(np.zeros((clients, 1)), noise, np.ones((clients, 1)), [n], seed=8)
        payloads = [payload("vector", row, [1.0], noise.name) for row in rows]
        result = aggregate_vectors(payloads, noise, layout_of(n))
        # The variance is the asymptotic one, which Laplace noise reaches from above and slowly.
        assert 0 <= result.diagnostics["signal-to-noise"] < 0.3

    @pytest.mark.parametrize("signal_to_noise", [0.3, 2.0])
    def test_signal_to_noise_is_recovered(self, signal_to_noise):
        sizes, clients = [30_000, 10_000], 51
        scales = np.tile([1.0, 3.0], (clients, 1))
        # A median of M Gaussians has variance π·b²/(2M).
        updates = scales * sqrt(signal_to_noise * pi / (2 * clients))
        rows = noisy_rows(updates, Gaussian(), scales, sizes, seed=9)
        payloads = [payload("vector", *own) for own in zip(rows, scales, strict=True)]
        result = aggregate_vectors(payloads, Gaussian(), layout_of(*sizes))
        measured = result.diagnostics["signal-to-noise"]
        assert measured == pytest.approx(signal_to_noise, rel=0.05, abs=0.05)

    def test_signal_to_noise_is_not_reported_where_no_array_has_noise(self):
        payloads = [payload("vector", np.float32([1.0]), [0.0])]
        result = aggregate_vectors(payloads, Gaussian(), layout_of(1))
        assert "signal-to-noise" not in result.diagnostics

    @pytest.mark.parametrize("dim", [0, 1, 9])
    def test_each_array_is_smoothed_with_its_own_scale(self, dim):
        rows = np.random.default_rng(0).standard_normal((5, dim + 4)).astype(np.float32)
        payloads = [payload("vector", row, [0.0] * 3, None) for row in rows]
        smoothing = np.float32([0.3, 2.0, 0.0])
        result = aggregate_vectors(payloads, GAUSSIAN, layout_of(3, dim, 1), smoothing=smoothing)
        expected = smoothed_median(rows, GAUSSIAN, np.repeat(smoothing, [3, dim, 1]))
        np.testing.assert_array_equal(result.direction, expected)


class TestNoiseAddedToVectors:
    SIZES, SCALES = (40, 0, 60), np.float32([0.5, 1.0, 3.0])

    @pytest.fixture
    def payloads(self):
        rows = np.random.default_rng(0).standard_normal((7, 100), dtype=np.float32)
        return [payload("vector", row, [0.0] * 3, None) for row in rows]

    def add(self, payloads, noise=GAUSSIAN, seed=1):
        return aggregate_vectors(
            payloads,
            noise,
            layout_of(*self.SIZES),
            added=self.SCALES,
            rng=np.random.default_rng(seed),
        )

    @pytest.mark.parametrize("noise", FAMILIES, ids=lambda noise: noise.name)
    @pytest.mark.parametrize("values", [7 * 100, 7 * 13, 1], ids=["one block", "some", "many"])
    def test_is_as_if_the_clients_had_added_it(self, payloads, noise, values, monkeypatch):
        """For one block of coordinates after the other, client by client."""
        monkeypatch.setattr(aggregation, "_NOISY_VALUES", values)
        length, rng = max(values // 7, 1), np.random.default_rng(1)
        noisy = np.stack([one.body for one in payloads])
        for start in range(0, 100, length):
            for row in noisy:
                part = row[start : start + length]
                scale = np.repeat(self.SCALES, self.SIZES)[start : start + length]
                part += scale * noise.sample(rng, part.size)
        sent = [payload("vector", row, self.SCALES, noise.name) for row in noisy]
        theirs, ours = (
            aggregate_vectors(sent, noise, layout_of(*self.SIZES)),
            self.add(payloads, noise),
        )
        np.testing.assert_array_equal(ours.direction, theirs.direction)
        assert ours.diagnostics == {
            name: pytest.approx(value) for name, value in theirs.diagnostics.items()
        }
        assert "signal-to-noise" in ours.diagnostics

    def test_follows_from_the_generator(self, payloads):
        first, again, other = (self.add(payloads, seed=seed).direction for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert np.all(first != other)

    def test_leaves_the_clients_vectors_as_they_are(self, payloads):
        before = [one.body.copy() for one in payloads]
        self.add(payloads)
        np.testing.assert_array_equal([one.body for one in payloads], before)

    @pytest.mark.parametrize("noise", FAMILIES, ids=lambda noise: noise.name)
    def test_has_each_arrays_scale_and_is_independent(self, noise):
        n, scales = 100_000, np.float32([0.5, 2.0])
        nothing = payload("vector", np.zeros(2 * n, np.float32), [0.0, 0.0], None)
        for clients in (1, 2):
            result = aggregate_vectors(
                [nothing] * clients,
                noise,
                layout_of(n, n),
                added=scales,
                rng=np.random.default_rng(3),
            )
            # The median of two is their mean, of half the variance if they are independent.
            spread = result.direction.reshape(2, n).std(axis=1)
            assert spread == pytest.approx(scales / sqrt(clients), rel=0.02)


class TestBlocks:
    """Block by block gives what the whole would give."""

    SIZES = (13, 0, 30, 1, 56)

    @pytest.fixture(params=[8, 16, 64])
    def in_blocks(self, request):
        """Calls a function that takes so many coordinates at once."""

        def call(function, *arguments, **options):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(aggregation, "_VOTES_BLOCK", request.param)
                patch.setattr(aggregation, "_BLOCK", request.param)
                return function(*arguments, **options)

        return call

    @pytest.mark.parametrize("weights", [None, [0.3, 0.2, 0.2, 0.1, 0.1, 0.1]])
    @pytest.mark.parametrize("decode", ["counts", "majority"])
    def test_of_votes(self, decode, weights, in_blocks):
        rng = np.random.default_rng(0)
        payloads = signs(rng.standard_normal((6, 100)), rng.uniform(0.3, 3, (6, 5)))
        case = payloads, layout_of(*self.SIZES), weights
        expected = aggregate(*case, decode=decode)
        result = in_blocks(aggregate, *case, decode=decode)
        np.testing.assert_array_equal(result.direction, expected.direction)
        assert result.diagnostics == expected.diagnostics
        assert result.diagnostics["majority-contradicts-mean"] > 0

    @pytest.mark.parametrize("smoothing", [None, np.float32([0.5, 1, 0, 2, 3])])
    def test_of_vectors(self, smoothing, in_blocks):
        rows = np.random.default_rng(0).standard_normal((5, 100), dtype=np.float32)
        payloads = [payload("vector", row, [0.0] * 5, None) for row in rows]
        result = in_blocks(
            aggregate_vectors, payloads, GAUSSIAN, layout_of(*self.SIZES), smoothing=smoothing
        )
        scale = 0 if smoothing is None else np.repeat(smoothing, self.SIZES)
        np.testing.assert_array_equal(result.direction, smoothed_median(rows, GAUSSIAN, scale))
        gap = np.linalg.norm(result.direction - rows.mean(axis=0))
        assert result.diagnostics["median-mean-gap"] == pytest.approx(gap, rel=1e-5)


def model(dim):
    return layout_of(dim // 3, 5, dim - dim // 3 - 5)


def votes(decode, own=False, weighted=False, calibrated=False):
    """Prepares an aggregation of M clients' signs; they share two clients' buffers."""

    def prepare(clients, dim):
        rng, layout = np.random.default_rng(0), model(dim)
        scales = rng.uniform(0.5, 1, (clients, 3)) if own else np.ones((clients, 3))
        bodies = [rng.integers(0, 256, -(-dim // 8), np.uint8) for _ in range(2)]
        payloads = [payload("signs", bodies[i % 2], row) for i, row in enumerate(scales)]
        weights = rng.dirichlet(np.ones(clients)) if weighted else equal_weights(clients)
        settings = layout, GAUSSIAN, decode, "random", rng
        return lambda: aggregate_signs(payloads, weights, *settings, calibrated=calibrated)

    return prepare


def median(**options):
    """Prepares an aggregation of M clients' vectors; they share two clients' buffers."""

    def prepare(clients, dim):
        rng, layout = np.random.default_rng(0), model(dim)
        bodies = [rng.standard_normal(dim, np.float32) for _ in range(2)]
        payloads = [payload("vector", bodies[i % 2], [0.0] * 3) for i in range(clients)]
        return lambda: aggregate_vectors(payloads, GAUSSIAN, layout, rng=rng, **options)

    return prepare


ESTIMATORS = {
    "counts": votes("counts"),
    "counts of own scales": votes("counts", own=True),
    "weighted counts": votes("counts", weighted=True),
    "majority": votes("majority"),
    "majority of own scales": votes("majority", own=True),
    "weighted majority": votes("majority", weighted=True),
    "calibrated majority": votes("majority", own=True, calibrated=True),
    "median": median(),
    "median with noise added": median(added=np.float32([0.5, 1, 2])),
    "smoothed median": median(smoothing=np.float32([0.5, 0, 2])),
}


def peak_bytes(run):
    """The most memory that a call takes, its result included and its arguments not."""
    tracemalloc.start()
    run()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
class TestMemory:
    """At most 64 MiB for 101 clients and 10⁷ coordinates: 39 for the direction, 25 to work in."""

    def test_for_101_clients_is_little_beyond_the_direction(self, estimator):
        clients, dim = 101, 80_000
        estimator(clients, 9)()  # programs are kept
        assert peak_bytes(estimator(clients, dim)) - 4 * dim < 25 * 2**20

    def test_grows_with_the_model_as_the_direction_does(self, estimator):
        # Both are longer than what is worked on at once.
        small, large = (peak_bytes(estimator(2, dim)) for dim in (1_100_000, 2_200_000))
        assert large - small < 1.1 * 4 * 1_100_000
