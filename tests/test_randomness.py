"""Random numbers follow from seed, partition and round, and without a seed from nothing."""

import random
from itertools import combinations

import numpy as np
import pytest

from fedmedian.randomness import client_rng, seeded_sampling, server_rng


def draw(rng):
    return rng.integers(0, 2**63, 4).tolist()


@pytest.mark.parametrize("seed", [0, 1, 2**64, 10**40])
def test_the_same_seed_partition_and_round_give_the_same_numbers(seed):
    assert draw(client_rng(seed, 3, 5)) == draw(client_rng(seed, 3, 5))
    assert draw(server_rng(seed, 5)) == draw(server_rng(seed, 5))


def test_seed_partition_round_and_side_each_give_numbers_of_their_own():
    generators = {
        "client": client_rng(7, 1, 2),
        "another seed": client_rng(8, 1, 2),
        "another partition": client_rng(7, 3, 2),
        "another round": client_rng(7, 1, 3),
        "partition and round swapped": client_rng(7, 2, 1),
        "a partition as large as a node's id": client_rng(7, 2**63 + 1, 2),
        "server": server_rng(7, 2),
        "server, another round": server_rng(7, 1),
    }
    drawn = {name: draw(rng) for name, rng in generators.items()}
    for one, other in combinations(drawn, 2):
        assert drawn[one] != drawn[other], (one, other)


def test_partitions_are_uncorrelated():
    noise = np.stack(
        [client_rng(0, partition, 1).standard_normal(10_000) for partition in range(5)]
    )
    off_diagonal = np.corrcoef(noise)[~np.eye(5, dtype=bool)]
    assert np.abs(off_diagonal).max() < 4 / np.sqrt(10_000)


def test_without_a_seed_nobody_can_draw_the_same_numbers_again():
    assert draw(client_rng(None, 0, 1)) != draw(client_rng(None, 0, 1))
    assert draw(server_rng(None, 1)) != draw(server_rng(None, 1))


class TestSampling:
    """Flower samples with Python's own generator."""

    def sample(self, seed, server_round):
        with seeded_sampling(seed, server_round):
            return random.sample(range(10**9), 3)

    def test_follows_from_seed_and_round(self):
        assert self.sample(10**40, 5) == self.sample(10**40, 5)
        samples = {tuple(self.sample(*key)) for key in ((1, 2), (2, 1), (1, 3), (12, 3), (1, 23))}
        assert len(samples) == 5

    def test_leaves_the_generator_as_it_was(self):
        state = random.getstate()
        self.sample(1, 2)
        assert random.getstate() == state

    def test_without_a_seed_goes_on_where_the_generator_is(self):
        assert self.sample(None, 1) != self.sample(None, 1)
