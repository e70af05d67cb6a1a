"""The wire format: what is written is read back, and everything else is refused with a reason."""

import io
import json
import re
import struct
from dataclasses import dataclass, field, replace
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmedian import Instruction, Layout, Payload
from fedmedian.noise import NOISE_FAMILIES
from fedmedian.wire import PREFIX, WIRE_VERSION, WireError, read_npy, serialized_size, write_npy

noises = st.sampled_from([None, *NOISE_FAMILIES])
kinds = st.sampled_from(["signs", "vector"])
sizes = hnp.arrays(
    np.float32, st.integers(0, 5), elements=st.floats(0, float(np.float32(1e30)), width=32)
)
finite = st.floats(0, 1e300)


def scalars_only(message):
    """What a ConfigRecord takes, and what the older metrics do."""
    return all(type(value) in (int, float, str, bytes) for value in message.values())


def refused(reason):
    return pytest.raises(WireError, match=re.escape(reason))


INSTRUCTION = Instruction(
    kind="signs",
    noise="gaussian",
    scales=np.array([0.5, 0.25], np.float32),
    factor=3.0,
    of="rms",
    clip=1.0,
    server_round=4,
    seed=7,
    dense=(1, 3),
)


class TestInstruction:
    @given(
        instruction=st.builds(
            Instruction,
            kind=kinds,
            noise=noises,
            scales=st.none() | sizes,
            factor=finite,
            of=st.sampled_from(["rms", "max", None]),
            clip=st.none() | finite,
            server_round=st.integers(0, 2**31),
            seed=st.none() | st.integers(0, 2**130),
            dense=st.lists(st.integers(0, 9)).map(tuple),
            divisor=st.floats(1e-300, 1e300),
            momentum=st.floats(0, 1, exclude_max=True),
        )
    )
    def test_is_read_back_as_it_was_written(self, instruction):
        message = instruction.encode()
        assert scalars_only(message)
        assert all(key.startswith(PREFIX) for key in message)
        read = vars(Instruction.decode(message))
        for name, value in vars(instruction).items():
            if isinstance(value, np.ndarray):
                assert read[name].dtype == np.float32
                np.testing.assert_array_equal(read[name], value)
            else:
                assert read[name] == value
                assert type(read[name]) is type(value)

    def test_is_found_in_a_config_among_other_keys(self):
        assert Instruction.is_in({"lr": 0.1, **INSTRUCTION.encode()})
        assert not Instruction.is_in({"lr": 0.1, "instruction": WIRE_VERSION})
        read = Instruction.decode({"lr": 0.1, "kind": "nonsense", **INSTRUCTION.encode()})
        assert read.kind == "signs"

    @pytest.mark.parametrize("version", [WIRE_VERSION + 1, 0, 10**9])
    def test_another_version_is_refused(self, version):
        message = {**INSTRUCTION.encode(), PREFIX + "instruction": version}
        with refused(f"instruction is of version {version}, this is version {WIRE_VERSION}"):
            Instruction.decode(message)

    @pytest.mark.parametrize(
        "key",
        [
            *("instruction", "kind", "noise", "factor", "of", "round", "dense"),
            *("divisor", "momentum"),
        ],
    )
    def test_a_missing_field_is_refused(self, key):
        message = INSTRUCTION.encode()
        del message[PREFIX + key]
        with refused(f"{PREFIX}{key} is missing"):
            Instruction.decode(message)

    @pytest.mark.parametrize("key", ["scales", "clip", "seed"])
    def test_a_missing_option_means_none(self, key):
        message = INSTRUCTION.encode()
        del message[PREFIX + key]
        assert getattr(Instruction.decode(message), key) is None

    @pytest.mark.parametrize(
        ("key", "value", "reason"),
        [
            ("instruction", "1", "must be int"),
            ("divisor", 0.0, "must be > 0, got 0.0"),
            ("divisor", -1.0, "must be finite and not negative"),
            ("divisor", nan, "must be finite and not negative"),
            ("momentum", 1.0, "must be < 1, got 1.0"),
            ("momentum", -0.5, "must be finite and not negative"),
            ("momentum", "0.9", "must be float"),
            ("kind", 1, "must be str"),
            ("kind", "gradient", "must be one of ['signs', 'vector']"),
            ("noise", "cauchy", "must be one of ['gaussian', "),
            ("noise", b"gaussian", "must be str"),
            ("of", "mean", "must be one of ['max', 'none', 'rms']"),
            ("factor", "3", "must be float"),
            ("factor", nan, "must be finite and not negative"),
            ("factor", inf, "must be finite and not negative"),
            ("factor", -1.0, "must be finite and not negative"),
            ("clip", "1", "must be float"),
            ("clip", nan, "must be finite and not negative"),
            ("clip", -1.0, "must be finite and not negative"),
            ("round", 1.0, "must be int"),
            ("round", -1, "must be finite and not negative"),
            ("scales", "abcd", "must be bytes"),
            ("scales", b"abcde", "a float32 vector cannot have 5 bytes"),
            ("scales", struct.pack("<f", nan), "scales must be finite and not negative"),
            ("scales", struct.pack("<f", inf), "scales must be finite and not negative"),
            ("scales", struct.pack("<f", -1), "scales must be finite and not negative"),
            ("seed", 7, "must be str"),
            ("seed", "seven", "must be a decimal number"),
            ("seed", "-7", "must be a decimal number"),
            ("seed", "", "must be a decimal number"),
            ("dense", [1], "must be str"),
            ("dense", "*", "must be a JSON list of positions"),
            ("dense", "[", "must be a JSON list of positions"),
            ("dense", "1", "must be a JSON list of positions"),
            ("dense", "null", "must be a JSON list of positions"),
            ("dense", '"12"', "must be a JSON list of positions"),
            ("dense", '{"1": 1}', "must be a JSON list of positions"),
            ("dense", '[1, "a"]', "must be a JSON list of positions"),
            ("dense", "[true]", "must be a JSON list of positions"),
            ("dense", "[1.0]", "must be a JSON list of positions"),
            ("dense", "[-1]", "must be a JSON list of positions"),
        ],
    )
    def test_a_malformed_field_is_refused(self, key, value, reason):
        with refused(reason):
            Instruction.decode({**INSTRUCTION.encode(), PREFIX + key: value})

    @given(
        key=st.sampled_from(sorted(INSTRUCTION.encode())),
        value=st.integers() | st.floats() | st.text() | st.binary() | st.lists(st.integers()),
    )
    def test_any_value_of_a_field_is_read_or_refused(self, key, value):
        try:
            read = Instruction.decode({**INSTRUCTION.encode(), key: value})
        except WireError:
            return
        assert Instruction.decode(read.encode()).encode() == read.encode()

    def test_scales_travel_as_little_endian_float32_and_positions_as_json(self):
        message = INSTRUCTION.encode()
        assert message[PREFIX + "scales"] == struct.pack("<2f", 0.5, 0.25)
        assert json.loads(message[PREFIX + "dense"]) == [1, 3]


LAYOUT = Layout.of(
    {
        "w": np.zeros((3, 3), np.float32),
        "b": np.zeros(2, np.float64),
        "running_mean": np.zeros(2, np.float32),
        "steps": np.zeros((), np.int64),
    }
)


def signs_payload():
    return Payload(
        kind="signs",
        noise="gaussian",
        scales=np.array([0.5, 0.25], np.float32),
        magnitudes=np.array([0.1, 0.0], np.float32),
        body=np.array([255, 224], np.uint8),
        dense=LAYOUT.pack_dense({"running_mean": np.ones(2), "steps": np.array(3)}),
    )


def vector_payload():
    return replace(signs_payload(), kind="vector", body=np.arange(11, dtype=np.float32))


class TestPayload:
    @given(
        kind=kinds,
        noise=noises,
        scales=sizes,
        magnitudes=sizes,
        dim=st.integers(0, 20),
        dense=hnp.arrays(np.uint8, st.integers(0, 9)),
        partition=st.none() | st.integers(0, 2**62),
    )
    def test_is_read_back_as_it_was_written(
        self, kind, noise, scales, magnitudes, dim, dense, partition
    ):
        body = np.arange(dim, dtype=np.uint8 if kind == "signs" else np.float32)
        sent = Payload(kind, noise, scales, magnitudes, body, dense, partition)
        arrays, message = sent.encode()
        assert len(arrays) == (2 if dense.size else 1)
        assert scalars_only(message)
        assert all(key.startswith(PREFIX) for key in message)
        read = Payload.decode(arrays, message)
        assert (read.kind, read.noise, read.partition) == (kind, noise, partition)
        for name, expected in [
            ("scales", scales),
            ("magnitudes", magnitudes),
            ("body", body),
            ("dense", dense),
        ]:
            assert getattr(read, name).dtype == expected.dtype
            np.testing.assert_array_equal(getattr(read, name), expected)

    def test_is_found_in_a_reply_among_other_keys(self):
        _, message = signs_payload().encode()
        assert Payload.is_in({"loss": 1.0, **message})
        assert not Payload.is_in({"loss": 1.0})
        assert not Payload.is_in(INSTRUCTION.encode())

    @pytest.mark.parametrize("version", [WIRE_VERSION + 1, 0])
    def test_another_version_is_refused(self, version):
        arrays, message = signs_payload().encode()
        with refused(f"payload is of version {version}, this is version {WIRE_VERSION}"):
            Payload.decode(arrays, {**message, PREFIX + "payload": version})

    @pytest.mark.parametrize("key", ["payload", "kind", "noise", "scales", "magnitudes"])
    def test_a_missing_field_is_refused(self, key):
        arrays, message = signs_payload().encode()
        del message[PREFIX + key]
        with refused(f"{PREFIX}{key} is missing"):
            Payload.decode(arrays, message)

    @pytest.mark.parametrize(
        ("key", "value", "reason"),
        [
            ("payload", 1.0, "must be int"),
            ("kind", "sign", "must be one of ['signs', 'vector']"),
            ("kind", None, "is missing"),
            ("noise", "", "must be one of ['gaussian', "),
            ("scales", [0.5], "must be bytes"),
            ("scales", b"abc", "a float32 vector cannot have 3 bytes"),
            ("magnitudes", 0.5, "must be bytes"),
            ("magnitudes", b"abcdef", "a float32 vector cannot have 6 bytes"),
        ],
    )
    def test_a_malformed_field_is_refused(self, key, value, reason):
        arrays, message = signs_payload().encode()
        with refused(reason):
            Payload.decode(arrays, {**message, PREFIX + key: value})

    @pytest.mark.parametrize("count", [0, 3])
    def test_another_number_of_arrays_is_refused(self, count):
        arrays, message = signs_payload().encode()
        with refused(f"a payload has one or two arrays, got {count}"):
            Payload.decode([*arrays, *arrays][:count], message)


class TestRequireAnswer:
    def test_a_good_answer_passes(self):
        signs_payload().require_answer(INSTRUCTION, LAYOUT)
        vector_payload().require_answer(replace(INSTRUCTION, kind="vector"), LAYOUT)

    def test_a_client_may_choose_its_scale_where_it_was_told_to(self):
        own = replace(signs_payload(), scales=np.array([9.0, 0.0], np.float32))
        own.require_answer(replace(INSTRUCTION, scales=None), LAYOUT)

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"kind": "vector"}, "sent 'vector', was asked for 'signs'"),
            ({"noise": None}, "used noise None, was told 'gaussian'"),
            ({"noise": "laplace"}, "used noise 'laplace', was told 'gaussian'"),
            (
                {"body": np.zeros(3, np.uint8)},
                "signs must be uint8 of shape (2,), got uint8 of shape (3,)",
            ),
            (
                {"body": np.zeros((2, 1), np.uint8)},
                "signs must be uint8 of shape (2,), got uint8 of shape (2, 1)",
            ),
            (
                {"body": np.zeros(2, np.float32)},
                "signs must be uint8 of shape (2,), got float32 of shape (2,)",
            ),
            (
                {"dense": np.zeros(0, np.uint8)},
                "dense arrays must be uint8 of shape (16,), got uint8 of shape (0,)",
            ),
            (
                {"dense": np.zeros(16, np.int8)},
                "dense arrays must be uint8 of shape (16,), got int8 of shape (16,)",
            ),
            (
                {"scales": np.zeros(3, np.float32)},
                "scales must be float32 of shape (2,), got float32 of shape (3,)",
            ),
            (
                {"magnitudes": np.zeros(1, np.float32)},
                "magnitudes must be float32 of shape (2,), got float32 of shape (1,)",
            ),
            (
                {"scales": np.array([0.5, 0.26], np.float32)},
                "used another noise scale than it was told",
            ),
            (
                {"dense": LAYOUT.pack_dense({"running_mean": np.array([1, nan]), "steps": 0})},
                "array 'running_mean' holds NaN or infinity",
            ),
            (
                {"dense": LAYOUT.pack_dense({"running_mean": np.array([-inf, 1]), "steps": 0})},
                "array 'running_mean' holds NaN or infinity",
            ),
        ],
    )
    def test_another_answer_is_refused_with_the_reason(self, change, reason):
        with refused(reason):
            replace(signs_payload(), **change).require_answer(INSTRUCTION, LAYOUT)

    @pytest.mark.parametrize("name", ["scales", "magnitudes"])
    @pytest.mark.parametrize("value", [nan, inf, -inf, -1.0])
    def test_scales_and_magnitudes_are_finite_and_not_negative(self, name, value):
        payload = replace(signs_payload(), **{name: np.array([0.5, value], np.float32)})
        for told in (INSTRUCTION.scales, None):
            with refused(f"{name} must be finite and not negative"):
                payload.require_answer(replace(INSTRUCTION, scales=told), LAYOUT)

    @pytest.mark.parametrize("value", [nan, inf, -inf])
    def test_a_vector_is_finite(self, value):
        payload = vector_payload()
        payload.body[10] = value
        with refused("vector holds NaN or infinity"):
            payload.require_answer(replace(INSTRUCTION, kind="vector"), LAYOUT)

    @pytest.mark.parametrize(
        "body", [np.zeros(11, np.float64), np.zeros(11, ">f4"), np.zeros(10, np.float32)]
    )
    def test_a_vector_is_float32_of_the_models_dimension(self, body):
        with refused("vector must be float32 of shape (11,)"):
            replace(vector_payload(), body=body).require_answer(
                replace(INSTRUCTION, kind="vector"), LAYOUT
            )


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


any_array = hnp.arrays(
    hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
)


numbers = hnp.integer_dtypes() | hnp.floating_dtypes() | hnp.complex_number_dtypes()


@given(
    array=hnp.arrays(numbers, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)),
    fortran=st.booleans(),
)
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

    @pytest.mark.parametrize("order", ["C", "F"])
    def test_is_a_read_only_view(self, order):
        data = saved(np.asarray(np.arange(12.0).reshape(3, 4), order=order))
        array = read_npy(data)
        assert np.shares_memory(array, np.frombuffer(data, np.uint8))
        assert not array.flags.writeable

    @given(array=any_array.filter(lambda array: array.nbytes > 0), data=st.data())
    def test_truncated_files_are_refused(self, array, data):
        whole = saved(array)
        with refused("array is not in .npy format"):
            read_npy(whole[: data.draw(st.integers(0, len(whole) - 1))])

    @given(array=any_array, extra=st.binary(min_size=1, max_size=9))
    def test_files_with_something_behind_are_refused(self, array, extra):
        with refused("its bytes are not that"):
            read_npy(saved(array) + extra)

    def test_objects_are_refused_unread(self):
        with refused("it cannot be object"):
            read_npy(saved(np.array([None])))

    @pytest.mark.parametrize(
        "file",
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
            npy_file(header(descr="'|V0'", shape="(3,)")),
            npy_file(header(descr="()"), b"abcd"),
            npy_file(header(descr="[('a',)]"), b"abcd"),
            npy_file(header(descr="'f4,('"), b"abcd"),
            npy_file(header(descr="'O'"), b"abcdefgh"),
            npy_file(header(descr="[('a', 'O')]"), b"abcdefgh"),
            npy_file(header(descr="('<f4', (2,))"), b"abcdefgh"),
            npy_file(header(), b"abcd", version=(3, 0)),
            npy_file(header(), b"abcd", version=(9, 9)),
            npy_file("("),
            npy_file("   x\n y"),
            npy_file("{[]: 1}"),
            npy_file("{1: 1, 'a': 2}"),
            npy_file("-" * 9000 + "1"),
            npy_file("\0"),
            npy_file(""),
            npy_file(" " * 20_000),
            b"",
            b"\x93NUMPY",
            b"PK\x03\x04",
        ],
    )
    def test_lies_and_nonsense_are_refused(self, file):
        with refused("array is not in .npy format: "):
            read_npy(file)

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


@dataclass
class Record:
    """Stands for Flower's messages and records."""

    data: bytes
    children: dict = field(default_factory=dict)

    def deflate(self):
        return self.data


@pytest.mark.parametrize("children", [None, {}])
def test_serialized_size_counts_an_object(children):
    assert serialized_size(Record(b"abc", children)) == 3


def test_serialized_size_counts_all_that_an_object_refers_to():
    array = Record(b"12345")
    assert serialized_size(Record(b"abc", {"x": Record(b"ab", {"0": array, "1": array})})) == 15
