"""What a run remembers from one round to the next, beside its model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import nan, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmedian.model.blocks import Blocks
from fedmedian.model.layout import Arrays, Layout
from fedmedian.rules.optimizers import State
from fedmedian.rules.scales import Scales

_SCALE = "scale"
_OPTIMIZER = "optimizer."


@dataclass(frozen=True)
class ArrayState:
    """What a run remembers of one array.

    Parameters
    ----------
    shape : tuple of int
        The array's shape. An array of another shape begins afresh.
    scale : float
        The noise scale of its block; NaN if none is known.
    optimizer : dict of str to array
        The optimizer's state.
    """

    shape: tuple[int, ...]
    scale: float = nan
    optimizer: State = field(default_factory=dict)


@dataclass(frozen=True)
class RunState:
    """What the next round needs beside the model, by the names of its arrays.

    A round that leaves an array out leaves its state as it was. An array that comes, or comes back
    in another shape, begins afresh.

    Parameters
    ----------
    arrays : mapping of str to ArrayState
        The state of each array.
    """

    arrays: Mapping[str, ArrayState] = field(default_factory=dict)

    def of(self, name: str, shape: tuple[int, ...]) -> ArrayState:
        """Return an array's state, afresh if there is none of this shape."""
        known = self.arrays.get(name)
        return ArrayState(shape) if known is None or known.shape != shape else known

    def scales(self, blocks: Blocks, layout: Layout) -> Scales:
        """Return the noise scale of each block, (L,); NaN for blocks with a new array.

        Arrays that have been in one block share its scale. Where they come from several it is the
        root mean square over their coordinates.
        """
        shapes = _shapes(blocks, layout)
        found = [[self.of(name, shapes[name]) for name in names] for names in names_of(blocks)]
        return np.array([_joint_scale(states) for states in found], dtype=np.float64)

    def following(
        self, blocks: Blocks, layout: Layout, scales: Scales | None, optimizer: Mapping[str, State]
    ) -> "RunState":
        """Return the state after a round.

        Parameters
        ----------
        blocks : Blocks
            The blocks of what clients have sent.
        layout : Layout
            The model's layout.
        scales : (L,) float64 or None
            The next noise scale of each block; None without noise.
        optimizer : mapping of str to dict
            The optimizer's state of each array.

        Returns
        -------
        RunState
            The state.
        """
        shapes = _shapes(blocks, layout)
        new = {name: self.of(name, shape) for name, shape in shapes.items()}
        if scales is not None:
            for names, scale in zip(names_of(blocks), scales.tolist(), strict=True):
                new |= {name: replace(new[name], scale=scale) for name in names}
        new |= {name: replace(new[name], optimizer=state) for name, state in optimizer.items()}
        return RunState({**self.arrays, **new})

    def to_groups(self) -> dict[str, Arrays]:
        """Return the state as named arrays in groups, as a checkpoint stores it."""
        groups: dict[str, dict[str, NDArray[Any]]] = {_SCALE: {}, "shape": {}}
        for name, state in self.arrays.items():
            groups["shape"][name] = np.array(state.shape, dtype=np.int64)
            groups[_SCALE][name] = np.array(state.scale)
            for key, value in state.optimizer.items():
                groups.setdefault(_OPTIMIZER + key, {})[name] = value
        return dict(groups)

    @classmethod
    def from_groups(cls, groups: Mapping[str, Arrays]) -> "RunState":
        """Return the state that `to_groups` has made these groups of; others are left out."""
        keys = [key for key in groups if key.startswith(_OPTIMIZER)]
        return cls(
            {
                name: ArrayState(
                    tuple(shape.tolist()),
                    float(groups[_SCALE][name]),
                    {
                        key.removeprefix(_OPTIMIZER): groups[key][name]
                        for key in keys
                        if name in groups[key]
                    },
                )
                for name, shape in groups["shape"].items()
            }
        )


def names_of(blocks: Blocks) -> Iterable[tuple[str, ...]]:
    """Return the names under which each block's scale is remembered: those of its arrays."""
    if blocks.members is not None:
        return blocks.members
    # A custom client step has made blocks that no array corresponds to.
    return ((f"block {number}",) for number in range(len(blocks)))


def _shapes(blocks: Blocks, layout: Layout) -> dict[str, tuple[int, ...]]:
    shapes = {spec.name: spec.shape for spec in layout.flat}
    if blocks.members is None:
        names = (name for (name,) in names_of(blocks))
        shapes |= {name: (size,) for name, size in zip(names, blocks.sizes, strict=True)}
    return shapes


def _joint_scale(states: list[ArrayState]) -> float:
    scales = [state.scale for state in states]
    if all(scale == scales[0] for scale in scales):
        return scales[0]
    sizes = np.array([np.prod(state.shape) for state in states], dtype=np.float64)
    return sqrt(float(np.average(np.square(scales), weights=np.maximum(sizes, 1))))
