"""The server's side of a coded downlink: the model that clients hold, and its last steps."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fedmedian.checks import require_integer
from fedmedian.logs import shown
from fedmedian.model.layout import Arrays, Layout, first_spoiled, forms_of, in_order, is_finite
from fedmedian.randomness import downlink_seed
from fedmedian.steps.downlink import CatchUp, CodedStep, fingerprint, moved, whole
from fedmedian.steps.tied import are_equal
from fedmedian.wire.scalars import LARGEST, PREFIX, WireScalar


@dataclass(frozen=True)
class CodedSteps:
    """A downlink of one bit per parameter, or of a few.

    Clients that hold an earlier version of the model are sent coded steps to the current one, all
    others the whole model. What a code loses is sent later. Clients keep the model between rounds,
    in ``Context.state``, which costs them its memory.

    Clients train from the model that they hold, about one step behind the server's; the Result has
    the server's. An optimizer at the server whose steps are much longer than the clients' updates,
    such as `Adam`, needs two bits.

    Parameters
    ----------
    bits : int (default: 1)
        The number of coded steps per round, each of what the last one lost, in [1, 8].

    Raises
    ------
    TypeError, ValueError
        If `bits` is not an integer or out of range.

    Examples
    --------
    >>> from fedmedian import Adam, CodedSteps
    >>> from fedmedian.strategies import SignSGD
    >>> strategy = SignSGD(optimizer=Adam(), downlink=CodedSteps(bits=2))
    """

    bits: int = 1

    def __post_init__(self) -> None:
        require_integer("bits", self.bits, low=1, high=8)


@dataclass(frozen=True, eq=False)
class Content:
    """What a node is sent in place of the server's model.

    Nodes that are sent the same share one, so that it is converted once.

    Parameters
    ----------
    arrays : mapping of str to array
        The whole model, or coded steps.
    scalars : mapping
        What a client must know to hold the model.
    """

    arrays: Arrays
    scalars: Mapping[str, WireScalar] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Held:
    """The model that clients hold, and the coded steps that led to it.

    While the server's model has the same arrays, the held one keeps their order, in whatever order
    the server has them.

    Parameters
    ----------
    model : mapping of str to array
        The model x̂.
    target : str
        The fingerprint of the server's model x that the last steps were made for.
    versions : tuple of str
        The fingerprints before the first and after each of the steps.
    steps : tuple of CodedStep
        The last steps; older ones are longer than the whole model.
    count : int
        The number of steps ever made.
    exact : (exact_bytes,) uint8
        The exact arrays of the model; see `Layout.pack_exact`.
    positions : tuple of int
        The positions of the exact arrays.
    reason : str
        Why no step leads to the model, if its arrays are not those of the one before.
    """

    model: Arrays
    target: str
    versions: tuple[str, ...]
    steps: tuple[CodedStep, ...] = ()
    count: int = 0
    exact: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    positions: tuple[int, ...] = ()
    reason: str = ""
    _contents: dict[str, Content] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, model: Arrays, count: int = 0, reason: str = "") -> "Held":
        """Return a model that clients are to be sent as a whole."""
        version = fingerprint(model)
        return cls(model, version, (version,), count=count, reason=reason)

    def towards(self, target: Arrays, layout: Layout, seed: int | None, bits: int = 1) -> "Held":
        """Return what clients hold after steps towards the server's model, if it has changed."""
        if self.model.keys() == target.keys():
            target, layout = in_order(target, self.model), layout.in_order(self.model)
        version, held = fingerprint(target), self
        for _ in range(bits):
            if held.target == version:
                return held
            held = held._moved(target, layout, seed)
        return replace(held, target=version)

    def _moved(self, target: Arrays, layout: Layout, seed: int | None) -> "Held":
        """Return what clients hold after one step, or as a whole model if none leads there."""
        if (reason := difference_in_form(self.model, target)) is not None:
            return Held.of(target, self.count, reason)
        step = self._step(target, layout, seed)
        if step is None:
            return Held.of(target, self.count)
        exact = {spec.name: target[spec.name] for spec in layout.exact}
        model = moved({**self.model, **exact}, layout, step)
        if first_spoiled(target, model) is not None:  # float16 ends at 65504
            return Held.of(target, self.count)
        steps, versions = (*self.steps, step), (*self.versions, fingerprint(model))
        most = max(num_bytes(target) // max(step.signs.nbytes, 1), 1)
        steps, versions = steps[-most:], versions[-most - 1 :]
        packed, places = layout.pack_exact(model), layout.exact_positions
        return Held(model, self.target, versions, steps, self.count + 1, packed, places)

    def _step(self, target: Arrays, layout: Layout, seed: int | None) -> CodedStep | None:
        """Return the code of the step to the server's model, or None if no step leads there."""
        if _is_stuck(self.model, target, layout):
            return None
        with np.errstate(invalid="ignore"):
            difference = layout.difference(self.model, target)
        if not np.abs(difference).max(initial=0) <= LARGEST:  # not if it is NaN either
            return None
        parts = layout.blocks.split(difference)
        tied = tuple(group for group in layout.tied(target) if are_equal(parts, group))
        return CodedStep.of(difference, layout.blocks, downlink_seed(seed, self.count), tied)

    def content_for(self, version: str | None) -> Content:
        """Return what a node is sent that holds a version, or None.

        Parameters
        ----------
        version : str or None
            The fingerprint of the model that the node holds, as far as the server knows.
        """
        known = version if version in self.versions else ""
        if known not in self._contents:
            self._contents[known] = self._content(known)
        return self._contents[known]

    def _content(self, version: str) -> Content:
        if not version:
            return Content(self.model, whole(self.versions[-1]))
        first = self.versions.index(version)
        catch_up = CatchUp(
            version, self.steps[first:], self.versions[first + 1 :], self.exact, self.positions
        )
        arrays, scalars = catch_up.encode()
        steps = Content({f"{PREFIX}{i}": array for i, array in enumerate(arrays)}, scalars)
        return min(steps, self.content_for(None), key=_length)


def _is_stuck(held: Arrays, target: Arrays, layout: Layout) -> bool:
    """Return whether the models differ in an array that is not finite: no step moves it."""
    names = [spec.name for spec in layout.flat if not is_finite(held[spec.name])]
    return not all(np.array_equal(held[name], target[name], equal_nan=True) for name in names)


def difference_in_form(held: Arrays, target: Arrays) -> str | None:
    """Return how the names, shapes or dtypes of two models differ; None if they do not."""
    old, new = forms_of(held), forms_of(target)
    if old == new:
        return None
    changed = [name for name in new if name in old and new[name] != old[name]]
    names = ([n for n in new if n not in old], [n for n in old if n not in new], changed)
    kinds = zip(("new", "left out", "of another shape or dtype"), names, strict=True)
    return ", ".join(f"{kind} {shown(own)}" for kind, own in kinds if own)


def num_bytes(model: Arrays) -> int:
    """Return the number of bytes of a model's arrays."""
    return sum(array.nbytes for array in model.values())


def _length(content: Content) -> int:
    """Return the bytes of a content, without headers."""
    texts = (one for one in content.scalars.values() if isinstance(one, str | bytes))
    return num_bytes(content.arrays) + sum(map(len, texts))
