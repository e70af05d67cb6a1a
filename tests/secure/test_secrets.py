"""Keys, masks and shares: two clients agree, all others learn nothing."""

from itertools import combinations

import numpy as np
import pytest
from Crypto.Protocol.SecretSharing import Shamir
from hypothesis import given
from hypothesis import strategies as st

from fedmedian.secure.secrets import (
    KEY_SIZE,
    NO_SHARE,
    SEALED_SIZE,
    commitment,
    derived,
    join,
    mask,
    new_private_key,
    new_seed,
    pair_secret,
    public_key,
    seal,
    split,
    unseal,
)

SEED = bytes(range(KEY_SIZE))


def test_both_clients_of_a_pair_have_one_secret_and_others_have_another():
    one, other, third = (new_private_key() for _ in range(3))
    secret = pair_secret(one, public_key(other))
    assert secret == pair_secret(other, public_key(one))
    assert secret != pair_secret(third, public_key(one))
    assert {len(one), len(public_key(one)), len(secret), len(new_seed())} == {KEY_SIZE}


@pytest.mark.parametrize("public", [bytes(32), b"\1" + bytes(31), b"short"], ids=len)
def test_a_public_key_that_gives_all_the_same_secret_or_is_none_is_refused(public):
    with pytest.raises(ValueError, match=r"shared key|32 bytes"):
        pair_secret(new_private_key(), public)


def test_each_use_of_a_secret_has_a_key_of_its_own():
    uses = [("mask", 1, 0), ("mask", 1, 1), ("mask", 2, 0), ("share", 1, 0), ("mask", 11, 0)]
    keys = {derived(SEED, *use) for use in uses} | {derived(SEED[::-1], *uses[0])}
    assert len(keys) == 6
    assert {len(key) for key in keys} == {KEY_SIZE}
    assert derived(SEED, *uses[0]) in keys


def test_a_mask_is_the_key_stream_of_chacha20():
    out = np.ones(16, np.uint8)
    mask(bytes(32), out)
    assert out.tobytes().hex() == "76b8e0ada0f13d90405d6ae55386bd28"  # RFC 8439, A.1


def test_a_wide_mask_has_the_same_bytes_as_a_narrow_one():
    narrow, wide = np.empty(20, np.uint8), np.empty(10, "<u2")
    mask(SEED, narrow)
    mask(SEED, wide)
    assert narrow.tobytes() == wide.tobytes()


def test_a_mask_of_nothing_is_nothing():
    mask(SEED, np.empty(0, np.uint8))


@given(holders=st.integers(2, 8), data=st.data())
def test_any_that_are_enough_reveal_a_seed(holders, data):
    enough = data.draw(st.integers(2, holders))
    seed = data.draw(st.binary(min_size=KEY_SIZE, max_size=KEY_SIZE))
    shares = split(seed, holders, enough)
    assert {len(share) for share in shares} == {KEY_SIZE}
    for some in combinations(range(holders), enough):
        assert join({index: shares[index] for index in some}) == seed


@pytest.mark.parametrize("enough", [2, 3, 5])
def test_fewer_reveal_another_seed(enough):
    shares = split(SEED, 6, enough)
    assert join(dict(enumerate(shares[: enough - 1]))) != SEED


def test_a_wrong_share_or_one_of_another_holder_reveals_another_seed():
    first, second, third = split(SEED, 3, 2)
    assert join({0: first, 2: third}) == SEED
    assert join({0: first, 1: third}) != SEED
    assert join({0: first, 1: second[::-1]}) != SEED


@given(
    shares=st.dictionaries(
        st.integers(0, 999), st.binary(min_size=KEY_SIZE, max_size=KEY_SIZE), min_size=1, max_size=9
    )
)
def test_any_shares_are_joined_as_the_library_does(shares):
    half = KEY_SIZE // 2
    halves = [
        Shamir.combine([(index + 1, one[part]) for index, one in shares.items()], ssss=False)
        for part in (slice(half), slice(half, None))
    ]
    assert join(shares) == b"".join(halves)


def test_only_the_key_of_a_share_opens_it():
    share = bytes(range(KEY_SIZE))
    sealed = seal(SEED, share)
    assert len(sealed) == SEALED_SIZE
    assert unseal(SEED, sealed) == share
    spoiled = bytes([sealed[0] ^ 1]) + sealed[1:]
    for key, data in ((SEED[::-1], sealed), (SEED, spoiled), (SEED, b""), (SEED, sealed[:-1])):
        assert unseal(key, data) == NO_SHARE


def test_a_commitment_names_one_seed_without_showing_it():
    assert commitment(SEED) == commitment(bytes(SEED))
    assert commitment(SEED) != commitment(SEED[::-1])
    assert SEED not in commitment(SEED)
