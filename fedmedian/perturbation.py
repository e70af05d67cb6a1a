"""The client's side of a round: update → clip → + noise → sign → pack."""

import numpy as np
from numpy.typing import NDArray

from fedmedian.layout import Arrays, Layout
from fedmedian.noise import NOISE_FAMILIES, Noise
from fedmedian.scales import Magnitude
from fedmedian.signs import pack_signs
from fedmedian.wire import Instruction, Payload, WireError


class UpdateError(ValueError):
    """An update that must not be sent; its message is the reason."""


def perturb_update(
    instruction: Instruction,
    layout: Layout,
    update: NDArray[np.float32],
    after: Arrays,
    rng: np.random.Generator,
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
    parts = layout.split(update)
    for spec, part in zip(layout.voted, parts, strict=True):
        if not np.isfinite(part).all():
            raise UpdateError(f"update of array {spec.name!r} holds NaN or infinity")
    if instruction.clip is not None:
        norm = float(np.linalg.norm(update.astype(np.float64)))
        if norm > instruction.clip:
            update *= np.float32(instruction.clip / norm)
    magnitudes = np.array([_magnitude(part, instruction.of) for part in parts], dtype=np.float32)
    scales = _noise_scales(instruction, magnitudes)
    if instruction.noise is not None:
        add_noise(layout, update, NOISE_FAMILIES[instruction.noise](), scales, rng)
    signs = instruction.kind == "signs"
    return Payload(
        kind=instruction.kind,
        noise=instruction.noise,
        scales=scales,
        magnitudes=magnitudes,
        body=pack_signs(update, rng) if signs else update,
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


def _magnitude(part: NDArray[np.float32], of: Magnitude) -> float:
    if part.size == 0:
        return 0.0
    if of == "max":
        return float(np.max(np.abs(part)))
    return float(np.sqrt(np.mean(np.square(part, dtype=np.float64))))


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
