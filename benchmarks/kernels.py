"""The kernels against what users would otherwise choose."""

from collections.abc import Callable, Iterator
from functools import partial

import bottleneck
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import dct

from benchmarks.timing import Case
from fedmedian import Gaussian, Laplace, Logistic, Noise, Uniform, coordinate_median, majority_vote
from fedmedian.kernels.encoding import pack_noisy_signs
from fedmedian.kernels.rotation import rotate
from fedmedian.model.blocks import Blocks
from fedmedian.randomness import secret_rng
from fedmedian.steps.base import Draft
from fedmedian.steps.downlink import CodedStep
from fedmedian.steps.rotation import Rotation

Float32 = NDArray[np.float32]


def median_cases() -> Iterator[Case]:
    """Yield the coordinate-wise median of M vectors in float32."""
    rng = np.random.default_rng(0)
    for clients, dim in ((11, 10**6), (51, 10**6), (101, 10**6), (1001, 10**5)):
        rows = [rng.standard_normal(dim, dtype=np.float32) for _ in range(clients)]
        stacked = np.stack(rows)  # the peers' input; the others get the clients' vectors
        tensor = torch.from_numpy(stacked)
        yield Case(
            f"median, M = {clients}, d = {dim:,}",
            {
                "fedmedian": partial(coordinate_median, rows),
                "Flower's FedMedian": partial(_flower_median, rows),
                "np.median": partial(np.median, stacked, axis=0),
                "torch.median": partial(_torch_median, tensor),
                "bottleneck": partial(bottleneck.median, stacked, axis=0),
            },
            stacked.nbytes,
        )


def vote_cases() -> Iterator[Case]:
    """Yield the majority of M vectors' signs; packed ones, and in float32 for the first peer."""
    rng, dim = np.random.default_rng(0), 10**7
    for clients in (11, 101):
        packed = list(rng.integers(0, 256, (clients, dim // 8), dtype=np.uint8))
        # One float vector is signed M times: M of them would not fit every machine's memory.
        floats = np.where(np.unpackbits(packed[0]), np.float32(1), np.float32(-1))
        yield Case(
            f"majority, M = {clients}, d = {dim:,}",
            {
                "fedmedian": partial(majority_vote, packed, dim),
                "np.unpackbits, summed": partial(_unpacked_majority, packed),
            },
            clients * dim // 8,
        )
        yield Case(
            f"majority of one vector's signs, M = {clients}, d = {dim:,}",
            {
                "fedmedian": partial(majority_vote, packed[:1] * clients, dim),
                "np.sign, summed": partial(_float_majority, [floats] * clients),
            },
            clients * dim // 8,
        )


def encode_cases() -> Iterator[Case]:
    """Yield the way from an update in float32 to packed signs of the update with noise."""
    dim, scale = 10**7, np.float32(3)
    update = np.random.default_rng(0).standard_normal(dim, dtype=np.float32)
    rng = np.random.default_rng(1)
    scales = np.array([scale])
    tensor = torch.from_numpy(update)
    for noise in (Gaussian(), Logistic(), Laplace(), Uniform()):

        def ours(noise: Noise = noise) -> NDArray[np.uint8]:
            return pack_noisy_signs([update], dim, noise, scales, rng)

        def normal() -> NDArray[np.uint8]:
            return np.packbits(update + scale * rng.standard_normal(dim, dtype=np.float32) >= 0)

        def torch_normal() -> NDArray[np.uint8]:
            noisy = torch.empty(dim).normal_(0.0, float(scale)).add_(tensor)
            return np.packbits((noisy >= 0).numpy())

        yield Case(
            f"encode, {noise.name} noise, d = {dim:,}",
            {
                "fedmedian": ours,
                "NumPy's normal noise": normal,
                "torch's normal noise": torch_normal,
            },
            update.nbytes,
            # Chance and the family decide the rest; at these ratios all have nearly one law.
            lambda left, right: abs(_positive(left) - _positive(right)) < 0.002 * dim,
        )


def generator_cases() -> Iterator[Case]:
    """Yield the noise that has to hide something, beside NumPy's own generator's."""
    dim = 10**6
    update, scales = np.zeros(dim, np.float32), np.ones(1, np.float32)
    secret, own = secret_rng(), np.random.default_rng()

    def signs(rng: np.random.Generator) -> NDArray[np.uint8]:
        return pack_noisy_signs([update], dim, Gaussian(), scales, rng)

    for name, draw in (
        ("normal values", lambda rng: rng.standard_normal(dim, dtype=np.float32)),
        ("encode, gaussian noise", signs),
    ):
        yield Case(
            f"{name}, d = {dim:,}",
            {"ChaCha20": partial(draw, secret), "PCG64": partial(draw, own)},
            0,
            lambda left, right: left.shape == right.shape,
        )


def rotation_cases() -> Iterator[Case]:
    """Yield the rotation of an update, alone and on the way to packed signs."""
    rng, noise = np.random.default_rng(0), Gaussian()
    for dim in (10**6, 10**7):
        update = rng.standard_normal(dim, dtype=np.float32)

        def encode(update: Float32 = update) -> NDArray[np.uint8]:
            draft = Draft(update, Blocks(update.shape), 1, rng)
            Rotation(seed=0).apply(draft)
            draft.add_noise(noise, np.ones(len(draft.blocks), np.float32))
            return draft.draw_signs()

        yield Case(
            f"rotation, d = {dim:,}",
            {
                "fedmedian": partial(rotate, update, rng),
                "scipy's DCT": partial(dct, update, norm="ortho"),
            },
            update.nbytes,
            lambda left, right: bool(np.isclose(np.linalg.norm(left), np.linalg.norm(right))),
        )
        yield Case(
            f"rotation and encode, d = {dim:,}",
            {
                "fedmedian": encode,
                "NumPy's normal noise, drawn": partial(rng.standard_normal, dim, dtype=np.float32),
            },
            update.nbytes,
            lambda ours, theirs: ours.size >= theirs.size // 8,
        )


def downlink_cases(dim: int = 10**6) -> Iterator[Case]:
    """Yield the two sides of a coded step, beside the one rotation that each of them needs."""
    rng, blocks = np.random.default_rng(0), Blocks((dim,))
    step = rng.standard_normal(dim, dtype=np.float32)
    coded = CodedStep.of(step.copy(), blocks, seed=0)
    rotation = partial(rotate, step, rng)
    yield Case(
        f"code a step, d = {dim:,}",
        {
            "fedmedian": partial(CodedStep.of, step.copy(), blocks, seed=0),
            "one rotation": rotation,
        },
        step.nbytes,
        lambda ours, _: bool(np.isclose(ours.sizes, np.sqrt(2 / np.pi), rtol=0.02).all()),
    )
    yield Case(
        f"decode a step, d = {dim:,}",
        {"fedmedian": partial(coded.decoded, blocks), "one rotation": rotation},
        step.nbytes,
        lambda ours, _: bool(np.isclose(np.vdot(ours, step), np.vdot(ours, ours), rtol=0.02)),
    )


def _flower_median(rows: list[Float32]) -> Float32:
    return np.asarray(np.median(np.stack(rows), axis=0))


def _torch_median(stacked: torch.Tensor) -> Float32:
    return torch.median(stacked, dim=0).values.numpy()


def _positive(packed: NDArray[np.uint8]) -> int:
    return int(np.bitwise_count(packed).sum())


def _float_majority(rows: list[Float32]) -> NDArray[np.int8]:
    total = np.sign(rows[0])
    for row in rows[1:]:
        total += np.sign(row)
    return np.sign(total).astype(np.int8)


def _unpacked_majority(rows: list[NDArray[np.uint8]]) -> NDArray[np.int8]:
    dim, length = 8 * rows[0].size, 1 << 16
    majority = np.empty(dim, np.int8)
    for start in range(0, dim, length):
        part = slice(start // 8, (start + length) // 8)
        counts = np.zeros(min(length, dim - start), np.int32)
        for row in rows:
            counts += np.unpackbits(row[part])
        majority[start : start + length] = np.sign(2 * counts - len(rows))
    return majority


CASES: dict[str, Callable[[], Iterator[Case]]] = {
    "median": median_cases,
    "votes": vote_cases,
    "encode": encode_cases,
    "generators": generator_cases,
    "rotation": rotation_cases,
    "downlink": downlink_cases,
}
