"""Votes and medians in a random basis: the formulas of what they estimate, and of their error.

Nine clients of norms from .3 to 1.9 hold lognormal updates of 4,096 coordinates; what is averaged
is 400 rotations, with fixed seeds, and a standard error is that of their mean.
"""

from dataclasses import replace
from math import asin, pi, sqrt

import numpy as np
import pytest

from fedmedian import Blocks, Gaussian, Rotation, coordinate_median, unpack_signs
from fedmedian.kernels.rotation import padded_size
from fedmedian.steps.base import Draft
from fedmedian.steps.noise import Measure, TopUpNoise

CLIENTS, DIM, ROTATIONS = 9, 4096, 400
NORMS = np.linspace(0.3, 1.9, CLIENTS)
BLOCKS = Blocks((DIM,))


def skewed_updates(norms, seed=0):
    """Independent lognormal updates, one row per client, of these root mean squares."""
    rng = np.random.default_rng(seed)
    rows = rng.lognormal(size=(len(norms), DIM)) * rng.choice([-1, 1, 1], (len(norms), DIM))
    return np.float32((rows.T / np.sqrt(np.mean(rows**2, axis=1)) * norms).T)


def send(update, rotation, level, seed):
    """A client's draft, rotated and topped up to a level."""
    draft = Draft(update.copy(), BLOCKS, 1, np.random.default_rng(seed))
    for step in (rotation, Measure("rms"), TopUpNoise(Gaussian(), np.float32([level]))):
        step.apply(draft)
    return draft


def votes_mean(updates, level, seed):
    """The mean as it is decoded from the clients' signs, after one rotation."""
    rotation = Rotation(seed=seed)
    total = 0
    for client, update in enumerate(updates):
        draft = send(update, rotation, level, (seed, client))
        total = total + unpack_signs(draft.draw_signs(), draft.blocks.dim)
    return rotation.undo(np.float32(level * sqrt(pi / 2) / len(updates)) * total, BLOCKS)


def coefficients(updates, estimate):
    """An estimate as a linear combination of the updates, by least squares."""
    rows = updates.astype(np.float64)
    return np.linalg.solve(rows @ rows.T, rows @ estimate)


class TestCounts:
    @pytest.mark.slow
    @pytest.mark.parametrize("level", [1.0, 1.4])
    def test_every_client_counts_in_full_up_to_the_level_and_beyond_it_as_if_clipped(self, level):
        updates = skewed_updates(NORMS)
        found = np.array(
            [coefficients(updates, votes_mean(updates, level, seed)) for seed in range(ROTATIONS)]
        )
        error = found.mean(axis=0) * CLIENTS - np.minimum(1, level / NORMS)
        allowed = 4 * found.std(axis=0) * CLIENTS / sqrt(ROTATIONS)
        # A vector of 4,096 coordinates is normal but for a percent.
        assert np.all(np.abs(error) < allowed + 0.01)

    @pytest.mark.slow
    @pytest.mark.parametrize("level", [1.0, 1.2, 1.5, 2.0])
    @pytest.mark.parametrize("alike", [True, False], ids=["all alike", "spread"])
    def test_the_error_is_what_the_formula_says(self, level, alike):
        """(1/M²)·[Σ(c²π/2 − σ_i²) + Σ_{i≠k} c²(arcsin ρ_ik − ρ_ik)], ρ = ⟨u_i, u_k⟩/(n·c²)."""
        updates = skewed_updates(np.ones(CLIENTS))
        if alike:
            updates = np.repeat(updates[:1], CLIENTS, axis=0)
        mean = updates.mean(axis=0)
        measured = np.mean(
            [np.mean((votes_mean(updates, level, seed) - mean) ** 2) for seed in range(100)]
        )
        rows = updates.astype(np.float64)
        shared = rows @ rows.T / DIM / level**2
        own = np.sum(level**2 * pi / 2 - np.diag(shared) * level**2)
        np.fill_diagonal(shared, 0)
        between = level**2 * np.sum(np.vectorize(asin)(np.minimum(shared, 1)) - shared)
        assert measured == pytest.approx((own + between) / CLIENTS**2, rel=0.02)

    @pytest.mark.parametrize("lie", [1e30, 1.0, 0.0])
    def test_no_client_moves_the_mean_by_more_than_the_level_allows(self, lie):
        """By 2·√(π/2)·c·√n/M in L2, from any one vote to its opposite, whatever it holds."""
        updates, level = skewed_updates(np.ones(CLIENTS)), 1.2
        honest = votes_mean(updates, level, 0)
        updates[0] *= -lie
        moved = np.linalg.norm(votes_mean(updates, level, 0) - honest)
        assert moved <= 2 * sqrt(pi / 2) * level * sqrt(DIM) / CLIENTS * 1.01


class TestMedian:
    @pytest.mark.slow
    @pytest.mark.parametrize("level", [0.0, 1.2])
    def test_is_the_updates_weighed_by_their_chance_to_be_the_median(self, level):
        """By Stein's lemma: the weights are the probabilities, and add up to 1."""
        updates, found, chances = skewed_updates(NORMS), [], []
        for seed in range(ROTATIONS):
            rotation = Rotation(seed=seed)
            rows = [
                send(update, rotation, level, (seed, i)).vector for i, update in enumerate(updates)
            ]
            median = coordinate_median(rows)
            chances.append([np.mean(row == median) for row in rows])
            found.append(coefficients(updates, rotation.undo(median, BLOCKS)))
        error = np.mean(found, axis=0) - np.mean(chances, axis=0)
        assert np.sum(np.mean(chances, axis=0)) == pytest.approx(1, abs=1e-3)
        assert np.all(np.abs(error) < 4 * np.std(found, axis=0) / sqrt(ROTATIONS) + 0.002)


class TestBlocks:
    MODEL = Blocks((300, 5, 0, 1000, 7))

    def test_arrays_are_blocks_of_their_own_and_small_ones_together_the_last(self):
        blocks = Rotation(smallest=256).blocks(self.MODEL)
        assert blocks.sizes == tuple(padded_size(size) for size in (300, 1000, 12))
        assert len(Rotation(smallest=6).blocks(self.MODEL)) == 4

    def test_long_arrays_are_cut_into_blocks_of_equal_size_with_a_name_each(self):
        named = replace(self.MODEL, members=tuple((name,) for name in "abcde"))
        blocks = Rotation(smallest=6, largest=400).blocks(named)
        assert blocks.sizes == (300, 250, 250, 250, 250, padded_size(7), padded_size(5))
        assert blocks.members == (
            ("a",),
            *((f"\0part {part} of 'd'",) for part in range(1, 5)),
            ("e",),
            ("b", "c"),
        )

    @pytest.mark.parametrize("axis", [0, 1], ids=["rows", "columns"])
    def test_the_parts_of_a_long_array_are_alike_however_its_rows_or_columns_differ(self, axis):
        shape = (1024, 128) if axis == 0 else (128, 1024)
        matrix = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        matrix[: shape[0] // 5] *= 10
        update = np.ravel(matrix if axis == 0 else matrix.T)
        draft = Draft(update, Blocks((2**17,)), 1, np.random.default_rng(0))
        Rotation(largest=2**14, seed=1).apply(draft)
        energies = [np.mean(np.square(part)) for part in draft.blocks.split(draft.vector)]
        assert len(energies) >= 8
        assert max(energies) < 1.3 * min(energies)

    @pytest.mark.parametrize("size", [2**22 + 1, 10**7, 50257 * 768, 10**9])
    def test_the_parts_of_a_long_array_fit_the_cache_and_are_padded_by_little(self, size):
        blocks = Rotation().blocks(Blocks((size,)))
        assert max(blocks.sizes) <= 2**18
        assert size <= blocks.dim < 1.005 * size
        assert Rotation().blocks(Blocks((2**22,))).sizes == (padded_size(2**22),)

    @pytest.mark.parametrize("largest", [10, 333, 1 << 22])
    @pytest.mark.parametrize("smallest", [1, 6, 256, 5000])
    def test_what_is_rotated_is_rotated_back_to_its_place(self, smallest, largest):
        rotation = Rotation(smallest, 1, largest)
        update = np.random.default_rng(0).standard_normal(self.MODEL.dim, dtype=np.float32)
        draft = Draft(update.copy(), self.MODEL, 1, np.random.default_rng(0))
        rotation.apply(draft)
        assert draft.blocks == rotation.blocks(self.MODEL)
        np.testing.assert_allclose(rotation.undo(draft.vector, self.MODEL), update, atol=1e-5)

    @pytest.mark.parametrize("kind", [np.uint8, np.uint64, np.int16])
    def test_sizes_may_be_numpys_integers(self, kind):
        blocks = Rotation(kind(6), 1, kind(100)).blocks(self.MODEL)
        assert blocks == Rotation(6, 1, 100).blocks(self.MODEL)

    def test_an_update_need_not_be_contiguous(self):
        update = np.random.default_rng(0).standard_normal(self.MODEL.dim, dtype=np.float32)
        drafts = [Draft(update[::-1], self.MODEL, 1, np.random.default_rng(0)) for _ in range(2)]
        drafts[0].replace(update[::-1].copy())
        for draft in drafts:
            Rotation(seed=1, largest=100).apply(draft)
        np.testing.assert_array_equal(drafts[0].vector, drafts[1].vector)

    def test_an_update_of_no_coordinates_is_rotated_to_one_of_none(self):
        draft = Draft(np.empty(0, np.float32), Blocks(()), 1, np.random.default_rng(0))
        Rotation(seed=1).apply(draft)
        assert draft.vector.size == len(draft.blocks) == 0
        assert Rotation(seed=1).undo(draft.vector, Blocks(())).size == 0
