"""Client steps: what a client does to its update before it sends it.

A step is a frozen value with a name on the wire. The server lists the steps of a round in its
`Instruction`. Clients apply them in order; the last one is an encoding, which makes the body of
the payload. The server undoes steps on the aggregate, last one first. A custom step derives from
`ClientStep`, is decorated with `register_client_step` in a module that server and clients import,
and is passed to a strategy as one of its ``client_steps``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedmedian.kernels.encoding import pack_noisy_signs
from fedmedian.kernels.signs import PackedSigns, pack_signs
from fedmedian.model.blocks import Blocks, Part, Read
from fedmedian.rules.noise import Noise
from fedmedian.rules.optimizers import State
from fedmedian.wire.registry import Registry
from fedmedian.wire.scalars import Float32, WireError, WireScalar, parameters_of

Memory = dict[str, State]
"""A client's memory between rounds: arrays by name, for each step by its name."""

Make = Callable[[int, Float32], object]
"""Writes a block to an array, by the block's index."""

_CHUNK = 1 << 14


class UpdateError(ValueError):
    """Raised when an update cannot be sent; the message is the reason."""


class Draft:
    """A payload under construction: the update, which client steps change in turn.

    Where it can, it makes one block at a time, once an encoding asks for it: the whole update is
    never in memory, and a block is encoded while it is in the processor's cache. It makes the whole
    update for a step that reads `vector`.

    Parameters
    ----------
    update : (d,) float32 or callable
        The update, which is overwritten, or a function that writes a part of it to an array.
    blocks : Blocks
        Its blocks.
    server_round : int
        The round.
    rng : numpy.random.Generator
        Draws the noise, and the sign of every exact zero.
    memory : dict of str to dict, optional
        The client's memory between rounds, updated in place. None for a client without memory.
    is_private : bool (default: False)
        Whether noise must hide the update. It is then drawn and added in float64, and only the
        result is rounded.
    question : int (default: 0)
        The number of the question in the round, which may train several models, or one several
        times.

    Attributes
    ----------
    body : array or None
        The body of the payload, once an encoding has made it.
    measured : (L,) float32 or None
        The magnitude of each block, once a step measures it; filled in as blocks are made.
    """

    def __init__(
        self,
        update: Float32 | Read,
        blocks: Blocks,
        server_round: int,
        rng: np.random.Generator,
        memory: Memory | None = None,
        is_private: bool = False,
        question: int = 0,
    ) -> None:
        self.blocks = blocks
        self.server_round = server_round
        self.question = question
        self.rng = rng
        self.body: NDArray[Any] | None = None
        self.measured: Float32 | None = None
        self._read: Read | None = None
        self._vector: Float32 | None = None
        self._noise: tuple[Noise, Float32] | None = None  # not yet added
        self._memory = memory
        self._is_private = is_private
        self._reports: dict[str, Float32] = {}
        if callable(update):
            self._read = read = update
            self._make: Make = lambda number, out: read(Part(number, 0, out.size), out)
        else:
            self._vector = update
        self._is_waiting = False  # whether work of `for_each` waits for blocks that are to be made

    @property
    def vector(self) -> Float32:
        """The current update, (d,) float32; may be written to."""
        vector = self._whole()
        if self._noise is not None:
            noise, scales = self._noise
            add = _add_finely if self._is_private else _add
            for part, scale in zip(self.blocks.split(vector), scales, strict=True):
                add(part, noise, scale, self.rng)
            self._noise = None
        return vector

    @property
    def reports(self) -> dict[str, Float32]:
        """What steps report to the server, (n,) float32 by the step's name."""
        self._finish_work()
        return self._reports

    def replace(self, vector: Float32, blocks: Blocks | None = None) -> None:
        """Replace the update, and its blocks if they have changed."""
        self._finish_work()
        self._vector = np.asarray(vector, dtype=np.float32)
        self._read = self._noise = None
        self.blocks = self.blocks if blocks is None else blocks

    def reader(self) -> Read:
        """Return a function that reads a part of the update; see the parameter `update`."""
        if self._read is not None and self._noise is None:
            return self._read
        blocks = self.blocks.split(self.vector)

        def read(part: Part, out: Float32) -> None:
            out.reshape(part.runs, part.length)[:] = part.view(blocks[part.block])

        return read

    def make_each(self, blocks: Blocks, make: Make) -> None:
        """Replace the update by blocks that are made when they are needed.

        Parameters
        ----------
        blocks : Blocks
            The blocks.
        make : callable
            Writes a block to an array, by the block's index.
        """
        self._finish_work()
        self._vector = self._read = self._noise = None
        self._make, self.blocks = make, blocks

    def for_each(self, work: Callable[[int, Float32], object]) -> None:
        """Measure or change each block in place, in order, now or when it is made.

        Parameters
        ----------
        work : callable
            Takes a block's index and the block.
        """
        if self._noise is not None or self._vector is not None:
            for number, part in enumerate(self.blocks.split(self.vector)):
                work(number, part)
            return
        make = self._make

        def worked(number: int, out: Float32) -> None:
            make(number, out)
            work(number, out)

        self._make, self._read, self._is_waiting = worked, None, True

    def measure_each(self, measure: Callable[[int, Float32], float]) -> Float32:
        """Return a number for each block, (L,) float32; those of blocks to come are filled in."""
        values = np.zeros(len(self.blocks), dtype=np.float32)

        def work(number: int, part: Float32) -> None:
            values[number] = measure(number, part)

        self.for_each(work)
        return values

    def memory_of(self, step: "ClientStep") -> State:
        """Return a step's own memory, to be changed in place.

        Raises
        ------
        WireError
            If this client has no memory.
        """
        if self._memory is None:
            raise WireError(f"instruction asks for {step.name}, which needs a client with memory")
        return self._memory.setdefault(step.name, {})

    def report(self, step: "ClientStep", values: Float32) -> None:
        """Report numbers to the server, (n,) float32; `ClientStep.check` checks them there."""
        self._reports[step.name] = np.asarray(values, dtype=np.float32)

    def add_noise(self, noise: Noise, scales: Float32) -> None:
        """Add b·ξ to every coordinate.

        Parameters
        ----------
        noise : Noise
            The family of ξ.
        scales : (L,) float32
            The scale b of each block.
        """
        if self._noise is not None:
            self._vector = self.vector  # adds earlier noise
        self._noise = noise, scales

    def draw_signs(self) -> PackedSigns:
        """Return the packed signs of the update, (⌈d/8⌉,) uint8.

        Noise that is never read is never sampled: the signs are drawn directly.
        """
        if self._noise is None:
            return pack_signs(self.vector, self.rng)
        noise, scales = self._noise
        sizes = self.blocks.sizes if self._vector is None else ()
        memory = np.empty(max(sizes, default=0), dtype=np.float32)  # of each block in turn
        made = self._made([memory[:size] for size in sizes])
        return pack_noisy_signs(made, self.blocks.dim, noise, scales, self.rng)

    def _made(self, outs: Sequence[Float32]) -> Iterator[Float32]:
        """Yield each block, made in its place in `outs`."""
        if self._vector is not None:
            yield from self.blocks.split(self._vector)
            return
        for number, out in enumerate(outs):
            self._make(number, out)
            yield out
        self._is_waiting = False

    def _whole(self) -> Float32:
        """Return the update without the noise that is to be added."""
        if self._vector is None:
            vector = np.empty(self.blocks.dim, dtype=np.float32)
            for _ in self._made(self.blocks.split(vector)):
                pass
            self._vector, self._read = vector, None
        return self._vector

    def _finish_work(self) -> None:
        if self._is_waiting:
            self._whole()


def _add(part: Float32, noise: Noise, scale: np.float32, rng: np.random.Generator) -> None:
    part += scale * noise.sample(rng, part.size)


def _add_finely(part: Float32, noise: Noise, scale: np.float32, rng: np.random.Generator) -> None:
    for start in range(0, part.size, _CHUNK):
        piece = part[start : start + _CHUNK]
        piece[:] = piece + np.float64(scale) * noise.sample_finely(rng, piece.size)


@dataclass(frozen=True)
class ClientStep(ABC):
    """A change that a client makes to its update before it is sent.

    The fields of a subclass, numbers, strings or bytes, are its parameters and travel to the
    clients.
    """

    name: ClassVar[str]
    """The step's name on the wire."""

    reveals: ClassVar[str] = ""
    """What the step's report reveals about the update, without noise; empty for a step that reports
    nothing about it. Clients with a `fedmedian.clients.Policy` refuse what reveals something."""

    @abstractmethod
    def apply(self, draft: Draft) -> None:
        """Change the draft, on the client.

        Raises
        ------
        UpdateError, WireError
            If the update cannot be sent, or the step does not fit it.
        """

    def blocks(self, before: Blocks) -> Blocks:
        """Return the blocks of the vector after this step.

        Raises
        ------
        WireError
            If the step does not fit the blocks before it, whatever the update.
        """
        return before

    def num_votes(self, blocks: Blocks) -> int:
        """Return the number of entries of the report if each is 0 or 1; by default 0.

        Only such reports can be summed in a secure sum.

        Parameters
        ----------
        blocks : Blocks
            The blocks before this step.
        """
        return 0

    def check(self, reported: Float32 | None, blocks: Blocks) -> None:
        """Check a client's report on the server; by default there must be none.

        Parameters
        ----------
        reported : (n,) float32 or None
            The report. None if the client sent none.
        blocks : Blocks
            The blocks before this step.

        Raises
        ------
        WireError
            If the server cannot use the report.
        """
        if reported is not None:
            raise WireError(f"has a report of step {self.name!r}, which was not asked for")

    def undo(self, direction: Float32, before: Blocks) -> Float32:
        """Undo the step on the aggregate, on the server; by default change nothing.

        Parameters
        ----------
        direction : (d',) float32
            The aggregate, in the blocks after this step. It may be overwritten.
        before : Blocks
            The blocks before this step, of d coordinates.

        Returns
        -------
        (d,) float32
            The aggregate in the blocks before it.
        """
        return direction

    def encode(self) -> dict[str, WireScalar]:
        """Return the step's parameters on the wire, by name."""
        return parameters_of(self)

    @classmethod
    def decode(cls, parameters: Mapping[str, Any]) -> Self:
        """Return the step with these parameters.

        Raises
        ------
        TypeError, ValueError
            If a parameter is unknown, missing or out of range.
        """
        return cls(**parameters)


CLIENT_STEPS: Registry[ClientStep] = Registry(ClientStep, "client step", "register_client_step")
"""Every client step that clients can be asked to take, by its name on the wire."""

Step = TypeVar("Step", bound=ClientStep)


def register_client_step(step: type[Step]) -> type[Step]:
    """Register a client step under its name; a decorator.

    Server and clients must both import the module that uses it.

    Parameters
    ----------
    step : type
        A frozen dataclass that derives from `ClientStep`, with a unique ``name``.

    Returns
    -------
    type
        The step.

    Raises
    ------
    TypeError, ValueError
        If it does not derive from `ClientStep`, or its name is invalid or already in use.
    """
    return CLIENT_STEPS.add(step)


def shorten(vector: Float32, norm: float) -> None:
    """Clip a vector to an L2 norm, in place, up to rounding; one that is not finite becomes 0."""
    length = sqrt(energy(vector))
    if not isfinite(length):
        vector[:] = 0
    elif length > norm:
        # In float32 the factor of a very long update might have few bits left, or none.
        factor = norm / length
        np.multiply(vector, factor, out=vector, dtype=np.float64, casting="same_kind")


def energy(values: Float32) -> float:
    """Return the sum of squares in float64, finite if and only if all values are."""
    total = 0.0
    for start in range(0, values.size, _CHUNK):
        wide = values[start : start + _CHUNK].astype(np.float64)
        # Not np.dot: BLAS threads wait for each other where clients share cores.
        total += float(np.einsum("i,i->", wide, wide))
    return total
