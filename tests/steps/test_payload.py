"""Clients' answers on the wire: what is written is read back, and all else is refused by name."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmedian import Payload
from fedmedian.wire.scalars import PREFIX, WIRE_VERSION, WireError

sizes = hnp.arrays(
    np.float32, st.integers(0, 5), elements=st.floats(0, float(np.float32(1e30)), width=32)
)
bodies = {
    "signs": hnp.arrays(np.uint8, st.integers(0, 20)),
    "vector": hnp.arrays(np.float32, st.integers(0, 20), elements=st.floats(-1, 1, width=32)),
}
payloads = st.sampled_from(sorted(bodies)).flatmap(
    lambda encoding: st.builds(
        Payload,
        encoding=st.just(encoding),
        reports=st.dictionaries(st.sampled_from(["measure", "noise", "two-bits"]), sizes),
        body=bodies[encoding],
        exact=hnp.arrays(np.uint8, st.integers(0, 9)),
        server_round=st.integers(0, 2**62),
        partition=st.none() | st.integers(0, 2**62),
    )
)

ARRAYS, MESSAGE = Payload(
    encoding="signs",
    body=np.uint8([255, 224]),
    exact=np.uint8([1, 2, 3]),
    server_round=4,
    partition=7,
    reports={"measure": np.float32([0.1, 0.0])},
).encode()


@given(sent=payloads)
def test_a_payload_is_read_back_from_scalars_and_one_or_two_arrays(sent):
    arrays, message = sent.encode()
    assert len(arrays) == (2 if sent.exact.size else 1)
    assert all(key.startswith(PREFIX) for key in message)
    # A ConfigRecord takes no others, nor do the older API's metrics.
    assert all(type(value) in (int, float, str, bytes) for value in message.values())
    read = Payload.decode(arrays, message)
    for field in fields(Payload):
        value, expected = getattr(read, field.name), getattr(sent, field.name)
        assert type(value) is type(expected)
        if isinstance(expected, np.ndarray):
            assert value.dtype == expected.dtype
            np.testing.assert_array_equal(value, expected)
        elif isinstance(expected, dict):
            assert {step: one.tolist() for step, one in value.items()} == {
                step: one.tolist() for step, one in expected.items()
            }
        else:
            assert value == expected


def test_a_payload_is_found_in_a_reply_among_other_keys():
    assert Payload.is_in({"loss": 1.0, **MESSAGE})
    assert Payload.decode(ARRAYS, {"loss": 1.0, "encoding": "x", **MESSAGE}).encoding == "signs"
    assert not Payload.is_in({"loss": 1.0, "payload": WIRE_VERSION})
    assert not Payload.is_in({PREFIX + "instruction": WIRE_VERSION})


@given(key=st.sampled_from(["payload", "round", "encoding"]))
def test_a_payload_without_a_field_is_refused_by_its_key(key):
    message = {name: value for name, value in MESSAGE.items() if name != PREFIX + key}
    with pytest.raises(WireError, match=PREFIX + key):
        Payload.decode(ARRAYS, message)


def test_a_payload_may_be_without_reports_and_without_a_partition():
    left_out = {PREFIX + "reports.measure", PREFIX + "partition"}
    message = {key: value for key, value in MESSAGE.items() if key not in left_out}
    read = Payload.decode(ARRAYS, message)
    assert (read.reports, read.partition) == ({}, None)


@given(
    entry=st.sampled_from(
        [
            ("payload", WIRE_VERSION + 1),
            ("payload", 1.0),
            ("round", "first"),
            ("round", -1),
            ("encoding", 3),
            ("reports.measure", [0.5]),
            ("reports.measure", b"\0" * 3),
            ("reports", b""),
            ("partition", "first"),
            ("partition", -1),
            ("future", 1),
        ]
    )
)
def test_a_field_that_is_malformed_or_unknown_is_refused_by_its_key(entry):
    key, value = entry
    with pytest.raises(WireError, match=key):
        Payload.decode(ARRAYS, {**MESSAGE, PREFIX + key: value})


@given(count=st.sampled_from([0, 3]))
def test_another_number_of_arrays_is_refused(count):
    with pytest.raises(WireError, match=f"arrays.*{count}"):
        Payload.decode([*ARRAYS, *ARRAYS][:count], MESSAGE)
