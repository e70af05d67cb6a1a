"""Who masks whose votes: the clients of one secure sum, and what each of them is told."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, comb
from random import SystemRandom
from typing import Any, Generic, TypeVar

from fedmedian.checks import require_integer, require_real
from fedmedian.kernels.residues import MOST_BITS, bits_of_sum
from fedmedian.secure.secrets import KEY_SIZE
from fedmedian.wire.scalars import PREFIX, WireError, WireScalar, with_prefix

FEWEST = 3
"""The fewest clients in a sum: of two, one would learn the other's vote."""

MOST_CLIENTS = (1 << MOST_BITS) - 1
"""The most clients in a sum."""

MOST_NEIGHBORS = 1000
"""The most neighbors of a client: making shares for this many takes a minute."""

Member = TypeVar("Member")

_FIELDS = {"sum.bits": int, "sum.enough": int, "sum.neighbors": bytes, "sum.own": bytes}

_RARE = 10**6
"""Of a large cohort, one client in this many may have too few neighbors left at the threshold."""


@dataclass(frozen=True)
class SecureSum:
    """Secure sums: the server learns how many clients voted +1, and no single vote.

    Clients mask their votes with masks that cancel in the sum (Bonawitz et al., CCS 2017). Each
    pair of neighbors shares one, and each client adds a private one, which its neighbors remove if
    enough of them agree that its votes are in the sum. Keys are exchanged once a run. A round
    then takes two exchanges with the clients, and more only if some drop out of it or send wrong
    secrets.

    A sum cannot be screened: a single hostile client can shift or spoil it. So there is no
    protection against hostile clients, whatever the share of honest ones.

    Parameters
    ----------
    threshold : float (default: 0.8)
        The share of a round's clients, in (0.5, 1], whose votes must be in its sum; at least three
        clients, and at least two more than half of the others. Otherwise the round keeps the model,
        and nothing is opened.
    neighbors : int (default: 48)
        The number of neighbors of each client, even, 20..1000; all others if there are not more.
        More take longer. A client's `Policy` relies only on its neighbors.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.
    """

    threshold: float = 0.8
    neighbors: int = 48

    def __post_init__(self) -> None:
        require_real("threshold", self.threshold, low=0.5, high=1.0, open_low=True)
        require_integer("neighbors", self.neighbors, low=20, high=MOST_NEIGHBORS)
        if self.neighbors % 2:
            raise ValueError(f"neighbors must be even, got {self.neighbors!r}")

    def least(self, clients: int) -> int:
        """Return the fewest clients in a sum of a cohort."""
        # Less a little, because 0.55·100 is not 55 exactly, nor is 0.8·5 four in single precision.
        least = ceil(float(self.threshold) * clients * (1 - 1e-7))
        return max(least, fewest_shares(clients - 1) + 1, FEWEST)

    def circle(self, members: Sequence[Member]) -> "Circle[Member]":
        """Return the clients in an order from the operating system's entropy."""
        order = SystemRandom().sample([*members], len(members))
        return Circle(order, int(self.neighbors), self.least(len(order)))


@dataclass(frozen=True)
class Place:
    """A client's place in a secure sum, as the server describes it to the client.

    Parameters
    ----------
    bits : int
        k: votes are sent as residues modulo 2^k.
    enough : int
        The number of shares that reveal a client's own mask. A client reveals none unless this
        many of its neighbors are in the sum.
    neighbors : tuple of bytes
        The public keys of the clients that it shares masks with, in the server's order.
    own : bytes (default: b"")
        The public key that the server has of this client. A client with another key refuses the
        place, because its masks would not cancel.
    """

    bits: int
    enough: int
    neighbors: tuple[bytes, ...]
    own: bytes = b""

    def __post_init__(self) -> None:
        number, least = len(self.neighbors), fewest_shares(len(self.neighbors))
        if number > MOST_NEIGHBORS:
            raise WireError(f"{number} neighbors are more than {MOST_NEIGHBORS}")
        if not 1 <= self.bits <= MOST_BITS or bits_of_sum(number + 1) > self.bits:
            raise WireError(f"{self.bits} bits do not hold a sum of {number + 1} votes")
        if not least <= self.enough <= number:
            raise WireError(
                f"{self.enough} shares among {number} neighbors do not hide a vote, it takes at "
                f"least {least}"
            )
        if len(set(self.neighbors)) < number:
            raise WireError("two neighbors have the same public key")

    @property
    def least(self) -> int:
        """The fewest clients in the sum, this one included, whoever the server says is lost.

        Of n neighbors, this client reveals the masks with at most n − s, for s shares, and at most
        n − s may do so about it.
        """
        return 2 * self.enough - len(self.neighbors) + 1

    def honest(self, colluding: int) -> int:
        """Return the fewest honest clients in the sum, this one included, whoever is lost.

        Parameters
        ----------
        colluding : int
            The largest number of neighbors that collude with a server that lies about who is lost:
            they remain in the sum instead of honest ones.

        Returns
        -------
        int
            The number, at least 1.
        """
        return max(self.least - colluding, 1)

    def encode(self) -> dict[str, WireScalar]:
        """Return the place as scalars."""
        values = self.bits, self.enough, b"".join(self.neighbors), self.own
        return with_prefix(dict(zip(_FIELDS, values, strict=True)))

    @classmethod
    def take(cls, config: Any) -> "Place | None":
        """Remove the place from a message's config and return it; None if there is none.

        Raises
        ------
        WireError
            If it is malformed, or does not hide this client's vote.
        """
        found = [config.pop(PREFIX + name, None) for name in _FIELDS]
        if found == [None] * len(_FIELDS):
            return None
        for (name, wanted), value in zip(_FIELDS.items(), found, strict=True):
            if type(value) is not wanted:
                raise WireError(f"{PREFIX}{name} must be {wanted.__name__}")
        bits, enough, keys, own = found
        return cls(bits, enough, tuple(in_pieces(keys, KEY_SIZE)), own)


@dataclass(frozen=True, eq=False)
class Circle(Generic[Member]):
    """The clients of a sum in a random order, each with those near it as its neighbors.

    Parameters
    ----------
    members : sequence of M
        The clients, M >= 3.
    neighbors : int
        The largest number of neighbors, even. A client of a smaller cohort has all others.
    least : int
        The fewest clients in the sum.
    """

    members: Sequence[Member]
    neighbors: int
    least: int

    @property
    def is_complete(self) -> bool:
        """Whether all others are each client's neighbors."""
        return len(self.members) - 1 <= self.neighbors

    @property
    def enough(self) -> int:
        """The number of shares that reveal a client's own mask.

        In a complete circle all but one of the `least` clients hold one. In a larger one it is so
        small that only one client in a million has fewer of its neighbors among the `least`.
        """
        if self.is_complete:
            return self.least - 1
        total, near = len(self.members), self.neighbors
        fewest, ways = 0, 0
        while True:
            ways += comb(self.least, fewest) * comb(total - self.least, near - fewest)
            if ways * _RARE > comb(total, near):
                return max(fewest, fewest_shares(near))
            fewest += 1

    def neighbors_of(self, index: int) -> list[Member]:
        """Return the neighbors of the client at an index."""
        total = len(self.members)
        if self.is_complete:
            return [*self.members[index + 1 :], *self.members[:index]]
        half = self.neighbors // 2
        away = [*range(-half, 0), *range(1, half + 1)]
        return [self.members[(index + step) % total] for step in away]


def fewest_shares(neighbors: int) -> int:
    """Return the fewest shares among n neighbors that hide a vote, more than half of them.

    With s of them a server that lies about who is lost opens a sum of 2·s − n + 1 clients at least,
    which must be three.
    """
    return (neighbors + FEWEST) // 2


def in_pieces(data: bytes, size: int) -> list[bytes]:
    """Return the pieces of this size that data consists of.

    Raises
    ------
    WireError
        If its length is not a multiple of the size.
    """
    if len(data) % size:
        raise WireError(f"{len(data)} bytes do not consist of pieces of {size}")
    return [data[start : start + size] for start in range(0, len(data), size)]
