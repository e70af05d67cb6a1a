"""The server's part: the sum of plain votes bit for bit, or nothing at all."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmedian.secure import masking, opening
from fedmedian.secure.cohort import Place, SecureSum
from fedmedian.secure.masking import Masked
from fedmedian.secure.opening import SumError, require_masked
from fedmedian.secure.secrets import KEY_SIZE, SEALED_SIZE, split
from fedmedian.wire.scalars import WireError

numbers = st.integers(3, 12)
dims = st.sampled_from([0, 1, 7, 8, 9, 50])
thresholds = st.sampled_from([0.51, 2 / 3, 0.9, 1.0])
few = st.floats(0, 0.4)


def some_of(rng, clients, share):
    """Return about a share of the clients."""
    return {one for one in clients if rng.random() < share}


def garbled(secrets):
    return bytes(byte ^ 0xFF for byte in secrets)


class TestSum:
    @given(
        number=numbers, dim=dims, threshold=thresholds, seed=st.integers(0, 99),
        voting=few, seeds=few, shares=few,
    )  # fmt: skip
    def test_is_that_of_plain_votes_whoever_drops_out_when_or_there_is_none(
        self, number, dim, threshold, seed, voting, seeds, shares, round_of
    ):
        sums, rng = round_of(number, dim, SecureSum(threshold), seed), np.random.default_rng(seed)
        silent = {
            "seeds": some_of(rng, range(number), seeds),
            "shares": some_of(rng, range(number), shares),
        }
        masked = sums.masked(set(range(number)) - some_of(rng, range(number), voting))
        try:
            total = sums.open(masked, sums.asking(silent))
        except SumError:
            missing = len({*silent["seeds"], *silent["shares"]}) + number - len(masked)
            assert number - missing < sums.least
        else:
            assert len(total.members) >= sums.least
            assert {*total.members} <= {*masked}
            assert total.counts.dtype == sums.plain(total.members).dtype
            np.testing.assert_array_equal(total.counts, sums.plain(total.members))

    @given(
        number=st.integers(8, 30), neighbors=st.sampled_from([4, 6]), seed=st.integers(0, 99),
        voting=st.floats(0, 0.2), seeds=st.floats(0, 0.2),
    )  # fmt: skip
    def test_of_clients_with_few_neighbors_is_that_of_plain_votes_or_there_is_none(
        self, number, neighbors, seed, voting, seeds, round_of, ring
    ):
        circle = ring(number, neighbors, SecureSum(0.51).least(number))
        sums = round_of(number, 9, seed=seed, circle=circle)
        rng = np.random.default_rng(seed)
        masked = sums.masked(set(range(number)) - some_of(rng, range(number), voting))
        silent = some_of(rng, range(number), seeds)
        try:
            total = sums.open(masked, sums.asking({"seeds": silent, "shares": ()}))
        except SumError:
            assert number - len(masked) + len(silent) > 0
        else:
            assert len(total.members) >= sums.least
            np.testing.assert_array_equal(total.counts, sums.plain(total.members))

    @pytest.mark.parametrize("number", [254, 255, 256, 300])
    def test_of_many_clients_takes_residues_of_two_bytes(self, number, round_of, ring):
        sums = round_of(number, 9, circle=ring(number, 4, number - 3))
        masked = sums.masked(range(1, number))
        total = sums.open(masked)
        assert total.counts.dtype == (np.uint8 if number < 256 else np.dtype("<u2"))
        np.testing.assert_array_equal(total.counts, sums.plain(total.members))
        assert len(total.members) == number - 1

    @pytest.mark.parametrize("vote", [0, 1])
    def test_of_equal_votes_does_not_wrap_around(self, vote, round_of):
        for number in (3, 4, 7, 8, 15, 16):
            sums = round_of(number, 3)
            sums.votes = {one: np.full(3, vote, np.uint8) for one in sums.votes}
            assert sums.open(sums.masked()).counts.tolist() == [vote * number] * 3

    def test_has_whoever_voted_even_if_it_then_falls_silent(self, round_of):
        sums = round_of(10, 9)
        total = sums.open(sums.masked(), sums.asking({"seeds": (), "shares": {0, 1, 2}}))
        assert len(total.members) == 10

    def test_lacks_a_client_that_does_not_reveal_its_masks_with_the_lost(self, round_of):
        sums = round_of(10, 9)
        total = sums.open(sums.masked(range(9)), sums.asking({"seeds": {0}, "shares": ()}))
        assert {*total.members} == {*range(1, 9)}
        np.testing.assert_array_equal(total.counts, sums.plain(range(1, 9)))

    def test_lacks_a_client_that_reveals_only_some_of_its_masks_with_the_lost(self, round_of):
        sums = round_of(10, 50)
        silent, usual = iter([{1}, {2}]), sums.asking()

        def ask(wanted):
            gone = next(silent, ())
            return usual({one: what for one, what in wanted.items() if one not in gone})

        total = sums.open(sums.masked(range(1, 10)), ask)
        assert {*total.members} == {*range(3, 10)}
        np.testing.assert_array_equal(total.counts, sums.plain(total.members))

    def test_lacks_a_client_with_too_few_neighbors_left_to_open_its_mask(self, round_of, ring):
        sums = round_of(40, 9, circle=ring(40, 20, 25))
        assert sums.cohort.circle.enough == 11
        lost = {1, 7, 8, 9, 10, 30, 31, 32, 33, 39}
        total = sums.open(sums.masked({*range(40)} - lost))
        assert {*range(40)} - {*total.members} == {0, *lost}
        np.testing.assert_array_equal(total.counts, sums.plain(total.members))

    def test_is_opened_again_in_the_next_round_with_the_same_keys(self, round_of):
        sums = round_of(6, 9)
        for question in ((1, 0), (1, 1), (2, 0), (10, 0)):
            later = sums.another(question)
            np.testing.assert_array_equal(later.open(later.masked()).counts, sums.plain(range(6)))


class TestLastStage:
    """Parts open the own masks if all clients are there, and shares otherwise."""

    def stages(self, sums, masked, ask=None):
        total = sums.open(masked, ask)
        np.testing.assert_array_equal(total.counts, sums.plain(total.members))
        return [stage for stage, _ in sums.requests]

    def test_of_all_clients_takes_one_exchange(self, round_of):
        sums = round_of(10, 9)
        assert self.stages(sums, sums.masked()) == ["parts"]

    def test_asks_for_shares_where_a_client_is_lost(self, round_of):
        sums = round_of(10, 9)
        assert self.stages(sums, sums.masked(range(9))) == ["seeds", "shares"]

    def test_asks_those_that_answered_for_shares_where_one_does_not(self, round_of):
        sums = round_of(10, 9)
        silent = {"seeds": (), "shares": {3}}
        assert self.stages(sums, sums.masked(), sums.asking(silent)) == ["parts", "shares"]
        (_, wanted) = sums.requests[-1]
        assert {*wanted} == {*range(10)} - {3}

    @pytest.mark.parametrize(
        "change", [garbled, lambda secrets: secrets[1:]], ids=["wrong", "short"]
    )
    def test_asks_for_shares_where_a_part_is_wrong_and_says_so(self, change, round_of, caplog):
        sums = round_of(10, 9)
        ask = sums.asking(change=lambda one, secrets: change(secrets) if one == 3 else secrets)
        assert self.stages(sums, sums.masked(), ask) == ["parts", "shares"]
        assert "is opened with shares, which takes longer" in caplog.text


class TestTooFew:
    @given(number=numbers, dim=dims, threshold=thresholds, data=st.data())
    def test_nothing_is_asked_and_nothing_opened(self, number, dim, threshold, data, round_of):
        sums = round_of(number, dim, SecureSum(threshold))
        voting = data.draw(st.integers(0, sums.least - 1))
        with pytest.raises(SumError, match=f"^{voting} clients are left of {number}, .* needs"):
            sums.open(sums.masked(range(voting)))
        assert sums.requests == []

    def test_once_too_few_are_left_no_share_is_asked_for(self, round_of):
        sums = round_of(10, 9)
        masked = sums.masked(range(8))
        with pytest.raises(SumError, match=r"^6 clients are left of 10, the sum needs 7$"):
            sums.open(masked, sums.asking({"seeds": {0, 1}, "shares": ()}))
        assert {stage for stage, _ in sums.requests} == {"seeds"}

    def test_too_few_shares_open_nothing(self, round_of):
        sums = round_of(10, 9)
        silent = {"seeds": (), "shares": {*range(4)}}
        with pytest.raises(
            SumError, match=r"5 shares of the mask of client \d were revealed, 6 are"
        ):
            sums.open(sums.masked(), sums.asking(silent))


class TestWrongAnswers:
    """A wrong one spoils the sum or does not: it never raises anything else."""

    def test_one_clients_wrong_shares_are_found_and_left_out(self, round_of):
        sums = round_of(10, 9)
        ask = sums.asking(change=lambda one, secrets: garbled(secrets) if one == 3 else secrets)
        np.testing.assert_array_equal(sums.open(sums.masked(), ask).counts, sums.plain(range(10)))

    def test_too_many_wrong_shares_spoil_the_sum(self, round_of):
        sums = round_of(10, 9)
        ask = sums.asking(change=lambda one, secrets: garbled(secrets))
        with pytest.raises(SumError, match=r"shares of the mask of client \d are wrong"):
            sums.open(sums.masked(), ask)

    @pytest.mark.parametrize("wrong", [b"", b"short", bytes(KEY_SIZE * 9 + 1), bytes(10_000)])
    def test_shares_or_seeds_of_a_wrong_length_are_as_good_as_none(self, wrong, round_of):
        sums = round_of(10, 9)
        ask = sums.asking(change=lambda one, secrets: wrong if one == 3 else secrets)
        total = sums.open(sums.masked(range(9)), ask)
        assert {*total.members} == {*range(9)} - {3}
        np.testing.assert_array_equal(total.counts, sums.plain(total.members))

    def test_another_commitment_spoils_the_sum(self, round_of):
        sums = round_of(5, 9)
        masked = sums.masked()
        masked[0] = replace(masked[0], commitment=bytes(2 * KEY_SIZE))
        with pytest.raises(SumError, match=r"shares of the mask of client \d are wrong"):
            sums.open(masked)

    def test_wrong_votes_are_noticed_where_they_make_a_count_that_cannot_be(self, round_of):
        sums = round_of(10, 1000)
        masked = sums.masked()
        masked[0] = replace(masked[0], body=np.bitwise_xor(masked[0].body, 0xA5))
        with pytest.raises(SumError, match="not one of votes: a client has sent something else"):
            sums.open(masked)

    @given(data=st.data(), number=st.integers(3, 6))
    def test_whatever_one_client_sends_there_is_a_sum_or_a_reason(self, data, number, round_of):
        sums = round_of(number, 9, SecureSum(0.51))
        places, near = sums.cohort.places(), number - 1
        body = data.draw(st.binary(min_size=2 * places[0].bits, max_size=2 * places[0].bits))
        hostile = Masked(
            np.frombuffer(body, np.uint8).reshape(places[0].bits, 2),
            data.draw(st.binary(min_size=SEALED_SIZE * near, max_size=SEALED_SIZE * near)),
            data.draw(st.binary(min_size=2 * KEY_SIZE, max_size=2 * KEY_SIZE)),
            b"",
        )
        require_masked(hostile, places[0], 9)
        wrong = data.draw(st.binary(max_size=KEY_SIZE * near))
        ask = sums.asking(change=lambda one, secrets: wrong if one == 0 else secrets)
        with pytest.raises(SumError):  # its own mask cannot be removed
            sums.open({**sums.masked(), 0: hostile}, ask)


class TestLiars:
    """Wrong shares are found once, and for all clients: the server's work stays linear."""

    @pytest.fixture
    def joins(self, monkeypatch):
        """Lists the seeds that shares are joined to."""
        join, found = opening.join, []

        def counted(shares):
            found.append(join(shares))
            return found[-1]

        monkeypatch.setattr(opening, "join", counted)
        return found

    def lying(self, sums, liars):
        """Return how the server asks where some clients reveal noise."""
        rng = np.random.default_rng(0)
        noise = lambda one, secrets: rng.bytes(len(secrets)) if one in liars else secrets  # noqa: E731
        return sums.asking(change=noise)

    def require_found(self, sums, liars):
        total = sums.open(sums.masked(), self.lying(sums, liars))
        np.testing.assert_array_equal(total.counts, sums.plain(total.members))
        assert {*total.wrong} == {*liars}

    @pytest.mark.parametrize("voting", [10, 9])
    def test_without_them_each_seed_is_joined_once_and_nobody_named(self, voting, joins, round_of):
        sums = round_of(10, 9)
        total = sums.open(
            sums.masked(range(voting)), sums.asking(silent={"seeds": (), "shares": {0}})
        )
        assert len(joins) == voting
        assert total.wrong == {}

    @pytest.mark.parametrize(
        ("number", "place"),
        [(10, 0), (10, 5), (10, "enough"), (10, "last"), (10, "enough - 1"), (30, "enough - 1")],
    )
    def test_one_costs_at_most_one_more_join_for_each_client(self, number, place, joins, round_of):
        sums = round_of(number, 9, SecureSum(0.8))
        enough = sums.cohort.circle.enough
        places = {"enough - 1": enough - 1, "enough": enough, "last": number - 1}
        self.require_found(sums, {places.get(place, place)})
        assert len(joins) <= 2 * number

    @pytest.mark.parametrize("liars", [{0, 1}, {0, 5}, {2, 6}, {3, 9}, {8, 9}], ids=str)
    def test_a_fifth_of_ten_are_named_wherever_they_are(self, liars, joins, round_of):
        self.require_found(round_of(10, 9, SecureSum(0.8)), liars)
        assert len(joins) <= 6 * 10

    @pytest.mark.parametrize(
        ("number", "liars"), [(15, 3), (30, 2), pytest.param(100, 10, marks=pytest.mark.slow)]
    )
    def test_as_many_as_the_docs_say_are_named(self, number, liars, joins, round_of):
        self.require_found(
            round_of(number, 9, SecureSum(0.8)), {*range(0, number, number // liars)}
        )
        assert len(joins) <= 400 + 2 * number

    @pytest.mark.parametrize("number", [30, 60])
    def test_of_many_a_fifth_cost_joins_in_proportion(self, number, joins, round_of, ring):
        """A client has few of them among its neighbors, and clients with none tell who lies."""
        sums = round_of(number, 9, circle=ring(number, 20, SecureSum(0.51).least(number)))
        self.require_found(sums, {*range(0, number, 5)})
        assert len(joins) <= 5 * number

    def test_one_that_lies_about_some_clients_only_costs_no_more(self, joins, round_of):
        sums = round_of(20, 9, SecureSum(0.8))

        def half(one, secrets):
            return (
                secrets[: 9 * KEY_SIZE] + garbled(secrets[9 * KEY_SIZE :]) if one == 3 else secrets
            )

        total = sums.open(sums.masked(), sums.asking(change=half))
        np.testing.assert_array_equal(total.counts, sums.plain(range(20)))
        assert {*total.wrong} == {3}
        assert len(joins) <= 2 * 20

    def test_whose_share_another_client_sealed_wrong_is_named_too(
        self, joins, round_of, ring, monkeypatch
    ):
        """Nobody can tell which of the two lies."""
        sums = round_of(10, 9, circle=ring(10, 20, 8))
        masked = sums.masked(range(1, 9))

        def wrong(*about):
            first, *others = split(*about)
            return [garbled(first), *others]

        monkeypatch.setattr(masking, "split", wrong)
        total = sums.open(sums.masked([0]) | masked)
        np.testing.assert_array_equal(total.counts, sums.plain(range(9)))
        assert total.wrong == {1: 0}

    def test_a_client_whose_shares_do_not_give_its_seed_costs_few_joins(self, joins, round_of):
        sums = round_of(20, 9, SecureSum(0.8))
        masked = sums.masked()
        masked[0] = replace(masked[0], commitment=bytes(2 * KEY_SIZE))
        with pytest.raises(SumError, match="shares of the mask of client 0 are wrong"):
            sums.open(masked)
        assert len(joins) <= 20 + 40 + 12  # those of others, and at most so many in vain

    @pytest.mark.parametrize(("number", "most"), [(10, 36), (20, 400), (50, 500)])
    def test_where_all_lie_the_search_is_bounded(self, number, most, round_of, monkeypatch):
        rng, joins = np.random.default_rng(0), []
        monkeypatch.setattr(opening, "join", lambda shares: joins.append(0) or rng.bytes(KEY_SIZE))
        sums = round_of(number, 9, SecureSum(0.8))
        with pytest.raises(SumError, match=r"shares of the mask of client \d+ are wrong"):
            sums.open(sums.masked(), self.lying(sums, {*range(number)}))
        assert len(joins) == most


class TestForm:
    @pytest.mark.parametrize(
        "change",
        [
            {"body": np.zeros((2, 2), np.uint8)},
            {"body": np.zeros((3, 1), np.uint8)},
            {"body": np.zeros(6, np.uint8)},
            {"body": np.zeros((3, 2), np.int8)},
            {"body": np.zeros((3, 2), np.float64)},
            {"body": np.zeros((3, 2), object)},
            {"shares": b""},
            {"shares": bytes(SEALED_SIZE * 5)},
            {"shares": bytes(SEALED_SIZE * 4 + 1)},
            {"commitment": b""},
            {"commitment": bytes(2 * KEY_SIZE + 1)},
        ],
        ids=str,
    )
    def test_masked_votes_of_another_form_are_refused(self, change):
        place = Place(3, 3, tuple(bytes([index]) * KEY_SIZE for index in range(4)))
        shares, commitment = bytes(SEALED_SIZE * 4), bytes(2 * KEY_SIZE)
        fine = Masked(np.zeros((3, 2), np.uint8), shares, commitment, b"")
        require_masked(fine, place, 9)
        with pytest.raises(WireError, match=r"uint8 of shape \(3, 2\)|share for each|commitment"):
            require_masked(replace(fine, **change), place, 9)

    def test_a_client_is_sent_sealed_shares_of_its_neighbors_and_nothing_else(self, round_of):
        sums = round_of(6, 9)
        sums.open(sums.masked(range(5)))
        assert {stage for stage, _ in sums.requests} == {"seeds", "shares"}
        for stage, wanted in sums.requests:
            for one in wanted.values():
                assert len(one.of_neighbors) == 5
                assert len(one.sealed) == (4 * SEALED_SIZE if stage == "shares" else 0)
