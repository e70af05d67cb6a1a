"""A secure sum without Flower: a server's cohort, and clients that answer its requests."""

from dataclasses import dataclass, field, replace
from random import Random

import numpy as np
import pytest
from Crypto.Protocol import SecretSharing

from fedmedian.kernels.residues import dtype_of
from fedmedian.secure import cohort as cohort_module
from fedmedian.secure import masking, opening
from fedmedian.secure.cohort import Circle, SecureSum
from fedmedian.secure.masking import PART, SHARE, Key
from fedmedian.secure.opening import SumCohort
from fedmedian.secure.requests import read_secrets
from fedmedian.wire.scalars import PREFIX, WireError

QUESTION = (1, 0)


@pytest.fixture(autouse=True)
def entropy(monkeypatch):
    """Draw keys, seeds and orders from one seed, so that no statistical test fails by chance."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(masking, "new_private_key", lambda: rng.bytes(32))
    monkeypatch.setattr(masking, "new_seed", lambda: rng.bytes(32))
    monkeypatch.setattr(SecretSharing, "rng", rng.bytes)
    for module in (cohort_module, opening):
        monkeypatch.setattr(module, "SystemRandom", lambda: Random(rng.bytes(8)))


@dataclass
class Round:
    """A round of a secure sum: what clients vote, what they send, and all that is revealed."""

    cohort: SumCohort
    clients: dict
    votes: dict
    question: tuple = QUESTION
    requests: list = field(default_factory=list)

    @classmethod
    def of(cls, number, dim, rule=None, seed=0, circle=None, question=QUESTION):
        circle = circle or (rule or SecureSum(2 / 3)).circle(range(number))
        clients = {one: Key.new() for one in range(number)}
        cohort = SumCohort(circle, {one: key.public for one, key in clients.items()})
        rng = np.random.default_rng(seed)
        votes = {one: rng.integers(0, 2, dim, dtype=np.uint8) for one in clients}
        return cls(cohort, clients, votes, question)

    @property
    def least(self):
        return self.cohort.circle.least

    def masked(self, clients=None):
        """Return the masked votes of some clients, by default of all."""
        places, found = self.cohort.places(), {}
        for one in self.clients if clients is None else clients:
            self.clients[one] = self.clients[one].takes(places[one], self.question)
            found[one] = self.clients[one].mask(self.votes[one])
        return found

    def reveal(self, one, wanted):
        """Return what a client reveals."""
        self.clients[one], secrets = self.clients[one].reveal(
            self.question, wanted.of_neighbors, wanted.sealed
        )
        return secrets

    def asking(self, silent=frozenset(), change=lambda one, secrets: secrets):
        """Return how the server asks: clients in `silent[stage]` do not answer."""

        def ask(wanted):
            asked = {code for one in wanted.values() for code in one.of_neighbors}
            stage = "parts" if PART in asked else "shares" if SHARE in asked else "seeds"
            self.requests.append((stage, wanted))
            own = "shares" if stage == "parts" else stage  # the last stage, in two forms
            silent_now = silent[own] if isinstance(silent, dict) else silent
            found = {}
            for one, what in wanted.items():
                if one in silent_now:
                    continue
                try:
                    revealed = {PREFIX + "sum.secrets": change(one, self.reveal(one, what))}
                    found[one] = read_secrets(revealed, what)
                except WireError:
                    continue
            return found

        return ask

    def open(self, masked, ask=None):
        dim = len(next(iter(self.votes.values())))
        return self.cohort.open(masked, dim, ask or self.asking())

    def plain(self, members):
        """Return the sum of plain votes."""
        total = sum(self.votes[one].astype(np.int64) for one in members)
        return np.asarray(total, dtype=dtype_of(self.cohort.bits))

    def another(self, question):
        """Return another round of the same clients."""
        return replace(self, question=question, requests=[])


@pytest.fixture(scope="session")
def round_of():
    """Makes a round of a number of clients and votes."""
    return Round.of


@pytest.fixture(scope="session")
def ring():
    """Makes a circle in which each client has few neighbors."""

    def ring(number, neighbors, least):
        return Circle(list(range(number)), neighbors, least)

    return ring
