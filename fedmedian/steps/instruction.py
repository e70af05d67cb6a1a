"""The server's instructions to the clients of a round, and how a client follows one."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import isfinite
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedmedian.kernels.signs import packed_size
from fedmedian.logs import shown, warned_of
from fedmedian.model.blocks import Blocks
from fedmedian.model.layout import Arrays, Layout, first_spoiled
from fedmedian.steps.client_steps import (
    CLIENT_STEPS,
    AddNoise,
    ClientStep,
    Draft,
    Memory,
    Signs,
    UpdateError,
    energy,
    shorten,
)
from fedmedian.steps.payload import Payload
from fedmedian.wire.scalars import (
    LARGEST,
    PREFIX,
    WIRE_VERSION,
    Float32,
    PayloadKind,
    Reader,
    WireError,
    WireScalar,
    require_sizes,
    with_prefix,
)

Step = TypeVar("Step", bound=ClientStep)

_ROUNDING = 2.0**-20
"""The share by which an update is clipped shorter, so that float32 does not round it longer."""

_LONGEST_SEED = 4300
"""The number of digits that Python turns into an integer, at most."""


@dataclass(frozen=True, eq=False)
class Instruction:
    """The server's wish to a client in one round.

    Parameters
    ----------
    steps : tuple of ClientStep
        The steps that turn the client's update into what it sends, in order, no two of one kind.
        With `Signs` as the last it sends signs, one bit each, else the vector.
    server_round : int
        The round.
    seed : int or None
        The strategy's seed; None for the operating system's entropy.
    exact : tuple of int
        The positions of the arrays that are sent exactly, as the server counts them: a client
        may know its arrays by other names, or none.
    tied : tuple of tuple of int
        The groups of arrays of the flat vector that are equal, by their index in it, as
        `Layout.tied` has them: clients say which have remained so.
    """

    steps: tuple[ClientStep, ...]
    server_round: int
    seed: int | None
    exact: tuple[int, ...]
    tied: tuple[tuple[int, ...], ...] = ()

    @cached_property
    def kind(self) -> PayloadKind:
        """The kind of payload that answers it."""
        return "vector" if self.find(Signs) is None else "signs"

    def find(self, kind: type[Step]) -> Step | None:
        """Return the step of a kind, or None if there is none."""
        return next((step for step in self.steps if isinstance(step, kind)), None)

    @property
    def place_of_noise(self) -> int:
        """The index of the last step but `Signs`: noise has to be the last change."""
        return max(len(self.steps) - (2 if self.kind == "signs" else 1), 0)

    def blocks(self, layout: Layout) -> Blocks:
        """Return the blocks of what clients with a model of this layout send.

        Raises
        ------
        WireError
            If the steps do not fit such a model, whatever the update.
        """
        return _blocks_before(self, layout.blocks)[-1]

    def undo(self, direction: Float32, layout: Layout) -> Float32:
        """Return an aggregate of what clients send as a direction of the model.

        Parameters
        ----------
        direction : (d',) float32
            The aggregate, in `blocks`. It may be overwritten.
        layout : Layout
            The model's layout.

        Returns
        -------
        (d,) float32
            The direction, all steps undone that are to be undone.
        """
        before = _blocks_before(self, layout.blocks)[:-1]
        for step, blocks in zip(reversed(self.steps), reversed(before), strict=True):
            direction = step.undo(direction, blocks)
        return direction

    def encode(self) -> dict[str, WireScalar]:
        """Return the instruction as flat scalars, ready for a ConfigRecord or FitIns.config."""
        message: dict[str, WireScalar] = {
            "instruction": WIRE_VERSION,
            "round": self.server_round,
            "exact": json.dumps(self.exact),
            "steps": json.dumps([step.name for step in self.steps]),
        }
        if self.tied:
            message["tied"] = json.dumps(self.tied)
        for step in self.steps:
            message |= {f"{step.name}.{key}": value for key, value in step.encode().items()}
        if self.seed is not None:
            # A decimal string: seeds may exceed the 64 bits of a record's integers.
            message["seed"] = str(self.seed)
        return with_prefix(message)

    @staticmethod
    def is_in(config: Mapping[str, Any]) -> bool:
        """Tell whether a message's config holds an instruction."""
        return PREFIX + "instruction" in config

    @classmethod
    def decode(cls, config: Mapping[str, Any]) -> "Instruction":
        """Read the instruction in a message's config.

        Raises
        ------
        WireError
            If it is of another version, malformed, or has a step, a parameter or anything else
            that is unknown here: it might change what the server makes of the answer.
        """
        read = Reader(config, "instruction")
        seed = _read_seed(read)
        server_round = read.required("round", int)
        exact = read.listed("exact", int)
        if exact and min(exact) < 0:
            raise WireError(f"{PREFIX}exact must be positions, got {exact!r}")
        names = read.listed("steps", str)
        if len(set(names)) < len(names):
            raise WireError(f"{PREFIX}steps must differ, got {names!r}")
        if Signs.name in names[:-1]:
            raise WireError(f"{PREFIX}steps must end with {Signs.name!r}, got {names!r}")
        steps = tuple(_read_step(read, name) for name in names)
        tied = _read_tied(read)
        read.finish()
        return cls(steps, server_round, seed, tuple(exact), tied)

    def require_answer(
        self, payload: Payload, layout: Layout, before: Arrays | None = None
    ) -> None:
        """Raise unless a payload is a usable answer.

        Parameters
        ----------
        payload : Payload
            The client's answer.
        layout : Layout
            The model's layout.
        before : mapping of str to array, optional
            The model that was sent, where not all of it is finite: no more need the answer be.

        Raises
        ------
        WireError
            Naming the first thing that is wrong: round, kind, noise, a length, a dtype, a
            value that is not finite.
        """
        if payload.server_round != self.server_round:
            raise WireError(
                f"answers round {payload.server_round}, was asked in round {self.server_round}"
            )
        if payload.kind != self.kind:
            raise WireError(f"sent {payload.kind!r}, was asked for {self.kind!r}")
        asked = self.find(AddNoise)
        family = None if asked is None else asked.noise.name
        if payload.noise != family:
            raise WireError(f"used noise {shown(payload.noise)}, was told {family!r}")
        if payload.tied and max(payload.tied) >= len(self.tied):
            raise WireError(f"there is no group {max(payload.tied)} of tied arrays")
        blocks = self.blocks(layout)
        size, dtype = (
            (packed_size(blocks.dim), np.uint8)
            if payload.kind == "signs"
            else (blocks.dim, np.float32)
        )
        _require_vector(payload.kind, payload.body, size, dtype)
        _require_vector("exact arrays", payload.exact, layout.exact_bytes, np.uint8)
        for name, values in (("scales", payload.scales), ("magnitudes", payload.magnitudes)):
            _require_vector(name, values, len(blocks), np.float32)
        told = None if asked is None else asked.scales
        if told is None:
            require_sizes("scales", payload.scales, LARGEST)
        elif not np.array_equal(payload.scales, told):
            raise WireError("used other noise scales than it was told")
        require_sizes("magnitudes", payload.magnitudes, LARGEST)
        if payload.kind == "vector":
            _require_entries(payload.body)
        exact = layout.unpack_exact(payload.exact)
        if (spoiled := first_spoiled(before or {}, exact, LARGEST)) is not None:
            raise WireError(
                f"array {spoiled!r} holds NaN or infinity, or an entry above {LARGEST:g}"
            )


def perturb_update(
    instruction: Instruction,
    layout: Layout,
    update: NDArray[np.float32],
    after: Arrays,
    rng: np.random.Generator,
    memory: Memory | None = None,
    partition: int | None = None,
    clip: float | None = None,
) -> Payload:
    """Answer an instruction with an update: Algorithms 1 to 4 of arXiv 1906.01736, line 3.

    Parameters
    ----------
    instruction : Instruction
        The server's wish.
    layout : Layout
        The model's layout.
    update : (d,) float32
        The update, x − x_i or a gradient. It is overwritten.
    after : mapping of str to array
        The model after training, for its exact arrays.
    rng : numpy.random.Generator
        Draws the noise, and the sign of every exact zero.
    memory : dict of str to dict, optional
        The client's memory between rounds, updated in place. None if nobody remembers, which an
        instruction without momentum does not ask for.
    partition : int, optional
        The client's partition, for the server's log.
    clip : float, optional
        The largest L2 norm of what noise is added to, whatever the steps before the noise are. The
        instruction must end with `AddNoise` of given scales, and `Signs` if it asks for signs. No
        value of the update then decides whether this raises: if a step before the noise does, or
        the result of all of them is not finite, noise is added to zeros, and the memory stays as
        it was.

    Returns
    -------
    Payload
        The answer.

    Raises
    ------
    UpdateError
        If the update is not finite, naming the array, and `clip` is not given.
    WireError
        If the instruction does not fit the model.
    """
    tied: tuple[int, ...] = ()
    vector, blocks, steps = update, layout.blocks, instruction.steps
    if clip is None:
        _require_finite(layout, update)
        tied = _still_tied(instruction.tied, list(layout.blocks.split(update)))
    else:
        # In a draft of their own: steps may leave more in it than the vector.
        vector, blocks = _prepared_within(clip, instruction, layout, update, rng, memory)
        steps = steps[instruction.place_of_noise :]
    draft = Draft(vector, blocks, instruction.server_round, rng, memory)
    for step in steps:
        step.apply(draft)
    nothing = np.zeros(len(draft.blocks), dtype=np.float32)
    return Payload(
        kind=instruction.kind,
        noise=None if draft.noise is None else draft.noise.name,
        scales=nothing if draft.scales is None else draft.scales,
        magnitudes=nothing if draft.magnitudes is None else draft.magnitudes,
        body=draft.vector if draft.signs is None else draft.signs,
        exact=layout.pack_exact(after),
        server_round=instruction.server_round,
        partition=partition,
        tied=tied,
    )


def _prepared_within(
    clip: float,
    instruction: Instruction,
    layout: Layout,
    update: Float32,
    rng: np.random.Generator,
    memory: Memory | None,
) -> tuple[Float32, Blocks]:
    """Take the steps before the noise; return a vector of norm `clip` or less, and its blocks."""
    blocks = instruction.blocks(layout)
    vector = np.zeros(blocks.dim, dtype=np.float32)
    with warned_of("answered with noise alone, by this client's policy"):
        _require_finite(layout, update)
        later = deepcopy(memory)
        draft = Draft(update, layout.blocks, instruction.server_round, rng, later)
        for step in instruction.steps[: instruction.place_of_noise]:
            step.apply(draft)
        if draft.vector.shape != vector.shape:
            raise UpdateError(f"update has shape {draft.vector.shape}, not {vector.shape}")
        if not isfinite(energy(draft.vector)):
            raise UpdateError("update is not finite after the steps before the noise")
        vector[:] = draft.vector
        if memory is not None and later is not None:
            memory.update(later)
    shorten(vector, clip * (1 - _ROUNDING))
    return vector, blocks


def _require_finite(layout: Layout, update: Float32) -> None:
    for spec, part in zip(layout.flat, layout.blocks.split(update), strict=True):
        if not isfinite(energy(part)):
            raise UpdateError(f"update of array {spec.name!r} holds NaN or infinity")


@lru_cache(maxsize=8)  # each of a round's replies asks
def _blocks_before(instruction: Instruction, blocks: Blocks) -> tuple[Blocks, ...]:
    """Return the blocks before each step, and last those after all of them."""
    found = [blocks]
    for step in instruction.steps:
        found.append(step.blocks(found[-1]))
    return tuple(found)


def _still_tied(
    groups: tuple[tuple[int, ...], ...], parts: Sequence[NDArray[np.float32]]
) -> tuple[int, ...]:
    """Return the groups whose arrays have one update, by their index."""
    if any(max(group) >= len(parts) for group in groups):
        raise WireError(f"{PREFIX}tied must be arrays of the model, got {groups!r}")
    return tuple(
        number
        for number, (first, *others) in enumerate(groups)
        if all(np.array_equal(parts[first], parts[other]) for other in others)
    )


def _read_tied(read: Reader) -> tuple[tuple[int, ...], ...]:
    groups = read.listed("tied", list, required=False)
    if not all(group and all(type(i) is int and i >= 0 for i in group) for group in groups):
        raise WireError(f"{PREFIX}tied must be lists of positions, got {groups!r}")
    return tuple(tuple(group) for group in groups)


def _read_seed(read: Reader) -> int | None:
    text = read.optional("seed", str)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= _LONGEST_SEED):
        raise WireError(f"{PREFIX}seed must be a decimal number, got {text!r}")
    return int(text)


def _read_step(read: Reader, name: str) -> ClientStep:
    step = CLIENT_STEPS.find(name)
    try:
        return step.decode(read.below(name))
    except (TypeError, ValueError) as error:
        raise WireError(f"client step {name!r} cannot be taken: {error}") from error


def _require_entries(vector: Float32) -> None:
    # Comparisons with NaN are false; a vector of bools would take as long again.
    if vector.size and not -LARGEST <= vector.min() <= vector.max() <= LARGEST:
        raise WireError(f"vector holds NaN or infinity, or an entry above {LARGEST:g}")


def _require_vector(name: str, values: NDArray[Any], size: int, dtype: type[np.generic]) -> None:
    if values.dtype != dtype or values.shape != (size,):
        raise WireError(
            f"{name} must be {np.dtype(dtype).name} of shape {(size,)}, "
            f"got {values.dtype} of shape {values.shape}"
        )
