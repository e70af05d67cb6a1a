"""The server's part in a secure sum: it collects masked votes, and opens nothing but their sum."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Generic

import numpy as np

from fedmedian.kernels.residues import Residues, bits_of_sum, sum_packed
from fedmedian.logs import warn
from fedmedian.secure.cohort import Circle, Member, Place, in_pieces
from fedmedian.secure.masking import NOTHING, PART, SEED, SHARE, Masked, add_mask
from fedmedian.secure.secrets import KEY_SIZE, NO_SHARE, SEALED_SIZE, join
from fedmedian.wire.scalars import WireError


class SumError(Exception):
    """Raised when a sum cannot be opened; the text is the reason."""


@dataclass(frozen=True)
class Wanted:
    """What a client is asked to reveal.

    Parameters
    ----------
    of_neighbors : bytes
        For each neighbor `NOTHING`, `SEED`, `SHARE` or `PART`.
    sealed : bytes
        The sealed shares of those for whom it is `SHARE`, in order.
    """

    of_neighbors: bytes
    sealed: bytes = b""


Ask = Callable[[Mapping[Member, Wanted]], Mapping[Member, bytes]]
"""Asks clients to reveal something, and returns the secrets of those that did."""


@dataclass(frozen=True)
class Sum(Generic[Member]):
    """An opened sum.

    Parameters
    ----------
    counts : (d,) uint8 or uint16
        How many clients voted 1, for each vote.
    members : tuple
        The clients whose votes are in it.
    """

    counts: Residues
    members: tuple[Member, ...]


@dataclass(frozen=True, eq=False)
class Cohort(Generic[Member]):
    """The clients that are asked for votes in one secure sum.

    Parameters
    ----------
    circle : Circle
        The clients and who are neighbors.
    keys : mapping
        Their public keys.
    """

    circle: Circle[Member]
    keys: Mapping[Member, bytes]

    @property
    def bits(self) -> int:
        """k: votes are sent as residues modulo 2^k."""
        return bits_of_sum(len(self.circle.members))

    @property
    def neighbors(self) -> dict[Member, list[Member]]:
        """The neighbors of each client."""
        members = self.circle.members
        return {one: self.circle.neighbors_of(index) for index, one in enumerate(members)}

    def places(self) -> dict[Member, Place]:
        """Return what each client is told."""
        enough = self.circle.enough
        return {
            one: Place(self.bits, enough, tuple(self.keys[other] for other in near))
            for one, near in self.neighbors.items()
        }

    def open(
        self,
        votes: Mapping[Member, Masked],
        dim: int,
        question: tuple[int, int],
        ask: Ask[Member],
    ) -> Sum[Member]:
        """Return the sum of masked votes.

        A client that does not reveal its seeds of masks with lost clients leaves the sum, as if it
        had not voted. Its own mask opens without it.

        Parameters
        ----------
        votes : mapping of client to Masked
            The masked votes that have arrived.
        dim : int
            d, the number of votes of a client.
        question : tuple of int
            The round, and its question.
        ask : callable
            Asks clients to reveal something.

        Returns
        -------
        Sum
            The sum.

        Raises
        ------
        SumError
            If too few clients are left, or one's own mask cannot be removed. Then no vote and no
            sum is open.
        """
        neighbors = self.neighbors
        votes, seeds = self._without_lost(dict(votes), neighbors, ask)
        total = sum_packed([one.body for one in votes.values()], dim)
        for (one, other), seed in seeds.items():
            if one in votes:
                add_mask(total, seed, -1 if self.keys[one] < self.keys[other] else 1)
        for seed in self._own_seeds(votes, neighbors, ask):
            add_mask(total, seed, -1)
        total &= total.dtype.type((1 << self.bits) - 1)
        if total.max(initial=0) > len(votes):
            raise SumError("the sum is not one of votes: a client has sent something else")
        return Sum(total, tuple(votes))

    def _without_lost(
        self,
        votes: dict[Member, Masked],
        neighbors: Mapping[Member, list[Member]],
        ask: Ask[Member],
    ) -> tuple[dict[Member, Masked], dict[tuple[Member, Member], bytes]]:
        """Return the votes that can be summed, and the seeds of masks with clients that are lost.

        While these are collected others may be lost, whose seeds are needed, too.
        """
        seeds: dict[tuple[Member, Member], bytes] = {}
        while True:
            self._require_enough(votes)
            missing = {
                one: bytes(
                    SEED if other not in votes and (one, other) not in seeds else NOTHING
                    for other in neighbors[one]
                )
                for one in votes
            }
            wanted = {one: Wanted(what) for one, what in missing.items() if any(what)}
            if not wanted:
                return votes, seeds
            revealed = self._revealed(wanted, ask)
            for one, what in wanted.items():
                if one not in revealed:
                    del votes[one]
                    continue
                others = [o for o, w in zip(neighbors[one], what.of_neighbors, strict=True) if w]
                seeds |= {(one, o): s for o, s in zip(others, revealed[one], strict=True)}

    def _own_seeds(
        self,
        votes: Mapping[Member, Masked],
        neighbors: Mapping[Member, list[Member]],
        ask: Ask[Member],
    ) -> list[bytes]:
        """Return the seeds of the clients' own masks, from what their neighbors reveal.

        That is a part of each, which is quick to combine. If a client has dropped out or sends a
        wrong part, it is a share of each.
        """
        holders: Collection[Member] = votes
        if len(votes) == len(self.circle.members):
            asked = {one: Wanted(bytes([PART] * len(neighbors[one]))) for one in votes}
            parts = self._revealed(asked, ask)
            if len(parts) == len(votes):
                seeds = [
                    masked.seed_of(parts[o][neighbors[o].index(one)] for o in neighbors[one])
                    for one, masked in votes.items()
                ]
                if all(map(Masked.is_seed, votes.values(), seeds)):
                    return seeds
            warn(
                "%d of %d clients sent their parts of the masks, and some may be wrong: the secure "
                "sum is opened with shares, which takes longer; if this repeats in each round, a "
                "client is faulty or hostile",
                *(len(parts), len(votes)),
            )
            holders = parts
        sealed = {
            one: dict(zip(neighbors[one], in_pieces(masked.shares, SEALED_SIZE), strict=True))
            for one, masked in votes.items()
        }
        wanted = {}
        for one in holders:
            near = [other for other in neighbors[one] if other in votes]
            what = bytes(SHARE if other in votes else NOTHING for other in neighbors[one])
            wanted[one] = Wanted(what, b"".join(sealed[other][one] for other in near))
        shares: dict[Member, dict[int, bytes]] = {one: {} for one in votes}
        for holder, secrets in self._revealed(wanted, ask).items():
            near = [other for other in neighbors[holder] if other in votes]
            for other, share in zip(near, secrets, strict=True):
                if share != NO_SHARE:
                    shares[other][neighbors[other].index(holder)] = share
        return [self._own_seed(one, shares[one], masked) for one, masked in votes.items()]

    def _own_seed(self, one: Member, shares: Mapping[int, bytes], masked: Masked) -> bytes:
        enough, held = self.circle.enough, [*shares.items()]
        if len(held) < enough:
            raise SumError(
                f"{len(held)} shares of the mask of client {one} were revealed, {enough} are needed"
            )
        for start in range(len(held) if len(held) > enough else 1):
            # Some of the shares may be wrong ones.
            some = (held + held)[start : start + enough]
            seed = join(dict(some))
            if masked.is_seed(seed):
                return seed
        raise SumError(f"the shares of the mask of client {one} are wrong")

    def _require_enough(self, votes: Mapping[Member, Masked]) -> None:
        if len(votes) < self.circle.least:
            raise SumError(
                f"{len(votes)} clients are left of {len(self.circle.members)}, the sum needs "
                f"{self.circle.least}"
            )

    def _revealed(
        self, wanted: Mapping[Member, Wanted], ask: Ask[Member]
    ) -> dict[Member, list[bytes]]:
        """Return the secrets that clients reveal; those of a wrong length are as good as none."""
        found = {}
        for one, secrets in ask(wanted).items():
            what = wanted.get(one)
            if what is not None and len(secrets) == KEY_SIZE * sum(map(bool, what.of_neighbors)):
                found[one] = in_pieces(secrets, KEY_SIZE)
        return found


def require_masked(masked: Masked, place: Place, dim: int) -> None:
    """Raise unless masked votes have the form that a place asks for.

    Raises
    ------
    WireError
        If they do not.
    """
    shape = (place.bits, -(-dim // 8))
    if masked.body.dtype != np.uint8 or masked.body.shape != shape:
        raise WireError(
            f"masked votes must be uint8 of shape {shape}, got {masked.body.dtype} of shape "
            f"{masked.body.shape}"
        )
    if len(masked.shares) != SEALED_SIZE * len(place.neighbors):
        raise WireError(f"there must be a share for each of {len(place.neighbors)} neighbors")
    if len(masked.commitment) != 2 * KEY_SIZE:
        raise WireError(f"a commitment has {2 * KEY_SIZE} bytes, got {len(masked.commitment)}")
