"""What is compared, in which federations, and the runs of it.

Peers whose step is the user's to find have a small grid of steps here. Each is tried in each
federation from the first seed, and the one that ends best on the test data is kept: more than a
user could know.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from flwr.clientapp.typing import Mod
from flwr.serverapp.strategy import FedAvg, FedMedian, Strategy

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
from fedmedian import Majority
from fedmedian.clients import perturb
from fedmedian.strategies import MedianSGD, SignSGD

RESULTS = Path(__file__).resolve().parents[2] / "results" / "bits"

LAST = 5
"""The number of rounds, the last, over which accuracy at the end is averaged."""


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


STEPS = (0.0003, 0.001, 0.003)
"""The steps that are tried of plain signs."""

NOISY_STEPS = ((0.003, 0.003), (0.01, 0.003), (0.01, 0.01))
"""The noise σ and the step η that are tried of z-SignFedAvg."""

PEERS: dict[str, dict[str, Peer]] = {
    "FedAvg": {"": Peer(partial(unseeded, FedAvg))},
    "FedMedian": {"": Peer(partial(unseeded, FedMedian))},
    "FedAvg, float16": {"": _coded(Half())},
    "QSGD, int8": {"": _coded(Int8())},
    "top 1 %, feedback": {"": _coded(TopK(0.01), feedback=True)},
    "plain signs": {f"δ = {step:g}": _majority(step) for step in STEPS},
    "signs, feedback": {"": _coded(ScaledSigns(), feedback=True)},
    "z-SignFedAvg": {
        f"σ = {noise:g}, η = {step:g}": _coded(NoisySigns(noise, step))
        for noise, step in NOISY_STEPS
    },
    "EDEN, one bit": {"": _coded(Eden())},
    "SignSGD()": {"": Peer(SignSGD, (perturb,))},
    "MedianSGD()": {"": Peer(MedianSGD, (perturb,))},
}
"""What is compared, by its name in tables and by what is tried of it."""


@dataclass(frozen=True)
class Federation:
    """A federation, and the seeds from which it is trained."""

    setting: Setting
    seeds: tuple[int, ...]

    def __str__(self) -> str:
        """Return all that its findings depend on."""
        return f"{self.setting} | seeds {self.seeds}"


@dataclass(frozen=True)
class Part:
    """A part of the study.

    Parameters
    ----------
    peers : tuple of str
        Who is compared.
    federations : dict of str to Federation
        Where, by its name in tables.
    """

    peers: tuple[str, ...]
    federations: dict[str, Federation]


PARTITIONS: dict[str, dict[str, Any]] = {
    "iid": {"partition": "iid"},
    "Dirichlet(.3)": {"alpha": 0.3},
    "Dirichlet(.1)": {"alpha": 0.1},
    "one class each": {"partition": "classes"},
}

# Dirichlet(.1) takes as many examples to have something for each of a hundred clients.
COHORTS = {
    10: Federation(Setting(), (0, 1)),
    100: Federation(Setting(num_clients=100, examples=60_000, local_steps=8), (0,)),
}


def name_of(partition: str, clients: int) -> str:
    """Return the name of a federation."""
    return f"{partition}, {clients} clients"


PARTS = {
    "federations": Part(
        tuple(PEERS),
        {
            name_of(partition, clients): replace(cohort, setting=replace(cohort.setting, **changes))
            for clients, cohort in COHORTS.items()
            for partition, changes in PARTITIONS.items()
        },
    ),
    "hole": Part(
        ("FedAvg", "plain signs", "z-SignFedAvg", "EDEN, one bit", "SignSGD()", "MedianSGD()"),
        {
            "LeNet, Dirichlet(.25), 10 clients": Federation(
                Setting(
                    network="lenet",
                    alpha=0.25,
                    rounds=100,
                    local_steps=1,
                    batch_size=50,
                    learning_rate=0.1,
                ),
                (0,),
            )
        },
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What became of a peer in a federation.

    Parameters
    ----------
    tuned : str
        What was kept of that which was tried.
    uplink, downlink : float
        The bytes of a training reply and of what asks for it, as sent, with all headers.
    accuracy : list of list of float
        Test accuracy by seed and round.
    """

    tuned: str
    uplink: float
    downlink: float
    accuracy: list[list[float]]

    @property
    def ends(self) -> list[float]:
        """Accuracy over the last rounds, by seed."""
        return [fmean(rounds[-LAST:]) for rounds in self.accuracy]

    @property
    def end(self) -> float:
        """Accuracy over the last rounds and all seeds."""
        return fmean(self.ends)

    def rounds_to(self, accuracy: float) -> int | None:
        """Return the first round after which the mean over seeds is at an accuracy, if any is."""
        curve = map(fmean, zip(*self.accuracy, strict=True))
        return next((n for n, mean in enumerate(curve, 1) if mean >= accuracy), None)


Outcomes = dict[str, Outcome]
"""The outcomes in one federation, by peer."""


def run_peer(peer: str, tuned: str, setting: Setting, seed: int) -> Result:
    """Train a federation with a peer; see `PEERS`."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    chosen = PEERS[peer][tuned]
    return simulate(chosen.strategy, setting, seed, chosen.mods)


Key = tuple[str, str, Setting, int]


def run_all(keys: Iterable[Key]) -> dict[Key, Result]:
    """Train federations from seeds, unless their results are there already."""
    jobs = {key: (" | ".join(map(str, key)), partial(run_peer, *key)) for key in keys}
    results = run_jobs(dict(jobs.values()), RESULTS)
    return {key: results[name] for key, (name, _) in jobs.items()}


def measure(part: Part) -> dict[str, Outcomes]:
    """Try all that is tried from the first seed, and what ends best from the others."""
    federations = part.federations.values()
    tried = run_all(
        (peer, tuned, one.setting, one.seeds[0])
        for one in federations
        for peer in part.peers
        for tuned in PEERS[peer]
    )

    def best(peer: str, one: Federation) -> str:
        first = (one.setting, one.seeds[0])
        return max(
            PEERS[peer], key=lambda tuned: fmean(tried[peer, tuned, *first]["accuracy"][-LAST:])
        )

    kept = {
        (name, peer): [(peer, best(peer, one), one.setting, seed) for seed in one.seeds]
        for name, one in part.federations.items()
        for peer in part.peers
    }
    runs = run_all(chain.from_iterable(kept.values()))

    def outcome(keys: Sequence[Key]) -> Outcome:
        uplink, downlink = (fmean(runs[key][way] for key in keys) for way in ("uplink", "downlink"))
        accuracy = [[round(one, 4) for one in runs[key]["accuracy"]] for key in keys]
        return Outcome(keys[0][1], uplink, downlink, accuracy)

    return {
        name: {peer: outcome(kept[name, peer]) for peer in part.peers} for name in part.federations
    }
