"""The client's side of a round: clip, measure, add noise, take signs, pack."""

from dataclasses import replace
from math import inf, nan, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmedian import Gaussian, Instruction, Layout, Uniform, pack_signs, unpack_signs
from fedmedian.noise import NOISE_FAMILIES
from fedmedian.perturbation import UpdateError, add_noise, perturb_update
from fedmedian.wire import WireError

MODEL = {
    "w": np.zeros((2, 3), np.float32),
    "running_mean": np.array([0.5, -0.5], np.float32),
    "b": np.zeros(2, np.float32),
    "steps": np.array(3),
}
LAYOUT = Layout.of(MODEL)

# Asks for the update itself, untouched.
PLAIN = Instruction(
    kind="vector",
    noise=None,
    scales=None,
    factor=3.0,
    of="rms",
    clip=None,
    server_round=1,
    seed=None,
    dense=(),
)


def answer(update, seed=0, layout=LAYOUT, model=MODEL, **asked):
    update = np.array(update, np.float32)
    rng = np.random.default_rng(seed)
    return perturb_update(replace(PLAIN, **asked), layout, update, model, rng)


def large_answer(update, **asked):
    """Answer with two arrays of 50,000 coordinates each, whose updates are two numbers."""
    n = 50_000
    layout = Layout.of({"a": np.zeros(n), "b": np.zeros(n)})
    return answer(np.repeat(update, n), layout=layout, model={}, **asked)


UPDATE = [1.0, -2.0, 0.0, 2.0, 0.0, -4.0, 0.3, -0.4]


class TestClipping:
    @pytest.mark.parametrize("clip", [0.5, 4.9])
    def test_scales_the_whole_update_to_the_norm(self, clip):
        payload = answer([3.0, 0, 0, 0, 0, 0, 4.0, 0], clip=clip)
        assert payload.body == pytest.approx([0.6 * clip, 0, 0, 0, 0, 0, 0.8 * clip, 0])

    @pytest.mark.parametrize("clip", [5.0, 6.0, None])
    def test_leaves_a_smaller_update_alone(self, clip):
        update = [3.0, 0, 0, 0, 0, 0, 4.0, 0]
        assert answer(update, clip=clip).body.tolist() == update

    @given(
        update=hnp.arrays(np.float32, 8, elements=st.floats(-(2.0**99), 2.0**99, width=32)),
        clip=st.floats(1e-3, 1e3),
    )
    def test_no_update_is_longer_than_the_norm(self, update, clip):
        body = answer(update, clip=clip).body.astype(np.float64)
        assert np.linalg.norm(body) <= clip * (1 + 1e-6)

    def test_comes_before_the_noise_and_before_the_magnitudes(self):
        payload = large_answer(
            [300.0, 400.0], clip=1.0, noise="gaussian", scales=np.array([5, 5], np.float32)
        )
        clipped = 1 / sqrt(50_000) * np.array([0.6, 0.8])
        assert payload.magnitudes == pytest.approx(clipped, rel=1e-5)
        assert payload.body.std() == pytest.approx(5, rel=0.02)


class TestMagnitudes:
    def test_rms_of_each_array(self):
        expected = [sqrt((1 + 4 + 4 + 16) / 6), sqrt((0.09 + 0.16) / 2)]
        assert answer(UPDATE, of="rms").magnitudes == pytest.approx(expected)

    def test_largest_absolute_entry_of_each_array(self):
        assert answer(UPDATE, of="max").magnitudes == pytest.approx([4.0, 0.4])

    def test_none_is_reported_where_none_is_asked_for(self):
        assert not answer(UPDATE, of=None).magnitudes.any()

    @pytest.mark.parametrize("of", ["rms", "max"])
    def test_are_those_of_the_update_and_not_of_its_noise(self, of):
        scales = np.array([1e3, 1e3], np.float32)
        noisy = answer(UPDATE, of=of, noise="gaussian", scales=scales)
        assert np.array_equal(noisy.magnitudes, answer(UPDATE, of=of).magnitudes)

    @pytest.mark.parametrize("of", ["rms", "max"])
    def test_are_zero_for_arrays_that_did_not_move_or_are_empty(self, of):
        layout = Layout.of({"still": np.zeros(2), "empty": np.zeros((0, 3))})
        payload = answer([0, 0], of=of, layout=layout, noise="laplace")
        assert payload.magnitudes.tolist() == [0.0, 0.0]
        assert payload.scales.tolist() == [0.0, 0.0]

    @pytest.mark.parametrize("of", ["rms", "max"])
    @pytest.mark.parametrize("size", [1e-30, 1e30])
    def test_neither_overflow_nor_vanish(self, of, size):
        assert answer([size] * 8, of=of).magnitudes == pytest.approx([size, size])


class TestNoiseScales:
    def test_told_ones_are_used_as_told(self):
        told = np.array([0.5, 0.25], np.float32)
        payload = answer(UPDATE, noise="uniform", scales=told, factor=99.0)
        assert payload.scales.dtype == np.float32
        assert payload.scales.tolist() == [0.5, 0.25]

    @pytest.mark.parametrize("of", ["rms", "max"])
    def test_otherwise_a_client_takes_the_factor_times_its_own_magnitude(self, of):
        payload = answer(UPDATE, noise="gaussian", factor=3.0, of=of)
        assert payload.scales.dtype == np.float32
        assert payload.scales == pytest.approx(3 * payload.magnitudes)

    def test_without_noise_they_are_zero_whatever_was_told(self):
        payload = answer(UPDATE, scales=np.array([0.5, 0.25], np.float32))
        assert payload.scales.tolist() == [0.0, 0.0]

    @pytest.mark.parametrize("noise", NOISE_FAMILIES)
    def test_each_array_gets_noise_of_its_own_scale(self, noise):
        payload = large_answer([0.7, 0.0], noise=noise, scales=np.array([2.0, 0.5], np.float32))
        first, second = payload.body.reshape(2, -1).astype(np.float64)
        assert first.mean() == pytest.approx(0.7, abs=4 * 2 / sqrt(first.size))
        assert second.mean() == pytest.approx(0.0, abs=4 * 0.5 / sqrt(second.size))
        assert first.std() == pytest.approx(2.0, rel=0.03)
        assert second.std() == pytest.approx(0.5, rel=0.03)
        assert abs(np.corrcoef(first, second)[0, 1]) < 4 / sqrt(first.size)

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_a_wrong_number_of_them_is_refused(self, count):
        message = f"instruction has noise scales for {count} arrays, the model has 2"
        with pytest.raises(WireError, match=message):
            answer(UPDATE, noise="gaussian", scales=np.ones(count, np.float32))


class TestPayload:
    @pytest.mark.parametrize("kind", ["signs", "vector"])
    @pytest.mark.parametrize("noise", [None, *NOISE_FAMILIES])
    def test_answers_the_instruction(self, kind, noise):
        for scales in (None, np.array([0.5, 0.25], np.float32)):
            asked = replace(PLAIN, kind=kind, noise=noise, scales=scales if noise else None)
            answer(UPDATE, **vars(asked)).require_answer(asked, LAYOUT)

    def test_of_plain_vectors_is_the_update(self):
        payload = answer(UPDATE)
        assert payload.body.dtype == np.float32
        assert payload.body.tolist() == np.float32(UPDATE).tolist()

    def test_of_plain_signs_is_one_bit_for_each_sign_of_the_update(self):
        update = [1.0, -2.0, 3.0, 2.0, -1.0, -4.0, 0.3, -0.4]
        payload = answer(update, kind="signs")
        assert payload.body.tolist() == pack_signs(update).tolist()
        assert unpack_signs(payload.body, 8).tolist() == np.sign(update).tolist()

    @pytest.mark.parametrize("noise", NOISE_FAMILIES)
    def test_of_noisy_signs_is_plus_as_often_as_the_noisy_vector(self, noise):
        asked = {"noise": noise, "scales": np.array([1.0, 2.0], np.float32)}
        vector = large_answer([0.5, -0.5], kind="vector", **asked).body
        signs = unpack_signs(large_answer([0.5, -0.5], kind="signs", **asked).body, vector.size)
        for noisy, votes in zip(vector.reshape(2, -1), signs.reshape(2, -1), strict=True):
            assert abs(np.sign(noisy).mean() - votes.mean()) < 4 * sqrt(2 / votes.size)

    def test_of_an_update_that_did_not_move_is_a_fair_coin_for_each_sign(self):
        payload = large_answer([0.0, 0.0], kind="signs", noise="gaussian")
        assert abs(unpack_signs(payload.body, 100_000).sum()) < 4 * sqrt(100_000)

    def test_follows_from_the_generator(self):
        first, again, other = (
            answer(UPDATE, seed=seed, noise="gaussian").body for seed in (1, 1, 2)
        )
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)

    @pytest.mark.parametrize("kind", ["signs", "vector"])
    def test_carries_the_dense_arrays_as_they_are(self, kind):
        scales = np.array([9.0, 9.0], np.float32)
        payload = answer(UPDATE, kind=kind, noise="gaussian", scales=scales, clip=1e-3)
        dense = LAYOUT.unpack_dense(payload.dense)
        assert dense["running_mean"].tolist() == [0.5, -0.5]
        assert dense["steps"] == 3

    @pytest.mark.parametrize("value", [nan, inf, -inf])
    @pytest.mark.parametrize(("position", "name"), [(0, "w"), (5, "w"), (6, "b"), (7, "b")])
    @pytest.mark.parametrize("kind", ["signs", "vector"])
    def test_of_an_update_that_is_not_finite_does_not_exist(self, value, position, name, kind):
        update = list(UPDATE)
        update[position] = value
        with pytest.raises(UpdateError, match=f"^update of array '{name}' holds NaN or infinity$"):
            answer(update, kind=kind, clip=1.0)


class TestAddNoise:
    def test_works_in_place_array_by_array(self):
        update = np.zeros(8, np.float32)
        add_noise(LAYOUT, update, Uniform(), np.float32([0, 1]), np.random.default_rng(0))
        assert not update[:6].any()
        assert update[6:].all()

    def test_the_families_own_scale_plays_no_part(self):
        updates = [np.zeros(8, np.float32) for _ in range(2)]
        for update, noise in zip(updates, (Gaussian(), Gaussian(100.0)), strict=True):
            add_noise(LAYOUT, update, noise, np.float32([1, 1]), np.random.default_rng(0))
        assert np.array_equal(*updates)


class TestDivisor:
    """What the update is divided by first of all: the client's own learning rate."""

    @pytest.mark.parametrize("divisor", [0.1, 1.0, 4.0])
    def test_divides_the_update(self, divisor):
        assert answer(UPDATE, divisor=divisor).body == pytest.approx(np.divide(UPDATE, divisor))

    def test_comes_before_clipping(self):
        payload = answer([3.0, 0, 0, 0, 0, 0, 4.0, 0], divisor=0.5, clip=10.0)
        assert payload.body == pytest.approx([6.0, 0, 0, 0, 0, 0, 8.0, 0])

    def test_comes_before_the_magnitudes(self):
        assert answer(UPDATE, divisor=0.1, of="max").magnitudes == pytest.approx([40.0, 4.0])

    def test_an_update_that_it_makes_infinite_is_not_sent(self):
        with np.errstate(over="ignore"), pytest.raises(UpdateError, match="array 'w' holds NaN"):
            answer([1e38] * 8, divisor=1e-3)


class TestMomentum:
    """An average of the client's updates over rounds, which takes the last one's place."""

    @staticmethod
    def rounds(updates, momentum, **asked):
        memory, rng = {}, np.random.default_rng(0)
        asked = replace(PLAIN, momentum=momentum, **asked)
        return [
            perturb_update(
                replace(asked, server_round=number),
                LAYOUT,
                np.array(update, np.float32),
                MODEL,
                rng,
                memory,
            )
            for number, update in enumerate(updates, start=1)
        ]

    @pytest.mark.parametrize("momentum", [0.5, 0.9])
    def test_sends_the_corrected_exponential_average(self, momentum):
        updates, mean = np.random.default_rng(0).standard_normal((6, 8)), 0.0
        payloads = self.rounds(updates, momentum)
        for t, (update, payload) in enumerate(zip(updates, payloads, strict=True), start=1):
            mean = momentum * mean + (1 - momentum) * update
            np.testing.assert_allclose(payload.body, mean / (1 - momentum**t), rtol=1e-4, atol=1e-6)

    def test_of_a_constant_update_is_that_update(self):
        for payload in self.rounds([UPDATE] * 4, 0.9):
            assert payload.body == pytest.approx(UPDATE, rel=1e-5)

    def test_comes_before_clipping_which_it_does_not_remember(self):
        first, second = self.rounds([[30.0] + [0.0] * 7, [0.0] * 8], 0.5, clip=1.0)
        assert first.body[0] == pytest.approx(1.0)
        # A third of 30, and not of 1, is left of the first.
        assert second.body[0] == pytest.approx(1.0)
        assert self.rounds([[30.0] + [0.0] * 7, [0.0] * 8], 0.5)[1].body[0] == pytest.approx(10.0)

    def test_comes_before_the_noise_which_it_does_not_remember(self):
        scales = np.array([1e3, 1e3], np.float32)
        memory, rng = {}, np.random.default_rng(0)
        noisy = replace(PLAIN, momentum=0.5, noise="gaussian", scales=scales)
        plain = replace(PLAIN, momentum=0.5, server_round=2)
        perturb_update(noisy, LAYOUT, np.ones(8, np.float32), MODEL, rng, memory)
        payload = perturb_update(plain, LAYOUT, np.ones(8, np.float32), MODEL, rng, memory)
        assert payload.body == pytest.approx(np.ones(8))

    def test_comes_after_the_division(self):
        _, second = self.rounds([[4.0] * 8, [1.0] * 8], 0.5, divisor=2.0)
        assert second.body == pytest.approx(np.full(8, 2 / 3 * 0.5 + 1 / 3 * 2.0))

    @pytest.mark.parametrize(
        ("dim", "last_round"), [(3, 1), (8, 7), (8, 2)], ids=["model", "run", "round"]
    )
    def test_starts_afresh_when_the_model_or_the_run_is_another(self, dim, last_round):
        memory = {
            "m": np.ones(dim, np.float32),
            "rounds": np.float32([5]),
            "last-round": np.float32([last_round]),
        }
        asked, update = replace(PLAIN, momentum=0.9, server_round=2), np.array(UPDATE, np.float32)
        payload = perturb_update(asked, LAYOUT, update, MODEL, np.random.default_rng(0), memory)
        assert payload.body == pytest.approx(UPDATE, rel=1e-5)

    def test_goes_on_over_rounds_that_the_client_missed(self):
        memory, rng = {}, np.random.default_rng(0)
        for number, expected in ((1, 4.0), (5, (0.5 * 0.5 * 4 + 0.5 * 1) / 0.75)):
            asked = replace(PLAIN, momentum=0.5, server_round=number)
            update = np.full(8, 4.0 if number == 1 else 1.0, np.float32)
            payload = perturb_update(asked, LAYOUT, update, MODEL, rng, memory)
            assert payload.body == pytest.approx(np.full(8, expected))

    def test_is_not_kept_where_it_is_not_asked_for(self):
        memory = {}
        update = np.array(UPDATE, np.float32)
        perturb_update(PLAIN, LAYOUT, update, MODEL, np.random.default_rng(0), memory)
        assert memory == {}

    def test_a_client_that_cannot_remember_says_so(self):
        with pytest.raises(WireError, match="asks for momentum, which this client cannot remember"):
            answer(UPDATE, momentum=0.9)

    def test_an_update_that_is_not_finite_is_not_remembered(self):
        memory, asked = {}, replace(PLAIN, momentum=0.9)
        rng = np.random.default_rng(0)
        with pytest.raises(UpdateError):
            perturb_update(asked, LAYOUT, np.full(8, nan, np.float32), MODEL, rng, memory)
        assert memory == {}
