"""The form of a message: typed entries are read one by one, and what is wrong is named."""

import struct
import tracemalloc
from dataclasses import dataclass
from fractions import Fraction
from math import inf, nan

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmedian.wire.scalars import (
    PREFIX,
    WIRE_VERSION,
    Reader,
    WireError,
    floats_from_bytes,
    floats_to_bytes,
    is_refusal,
    parameters_of,
    refusal,
    require_sizes,
    with_prefix,
)


def reader(**entries):
    return Reader(with_prefix({"note": WIRE_VERSION, "round": 1, **entries}), "note")


class TestReader:
    def test_entries_under_other_keys_are_none_of_its_business(self):
        read = Reader(
            {"lr": 0.1, "note": 0, **with_prefix({"note": WIRE_VERSION, "round": 1})}, "note"
        )
        read.finish()

    @given(version=st.integers(0, 10**9).filter(lambda version: version != WIRE_VERSION))
    def test_another_version_is_refused_with_its_number(self, version):
        with pytest.raises(WireError, match=rf"note\b.*\b{version}\b.*\b{WIRE_VERSION}\b"):
            Reader({PREFIX + "note": version}, "note")

    def test_a_message_without_a_version_is_refused(self):
        with pytest.raises(WireError, match=f"{PREFIX}note"):
            Reader({"lr": 0.1}, "note")

    def test_the_long_name_of_an_entry_is_copied_once(self):
        name, size = "x" * 10**6, 10**6
        message = with_prefix({"note": WIRE_VERSION, "round": 1, f"reports.{name}": 1})
        tracemalloc.start()
        try:
            assert Reader(message, "note").below("reports") == {name: 1}
            assert tracemalloc.get_traced_memory()[1] < 1.1 * size
        finally:
            tracemalloc.stop()

    def test_a_message_has_a_round_and_may_be_of_its_second_question(self):
        assert (reader(round=3).server_round, reader().question) == (3, 0)
        assert reader(question=1).question == 1
        with pytest.raises(WireError, match=f"{PREFIX}round"):
            reader(round="3")

    def test_an_entry_is_returned_as_it_is_and_none_if_it_may_be_missing(self):
        read = reader(name="abc", count=3, data=b"x")
        assert read.required("name", str) == "abc"
        assert read.required("count", int) == 3
        assert read.optional("data", bytes) == b"x"
        assert read.optional("more", bytes) is None

    @given(
        case=st.sampled_from(
            [
                ("1", int),
                (1.0, int),
                (True, int),
                (1, str),
                (b"1", str),
                ([1.0], float),
                ("ab", bytes),
            ]
        )
    )
    def test_an_entry_of_another_type_is_refused_with_key_and_value(self, case):
        value, wanted = case
        with pytest.raises(WireError, match=rf"{PREFIX}size\b.*{wanted.__name__}") as refused:
            reader(size=value).required("size", wanted)
        assert repr(value) in str(refused.value)

    @given(value=st.sampled_from([nan, inf, -inf, -1.0, -1]))
    def test_numbers_are_finite_and_not_negative(self, value):
        with pytest.raises(WireError, match=rf"{PREFIX}size\b.*{value}"):
            reader(size=value).required("size", type(value))

    def test_a_missing_entry_is_refused_with_its_key(self):
        with pytest.raises(WireError, match=f"{PREFIX}size"):
            reader().required("size", int)

    def test_entries_below_a_key_are_taken_together(self):
        read = reader(**{"clip.norm": 1.0, "clip.a.b": "x", "clipper.norm": 2.0})
        assert read.below("clip") == {"norm": 1.0, "a.b": "x"}
        assert read.below("clip") == {}
        with pytest.raises(WireError, match=rf"{PREFIX}clipper\.norm"):
            read.finish()

    def test_an_entry_that_nobody_has_read_is_refused_with_its_key(self):
        read = reader(known=1, surprise=2)
        read.required("known", int)
        with pytest.raises(WireError, match=f"{PREFIX}surprise"):
            read.finish()


class TestFloats:
    @given(values=hnp.arrays(np.float32, st.integers(0, 5)))
    def test_come_back_bit_for_bit_from_little_endian_float32(self, values):
        data = floats_to_bytes(values)
        assert data == (struct.pack(f"<{values.size}f", *values) or b"\0")
        read = floats_from_bytes("scales", data)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, values)

    @given(data=st.binary(max_size=99).filter(lambda data: len(data) % 4 and data != b"\0"))
    @example(data=b"")
    def test_bytes_that_are_no_whole_number_of_them_are_refused(self, data):
        with pytest.raises(WireError, match="scales must be float32 bytes"):
            floats_from_bytes("scales", data)

    @given(value=st.sampled_from([nan, inf, -inf, -1.0]))
    def test_a_size_that_is_not_finite_or_is_negative_is_refused_by_name(self, value):
        with pytest.raises(WireError, match="scales"):
            require_sizes("scales", np.float32([0.5, value]))

    def test_other_sizes_are_returned(self):
        sizes = np.float32([0, 0.5])
        assert require_sizes("scales", sizes) is sizes


@dataclass
class Settings:
    """A value with parameters of all kinds."""

    scale: object = 1.0
    name: str = "a"
    count: int = 2
    data: bytes = b"c"
    limit: float | None = None


class TestParameters:
    def test_are_the_fields_of_a_value_but_for_those_that_are_none_or_left_out(self):
        assert parameters_of(Settings(), "scale") == {"name": "a", "count": 2, "data": b"c"}
        assert parameters_of(Settings(limit=0.5))["limit"] == 0.5

    @given(value=st.sampled_from([np.zeros(2), [1.0], (), {}]))
    def test_a_field_that_cannot_travel_is_refused_by_name(self, value):
        with pytest.raises(TypeError, match=r"Settings\.scale"):
            parameters_of(Settings(scale=value))

    def test_a_number_of_another_kind_travels_as_a_float(self):
        for value in (Fraction(1, 2), np.float16(0.5), np.longdouble(0.5)):
            sent = parameters_of(Settings(limit=value))["limit"]
            assert type(sent) is float
            assert sent == 0.5

    def test_a_field_that_is_none_and_not_so_by_default_is_refused_by_name(self):
        with pytest.raises(TypeError, match=r"Settings\.count\b.*None"):
            parameters_of(Settings(count=None))

    def test_an_integer_of_more_than_64_bits_is_refused_by_name(self):
        parameters_of(Settings(count=2**63 - 1))
        with pytest.raises(ValueError, match=rf"Settings\.count\b.*{2**63}"):
            parameters_of(Settings(count=2**63))


def test_a_refusal_is_told_from_an_error_of_other_code():
    assert is_refusal(refusal(WireError("an unknown step")))
    assert "an unknown step" in refusal(WireError("an unknown step"))
    assert not is_refusal("an unknown step")
