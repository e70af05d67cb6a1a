"""The step that rotates the update into a random basis."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise
from typing import Any, ClassVar, Self

import numpy as np

from fedmedian.checks import require_integer
from fedmedian.kernels.rotation import padded_size, rotate, rotate_back
from fedmedian.model.blocks import UNNAMED, Blocks
from fedmedian.steps.base import ClientStep, Draft, register_client_step
from fedmedian.wire.scalars import Float32, WireError

_IN_CACHE = 1 << 18

Part = tuple[int, slice]
"""The index of a block, and a part of it."""


@register_client_step
@dataclass(frozen=True)
class Rotation(ClientStep):
    """A random rotation of the update, which the server undoes on the aggregate.

    In a random basis no coordinate is skewed or heavy-tailed. Whatever the updates are, their
    coordinates are close to jointly normal. A sign or a median of them then needs little noise to
    follow the mean, and no single coordinate makes an update an outlier. See
    `fedmedian.kernels.rotation` for the matrix.

    Each array is rotated separately and is a block. Arrays of fewer than `smallest` entries are too
    small to be mixed alone. They are rotated together, as the last block. Arrays of more than
    `largest` are cut into blocks of nearly equal size, at most 2¹⁸, which fit a processor's cache.

    Parameters
    ----------
    smallest : int (default: 256)
        The smallest number of entries for which an array is a separate block, >= 1.
    seed : int, optional
        The seed of the matrix, >= 0. Strategies draw a fresh one for each round.
    largest : int (default: 2**22)
        The largest number of entries for which an array of `smallest` or more is one block, >= 1.

    Raises
    ------
    TypeError, ValueError
        If an argument is not an integer or out of range.
    """

    smallest: int = 256
    seed: int | None = None
    largest: int = 1 << 22

    name: ClassVar[str] = "rotation"

    def __post_init__(self) -> None:
        require_integer("smallest", self.smallest, low=1)
        if self.seed is not None:
            require_integer("seed", self.seed, low=0)
        require_integer("largest", self.largest, low=1)

    def apply(self, draft: Draft) -> None:
        """Rotate the draft."""
        before, after = draft.blocks, self.blocks(draft.blocks)
        parts = before.split(draft.vector)
        rotated = np.empty(after.dim, dtype=np.float32)
        blocks = zip(self.places(before), after.split(rotated), strict=True)
        for number, (places, block) in enumerate(blocks):
            joined = [parts[index][part] for index, part in places]
            vector = joined[0] if len(joined) == 1 else np.concatenate(joined)
            rotate(vector, self._rng(number), out=block)
        draft.replace(rotated, after)

    def blocks(self, before: Blocks) -> Blocks:
        """Return the blocks of the rotated update, each padded a little."""
        sizes = (sum(map(_size, places)) for places in self.places(before))
        return Blocks(tuple(map(padded_size, sizes)), before.members and self._members(before))

    def undo(self, direction: Float32, before: Blocks) -> Float32:
        """Rotate the aggregate back."""
        original = np.empty(before.dim, dtype=np.float32)
        parts, blocks = before.split(original), self.blocks(before).split(direction)
        for number, block in enumerate(blocks):
            for (index, part), vector in self.undo_block(number, block, before):
                parts[index][part] = vector
        return original

    def undo_block(
        self, number: int, block: Float32, before: Blocks
    ) -> Iterator[tuple[Part, Float32]]:
        """Rotate one block of the aggregate back, which may be overwritten.

        Yields
        ------
        place : (int, slice)
            The index of a block in `before`, and a part of it.
        vector : (n,) float32
            The aggregate there.
        """
        places, start = self.places(before)[number], 0
        vector = rotate_back(block, sum(map(_size, places)), self._rng(number))
        for place in places:
            yield place, vector[start : start + _size(place)]
            start += _size(place)

    @classmethod
    def decode(cls, parameters: Mapping[str, Any]) -> Self:
        """Return the step with these parameters, which include a seed; see `ClientStep.decode`."""
        if "seed" not in parameters:
            raise TypeError("seed is missing")
        return super().decode(parameters)

    def places(self, before: Blocks) -> tuple[tuple[Part, ...], ...]:
        """Return what each block of the rotated update is made of."""
        return _places(before.sizes, self.smallest, self.largest)

    def _members(self, before: Blocks) -> tuple[tuple[str, ...], ...]:
        """Return the names of the arrays in each block."""
        names = [[_names(place, before) for place in places] for places in self.places(before)]
        return tuple(tuple(chain.from_iterable(one)) for one in names)

    def _rng(self, block: int) -> np.random.Generator:
        if self.seed is None:
            raise WireError("instruction has a rotation without a seed")
        return np.random.default_rng((self.seed, block))


@lru_cache(maxsize=8)  # each block asks
def _places(sizes: tuple[int, ...], smallest: int, largest: int) -> tuple[tuple[Part, ...], ...]:
    found, small = list[tuple[Part, ...]](), list[Part]()
    for index, size in enumerate(sizes):
        if size < smallest:
            small.append((index, slice(0, size)))
            continue
        number = 1 if size <= largest else _number_of_parts(size, min(largest, _IN_CACHE))
        ends = [size * part // number for part in range(number + 1)]
        found += [((index, slice(*part)),) for part in pairwise(ends)]
    return (*found, tuple(small)) if small else tuple(found)


def _number_of_parts(size: int, most: int) -> int:
    """Return into how many parts of at most so many entries an array is cut, padded by little."""
    fewest = -(-size // most)
    return min(range(fewest, fewest + 8), key=lambda n: n * padded_size(-(-size // n)))


def _size(place: Part) -> int:
    size: int = place[1].stop - place[1].start
    return size


def _names(place: Part, before: Blocks) -> tuple[str, ...]:
    index, part = place
    assert before.members is not None  # only called if blocks consist of arrays
    names = before.members[index]
    if _size(place) == before.sizes[index]:
        return names
    # Each part of an array has a noise scale of its own.
    arrays = ", ".join(map(repr, names))
    return (f"{UNNAMED}entries {part.start} to {part.stop - 1} of {arrays}",)
