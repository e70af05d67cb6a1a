"""The step that rotates the update into a random basis."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from fedmedian.checks import require_integer
from fedmedian.kernels.rotation import padded_size, rotate, rotate_back
from fedmedian.model.blocks import Blocks
from fedmedian.steps.base import ClientStep, Draft, register_client_step
from fedmedian.wire.scalars import Float32, WireError


@register_client_step
@dataclass(frozen=True)
class Rotation(ClientStep):
    """A random rotation of the update, which the server undoes on the aggregate.

    In a random basis no coordinate is skewed or heavy-tailed. Whatever the updates are, their
    coordinates are close to jointly normal. A sign or a median of them then needs little noise to
    follow the mean, and no single coordinate makes an update an outlier. See
    `fedmedian.kernels.rotation` for the matrix.

    Each array is rotated separately and is a block. Arrays of fewer than `smallest` entries are too
    small to be mixed alone. They are rotated together, as the last block.

    Parameters
    ----------
    smallest : int (default: 256)
        The smallest number of entries for which an array is a separate block, >= 1.
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
            joined = [parts[index] for index in group]
            vector = joined[0] if len(joined) == 1 else np.concatenate(joined)
            rotate(vector, self._rng(number), out=block)
        draft.replace(rotated, after)

    def blocks(self, before: Blocks) -> Blocks:
        """Return a block for each large block, and one for all small ones; all padded a little."""
        groups, members = self.groups(before), before.members
        sizes = (sum(before.sizes[index] for index in group) for group in groups)
        joined = members and tuple(
            tuple(name for index in group for name in members[index]) for group in groups
        )
        return Blocks(tuple(map(padded_size, sizes)), joined)

    def undo(self, direction: Float32, before: Blocks) -> Float32:
        """Rotate the aggregate back."""
        if len(before) == 1:
            return rotate_back(direction, before.dim, self._rng(0))  # without another copy
        original = np.empty(before.dim, dtype=np.float32)
        parts = before.split(original)
        rotated = self.blocks(before).split(direction)
        for number, (group, block) in enumerate(zip(self.groups(before), rotated, strict=True)):
            sizes = tuple(before.sizes[index] for index in group)
            vector = rotate_back(block, sum(sizes), self._rng(number))
            for index, part in zip(group, Blocks(sizes).split(vector), strict=True):
                parts[index][:] = part
        return original

    @classmethod
    def decode(cls, parameters: Mapping[str, Any]) -> Self:
        """Return the step with these parameters, which include a seed; see `ClientStep.decode`."""
        if "seed" not in parameters:
            raise TypeError("seed is missing")
        return super().decode(parameters)

    def groups(self, before: Blocks) -> list[list[int]]:
        """Return, for each block of the rotated update, the indices of its blocks in `before`."""
        large = [[index] for index, size in enumerate(before.sizes) if size >= self.smallest]
        small = [index for index, size in enumerate(before.sizes) if size < self.smallest]
        return [*large, small] if small else large

    def _rng(self, block: int) -> np.random.Generator:
        if self.seed is None:
            raise WireError("instruction has a rotation without a seed")
        return np.random.default_rng((self.seed, block))
