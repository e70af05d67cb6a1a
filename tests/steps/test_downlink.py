"""Coded steps: what a code loses, what travels, and what is refused."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmedian.model.blocks import Blocks
from fedmedian.model.layout import Layout
from fedmedian.steps.downlink import (
    CatchUp,
    CodedStep,
    NotHeldError,
    fingerprint,
    is_in,
    keys_in,
    moved,
    version_of_whole,
    whole,
)
from fedmedian.steps.payload import as_version
from fedmedian.wire.scalars import WireError

KEPT = 1 - 2 / np.pi
"""The share of a normal vector's energy that its code loses."""

sizes = st.lists(st.sampled_from([0, 1, 2, 7, 255, 256, 257, 600]), min_size=1, max_size=5)
seeds = st.integers(0, 2**63 - 1)


def energy(vector):
    return float(np.square(vector, dtype=np.float64).sum())


def residual(step, blocks, seed=1, tied=()):
    """Return what the code of a step loses."""
    return step - CodedStep.of(step.copy(), blocks, seed, tied).decoded(blocks)


@given(sizes, seeds, st.sampled_from([1e-12, 1e-3, 1.0, 1e9]), st.sampled_from([1, 3, 50]))
def test_a_code_never_loses_more_than_the_step_has(sizes, seed, scale, every):
    blocks = Blocks(tuple(sizes))
    step = np.random.default_rng(seed).standard_cauchy(blocks.dim).astype(np.float32)
    step[np.arange(blocks.dim) % every != 0] = 0  # sparse
    step *= np.float32(scale / max(float(np.abs(step).max(initial=0)), 1e-20))
    assert energy(residual(step, blocks, seed)) <= energy(step) * (1 + 1e-5)


@pytest.mark.parametrize("kind", ["normal", "sparse", "all equal"])
@pytest.mark.parametrize("shape", [(4096,), (1000, 5000)], ids=str)
def test_the_code_of_a_long_step_loses_a_third_of_its_energy_whatever_it_is(kind, shape):
    blocks, rng = Blocks(shape), np.random.default_rng(3)
    step = rng.standard_normal(blocks.dim).astype(np.float32)
    if kind == "sparse":
        step *= rng.random(blocks.dim) < 0.05
    elif kind == "all equal":
        step = np.ones(blocks.dim, np.float32)
    assert energy(residual(step, blocks)) / energy(step) == pytest.approx(KEPT, abs=0.04)


def test_a_step_of_zeros_is_coded_without_loss():
    blocks = Blocks((300, 0, 5))
    assert not CodedStep.of(np.zeros(305, np.float32), blocks, 1).decoded(blocks).any()


def test_a_code_takes_one_bit_per_parameter_and_four_bytes_per_block():
    step = CodedStep.of(np.ones(12_000, np.float32), Blocks((10_000, 2_000)), 1)
    assert step.signs.nbytes <= 12_000 / 8 * 1.03
    assert step.sizes.nbytes == 8


DTYPES = [np.float16, np.float32, np.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_what_clients_hold_stays_within_two_steps_of_the_server_for_hundreds_of_rounds(dtype):
    rng = np.random.default_rng(0)
    model = {"w": rng.standard_normal((20, 30)).astype(dtype), "b": np.zeros(7, dtype)}
    layout = Layout.of_model(model)
    held, largest = model, 0.3
    for number in range(200):
        step = rng.standard_normal(layout.dim).astype(np.float32)
        step *= largest / np.linalg.norm(step)
        model = layout.move(model, step, 1.0, {})
        difference = layout.difference(held, model)
        held = moved(held, layout, CodedStep.of(difference, layout.blocks, number))
        assert np.linalg.norm(layout.difference(held, model)) < 2 * largest
        assert {name: array.dtype for name, array in held.items()} == dict.fromkeys(model, dtype)


class TestFingerprint:
    MODEL = {"a": np.zeros(4, np.float32), "b": np.zeros(2, np.float32)}  # noqa: RUF012

    def test_equal_models_have_one_name_wherever_their_arrays_lie(self):
        array = np.arange(12, dtype=np.float32).reshape(3, 4)
        assert fingerprint({"x": array}) == fingerprint({"x": np.asfortranarray(array)})
        assert as_version(fingerprint(self.MODEL)) == fingerprint(self.MODEL)

    @pytest.mark.parametrize(
        "other",
        [
            {"a": np.zeros(4, np.float32), "c": np.zeros(2, np.float32)},
            {"b": np.zeros(4, np.float32), "a": np.zeros(2, np.float32)},
            {"a": np.zeros((2, 2), np.float32), "b": np.zeros(2, np.float32)},
            {"a": np.zeros(2, np.float32), "b": np.zeros(4, np.float32)},
            {"a": np.zeros(4, np.int32), "b": np.zeros(2, np.float32)},
            {"a": np.zeros(4, np.float32), "b": np.zeros(2, np.float32), "e": np.zeros(0)},
            {"a": np.zeros(4, np.float32), "b": -np.zeros(2, np.float32)},
        ],
        ids=["names", "order", "shape", "lengths", "dtype", "an empty array", "signs of zeros"],
    )
    def test_models_with_the_same_zeros_have_other_names_if_anything_else_differs(self, other):
        assert fingerprint(other) != fingerprint(self.MODEL)


MODEL = {
    "w": np.linspace(-1, 1, 300, dtype=np.float32).reshape(3, 100),
    "half": np.linspace(-1, 1, 9).astype(np.float16),
    "double": np.linspace(-1, 1, 40),
    "tied": np.linspace(-1, 1, 40),
    "mask": np.array([0, -np.inf, np.nan], np.float32),
    "count": np.array(3),
    "empty": np.zeros((0, 4), np.float32),
}
LAYOUT = Layout.of_model(MODEL)
TIED = LAYOUT.tied(MODEL)


def stepped(number, *, start=MODEL):
    """Return an update of some steps, and the models on its way."""
    models, steps = [start], []
    for seed in range(number):
        difference = np.random.default_rng(seed).standard_normal(LAYOUT.dim).astype(np.float32)
        steps.append(CodedStep.of(difference, LAYOUT.blocks, seed, TIED))
        before = {**models[-1], "count": np.array(seed)}
        models.append(moved(before, LAYOUT, steps[-1]))
    names = [*map(fingerprint, models)]
    exact = LAYOUT.pack_exact(models[-1])
    return CatchUp(names[0], steps, names[1:], exact, LAYOUT.exact_positions), models


def traveled(update):
    arrays, config = update.encode()
    return CatchUp.decode(arrays, config)


class TestTheWire:
    @pytest.mark.parametrize("claim", [None, 3, 0.5, b"0" * 32, "", "0" * 31, "0" * 33, ["0"]])
    def test_a_claim_that_cannot_be_a_fingerprint_is_no_version(self, claim):
        name = fingerprint(MODEL)
        assert as_version(name) == name
        assert as_version(claim) is None

    @pytest.mark.parametrize("number", [0, 1, 5])
    def test_an_update_leads_from_each_of_its_versions_to_the_last_one(self, number):
        update, models = stepped(number)
        read = traveled(update)
        for model in models:
            assert fingerprint(read.applied(model, fingerprint(model))) == fingerprint(models[-1])

    def test_tied_arrays_stay_tied_and_masks_and_empty_arrays_stay(self):
        _, models = stepped(5)
        for name in ("mask", "empty"):
            assert np.array_equal(models[-1][name], MODEL[name], equal_nan=True)
        assert np.array_equal(models[-1]["tied"], models[-1]["double"])
        assert not np.array_equal(models[-1]["tied"], MODEL["tied"])

    def test_a_client_that_holds_another_model_or_none_is_told_to_ask_for_the_whole(self):
        update = traveled(stepped(2)[0])
        for version in (None, "0" * 32):
            with pytest.raises(NotHeldError, match="the whole model is needed"):
                update.require_start(version)

    def test_steps_to_another_model_than_the_servers_are_found_out(self):
        update = traveled(stepped(2)[0])
        other = {**MODEL, "w": MODEL["w"] + np.float32(1e-6)}
        with pytest.raises(NotHeldError, match="the whole model is needed"):
            update.applied(other, update.base)

    def test_a_whole_model_is_known_by_its_scalars_and_an_update_is_none(self):
        _, config = stepped(1)[0].encode()
        assert is_in(config)
        assert version_of_whole(config) is None
        assert is_in(whole("x"))
        assert version_of_whole(whole("x")) == "x"
        assert not is_in({"lr": 0.1})
        other = {"lr": 0.1, "fedmedian.model-of-ours": 1}
        assert set(keys_in({**other, **config})) == set(config)


WORDS = ["versions", "seeds", "sizes", "exact", "tied", "base"]
JUNK = [
    *(None, 0, -1, 2**70, 0.5, True, "", "[", "x" * 3000, "[]", "[[]]", "[[[]]]", "[0]", "[-1]"),
    *("[1.5]", "[true]", '["a"]', '[["ab"]]', '[[{"a": 1}]]', "[[[0, 99]]]", "[[[-5, 0]]]"),
    *("[[[0.5]]]", "[[[[0]]]]", "[[[1e400]]]", "[[[0, 1, 2]]]", f"[{2**70}]", "[[0]]", "[" * 9999),
    *(b"", b"abc", b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", b"\0\0\x80\xbf", [1.0]),
    *(b"\0\0\xc0\x7f" * 6, b"\0\0\x80\x7f" * 6, b"\xff\xff\x7f\x7f" * 6, b"\0\0\x80\xbf" * 6),
]
ARRAYS = [
    np.array(1, np.uint8),
    np.zeros(0, np.uint8),
    np.zeros(7, np.uint8),
    np.zeros((2, 3), np.uint8),
    np.zeros((400, 1), np.uint8),
    np.zeros(400, np.float64),
    np.zeros(8, np.int64),
    np.array(["a", "b"]),
    np.array([None, {}], dtype=object),
]
start = st.sampled_from([0, 1, 2])


@st.composite
def malformed(draw):
    """Draw the arrays and scalars of an update with one to three things changed."""
    arrays, config = stepped(draw(start))[0].encode()
    for _ in range(draw(st.integers(1, 3))):
        key = f"fedmedian.model.{draw(st.sampled_from(WORDS))}"
        match draw(st.integers(0, 4)):
            case 0:
                config.pop(key, None)
            case 1 | 2:
                config[key] = draw(st.sampled_from(JUNK))
            case 3:
                place = draw(st.integers(0, 1))
                arrays = [*arrays[:place], draw(st.sampled_from(ARRAYS)), *arrays[place + 1 :]][:2]
            case 4:
                arrays = draw(st.sampled_from([[], arrays[:1], [*arrays, arrays[0]]]))
    return arrays, config


@given(malformed())
def test_a_malformed_update_is_refused_or_leads_to_the_model_that_it_names(message):
    try:
        update = CatchUp.decode(*message)
        version = fingerprint(MODEL)
        update.require_start(version)
        model = update.applied(MODEL, version)
    except ValueError:
        return
    assert fingerprint(model) == [update.base, *update.versions][-1]


def test_any_word_may_be_junk_in_an_update_of_any_number_of_steps():
    refused = 0
    for number in (0, 1, 2):
        good = stepped(number)[0]
        for word in WORDS:
            for junk in JUNK:
                arrays, config = good.encode()
                try:
                    update = CatchUp.decode(arrays, {**config, f"fedmedian.model.{word}": junk})
                    update.require_start(good.base)
                    update.applied(MODEL, good.base)
                except ValueError:
                    refused += 1
    assert refused > 2.5 * len(WORDS) * len(JUNK)


def test_another_version_of_the_format_is_refused():
    arrays, config = stepped(1)[0].encode()
    with pytest.raises(WireError, match="model must have version"):
        CatchUp.decode(arrays, {**config, "fedmedian.model": 99})


@pytest.mark.parametrize(
    ("word", "claim"),
    [
        ("exact", f"[{10**18}]"),
        ("seeds", f"[{2**63 - 1}, {2**63 - 1}]"),
        ("tied", f"[[[0, {10**18}]], [[{10**18}]]]"),
        ("versions", '["", ""]'),
        ("sizes", b"\xff\xff\x7f\x7f" * 14),
    ],
)
def test_no_word_of_a_message_makes_a_client_allocate_more_than_a_few_models(word, claim):
    good, _ = stepped(2)
    arrays, config = good.encode()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"model|tied|exact|sizes|there is no array"):
            CatchUp.decode(arrays, {**config, f"fedmedian.model.{word}": claim}).applied(
                MODEL, good.base
            )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200_000
