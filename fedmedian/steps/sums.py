"""The votes of a client in a secure sum: its signs, and what its steps report."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmedian.model.layout import Layout
from fedmedian.secure.masking import Masked
from fedmedian.steps.instruction import Instruction
from fedmedian.steps.payload import MASKED, Payload
from fedmedian.wire.scalars import WireError

VoteCounts = NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class VotesLayout:
    """The order of the votes of a client: its signs, then the reports of its steps.

    Parameters
    ----------
    signs : int
        The number of signs.
    reports : mapping of str to int
        The number of votes in the report of each step, by its name.
    """

    signs: int
    reports: Mapping[str, int]

    @classmethod
    def of(cls, instruction: Instruction, layout: Layout) -> "VotesLayout":
        """Return the order of the votes that answer an instruction."""
        return cls(instruction.blocks(layout).dim, instruction.num_votes(layout))

    @property
    def dim(self) -> int:
        """The number of votes."""
        return self.signs + sum(self.reports.values())

    def votes_of(self, payload: Payload) -> NDArray[np.uint8]:
        """Return the votes of a payload, 0 or 1.

        Raises
        ------
        WireError
            If a step reports something else, or an array is sent exactly.
        """
        if payload.exact.size or payload.reports.keys() != self.reports.keys():
            raise WireError(
                "a secure sum is one of votes: exact arrays and reports that are not votes would "
                "be sent in the clear"
            )
        signs = np.unpackbits(payload.body, count=self.signs)
        reports = [payload.reports[name].astype(np.uint8) for name in self.reports]
        return np.concatenate([signs, *reports])

    def split(self, counts: VoteCounts) -> tuple[VoteCounts, dict[str, VoteCounts]]:
        """Return the counts of the signs, and those of each step's report."""
        ends = np.cumsum([self.signs, *self.reports.values()])
        signs, *reports = np.split(counts, ends[:-1])
        return signs, dict(zip(self.reports, reports, strict=True))


def masked_payload(payload: Payload, masked: Masked) -> Payload:
    """Return a payload with masked votes in place of its own."""
    return replace(payload, encoding=MASKED, reports={}, **vars(masked))


def masked_of(payload: Payload) -> Masked:
    """Return the masked votes in a payload.

    Raises
    ------
    WireError
        If its votes are not masked, or it lacks what belongs to them, or holds anything else.
    """
    if payload.encoding != MASKED:
        raise WireError(f"sent {payload.encoding!r}, was asked for {MASKED!r}")
    shares, commitment, about = payload.shares, payload.commitment, payload.about
    if shares is None or commitment is None or about is None:
        raise WireError("masked votes must come with 'shares', 'commitment' and 'about'")
    if payload.exact.size or payload.reports:
        raise WireError("masked votes must come without exact arrays and reports")
    return Masked(payload.body, shares, commitment, about)
