"""The step that rotates the update into a random basis."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import Any, ClassVar, Self

import numpy as np

from fedmedian.checks import require_integer
from fedmedian.kernels.rotation import padded_size, rotate, rotate_back
from fedmedian.model.blocks import UNNAMED, Blocks, Part
from fedmedian.steps.base import ClientStep, Draft, register_client_step
from fedmedian.wire.scalars import Float32, WireError

_IN_CACHE = 1 << 18
_RUNS = 1 << 6
_MOST = (1 << 63) - 1  # what clients can be sent


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
    `largest` are cut into blocks of at most 2¹⁸, which fit a processor's cache. Each of these has
    entries from everywhere in the array, so that they are alike.

    Parameters
    ----------
    smallest : int (default: 256)
        The smallest number of entries for which an array is a separate block, from 1 to 2**63 − 1.
    seed : int, optional
        The seed of the matrix, >= 0. Strategies draw a fresh one for each round.
    largest : int (default: 2**22)
        The largest number of entries for which an array of `smallest` or more is one block, from
        1 to 2**63 − 1.

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
        require_integer("smallest", self.smallest, low=1, high=_MOST)
        if self.seed is not None:
            require_integer("seed", self.seed, low=0)
        require_integer("largest", self.largest, low=1, high=_MOST)

    def apply(self, draft: Draft) -> None:
        """Rotate the draft."""
        read, places = draft.reader(), self.places(draft.blocks)
        after, rng = self.blocks(draft.blocks), self._rng

        def make(number: int, out: Float32) -> None:
            size = 0
            for part in places[number]:
                read(part, out[size : size + part.size])
                size += part.size
            rotate(out[:size], rng(number), out)

        draft.make_each(after, make)

    def blocks(self, before: Blocks) -> Blocks:
        """Return the blocks of the rotated update, each padded a little."""
        sizes = map(padded_size, _sizes(before.sizes, self.smallest, self.largest))
        return Blocks(tuple(sizes), before.members and self._members(before))

    def undo(self, direction: Float32, before: Blocks) -> Float32:
        """Rotate the aggregate back."""
        original = np.empty(before.dim, dtype=np.float32)
        parts, blocks = before.split(original), self.blocks(before).split(direction)
        for number, block in enumerate(blocks):
            for part, vector in self.undo_block(number, block, before):
                part.view(parts[part.block])[:] = vector
        return original

    def undo_block(
        self, number: int, block: Float32, before: Blocks
    ) -> Iterator[tuple[Part, Float32]]:
        """Rotate one block of the aggregate back, which may be overwritten.

        Yields
        ------
        part : Part
            A part of a block in `before`.
        vector : (runs, length) float32
            The aggregate there.
        """
        size = _sizes(before.sizes, self.smallest, self.largest)[number]
        vector, end = rotate_back(block, size, self._rng(number)), 0
        for part in self.places(before)[number]:
            shape = part.runs, part.length
            start, end = end, end + prod(shape)
            yield part, vector[start:end].reshape(shape)

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
        """Return the names of the arrays in each block; a part of an array has its own."""
        assert before.members is not None  # only called if blocks consist of arrays
        members, cut = list[tuple[str, ...]](), Counter[int]()
        for places in self.places(before):
            index = places[0].block
            names = tuple(name for part in places for name in before.members[part.block])
            if sum(part.size for part in places if part.block == index) < before.sizes[index]:
                cut[index] += 1
                arrays = ", ".join(map(repr, before.members[index]))
                names = (f"{UNNAMED}part {cut[index]} of {arrays}",)
            members.append(names)
        return tuple(members)

    def _rng(self, block: int) -> np.random.Generator:
        if self.seed is None:
            raise WireError("instruction has a rotation without a seed")
        return np.random.default_rng((self.seed, block))


@lru_cache(maxsize=8)  # each block asks
def _places(sizes: tuple[int, ...], smallest: int, largest: int) -> tuple[tuple[Part, ...], ...]:
    found, small = list[tuple[Part, ...]](), list[Part]()
    for index, size in enumerate(sizes):
        if size < smallest:
            small.append(Part(index, 0, size))
        elif size <= largest:
            found.append((Part(index, 0, size),))
        else:
            found += _cut(index, size, min(int(largest), _IN_CACHE))
    return (*found, tuple(small)) if small else tuple(found)


@lru_cache(maxsize=8)
def _sizes(sizes: tuple[int, ...], smallest: int, largest: int) -> tuple[int, ...]:
    """Return the number of entries in each block of the rotated update, before padding."""
    places = _places(sizes, smallest, largest)
    return tuple(sum(part.size for part in parts) for parts in places)


def _cut(index: int, size: int, most: int) -> Iterator[tuple[Part, ...]]:
    """Cut an array into parts of at most `most` entries, which are alike.

    Neighbors in an array belong together, such as the weights of one class, and clients differ in
    them. So each part has runs from everywhere, and a share of the rest.
    """
    fewest = -(-size // most)
    # Some numbers of parts need less padding than others.
    number = min(range(fewest, fewest + 8), key=lambda n: n * padded_size(-(-size // n)))
    run = size // number // _RUNS | 1  # odd, so that runs do not begin at the same column
    stride = number * run
    count = size // stride
    left = size - count * stride
    rest = [count * stride + left * part // number for part in range(number + 1)]
    for part, (start, stop) in enumerate(pairwise(rest)):
        yield Part(index, part * run, run, count, stride), Part(index, start, stop - start)
