"""Flower's records and the older API's parameters as arrays and back, and sizes as sent."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.common import Parameters, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmedian.records import (
    arrays_to_parameters,
    parameters_to_arrays,
    serialized_sizes,
    sizes_of,
    to_arrays,
    to_record,
)
from fedmedian.wire.scalars import WireError

numbers = hnp.integer_dtypes() | hnp.floating_dtypes() | hnp.boolean_dtypes()
models = st.dictionaries(
    st.text("ab.01", min_size=1, max_size=3),
    hnp.arrays(numbers, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)),
    max_size=3,
)


def assert_same(arrays, expected):
    assert list(arrays) == list(expected)
    for name, array in expected.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)


class TestRecord:
    @given(model=models)
    def test_holds_the_arrays_that_it_was_made_of(self, model):
        assert_same(to_arrays(to_record(model)), model)

    @given(model=models)
    def test_is_as_flower_makes_and_reads_it(self, model):
        flowers = ArrayRecord({name: Array(array) for name, array in model.items()})
        assert_same(to_arrays(flowers), model)
        ours = to_record(model)
        assert ours.object_id == flowers.object_id
        assert_same({name: array.numpy() for name, array in ours.items()}, model)

    def test_is_read_without_a_copy(self):
        record = to_record({"w": np.arange(3.0)})
        (array,) = to_arrays(record).values()
        assert np.shares_memory(array, np.frombuffer(record["w"].data, np.uint8))
        assert not array.flags.writeable

    def test_of_other_bytes_than_an_arrays_is_refused(self):
        record = ArrayRecord({"w": Array("float32", (2,), "numpy.ndarray", b"nonsense")})
        with pytest.raises(WireError, match=r"'w' is not in \.npy format"):
            to_arrays(record)


class TestParameters:
    @given(model=models)
    def test_hold_the_arrays_by_position(self, model):
        by_position = {str(i): array for i, array in enumerate(model.values())}
        assert_same(parameters_to_arrays(arrays_to_parameters(model)), by_position)

    def test_are_as_flower_makes_and_reads_them(self):
        arrays = [np.arange(3.0), np.array(7)]
        named = {"w": arrays[0], "steps": arrays[1]}
        assert_same(
            parameters_to_arrays(ndarrays_to_parameters(arrays)),
            {"0": arrays[0], "1": arrays[1]},
        )
        theirs = parameters_to_ndarrays(arrays_to_parameters(named))
        assert [array.tolist() for array in theirs] == [[0.0, 1.0, 2.0], 7]

    def test_of_other_bytes_than_an_arrays_are_refused(self):
        with pytest.raises(WireError):
            parameters_to_arrays(Parameters([b"nonsense"], "numpy.ndarray"))


def message_of(**records):
    metadata = Metadata(1, "a" * 64, 1, 1, "", "", 1.0, 1.0, "train")
    return Message(content=RecordDict(records), metadata=metadata)


class TestSizes:
    def test_are_those_of_arrays_and_of_byte_strings_and_of_nothing_else(self):
        arrays = {"w": np.arange(50.0), "b": np.arange(3, dtype=np.int8)}
        config = ConfigRecord({"scales": b"12345", "lr": 0.1, "name": "long", "many": [1.5] * 9})
        message = message_of(
            arrays=to_record(arrays), config=config, metrics=MetricRecord({"loss": 1.0})
        )
        assert sizes_of([message, message]) == [(128 + 400) + (128 + 3) + 5] * 2

    def test_of_nothing_are_0(self):
        assert sizes_of([message_of()]) == [0]


class TestSerializedSize:
    def test_is_that_of_all_objects_that_flower_sends_for_a_message(self):
        message = message_of(
            arrays=to_record({"w": np.arange(50.0), "b": np.arange(3)}),
            config=ConfigRecord({"lr": 0.1}),
        )
        objects = get_all_nested_objects(message).values()
        assert len(objects) >= 5  # the message, its content, two records, the arrays
        assert serialized_sizes([message]) == [sum(len(one.deflate()) for one in objects)]

    def test_of_a_record_is_less_than_that_of_its_message_and_more_than_its_data(self):
        record = to_record({"w": np.zeros(9)})
        of_record, of_message = serialized_sizes([record, message_of(arrays=record)])
        assert 9 * 8 < of_record < of_message

    def test_grows_by_a_byte_for_each_byte_of_an_array(self):
        small, large = serialized_sizes(
            message_of(arrays=to_record({"w": np.zeros(n, np.uint8)})) for n in (1000, 5000)
        )
        assert large - small == 4000

    def test_counts_equal_arrays_of_a_record_once_as_flower_sends_them(self):
        one, both = serialized_sizes(
            to_record(dict.fromkeys(names, np.ones(999))) for names in ("a", "ab")
        )
        assert both < one + 999
