"""The state of a run between rounds, apart from its model."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import nan, sqrt
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmedian.model.blocks import UNNAMED, Blocks
from fedmedian.model.layout import Arrays, Layout
from fedmedian.rounds.downlink import Held
from fedmedian.rules.optimizers import State
from fedmedian.rules.scales import Scales

_NEAR = 0.25
"""The largest relative distance at which a model counts as another one that was changed."""

_MOST_MODELS = 64
"""The number of models whose states are remembered; the oldest are forgotten."""

_SAMPLE = 4096
"""About the number of coordinates of an array that distances are estimated from."""

_SCALE = "scale"
_OPTIMIZER = "optimizer."
_HELD, _STEPS, _TARGET = "held", "steps", "target"


@dataclass(frozen=True)
class ArrayState:
    """The state of one array.

    Parameters
    ----------
    shape : tuple of int
        The array's shape. If it changes, the state starts fresh.
    scale : float
        The noise scale of its block; NaN if unknown.
    optimizer : dict of str to array
        The optimizer's state.
    """

    shape: tuple[int, ...]
    scale: float = nan
    optimizer: State = field(default_factory=dict)


@dataclass(frozen=True)
class RunState:
    """The state of each array, by its name.

    A round without an array keeps its state. A new array, or one whose shape has changed, starts
    fresh.

    Parameters
    ----------
    arrays : mapping of str to ArrayState
        The state of each array.
    held : Held, optional
        What clients hold, with a coded downlink.
    """

    arrays: Mapping[str, ArrayState] = field(default_factory=dict)
    held: Held | None = None

    def of(self, name: str, shape: tuple[int, ...]) -> ArrayState:
        """Return the state of an array, a fresh one if none of this shape is known."""
        known = self.arrays.get(name)
        return ArrayState(shape) if known is None or known.shape != shape else known

    def scales(self, blocks: Blocks, layout: Layout) -> Scales:
        """Return the noise scale of each block, (L,); NaN for blocks with a new array.

        If the arrays of a block had different scales, its scale is their root mean square over
        coordinates.
        """
        shapes = _shapes(blocks, layout)
        found = [[self.of(name, shapes[name]) for name in names] for names in blocks.names]
        return np.array([_joint_scale(states) for states in found], dtype=np.float64)

    def following(
        self, blocks: Blocks, layout: Layout, scales: Scales | None, optimizer: Mapping[str, State]
    ) -> "RunState":
        """Return the state after a round.

        Parameters
        ----------
        blocks : Blocks
            The blocks that clients sent.
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
            for names, scale in zip(blocks.names, scales.tolist(), strict=True):
                new |= {name: replace(new[name], scale=scale) for name in names}
        new |= {name: replace(new[name], optimizer=state) for name, state in optimizer.items()}
        return replace(self, arrays={**self.arrays, **new})

    def to_groups(self) -> dict[str, Arrays]:
        """Return the state as groups of named arrays, for a checkpoint."""
        groups: dict[str, dict[str, NDArray[Any]]] = {_SCALE: {}, "shape": {}}
        for name, state in self.arrays.items():
            groups["shape"][name] = np.array(state.shape, dtype=np.int64)
            groups[_SCALE][name] = np.array(state.scale)
            for key, value in state.optimizer.items():
                groups.setdefault(_OPTIMIZER + key, {})[name] = value
        if self.held is not None:
            groups[_HELD] = dict(self.held.model)
            target = np.frombuffer(bytes.fromhex(self.held.target), dtype=np.uint8)
            groups[_STEPS] = {_HELD: np.array(self.held.count), _TARGET: target}
        return dict(groups)

    @classmethod
    def from_groups(cls, groups: Mapping[str, Arrays]) -> "RunState":
        """Return the state from the groups of `to_groups`, ignoring all others."""
        keys = [key for key in groups if key.startswith(_OPTIMIZER)]
        held = None
        if _HELD in groups:
            # Clients of a resumed run hold nothing.
            held = Held.of(groups[_HELD], int(groups[_STEPS][_HELD]))
            held = replace(held, target=groups[_STEPS][_TARGET].tobytes().hex())
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
            },
            held,
        )


class KnownModels:
    """The models that a run trains, each with its state: usually one, or one per cluster.

    A model continues the state of the known one that is nearest to it, if that is near: if their
    squared distance is at most a quarter of the sum of their squared norms. So a subclass may
    change a model between rounds, and an unrelated model starts fresh. Distances are estimated
    from some coordinates of the arrays that both have. Where they have none, as where parts of a
    model are trained by turns, the state is continued, too: it is by array.

    Parameters
    ----------
    model : mapping of str to array
        The first model.
    state : RunState
        Its state.
    """

    def __init__(self, model: Arrays, state: RunState) -> None:
        self._known = [(_sample_of(model), state)]

    def state_of(self, model: Arrays) -> RunState:
        """Return the state that a model continues."""
        known = self._nearest(_sample_of(model))
        return RunState() if known is None else known[1]

    def replace(self, before: Arrays, after: Arrays, state: RunState) -> None:
        """Remember a model and its state in place of the one that it continues."""
        sample, known = _sample_of(after), self._nearest(_sample_of(before))
        if known is not None:
            self._known = [one for one in self._known if one is not known]
            sample = {**known[0], **sample}
        self._known = [*self._known, (sample, state)][-_MOST_MODELS:]

    def _nearest(self, sample: Arrays) -> tuple[Arrays, RunState] | None:
        distance, known = min(
            ((_distance(sample, known[0]), known) for known in self._known), key=itemgetter(0)
        )
        return known if distance <= _NEAR else None


def _sample_of(model: Arrays) -> dict[str, NDArray[Any]]:
    """Return some coordinates of each array."""
    flat = {name: np.asarray(array).reshape(-1) for name, array in model.items()}
    return {name: one[:: max(one.size // _SAMPLE, 1)].copy() for name, one in flat.items()}


def _distance(sample: Arrays, other: Arrays) -> float:
    """Return the squared distance of two models over the sum of their squared norms."""
    apart, norms, found = 0.0, 0.0, False
    for name in sample.keys() & other.keys():
        one, two = (np.asarray(model[name], dtype=np.float64) for model in (sample, other))
        if one.shape == two.shape:
            known = np.isfinite(one) & np.isfinite(two)
            one, two, found = one[known], two[known], True
            apart += float(np.square(one - two).sum())
            norms += float(np.square(one).sum() + np.square(two).sum())
    return (apart / norms if norms else 0.0) if found else _NEAR


def _shapes(blocks: Blocks, layout: Layout) -> dict[str, tuple[int, ...]]:
    shapes = {spec.name: spec.shape for spec in layout.flat}
    sizes = zip(blocks.names, blocks.sizes, strict=True)
    return shapes | {name: (size,) for (name, *_), size in sizes if name.startswith(UNNAMED)}


def _joint_scale(states: list[ArrayState]) -> float:
    scales = [state.scale for state in states]
    if all(scale == scales[0] for scale in scales):
        return scales[0]
    sizes = np.array([np.prod(state.shape) for state in states], dtype=np.float64)
    return sqrt(float(np.average(np.square(scales), weights=np.maximum(sizes, 1))))
