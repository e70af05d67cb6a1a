"""A custom encoding, votes of two bits: from an update to a body that the server takes."""

from dataclasses import dataclass, replace
from math import inf, nan
from typing import ClassVar

import numpy as np
import pytest

from fedmedian import Gaussian, Instruction, Layout, Payload, Rotation, register_client_step
from fedmedian.checks import require_real
from fedmedian.clients.policy import Policy, PolicyError
from fedmedian.privacy.accounting import Mechanism
from fedmedian.privacy.mechanism import NoMechanism, mechanism_of
from fedmedian.steps.encodings import Encoding, Signs, Vector
from fedmedian.steps.instruction import perturb_update
from fedmedian.steps.noise import AddNoise
from fedmedian.steps.updates import Clip
from fedmedian.wire.scalars import WireError, require_vector


@dataclass(frozen=True)
class TwoBits(Encoding):
    """For each coordinate its sign, and whether it exceeds a threshold."""

    threshold: float

    name: ClassVar[str] = "two-bits"
    bits: ClassVar[float] = 2

    def __post_init__(self):
        require_real("threshold", self.threshold, low=0.0, open_low=True)

    def pack(self, draft):
        vector = draft.vector
        votes = np.stack([vector > 0, np.abs(vector) > self.threshold], axis=1)
        return np.packbits(votes.ravel())

    def check_body(self, body, blocks):
        require_vector("two-bit votes", body, -(-blocks.dim // 4), np.uint8)


@pytest.fixture(scope="module", autouse=True)
def _registered(registries):
    register_client_step(TwoBits)


MODEL = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)}
LAYOUT = Layout.of_model(MODEL)
UPDATE = np.float32([3, -3, 0.5, -0.5, 2, -2, 1.5, -0.1, 0.1])
NOISE = AddNoise(Gaussian(), np.float32([2.0, 2.0]))


def asking(*steps):
    return Instruction((*steps, TwoBits(1.0)), 1, None, LAYOUT.exact_positions)


def answer(instruction, clip=None):
    rng = np.random.default_rng(0)
    return perturb_update(instruction, LAYOUT, UPDATE.copy(), MODEL, rng, {}, clip=clip)


def read(body, dim):
    signs, large = np.unpackbits(body)[: 2 * dim].reshape(dim, 2).T
    return (2.0 * signs - 1), large.astype(bool)


def test_an_update_arrives_as_two_bits_for_each_coordinate():
    asked = Instruction.decode(asking().encode())
    assert asked.encoding == TwoBits(1.0)
    payload = Payload.decode(*answer(asked).encode())
    asked.require_answer(payload, LAYOUT)
    signs, large = read(payload.body, UPDATE.size)
    assert payload.body.nbytes == 3
    assert signs.tolist() == np.sign(UPDATE).tolist()
    assert large.tolist() == (np.abs(UPDATE) > 1).tolist()


def test_it_follows_a_rotation_and_noise_like_a_built_in_encoding():
    asked = asking(Rotation(1, seed=3), NOISE)
    vector = answer(replace(asked, steps=(*asked.steps[:-1], Vector()))).body
    payload = answer(asked)
    asked.require_answer(payload, LAYOUT)
    signs, large = read(payload.body, vector.size)
    assert signs.tolist() == np.sign(vector).tolist()
    assert large.tolist() == (np.abs(vector) > 1).tolist()
    assert asked.sizes_of(payload, asked.blocks(LAYOUT))[0].tolist() == [2, 2]


@pytest.mark.parametrize(
    "body", [np.zeros(2, np.uint8), np.zeros(3, np.float32), np.zeros((3, 1), np.uint8)]
)
def test_a_body_of_another_form_is_refused(body):
    with pytest.raises(WireError, match=r"two-bit votes must be uint8 of shape \(3,\)"):
        asking().require_answer(replace(answer(asking()), body=body), LAYOUT)


def test_a_body_of_another_encoding_is_refused():
    with pytest.raises(WireError, match="sent 'signs', was asked for 'two-bits'"):
        asking().require_answer(replace(answer(asking()), encoding="signs"), LAYOUT)


@pytest.mark.parametrize("value", [0.0, -1.0, nan, inf])
def test_a_threshold_out_of_range_is_refused_by_the_client(value):
    message = asking().encode() | {"fedmedian.two-bits.threshold": value}
    with pytest.raises(WireError, match=r"'two-bits'.*threshold"):
        Instruction.decode(message)


def test_it_must_be_the_last_step_and_the_only_encoding():
    for steps in ((TwoBits(1.0), Signs()), (TwoBits(1.0), NOISE), (NOISE,)):
        message = Instruction(steps, 1, None, ()).encode()
        with pytest.raises(WireError, match="only encoding"):
            Instruction.decode(message)


class TestPrivacy:
    def test_it_counts_as_the_whole_noisy_vector_unless_it_shows_that_it_reveals_less(self):
        found = mechanism_of((Clip(2.0), NOISE, TwoBits(1.0)))
        assert found == Mechanism(2.0, 2.0, "two-bits")
        assert found.epsilon(1e-5) == Mechanism(2.0, 2.0, "vector").epsilon(1e-5)

    def test_a_policy_takes_it_for_a_vector(self):
        policy = Policy(clip=1.0, noise_scale=2.0, rounds=9)
        with pytest.raises(PolicyError, match="'vectors'"):
            policy.require_permission(asking(NOISE), LAYOUT)
        replace(policy, vectors=True).require_permission(asking(NOISE), LAYOUT)
        assert answer(asking(NOISE), clip=1.0).body.shape == (3,)

    def test_without_noise_there_is_no_mechanism(self):
        found = mechanism_of((Clip(2.0), TwoBits(1.0)))
        assert found == NoMechanism(("noise: clients add none",))
