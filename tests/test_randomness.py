"""Random numbers follow from seed, partition and round, and without a seed from nothing.

Where there is no seed, two draws of 90 bits or more are alike in none of 10⁶ runs.
"""

import random
import sys
from itertools import combinations

import numpy as np
import pytest

from fedmedian.chacha import ChaCha20
from fedmedian.randomness import (
    client_rng,
    secret_rng,
    seed_of_pass,
    seeded_sampling,
    server_rng,
)


def draw(rng):
    return rng.integers(0, 2**63, 4).tolist()


def test_the_same_seed_partition_and_round_give_the_same_numbers():
    for seed in (0, 1, 2**64, 10**40):
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


def test_the_first_pass_of_a_round_has_the_strategys_seed_and_each_other_one_of_its_own():
    passes = [(number, later) for number in (1, 2, 3) for later in (1, 2)]
    assert len({seed_of_pass(7, *one) for one in passes} | {7}) == 7
    assert seed_of_pass(7, 3, 0) == 7
    assert seed_of_pass(7, 3, 2) == seed_of_pass(7, 3, 2) < 2**63
    assert seed_of_pass(None, 3, 2) is None


def test_the_noise_of_two_partitions_is_uncorrelated():
    noise = np.stack(
        [client_rng(0, partition, 1).standard_normal(10_000) for partition in range(5)]
    )
    off_diagonal = np.corrcoef(noise)[~np.eye(5, dtype=bool)]
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(10_000)


def test_without_a_seed_nobody_can_draw_the_same_numbers_again():
    assert draw(client_rng(None, 0, 1)) != draw(client_rng(None, 0, 1))
    assert draw(server_rng(None, 1)) != draw(server_rng(None, 1))


def test_secret_numbers_come_of_a_cipher_whose_key_is_never_the_same_twice():
    one, other = secret_rng(), secret_rng()
    assert isinstance(one.bit_generator, ChaCha20)
    assert draw(one) != draw(other)


def test_secret_numbers_say_what_they_need_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "randomgen", None)
    monkeypatch.delitem(sys.modules, "fedmedian.chacha")
    with pytest.raises(ImportError, match=r"pip install 'fedmedian\[privacy\]'"):
        secret_rng()


def sample(seed, server_round, **phase):
    """Samples as Flower does, with Python's own generator."""
    with seeded_sampling(seed, server_round, **phase):
        return random.sample(range(10**9), 3)


def test_seeded_sampling_follows_from_seed_and_round():
    assert sample(10**40, 5) == sample(10**40, 5)
    samples = {tuple(sample(*key)) for key in ((1, 2), (2, 1), (1, 3), (12, 3), (1, 23))}
    assert len(samples) == 5


def test_nodes_that_evaluate_are_drawn_apart_from_those_that_train():
    assert sample(1, 2, evaluates=True) == sample(1, 2, evaluates=True)
    assert sample(1, 2, evaluates=True) != sample(1, 2)


def test_seeded_sampling_leaves_pythons_generator_as_it_was():
    state = random.getstate()
    sample(1, 2)
    assert random.getstate() == state


def test_sampling_without_a_seed_continues_where_pythons_generator_is():
    assert sample(None, 1) != sample(None, 1)
