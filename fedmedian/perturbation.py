"""The client's side of a round: update → clip → + noise → sign → pack."""

from math import isfinite, sqrt

import numpy as np
from numpy.typing import NDArray

from fedmedian.kernels.encoding import pack_noisy_signs
from fedmedian.kernels.signs import pack_signs
from fedmedian.layout import Arrays, Layout
from fedmedian.noise import NOISE_FAMILIES, Noise
from fedmedian.optimizers import Momentum, State
from fedmedian.scales import Magnitude
from fedmedian.wire import Instruction, Payload, WireError

_CHUNK = 1 << 14


class UpdateError(ValueError):
    """An update that must not be sent; its message is the reason."""


def perturb_update(
    instruction: Instruction,
    layout: Layout,
    update: NDArray[np.float32],
    after: Arrays,
    rng: np.random.Generator,
    memory: State | None = None,
) -> Payload:
    """Answer an instruction with an update: Algorithms 1 to 4 of arXiv 1906.01736, line 3.

    Parameters
    ----------
    instruction : Instruction
        What the server asks for.
    layout : Layout
        The model's layout.
    update : (d,) float32
        The update, x − x_i or a gradient. It is overwritten.
    after : mapping of str to array
        The model after training, for its dense arrays.
    rng : numpy.random.Generator
        Draws the noise, and the sign of every exact zero.
    memory : dict of str to array, optional
        What the client remembers between rounds, updated in place: its momentum. None if
        nobody remembers, which an instruction without momentum does not ask for.

    Returns
    -------
    Payload
        The answer.

    Raises
    ------
    UpdateError
        If the update is not finite, naming the array.
    WireError
        If the instruction does not fit the model.
    """
    for spec, part in zip(layout.voted, layout.split(update), strict=True):
        part /= np.float32(instruction.divisor)
        if not isfinite(_energy(part)):
            raise UpdateError(f"update of array {spec.name!r} holds NaN or infinity")
    if instruction.momentum > 0:
        update = _with_momentum(update, instruction, memory)
    parts = layout.split(update)
    if instruction.clip is not None:
        norm = sqrt(_energy(update))
        if norm > instruction.clip:
            update *= np.float32(instruction.clip / norm)
    magnitudes = np.zeros(len(parts), dtype=np.float32)
    if instruction.of is not None:
        magnitudes[:] = [_magnitude(part, instruction.of) for part in parts]
    scales = _noise_scales(instruction, magnitudes)
    noise = NOISE_FAMILIES[instruction.noise]() if instruction.noise is not None else None
    body: NDArray[np.uint8] | NDArray[np.float32] = update
    if instruction.kind == "signs":
        body = (
            pack_signs(update, rng)
            if noise is None
            else pack_noisy_signs(update, layout.sizes, noise, scales, rng)
        )
    elif noise is not None:
        add_noise(layout, update, noise, scales, rng)
    return Payload(
        kind=instruction.kind,
        noise=instruction.noise,
        scales=scales,
        magnitudes=magnitudes,
        body=body,
        dense=layout.pack_dense(after),
    )


def add_noise(
    layout: Layout,
    update: NDArray[np.float32],
    noise: Noise,
    scales: NDArray[np.float32],
    rng: np.random.Generator,
) -> None:
    """Add b·ξ to every coordinate of an update, in place.

    Parameters
    ----------
    layout : Layout
        The model's layout.
    update : (d,) float32
        The update.
    noise : Noise
        The family of ξ; its own scale plays no part here.
    scales : (L,) float32
        The noise scale b of each voted array.
    rng : numpy.random.Generator
        Draws ξ.
    """
    for part, scale in zip(layout.split(update), scales, strict=True):
        part += scale * noise.sample(rng, part.size)


def _with_momentum(
    update: NDArray[np.float32], instruction: Instruction, memory: State | None
) -> NDArray[np.float32]:
    if memory is None:
        raise WireError("instruction asks for momentum, which this client cannot remember")
    rounds = np.array([instruction.server_round], dtype=np.float32)
    # Another model, or rounds that do not go on from the last: the server has begun another run.
    if memory and (memory["m"].shape != update.shape or memory["last-round"] >= rounds):
        memory.clear()
    memory["last-round"] = rounds
    return Momentum(instruction.momentum).step(update, memory)


def _magnitude(part: NDArray[np.float32], of: Magnitude) -> float:
    if part.size == 0:
        return 0.0
    if of == "max":
        return max(float(part.max()), -float(part.min()))
    return sqrt(_energy(part) / part.size)


def _energy(values: NDArray[np.float32]) -> float:
    """Return the sum of squares, which in float64 is finite if all values are."""
    energy = 0.0
    for start in range(0, values.size, _CHUNK):
        wide = values[start : start + _CHUNK].astype(np.float64)
        # Not np.dot: BLAS threads wait for each other where clients share cores.
        energy += float(np.einsum("i,i->", wide, wide))
    return energy


def _noise_scales(instruction: Instruction, magnitudes: NDArray[np.float32]) -> NDArray[np.float32]:
    if instruction.noise is None:
        return np.zeros_like(magnitudes)
    if instruction.scales is None:
        return np.float32(instruction.factor) * magnitudes
    if instruction.scales.shape != magnitudes.shape:
        raise WireError(
            f"instruction has noise scales for {instruction.scales.size} arrays, "
            f"the model has {magnitudes.size} that are voted on"
        )
    return instruction.scales
