"""Client steps: the ways in which a client changes its update before it is sent.

A step is a frozen value with a name on the wire. The server lists the steps of a round in its
`Instruction`; clients apply them in order, and the server undoes on the aggregate, in the
opposite order, what is to be undone there. A step of one's own derives from `ClientStep`, is
decorated with `register_client_step` in a module that server and clients import, and is passed to
a strategy as one of its ``client_steps``.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedmedian.checks import require_choice, require_integer, require_real
from fedmedian.kernels.encoding import pack_noisy_signs
from fedmedian.kernels.rotation import padded_size, rotate, rotate_back
from fedmedian.kernels.signs import PackedSigns, pack_signs
from fedmedian.model.blocks import Blocks
from fedmedian.rules.noise import NOISE_FAMILIES, Noise
from fedmedian.rules.optimizers import Momentum, State
from fedmedian.rules.scales import Magnitude
from fedmedian.wire.registry import Registry
from fedmedian.wire.scalars import (
    Float32,
    WireError,
    WireScalar,
    floats_from_bytes,
    floats_to_bytes,
    parameters_of,
    require_sizes,
)

Memory = dict[str, State]
"""A client's memory between rounds: arrays by name, for each step by its name."""

_CHUNK = 1 << 14


class UpdateError(ValueError):
    """An update that must not be sent; its message is the reason."""


class Draft:
    """An update on its way from training to the payload; client steps change it in turn.

    Parameters
    ----------
    vector : (d,) float32
        The update. It is overwritten.
    blocks : Blocks
        Its blocks.
    server_round : int
        The round.
    rng : numpy.random.Generator
        Draws the noise, and the sign of every exact zero.
    memory : dict of str to dict, optional
        The client's memory between rounds, updated in place. None if it has none.

    Attributes
    ----------
    magnitudes : (L,) float32 or None
        The magnitude of each block, once measured.
    noise : Noise or None
        The family of the noise that has been added.
    scales : (L,) float32 or None
        The scale of each block that is reported to the server: that of the noise or, where noise
        tops the update up, of both together.
    signs : (⌈d/8⌉,) uint8 or None
        The packed signs, once drawn.
    """

    def __init__(
        self,
        vector: Float32,
        blocks: Blocks,
        server_round: int,
        rng: np.random.Generator,
        memory: Memory | None = None,
    ) -> None:
        self._vector = vector
        self._pending: Float32 | None = None  # scales of noise not added before it is asked for
        self._memory = memory
        self.blocks = blocks
        self.server_round = server_round
        self.rng = rng
        self.magnitudes: Float32 | None = None
        self.noise: Noise | None = None
        self.scales: Float32 | None = None
        self.signs: PackedSigns | None = None

    @property
    def vector(self) -> Float32:
        """The update as it is now, (d,); may be written to."""
        if self._pending is not None:
            assert self.noise is not None
            for part, scale in zip(self.blocks.split(self._vector), self._pending, strict=True):
                part += scale * self.noise.sample(self.rng, part.size)
            self._pending = None
        return self._vector

    def replace(self, vector: Float32, blocks: Blocks | None = None) -> None:
        """Go on with another vector, and with other blocks if they have changed."""
        self._vector = np.asarray(vector, dtype=np.float32)
        self._pending = None
        self.blocks = self.blocks if blocks is None else blocks

    def memory_of(self, step: "ClientStep") -> State:
        """Return what a step remembers, to be changed in place; no other step sees it.

        Raises
        ------
        WireError
            If this client has no memory.
        """
        if self._memory is None:
            raise WireError(f"instruction asks for {step.name}, which this client cannot remember")
        return self._memory.setdefault(step.name, {})

    def add_noise(self, noise: Noise, scales: Float32, level: Float32 | None = None) -> None:
        """Add b·ξ to every coordinate.

        Parameters
        ----------
        noise : Noise
            The family of ξ.
        scales : (L,) float32
            The scale b of each block.
        level : (L,) float32, optional
            The scales to report; `scales` if not given.
        """
        self._vector = self.vector  # of noise that is there already
        self.noise, self._pending = noise, scales
        self.scales = scales if level is None else level

    def draw_signs(self) -> None:
        """Draw the signs of the vector; of noise that nobody has seen, no ξ need be drawn."""
        if self._pending is not None:
            assert self.noise is not None
            self.signs = pack_noisy_signs(
                self._vector, self.blocks.sizes, self.noise, self._pending, self.rng
            )
        else:
            self.signs = pack_signs(self._vector, self.rng)


@dataclass(frozen=True)
class ClientStep(ABC):
    """A change that a client makes to its update before it is sent.

    The fields of a subclass, numbers, strings or bytes, are its parameters and travel to the
    clients.
    """

    name: ClassVar[str]
    """The step's name on the wire."""

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
            If the step does not fit those before it, whatever the update.
        """
        return before

    def undo(self, direction: Float32, before: Blocks) -> Float32:
        """Undo on the server, on the aggregate, what the clients have done; by default nothing.

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
        """Return the step's parameters as they travel, by name."""
        return parameters_of(self)

    @classmethod
    def decode(cls, parameters: Mapping[str, Any]) -> Self:
        """Return the step with these parameters.

        Raises
        ------
        TypeError, ValueError
            If they are not its own, or out of range.
        """
        return cls(**parameters)


CLIENT_STEPS: Registry[ClientStep] = Registry(ClientStep, "client step", "register_client_step")
"""Every client step that clients can be told to take, by its name on the wire."""

Step = TypeVar("Step", bound=ClientStep)


def register_client_step(step: type[Step]) -> type[Step]:
    """Make a client step known by its name; a decorator.

    Server and clients must both import the module that does it.

    Parameters
    ----------
    step : type
        A frozen dataclass that derives from `ClientStep`, with a ``name`` of its own.

    Returns
    -------
    type
        The step.

    Raises
    ------
    TypeError, ValueError
        If it does not derive from `ClientStep`, or its name is no name or another step's.
    """
    return CLIENT_STEPS.add(step)


@register_client_step
@dataclass(frozen=True)
class DivideByLearningRate(ClientStep):
    """Division of the update by the clients' own learning rate.

    It makes of x − x_i the gradient of one local step, or the sum of those of several.

    Parameters
    ----------
    learning_rate : float
        The clients' learning rate, > 0.

    Raises
    ------
    TypeError, ValueError
        If `learning_rate` is not a number or out of range.
    """

    learning_rate: float

    name: ClassVar[str] = "learning-rate"

    def __post_init__(self) -> None:
        require_real("learning_rate", self.learning_rate, low=0.0, open_low=True)

    def apply(self, draft: Draft) -> None:
        """Divide the draft."""
        vector = draft.vector
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            vector /= np.float32(self.learning_rate)
        if not isfinite(energy(vector)):
            raise UpdateError(f"update over learning rate {self.learning_rate} is not finite")


@register_client_step
@dataclass(frozen=True)
class ClientMomentum(ClientStep):
    """An exponential average of the client's updates, sent in place of the last.

    It is `Momentum` on the client's side, which remembers the average; a round that does not come
    after the one that it remembers, or another model, begins it anew.

    Parameters
    ----------
    decay : float (default: 0.9)
        The decay, in [0, 1).

    Raises
    ------
    TypeError, ValueError
        If `decay` is not a number or out of range.
    """

    decay: float = 0.9

    name: ClassVar[str] = "momentum"

    def __post_init__(self) -> None:
        require_real("decay", self.decay, low=0.0, high=1.0, open_high=True)

    def apply(self, draft: Draft) -> None:
        """Replace the draft by the average, and remember that."""
        # One NaN in an average would stay in it.
        if not isfinite(energy(draft.vector)):
            raise UpdateError("an update that is not finite cannot be averaged")
        memory = draft.memory_of(self)
        rounds = np.array([draft.server_round], dtype=np.int64)
        # Another model, or rounds that do not go on from the last: the server began another run.
        if memory and (
            memory["m"].shape != draft.vector.shape
            or memory["last-round"] >= rounds
            or not isfinite(energy(memory["m"]))
        ):
            memory.clear()
        memory["last-round"] = rounds
        draft.replace(Momentum(self.decay).step(draft.vector, memory))


@register_client_step
@dataclass(frozen=True)
class Clip(ClientStep):
    """Clipping of the whole update to an L2 norm, by scaling it down.

    An update that is not finite, which no factor would make shorter, becomes zero.

    Parameters
    ----------
    norm : float
        The largest norm, > 0, in units of the update.

    Raises
    ------
    TypeError, ValueError
        If `norm` is not a number or out of range.
    """

    norm: float

    name: ClassVar[str] = "clip"

    def __post_init__(self) -> None:
        require_real("norm", self.norm, low=0.0, open_low=True)

    def apply(self, draft: Draft) -> None:
        """Scale the draft down if its norm is larger."""
        shorten(draft.vector, self.norm)


@register_client_step
@dataclass(frozen=True)
class Rotation(ClientStep):
    """A random rotation of the update, which the server undoes on the aggregate.

    In a random basis no coordinate is skewed or heavy-tailed: whatever the clients' updates, their
    coordinates are close to jointly normal, so that a sign or a median of them needs little noise
    to follow the mean, and no client's update stands out by single coordinates. See
    `fedmedian.kernels.rotation` for the matrix.

    Each array is rotated by itself, and is a block; arrays of fewer than `smallest` entries, which
    could not be mixed by themselves, are rotated together as the last block.

    Parameters
    ----------
    smallest : int (default: 256)
        The number of entries from which an array is a block of its own, >= 1.
    seed : int, optional
        The seed of the matrix, >= 0. Strategies draw a fresh one for each round.

    Raises
    ------
    TypeError, ValueError
        If an argument is not an integer or out of range.
    """

    smallest: int = 256
    seed: int | None = None

    name: ClassVar[str] = "rotation"

    def __post_init__(self) -> None:
        require_integer("smallest", self.smallest, low=1)
        if self.seed is not None:
            require_integer("seed", self.seed, low=0)

    def apply(self, draft: Draft) -> None:
        """Rotate the draft."""
        before, after = draft.blocks, self.blocks(draft.blocks)
        parts = before.split(draft.vector)
        rotated = np.empty(after.dim, dtype=np.float32)
        for number, (group, block) in enumerate(
            zip(self.groups(before), after.split(rotated), strict=True)
        ):
            joined = np.concatenate([parts[index] for index in group])
            block[:] = rotate(joined, self._rng(number))
        draft.replace(rotated, after)

    def blocks(self, before: Blocks) -> Blocks:
        """Return a block for each large block, and one for all small ones; all padded a little."""
        return Blocks(
            tuple(
                padded_size(sum(before.sizes[index] for index in group))
                for group in self.groups(before)
            )
        )

    def undo(self, direction: Float32, before: Blocks) -> Float32:
        """Rotate the aggregate back."""
        original = np.empty(before.dim, dtype=np.float32)
        parts = before.split(original)
        rotated = self.blocks(before).split(direction)
        for number, (group, block) in enumerate(zip(self.groups(before), rotated, strict=True)):
            own = Blocks(tuple(before.sizes[index] for index in group))
            vector = rotate_back(block, own.dim, self._rng(number))
            for index, part in zip(group, own.split(vector), strict=True):
                parts[index][:] = part
        return original

    @classmethod
    def decode(cls, parameters: Mapping[str, Any]) -> Self:
        """Return the step with these parameters, a seed among them; see `ClientStep.decode`."""
        if "seed" not in parameters:
            raise TypeError("seed is missing")
        return super().decode(parameters)

    def groups(self, before: Blocks) -> list[list[int]]:
        """Return, for each block of the rotated update, those of `before` in it, by their index."""
        large = [[index] for index, size in enumerate(before.sizes) if size >= self.smallest]
        small = [index for index, size in enumerate(before.sizes) if size < self.smallest]
        return [*large, small] if small else large

    def _rng(self, block: int) -> np.random.Generator:
        if self.seed is None:
            raise WireError("instruction has a rotation without a seed")
        return np.random.default_rng((self.seed, block))


@register_client_step
@dataclass(frozen=True)
class Measure(ClientStep):
    """Measurement of each block, to be reported to the server; strategies add it where needed.

    Parameters
    ----------
    magnitude : {"rms", "max"}
        The measure: root mean square, or largest absolute entry.

    Raises
    ------
    TypeError, ValueError
        If `magnitude` is another.
    """

    magnitude: Magnitude

    name: ClassVar[str] = "measure"

    def __post_init__(self) -> None:
        require_choice("magnitude", self.magnitude, ("rms", "max"))

    def apply(self, draft: Draft) -> None:
        """Measure the draft; it stays as it is."""
        parts = draft.blocks.split(draft.vector)
        draft.magnitudes = np.array([self._of(part) for part in parts], dtype=np.float32)

    def _of(self, part: Float32) -> float:
        if part.size == 0:
            return 0.0
        if self.magnitude == "max":
            return max(float(part.max()), -float(part.min()))
        return sqrt(energy(part) / part.size)


@register_client_step
@dataclass(frozen=True, eq=False)
class AddNoise(ClientStep):
    """Noise b·ξ on every coordinate; strategies add it as their `noise` says.

    Parameters
    ----------
    noise : Noise
        The family of ξ; its own scale plays no part here.
    scales : (L,) float32, optional
        The noise scale b of each block, in units of the update. Without it the client uses
        `factor` times the magnitude that it has measured.
    factor : float (default: 1.0)
        See `scales`.
    """

    noise: Noise
    scales: NDArray[np.float32] | None = None
    factor: float = 1.0

    name: ClassVar[str] = "noise"

    def apply(self, draft: Draft) -> None:
        """Add the noise."""
        draft.add_noise(self.noise, self._scales(draft))

    def blocks(self, before: Blocks) -> Blocks:
        """Return the same blocks, of which each must have a scale if any has."""
        if self.scales is not None and self.scales.size != len(before):
            raise WireError(
                f"instruction has noise scales for {self.scales.size} blocks, "
                f"the update has {len(before)}"
            )
        return before

    def encode(self) -> dict[str, WireScalar]:
        """Return the parameters, the family's own among them."""
        message: dict[str, WireScalar] = {"family": self.noise.name, "factor": float(self.factor)}
        if self.scales is not None:
            message["scales"] = floats_to_bytes(self.scales)
        return message | {f"family.{key}": value for key, value in self.noise.parameters.items()}

    @classmethod
    def decode(cls, parameters: Mapping[str, Any]) -> Self:
        """Return the step with these parameters; see `ClientStep.decode`."""
        own, family, factor, scales = {}, None, None, None
        for key, value in parameters.items():
            match key.split("."):
                case ["family"]:
                    family = value
                case ["family", parameter] if parameter != "scale":  # the rule is the server's
                    own[parameter] = value
                case ["factor"]:
                    factor = value
                case ["scales"]:
                    scales = value
                case _:
                    raise TypeError(f"{key} is unknown")
        if not isinstance(family, str):
            raise TypeError(f"family must be a string, got {family!r}")
        noise = NOISE_FAMILIES.make(family, own)
        if scales is not None:
            scales = require_sizes("scales", floats_from_bytes(scales))
        return cls(noise, scales, require_real("factor", factor, low=0.0))

    def _scales(self, draft: Draft) -> Float32:
        self.blocks(draft.blocks)  # raises if the scales are those of other blocks
        if self.scales is not None:
            return self.scales
        if draft.magnitudes is None:
            raise WireError("instruction has neither noise scales nor a magnitude to measure")
        return np.float32(self.factor) * draft.magnitudes


@register_client_step
@dataclass(frozen=True, eq=False)
class TopUpNoise(AddNoise):
    """Noise that tops each block up to a level; strategies add it with a `TopUp` scale.

    To a block of root mean square σ noise of variance max(c² − σ², 0) is added, so that its
    coordinates have the variance c² for all clients whose σ is no larger. The scales are the
    levels c.
    """

    name: ClassVar[str] = "top-up"

    def apply(self, draft: Draft) -> None:
        """Add the noise."""
        if draft.magnitudes is None:
            raise WireError("instruction tops up without a magnitude to measure")
        level = self._scales(draft)
        draft.add_noise(self.noise, top_up(level, draft.magnitudes), level)


@register_client_step
@dataclass(frozen=True)
class Signs(ClientStep):
    """Signs of the update, one bit each, in place of the update; always the last step."""

    name: ClassVar[str] = "signs"

    def apply(self, draft: Draft) -> None:
        """Draw the signs."""
        draft.draw_signs()


def top_up(level: NDArray[Any], rms: NDArray[Any]) -> Float32:
    """Return the scale of the noise that tops an update up to a level, elementwise: √(c² − σ²)."""
    missing = np.square(level, dtype=np.float64) - np.square(rms, dtype=np.float64)
    return np.asarray(np.sqrt(np.maximum(missing, 0)), dtype=np.float32)


def shorten(vector: NDArray[np.float32], norm: float) -> None:
    """Scale a vector down, in place, to an L2 norm, but for rounding; not finite, it becomes 0."""
    length = sqrt(energy(vector))
    if not isfinite(length):
        vector[:] = 0
    elif length > norm:
        # In float32 the factor of a very long update might have few bits left, or none.
        factor = norm / length
        np.multiply(vector, factor, out=vector, dtype=np.float64, casting="same_kind")


def energy(values: NDArray[np.float32]) -> float:
    """Return the sum of squares, which in float64 is finite if all values are."""
    total = 0.0
    for start in range(0, values.size, _CHUNK):
        wide = values[start : start + _CHUNK].astype(np.float64)
        # Not np.dot: BLAS threads wait for each other where clients share cores.
        total += float(np.einsum("i,i->", wide, wide))
    return total
