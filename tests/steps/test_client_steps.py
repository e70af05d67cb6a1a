"""Client steps: one contract for all of them, what each does, and custom noise families."""

from dataclasses import FrozenInstanceError, dataclass, fields
from functools import partial
from math import inf, nan, sqrt
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import t as student_t

from fedmedian import (
    Adaptive,
    Blocks,
    ClientMomentum,
    ClientStep,
    Clip,
    DivideByLearningRate,
    Gaussian,
    Noise,
    Rotation,
    Uniform,
    pack_signs,
    register_client_step,
    register_noise,
    unpack_signs,
)
from fedmedian.rules.noise import NOISE_FAMILIES
from fedmedian.rules.scales import LADDER
from fedmedian.steps.base import CLIENT_STEPS, Draft, UpdateError
from fedmedian.steps.encodings import Signs, Vector
from fedmedian.steps.noise import AddNoise, Measure, SizeVotes, TopUpNoise
from fedmedian.steps.tied import Tied
from fedmedian.steps.updates import Limit
from fedmedian.strategies import SignSGD
from fedmedian.wire.scalars import WireError


@dataclass(frozen=True)
class Reverse(ClientStep):
    """A custom step: the coordinates in the opposite order, each times a factor."""

    factor: float
    note: str = "there and back"

    name: ClassVar[str] = "reverse"

    def apply(self, draft):
        blocks = self.blocks(draft.blocks)
        draft.replace(draft.vector[::-1] * np.float32(self.factor), blocks)

    def blocks(self, before):
        return Blocks(before.sizes[::-1])

    def undo(self, direction, before):
        return direction[::-1] / np.float32(self.factor)


@dataclass(frozen=True)
class StudentT(Noise):
    """A custom noise family, with a parameter: Student's t, scaled to variance 1."""

    df: float = 5.0

    name: ClassVar[str] = "student-t"

    def __post_init__(self):
        super().__post_init__()
        if not self.df > 2:
            raise ValueError(f"df must be > 2, got {self.df}")

    @property
    def _spread(self):
        return sqrt(self.df / (self.df - 2))

    def cdf(self, x):
        return student_t.cdf(np.multiply(x, self._spread), self.df)

    def density(self, x):
        return self._spread * student_t.pdf(np.multiply(x, self._spread), self.df)

    def sample(self, rng, size):
        return np.float32(rng.standard_t(self.df, size) / self._spread)


@dataclass(frozen=True)
class Mixture(Gaussian):
    weights: object = ()

    name: ClassVar[str] = "mixture"


@dataclass(frozen=True)
class Unregistered(StudentT):
    name: ClassVar[str] = "unregistered"


@pytest.fixture(scope="module", autouse=True)
def _own_classes(registries):
    register_client_step(Reverse)
    register_noise(StudentT)
    register_noise(Mixture)


BLOCKS = Blocks((6, 2))
UPDATE = [1.0, -2.0, 0.0, 2.0, 0.0, -4.0, 0.3, -0.4]


def draft_of(update=UPDATE, blocks=BLOCKS, seed=0, memory=None, server_round=1, question=0):
    rng, own = np.random.default_rng(seed), np.array(update, np.float32)
    return Draft(own, blocks, server_round, rng, memory, question=question)


def after(step, update=UPDATE, **situation):
    """A draft after one step."""
    draft = draft_of(update, **situation)
    step.apply(draft)
    return draft


STEPS = [
    DivideByLearningRate(0.5),
    ClientMomentum(0.5),
    Clip(1.0),
    Limit(1.0),
    Measure("max"),
    SizeVotes("rms", np.float32([0.5, np.nan])),
    SizeVotes("max"),
    AddNoise(Gaussian(), np.float32([0.5, 0.25])),
    AddNoise(StudentT(df=4.0), None, 3.0),
    AddNoise(Gaussian(), np.float32([0.5, np.nan]), 3.0, quiet=True),
    TopUpNoise(Gaussian(), np.float32([5, 0.1])),
    TopUpNoise(Gaussian(), None, 1.5),
    Rotation(smallest=4, seed=3),
    Tied(((0,), (1,))),
    Signs(),
    Vector(),
    Reverse(3.0),
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
class TestEveryStep:
    @staticmethod
    def apply(step, seed=0, memory=None):
        draft = draft_of(seed=seed, memory={} if memory is None else memory)
        Measure("rms").apply(draft)  # which noise in proportion to the update asks for
        step.apply(draft)
        return draft

    def test_is_a_value_that_arrives_as_it_was_sent(self, step):
        parameters = step.encode()
        assert all(type(value) in (bool, int, float, str, bytes) for value in parameters.values())
        arrived = CLIENT_STEPS.find(step.name).decode(parameters)
        assert type(arrived) is type(step)
        for field in fields(step):
            value, expected = getattr(arrived, field.name), getattr(step, field.name)
            if isinstance(expected, np.ndarray):
                np.testing.assert_array_equal(value, expected)
            else:
                assert value == expected
        with pytest.raises(FrozenInstanceError):
            step.name = "another"

    def test_a_parameter_that_it_does_not_know_is_refused_by_name(self, step):
        with pytest.raises(TypeError, match="surprise"):
            type(step).decode({**step.encode(), "surprise": 1.0})

    def test_leaves_a_vector_of_the_blocks_that_it_says_which_undo_brings_back(self, step):
        draft = self.apply(step)
        assert draft.blocks == step.blocks(BLOCKS)
        assert draft.vector.dtype == np.float32
        assert draft.vector.shape == (draft.blocks.dim,)
        assert step.undo(np.zeros(draft.blocks.dim, np.float32), BLOCKS).shape == (BLOCKS.dim,)

    def test_what_another_step_remembers_stays_as_it_is(self, step):
        memory = {"another": {"m": np.array([1.0, 2.0]), "last-round": np.array([9])}}
        self.apply(step, memory=memory)
        assert memory["another"]["m"].tolist() == [1.0, 2.0]
        assert memory["another"]["m"].dtype == np.float64
        assert memory["another"]["last-round"].tolist() == [9]
        assert set(memory) <= {"another", step.name}

    def test_what_it_does_follows_from_the_generator(self, step):
        first, again = (self.apply(step, seed=3) for _ in range(2))
        np.testing.assert_array_equal(first.body, again.body)
        np.testing.assert_array_equal(first.vector, again.vector)


@pytest.mark.parametrize(
    ("step", "parameter", "values"),
    [
        (DivideByLearningRate, "learning_rate", [0.0, -1.0, nan, inf]),
        (ClientMomentum, "decay", [1.0, -0.1, nan]),
        (Clip, "norm", [0.0, -1.0, nan, inf]),
        (Limit, "largest", [0.0, -1.0, nan, inf]),
        (SizeVotes, "magnitude", ["mean", ""]),
        (Measure, "magnitude", ["mean", ""]),
        (Rotation, "smallest", [0, -1, 2**63]),
        (partial(Rotation, 256, None), "largest", [0, 2**63]),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name_and_value(step, parameter, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^{parameter} must") as refused:
            step(value)
        assert repr(value) in str(refused.value)
    for value in (None, [1.0], True):
        with pytest.raises(TypeError, match=f"^{parameter} must"):
            step(value)


class TestDivideByLearningRate:
    @given(rate=st.floats(1e-3, 1e3))
    def test_divides_the_update(self, rate):
        divided = after(DivideByLearningRate(rate)).vector
        assert divided == pytest.approx(np.divide(UPDATE, rate), rel=1e-6)

    def test_an_update_that_it_makes_infinite_is_not_sent(self):
        with pytest.raises(UpdateError, match=r"learning rate 0\.001"):
            after(DivideByLearningRate(1e-3), [1e38] * 8)


class TestClip:
    @given(
        update=hnp.arrays(np.float32, 8, elements=st.floats(-(2.0**99), 2.0**99, width=32)),
        norm=st.floats(1e-3, 1e3),
    )
    def test_scales_a_longer_update_to_the_norm_and_leaves_a_shorter_one_alone(self, update, norm):
        clipped, length = after(Clip(norm), update).vector, np.linalg.norm(np.float64(update))
        expected = update * min(1.0, norm / max(length, 1e-300))
        np.testing.assert_allclose(clipped, expected, rtol=1e-6, atol=1e-37)
        if length <= norm:
            np.testing.assert_array_equal(clipped, update)

    def test_is_of_the_whole_update_and_not_of_each_block(self):
        clipped = after(Clip(0.5), [3.0, 0, 0, 0, 0, 0, 4.0, 0]).vector
        assert clipped == pytest.approx([0.3, 0, 0, 0, 0, 0, 0.4, 0])

    def test_an_update_as_long_as_float32_goes_is_clipped_to_no_more_than_the_norm(self):
        for norm in (1e-6, 1e-30):
            clipped = after(Clip(norm), [3e38] * 8).vector
            assert np.linalg.norm(np.float64(clipped)) <= norm * (1 + 1e-6)

    @given(
        update=hnp.arrays(np.float32, 8, elements=st.floats(width=32)),
        norm=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    )
    def test_of_any_update_to_any_norm_it_leaves_a_finite_one_that_is_no_longer(self, update, norm):
        clipped = after(Clip(norm), update).vector
        assert np.isfinite(clipped).all()
        assert not clipped.any() or np.isfinite(update).all()
        # Entries as small as float32 has are rounded to the next of them.
        assert np.linalg.norm(np.float64(clipped)) <= norm * (1 + 1e-6) + 4 * 1.4e-45

    @pytest.mark.parametrize("value", [nan, inf, -inf])
    def test_one_entry_that_is_not_finite_makes_the_whole_update_zero(self, value):
        assert not after(Clip(1.0), [*UPDATE[:-1], value]).vector.any()


class TestMeasure:
    def test_rms_of_each_block(self):
        expected = [sqrt((1 + 4 + 4 + 16) / 6), sqrt((0.09 + 0.16) / 2)]
        assert after(Measure("rms")).reports["measure"] == pytest.approx(expected)

    def test_largest_absolute_entry_of_each_block(self):
        assert after(Measure("max")).reports["measure"] == pytest.approx([4.0, 0.4])

    @pytest.mark.parametrize("magnitude", ["rms", "max"])
    def test_is_float32_zero_without_movement_or_entries_and_of_any_size(self, magnitude):
        update, blocks = [0.0] * 3 + [1e-30] * 2 + [-1e30] * 2, Blocks((3, 0, 2, 2))
        draft = after(Measure(magnitude), update, blocks=blocks)
        magnitudes = draft.reports["measure"]
        assert magnitudes.dtype == np.float32
        expected = np.float32([0.0, 0.0, 1e-30, 1e30])
        np.testing.assert_allclose(magnitudes, expected, rtol=1e-6)
        assert draft.vector.tolist() == np.float32(update).tolist()


def averages(memory):
    """Return the averages that momentum remembers, by place."""
    return {place: m for place, m in memory["momentum"].items() if place.startswith("m of ")}


class TestClientMomentum:
    """An average of the client's updates over rounds, which takes the last one's place."""

    @staticmethod
    def sent(updates, decay=0.5, rounds=None, memory=None):
        """What is sent in each of the rounds, which follow each other unless they are given."""
        memory = {} if memory is None else memory
        rounds = range(1, len(updates) + 1) if rounds is None else rounds
        return [
            after(ClientMomentum(decay), update, memory=memory, server_round=number).vector
            for update, number in zip(updates, rounds, strict=True)
        ]

    @pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
    def test_sends_the_corrected_exponential_average(self, decay):
        updates, mean = np.random.default_rng(0).standard_normal((6, 8)), 0.0
        for t, sent in enumerate(self.sent(updates, decay), start=1):
            mean = decay * mean + (1 - decay) * updates[t - 1]
            np.testing.assert_allclose(sent, mean / (1 - decay**t), rtol=1e-4, atol=1e-6)

    def test_of_a_constant_update_is_that_update(self):
        for sent in self.sent([UPDATE] * 4, 0.9):
            assert sent == pytest.approx(UPDATE, rel=1e-5)

    def test_continues_over_rounds_that_the_client_missed(self):
        _, second = self.sent([[4.0] * 8, [1.0] * 8], rounds=(1, 5))
        assert second == pytest.approx([(0.25 * 4 + 0.5 * 1) / 0.75] * 8)

    @pytest.mark.parametrize("number", [1, 7], ids=["an earlier round", "the same round"])
    def test_starts_afresh_in_a_round_that_does_not_come_after_the_last(self, number):
        _, second = self.sent([[4.0] * 8, UPDATE], rounds=(7, number))
        assert second == pytest.approx(UPDATE, rel=1e-5)

    def test_continues_over_the_questions_of_a_round(self):
        memory = {}
        for question, sent in enumerate([4.0, (0.25 * 4 + 0.5 * 1) / 0.75]):
            update = [[4.0, 1.0][question]] * 8
            draft = draft_of(update, memory=memory, server_round=7, question=question)
            ClientMomentum(0.5).apply(draft)
            assert draft.vector == pytest.approx([sent] * 8)

    def test_starts_afresh_with_a_model_of_another_size(self):
        memory = {}
        self.sent([[4.0] * 8], memory=memory)
        draft = draft_of([1.0, 2.0], Blocks((2,)), memory=memory, server_round=2)
        ClientMomentum(0.5).apply(draft)
        assert draft.vector.tolist() == [1.0, 2.0]

    def test_forgets_arrays_that_are_not_sent_any_more(self):
        """Else a server that renames them in each round fills the memory."""
        memory = {}

        def send(number, *names):
            blocks = Blocks((1,) * len(names), tuple((name,) for name in names))
            values = [float(number)] * len(names)
            draft = draft_of(values, blocks, memory=memory, server_round=number)
            ClientMomentum(0.5).apply(draft)
            return draft.vector.tolist()

        send(1, "kept", "lost")
        for number in range(2, 64):
            send(number, f"other {number}")
        assert send(64, "kept") == [pytest.approx((0.25 * 1 + 0.5 * 64) / 0.75)]
        send(65, "other 65")
        assert len(averages(memory)) == 64
        assert send(66, "lost") == [66]

    def test_tells_rounds_apart_that_float32_does_not(self):
        memory = {}
        _, second = self.sent([[4.0] * 8, [1.0] * 8], rounds=(2**24, 2**24 + 1), memory=memory)
        assert second == pytest.approx([2.0] * 8)
        assert memory["momentum"]["last-question"].dtype == np.int64
        assert {m.dtype.name for m in averages(memory).values()} == {"float32"}

    @pytest.mark.parametrize("value", [nan, inf, -inf])
    def test_an_update_that_is_not_finite_does_not_get_into_the_average(self, value):
        memory = {}
        self.sent([UPDATE], memory=memory)
        with pytest.raises(UpdateError, match="not finite"):
            self.sent([[value] * 8], rounds=[2], memory=memory)
        (sent,) = self.sent([UPDATE], rounds=[3], memory=memory)
        assert sent == pytest.approx(UPDATE, rel=1e-5)

    def test_an_average_that_is_not_finite_is_forgotten(self):
        memory = {}
        self.sent([UPDATE], memory=memory)
        for average in averages(memory).values():
            average[:] = nan
        (sent,) = self.sent([UPDATE], rounds=[2], memory=memory)
        assert sent == pytest.approx(UPDATE, rel=1e-5)

    def test_a_client_that_cannot_remember_refuses_it_by_name(self):
        with pytest.raises(WireError, match="momentum"):
            after(ClientMomentum(0.5), memory=None)


@given(step=st.sampled_from([AddNoise(Gaussian(), np.float32([1, 1])), Clip(1.0), Signs()]))
def test_a_step_that_needs_no_memory_is_taken_without_one(step):
    after(step, memory=None)
    memory = {}
    after(step, memory=memory)
    assert memory == {}


def long_draft(*values, seed=0):
    """A draft of blocks of 50,000 equal coordinates."""
    n = 50_000
    return draft_of(np.repeat(np.float32(values), n), Blocks((n,) * len(values)), seed=seed)


# Bounds on means of n draws are five standard errors: 1 in 1.7 million would be outside, had the
# draws no seed.
class TestAddNoise:
    def test_told_scales_are_used_as_told(self):
        told = np.float32([0.5, 0.25])
        draft = after(AddNoise(Uniform(), told, factor=99.0))
        noise = draft.vector - np.float32(UPDATE)
        assert (np.abs(noise) <= sqrt(3) * np.repeat(told, BLOCKS.sizes) + 1e-6).all()
        assert "noise" not in draft.reports

    @pytest.mark.parametrize("magnitude", ["rms", "max"])
    def test_otherwise_a_client_takes_the_factor_times_what_it_has_measured(self, magnitude):
        draft = after(Measure(magnitude))
        AddNoise(Gaussian(), factor=3.0).apply(draft)
        reported = draft.reports["noise"]
        assert reported.dtype == np.float32
        assert reported == pytest.approx(3 * draft.reports["measure"])

    def test_a_scale_of_nan_is_the_clients_own_and_the_others_are_as_told(self):
        draft = after(Measure("max"))
        step = AddNoise(Uniform(), np.float32([0.5, np.nan]), factor=3.0)
        step.apply(draft)
        assert draft.reports["noise"] == pytest.approx([0.5, 1.2])
        step.check(draft.reports["noise"], BLOCKS)

    @pytest.mark.parametrize(
        ("told", "reported", "named"),
        [
            ([0.5, np.nan], [0.6, 1.2], "other noise scales"),
            ([0.5, np.nan], None, "scales are missing"),
            ([0.5, np.nan], [0.5, np.nan], "scales must be from 0"),
            ([0.5, np.nan], [0.5], r"scales.*\(2,\).*\(1,\)"),
            ([0.5, 0.25], [0.5, 0.25], "has a report of step 'noise'"),
            (None, None, "scales are missing"),
        ],
    )
    def test_scales_that_differ_from_what_was_told_are_refused(self, told, reported, named):
        step = AddNoise(Gaussian(), None if told is None else np.float32(told))
        with pytest.raises(WireError, match=named):
            step.check(None if reported is None else np.float32(reported), BLOCKS)

    def test_with_neither_scales_nor_a_magnitude_it_is_refused(self):
        with pytest.raises(WireError, match="scales"):
            after(AddNoise(Gaussian()))

    def test_another_number_of_scales_than_blocks_is_refused_with_both(self):
        for count in (0, 1, 3):
            with pytest.raises(WireError, match=rf"scales\b.*\b{count}\b.*\b2\b"):
                after(AddNoise(Gaussian(), np.ones(count, np.float32)))

    @pytest.mark.parametrize("noise", [Gaussian, StudentT], ids=lambda noise: noise.name)
    def test_each_block_gets_independent_noise_of_its_own_scale(self, noise):
        draft = long_draft(0.7, 0.0)
        AddNoise(noise(), np.float32([2.0, 0.5])).apply(draft)
        first, second = np.float64(draft.vector).reshape(2, -1)
        assert first.mean() == pytest.approx(0.7, abs=5 * 2 / sqrt(first.size))
        assert second.mean() == pytest.approx(0.0, abs=5 * 0.5 / sqrt(second.size))
        assert first.std() == pytest.approx(2.0, rel=0.05)
        assert second.std() == pytest.approx(0.5, rel=0.05)
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / sqrt(first.size)

    def test_a_scale_of_zero_leaves_the_block_as_it_is(self):
        draft = after(AddNoise(Uniform(), np.float32([0, 1])))
        assert draft.vector[:6].tolist() == UPDATE[:6]
        assert np.all(draft.vector[6:] != np.float32(UPDATE[6:]))

    def test_the_familys_own_scale_plays_no_part(self):
        scales = np.float32([1, 1])
        one, other = (after(AddNoise(Gaussian(own), scales)).vector for own in (0.1, 100.0))
        np.testing.assert_array_equal(one, other)

    def test_a_later_step_sees_the_noisy_vector(self):
        draft = after(AddNoise(Gaussian(), np.float32([100, 100])))
        noisy = after(AddNoise(Gaussian(), np.float32([100, 100]))).vector
        Clip(1.0).apply(draft)
        np.testing.assert_allclose(draft.vector, noisy / np.linalg.norm(noisy), rtol=1e-5)

    @given(
        entry=st.sampled_from(
            [
                *[("family", value) for value in (3, b"gaussian")],
                *[("factor", value) for value in ("3", None, nan, inf, -1.0)],
                *[("quiet", value) for value in ("no", None, 1)],
                *[("scales", np.float32(value).tobytes()) for value in (inf, -1)],
                *[("family.df", 3.0), ("family.a.b", 3.0)],
            ]
        )
    )
    def test_a_malformed_parameter_is_refused_by_name(self, entry):
        key, value = entry
        with pytest.raises((TypeError, ValueError), match=key.removeprefix("family.")):
            AddNoise.decode({**AddNoise(Gaussian()).encode(), key: value})

    def test_a_familys_scale_is_no_parameter_that_travels(self):
        with pytest.raises((TypeError, ValueError), match="scale"):
            AddNoise.decode({**AddNoise(Gaussian()).encode(), "family.scale": 3.0})


class TestLimit:
    @given(
        update=hnp.arrays(np.float32, 8, elements=st.floats(-(2.0**99), 2.0**99, width=32)),
        largest=st.floats(1e-3, 1e3),
    )
    def test_clips_each_coordinate_by_itself(self, update, largest):
        limited = after(Limit(largest), update).vector
        np.testing.assert_array_equal(limited, np.clip(update, -largest, largest))

    def test_an_infinite_coordinate_becomes_as_large_as_allowed(self):
        assert after(Limit(3.0), [inf, -inf, *UPDATE[2:]]).vector[:2].tolist() == [3.0, -3.0]


class TestSizeVotes:
    def test_each_block_is_compared_with_its_threshold(self):
        rms = np.sqrt([np.mean(np.square(UPDATE[:6])), np.mean(np.square(UPDATE[6:]))])
        for above in ([0.9, 0.9], [0.9, 1.1], [1.1, 0.9]):
            draft = after(SizeVotes("rms", np.float32(rms * above)))
            assert draft.reports["size-votes"].tolist() == [one < 1 for one in above]
            assert draft.vector.tolist() == np.float32(UPDATE).tolist()
            np.testing.assert_allclose(draft.measured, rms, rtol=1e-6)

    def test_without_a_threshold_with_each_rung_of_the_ladder(self):
        step = SizeVotes("max", np.float32([np.nan, 0.5]))
        votes = after(step).reports["size-votes"]
        assert votes.size == step.num_votes(BLOCKS) == LADDER.size + 1
        assert votes[:-1].tolist() == (LADDER < 4.0).tolist()
        assert votes[-1] == 0  # .4 is not above .5
        assert after(SizeVotes("max")).reports["size-votes"].size == 2 * LADDER.size

    def test_a_block_of_zeros_is_above_nothing(self):
        draft = after(SizeVotes("rms", np.float32([0.0, np.nan])), [0.0] * 8)
        assert not draft.reports["size-votes"].any()

    def test_no_client_can_report_more_than_a_bit_for_each(self):
        step = SizeVotes("rms", np.float32([1.0, 2.0]))
        for fine in ([0, 1], [1, 1]):
            step.check(np.float32(fine), BLOCKS)
        for wrong in ([0, 2], [0.5, 1], [-1, 0], [nan, 1], [inf, 0], [1], [1, 1, 1]):
            with pytest.raises(WireError, match="size votes must be"):
                step.check(np.float32(wrong), BLOCKS)
        with pytest.raises(WireError, match="size votes are missing"):
            step.check(None, BLOCKS)

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_thresholds_of_other_blocks_are_refused_with_both_numbers(self, count):
        step = SizeVotes("rms", np.ones(count, np.float32))
        for refuse in (step.blocks, step.num_votes):
            with pytest.raises(WireError, match=rf"thresholds\b.*\b{count}\b.*\b2\b"):
                refuse(BLOCKS)

    @pytest.mark.parametrize("thresholds", [3, "1", b"abc", None, [1.0]])
    def test_malformed_thresholds_are_refused_by_name(self, thresholds):
        sent = {"magnitude": "rms", "thresholds": thresholds}
        if thresholds is None:
            assert SizeVotes.decode(sent).thresholds is None
        else:
            with pytest.raises(WireError, match="thresholds"):
                SizeVotes.decode(sent)


class TestQuietNoise:
    def test_keeps_the_scales_that_a_client_chooses_to_itself(self):
        for step in (AddNoise, TopUpNoise):
            draft = draft_of()
            Measure("rms").apply(draft)
            quiet = step(Gaussian(), None, 3.0, quiet=True)
            quiet.apply(draft)
            assert {*draft.reports} == {"measure"}
            quiet.check(None, BLOCKS)
            with pytest.raises(WireError, match="not asked for"):
                quiet.check(np.ones(2, np.float32), BLOCKS)


class TestSigns:
    def test_without_noise_are_those_of_the_update_and_a_coin_for_each_zero(self):
        update = np.array([1.0, -2.0, 3.0, -1e-30, 0.3, -0.0, 0.0, -0.4], np.float32)
        signs = after(Signs(), update).body
        np.testing.assert_array_equal(signs, pack_signs(update, np.random.default_rng(0)))
        draft = long_draft(0.0)
        Signs().apply(draft)
        assert abs(unpack_signs(draft.body, 50_000).sum()) < 5 * sqrt(50_000)

    @pytest.mark.parametrize("noise", [Gaussian, StudentT], ids=lambda noise: noise.name)
    def test_with_noise_have_its_law_whether_or_not_a_step_has_looked_at_the_vector(self, noise):
        for look in (False, True):
            draft = long_draft(0.5, -0.5)
            AddNoise(noise(), np.float32([1, 2])).apply(draft)
            if look:
                assert draft.vector.size == 100_000
            Signs().apply(draft)
            means = unpack_signs(draft.body, 100_000).reshape(2, -1).mean(axis=1)
            expected = 2 * noise().cdf(np.array([0.5, -0.25])) - 1
            assert means == pytest.approx(expected, abs=5 / sqrt(50_000))


class TestStepOfOnesOwn:
    def test_remembers_in_its_own_dtype_and_changes_it_in_place(self):
        memory, steps = {}, (Reverse(1.0), ClientMomentum(0.5))
        draft = draft_of(memory=memory)
        draft.memory_of(steps[0])["visits"] = np.array([1], np.int8)
        steps[1].apply(draft)
        draft.memory_of(steps[0])["visits"] += 1
        assert memory["reverse"]["visits"].tolist() == [2]
        assert memory["reverse"]["visits"].dtype == np.int8
        assert averages(memory)

    def test_may_add_noise_to_a_vector_that_has_some_already(self):
        draft, noise = draft_of(np.zeros(8)), np.float32([1, 1])
        draft.add_noise(Gaussian(), noise)
        first = after(AddNoise(Gaussian(), noise), np.zeros(8)).vector
        draft.add_noise(Uniform(), noise)
        second = draft.vector - first
        assert np.all(second != 0)
        assert np.all(np.abs(second) < sqrt(3) + 1e-5)

    def test_that_another_model_makes_momentum_forget_keeps_what_it_remembers(self):
        memory = {"reverse": {"m": np.ones(3)}}
        for dim in (8, 2):
            draft = draft_of(np.ones(dim), Blocks((dim,)), memory=memory, server_round=dim)
            ClientMomentum(0.5).apply(draft)
        assert memory["reverse"]["m"].tolist() == [1, 1, 1]

    def test_with_none_for_a_parameter_of_another_default_is_refused_by_name(self):
        @dataclass(frozen=True)
        class Capped(Reverse):
            cap: float | None = 3.0

        with pytest.raises(TypeError, match=r"Capped\.cap\b.*None"):
            Capped(1.0, cap=None).encode()

    def test_with_a_parameter_that_cannot_travel_is_refused_by_name(self):
        with pytest.raises(TypeError, match=r"Reverse\.factor"):
            Reverse(np.ones(2)).encode()


class TestNoiseFamilyOfOnesOwn:
    def test_travels_with_its_parameters_and_without_its_scale(self):
        message = AddNoise(StudentT(Adaptive(2.0), df=7.5)).encode()
        assert message == {"family": "student-t", "family.df": 7.5, "factor": 1.0}
        assert AddNoise.decode(message).noise == StudentT(df=7.5)

    def test_its_parameters_may_be_left_to_their_defaults(self):
        message = {"family": "student-t", "factor": 1.0}
        assert AddNoise.decode(message).noise == StudentT(df=5.0)

    def test_a_parameter_that_it_does_not_take_is_refused_by_name(self):
        for key, value in (("df", 2.0), ("skew", 1.0)):
            message = {**AddNoise(StudentT()).encode(), f"family.{key}": value}
            with pytest.raises(WireError, match=rf"'student-t'.*\b{key}\b"):
                AddNoise.decode(message)

    def test_that_is_registered_may_be_asked_of_clients_and_another_not(self):
        NOISE_FAMILIES.require("noise", StudentT(df=3.0))
        with pytest.raises(ValueError, match=r"^noise\b.*Unregistered.*register_noise"):
            NOISE_FAMILIES.require("noise", Unregistered())
        with pytest.raises(WireError, match="'unregistered'"):
            AddNoise.decode(AddNoise(Unregistered()).encode())

    def test_with_a_parameter_that_cannot_travel_is_refused_by_name(self):
        with pytest.raises(TypeError, match=r"Mixture\.weights"):
            AddNoise(Mixture(weights=np.ones(2))).encode()

    def test_with_a_parameter_that_cannot_travel_is_refused_by_a_strategys_constructor(self):
        with pytest.raises(TypeError, match=r"Mixture\.weights"):
            SignSGD(noise=Mixture(0.1, weights=np.ones(2)))
