"""Learning-rate schedules: callables from the round, which starts at 1, to the server's step δ."""

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi

from fedmedian.checks import require_integer
from fedmedian.wire.scalars import require_positive

Schedule = Callable[[int], float]
"""Maps a round, >= 1, to a learning rate, > 0.

Any callable works: ``lambda server_round: 0.1 if server_round <= 50 else 0.01`` is a step decay.
"""


@dataclass(frozen=True)
class Cosine:
    """A schedule that falls along half a cosine, from `initial` in round 1 to `final` in the last.

    Parameters
    ----------
    initial : float
        The learning rate of the first round, > 0.
    rounds : int
        The number of rounds, >= 1; later ones stay at `final`.
    final : float, optional
        The learning rate of the last round, > 0; by default ``initial / 100``.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.

    Examples
    --------
    >>> [round(Cosine(1.0, rounds=3, final=0.2)(t), 3) for t in (1, 2, 3, 4)]
    [1.0, 0.6, 0.2, 0.2]
    """

    initial: float
    rounds: int
    final: float | None = None

    def __post_init__(self) -> None:
        require_positive("initial", self.initial)
        require_integer("rounds", self.rounds, low=1)
        if self.final is not None:
            require_positive("final", self.final)

    def __call__(self, server_round: int) -> float:
        """Return the learning rate of a round."""
        final = self.initial / 100 if self.final is None else self.final
        progress = min((server_round - 1) / max(self.rounds - 1, 1), 1.0)
        return final + (self.initial - final) * (1 + cos(pi * progress)) / 2
