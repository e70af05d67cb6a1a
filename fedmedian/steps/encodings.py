"""Encodings: the last step of every client, which makes the body of its payload."""

from abc import abstractmethod
from dataclasses import dataclass
from math import pi
from typing import Any, ClassVar

import numpy as np
import scipy  # its subpackages load on first use
from numpy.typing import NDArray

from fedmedian.kernels.signs import packed_size, signs_within
from fedmedian.model.blocks import Blocks
from fedmedian.steps.base import CLIENT_STEPS, ClientStep, Draft, register_client_step
from fedmedian.wire.scalars import LARGEST, WireError, require_vector


@dataclass(frozen=True)
class Encoding(ClientStep):
    """The form in which a client sends its update: the last step of every instruction.

    A custom encoding derives from this class and is registered like any client step.
    """

    bits: ClassVar[float]
    """The number of bits that it sends for each parameter."""

    @abstractmethod
    def pack(self, draft: Draft) -> NDArray[Any]:
        """Return the body of the payload, an array of numbers or bools, of any shape."""

    @abstractmethod
    def check_body(self, body: NDArray[Any], blocks: Blocks) -> None:
        """Check a body on the server.

        Parameters
        ----------
        body : array
            The body that a client sent.
        blocks : Blocks
            The blocks of the encoded vector.

        Raises
        ------
        WireError
            If the server cannot use the body.
        """

    def cut(self, body: NDArray[Any], part: slice) -> NDArray[Any]:
        """Return the part of a body for some coordinates, by default one entry for each.

        Parameters
        ----------
        body : array
            A body that has been checked.
        part : slice
            The coordinates, with a start and a stop.
        """
        return body[part]

    @classmethod
    def share(cls, reach: float) -> float:
        """Return a bound on the encoding's share of a Gaussian vector's Rényi divergence.

        Parameters
        ----------
        reach : float
            R, the largest norm of an update over the noise scale, >= 0.

        Returns
        -------
        float
            The share, in [0, 1]; by default 1, which holds for every encoding.
        """
        return 1.0

    def apply(self, draft: Draft) -> None:
        """Make the body of the payload."""
        draft.body = self.pack(draft)


@register_client_step
@dataclass(frozen=True)
class Signs(Encoding):
    """The signs of the update, one bit each."""

    name: ClassVar[str] = "signs"
    bits: ClassVar[float] = 1

    def pack(self, draft: Draft) -> NDArray[Any]:
        """Return the packed signs, (⌈d/8⌉,) uint8."""
        return draft.draw_signs()

    def check_body(self, body: NDArray[Any], blocks: Blocks) -> None:
        """Require ⌈d/8⌉ bytes; see `Encoding.check_body`."""
        require_vector("signs", body, packed_size(blocks.dim), np.uint8)

    def cut(self, body: NDArray[Any], part: slice) -> NDArray[Any]:
        """Return the packed signs of the part; see `Encoding.cut`."""
        return signs_within(body, part)

    @classmethod
    def share(cls, reach: float) -> float:
        """Return the minimum of (η(R)/(2·R))² and 1; see `Encoding.share`.

        `fedmedian.privacy.accounting` has the theorem.
        """
        if reach < 1e-6:
            return 2 / pi * (1 + 1e-9)
        log_odds = float(scipy.special.log_ndtr(reach)) - float(scipy.special.log_ndtr(-reach))
        return min(1.0, (log_odds / (2 * reach)) ** 2)


@register_client_step
@dataclass(frozen=True)
class Vector(Encoding):
    """The update itself, in single precision."""

    name: ClassVar[str] = "vector"
    bits: ClassVar[float] = 32

    def pack(self, draft: Draft) -> NDArray[Any]:
        """Return the update, (d,) float32."""
        return draft.vector

    def check_body(self, body: NDArray[Any], blocks: Blocks) -> None:
        """Require d finite numbers; see `Encoding.check_body`."""
        require_vector("vector", body, blocks.dim)
        # Comparisons with NaN are false; a vector of bools would take as long again.
        if body.size and not -LARGEST <= body.min() <= body.max() <= LARGEST:
            raise WireError(f"vector holds NaN or infinity, or an entry above {LARGEST:g}")


def encodings() -> dict[str, type[Encoding]]:
    """Return every registered encoding by its name."""
    return {step.name: step for step in CLIENT_STEPS if issubclass(step, Encoding)}
