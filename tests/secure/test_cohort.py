"""Who masks whose votes, how many must agree to open a sum, and what each client is told."""

from contextlib import suppress
from fractions import Fraction
from math import inf, nan

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import hypergeom

from fedmedian.secure.cohort import Circle, Place, SecureSum, fewest_shares, in_pieces
from fedmedian.wire.scalars import PREFIX, WireError

KEYS = [bytes([index]) * 32 for index in range(1, 20)]
PLACE = Place(3, 4, tuple(KEYS[:5]))

thresholds = st.floats(0.5, 1, exclude_min=True)


class TestArguments:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *[("threshold", value) for value in (0.5, 0, -1, 1.01, nan, inf)],
            *[("neighbors", value) for value in (0, -2, 18, 19, 21, 1002)],
        ],
    )
    def test_one_out_of_range_is_refused_by_name_and_value(self, name, value):
        with pytest.raises(ValueError, match=f"^{name} must be .*got {value!r}"):
            SecureSum(**{name: value})

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *[("threshold", value) for value in ("1", None, True, [0.7])],
            *[("neighbors", value) for value in ("20", None, True, 20.0)],
        ],
    )
    def test_one_of_a_wrong_type_is_refused_by_name(self, name, value):
        with pytest.raises(TypeError, match=f"^{name} must be "):
            SecureSum(**{name: value})

    def test_the_ends_of_each_range_are_allowed(self):
        assert SecureSum(1.0, 20) == SecureSum(threshold=1, neighbors=20)


class TestFewestInASum:
    @pytest.mark.parametrize(
        ("threshold", "clients", "least"),
        [
            (2 / 3, 1, 3),
            (2 / 3, 3, 3),
            (2 / 3, 10, 7),
            (0.9, 10, 9),
            (0.55, 100, 55),  # although 0.55 * 100 is not 55 exactly
            (Fraction(9, 10), 10, 9),
            (np.float16(0.75), 8, 6),
            (np.float32(0.8), 5, 4),
            (1, 10, 10),
            (0.6, 100, 60),
            (0.51, 4, 4),  # and not 3: a server that lies could open a sum of two
            (0.51, 5, 4),
            (0.51, 6, 5),
        ],
    )
    def test_is_the_threshold_but_at_least_three_and_two_more_than_half_of_the_others(
        self, threshold, clients, least
    ):
        assert SecureSum(threshold).least(clients) == least

    @given(threshold=thresholds, clients=st.integers(3, 400))
    def test_is_never_more_than_there_are(self, threshold, clients):
        least = SecureSum(threshold).least(clients)
        assert 3 <= least <= clients
        assert least >= threshold * clients - 1e-6
        assert 2 * (least - 1) - (clients - 1) + 1 >= 3


class TestCircle:
    @given(number=st.integers(3, 40), neighbors=st.sampled_from([2, 4, 20]), threshold=thresholds)
    def test_neighbors_are_mutual_and_as_many_for_each_client(self, number, neighbors, threshold):
        circle = Circle(range(number), neighbors, SecureSum(threshold).least(number))
        near = {one: circle.neighbors_of(one) for one in circle.members}
        for one, others in near.items():
            assert len({*others, one}) == 1 + min(neighbors, number - 1)
            assert all(one in near[other] for other in others)

    @pytest.mark.parametrize("kind", [np.uint8, np.uint64, np.int16])
    def test_the_number_of_neighbors_may_be_one_of_numpys_integers(self, kind):
        circle = SecureSum(neighbors=kind(20)).circle(range(30))
        assert len(circle.neighbors_of(3)) == 20

    @given(number=st.integers(3, 120), threshold=thresholds, neighbors=st.sampled_from([20, 48]))
    def test_every_place_in_it_hides_a_vote(self, number, threshold, neighbors):
        circle = SecureSum(threshold, neighbors).circle(range(number))
        own = len(circle.neighbors_of(0))
        assert fewest_shares(own) <= circle.enough <= own
        assert 2 * circle.enough > own  # or those called lost could hold enough shares

    def test_its_order_is_another_each_time(self):
        orders = {tuple(SecureSum().circle(range(20)).members) for _ in range(10)}
        assert len(orders) == 10
        assert {frozenset(order) for order in orders} == {frozenset(range(20))}

    @pytest.mark.parametrize(("number", "least"), [(100, 95), (200, 160), (1000, 950)])
    def test_one_client_in_a_million_has_too_few_neighbors_left_at_the_threshold(
        self, number, least
    ):
        enough = Circle(range(number), 48, least).enough
        assert hypergeom(number, least, 48).cdf(enough - 1) <= 1e-6
        assert hypergeom(number, least, 48).cdf(enough) > 1e-6

    def test_it_may_be_large(self):
        circle = SecureSum(neighbors=1000).circle(range(5000))
        assert 500 < circle.enough < 1000


class TestPlace:
    def test_travels_beside_other_entries(self):
        config = {"lr": 0.1, **PLACE.encode()}
        assert Place.take(config) == PLACE
        assert config == {"lr": 0.1}
        assert Place.take(config) is None

    @pytest.mark.parametrize(
        ("bits", "enough", "neighbors"),
        [
            (2, 4, 5),  # six votes need three bits
            (0, 4, 5),
            (17, 4, 5),
            (3, 2, 5),
            (3, 3, 6),  # half of them
            (3, 6, 5),
            (3, 1, 1),
            (3, 0, 0),
            (3, -1, 5),
        ],
    )
    def test_one_that_does_not_hide_a_vote_is_refused(self, bits, enough, neighbors):
        with pytest.raises(WireError):
            Place(bits, enough, tuple(KEYS[:neighbors]))

    def test_so_many_neighbors_that_their_shares_take_minutes_are_refused(self):
        with pytest.raises(WireError, match="1001 neighbors are more than 1000"):
            Place(10, 600, tuple(number.to_bytes(32) for number in range(1001)))

    def test_a_neighbor_listed_twice_is_refused(self):
        with pytest.raises(WireError, match="same public key"):
            Place(3, 4, (*KEYS[:4], KEYS[0]))

    @given(
        changes=st.dictionaries(
            st.sampled_from(["sum.bits", "sum.enough", "sum.neighbors"]),
            st.one_of(
                st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(),
                st.lists(st.integers()),
            ),
            min_size=1,
        )
    )  # fmt: skip
    def test_a_malformed_one_is_refused_in_words(self, changes):
        config = {**PLACE.encode(), **{PREFIX + key: value for key, value in changes.items()}}
        given = dict(config)
        assume(any(value is not None for value in config.values()))
        with suppress(WireError):
            assert Place.take(config).encode() == given


def test_pieces_are_of_one_size():
    assert in_pieces(b"aabbcc", 2) == [b"aa", b"bb", b"cc"]
    assert in_pieces(b"", 2) == []
    with pytest.raises(WireError, match="3 bytes"):
        in_pieces(b"abc", 2)
