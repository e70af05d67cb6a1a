"""Steps that change the update itself: learning rate, momentum, clipping."""

from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import numpy as np

from fedmedian.checks import require_real
from fedmedian.model.blocks import UNNAMED
from fedmedian.rules.optimizers import Momentum
from fedmedian.steps.base import (
    ClientStep,
    Draft,
    UpdateError,
    energy,
    register_client_step,
    shorten,
)

_LONGEST_ABSENCE = 64
"""After so many answers without an array `ClientMomentum` forgets it."""


@register_client_step
@dataclass(frozen=True)
class DivideByLearningRate(ClientStep):
    """Division of the update by the clients' own learning rate.

    It turns x − x_i into the gradient of one local step, or into the sum of several.

    Parameters
    ----------
    learning_rate : float
        The clients' learning rate, > 0.

    Raises
    ------
    TypeError, ValueError
        If `learning_rate` is not a number or out of range.
    """

    learning_rate: float

    name: ClassVar[str] = "learning-rate"

    def __post_init__(self) -> None:
        require_real("learning_rate", self.learning_rate, low=0.0, open_low=True)

    def apply(self, draft: Draft) -> None:
        """Divide the draft."""
        vector = draft.vector
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            vector /= np.float32(self.learning_rate)
        if not isfinite(energy(vector)):
            raise UpdateError(f"update over learning rate {self.learning_rate} is not finite")


@register_client_step
@dataclass(frozen=True)
class ClientMomentum(ClientStep):
    """An exponential average of the client's updates, sent instead of the latest one.

    It is `Momentum` on the client, which remembers the average of each array by its name. An array
    that is new, whose size has changed, or that was not in the last 64 answers, starts fresh. All
    do if neither the round nor the number of its question increases.

    Parameters
    ----------
    decay : float (default: 0.9)
        The decay, in [0, 1).

    Raises
    ------
    TypeError, ValueError
        If `decay` is not a number or out of range.
    """

    decay: float = 0.9

    name: ClassVar[str] = "momentum"

    def __post_init__(self) -> None:
        require_real("decay", self.decay, low=0.0, high=1.0, open_high=True)

    def apply(self, draft: Draft) -> None:
        """Replace the draft by the average, and remember the average."""
        # One NaN in an average would stay in it.
        if not isfinite(energy(draft.vector)):
            raise UpdateError("an update that is not finite cannot be averaged")
        memory = draft.memory_of(self)
        asked = draft.server_round, draft.question
        if memory and (*memory["last-question"],) >= asked:  # the server started another run
            memory.clear()
        memory["last-question"] = np.array(asked, dtype=np.int64)
        answer = memory["answers"] = memory.get("answers", np.zeros(1, dtype=np.int64)) + 1
        blocks, rule = draft.blocks, Momentum(self.decay)
        for names, part in zip(blocks.names, blocks.split(draft.vector), strict=True):
            places = _places_of(UNNAMED.join(names))
            own = {kind: memory[place] for kind, place in places.items() if place in memory}
            if own and (own["m"].size != part.size or not isfinite(energy(own["m"]))):
                own = {}
            part[:] = rule.step(part, own)
            own["answer"] = answer
            memory.update({place: own[kind] for kind, place in places.items()})
        # A server may send other names in each round.
        start = _places_of("")["answer"]
        for place in [place for place in memory if place.startswith(start)]:
            if memory[place] <= answer - _LONGEST_ABSENCE:
                for old in _places_of(place.removeprefix(start)).values():
                    del memory[old]


def _places_of(name: str) -> dict[str, str]:
    """Return where `ClientMomentum` remembers what it knows of a block."""
    return {kind: f"{kind} of {name}" for kind in ("m", "rounds", "answer")}


@register_client_step
@dataclass(frozen=True)
class Clip(ClientStep):
    """Clipping of the whole update to an L2 norm, by scaling.

    An update that is not finite becomes zero, since no factor makes it shorter.

    Parameters
    ----------
    norm : float
        The largest norm, > 0, in units of the update.

    Raises
    ------
    TypeError, ValueError
        If `norm` is not a number or out of range.
    """

    norm: float

    name: ClassVar[str] = "clip"

    def __post_init__(self) -> None:
        require_real("norm", self.norm, low=0.0, open_low=True)

    def apply(self, draft: Draft) -> None:
        """Scale the draft down if its norm is larger."""
        shorten(draft.vector, self.norm)


@register_client_step
@dataclass(frozen=True)
class Limit(ClientStep):
    """Clipping of each coordinate; strategies add it where the sum of votes must hide each of them.

    The other votes hide one only as far as they are uncertain. In a random basis the coordinates of
    an update are so small that almost none is clipped.

    Parameters
    ----------
    largest : float
        The largest absolute value, > 0, in units of the update.

    Raises
    ------
    TypeError, ValueError
        If `largest` is not a number or out of range.
    """

    largest: float

    name: ClassVar[str] = "limit"

    def __post_init__(self) -> None:
        require_real("largest", self.largest, low=0.0, open_low=True)

    def apply(self, draft: Draft) -> None:
        """Clip the draft's coordinates."""
        draft.for_each(lambda _, part: np.clip(part, -self.largest, self.largest, out=part))
