"""Instructions: their wire form, what is refused by name, and how a client follows one."""

from dataclasses import dataclass, replace
from math import inf, nan
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmedian import (
    ClientMomentum,
    ClientStep,
    Clip,
    DivideByLearningRate,
    Gaussian,
    Instruction,
    Layout,
    Payload,
    Rotation,
    Uniform,
    pack_signs,
    register_client_step,
    unpack_signs,
)
from fedmedian.rules.noise import NOISE_FAMILIES
from fedmedian.steps.base import UpdateError
from fedmedian.steps.encodings import Encoding, Signs, Vector
from fedmedian.steps.instruction import perturb_update
from fedmedian.steps.noise import AddNoise, Measure
from fedmedian.wire.scalars import PREFIX, WIRE_VERSION, WireError

MODEL = {
    "w": np.zeros((2, 3), np.float32),
    "running_mean": np.array([0.5, -0.5], np.float32),
    "b": np.zeros(2, np.float64),
    "steps": np.array(3),
}
LAYOUT = Layout.of_model(MODEL)
UPDATE = [1.0, -2.0, 0.0, 2.0, 0.0, -4.0, 0.3, -0.4]
SCALES = np.float32([0.5, 0.25])

INSTRUCTION = Instruction(
    steps=(Clip(1.0), Measure("rms"), AddNoise(Gaussian(), SCALES, 3.0), Signs()),
    server_round=4,
    seed=7,
    exact=(1, 3),
)
VECTOR = replace(INSTRUCTION, steps=(*INSTRUCTION.steps[:-1], Vector()))


def asking(*steps, server_round=1):
    last = () if steps and isinstance(steps[-1], Encoding) else (Vector(),)
    return Instruction((*steps, *last), server_round, None, (1, 3))


def reporting(payload, **reports):
    return replace(payload, reports={**payload.reports, **reports})


def measured(*steps, **situation):
    return answer(*steps, **situation).reports["measure"]


def answer(*steps, update=UPDATE, seed=0, memory=None, server_round=1):
    instruction, rng = asking(*steps, server_round=server_round), np.random.default_rng(seed)
    return perturb_update(instruction, LAYOUT, np.array(update, np.float32), MODEL, rng, memory)


@dataclass(frozen=True)
class Scale(ClientStep):
    """Each coordinate times a factor, which the server divides by again."""

    factor: float

    name: ClassVar[str] = "scale"

    def apply(self, draft):
        draft.replace(draft.vector * np.float32(self.factor))

    def undo(self, direction, before):
        return direction / np.float32(self.factor)


@dataclass(frozen=True)
class Shift(ClientStep):
    """Each coordinate plus an offset, which the server subtracts again."""

    offset: float

    name: ClassVar[str] = "shift"

    def apply(self, draft):
        draft.replace(draft.vector + np.float32(self.offset))

    def undo(self, direction, before):
        return direction - np.float32(self.offset)


@dataclass(frozen=True)
class Unregistered(Scale):
    name: ClassVar[str] = "unregistered"


@pytest.fixture(scope="module", autouse=True)
def _own_steps(registries):
    register_client_step(Scale)
    register_client_step(Shift)


positive = st.floats(1e-300, 1e300)
scales = hnp.arrays(
    np.float32, st.integers(0, 5), elements=st.floats(0, float(np.float32(1e30)), width=32)
)
changes = st.tuples(
    st.builds(DivideByLearningRate, positive),
    st.builds(ClientMomentum, st.floats(0, 1, exclude_max=True)),
    st.builds(Clip, positive),
    st.builds(Measure, st.sampled_from(["rms", "max"])),
    st.builds(
        AddNoise,
        st.sampled_from([*NOISE_FAMILIES]).map(lambda family: family()),
        st.none() | scales,
        st.floats(0, 1e300),
    ),
    st.builds(Scale, positive),
    st.builds(Shift, positive),
).flatmap(lambda steps: st.lists(st.sampled_from(steps), unique_by=type))
instructions = st.builds(
    Instruction,
    steps=st.builds(
        lambda steps, last: (*steps, *last), changes, st.sampled_from([(Vector(),), (Signs(),)])
    ),
    server_round=st.integers(0, 2**31),
    seed=st.none() | st.integers(0, 2**130),
    exact=st.lists(st.integers(0, 9)).map(tuple),
)


class TestWireForm:
    def test_is_flat_scalars_with_each_steps_parameters_under_its_name(self):
        own = {
            "instruction": WIRE_VERSION,
            "round": 4,
            "seed": "7",
            "exact": "[1, 3]",
            "steps": '["clip", "measure", "noise", "signs"]',
            "clip.norm": 1.0,
            "measure.magnitude": "rms",
            "noise.family": "gaussian",
            "noise.factor": 3.0,
            "noise.scales": np.array([0.5, 0.25], "<f4").tobytes(),
        }
        assert INSTRUCTION.encode() == {PREFIX + key: value for key, value in own.items()}

    @given(sent=instructions)
    def test_an_instruction_is_read_back_as_it_was_written(self, sent):
        message = sent.encode()
        # A ConfigRecord takes no others, nor does the older API's config.
        assert all(type(value) in (int, float, str, bytes) for value in message.values())
        read = Instruction.decode(message)
        assert read.encode() == message
        assert [type(step) for step in read.steps] == [type(step) for step in sent.steps]
        assert (read.encoding, read.server_round, read.seed, read.exact) == (
            sent.encoding,
            sent.server_round,
            sent.seed,
            sent.exact,
        )

    def test_is_found_in_a_config_among_other_keys(self):
        assert Instruction.is_in({"lr": 0.1, **INSTRUCTION.encode()})
        assert not Instruction.is_in({"lr": 0.1, "instruction": WIRE_VERSION})
        read = Instruction.decode({"lr": 0.1, "steps": "nonsense", **INSTRUCTION.encode()})
        assert read.encode() == INSTRUCTION.encode()

    def test_without_a_seed_none_travels(self):
        message = replace(INSTRUCTION, seed=None).encode()
        assert PREFIX + "seed" not in message
        assert Instruction.decode(message).seed is None

    def test_its_encoding_is_its_last_step(self):
        assert (INSTRUCTION.encoding, VECTOR.encoding) == (Signs(), Vector())

    def test_a_step_is_found_by_its_class(self):
        assert INSTRUCTION.find(Clip) == Clip(1.0)
        assert INSTRUCTION.find(ClientMomentum) is None


def decode(changes):
    """Decode the instruction with some entries changed, or left out where they are None."""
    message = INSTRUCTION.encode() | {PREFIX + key: value for key, value in changes.items()}
    return Instruction.decode({key: value for key, value in message.items() if value is not None})


LISTS = ["*", "[", "1", "null", "{}", "[true]", "[1.0]", "[" * 9999]
MALFORMED = [
    *[("round", value) for value in (1.0, -1, "4")],
    *[("seed", value) for value in (7, "seven", "-7", "", "٣")],
    *[("exact", value) for value in (*LISTS, [1], '"12"', '[1, "a"]', "[-1]")],
    *[("steps", value) for value in (*LISTS, ["clip"], '"signs"', '["clip", 1]')],
    ("steps", '["signs", "clip", "measure", "noise"]'),
    ("steps", '["clip", "measure", "noise"]'),
    ("steps", '["clip", "measure", "noise", "vector", "signs"]'),
    ("steps", "[]"),
    ("steps", '["clip", "clip"]'),
    *[("clip.norm", value) for value in ("1", 0.0, -1.0, nan, inf)],
    *[("measure.magnitude", value) for value in (1, "mean")],
    *[("noise.factor", value) for value in ("3", -1.0, nan)],
]


class TestWhatIsRefused:
    @pytest.mark.parametrize("version", [WIRE_VERSION + 1, WIRE_VERSION - 1])
    def test_an_instruction_of_another_version_is_refused_by_name(self, version):
        with pytest.raises(WireError, match=rf"\b{version}\b.*\b{WIRE_VERSION}\b"):
            decode({"instruction": version})

    def test_a_key_that_is_unknown_here_is_refused_by_name(self):
        with pytest.raises(WireError, match=rf"{PREFIX}future\b"):
            decode({"future": 1})

    def test_a_parameter_of_a_step_that_is_not_asked_for_is_refused_by_name(self):
        with pytest.raises(WireError, match=rf"{PREFIX}momentum\.decay\b"):
            decode({"momentum.decay": 0.9})

    @pytest.mark.parametrize("step", ["clip", "measure", "noise", "signs"])
    def test_a_parameter_that_is_unknown_to_its_step_is_refused_by_name(self, step):
        with pytest.raises(WireError, match=rf"'{step}'.*\bfuture\b"):
            decode({f"{step}.future": 1})

    def test_a_noise_family_that_is_unknown_here_or_does_not_take_a_parameter_is_refused_by_name(
        self,
    ):
        with pytest.raises(WireError, match=r"'cauchy'"):
            decode({"noise.family": "cauchy"})
        with pytest.raises(WireError, match=r"'gaussian'.*'df'"):
            decode({"noise.family.df": 3.0})

    def test_a_step_that_is_unknown_here_is_refused_by_name(self):
        with pytest.raises(WireError, match="'rotate'"):
            decode({"steps": '["clip", "rotate", "signs"]'})
        with pytest.raises(WireError, match="'unregistered'"):
            Instruction.decode(asking(Unregistered(2.0)).encode())

    @given(
        key=st.sampled_from(["instruction", "round", "exact", "steps", "clip.norm", "noise.family"])
    )
    def test_a_missing_field_is_refused_by_name(self, key):
        with pytest.raises(WireError, match=key.split(".")[-1]):
            decode({key: None})

    @given(entry=st.sampled_from(MALFORMED))
    def test_a_malformed_value_is_refused_by_name(self, entry):
        key, value = entry
        with pytest.raises(WireError, match=key.split(".")[-1]):
            decode({key: value})

    def test_a_seed_of_more_digits_than_python_reads_is_refused_by_name(self):
        with pytest.raises(WireError, match="seed"):
            decode({"seed": "9" * 5000})

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


EXACT = LAYOUT.pack_exact(MODEL)
SIGNS_PAYLOAD = Payload(
    encoding="signs",
    body=np.uint8([255]),
    exact=EXACT,
    server_round=4,
    reports={"measure": np.float32([0.1, 0.0])},
)
VECTOR_PAYLOAD = replace(SIGNS_PAYLOAD, encoding="vector", body=np.arange(8, dtype=np.float32))


class TestRequireAnswer:
    def test_a_good_answer_passes(self):
        INSTRUCTION.require_answer(SIGNS_PAYLOAD, LAYOUT)
        VECTOR.require_answer(VECTOR_PAYLOAD, LAYOUT)

    def test_a_client_may_choose_its_scales_where_none_were_told(self):
        own = reporting(SIGNS_PAYLOAD, noise=np.float32([9.0, 0.0]))
        asking(Measure("rms"), AddNoise(Gaussian()), Signs(), server_round=4).require_answer(
            own, LAYOUT
        )
        with pytest.raises(WireError, match="has a report of step 'noise'"):
            INSTRUCTION.require_answer(own, LAYOUT)

    def test_a_report_that_was_not_asked_for_is_refused_and_a_missing_one_too(self):
        plain = replace(VECTOR_PAYLOAD, reports={})
        asking(server_round=4).require_answer(plain, LAYOUT)
        with pytest.raises(WireError, match="magnitudes are missing"):
            VECTOR.require_answer(plain, LAYOUT)
        with pytest.raises(WireError, match=r"'measure'.*not asked for"):
            asking(server_round=4).require_answer(VECTOR_PAYLOAD, LAYOUT)

    @given(server_round=st.sampled_from([0, 3, 5]))
    def test_an_answer_to_another_round_is_refused_with_both(self, server_round):
        other = replace(VECTOR_PAYLOAD, server_round=server_round)
        with pytest.raises(WireError, match=rf"round {server_round}\b.*round 4\b"):
            VECTOR.require_answer(other, LAYOUT)

    def test_that_an_answer_is_to_another_round_is_said_before_anything_else_is_wrong(self):
        other = replace(SIGNS_PAYLOAD, server_round=3, reports={}, body=np.zeros(2, np.uint8))
        with pytest.raises(WireError, match="round 3"):
            VECTOR.require_answer(other, LAYOUT)

    @given(
        case=st.sampled_from(
            [
                ({"encoding": "vector"}, r"'vector'.*'signs'"),
                ({"body": np.zeros(2, np.uint8)}, r"signs.*\(1,\).*\(2,\)"),
                ({"body": np.zeros((1, 1), np.uint8)}, r"signs.*\(1,\).*\(1, 1\)"),
                ({"body": np.zeros(1, np.float32)}, r"signs.*uint8.*float32"),
                ({"exact": np.zeros(0, np.uint8)}, r"exact.*\(16,\).*\(0,\)"),
                ({"exact": np.zeros(16, np.int8)}, r"exact.*uint8.*int8"),
                (
                    {"reports": {"measure": np.zeros(1, np.float32)}},
                    r"magnitudes.*\(2,\).*\(1,\)",
                ),
            ]
        )
    )
    def test_an_answer_of_another_form_is_refused_with_what_was_wanted(self, case):
        changes, named = case
        with pytest.raises(WireError, match=named):
            INSTRUCTION.require_answer(replace(SIGNS_PAYLOAD, **changes), LAYOUT)

    @given(
        body=st.sampled_from([np.zeros(8, np.float64), np.zeros(8, ">f4"), np.zeros(7, np.float32)])
    )
    def test_a_vector_is_float32_of_the_models_dimension(self, body):
        with pytest.raises(WireError, match=r"vector.*float32.*\(8,\)"):
            VECTOR.require_answer(replace(VECTOR_PAYLOAD, body=body), LAYOUT)

    @given(value=st.sampled_from([nan, inf, -inf]))
    def test_no_number_of_an_answer_is_nan_or_infinite(self, value):
        body = VECTOR_PAYLOAD.body.copy()
        body[7] = value
        statistics = {**MODEL, "running_mean": np.float32([1, value])}
        for changes, named in (
            ({"body": body}, "vector"),
            ({"reports": {"measure": np.float32([0.5, value])}}, "magnitudes"),
            ({"exact": LAYOUT.pack_exact(statistics)}, "'running_mean'"),
        ):
            with pytest.raises(WireError, match=named):
                VECTOR.require_answer(replace(VECTOR_PAYLOAD, **changes), LAYOUT)

    def test_no_size_of_an_answer_is_negative(self):
        asked = asking(Measure("rms"), AddNoise(Gaussian()), server_round=4)
        good = reporting(VECTOR_PAYLOAD, noise=np.float32([0.5, 0.0]))
        asked.require_answer(good, LAYOUT)
        for step, name in (("noise", "scales"), ("measure", "magnitudes")):
            with pytest.raises(WireError, match=name):
                asked.require_answer(reporting(good, **{step: np.float32([0.5, -1.0])}), LAYOUT)


class TestPerturbUpdate:
    @given(
        steps=st.sampled_from([*NOISE_FAMILIES]).flatmap(
            lambda family: st.permutations(
                [
                    DivideByLearningRate(0.5),
                    ClientMomentum(0.5),
                    Clip(1.0),
                    Measure("rms"),
                    AddNoise(family(), SCALES),
                    Scale(2.0),
                    Shift(3.0),
                ]
            )
        ),
        count=st.integers(0, 7),
        last=st.sampled_from([(Vector(),), (Signs(),)]),
    )
    def test_any_order_of_steps_is_followed_by_who_reads_it_to_an_answer_that_is_taken(
        self, steps, count, last
    ):
        asked = asking(*steps[:count], *last)
        here, there = (
            perturb_update(
                instruction,
                LAYOUT,
                np.array(UPDATE, np.float32),
                MODEL,
                np.random.default_rng(0),
                {},
            )
            for instruction in (asked, Instruction.decode(asked.encode()))
        )
        asked.require_answer(here, LAYOUT)
        np.testing.assert_array_equal(here.body, there.body)
        assert here.encode()[1] == there.encode()[1]

    def test_without_steps_sends_the_update_as_it_is(self):
        payload = answer()
        assert payload.body.dtype == np.float32
        assert payload.body.tolist() == np.float32(UPDATE).tolist()
        assert payload.encoding == "vector"
        assert payload.reports == {}

    def test_with_the_sign_step_sends_one_bit_for_each_coordinate(self):
        update = [1.0, -2.0, 3.0, 2.0, -1.0, -4.0, 0.3, -0.4]
        payload = answer(Signs(), update=update)
        assert payload.body.tolist() == pack_signs(update).tolist()
        assert unpack_signs(payload.body, 8).tolist() == np.sign(update).tolist()

    def test_says_which_noise_and_magnitudes_it_has_used(self):
        steps = Measure("max"), AddNoise(Uniform(), None, 3.0)
        payload, asked = answer(*steps), asking(*steps)
        assert asked.sizes_of(payload, LAYOUT.blocks)[1] == pytest.approx([4.0, 0.4])
        assert asked.sizes_of(payload, LAYOUT.blocks)[0] == pytest.approx([12.0, 1.2])

    def test_what_the_server_told_is_not_reported_and_what_was_not_asked_for_is_zero(self):
        told = AddNoise(Gaussian(), SCALES)
        payload, asked = answer(told), asking(told)
        assert payload.reports == {}
        assert asked.sizes_of(payload, LAYOUT.blocks)[0].tolist() == SCALES.tolist()
        assert asked.sizes_of(payload, LAYOUT.blocks)[1].tolist() == [0, 0]
        assert asking().sizes_of(answer(), LAYOUT.blocks)[0].tolist() == [0, 0]

    def test_takes_the_steps_in_their_order(self):
        long = [3.0, 0, 0, 0, 0, 0, 4.0, 0]
        divide, clip = DivideByLearningRate(0.5), Clip(5.0)
        assert answer(clip, divide, update=long).body == pytest.approx(np.multiply(long, 2))
        assert answer(divide, clip, update=long).body == pytest.approx(long)
        assert measured(clip, Measure("max"), divide, update=long) == pytest.approx([3, 4])
        assert measured(divide, Measure("max"), update=long) == pytest.approx([6, 8])

    def test_momentum_remembers_what_comes_before_it_and_nothing_that_comes_after(self):
        memory, noise = {}, AddNoise(Gaussian(), np.float32([1e3, 1e3]))
        steps = DivideByLearningRate(0.5), ClientMomentum(0.5), Clip(1.0), noise
        answer(*steps, update=[4.0] * 8, memory=memory)
        later = answer(*steps[:2], update=[1.0] * 8, memory=memory, server_round=2)
        assert later.body == pytest.approx([(0.25 * 8 + 0.5 * 2) / 0.75] * 8)

    def test_noise_is_no_part_of_the_magnitudes(self):
        measure, noise = Measure("rms"), AddNoise(Gaussian(), np.float32([1e3, 1e3]))
        np.testing.assert_array_equal(measured(measure, noise), measured(measure))

    def test_the_answer_follows_from_the_generator(self):
        steps = Measure("rms"), AddNoise(Gaussian())
        first, again, other = (answer(*steps, seed=seed).body for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert np.all(first != other)

    def test_exact_arrays_are_sent_as_they_are_whatever_the_steps(self):
        noise = AddNoise(Gaussian(), np.float32([9, 9]))
        for last in (Vector(), Signs()):
            exact = LAYOUT.unpack_exact(answer(Clip(1e-3), noise, last).exact)
            assert exact["running_mean"].tolist() == [0.5, -0.5]
            assert exact["steps"] == 3

    @given(value=st.sampled_from([nan, inf, -inf]), position=st.integers(0, 7))
    def test_an_update_that_is_not_finite_is_neither_sent_nor_remembered(self, value, position):
        update, memory = list(UPDATE), {}
        update[position] = value
        with pytest.raises(UpdateError, match="'w'" if position < 6 else "'b'"):
            answer(ClientMomentum(0.9), Signs(), update=update, memory=memory)
        assert memory == {}

    def test_an_answer_names_the_round_that_it_was_asked_in(self):
        assert answer(server_round=7).server_round == 7

    def test_the_partition_travels_for_the_log(self):
        rng, update = np.random.default_rng(0), np.array(UPDATE, np.float32)
        payload = perturb_update(asking(), LAYOUT, update, MODEL, rng, partition=5)
        assert payload.partition == 5
        assert answer().partition is None


class TestUndo:
    def test_block_by_block_is_for_rotations_but_not_for_subclasses_of_their_own_undo(self):
        class Flip(Rotation):
            def undo(self, direction, before):
                return -super().undo(direction, before)

        found = [asking(kind(seed=1), Signs()).undoes_blocks(LAYOUT) for kind in (Rotation, Flip)]
        assert found == [True, False]

    @given(
        steps=st.permutations([Scale(4.0), Shift(3.0), Clip(1e9), Measure("rms")]),
        update=hnp.arrays(np.float32, 8, elements=st.integers(-99, 99)),
    )
    def test_undoes_the_steps_in_the_opposite_order(self, steps, update):
        sent = answer(*steps, update=update).body
        undone = asking(*steps).undo(sent.copy(), LAYOUT)
        np.testing.assert_array_equal(undone, update)

    def test_without_a_step_to_undo_the_direction_stays(self):
        direction = np.float32(UPDATE)
        undone = asking(Clip(0.1), DivideByLearningRate(0.5), Signs()).undo(direction, LAYOUT)
        assert undone.tolist() == np.float32(UPDATE).tolist()

    def test_blocks_are_the_models_arrays_unless_a_step_changes_them(self):
        assert asking(Clip(1.0), Signs()).blocks(LAYOUT) == LAYOUT.blocks
