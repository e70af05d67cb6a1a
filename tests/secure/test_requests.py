"""What a server asks of clients around a sum: malformed requests and answers name the fault."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmedian.secure.masking import Key
from fedmedian.secure.opening import Wanted
from fedmedian.secure.requests import (
    answer,
    ask_for_key,
    ask_to_reveal,
    is_request,
    read_public,
    read_secrets,
)
from fedmedian.secure.secrets import KEY_SIZE
from fedmedian.wire.scalars import PREFIX, WireError

REVEAL = ask_to_reveal((1, 2), Wanted(b"\1\0\0", b"sealed"))
KEY = ask_for_key(3)

anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(),
    st.lists(st.integers(), max_size=3), st.sampled_from(["key", "reveal"]),
)  # fmt: skip


def test_a_request_is_known_by_its_key_and_other_configs_are_none():
    assert is_request(KEY)
    assert is_request(REVEAL)
    assert not is_request({PREFIX + "instruction": 4, "lr": 0.1})


def test_each_request_for_a_key_is_answered_by_another_one():
    first, reply = answer(KEY, None)
    second, again = answer(KEY, first)
    assert read_public(reply) == first.public
    assert read_public(again) == second.public
    assert first.public != second.public


def test_what_a_client_revealed_before_cannot_be_asked_for_after_a_new_key(round_of):
    sums = round_of(4, 8)
    sums.masked()
    new, _ = answer(KEY, sums.clients[0])
    with pytest.raises(WireError, match="has no votes in a sum of round 1"):
        answer(ask_to_reveal((1, 0), Wanted(b"\1\0\0")), new)


def test_a_client_reveals_what_its_key_allows(round_of):
    sums = round_of(5, 8)
    sums.masked()
    key, reply = answer(ask_to_reveal((1, 0), Wanted(b"\1\0\0\0")), sums.clients[0])
    (seed,) = read_secrets(reply, Wanted(b"\1\0\0\0"))
    assert len(seed) == KEY_SIZE
    assert key.revealed == b"\1\0\0\0"


def test_a_client_without_a_key_says_that_it_keeps_no_state():
    with pytest.raises(WireError, match="no key for secure sums: it has lost its state"):
        answer(REVEAL, None)


@pytest.mark.parametrize("request_of", [KEY, REVEAL], ids=["key", "reveal"])
@given(data=st.data())
def test_malformed_requests_are_refused_in_words(request_of, data):
    name = data.draw(st.sampled_from([*request_of, PREFIX + "sum.other"]))
    config = {**request_of, name: data.draw(anything)}
    with suppress(WireError):
        _, reply = answer(config, Key.new())
        assert {*reply} == {PREFIX + "sum.public"}


@pytest.mark.parametrize("request_of", [KEY, REVEAL], ids=["key", "reveal"])
def test_a_request_of_another_version_or_with_a_part_missing_is_refused(request_of):
    for name in request_of:
        rest = {key: value for key, value in request_of.items() if key != name}
        if name not in {PREFIX + "question", PREFIX + "sum.sealed"}:
            with pytest.raises(WireError, match=name):
                answer(rest, Key.new())
    with pytest.raises(WireError, match="version"):
        answer({**request_of, PREFIX + "sum.request": 99}, Key.new())


@pytest.mark.parametrize(
    "public",
    [None, 3, "x" * 32, b"", b"short", bytes(33), [1], bytes(32), b"\1" + bytes(31)],
    ids=repr,
)
def test_a_public_key_of_another_form_or_without_a_secret_is_refused(public):
    with pytest.raises(WireError, match="public"):
        read_public({PREFIX + "sum.public": public})
    with pytest.raises(WireError, match="public"):
        read_public({})


@pytest.mark.parametrize("secrets", [None, 3, "text", [1], 0.5], ids=repr)
def test_secrets_of_another_form_are_refused(secrets):
    with pytest.raises(WireError, match="secrets must be bytes"):
        read_secrets({PREFIX + "sum.secrets": secrets}, Wanted(b"\1\0\3"))


@pytest.mark.parametrize("length", [0, 1, KEY_SIZE, 2 * KEY_SIZE - 1, 3 * KEY_SIZE])
def test_secrets_about_more_or_fewer_neighbors_are_refused(length):
    with pytest.raises(WireError, match=f"revealed {length} bytes, was asked for 64"):
        read_secrets({PREFIX + "sum.secrets": bytes(length)}, Wanted(b"\1\0\3"))
