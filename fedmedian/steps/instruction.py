"""The server's instruction to the clients of a round, and how a client follows it."""

import json
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import isfinite
from typing import Any, TypeVar

import numpy as np

from fedmedian.checks import require_result
from fedmedian.logs import cut, shown, warned_of
from fedmedian.model.blocks import Blocks, Part, Read
from fedmedian.model.layout import Arrays, Layout, is_finite
from fedmedian.steps.base import (
    CLIENT_STEPS,
    ClientStep,
    Draft,
    Memory,
    UpdateError,
    energy,
    shorten,
)
from fedmedian.steps.downlink import without_steps
from fedmedian.steps.encodings import Encoding
from fedmedian.steps.noise import AddNoise, Measure
from fedmedian.steps.payload import Payload
from fedmedian.steps.rotation import Rotation
from fedmedian.wire.scalars import (
    PREFIX,
    WIRE_VERSION,
    Float32,
    Reader,
    WireError,
    WireScalar,
    with_prefix,
)

Step = TypeVar("Step", bound=ClientStep)

_ROUNDING = 2.0**-20
"""The relative margin of clipping, so that float32 does not round an update above the norm."""

LONGEST_SEED = 4300
"""The largest number of digits that Python converts to an integer."""


@dataclass(frozen=True, eq=False)
class Instruction:
    """What the server asks a client to do in one round.

    Parameters
    ----------
    steps : tuple of ClientStep
        The steps that turn the client's update into the body of its payload, in order, no two of
        one name. The last one is an `Encoding`, and no other is.
    server_round : int
        The round.
    seed : int or None
        The strategy's seed; None for the operating system's entropy.
    exact : tuple of int
        The positions of the arrays that are sent exactly, in the server's order: a client may use
        other names for its arrays, or none.
    question : int (default: 0)
        The number of the question: each model that is trained in a round has its own.
    """

    steps: tuple[ClientStep, ...]
    server_round: int
    seed: int | None
    exact: tuple[int, ...]
    question: int = 0

    @property
    def encoding(self) -> Encoding:
        """The last step."""
        last = self.steps[-1]
        assert isinstance(last, Encoding)  # `decode` refuses any other
        return last

    def find(self, kind: type[Step]) -> Step | None:
        """Return the first step of a class, or None."""
        return next((step for step in self.steps if isinstance(step, kind)), None)

    def sizes_of(self, payload: Payload, blocks: Blocks) -> tuple[Float32, Float32]:
        """Return the noise scales and the magnitudes of an accepted payload.

        Parameters
        ----------
        payload : Payload
            The payload.
        blocks : Blocks
            Its L blocks; see `blocks`.

        Returns
        -------
        scales : (L,) float32
            The scales that the client was told or has reported; zeros without noise.
        magnitudes : (L,) float32
            The magnitude of each block of the update before noise; zeros if not measured.
        """
        none, noise = np.zeros(len(blocks.sizes), dtype=np.float32), self.find(AddNoise)
        told = None if noise is None else payload.reports.get(noise.name, noise.scales)
        return none if told is None else told, payload.reports.get(Measure.name, none)

    def blocks(self, layout: Layout) -> Blocks:
        """Return the blocks of the vectors that clients send for a model of this layout.

        Raises
        ------
        WireError
            If the steps do not fit such a model, whatever the update.
        """
        return _blocks_around(self, layout.blocks)[-1]

    def num_votes(self, layout: Layout) -> dict[str, int]:
        """Return how many votes each step reports, by its name, for those that do."""
        pairs = zip(self.steps, _blocks_around(self, layout.blocks), strict=False)
        numbers = {step.name: step.num_votes(blocks) for step, blocks in pairs}
        return {name: number for name, number in numbers.items() if number}

    def undo(self, direction: Float32, layout: Layout) -> Float32:
        """Turn an aggregate of the clients' vectors into a direction for the model.

        Parameters
        ----------
        direction : (d',) float32
            The aggregate, in `blocks`. It may be overwritten.
        layout : Layout
            The model's layout.

        Returns
        -------
        (d,) float32
            The direction, with every step undone.
        """
        before = _blocks_around(self, layout.blocks)[:-1]
        for step, blocks in zip(reversed(self.steps), reversed(before), strict=True):
            undone = step.undo(direction, blocks)
            if undone is not direction or undone.shape != (blocks.dim,):
                direction = require_result(step, undone, blocks.dim)
        return direction

    def undoes_blocks(self, layout: Layout) -> bool:
        """Return whether `undo_block` undoes all steps: at most a rotation is to be undone."""
        rotation = self.find(Rotation)
        if type(rotation) not in (Rotation, type(None)):
            return False  # a subclass may undo something else
        rest = (step for step in self.steps if step is not rotation)
        blocks = layout.blocks if rotation is None else rotation.blocks(layout.blocks)
        return self.blocks(layout) == blocks and all(
            type(step).undo is ClientStep.undo for step in rest
        )

    def undo_block(
        self, number: int, block: Float32, layout: Layout
    ) -> Iterable[tuple[Part, Float32]]:
        """Turn a block of the aggregate into parts of a direction for the model.

        Parameters
        ----------
        number : int
            The index of the block in `blocks`.
        block : (n,) float32
            The aggregate there, which may be overwritten.
        layout : Layout
            The model's layout.

        Returns
        -------
        iterable of Part, (runs, length) float32
            A part of an array of the flat vector, and the direction there.
        """
        rotation = self.find(Rotation)
        if rotation is None:
            return [(Part(number, 0, block.size), block[None])]
        return rotation.undo_block(number, block, layout.blocks)

    def encode(self) -> dict[str, WireScalar]:
        """Return the instruction as flat scalars, ready for a ConfigRecord or FitIns.config."""
        message: dict[str, WireScalar] = {
            "instruction": WIRE_VERSION,
            "round": self.server_round,
            "exact": json.dumps(self.exact),
            "steps": json.dumps([step.name for step in self.steps]),
        }
        for step in self.steps:
            message |= {f"{step.name}.{key}": value for key, value in step.encode().items()}
        if self.seed is not None:
            # A decimal string: seeds may exceed the 64 bits of a record's integers.
            message["seed"] = str(self.seed)
        if self.question:
            message["question"] = self.question
        return with_prefix(message)

    @staticmethod
    def is_in(config: Mapping[str, Any]) -> bool:
        """Return whether a message's config holds an instruction."""
        return PREFIX + "instruction" in config

    @staticmethod
    def key_in(config: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the key of a message's question, unchecked: the round, and its number there."""
        return config.get(PREFIX + "round"), config.get(PREFIX + "question", 0)

    @classmethod
    def decode(cls, config: Mapping[str, Any]) -> "Instruction":
        """Read the instruction in a message's config.

        Raises
        ------
        WireError
            If it has another version, is malformed, or holds an unknown step, parameter or entry,
            which might change the meaning of the answer.
        """
        # What is about the model is for a client that holds it, which this one need not.
        read = Reader(without_steps(config), "instruction")
        seed = _read_seed(read)
        exact = read.listed("exact", int)
        if exact and min(exact) < 0:
            raise WireError(f"{PREFIX}exact must be positions, got {exact!r}")
        names = read.listed("steps", str)
        if len(set(names)) < len(names):
            raise WireError(f"{PREFIX}steps must differ, got {names!r}")
        steps = tuple(_read_step(read, name) for name in names)
        if [isinstance(step, Encoding) for step in steps] != [False] * (len(steps) - 1) + [True]:
            raise WireError(f"{PREFIX}steps must end with their only encoding, got {names!r}")
        read.finish()
        return cls(steps, read.server_round, seed, tuple(exact), read.question)

    def require_question(self, payload: Payload) -> None:
        """Raise `WireError` unless a payload answers this instruction's question."""
        if payload.server_round != self.server_round:
            raise WireError(
                f"answers round {payload.server_round}, was asked in round {self.server_round}"
            )
        if payload.question != self.question:
            raise WireError(
                f"answers question {payload.question} of the round, was asked {self.question}"
            )

    def require_answer(self, payload: Payload, layout: Layout, model: Arrays | None = None) -> None:
        """Raise unless a payload is a usable answer.

        Parameters
        ----------
        payload : Payload
            The client's answer.
        layout : Layout
            The model's layout.
        model : mapping of str to array, optional
            The model that was sent: an exact array that was not finite there may stay so.

        Raises
        ------
        WireError
            Naming the first fault: round, encoding, body, exact arrays, or a step's report.
        """
        self.require_question(payload)
        encoding = self.encoding
        if payload.encoding != encoding.name:
            raise WireError(f"sent {shown(payload.encoding)}, was asked for {encoding.name!r}")
        *before, after = _blocks_around(self, layout.blocks)
        encoding.check_body(payload.body, after)
        pairs = zip(self.steps, before, strict=True)
        reporting = [pair for pair in pairs if type(pair[0]).check is not ClientStep.check]
        if unknown := payload.reports.keys() - {step.name for step, _ in reporting}:
            raise WireError(f"has a report of step {cut(min(unknown))!r}, which was not asked for")
        for step, blocks in reporting:
            step.check(payload.reports.get(step.name), blocks)
        layout.require_exact(payload.exact, model or {})


def perturb_update(
    instruction: Instruction,
    layout: Layout,
    update: Float32 | Read,
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
        What the server asks for.
    layout : Layout
        The model's layout.
    update : (d,) float32 or callable
        The update, x − x_i or a gradient: an array, which is overwritten, or a function that writes
        a part of it to an array, as `Layout.reader_of_difference` returns.
    after : mapping of str to array
        The model after training, for its exact arrays.
    rng : numpy.random.Generator
        Draws the noise, and the sign of every exact zero.
    memory : dict of str to dict, optional
        The client's memory between rounds, updated in place. None for a client without memory.
    partition : int, optional
        The client's partition, for the server's log.
    clip : float, optional
        The largest L2 norm of the vector that noise is added to, whatever the steps before do. The
        instruction must end with `AddNoise` of given scales and an encoding. No value of the
        update then decides whether this raises: if a step before the noise fails, or its result is
        not finite, noise is added to zeros, and the memory stays unchanged.

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
    steps, number, question = instruction.steps, instruction.server_round, instruction.question
    if clip is None:
        finite = _finite(layout, update)
        draft = Draft(finite, layout.blocks, number, rng, memory, question=question)
    else:
        # In a separate draft, whose reports are dropped: they have no noise.
        vector, blocks = _prepared_within(clip, instruction, layout, update, rng, memory)
        draft = Draft(vector, blocks, number, rng, memory, is_private=True, question=question)
        steps = steps[-2:]  # the noise, which must be the last change, and the encoding
    for step in steps:
        step.apply(draft)
    assert draft.body is not None  # made by the last step, an encoding
    encoding, exact = instruction.encoding.name, layout.pack_exact(after)
    return Payload(encoding, draft.body, exact, number, partition, draft.reports, question)


def _prepared_within(
    clip: float,
    instruction: Instruction,
    layout: Layout,
    update: Float32 | Read,
    rng: np.random.Generator,
    memory: Memory | None,
) -> tuple[Float32, Blocks]:
    """Take the steps before the noise; return a vector of norm at most `clip`, and its blocks."""
    blocks = instruction.blocks(layout)
    vector = np.zeros(blocks.dim, dtype=np.float32)
    with warned_of("sent noise alone, as this client's policy requires"):
        later = deepcopy(memory)
        finite = _finite(layout, update)
        number, question = instruction.server_round, instruction.question
        draft = Draft(finite, layout.blocks, number, rng, later, question=question)
        for step in instruction.steps[:-2]:
            step.apply(draft)
        if draft.vector.shape != (blocks.dim,):
            raise UpdateError(f"update has shape {draft.vector.shape}, not {(blocks.dim,)}")
        if not isfinite(energy(draft.vector)):
            raise UpdateError("update is not finite after the steps before the noise")
        vector = np.require(draft.vector, requirements="W")
        if memory is not None and later is not None:
            memory.update(later)
    shorten(vector, clip * (1 - _ROUNDING))
    return vector, blocks


def _finite(layout: Layout, update: Float32 | Read) -> Float32 | Read:
    """Return an update that raises `UpdateError` instead of being NaN or infinite."""
    if callable(update):

        def read(part: Part, out: Float32) -> None:
            update(part, out)
            _require_finite(layout, part.block, out)

        return read
    for index, block in enumerate(layout.blocks.split(update)):
        _require_finite(layout, index, block)
    return update


def _require_finite(layout: Layout, index: int, part: Float32) -> None:
    if not is_finite(part):
        raise UpdateError(f"update of array {layout.flat[index].name!r} holds NaN or infinity")


@lru_cache(maxsize=8)  # each of a round's replies asks
def _blocks_around(instruction: Instruction, blocks: Blocks) -> tuple[Blocks, ...]:
    """Return the blocks before each step, then those after the last."""
    return (*accumulate(instruction.steps, lambda now, step: step.blocks(now), initial=blocks),)


def _read_seed(read: Reader) -> int | None:
    text = read.optional("seed", str)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= LONGEST_SEED):
        raise WireError(f"{PREFIX}seed must be a decimal number, got {text!r}")
    return int(text)


def _read_step(read: Reader, name: str) -> ClientStep:
    step = CLIENT_STEPS.find(name)
    try:
        return step.decode(read.below(name))
    except (TypeError, ValueError) as error:
        raise WireError(f"client step {name!r} cannot be taken: {error}") from error
