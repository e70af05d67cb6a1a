"""The server's part in a secure sum: it collects masked votes, and opens nothing but their sum."""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import comb
from random import SystemRandom
from typing import Generic

import numpy as np

from fedmedian.kernels.residues import Residues, bits_of_sum, sum_packed
from fedmedian.logs import warn
from fedmedian.secure.cohort import Circle, Member, Place, in_pieces
from fedmedian.secure.masking import NOTHING, PART, SEED, SHARE, Masked, add_mask, sign_of_mask
from fedmedian.secure.secrets import KEY_SIZE, NO_SHARE, SEALED_SIZE, join
from fedmedian.wire.scalars import WireError


class SumError(Exception):
    """Raised when a sum cannot be opened; the text is the reason."""


class TooFewError(SumError):
    """Raised when too few clients have voted, or help to open their sum."""


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


_Held = dict[Member, tuple[int, bytes]]
"""The shares of one seed, each with its index, by who revealed it."""

Ask = Callable[[Mapping[Member, Wanted]], Mapping[Member, Sequence[bytes]]]
"""Asks clients to reveal something, and returns the secrets of those that did; see `Wanted`."""


@dataclass(frozen=True)
class Sum(Generic[Member]):
    """An opened sum.

    Parameters
    ----------
    counts : (d,) uint8 or uint16
        How many clients voted 1, for each vote.
    members : tuple
        The clients whose votes are in it.
    wrong : mapping
        Clients that revealed wrong shares, each with a client whose mask the shares are of. One of
        the two lies, since a client may also seal wrong shares, or several others lie together.
    """

    counts: Residues
    members: tuple[Member, ...]
    wrong: Mapping[Member, Member]


@dataclass(frozen=True, eq=False)
class SumCohort(Generic[Member]):
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

    @cached_property
    def neighbors(self) -> dict[Member, list[Member]]:
        """The neighbors of each client."""
        members = self.circle.members
        return {one: self.circle.neighbors_of(index) for index, one in enumerate(members)}

    def places(self) -> dict[Member, Place]:
        """Return what each client is told."""
        enough = self.circle.enough
        return {
            one: Place(self.bits, enough, tuple(map(self.keys.__getitem__, near)), self.keys[one])
            for one, near in self.neighbors.items()
        }

    def open(self, votes: Mapping[Member, Masked], dim: int, ask: Ask[Member]) -> Sum[Member]:
        """Return the sum of masked votes.

        A client that does not reveal its seeds of masks with lost clients leaves the sum, as if it
        had not voted. Its own mask opens without it.

        Parameters
        ----------
        votes : mapping of client to Masked
            The masked votes that have arrived.
        dim : int
            d, the number of votes of a client.
        ask : callable
            Asks clients to reveal something.

        Returns
        -------
        Sum
            The sum.

        Raises
        ------
        SumError
            If too few clients are left, or a client's own mask cannot be removed. Then neither a
            vote nor a sum is revealed.
        """
        votes, seeds = self._without_lost(dict(votes), ask)
        total = sum_packed([one.body for one in votes.values()], dim)
        for (one, other), seed in seeds.items():
            if one in votes:
                add_mask(total, seed, -sign_of_mask(self.keys[one], self.keys[other]))
        own, wrong = self._own_seeds(votes, ask)
        for seed in own:
            add_mask(total, seed, -1)
        total &= total.dtype.type((1 << self.bits) - 1)
        if total.max(initial=0) > len(votes):
            raise SumError("the sum is not one of votes: a client has sent something else")
        return Sum(total, tuple(votes), wrong)

    def _without_lost(
        self, votes: dict[Member, Masked], ask: Ask[Member]
    ) -> tuple[dict[Member, Masked], dict[tuple[Member, Member], bytes]]:
        """Return the votes that can be summed, and the seeds of masks with clients that are lost.

        While these are collected, more clients may be lost, whose seeds are then needed, too.
        """
        seeds: dict[tuple[Member, Member], bytes] = {}
        neighbors = self.neighbors
        while True:
            if len(votes) < self.circle.least:
                raise TooFewError(
                    f"{len(votes)} clients are left of {len(self.circle.members)}, the sum needs "
                    f"{self.circle.least}"
                )
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
            revealed = ask(wanted)
            for one, what in wanted.items():
                if one not in revealed:
                    del votes[one]
                    continue
                others = [o for o, w in zip(neighbors[one], what.of_neighbors, strict=True) if w]
                seeds |= {(one, o): s for o, s in zip(others, revealed[one], strict=True)}

    def _own_seeds(
        self, votes: Mapping[Member, Masked], ask: Ask[Member]
    ) -> tuple[list[bytes], Mapping[Member, Member]]:
        """Return the seeds of the clients' own masks, and whose shares of them are wrong.

        The neighbors reveal a part of each, which is quick to combine. If a client has dropped out
        or sends a wrong part, they reveal a share of each.
        """
        holders: Collection[Member] = votes
        neighbors = self.neighbors
        if len(votes) == len(self.circle.members):
            asked = {one: Wanted(bytes([PART] * len(neighbors[one]))) for one in votes}
            parts = ask(asked)
            if len(parts) == len(votes):
                seeds = [
                    masked.seed_of(parts[o][neighbors[o].index(one)] for o in neighbors[one])
                    for one, masked in votes.items()
                ]
                if all(map(Masked.is_seed, votes.values(), seeds)):
                    return seeds, {}
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
        shares: dict[Member, _Held[Member]] = {one: {} for one in votes}
        for holder, secrets in ask(wanted).items():
            near = [other for other in neighbors[holder] if other in votes]
            for other, share in zip(near, secrets, strict=True):
                if share != NO_SHARE:
                    shares[other][holder] = neighbors[other].index(holder), share
        return self._joined(votes, shares)

    def _joined(
        self, votes: Mapping[Member, Masked], shares: Mapping[Member, _Held[Member]]
    ) -> tuple[list[bytes], Mapping[Member, Member]]:
        """Return the seeds in shares, and whose are wrong."""
        enough = self.circle.enough
        for one, held in shares.items():
            if len(held) < enough:
                raise TooFewError(
                    f"{len(held)} shares of the mask of client {one} were revealed, {enough} are "
                    "needed"
                )
        joining = _Joining[Member](enough, max(_FEWEST_TRIES, _TRIES_EACH * len(votes)))
        seeds = list[bytes]()
        # In another order each time, so that a liar is not named beside the same other one.
        waiting = deque(SystemRandom().sample([*votes], len(votes)))
        while waiting:
            one = waiting.popleft()
            try:
                seed = joining.seed_of(one, votes[one], shares[one])
            except ValueError as error:
                raise SumError(f"the shares of the mask of client {one} are wrong") from error
            if seed is None:
                waiting.append(one)
            else:
                seeds.append(seed)
                # Others are then easy to find, but not that of a client that has sealed noise.
                joining.tries = min(joining.tries, _TRIES_LEFT * max(len(waiting), 1))
        return seeds, joining.wrong


_FEWEST_TRIES, _TRIES_EACH = 400, 10
"""How many joins may fail in a sum: the first number, or the second for each client if more.

All sets of shares are tried where a fifth of up to 15 clients is wrong, at the usual threshold.
"""

_TRIES_LEFT = 40
"""How many joins may fail for each seed that is left, once one is found."""

_TRIES_IN_TURN = 10
"""After this many failed joins the next seed is tried, which may show whose shares are wrong."""


class _Joining(Generic[Member]):
    """Finds seeds from shares, some of which are wrong, and who revealed the wrong ones.

    A seed that is right vouches for all shares that it was joined from. So each seed is first tried
    with those holders that nobody has vouched for yet, and after that with those that are known.

    Parameters
    ----------
    enough : int
        The number of shares that reveal a seed.
    tries : int
        How many joins that fail are allowed.

    Attributes
    ----------
    tries : int
        How many are left.
    wrong : dict
        The holders of wrong shares, each with the client whose seed showed it.
    """

    def __init__(self, enough: int, tries: int) -> None:
        self.tries, self._enough = tries, enough
        self._right: set[Member] = set()
        self.wrong: dict[Member, Member] = {}

    def seed_of(self, owner: Member, masked: Masked, held: _Held[Member]) -> bytes | None:
        """Return a client's seed, or None if it is better tried again after those of others.

        Raises
        ------
        ValueError
            If it will not be found.
        """
        order = sorted(held, key=lambda one: (one in self.wrong, one in self._right))
        first = order[: self._enough]
        seed = _join(held, first)
        if masked.is_seed(seed):
            self._right |= {*first} - self.wrong.keys()
            return seed
        self.tries -= 1
        tried = {frozenset(first)}
        for some in self._others(held, order):
            if self.tries > 0 and frozenset(some) not in tried:
                seed = _join(held, some)
                if masked.is_seed(seed):
                    self._judge(owner, held, some, seed)
                    return seed
                self.tries -= 1
                tried.add(frozenset(some))
        if self.tries <= 0 or len(tried) == comb(len(held), self._enough):
            raise ValueError("no set of shares that was tried gives the seed")
        return None

    def _others(self, held: _Held[Member], order: list[Member]) -> Iterator[tuple[Member, ...]]:
        """Yield sets of holders to try after the first: all sets if they are few."""
        yield tuple([*order[1:], order[0]][: self._enough])
        best = sorted(held, key=lambda one: (one in self.wrong, one not in self._right))
        if comb(len(best), self._enough) <= self.tries:
            yield from combinations(best, self._enough)
            return
        yield tuple(best[: self._enough])
        unless_wrong = [one for one in best if one not in self.wrong]
        among = unless_wrong if len(unless_wrong) > self._enough else best
        for _ in range(_TRIES_IN_TURN):
            yield tuple(SystemRandom().sample(among, self._enough))

    def _judge(
        self, owner: Member, held: _Held[Member], right: tuple[Member, ...], seed: bytes
    ) -> None:
        """Note whose shares lie on the polynomial through right ones, and whose do not."""
        self._right |= {*right}
        for one in held.keys() - {*right} - self.wrong.keys():
            # It takes all shares but one of those, and the seed, to fix the polynomial.
            if _join(held, (one, *right[1:])) == seed:
                self._right.add(one)
            else:
                self.wrong[one] = owner
        self._right -= self.wrong.keys()


def _join(held: _Held[Member], some: Iterable[Member]) -> bytes:
    return join(dict(held[one] for one in some))


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
