"""Arrays as the bytes of .npy files: as numpy reads and writes them, and nothing else."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmedian.wire.npy import NewArray, read_npy, write_npy
from fedmedian.wire.scalars import WireError


def saved(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npy_file(header, body=b"", version=(1, 0)):
    """A file with any text where the header's dictionary belongs."""
    text = header.encode("latin1")
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + body


def header(descr="'<f4'", shape="(1,)", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


def is_refused(file):
    try:
        read_npy(file)
    except WireError:
        return True
    return False


shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
any_array = hnp.arrays(hnp.scalar_dtypes(), shapes)
numbers = hnp.integer_dtypes() | hnp.floating_dtypes() | hnp.complex_number_dtypes()


@given(array=hnp.arrays(numbers, shapes), fortran=st.booleans())
def test_written_bytes_are_those_of_numpy_save_in_c_order(array, fortran):
    array = np.asarray(array, order="F" if fortran else "C")
    assert write_npy(array) == saved(np.asarray(array, order="C"))


class TestReadNpy:
    @given(array=any_array, order=st.sampled_from("CF"), reverse=st.booleans())
    def test_equals_numpy_load(self, array, order, reverse):
        array = np.asarray(array, order=order)
        if reverse and array.ndim:
            array = array[::-1]
        data = saved(array)
        read, loaded = read_npy(data), np.load(io.BytesIO(data))
        assert read.dtype == loaded.dtype == array.dtype
        assert read.shape == array.shape
        assert read.flags.f_contiguous == loaded.flags.f_contiguous
        np.testing.assert_array_equal(read, array)

    def test_reads_structured_arrays_too(self):
        array = np.array([(1, 2.0), (3, 4.0)], dtype=[("a", "<i4"), ("b", "<f8")])
        np.testing.assert_array_equal(read_npy(saved(array)), array)

    def test_reads_both_lengths_of_header(self):
        body = np.float32(1.5).tobytes()
        for version in ((1, 0), (2, 0)):
            assert read_npy(npy_file(header(), body, version)).tolist() == [1.5]

    def test_is_a_read_only_view_in_either_memory_order(self):
        for order in "CF":
            data = saved(np.asarray(np.arange(12.0).reshape(3, 4), order=order))
            array = read_npy(data)
            assert np.shares_memory(array, np.frombuffer(data, np.uint8))
            assert not array.flags.writeable

    @given(array=any_array.filter(lambda array: array.nbytes > 0), data=st.data())
    def test_truncated_files_are_refused(self, array, data):
        whole = saved(array)
        assert is_refused(whole[: data.draw(st.integers(0, len(whole) - 1))])

    @given(array=any_array, extra=st.binary(min_size=1, max_size=9))
    def test_files_with_something_behind_are_refused(self, array, extra):
        assert is_refused(saved(array) + extra)

    def test_objects_are_refused_unread_with_their_dtype(self):
        with pytest.raises(WireError, match="object"):
            read_npy(saved(np.array([None])))

    @pytest.mark.parametrize(
        "files",
        [
            pytest.param(
                [
                    npy_file(header(shape="(1000000000000,)"), b"abcd"),
                    npy_file(header(shape="(0, 1000000000000000000000000000000)")),
                    npy_file(header(shape="(0, 4611686018427387904, 4611686018427387904)")),
                    npy_file(header(shape="(-1,)")),
                    npy_file(header(shape="(-1, -1)"), b"abcd"),
                    npy_file(header(shape=f"({'1, ' * 99})"), b"abcd"),
                    npy_file(header(shape=f"(0x{'f' * 9000},)"), b"abcd"),
                    npy_file(header(shape="(1.0,)"), b"abcd"),
                    npy_file(header(shape="[1]"), b"abcd"),
                ],
                id="shapes",
            ),
            pytest.param(
                [
                    npy_file(header(descr="'|V0'", shape="(3,)")),
                    npy_file(header(descr="()"), b"abcd"),
                    npy_file(header(descr="[('a',)]"), b"abcd"),
                    npy_file(header(descr="'f4,('"), b"abcd"),
                    npy_file(header(descr="'O'"), b"abcdefgh"),
                    npy_file(header(descr="[('a', 'O')]"), b"abcdefgh"),
                    npy_file(header(descr="('<f4', (2,))"), b"abcdefgh"),
                ],
                id="dtypes",
            ),
            pytest.param(
                [
                    npy_file(header(), b"abcd", version=(3, 0)),
                    npy_file(header(), b"abcd", version=(9, 9)),
                ],
                id="versions",
            ),
            pytest.param(
                [
                    npy_file("("),
                    npy_file("   x\n y"),
                    npy_file("{[]: 1}"),
                    npy_file("{1: 1, 'a': 2}"),
                    npy_file("-" * 9000 + "1"),
                    npy_file("\0"),
                    npy_file(""),
                    npy_file(" " * 20_000),
                ],
                id="headers",
            ),
            pytest.param([b"", b"\x93NUMPY", b"PK\x03\x04"], id="other-files"),
        ],
    )
    def test_lies_and_nonsense_are_refused(self, files):
        assert [file for file in files if not is_refused(file)] == []

    @given(
        file=st.binary(max_size=200)
        | st.binary(max_size=200).map(lambda data: b"\x93NUMPY" + data)
        | st.builds(npy_file, st.text("{}()[]'\\:,-<f48O \n0123x#", max_size=40), st.binary())
        | st.builds(
            lambda descr, shape, order, body: npy_file(header(descr, shape, order), body),
            st.text("<>|fiubSUVOmM0248'[](), ", max_size=12).map(repr) | st.text("()[]'<f4, "),
            st.lists(st.integers(-1, 4)).map(tuple).map(repr) | st.text("()[]-1, "),
            st.sampled_from(["True", "False", "0", "None"]),
            st.binary(max_size=64),
        )
    )
    @pytest.mark.filterwarnings("ignore")
    def test_any_bytes_are_an_array_or_refused(self, file):
        try:
            array = read_npy(file)
        except WireError:
            return
        assert not array.dtype.hasobject
        assert array.nbytes <= len(file)


@pytest.mark.parametrize("shape", [(), (0,), (3, 4), (2, 3, 1 << 18)], ids=str)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.dtype(">f8")], ids=str)
def test_a_new_array_is_written_in_the_bytes_that_it_is_sent_as(shape, dtype):
    new, values = NewArray(shape, np.dtype(dtype)), (np.arange(np.prod(shape)) % 9).astype(dtype)
    new.flat[:] = values
    array = new.finish()
    np.testing.assert_array_equal(array, values.reshape(shape))
    assert not array.flags.writeable
    assert write_npy(array) == saved(values.reshape(shape))


def test_an_array_that_is_all_of_a_file_is_written_without_a_copy():
    new = NewArray((3, 4), np.dtype(np.float32))
    new.flat[:] = 1
    array = new.finish()
    file = write_npy(array)
    assert write_npy(read_npy(file)) is file
    for other in (array[1:], array.T, array.view(np.int32), array.reshape(4, 3)):
        assert write_npy(other) == saved(other.copy(order="C"))
    assert write_npy(np.frombuffer(b"12345678", np.float32)) == saved(
        np.frombuffer(b"12345678", np.float32)
    )
