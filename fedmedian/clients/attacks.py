"""Hostile clients for simulations: attacks as mods of a ClientApp.

The position among the mods determines what an attack sees:

- ``ClientApp(mods=[perturb, Hostile(SignFlip(), partitions=(8, 9))])``: inside `perturb`, where
  replies hold trained weights. `SignFlip` and `GaussianNoise` need only the client's own update,
  and work in every engine, with every strategy.
- ``ClientApp(mods=[perturb, Collusion(MinMax(), partitions=(8, 9))])``: `ALittleIsEnough`,
  `InnerProduct`, `Mimic`, `MinMax`, `MinSum`, `FoolKrum`, `HalfMimic`, `Drift`, `TwoCamps`,
  `MinMaxAngle` and `MinSumAngle` know the honest clients' updates, and work with an
  `InProcessGrid`. The last five are made against rules that compare directions.
- ``ClientApp(mods=[Hostile(Replay(), partitions=(8, 9)), perturb])``: outside `perturb`, where
  replies are as sent. `ClaimExamples`, `ClaimMagnitude` and `ClaimScale` lie about their content,
  and `Replay` sends an old one.

Flipped labels change the data and need no mod: see `flip_labels`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from math import sqrt
from typing import Any, ClassVar

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod
from numpy.typing import NDArray

from fedmedian.checks import require_integer, require_real, require_type
from fedmedian.clients.mod import is_training
from fedmedian.clients.policy import EXAMPLES
from fedmedian.model.layout import Layout
from fedmedian.records import to_arrays, to_record
from fedmedian.steps.noise import AddNoise, Measure, TopUpNoise
from fedmedian.steps.payload import Payload
from fedmedian.wire.scalars import FLOAT32_MAX, PREFIX, Float32

Change = Callable[[Float32], Float32]
"""Makes what is sent of the client's own (d,) update."""

_KEPT = "replay."
"""The prefix of keys in ``Context.state``; client steps use another one."""


@dataclass(frozen=True)
class Hostile:
    """A mod that attacks on some clients; the others stay honest.

    Parameters
    ----------
    attack : mod
        An attack of this module that is a mod, or any other mod.
    partitions : collection of int
        The hostile clients' ``partition-id``.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.

    Examples
    --------
    >>> from flwr.clientapp import ClientApp
    >>> from fedmedian.clients import perturb
    >>> app = ClientApp(mods=[perturb, Hostile(SignFlip(), partitions=(8, 9))])
    """

    attack: Mod
    partitions: Collection[int]

    def __post_init__(self) -> None:
        if isinstance(self.attack, type) or not callable(self.attack):
            raise TypeError(f"attack must be a mod, such as SignFlip(), got {self.attack!r}")
        _require_partitions(self.partitions)

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Answer with the attack on hostile clients, else with the client."""
        if context.node_config.get("partition-id") in self.partitions:
            return self.attack(message, context, call_next)
        return call_next(message, context)


@dataclass(frozen=True)
class SignFlip:
    """The client's own update, reversed: −factor · u.

    Li et al., AAAI 2019 (arXiv 1811.03761); bit flip in Karimireddy et al. (arXiv 2006.09365).

    Parameters
    ----------
    factor : float (default: 1.0)
        The length of the sent vector relative to the update, >= 0.

    Raises
    ------
    TypeError, ValueError
        If `factor` is not a number or out of range.

    Examples
    --------
    >>> SignFlip(factor=2.0).update(np.array([1.0, -3.0], np.float32)).tolist()
    [-2.0, 6.0]
    """

    factor: float = 1.0

    def __post_init__(self) -> None:
        require_real("factor", self.factor, low=0.0)

    def update(self, own: Float32) -> Float32:
        """Return what is sent instead of the client's own (d,) update."""
        return np.asarray(np.float32(-self.factor) * own)

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Replace the update of the client; evaluation stays unchanged."""
        return _replace_update(message, context, call_next, self.update)


@dataclass(frozen=True)
class GaussianNoise:
    """Normal noise instead of the update: N(0, deviation²) in each coordinate.

    Blanchard et al., NeurIPS 2017 (arXiv 1703.02757).

    Parameters
    ----------
    deviation : float (default: 10.0)
        The standard deviation, in units of the update, >= 0.
    seed : int, optional
        The seed, >= 0, which determines the noise together with partition and round; None for the
        operating system's entropy.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.
    """

    deviation: float = 10.0
    seed: int | None = None

    def __post_init__(self) -> None:
        require_real("deviation", self.deviation, low=0.0)
        if self.seed is not None:
            require_integer("seed", self.seed, low=0)

    def update(self, own: Float32, rng: np.random.Generator) -> Float32:
        """Return what is sent instead of the client's own (d,) update."""
        return np.float32(self.deviation) * rng.standard_normal(own.size, dtype=np.float32)

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Replace the update of the client; evaluation stays unchanged."""
        partition = int(context.node_config.get("partition-id", 0))
        key = None if self.seed is None else (self.seed, partition, _round_of(message))
        noise = partial(self.update, rng=np.random.default_rng(key))
        return _replace_update(message, context, call_next, noise)


class Omniscient(ABC):
    """Base class of attacks that know a round's honest updates; see `Collusion`."""

    @abstractmethod
    def update(self, honest: Float32) -> Float32:
        """Return what each hostile client sends instead of its update.

        Parameters
        ----------
        honest : (M, d) float32
            The honest clients' updates, M >= 1.

        Returns
        -------
        (d,) float32
            The update to send.
        """

    def camps(self, honest: Float32, server_round: int) -> list[Float32]:
        """Return what the hostile clients send in turn in a round; by default all the same."""
        return [self.update(honest)]


@dataclass(frozen=True)
class ALittleIsEnough(Omniscient):
    """The honest mean minus a few standard deviations per coordinate, close enough to hide.

    Baruch et al., NeurIPS 2019 (arXiv 1902.06156).

    Parameters
    ----------
    deviations : float (default: 1.5)
        The number of standard deviations z.

    Raises
    ------
    TypeError, ValueError
        If `deviations` is not a finite number.
    """

    deviations: float = 1.5

    def __post_init__(self) -> None:
        require_real("deviations", self.deviations)

    def update(self, honest: Float32) -> Float32:
        """Return mean − z · std; see `Omniscient.update`."""
        spread = honest.std(axis=0)
        return np.asarray(honest.mean(axis=0) - np.float32(self.deviations) * spread)


@dataclass(frozen=True)
class InnerProduct(Omniscient):
    """A negative multiple of the honest mean, so that the inner product with it is negative.

    Inner product manipulation, Xie et al., UAI 2019 (arXiv 1903.03936).

    Parameters
    ----------
    factor : float (default: 0.1)
        ε, the length of the sent vector relative to the mean, >= 0.

    Raises
    ------
    TypeError, ValueError
        If `factor` is not a number or out of range.
    """

    factor: float = 0.1

    def __post_init__(self) -> None:
        require_real("factor", self.factor, low=0.0)

    def update(self, honest: Float32) -> Float32:
        """Return −ε · mean; see `Omniscient.update`."""
        return np.asarray(np.float32(-self.factor) * honest.mean(axis=0))


@dataclass(frozen=True)
class Mimic(Omniscient):
    """A copy of the first honest client's update, which gains weight by repetition.

    Karimireddy et al., ICLR 2022 (arXiv 2006.09365).
    """

    def update(self, honest: Float32) -> Float32:
        """Return the first row; see `Omniscient.update`."""
        return np.array(honest[0])


@dataclass(frozen=True)
class MinMax(Omniscient):
    """The honest mean minus as many standard deviations as its largest distance allows.

    mean − γ · std with the largest γ for which it is no farther from any honest update than the two
    most distant honest updates are from each other: Shejwalkar and Houmansadr, NDSS 2021.
    """

    def update(self, honest: Float32) -> Float32:
        """Return mean − γ · std; see `Omniscient.update`."""
        mean, spread, centered, length = _deviations(honest)
        if not length:
            return mean
        norms = np.einsum("ij,ij->i", centered, centered)
        along, furthest = centered @ -spread, squared_distances(centered).max()
        # For each honest client, the root of a quadratic in γ.
        under_root = along**2 + length * (furthest - norms)
        steps = (along + np.sqrt(np.maximum(under_root, 0))) / length
        return np.asarray(mean - steps.min() * spread)


@dataclass(frozen=True)
class MinSum(Omniscient):
    """The honest mean minus as many standard deviations as its summed distances allow.

    mean − γ · std with the largest γ for which the sum of squared distances to the honest updates
    does not exceed the largest such sum of an honest update: Shejwalkar and Houmansadr, NDSS 2021.
    """

    def update(self, honest: Float32) -> Float32:
        """Return mean − γ · std; see `Omniscient.update`."""
        mean, spread, centered, length = _deviations(honest)
        if not length:
            return mean
        most = squared_distances(centered).sum(axis=1).max()
        room = max(most - np.square(centered).sum(), 0.0) / (len(honest) * length)
        return np.asarray(mean - np.float32(sqrt(room)) * spread)


@dataclass(frozen=True)
class FoolKrum(Omniscient):
    """The longest step against the signs of the honest mean that Krum still selects.

    All hostile clients send −λ · sign(mean), where λ is halved from a bound until Krum prefers it
    to every honest update: Fang et al., USENIX Security 2020 (arXiv 1911.11815). FLANDERS, a
    baseline of Flower's, calls the attack OPT.

    Parameters
    ----------
    num_hostile : int
        f, the number of hostile clients that Krum is configured for, >= 1.

    Raises
    ------
    TypeError, ValueError
        If `num_hostile` is not an integer or out of range.
    """

    num_hostile: int

    def __post_init__(self) -> None:
        require_integer("num_hostile", self.num_hostile, low=1)

    def update(self, honest: Float32) -> Float32:
        """Return −λ · sign(mean); see `Omniscient.update`."""
        against = np.asarray(-np.sign(honest.mean(axis=0)))
        length, along = float(np.count_nonzero(against)), (honest @ against).astype(np.float64)
        if not length:
            return against
        norms = np.einsum("ij,ij->i", honest, honest).astype(np.float64)
        among = np.sort(squared_distances(honest).astype(np.float64), axis=1)
        # Krum adds up the distances to the n − f − 2 nearest: of a hostile client f − 1 are 0.
        nearest = max(len(honest) - 2, 1)
        others = max(nearest - self.num_hostile + 1, 0)
        shortest = among[:, 1 : nearest + 1].sum(axis=1).min()
        bound = (sqrt(norms.max()) + sqrt(shortest / max(others, 1))) / sqrt(length)
        for halvings in range(_HALVINGS):
            step = bound / 2**halvings
            away = np.maximum(norms - 2 * step * along + step**2 * length, 0)
            copies = np.repeat(away[:, np.newaxis], self.num_hostile, axis=1)
            known = np.sort(np.concatenate([among[:, 1:], copies], axis=1), axis=1)
            if np.sort(away)[:others].sum() <= known[:, :nearest].sum(axis=1).min():
                break
        return np.asarray(np.float32(step) * against)


_HALVINGS = 20
"""After this many the step is a millionth of the bound, too short for an attack."""


@dataclass(frozen=True)
class HalfMimic(Omniscient):
    """The honest update least like the mean, minus a multiple of the mean.

    It keeps the direction of an honest client, and moves against the others. Like the attacks
    below, it has the length of the longest honest update, the longest that is not conspicuous.

    Parameters
    ----------
    factor : float (default: 2.0)
        The length of what is subtracted, relative to the mean, >= 0.

    Raises
    ------
    TypeError, ValueError
        If `factor` is not a number or out of range.
    """

    factor: float = 2.0

    def __post_init__(self) -> None:
        require_real("factor", self.factor, low=0.0)

    def update(self, honest: Float32) -> Float32:
        """Return the outlier − factor · mean, lengthened; see `Omniscient.update`."""
        return _against(honest, _from_outlier(honest)[0], self.factor)


@dataclass(frozen=True)
class Drift(Omniscient):
    """A copy of an honest update that moves away from it, a little further in each round.

    In round r it is the honest update most like the mean, minus r · rate times the mean.

    Parameters
    ----------
    rate : float (default: 0.1)
        How much further it moves in each round, relative to the mean, >= 0.

    Raises
    ------
    TypeError, ValueError
        If `rate` is not a number or out of range.
    """

    rate: float = 0.1

    def __post_init__(self) -> None:
        require_real("rate", self.rate, low=0.0)

    def update(self, honest: Float32) -> Float32:
        """Return the first round's update, lengthened; see `Omniscient.update`."""
        return self.camps(honest, 1)[0]

    def camps(self, honest: Float32, server_round: int) -> list[Float32]:
        """Return a round's update, lengthened; see `Omniscient.camps`."""
        return [_against(honest, _from_outlier(honest)[-1], server_round * self.rate)]


@dataclass(frozen=True)
class TwoCamps(HalfMimic):
    """A `HalfMimic` of each of the two honest updates least like the mean, in two camps.

    Each camp looks like a separate minority. Arguments are those of `HalfMimic`.
    """

    def camps(self, honest: Float32, server_round: int) -> list[Float32]:
        """Return what the two camps send; see `Omniscient.camps`."""
        return [_against(honest, one, self.factor) for one in _from_outlier(honest)[:2]]


@dataclass(frozen=True)
class MinMaxAngle(Omniscient):
    """`MinMax` by angle: as far against the mean as the largest angle among the honest allows.

    It starts at the honest update most like the mean, and subtracts the largest multiple of the
    mean for which its angle to each honest update is at most the largest between two of them.
    """

    def update(self, honest: Float32) -> Float32:
        """Return the update, lengthened; see `Omniscient.update`."""
        return _as_far_as(honest, np.min)


@dataclass(frozen=True)
class MinSumAngle(Omniscient):
    """`MinSum` by angle: the same where the sum of cosines is bounded.

    The sum of its cosines with the honest updates is at least the smallest such sum of an honest
    update.
    """

    def update(self, honest: Float32) -> Float32:
        """Return the update, lengthened; see `Omniscient.update`."""
        return _as_far_as(honest, np.sum)


_MOST_MULTIPLES = 16.0
"""Any update less this many times the mean points against the mean."""


def _from_outlier(honest: Float32) -> list[Float32]:
    """Return the honest updates from that least like the mean to that most like it."""
    return list(honest[np.argsort(_cosines(honest, honest.mean(axis=0)))])


def _against(honest: Float32, start: Float32, factor: float) -> Float32:
    """Return start − factor · mean, with the length of the longest honest update."""
    moved = start - np.float32(factor) * honest.mean(axis=0)
    length = np.linalg.norm(moved)
    longest = np.linalg.norm(honest, axis=1).max()
    return np.asarray(moved * (longest / length) if length else moved, dtype=np.float32)


def _as_far_as(honest: Float32, likeness: Callable[..., Any]) -> Float32:
    """Return the farthest update `_against` the mean that is as like the honest ones as they are.

    `likeness` makes one number of a client's cosines with honest clients.
    """
    among = np.stack([_cosines(honest, one) for one in honest])
    least, start = likeness(among, axis=1).min(), _from_outlier(honest)[-1]
    low, high = 0.0, _MOST_MULTIPLES
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if likeness(_cosines(honest, _against(honest, start, middle))) >= least:
            low = middle
        else:
            high = middle
    return _against(honest, start, low)


def _cosines(vectors: Float32, one: Float32) -> NDArray[np.floating]:
    """Return the cosines of vectors, (M, d), with one of them or another, (M,); 0 for zeros."""
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(one)
    along = vectors @ one
    return np.asarray(np.divide(along, lengths, out=np.zeros_like(along), where=lengths > 0))


class Collusion:
    """A mod for an omniscient attack by some clients, who know the others' updates.

    One object serves all clients of a simulation in one process. It collects the honest clients'
    updates and computes from them what the hostile ones send. Hostile clients must come last: an
    `InProcessGrid` asks clients in the order of their partitions, so theirs must be the highest,
    and a strategy of the Message API sends all messages of a round together. With Ray, where
    clients run in many processes, and with the older API, it does not work and reports that.

    Parameters
    ----------
    attack : Omniscient
        The attack.
    partitions : collection of int
        The hostile clients' ``partition-id``.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.

    Examples
    --------
    >>> from flwr.clientapp import ClientApp
    >>> from fedmedian.clients import perturb
    >>> app = ClientApp(mods=[perturb, Collusion(ALittleIsEnough(), partitions=(8, 9))])
    """

    def __init__(self, attack: Omniscient, partitions: Collection[int]) -> None:
        require_type("attack", attack, Omniscient, "an omniscient attack, such as MinMax()")
        _require_partitions(partitions)
        self._attack, self._partitions = attack, partitions
        self._round = 0
        self._honest = dict[int, Float32]()
        self._sent: list[Float32] | None = None

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Record the update of an honest client, and replace that of a hostile one.

        Raises
        ------
        RuntimeError
            If a hostile client is asked before an honest one.
        """
        if not is_training(message):
            return call_next(message, context)
        partition, server_round = int(context.node_config["partition-id"]), _round_of(message)
        if server_round != self._round or partition in self._honest:
            self._round, self._honest, self._sent = server_round, {}, None
        hostile = partition in self._partitions
        if not self._honest if hostile else self._sent is not None:
            raise RuntimeError(
                f"client {partition} was asked out of order: hostile clients must be the last "
                "partitions of an InProcessGrid, and an honest one must be asked before them"
            )
        reply = _Reply(message, context, call_next)
        if reply.failed:
            return reply.message
        if not hostile:
            self._honest[partition] = reply.update
            return reply.message
        if self._sent is None:
            honest = np.stack(list(self._honest.values()))
            self._sent = self._attack.camps(honest, server_round)
        return reply.send(self._sent[partition % len(self._sent)])


@dataclass(frozen=True)
class ClaimExamples:
    """A false number of examples, to gain or lose weight.

    Parameters
    ----------
    num_examples : int
        The claimed number, >= 0.

    Raises
    ------
    TypeError, ValueError
        If `num_examples` is not an integer or out of range.
    """

    num_examples: int

    def __post_init__(self) -> None:
        require_integer("num_examples", self.num_examples, low=0)

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Replace the number in the reply to training, if there is one."""
        reply = call_next(message, context)
        if is_training(message) and reply.has_content():
            for record in reply.content.metric_records.values():
                for key in record.keys() & set(EXAMPLES):
                    record[key] = self.num_examples
        return reply


@dataclass(frozen=True)
class _ClaimReports:
    """A false value in what client steps report; replies without such reports stay unchanged."""

    value: float

    steps: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        require_real("value", self.value, low=0.0, high=FLOAT32_MAX)

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Replace the reports in the payload, if there is one."""
        reply = call_next(message, context)
        if not reply.has_content():
            return reply
        for key, record in reply.content.config_records.items():
            if Payload.is_in(record):
                (arrays,) = reply.content.array_records.values()
                payload = Payload.decode(list(to_arrays(arrays).values()), record)
                reports = {
                    step: np.full_like(values, self.value) if step in self.steps else values
                    for step, values in payload.reports.items()
                }
                _, scalars = replace(payload, reports=reports).encode()
                reply.content[key] = ConfigRecord({**record, **scalars})
        return reply


class ClaimMagnitude(_ClaimReports):
    """A false magnitude of every block, to set the next round's noise scale.

    Place it outside `perturb`. Replies without magnitudes stay unchanged.

    Parameters
    ----------
    value : float
        The claimed magnitude, finite in float32, >= 0.

    Raises
    ------
    TypeError, ValueError
        If `value` is not a number or out of range.
    """

    steps = (Measure.name,)


class ClaimScale(_ClaimReports):
    """A false noise scale of every block, to mislead decoding.

    Place it outside `perturb`. Clients that the server told their scales report none, and their
    replies stay unchanged.

    Parameters
    ----------
    value : float
        The claimed scale, finite in float32, >= 0.

    Raises
    ------
    TypeError, ValueError
        If `value` is not a number or out of range.
    """

    steps = (AddNoise.name, TopUpNoise.name)


@dataclass(frozen=True)
class Replay:
    """The client's first reply to training, sent again in every later round.

    Outside `perturb` it resends a payload; inside it, or without it, a trained model. The client
    keeps the reply in its ``Context.state``.
    """

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Answer as in the first round."""
        if not is_training(message) or not message.content.array_records:
            return call_next(message, context)  # without a model, it is about a secure sum
        kept = {
            key.removeprefix(_KEPT): record
            for key, record in context.state.items()
            if key.startswith(_KEPT)
        }
        if kept:
            return Message(RecordDict(kept), reply_to=message)
        reply = call_next(message, context)
        if reply.has_content():
            for key, record in reply.content.items():
                context.state[_KEPT + key] = record
        return reply


def flip_labels(labels: NDArray[Any], num_classes: int) -> NDArray[Any]:
    """Return flipped labels for a hostile client to train on: C − 1 − labels.

    Label flip as in Karimireddy et al. (arXiv 2006.09365). It changes the client's data, not its
    reply: apply it where the app loads the data.

    Parameters
    ----------
    labels : (n,) integer array
        The labels, from 0 to C − 1.
    num_classes : int
        C, the number of classes, >= 2.

    Returns
    -------
    (n,) integer array
        The flipped labels; with an odd number of classes the middle one stays the same.

    Raises
    ------
    TypeError, ValueError
        If `num_classes` is not an integer or out of range.

    Examples
    --------
    >>> flip_labels(np.array([0, 1, 9]), num_classes=10).tolist()
    [9, 8, 0]
    """
    return require_integer("num_classes", num_classes, low=2) - 1 - labels


def squared_distances(vectors: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the squared distances between vectors.

    Parameters
    ----------
    vectors : (M, d) array
        The vectors.

    Returns
    -------
    (M, M) array
        The squared distance of each pair.
    """
    products = vectors @ vectors.T
    norms = products.diagonal()
    distances: NDArray[np.floating] = np.maximum(norms[:, np.newaxis] + norms - 2 * products, 0)
    np.fill_diagonal(distances, 0)
    return distances


class _Reply:
    """A client's reply to training, as a model and as an update."""

    def __init__(self, message: Message, context: Context, call_next: ClientAppCallable) -> None:
        (record,) = message.content.array_records.values()
        self._before = to_arrays(record)
        self._layout = Layout.of_model(self._before, exact=())
        self.message = call_next(message, context)
        self.failed = self.message.has_error()
        if not self.failed:
            ((self._name, record),) = self.message.content.array_records.items()
            arrays = to_arrays(record)
            if any(name.startswith(PREFIX) for name in arrays):
                raise ValueError(
                    "this attack changes trained weights: list it after perturb in the ClientApp's "
                    "mods"
                )
            self._names = self._layout.own_names(arrays)
            self._after = self._layout.named(arrays)

    @property
    def update(self) -> Float32:
        """The update of all floating-point arrays, (d,)."""
        return self._layout.difference(self._before, self._after)

    def send(self, update: Float32) -> Message:
        """Return the reply with a different update."""
        model = self._layout.move(self._before, update, 1.0, self._after)
        renamed = dict(zip(self._names, model.values(), strict=True))
        self.message.content[self._name] = to_record(renamed)
        return self.message


def _replace_update(
    message: Message, context: Context, call_next: ClientAppCallable, change: Change
) -> Message:
    """Change the client's update in replies to training; other replies stay unchanged."""
    if not is_training(message):
        return call_next(message, context)
    reply = _Reply(message, context, call_next)
    return reply.message if reply.failed else reply.send(change(reply.update))


def _deviations(honest: Float32) -> tuple[Float32, Float32, Float32, Float32]:
    """Return the mean, its standard deviations, the centered updates, and std · std."""
    mean, spread = np.asarray(honest.mean(axis=0)), np.asarray(honest.std(axis=0))
    return mean, spread, honest - mean, spread @ spread


def _round_of(message: Message) -> int:
    """Return the round that Flower's strategies or its older server report, or 0."""
    for record in message.content.config_records.values():
        if isinstance(told := record.get("server-round"), int):
            return told
    group = message.metadata.group_id
    return int(group) if group.isdecimal() else 0


def _require_partitions(partitions: Any) -> None:
    require_type("partitions", partitions, Collection, "a collection of integers")
    for partition in partitions:
        require_integer("partitions", partition, low=0)
