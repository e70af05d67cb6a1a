"""A client's update, made block by block: the answer is the one that the whole update gives."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from fedmedian import Blocks, ClientMomentum, Clip, Gaussian, Laplace, Layout, Logistic, Rotation
from fedmedian.steps.base import Draft, UpdateError, register_client_step
from fedmedian.steps.encodings import Encoding, Signs, Vector
from fedmedian.steps.instruction import Instruction, perturb_update
from fedmedian.steps.noise import AddNoise, Measure, SizeVotes, TopUpNoise
from fedmedian.steps.tied import Tied
from fedmedian.steps.updates import Limit

RNG = np.random.default_rng(0)
SHAPES = {"a": (30, 40), "b": (7,), "c": (2000,), "d": (), "e": (0,), "f": (30, 40)}
BEFORE = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
BEFORE |= {"f": BEFORE["a"], "half": np.ones(500, np.float16), "mask": np.float32([-np.inf] * 9)}
AFTER = {name: array - array.dtype.type(0.01) * array**2 for name, array in BEFORE.items()}
LAYOUT = Layout.of_model(BEFORE)
ROTATION = Rotation(seed=3, largest=700)
NUM_BLOCKS = len(ROTATION.blocks(LAYOUT.blocks))
TOLD = np.full(NUM_BLOCKS, 0.02, np.float32)
SOME_TOLD = np.where(np.arange(NUM_BLOCKS) % 2, np.float32(np.nan), TOLD)


@register_client_step
@dataclass(frozen=True)
class Nothing(Encoding):
    """Sends nothing of the update, and does not look at it."""

    name: ClassVar[str] = "nothing"
    bits: ClassVar[float] = 0

    def pack(self, draft):
        return np.zeros(1, np.uint8)

    def check_body(self, body, blocks):
        pass


@pytest.fixture(scope="module", autouse=True)
def _own_classes(registries):
    register_client_step(Nothing)


def answer(steps, update, memory=None):
    instruction = Instruction(steps, 1, 0, LAYOUT.exact_positions)
    return perturb_update(instruction, LAYOUT, update, AFTER, np.random.default_rng(5), memory)


@pytest.mark.parametrize(
    "steps",
    [
        (ROTATION, Measure("rms"), TopUpNoise(Gaussian(), TOLD), Signs()),
        (ROTATION, Measure("rms"), TopUpNoise(Gaussian(), None, 1.5), Signs()),
        (ROTATION, Measure("max"), AddNoise(Logistic(), SOME_TOLD, 3.0), Signs()),
        (ROTATION, SizeVotes("rms", SOME_TOLD), AddNoise(Laplace(), SOME_TOLD, 3.0, True), Signs()),
        (ROTATION, Measure("rms"), AddNoise(Gaussian(), TOLD), Vector()),
        (ROTATION, Measure("rms"), Nothing()),
        (ROTATION, Signs()),
        (Measure("max"), AddNoise(Gaussian(), None, 3.0), Signs()),
        (Measure("rms"), AddNoise(Gaussian(), None, 3.0), ROTATION, Signs()),
        (Tied(LAYOUT.tied(BEFORE)), ClientMomentum(), Clip(0.5), ROTATION, Limit(0.01), Signs()),
    ],
    ids=lambda steps: ", ".join(step.name for step in steps),
)
def test_an_update_in_parts_is_answered_like_a_whole_one(steps):
    memories = {}, {}
    whole = answer(steps, LAYOUT.difference(BEFORE, AFTER), memories[0])
    parts = answer(steps, LAYOUT.reader_of_difference(BEFORE, AFTER), memories[1])
    assert whole.body.tobytes() == parts.body.tobytes()
    assert whole.reports.keys() == parts.reports.keys()
    for name, values in whole.reports.items():
        assert values.any()
        np.testing.assert_array_equal(parts.reports[name], values)
    np.testing.assert_equal(*memories)


@pytest.mark.parametrize("is_whole", [True, False])
def test_an_update_that_is_not_finite_is_refused_by_its_arrays_name(is_whole):
    after = AFTER | {"c": np.append(AFTER["c"][:-1], np.nan)}
    update = LAYOUT.reader_of_difference(BEFORE, after)
    if is_whole:
        update = LAYOUT.difference(BEFORE, after)
    with pytest.raises(UpdateError, match="'c' holds NaN"):
        answer((ROTATION, AddNoise(Gaussian(), TOLD), Signs()), update)


def test_blocks_are_made_one_at_a_time_when_signs_are_drawn():
    made, blocks = [], Blocks((5, 3))

    def make(number, out):
        made.append(number)
        out[:] = np.ones(blocks.sizes[number])

    draft = Draft(np.ones(8, np.float32), Blocks((8,)), 1, np.random.default_rng(0))
    draft.make_each(blocks, make)
    sizes = draft.measure_each(lambda number, part: part.sum() + number)
    draft.add_noise(Gaussian(), sizes)
    assert made == []
    draft.draw_signs()
    assert made == [0, 1]
    assert sizes.tolist() == [5, 4]
