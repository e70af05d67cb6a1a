"""Coded steps: one bit per parameter of how the server's model has moved, for clients that hold it.

Server and clients keep the same model x̂, which stays about one step behind the server's model x.
The server codes the difference x − x̂, and both sides move x̂ by the code. What the code loses stays
in the difference and is sent later. A version of x̂ is named by its fingerprint, so that nobody
trains from a wrong one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedmedian.kernels.signs import pack_signs, packed_size, unpack_signs
from fedmedian.model.blocks import Blocks
from fedmedian.model.layout import Arrays, Groups, Layout
from fedmedian.steps.base import Draft
from fedmedian.steps.payload import DIGEST
from fedmedian.steps.rotation import Rotation
from fedmedian.steps.tied import as_groups, average
from fedmedian.wire.npy import bytes_of
from fedmedian.wire.scalars import (
    PREFIX,
    WIRE_VERSION,
    Float32,
    WireError,
    WireScalar,
    floats_from_bytes,
    floats_to_bytes,
    list_from_json,
    require_vector,
    with_prefix,
)

_KIND = "model"
"""The key with the version of the format; all other keys begin with it."""

NOT_HELD = "the whole model is needed"
"""Part of the reason that a client gives if it does not hold the model that steps begin from."""

HELD = PREFIX + "held"
"""The key of a reply that names the version of the model that the client holds."""


class NotHeldError(WireError):
    """Raised by a client that does not hold the model that steps begin from."""


@dataclass(frozen=True, eq=False)
class CodedStep:
    """A model's step in one bit per parameter.

    Parameters
    ----------
    signs : (⌈d'/8⌉,) uint8
        The packed signs of the step in a random basis.
    sizes : (L',) float32
        The mean absolute value of each block there.
    seed : int
        The seed of the basis.
    tied : tuple of tuple of int
        Groups of tied arrays, which have their mean step; see `Layout.tied`.
    """

    signs: NDArray[np.uint8]
    sizes: Float32
    seed: int
    tied: Groups = ()

    @classmethod
    def of(cls, step: Float32, blocks: Blocks, seed: int, tied: Groups = ()) -> Self:
        """Return the code of a step, (d,) float32, which may be overwritten."""
        draft = Draft(step, blocks, 0, np.random.default_rng(0))
        Rotation(seed=seed).apply(draft)
        signs, sizes = pack_signs(draft.vector), np.abs(draft.vector, out=draft.vector)
        parts = draft.blocks.split(sizes)
        means = [part.mean(dtype=np.float64) if part.size else 0.0 for part in parts]
        return cls(signs, np.array(means, dtype=np.float32), seed, tied)

    def decoded(self, blocks: Blocks) -> Float32:
        """Return the step that the code stands for, (d,) float32."""
        rotation = Rotation(seed=self.seed)
        after = rotation.blocks(blocks)
        require_vector("signs of a step", self.signs, packed_size(after.dim), np.uint8)
        require_vector("sizes of a step", self.sizes, len(after), are_sizes=True)
        signs = unpack_signs(self.signs, after.dim)
        for part, size in zip(after.split(signs), self.sizes, strict=True):
            part *= size
        return rotation.undo(signs, blocks)


def fingerprint(model: Arrays) -> str:
    """Return the name of a model: a digest of its arrays, in order."""
    digest = blake2b(digest_size=DIGEST)
    for name, array in model.items():
        # Models of zeros differ only in their form.
        digest.update(repr((name, array.dtype.str, array.shape)).encode())
        digest.update(bytes_of(array))
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class CatchUp:
    """What moves clients from one version of the model to a later one.

    Parameters
    ----------
    base : str
        The fingerprint of the version that the steps begin from.
    steps : sequence of CodedStep
        The steps, in order.
    versions : sequence of str
        The fingerprint after each step.
    exact : (exact_bytes,) uint8
        The exact arrays after the last step, as `Layout.pack_exact` returns them.
    positions : tuple of int
        The positions of the exact arrays in the model.
    """

    base: str
    steps: Sequence[CodedStep]
    versions: Sequence[str]
    exact: NDArray[np.uint8]
    positions: tuple[int, ...]

    def encode(self) -> tuple[list[NDArray[Any]], dict[str, WireScalar]]:
        """Return the arrays and scalars of the message."""
        message: dict[str, WireScalar] = {
            "base": self.base,
            "versions": json.dumps([*self.versions]),
            "seeds": json.dumps([step.seed for step in self.steps]),
            "sizes": floats_to_bytes(_joined([step.sizes for step in self.steps], np.float32)),
            "exact": json.dumps(self.positions),
            "tied": json.dumps([step.tied for step in self.steps]),
        }
        signs = _joined([step.signs for step in self.steps], np.uint8)
        return [signs, self.exact], _named(message)

    @classmethod
    def decode(cls, arrays: Sequence[NDArray[Any]], config: Mapping[str, Any]) -> Self:
        """Read the steps in a message.

        Raises
        ------
        WireError
            If it is malformed.
        """
        if config.get(PREFIX + _KIND) != WIRE_VERSION:
            raise WireError(f"{_KIND} must have version {WIRE_VERSION}")
        start = f"{PREFIX}{_KIND}."
        own = {key.removeprefix(start): one for key, one in config.items() if key.startswith(start)}
        try:
            versions = list_from_json("versions", own["versions"], str)
            seeds = list_from_json("seeds", own["seeds"], int)
            tied = list_from_json("tied", own["tied"], list)
            positions = list_from_json("exact", own["exact"], int)
            base, sizes = str(own["base"]), floats_from_bytes("sizes", own["sizes"])
            signs, exact = arrays
            parts = zip(
                np.split(np.atleast_1d(signs), max(len(seeds), 1)),
                np.split(sizes, max(len(seeds), 1)),
                seeds,
                map(as_groups, tied),
                strict=len(seeds) > 0,
            )
            steps = [CodedStep(*part) for part in parts]
        except (KeyError, TypeError, ValueError) as error:
            raise WireError(f"{_KIND} cannot be read: {error}") from error
        if len(versions) != len(steps) or not all(0 <= seed < 2**63 for seed in seeds):
            raise WireError(f"{_KIND} must have a seed and a version for each step")
        return cls(base, steps, versions, exact, tuple(positions))

    def require_start(self, version: str | None) -> None:
        """Raise `NotHeldError` unless a client can start from the version that it holds."""
        if version not in (self.base, *self.versions):
            raise NotHeldError(
                f"holds {'no model' if version is None else f'model {version}'}, was sent steps "
                f"from {self.base}: {NOT_HELD}"
            )

    def applied(self, held: Arrays, version: str) -> Arrays:
        """Return the model after the last step, from a version that a client holds.

        Parameters
        ----------
        held : mapping of str to array
            The model that the client holds.
        version : str
            Its fingerprint, which is the base or one of the versions after it.

        Raises
        ------
        NotHeldError
            If the steps lead to another model than on the server.
        WireError
            If the steps do not fit the model.
        """
        known = [self.base, *self.versions]
        if version == known[-1]:
            return held
        layout = Layout.with_exact_positions(held, self.positions)
        if any(max(group) >= len(layout.flat) for step in self.steps for group in step.tied):
            raise WireError(f"tied arrays must be among {len(layout.flat)}")
        require_vector("exact arrays", self.exact, layout.exact_bytes, np.uint8)
        model = dict(held)
        for step in self.steps[known.index(version) :]:
            model = moved(model, layout, step)
        model |= layout.unpack_exact(self.exact)
        if (made := fingerprint(model)) != known[-1]:
            raise NotHeldError(f"made model {made} of steps to {known[-1]}: {NOT_HELD}")
        return model


def moved(model: Arrays, layout: Layout, step: CodedStep) -> dict[str, NDArray[Any]]:
    """Return a model after a coded step; its exact arrays stay."""
    direction = step.decoded(layout.blocks)
    average(layout.blocks.split(direction), step.tied)
    with np.errstate(over="ignore"):  # the server sends no such step
        return layout.move(model, direction, 1.0, model)


def whole(version: str) -> dict[str, WireScalar]:
    """Return the scalars of a message with the whole model."""
    return _named({"whole": version})


def is_in(config: Mapping[str, Any]) -> bool:
    """Return whether a message's model is to be held, or follows from a held one."""
    return PREFIX + _KIND in config


def version_of_whole(config: Mapping[str, Any]) -> str | None:
    """Return the version of a message's whole model, or None if the message has steps."""
    version = config.get(f"{PREFIX}{_KIND}.whole")
    return None if version is None else str(version)


def has_steps(config: Mapping[str, Any]) -> bool:
    """Return whether a message has coded steps."""
    return is_in(config) and version_of_whole(config) is None


def are_steps(arrays: Sequence[NDArray[Any]]) -> bool:
    """Return whether arrays without names are those of coded steps, as `CatchUp.encode` makes."""
    return [(one.ndim, one.dtype) for one in arrays] == [(1, np.dtype(np.uint8))] * 2


def without_steps(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message's config without what is about the model that the client holds."""
    about_model = keys_in(config)
    return {key: one for key, one in config.items() if key not in about_model}


def target_of(config: Mapping[str, Any]) -> str | None:
    """Return the version that a client holds after a message of ours; None for any other."""
    if not has_steps(config):
        return version_of_whole(config)
    start = f"{PREFIX}{_KIND}."
    versions = list_from_json("versions", config[f"{start}versions"], str)
    return [str(config[f"{start}base"]), *versions][-1]


def keys_in(config: Mapping[str, Any]) -> set[str]:
    """Return the keys of a config that are about the model that the client holds."""
    start = f"{PREFIX}{_KIND}"
    return {key for key in config if key == start or key.startswith(f"{start}.")}


def _named(message: Mapping[str, WireScalar]) -> dict[str, WireScalar]:
    named: dict[str, WireScalar] = {f"{_KIND}.{key}": value for key, value in message.items()}
    return with_prefix({_KIND: WIRE_VERSION, **named})


def _joined(parts: Sequence[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *parts])
