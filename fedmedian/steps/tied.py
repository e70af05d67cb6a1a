"""The step that reports which tied arrays stayed tied in training."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from fedmedian.logs import shown
from fedmedian.model.blocks import Blocks
from fedmedian.model.layout import Groups
from fedmedian.steps.base import ClientStep, Draft, register_client_step
from fedmedian.wire.scalars import Float32, WireError, WireScalar, list_from_json, require_votes


@register_client_step
@dataclass(frozen=True)
class Tied(ClientStep):
    """A report of which equal arrays have equal updates; strategies add it if a model has any.

    Parameters
    ----------
    groups : tuple of tuple of int
        Groups of equal arrays, by their index in the flat vector; see `Layout.tied`.
    """

    groups: Groups

    name: ClassVar[str] = "tied"
    reveals: ClassVar[str] = "whether arrays remain tied"

    def apply(self, draft: Draft) -> None:
        """Report (G,) numbers: 1 for each group whose arrays have one update, else 0."""
        self.blocks(draft.blocks)
        parts = draft.blocks.split(draft.vector)
        equal = [are_equal(parts, group) for group in self.groups]
        draft.report(self, np.array(equal, dtype=np.float32))

    def blocks(self, before: Blocks) -> Blocks:
        """Return the same blocks, which must include those of all groups."""
        if any(max(group) >= len(before) for group in self.groups):
            raise WireError(f"groups must be arrays of the model, got {self.groups!r}")
        return before

    def num_votes(self, blocks: Blocks) -> int:
        """Return the number of groups."""
        return len(self.groups)

    def check(self, reported: Float32 | None, blocks: Blocks) -> None:
        """Require 0 or 1 for each group; see `ClientStep.check`."""
        require_votes("tied arrays", reported, len(self.groups))

    def encode(self) -> dict[str, WireScalar]:
        """Return the groups as JSON."""
        return {"groups": json.dumps(self.groups)}

    @classmethod
    def decode(cls, parameters: Mapping[str, Any]) -> Self:
        """Return the step with these parameters; see `ClientStep.decode`."""
        if set(parameters) != {"groups"}:
            raise TypeError(f"tied takes groups, got {sorted(parameters)}")
        return cls(as_groups(list_from_json("groups", parameters["groups"], list)))


def as_groups(groups: Sequence[Any]) -> Groups:
    """Return groups of tied arrays that were received as lists of positions.

    Raises
    ------
    WireError
        If they are anything else, or a position is there twice: each takes memory and time.
    """
    if not all(type(i) is int and i >= 0 for group in groups for i in group) or [] in groups:
        raise WireError(f"tied groups must be lists of positions, got {shown(groups)}")
    positions = [position for group in groups for position in group]
    if len(set(positions)) < len(positions):
        raise WireError(f"tied groups must have each position once, got {shown(groups)}")
    return tuple(map(tuple, groups))


def are_equal(parts: Sequence[Float32], group: tuple[int, ...]) -> bool:
    """Return whether the vectors of a group's arrays are equal."""
    first, *others = group
    return all(np.array_equal(parts[first], parts[other]) for other in others)


def average(
    directions: Mapping[int, Float32] | Sequence[Float32], groups: Iterable[Sequence[int]]
) -> None:
    """Replace the directions of tied arrays by their mean, in place.

    Parameters
    ----------
    directions : mapping or sequence of arrays
        The direction of each array, by its index in the flat vector.
    groups : iterable of sequence of int
        The groups of tied arrays; see `Layout.tied`.
    """
    for group in groups:
        mean = np.mean([directions[index] for index in group], axis=0, dtype=np.float32)
        for index in group:
            directions[index][:] = mean
