"""What a client reveals: its votes stay hidden from servers that lie and clients that cheat."""

from contextlib import suppress
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmedian.secure.cohort import Place, in_pieces
from fedmedian.secure.masking import NOTHING, PART, SEED, SHARE, Key, add_mask, sign_of_mask
from fedmedian.secure.opening import Wanted
from fedmedian.secure.secrets import KEY_SIZE, NO_SHARE, SEALED_SIZE, join
from fedmedian.wire.scalars import WireError

QUESTION = (1, 0)
VOTES = np.ones(100, np.uint8)


def another_name_of(public):
    """Another public key with the same secrets: X25519 ignores the highest bit."""
    return public[:-1] + bytes([public[-1] ^ 0x80])


def sealed_for(holder, owners, neighbors, masked):
    """The sealed shares that a holder has of some owners' masks."""
    pieces = {owner: in_pieces(masked[owner].shares, SEALED_SIZE) for owner in owners}
    return b"".join(pieces[owner][neighbors[owner].index(holder)] for owner in owners)


def lie_to(holder, lies, neighbors, masked):
    """The request that a server with these lies makes of a client."""
    shared = [o for o in neighbors[holder] if lies[holder, o] == SHARE]
    what = bytes(lies[holder, other] for other in neighbors[holder])
    return Wanted(what, sealed_for(holder, shared, neighbors, masked))


class TestTakingAPlace:
    @pytest.mark.parametrize("question", [(1, 0), (0, 5), (0, 0)])
    def test_a_question_is_answered_once_and_in_order(self, question, round_of):
        sums = round_of(4, 8)
        place = sums.cohort.places()[0]
        key = sums.clients[0].takes(place, (1, 0))
        for later in ((1, 1), (2, 0)):
            assert key.takes(place, later).question == later
        with pytest.raises(WireError, match=r"were masked before: the same masks twice"):
            key.takes(place, question)

    def test_a_client_is_not_its_own_neighbor(self, round_of):
        sums = round_of(4, 8)
        place = sums.cohort.places()[0]
        with pytest.raises(WireError, match="own neighbor"):
            sums.clients[1].takes(place, QUESTION)

    @pytest.mark.parametrize("public", [bytes(32), b"\1" + bytes(31)], ids=["zero", "one"])
    def test_a_neighbor_whose_secret_all_know_is_refused(self, public, round_of):
        place = round_of(4, 8).cohort.places()[0]
        with pytest.raises(WireError, match="public key of a client is not valid"):
            Key.new().takes(replace(place, neighbors=(*place.neighbors[1:], public)), QUESTION)

    def test_what_it_revealed_of_an_earlier_sum_does_not_matter_in_the_next(self, round_of):
        sums = round_of(5, 8)
        place = sums.cohort.places()[0]
        key = sums.clients[0].takes(place, QUESTION)
        key, _ = key.reveal(QUESTION, bytes([SEED, NOTHING, NOTHING, NOTHING]), b"")
        assert key.takes(place, (2, 0)).revealed == bytes(4)


class TestRevealing:
    @pytest.fixture
    def asked(self, round_of):
        """A round of seven clients that have voted, of which a sum needs five."""
        sums = round_of(7, 8)
        return sums, sums.masked()

    def refuse(self, sums, wanted, sealed=b"", question=QUESTION, *, match):
        key = sums.clients[0]
        with pytest.raises(WireError, match=match):
            key.reveal(question, bytes(wanted), sealed)

    @pytest.mark.parametrize("question", [(1, 1), (2, 0), (0, 0)])
    def test_of_another_question_is_refused(self, question, asked):
        match = f"no votes in a sum of round {question[0]}, question {question[1]}"
        self.refuse(asked[0], [NOTHING] * 6, question=question, match=match)

    def test_before_it_has_voted_is_refused(self):
        with pytest.raises(WireError, match="has no votes in a sum"):
            Key.new().reveal((-1, -1), b"", b"")

    @pytest.mark.parametrize("wanted", [[], [SEED] * 5, [SEED] * 7, [4] * 6, [255] + [SEED] * 5])
    def test_of_others_than_its_neighbors_is_refused(self, wanted, asked):
        self.refuse(asked[0], wanted, match="0 to 3 of 6 neighbors")

    @pytest.mark.parametrize("shares", [1, 2, 3])
    def test_shares_of_too_few_are_refused(self, shares, asked):
        wanted = [SHARE] * shares + [NOTHING] * (6 - shares)
        self.refuse(asked[0], wanted, bytes(SEALED_SIZE * shares), match="only .* in the sum")

    @pytest.mark.parametrize("parts", [1, 2, 3])
    def test_parts_of_too_few_are_refused(self, parts, asked):
        wanted = [PART] * parts + [NOTHING] * (6 - parts)
        self.refuse(asked[0], wanted, match=f"only {parts} neighbors are in the sum")

    def test_after_a_part_a_share_is_given_and_no_seed(self, asked):
        sums, masked = asked
        near = sums.cohort.neighbors
        sums.reveal(0, Wanted(bytes([PART] * 6)))
        self.refuse(sums, [SEED] + [NOTHING] * 5, match="both in a sum and not in it")
        shares = Wanted(bytes([SHARE] * 6), sealed_for(0, near[0], near, masked))
        assert NO_SHARE not in in_pieces(sums.reveal(0, shares), KEY_SIZE)

    def test_after_a_seed_no_part_is_given(self, asked):
        sums, _ = asked
        sums.reveal(0, Wanted(bytes([SEED] + [NOTHING] * 5)))
        self.refuse(sums, [PART] * 6, match="both in a sum and not in it")

    @pytest.mark.parametrize("seeds", [3, 6])
    def test_seeds_of_too_many_are_refused(self, seeds, asked):
        wanted = [SEED] * seeds + [NOTHING] * (6 - seeds)
        self.refuse(asked[0], wanted, match=f"{seeds} neighbors are not in the sum, at most 2 of 6")

    def test_seeds_of_too_many_are_refused_one_by_one_too(self, asked):
        sums, _ = asked
        for index in range(2):
            wanted = bytes(SEED if i == index else NOTHING for i in range(6))
            sums.clients[0], _ = sums.clients[0].reveal(QUESTION, wanted, b"")
        self.refuse(sums, [NOTHING] * 5 + [SEED], match="3 neighbors are not in the sum")

    @pytest.mark.parametrize("first", [SEED, SHARE])
    def test_of_one_neighbor_both_secrets_are_refused(self, first, asked):
        sums, masked = asked
        lost = sums.cohort.neighbors[0][0]
        lies = {(0, other): SHARE for other in sums.cohort.neighbors[0]}
        requests = {
            first: lie_to(0, {**lies, (0, lost): first}, sums.cohort.neighbors, masked),
            SEED + SHARE - first: lie_to(
                0, {**lies, (0, lost): SEED + SHARE - first}, sums.cohort.neighbors, masked
            ),
        }
        before, after = requests.values()
        sums.reveal(0, before)
        self.refuse(sums, after.of_neighbors, after.sealed, match="both in a sum and not in it")
        sums.reveal(0, before)  # the same again tells nothing new

    @pytest.mark.parametrize("sealed", [b"", bytes(SEALED_SIZE * 3), bytes(SEALED_SIZE * 4 + 1)])
    def test_without_a_sealed_share_for_each_is_refused(self, sealed, asked):
        match = "4 sealed shares|pieces of 48"
        self.refuse(asked[0], [SHARE] * 4 + [NOTHING] * 2, sealed, match=match)

    def test_a_share_that_was_not_sealed_for_it_is_answered_by_none(self, asked):
        sums, masked = asked
        near = sums.cohort.neighbors
        good = sealed_for(0, near[0], near, masked)
        for_another = sealed_for(near[0][1], [near[0][0]], near, masked)
        for wrong in (bytes(SEALED_SIZE), for_another, good[SEALED_SIZE : 2 * SEALED_SIZE]):
            secrets = sums.reveal(0, Wanted(bytes([SHARE] * 6), wrong + good[SEALED_SIZE:]))
            first, *others = in_pieces(secrets, KEY_SIZE)
            assert first == NO_SHARE
            assert NO_SHARE not in others

    @given(wanted=st.binary(max_size=8), sealed=st.binary(max_size=100))
    def test_whatever_a_server_asks_is_answered_or_refused_in_words(self, wanted, sealed, round_of):
        sums = round_of(4, 8)
        sums.masked()
        for asked in (wanted, bytes(code % 3 for code in wanted)):
            with suppress(WireError):
                _, secrets = sums.clients[0].reveal(QUESTION, asked, sealed)
                assert len(secrets) == KEY_SIZE * sum(map(bool, asked))


class TestServerThatLies:
    """It calls clients lost to some, and in the sum to others: see what it then knows."""

    def knowledge(self, sums, masked, lies):
        """Return the pairs whose seed, and the holders whose share of a mask, are revealed."""
        near = sums.cohort.neighbors
        seeds, shares = set(), {one: set() for one in near}
        for one, others in near.items():
            try:
                secrets = sums.reveal(one, lie_to(one, lies, near, masked))
            except WireError:
                continue
            told = [other for other in others if lies[one, other]]
            for other, secret in zip(told, in_pieces(secrets, KEY_SIZE), strict=True):
                if lies[one, other] == SEED:
                    seeds.add(frozenset({one, other}))
                else:
                    assert secret != NO_SHARE
                    shares[other].add(one)
        return seeds, shares

    def openable(self, sums, seeds, shares, most):
        """Return the groups of at most so many clients whose sum the server can open."""
        near, enough = sums.cohort.neighbors, sums.cohort.circle.enough
        bare = [one for one in near if len(shares[one]) >= enough]
        return [
            group
            for size in range(1, most + 1)
            for group in combinations(bare, size)
            if all(
                frozenset({one, other}) in seeds
                for one in group
                for other in near[one]
                if other not in group
            )
        ]

    @pytest.mark.parametrize("number", [4, 5, 6, 7, 9])
    @given(data=st.data())
    def test_opens_no_single_vote_and_no_sum_of_few(self, number, data, round_of):
        sums = round_of(number, 8)
        masked, near = sums.masked(), sums.cohort.neighbors
        # Each client is told of as many neighbors that they are lost as it accepts.
        most = number - 1 - sums.cohort.circle.enough
        told = st.lists(st.integers(0, number - 1), max_size=most, unique=True)
        lost = {one: data.draw(told) for one in near}
        lies = {(a, b): SEED if b in lost[a] else SHARE for a in near for b in near[a]}
        seeds, shares = self.knowledge(sums, masked, lies)
        fewest = 2 * sums.cohort.circle.enough - (number - 1) + 1
        assert not self.openable(sums, seeds, shares, min(fewest - 1, number))

    @pytest.mark.parametrize("number", range(5, 13))
    def test_that_wants_one_clients_vote_gets_its_seeds_or_its_mask(self, number, round_of):
        """The best lies: the victim hears that as many are lost as it accepts; those help."""
        sums = round_of(number, 8)
        masked, near = sums.masked(), sums.cohort.neighbors
        enough, victim = sums.cohort.circle.enough, 0
        lost = near[victim][: number - 1 - enough]
        lies = {(a, b): SHARE for a in near for b in near[a]}
        lies |= {(victim, other): SEED for other in lost}
        lies |= {(other, victim): SEED for other in near[victim] if other not in lost}
        seeds, shares = self.knowledge(sums, masked, lies)
        assert all(frozenset({victim, other}) in seeds for other in near[victim])
        assert len(shares[victim]) == len(lost) < enough

    @pytest.mark.parametrize("number", [3, 4, 7, 10, 12])
    def test_opens_a_sum_of_as_many_as_the_shares_leave_it(self, number, round_of):
        """With s shares of n neighbors it can be 2s - n + 1 clients, and no fewer."""
        sums = round_of(number, 8)
        masked, near = sums.masked(), sums.cohort.neighbors
        enough = sums.cohort.circle.enough
        fewest = 2 * enough - (number - 1) + 1
        group, others = range(fewest), range(fewest, number)
        lies = {(a, b): SHARE for a in near for b in near[a]}
        for one in group:  # of the others half reveal their share of its mask, half the seed
            called_lost = {
                fewest + (one + i) % max(len(others), 1) for i in range(len(others) // 2)
            }
            lies |= {(one, other): SEED for other in called_lost}
            lies |= {(other, one): SEED for other in others if other not in called_lost}
        seeds, shares = self.knowledge(sums, masked, lies)
        assert not self.openable(sums, seeds, shares, fewest - 1)
        assert {*group} in map(set, self.openable(sums, seeds, shares, fewest))

    def test_that_calls_all_others_lost_is_refused_by_the_client(self, round_of):
        sums = round_of(10, 8)
        sums.masked()
        with pytest.raises(WireError, match="9 neighbors are not in the sum, at most 3 of 9"):
            sums.reveal(0, Wanted(bytes([SEED] * 9)))


class TestKeysOfOneSecret:
    """A cheating client poses as a neighbor by another name of its public key, and drops out."""

    @pytest.fixture
    def posed(self, round_of):
        """A client with a neighbor, and another that poses as that neighbor; and its masks."""
        sums = round_of(5, 8)
        own, victim, third, fourth, _ = sums.clients.values()
        posing = another_name_of(victim.public)
        place = Place(3, 3, (victim.public, third.public, fourth.public, posing))
        own = own.takes(place, QUESTION)
        return own, victim, own.mask(VOTES), place

    def test_the_seed_of_the_one_that_poses_is_not_its_neighbors(self, posed):
        own, victim, _, place = posed
        _, revealed = own.reveal(QUESTION, bytes([NOTHING, NOTHING, NOTHING, SEED]), b"")
        of_own = Place(3, 3, (own.public, *place.neighbors[1:3], Key.new().public))
        _, seed = victim.takes(of_own, QUESTION).reveal(QUESTION, bytes([SEED, 0, 0, 0]), b"")[:2]
        assert revealed != seed

    def test_the_share_of_the_one_that_poses_is_sealed_with_another_key(self, posed):
        own, victim, masked, _ = posed
        sealed = in_pieces(masked.shares, SEALED_SIZE)
        # Both sealed with one key, their difference would be that of the two shares.
        assert (
            victim.takes(Place(2, 2, (own.public, Key.new().public)), QUESTION)._unsealed(
                own.public, sealed[3]
            )
            == NO_SHARE
        )


class TestStateWiped:
    def test_a_client_that_has_lost_its_state_has_another_key_and_other_masks(self, round_of):
        sums = round_of(4, 4000)
        place = sums.cohort.places()[0]
        before, after = (key.takes(place, QUESTION) for key in (sums.clients[0], Key.new()))
        assert before.public != after.public
        first, second = before.mask(VOTES), after.mask(VOTES)
        assert (first.body != second.body).mean() > 0.9
        assert first.commitment != second.commitment

    def test_the_masks_of_one_question_differ_even_if_a_key_is_restored(self, round_of):
        """A restored key repeats its neighbors' masks, but never its own one."""
        sums = round_of(4, 4000)
        key = sums.clients[0].takes(sums.cohort.places()[0], QUESTION)
        first, second = key.mask(VOTES[:0]), key.mask(VOTES[:0])
        assert first.commitment != second.commitment
        assert first.shares != second.shares


def test_enough_shares_open_the_commitment(round_of):
    sums = round_of(7, 8)
    masked, near = sums.masked(), sums.cohort.neighbors
    shares = {}
    for holder in near[0]:
        secrets = sums.reveal(
            holder,
            Wanted(bytes([SHARE] * 6), sealed_for(holder, near[holder], near, masked)),
        )
        piece = in_pieces(secrets, KEY_SIZE)[near[holder].index(0)]
        shares[near[0].index(holder)] = piece
    some = dict([*shares.items()][: sums.cohort.circle.enough])
    assert masked[0].is_seed(join(some))


def test_all_parts_give_the_seed_and_fewer_another(round_of):
    sums = round_of(7, 8)
    masked, near = sums.masked(), sums.cohort.neighbors
    parts = []
    for holder in near[0]:
        secrets = sums.reveal(holder, Wanted(bytes([PART] * 6)))
        parts.append(in_pieces(secrets, KEY_SIZE)[near[holder].index(0)])
    assert masked[0].is_seed(masked[0].seed_of(parts))
    assert not masked[0].is_seed(masked[0].seed_of(parts[1:]))
    assert not masked[1].is_seed(masked[0].seed_of(parts))


def test_masks_cancel_only_among_clients_that_are_asked_the_same():
    """Else a server could ask all others for votes without noise, and subtract them."""
    keys = [Key.new() for _ in range(3)]

    def total(*about):
        sums = np.zeros(64, np.uint8)
        for key, subject in zip(keys, about, strict=True):
            others = tuple(one.public for one in keys if one is not key)
            taken = key.takes(Place(2, 2, others), QUESTION, subject)
            for public in others:
                add_mask(sums, taken._seed(public), sign_of_mask(taken.public, public))
        return sums

    assert not total(b"noise", b"noise", b"noise").any()
    assert total(b"noise", b"none", b"none").any()
