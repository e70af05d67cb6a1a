"""The state of a run between rounds, apart from its model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, nan, sqrt
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedmedian.logs import Once
from fedmedian.model.blocks import UNNAMED, Blocks
from fedmedian.model.layout import Arrays, Layout, is_same_array
from fedmedian.rounds.downlink import Held
from fedmedian.rounds.screening import Node
from fedmedian.rules.optimizers import State
from fedmedian.rules.scales import Scales
from fedmedian.wire.scalars import Float64

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
        arrays = {}
        for name, shape in groups["shape"].items():
            known = {key: groups[key][name] for key in keys if name in groups[key]}
            optimizer = {key.removeprefix(_OPTIMIZER): value for key, value in known.items()}
            scale = float(groups[_SCALE][name])
            arrays[name] = ArrayState(tuple(shape.tolist()), scale, optimizer)
        return cls(arrays, held)


class Sample(NamedTuple):
    """Some entries of an array.

    Parameters
    ----------
    shape : tuple of int
        The shape of the whole array: entries of another shape are in other places.
    entries : (n,) array
        The entries.
    """

    shape: tuple[int, ...]
    entries: NDArray[Any]


Samples = Mapping[str, Sample]
"""Some entries of each of a model's arrays."""


@dataclass(eq=False)
class Known:
    """A model that a run trains, and its state.

    Parameters
    ----------
    before, after : mapping of str to Sample
        The model before and after its last step.
    state : RunState
        Its state.
    question : tuple of int, optional
        The key of the question that its last step answers; None before the first.
    nodes : frozenset of int or str
        The nodes whose replies that step is made of.
    is_left : bool (default: False)
        Whether a later step has been made from it.
    is_changed : bool (default: False)
        Whether that step began with another model, which a subclass made of it.
    """

    before: Samples
    after: Samples
    state: RunState
    question: tuple[int, int] | None = None
    nodes: frozenset[Node] = frozenset()
    is_left: bool = False
    is_changed: bool = False

    def ends_at(self, sample: Samples) -> bool:
        """Return whether the last step has led to a model."""
        pairs = [pair for _, *pair in _shared(sample, self.after)]
        return bool(pairs) and all(is_same_array(*pair) for pair in pairs)

    def is_instead_of(self, other: "Known") -> bool:
        """Return whether some clients' answers to one question led to both."""
        return self.question == other.question and bool(self.nodes & other.nodes)

    def distance(self, sample: Samples) -> tuple[float, float]:
        """Return the distances of a model from the last step, a straight line, and from its end."""
        end = _distance(sample, self.after)
        return min(end, _distance(sample, self._point_near(sample))), end

    def _point_near(self, sample: Samples) -> Samples:
        """Return the point of the last step that is nearest to a model."""
        ways, along, length = dict[str, tuple[Float64, Float64]](), 0.0, 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            for name, one, end in _shared(sample, self.after):
                start = np.asarray(self.before[name].entries, np.float64)
                ways[name] = start, end - start
                step = np.where(np.isfinite(one - start) & np.isfinite(end), end - start, 0)
                along += float((np.where(step, one - start, 0) * step).sum())
                length += float(np.square(step).sum())
            share = min(max(along / length, 0.0), 1.0) if length else 0.0
            return {
                name: Sample(sample[name].shape, start + share * step)
                for name, (start, step) in ways.items()
            }


class KnownModels:
    """The models that a run trains, each with its state: usually one, or one per cluster.

    A model continues the state of the known one that is nearest to it, if that is near: if their
    squared distance is at most a quarter of the sum of their squared norms. So a subclass may
    change a model between rounds, and an unrelated model starts fresh. An average of the models
    before and after the last step is near, too. Distances are estimated from some coordinates of
    the arrays that both have. Where they have none, as when rounds alternate between parts of a
    model, the state is continued, too: it is by array.

    Several models may continue the state of one, as where clusters begin with one model. What
    answers of the same clients to one question make are alternatives: once a step has been made
    from one of them, the others are forgotten. So are all that answer it, once a step has been
    made from another model, such as their average.

    Parameters
    ----------
    model : mapping of str to array
        The first model.
    state : RunState
        Its state.
    """

    def __init__(self, model: Arrays, state: RunState) -> None:
        sample = _sample_of(model)
        self._known = [Known(sample, sample, state)]
        self._asked: dict[tuple[int, int], Known] = {}
        self._round = 0
        self._once = Once()

    def of(self, model: Arrays) -> Known:
        """Return the known model that a model continues; itself, with a fresh state, if none."""
        return self._nearest(_sample_of(model), self._known)

    def held(self, version: str | None) -> Held | None:
        """Return what clients hold once they are sent a version of a model; None if unknown."""
        found = (one.state.held for one in self._known if one.state.held is not None)
        return next((one for one in found if one.versions[-1] == version), None)

    def have_made(self, model: Arrays) -> bool:
        """Return whether a step of this run led to a model, or all of its arrays are new."""
        is_known = any(model.keys() & one.after.keys() for one in self._known)
        return not is_known or self.have_led_to(model)

    def have_led_to(self, model: Arrays) -> bool:
        """Return whether a step of this run led to a model."""
        sample = _sample_of(model)
        return any(
            one.ends_at(sample) and _distance(one.before, one.after) > 0
            for one in self._known
            if one.question is not None
        )

    def to_ask(self, model: Arrays, server_round: int) -> Known:
        """Return the known model that a question about a model continues; see `of`.

        A model that a step of this round made counts from the next round, unless it is this one.
        """
        if server_round != self._round:
            self._round = server_round
            self._forget()
        earlier = [
            one for one in self._known if one.question is None or one.question[0] != server_round
        ]
        sample = _sample_of(model)
        known = self._nearest(sample, earlier)
        known.is_changed = not known.ends_at(sample)
        return known

    def note_question(self, key: tuple[int, int], known: Known, state: RunState) -> None:
        """Remember which known model a question is about, and its state once that is asked."""
        known.state = state
        self._asked[key] = known

    def note_answer(
        self, key: tuple[int, int], before: Arrays, after: Arrays, state: RunState, nodes: set[Node]
    ) -> None:
        """Remember what some nodes' answers to a question have made of its model."""
        known = self._asked.get(key) or self.of(before)
        known.is_left = True
        start, end = ({**known.after, **_sample_of(model)} for model in (before, after))
        self._add(Known(start, end, state, key, frozenset(nodes)))

    def _nearest(self, sample: Samples, candidates: Sequence[Known]) -> Known:
        """Return the known model that ends at a model, or else the nearest of the candidates."""
        # Nearly always there is one, which is quick to find.
        if (same := next((one for one in self._known if one.ends_at(sample)), None)) is not None:
            return same
        found = [(one.distance(sample), one) for one in candidates]
        distance, nearest = min(found, key=itemgetter(0), default=((inf, inf), None))
        if nearest is None or distance[0] > _NEAR:
            nearest = Known(sample, sample, RunState())
            self._add(nearest)
        return nearest

    def _add(self, known: Known) -> None:
        self._known.append(known)
        left = [one for one in self._known if one.is_left]  # many, if a round takes many steps
        self._known = [one for one in self._known if one not in left[:-_MOST_MODELS]]
        current = [one for one in self._known if not one.is_left]
        if len(current) > _MOST_MODELS:
            oldest = current[0]
            self._known.remove(oldest)
            if not any(map(oldest.is_instead_of, self._known)):
                self._once.warn(
                    "forgotten",
                    "more than %d models are trained, and the state of the oldest is forgotten: "
                    "use a strategy for each, or fewer models",
                    _MOST_MODELS,
                )

    def _forget(self) -> None:
        """Forget models that steps have been made from, and the alternatives to them."""
        left = [one for one in self._known if one.is_left]
        self._known = [
            one
            for one in self._known
            if not one.is_left
            and not any(
                one.is_instead_of(other)
                or (other.is_changed and one.question == other.question is not None)
                for other in left
            )
        ]
        self._asked = {}


def _sample_of(model: Arrays) -> Samples:
    flat = {name: np.asarray(array).reshape(-1) for name, array in model.items()}
    some = {name: one[:: max(one.size // _SAMPLE, 1)].copy() for name, one in flat.items()}
    return {name: Sample(np.shape(model[name]), entries) for name, entries in some.items()}


def _distance(sample: Samples, other: Samples) -> float:
    """Return the squared distance of two models over the sum of their squared norms."""
    apart, norms, found = 0.0, 0.0, False
    for _, one, two in _shared(sample, other):
        known = np.isfinite(one) & np.isfinite(two)
        one, two, found = one[known], two[known], True
        apart += float(np.square(one - two).sum())
        norms += float(np.square(one).sum() + np.square(two).sum())
    return (apart / norms if norms else 0.0) if found else _NEAR


def _shared(sample: Samples, other: Samples) -> Iterator[tuple[str, Float64, Float64]]:
    """Yield the name and the entries of each array that two models have in one shape."""
    for name in sample.keys() & other.keys():
        if sample[name].shape == other[name].shape:
            one, two = (np.asarray(at[name].entries, np.float64) for at in (sample, other))
            yield name, one, two


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
