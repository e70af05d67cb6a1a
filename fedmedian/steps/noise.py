"""Steps that measure the update and add noise to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar, Self, get_args

import numpy as np
from numpy.typing import NDArray

from fedmedian.checks import require_choice, require_real, require_type
from fedmedian.model.blocks import Blocks
from fedmedian.rules.noise import NOISE_FAMILIES, Noise
from fedmedian.rules.scales import LADDER, Magnitude
from fedmedian.steps.base import ClientStep, Draft, energy, register_client_step
from fedmedian.wire.scalars import (
    Float32,
    WireError,
    WireScalar,
    floats_from_bytes,
    floats_to_bytes,
    require_sizes,
    require_vector,
    require_votes,
)


@register_client_step
@dataclass(frozen=True)
class Measure(ClientStep):
    """A report of each block's magnitude; strategies add it where a scale rule needs it.

    Parameters
    ----------
    magnitude : {"rms", "max"}
        The measure: root mean square, or largest absolute entry.

    Raises
    ------
    TypeError, ValueError
        If `magnitude` is anything else.
    """

    magnitude: Magnitude

    name: ClassVar[str] = "measure"
    reveals: ClassVar[str] = "the size of their updates"

    def __post_init__(self) -> None:
        require_choice("magnitude", self.magnitude, get_args(Magnitude))

    def apply(self, draft: Draft) -> None:
        """Measure the draft, which stays unchanged, and report (L,) magnitudes."""
        draft.measured = draft.measure_each(lambda _, part: self._of(part))
        draft.report(self, draft.measured)

    def check(self, reported: Float32 | None, blocks: Blocks) -> None:
        """Require a magnitude for each block; see `ClientStep.check`."""
        require_vector("magnitudes", reported, len(blocks.sizes), are_sizes=True)

    def _of(self, part: Float32) -> float:
        if part.size == 0:
            return 0.0
        if self.magnitude == "max":
            return max(float(part.max()), -float(part.min()))
        return sqrt(energy(part) / part.size)


@register_client_step
@dataclass(frozen=True, eq=False)
class SizeVotes(Measure):
    """A report of whether each block's magnitude is above a threshold, one vote for each.

    Without a threshold it is a vote for each of the sizes in `LADDER`.

    Parameters
    ----------
    magnitude : {"rms", "max"}
        As for `Measure`.
    thresholds : (L,) float32, optional
        The threshold of each block, in units of the update; NaN for `LADDER`. None for `LADDER` for
        all blocks.

    Raises
    ------
    TypeError, ValueError
        If `magnitude` is anything else.
    """

    thresholds: Float32 | None = None

    name: ClassVar[str] = "size-votes"

    def apply(self, draft: Draft) -> None:
        """Measure the draft, which stays unchanged, and report the votes."""
        measured = draft.measured = draft.measure_each(lambda _, part: self._of(part))
        rungs, votes = self.rungs(draft.blocks), np.zeros(self.num_votes(draft.blocks), np.float32)
        places = Blocks(tuple(map(len, rungs))).split(votes)

        def vote(number: int, _: Float32) -> None:
            places[number][:] = measured[number] > rungs[number]

        draft.for_each(vote)
        draft.report(self, votes)

    def blocks(self, before: Blocks) -> Blocks:
        """Return the same blocks; if thresholds are given, there must be one for each."""
        return _fitting(before, "thresholds", self.thresholds)

    def rungs(self, blocks: Blocks) -> list[Float32]:
        """Return the thresholds that each block is compared with, in ascending order."""
        self.blocks(blocks)  # raises if the thresholds are those of other blocks
        if self.thresholds is None:
            return [LADDER] * len(blocks.sizes)
        return [LADDER if np.isnan(one) else np.array([one]) for one in self.thresholds]

    def num_votes(self, blocks: Blocks) -> int:
        """Return the number of thresholds."""
        return sum(rungs.size for rungs in self.rungs(blocks))

    def check(self, reported: Float32 | None, blocks: Blocks) -> None:
        """Require 0 or 1 for each threshold; see `ClientStep.check`."""
        require_votes("size votes", reported, self.num_votes(blocks))

    def encode(self) -> dict[str, WireScalar]:
        """Return the magnitude and the thresholds."""
        message: dict[str, WireScalar] = {"magnitude": self.magnitude}
        if self.thresholds is not None:
            message["thresholds"] = floats_to_bytes(self.thresholds)
        return message

    @classmethod
    def decode(cls, parameters: Mapping[str, Any]) -> Self:
        """Return the step with these parameters; see `ClientStep.decode`."""
        own = dict(parameters)
        if (thresholds := own.pop("thresholds", None)) is not None:
            own["thresholds"] = floats_from_bytes("thresholds", thresholds)
        return cls(**own)


@register_client_step
@dataclass(frozen=True, eq=False)
class AddNoise(ClientStep):
    """Noise b·ξ on every coordinate; strategies add it for their `noise`.

    A client that chooses any scale itself reports all scales, unless it is to be quiet.

    Parameters
    ----------
    noise : Noise
        The family of ξ; its own scale is ignored.
    scales : (L,) float32, optional
        The noise scale b of each block, in units of the update. NaN leaves a block's scale to the
        client, which uses `factor` times the magnitude that it measured. None does so for all
        blocks.
    factor : float (default: 1.0)
        See `scales`.
    quiet : bool (default: False)
        Whether clients keep the scales that they choose to themselves.
    """

    noise: Noise
    scales: Float32 | None = None
    factor: float = 1.0
    quiet: bool = False

    name: ClassVar[str] = "noise"

    def apply(self, draft: Draft) -> None:
        """Add the noise."""
        draft.add_noise(self.noise, self._scales(draft))

    def blocks(self, before: Blocks) -> Blocks:
        """Return the same blocks; if scales are given, there must be one for each."""
        return _fitting(before, "noise scales", self.scales)

    @property
    def has_own_scales(self) -> bool:
        """Whether the client chooses any scale itself, by the size of its update."""
        return self.scales is None or bool(np.isnan(self.scales).any())

    def check(self, reported: Float32 | None, blocks: Blocks) -> None:
        """Require scales if the client chooses any, unchanged where it was told one."""
        if self.quiet or not self.has_own_scales:
            super().check(reported, blocks)
            return
        scales = require_vector("scales", reported, len(blocks.sizes), are_sizes=True)
        if self.scales is not None:
            told = ~np.isnan(self.scales)
            if not np.array_equal(scales[told], self.scales[told]):
                raise WireError("used other noise scales than it was told to")

    def encode(self) -> dict[str, WireScalar]:
        """Return the parameters, including those of the noise family."""
        message: dict[str, WireScalar] = {"family": self.noise.name, "factor": float(self.factor)}
        if self.scales is not None:
            message["scales"] = floats_to_bytes(self.scales)
        if self.quiet:
            message["quiet"] = True
        return message | {f"family.{key}": value for key, value in self.noise.parameters.items()}

    @classmethod
    def decode(cls, parameters: Mapping[str, Any]) -> Self:
        """Return the step with these parameters; see `ClientStep.decode`."""
        own = dict(parameters)
        quiet = own.pop("quiet", False)
        require_type("quiet", quiet, bool, "a bool")
        family, factor, scales = (own.pop(key, None) for key in ("family", "factor", "scales"))
        for key in own:
            if not key.startswith("family.") or key == "family.scale":  # the rule is the server's
                raise TypeError(f"{key} is unknown")
        if not isinstance(family, str):
            raise TypeError(f"family must be a string, got {family!r}")
        noise = NOISE_FAMILIES.make(family, {key.removeprefix("family."): own[key] for key in own})
        if scales is not None:
            scales = floats_from_bytes("scales", scales)
            require_sizes("scales", scales[~np.isnan(scales)])
        return cls(noise, scales, require_real("factor", factor, low=0.0), quiet)

    def _scales(self, draft: Draft) -> Float32:
        """Return the scales in force, and report them if the client chose any.

        Those that the client chooses are filled in as blocks are made.
        """
        self.blocks(draft.blocks)  # raises if the scales are those of other blocks
        if self.scales is not None and not self.has_own_scales:
            return self.scales
        told, measured = self.scales, _measured(draft)
        factor = np.float32(self.factor)

        def choose(number: int, _: Float32) -> float:
            if told is None or np.isnan(told[number]):
                return float(factor * measured[number])
            return float(told[number])

        scales = draft.measure_each(choose)
        if not self.quiet:
            draft.report(self, scales)
        return scales


@register_client_step
@dataclass(frozen=True, eq=False)
class TopUpNoise(AddNoise):
    """Noise that tops each block up to a level; strategies add it for a `TopUp` scale.

    A block of root mean square σ gets noise of variance max(c² − σ², 0). Its coordinates then have
    the variance c² for every client whose σ is at most c. The scales are the levels c.
    """

    name: ClassVar[str] = "top-up"

    def apply(self, draft: Draft) -> None:
        """Add the noise."""
        levels, measured = self._scales(draft), _measured(draft)
        missing = draft.measure_each(lambda n, _: float(top_up(levels[n], measured[n])))
        draft.add_noise(self.noise, missing)


def top_up(level: NDArray[Any], rms: NDArray[Any]) -> Float32:
    """Return the scale of noise that tops an update up to a level, elementwise: √(c² − σ²)."""
    missing = np.square(level, dtype=np.float64) - np.square(rms, dtype=np.float64)
    return np.asarray(np.sqrt(np.maximum(missing, 0)), dtype=np.float32)


def _fitting(blocks: Blocks, what: str, values: Float32 | None) -> Blocks:
    """Return the blocks, or raise unless there is a value for each."""
    if values is not None and values.size != len(blocks):
        raise WireError(
            f"instruction has {what} for {values.size} blocks, the update has {len(blocks)}"
        )
    return blocks


def _measured(draft: Draft) -> Float32:
    if draft.measured is None:
        raise WireError("instruction asks for noise scales by a magnitude that it does not measure")
    return draft.measured
