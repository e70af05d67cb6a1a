"""Blocks of a flat vector: coordinates that share a noise scale."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from fedmedian.wire.scalars import Float32

UNNAMED = "\0"
"""The prefix of the names of blocks that are no whole arrays; no array's name has it."""


@dataclass(frozen=True)
class Blocks:
    """Consecutive blocks of coordinates, each with its own noise scale and magnitude.

    Blocks need not be a model's arrays: a client step may join several arrays into one block, cut
    an array into several, or add coordinates.

    Parameters
    ----------
    sizes : tuple of L int
        The number of coordinates in each block, >= 0, in order.
    members : tuple of L tuples of str, optional
        The names of the arrays in each block, if blocks consist of arrays. The name of a part of an
        array begins with `UNNAMED`.

    Examples
    --------
    >>> blocks = Blocks((3, 2))
    >>> blocks.dim
    5
    >>> [part.tolist() for part in blocks.split(np.arange(5))]
    [[0, 1, 2], [3, 4]]
    """

    sizes: tuple[int, ...]
    members: tuple[tuple[str, ...], ...] | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def dim(self) -> int:
        """d, the number of coordinates in all blocks."""
        return sum(self.sizes)

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """The end of each block in the flat vector, (L,) int64."""
        return np.cumsum(self.sizes, dtype=np.int64)

    @cached_property
    def names(self) -> tuple[tuple[str, ...], ...]:
        """The names of each block's arrays, by which its state is kept between rounds."""
        if self.members is not None:
            return self.members
        # A custom client step made blocks without corresponding arrays.
        return tuple((f"{UNNAMED}block {number}",) for number in range(len(self)))

    def split(self, flat: NDArray[Any]) -> list[NDArray[Any]]:
        """Return views of a flat vector's blocks, each (size,)."""
        return [flat[end - size : end] for size, end in zip(self.sizes, self.ends, strict=True)]

    def sizes_within(self, part: slice) -> NDArray[np.int64]:
        """Return how many coordinates of each block lie in a part of the flat vector, (L,)."""
        inside: NDArray[np.int64] = np.clip((0, *self.ends), part.start, part.stop)
        return inside[1:] - inside[:-1]

    def repeat_within(self, part: slice, values: Float32) -> Float32:
        """Return one value per block, (L,), for each coordinate in a part of the flat vector."""
        return np.repeat(values, self.sizes_within(part))


class Part(NamedTuple):
    """Some entries of one block: runs of one length, at equal distances.

    Parameters
    ----------
    block : int
        The index of the block.
    first : int
        The first entry.
    length : int
        The length of a run.
    runs : int (default: 1)
        The number of runs.
    stride : int (default: 0)
        The distance between the beginnings of two runs.

    Examples
    --------
    >>> Part(0, 1, 2, 3, 4).view(np.arange(12)).tolist()
    [[1, 2], [5, 6], [9, 10]]
    """

    block: int
    first: int
    length: int
    runs: int = 1
    stride: int = 0

    @property
    def size(self) -> int:
        """The number of entries."""
        return self.length * self.runs

    def view(self, flat: NDArray[Any]) -> NDArray[Any]:
        """Return the entries in a flat block as a view, (runs, length)."""
        (step,) = flat.strides
        return as_strided(flat[self.first :], (self.runs, self.length), (self.stride * step, step))


Read = Callable[[Part, Float32], object]
"""Writes a part of a vector, whose block is given by its index, to an array, (n,) float32."""
