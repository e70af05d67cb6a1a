"""What a server sees: apart from the sum, numbers that are uniform whatever clients vote.

Entropy is seeded here, so each test has one outcome. Its bound is one that holds in all but one of
10⁶ runs with another seed.

Nothing authenticates public keys: a server that replaces those of all neighbors of a client by its
own is all of them, and opens its votes. That is no part of what is promised.
"""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chisquare

from fedmedian.kernels.residues import sum_packed
from fedmedian.secure.cohort import in_pieces
from fedmedian.secure.masking import PART, SEED, SHARE, Key, add_mask
from fedmedian.secure.opening import Wanted
from fedmedian.secure.secrets import KEY_SIZE, SEALED_SIZE, join
from fedmedian.wire.scalars import WireError

DIM = 20_000

each_vote = pytest.mark.parametrize("vote", [0, 1])
each_kind = pytest.mark.parametrize("kind", [SHARE, PART])


def is_uniform(residues, bits):
    """Return whether χ² of the residues is one of uniform ones."""
    counts = np.bincount(residues & ((1 << bits) - 1), minlength=1 << bits)
    return chisquare(counts).pvalue > 1e-6


class Server:
    """A server that takes what it can get from a round, and removes the masks it then knows."""

    def __init__(self, sums):
        self.sums, self.masked = sums, sums.masked()
        self.near, self.keys = sums.cohort.neighbors, sums.cohort.keys
        self.seeds, self.shares = {}, {one: {} for one in self.near}
        self.parts = {one: {} for one in self.near}

    def ask(self, one, lost=(), in_sum=(), kind=SHARE):
        """Ask a client for the seeds with some neighbors, and its shares or parts of others."""
        near = self.near[one]
        what = bytes(SEED if o in lost else kind if o in in_sum else 0 for o in near)
        sealed = b"".join(
            in_pieces(self.masked[o].shares, SEALED_SIZE)[self.near[o].index(one)]
            for o in near
            if o in in_sum and kind == SHARE
        )
        told = [(o, code) for o, code in zip(near, what, strict=True) if code]
        secrets = in_pieces(self.sums.reveal(one, Wanted(what, sealed)), KEY_SIZE)
        for (other, code), secret in zip(told, secrets, strict=True):
            if code == SEED:
                self.seeds[frozenset({one, other})] = secret
            elif code == PART:
                self.parts[other][one] = secret
            else:
                self.shares[other][self.near[other].index(one)] = secret

    def collude(self, one):
        """Learn all that a client knows, which does not care for its own rules."""
        key = self.sums.clients[one]
        for other in self.near[one]:
            self.seeds[frozenset({one, other})] = key._seed(self.keys[other])
            mine = self.near[other].index(one)
            sealed = in_pieces(self.masked[other].shares, SEALED_SIZE)[mine]
            self.shares[other][mine] = key._unsealed(self.keys[other], sealed)
            self.parts[other][one] = key._part(self.keys[other], key.public)

    def bare(self, one):
        """Return a client's residues without the masks that the server knows."""
        residues = sum_packed([self.masked[one].body], DIM)
        for other in self.near[one]:
            seed = self.seeds.get(frozenset({one, other}))
            if seed is not None:
                add_mask(residues, seed, -1 if self.keys[one] < self.keys[other] else 1)
        if len(self.shares[one]) >= self.sums.cohort.circle.enough:
            add_mask(residues, join(self.shares[one]), -1)
        elif len(self.parts[one]) == len(self.near[one]):
            add_mask(residues, self.masked[one].seed_of(self.parts[one].values()), -1)
        return residues & ((1 << self.sums.cohort.bits) - 1)


@pytest.fixture
def server(round_of):
    """Makes the server of a round in which all clients vote the same everywhere."""

    def server(number, vote, question=(1, 0)):
        sums = round_of(number, DIM, question=question)
        sums.votes = {one: np.full(DIM, vote, np.uint8) for one in sums.votes}
        return Server(sums)

    return server


def test_votes_whose_masks_are_known_are_not_uniform(server):
    """The attacker of this file does get what it can, and the test notices."""
    one = server(10, 1)
    for other in range(10):
        one.collude(other)
    assert set(one.bare(0)) == {1}
    assert not is_uniform(one.bare(0), 4)


@each_vote
@pytest.mark.parametrize("number", [3, 10, 40])
def test_each_clients_masked_votes_are_uniform(number, vote, server):
    seen = server(number, vote)
    bits = seen.sums.cohort.bits
    for one in [*seen.near][:10]:
        assert is_uniform(seen.bare(one), bits)


def test_masked_votes_of_two_clients_are_independent(server):
    seen = server(5, 1)
    pair = seen.bare(0).astype(np.int64) << 3 | seen.bare(1)
    assert is_uniform(pair, 6)


def test_sealed_shares_and_commitments_are_uniform_bytes(server):
    seen = server(12, 1)
    sent = b"".join(one.shares + one.commitment for one in seen.masked.values())
    assert len(sent) > 25 * 256
    assert is_uniform(np.frombuffer(sent, np.uint8), 8)


@each_vote
@each_kind
@pytest.mark.parametrize("number", [4, 10])
def test_with_all_but_two_clients_on_its_side_it_sees_those_twos_sum_alone(
    number, kind, vote, server
):
    seen = server(number, vote)
    for one in range(2, number):
        seen.collude(one)
    for one in range(2):  # the honest ones help to open the sum
        seen.ask(one, in_sum=seen.near[one], kind=kind)
    first, second = seen.bare(0), seen.bare(1)
    bits = seen.sums.cohort.bits
    assert is_uniform(first, bits)
    assert is_uniform(second, bits)
    assert set((first + second) & ((1 << bits) - 1)) == {2 * vote}


@each_vote
def test_a_vote_that_comes_late_is_uniform_though_its_masks_with_others_are_open(vote, server):
    seen = server(10, vote)
    late, others = 9, range(9)
    for one in others:
        seen.ask(one, lost={late})
    for one in others:
        seen.ask(one, in_sum={*seen.near[one]} - {late})
    assert all(frozenset({one, late}) in seen.seeds for one in others)
    assert is_uniform(seen.bare(late), 4)
    for one in others:  # and nobody gives a share of its mask any more
        with pytest.raises(WireError, match="both in a sum and not in it"):
            seen.ask(one, in_sum=seen.near[one])


@each_vote
def test_so_it_is_if_fewer_than_enough_of_them_are_on_the_servers_side(vote, server):
    seen = server(10, vote)
    for one in range(9):
        seen.ask(one, lost={9})
    for one in range(seen.sums.cohort.circle.enough - 1):
        seen.collude(one)
    assert is_uniform(seen.bare(9), 4)


@each_vote
@each_kind
@pytest.mark.parametrize("called_lost", [1, 2, 3])
def test_a_server_that_calls_a_client_lost_to_some_and_in_the_sum_to_others_sees_nothing(
    called_lost, kind, vote, server
):
    seen = server(10, vote)
    victim, near = 0, seen.near[0]
    seen.ask(victim, lost=near[:called_lost])
    for other in near:
        is_lost = other not in near[:called_lost]
        in_sum = {*seen.near[other]} - ({victim} if is_lost else set())
        seen.ask(other, lost={victim} if is_lost else (), in_sum=in_sum, kind=kind)
    assert all(frozenset({victim, other}) in seen.seeds for other in near)
    assert is_uniform(seen.bare(victim), 4)


@each_vote
def test_masks_that_are_revealed_in_one_round_say_nothing_of_the_next(vote, server):
    first = server(6, vote)
    for one in range(6):
        first.ask(one, in_sum=first.near[one])
    for one in range(6):
        first.collude(one)
    second = Server(first.sums.another((2, 0)))
    second.seeds = first.seeds
    assert is_uniform(second.bare(0), 3)


@each_vote
def test_two_questions_of_a_round_have_other_masks(vote, server):
    seen = server(6, vote)
    again = Server(seen.sums.another((1, 1)))
    difference = seen.bare(0) - again.bare(0)
    assert is_uniform(difference, 3)


def test_the_same_question_again_is_refused_and_a_client_without_its_state_has_other_masks(
    server,
):
    seen = server(6, 1)
    with pytest.raises(WireError, match="masked before"):
        seen.sums.masked([0])
    place = seen.sums.cohort.places()[0]
    fresh = Key.new()
    assert fresh.public != seen.sums.clients[0].public
    again = fresh.takes(place, (1, 0)).mask(seen.sums.votes[0])
    difference = seen.bare(0) - sum_packed([again.body], DIM)
    assert is_uniform(difference, 3)


def test_a_restored_key_still_has_a_mask_of_its_own(server):
    """A client whose state is from before the round masks its votes anew, until a sum is open."""
    seen = server(6, 1)
    key = replace(seen.sums.clients[0], question=(-1, -1))
    again = key.takes(seen.sums.cohort.places()[0], (1, 0)).mask(seen.sums.votes[0])
    assert is_uniform(seen.bare(0) - sum_packed([again.body], DIM), 3)
