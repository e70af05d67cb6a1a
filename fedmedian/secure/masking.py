"""A client's part in a secure sum: it masks its votes, and later reveals what opens the sum."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fedmedian.kernels.residues import Residues, dtype_of, pack_residues
from fedmedian.secure.cohort import Place, in_pieces
from fedmedian.secure.secrets import (
    KEY_SIZE,
    SEALED_SIZE,
    combined,
    commitment,
    derived,
    mask,
    new_private_key,
    new_seed,
    pair_secret,
    public_key,
    seal,
    split,
    unseal,
)
from fedmedian.wire.scalars import WireError

NOTHING, SEED, SHARE, PART = range(4)
"""What a client reveals about a neighbor.

The seed of their shared mask if the neighbor is not in the sum; if it is, a share or a part of the
seed of the neighbor's own mask, which enough shares or all parts give.
"""


@dataclass(frozen=True)
class Masked:
    """Masked votes, and what others need to unmask them if enough of them agree.

    Parameters
    ----------
    body : (k, ⌈d/8⌉) uint8
        The masked votes, packed.
    shares : bytes
        The shares of the seed of the client's own mask, one sealed for each neighbor.
    commitment : bytes
        What binds the client to that seed, 32 bytes, and the rest of the seed that the parts of all
        neighbors lack, 32 bytes.
    about : bytes
        What the votes are about; see `Key`.
    """

    body: NDArray[np.uint8]
    shares: bytes
    commitment: bytes
    about: bytes

    def is_seed(self, seed: bytes) -> bool:
        """Return whether the client is bound to a seed."""
        return self.commitment[:KEY_SIZE] == commitment(seed)

    def seed_of(self, parts: Iterable[bytes]) -> bytes:
        """Return the seed from the parts of all neighbors; a wrong one if a part is wrong."""
        return combined((self.commitment[KEY_SIZE:], *parts))


@dataclass(frozen=True)
class Key:
    """A client's key for the sums of a run, and what it has done with it.

    Every question is answered once, in order: with the same masks twice, the difference of the
    votes would be open.

    Parameters
    ----------
    private : bytes
        The private key.
    question : tuple of int
        The last round, and its question, that the client has masked votes for.
    place : Place, optional
        Its place in that sum.
    revealed : bytes
        What it has revealed about each neighbor: `NOTHING`, `SEED`, `SHARE` or `PART`.
    about : bytes
        What the votes are about, as a digest. Masks cancel only among clients that were asked the
        same. A server could otherwise let others vote without noise, and learn this client's votes.
    """

    private: bytes
    question: tuple[int, int] = (-1, -1)
    place: Place | None = None
    revealed: bytes = b""
    about: bytes = b""

    @classmethod
    def new(cls) -> Self:
        """Return a new key."""
        return cls(new_private_key())

    @property
    def public(self) -> bytes:
        """The public key."""
        return public_key(self.private)

    def takes(self, place: Place, question: tuple[int, int], about: bytes = b"") -> "Key":
        """Return the key as it is after votes for a question are masked.

        Parameters
        ----------
        place : Place
            The client's place in the sum.
        question : tuple of int
            The round, and its question.
        about : bytes
            A digest of the instruction and of the model.

        Raises
        ------
        WireError
            If votes for this or a later question were masked, or a neighbor's key is not valid.
        """
        if question <= self.question:
            raise WireError(
                f"votes for round {question[0]}, question {question[1]} were masked before: the "
                "same masks twice would reveal them"
            )
        if self.public in place.neighbors:
            raise WireError("this client cannot be its own neighbor")
        for public in place.neighbors:
            self.require_valid(public)
        none = bytes(len(place.neighbors))
        return replace(self, question=question, place=place, revealed=none, about=about)

    def mask(self, votes: NDArray[np.uint8]) -> Masked:
        """Return masked votes for the question that the key `takes`.

        Parameters
        ----------
        votes : (d,) uint8
            The votes, 0 or 1.
        """
        place = self.place
        assert place is not None  # `takes` comes first
        own, total = new_seed(), votes.astype(dtype_of(place.bits))
        add_mask(total, own, 1)
        for public in place.neighbors:
            add_mask(total, self._seed(public), sign_of_mask(self.public, public))
        shares = split(own, len(place.neighbors), place.enough)
        sealed = [
            seal(self._sealing_key(self.public, public), share)
            for public, share in zip(place.neighbors, shares, strict=True)
        ]
        parts = (self._part(self.public, public) for public in place.neighbors)
        opening = commitment(own) + combined((own, *parts))
        return Masked(pack_residues(total, place.bits), b"".join(sealed), opening, self.about)

    def reveal(
        self, question: tuple[int, int], wanted: bytes, sealed: bytes
    ) -> tuple["Key", bytes]:
        """Return what opens a sum, and the key after that.

        A vote stays hidden as long as nobody has both the seeds of its masks with all honest
        neighbors and enough shares of its own mask. So the client reveals only one of them for each
        neighbor, and nothing unless enough neighbors are in the sum. The others, whose seeds it
        reveals, are too few for the shares that they may reveal to open its mask.

        Parameters
        ----------
        question : tuple of int
            The round, and its question.
        wanted : bytes
            What the server asks for about each neighbor: `NOTHING`, `SEED` if its votes are not in
            the sum, `SHARE` or `PART` if they are.
        sealed : bytes
            The sealed shares of the neighbors for whom it is `SHARE`, in order.

        Returns
        -------
        key : Key
            The key.
        secrets : bytes
            The seeds, shares and parts, in order of the neighbors.

        Raises
        ------
        WireError
            If the client must not reveal this.
        """
        place = self.place
        if place is None or question != self.question:
            raise WireError(f"has no votes in a sum of round {question[0]}, question {question[1]}")
        shares, summed = wanted.count(SHARE), wanted.count(SHARE) + wanted.count(PART)
        if len(wanted) != len(place.neighbors) or max(wanted) > PART:
            raise WireError(f"must be asked for 0 to {PART} of {len(place.neighbors)} neighbors")
        both = zip(self.revealed, wanted, strict=True)
        if any(was and now and (was == SEED) != (now == SEED) for was, now in both):
            raise WireError("a neighbor's votes cannot be both in a sum and not in it")
        if summed and summed < place.enough:
            raise WireError(
                f"only {summed} neighbors are in the sum, their votes hide among {place.enough}"
            )
        revealed = bytes(was or now for was, now in zip(self.revealed, wanted, strict=True))
        if len(revealed) - revealed.count(SEED) < place.enough:
            raise WireError(
                f"{revealed.count(SEED)} neighbors are not in the sum, at most "
                f"{len(revealed) - place.enough} of {len(revealed)} may be missing"
            )
        pieces = in_pieces(sealed, SEALED_SIZE)
        if len(pieces) != shares:
            raise WireError(f"there must be {shares} sealed shares, got {len(pieces)}")
        secrets, given = [], iter(pieces)
        for public, what in zip(place.neighbors, wanted, strict=True):
            if what == SEED:
                secrets.append(self._seed(public))
            elif what == SHARE:
                secrets.append(self._unsealed(public, next(given)))
            elif what == PART:
                secrets.append(self._part(public, self.public))
        return replace(self, revealed=revealed), b"".join(secrets)

    def require_valid(self, public: bytes) -> None:
        """Raise unless the public key of another client gives a secret with this one.

        Raises
        ------
        WireError
            If it gives every key the same.
        """
        try:
            pair_secret(self.private, public)
        except ValueError as error:
            raise WireError(f"the public key of a client is not valid: {error}") from error

    def _seed(self, public: bytes) -> bytes:
        return self._derived(public, "mask", *sorted((self.public, public)))

    def _part(self, owner: bytes, holder: bytes) -> bytes:
        """Return the part of an owner's seed that a neighbor can reveal; both derive it."""
        return self._derived(holder if owner == self.public else owner, "part", owner, holder)

    def _sealing_key(self, sender: bytes, public: bytes) -> bytes:
        """Return the key of a share between this client and another, one for each direction."""
        receiver = public if sender == self.public else self.public
        return self._derived(public, "share", sender, receiver)

    def _derived(self, public: bytes, use: str, *keys: bytes) -> bytes:
        """Return a key for one use of the secret with a neighbor, in one question; see `about`.

        Several public keys have the same secret, so each use also names the keys.
        """
        names = [key.hex() for key in keys]
        return derived(
            pair_secret(self.private, public), use, *names, *self.question, self.about.hex()
        )

    def _unsealed(self, public: bytes, sealed: bytes) -> bytes:
        return unseal(self._sealing_key(public, public), sealed)


def sign_of_mask(own: bytes, other: bytes) -> int:
    """Return the sign of the mask between two clients in the votes of the first, by their keys."""
    return 1 if own < other else -1


def add_mask(total: Residues, seed: bytes, sign: int) -> None:
    """Add a seed's mask to residues, or subtract it, in place."""
    stream = np.empty_like(total)
    mask(seed, stream)
    (np.add if sign > 0 else np.subtract)(total, stream, out=total)
