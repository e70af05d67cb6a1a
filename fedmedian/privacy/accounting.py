"""What clients' answers reveal about their updates, in ε and δ.

Once a round a client releases its update u, clipped to an L2 norm of C, with Gaussian noise of
scale b = σ·C, or the signs of that. Two possible updates of a client are Δ apart: 2·C, or C if one
of them is zero. Everything here is an upper bound against a server that sees every answer, may use
any strategy, and knows everything except which of the two updates it was.

**The vector.** One answer is a Gaussian mechanism of μ = Δ/b, and T of them, each of which may
depend on those before, are one of √T·μ (Dong, Roth and Su, arXiv 1905.02383), whose
δ is exactly Φ(μ/2 − ε/μ) − e^ε·Φ(−μ/2 − ε/μ) (Balle and Wang, arXiv 1805.06530, Theorem 8).

**The votes.** They are a function of the vector, so all of this holds. They also reveal less:

*Theorem.* Let ‖u‖, ‖v‖ ≤ R·b, η(x) = log Φ(x) − log Φ(−x) and f = (η(R)/(2·R))². The Rényi
divergence of order α > 1 of the votes of u from those of v is at most α/2·f·(‖u‖ + ‖v‖)²/b², and
so at most α/2·f·Δ²/b², f times that of Gaussian vectors Δ apart. By ‖u‖ ≤ C, R = 1/σ; f is 2/π for
R = 0, 0.65 for 1/2, 0.70 for 1.

*Proof.* Vote j is a Bernoulli variable of natural parameter η(u_j/b). With A(η) = log(1 + e^η) and
g(t) = A(η₀ + t·(η₁ − η₀)), the divergence of two of them is
[g(α) − α·g(1) + (α − 1)·g(0)]/(α − 1). As A'' ≤ 1/4, h(t) = (η₁ − η₀)²·t²/8 − g(t) is convex, and
with t = 1 between 0 and α, α·h(1) ≤ h(α) + (α − 1)·h(0). So the divergence is at most α·(η₁ −
η₀)²/8. The coordinates' noise is independent, and their divergences add up: to α/8·‖η(u/b) −
η(v/b)‖². η is odd, and its slope φ(x)/(Φ(x)·Φ(−x)) is the sum of the normal distribution's hazard
rates at x and −x, which are convex (Sampford, 1953): the slope grows with |x|, so does η(x)/x, and
|η(x)| ≤ |x|·η(R)/R for |x| ≤ R. Hence ‖η(u/b) − η(v/b)‖ ≤ (‖u‖ + ‖v‖)/b·η(R)/R. ∎

With many equal coordinates, u = −v and much noise, the bound is tight.

Divergences of answers that depend on those before add up, too (Mironov, arXiv 1702.07476,
Proposition 1), and are turned into ε by Canonne, Kamath and Steinke (arXiv 2004.00010,
Proposition 12). This conversion is not tight, so ε of votes is the smaller of both bounds.

Chen, Özgür and Kairouz (arXiv 2207.09916) bound votes of another law in this way, against an
observer of their sum; this bound is against an observer of each vote.

**Sums of votes.** A server that sees only the sum of several clients' votes learns less of each of
them; see `fedmedian.privacy.sums`. The sum is a function of the votes, so both bounds above hold
for it, too, and ε is the smallest of all. Where entries are limited as well, R in the theorem is
their limit over b.

**Sampling.** A server knows which clients it asks, so sampling hides nothing from it. It does hide
clients from an observer of the models alone; see `fedmedian.privacy.amplification`.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import erf, exp, expm1, floor, inf, log, log1p, sqrt
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

import numpy as np
import scipy  # its subpackages load on first use

from fedmedian.checks import require_choice, require_integer, require_real
from fedmedian.privacy.amplification import ORDERS, epsilon_of_divergences, sampled_divergences
from fedmedian.privacy.sums import gaussian_share, sum_divergences
from fedmedian.steps.encodings import Signs, encodings
from fedmedian.wire.scalars import Float64

Relation = Literal["replace", "zero"]
"""What is hidden: which of any two updates it was, or whether it was an update or zero."""

LEAST_MULTIPLIER = 0.2
"""The noise scale, over the largest entry of an update, below which rounding counts.

`fedmedian.kernels.encoding` has the reason. Without a limit, the largest entry is the clip norm.
With one, as for secure sums, the scale may be a much smaller share of the clip norm.
"""

_ROUNDING_OF_SCALE = 2e-7
"""More than the noise scale and the clip norm lose in float32, relative to them."""

LEAST_ROUNDED = LEAST_MULTIPLIER * (1 - _ROUNDING_OF_SCALE)
"""What `LEAST_MULTIPLIER` may be rounded to."""

MOST_ANSWERS = 2**63 - 1
"""The largest number of answers that is counted, as in Flower's records."""

_ROUNDING = 1e-5
"""Safety margin for float32 rounding of norms, rotations and scales."""

_LEAST_COUNTED = LEAST_MULTIPLIER * (1 - _ROUNDING)
"""Below `LEAST_ROUNDED`, because a quotient of two numbers is rounded once more."""

_LARGEST_MU = 1e3
"""The μ above which a simple bound on ε suffices."""


@dataclass(frozen=True)
class PrivacyBudget:
    """A bound on what a run's answers reveal about a client's update.

    Against a server, which knows which clients it asks, each client counts as answering in every
    round. Against observers of the models alone, a trusted server may hide which clients it drew:
    see `sampling`. With a budget, clients must run a mechanism, which
    `fedmedian.strategies.SignSGD.privacy` describes.

    Parameters
    ----------
    epsilon : float
        ε, > 0.
    delta : float
        δ, in (0, 1); much less than one over the number of clients.
    relation : {"replace", "zero"} (default: "replace")
        What is hidden: ``"replace"``, which of any two possible updates it was, as in local
        differential privacy; ``"zero"``, whether it was the client's update or zero, which halves
        the distance.
    sampling : float (default: 1.0)
        The largest share of clients drawn in a round, in (0, 1], if no adversary learns which. With
        m of n clients drawn it is m/n, or m/(n − k) if k clients are adversaries. Below 1 the
        relation must be ``"replace"``, and a round that draws a larger share does not run.

        Clients that do not answer hide no others, and counts of answers are not trusted. So the
        protection depends on the strategy's `min_replies`, the answers that a round needs. It is
        strongest if all drawn clients must answer, and weak with 1; for r in between the share is
        r/n·C(m, r)^(1/r), more than m/n. The module `amplification` has the proof. The sum of
        several clients' noise in the model does not count, because some clients may add none.
    honest : float (default: 0.8)
        The smallest share of the clients in a secure sum that are honest, in (0, 1]: they add their
        noise, and do not tell the server their votes. It matters only with secure sums.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.

    Examples
    --------
    >>> budget = PrivacyBudget(epsilon=8.0, delta=1e-6)
    """

    epsilon: float
    delta: float
    relation: Relation = "replace"
    sampling: float = 1.0
    honest: float = 0.8

    def __post_init__(self) -> None:
        require_real("epsilon", self.epsilon, low=0.0, open_low=True)
        _require_delta(self.delta)
        _require_sampling(self.relation, self.sampling)
        require_share("honest", self.honest)
        _keep_as_floats(self, "epsilon", "delta", "sampling", "honest")

    def __str__(self) -> str:
        hidden = "" if self.sampling == 1 else f", a hidden {self.sampling:g} of the clients drawn"
        start = f"epsilon {self.epsilon:g} at delta {self.delta:g}"
        return f"{start}, relation {self.relation!r}{hidden}"


class Draw(NamedTuple):
    """How a round's clients were drawn, which affects what an answer reveals.

    Parameters
    ----------
    sampling : float (default: 1.0)
        The share that hides them, see `PrivacyBudget`; 1 for no protection.
    min_replies : int (default: 1)
        A round with fewer answers keeps the model.
    summed : int (default: 0)
        The number of honest clients whose votes are in a secure sum, see `honest_of`; 0 if the
        server sees every vote.
    """

    sampling: float = 1.0
    min_replies: int = 1
    summed: int = 0


@dataclass(frozen=True)
class PrivacyLoss:
    """What a client's answers have revealed about its update, as sums over answers.

    Parameters
    ----------
    as_gaussian : float (default: 0.0)
        μ² of a Gaussian mechanism that reveals at least as much: the sum of Δ²/b², each term times
        the `gaussian_share` of a secure sum.
    as_sent : float (default: 0.0)
        The sum of Δ²/b², each term times the `Encoding.share` of what was sent if that is smaller:
        α/2 times this bounds the Rényi divergence of order α.
    divergences : tuple of float (default: none)
        Another bound of it, at `ORDERS`: for secure sums their own; empty without any.
    """

    as_gaussian: float = 0.0
    as_sent: float = 0.0
    divergences: tuple[float, ...] = ()

    @classmethod
    def of_answer(
        cls,
        kind: str,
        noise_multiplier: float,
        relation: Relation = "replace",
        *,
        limit: float = inf,
        summed: int = 0,
        others: float = 0.0,
    ) -> "PrivacyLoss":
        """Return what one answer reveals; infinite with too little noise, see `LEAST_MULTIPLIER`.

        Parameters
        ----------
        kind : {"signs", "vector"}
            What is sent.
        noise_multiplier : float
            σ, > 0.
        relation : {"replace", "zero"} (default: "replace")
            See `PrivacyBudget`.
        limit : float (default: infinity)
            The largest entry of the vector that noise is added to, over the clip norm.
        summed : int (default: 0)
            See `Draw`; it matters for signs only.
        others : float (default: 0.0)
            The largest entry of the other clients' vectors, over this client's clip norm, if it may
            exceed this client's own. One that is certain of its vote hides no other.

        Returns
        -------
        PrivacyLoss
            What it reveals.
        """
        largest = min(1.0, limit)
        counted = noise_multiplier * (1 - _ROUNDING)
        if noise_multiplier < _LEAST_COUNTED * largest or counted == 0:
            return cls(inf, inf)
        reach, encoding = largest / counted, encodings()[kind]
        as_vector = 1 / counted / counted * (4 if relation == "replace" else 1)
        share = encoding.share(reach)
        everyones = max(largest, others)
        is_hidden = summed > 1 and noise_multiplier >= _LEAST_COUNTED * everyones
        if not is_hidden or not issubclass(encoding, Signs):
            return cls(as_vector, share * as_vector)
        reach = everyones / counted
        of_sum = gaussian_share(summed, reach)
        divergences = (as_vector * one for one in sum_divergences(summed, reach).tolist())
        return cls(of_sum * as_vector, min(share, of_sum) * as_vector, (*divergences,))

    def __add__(self, other: "PrivacyLoss") -> "PrivacyLoss":
        divergences: tuple[float, ...] = ()
        if self.divergences or other.divergences:
            divergences = (*(self._at_orders() + other._at_orders()).tolist(),)
        return PrivacyLoss(
            self.as_gaussian + other.as_gaussian, self.as_sent + other.as_sent, divergences
        )

    def __mul__(self, answers: int) -> "PrivacyLoss":
        divergences = (*(answers * one for one in self.divergences),)
        return PrivacyLoss(self.as_gaussian * answers, self.as_sent * answers, divergences)

    def epsilon(self, delta: float) -> float:
        """Return ε at δ, the smallest of the bounds."""
        if not 0 < self.as_gaussian < inf:
            return self.as_gaussian
        epsilon = gaussian_epsilon(sqrt(self.as_gaussian), delta)
        if self.as_sent < self.as_gaussian:
            epsilon = min(epsilon, renyi_epsilon(self.as_sent, delta))
        if self.divergences:
            epsilon = min(epsilon, epsilon_of_divergences(self._at_orders(), delta))
        return epsilon

    def _at_orders(self) -> Float64:
        with np.errstate(over="ignore"):
            bound = self.as_sent / 2 * ORDERS
        return np.minimum(bound, self.divergences) if self.divergences else bound


@dataclass(frozen=True)
class Mechanism:
    """What a client releases in a round: its clipped update with noise, or the signs of that.

    Parameters
    ----------
    clip : float
        C, the largest L2 norm of an update, > 0.
    noise_scale : float
        The Gaussian noise's scale b, in the same units; at least 0.2·C, or 0.2·limit.
    kind : {"signs", "vector"} (default: "signs")
        What is sent of the noisy update.
    limit : float (default: infinity)
        The largest entry of the vector that noise is added to, in the same units, > 0.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.

    Examples
    --------
    >>> mechanism = Mechanism(clip=1.0, noise_scale=10.0)
    >>> mechanism.noise_multiplier
    10.0
    >>> f"{mechanism.epsilon(delta=1e-6, rounds=100):.2f}"
    '8.95'
    >>> mechanism.rounds_within(PrivacyBudget(epsilon=8.0, delta=1e-6))
    82
    """

    clip: float
    noise_scale: float
    kind: str = "signs"
    limit: float = inf

    def __post_init__(self) -> None:
        require_real("clip", self.clip, low=0.0, open_low=True)
        _require_limit(self.limit)
        least = LEAST_ROUNDED * min(self.clip, self.limit)
        require_real("noise_scale", self.noise_scale, low=least)
        require_choice("kind", self.kind, (*encodings(),))
        _keep_as_floats(self, "clip", "noise_scale", "limit")

    def __str__(self) -> str:
        sent = "the signs of" if self.kind == "signs" else "whole"
        entries = "" if self.limit == inf else f" and entries up to {self.limit:g}"
        return (
            f"{sent} updates of norm {self.clip:g}{entries} in Gaussian noise of "
            f"{self.noise_scale:g}, a noise multiplier of {self.noise_multiplier:g}"
        )

    @property
    def noise_multiplier(self) -> float:
        """σ, the noise scale over the largest norm."""
        return self.noise_scale / self.clip

    def epsilon(
        self,
        delta: float,
        rounds: int = 1,
        relation: Relation = "replace",
        sampling: float = 1.0,
        min_replies: int = 1,
        summed: int = 0,
    ) -> float:
        """Return ε of a client that may have answered a number of times.

        Parameters
        ----------
        delta : float
            δ, in (0, 1).
        rounds : int (default: 1)
            The number of answers, in [0, 2**63); with sampling, of rounds.
        relation : {"replace", "zero"} (default: "replace")
            See `PrivacyBudget`.
        sampling : float (default: 1.0)
            See `PrivacyBudget`.
        min_replies : int (default: 1)
            A round with fewer answers keeps the model, >= 1; matters with sampling.
        summed : int (default: 0)
            The number of honest clients in a secure sum, >= 0: see `Draw`.

        Returns
        -------
        float
            ε, rounded up.

        Raises
        ------
        TypeError, ValueError
            If an argument has the wrong type or is out of range.
        """
        require_integer("rounds", rounds, low=0, high=MOST_ANSWERS)
        _require_sampling(relation, sampling)
        require_integer("min_replies", min_replies, low=1)
        require_integer("summed", summed, low=0)
        return self.epsilon_of({Draw(sampling, min_replies, summed): rounds}, delta, relation)

    def epsilon_of(
        self, rounds: Mapping[Draw, int], delta: float, relation: Relation = "replace"
    ) -> float:
        """Return ε of a client that may have answered in rounds of several kinds.

        Parameters
        ----------
        rounds : mapping of Draw to int
            The number of rounds of each kind.
        delta, relation
            As for `epsilon`.

        Returns
        -------
        float
            ε, rounded up.

        Raises
        ------
        TypeError, ValueError
            If an argument has the wrong type or is out of range.
        """
        _require_delta(delta)
        own = [(draw, number) for draw, number in rounds.items() if number]
        losses = (self._loss(relation, draw.summed) * number for draw, number in own)
        epsilon = sum(losses, PrivacyLoss()).epsilon(delta)
        is_sampled = relation == "replace" and any(draw.sampling < 1 for draw in rounds)
        if is_sampled and 0 < epsilon < inf:
            # Sampling hides a client among others, but those in a sum may not be honest.
            loss = self._loss(relation)
            distance, energy = sqrt(loss.as_gaussian), loss.as_sent
            divergences = sum(
                number * sampled_divergences(distance, energy, draw.sampling, draw.min_replies)
                for draw, number in own
            )
            epsilon = min(epsilon, epsilon_of_divergences(np.asarray(divergences), delta))
        return epsilon

    def rounds_within(
        self,
        budget: PrivacyBudget,
        min_replies: int = 1,
        spent: Mapping[Draw, int] = MappingProxyType({}),
        summed: int = 0,
    ) -> int:
        """Return the number of rounds that a budget affords a client; it may be 0.

        Parameters
        ----------
        budget : PrivacyBudget
            The budget.
        min_replies, summed : int
            As for `epsilon`.
        spent : mapping of Draw to int (default: none)
            Rounds already spent.

        Returns
        -------
        int
            The largest number of rounds after which ε is within the budget.
        """
        draw = Draw(budget.sampling, min_replies, summed)

        def exceeds(rounds: int) -> bool:
            counts = Counter(spent)
            counts[draw] += rounds
            return self.epsilon_of(counts, budget.delta, budget.relation) > budget.epsilon

        if not exceeds(MOST_ANSWERS):
            return MOST_ANSWERS
        too_many = 1
        while not exceeds(too_many):
            too_many = min(2 * too_many, MOST_ANSWERS)
        # Half as many do not exceed it.
        return bisect_left(range(too_many), True, lo=too_many // 2 + 1, key=exceeds) - 1

    def _loss(self, relation: Relation, summed: int = 0) -> PrivacyLoss:
        multiplier, limit = self.noise_multiplier, self.limit / self.clip
        return PrivacyLoss.of_answer(self.kind, multiplier, relation, limit=limit, summed=summed)


def noise_multiplier_for(
    epsilon: float,
    delta: float,
    rounds: int,
    sampling: float = 1.0,
    *,
    kind: str = "signs",
    relation: Relation = "replace",
    min_replies: int = 1,
    limit: float = inf,
    summed: int = 0,
) -> float:
    """Return the smallest noise multiplier σ with which a client may answer a number of times.

    Parameters
    ----------
    epsilon : float
        ε, > 0.
    delta : float
        δ, in (0, 1).
    rounds : int
        The number of answers, in [1, 2**63): one per round of a run.
    sampling : float (default: 1.0)
        The share of clients drawn in a round, in (0, 1], if it stays hidden who they are: see
        `PrivacyBudget`. The server knows them, so against it the share is 1.
    kind : {"signs", "vector"} (default: "signs")
        What is sent: "signs" for `SignSGD`, "vector" for `MedianSGD`.
    relation : {"replace", "zero"} (default: "replace")
        See `PrivacyBudget`.
    min_replies : int (default: 1)
        The strategy's `min_replies`, which affects what sampling hides: see `PrivacyBudget`.
    limit : float (default: infinity)
        The largest entry of the vector that noise is added to, over the norm of `Clip`, > 0.
    summed : int (default: 0)
        The number of honest clients in a secure sum, >= 0: see `honest_of`.

    Returns
    -------
    float
        σ >= 0.2·min(1, limit), to six digits and rounded up: the noise scale is σ times the norm of
        `Clip`.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.

    Examples
    --------
    >>> sigma = noise_multiplier_for(epsilon=8.0, delta=1e-6, rounds=100)
    >>> round(sigma, 2)
    11.0
    >>> sigma = noise_multiplier_for(epsilon=8.0, delta=1e-6, rounds=100, limit=0.01, summed=80)
    >>> round(sigma, 2)
    1.17
    """
    budget = PrivacyBudget(epsilon, delta, relation, sampling)
    require_integer("rounds", rounds, low=1, high=MOST_ANSWERS)
    _require_limit(limit)

    def suffices(multiplier: float) -> bool:
        mechanism = Mechanism(1.0, multiplier, kind, limit)
        spent = mechanism.epsilon(delta, rounds, relation, sampling, min_replies, summed)
        return spent <= budget.epsilon

    low = high = LEAST_MULTIPLIER * min(1.0, limit)
    while not suffices(high):
        low, high = high, 2 * high
    while high > low * (1 + 1e-6):
        # The product of two very large ones is infinite.
        middle = sqrt(low * high) if high < 1e150 else sqrt(low) * sqrt(high)
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high * (1 + _ROUNDING_OF_SCALE)


def honest_of(share: float, votes: int) -> int:
    """Return the number of honest clients among those whose votes are in a sum, rounded down.

    Parameters
    ----------
    share : float
        The smallest share of honest ones, in (0, 1].
    votes : int
        The number of votes in the sum. Clients that drop out add none.

    Returns
    -------
    int
        The number.

    Examples
    --------
    >>> honest_of(0.8, 100)
    80
    """
    return floor(share * votes * (1 + 1e-12))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return ε of a Gaussian mechanism, exact except for rounding up.

    Parameters
    ----------
    mu : float
        μ, the distance of the two means over the standard deviation, > 0.
    delta : float
        δ, in (0, 1).

    Returns
    -------
    float
        The least ε >= 0 with Φ(μ/2 − ε/μ) − e^ε·Φ(−μ/2 − ε/μ) ≤ δ.
    """
    # Φ(x) ≤ exp(−x²/2) for x ≤ 0.
    enough = mu * mu / 2 + mu * sqrt(2 * -log(delta))
    if mu > _LARGEST_MU:
        return enough

    def log_excess(epsilon: float) -> float:
        first, second = scipy.special.log_ndtr([mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu])
        difference = min(epsilon + float(second) - float(first), -1e-300)
        return float(first) + log(-expm1(difference)) - log(delta)

    if erf(mu / sqrt(8)) <= delta:
        return 0.0
    if log_excess(0.0) <= 0:  # the two logarithms are equal in float64
        return enough
    return float(scipy.optimize.brentq(log_excess, 0.0, enough, xtol=1e-12)) * (1 + 1e-9) + 1e-9


def renyi_epsilon(energy: float, delta: float) -> float:
    """Bound ε where the Rényi divergence of every order α > 1 is at most α/2·energy.

    Parameters
    ----------
    energy : float
        The factor, > 0; of a Gaussian mechanism μ².
    delta : float
        δ, in (0, 1).

    Returns
    -------
    float
        The minimum over α of α/2·energy + log(1 − 1/α) − log(α·δ)/(α − 1), found numerically; any α
        gives an upper bound.
    """

    def bound(log_order: float) -> float:
        excess = exp(log_order)  # α − 1
        order = 1 + excess
        return order * energy / 2 - log1p(1 / excess) - (log(delta) + log(order)) / excess

    # The bound α/2·energy − log δ/(α − 1) is least at this α, and this one's least is near.
    near = (log(2 * -log(delta)) - log(energy)) / 2
    found = scipy.optimize.minimize_scalar(bound, bounds=(near - 3, near + 3), method="bounded")
    return max(0.0, float(found.fun))


def _keep_as_floats(value: object, *names: str) -> None:
    """Convert fields of a frozen value: ε of a float16 would be rounded to one, often down."""
    for name in names:
        object.__setattr__(value, name, float(getattr(value, name)))


def _require_delta(delta: float) -> None:
    require_real("delta", delta, low=0.0, high=1.0, open_low=True, open_high=True)


def require_share(name: str, share: float) -> None:
    """Raise unless a share is a number in (0, 1]."""
    require_real(name, share, low=0.0, high=1.0, open_low=True)


def _require_limit(limit: float) -> None:
    if limit != inf:
        require_real("limit", limit, low=0.0, open_low=True)


def _require_sampling(relation: str, sampling: float) -> None:
    require_choice("relation", relation, get_args(Relation))
    require_share("sampling", sampling)
    if sampling < 1 and relation != "replace":
        raise ValueError(f"relation must be 'replace' with sampling={sampling!r}, got {relation!r}")
