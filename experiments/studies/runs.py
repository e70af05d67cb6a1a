"""What is kept of a run, without what runs it: a demo shows it and needs no torch."""

from dataclasses import dataclass, field
from math import nan


@dataclass(frozen=True)
class Run:
    """One strategy's run from one seed.

    Parameters
    ----------
    strategy : str
        The strategy's name in tables and figures.
    seed : int
        The seed.
    history : list of (int, float)
        Rounds, and the test accuracy after each; 0 stands for before the first.
    uplink_bytes, downlink_bytes : float
        Mean bytes of a training reply, and of the message that asks for it; nan if nothing was
        sent, or if only the other was measured.
    sent : list of int
        The bytes of all training messages and replies of each round, errors included; empty if
        they were not measured.
    """

    strategy: str
    seed: int
    history: list[tuple[int, float]]
    uplink_bytes: float
    downlink_bytes: float = nan
    sent: list[int] = field(default_factory=list)

    @property
    def rounds(self) -> int:
        """The number of rounds."""
        return self.history[-1][0]

    @property
    def accuracy(self) -> float:
        """Test accuracy after the last round."""
        return self.history[-1][1]
