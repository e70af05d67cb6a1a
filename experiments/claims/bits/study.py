"""The methods that are compared, their federations and their runs.

Some methods have numbers to tune. A few values are tried in each federation from the first seed,
and those with the best test accuracy are kept, which is more than a user could know.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from flwr.clientapp.typing import Mod
from flwr.serverapp.strategy import FedAvg, FedMedian, Strategy

from experiments.studies.both_ways import PARTITIONS
from experiments.studies.federation import Setting, simulate
from experiments.studies.jobs import Result, run_jobs
from experiments.studies.peers import (
    Codec,
    Decoding,
    Eden,
    Half,
    Int8,
    NoisySigns,
    ScaledSigns,
    TopK,
    compress,
)
from experiments.studies.random_basis import unseeded
from fedmedian import CodedSteps, Majority
from fedmedian.clients import perturb
from fedmedian.strategies import MedianSGD, SignSGD

RESULTS = Path(__file__).resolve().parents[2] / "results" / "bits"

LAST = 5
"""The number of last rounds over which the final accuracy is averaged."""

CODED = "SignSGD(downlink=CodedSteps())"
"""The name in tables of the method with one bit in both directions."""


@dataclass(frozen=True)
class Peer:
    """A strategy and the mods of its clients.

    Parameters
    ----------
    strategy : callable
        Makes the strategy of ``seed`` and of FedAvg's options.
    mods : tuple of mods
        The mods.
    """

    strategy: Callable[..., Strategy]
    mods: tuple[Mod, ...] = ()


def _coded(codec: Codec, *, feedback: bool = False) -> Peer:
    strategy = partial(unseeded, partial(Decoding, codec))
    return Peer(strategy, (compress(codec, feedback=feedback),))


def _majority(step: float) -> Peer:
    return Peer(partial(SignSGD, None, Majority(), learning_rate=step, rotation=None), (perturb,))


def _noisy(noise: float, step: float) -> Peer:
    return _coded(NoisySigns(noise, step))


PEERS: dict[str, Callable[..., Peer]] = {
    "FedAvg": partial(Peer, partial(unseeded, FedAvg)),
    "FedMedian": partial(Peer, partial(unseeded, FedMedian)),
    "FedAvg, float16": partial(_coded, Half()),
    "QSGD, int8": partial(_coded, Int8()),
    "top 1 %, feedback": partial(_coded, TopK(0.01), feedback=True),
    "plain signs": _majority,
    "signs, feedback": partial(_coded, ScaledSigns(), feedback=True),
    "z-SignFedAvg": _noisy,
    "EDEN, one bit": partial(_coded, Eden()),
    "SignSGD()": partial(Peer, SignSGD, (perturb,)),
    CODED: partial(Peer, partial(SignSGD, downlink=CodedSteps()), (perturb,)),
    "MedianSGD()": partial(Peer, MedianSGD, (perturb,)),
}
"""The methods, by their names in tables; some take numbers to tune."""

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Federation:
    """A federation, and the seeds from which it is trained."""

    setting: Setting
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """A part of the study.

    Parameters
    ----------
    tried : dict of str to tuple of tuples of float
        The methods, and the numbers that are tried for each.
    federations : dict of str to Federation
        The federations, by their names in tables.
    """

    tried: dict[str, tuple[Numbers, ...]]
    federations: dict[str, Federation]


EVERYBODY: dict[str, tuple[Numbers, ...]] = dict.fromkeys(PEERS, ((),)) | {
    "plain signs": ((0.0003,), (0.001,), (0.003,)),
    "z-SignFedAvg": ((0.01, 0.01), (0.02, 0.02), (0.03, 0.03)),
}


def split(setting: Setting, seeds: tuple[int, ...]) -> Part:
    """Return all peers in a federation whose data is split in every way."""
    federations = {
        name: Federation(replace(setting, **changes), seeds) for name, changes in PARTITIONS.items()
    }
    return Part(EVERYBODY, federations)


TEN = split(Setting(), (0, 1))

# Dirichlet(.1) takes as many examples to have something for each of a hundred clients.
HUNDRED = split(Setting(num_clients=100, examples=60_000, local_steps=8), (0,))

HOLE_SETTING = Setting(
    network="lenet",
    alpha=0.25,
    rounds=300,
    local_steps=1,
    batch_size=50,
    learning_rate=0.1,
    tested=LAST,
)


def hole(setting: Setting) -> Part:
    """Return a federation in which one-bit methods are known to fail."""
    tried: dict[str, tuple[Numbers, ...]] = {
        "FedAvg": ((),),
        "plain signs": ((0.0001,), (0.0003,), (0.001,)),
        "z-SignFedAvg": ((0.0003, 0.0003), (0.001, 0.001), (0.003, 0.003)),
        "EDEN, one bit": ((),),
        "SignSGD()": ((),),
        "MedianSGD()": ((),),
    }
    return Part(tried, {"Dirichlet(.25)": Federation(setting, (0,))})


HOLE = hole(HOLE_SETTING)
HOLE_CIFAR_10 = hole(replace(HOLE_SETTING, dataset="cifar-10", examples=50_000, rounds=3_000))


def shortened(part: Part, **changes: Any) -> Part:
    """Return a part that takes seconds: the first and the last federation, one seed, no choice.

    Parameters
    ----------
    part : Part
        The part.
    **changes : Any
        Fields of all its settings.

    Returns
    -------
    Part
        The part that takes seconds.
    """
    first, *_, last = [*part.federations.items()] * 2
    return Part(
        {peer: tried[-1:] for peer, tried in part.tried.items()},
        {
            name: Federation(replace(one.setting, **changes), one.seeds[:1])
            for name, one in (first, last)
        },
    )


@dataclass(frozen=True)
class Outcome:
    """What a method sent and reached in a federation.

    Parameters
    ----------
    numbers : list of float
        The tried ones that were kept.
    clients, rounds : int
        The number of clients, which all train in each round, and of rounds.
    uplink, downlink : float
        The bytes of a training reply and of what asks for it, as sent, with all headers.
    both_ways : list of float
        The megabytes that all clients send and are sent, by round; a mean over seeds.
    accuracy : list of list of float
        Test accuracy by seed and round, of the rounds that it is tested after.
    """

    numbers: list[float]
    clients: int
    rounds: int
    uplink: float
    downlink: float
    both_ways: list[float]
    accuracy: list[list[float]]

    @property
    def ends(self) -> list[float]:
        """Accuracy over the last rounds, by seed."""
        return [fmean(rounds[-LAST:]) for rounds in self.accuracy]

    @property
    def end(self) -> float:
        """Accuracy over the last rounds and all seeds."""
        return fmean(self.ends)

    @property
    def sent(self) -> float:
        """The megabytes that all clients send up in a round."""
        return self.clients * self.uplink / 1e6

    def rounds_to(self, accuracy: float) -> int | None:
        """Return the first round after which the mean over seeds is at an accuracy, if any is."""
        curve = map(fmean, zip(*self.accuracy, strict=True))
        return next((n for n, mean in enumerate(curve, 1) if mean >= accuracy), None)


Outcomes = dict[str, Outcome]
"""The outcomes in one federation, by peer."""


def run_peer(peer: str, numbers: Numbers, setting: Setting, seed: int) -> Result:
    """Train a federation with a peer; see `PEERS`."""
    chosen = PEERS[peer](*numbers)
    return simulate(chosen.strategy, setting, seed, chosen.mods)


Key = tuple[str, Numbers, Setting, int]


def run_all(keys: Iterable[Key]) -> dict[Key, Result]:
    """Train federations from seeds, unless their results are there already."""
    jobs = {key: (" | ".join(map(str, key)), partial(run_peer, *key)) for key in keys}
    return run_jobs(jobs, RESULTS)


def measure(part: Part) -> dict[str, Outcomes]:
    """Run all numbers from the first seed, and the best ones from the other seeds."""
    first = run_all(
        (peer, numbers, one.setting, one.seeds[0])
        for one in part.federations.values()
        for peer, tried in part.tried.items()
        for numbers in tried
    )

    def keys_of_best(peer: str, one: Federation) -> list[Key]:
        def end(numbers: Numbers) -> float:
            return fmean(first[peer, numbers, one.setting, one.seeds[0]]["accuracy"][-LAST:])

        best = max(part.tried[peer], key=end)
        return [(peer, best, one.setting, seed) for seed in one.seeds]

    kept = {
        name: {peer: keys_of_best(peer, one) for peer in part.tried}
        for name, one in part.federations.items()
    }
    runs = run_all(key for peers in kept.values() for keys in peers.values() for key in keys)

    def outcome(keys: list[Key]) -> Outcome:
        uplink, downlink = (fmean(runs[key][way] for key in keys) for way in ("uplink", "downlink"))
        sent = zip(*(runs[key]["sent"] for key in keys), strict=True)
        accuracy = [[round(one, 4) for one in runs[key]["accuracy"]] for key in keys]
        _, numbers, setting, _ = keys[0]
        return Outcome(
            list(numbers),
            setting.num_clients,
            setting.rounds,
            uplink,
            downlink,
            [round(fmean(of_seeds) / 1e6, 6) for of_seeds in sent],
            accuracy,
        )

    return {
        name: {peer: outcome(keys) for peer, keys in peers.items()} for name, peers in kept.items()
    }
